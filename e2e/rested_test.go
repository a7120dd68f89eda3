//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A run that rests right before the uninstall, while others touch the backup set
// and the host: nothing is removed that is not in the set, whole, as it is now.
func TestRestedBeforeTheUninstall(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-rested", "--store-mib", "5")
	file := l.plan(t, nil)
	r := migrate(t, "run", "-f", file, "--yes", "--until", "seal")
	require.Zero(t, r.code, "%s", r)

	set := filepath.Join(filepath.Dir(file), "work", "backup")
	refused := func(t *testing.T, want string) {
		t.Helper()
		r := migrate(t, "run", "-f", file, "--yes")
		assert.Equal(t, 1, r.code, "%s", r)
		assert.Contains(t, r.stderr, want)
		assert.Contains(t, r.stderr, "migrate rollback -f", "how to go back")
		assert.Equal(t, "yes", l.on(t, "[ -x /usr/local/bin/k3s ] && [ -d /var/lib/rancher/k3s/storage ] && echo yes"))
	}
	t.Run("an artifact is missing", func(t *testing.T) {
		artifact := filepath.Join(set, "k3s-state.age")
		require.NoError(t, os.Rename(artifact, artifact+".away"))
		refused(t, "k3s-state")
		require.NoError(t, os.Rename(artifact+".away", artifact))
	})
	t.Run("a bit of a volume is flipped", func(t *testing.T) {
		artifacts, err := filepath.Glob(filepath.Join(set, "volumes", "*", "full.age"))
		require.NoError(t, err)
		require.NotEmpty(t, artifacts)
		data, err := os.ReadFile(artifacts[0])
		require.NoError(t, err)
		data[len(data)/2] ^= 4
		require.NoError(t, os.WriteFile(artifacts[0], data, 0o600))
		refused(t, "volumes/")
		data[len(data)/2] ^= 4
		require.NoError(t, os.WriteFile(artifacts[0], data, 0o600))
	})
	t.Run("a directory appears in the storage", func(t *testing.T) {
		l.on(t, "mkdir /var/lib/rancher/k3s/storage/precious && echo 1 >/var/lib/rancher/k3s/storage/precious/data")
		refused(t, "precious")
		l.on(t, "rm -r /var/lib/rancher/k3s/storage/precious")
	})
	t.Run("K3s was started by hand and workloads wrote", func(t *testing.T) {
		before := heartbeats(t, l)
		l.on(t, `systemctl start k3s
for i in $(seq 120); do sleep 1; [ "$(cat /var/lib/rancher/k3s/storage/*/heartbeat.log | wc -l)" -gt `+strconv.Itoa(strings.Count(before, "\n")+1)+` ] && break; done
for i in $(seq 60); do k3s kubectl -n media create secret generic late --type=kubernetes.io/tls --from-literal=tls.crt=c --from-literal=tls.key=k && break; sleep 1; done
echo order-4711 >$(ls -d /var/lib/rancher/k3s/storage/*large*)/order
systemctl stop k3s; k3s-killall.sh >/dev/null 2>&1; true`)
		files, beats := l.on(t, fingerprint), heartbeats(t, l)
		require.Greater(t, len(beats), len(before), "the store wrote")
		r := migrate(t, "run", "-f", file, "--yes")
		require.Zero(t, r.code, "%s", r)
		assert.Equal(t, files, l.on(t, fingerprint))
		assert.Equal(t, "order-4711", l.on(t, "cat /var/lib/rancher/k3s/storage/*large*/order"))
		assert.Equal(t, "Yw==", l.kubectl(t, "get", "secret", "-n", "media", "late", "-o", `jsonpath={.data.tls\.crt}`), "a secret of that time")
		after := heartbeats(t, l)
		assert.Greater(t, len(after), len(beats))
		assert.Equal(t, beats, after[:len(beats)], "the store's log goes on where it ended")
	})
}
