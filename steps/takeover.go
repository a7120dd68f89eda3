package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// Another laptop with a copy of the plan takes a run over from what the host
// keeps of it: the journal, the facts, and the lock that names the laptop which
// has the run, or lastHolder once it ended. The backup set is not on the host;
// a person copies it.
//
// The lock on the host is the fence: it changes hands, and the journal's copy
// grows, in turns (a flock of the directory). A laptop that no longer finds its
// own name in the lock adds nothing to the copy, cancels what it does, and
// begins nothing more. So the copy is what the holder of the lock did, and a
// laptop whose journal goes on otherwise has been overtaken.
const (
	lastHolder = hostLock + ".last"
	hostFacts  = remote.StateDir + "/facts.json"
)

// inTurn stands before a script that reads or changes what the host keeps of the
// run, and has it wait for others. The script's input is taken before its turn
// comes, and only when all of it came: one whose line was cut may wait for the rest
// for as long as its TCP connection lives, or find an end that is none.
func inTurn(input []byte) string {
	return fmt.Sprintf(`umask 077; mkdir -p -m 0700 %[1]s && in=$(mktemp %[1]s/.in.XXXXXX) && trap 'rm -f "$in"' EXIT && cat >"$in" || exit 1
[ "$(wc -c <"$in")" -eq %[2]d ] || { echo "the input was cut off" >&2; exit 1; }
exec <"$in" 9<%[1]s && flock -w %[3]d 9 || { echo "others have their turn for too long" >&2; exit 1; }
`, remote.StateDir, len(input), int(turnDeadline.Seconds()))
}

// turnDeadline bounds the wait for others, who are at it for an instant only.
const turnDeadline = 30 * time.Second

// Exit statuses of scripts.
const (
	notMine  = 49 // the lock is not the one that was expected
	wantsAll = 48 // one line cannot be added to the copy of the journal: it lacks others, or is torn
)

func exited(err error, code int) bool {
	var exit *remote.ExitError
	return errors.As(err, &exit) && exit.Code == code
}

// watchPeriod is how often a run looks whether it was overtaken while an action takes long.
// Whoever takes over waits a little longer than that; tests shorten it.
var watchPeriod = 10 * time.Second

// Claim is what a take-over would take, for a person to agree to.
type Claim struct {
	Host string
	// Holder has the lock on the host; nil when nobody does. By WorkDir it is told from
	// another run on the same laptop.
	Holder  *runner.Holder
	WorkDir string
	// LockAge, and RecordAge of the journal's last record, are by the host's clock
	// alone: the laptops' may differ.
	LockAge, RecordAge time.Duration
	Records            int    // of the journal
	Last               string // its last record, in words; "" when there is no run to continue
	// Whole says that this laptop has all of the journal and takes the lock alone.
	Whole bool
	// Set is where the backup set lies, as scp names it; "" when nobody knows.
	Set string
	// Anew says that the run is not continued: nothing was stopped yet, and its
	// backup set is not on this laptop, so that another begins.
	Anew bool
}

