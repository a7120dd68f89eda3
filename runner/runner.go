package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Observer is told what a run or a rollback does, as it happens: of a rollback,
// the actions are undo actions. Calls never overlap.
type Observer interface {
	// StepStarted counts from 1. A step that was complete before, or reverted
	// before, is not started.
	StepStarted(s Step, n, of int)
	// ActionStarted is followed by ActionDone or ActionFailed.
	ActionStarted(s Step, a Action)
	ActionDone(s Step, a Action, took time.Duration)
	// ActionSkipped is told instead of ActionStarted: the action was done
	// before, or was found done by asking reality.
	ActionSkipped(s Step, a Action, why string)
	// ActionFailed comes without ActionStarted when it cannot be found out
	// whether an earlier attempt completed.
	ActionFailed(s Step, a Action, err error)
	StepDone(s Step)
	Notice(text string)
}

// Pauser lets a person in between the steps and actions of a run or a rollback.
type Pauser interface {
	// Wants tells whether to pause before the step, or before its action a, which is
	// nil before the step itself. It is asked right before one begins that is not
	// done yet.
	Wants(s Step, a *Action) bool
	// Pause is called when it does, with no action under way, and returns when it is
	// to go on. An error ends the run there: nothing of the step or action is recorded.
	Pause(ctx context.Context, s Step, a *Action) error
}

// Runner performs the steps of a run, or what is left of them.
type Runner struct {
	Steps   []Step
	Bind    Bind
	Journal *Journal

	// Observer may be nil.
	Observer Observer

	// Pauser may be nil.
	Pauser Pauser

	// Detour is the way back that a rollback takes instead of the steps' own undo
	// actions; nil for these.
	Detour *Detour

	// Confirm asks a person and is false when they decline. A nil Confirm
	// declines every gate.
	Confirm func(ctx context.Context, g Gate) (bool, error)
}

// Run performs every step that the journal does not know as complete, in
// order, and stops cleanly after the step named until; "" means all. It holds
// no lock: its caller does.
//
// The error is a *StepError when a step fails (several, joined, when actions
// that ran in parallel failed), a *ChangedError when the journal's run is
// bound to something else, a *RollingBackError when a rollback is under way,
// ErrDeclined at a gate that was not agreed to; it satisfies errors.Is with the
// context's error when that ended the run. After any of them Run can be called
// again and continues.
func (r *Runner) Run(ctx context.Context, until string) error {
	if err := checkSteps(r.Steps); err != nil {
		return err
	}
	steps := r.Steps
	if until != "" {
		i := slices.IndexFunc(steps, func(s Step) bool { return s.Name == until })
		if i < 0 {
			return fmt.Errorf("there is no step %q to stop after: the steps are %s", until, names(steps))
		}
		steps = steps[:i+1]
	}
	p := r.perform()
	if err := p.begin(); err != nil {
		return err
	}
	if p.state.Finished {
		p.notice("this run finished at " + p.state.Last.Format(time.RFC3339))
		return nil
	}
	if p.state.Run != "" && r.Journal.inherited() {
		p.notice("continuing the run that began at " + p.state.Began.Format(time.RFC3339))
	}
	for i, s := range steps {
		if p.state.StepState(s.Name).Complete {
			continue
		}
		if err := p.step(ctx, s, i+1); err != nil {
			return err
		}
	}
	if len(steps) < len(r.Steps) {
		return nil
	}
	return p.record(Record{Event: Finished})
}

func names(steps []Step) string {
	var n []string
	for _, s := range steps {
		n = append(n, s.Name)
	}
	return strings.Join(n, ", ")
}

// performance is one call of Run or Rollback.
type performance struct {
	*Runner
	state State // as it was when the call began

	telling sync.Mutex
}

func (r *Runner) perform() *performance {
	p := &performance{Runner: r}
	p.Journal.catchUp()
	p.passNotices()
	p.state = p.Journal.State()
	return p
}

func (p *performance) tell(f func(Observer)) {
	if p.Observer == nil {
		return
	}
	p.telling.Lock()
	defer p.telling.Unlock()
	f(p.Observer)
}

