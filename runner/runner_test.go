package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// run opens the journal anew, as a new process does, and runs.
func run(t *testing.T, path string, steps []Step, change func(*Runner)) (*log, error) {
	t.Helper()
	j := open(t, path)
	defer j.Close()
	l := new(log)
	r := &Runner{Steps: steps, Journal: j, Bind: Bind{Plan: "p"}, Observer: l}
	if change != nil {
		change(r)
	}
	err := r.Run(t.Context(), "")
	return l, err
}

// recorded is the records of the journal in short.
func recorded(t *testing.T, path string) []string {
	t.Helper()
	var got []string
	for _, r := range open(t, path).Records() {
		got = append(got, strings.TrimSpace(string(r.Event)+" "+strings.Trim(r.Step+"/"+r.Action, "/")))
	}
	return got
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestRunPerformsEachActionOnceInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "work", "journal.jsonl")
	var did []string
	act := func(name string, data any) Action {
		return Action{Name: name, Run: func(context.Context) (any, error) { did = append(did, name); return data, nil }}
	}
	var j *Journal
	steps := []Step{
		{Name: "survey", Actions: list(act("read", map[string]string{"node": "k3s-1"}))},
		{Name: "back-up", Checkpoint: true, Actions: func(context.Context) ([]Action, error) {
			var facts struct{ Node string }
			if found, err := j.State().Data("survey", "read", &facts); !found || err != nil {
				t.Errorf("facts of the earlier step: %v, %v", found, err)
			}
			return []Action{act("copy "+facts.Node, nil), act("check", nil)}, nil
		}},
		{Name: "rebuild", Gate: &Gate{Question: "Delete?", Expect: "delete"}, Actions: list(act("uninstall", nil))},
		{Name: "nothing"},
	}
	for _, until := range []string{"survey", "survey", "back-up", "", ""} {
		j = open(t, path)
		r := &Runner{Steps: steps, Journal: j, Confirm: func(_ context.Context, g Gate) (bool, error) { return g.Expect == "delete", nil }}
		if err := r.Run(t.Context(), until); err != nil {
			t.Fatal(err)
		}
		if until != "" && j.State().Finished {
			t.Errorf("finished at %s", until)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "actions", did, []string{"read", "copy k3s-1", "check", "uninstall"})
	want(t, "journal", recorded(t, path), []string{
		"begin",
		"intent survey/read", "done survey/read", "complete survey",
		"intent back-up/copy k3s-1", "done back-up/copy k3s-1", "intent back-up/check", "done back-up/check", "checkpoint back-up",
		"confirmed rebuild", "intent rebuild/uninstall", "done rebuild/uninstall", "complete rebuild",
		"complete nothing",
		"finished",
	})
	if s := j.State(); !s.Finished || s.Checkpoint != "back-up" {
		t.Errorf("state %+v", s)
	}
}

func TestNothingStartsWhenTheStepsAreWrong(t *testing.T) {
	for name, c := range map[string]struct {
		steps []Step
		until string
		says  string
	}{
		"until":     {[]Step{{Name: "a"}, {Name: "b"}}, "c", `there is no step "c" to stop after: the steps are a, b`},
		"same name": {[]Step{{Name: "a"}, {Name: "a"}}, "", `two steps are named "a"`},
		"no name":   {[]Step{{}}, "", "step 1 has no name"},
	} {
		path := filepath.Join(t.TempDir(), "journal.jsonl")
		err := (&Runner{Steps: c.steps, Journal: open(t, path)}).Run(t.Context(), c.until)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: a journal was begun", name)
		}
	}
}

func TestActionsOfAStepAreChecked(t *testing.T) {
	broken := errors.New("no facts")
	for says, actions := range map[string]func(context.Context) ([]Action, error){
		`two actions are named "a"`:         list(act("a"), act("b"), act("a")),
		"action 2 has no name":              list(act("a"), act("")),
		`action "a" has nothing to run`:     list(Action{Name: "a"}),
		"no facts":                          func(context.Context) ([]Action, error) { return nil, broken },
		`step s: two actions are named "b"`: list(act("b"), act("b")),
	} {
		path := filepath.Join(t.TempDir(), "journal.jsonl")
		steps := []Step{{Name: "s", Actions: actions}}
		_, err := run(t, path, steps, nil)
		_, preview := Preview(t.Context(), steps)
		for _, err := range []error{err, preview} {
			var at *StepError
			if !errors.As(err, &at) || at.Step != "s" || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", says, err)
			}
		}
		want(t, "journal", recorded(t, path), []string{"begin"})
	}
}

