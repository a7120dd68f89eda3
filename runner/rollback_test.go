package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// back opens the journal anew, as a new process does, and rolls back.
func back(t *testing.T, path string, steps []Step, to string) (*log, error) {
	t.Helper()
	j := open(t, path)
	defer j.Close()
	l := new(log)
	// The plan has changed meanwhile, which keeps nobody from going back.
	err := (&Runner{Steps: steps, Journal: j, Bind: Bind{Plan: "changed"}, Observer: l}).Rollback(t.Context(), to)
	return l, err
}

func TestRollbackTakesBackTheLastFirstAndIsContinued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	broken := errors.New("the unit is masked")
	var fail error = broken
	steps := []Step{
		{Name: "look", Checkpoint: true, Actions: list(act("read"))},
		{Name: "stop", Actions: list(act("k3s")), Undo: list(act("free"), Action{Name: "start", Run: func(context.Context) (any, error) { return nil, fail }})},
		{Name: "check", Checkpoint: true, Actions: list(act("ask"))}, // nothing to take back
		{Name: "remove", Actions: list(act("files"), Action{Name: "unit", Run: func(context.Context) (any, error) { return nil, broken }}), Undo: list(act("put back"))},
		{Name: "install", Actions: list(act("script")), Undo: list(act("remove it"))}, // never begins
	}
	if _, err := run(t, path, steps, nil); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	l, err := back(t, path, steps, "look")
	want(t, "error", err.Error(), "step stop, start: the unit is masked")
	want(t, "observed", l.lines, []string{
		"step 1/3 remove", "start put back", "done put back", "end remove",
		"step 2/3 check", "end check",
		"step 3/3 stop", "start free", "done free", "start start", "fail start: the unit is masked",
	})
	want(t, "checkpoint", open(t, path).State().Checkpoint, "look")

	_, err = run(t, path, steps, func(r *Runner) { r.Bind = Bind{Plan: "changed"} })
	var rolling *RollingBackError
	if !errors.As(err, &rolling) {
		t.Fatalf("run during a rollback: %v", err)
	}
	golden(t, "rolling-back.txt", err.Error())

	_, err = back(t, path, steps, "check")
	golden(t, "checkpoint-given-up.txt", err.Error())

	planned, err := Unwind(t.Context(), steps, open(t, path).State(), "look", nil)
	if err != nil || len(planned) != 1 || len(planned[0].Actions) != 1 || planned[0].Actions[0].Name != "start" {
		t.Errorf("what is left: %+v, %v", planned, err)
	}
	fail = nil
	l, err = back(t, path, steps, "look")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "observed", l.lines, []string{
		"notice continuing the rollback to look",
		"step 1/1 stop", "skip free: done before", "start start", "done start", "end stop",
	})
	want(t, "journal", recorded(t, path)[14:], []string{
		"rollback look",
		"undoing remove/put back", "undone remove/put back", "reverted remove",
		"reverted check",
		"undoing stop/free", "undone stop/free", "undoing stop/start", "undo failed stop/start",
		"undoing stop/start", "undone stop/start", "reverted stop",
		"rolled back look",
	})
}

func TestRollbackToWhatTheRunHasNotReached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	steps := []Step{
		{Name: "protect", Checkpoint: true},
		{Name: "quiesce", Actions: list(act("stop"))},
		{Name: "seal", Checkpoint: true, Gate: &Gate{}},
		{Name: "verify", Checkpoint: true},
	}
	refused := func(name, to string) {
		t.Helper()
		before := recorded(t, path)
		_, err := back(t, path, steps, to)
		_, preview := Unwind(t.Context(), steps, open(t, path).State(), to, nil)
		var e *CheckpointError
		if !errors.As(err, &e) || !errors.As(preview, &e) || err.Error() != preview.Error() {
			t.Fatalf("rollback: %v; its preview: %v", err, preview)
		}
		golden(t, name, err.Error())
		want(t, "journal", recorded(t, path), before)
	}
	refused("checkpoint-none.txt", "protect")
	if _, err := run(t, path, steps, nil); !errors.Is(err, ErrDeclined) {
		t.Fatal(err)
	}
	refused("checkpoint-not-reached.txt", "verify")
	if _, err := run(t, path, steps, func(r *Runner) {
		r.Confirm = func(context.Context, Gate) (bool, error) { return true, nil }
	}); err != nil {
		t.Fatal(err)
	}
	refused("checkpoint-no-checkpoint.txt", "quiesce")
}

func TestGateIsAskedAgainAfterARollback(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	steps := []Step{{Name: "protect", Checkpoint: true}, {Name: "rebuild", Gate: &Gate{}, Actions: list(act("uninstall"))}}
	asked := 0
	agree := func(r *Runner) {
		r.Confirm = func(context.Context, Gate) (bool, error) { asked++; return true, nil }
	}
	if _, err := run(t, path, steps, agree); err != nil {
		t.Fatal(err)
	}
	if _, err := back(t, path, steps, "protect"); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, path, steps, agree); err != nil {
		t.Fatal(err)
	}
	if s := open(t, path).State(); asked != 2 || !s.Finished || s.RolledBack != "" {
		t.Errorf("asked %d times, state %+v", asked, s)
	}
}

