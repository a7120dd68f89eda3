package runner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// world is what the runner acts on, and the disk under its journal. It counts
// the points at which something can go wrong (each operation on the journal's
// file; before, amid and after each effect; each question to reality) and lets
// it go wrong at some of them. It holds every effect against the records that
// are durable at that moment.
type world struct {
	mu          sync.Mutex
	path        string
	steps       []Step
	reality     map[string]string
	checkpoints map[string]map[string]string // reality when the checkpoint was recorded
	effects     map[string]int               // how often an action took effect since its step was last reverted, an undo action in this rollback
	settled     int                          // how many durable records the world has seen
	wrong       []string                     // properties that were violated

	// Of the process that runs now:
	dead   bool  // by SIGKILL or a power cut: nothing has an effect any more
	synced int64 // what of the journal survives a power cut

	// Of the call of Run or Rollback that runs now:
	points  int
	faults  map[int]string
	struck  int // how many faults came about
	cancel  context.CancelFunc
	running []deed
	begun   []deed
	pauses  map[int]bool // the questions whether to pause that are answered with yes, and whether a person stops there
	asked   int
	stopped int // how many records there were when a person stopped the call; 0: nobody did
}

// deed is one action or undo action of a step.
type deed struct {
	step, name string
	undo       bool
	at         int  // its place in its list
	alone      bool // [Action.Alone]
	once       bool // not repeatable: it has a truthful Done
	parallel   int
}

func (d deed) String() string { return d.step + "/" + d.name }

