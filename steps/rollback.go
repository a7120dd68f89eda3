package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/restore"
	"sunbeam.pt/k3s-dualstack/runner"
)

// Unwinding is what a rollback would do.
type Unwinding struct {
	To      string       `json:"to"`      // the checkpoint
	Host    string       `json:"host"`    // whose name agrees to it
	Actions []UndoAction `json:"actions"` // in order; none when nothing was changed since the checkpoint
	// Lost says in sentences what was done since the checkpoint and does not stay.
	Lost []string `json:"lost"`
}

// UndoAction is an action that takes back something of a step.
type UndoAction struct {
	Step string `json:"step"`
	runner.Action
	// Measured is how long the run took for about the same; 0 when it was not measured.
	Measured time.Duration `json:"measuredNanos,omitempty"`
}

// WholeError says that no rollback is needed for a whole cluster.
type WholeError struct{ Checkpoint string }

func (e *WholeError) Error() string {
	return fmt.Sprintf("the migration has reached %s: the cluster is whole and dual-stack, and a rollback without --to returns to the last state in which it was whole; --to %s returns to the IPv4-only cluster", e.Checkpoint, whole)
}

// UnbegunError says that there is nothing to roll back.
type UnbegunError struct{}

func (*UnbegunError) Error() string {
	return "nothing to roll back: no run of this plan has reached a checkpoint, and nothing was changed on host or cluster"
}

// Checkpoints lists those to which the run can be rolled back now.
func (m *Migration) Checkpoints() ([]string, error) {
	state, err := m.State()
	if err != nil {
		return nil, err
	}
	return runner.Checkpoints(m.Sequence(), state), nil
}

// WayBack is the checkpoint to which a rollback without a name returns; "" when
// there is nothing to take back.
func (m *Migration) WayBack() string {
	state, err := m.State()
	if err != nil || m.Facts == nil {
		return ""
	}
	to, err := m.target(state, "")
	if err != nil {
		return ""
	}
	planned, err := runner.Unwind(context.Background(), m.Sequence(), state, to)
	if err != nil || !slices.ContainsFunc(planned, func(p runner.Planned) bool { return len(p.Actions) > 0 }) {
		return ""
	}
	return to
}

// target chooses the checkpoint: the one named, else that of the rollback under
// way, else the last at which the cluster was whole.
func (m *Migration) target(state runner.State, to string) (string, error) {
	reached := runner.Checkpoints(m.Sequence(), state)
	last := ""
	if len(reached) > 0 {
		last = reached[len(reached)-1]
	}
	switch {
	case to != "":
		return to, nil
	case state.Rollback != nil:
		return state.Rollback.To, nil
	case last == "" || m.Facts == nil:
		return "", &UnbegunError{}
	case last == "verify":
		return "", &WholeError{Checkpoint: last}
	}
	return whole, nil
}

// Unwind computes what a rollback to the checkpoint ("" chooses) would do now. The
// host is not contacted; see Written for what workloads wrote.
func (m *Migration) Unwind(ctx context.Context, to string) (Unwinding, error) {
	state, err := m.State()
	if err != nil {
		return Unwinding{}, err
	}
	if to, err = m.target(state, to); err != nil {
		return Unwinding{}, err
	}
	if m.Facts == nil {
		return Unwinding{}, &UnbegunError{}
	}
	planned, err := runner.Unwind(ctx, m.Sequence(), state, to)
	if err != nil {
		return Unwinding{}, err
	}
	u := Unwinding{To: to, Host: m.Plan.Server().Name}
	for _, p := range planned {
		for _, a := range p.Actions {
			u.Actions = append(u.Actions, UndoAction{Step: p.Name, Action: a, Measured: state.Measured(a.Like)})
		}
	}
	if start, ok := state.ActionState("start", "start"); ok {
		u.Lost = append(u.Lost, fmt.Sprintf("Objects that were created or changed in the dual-stack cluster since %s: its datastore is kept on the host, in %s, and nothing of it is carried over.",
			start.Time.Local().Format(time.DateTime), replacedDir))
	}
	return u, nil
}