func (p *performance) notice(text string) {
	p.tell(func(o Observer) { o.Notice(text) })
}

// record appends to the journal and passes on what the journal has to say.
func (p *performance) record(r Record) error {
	err := p.Journal.Append(r)
	p.passNotices()
	return err
}

func (p *performance) passNotices() {
	for _, n := range p.Journal.Notices() {
		p.notice(n)
	}
}

// begin binds a new run, or checks that the journal's run is this one and goes on.
func (p *performance) begin() error {
	// First what is under way: whoever changed the plan meanwhile must not be
	// sent to begin another run.
	if open := p.state.Rollback; open != nil {
		return &RollingBackError{To: open.To}
	}
	if p.state.Run != "" {
		return p.Bind.check(p.state)
	}
	data, err := json.Marshal(p.Bind)
	if err != nil {
		return fmt.Errorf("record what the run is bound to: %w", err)
	}
	return p.record(Record{Event: Begin, Data: data})
}

// check compares what the run began with to what it is to be continued with.
// Extra values that were not known at its beginning are not compared.
func (b Bind) check(began State) error {
	e := &ChangedError{Run: began.Run, Began: began.Began}
	if began.Bind.Plan != b.Plan {
		e.Changes = append(e.Changes, Change{"plan", began.Bind.Plan, b.Plan})
	}
	for _, k := range slices.Sorted(maps.Keys(began.Bind.Extra)) {
		if was, is := began.Bind.Extra[k], b.Extra[k]; was != is {
			e.Changes = append(e.Changes, Change{k, was, is})
		}
	}
	if len(e.Changes) == 0 {
		return nil
	}
	return e
}

// Change is one thing that a run is bound to and that is now different.
type Change struct{ Name, Was, Is string }

// ChangedError refuses to continue a run with something else than it began with.
type ChangedError struct {
	Run     string
	Began   time.Time
	Changes []Change
}

func (e *ChangedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "continue the run that began at %s: ", e.Began.Format(time.RFC3339))
	for i, c := range e.Changes {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "the %s has changed since (it was %s and is %s)", c.Name, orNone(c.Was), orNone(c.Is))
	}
	b.WriteString("; nothing was done: put back what it was to continue this run, or take another work directory to begin a new one")
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// step performs one step that is not complete.
func (p *performance) step(ctx context.Context, s Step, n int) error {
	fail := func(err error) error { return &StepError{Step: s.Name, Err: interrupted(ctx, err)} }
	if ctx.Err() != nil {
		return fail(ctx.Err())
	}
	if err := p.pause(ctx, s, nil, nothingRuns); err != nil {
		return fail(err)
	}
	p.tell(func(o Observer) { o.StepStarted(s, n, len(p.Steps)) })
	if s.Gate != nil && !p.state.StepState(s.Name).Confirmed {
		if err := p.confirm(ctx, s); err != nil {
			return fail(err)
		}
	}
	actions, err := computed(ctx, s.Actions)
	if err != nil {
		return fail(err)
	}
	if err := p.actions(ctx, s, actions, forward(p.state)); err != nil {
		return err
	}
	end := StepComplete
	if s.Checkpoint {
		end = StepCheckpoint
	}
	if err := p.record(Record{Event: end, Step: s.Name}); err != nil {
		return fail(err)
	}
	p.tell(func(o Observer) { o.StepDone(s) })
	return nil
}

func (p *performance) confirm(ctx context.Context, s Step) error {
	if p.Confirm == nil {
		return ErrDeclined
	}
	yes, err := p.Confirm(ctx, *s.Gate)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err() // an answer that raced with an interruption is not one
	}
	if !yes {
		return ErrDeclined
	}
	return p.record(Record{Event: Confirmed, Step: s.Name})
}

// direction is what performing an action and undoing one differ in: the events
// and what was recorded before.
type direction struct {
	intent, done, failed Event
	before               []ActionState
}

func forward(s State) direction {
	return direction{Intent, Done, Failed, s.Actions}
}

func backward(s State, detour *Detour) direction {
	d := direction{intent: Undoing, done: Undone, failed: UndoFailed}
	// What one way has done the other may have undone: of another's nothing counts.
	if s.Rollback != nil && s.Rollback.Via == detour.name() {
		d.before = s.Rollback.Actions
	}
	return d
}