var (
	errDead  = errors.New("the process is dead")
	errFault = errors.New("an injected failure")
	errStop  = errors.New("stopped by a person")
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
	if f != "" {
		w.struck++
	}
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
	return d.operate(func() error { d.w.settle(); return nil }, nothing, syscall.EIO)
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

// settle makes durable what is on disk, and lets the world see it.
func (w *world) settle() {
	w.synced = w.size()
	records := w.durable()
	for _, r := range records[w.settled:] {
		switch r.Event {
		case StepCheckpoint:
			w.checkpoints[r.Step] = maps.Clone(w.reality)
		case Reverted:
			maps.DeleteFunc(w.effects, func(d string, _ int) bool {
				return strings.HasPrefix(d, r.Step+"/") && !strings.Contains(d, "undo")
			})
		case RolledBack:
			maps.DeleteFunc(w.effects, func(d string, _ int) bool { return strings.Contains(d, "undo") })
		}
	}
	w.settled = len(records)
}

// forwardEvents are those of a step that a rollback takes back.
var forwardEvents = []Event{Confirmed, Intent, Done, Failed, StepComplete, StepCheckpoint}

// standing are the records of steps without those that a rollback took back.
func standing(records []Record) (out []Record) {
	for i, r := range records {
		reverted := slices.ContainsFunc(records[i:], func(later Record) bool { return later.Event == Reverted && later.Step == r.Step })
		if slices.Contains(forwardEvents, r.Event) && !reverted {
			out = append(out, r)
		}
	}
	return out
}

// latest is the index of the last record of these events, -1 when there is none.
func latest(records []Record, events ...Event) int {
	for i, r := range slices.Backward(records) {
		if slices.Contains(events, r.Event) {
			return i
		}
	}
	return -1
}

// specified is what a State says by definition, each part by a look at all of the
// records, where derive keeps books. Times, data and errors are left out.
func specified(records []Record) State {
	last := func(events ...Event) (step string, at int) {
		if at = latest(records, events...); at >= 0 {
			step = records[at].Step
		}
		return step, at
	}
	actions := func(records []Record, intent Event, others ...Event) (out []ActionState) {
		for i, r := range records {
			same := func(x Record) bool {
				return x.Step == r.Step && x.Action == r.Action && (x.Event == intent || slices.Contains(others, x.Event))
			}
			if !same(r) || slices.ContainsFunc(records[:i], same) {
				continue
			}
			a := ActionState{Step: r.Step, Action: r.Action}
			for _, x := range records {
				if same(x) {
					a.Status = x.Event
				}
				if same(x) && x.Event == intent {
					a.Attempts++
				}
			}
			out = append(out, a)
		}
		return out
	}
	var s State
	run := standing(records)
	for i, r := range run {
		of := func(x Record) bool { return x.Step == r.Step }
		if slices.ContainsFunc(run[:i], of) {
			continue
		}
		s.Steps = append(s.Steps, StepState{
			Step:      r.Step,
			Confirmed: slices.ContainsFunc(run, func(x Record) bool { return of(x) && x.Event == Confirmed }),
			Complete: slices.ContainsFunc(run, func(x Record) bool {
				return of(x) && (x.Event == StepComplete || x.Event == StepCheckpoint)
			}),
		})
	}
	s.Actions = actions(run, Intent, Done, Failed)
	to, rollback := last(Rollback)
	at, rolledBack := last(RolledBack)
	if rollback > rolledBack {
		s.Rollback = &RollbackState{To: to, Actions: actions(records[rolledBack+1:], Undoing, Undone, UndoFailed)}
	}
	if _, since := last(append(forwardEvents, Finished, Rollback)...); rolledBack > since {
		s.RolledBack = at
	}
	_, finished := last(Finished)
	s.Finished = finished > rollback
	s.Checkpoint, _ = last(StepCheckpoint, Rollback)
	return s
}

// told is State without what specified leaves out.
func told(s State) State {
	short := func(actions []ActionState) (out []ActionState) {
		for _, a := range actions {
			out = append(out, ActionState{Step: a.Step, Action: a.Action, Status: a.Status, Attempts: a.Attempts})
		}
		return out
	}
	out := State{Finished: s.Finished, Checkpoint: s.Checkpoint, RolledBack: s.RolledBack, Actions: short(s.Actions)}
	out.Steps = append(out.Steps, s.Steps...)
	if s.Rollback != nil {
		out.Rollback = &RollbackState{To: s.Rollback.To, Actions: short(s.Rollback.Actions)}
	}
	return out
}

// began says whether the step is among those that stand.
func began(s State, step string) bool {
	return slices.ContainsFunc(s.Steps, func(x StepState) bool { return x.Step == step })
}

func (w *world) place(step string) int {
	return slices.IndexFunc(w.steps, func(s Step) bool { return s.Name == step })
}

// Wants is a question whether to pause, which a person who looks on may want at any time.
func (p *process) Wants(s Step, a *Action) bool {
	state := p.journal.State() // ahead of the lock: the journal has its own, within which it writes to the world
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	switch {
	case state.Rollback != nil:
	case state.StepState(s.Name).Complete:
		p.wrong = append(p.wrong, "a pause before the complete step "+s.Name)
	case a != nil:
		if before, _ := state.ActionState(s.Name, a.Name); before.Status == Done {
			p.wrong = append(p.wrong, "a pause before "+s.Name+"/"+a.Name+", which is done")
		}
	}
	_, wants := p.pauses[p.asked]
	return wants
}

// Pause is a person who looks at what is there, and goes on or stops.
func (p *process) Pause(_ context.Context, s Step, a *Action) error {
	records := len(p.journal.Records())
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.running) > 0 {
		p.wrong = append(p.wrong, fmt.Sprintf("a pause before %s while %s runs", s.Name, p.running))
	}
	p.reached["paused"]++
	if a != nil && s.Parallel > 1 && len(p.begun) > 0 {
		p.reached["paused amid actions that run in parallel"]++
	}
	if !p.pauses[p.asked] {
		return nil
	}
	p.reached["stopped in a pause"]++
	p.stopped = records
	return errStop
}

