//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// trouble is what befalls a run at a record of its journal.
type trouble struct {
	at    string        // regular expression of "step/action/event"
	job   string        // strikes while this job of the host runs; "" for at once,
	after time.Duration // or after this time
	what  func(t testing.TB, l *lab, run *process)
}

// Troubles for every step, in their order. Each waits for a record that is written
// after the one before it struck.
var troubles = []trouble{
	{at: "survey/facts/intent", what: reset},
	{at: "preflight/checks/intent", what: reset},
	{at: "protect/.*/intent", what: reset},
	// One volume is done; the other, a larger one, is in the middle of its stream.
	{at: "protect/volume .*/done", what: silence},
	{at: "gate/prove/intent", what: reset},
	{at: "quiesce/refresh/intent", what: reset},
	{at: "quiesce/stop/intent", job: "quiesce", what: restart},
	{at: "freeze/.*/intent", what: reset},
	{at: "freeze/.*/intent", what: restart},
	{at: "seal/prove/intent", what: reset},
	{at: "network/sysctl/intent", what: reset},
	{at: "uninstall/look/intent", what: reset},
	{at: "uninstall/uninstall/intent", job: "uninstall", what: restart},
	{at: "uninstall/uninstall/intent", job: "uninstall", what: silence},
	{at: "install/files/intent", what: reset},
	{at: "install/install/intent", job: "install", what: restart},
	{at: "install/install/intent", job: "install", what: reset},
	{at: "volumes/volume .*/done", what: reset},
	{at: "volumes/volume .*/intent", after: time.Second, what: restart},
	{at: "start/start/intent", what: restart},
	{at: "start/.*/intent", what: reset},
	{at: "secrets/apply/intent", what: reset},
	{at: "claims/.*/intent", what: reset},
	{at: "platform/up/intent", after: 2 * time.Second, what: restart},
	{at: "platform/.*/intent", what: reset},
	{at: "services/patch/intent", what: reset},
	{at: "verify/verify/intent", after: time.Second, what: reset},
	{at: "finish/tidy/intent", what: reset},
}

// A migration whose network fails in every step, and whose host is restarted in the
// middle of those that change it, gets on by the same command every time.
func TestCutOffInEveryStep(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-cut", "--store-mib", "1000")
	file := l.plan(t, nil)
	journal := journalOf(file)
	files, ca, beats := l.on(t, fingerprint), l.on(t, identity), heartbeats(t, l)

	left, seen := troubles, 0
	ended := 0
	for deadline := time.Now().Add(30 * time.Minute); ; {
		run := start(t, nil, bin("migrate"), "run", "-f", file, "--yes")
		for !run.over() {
			require.True(t, time.Now().Before(deadline), "the migration does not end: %s", &run.printed)
			time.Sleep(time.Millisecond)
			records := journal.now(t)
			seen = min(seen, len(records)) // a run that only looked is begun anew
			if len(left) == 0 {
				continue
			}
			at := regexp.MustCompile("^" + left[0].at + "$")
			i := slices.IndexFunc(records[seen:], func(r record) bool { return at.MatchString(r.String()) })
			if i < 0 {
				continue
			}
			seen += i + 1
			if left[0].strike(t, l, run, journal, records[seen-1]) {
				left = left[1:]
			}
		}
		if run.wait(t, time.Second) == 0 {
			break
		}
		ended++
		said := run.printed.String()
		require.Equal(t, 1, run.wait(t, time.Second), said)
		require.Contains(t, said, "To continue: migrate run -f "+file)
		t.Log("it ended: ", said[strings.Index(said, "\nmigrate: ")+1:])
	}
	assert.Empty(t, left, "what did not come to pass")
	assert.Greater(t, ended, 4, "how often it was continued")

	// What was done once was not begun again.
	done, attempts := map[string]bool{}, map[string]int{}
	for _, r := range journal.now(t) {
		action := r.Step + "/" + r.Action
		switch r.Event {
		case "intent":
			assert.False(t, done[action], "%s was begun again after it was done", action)
			attempts[action]++
		case "done":
			done[action] = true
		}
	}
	for _, step := range []string{"protect", "volumes"} {
		var streamed []int
		for action, n := range attempts {
			if strings.HasPrefix(action, step+"/volume ") {
				streamed = append(streamed, n)
			}
		}
		assert.Contains(t, streamed, 1, "%s: a volume that was done before the cut is not streamed again", step)
		assert.Len(t, streamed, 3)
		assert.Greater(t, slices.Max(streamed), 1, "%s: another one was cut off", step)
	}

	assert.Equal(t, files, l.on(t, fingerprint), "volumes")
	assert.Equal(t, ca, l.on(t, identity), "identity")
	assert.True(t, strings.HasPrefix(heartbeats(t, l), beats), "the store's log goes on where it ended")
	r := migrate(t, "verify", "-f", file)
	assert.Zero(t, r.code, "%s", r)
}