func TestCancelledRollbackIsContinued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	steps := []Step{
		{Name: "protect", Checkpoint: true},
		{Name: "rebuild", Actions: list(act("uninstall")), Undo: list(Action{Name: "install", Run: func(ctx context.Context) (any, error) {
			cancel()
			return nil, ctx.Err()
		}})},
	}
	if _, err := run(t, path, steps, nil); err != nil {
		t.Fatal(err)
	}
	j := open(t, path)
	err := (&Runner{Steps: steps, Journal: j}).Rollback(ctx, "protect")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	var at *StepError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &at) || at.Action != "install" {
		t.Errorf("error %v", err)
	}
	if _, err := back(t, path, steps, "protect"); err != nil {
		t.Fatal(err)
	}
	want(t, "journal", recorded(t, path)[6:], []string{
		"rollback protect", "undoing rebuild/install", "undoing rebuild/install", "undone rebuild/install", "reverted rebuild", "rolled back protect",
	})
}

// A clock that jumps between any two records, by years and in both directions,
// changes nothing but the times: neither order, nor what is resumed, nor what
// is taken back.
func TestClocksThatJump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	records := 0
	jumping := func() time.Time {
		records++
		return epoch.AddDate([]int{0, 90, -50, 1}[records%4], 0, 0)
	}
	broken := errors.New("the host is away")
	var fail error = broken
	var did []string
	does := func(name string, err *error) Action {
		return Action{Name: name, Run: func(context.Context) (any, error) {
			if err != nil && *err != nil {
				return nil, *err
			}
			did = append(did, name)
			return nil, nil
		}}
	}
	steps := []Step{
		{Name: "protect", Checkpoint: true, Actions: list(does("copy", nil))},
		{Name: "quiesce", Actions: list(does("stop", nil)), Undo: list(does("start", &fail))},
		{Name: "rebuild", Actions: list(does("uninstall", &fail)), Undo: list(does("put back", nil))},
	}
	call := func(f func(r *Runner) error) error {
		j := open(t, path)
		defer j.Close()
		j.now = jumping
		return f(&Runner{Steps: steps, Journal: j})
	}
	runs := func(r *Runner) error { return r.Run(t.Context(), "") }
	rolls := func(r *Runner) error { return r.Rollback(t.Context(), "protect") }
	for _, c := range []struct {
		f    func(*Runner) error
		fail error
	}{{runs, broken}, {rolls, broken}, {rolls, nil}, {runs, nil}} {
		fail = c.fail
		if err := call(c.f); !errors.Is(err, c.fail) {
			t.Fatal(err)
		}
	}
	want(t, "actions", did, []string{"copy", "stop", "put back", "start", "stop", "uninstall"})
	backwards, ahead := 0, 0
	var last Record
	for i, r := range open(t, path).Records() {
		if r.Seq != i+1 {
			t.Errorf("record %d has the number %d", i+1, r.Seq)
		}
		if r.Time.Before(last.Time) {
			backwards++
		} else if r.Time.After(last.Time.AddDate(1, 0, 0)) {
			ahead++
		}
		last = r
	}
	if s := open(t, path).State(); !s.Finished || backwards == 0 || ahead < 2 || !s.Last.Equal(last.Time) {
		t.Errorf("%d times back, %d times ahead, state %+v", backwards, ahead, s)
	}
}

// testdata/before-rollbacks.jsonl was written when there were none.
func TestJournalFromBeforeRollbacksIsReadAndRolledBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	data, err := os.ReadFile("testdata/before-rollbacks.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if s := open(t, path).State(); s.Rollback != nil || s.RolledBack != "" || s.Checkpoint != "back up" || !s.Finished {
		t.Errorf("state %+v", s)
	}
	steps := []Step{{Name: "survey"}, {Name: "back up", Checkpoint: true}, {Name: "rebuild", Undo: list(act("put back"))}}
	l, err := back(t, path, steps, "back up")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "observed", l.lines, []string{"step 1/1 rebuild", "start put back", "done put back", "end rebuild"})
}

