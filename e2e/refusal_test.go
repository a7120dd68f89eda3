//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Hosts and plans that cannot be migrated: each a clear error, nothing changed.
func TestRefusals(t *testing.T) {
	t.Parallel()
	bare := up(t, "e2e-bare", "--no-k3s", "--user", "admin", "--sudo=false")
	agent := up(t, "e2e-agent", "--agent", "--platform", "none")
	other := filepath.Join(t.TempDir(), "id")
	require.Zero(t, execute(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other).code)

	empty := filepath.Join(t.TempDir(), "known_hosts")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))

	for _, tc := range []struct {
		name string
		lab  *lab
		edit func(spec object)
		code int
		want []string
	}{
		{"no K3s on the host", bare, func(s object) { asRoot(s) }, 1, []string{"K3s is not installed", "spec.hosts[0].address"}},
		{"agent node given as host", agent, nil, 3, []string{"agent", "spec.hosts[0].address"}},
		{"unreachable host", bare, func(s object) { firstHost(s)["port"] = 1 }, 1, []string{"127.0.0.1:1", "refused"}},
		{"wrong key", bare, func(s object) { firstHost(s)["identityFiles"] = []string{other} }, 1, []string{other}},
		{"unknown host key", bare, func(s object) { firstHost(s)["knownHosts"] = []string{empty} }, 1, []string{"SHA256:", "ssh-keyscan"}},
		{"changed host key", bare, func(s object) { firstHost(s)["knownHosts"] = []string{forged(t, bare)} }, 1, []string{"ssh-keygen -R"}},
		{"neither root nor sudo", bare, func(s object) { firstHost(s)["sudo"] = false }, 1, []string{"admin", "sudo"}},
		{"no right to sudo", bare, nil, 1, []string{"admin", "sudo"}},
		{"missing platform command", bare, func(s object) { s["platform"].(object)["command"] = []string{"./no-such-command"} }, 2, []string{"spec.platform.command", "no-such-command"}},
		{"unknown field", bare, func(s object) { s["networks"] = object{} }, 2, []string{"spec.networks"}},
		{"reversed families", bare, func(s object) {
			s["network"] = object{"clusterCIDR": []string{"fd42::/48", "10.42.0.0/16"}}
		}, 2, []string{"spec.network.clusterCIDR"}},
		{"service range too large", bare, func(s object) {
			s["network"] = object{"serviceCIDR": []string{"10.43.0.0/16", "fd43::/64"}}
		}, 2, []string{"spec.network.serviceCIDR[1]", "108"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.lab.on(t, "touch /run/e2e-mark; sleep 1.1")
			file := tc.lab.plan(t, tc.edit)
			for _, command := range [][]string{{"plan", "-f", file}, {"run", "-f", file, "--yes"}} {
				r := migrate(t, command...)
				assert.Equal(t, tc.code, r.code, "%s", r)
				for _, w := range tc.want {
					assert.Contains(t, r.stderr, w)
				}
				assert.NotContains(t, r.stderr, "panic")
			}
			assert.Empty(t, tc.lab.on(t, "find /etc /usr/local /root /var/lib/k3s-dualstack /var/lib/rancher -newer /run/e2e-mark 2>/dev/null || true"), "nothing was changed")
		})
	}
}

func asRoot(spec object) {
	h := firstHost(spec)
	h["user"], h["sudo"] = "root", false
}

// forged is a known_hosts file with another key for the lab's host.
func forged(t testing.TB, l *lab) string {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "k")
	require.Zero(t, execute(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).code)
	public, err := os.ReadFile(key + ".pub")
	require.NoError(t, err)
	known, err := os.ReadFile(l.KnownHosts)
	require.NoError(t, err)
	host, _, _ := strings.Cut(string(known), " ")
	file := filepath.Join(dir, "known_hosts")
	require.NoError(t, os.WriteFile(file, []byte(host+" "+string(public)), 0o600))
	return file
}
