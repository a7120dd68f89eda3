package steps

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/snapshot"
)

// ownSnapshot is taken by commands of the plan's author.
func ownSnapshot() *plans.Snapshot {
	return &plans.Snapshot{Method: plans.SnapshotCommand, Command: &plans.SnapshotCommands{
		On: plans.OnLaptop, Create: []string{"cloud", "create", "--token=s3cret"}, Status: []string{"cloud", "status"},
		Restore: []string{"cloud", "restore"}, Delete: []string{"cloud", "delete"},
	}}
}

// A rollback goes by way of the snapshot only where one was taken, is kept, and holds all that it has to.
func TestWayBySnapshot(t *testing.T) {
	own := func(s *plans.Spec) { s.Snapshot = ownSnapshot() }
	rollback := runner.Record{Event: runner.Rollback, Step: whole, Data: []byte(`{"via":"snapshot","at":"install"}`)}
	for _, c := range []struct {
		name    string
		edit    func(*plans.Spec)
		until   string
		more    []runner.Record
		via, to string
		want    string // in the error; "" for a way
		goes    string // Via of what is planned
	}{
		{name: "none was asked for", until: "install", want: "the plan has none taken", via: ViaSnapshot},
		{name: "none, for a reason", edit: func(s *plans.Spec) { s.Snapshot = &plans.Snapshot{Method: plans.SnapshotNone, Reason: "x"} }, until: "install", via: ViaSnapshot, want: "the plan has none taken"},
		{name: "taken", edit: own, until: "install", via: ViaSnapshot, goes: ViaSnapshot},
		{name: "by default the backup set", edit: own, until: "install"},
		{name: "one under way goes on", edit: own, until: "install", more: []runner.Record{rollback}, goes: ViaSnapshot},
		{name: "one under way is turned from", edit: own, until: "install", more: []runner.Record{rollback}, via: ViaBackup},
		{name: "to a later checkpoint", edit: own, until: "install", via: ViaSnapshot, to: "seal", want: "it cannot lead to seal"},
		{name: "removed with the last step", edit: own, until: "finish", more: []runner.Record{{Event: runner.Finished}}, via: ViaSnapshot, to: whole, want: "spec.snapshot.keep"},
		{name: "kept after the last step", edit: func(s *plans.Spec) { own(s); s.Snapshot.Keep = true }, until: "finish", more: []runner.Record{{Event: runner.Finished}}, via: ViaSnapshot, to: whole, goes: ViaSnapshot},
		{name: "the plan says otherwise since", edit: own, until: "install", more: []runner.Record{{Event: runner.Begin, Data: []byte(`{"plan":"sunbeam","extra":{"spec.snapshot":"{\"method\":\"lvm\"}"}}`)}}, via: ViaSnapshot, want: `another ({"method":"command"}) than the run began with ({"method":"lvm"})`},
		{name: "turned from with another plan", until: "install", more: []runner.Record{{Event: runner.Begin, Data: []byte(`{"plan":"sunbeam","extra":{"spec.snapshot":"{\"method\":\"lvm\"}"}}`)}, rollback}, via: ViaBackup, want: "put it back as it was"},
		{name: "a part lies elsewhere", edit: func(s *plans.Spec) { s.Snapshot = &plans.Snapshot{Method: plans.SnapshotLVM} }, until: "install", via: ViaSnapshot, want: "it does not hold /srv/data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := atHome(t)
			if c.edit != nil {
				c.edit(&m.Plan.Spec)
			}
			m.Facts.Host.Storage = snapshot.Storage{FileSystems: []snapshot.FileSystem{{Target: "/srv", Source: "/dev/sdb1", Type: "xfs", Device: "8:17", Paths: []string{"/srv/data"}}}}
			m.Via = c.via
			reached(t, m, c.until, append([]runner.Record{done(snapshotStep, "create", "null")}, c.more...)...)
			u, err := m.Unwind(t.Context(), c.to)
			if c.want != "" {
				var none *NoSnapshotError
				require.ErrorAs(t, err, &none)
				assert.ErrorContains(t, err, c.want)
				assert.ErrorContains(t, err, "nothing was done")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.goes, u.Via)
			var names []string
			for _, a := range u.Actions {
				names = append(names, a.Step+"/"+a.Name)
			}
			if c.goes == ViaSnapshot {
				at := c.until
				want := []string{"status", "stop again", "restore", "time", "start again", "node again", "pods again", "same again"}
				for i := range want {
					want[i] = at + "/" + want[i]
				}
				assert.Equal(t, want, names)
				assert.Contains(t, strings.Join(u.Lost, " "), "Everything that was written to the host's disks since")
			} else {
				assert.Contains(t, names, "uninstall/datastore back")
			}
		})
	}
}

