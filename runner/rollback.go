package runner

import (
	"context"
	"encoding/json"
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
	steps, at, err := wayBack(r.Steps, p.state, to, r.Detour)
	if err != nil {
		return err
	}
	open := p.state.Rollback
	if open == nil || open.To != to || open.Via != r.Detour.name() {
		begun := Record{Event: Rollback, Step: to}
		if at != "" {
			if begun.Data, err = json.Marshal(detoured{Via: r.Detour.Name, At: at}); err != nil {
				return fmt.Errorf("record the way back: %w", err)
			}
		}
		if err := p.record(begun); err != nil {
			return err
		}
	} else if r.Journal.inherited() {
		p.notice("continuing the rollback to " + to)
	}
	d := backward(p.state, r.Detour)
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
// detour is nil for the steps' own undo actions.
func Unwind(ctx context.Context, steps []Step, state State, to string, detour *Detour) ([]Planned, error) {
	if err := checkSteps(steps); err != nil {
		return nil, err
	}
	undo, _, err := wayBack(steps, state, to, detour)
	if err != nil {
		return nil, err
	}
	before := backward(state, detour).before
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

// Detour is another way back: its actions take back everything at once, instead of
// the steps' own undo actions. They are performed first, as the undo actions of
// the step that is taken back first, so that until they are through no step is taken
// for reverted and the steps' own undo can still be turned to.
type Detour struct {
	Name string // stable over versions: journals hold it
	Undo func(ctx context.Context) ([]Action, error)
}

func (d *Detour) name() string {
	if d == nil {
		return ""
	}
	return d.Name
}

// detoured are the data of a rollback that goes by a detour.
type detoured struct {
	Via string `json:"via"`
	At  string `json:"at"` // the step whose undo actions the detour's are
}

// DetourError refuses to turn from a way back whose actions are through.
type DetourError struct{ Via string }

func (e *DetourError) Error() string {
	return fmt.Sprintf("a rollback by way of the %s is under way and has brought everything back: it can only be completed; nothing was done", e.Via)
}

// wayBack lists the steps to take back, the last first, and the step at which a detour is
// made.
func wayBack(steps []Step, state State, to string, detour *Detour) (out []Step, at string, err error) {
	if out, err = after(steps, state, to); err != nil {
		return nil, "", err
	}
	open := state.Rollback
	if open != nil && open.Via != "" && open.Via != detour.name() && !slices.ContainsFunc(out, func(s Step) bool { return s.Name == open.At }) {
		return nil, "", &DetourError{Via: open.Via}
	}
	if detour == nil || len(out) == 0 {
		return out, "", nil
	}
	at = out[0].Name
	if open != nil && open.Via == detour.Name && open.To == to {
		at = open.At
	}
	for i := range out {
		out[i].Undo = nil
		if out[i].Name == at {
			// One after the other: each of its actions builds on the one before.
			out[i].Undo, out[i].Parallel = detour.Undo, 0
			out[i].Title = "by way of the " + detour.Name
		}
	}
	return out, at, nil
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
