package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// world is what the runner acts on, and the disk under its journal. It counts
// the points at which something can go wrong (each operation on the journal's
// file, before and after each effect) and lets it go wrong at some of them.
type world struct {
	mu      sync.Mutex
	path    string
	effects map[string]int // how often an action took effect
	order   []string       // their first effects in order
	wrong   []string       // properties that were violated

	// Of the process that runs now:
	points int
	faults map[int]string
	cancel context.CancelFunc
	dead   bool  // by SIGKILL or a power cut: nothing has an effect any more
	synced int64 // what of the journal survives a power cut
}

var (
	errDead  = errors.New("the process is dead")
	errFault = errors.New("an injected failure")
)

// The kinds of fault. At a point where a kind makes no sense it is a crash.
const (
	crash  = "crash"
	late   = "late"   // crash when the operation is complete
	torn   = "torn"   // crash when half is written
	fails  = "fails"  // the operation returns an error
	cancel = "cancel" // the context is cancelled, the operation goes on
)

// fault is what goes wrong at this point. The caller holds the mutex.
func (w *world) fault() string {
	w.points++
	f := w.faults[w.points]
	if f == cancel {
		w.cancel()
	}
	return f
}

// disk is the journal's file in the world.
type disk struct {
	file
	w *world
}

func (w *world) open(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &disk{f, w}, err
}

func (w *world) size() int64 {
	info, err := os.Stat(w.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// operate performs a file operation, or does not.
func (d *disk) operate(do, half func() error, failure error) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if d.w.dead {
		return errDead
	}
	f := d.w.fault()
	switch f {
	case crash:
		d.w.dead = true
		return errDead
	case torn:
		d.w.dead = true
		return errors.Join(half(), errDead)
	case fails:
		return errors.Join(half(), failure)
	}
	err := do()
	if f == late {
		d.w.dead = true
		return errDead
	}
	return err
}

func nothing() error { return nil }

func (d *disk) Write(p []byte) (n int, err error) {
	write := func(p []byte) func() error {
		return func() (err error) { n, err = d.file.Write(p); return err }
	}
	err = d.operate(write(p), write(p[:len(p)/2]), syscall.ENOSPC)
	return n, err
}

func (d *disk) Sync() error {
	return d.operate(func() error { d.w.synced = d.w.size(); return nil }, nothing, syscall.EIO)
}

func (d *disk) Truncate(n int64) error {
	return d.operate(func() error { return d.file.Truncate(n) }, nothing, syscall.EIO)
}

// durable are the records that would survive a power cut now.
func (w *world) durable() []Record {
	data, err := os.ReadFile(w.path)
	if err != nil {
		return nil
	}
	records, _, _, err := parse(data[:min(w.synced, int64(len(data)))])
	if err != nil {
		w.wrong = append(w.wrong, err.Error())
	}
	return records
}

// action is an action that takes effect in the world.
func (w *world) action(step, name string, once bool) Action {
	key := step + "/" + name
	a := Action{Name: name, Run: func(ctx context.Context) (any, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.dead {
			return nil, errDead
		}
		records := w.durable()
		if a, _ := derive(records).ActionState(step, name); a.Status != Intent {
			w.wrong = append(w.wrong, key+" runs without a durable intent")
		}
		if slices.ContainsFunc(records, func(r Record) bool { return r.Event == Done && r.Step == step && r.Action == name }) {
			w.wrong = append(w.wrong, key+" runs although it is recorded as done")
		}
		if err := w.suffer(ctx); err != nil {
			return nil, err
		}
		if w.effects[key]++; w.effects[key] == 1 {
			w.order = append(w.order, key)
		} else if once {
			w.wrong = append(w.wrong, key+" took effect twice")
		}
		return key, w.suffer(ctx)
	}}
	if once {
		a.Done = func(context.Context) (bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.dead {
				return false, errDead
			}
			return w.effects[key] > 0, nil
		}
	}
	return a
}

// suffer is a point of an action.
func (w *world) suffer(ctx context.Context) error {
	switch w.fault() {
	case "":
		return nil
	case fails:
		return errFault
	case cancel:
		return ctx.Err()
	}
	w.dead = true
	return errDead
}

func TestModel(t *testing.T) {
	dir := t.TempDir()
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		w := &world{path: filepath.Join(dir, fmt.Sprint(run)), effects: map[string]int{}}
		defer os.Remove(w.path)
		steps := drawSteps(t, w)
		for range rapid.IntRange(0, 12).Draw(t, "processes") {
			w.faults = rapid.MapOfN(rapid.IntRange(1, 25), rapid.SampledFrom([]string{crash, late, torn, fails, cancel}), 0, 2).Draw(t, "faults")
			until := rapid.SampledFrom(append([]string{""}, stepNames(steps)...)).Draw(t, "until")
			w.process(t, steps, until, rapid.Bool().Draw(t, "agrees"), rapid.Int64Range(0, 400).Draw(t, "unsynced bytes kept"))
		}
		w.faults = nil
		w.process(t, steps, "", true, 0)
		w.checkComplete(t, steps)
	})
}

