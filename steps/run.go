package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

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
	lock, err := runner.Acquire(m.LockPath())
	var held *runner.HeldError
	if errors.As(err, &held) {
		return err
	}
	if err != nil {
		return fmt.Errorf("laptop: using the work directory %s (spec.workDir): %w", m.Plan.Spec.WorkDir, err)
	}
	defer lock.Release()
	// An earlier process may have been killed while the platform command ran.
	if err := os.Remove(m.kubeconfig()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("laptop: removing a kubeconfig that an earlier run left: %w", err)
	}
	if err := m.lookAnew(); err != nil {
		return err
	}
	journal, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return err
	}
	defer journal.Close()
	r := runner.Runner{Steps: m.Sequence(), Bind: m.Bind(), Journal: journal, Observer: observer, Confirm: confirm}
	const lookOnly = "preflight"
	if until == "survey" || until == lookOnly || journal.State().Finished {
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
	journal.Mirror = func(line []byte) error { return m.mirror(ctx, line) }
	return r.Run(ctx, until)
}

// lookAnew forgets a run that only looked: the admin has been repairing host or
// plan since, and the facts are to be taken, and judged, as they are now.
func (m *Migration) lookAnew() error {
	begun, err := m.Begun()
	if err != nil || begun {
		return err
	}
	m.Facts = nil
	for _, file := range []string{m.JournalPath(), m.JournalPath() + ".mirrored", m.file(factsFile)} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("laptop: beginning anew: %w", err)
		}
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
	if err != nil {
		return false, err
	}
	for _, step := range s.Steps {
		if step.Step != "survey" && step.Step != "preflight" {
			return true, nil
		}
	}
	return false, nil
}

// GiveUp is what a person types to have the old cluster back while nothing was
// removed yet; empty when K3s was not stopped, or is being uninstalled.
func (m *Migration) GiveUp() string {
	s, err := m.State()
	if err != nil || m.Facts == nil {
		return ""
	}
	stopped := false
	for _, a := range s.Actions {
		if a.Step == "uninstall" && a.Action == "uninstall" {
			return ""
		}
		stopped = stopped || a.Step == "quiesce" && a.Action == "stop"
	}
	if !stopped {
		return ""
	}
	return "systemctl enable --now " + m.Facts.K3s.UnitName()
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
