package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// hostLock is the host's half of the lock: it keeps a second laptop out. The
// laptop's own half is the kernel's, so that the holder named here, when it is
// this laptop and work directory, is known to be no other process.
const hostLock = remote.StateDir + "/lock"

// putLock makes its input the lock.
const putLock = "cat >" + hostLock + ".new && sync " + hostLock + ".new && mv " + hostLock + ".new " + hostLock

type hostHolder struct {
	runner.Holder
	WorkDir string `json:"workDir"`
}

// sameHome tells whether two holders share the laptop's half of the lock, so that
// only one of them can be a process that lives.
func (h hostHolder) sameHome(other hostHolder) bool {
	return h.Host == other.Host && h.WorkDir == other.WorkDir
}

// Run performs the migration or continues it, stopping after the step named
// until ("" for all of it). It holds the locks of laptop and host meanwhile.
// Until preflight has passed nothing but the plan's hooks writes to the host.
func (m *Migration) Run(ctx context.Context, until string, observer runner.Observer, confirm func(context.Context, runner.Gate) (bool, error)) (err error) {
	if err := m.checkUntil(until); err != nil {
		return err
	}
	defer m.tellFullDisk(&err)
	lock, err := m.lockLaptop()
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := m.beginAnew(); err != nil {
		return err
	}
	journal, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return err
	}
	defer journal.Close()
	r := runner.Runner{Steps: m.Sequence(), Journal: journal, Observer: observer, Pauser: m.Pauser, Confirm: confirm}
	state := journal.State()
	defer func() { err = wayOn(state, err) }()
	if state.Finished || state.Rollback != nil {
		r.Bind = m.bind(state.Bind.Extra[hostKey])
		return r.Run(ctx, until) // which says so
	}
	started := false
	if begun(state) {
		if err := m.haveFacts(); err != nil {
			return err
		}
		if started, err = m.reach(ctx, state); err != nil {
			return err
		}
	}
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	r.Bind = m.bind(h.HostKey())
	if !begun(state) {
		// A run that is to be taken over has most often stopped the API that
		// the survey would ask.
		found, err := m.look(ctx)
		if err == nil {
			err = m.notElsewhere(found, nil)
		}
		if err != nil {
			return err
		}
	}
	const lookOnly = "preflight"
	if until == "survey" || until == lookOnly {
		return r.Run(ctx, until)
	}
	if err := r.Run(ctx, lookOnly); err != nil {
		return err
	}
	ctx, release, err := m.holdHost(ctx, journal)
	if err != nil {
		return err
	}
	defer func() { err = release(err) }()
	defer m.watch(ctx, h)()
	ctx, stop := m.watchSnapshot(ctx)
	defer func() { stop(&err) }()
	if err := m.unmoved(ctx, state, started); err != nil {
		return err
	}
	if !begun(state) {
		if err := m.mirrorFacts(ctx, m.Facts); err != nil {
			return err
		}
	}
	return r.Run(ctx, until)
}

// lockLaptop takes the laptop's half of the lock, and removes what a process
// left that was killed with it.
func (m *Migration) lockLaptop() (*runner.Lock, error) {
	lock, err := runner.Acquire(m.LockPath())
	var held *runner.HeldError
	if errors.As(err, &held) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("laptop: using the work directory %s (spec.workDir): %w", m.Plan.Spec.WorkDir, err)
	}
	// The platform command may have been running.
	if err := os.Remove(m.kubeconfig()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("laptop: removing a kubeconfig that an earlier run left: %w", err), lock.Release())
	}
	return lock, nil
}