func stepNames(steps []Step) (n []string) {
	for _, s := range steps {
		n = append(n, s.Name)
	}
	return n
}

func drawSteps(t *rapid.T, w *world) []Step {
	var steps []Step
	for i := range rapid.IntRange(1, 4).Draw(t, "steps") {
		s := Step{Name: fmt.Sprint("s", i), Checkpoint: rapid.Bool().Draw(t, "checkpoint"), Parallel: rapid.IntRange(0, 3).Draw(t, "parallel")}
		if rapid.Bool().Draw(t, "gate") {
			s.Gate = &Gate{}
		}
		var actions []Action
		for k := range rapid.IntRange(0, 4).Draw(t, "actions") {
			actions = append(actions, w.action(s.Name, fmt.Sprint("a", k), rapid.Bool().Draw(t, "once")))
		}
		s.Actions = list(actions...)
		steps = append(steps, s)
	}
	return steps
}

// process is the life of one process: it opens the journal, runs, and ends in one way or another.
func (w *world) process(t *rapid.T, steps []Step, until string, agrees bool, kept int64) {
	before := w.durable()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	w.points, w.dead, w.cancel, w.synced = 0, false, stop, w.size()
	j, err := OpenJournal(w.path)
	if err != nil {
		t.Fatal(err)
	}
	j.open = w.open
	if got := j.Records(); len(got) < len(before) || !slices.EqualFunc(before, got[:len(before)], func(a, b Record) bool { return a.Sum == b.Sum }) {
		t.Fatalf("%d durable records became %d others", len(before), len(got))
	}
	r := &Runner{Steps: steps, Journal: j, Bind: Bind{Plan: "p"}, Observer: &log{}, Confirm: func(context.Context, Gate) (bool, error) { return agrees, nil }}
	err = r.Run(ctx, until)
	state := j.State()
	if cerr := j.Close(); cerr != nil {
		t.Fatal(cerr)
	}
	switch {
	case err == nil && until == "" && !state.Finished && !w.dead:
		t.Fatal("ended without an error and is not finished")
	case err != nil && len(w.faults) == 0 && !(errors.Is(err, ErrDeclined) && !agrees):
		t.Fatalf("nothing went wrong, and yet: %v", err)
	case len(w.wrong) > 0:
		t.Fatalf("%q", w.wrong)
	}
	if w.dead {
		// A power cut takes some of what was not synced.
		if err := os.Truncate(w.path, min(w.size(), w.synced+kept)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// checkComplete checks what every completed run amounts to, whatever happened in it.
func (w *world) checkComplete(t *rapid.T, steps []Step) {
	j, err := OpenJournal(w.path)
	if err != nil {
		t.Fatal(err)
	}
	records := j.Records()
	if last := records[len(records)-1]; last.Event != Finished || records[0].Event != Begin {
		t.Fatalf("ends with %s", last.Event)
	}
	count := func(e Event, step, action string) (n int) {
		for _, r := range records {
			if r.Event == e && r.Step == step && r.Action == action {
				n++
			}
		}
		return n
	}
	if count(Begin, "", "") != 1 || count(Finished, "", "") != 1 {
		t.Fatal("begun or finished more than once")
	}
	at := 0 // each step's records lie between the ends of the step before and its own
	var order []string
	for _, s := range steps {
		end := StepComplete
		if s.Checkpoint {
			end = StepCheckpoint
		}
		ends := slices.IndexFunc(records, func(r Record) bool { return r.Event == end && r.Step == s.Name })
		if ends < at || count(end, s.Name, "") != 1 {
			t.Fatalf("step %s ends at record %d after %d, %d times", s.Name, ends+1, at, count(end, s.Name, ""))
		}
		for i, r := range records {
			if r.Step == s.Name && (i < at || i > ends) {
				t.Fatalf("record %d is of step %s outside of it", i+1, s.Name)
			}
		}
		if s.Gate != nil {
			first := slices.IndexFunc(records, func(r Record) bool { return r.Step == s.Name })
			if records[first].Event != Confirmed || count(Confirmed, s.Name, "") != 1 {
				t.Fatalf("step %s did not begin with its gate", s.Name)
			}
		}
		actions, _ := s.actions(context.Background())
		for _, a := range actions {
			key := s.Name + "/" + a.Name
			if n := count(Done, s.Name, a.Name); n != 1 {
				t.Fatalf("%s recorded as done %d times", key, n)
			}
			if n := w.effects[key]; n < 1 || a.Done != nil && n > 1 {
				t.Fatalf("%s took effect %d times", key, n)
			}
			order = append(order, key)
		}
		if s.Parallel > 1 { // their own order is free, their place among the steps is not
			slices.Sort(w.order[len(order)-len(actions) : len(order)])
		}
		at = ends
	}
	if !slices.Equal(order, w.order) {
		t.Fatalf("took effect in the order %q, want %q", w.order, order)
	}
}
