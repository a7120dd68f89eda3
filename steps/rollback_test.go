package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
)

// reached writes a journal in which the steps up to the one named are complete.
func reached(t testing.TB, m *Migration, step string, more ...runner.Record) {
	t.Helper()
	j, err := runner.OpenJournal(m.JournalPath())
	require.NoError(t, err)
	defer j.Close()
	records := []runner.Record{{Event: runner.Begin, Data: []byte(`{"plan":"x"}`)}}
	for _, s := range m.Sequence() {
		if step == "" {
			break
		}
		event := runner.StepComplete
		if s.Checkpoint {
			event = runner.StepCheckpoint
		}
		records = append(records, runner.Record{Event: event, Step: s.Name})
		if s.Name == step {
			break
		}
	}
	for _, r := range append(records, more...) {
		require.NoError(t, j.Append(r))
	}
}

func intent(step, action string) runner.Record {
	return runner.Record{Event: runner.Intent, Step: step, Action: action}
}

func done(step, action, data string) runner.Record {
	return runner.Record{Event: runner.Done, Step: step, Action: action, Data: []byte(data)}
}

// The undo actions of every step, for the variants of the plan.
func TestUndo(t *testing.T) {
	base := ""
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			m := migration(t, v.edit)
			var undo []runner.Planned
			for _, s := range slices.Backward(m.Sequence()) {
				if s.Undo == nil {
					continue
				}
				actions, err := s.Undo(t.Context())
				require.NoError(t, err)
				undo = append(undo, runner.Planned{Step: s, Actions: actions})
			}
			got := text(undo)
			if m.host != nil || m.client != nil || m.set != nil {
				t.Error("a preview has opened something")
			}
			if base == "" {
				base = got
			} else {
				got = changed(base, got)
			}
			golden(t, "testdata/undo-"+v.name+".golden", got)
		})
	}
	t.Run("present volumes", func(t *testing.T) {
		m := migration(t, nil)
		m.KeepPresent = true
		m.Plan.Spec.Hosts[0].Sudo = true
		m.Facts.Host.Strays = nil
		m.Facts.K3s.Disabled = true
		actions, err := m.undoUninstall(t.Context())
		require.NoError(t, err)
		again, err := m.undoQuiesce(t.Context())
		require.NoError(t, err)
		golden(t, "testdata/undo-present-sudo.golden", text([]runner.Planned{{Step: runner.Step{Name: "uninstall"}, Actions: actions}, {Step: runner.Step{Name: "quiesce"}, Actions: again}}))
	})
}

// undoRepeatable are the undo actions, none of which asks whether it is done, with
// the reason why doing them again does no harm.
var undoRepeatable = map[string]string{
	"network/sysctl back":      "sets the same values",
	"uninstall/prove again":    "reads",
	"uninstall/stop again":     "stopping what is stopped does nothing",
	"uninstall/set aside":      "moves what is there, and overwrites nothing",
	"uninstall/files back":     "writes the same files",
	"uninstall/state back":     "writes the same files",
	"uninstall/datastore back": "writes the same files; nothing has served from them, or it would have to be done anew",
	"uninstall/strays back":    "writes the same files",
	"uninstall/empty volumes":  "directories that are there are left alone",
	"uninstall/volume back":    "a volume that equals the backup is left alone",
	"uninstall/note":           "removes what may be gone",
	"quiesce/time":             "reads; it is durable before K3s is started",
	"quiesce/start again":      "starting what runs does nothing",
	"quiesce/node again":       "waits",
	"quiesce/pods again":       "waits",
	"quiesce/openbao again":    "a server that is unsealed is left alone",
}

func TestUndoActionsCanBeContinued(t *testing.T) {
	m := migration(t, func(s *plans.Spec) { s.Backup.OpenBao = &plans.OpenBao{} })
	found := map[string]bool{}
	for _, s := range m.Sequence() {
		if s.Undo == nil {
			continue
		}
		actions, err := s.Undo(t.Context())
		require.NoError(t, err)
		forward, err := s.Actions(t.Context())
		require.NoError(t, err)
		for _, a := range actions {
			name, pv, _ := strings.Cut(a.Name, " pvc-")
			if pv == "" {
				name, _, _ = strings.Cut(a.Name, " outside")
			}
			name = s.Name + "/" + name
			found[name] = true
			if _, listed := undoRepeatable[name]; !listed || a.Done != nil {
				t.Errorf("%s: listed as repeatable %t, has a Done %t", name, listed, a.Done != nil)
			}
			if a.Summary == "" || a.Command == "" || a.Target.Kind == "" {
				t.Errorf("%s lacks a summary, a command or a target", name)
			}
			if slices.ContainsFunc(forward, func(f runner.Action) bool { return f.Name == a.Name }) {
				t.Errorf("%s has the name of an action", name)
			}
			// What tells how long it takes is an action that there is.
			if step, action, like := strings.Cut(a.Like, "/"); like {
				planned := preview(t, m)
				i := slices.IndexFunc(planned, func(p runner.Planned) bool { return p.Name == step })
				if i < 0 || !slices.ContainsFunc(planned[i].Actions, func(f runner.Action) bool { return f.Name == action }) {
					t.Errorf("%s is like %s, which is no action", name, a.Like)
				}
			}
		}
	}
	for name := range undoRepeatable {
		if !found[name] {
			t.Errorf("%s is no undo action any longer", name)
		}
	}
}