// pause lets a person in, unless what is under way ends the run first: settled
// waits for that and tells.
func (p *performance) pause(ctx context.Context, s Step, a *Action, settled func() bool) error {
	if p.Pauser == nil || !p.Pauser.Wants(s, a) || !settled() {
		return nil
	}
	return p.Pauser.Pause(ctx, s, a)
}

// nothingRuns is settled where no action is under way.
func nothingRuns() bool { return true }

// actions performs a step's actions, as many at once as it says.
func (p *performance) actions(ctx context.Context, s Step, actions []Action, d direction) error {
	var (
		group  sync.WaitGroup
		mu     sync.Mutex
		failed []error
	)
	fail := func(a Action, err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, &StepError{Step: s.Name, Action: a.Name, Err: interrupted(ctx, err)})
	}
	stopped := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(failed) > 0 || ctx.Err() != nil
	}
	free := make(chan struct{}, max(1, s.Parallel))
	for _, a := range actions {
		if a.Alone {
			group.Wait()
		}
		free <- struct{}{}
		if stopped() {
			break
		}
		if before, _ := find(d.before, s.Name, a.Name); before.Status != d.done {
			err := p.pause(ctx, s, &a, func() bool { group.Wait(); return !stopped() })
			if err != nil {
				fail(a, err)
			}
			if stopped() {
				break
			}
		}
		group.Go(func() {
			defer func() { <-free }()
			if err := p.action(ctx, s, a, d); err != nil {
				fail(a, err)
			}
		})
		if a.Alone {
			group.Wait()
		}
	}
	group.Wait()
	switch {
	case len(failed) == 1:
		return failed[0]
	case len(failed) == 0 && ctx.Err() != nil:
		return &StepError{Step: s.Name, Err: ctx.Err()}
	}
	return errors.Join(failed...)
}

// action performs one action, or finds that it is done.
func (p *performance) action(ctx context.Context, s Step, a Action, d direction) (err error) {
	before, begun := find(d.before, s.Name, a.Name)
	if before.Status == d.done {
		p.tell(func(o Observer) { o.ActionSkipped(s, a, "done before") })
		return nil
	}
	defer func() {
		if err != nil {
			p.tell(func(o Observer) { o.ActionFailed(s, a, interrupted(ctx, err)) })
		}
	}()
	if begun && a.Done != nil {
		done, err := a.Done(ctx)
		if err != nil {
			return fmt.Errorf("find out whether an earlier attempt completed: %w", err)
		}
		if done {
			if err := p.record(Record{Event: d.done, Step: s.Name, Action: a.Name, Found: true}); err != nil {
				return err
			}
			p.tell(func(o Observer) { o.ActionSkipped(s, a, "found done") })
			return nil
		}
	}
	if err := p.record(Record{Event: d.intent, Step: s.Name, Action: a.Name}); err != nil {
		return err
	}
	// The mirror may have found, by that very record, that the run is over here.
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.tell(func(o Observer) { o.ActionStarted(s, a) })
	started := time.Now()
	data, err := a.Run(ctx)
	took := time.Since(started)
	if err != nil {
		if ctx.Err() != nil {
			return err // cut off, not failed: the intent stays open
		}
		return errors.Join(err, p.record(Record{Event: d.failed, Step: s.Name, Action: a.Name, Took: took, Error: discreetly(err)}))
	}
	done := Record{Event: d.done, Step: s.Name, Action: a.Name, Took: took}
	if data != nil {
		if done.Data, err = json.Marshal(data); err != nil {
			return fmt.Errorf("record its data: %w", err)
		}
	}
	if err := p.record(done); err != nil {
		return err
	}
	p.tell(func(o Observer) { o.ActionDone(s, a, took) })
	return nil
}

// interrupted makes sure that an error which a cancelled context caused says
// so to errors.Is, whatever the code that was cut off returned.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() == nil || errors.Is(err, ctx.Err()) {
		return err
	}
	return fmt.Errorf("%w: %w", ctx.Err(), err)
}
