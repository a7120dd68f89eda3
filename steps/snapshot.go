package steps

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/snapshot"
)

// ViaSnapshot names the way back by the host's snapshot, ViaBackup that by the steps' own undo
// actions.
const (
	ViaSnapshot = "snapshot"
	ViaBackup   = "backup"
)

// snapshotStep is the step in which the host's snapshot is taken.
const snapshotStep = "snapshot"

// takesSnapshot tells whether the plan has a snapshot taken.
func (m *Migration) takesSnapshot() bool {
	s := m.Plan.Spec.Snapshot
	return s != nil && s.Method != plans.SnapshotNone
}

// snapshotMethod is the plan's, nil where it takes none.
func (m *Migration) snapshotMethod() snapshot.Method {
	if !m.takesSnapshot() {
		return nil
	}
	return snapshot.New(snapshot.Ask{
		Host: m.Host, Job: m.ownJob, Here: m.snapshotHere,
		Plan: m.Plan.Spec.Snapshot, Name: m.Plan.Metadata.Name, Storage: m.Facts.Host.Storage,
		Proof:        path.Join(m.Facts.K3s.ServerDir(), "token"),
		DestroyNewer: m.DestroyNewer, Progress: m.Progress,
	})
}

// snapshotTimeout bounds each of the plan's own commands on the laptop.
const snapshotTimeout = 2 * time.Hour

// snapshotHere runs one of the plan's own commands on the laptop.
func (m *Migration) snapshotHere(ctx context.Context, command []string) error {
	return m.runHere(ctx, command, snapshotTimeout, "the limit for commands of spec.snapshot", m.Output)
}

// snapshotBind is what a run is bound to of the plan's snapshot. Own commands may be mended meanwhile, and may
// hold what the journal must not.
func snapshotBind(s *plans.Snapshot) any {
	if s == nil {
		return nil
	}
	return struct {
		Method   plans.SnapshotMethod  `json:"method"`
		Size     string                `json:"size,omitempty"`
		Scaleway *plans.ScalewayServer `json:"scaleway,omitempty"`
	}{s.Method, s.Size, s.Scaleway}
}

// snapshotted are an operation list's actions.
func (m *Migration) snapshotted(list []snapshot.Operation) []runner.Action {
	var out []runner.Action
	for _, o := range list {
		target := m.onHost()
		if o.Place == snapshot.OnLaptop {
			target = m.onLaptop()
		}
		out = append(out, runner.Action{
			Name: o.Name, Target: target, Summary: o.Summary, Command: o.Command, Done: o.Done,
			Run: func(ctx context.Context) (any, error) { return nil, o.Run(ctx) },
		})
	}
	return out
}

// noSnapshot is the action whose data say why none is taken.
const noSnapshot = "none"

// takeSnapshot takes the host's snapshot, or records why there is none.
func (m *Migration) takeSnapshot(context.Context) ([]runner.Action, error) {
	method := m.snapshotMethod()
	if method == nil {
		reason := "the plan names none (spec.snapshot)"
		if s := m.Plan.Spec.Snapshot; s != nil {
			reason = s.Reason
		}
		return []runner.Action{{
			Name: noSnapshot, Target: m.onLaptop(),
			Summary: "Take no snapshot of the host: " + reason,
			Run: func(context.Context) (any, error) {
				return map[string]string{"reason": reason}, nil
			},
		}}, nil
	}
	return m.snapshotted(method.Take()), nil
}

// removeSnapshot is what ends a snapshot when the cluster is verified.
func (m *Migration) removeSnapshot() []runner.Action {
	if method := m.snapshotMethod(); method != nil && !m.Plan.Spec.Snapshot.Keep {
		return m.snapshotted(method.Remove())
	}
	return nil
}

// detour is the way back by the snapshot; nil for the steps' own.
func (m *Migration) detour() *runner.Detour {
	if m.Via != ViaSnapshot {
		return nil
	}
	return &runner.Detour{Name: ViaSnapshot, Undo: func(ctx context.Context) ([]runner.Action, error) {
		actions := m.snapshotted(m.snapshotMethod().Return())
		again, err := m.undoQuiesce(ctx)
		return append(actions, again...), err
	}}
}

// NoSnapshotError says why a rollback cannot go by way of a snapshot.
type NoSnapshotError struct{ Why string }

func (e *NoSnapshotError) Error() string {
	return fmt.Sprintf("roll back by way of the snapshot: %s; nothing was done: without --via snapshot the rollback goes by way of the backup set", e.Why)
}

// chooseWay settles which way a rollback goes: that of the rollback under way unless
// another was asked for, else by the steps' own undo actions.
func (m *Migration) chooseWay(state runner.State, to string) error {
	if m.Via == "" && state.Rollback != nil {
		m.Via = state.Rollback.Via
	}
	if m.Via != ViaSnapshot {
		return nil
	}
	switch taken := m.snapshotTaken(state); {
	case !m.takesSnapshot():
		return &NoSnapshotError{Why: "the plan has none taken (spec.snapshot)"}
	case to != whole:
		return &NoSnapshotError{Why: fmt.Sprintf("it was taken before %s, so that it cannot lead to %s", whole, to)}
	case taken.IsZero():
		return &NoSnapshotError{Why: "this run has taken none"}
	case state.Finished && !m.Plan.Spec.Snapshot.Keep:
		return &NoSnapshotError{Why: "it was removed when the migration was complete (spec.snapshot.keep keeps it)"}
	}
	if outside := m.snapshotMethod().Outside(); len(outside) > 0 {
		return &NoSnapshotError{Why: fmt.Sprintf("it does not hold %s", strings.Join(outside, ", "))}
	}
	return nil
}

// snapshotTaken is when the snapshot was complete; zero when it was not.
func (m *Migration) snapshotTaken(state runner.State) time.Time {
	if !state.StepState(snapshotStep).Complete {
		return time.Time{}
	}
	var at time.Time
	for _, a := range state.Actions {
		if a.Step == snapshotStep && (at.IsZero() || a.Time.Before(at)) {
			at = a.Time
		}
	}
	return at
}

// How full a snapshot may become, in per cent: at the first the person is told, at the second the run
// stops, since a snapshot that overflows is lost.
const (
	fillWarning = 70
	fillStop    = 90
	fillPeriod  = 10 * time.Second
)

// FullError says that the run was stopped because the snapshot would soon be lost.
type FullError struct {
	Host, Part string
	Percent    float64
}

func (e *FullError) Error() string {
	return fmt.Sprintf("host %s: the snapshot's %s is full to %.0f %%, and is lost when it overflows: give it room (`lvextend --size +5G %s`) and run again, or remove it (`lvremove`) and go on with the backup set alone",
		e.Host, e.Part, e.Percent, e.Part)
}

// watchSnapshot looks at how full the snapshot is while the run goes on. The context that it
// returns ends with a *FullError as its cause before the snapshot overflows; stop ends the watch.
func (m *Migration) watchSnapshot(ctx context.Context) (_ context.Context, stop func()) {
	method := m.snapshotMethod()
	if method == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		told := false
		tick := time.NewTicker(fillPeriod)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			part, percent, err := method.Fill(ctx)
			switch {
			case err != nil:
				continue // a line that is cut has others to tell
			case percent >= fillStop:
				cancel(&FullError{Host: m.Plan.Server().Name, Part: part, Percent: percent})
				return
			case percent >= fillWarning && !told:
				told = true
				fmt.Fprintf(m.Progress.Writer(), "   note: the snapshot's %s is full to %.0f %%; at %d %% the run stops\n", part, percent, fillStop)
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}
