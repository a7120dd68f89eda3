package steps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/snapshot"
	"sunbeam.pt/k3s-dualstack/survey"
)

// ViaSnapshot names the way back by the host's snapshot, ViaBackup that by the steps' own undo
// actions.
const (
	ViaSnapshot = "snapshot"
	ViaBackup   = "backup"
)

// snapshotStep is the step in which the host's snapshot is taken.
const snapshotStep = "snapshot"

// snapshotKey is under what name a run is bound to the plan's snapshot.
const snapshotKey = "spec.snapshot"

// takesSnapshot tells whether the plan has a snapshot taken.
func (m *Migration) takesSnapshot() bool {
	s := m.Plan.Spec.Snapshot
	return s != nil && s.Method != plans.SnapshotNone
}

// snapshotTitle says in the plan, the status and the report what is taken, or why nothing is.
func (m *Migration) snapshotTitle() string {
	switch s := m.Plan.Spec.Snapshot; {
	case s == nil:
		return "Take no snapshot of the host"
	case s.Method == plans.SnapshotNone:
		return "Take no snapshot of the host: " + s.Reason
	default:
		return fmt.Sprintf("Take a snapshot of the host (%s)", s.Method)
	}
}

// snapshotMethod is the plan's, nil where it takes none.
func (m *Migration) snapshotMethod() snapshot.Method { return m.snapshotOf(m.Facts) }

// snapshotOf is the plan's method for a host of which the facts are.
func (m *Migration) snapshotOf(facts *survey.Facts) snapshot.Method {
	if !m.takesSnapshot() {
		return nil
	}
	return snapshot.New(snapshot.Ask{
		Host: m.Host, Job: m.snapshotJob, Here: m.snapshotHere, Output: m.Output,
		Plan: m.Plan.Spec.Snapshot, Name: m.Plan.Metadata.Name, Storage: facts.Host.Storage,
		Proof:        path.Join(facts.K3s.ServerDir(), "token"),
		DestroyNewer: m.DestroyNewer, Progress: m.Progress,
		Server: m.Plan.Server(), Encryption: m.Plan.Spec.Backup.Encryption, Passphrase: m.Ask,
	})
}

// snapshotTimeout bounds each of the plan's own commands on the laptop.
const snapshotTimeout = 2 * time.Hour

// snapshotHere runs one of the plan's own commands on the laptop.
func (m *Migration) snapshotHere(ctx context.Context, command []string) error {
	return m.runHere(ctx, command, snapshotTimeout, "the limit for commands of spec.snapshot", m.Output)
}

// snapshotJob runs one of the plan's own commands on the host.
func (m *Migration) snapshotJob(ctx context.Context, name, label, script string) error {
	state, err := m.State()
	if err != nil {
		return err
	}
	return m.ownJob(ctx, ownJobName(name, state.Run), label, script)
}

// Returning tells whether a return by the host's snapshot is under way: what of it was begun may wait for the host's next start,
// and would then undo whatever another way back, or a person, has done until then.
func Returning(s runner.State) bool { return s.Rollback != nil && s.Rollback.Via == ViaSnapshot }

// settleSnapshot waits until none of the plan's own commands goes on on the host but that of the way back that is taken.
func (m *Migration) settleSnapshot(ctx context.Context, state runner.State) error {
	s := m.Plan.Spec.Snapshot
	if s == nil || s.Method != plans.SnapshotCommand || s.Command.On != plans.OnHost {
		return nil
	}
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	under := Returning(state)
	for _, name := range []string{"create", "restore"} {
		if name == "restore" && under && m.Via == ViaSnapshot {
			continue // it is followed to its end
		}
		if err := m.settle(ctx, h, ownJobName("snapshot-"+name, state.Run)); err != nil {
			return err
		}
	}
	return nil
}

