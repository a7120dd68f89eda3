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
	"strings"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// hostLock is the host's half of the lock: it keeps a second laptop out. The
// laptop's own half is the kernel's, so that the holder named here, when it is
// this laptop and work directory, is known to be no other process.
const hostLock = remote.StateDir + "/lock"

type hostHolder struct {
	runner.Holder
	WorkDir string `json:"workDir"`
}

// Run performs the migration or continues it, stopping after the step named
// until ("" for all of it). It holds the locks of laptop and host meanwhile.
// Until preflight has passed nothing is written to the host.
func (m *Migration) Run(ctx context.Context, until string, observer runner.Observer, confirm func(context.Context, runner.Gate) (bool, error)) (err error) {
	if err := m.checkUntil(until); err != nil {
		return err
	}
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
	r := runner.Runner{Steps: m.Sequence(), Journal: journal, Observer: observer, Confirm: confirm}
	state := journal.State()
	if state.Finished || state.Rollback != nil {
		r.Bind = m.bind(state.Bind.Extra[hostKey])
		return r.Run(ctx, until) // which says so
	}
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	r.Bind = m.bind(h.HostKey())
	const lookOnly = "preflight"
	if until == "survey" || until == lookOnly {
		return r.Run(ctx, until)
	}
	if err := r.Run(ctx, lookOnly); err != nil {
		return err
	}
	release, err := m.lockHost(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if err := m.unmoved(ctx, state); err != nil {
		return err
	}
	journal.Mirror = func(line []byte) error { return m.mirror(ctx, line) }
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
	for _, file := range []string{m.file(factsFile), m.JournalPath()} {
		if err := over(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("laptop: beginning anew: %w", err)
		}
	}
	return nil
}

// unmoved refuses to go on with a run whose host or cluster is no longer what it
// began with. Facts that this very process took need no second look.
func (m *Migration) unmoved(ctx context.Context, before runner.State) error {
	if !begun(before) {
		return nil
	}
	if err := m.sameMachine(ctx); err != nil {
		return err
	}
	if _, stopped := before.ActionState("quiesce", "stop"); stopped {
		return nil // there is nobody to ask, and nothing new can have come
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
	return fmt.Sprintf("host %s: a run is under way there, by %s: wait until it ends; if you know that it died and will not be continued, `rm %s` on the host lets you in; nothing was done",
		e.Host, e.Holder, hostLock)
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

// Holder is who runs the migration from this work directory now, nil for nobody.
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

// Begun tells whether a run has gone beyond looking: the facts are then those
// that it began with.
func (m *Migration) Begun() (bool, error) {
	s, err := m.State()
	return begun(s), err
}

func begun(s runner.State) bool {
	return slices.ContainsFunc(s.Steps, func(x runner.StepState) bool { return x.Step != "survey" && x.Step != "preflight" })
}

func (m *Migration) lockHost(ctx context.Context) (release func() error, err error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	laptop, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("laptop: asking for its name: %w", err)
	}
	me := hostHolder{Holder: runner.Self(), WorkDir: m.Plan.Spec.WorkDir}
	data, err := json.Marshal(me)
	if err != nil {
		return nil, err
	}
	for {
		// A link is made only where no file is: of two laptops one succeeds.
		script := fmt.Sprintf("umask 077; mkdir -p -m 0700 %s && cat >%s.new && { ln %[2]s.new %[2]s 2>/dev/null; rm -f %[2]s.new; }; cat %[2]s", remote.StateDir, hostLock)
		var out bytes.Buffer
		if err := h.Run(ctx, script, remote.Stdin(bytes.NewReader(data)), remote.Stdout(&out)); err != nil {
			return nil, fmt.Errorf("host %s: taking the lock %s: %w", h.Name(), hostLock, err)
		}
		var holder hostHolder
		if err := json.Unmarshal(out.Bytes(), &holder); err != nil {
			return nil, fmt.Errorf("host %s: the lock %s is damaged: when no other run is under way, remove the file", h.Name(), hostLock)
		}
		if holder == me {
			break
		}
		if holder.Host != laptop || holder.WorkDir != me.WorkDir {
			return nil, &HostHeldError{Host: h.Name(), Holder: holder.Holder}
		}
		// Left behind by an earlier process of this work directory, whose half
		// of the lock on the laptop we hold.
		if err := h.Run(ctx, "rm -f "+remote.Quote(hostLock)); err != nil {
			return nil, err
		}
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseDeadline)
		defer cancel()
		if err := h.Run(ctx, "rm -f "+remote.Quote(hostLock)); err != nil && !errors.Is(err, remote.ErrConnectionLost) {
			return fmt.Errorf("host %s: giving up the lock %s: %w", h.Name(), hostLock, err)
		}
		return nil
	}, nil
}

// hostJournal is the journal's copy on the host, from which another laptop can
// take over.
const hostJournal = remote.StateDir + "/journal.jsonl"

// mirror appends a line of the journal to its copy. The first line of a run
// begins the copy anew; a line that is there already came twice.
func (m *Migration) mirror(ctx context.Context, line []byte) error {
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	// The line of an interrupted run is still to be mirrored.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseDeadline)
	defer cancel()
	var head struct{ Seq int }
	if err := json.Unmarshal(line, &head); err != nil {
		return err
	}
	script := fmt.Sprintf(`umask 077; mkdir -p %[1]s; IFS= read -r line
grep -qxF -e "$line" %[2]s 2>/dev/null || printf '%%s\n' "$line" >>%[2]s && sync %[2]s`, remote.StateDir, hostJournal)
	if head.Seq == 1 {
		script = fmt.Sprintf(`umask 077; mkdir -p %[1]s; cat >%[2]s.new && mv %[2]s.new %[2]s && sync %[2]s`, remote.StateDir, hostJournal)
	}
	return h.Run(ctx, script, remote.Stdin(bytes.NewReader(line)))
}