// judge holds a deed that begins against what is durable.
func (w *world) judge(d deed) {
	wrong := func(what string) { w.wrong = append(w.wrong, d.String()+" runs "+what) }
	if w.stopped > 0 {
		wrong("after a person stopped the run")
	}
	records := w.durable()
	s := specified(records)
	since, intent, done, before := standing(records), Intent, Done, s.Actions
	if d.undo {
		since, intent, done = records[latest(records, RolledBack)+1:], Undoing, Undone
		before = nil
		if s.Rollback != nil {
			before = s.Rollback.Actions
		}
	}
	if a, _ := find(before, d.step, d.name); a.Status != intent {
		wrong("without a durable intent")
	}
	if slices.ContainsFunc(since, func(r Record) bool { return r.Event == done && r.Step == d.step && r.Action == d.name }) {
		wrong("although it is recorded as done")
	}
	for i, x := range w.steps {
		st := s.StepState(x.Name)
		switch here := w.place(d.step); {
		case !d.undo && s.Rollback != nil:
			wrong("during a rollback")
		case !d.undo && i < here && !st.Complete:
			wrong("before step " + x.Name + " is complete")
		case !d.undo && i == here && (st.Complete || x.Gate != nil && !st.Confirmed):
			wrong("in a complete step or without a person's agreement")
		case d.undo && s.Rollback == nil:
			wrong("outside of a rollback")
		case d.undo && i == here && !began(s, x.Name):
			wrong("although its step never began")
		case d.undo && i == here && i <= w.place(s.Rollback.To):
			wrong("although its step is not after the checkpoint")
		case d.undo && i > here && began(s, x.Name):
			wrong("before the later step " + x.Name + " is reverted")
		}
	}
	for _, x := range w.begun {
		if x.step == d.step && x.undo == d.undo && x.at > d.at && (d.parallel <= 1 || x.alone || d.alone) {
			wrong("after " + x.String())
		}
	}
	if n := len(w.running); n >= max(1, d.parallel) {
		wrong(fmt.Sprint("as number ", n+1, " of ", d.parallel))
	}
	if len(w.running) > 0 && (d.alone || slices.ContainsFunc(w.running, func(x deed) bool { return x.alone })) {
		wrong("beside one that is to be alone")
	}
}

// action takes effect in the world, in two halves.
func (w *world) action(d deed, halves ...func()) Action {
	a := Action{Name: d.name, Alone: d.alone, Run: func(ctx context.Context) (any, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.dead {
			return nil, errDead
		}
		w.judge(d)
		w.running, w.begun = append(w.running, d), append(w.begun, d)
		defer func() { w.running = slices.DeleteFunc(w.running, func(x deed) bool { return x == d }) }()
		for _, half := range halves {
			if err := w.suffer(ctx); err != nil {
				return nil, err
			}
			half()
		}
		if w.effects[d.String()]++; d.once && w.effects[d.String()] > 1 {
			w.wrong = append(w.wrong, d.String()+" took effect twice")
		}
		return d.String(), w.suffer(ctx)
	}}
	if d.once {
		a.Done = func(ctx context.Context) (bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if err := w.suffer(ctx); err != nil {
				return false, err
			}
			return w.effects[d.String()] > 0, nil
		}
	}
	return a
}