// snapshotBind is what a run is bound to of the plan's snapshot: what it is of. Own commands, and where images are kept,
// may be mended meanwhile; commands may hold what the journal must not.
func snapshotBind(s *plans.Snapshot) any {
	if s == nil {
		return nil
	}
	bound := struct {
		Method plans.SnapshotMethod `json:"method"`
		Size   string               `json:"size,omitempty"`
		Server string               `json:"server,omitempty"`
		Disks  []string             `json:"disks,omitempty"`
	}{Method: s.Method, Size: s.Size}
	if at := s.Scaleway; at != nil {
		bound.Server, bound.Disks = fmt.Sprintf("%s %s in %s", at.Product, at.ID, at.Zone), at.Disks
	}
	return bound
}

// wayOn says of a plan that has the snapshot taken otherwise than the run began with how a run with it begins, where the
// snapshot could not be taken and nothing is lost with the run.
func wayOn(state runner.State, err error) error {
	var changed *runner.ChangedError
	if !errors.As(err, &changed) || state.StepState(snapshotStep).Complete ||
		slices.ContainsFunc(changed.Changes, func(c runner.Change) bool { return c.Name != snapshotKey }) {
		return err
	}
	return fmt.Errorf("%w\nThe snapshot was not taken yet, and nothing else was done on host or cluster: to have it taken otherwise, name another directory as spec.workDir and repeat the command, which begins a new run; what the first attempt left of a snapshot, if anything, is to be removed by hand", err)
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
	actions := m.snapshotted(method.Take())
	if !m.Plan.Spec.Snapshot.Method.OnItsDisks() {
		actions = append(actions, runner.Action{
			Name: "node", Target: m.onCluster(), Like: "start/node",
			Summary: "See that the node is Ready: the host may have been restarted",
			Command: "kubectl wait --for=condition=Ready --timeout=5m node --all",
			Run:     func(ctx context.Context) (any, error) { return nil, m.waitNodes(ctx, 1) },
		})
	}
	return actions, nil
}

// removeSnapshot is what ends a snapshot when the cluster is verified.
func (m *Migration) removeSnapshot() []runner.Action {
	if method := m.snapshotMethod(); method != nil && !m.Plan.Spec.Snapshot.Keep {
		return m.snapshotted(method.Remove())
	}
	return nil
}

// snapshotUnready is what the snapshot takes beyond the host's own disks and is not there.
func (m *Migration) snapshotUnready(ctx context.Context, facts *survey.Facts) ([]string, error) {
	method := m.snapshotOf(facts)
	if method == nil || len(method.Problems()) > 0 {
		return nil, nil
	}
	err := method.Ready(ctx)
	switch {
	case err == nil:
		return nil, nil
	case ctx.Err() != nil || errors.Is(err, remote.ErrConnectionLost):
		return nil, err
	}
	unready := strings.Split(err.Error(), "\n") // of programs, each has a line
	for i, u := range unready {
		if !strings.HasPrefix(u, "spec.") {
			unready[i] = "spec.snapshot: " + u
		}
	}
	return unready, nil
}

// reach makes the host answer again where an operation of the snapshot that was cut off may have taken it away, and tells
// whether that may be: the host may then have been started just now.
func (m *Migration) reach(ctx context.Context, state runner.State) (started bool, err error) {
	if m.Facts == nil || !m.takesSnapshot() {
		return false, nil
	}
	cut := func(actions []runner.ActionState, step string) string {
		for _, a := range actions {
			if a.Step == step && a.Status != runner.Done && a.Status != runner.Undone && !strings.HasPrefix(a.Action, hookAction) {
				return a.Action
			}
		}
		return ""
	}
	name := cut(state.Actions, snapshotStep)
	if back := state.Rollback; Returning(state) {
		name = cut(back.Actions, back.At)
	}
	if name == "" {
		return false, nil
	}
	return !m.Plan.Spec.Snapshot.Method.OnItsDisks(), m.snapshotMethod().Reach(ctx, name)
}

