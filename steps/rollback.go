package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/restore"
	"sunbeam.pt/k3s-dualstack/runner"
)

// Unwinding is what a rollback would do.
type Unwinding struct {
	To   string `json:"to"`   // the checkpoint
	Host string `json:"host"` // whose name agrees to it
	// Via is [ViaSnapshot] for the way back by the host's snapshot.
	Via     string       `json:"via,omitempty"`
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
type UnbegunError struct {
	// Snapshot are the commands that remove the host's snapshot, where one was begun; OnHost tells whether they are typed there.
	Snapshot []string
	OnHost   bool
}

func (e *UnbegunError) Error() string {
	if len(e.Snapshot) > 0 {
		return "nothing to roll back: no run of this plan has reached a checkpoint, and nothing was changed but that a snapshot of the host was begun; `migrate run` goes on with it, and what removes it, on the " + map[bool]string{true: "host", false: "laptop"}[e.OnHost] + ", is: " + strings.Join(e.Snapshot, "; ")
	}
	return "nothing to roll back: no run of this plan has reached a checkpoint, and nothing was changed on host or cluster"
}

// FactsError says that the facts of a run that has begun are not to be had.
type FactsError struct{ File string }

func (e *FactsError) Error() string {
	return fmt.Sprintf("a run has begun, and its facts are missing: %s; nothing was done: put the file back from where the work directory is kept, or from its copy on the host, %s", e.File, hostFacts)
}

func (m *Migration) haveFacts() error {
	if m.Facts == nil {
		return &FactsError{File: m.file(factsFile)}
	}
	return nil
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
	planned, err := runner.Unwind(context.Background(), m.Sequence(), state, to, nil)
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
	case last == "":
		return "", &UnbegunError{m.SnapshotLeft(), m.SnapshotOnHost()}
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
	if m.Facts == nil {
		if begun(state) && state.RolledBack != whole {
			return Unwinding{}, m.haveFacts()
		}
		return Unwinding{}, &UnbegunError{m.SnapshotLeft(), m.SnapshotOnHost()}
	}
	if to, err = m.target(state, to); err != nil {
		return Unwinding{}, err
	}
	if err := m.chooseWay(state, to); err != nil {
		return Unwinding{}, err
	}
	planned, err := runner.Unwind(ctx, m.Sequence(), state, to, m.detour())
	if err != nil {
		return Unwinding{}, err
	}
	u := Unwinding{To: to, Host: m.Plan.Server().Name, Actions: []UndoAction{}, Lost: []string{}}
	for _, p := range planned {
		for _, a := range p.Actions {
			u.Actions = append(u.Actions, UndoAction{Step: p.Name, Action: a, Measured: state.Measured(a.Like)})
		}
	}
	if m.Via == ViaSnapshot {
		u.Via = ViaSnapshot
		taken, err := m.snapshotTaken()
		if err != nil {
			return Unwinding{}, err
		}
		u.Lost = append(u.Lost, fmt.Sprintf("Everything that was written to the host's disks since the snapshot of %s: by workloads, by people and by the system, whatever it has to do with K3s.",
			taken.Local().Format(time.DateTime)))
		if m.Plan.Spec.Snapshot.Method.OnItsDisks() {
			u.Lost = append(u.Lost, "Where /boot is a file system of its own it stays as it is: a kernel that was installed since would start without its modules. `ls -l /boot` tells.")
		}
	} else if start, ok := state.ActionState("start", "start"); ok {
		u.Lost = append(u.Lost, fmt.Sprintf("Objects that were created or changed in the dual-stack cluster since %s: its datastore is kept on the host, in %s, and nothing of it is carried over.",
			start.Time.Local().Format(time.DateTime), replacedDir))
	}
	return u, nil
}

// Written says for each volume how much was written since it was brought back, or
// since it was backed up. A rollback that needs a backup set which is not there is
// an error: it would stop the cluster that runs, and have none to bring back.
func (m *Migration) Written(ctx context.Context, u *Unwinding) error {
	if u.Via == ViaSnapshot || !slices.ContainsFunc(u.Actions, func(a UndoAction) bool { return a.Step == "uninstall" && a.Name != restored }) {
		return nil
	}
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	state, err := m.State()
	if err != nil {
		return err
	}
	if deleted, err := m.deleted(ctx, h, state); err != nil || !deleted {
		return err
	}
	if err := m.haveSet(); err != nil {
		return err
	}
	set, err := m.Set()
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
// rollback is complete then. Of a rollback that is complete already the comparison is
// made once more; it is a *RolledBackError where there is nothing to compare.
func (m *Migration) Rollback(ctx context.Context, to string, observer runner.Observer, confirm func(context.Context, Unwinding) (bool, error)) (err error) {
	if to != "" && !slices.Contains(Names(), to) {
		return &UnknownStepError{Name: to}
	}
	defer m.tellFullDisk(&err)
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
	over := before.RolledBack != "" && (to == before.RolledBack || to == "" && before.RolledBack == whole)
	if over && !(before.RolledBack == whole && takenBack(journal.Records()) && m.Facts != nil) {
		return &RolledBackError{To: before.RolledBack}
	}
	// Before all else: also a rollback for which there is nothing to do leaves no host that is away. By a plan that has another
	// snapshot, another server might be meant.
	if m.sameSnapshot(before) == nil {
		if _, err := m.reach(ctx, before); err != nil {
			return err
		}
	}
	u, err := m.Unwind(ctx, to)
	if err != nil {
		return err
	}
	ctx, release, err := m.holdHost(ctx, journal)
	if err != nil {
		return err
	}
	defer func() { err = release(err) }()
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	defer m.watch(ctx, h)()
	if err := m.sameMachine(ctx); err != nil {
		return err
	}
	if m.Via != ViaSnapshot { // which needs no set
		if err := m.sameSet(ctx); err != nil {
			return err
		}
	}
	if err := m.settleHooks(ctx, before); err != nil {
		return err
	}
	if err := m.settleSnapshot(ctx, before); err != nil {
		return err
	}
	if over { // but maybe not compared
		m.Via = before.RolledBackVia
		return m.compareWithFacts(ctx)
	}
	switch turned := Returning(before); {
	case m.Via == ViaSnapshot && !turned:
		err = m.mayReturn(ctx)
	case m.Via != ViaSnapshot && turned:
		err = m.mayTurn(ctx)
	}
	if err != nil {
		return err
	}
	if m.Via != ViaSnapshot {
		var stop func(*error)
		ctx, stop = m.watchSnapshot(ctx)
		defer func() { stop(&err) }()
	}
	if before.Rollback == nil || before.Rollback.To != u.To || before.Rollback.Via != u.Via {
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
	r := runner.Runner{Steps: m.Sequence(), Journal: journal, Observer: observer, Detour: m.detour()}
	if err := r.Rollback(ctx, u.To); err != nil {
		return err
	}
	if u.To != whole || !takenBack(journal.Records()) {
		return nil
	}
	return m.compareWithFacts(ctx)
}

// takenBack tells whether the last rollback had anything to take back.
func takenBack(records []runner.Record) bool {
	for _, r := range slices.Backward(records) {
		switch r.Event {
		case runner.Undone:
			return true
		case runner.Rollback:
			return false
		}
	}
	return false
}

// RolledBackError says that a rollback is complete already.
type RolledBackError struct{ To string }

func (e *RolledBackError) Error() string {
	return fmt.Sprintf("the run was rolled back to %s already, and nothing was done since", e.To)
}

// Fallback is what a failure in a step means.
type Fallback struct {
	To      string   `json:"to,omitempty"`   // the checkpoint to which a rollback returns; "" when there is nothing to take back
	What    string   `json:"what,omitempty"` // what that amounts to, in a sentence
	Actions []string `json:"actions,omitempty"`
	Bytes   int64    `json:"bytes,omitempty"` // about what it moves
	// Duration is about how long it takes.
	Duration time.Duration `json:"durationNanos,omitempty"`
}

// takingBack is what taking back a step amounts to, where it is more than a setting;
// a later step's includes those of the steps before it.
var takingBack = map[string]string{
	"quiesce":   "K3s is started again as it was",
	"uninstall": "K3s and its volumes are put back from the backup set as they were, and it is started",
}

// Fallbacks says for every step what a rollback takes once that step has begun.
func (m *Migration) Fallbacks(ctx context.Context) (map[string]Fallback, error) {
	out := map[string]Fallback{}
	measured, err := m.State()
	if err != nil {
		return nil, err
	}
	rates, _ := m.rates()
	var state runner.State
	seq := m.Sequence()
	for i, s := range seq {
		state.Steps = append(state.Steps, runner.StepState{Step: s.Name})
		var f Fallback
		to, err := m.target(state, "")
		if err == nil {
			planned, err := runner.Unwind(ctx, seq, state, to, nil)
			if err != nil {
				return nil, err
			}
			for _, p := range planned { // the last step first
				if f.What == "" {
					f.What = takingBack[p.Name]
				}
				for _, a := range p.Actions {
					f.To = to
					f.Actions = append(f.Actions, a.Summary)
					f.Bytes += a.Bytes
					f.Duration += m.takes(rates, measured, p.Name, a)
				}
			}
		}
		out[s.Name] = f
		state.Steps[i].Complete = true
	}
	return out, nil
}
