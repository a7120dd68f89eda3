//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A run that rests right before the uninstall, while others touch the backup set
// and the host: nothing is removed that is not in the set, whole, as it is now.
func TestRestedBeforeTheUninstall(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-rested", "--store-mib", "5")
	file := l.plan(t, nil)
	t.Run("guided until there", func(t *testing.T) {
		p := sit(t, bin("migrate"), "run", "-f", file, "--until", "seal")
		p.sees(t, `PHASE 1 of 6: Look[\s\S]*> `)
		assert.Equal(t, "gone", l.on(t, "[ -e /var/lib/k3s-dualstack ] || echo gone"), "nothing begins before it is agreed to")
		p.types(t, "")
		p.sees(t, `PHASE 2 of 6: Protect[\s\S]*stops after seal[\s\S]*> `)
		p.types(t, "s")
		require.Zero(t, p.wait(t, time.Minute), "%s", &p.printed)
		p.sees(t, "Stopped before step snapshot, as asked.\\s+The cluster runs as before.")

		p = sit(t, bin("migrate"), "run", "-f", file, "--until", "seal")
		p.sees(t, `PHASE 1 of 6: Look[\s\S]*> `)
		p.types(t, "")
		p.sees(t, `PHASE 2 of 6: Protect[\s\S]*> `)
		p.types(t, "?")
		p.sees(t, `Export all API objects[\s\S]*Enter: more   b: back\s*> `)
		p.types(t, "b")
		p.sees(t, `Enter: begin   s: stop here[\s\S]*> `)
		p.types(t, "")
		p.sees(t, `\[ *\d+/\d+\] protect`)
		p.types(t, "p")
		p.sees(t, `PAUSED [\s\S]*The cluster runs as before[\s\S]*> `)
		records := len(journalOf(file).now(t))
		time.Sleep(2 * time.Second)
		assert.Len(t, journalOf(file).now(t), records, "nothing is done in a pause")
		p.types(t, "")
		p.sees(t, `PHASE 3 of 6: Rebuild[\s\S]*> `)
		p.types(t, "")
		p.sees(t, `GATE: [\s\S]*Type the host's name to go on[\s\S]*> `)
		assert.Equal(t, "active", l.on(t, "systemctl is-active k3s"), "the cluster runs")
		p.types(t, l.Hostname)
		require.Zero(t, p.wait(t, 5*time.Minute), "%s", &p.printed)
		p.sees(t, "Stopped after seal, as asked")
	})
	if t.Failed() {
		t.FailNow()
	}

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
		// Guided again, from where the run stands to its end.
		p := sit(t, bin("migrate"), "run", "-f", file)
		p.sees(t, `PHASE 3 of 6: Rebuild[\s\S]*Continued[\s\S]*The\s+cluster is down[\s\S]*> `)
		p.types(t, "")
		p.sees(t, `PHASE 4 of 6: Restore[\s\S]*goes on by itself`)
		p.sees(t, `\[ *\d+/\d+\] secrets`)
		p.types(t, "p")
		p.sees(t, `PAUSED [\s\S]*> `)
		p.types(t, "s")
		require.Zero(t, p.wait(t, time.Minute), "%s", &p.printed)
		p.sees(t, `Stopped [\s\S]*The new cluster runs; its workloads are not all back yet`)

		p = sit(t, bin("migrate"), "run", "-f", file)
		for _, phase := range []string{"4 of 6: Restore[\\s\\S]*Continued", "5 of 6: Dual-stack", "6 of 6: Prove"} {
			p.sees(t, "PHASE "+phase+`[\s\S]*> `)
			p.types(t, "")
		}
		require.Zero(t, p.wait(t, 5*time.Minute), "%s", &p.printed)
		p.sees(t, `The migration is complete[\s\S]*Steps +\d+ of \d+[\s\S]*migrate verify -f`)
		assert.Equal(t, files, l.on(t, fingerprint))
		assert.Equal(t, "order-4711", l.on(t, "cat /var/lib/rancher/k3s/storage/*large*/order"))
		assert.Equal(t, "Yw==", l.kubectl(t, "get", "secret", "-n", "media", "late", "-o", `jsonpath={.data.tls\.crt}`), "a secret of that time")
		after := heartbeats(t, l)
		assert.Greater(t, len(after), len(beats))
		assert.Equal(t, beats, after[:len(beats)], "the store's log goes on where it ended")
	})
}