// suffer is a point of an action, at which others of its step may go on.
func (w *world) suffer(ctx context.Context) error {
	w.mu.Unlock()
	runtime.Gosched()
	w.mu.Lock()
	if w.dead {
		return errDead
	}
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

// drawSteps draws the steps of a run. A step that is not read-only changes the same
// things as the others do, one thing an action, and keeps what was there for
// its undo: only the right order of undoing leads back.
func (w *world) drawSteps(t *rapid.T) {
	flip := func(label string) bool { return rapid.Bool().Draw(t, label) }
	for i := range 1 + upTo(2).Draw(t, "steps") {
		s := Step{Name: fmt.Sprint("s", i), ReadOnly: rarely(t, "read-only"), Checkpoint: flip("checkpoint"), Parallel: rapid.IntRange(0, 3).Draw(t, "parallel")}
		if rarely(t, "gate") {
			s.Gate = &Gate{}
		}
		var actions, undo []Action
		count := upTo(2).Draw(t, "actions") - 1
		for k := range count {
			d := deed{step: s.Name, name: fmt.Sprint("a", k), at: k, alone: rarely(t, "alone"), once: flip("once"), parallel: s.Parallel}
			key, thing := d.String(), fmt.Sprint("thing ", k)
			kept := "kept by " + key
			if s.ReadOnly {
				actions = append(actions, w.action(d))
				continue
			}
			actions = append(actions, w.action(d, func() {
				if _, is := w.reality[kept]; !is {
					w.reality[kept] = w.reality[thing]
				}
			}, func() { w.reality[thing] = key }))
			d.undo, d.name, d.at, d.alone, d.once = true, "undo "+d.name, count-1-k, rarely(t, "undo alone"), flip("undo once")
			undo = append(undo, w.action(d, func() {
				if was, is := w.reality[kept]; is {
					w.reality[thing] = was
				}
			}, func() { delete(w.reality, kept) }))
		}
		slices.Reverse(undo)
		s.Actions = list(actions...)
		if len(undo) > 0 {
			s.Undo = list(undo...)
		}
		w.steps = append(w.steps, s)
	}
}

// drawFaults draws what goes wrong at some of the first 2^bits points of the next call.
func (w *world) drawFaults(t *rapid.T, bits int) {
	w.faults = map[int]string{}
	for range upTo(2).Draw(t, "faults") - 1 {
		w.faults[upTo(bits).Draw(t, "point")] = rapid.SampledFrom([]string{fails, crash, late, torn, cancel}).Draw(t, "fault")
	}
}

// drawPauses draws where the next call is to pause.
func (w *world) drawPauses(t *rapid.T) {
	w.pauses = map[int]bool{}
	for range upTo(2).Draw(t, "pauses") - 1 {
		w.pauses[upTo(3).Draw(t, "question")] = rarely(t, "stop")
	}
}

// upTo draws a number from 1 to 2^bits, all as likely as each other; IntRange
// prefers the small ones.
func upTo(bits int) *rapid.Generator[int] {
	return rapid.Custom(func(t *rapid.T) int {
		n := 1
		for bit := range bits {
			if rapid.Bool().Draw(t, "bit") {
				n += 1 << bit
			}
		}
		return n
	})
}

func rarely(t *rapid.T, label string) bool { return upTo(2).Draw(t, label) == 4 }

// untouched is the world that no step has changed.
func untouched() map[string]string {
	return map[string]string{"thing 0": "", "thing 1": "", "thing 2": ""}
}

func TestModel(t *testing.T) {
	dir := t.TempDir()
	run := 0
	reached := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		run++
		w := &world{path: filepath.Join(dir, fmt.Sprint(run)), reality: untouched(), effects: map[string]int{}, checkpoints: map[string]map[string]string{}}
		defer os.Remove(w.path)
		w.drawSteps(t)
		for range upTo(4).Draw(t, "processes") {
			p := w.process(t)
			p.reached = reached
			for range upTo(2).Draw(t, "calls") {
				w.drawPauses(t)
				if rapid.Bool().Draw(t, "back") {
					w.drawFaults(t, 4)
					p.rollback(p.drawTo())
				} else {
					w.drawFaults(t, 5)
					p.run(rapid.SampledFrom(append([]string{""}, stepNames(w.steps)...)).Draw(t, "until"), !rarely(t, "declines"))
				}
			}
			p.end(rapid.Int64Range(0, 400).Draw(t, "unsynced bytes kept"))
		}
		p := w.process(t)
		w.faults, w.pauses = nil, nil
		p.reached = reached
		if open := p.journal.State().Rollback; open != nil {
			p.rollback(open.To)
		}
		p.run("", true)
		p.checkComplete()
		p.rollback(p.drawTo())
		p.run("", true)
		p.checkComplete()
		p.end(0)
	})
	for _, what := range []string{"rolled back", "continued a rollback", "went on to an earlier checkpoint", "refused to run", "refused a later checkpoint", "found undone",
		"paused", "paused amid actions that run in parallel", "stopped in a pause"} {
		if t.Logf("%s: %d times", what, reached[what]); reached[what] == 0 && !t.Failed() {
			t.Errorf("in %d draws never %s", run, what)
		}
	}
}

func stepNames(steps []Step) (n []string) {
	for _, s := range steps {
		n = append(n, s.Name)
	}
	return n
}

// process opens the journal, runs and rolls back, and ends in one way or another.
type process struct {
	*world
	t       *rapid.T
	journal *Journal
	reached map[string]int // how often what is to be tested came about
}