// Whatever changes host or cluster is taken back by something: its own undo
// actions, or those of a step before it, which put back all of K3s.
func TestWhatNeedsNoUndo(t *testing.T) {
	covered := map[string]string{
		"snapshot": "removed with the last step, and otherwise there for a rollback by way of it", "protect": "only reads the host", "freeze": "only reads the host",
		"install": "uninstall's", "volumes": "uninstall's", "start": "uninstall's", "secrets": "uninstall's: the datastore goes",
		"claims": "uninstall's: the datastore goes", "platform": "uninstall's: the datastore goes", "services": "uninstall's: the datastore goes",
		"finish": "what it removes is of the run alone",
	}
	for _, s := range migration(t, nil).Sequence() {
		_, listed := covered[s.Name]
		if !s.ReadOnly && (s.Undo == nil) != listed {
			t.Errorf("step %s: has an Undo %t, is listed as needing none %t", s.Name, s.Undo != nil, listed)
		}
	}
}

func TestFallbacks(t *testing.T) {
	m := migration(t, nil)
	fallbacks, err := m.Fallbacks(t.Context())
	require.NoError(t, err)
	var b strings.Builder
	for _, name := range Names() {
		f := fallbacks[name]
		fmt.Fprintf(&b, "%s → %s: %s, %d bytes\n", name, f.To, f.What, f.Bytes)
		for _, a := range f.Actions {
			fmt.Fprintf(&b, "  %s\n", a)
		}
		if (f.To == "") != (f.What == "") || (f.To == "") != (len(f.Actions) == 0) {
			t.Errorf("%s: half said: %+v", name, f)
		}
	}
	golden(t, "testdata/fallbacks.golden", b.String())
}