// beginAnew makes way for a new run where the journal's is over: one that only
// looked is forgotten, since the admin has been repairing host or plan since,
// and one that was taken back to the old cluster is put aside. The facts are to
// be taken, and judged, as they are now.
func (m *Migration) beginAnew() error {
	state, err := m.State()
	if err != nil {
		return err
	}
	over := func(file string) error { return os.Remove(file) }
	switch {
	case state.RolledBack == whole:
		over = func(file string) error {
			ext := filepath.Ext(file)
			return os.Rename(file, strings.TrimSuffix(file, ext)+"."+state.Run+ext)
		}
	case begun(state):
		return nil
	}
	m.Facts = nil
	if err := os.Remove(m.JournalPath() + ".mirrored"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("laptop: beginning anew: %w", err)
	}
	// The journal goes last: it tells that the others are to go.
	for _, file := range []string{m.file(factsFile), m.file(availabilityFile), m.JournalPath()} {
		if err := over(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("laptop: beginning anew: %w", err)
		}
	}
	return nil
}

// unmoved refuses to go on with a run whose host or cluster is no longer what it
// began with. Facts that this very process took need no second look. Where the host was started just now, K3s is waited for:
// one that is still starting is no change.
func (m *Migration) unmoved(ctx context.Context, before runner.State, started bool) error {
	if !begun(before) {
		return nil
	}
	if err := m.sameMachine(ctx); err != nil {
		return err
	}
	if err := m.sameSet(ctx); err != nil {
		return err
	}
	if _, stopped := before.ActionState("quiesce", "stop"); stopped {
		return nil // there is nobody to ask, and nothing new can have come
	}
	if started {
		if err := m.waitNodes(ctx, 1); err != nil {
			return fmt.Errorf("waiting for K3s, since the host may have been started anew: %w", err)
		}
	}
	t := m.Progress.Wait("Comparing host and cluster with the facts of the run")
	defer t.Done()
	now, err := m.Survey(ctx)
	if err != nil {
		return err
	}
	return m.moved(now)
}

// MachineError says that another machine answers than the run began with.
type MachineError struct{ Host, Was, Is string }

func (e *MachineError) Error() string {
	return fmt.Sprintf("host %s: the run began on the machine with the machine-id %s, and the one that answers has %s: spec.hosts[0].address leads elsewhere now, or the host was installed anew; nothing was done",
		e.Host, e.Was, e.Is)
}

// sameMachine keeps the run's actions from another machine's disk.
func (m *Migration) sameMachine(ctx context.Context) error {
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	id, err := h.Output(ctx, "cat /etc/machine-id")
	if err != nil {
		return fmt.Errorf("host %s: reading its machine-id: %w", h.Name(), err)
	}
	if was := m.Facts.Host.MachineID; id != was {
		return &MachineError{Host: h.Name(), Was: was, Is: id}
	}
	return nil
}

func (m *Migration) checkUntil(until string) error {
	if until == "" {
		return nil
	}
	for _, s := range m.Sequence() {
		if s.Name == until {
			return nil
		}
	}
	return &UnknownStepError{Name: until}
}

// HostHeldError says that another laptop, or another work directory of this one,
// has a run on the host.
type HostHeldError struct {
	Host   string
	Holder runner.Holder
}

func (e *HostHeldError) Error() string {
	return fmt.Sprintf("host %s: a run is under way there, by %s: wait until it ends, or take it over with --take-over; nothing was done",
		e.Host, e.Holder)
}

// UnknownStepError says that a step was named that the migration does not have.
type UnknownStepError struct{ Name string }

func (e *UnknownStepError) Error() string {
	return fmt.Sprintf("there is no step %q: `migrate plan` lists them", e.Name)
}

// State is what the journal knows, read without a lock.
func (m *Migration) State() (runner.State, error) {
	j, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return runner.State{}, err
	}
	defer j.Close()
	return j.State(), nil
}

// Holder is who runs the migration from this work directory now, nil for nobody. The
// kernel tells it by letting the lock be taken, which is given back at once: a run that begins
// in that very moment is refused, and can be repeated.
func (m *Migration) Holder() (*runner.Holder, error) {
	lock, err := runner.Acquire(m.LockPath())
	var held *runner.HeldError
	if errors.As(err, &held) {
		return &held.Holder, nil
	}
	if err != nil {
		return nil, err
	}
	return nil, lock.Release()
}