// TakeOver makes this laptop the one that has the run on the host: it takes the
// host's lock, whoever holds it, and the run's journal and facts from their copies, for
// Run or, with back, Rollback to continue. confirm is shown the claim and asked.
// Wherever it is killed, the earlier holder has the run still or the same command completes it.
//
// A set that lacks what the run needs is a *MissingSetError, a journal here of another
// run a *DivergedError, another machine than the run's a *MachineError; with another plan
// than the run's a forward run is refused as by Run. Nothing was taken then.
func (m *Migration) TakeOver(ctx context.Context, back bool, confirm func(context.Context, Claim) (bool, error)) error {
	lock, err := m.lockLaptop()
	if err != nil {
		return err
	}
	defer lock.Release()
	found, err := m.look(ctx)
	if err != nil {
		return err
	}
	claim, err := m.claim(found, back)
	if err != nil {
		return err
	}
	if found.holder == nil && claim.Last == "" {
		return nil // there is no run to take
	}
	me := hostHolder{Holder: runner.Self(), WorkDir: m.Plan.Spec.WorkDir}
	if found.holder == nil || !found.holder.sameHome(me) {
		yes, err := confirm(ctx, claim)
		if err != nil {
			return err
		}
		if !yes {
			return runner.ErrDeclined
		}
		if err := m.replaceHolder(ctx, me, found); err != nil {
			return err
		}
		found.lockAge = 0
	} else if claim.Whole {
		return nil // this laptop has the run
	}
	if found.holder != nil {
		if err := m.waitForOvertaken(ctx, found.lockAge); err != nil {
			return err
		}
	}
	// What the earlier holder wrote while a person was asked; from now on it cannot.
	if found, err = m.look(ctx); err != nil {
		return err
	}
	if claim, err = m.claim(found, back); err != nil {
		return err
	}
	switch {
	case claim.Whole, claim.Last == "":
		return nil
	case claim.Anew:
		return m.drop(ctx, found)
	}
	return m.adopt(found)
}

// claim judges what a take-over would take. The facts of the run become the
// migration's where they are needed for it.
func (m *Migration) claim(found *traces, back bool) (Claim, error) {
	c := Claim{Host: m.Plan.Server().Name, LockAge: found.lockAge, RecordAge: found.recordAge, Records: len(found.records)}
	if found.holder != nil {
		c.Holder, c.WorkDir = &found.holder.Holder, found.holder.WorkDir
	}
	if found.damaged != nil {
		return c, fmt.Errorf("host %s: its copy %s of the run's journal: %w", c.Host, hostJournal, found.damaged)
	}
	records, state, err := m.recorded()
	if err != nil {
		return c, err
	}
	n := shared(records, found.records)
	if n == 0 && found.over() {
		c.Anew = true
		return c, nil
	}
	last := found.records[len(found.records)-1]
	c.Last = strings.Trim(last.Step+", "+last.Action, ", ") + ": " + string(last.Event)
	if n == 0 && begun(state) && state.RolledBack != whole {
		return c, &DivergedError{Host: c.Host, WorkDir: m.Plan.Spec.WorkDir}
	}
	if !back && !found.over() && found.state.Rollback == nil {
		if err := m.boundAlike(found); err != nil {
			return c, err
		}
	}
	if c.Whole = n == len(found.records); c.Whole {
		return c, nil
	}
	if found.facts == nil {
		return c, fmt.Errorf("host %s: the facts of the run, %s, are missing: copy %s from the work directory of the laptop that had the run to that path on the host, then repeat", c.Host, hostFacts, factsFile)
	}
	if was := found.facts.Host.MachineID; was != found.machineID {
		return c, &MachineError{Host: c.Host, Was: was, Is: found.machineID}
	}
	m.Facts = found.facts
	if found.over() {
		return c, nil
	}
	lacks, err := m.lacking(found.state)
	if err != nil || len(lacks) == 0 {
		return c, err
	}
	if had := found.setHolder(m.Plan.Spec.WorkDir); had != nil {
		c.Set = fmt.Sprintf("%s@%s:%s", had.User, had.Host, remote.Quote(filepath.Join(had.WorkDir, setDir)))
	}
	uninstalled := begunStep(found.state, "uninstall")
	switch {
	case !stopped(found.state) && found.state.Rollback == nil:
		c.Anew = true
	case back && !uninstalled: // the old cluster starts from what is on the host
	default:
		return c, &MissingSetError{Host: c.Host, Lacks: lacks, From: c.Set, To: m.SetDir(), Uninstalled: uninstalled}
	}
	return c, nil
}

// boundAlike refuses a plan that is not the run's: the runner is asked to go on with the
// copy of the journal, in a context that has ended, so that it compares and does nothing.
func (m *Migration) boundAlike(found *traces) error {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	r := runner.Runner{Steps: m.Sequence(), Bind: m.bind(found.hostKey), Journal: found.copied}
	var changed *runner.ChangedError
	if err := r.Run(ended, ""); errors.As(err, &changed) {
		return changed
	}
	return nil
}