func TestFailureStopsThereAndTheNextRunContinues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	broken := errors.New("platform up: exit status 1")
	var fail error = broken
	steps := []Step{
		{Name: "one", Actions: list(act("a"))},
		{Name: "two", Actions: list(act("b"), Action{Name: "c", Run: func(context.Context) (any, error) { return nil, fail }}, act("d"))},
	}
	l, err := run(t, path, steps, nil)
	var at *StepError
	if !errors.As(err, &at) || at.Step != "two" || at.Action != "c" || !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	want(t, "error", err.Error(), "step two, c: platform up: exit status 1")
	want(t, "observed", l.lines, []string{
		"step 1/2 one", "start a", "done a", "end one",
		"step 2/2 two", "start b", "done b", "start c", "fail c: platform up: exit status 1",
	})
	a, _ := open(t, path).State().ActionState("two", "c")
	if a.Status != Failed || a.Error != broken.Error() || a.Attempts != 1 {
		t.Errorf("state of the failed action %+v", a)
	}
	fail = nil
	l, err = run(t, path, steps, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.lines[0] = regexp.MustCompile(`[0-9TZ:-]{20}`).ReplaceAllString(l.lines[0], "TIME")
	want(t, "observed", l.lines, []string{
		"notice continuing the run that began at TIME",
		"step 2/2 two", "skip b: done before", "start c", "done c", "start d", "done d", "end two",
	})
}

func TestOpenIntentIsSettledByAskingReality(t *testing.T) {
	broken := errors.New("host is away")
	for name, c := range map[string]struct {
		done  func(context.Context) (bool, error)
		ran   int
		err   error
		lines []string
	}{
		"found done": {func(context.Context) (bool, error) { return true, nil }, 0, nil, []string{"skip a: found done"}},
		"not done":   {func(context.Context) (bool, error) { return false, nil }, 1, nil, []string{"start a", "done a"}},
		"repeatable": {nil, 1, nil, []string{"start a", "done a"}},
		"unknown": {func(context.Context) (bool, error) { return false, broken }, 0, broken,
			[]string{"fail a: find out whether an earlier attempt completed: host is away"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.jsonl")
			j := open(t, path)
			for _, r := range []Record{{Event: Begin, Data: []byte(`{"plan":"p"}`)}, {Event: Intent, Step: "s", Action: "a"}} {
				if err := j.Append(r); err != nil {
					t.Fatal(err)
				}
			}
			ran := 0
			l, err := run(t, path, []Step{{Name: "s", Actions: list(Action{Name: "a", Done: c.done,
				Run: func(context.Context) (any, error) { ran++; return "data", nil }})}}, nil)
			if ran != c.ran || !errors.Is(err, c.err) {
				t.Errorf("ran %d times, error %v", ran, err)
			}
			if c.err == nil {
				c.lines = append(c.lines, "end s")
			}
			want(t, "observed", l.lines[2:], c.lines)
			var data string
			state := open(t, path).State()
			if found, err := state.Data("s", "a", &data); found != (c.ran == 1) || err != nil {
				t.Errorf("data %v, %v", found, err)
			}
			if a, _ := state.ActionState("s", "a"); a.Found != (name == "found done") {
				t.Errorf("state %+v", a)
			}
		})
	}
}

func TestFailedAttemptIsSettledByAskingReality(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	effects := 0
	steps := []Step{{Name: "s", Actions: list(Action{
		Name: "a",
		Run:  func(context.Context) (any, error) { effects++; return nil, errors.New("connection lost") },
		Done: func(context.Context) (bool, error) { return effects > 0, nil },
	})}}
	if _, err := run(t, path, steps, nil); err == nil {
		t.Fatal("no error")
	}
	if _, err := run(t, path, steps, nil); err != nil {
		t.Fatal(err)
	}
	if effects != 1 {
		t.Errorf("took effect %d times", effects)
	}
	want(t, "journal", recorded(t, path), []string{"begin", "intent s/a", "failed s/a", "done s/a", "complete s", "finished"})
}