// Begun tells whether a run has gone beyond looking, and was not taken back: the
// facts are then those that it began with, and a *FactsError when they are gone.
func (m *Migration) Begun() (bool, error) {
	s, err := m.State()
	if err != nil || !begun(s) || s.RolledBack == whole {
		return false, err
	}
	return true, m.haveFacts()
}

func begun(s runner.State) bool {
	return slices.ContainsFunc(s.Steps, func(x runner.StepState) bool { return x.Step != "survey" && x.Step != "preflight" })
}

// holdHost takes the host's half of the lock for a run or rollback with this
// journal, and mirrors the journal there from now on. The context that it returns
// ends with a *TakenOverError as its cause when another laptop takes the lock
// away; release is then given what came of it, and returns that cause instead.
func (m *Migration) holdHost(ctx context.Context, journal *runner.Journal) (_ context.Context, release func(error) error, err error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, nil, err
	}
	me, err := m.lockHost(ctx, h)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stillMine := func(err error) error {
		var taken *TakenOverError
		if errors.As(err, &taken) {
			cancel(err)
		}
		return err
	}
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(watchPeriod)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_ = stillMine(m.asHolder(ctx, h, me, nil, "")) // a connection that is lost has others to tell
			}
		}
	})
	release = func(came error) error {
		close(stop)
		watch.Wait()
		err := m.asHolder(ctx, h, me, nil, fmt.Sprintf("mv %s %s", hostLock, lastHolder))
		var taken *TakenOverError
		if errors.As(context.Cause(ctx), &taken) || errors.As(err, &taken) {
			return taken
		}
		cancel(nil)
		if err != nil && !errors.Is(err, remote.ErrConnectionLost) && !errors.Is(err, errLockAway) {
			return errors.Join(came, fmt.Errorf("host %s: giving up the lock %s: %w", h.Name(), hostLock, err))
		}
		return came
	}
	found, err := m.look(ctx)
	if err == nil {
		err = m.notElsewhere(found, journal.Records())
	}
	if err != nil {
		return nil, nil, release(err)
	}
	journal.Mirror = func(line []byte) error { return stillMine(m.mirror(ctx, h, me, line)) }
	return ctx, release, nil
}

// lockHost returns the lock's contents, which are the holder's.
func (m *Migration) lockHost(ctx context.Context, h *remote.Host) (me []byte, err error) {
	self := hostHolder{Holder: runner.Self(), WorkDir: m.Plan.Spec.WorkDir}
	if me, err = json.Marshal(self); err != nil {
		return nil, err
	}
	script := inTurn(me) + fmt.Sprintf("[ -e %[1]s ] || { cat >%[1]s.new && sync %[1]s.new && mv %[1]s.new %[1]s; } && cat %[1]s", hostLock)
	var out bytes.Buffer
	if err := h.Run(ctx, script, remote.Stdin(bytes.NewReader(me)), remote.Stdout(&out)); err != nil {
		return nil, fmt.Errorf("host %s: taking the lock %s: %w", h.Name(), hostLock, err)
	}
	var holder hostHolder
	if err := json.Unmarshal(out.Bytes(), &holder); err != nil {
		return nil, damagedLock(h)
	}
	switch {
	case holder == self:
		return me, nil
	case !holder.sameHome(self):
		return nil, &HostHeldError{Host: h.Name(), Holder: holder.Holder}
	}
	// Left behind by an earlier process of this work directory, whose half of the
	// lock on the laptop we hold.
	left := bytes.TrimSpace(out.Bytes())
	if err := m.asHolder(ctx, h, left, me, putLock); err != nil {
		return nil, fmt.Errorf("host %s: taking the lock %s: %w", h.Name(), hostLock, err)
	}
	return me, nil
}

// asHolder runs a script on the host while the lock there has the contents me, which
// stay as they are meanwhile; the script what gets given as its input. The error is a
// *TakenOverError when they are others. An interrupted run, too, has its line mirrored
// and its lock given up.
func (m *Migration) asHolder(ctx context.Context, h *remote.Host, me, given []byte, what string) error {
	m.holding.Lock() // one of two that meet another's lock takes it back, and the other finds its own
	defer m.holding.Unlock()
	return m.heldBy(ctx, h, me, given, what)
}