// A snapshot that fills up is told of once, and ends what runs before it overflows.
func TestFullSnapshotStopsTheRun(t *testing.T) {
	var said strings.Builder
	m := atHome(t)
	m.Progress = progress.New(&said, false)
	seen := make(chan float64)
	fill := func(context.Context) (snapshot.Fill, error) {
		v, more := <-seen
		switch {
		case !more:
			return snapshot.Fill{}, nil
		case v < 0:
			return snapshot.Fill{}, errors.New("the line is cut")
		}
		return snapshot.Fill{Part: "vg/root-before-x", Percent: v, Remedy: "make room"}, nil
	}
	ctx, stop := m.watchFill(t.Context(), fill, time.Microsecond)
	for _, v := range []float64{10, 71, -1, 72, 89.9} {
		seen <- v
	}
	require.NoError(t, ctx.Err())
	seen <- 90
	<-ctx.Done()
	came := ctx.Err()
	close(seen)
	stop(&came)
	var full *FullError
	require.ErrorAs(t, came, &full)
	assert.Equal(t, &FullError{"dedi", snapshot.Fill{Part: "vg/root-before-x", Percent: 90, Remedy: "make room"}}, full)
	assert.Equal(t, 1, strings.Count(said.String(), "note:"), said.String())
	assert.Contains(t, said.String(), "full to 71 %")

	// Where nothing fills, what came of the run stays as it is.
	ctx, stop = m.watchFill(t.Context(), func(context.Context) (snapshot.Fill, error) { return snapshot.Fill{}, nil }, time.Microsecond)
	time.Sleep(time.Millisecond)
	came = nil
	stop(&came)
	require.NoError(t, came)
	require.Error(t, ctx.Err(), "the context ends with the watch")
}

// What a run is bound to holds no word of the author's commands, which may be secret and may be mended.
func TestCommandsOfTheSnapshotAreNotBound(t *testing.T) {
	m := migration(t, func(s *plans.Spec) { s.Snapshot = ownSnapshot() })
	bound := m.bind("key").Extra["spec.snapshot"]
	assert.Equal(t, `{"method":"command"}`, bound)
	m.Plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotLVM, Size: "20Gi"}
	assert.Equal(t, `{"method":"lvm","size":"20Gi"}`, m.bind("key").Extra["spec.snapshot"])
}

// The reason for which there is no snapshot is in the journal.
func TestNoSnapshotForAReason(t *testing.T) {
	m := migration(t, func(s *plans.Spec) {
		s.Snapshot = &plans.Snapshot{Method: plans.SnapshotNone, Reason: "the provider's are taken at night"}
	})
	actions, err := m.takeSnapshot(t.Context())
	require.NoError(t, err)
	require.Len(t, actions, 1)
	data, err := actions[0].Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"reason": "the provider's are taken at night"}, data)
}

// Own commands fail with their field and status, and with nothing of what they print; those of the host are looked for
// beforehand.
func TestOwnCommandsOfTheSnapshot(t *testing.T) {
	for _, on := range []plans.Place{plans.OnLaptop, plans.OnHost} {
		t.Run(string(on), func(t *testing.T) {
			m := onSSH(t)
			var shown strings.Builder
			m.Output = &shown
			sh := func(script string) []string { return []string{"sh", "-c", script} }
			m.Plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotCommand, Command: &plans.SnapshotCommands{
				On: on, Create: sh("echo token s3cret; exit 9"), Status: sh("echo none is there; exit 1"), Restore: sh("true"), Delete: []string{"no-such-program"},
			}}
			m.Plan.Spec.Platform.Directory = t.TempDir()
			reached(t, m, "preflight")
			method := m.snapshotMethod()
			take := method.Take()
			require.NoError(t, take[0].Run(t.Context()), "none is there")
			take = take[1:]
			err := take[0].Run(t.Context())
			require.ErrorContains(t, err, "spec.snapshot.command.create: ")
			assert.ErrorContains(t, err, "exit status 9")
			assert.NotContains(t, err.Error(), "s3cret")
			assert.Contains(t, shown.String(), "token s3cret")
			require.Nil(t, take[0].Done, "an attempt that was cut off is followed to its end, whatever status says")
			err = take[1].Run(t.Context())
			require.ErrorContains(t, err, "spec.snapshot.command.status: ")
			assert.ErrorContains(t, err, "exit status 1")
			assert.Contains(t, shown.String(), "none is there", "why is for the person to see")
			assert.NotContains(t, err.Error(), "none is there")
			require.NoError(t, method.Return()[1].Run(t.Context()), "what restarts nothing")
			err = method.Ready(t.Context())
			if on == plans.OnHost {
				require.ErrorContains(t, err, `spec.snapshot.command.delete[0]: host host has no program "no-such-program"`)
			} else {
				require.NoError(t, err, "loading the plan looks for the laptop's")
			}
		})
	}
}

