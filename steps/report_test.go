package steps

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/report"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/verify"
)

func undoing(step, action string) runner.Record {
	return runner.Record{Event: runner.Undoing, Step: step, Action: action}
}

func undone(step, action, data string) runner.Record {
	return runner.Record{Event: runner.Undone, Step: step, Action: action, Data: []byte(data)}
}

func failed(step, action, err string) runner.Record {
	return runner.Record{Event: runner.Failed, Step: step, Action: action, Error: err, Took: time.Second}
}

// document is the report of the run in the migration's work directory.
func documentOf(t testing.TB, m *Migration) report.Report {
	t.Helper()
	r, err := m.Document(t.Context(), "a plan.yaml", time.Now())
	require.NoError(t, err)
	if m.host != nil || m.client != nil || m.set != nil {
		t.Error("a report has opened something")
	}
	return r
}

func stepOf(t testing.TB, r report.Report, name string, back bool) report.Step {
	t.Helper()
	for _, s := range r.Steps {
		if s.Name == name && s.Back == back {
			return s
		}
	}
	t.Fatalf("no step %s, back %v", name, back)
	return report.Step{}
}

func TestDocumentOutcomes(t *testing.T) {
	rollback := runner.Record{Event: runner.Rollback, Step: "protect"}
	for _, test := range []struct {
		name   string
		to     string
		more   []runner.Record
		kind   report.Kind
		says   string
		detail string
		next   string
		back   string // a command of the way back
	}{
		{"looked only", "preflight", nil, report.Open, "has stopped before its end", "The cluster runs as before.", "migrate run -f 'a plan.yaml'", ""},
		{"backed up", "gate", nil, report.Open, "has stopped before its end", "The cluster runs as before.", "migrate run -f 'a plan.yaml'", ""},
		{"failed in the uninstall", "network", []runner.Record{intent("quiesce", "stop"), done("quiesce", "stop", `null`), intent("uninstall", "uninstall"), failed("uninstall", "uninstall", "exit status 1; the end of its output:\nhunter2")},
			report.Failed, "has stopped before its end", "Failed in uninstall, uninstall: exit status 1. The cluster is down", "migrate rollback -f 'a plan.yaml'", "migrate runbook -f 'a plan.yaml' > by-hand.sh"},
		{"finished", "finish", []runner.Record{{Event: runner.Finished}}, report.Done, "x is dual-stack.", "complete and verified", "migrate verify", "migrate rollback -f 'a plan.yaml' --to protect --dry-run"},
		{"a rollback that failed", "seal", []runner.Record{intent("quiesce", "stop"), rollback, undoing("quiesce", "start again"), {Event: runner.UndoFailed, Step: "quiesce", Action: "start again", Error: "not Ready"}},
			report.Failed, "has begun and is not complete", "Failed in taking back quiesce, start again: not Ready.", "migrate rollback", "migrate rollback -f 'a plan.yaml'"},
		{"a return by snapshot that failed", "seal", []runner.Record{intent("quiesce", "stop"), {Event: runner.Rollback, Step: "protect", Data: []byte(`{"via":"snapshot","at":"quiesce"}`)}, undoing("quiesce", "merge vg/a"), {Event: runner.UndoFailed, Step: "quiesce", Action: "merge vg/a", Error: "no"}},
			report.Failed, "has begun and is not complete", "Failed in taking back quiesce, merge vg/a: no.", "migrate rollback --via backup -f 'a plan.yaml'", "migrate rollback -f 'a plan.yaml'"},
		{"rolled back", "seal", []runner.Record{rollback, {Event: runner.Reverted, Step: "quiesce"}, {Event: runner.RolledBack, Step: "protect"}}, report.RolledBack, "it is the IPv4-only cluster that it was", "", "migrate run", ""},
		{"rolled back to seal", "install", []runner.Record{{Event: runner.Rollback, Step: "seal"}, {Event: runner.Reverted, Step: "uninstall"}, {Event: runner.RolledBack, Step: "seal"}}, report.RolledBack, "to checkpoint seal", "", "migrate rollback", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := atHome(t)
			m.Plan.Metadata.Name = "x"
			if strings.HasPrefix(test.name, "a return by snapshot") {
				m.Plan.Spec.Snapshot = ownSnapshot()
			}
			reached(t, m, test.to, test.more...)
			r := documentOf(t, m)
			assert.Equal(t, test.kind, r.Outcome.Kind)
			assert.Contains(t, r.Outcome.Sentence, test.says)
			assert.Contains(t, r.Outcome.Detail, test.detail)
			assert.Contains(t, lines(r.Outcome.Next), test.next)
			assert.Contains(t, lines(r.WayBack.Commands), test.back)
			var all bytes.Buffer
			require.NoError(t, r.JSON(&all))
			if strings.HasPrefix(test.name, "a return by snapshot") {
				assert.NotContains(t, all.String(), "migrate runbook", "what waits for the host's next start would undo what was done by hand")
			}
			assert.NotContains(t, all.String(), "hunter2", "what commands print stays in the journal")
		})
	}
}