// replaceHolder makes me the holder of the host's lock when the one that was
// found is still the holder.
func (m *Migration) replaceHolder(ctx context.Context, me hostHolder, found *traces) error {
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	line, err := json.Marshal(me)
	if err != nil {
		return err
	}
	input := slices.Concat(line, []byte("\n"), found.lock, []byte("\n"))
	err = h.Run(ctx, inTurn(input)+fmt.Sprintf(`IFS= read -r me; IFS= read -r seen
[ "$(cat %[1]s 2>/dev/null)" = "$seen" ] || exit %[3]d
printf '%%s\n' "$me" >%[1]s.new && sync %[1]s.new || exit 1
[ -z "$seen" ] || cp -p %[1]s %[2]s || exit 1
mv %[1]s.new %[1]s && sync %[4]s`, hostLock, lastHolder, notMine, remote.StateDir),
		remote.Stdin(bytes.NewReader(input)))
	switch {
	case exited(err, notMine):
		return fmt.Errorf("host %s: the lock %s has changed hands since you were asked; nothing was taken over: repeat the command to see by whom", h.Name(), hostLock)
	case err != nil:
		return fmt.Errorf("host %s: taking over the lock %s: %w", h.Name(), hostLock, err)
	}
	return nil
}

// waitForOvertaken gives the run that lost the lock, should it live, the time to
// notice and to stop.
func (m *Migration) waitForOvertaken(ctx context.Context, since time.Duration) error {
	t := m.Progress.Wait("Waiting until the other laptop, should it still be running, has noticed")
	defer t.Done()
	select {
	case <-time.After(watchPeriod + watchPeriod/2 - since):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// adopt writes the run's journal and facts into the work directory, durable. What
// was here of the same run and went on otherwise was written after another laptop
// took over; it is put aside.
func (m *Migration) adopt(found *traces) error {
	if err := m.makeWay(found); err != nil {
		return err
	}
	if err := os.MkdirAll(m.Plan.Spec.WorkDir, 0o700); err != nil {
		return fmt.Errorf("laptop: making the work directory: %w", err)
	}
	last := found.records[len(found.records)-1].Sum
	// The journal comes after the facts that it needs, and before the mark that
	// it has to bear out.
	for _, f := range []struct {
		name string
		data []byte
	}{{factsFile, found.factsText}, {journalFile, found.journal}, {journalFile + ".mirrored", []byte(last)}} {
		if err := renameio.WriteFile(m.file(f.name), f.data, 0o600, renameio.IgnoreUmask()); err != nil {
			return fmt.Errorf("laptop: taking over %s: %w", m.file(f.name), err)
		}
	}
	dir, err := os.Open(m.Plan.Spec.WorkDir)
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("laptop: taking over the run: %w", err)
	}
	m.Facts = found.facts
	return nil
}

// makeWay takes out of the work directory what is of no run, of one that is over, or
// of this one as it did not go on.
func (m *Migration) makeWay(found *traces) error {
	if err := m.beginAnew(); err != nil {
		return err
	}
	records, state, err := m.recorded()
	if err != nil {
		return err
	}
	if err := os.Remove(m.JournalPath() + ".mirrored"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("laptop: taking over the run: %w", err)
	}
	if shared(records, found.records) == len(records) {
		return nil
	}
	aside := m.file(fmt.Sprintf("journal.%s.%.8s.jsonl", state.Run, records[len(records)-1].Sum))
	if err := os.Rename(m.JournalPath(), aside); err != nil {
		return fmt.Errorf("laptop: putting aside what was recorded here after the run was taken over: %w", err)
	}
	return nil
}

// drop forgets a run that stopped nothing, here and on the host.
func (m *Migration) drop(ctx context.Context, found *traces) error {
	if err := m.makeWay(found); err != nil {
		return err
	}
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	m.Facts = nil
	for _, file := range []string{m.file(factsFile), m.JournalPath()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("laptop: beginning anew: %w", err)
		}
	}
	if err := h.Run(ctx, inTurn(nil)+"rm -f "+hostJournal+" "+hostFacts); err != nil {
		return fmt.Errorf("host %s: beginning anew: %w", h.Name(), err)
	}
	return nil
}