// detour is the way back by the snapshot; nil for the steps' own.
func (m *Migration) detour() *runner.Detour {
	if m.Via != ViaSnapshot {
		return nil
	}
	return &runner.Detour{Name: ViaSnapshot, Undo: func(ctx context.Context) ([]runner.Action, error) {
		actions := m.snapshotted(m.snapshotMethod().Return())
		if s := m.Plan.Spec.Snapshot; s.Method == plans.SnapshotZFS || s.Method == plans.SnapshotCommand && m.SnapshotOnHost() {
			// These return under what runs, and somebody may have started K3s since it was stopped.
			back := actions[1].Run
			actions[1].Run = func(ctx context.Context) (any, error) {
				if err := m.stopForReturn(ctx); err != nil {
					return nil, err
				}
				return back(ctx)
			}
		}
		stop := runner.Action{
			Name: "stop again", Target: m.onHost(), Like: "quiesce/stop",
			Summary: "Stop what runs of K3s",
			Command: "systemctl stop " + remote.Quote(m.Facts.K3s.UnitName()) + "; " + m.Facts.K3s.KillallCommand(),
			Run:     func(ctx context.Context) (any, error) { return nil, m.stopForReturn(ctx) },
		}
		again, err := m.undoQuiesce(ctx)
		return slices.Concat(actions[:1], []runner.Action{stop}, actions[1:], again, []runner.Action{m.sameAgain()}), err
	}}
}

// sameAgain proves that the return has brought the old cluster back, while the other way is still open.
func (m *Migration) sameAgain() runner.Action {
	return runner.Action{
		Name: "same again", Target: m.onCluster(),
		Summary: "See that the cluster is the one of before the run",
		Command: "kubectl get ns kube-system -o jsonpath='{.metadata.uid}'",
		Run: func(ctx context.Context) (any, error) {
			now, err := m.Survey(ctx)
			if err != nil {
				return nil, err
			}
			if moved := m.Facts.Moved(now); now.Cluster.KubeSystemUID != m.Facts.Cluster.KubeSystemUID || now.K3s.BinarySHA256 != m.Facts.K3s.BinarySHA256 {
				return nil, fmt.Errorf("the return has not brought the old cluster back: %s; `migrate rollback --via backup` brings it back from the backup set", few(moved))
			}
			return nil, nil
		},
	}
}

// stopForReturn stops K3s as far as what is left of it allows: the snapshot replaces it all.
func (m *Migration) stopForReturn(ctx context.Context) error {
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	whole := true
	for _, script := range []string{m.Facts.K3s.Killall, m.Facts.K3s.Uninstall} {
		switch _, err := h.ReadFile(ctx, script); {
		case errors.Is(err, fs.ErrNotExist):
			whole = false
		case err != nil:
			return fmt.Errorf("host %s: looking for K3s's scripts: %w", h.Name(), err)
		}
	}
	if whole {
		return m.stopAgain(ctx, h)
	}
	unit := remote.Quote(m.Facts.K3s.UnitName())
	if err := h.Run(ctx, fmt.Sprintf("! systemctl is-active -q %[1]s || systemctl stop %[1]s", unit)); err != nil {
		return fmt.Errorf("host %s: stopping K3s: %w", h.Name(), err)
	}
	return nil
}

// mayReturn looks at the snapshot itself before anybody is asked: that it was taken is no proof that it is there.
func (m *Migration) mayReturn(ctx context.Context) error {
	look := m.snapshotMethod().Return()[0]
	if err := look.Run(ctx); err != nil {
		return &NoSnapshotError{Err: err}
	}
	return nil
}

// sameSnapshot refuses a plan in which the snapshot is another than the one that the run began with: another would be looked
// at, and what is begun of a return would not be seen.
func (m *Migration) sameSnapshot(state runner.State) error {
	was, noted := state.Bind.Extra[snapshotKey]
	is := m.bind("").Extra[snapshotKey]
	switch {
	case noted && was != is:
		return fmt.Errorf("the plan's spec.snapshot is another (%s) than the run began with (%s): put it back as it was", is, was)
	case noted && state.Bind.Plan != m.Plan.Metadata.Name:
		return fmt.Errorf("the plan's metadata.name is another (%s) than the run began with (%s), which the snapshot carries: put it back as it was", m.Plan.Metadata.Name, state.Bind.Plan)
	}
	return nil
}