func (w *world) process(t *rapid.T) *process {
	before := w.durable()
	w.dead = false
	w.settle()
	j, err := OpenJournal(w.path)
	if err != nil {
		t.Fatal(err)
	}
	j.open = w.open
	if got := j.Records(); len(got) < len(before) || !slices.EqualFunc(before, got[:len(before)], func(a, b Record) bool { return a.Sum == b.Sum }) {
		t.Fatalf("%d durable records became %d others", len(before), len(got))
	}
	return &process{world: w, t: t, journal: j}
}

// drawTo draws a step to roll back to, rather one to which that is possible.
func (p *process) drawTo() string {
	possible := Checkpoints(p.steps, p.journal.State())
	if len(possible) > 0 && !rarely(p.t, "anywhere") {
		return possible[upTo(3).Draw(p.t, "to")%len(possible)]
	}
	return rapid.SampledFrom(stepNames(p.steps)).Draw(p.t, "to")
}

// call is one of Run or Rollback. It returns their error, the records that they
// added, and whether nothing went wrong in the world meanwhile.
func (p *process) call(f func(ctx context.Context, r *Runner) error, agrees bool) (err error, added []Record, smooth bool) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	p.points, p.struck, p.cancel, p.begun, p.asked, p.stopped = 0, 0, stop, nil, 0, 0
	before := len(p.journal.Records())
	err = f(ctx, &Runner{
		Steps: p.steps, Journal: p.journal, Bind: Bind{Plan: "p"}, Observer: &log{}, Pauser: p,
		Confirm: func(context.Context, Gate) (bool, error) { return agrees, nil },
	})
	records := p.journal.Records()
	for _, r := range records[before:] {
		if r.Event == Undone && r.Found {
			p.reached["found undone"]++
		}
	}
	if len(p.wrong) > 0 {
		p.t.Fatalf("%q", p.wrong)
	}
	if p.stopped > 0 && (p.stopped != len(records) || !errors.Is(err, errStop)) {
		p.t.Fatalf("stopped by a person, and then: %v, %d records", err, len(records)-p.stopped)
	}
	state := p.journal.State()
	if d := cmp.Diff(specified(records), told(state)); d != "" {
		p.t.Fatalf("state derived from the journal (-as defined +derived):\n%s", d)
	}
	for _, s := range p.steps {
		for _, a := range must(computed(ctx, s.Actions)) {
			_, stands := p.reality["kept by "+s.Name+"/"+a.Name]
			if is, _ := state.ActionState(s.Name, a.Name); is.Status == Done && state.Rollback == nil && !s.ReadOnly && !stands {
				p.t.Fatalf("%s/%s is done in the journal and not in reality", s.Name, a.Name)
			}
			if stands && !p.dead && !began(state, s.Name) {
				p.t.Fatalf("%s/%s stands in reality, and its step never began", s.Name, a.Name)
			}
		}
	}
	return err, records[before:], p.struck == 0 && !p.dead
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (p *process) run(until string, agrees bool) {
	before := p.journal.State()
	err, added, smooth := p.call(func(ctx context.Context, r *Runner) error { return r.Run(ctx, until) }, agrees)
	var rolling *RollingBackError
	switch refused := errors.As(err, &rolling); {
	case refused != (before.Rollback != nil), refused && (rolling.To != before.Rollback.To || len(added) > 0):
		p.t.Fatalf("run while rolling back %+v: %v, %d records", before.Rollback, err, len(added))
	case refused:
		p.reached["refused to run"]++
	case err == nil && until == "" && !p.journal.State().Finished:
		p.t.Fatal("ended without an error and is not finished")
	case err != nil && smooth && !(errors.Is(err, ErrDeclined) && !agrees) && p.stopped == 0:
		p.t.Fatalf("nothing went wrong, and yet: %v", err)
	}
}

