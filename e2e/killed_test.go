//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A migration whose process is killed with SIGKILL as soon as each new record of
// its journal is on disk, and continued by the same command every time: it ends
// like any other.
func TestKilledAtEveryRecord(t *testing.T) {
	t.Parallel()
	// Installed by a configuration file, a drop-in and flags, which all have to survive.
	dir := t.TempDir()
	config, drops := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "config.yaml.d")
	require.NoError(t, os.WriteFile(config, []byte("# ours\nwrite-kubeconfig-mode: \"0640\" # for the group\ncluster-cidr: 10.42.0.0/16 # pods\n"), 0o644))
	require.NoError(t, os.Mkdir(drops, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(drops, "10-names.yaml"), []byte("tls-san:\n  - lab.example # a name\n"), 0o600))
	l := up(t, "e2e-killed", "--store-mib", "40", "--config", config, "--config-dir", drops, "--install-args", "--service-cidr=10.43.0.0/16", "--env", `K3S_TOKEN=it's "$ecret" `)
	file := l.plan(t, nil)
	journal := filepath.Join(filepath.Dir(file), "work", "journal.jsonl")
	// What an admin added by hand, and the install script would not write again.
	l.on(t, "echo GODEBUG=http2debug=0 >>/etc/systemd/system/k3s.service.env")
	files, ca, env := l.on(t, fingerprint), l.on(t, identity), l.on(t, "cat /etc/systemd/system/k3s.service.env")
	beats := heartbeats(t, l)

	seen := map[string]bool{}
	kills := 0
	for deadline := time.Now().Add(20 * time.Minute); ; {
		require.True(t, time.Now().Before(deadline), "the migration does not end; killed %d times", kills)
		run := exec.Command(bin("migrate"), "run", "-f", file, "--yes")
		var out strings.Builder
		run.Stdout, run.Stderr = &out, &out
		require.NoError(t, run.Start())
		ended := make(chan error, 1)
		go func() { ended <- run.Wait() }()
		killed := false
		for !killed {
			select {
			case err := <-ended:
				require.NoError(t, err, "after %d kills: %s", kills, out.String())
				t.Logf("killed %d times and continued", kills)
				assert.Greater(t, kills, 60)
				assert.Equal(t, files, l.on(t, fingerprint), "volumes")
				assert.Equal(t, ca, l.on(t, identity), "identity")
				assert.True(t, strings.HasPrefix(heartbeats(t, l), beats), "the store's log goes on where it ended")
				assert.Equal(t, `# ours
write-kubeconfig-mode: "0640" # for the group
cluster-cidr: 10.42.0.0/16,fd42::/48 # pods
node-ip: `+l.Host.IPv4+","+l.Host.IPv6+`
flannel-ipv6-masq: true`, l.on(t, "cat /etc/rancher/k3s/config.yaml"))
				assert.Equal(t, "600 600", l.on(t, "stat -c %a /etc/rancher/k3s/config.yaml /etc/rancher/k3s/config.yaml.d/10-names.yaml | paste -sd' '"))
				assert.Equal(t, "tls-san:\n  - lab.example # a name", l.on(t, "cat /etc/rancher/k3s/config.yaml.d/10-names.yaml"))
				assert.Equal(t, env, l.on(t, "cat /etc/systemd/system/k3s.service.env"))
				assert.Contains(t, l.on(t, "systemctl cat k3s"), "--service-cidr=10.43.0.0/16,fd43::/108")
				assert.Contains(t, l.on(t, "cat /var/lib/rancher/k3s/server/token"), `$ecret`)
				r := migrate(t, "verify", "-f", file)
				assert.Zero(t, r.code, "%s", r)
				return
			case <-time.After(time.Millisecond):
			}
			if fresh(t, journal, seen) {
				require.NoError(t, run.Process.Signal(syscall.SIGKILL))
				<-ended
				killed = true
				kills++
				// What was written before the signal arrived counts as seen.
				fresh(t, journal, seen)
			}
		}
	}
}

// fresh tells whether the journal has a record of a kind that was not seen: an
// action's intent comes again with every attempt, and the last record is the end.
func fresh(t testing.TB, journal string, seen map[string]bool) bool {
	t.Helper()
	data, err := os.ReadFile(journal)
	if os.IsNotExist(err) {
		return false
	}
	require.NoError(t, err)
	found := false
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		var r struct{ Step, Action, Event string }
		if json.Unmarshal(line, &r) != nil || r.Event == "finished" {
			continue
		}
		key := r.Step + "/" + r.Action + "/" + r.Event
		found = found || !seen[key]
		seen[key] = true
	}
	return found
}