// mayTurn refuses to go back by way of the backup set while a return by snapshot that was begun would still
// take place.
func (m *Migration) mayTurn(ctx context.Context) error {
	if !m.takesSnapshot() {
		return &NoSnapshotError{errors.New("a return by it is under way, and the plan has none taken (spec.snapshot): put it back as it was")}
	}
	return m.mayTurnFrom(ctx, m.snapshotMethod())
}

func (m *Migration) mayTurnFrom(ctx context.Context, method snapshot.Method) error {
	pending, err := method.Pending(ctx)
	if err != nil {
		return err
	}
	if pending != "" {
		return &PendingError{Host: m.Plan.Server().Name, What: pending, Method: m.Plan.Spec.Snapshot.Method}
	}
	return nil
}

// PendingError says that a return by snapshot has gone too far to be turned from.
type PendingError struct {
	Host, What string
	Method     plans.SnapshotMethod
}

func (e *PendingError) Error() string {
	text := fmt.Sprintf("roll back by way of the backup set: a return to the snapshot was begun on host %s: %s; nothing was done: complete it with --via snapshot", e.Host, e.What)
	switch e.Method {
	case plans.SnapshotLVM, plans.SnapshotZFS:
		text += ", which restarts the host; where it cannot be completed, such as with a snapshot that was lost meanwhile, restart the host by hand, after which nothing waits any more, then repeat with --via backup"
	case plans.SnapshotBtrfs:
		// What was replaced stays where it was put until the return is completed, whatever is started meanwhile.
		text += ", which restarts the host; a restart by hand alone does not end it"
	}
	return text
}

// SnapshotOnHost tells whether what removes the plan's snapshot is typed on the host, and not on the laptop.
func (m *Migration) SnapshotOnHost() bool {
	s := m.Plan.Spec.Snapshot
	return s != nil && (s.Method.OnItsDisks() || s.Method == plans.SnapshotCommand && s.Command.On == plans.OnHost)
}

// SnapshotLeft are the commands that remove what is left of the run's snapshot, those of the plan's author by
// their field alone; none where it took none, has removed it, or has used it up in a return.
func (m *Migration) SnapshotLeft() (commands []string) {
	if m.Facts == nil || !m.takesSnapshot() {
		return nil
	}
	journal, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return nil // what is wrong with it others tell
	}
	defer journal.Close()
	remove := m.snapshotMethod().Remove()
	left := false
	for _, r := range journal.Records() {
		switch {
		case r.Step == snapshotStep && r.Event == runner.Intent && !strings.HasPrefix(r.Action, hookAction):
			left = true
		case r.Event == runner.Done && r.Step == "finish" && slices.ContainsFunc(remove, func(o snapshot.Operation) bool { return o.Name == r.Action }),
			r.Event == runner.Undone && m.Plan.Spec.Snapshot.Method == plans.SnapshotLVM && strings.HasPrefix(r.Action, "merged "):
			left = false
		}
	}
	if !left {
		return nil
	}
	if m.Plan.Spec.Snapshot.Method == plans.SnapshotCommand {
		return []string{"the program of spec.snapshot.command.delete"}
	}
	for _, o := range remove {
		commands = append(commands, o.Command)
	}
	return commands
}

// NoSnapshotError says why a rollback cannot go by way of a snapshot.
type NoSnapshotError struct{ Err error }

func (e *NoSnapshotError) Error() string {
	return fmt.Sprintf("roll back by way of the snapshot: %v; nothing was done; --via backup goes by way of the backup set", e.Err)
}

func (e *NoSnapshotError) Unwrap() error { return e.Err }

