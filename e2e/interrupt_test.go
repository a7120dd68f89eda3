//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A run that a person interrupts ends with 130 and says how to continue, and the
// next one goes on from there.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-interrupt", "--store-mib", "200")
	// A platform command that does not end when asked to, as long as a file is there.
	slow := filepath.Join(t.TempDir(), "slow")
	require.NoError(t, os.WriteFile(slow, nil, 0o600))
	file := l.plan(t, func(spec object) {
		p := spec["platform"].(object)
		argv := []any{"sh", "-c", `if [ -e "$0" ]; then trap "" TERM; sleep 300; sleep 300; fi; exec "$@"`, slow}
		p["command"] = append(argv, p["command"].([]any)...)
	})
	journal := journalOf(file)
	files, ca, beats := l.on(t, fingerprint), l.on(t, identity), heartbeats(t, l)

	run := func() *process { return start(t, nil, bin("migrate"), "run", "-f", file, "--yes") }
	// interrupted asserts that the run ended by what was sent to it.
	interrupted := func(t *testing.T, p *process, within time.Duration, says ...string) {
		t.Helper()
		require.Equal(t, 130, p.wait(t, within), "%s", &p.printed)
		for _, want := range says {
			assert.Contains(t, p.printed.String(), want)
		}
		assert.NotContains(t, p.printed.String(), "panic")
		assert.NotContains(t, p.printed.String(), "FAILED", "what was interrupted did not fail")
	}
	goOn := "To continue: migrate run -f " + file
	// once sends a signal in the middle of an action.
	once := func(signal syscall.Signal, step, at string) {
		t.Run(fmt.Sprintf("%s once in %s", unix.SignalName(signal), step), func(t *testing.T) {
			before := len(journal.now(t))
			p := run()
			journal.await(t, p, before, at)
			time.Sleep(300 * time.Millisecond)
			require.NoError(t, p.Signal(signal))
			interrupted(t, p, 20*time.Second, "interrupted in step "+step, goOn)
			assert.Equal(t, "gone", l.on(t, "[ -e /var/lib/k3s-dualstack/lock ] || echo gone"), "the host's lock")
		})
	}
	// twice sends a second interrupt right after the first.
	twice := func(step, at string) {
		t.Run("SIGINT twice in "+step, func(t *testing.T) {
			before := len(journal.now(t))
			p := run()
			journal.await(t, p, before, at)
			time.Sleep(300 * time.Millisecond)
			require.NoError(t, p.Signal(os.Interrupt))
			require.Eventually(t, func() bool { return strings.Contains(p.printed.String(), "once more") }, 5*time.Second, time.Millisecond)
			require.NoError(t, p.Signal(os.Interrupt))
			interrupted(t, p, time.Second, "can be continued")
		})
	}

	once(unix.SIGINT, "protect", "protect/volume .*/intent")
	t.Run("SIGINT at the gate's question", func(t *testing.T) {
		stdin, person, err := os.Pipe() // somebody is there, and types nothing
		require.NoError(t, err)
		defer stdin.Close()
		defer person.Close()
		p := start(t, stdin, bin("migrate"), "run", "-f", file)
		require.Eventually(t, func() bool { return p.over() || strings.Contains(p.printed.String(), "Type the host's name") }, 2*time.Minute, 10*time.Millisecond)
		require.NoError(t, p.Signal(os.Interrupt))
		interrupted(t, p, 5*time.Second, goOn)
		assert.Equal(t, "active", l.on(t, "systemctl is-active k3s"), "the cluster runs")
	})
	once(unix.SIGINT, "uninstall", "uninstall/uninstall/intent")
	twice("volumes", "volumes/volume .*/intent")
	once(unix.SIGHUP, "start", "start/start/intent")
	once(unix.SIGINT, "platform", "platform/up/intent")
	twice("platform", "platform/up/intent")
	if t.Failed() {
		t.FailNow()
	}

	require.NoError(t, os.Remove(slow))
	p := run()
	require.Zero(t, p.wait(t, 5*time.Minute), "%s", &p.printed)
	assert.Equal(t, files, l.on(t, fingerprint), "volumes")
	assert.Equal(t, ca, l.on(t, identity), "identity")
	assert.True(t, strings.HasPrefix(heartbeats(t, l), beats), "the store's log goes on where it ended")
	r := migrate(t, "verify", "-f", file)
	assert.Zero(t, r.code, "%s", r)
}