// fakeMethod is a FAKE of a method: what is asked of it is what a test says.
type fakeMethod struct {
	snapshot.Method
	pending string
	err     error
}

func (f fakeMethod) Pending(context.Context) (string, error) { return f.pending, f.err }

// A return that waits for the host's next start is not turned from, and what ends the waiting is said, by method.
func TestTurningFromAReturn(t *testing.T) {
	m := atHome(t)
	m.Plan.Spec.Snapshot = nil
	var none *NoSnapshotError
	require.ErrorAs(t, m.mayTurn(t.Context()), &none, "the plan has none")

	m.Plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotLVM}
	require.NoError(t, m.mayTurnFrom(t.Context(), fakeMethod{}))
	cut := errors.New("the line is cut")
	require.ErrorIs(t, m.mayTurnFrom(t.Context(), fakeMethod{err: cut}), cut)
	const byHand = "restart the host by hand, after which nothing waits any more, then repeat with --via backup"
	for method, restart := range map[plans.SnapshotMethod]bool{
		plans.SnapshotLVM: true, plans.SnapshotZFS: true, plans.SnapshotBtrfs: false, plans.SnapshotScaleway: false,
	} {
		m.Plan.Spec.Snapshot.Method = method
		err := m.mayTurnFrom(t.Context(), fakeMethod{pending: "the merge of vg/a waits"})
		var pending *PendingError
		require.ErrorAs(t, err, &pending)
		assert.ErrorContains(t, err, "host dedi: the merge of vg/a waits; nothing was done: complete it with --via snapshot")
		assert.Equal(t, restart, strings.Contains(err.Error(), byHand), "%s: %v", method, err)
	}
}

// What is lost by a return counts from when the snapshot was begun, whenever that was found done.
func TestWhenTheSnapshotWasTaken(t *testing.T) {
	const create, open = "snapshot", "open vg/root-before-sunbeam"
	found := runner.Record{Event: runner.Done, Step: snapshotStep, Action: create, Found: true}
	for _, c := range []struct {
		name    string
		own     bool
		records []runner.Record
		want    int // the record whose time it is, from the first of the step on; -1 for none
	}{
		{"not begun", false, nil, -1},
		{"at once", false, []runner.Record{intent(snapshotStep, create), done(snapshotStep, create, "null"), intent(snapshotStep, open)}, 0},
		{"found done later", false, []runner.Record{intent(snapshotStep, create), found, intent(snapshotStep, open)}, 0},
		{"a hook before it", false, []runner.Record{intent(snapshotStep, hookAction+"before"), intent(snapshotStep, create), found}, 1},
		{"nothing had come of it", false, []runner.Record{intent(snapshotStep, create), failed(snapshotStep, create, "no room"), intent(snapshotStep, create), done(snapshotStep, create, "null")}, 2},
		{"a second one did nothing at first", false, []runner.Record{intent(snapshotStep, create), found, intent(snapshotStep, open), intent(snapshotStep, open)}, 0},
		{"one that failed and nobody can be asked about", true, []runner.Record{intent(snapshotStep, snapshot.Unused), intent(snapshotStep, "create"), failed(snapshotStep, "create", "x"), intent(snapshotStep, "create"), done(snapshotStep, "create", "null")}, 3},
		{"one that nobody can be asked about", true, []runner.Record{intent(snapshotStep, "create"), intent(snapshotStep, "create"), done(snapshotStep, "create", "null")}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := atHome(t)
			m.Plan.Metadata.Name = "sunbeam"
			m.Plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotLVM}
			m.Facts.Host.Storage = snapshot.Storage{
				FileSystems: []snapshot.FileSystem{{Target: "/", Source: "/dev/vg/root", Type: "ext4", Device: "253:0", Paths: []string{"/srv"}}},
				Logical:     []snapshot.LogicalVolume{{Group: "vg", Name: "root", Type: "linear", Device: "253:0"}},
			}
			if c.own {
				m.Plan.Spec.Snapshot = ownSnapshot()
			} else {
				require.Equal(t, create, m.snapshotMethod().Take()[0].Name)
			}
			reached(t, m, "preflight", c.records...)
			at, err := m.snapshotTaken()
			require.NoError(t, err)
			if c.want < 0 {
				require.Zero(t, at)
				return
			}
			j, err := runner.OpenJournal(m.JournalPath())
			require.NoError(t, err)
			all := j.Records()
			require.Equal(t, all[len(all)-len(c.records)+c.want].Time, at)
		})
	}
}