func TestDoneIsNotAskedOfAnActionThatNeverBegan(t *testing.T) {
	a := act("a")
	a.Done = func(context.Context) (bool, error) { t.Error("asked"); return true, nil }
	if _, err := run(t, filepath.Join(t.TempDir(), "j"), []Step{{Name: "s", Actions: list(a)}}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestCancelledContextRecordsNothingAsDone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cutOff := errors.New("connection lost") // says nothing of the context
	for name, steps := range map[string][]Step{
		"in an action": {{Name: "s", Actions: list(Action{Name: "a", Run: func(ctx context.Context) (any, error) {
			cancel()
			<-ctx.Done()
			return nil, cutOff
		}}, act("b"))}},
		"in computing actions": {{Name: "s", Actions: func(context.Context) ([]Action, error) { cancel(); return nil, cutOff }}},
		"before many actions at once": {{Name: "s", Parallel: 2, Actions: func(context.Context) ([]Action, error) {
			cancel()
			return []Action{act("a"), act("b"), act("c")}, nil
		}}},
		"at a gate":     {{Name: "s", Gate: &Gate{}, Actions: list(act("a"))}},
		"between steps": {{Name: "r", Actions: func(context.Context) ([]Action, error) { cancel(); return nil, nil }}, {Name: "s", Actions: list(act("a"))}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel = context.WithCancel(t.Context())
			defer cancel()
			path := filepath.Join(t.TempDir(), "journal.jsonl")
			r := &Runner{Steps: steps, Journal: open(t, path), Confirm: func(context.Context, Gate) (bool, error) { cancel(); return true, nil }}
			err := r.Run(ctx, "")
			var at *StepError
			if !errors.Is(err, context.Canceled) || !errors.As(err, &at) {
				t.Errorf("error %v", err)
			}
			for _, e := range recorded(t, path) {
				if e != "begin" && e != "intent s/a" {
					t.Errorf("recorded: %s", e)
				}
			}
		})
	}
}

func TestTimeoutOfAnActionIsAFailure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	_, err := run(t, path, []Step{{Name: "s", Actions: list(Action{Name: "a", Run: func(context.Context) (any, error) {
		return nil, context.DeadlineExceeded // its own, not the run's
	}})}}, nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	want(t, "journal", recorded(t, path), []string{"begin", "intent s/a", "failed s/a"})
}

func TestGate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	computed := 0
	steps := []Step{{Name: "s", Gate: &Gate{Question: "Go on?", Expect: "yes"}, Actions: func(context.Context) ([]Action, error) {
		computed++
		return []Action{{Name: "a", Run: func(context.Context) (any, error) {
			if computed == 1 {
				return nil, errors.New("fails at first")
			}
			return nil, nil
		}}}, nil
	}}}
	asked := 0
	answer := func(yes bool) func(*Runner) {
		return func(r *Runner) {
			r.Confirm = func(context.Context, Gate) (bool, error) { asked++; return yes, nil }
		}
	}
	for _, decline := range []func(*Runner){nil, answer(false)} {
		if _, err := run(t, path, steps, decline); !errors.Is(err, ErrDeclined) {
			t.Fatalf("error %v", err)
		}
	}
	if computed != 0 {
		t.Error("actions were computed before the gate was agreed to")
	}
	if _, err := run(t, path, steps, answer(true)); err == nil || errors.Is(err, ErrDeclined) {
		t.Fatalf("error %v", err)
	}
	want(t, "journal", recorded(t, path), []string{"begin", "confirmed s", "intent s/a", "failed s/a"})
	if _, err := run(t, path, steps, answer(false)); err != nil { // agreed before: not asked again
		t.Fatal(err)
	}
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

func TestParallelStepRunsNoMoreThanItSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	var now atomic.Int32
	var once sync.Once
	three := make(chan struct{}) // closed when three run at once
	var actions []Action
	for _, name := range strings.Fields("a b c d e f g h i") {
		actions = append(actions, Action{Name: name, Run: func(context.Context) (any, error) {
			n := now.Add(1)
			defer now.Add(-1)
			if n == 3 {
				once.Do(func() { close(three) })
			}
			if n > 3 {
				t.Errorf("%d at once", n)
			}
			<-three
			return nil, nil
		}})
	}
	if _, err := run(t, path, []Step{{Name: "s", Parallel: 3, Actions: list(actions...)}}, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(open(t, path).State().Actions); n != 9 {
		t.Errorf("%d actions done", n)
	}
}

