package runner

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Rollback takes back every step that began after the checkpoint, the last
// first: each step's undo actions are performed in their order, and the step is
// then as if it had never begun. It is journaled and continued as Run is: undo
// actions have intents, and [Action.Done] settles one that was cut off. A
// rollback that has begun has to be completed before Run goes on; it may go on
// to an earlier checkpoint. After it, Run performs the steps anew.
//
// What the run is bound to is not checked: a plan that was changed must not
// keep anyone from going back. The caller sees to it that the target is the
// one that the journal tells of.
//
// The error is a *CheckpointError when the run cannot be rolled back to it,
// otherwise as Run's.
func (r *Runner) Rollback(ctx context.Context, to string) error {
	if err := checkSteps(r.Steps); err != nil {
		return err
	}
	p := r.perform()
	steps, err := after(r.Steps, p.state, to)
	if err != nil {
		return err
	}
	open := p.state.Rollback
	if open == nil || open.To != to {
		if err := p.record(Record{Event: Rollback, Step: to}); err != nil {
			return err
		}
	} else if r.Journal.inherited() {
		p.notice("continuing the rollback to " + to)
	}
	d := backward(p.state)
	for i, s := range steps {
		fail := func(err error) error { return &StepError{Step: s.Name, Err: interrupted(ctx, err)} }
		if ctx.Err() != nil {
			return fail(ctx.Err())
		}
		if err := p.pause(ctx, s, nil, nothingRuns); err != nil {
			return fail(err)
		}
		p.tell(func(o Observer) { o.StepStarted(s, i+1, len(steps)) })
		actions, err := computed(ctx, s.Undo)
		if err != nil {
			return fail(err)
		}
		if err := p.actions(ctx, s, actions, d); err != nil {
			return err
		}
		if err := p.record(Record{Event: Reverted, Step: s.Name}); err != nil {
			return fail(err)
		}
		p.tell(func(o Observer) { o.StepDone(s) })
	}
	return p.record(Record{Event: RolledBack, Step: to})
}

// Unwind computes what a rollback to the checkpoint would do now: the steps that it
// takes back, in its order, with the undo actions that are not done yet. It
// runs none of them. The errors are as Rollback's.
func Unwind(ctx context.Context, steps []Step, state State, to string) ([]Planned, error) {
	if err := checkSteps(steps); err != nil {
		return nil, err
	}
	undo, err := after(steps, state, to)
	if err != nil {
		return nil, err
	}
	before := backward(state).before
	var planned []Planned
	for _, s := range undo {
		actions, err := computed(ctx, s.Undo)
		if err != nil {
			return nil, &StepError{Step: s.Name, Err: err}
		}
		var left []Action
		for _, a := range actions {
			if was, _ := find(before, s.Name, a.Name); was.Status != Undone {
				left = append(left, a)
			}
		}
		planned = append(planned, Planned{Step: s, Actions: left})
	}
	return planned, nil
}

// after lists the steps that began after the checkpoint, the last first.
func after(steps []Step, state State, to string) ([]Step, error) {
	if reached := Checkpoints(steps, state); !slices.Contains(reached, to) {
		e := &CheckpointError{To: to, Reached: reached}
		if state.Rollback != nil {
			e.Under = state.Rollback.To
		}
		return nil, e
	}
	var out []Step
	for _, s := range slices.Backward(steps) {
		if s.Name == to {
			break
		}
		if slices.ContainsFunc(state.Steps, func(x StepState) bool { return x.Step == s.Name }) {
			out = append(out, s)
		}
	}
	return out, nil
}

// Checkpoints lists those to which the run can be rolled back, in order: those
// that it has reached, and while a rollback is under way none later than its.
func Checkpoints(steps []Step, state State) []string {
	var names []string
	for _, s := range steps {
		if s.Checkpoint && state.StepState(s.Name).Complete {
			names = append(names, s.Name)
		}
		if state.Rollback != nil && state.Rollback.To == s.Name {
			break
		}
	}
	return names
}

// CheckpointError says that the run cannot be rolled back to what was named.
type CheckpointError struct {
	To      string
	Reached []string // the checkpoints to which it can be
	Under   string   // the checkpoint of the rollback that is under way, "" when none is
}

func (e *CheckpointError) Error() string {
	why := "the run has reached no such checkpoint"
	switch {
	case e.Under != "":
		why = "a rollback to " + e.Under + " is under way, from which there is no way to a later checkpoint"
	case len(e.Reached) == 0:
		return fmt.Sprintf("roll back to %s: the run has reached no checkpoint yet; nothing was done", e.To)
	}
	return fmt.Sprintf("roll back to %s: %s; nothing was done: the run can be rolled back to %s", e.To, why, strings.Join(e.Reached, ", "))
}

// RollingBackError refuses to go on with a run that is being rolled back.
type RollingBackError struct{ To string }

func (e *RollingBackError) Error() string {
	return fmt.Sprintf("continue the run: a rollback to %s has begun and is not complete; nothing was done: complete the rollback first", e.To)
}