// chooseWay settles which way a rollback goes: that of the rollback under way unless
// another was asked for, else by the steps' own undo actions.
func (m *Migration) chooseWay(state runner.State, to string) error {
	under := Returning(state)
	if m.Via == "" && under {
		m.Via = ViaSnapshot
	}
	if m.Via == ViaSnapshot || under {
		if err := m.sameSnapshot(state); err != nil {
			return &NoSnapshotError{err}
		}
	}
	if m.Via != ViaSnapshot {
		return nil
	}
	switch {
	case !m.takesSnapshot():
		return &NoSnapshotError{errors.New("the plan has none taken (spec.snapshot)")}
	case to != whole:
		return &NoSnapshotError{fmt.Errorf("it was taken before %s, so that it cannot lead to %s", whole, to)}
	case !state.StepState(snapshotStep).Complete:
		return &NoSnapshotError{errors.New("this run has taken none")}
	case state.Finished && !m.Plan.Spec.Snapshot.Keep:
		return &NoSnapshotError{errors.New("it was removed when the migration was complete (spec.snapshot.keep keeps it)")}
	}
	if outside := m.snapshotMethod().Outside(); len(outside) > 0 {
		return &NoSnapshotError{fmt.Errorf("it does not hold %s", strings.Join(outside, ", "))}
	}
	return nil
}

// snapshotTaken is when the snapshot began to be made, by the laptop's clock, and never later: what was found done by asking
// reality was done when it was begun. Of several attempts it is the first of which nothing tells that it came to nothing: that
// it failed, or that reality did not know of it. The zero time where none was begun.
func (m *Migration) snapshotTaken() (at time.Time, err error) {
	journal, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return time.Time{}, err
	}
	defer journal.Close()
	asked, inVain, began := map[string]bool{}, map[string]bool{}, map[string]time.Time{}
	for _, o := range m.snapshotMethod().Take() {
		asked[o.Name] = o.Done != nil
	}
	for _, r := range journal.Records() {
		if r.Step != snapshotStep || r.Action == "" || r.Action == snapshot.Unused || strings.HasPrefix(r.Action, hookAction) {
			continue
		}
		if r.Event == runner.Intent && (began[r.Action].IsZero() || asked[r.Action] || inVain[r.Action]) {
			began[r.Action] = r.Time
		}
		inVain[r.Action] = r.Event == runner.Failed
	}
	for _, t := range began {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	return at, nil
}

// How full a snapshot may become, in per cent: at the first the person is told, at the second the run
// stops, since a snapshot that overflows is lost.
const (
	fillWarning = 70
	fillStop    = 90
	fillPeriod  = 10 * time.Second
)

// FullError says that the run was stopped because the snapshot would soon be lost, or is.
type FullError struct {
	Host string
	snapshot.Fill
}

func (e *FullError) Error() string {
	return fmt.Sprintf("host %s: the snapshot's %s is full to %.0f %%, and the snapshot is lost when that overflows: %s", e.Host, e.Part, e.Percent, e.Remedy)
}

// watchSnapshot looks at how full the snapshot is until stop. The context that it returns ends before the snapshot
// overflows; stop then makes a *FullError of what came of it.
func (m *Migration) watchSnapshot(ctx context.Context) (_ context.Context, stop func(came *error)) {
	method := m.snapshotMethod()
	if method == nil {
		return ctx, func(*error) {}
	}
	return m.watchFill(ctx, method.Fill, fillPeriod)
}

func (m *Migration) watchFill(ctx context.Context, fill func(context.Context) (snapshot.Fill, error), period time.Duration) (_ context.Context, stop func(came *error)) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		told := false
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			f, err := fill(ctx)
			switch {
			case err != nil || f.Part == "":
				continue // a line that is cut has others to tell
			case f.Percent >= fillStop:
				cancel(&FullError{m.Plan.Server().Name, f})
				return
			case f.Percent >= fillWarning && !told:
				told = true
				fmt.Fprintf(m.Progress.Writer(), "   note: the snapshot's %s is full to %.0f %%; at %d %% the run stops\n", f.Part, f.Percent, fillStop)
			}
		}
	}()
	return ctx, func(came *error) {
		cancel(nil)
		<-ended
		var full *FullError
		if *came != nil && errors.As(context.Cause(ctx), &full) {
			*came = full
		}
	}
}