// A detour takes back everything at once, at the step that is taken back first; the other
// steps' own undo actions are left alone, over restarts too.
func TestRollbackByADetour(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	var fail error
	steps := []Step{
		{Name: "look", Checkpoint: true},
		{Name: "stop", Actions: list(act("stop")), Undo: list(act("start"))},
		{Name: "remove", Parallel: 3, Actions: list(act("files")), Undo: list(act("put back"))},
	}
	if _, err := run(t, path, steps, nil); err != nil {
		t.Fatal(err)
	}
	whole := &Detour{Name: "snapshot", Undo: list(act("merge"), Action{Name: "reboot", Run: func(context.Context) (any, error) { return nil, fail }})}
	by := func(d *Detour) (*log, error) {
		l := &log{}
		r := Runner{Steps: steps, Journal: open(t, path), Observer: l, Detour: d}
		defer r.Journal.Close()
		return l, r.Rollback(t.Context(), "look")
	}
	fail = errors.New("the host does not come up")
	if _, err := by(whole); !errors.Is(err, fail) {
		t.Fatal(err)
	}
	want(t, "way", open(t, path).State().Rollback.Via, "snapshot")
	// Nothing is taken for reverted: the other way is still open.
	planned, err := Unwind(t.Context(), steps, open(t, path).State(), "look", nil)
	if err != nil || len(planned) != 2 || planned[0].Actions[0].Name != "put back" {
		t.Fatalf("the other way: %+v, %v", planned, err)
	}
	fail = nil
	l, err := by(whole)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "observed", l.lines, []string{
		"notice continuing the rollback to look",
		"step 1/2 remove", "skip merge: done before", "start reboot", "done reboot", "end remove",
		"step 2/2 stop", "end stop",
	})
	want(t, "journal", recorded(t, path)[9:], []string{
		"rollback look",
		"undoing remove/merge", "undone remove/merge", "undoing remove/reboot", "undo failed remove/reboot",
		"undoing remove/reboot", "undone remove/reboot", "reverted remove",
		"reverted stop", "rolled back look",
	})
}

// A detour's actions build on each other, whatever the step at which it is made allows.
func TestADetourGoesOneByOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	steps := []Step{{Name: "look", Checkpoint: true}, {Name: "remove", Parallel: 3, Actions: list(act("files"))}}
	if _, err := run(t, path, steps, nil); err != nil {
		t.Fatal(err)
	}
	var merged atomic.Bool
	d := &Detour{Name: "snapshot", Undo: list(
		Action{Name: "merge", Run: func(context.Context) (any, error) {
			time.Sleep(50 * time.Millisecond)
			merged.Store(true)
			return nil, nil
		}},
		Action{Name: "reboot", Run: func(context.Context) (any, error) {
			if !merged.Load() {
				return nil, errors.New("the host was restarted before the merge")
			}
			return nil, nil
		}},
	)}
	r := Runner{Steps: steps, Journal: open(t, path), Detour: d}
	defer r.Journal.Close()
	if err := r.Rollback(t.Context(), "look"); err != nil {
		t.Fatal(err)
	}
}

// What one way back has done does not count for the other, which may have undone it.
func TestTurningBetweenWaysBeginsAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	stopped := 0
	stop := Action{Name: "stop again", Run: func(context.Context) (any, error) { stopped++; return nil, nil }}
	fail := errors.New("no")
	failing := Action{Name: "fails", Run: func(context.Context) (any, error) { return nil, fail }}
	steps := []Step{{Name: "look", Checkpoint: true}, {Name: "remove", Actions: list(act("files")), Undo: list(stop, act("put back"))}}
	if _, err := run(t, path, steps, nil); err != nil {
		t.Fatal(err)
	}
	by := func(d *Detour) error {
		r := Runner{Steps: steps, Journal: open(t, path), Detour: d}
		defer r.Journal.Close()
		return r.Rollback(t.Context(), "look")
	}
	for range 2 { // the second attempt knows what the first has done
		if err := by(&Detour{Name: "snapshot", Undo: list(stop, failing)}); !errors.Is(err, fail) {
			t.Fatal(err)
		}
	}
	want(t, "stopped on the detour", stopped, 1)
	if err := by(nil); err != nil {
		t.Fatal(err)
	}
	want(t, "stopped on the other way, too", stopped, 2)
}

// Once a detour's actions are through there is no turning from it: the steps that are left
// have nothing of their own to undo any more.
func TestRollbackDoesNotTurnFromADetourThatIsThrough(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	steps := []Step{
		{Name: "look", Checkpoint: true},
		{Name: "stop", Actions: list(act("stop")), Undo: list(act("start"))},
		{Name: "remove", Actions: list(act("files")), Undo: list(act("put back"))},
	}
	if _, err := run(t, path, steps, nil); err != nil {
		t.Fatal(err)
	}
	j := open(t, path)
	for _, r := range []Record{
		{Event: Rollback, Step: "look", Data: []byte(`{"via":"snapshot","at":"remove"}`)},
		{Event: Undoing, Step: "remove", Action: "merge"}, {Event: Undone, Step: "remove", Action: "merge"},
		{Event: Reverted, Step: "remove"},
	} {
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	j.Close()
	_, err := back(t, path, steps, "look")
	var through *DetourError
	if !errors.As(err, &through) {
		t.Fatalf("another way: %v", err)
	}
	r := Runner{Steps: steps, Journal: open(t, path), Detour: &Detour{Name: "snapshot", Undo: list(act("merge"))}}
	defer r.Journal.Close()
	if err := r.Rollback(t.Context(), "look"); err != nil {
		t.Fatal(err)
	}
	want(t, "the end of the journal", recorded(t, path)[len(recorded(t, path))-2:], []string{"reverted stop", "rolled back look"})
}