// The host may have been started anew where an operation that takes it away was cut off, and there alone.
func TestReach(t *testing.T) {
	back := runner.Record{Event: runner.Rollback, Step: whole, Data: []byte(`{"via":"snapshot","at":"install"}`)}
	own := ownSnapshot()
	own.Command.On = plans.OnHost // a job there is followed, whatever the host does
	lvm := &plans.Snapshot{Method: plans.SnapshotLVM}
	complete := runner.Record{Event: runner.StepComplete, Step: snapshotStep}
	for _, c := range []struct {
		name    string
		plan    *plans.Snapshot
		records []runner.Record
		started bool
	}{
		{"none is taken", nil, []runner.Record{intent(snapshotStep, "create")}, false},
		{"not begun", own, nil, false},
		{"cut off", own, []runner.Record{intent(snapshotStep, "create")}, true},
		{"failed", own, []runner.Record{intent(snapshotStep, "create"), failed(snapshotStep, "create", "x")}, true},
		{"cut off on its own disks", lvm, []runner.Record{intent(snapshotStep, "snapshot")}, false},
		{"a hook was cut off", own, []runner.Record{intent(snapshotStep, hookAction+"before")}, false},
		{"complete", own, []runner.Record{intent(snapshotStep, "create"), done(snapshotStep, "create", "null"), complete, intent("protect", objects)}, false},
		{"a return was cut off", own, []runner.Record{done(snapshotStep, "create", "null"), complete, back, undoing("install", "restore")}, true},
		{"a return goes on elsewhere", own, []runner.Record{done(snapshotStep, "create", "null"), complete, back, undoing("install", "restore"), undone("install", "restore", "null")}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := atHome(t)
			m.Plan.Spec.Snapshot = c.plan
			reached(t, m, "preflight", c.records...)
			state, err := m.State()
			require.NoError(t, err)
			started, err := m.reach(t.Context(), state)
			require.NoError(t, err)
			assert.Equal(t, c.started, started)
		})
	}
}

// A host that was started just now has its K3s waited for, before anything is held against the facts.
func TestStartedHostIsWaitedFor(t *testing.T) {
	m := onSSH(t)
	reached(t, m, "preflight", intent(snapshotStep, "create"))
	state, err := m.State()
	require.NoError(t, err)
	const waits = "waiting for K3s, since the host may have been started anew"
	require.ErrorContains(t, m.unmoved(t.Context(), state, true), waits)
	err = m.unmoved(t.Context(), state, false)
	require.Error(t, err, "there is no K3s")
	assert.NotContains(t, err.Error(), waits)

	j, err := runner.OpenJournal(m.JournalPath())
	require.NoError(t, err)
	defer j.Close()
	require.NoError(t, j.Append(intent("quiesce", "stop")))
	require.NoError(t, m.unmoved(t.Context(), j.State(), true), "one that the run has stopped is not waited for")
}

// Where the snapshot could not be taken, the refusal of a plan that takes another says how to go on; once it was taken, the
// run's plan is to be put back.
func TestAnotherSnapshotThanBegun(t *testing.T) {
	const wayOn = "name another directory as spec.workDir"
	for _, c := range []struct {
		name, was string
		more      []runner.Record
		want      bool
	}{
		{"not taken", `{"spec.snapshot":"{\"method\":\"lvm\",\"size\":\"20Gi\"}"}`, nil, true},
		{"and more is another", `{"spec.snapshot":"{\"method\":\"lvm\"}","spec.k3s.version":"v1.0.0+k3s1"}`, nil, false},
		{"taken", `{"spec.snapshot":"{\"method\":\"lvm\"}"}`, []runner.Record{{Event: runner.StepComplete, Step: snapshotStep}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := onSSH(t)
			m.Plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotLVM, Size: "10Gi"}
			reached(t, m, "preflight", append([]runner.Record{
				{Event: runner.Begin, Data: []byte(`{"plan":"` + m.Plan.Metadata.Name + `","extra":` + c.was + `}`)},
				intent(snapshotStep, "snapshot vg/root"), failed(snapshotStep, "snapshot vg/root", "no room"),
			}, c.more...)...)
			err := m.Run(t.Context(), "", nil, nil)
			var changed *runner.ChangedError
			require.ErrorAs(t, err, &changed)
			assert.Equal(t, c.want, strings.Contains(err.Error(), wayOn), "%v", err)
		})
	}
}