func (p *process) rollback(to string) {
	before := p.journal.State()
	var checkpoints []string
	for i, s := range p.steps {
		if s.Checkpoint && before.StepState(s.Name).Complete && (before.Rollback == nil || i <= p.place(before.Rollback.To)) {
			checkpoints = append(checkpoints, s.Name)
		}
	}
	planned, planErr := Unwind(context.Background(), p.steps, before, to, nil)
	err, added, smooth := p.call(func(ctx context.Context, r *Runner) error { return r.Rollback(ctx, to) }, false)
	if !slices.Contains(checkpoints, to) {
		for _, err := range []error{planErr, err} {
			var e *CheckpointError
			if !errors.As(err, &e) || e.To != to || !slices.Equal(e.Reached, checkpoints) || len(added) > 0 {
				p.t.Fatalf("rollback to %s of %q: %v, %d records", to, checkpoints, err, len(added))
			}
		}
		if before.Rollback != nil {
			p.reached["refused a later checkpoint"]++
		}
		return
	}
	switch {
	case before.Rollback == nil:
	case before.Rollback.To == to:
		p.reached["continued a rollback"]++
	default:
		p.reached["went on to an earlier checkpoint"]++
	}
	if err != nil {
		if smooth && p.stopped == 0 {
			p.t.Fatalf("nothing went wrong, and yet: %v", err)
		}
		return
	}
	p.reached["rolled back"]++
	if s := p.journal.State(); s.Rollback != nil || s.RolledBack != to {
		p.t.Fatalf("rolled back to %s, and the state is %+v", to, s)
	}
	if d := cmp.Diff(p.checkpoints[to], p.reality); d != "" {
		p.t.Fatalf("reality after the rollback to %s (-at the checkpoint +now):\n%s", to, d)
	}
	var want, got []string
	for _, s := range planned {
		for _, a := range s.Actions {
			want = append(want, s.Name+"/"+a.Name)
		}
	}
	for _, r := range added {
		if r.Event == Undone {
			got = append(got, r.Step+"/"+r.Action)
		}
	}
	slices.Sort(want) // the order is judged where they run
	slices.Sort(got)
	if planErr != nil || !slices.Equal(want, got) {
		p.t.Fatalf("undid %q, and foretold were %q, %v", got, want, planErr)
	}
}

// end ends the process. A power cut, if it was one, takes some of what was not synced.
func (p *process) end(kept int64) {
	if err := p.journal.Close(); err != nil {
		p.t.Fatal(err)
	}
	if p.dead {
		if err := os.Truncate(p.path, min(p.size(), p.synced+kept)); err != nil && !errors.Is(err, os.ErrNotExist) {
			p.t.Fatal(err)
		}
	}
}

// checkComplete checks what every completed run amounts to, whatever happened in it.
func (p *process) checkComplete() {
	records := p.journal.Records()
	if last := records[len(records)-1]; last.Event != Finished || records[0].Event != Begin {
		p.t.Fatalf("ends with %s", last.Event)
	}
	records = standing(records)
	count := func(step, action string, events ...Event) (n int) {
		for _, r := range records {
			if slices.Contains(events, r.Event) && r.Step == step && r.Action == action {
				n++
			}
		}
		return n
	}
	at := 0
	reality := untouched()
	for _, s := range p.steps {
		ends := at
		for ends < len(records) && records[ends].Step == s.Name {
			ends++
		}
		end := StepComplete
		if s.Checkpoint {
			end = StepCheckpoint
		}
		if ends == at || records[ends-1].Event != end || count(s.Name, "", StepComplete, StepCheckpoint) != 1 {
			p.t.Fatalf("step %s has the records %v", s.Name, records[at:ends])
		}
		if s.Gate != nil && (records[at].Event != Confirmed || count(s.Name, "", Confirmed) != 1) {
			p.t.Fatalf("step %s did not begin with its gate", s.Name)
		}
		for k, a := range must(computed(context.Background(), s.Actions)) {
			key := s.Name + "/" + a.Name
			if n := count(s.Name, a.Name, Done); n != 1 {
				p.t.Fatalf("%s recorded as done %d times", key, n)
			}
			if n := p.effects[key]; n < 1 || a.Done != nil && n > 1 {
				p.t.Fatalf("%s took effect %d times", key, n)
			}
			if thing := fmt.Sprint("thing ", k); !s.ReadOnly {
				reality["kept by "+key], reality[thing] = reality[thing], key
			}
		}
		at = ends
	}
	if d := cmp.Diff(reality, p.reality); at != len(records) || d != "" {
		p.t.Fatalf("reality after the run (-want +got):\n%s", d)
	}
}
