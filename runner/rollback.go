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
// to an earlier checkpoint.
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
	p := &performance{Runner: r}
	p.Journal.catchUp()
	p.passNotices()
	p.state = p.Journal.State()
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
	d := direction{intent: Undoing, done: Undone, failed: UndoFailed}
	if open != nil {
		d.before = open.Actions
	}
	for i, s := range steps {
		fail := func(err error) error { return &StepError{Step: s.Name, Err: interrupted(ctx, err)} }
		if ctx.Err() != nil {
			return fail(ctx.Err())
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
	var planned []Planned
	for _, s := range undo {
		actions, err := computed(ctx, s.Undo)
		if err != nil {
			return nil, &StepError{Step: s.Name, Err: err}
		}
		if state.Rollback != nil {
			actions = slices.DeleteFunc(actions, func(a Action) bool {
				before, _ := find(state.Rollback.Actions, s.Name, a.Name)
				return before.Status == Undone
			})
		}
		planned = append(planned, Planned{Step: s, Actions: actions})
	}
	return planned, nil
}

// after lists the steps that began after the checkpoint, the last first.
func after(steps []Step, state State, to string) ([]Step, error) {
	reached := Checkpoints(steps, state)
	at := slices.IndexFunc(steps, func(s Step) bool { return s.Name == to })
	if !slices.Contains(reached, to) {
		return nil, &CheckpointError{To: to, Reached: reached}
	}
	if open := state.Rollback; open != nil {
		if under := slices.IndexFunc(steps, func(s Step) bool { return s.Name == open.To }); at > under {
			return nil, &CheckpointError{To: to, Reached: slices.DeleteFunc(reached, func(name string) bool {
				return slices.IndexFunc(steps, func(s Step) bool { return s.Name == name }) > under
			}), Under: open.To}
		}
	}
	var out []Step
	for _, s := range steps[at+1:] {
		if slices.ContainsFunc(state.Steps, func(x StepState) bool { return x.Step == s.Name }) {
			out = append(out, s)
		}
	}
	slices.Reverse(out)
	return out, nil
}

// Checkpoints lists those that the run has reached, in order.
func Checkpoints(steps []Step, state State) []string {
	var names []string
	for _, s := range steps {
		if s.Checkpoint && state.StepState(s.Name).Complete {
			names = append(names, s.Name)
		}
	}
	return names
}

// CheckpointError says that the run cannot be rolled back to what was named.
type CheckpointError struct {
	To      string
	Reached []string // the checkpoints to which it can be
	Under   string   // the checkpoint of the rollback that is under way, if one is
}

func (e *CheckpointError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "roll back to %s: ", orNone(e.To))
	if e.Under != "" {
		fmt.Fprintf(&b, "a rollback to %s is under way, which is earlier; ", e.Under)
	} else {
		b.WriteString("the run has not reached such a checkpoint; ")
	}
	if len(e.Reached) == 0 {
		b.WriteString("it has reached none yet")
	} else {
		b.WriteString("it can be rolled back to " + strings.Join(e.Reached, ", "))
	}
	return b.String()
}

// RollingBackError refuses to go on with a run that is being rolled back.
type RollingBackError struct{ To string }

func (e *RollingBackError) Error() string {
	return fmt.Sprintf("a rollback of this run to %s has begun and is not complete: complete it first", e.To)
}