// lacking names the artifacts that the run has made and the set here lacks.
func (m *Migration) lacking(state runner.State) ([]string, error) {
	var made []string
	if begunStep(state, "protect") {
		made = m.hotArtifacts()
	}
	for _, a := range state.Actions {
		if a.Step != "freeze" || a.Status != runner.Done {
			continue
		}
		switch pv, isVolume := strings.CutPrefix(a.Action, "volume "); {
		case isVolume:
			made = append(made, backup.VolumeRef{ID: pv}.Artifacts()...)
		case a.Action == k3sDatabase, a.Action == k3sState:
			made = append(made, a.Action)
		}
	}
	if !m.hasSet() {
		return made, nil
	}
	set, err := backup.Open(m.SetDir(), nil, nil)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(made, func(name string) bool {
		a, ok := set.Artifact(name)
		if !ok {
			return false
		}
		st, err := os.Stat(filepath.Join(m.SetDir(), a.File))
		return err == nil && st.Size() == a.Size
	}), nil
}

// begunStep tells whether the run has begun a step, and not taken it back.
func begunStep(s runner.State, step string) bool {
	return slices.ContainsFunc(s.Steps, func(x runner.StepState) bool { return x.Step == step })
}

// stopped tells whether the run may have stopped K3s, and not taken that back.
func stopped(s runner.State) bool {
	_, begun := s.ActionState("quiesce", "stop")
	return begun
}

// recorded is what the journal here holds.
func (m *Migration) recorded() ([]runner.Record, runner.State, error) {
	j, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return nil, runner.State{}, err
	}
	defer j.Close()
	return j.Records(), j.State(), nil
}

// shared counts the records that two journals have in common from the first on.
func shared(a, b []runner.Record) int {
	n := 0
	for n < min(len(a), len(b)) && a[n].Sum == b[n].Sum {
		n++
	}
	return n
}

// traces are what the host keeps of a run.
type traces struct {
	machineID, hostKey string

	lock    []byte
	lockAge time.Duration // by the host's clock
	holder  *hostHolder   // nil: nobody holds the lock
	last    *hostHolder   // who had it last, or from whom it was taken; nil: nobody

	journal   []byte
	recordAge time.Duration
	copied    *runner.Journal // the same, to be read only; nil: there is none, or it is damaged
	records   []runner.Record
	state     runner.State
	damaged   error

	factsText []byte
	facts     *survey.Facts // nil: none are kept
}

// over tells that there is no run to continue.
func (t *traces) over() bool {
	return t.damaged == nil && (t.state.Run == "" || t.state.Finished || t.state.RolledBack == whole)
}

// setHolder is whose work directory the backup set lies in, if another than this.
func (t *traces) setHolder(workDir string) *hostHolder {
	here := hostHolder{Holder: runner.Self(), WorkDir: workDir}
	for _, h := range []*hostHolder{t.holder, t.last} {
		if h != nil && !h.sameHome(here) {
			return h
		}
	}
	return nil
}