// Written says for each volume how much was written since it was brought back, or
// since it was backed up.
func (m *Migration) Written(ctx context.Context, u *Unwinding) error {
	if !slices.ContainsFunc(u.Actions, func(a UndoAction) bool { return strings.HasPrefix(a.Name, "volume back ") }) {
		return nil
	}
	h, set, err := m.hostAndSet(ctx)
	if err != nil {
		return err
	}
	for _, v := range m.Facts.Cluster.Volumes {
		if !v.Copied() {
			continue
		}
		n, err := restore.Written(ctx, h, v.Ref(), set)
		if err != nil {
			return err
		}
		what := "they are kept beside it, and the backup's contents take their place (--volumes present leaves them in place)"
		if m.KeepPresent {
			what = "they stay"
		}
		if n > 0 {
			u.Lost = append(u.Lost, fmt.Sprintf("%d entries of %s were written since: %s.", n, v.Ref().Label(), what))
		}
	}
	return nil
}

// Rollback takes back what the run did after the checkpoint ("" chooses the last
// at which the cluster was whole), or continues to. It holds both locks meanwhile. confirm gets
// what it is about to do, once the host's lock is held; a rollback that was agreed to and cut off is
// continued without being asked again.
//
// The result is compared with the facts and the backup set where the old cluster runs
// again: an *UnverifiedError says that it falls short, with what in Unlike; the
// rollback is complete then.
func (m *Migration) Rollback(ctx context.Context, to string, observer runner.Observer, confirm func(context.Context, Unwinding) (bool, error)) (err error) {
	if to != "" && !slices.Contains(Names(), to) {
		return &UnknownStepError{Name: to}
	}
	lock, err := m.lockLaptop()
	if err != nil {
		return err
	}
	defer lock.Release()
	journal, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return err
	}
	defer journal.Close()
	before := journal.State()
	if before.RolledBack != "" && (to == "" || to == before.RolledBack) {
		return &RolledBackError{To: before.RolledBack}
	}
	u, err := m.Unwind(ctx, to)
	if err != nil {
		return err
	}
	release, err := m.lockHost(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if err := m.sameMachine(ctx); err != nil {
		return err
	}
	if before.Rollback == nil || before.Rollback.To != u.To {
		if err := m.Written(ctx, &u); err != nil {
			return err
		}
		yes, err := confirm(ctx, u)
		if err != nil {
			return err
		}
		if !yes {
			return runner.ErrDeclined
		}
	}
	journal.Mirror = func(line []byte) error { return m.mirror(ctx, line) }
	r := runner.Runner{Steps: m.Sequence(), Journal: journal, Observer: observer}
	if err := r.Rollback(ctx, u.To); err != nil {
		return err
	}
	if u.To != whole || len(u.Actions) == 0 {
		return nil
	}
	return m.compareWithFacts(ctx)
}

// RolledBackError says that a rollback is complete already.
type RolledBackError struct{ To string }

func (e *RolledBackError) Error() string {
	return fmt.Sprintf("the run was rolled back to %s already, and nothing was done since", e.To)
}

// Fallback is what a failure in a step means.
type Fallback struct {
	To      string   `json:"to,omitempty"` // the checkpoint to which a rollback returns; "" when there is nothing to take back
	Actions []string `json:"actions,omitempty"`
	Bytes   int64    `json:"bytes,omitempty"` // about what it moves
}

// Fallbacks says for every step what a rollback takes once that step has begun.
func (m *Migration) Fallbacks(ctx context.Context) (map[string]Fallback, error) {
	out := map[string]Fallback{}
	var state runner.State
	seq := m.Sequence()
	for i, s := range seq {
		state.Steps = append(state.Steps, runner.StepState{Step: s.Name})
		var f Fallback
		to, err := m.target(state, "")
		if err == nil {
			planned, err := runner.Unwind(ctx, seq, state, to)
			if err != nil {
				return nil, err
			}
			for _, p := range planned {
				for _, a := range p.Actions {
					f.To = to
					f.Actions = append(f.Actions, a.Summary)
					f.Bytes += a.Bytes
				}
			}
		}
		out[s.Name] = f
		state.Steps[i].Complete = true
	}
	return out, nil
}