// strike lets the trouble befall the run, which has just written the record. It is
// false when the run ended before the job was there to be hit.
func (x trouble) strike(t testing.TB, l *lab, run *process, j *journal, r record) bool {
	t.Helper()
	if x.job != "" {
		for l.on(t, "systemctl is-active 'k3s-dualstack-job-"+x.job+"-*' || true") != "active" {
			if run.over() {
				return false
			}
		}
		time.Sleep(200 * time.Millisecond) // it shall be in its middle
	}
	time.Sleep(x.after)
	// It stands still while the trouble is prepared and cleared away: a short step
	// shall not pass meanwhile.
	_ = run.Signal(syscall.SIGSTOP)
	records := j.now(t)
	// preflight takes the laptop a millisecond.
	assert.Condition(t, func() bool { return r.Step == "preflight" || records[len(records)-1].Step == r.Step }, "%s is over when trouble strikes", r)
	x.what(t, l, run)
	_ = run.Signal(syscall.SIGCONT)
	t.Logf("struck at %s", r)
	return true
}

// reset makes the network refuse SSH for two seconds: connections break at once.
func reset(t testing.TB, l *lab, run *process) {
	l.cut(t, "REJECT --reject-with tcp-reset")
	_ = run.Signal(syscall.SIGCONT)
	time.Sleep(2 * time.Second)
	_ = run.Signal(syscall.SIGSTOP)
	l.heal(t)
}

// silence makes the network swallow SSH for as long as it takes a client to notice
// that nothing comes back: three keepalives, 15 s apart.
func silence(t testing.TB, l *lab, run *process) {
	l.cut(t, "DROP")
	_ = run.Signal(syscall.SIGCONT)
	for deadline := time.Now().Add(65 * time.Second); time.Now().Before(deadline) && !run.over(); {
		time.Sleep(100 * time.Millisecond)
	}
	_ = run.Signal(syscall.SIGSTOP)
	l.heal(t)
}

// restart restarts the host under everything that runs there, and waits until it can
// be logged in to again.
func restart(t testing.TB, l *lab, _ *process) {
	r := execute(t, nil, "docker", "restart", l.Container)
	require.Zero(t, r.code, "%s", r)
	require.Eventually(t, l.greets, time.Minute, 100*time.Millisecond)
}

// cut makes the host's packet filter treat SSH so, in both families.
func (l *lab) cut(t testing.TB, target string) {
	t.Helper()
	l.on(t, fmt.Sprintf("iptables -w -I INPUT -p tcp --dport 22 -j %[1]s && ip6tables -w -I INPUT -p tcp --dport 22 -j %[1]s", target))
}

// heal takes the cut out. K3s's own scripts save and restore the filter's rules, and
// may bring it back once.
func (l *lab) heal(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool {
		l.on(t, `for f in iptables ip6tables; do
	$f -w -S INPUT | sed -n 's/^-A \(.* --dport 22 .*\)/-D \1/p' | while read -r rule; do $f -w $rule; done
done; true`)
		return l.greets()
	}, time.Minute, 500*time.Millisecond)
}

// greets tells whether the host's sshd can be reached.
func (l *lab) greets() bool {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(l.Address, strconv.Itoa(l.Port)), time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	n, _ := conn.Read(make([]byte, 4))
	return n > 0 // the engine's port forwarding accepts before sshd does
}