// look reads what the host keeps of a run, in one round trip, and changes nothing.
func (m *Migration) look(ctx context.Context) (*traces, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	// Of each file a line with name, age in seconds and size, then its contents;
	// copies are sent, since a line that was cut would keep others from their turn.
	err = h.Run(ctx, fmt.Sprintf(`cat /etc/machine-id || exit 1
cd %s 2>/dev/null || exit 0
exec 9<. && flock -w %d 9 || { echo "others have their turn for too long" >&2; exit 1; }
umask 077; copies=$(mktemp -d) && trap 'rm -rf "$copies"' EXIT || exit 1
for f in %[3]s; do if [ -f "$f" ]; then cp -p "$f" "$copies" || exit 1; fi; done
exec 9<&-
cd "$copies" || exit 1
now=$(date +%%s)
for f in %[3]s; do
	if [ -f "$f" ]; then echo "$f $((now - $(stat -c %%Y "$f"))) $(wc -c <"$f")" && cat "$f" || exit 1; fi
done`, remote.StateDir, int(turnDeadline.Seconds()), remote.Quote(path.Base(hostLock), path.Base(lastHolder), path.Base(hostJournal), path.Base(hostFacts))), remote.Stdout(&out))
	if err != nil {
		return nil, fmt.Errorf("host %s: looking what %s keeps of a run: %w", h.Name(), remote.StateDir, err)
	}
	t := &traces{hostKey: h.HostKey()}
	id, _ := out.ReadString('\n')
	t.machineID = strings.TrimSpace(id)
	for out.Len() > 0 {
		var (
			name          string
			seconds, size int
		)
		line, _ := out.ReadString('\n')
		if _, err := fmt.Sscan(line, &name, &seconds, &size); err != nil || size > out.Len() {
			return nil, fmt.Errorf("host %s: looking what %s keeps of a run: unexpected output %q", h.Name(), remote.StateDir, line)
		}
		data := bytes.Clone(out.Next(size))
		age := max(0, time.Duration(seconds)*time.Second)
		switch name {
		case path.Base(hostLock):
			t.lock, t.lockAge = bytes.TrimSpace(data), age
			t.holder = &hostHolder{}
			if err := json.Unmarshal(data, t.holder); err != nil {
				return nil, damagedLock(h)
			}
		case path.Base(lastHolder):
			var last hostHolder
			if json.Unmarshal(data, &last) == nil { // it only helps to find the set
				t.last = &last
			}
		case path.Base(hostJournal):
			t.journal, t.recordAge = data, age
			if t.copied, t.damaged = read(data); t.damaged == nil {
				t.records, t.state = t.copied.Records(), t.copied.State()
			}
		case path.Base(hostFacts):
			t.factsText, t.facts = data, &survey.Facts{}
			if err := json.Unmarshal(data, t.facts); err != nil {
				return nil, fmt.Errorf("host %s: reading the facts of the run in %s: %w: copy %s there from the work directory of the laptop that had the run", h.Name(), hostFacts, err, factsFile)
			}
		}
	}
	return t, nil
}

// read reads a copy of a journal as the journal itself is read.
func read(data []byte) (*runner.Journal, error) {
	dir, err := os.MkdirTemp("", "migrate-journal-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, journalFile)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, err
	}
	return runner.OpenJournal(file)
}

// notElsewhere refuses to go on with the journal here, which has the records, where the
// host's copy shows that the run was carried on from elsewhere, or that another run is
// to be completed first. Without records a new run is to begin: what is here is of one that
// is over, whether it was put aside yet or not.
func (m *Migration) notElsewhere(found *traces, records []runner.Record) error {
	n := shared(records, found.records)
	refusal := &ElsewhereError{Host: m.Plan.Server().Name, By: found.setHolder(m.Plan.Spec.WorkDir), Age: found.recordAge}
	_, err := os.Stat(m.JournalPath() + ".mirrored")
	mirrored := err == nil && len(records) > 0 // the copy was of our journal once
	switch {
	case found.damaged != nil:
		if mirrored {
			return nil // it is only the copy
		}
		return fmt.Errorf("host %s: its copy %s of a run's journal: %w; what that run did cannot be told: if you know that it is over, remove the copy", m.Plan.Server().Name, hostJournal, found.damaged)
	case n == len(found.records):
		return nil // the copy lacks what the next records bring
	case n > 0, mirrored:
		return refusal
	case !found.over() && (stopped(found.state) || found.state.Rollback != nil):
		// The copy may lack the end of a run of ours: a rollback was killed when all
		// but its mirroring was done, and the journal is put aside for a new run.
		for _, file := range []string{m.JournalPath(), m.file("journal." + found.state.Run + ".jsonl")} {
			own, err := runner.OpenJournal(file)
			if err != nil {
				return err
			}
			n = max(n, shared(own.Records(), found.records))
			own.Close()
		}
		if n < len(found.records) {
			return refusal
		}
	}
	return nil // of a run that is over or stopped nothing; our first record replaces it
}