func TestFailureInAParallelStepLetsTheOthersFinish(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	started, failed := make(chan struct{}), make(chan struct{})
	broken := errors.New("volume is gone")
	actions := []Action{
		{Name: "long", Run: func(context.Context) (any, error) { close(started); <-failed; return nil, nil }},
		{Name: "fails", Run: func(context.Context) (any, error) { <-started; return nil, broken }},
		{Name: "late", Run: func(context.Context) (any, error) { t.Error("started after the failure"); return nil, nil }},
	}
	_, err := run(t, path, []Step{{Name: "s", Parallel: 2, Actions: list(actions...)}}, func(r *Runner) {
		r.Observer = &failWatch{log: &log{}, failed: failed}
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	got := recorded(t, path)
	slices.Sort(got)
	want(t, "journal", got, []string{"begin", "done s/long", "failed s/fails", "intent s/fails", "intent s/long"})
}

type failWatch struct {
	*log
	failed chan struct{}
}

func (f *failWatch) ActionFailed(Step, Action, error) { close(f.failed) }

func TestAllFailuresOfAParallelStepAreTold(t *testing.T) {
	var both sync.WaitGroup
	both.Add(2)
	fails := func(name string) Action {
		return Action{Name: name, Run: func(context.Context) (any, error) {
			both.Done()
			both.Wait()
			return nil, errors.New(name + " is gone")
		}}
	}
	_, err := run(t, filepath.Join(t.TempDir(), "j"), []Step{{Name: "s", Parallel: 2, Actions: list(fails("a"), fails("b"))}}, nil)
	for _, says := range []string{"step s, a: a is gone", "step s, b: b is gone"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want %q", err, says)
		}
	}
}

func TestRunIsBoundToWhatItBeganWith(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	steps := []Step{{Name: "s", Actions: list(act("a"))}, {Name: "t", Actions: list(act("b"))}}
	began := Bind{Plan: "sha256:6b86b273", Extra: map[string]string{"host key": "SHA256:old", "machine id": "1f"}}
	j := open(t, path)
	if err := (&Runner{Steps: steps, Journal: j, Bind: began}).Run(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	want(t, "bind", j.State().Bind, began)
	before := recorded(t, path)
	_, err := run(t, path, steps, func(r *Runner) {
		r.Bind = Bind{Plan: "sha256:d4735e3a", Extra: map[string]string{"host key": "SHA256:new", "machine id": "1f", "later": "x"}}
	})
	var changed *ChangedError
	if !errors.As(err, &changed) {
		t.Fatalf("error %v", err)
	}
	want(t, "changes", changed.Changes, []Change{
		{"plan", "sha256:6b86b273", "sha256:d4735e3a"},
		{"host key", "SHA256:old", "SHA256:new"},
	})
	changed.Began = epoch
	golden(t, "changed.txt", changed.Error())
	want(t, "journal", recorded(t, path), before)
	if _, err := run(t, path, steps, func(r *Runner) { r.Bind = began }); err != nil {
		t.Error(err)
	}
}

func TestJournalThatCannotBeWrittenStopsBeforeTheAction(t *testing.T) {
	ran := false
	_, err := run(t, filepath.Join(t.TempDir(), "j"), []Step{{Name: "s", Actions: list(Action{Name: "a",
		Run: func(context.Context) (any, error) { ran = true; return nil, nil }})}}, func(r *Runner) {
		r.Journal.open = func(path string) (file, error) {
			f, err := openFile(path)
			return &full{f, 1}, err
		}
	})
	if ran || err == nil || !strings.Contains(err.Error(), "record 2 is not recorded: no space left on device") {
		t.Errorf("ran %v, error %v", ran, err)
	}
}

// full is a disk with room for so many records.
type full struct {
	file
	room int
}

func (f *full) Write(p []byte) (int, error) {
	if f.room--; f.room < 0 {
		return (&faulty{file: f.file, short: 7}).Write(p)
	}
	return f.file.Write(p)
}

func TestPreviewComputesAndRunsNothing(t *testing.T) {
	steps := []Step{
		{Name: "survey", Title: "Look at the host", ReadOnly: true, Actions: list(Action{
			Name: "read", Target: Target{Host, "k3s-1"}, Summary: "reads the configuration", Command: "cat /etc/rancher/k3s/config.yaml",
			Run: func(context.Context) (any, error) { t.Error("ran"); return nil, nil },
		})},
		{Name: "rebuild", Title: "Rebuild", Phase: "rebuild", Checkpoint: true, Gate: &Gate{Question: "Delete?", Expect: "delete"}},
	}
	planned, err := Preview(t.Context(), steps)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.MarshalIndent(planned, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "preview.json", string(data))
	want(t, "target", planned[0].Actions[0].Target.String(), "host k3s-1")
}

type discreet struct{}

func (discreet) Error() string    { return "exit status 1; it printed hunter2" }
func (discreet) Recorded() string { return "exit status 1" }

func TestWhatADiscreetErrorKeepsOutOfTheJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	steps := []Step{{Name: "up", Actions: list(Action{Name: "all", Run: func(context.Context) (any, error) {
		return nil, fmt.Errorf("host a: %w; run again", discreet{})
	}})}}
	_, err := run(t, path, steps, nil)
	want(t, "error", err.Error(), "step up, all: host a: exit status 1; it printed hunter2; run again")
	state, _ := open(t, path).State().ActionState("up", "all")
	want(t, "journal", state.Error, "host a: exit status 1; run again")
}