// The checkpoint that a rollback without a name returns to.
func TestTarget(t *testing.T) {
	m := migration(t, nil)
	state := func(steps ...string) runner.State {
		var s runner.State
		for _, name := range steps {
			name, begun := strings.CutSuffix(name, "…")
			s.Steps = append(s.Steps, runner.StepState{Step: name, Complete: !begun})
		}
		return s
	}
	under := func(s runner.State, to string) runner.State {
		s.Rollback = &runner.RollbackState{To: to}
		return s
	}
	for _, tc := range []struct {
		name  string
		state runner.State
		to    string
		want  string
		err   any
	}{
		{"nothing began", state(), "", "", new(*UnbegunError)},
		{"only looked", state("survey", "preflight"), "", "", new(*UnbegunError)},
		{"a backup half made", state("survey", "preflight", "protect…"), "", "", new(*UnbegunError)},
		{"backed up", state("protect"), "", "protect", nil},
		{"stopped", state("protect", "gate", "quiesce…"), "", "protect", nil},
		{"sealed: the cluster is not whole there", state("protect", "gate", "quiesce", "freeze", "seal"), "", "protect", nil},
		{"rebuilding", state("protect", "seal", "uninstall…"), "", "protect", nil},
		{"verification falls short", state("protect", "seal", "verify…"), "", "protect", nil},
		{"verified", state("protect", "seal", "verify"), "", "", new(*WholeError)},
		{"verified, and named", state("protect", "seal", "verify"), "protect", "protect", nil},
		{"named, whether it is reached is the runner's to say", state("protect"), "seal", "seal", nil},
		{"under way", under(state("protect", "seal", "uninstall…"), "seal"), "", "seal", nil},
		{"under way from the end", under(state("protect", "seal", "verify"), "protect"), "", "protect", nil},
		{"under way, and named", under(state("protect", "seal", "uninstall…"), "seal"), "protect", "protect", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := m.target(tc.state, tc.to)
			if got != tc.want || (err != nil) != (tc.err != nil) || err != nil && !errors.As(err, tc.err) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	require.ErrorContains(t, &WholeError{Checkpoint: "verify"}, "--to protect")
}

func TestWayBack(t *testing.T) {
	for step, want := range map[string]string{"": "", "survey": "", "protect": "", "gate": "", "quiesce": whole, "seal": whole, "start": whole, "verify": "", "finish": ""} {
		m := atHome(t)
		reached(t, m, step)
		if got := m.WayBack(); got != want {
			t.Errorf("after %q: %q", step, got)
		}
		m.Facts = nil
		if got := m.WayBack(); got != "" {
			t.Errorf("without facts, after %q: %q", step, got)
		}
	}
}

// Facts that are missing are not taken for a run that never began.
func TestUnwindWithoutFacts(t *testing.T) {
	m := atHome(t)
	m.Facts = nil
	var unbegun *UnbegunError
	_, err := m.Unwind(t.Context(), "")
	require.ErrorAs(t, err, &unbegun)
	reached(t, m, "quiesce")
	for _, to := range []string{"", "protect"} {
		_, err = m.Unwind(t.Context(), to)
		var gone *FactsError
		require.ErrorAs(t, err, &gone)
		require.ErrorContains(t, err, m.file(factsFile))
	}
	require.ErrorAs(t, m.Rollback(t.Context(), "", nil, nil), new(*FactsError))
}

func TestUnwind(t *testing.T) {
	m := atHome(t)
	reached(t, m, "platform",
		done("start", "start", `null`),
		runner.Record{Event: runner.Done, Step: "volumes", Action: "volume pvc-1", Took: 7e9},
		runner.Record{Event: runner.Done, Step: "volumes", Action: "volume pvc-2", Took: 7e9, Found: true},
	)
	u, err := m.Unwind(t.Context(), "")
	require.NoError(t, err)
	if u.To != whole || u.Host != "dedi" || len(u.Lost) != 1 || !strings.Contains(u.Lost[0], replacedDir) {
		t.Errorf("%+v", u)
	}
	for _, a := range u.Actions {
		if (a.Name == "volume back pvc-1") != (a.Measured == 7e9) {
			t.Errorf("%s: measured %v", a.Name, a.Measured)
		}
	}
	seal, err := m.Unwind(t.Context(), "seal")
	require.NoError(t, err)
	if slices.ContainsFunc(seal.Actions, func(a UndoAction) bool { return a.Step == "quiesce" }) || len(seal.Actions) >= len(u.Actions) {
		t.Error("to the seal, K3s is not started")
	}
	_, err = m.Unwind(t.Context(), "verify")
	require.ErrorAs(t, err, new(*runner.CheckpointError))
}

// The names under which things are kept are the rollback's, however often it is continued.
func TestStamp(t *testing.T) {
	m := atHome(t)
	reached(t, m, "seal", runner.Record{Event: runner.Rollback, Step: whole})
	first, err := m.stamp()
	require.NoError(t, err)
	state, err := m.State()
	require.NoError(t, err)
	if first != state.Rollback.Began.UTC().Format("20060102T150405Z") {
		t.Error(first)
	}
	m.RollbackBegins = state.Rollback.Began.Add(1e12)
	again, err := m.stamp()
	require.NoError(t, err)
	if again != first {
		t.Errorf("%s, then %s", first, again)
	}
}

// A run that was rolled back makes way for the next, wherever a process died between
// its renames; the old journal is kept.
func TestBeginAnewAfterARollback(t *testing.T) {
	prepare := func(t *testing.T) (*Migration, string) {
		m := atHome(t)
		require.NoError(t, m.keep(factsFile, m.Facts))
		reached(t, m, "quiesce", runner.Record{Event: runner.Rollback, Step: whole}, runner.Record{Event: runner.Reverted, Step: "quiesce"},
			runner.Record{Event: runner.Reverted, Step: "gate"}, runner.Record{Event: runner.RolledBack, Step: whole})
		state, err := m.State()
		require.NoError(t, err)
		require.Equal(t, whole, state.RolledBack)
		require.NoError(t, os.WriteFile(m.JournalPath()+".mirrored", []byte("torn"), 0o600))
		return m, state.Run
	}
	files := func(m *Migration) []string {
		entries, err := os.ReadDir(m.Plan.Spec.WorkDir)
		require.NoError(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for _, tc := range []struct {
		name string
		died func(m *Migration, run string) error // what a process did that died
	}{
		{"at once", func(*Migration, string) error { return nil }},
		{"after the mark", func(m *Migration, _ string) error { return os.Remove(m.JournalPath() + ".mirrored") }},
		{"between the renames", func(m *Migration, run string) error {
			return errors.Join(os.Remove(m.JournalPath()+".mirrored"), os.Rename(m.file(factsFile), m.file("facts."+run+".json")))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, run := prepare(t)
			require.NoError(t, tc.died(m, run))
			m, err := New(m.Plan, nil, nil) // the next process
			require.NoError(t, err)
			require.NoError(t, m.beginAnew())
			want := []string{"facts." + run + ".json", "journal." + run + ".jsonl"}
			if d := cmp.Diff(want, files(m)); d != "" {
				t.Error(d)
			}
			if m.Facts != nil {
				t.Error("the old facts would be taken for the new run's")
			}
			state, err := m.State()
			require.NoError(t, err)
			if state.Run != "" {
				t.Error("the old journal would be continued")
			}
		})
	}
	t.Run("to the seal it is the same run", func(t *testing.T) {
		m := atHome(t)
		require.NoError(t, m.keep(factsFile, m.Facts))
		reached(t, m, "uninstall", runner.Record{Event: runner.Rollback, Step: "seal"}, runner.Record{Event: runner.Reverted, Step: "uninstall"}, runner.Record{Event: runner.RolledBack, Step: "seal"})
		before := files(m)
		require.NoError(t, m.beginAnew())
		if d := cmp.Diff(before, files(m)); d != "" || m.Facts == nil {
			t.Error("it was put away", d)
		}
	})
	t.Run("killed in its first record", func(t *testing.T) {
		m := atHome(t)
		require.NoError(t, m.keep(factsFile, m.Facts))
		require.NoError(t, os.WriteFile(m.JournalPath(), []byte(`{"seq":1,"time":"2026-`), 0o600))
		require.NoError(t, m.beginAnew())
		if got := files(m); len(got) > 0 || m.Facts != nil {
			t.Error(got)
		}
	})
}

// A rollback that is over is not begun again, and does not ask the host to say so.
func TestRolledBackAlready(t *testing.T) {
	for _, tc := range []struct{ reverted, at, to string }{
		{"gate", whole, ""}, {"gate", whole, whole}, {"uninstall", "seal", "seal"},
	} {
		m := atHome(t)
		reached(t, m, tc.reverted, runner.Record{Event: runner.Rollback, Step: tc.at}, runner.Record{Event: runner.Reverted, Step: tc.reverted}, runner.Record{Event: runner.RolledBack, Step: tc.at})
		var already *RolledBackError
		if err := m.Rollback(t.Context(), tc.to, nil, nil); !errors.As(err, &already) || already.To != tc.at {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	// One to the seal goes on to the old cluster.
	m := atHome(t)
	reached(t, m, "uninstall", runner.Record{Event: runner.Rollback, Step: "seal"}, runner.Record{Event: runner.Reverted, Step: "uninstall"}, runner.Record{Event: runner.RolledBack, Step: "seal"})
	u, err := m.Unwind(t.Context(), "")
	require.NoError(t, err)
	if u.To != whole || len(u.Actions) == 0 {
		t.Errorf("%+v", u)
	}
}

func TestTakenBack(t *testing.T) {
	r := func(events ...runner.Event) (out []runner.Record) {
		for _, e := range events {
			out = append(out, runner.Record{Event: e})
		}
		return out
	}
	for _, tc := range []struct {
		records []runner.Record
		want    bool
	}{
		{nil, false},
		{r(runner.Begin, runner.Done), false},
		{r(runner.Rollback, runner.Reverted, runner.RolledBack), false},
		{r(runner.Rollback, runner.Undoing, runner.Undone, runner.Reverted, runner.RolledBack), true},
		{r(runner.Rollback, runner.Undone, runner.RolledBack, runner.Intent, runner.Rollback, runner.RolledBack), false},
	} {
		if got := takenBack(tc.records); got != tc.want {
			t.Errorf("%v: %t", tc.records, got)
		}
	}
}

// A name that is wrong leaves no trace.
func TestRollbackToAnUnknownStep(t *testing.T) {
	m := atHome(t)
	require.ErrorAs(t, m.Rollback(context.Background(), "Gate", nil, nil), new(*UnknownStepError))
	if _, err := os.Stat(filepath.Join(m.Plan.Spec.WorkDir)); !os.IsNotExist(err) {
		t.Error("the work directory was made")
	}
}