func (m *Migration) heldBy(ctx context.Context, h *remote.Host, me, given []byte, what string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseDeadline)
	defer cancel()
	var out bytes.Buffer
	input := slices.Concat(me, []byte("\n"), given)
	script := inTurn(input) + fmt.Sprintf(`IFS= read -r me
if [ "$(cat %[1]s 2>/dev/null)" != "$me" ]; then
	if [ -e %[1]s ]; then
		echo $(($(date +%%s) - $(stat -c %%Y %[1]s))); cat %[1]s
	elif [ -e %[4]s ]; then
		echo %[5]s; cat %[4]s
	fi
	exit %[2]d
fi
%[3]s
`, hostLock, notMine, what, lastHolder, lockGiven)
	err := h.Run(ctx, script, remote.Stdin(bytes.NewReader(input)), remote.Stdout(&out))
	if !exited(err, notMine) {
		return err
	}
	taken := &TakenOverError{Host: h.Name()}
	age, holder, _ := strings.Cut(out.String(), "\n")
	var found, self hostHolder
	if away := out.Len() == 0; away || age == lockGiven {
		if m.Via == ViaSnapshot && (away || json.Unmarshal([]byte(holder), &found) != nil || json.Unmarshal(me, &self) != nil ||
			found.sameHome(self) || !found.Since.After(self.Since)) {
			return errLockAway
		}
		return taken
	}
	if json.Unmarshal([]byte(holder), &found) == nil && json.Unmarshal(me, &self) == nil && found != self &&
		(found.sameHome(self) || m.Via == ViaSnapshot && found.Since.Before(self.Since)) {
		// A snapshot that the host was returned to has brought it back. Of this work directory no other
		// process lives, whose half of the lock on the laptop is ours; another's was taken over by us.
		if err := m.heldBy(ctx, h, []byte(strings.TrimSpace(holder)), me, putLock); err != nil {
			return err
		}
		return m.heldBy(ctx, h, me, given, what)
	}
	if json.Unmarshal([]byte(holder), &taken.By) == nil {
		seconds, _ := strconv.Atoi(age)
		taken.Age = max(0, time.Duration(seconds)*time.Second)
	}
	return taken
}

// lockGiven stands in the place of a lock's age where it was given up.
const lockGiven = "given"

// errLockAway says that there is no lock while the host is returned to a snapshot, which may replace its files one by one:
// nobody has taken it, who would have left their name as the last holder's, and nothing is to be written between the files.
var errLockAway = errors.New("the lock on the host is away while that is returned to its snapshot")

// hostJournal is the journal's copy on the host, from which another laptop can
// take over.
const hostJournal = remote.StateDir + "/journal.jsonl"

// mirror appends a line of the journal to its copy, for as long as the lock on the host is
// me. A line that is there already came twice. A copy that lacks earlier lines, is torn or is
// another run's is replaced by all that the journal has.
func (m *Migration) mirror(ctx context.Context, h *remote.Host, me, line []byte) error {
	var head struct{ Seq int }
	if err := json.Unmarshal(line, &head); err != nil {
		return err
	}
	err := m.asHolder(ctx, h, me, line, fmt.Sprintf(`IFS= read -r line
if grep -qxF -e "$line" %[1]s 2>/dev/null; then exit 0; fi
[ "$(cat %[1]s 2>/dev/null | wc -l)" -eq %[2]d ] && [ -z "$(tail -c 1 %[1]s 2>/dev/null)" ] || exit %[3]d
printf '%%s\n' "$line" >>%[1]s && sync %[1]s`, hostJournal, head.Seq-1, wantsAll))
	if !exited(err, wantsAll) {
		return err
	}
	all, err := os.ReadFile(m.JournalPath())
	if err != nil {
		return err
	}
	return m.asHolder(ctx, h, me, all, fmt.Sprintf("cat >%[1]s.new && sync %[1]s.new && mv %[1]s.new %[1]s && sync %[2]s", hostJournal, remote.StateDir))
}