func lines(commands []report.Command) string {
	var out []string
	for _, c := range commands {
		out = append(out, c.Line)
	}
	return strings.Join(out, "\n")
}

// Every attempt is told, with its end where that is known; a step that was taken back is another than the one that was done.
func TestDocumentAttempts(t *testing.T) {
	m := atHome(t)
	reached(t, m, "protect",
		runner.Record{Event: runner.Confirmed, Step: "quiesce"},
		intent("quiesce", "stop"), intent("quiesce", "stop"), runner.Record{Event: runner.Done, Step: "quiesce", Action: "stop", Found: true},
		intent("uninstall", "uninstall"), failed("uninstall", "uninstall", "no"), intent("uninstall", "uninstall"),
		runner.Record{Event: runner.Rollback, Step: "protect"},
		undoing("uninstall", "set aside"), undone("uninstall", "set aside", `{"aside":"/var/lib/k3s-dualstack/replaced/1"}`),
		undoing("uninstall", "volume back pvc-1"), undone("uninstall", "volume back pvc-1", `{"aside":["/data/pvc-1.replaced-1"]}`),
		runner.Record{Event: runner.Reverted, Step: "uninstall"},
		undoing("quiesce", "start again"),
	)
	r := documentOf(t, m)
	var statuses []report.Status
	for _, a := range append(stepOf(t, r, "quiesce", false).Actions, stepOf(t, r, "uninstall", false).Actions...) {
		for _, x := range a.Attempts {
			statuses = append(statuses, x.Status)
		}
	}
	assert.Equal(t, []report.Status{report.StatusCut, report.StatusCut, report.StatusFound, report.StatusFailed, report.StatusCut}, statuses)
	assert.Len(t, stepOf(t, r, "quiesce", false).Agreed, 1)
	assert.Equal(t, report.StatusTakenBack, stepOf(t, r, "uninstall", false).Status)
	assert.Equal(t, report.StatusDone, stepOf(t, r, "uninstall", true).Status)
	assert.Equal(t, report.StatusToDo, stepOf(t, r, "install", false).Status)
	var paths []string
	for _, x := range r.Remains {
		paths = append(paths, x.Path)
	}
	assert.Subset(t, paths, []string{"/var/lib/k3s-dualstack/replaced/1", "/data/pvc-1.replaced-1"})

	// While a process is at it, what it does has not been cut off.
	lock, err := runner.Acquire(m.LockPath())
	require.NoError(t, err)
	defer lock.Release()
	reached := documentOf(t, m)
	assert.Equal(t, report.Running, reached.Outcome.Kind)
	again := stepOf(t, reached, "quiesce", true)
	assert.Equal(t, report.StatusRunning, again.Status)
	assert.Equal(t, report.StatusRunning, again.Actions[0].Attempts[0].Status)
	// What was cut off before the rollback began stays so.
	before := stepOf(t, reached, "uninstall", false)
	assert.Equal(t, report.StatusTakenBack, before.Status)
	assert.Equal(t, report.StatusCut, before.Actions[0].Attempts[1].Status)
}

