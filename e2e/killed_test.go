//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A migration whose process is killed with SIGKILL at every record of its journal,
// once before its write and once after it, and continued by the same command every
// time: it ends like any other.
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
	journal := journalOf(file)
	// What an admin added by hand, and the install script would not write again.
	l.on(t, "echo GODEBUG=http2debug=0 >>/etc/systemd/system/k3s.service.env")
	files, ca, env := l.on(t, fingerprint), l.on(t, identity), l.on(t, "cat /etc/systemd/system/k3s.service.env")
	beats := heartbeats(t, l)

	calls := filepath.Join(dir, "calls")
	before, after := map[string]bool{}, map[string]bool{} // where it was killed
	for deadline := time.Now().Add(30 * time.Minute); ; {
		require.True(t, time.Now().Before(deadline), "the migration does not end; killed %d times", len(before)+len(after))
		require.NoError(t, os.RemoveAll(calls))
		// With -D strace is not the parent: the process is migrate.
		run := start(t, nil, "strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-s", "1048576", "-o", calls,
			"-P", journal.path, "-e", "trace=write", "-e", fmt.Sprintf("inject=write:delay_enter=%d", held.Microseconds()),
			bin("migrate"), "run", "-f", file, "--yes")
		if !killAtRecord(t, run, journal, calls, before, after) {
			require.Zero(t, run.wait(t, time.Second), "after %d kills: %s", len(before)+len(after), &run.printed)
			break
		}
	}
	t.Logf("killed %d times before a record's write and %d times after it, and continued", len(before), len(after))
	least := 160
	if testing.Short() {
		least = 80
	}
	assert.Greater(t, len(before)+len(after), least)
	records := journal.now(t)
	killedAt(t, records[:len(records)-1], before, after)

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
}

// held is for how long strace keeps a record's write from the kernel.
const held = 400 * time.Millisecond

// kills tells whether a run is to be killed before the record's write, and after it: with -short only where the journal
// and the host disagree, which is after what is intended and before what is done.
func kills(r record) (before, after bool) {
	if !testing.Short() {
		return true, true
	}
	intent := r.Event == "intent" || r.Event == "undoing"
	return !intent, intent
}

// killedAt asserts that runs were killed at all of the records.
func killedAt(t testing.TB, records []record, before, after map[string]bool) {
	t.Helper()
	for _, r := range records {
		wantBefore, wantAfter := kills(r)
		assert.True(t, before[r.String()] || !wantBefore, "not killed before %s was written", r)
		assert.True(t, after[r.String()] || !wantAfter, "not killed after %s was written", r)
	}
}

// killAtRecord kills the run at the first record at which none was killed before its
// write, or else after it, as [kills] wants, and notes where. It is false when the run ended without.
// An action's intent comes again with every attempt, and counts once.
func killAtRecord(t testing.TB, run *process, j *journal, calls string, before, after map[string]bool) bool {
	t.Helper()
	for !run.over() {
		if r, ok := heldRecord(t, calls); ok && !before[r.String()] {
			if want, _ := kills(r); want {
				require.NoError(t, run.Kill())
				run.wait(t, time.Minute)
				// A kill that came too late to be one before the write is none.
				before[r.String()] = len(j.now(t)) < r.Seq
				return true
			}
		}
		if records := j.now(t); len(records) > 0 {
			last := records[len(records)-1]
			if _, want := kills(last); want && !after[last.String()] && last.Event != "finished" {
				require.NoError(t, run.Kill())
				run.wait(t, time.Minute)
				after[last.String()] = true
				return true
			}
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// entered is a write as strace prints it when it began and has not ended.
var entered = regexp.MustCompile(`write\(\d+, (".*"), \d+$`)

// heldRecord is the record whose write strace holds, if there is one.
func heldRecord(t testing.TB, calls string) (r record, ok bool) {
	t.Helper()
	data, err := os.ReadFile(calls)
	if os.IsNotExist(err) {
		return r, false
	}
	require.NoError(t, err)
	line := entered.FindSubmatch(data[bytes.LastIndexByte(data, '\n')+1:])
	if line == nil {
		return r, false
	}
	text, err := strconv.Unquote(string(line[1]))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(text), &r))
	return r, true
}