// mirrorFacts keeps a copy of the facts on the host.
func (m *Migration) mirrorFacts(ctx context.Context, facts *survey.Facts) error {
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	data, err := json.Marshal(facts)
	if err != nil {
		return err
	}
	if err := h.Run(ctx, inTurn(data)+fmt.Sprintf("cat >%[1]s.new && sync %[1]s.new && mv %[1]s.new %[1]s", hostFacts), remote.Stdin(bytes.NewReader(data))); err != nil {
		return fmt.Errorf("host %s: keeping the facts of the run in %s: %w", h.Name(), hostFacts, err)
	}
	return nil
}

// ElsewhereError says that the run is to be continued from what the host keeps
// of it, not from what this laptop has.
type ElsewhereError struct {
	Host string
	By   *hostHolder   // nil: not known
	Age  time.Duration // of the last record, by the host's clock
}

func (e *ElsewhereError) Error() string {
	by := "from elsewhere"
	if e.By != nil {
		by = fmt.Sprintf("by %s@%s (work directory %s)", e.By.User, e.By.Host, e.By.WorkDir)
	}
	return fmt.Sprintf("host %s: the run was carried on %s, its last record %s ago, beyond what this work directory knows; nothing was done: continue it there, or here with `migrate run --take-over`",
		e.Host, by, e.Age)
}

// DivergedError says that the work directory has a run of its own.
type DivergedError struct{ Host, WorkDir string }

func (e *DivergedError) Error() string {
	return fmt.Sprintf("host %s: the run to be taken over is another one than that of which %s holds the journal; nothing was taken over: name another spec.workDir in this laptop's plan, then repeat",
		e.Host, e.WorkDir)
}

// MissingSetError says that the backup set of the run to be taken over is not on this laptop.
type MissingSetError struct {
	Host        string
	Lacks       []string // artifacts
	From, To    string   // where it lies, as scp names it, "" when unknown; and where it is needed
	Uninstalled bool     // whether the old cluster cannot be started again without it
}

func (e *MissingSetError) Error() string {
	how := "from the laptop that had the run, the directory " + setDir + " in its work directory, to " + e.To
	if e.From != "" {
		how = fmt.Sprintf("rsync -a %s/ %s/", e.From, remote.Quote(e.To))
	}
	text := fmt.Sprintf("host %s: the run to be taken over has stopped K3s, and this laptop lacks %d artifacts of its backup set (%s); copy the set here, then repeat: %s",
		e.Host, len(e.Lacks), few(e.Lacks), how)
	if !e.Uninstalled {
		text += "\nWithout the set, K3s can be started again as it was, since it was not uninstalled yet: migrate rollback --take-over"
	}
	return text
}

// TakenOverError says that another laptop took the run over while it was under way.
type TakenOverError struct {
	Host string
	By   *hostHolder   // nil: the lock was given up again since, or removed
	Age  time.Duration // of its lock, by the host's clock
}

func (e *TakenOverError) Error() string {
	by := "the lock " + hostLock + " is gone: another laptop took the run over and has ended, or a person removed it"
	if e.By != nil {
		by = fmt.Sprintf("the run was taken over %s ago by %s (work directory %s)", e.Age, e.By.Holder, e.By.WorkDir)
	}
	return fmt.Sprintf("host %s: %s; this run has stopped, and what it was doing is settled by whoever continues: the other laptop, or this one with `migrate run --take-over`", e.Host, by)
}

func damagedLock(h *remote.Host) error {
	return fmt.Errorf("host %s: the lock %s is damaged: when no other run is under way, remove the file", h.Name(), hostLock)
}