func TestDocumentStopped(t *testing.T) {
	stop := []runner.Record{intent("quiesce", "stop"), done("quiesce", "stop", `null`)}
	start := []runner.Record{intent("start", "start"), done("start", "start", `null`)}
	back := []runner.Record{{Event: runner.Rollback, Step: "protect"}, undoing("uninstall", "stop again"), undone("uninstall", "stop again", `null`), undoing("quiesce", "start again"), undone("quiesce", "start again", `null`)}
	for _, test := range []struct {
		name    string
		records []runner.Record
		windows int
		open    bool
	}{
		{"never", nil, 0, false},
		{"and not started since", stop, 1, true},
		{"and started", append(stop[:2:2], start...), 1, false},
		{"taken back before it was started", append(stop[:2:2], back...), 1, false},
		{"taken back after it was started", append(append(stop[:2:2], start...), back...), 2, false},
		{"taken back halfway", append(append(stop[:2:2], start...), back[:3]...), 2, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := atHome(t)
			reached(t, m, "gate", test.records...)
			r := documentOf(t, m)
			require.Len(t, r.Stopped, test.windows)
			if test.windows > 0 {
				assert.Equal(t, test.open, r.Stopped[test.windows-1].Open)
			}
		})
	}
}

// What is left of the snapshot is removed where its commands are typed.
func TestDocumentTellsWhereTheSnapshotIsRemoved(t *testing.T) {
	onHost := ownSnapshot()
	onHost.Command.On = plans.OnHost
	for where, s := range map[string]*plans.Snapshot{"laptop": ownSnapshot(), "dedi": onHost} {
		m := atHome(t)
		m.Plan.Spec.Snapshot = s
		reached(t, m, "preflight", intent(snapshotStep, "create"))
		var found []string
		for _, x := range documentOf(t, m).Remains {
			if x.Path == "the program of spec.snapshot.command.delete" {
				found = append(found, x.Where)
			}
		}
		assert.Equal(t, []string{where}, found)
		_, err := m.Unwind(t.Context(), "")
		require.ErrorContains(t, err, "what removes it, on the "+map[string]string{"laptop": "laptop", "dedi": "host"}[where]+", is: the program of")
	}
}

// A verification tells of the run in which it was made alone.
func TestDocumentVerification(t *testing.T) {
	m := atHome(t)
	v := verify.Report{Want: verify.DualStack, Passed: true, Checks: []verify.Check{
		{ID: verify.NodePodCIDRs, Target: "node dedi", Family: verify.IPv4, Status: verify.Pass, Detail: "10.42.0.0/24"},
		{ID: verify.NodePodCIDRs, Target: "node dedi", Family: verify.IPv6, Status: verify.Pass, Detail: "fd42::/64"},
		{ID: verify.ServiceClusterIPs, Target: "data/db", Family: verify.IPv6, Status: verify.Pass, Detail: "fd43::1f3"},
	}}
	require.NoError(t, m.keep(reportFile, v))
	long := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(m.file(reportFile), long, long))
	reached(t, m, "services", intent("verify", "verify"))
	r := documentOf(t, m)
	assert.Nil(t, r.Verification, "that of a run before")
	assert.Equal(t, "Planned", r.Became)

	require.NoError(t, m.keep(reportFile, v))
	r = documentOf(t, m)
	require.NotNil(t, r.Verification)
	assert.Equal(t, "After", r.Became)
	assert.Contains(t, r.Changes[0].Rows, report.Change{What: "Pods on dedi", Before: "10.42.0.0/24", After: "10.42.0.0/24, fd42::/64"})
	assert.Contains(t, r.Changes[2].Rows, report.Change{What: "data/db", Before: "10.43.0.20", After: "fd43::1f3"})
}

// What cannot be read is said, and keeps nothing else from being told.
func TestDocumentOfWhatIsDamaged(t *testing.T) {
	m := atHome(t)
	_, err := m.Document(t.Context(), "plan.yaml", time.Now())
	var nothing *NothingToReportError
	require.ErrorAs(t, err, &nothing)

	reached(t, m, "verify", intent("verify", "verify"))
	require.NoError(t, os.MkdirAll(m.SetDir(), 0o700))
	for _, file := range []string{m.file(reportFile), filepath.Join(m.SetDir(), "manifest.json"), m.file("journal.AAAA.jsonl")} {
		require.NoError(t, os.WriteFile(file, []byte("{}\n{\n"), 0o600))
	}
	require.NoError(t, os.Mkdir(m.file(availabilityFile), 0o700))
	m.Facts = nil
	r := documentOf(t, m)
	for _, want := range []string{"facts", "verification", "manifest", "an earlier run", "availability"} {
		assert.Contains(t, strings.Join(r.Missing, "\n"), want)
	}
	data, err := json.Marshal(r)
	require.NoError(t, err)
	assert.NotEmpty(t, data)
}
