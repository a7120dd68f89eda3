package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/gofrs/flock"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// The test binary runs itself as a laptop that takes over and is killed meanwhile;
// the variable holds its plan's host and work directory.
const taker = "STEPS_TEST_TAKER"

func TestMain(m *testing.M) {
	if os.Getenv(taker) == "" {
		os.Exit(m.Run())
	}
	watchPeriod = time.Millisecond
	var b laptop
	err := json.Unmarshal([]byte(os.Getenv(taker)), &b)
	if err == nil {
		err = b.migration().TakeOver(context.Background(), false, agree)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func agree(context.Context, Claim) (bool, error) { return true, nil }

// laptop is a work directory with a plan: of two on one machine, each is another
// laptop to the lock on the host.
type laptop struct {
	Host           plans.Host
	WorkDir        string
	Recipient, Key string
}

func (l laptop) migration() *Migration {
	plan, err := plans.Decode(fmt.Appendf(nil, minimal, 1), "/home/ana")
	if err != nil {
		panic(err) // the tests' own plan
	}
	plan.Spec.Hosts, plan.Spec.WorkDir = []plans.Host{l.Host}, l.WorkDir
	plan.Spec.Backup.Encryption = plans.Encryption{Recipients: []string{l.Recipient}, Identities: []string{l.Key}}
	m, err := New(plan, nil, io.Discard)
	if err != nil {
		panic(err)
	}
	return m
}

// two are laptops ana and bo and a real SSH server on this machine, which keeps the run's
// traces in the place that every host has for it.
func two(t *testing.T) (ana, bo laptop) {
	t.Helper()
	watchPeriod = 200 * time.Millisecond
	t.Cleanup(func() { watchPeriod = 10 * time.Second })
	machineAlone(t)
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(key, []byte(id.String()+"\n"), 0o600))
	host := sshtest.Start(t)
	return laptop{host, filepath.Join(dir, "ana"), id.Recipient().String(), key}, laptop{host, filepath.Join(dir, "bo's work"), id.Recipient().String(), key}
}

// machineAlone has the test's place on this machine to itself, where a host keeps the run's traces.
func machineAlone(t testing.TB) {
	t.Helper()
	sshtest.Root(t)
	// The place is one for the machine: another process of these tests has its turn first, and
	// what one left that was killed lies with a work directory among the temporary files.
	turn := flock.New(filepath.Join(os.TempDir(), "k3s-dualstack-steps-test.lock"))
	require.NoError(t, turn.Lock())
	t.Cleanup(func() { require.NoError(t, turn.Unlock()) })
	if lock, err := os.ReadFile(hostLock); err == nil {
		require.Contains(t, string(lock), `"workDir":"`+os.TempDir(), "this machine is being migrated")
	}
	forget := func() {
		for _, f := range []string{hostLock, lastHolder, hostJournal, hostFacts} {
			require.NoError(t, os.RemoveAll(f))
		}
	}
	forget()
	t.Cleanup(forget)
}

// begin has the laptop begin a run and record, holding the host; it returns the journal, the
// context of its run, and what gives the host up.
func begin(t *testing.T, l laptop, records ...runner.Record) (*Migration, *runner.Journal, context.Context, func(error) error) {
	t.Helper()
	m := l.migration()
	t.Cleanup(func() { m.Close() })
	m.Facts = facts(t)
	id, err := os.ReadFile("/etc/machine-id")
	require.NoError(t, err)
	m.Facts.Host.MachineID = strings.TrimSpace(string(id))
	require.NoError(t, m.keep(factsFile, m.Facts))
	h, err := m.Host(t.Context())
	require.NoError(t, err)
	bind, err := json.Marshal(m.bind(h.HostKey()))
	require.NoError(t, err)
	j, err := runner.OpenJournal(m.JournalPath())
	require.NoError(t, err)
	t.Cleanup(func() { j.Close() })
	ctx, release, err := m.holdHost(t.Context(), j)
	require.NoError(t, err)
	require.NoError(t, m.mirrorFacts(ctx, m.Facts))
	for _, r := range append([]runner.Record{{Event: runner.Begin, Data: bind}}, records...) {
		require.NoError(t, j.Append(r))
	}
	return m, j, ctx, release
}

func did(step string, actions ...string) []runner.Record {
	var out []runner.Record
	for _, a := range actions {
		out = append(out, runner.Record{Event: runner.Intent, Step: step, Action: a}, runner.Record{Event: runner.Done, Step: step, Action: a})
	}
	return append(out, runner.Record{Event: runner.StepComplete, Step: step})
}

// How far a run is: quiet has stopped K3s, with all that Run asks for before; the others are
// the least that tells it.
var (
	quiet     = slices.Concat(did("survey", "facts"), did("preflight", "checks"), protected, did("quiesce", "stop"))
	protected = []runner.Record{{Event: runner.Intent, Step: "protect", Action: objects}}
	stopping  = append(protected[:1:1], runner.Record{Event: runner.Intent, Step: "quiesce", Action: "stop"})
)

// hold makes the set that the gate asks for in the laptop's work directory.
func (l laptop) hold(t *testing.T) {
	t.Helper()
	m := l.migration()
	m.Facts = facts(t)
	for _, name := range m.artifacts() {
		require.NoError(t, m.create(name, backup.KindFile, func(w io.Writer) error {
			_, err := io.WriteString(w, name)
			return err
		}))
	}
}

// A laptop that slept at the question of a return by snapshot finds no lock: what was taken over and ended meanwhile is told
// from what the return itself takes away.
func TestLockThatIsAway(t *testing.T) {
	ana, _ := two(t)
	m := ana.migration()
	defer m.Close()
	h, err := m.Host(t.Context())
	require.NoError(t, err)
	self := hostHolder{Holder: runner.Self(), WorkDir: ana.WorkDir}
	me, err := json.Marshal(self)
	require.NoError(t, err)
	holder := func(since time.Duration, dir string) string {
		other := self
		other.Since, other.WorkDir = self.Since.Add(since), dir
		data, err := json.Marshal(other)
		require.NoError(t, err)
		return string(data) + "\n"
	}
	for _, c := range []struct {
		name, via, last string
		taken           bool
	}{
		{"by nobody", ViaSnapshot, "", false},
		{"by nobody since: the snapshot has it", ViaSnapshot, holder(-time.Hour, "/bo"), false},
		{"by this run before", ViaSnapshot, string(me) + "\n", false},
		{"by this work directory", ViaSnapshot, holder(time.Hour, ana.WorkDir), false},
		{"by another since, who has ended", ViaSnapshot, holder(time.Hour, "/bo"), true},
		{"what the last holder left is damaged", ViaSnapshot, "{", false},
		{"where no snapshot takes it away", ViaBackup, "", true},
		{"where no snapshot takes it away, by one before", ViaBackup, holder(-time.Hour, "/bo"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(hostLock))
			require.NoError(t, os.RemoveAll(lastHolder))
			if c.last != "" {
				require.NoError(t, os.MkdirAll(filepath.Dir(lastHolder), 0o700))
				require.NoError(t, os.WriteFile(lastHolder, []byte(c.last), 0o600))
			}
			m.Via = c.via
			err := m.asHolder(t.Context(), h, me, nil, "echo written >&2")
			var taken *TakenOverError
			if c.taken {
				require.ErrorAs(t, err, &taken)
			} else {
				require.ErrorIs(t, err, errLockAway)
			}
		})
	}
}

func contents(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(data)
}

func TestTakeOverFromALaptopThatEnded(t *testing.T) {
	ana, bo := two(t)
	a, j, _, release := begin(t, ana, quiet...)
	require.NoError(t, release(nil))
	require.Equal(t, contents(t, a.JournalPath()), contents(t, hostJournal), "the copy")
	bo.hold(t)

	var claim Claim
	b := bo.migration()
	defer b.Close()
	require.NoError(t, b.TakeOver(t.Context(), false, func(_ context.Context, c Claim) (bool, error) { claim = c; return true, nil }))
	assert.Nil(t, claim.Holder, "nobody holds the lock")
	assert.Equal(t, "quiesce: complete", claim.Last)
	assert.Equal(t, len(j.Records()), claim.Records)
	assert.False(t, claim.Anew)
	assert.Less(t, claim.RecordAge, time.Minute)

	assert.Equal(t, contents(t, a.JournalPath()), contents(t, b.JournalPath()))
	assert.JSONEq(t, contents(t, a.file(factsFile)), contents(t, b.file(factsFile)))
	assert.Equal(t, contents(t, a.JournalPath()+".mirrored"), contents(t, b.JournalPath()+".mirrored"))
	assert.Equal(t, a.Facts.Digest(), b.Facts.Digest())
	for _, f := range []string{b.JournalPath(), b.file(factsFile), hostLock, hostJournal, hostFacts} {
		st, err := os.Stat(f)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), st.Mode().Perm(), f)
	}
	assert.Contains(t, contents(t, hostLock), `"workDir":"`+bo.WorkDir)

	// The journal goes on here and on the host, and ana is refused.
	bj, err := runner.OpenJournal(b.JournalPath())
	require.NoError(t, err)
	_, release, err = b.holdHost(t.Context(), bj)
	require.NoError(t, err)
	require.NoError(t, bj.Append(runner.Record{Event: runner.Intent, Step: "freeze", Action: k3sState}))
	_, _, err = a.holdHost(t.Context(), j)
	var held *HostHeldError
	require.ErrorAs(t, err, &held)
	assert.Contains(t, err.Error(), "--take-over")
	require.NoError(t, release(nil))
	require.NoError(t, bj.Close())
	assert.Equal(t, contents(t, b.JournalPath()), contents(t, hostJournal))

	var elsewhere *ElsewhereError
	again := ana.migration()
	defer again.Close()
	require.ErrorAs(t, again.Run(t.Context(), "", nil, nil), &elsewhere)
	assert.Contains(t, elsewhere.Error(), bo.WorkDir)
	assert.Contains(t, elsewhere.Error(), "--take-over")
	assert.NoFileExists(t, hostLock, "what is refused does not hold the host")

	// It had the run before: it goes on with what bo did.
	ana.hold(t)
	require.NoError(t, again.TakeOver(t.Context(), false, agree))
	assert.Equal(t, contents(t, hostJournal), contents(t, again.JournalPath()))
}

func TestTakeOverFromALaptopThatLives(t *testing.T) {
	ana, bo := two(t)
	a, j, ctx, release := begin(t, ana, stopping...)
	bo.hold(t)
	ana.hold(t)
	took := make(chan error, 1)
	b := bo.migration()
	defer b.Close()
	go func() {
		took <- b.TakeOver(context.Background(), false, func(_ context.Context, c Claim) (bool, error) {
			if c.Holder == nil || c.WorkDir != ana.WorkDir || c.Holder.PID != os.Getpid() || c.LockAge > time.Minute {
				return false, fmt.Errorf("claim %+v", c)
			}
			return true, nil
		})
	}()
	// An action that takes long ends without a record being written.
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it does not notice")
	}
	require.NoError(t, <-took)
	var taken *TakenOverError
	require.ErrorAs(t, context.Cause(ctx), &taken)
	require.NotNil(t, taken.By)
	assert.Equal(t, bo.WorkDir, taken.By.WorkDir)

	copied := contents(t, hostJournal)
	require.NoError(t, j.Append(runner.Record{Event: runner.Failed, Step: "freeze", Action: k3sState, Error: "cut off"}), "the mirror's failure is none of the journal's")
	assert.Equal(t, copied, contents(t, hostJournal), "nothing is added any longer")
	err := release(&runner.StepError{Step: "freeze", Err: context.Canceled})
	require.ErrorAs(t, err, &taken)
	assert.NotErrorIs(t, err, context.Canceled, "nobody interrupted it")
	assert.Contains(t, err.Error(), bo.WorkDir)
	assert.Contains(t, contents(t, hostLock), bo.WorkDir, "the lock is bo's to give up")
	require.NoError(t, j.Close())

	bj, err := runner.OpenJournal(b.JournalPath())
	require.NoError(t, err)
	_, release, err = b.holdHost(t.Context(), bj)
	require.NoError(t, err)
	require.NoError(t, bj.Append(runner.Record{Event: runner.Intent, Step: "freeze", Action: k3sState}))
	require.NoError(t, release(nil))
	require.NoError(t, bj.Close())
	copied = contents(t, hostJournal)

	// What ana wrote after is kept, and not what the run goes on from.
	again := ana.migration()
	defer again.Close()
	require.NoError(t, again.TakeOver(t.Context(), false, agree))
	assert.Equal(t, copied, contents(t, again.JournalPath()))
	aside, err := filepath.Glob(filepath.Join(ana.WorkDir, "journal.*.*.jsonl"))
	require.NoError(t, err)
	require.Len(t, aside, 1)
	assert.Contains(t, contents(t, aside[0]), "cut off")
	assert.Contains(t, contents(t, hostLock), a.Plan.Spec.WorkDir)
}

// Nothing is begun once the lock is another's, not even the action whose intent found it out.
func TestOvertakenRunBeginsNothing(t *testing.T) {
	ana, bo := two(t)
	watchPeriod = time.Hour // the record alone is to notice
	a, j, ctx, release := begin(t, ana)
	line, err := json.Marshal(hostHolder{Holder: runner.Self(), WorkDir: bo.WorkDir})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(hostLock, line, 0o600))
	began := false
	steps := []runner.Step{{Name: "one", Actions: func(context.Context) ([]runner.Action, error) {
		return []runner.Action{{Name: "first", Run: func(context.Context) (any, error) { began = true; return nil, nil }}}, nil
	}}}
	r := runner.Runner{Steps: steps, Bind: j.State().Bind, Journal: j}
	err = release(r.Run(ctx, ""))
	var taken *TakenOverError
	require.ErrorAs(t, err, &taken)
	assert.False(t, began)
	assert.Contains(t, contents(t, a.JournalPath()), "first")
	assert.NotContains(t, contents(t, hostJournal), "first")
	assert.Equal(t, string(line), contents(t, hostLock))

	// So it is when the lock is gone, without anybody to name.
	require.NoError(t, os.Remove(hostLock))
	h, err := a.Host(t.Context())
	require.NoError(t, err)
	err = a.asHolder(t.Context(), h, line, nil, "touch "+remote.Quote(filepath.Join(bo.WorkDir, "ran")))
	require.ErrorAs(t, err, &taken)
	assert.Contains(t, err.Error(), "is gone")
}

func TestTakeOverWithoutTheSet(t *testing.T) {
	ana, bo := two(t)
	_, j, _, release := begin(t, ana, stopping...)
	require.NoError(t, release(nil))
	b := bo.migration()
	defer b.Close()
	var missing *MissingSetError
	err := b.TakeOver(t.Context(), false, func(context.Context, Claim) (bool, error) { panic("nothing to ask") })
	require.ErrorAs(t, err, &missing)
	assert.Equal(t, len(b.hotArtifacts()), len(missing.Lacks))
	assert.Contains(t, err.Error(), ":"+remote.Quote(filepath.Join(ana.WorkDir, setDir))+"/ "+remote.Quote(filepath.Join(bo.WorkDir, setDir))+"/")
	assert.Contains(t, err.Error(), "migrate rollback --take-over")
	assert.NoFileExists(t, hostLock)
	assert.NoFileExists(t, b.JournalPath())
	assert.NoDirExists(t, b.SetDir(), "a set that is missing is not begun")

	// One artifact that was cut short in copying is missing, too.
	bo.hold(t)
	set, err := b.Set()
	require.NoError(t, err)
	cut, _ := set.Artifact(objects)
	require.NoError(t, os.Truncate(filepath.Join(b.SetDir(), cut.File), cut.Size-1))
	require.ErrorAs(t, b.TakeOver(t.Context(), false, agree), &missing)
	assert.Equal(t, []string{objects}, missing.Lacks)

	// A rollback starts what is on the host still; after the uninstall it cannot.
	require.NoError(t, b.TakeOver(t.Context(), true, agree))
	assert.Equal(t, contents(t, hostJournal), contents(t, b.JournalPath()))
	require.NoError(t, os.RemoveAll(bo.WorkDir))
	require.NoError(t, os.Remove(hostLock))
	again := ana.migration()
	defer again.Close()
	_, release, err = again.holdHost(t.Context(), j)
	require.NoError(t, err)
	require.NoError(t, j.Append(runner.Record{Event: runner.Intent, Step: "uninstall", Action: "uninstall"}))
	require.NoError(t, release(nil))
	err = b.TakeOver(t.Context(), true, agree)
	require.ErrorAs(t, err, &missing)
	assert.NotContains(t, err.Error(), "rollback")
}

func TestTakeOverBeforeAnythingWasStopped(t *testing.T) {
	ana, bo := two(t)
	_, j, _, release := begin(t, ana, protected...)
	require.NoError(t, release(nil))
	b := bo.migration()
	defer b.Close()
	anew := false
	require.NoError(t, b.TakeOver(t.Context(), false, func(_ context.Context, c Claim) (bool, error) { anew = c.Anew; return true, nil }))
	assert.True(t, anew)
	assert.NoFileExists(t, b.JournalPath())
	assert.NoFileExists(t, hostJournal)
	assert.NoFileExists(t, hostFacts)
	assert.Contains(t, contents(t, hostLock), bo.WorkDir)

	// Bo's own run replaces the copy, and ana's does not go on in it.
	require.NoError(t, os.Remove(hostLock))
	_, _, _, release = begin(t, bo)
	require.NoError(t, release(nil))
	again := ana.migration()
	defer again.Close()
	var elsewhere *ElsewhereError
	_, _, err := again.holdHost(t.Context(), j)
	require.ErrorAs(t, err, &elsewhere)
	var diverged *DivergedError
	require.ErrorAs(t, again.TakeOver(t.Context(), false, agree), &diverged)
	assert.Contains(t, diverged.Error(), ana.WorkDir)
	assert.NoFileExists(t, hostLock)
}

func TestTakeOverIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name    string
		disturb func(t *testing.T, bo *laptop, m *Migration)
		confirm func(context.Context, Claim) (bool, error)
		want    string
	}{
		{"declined", func(*testing.T, *laptop, *Migration) {}, func(context.Context, Claim) (bool, error) { return false, nil }, runner.ErrDeclined.Error()},
		{"another plan", func(_ *testing.T, _ *laptop, m *Migration) { m.Plan.Spec.K3s.Disable = []string{"traefik"} }, agree, "the spec.k3s.disable has changed since"},
		{"damaged", func(t *testing.T, _ *laptop, _ *Migration) {
			require.NoError(t, os.WriteFile(hostJournal, []byte(strings.Replace(contents(t, hostJournal), "protect", "protecX", 1)), 0o600))
		}, agree, "its checksum does not match"},
		{"facts missing", func(t *testing.T, _ *laptop, _ *Migration) { require.NoError(t, os.Remove(hostFacts)) }, agree, hostFacts + ", are missing"},
		{"facts damaged", func(t *testing.T, _ *laptop, _ *Migration) {
			require.NoError(t, os.WriteFile(hostFacts, []byte("{"), 0o600))
		}, agree, "reading the facts"},
		{"another machine", func(t *testing.T, _ *laptop, m *Migration) {
			id := contents(t, "/etc/machine-id")
			require.NoError(t, os.WriteFile(hostFacts, []byte(strings.Replace(contents(t, hostFacts), strings.TrimSpace(id), "another", 1)), 0o600))
		}, agree, "the run began on the machine with the machine-id another"},
		{"lock damaged", func(t *testing.T, _ *laptop, _ *Migration) {
			require.NoError(t, os.WriteFile(hostLock, []byte("?"), 0o600))
		}, agree, "the lock " + hostLock + " is damaged"},
		{"changed hands meanwhile", func(*testing.T, *laptop, *Migration) {}, func(context.Context, Claim) (bool, error) {
			return true, os.WriteFile(hostLock, []byte(`{"user":"eve"}`), 0o600)
		}, "has changed hands"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ana, bo := two(t)
			_, _, _, release := begin(t, ana, stopping...)
			require.NoError(t, release(nil))
			bo.hold(t)
			b := bo.migration()
			defer b.Close()
			tc.disturb(t, &bo, b)
			err := b.TakeOver(t.Context(), false, tc.confirm)
			require.ErrorContains(t, err, tc.want)
			assert.NoFileExists(t, b.JournalPath())
			if data, err := os.ReadFile(hostLock); err == nil {
				assert.NotContains(t, string(data), bo.WorkDir)
			}
		})
	}
}

// A laptop that knows nothing of a run that has stopped the cluster does not
// begin one; of a run that is over it may.
func TestRunWhereAnotherIsToBeContinued(t *testing.T) {
	ana, bo := two(t)
	_, j, _, release := begin(t, ana, stopping...)
	require.NoError(t, release(nil))
	b := bo.migration()
	defer b.Close()
	var elsewhere *ElsewhereError
	err := b.Run(t.Context(), "", nil, nil)
	require.ErrorAs(t, err, &elsewhere)
	assert.NoFileExists(t, b.JournalPath(), "it did not even look")

	again := ana.migration()
	defer again.Close()
	_, release, err = again.holdHost(t.Context(), j)
	require.NoError(t, err)
	require.NoError(t, j.Append(runner.Record{Event: runner.Finished}))
	require.NoError(t, release(nil))
	found, err := b.look(t.Context())
	require.NoError(t, err)
	require.NoError(t, b.notElsewhere(found, nil))
	require.NoError(t, b.TakeOver(t.Context(), false, func(context.Context, Claim) (bool, error) { panic("nothing to ask") }))
	_, _, _, release = begin(t, bo)
	require.NoError(t, release(nil))
	assert.Equal(t, contents(t, b.JournalPath()), contents(t, hostJournal), "the copy is of the run that began")
}

// What is left here of a run that was rolled back is in no new run's way, before it is put
// aside, too: a saved plan is held to before.
func TestNotElsewhereAfterARollback(t *testing.T) {
	ana, bo := two(t)
	m, j, _, release := begin(t, ana, stopping...)
	lacking := contents(t, hostJournal)
	require.NoError(t, j.Append(runner.Record{Event: runner.Rollback, Step: whole}))
	require.NoError(t, j.Append(runner.Record{Event: runner.RolledBack, Step: whole}))
	require.NoError(t, release(nil))
	require.FileExists(t, m.JournalPath()+".mirrored")
	begun, err := m.Begun()
	require.NoError(t, err)
	require.False(t, begun)
	found, err := m.look(t.Context())
	require.NoError(t, err)
	require.NoError(t, m.notElsewhere(found, nil))

	// Nor is it where the copy lacks the rollback's end, as ours has it all.
	require.NoError(t, os.WriteFile(hostJournal, []byte(lacking), 0o600))
	found, err = m.look(t.Context())
	require.NoError(t, err)
	require.NoError(t, m.notElsewhere(found, nil))
	b := bo.migration()
	defer b.Close()
	var elsewhere *ElsewhereError
	require.ErrorAs(t, b.notElsewhere(found, nil), &elsewhere)
}

func TestMirrorHeals(t *testing.T) {
	ana, _ := two(t)
	m, j, _, release := begin(t, ana)
	for name, harm := range map[string]func() error{
		"removed": func() error { return os.Remove(hostJournal) },
		"torn":    func() error { return os.Truncate(hostJournal, int64(len(contents(t, hostJournal))-7)) },
		"a line short": func() error {
			s := contents(t, hostJournal)
			return os.WriteFile(hostJournal, []byte(s[:strings.LastIndex(s[:len(s)-1], "\n")+1]), 0o600)
		},
	} {
		require.NoError(t, harm(), name)
		require.NoError(t, j.Append(runner.Record{Event: runner.Intent, Step: "protect", Action: name}))
		assert.Equal(t, contents(t, m.JournalPath()), contents(t, hostJournal), name)
	}
	require.NoError(t, release(nil))
	assert.NoFileExists(t, hostLock)
	assert.Contains(t, contents(t, lastHolder), ana.WorkDir)
}

// Killed at any moment, a take-over leaves the run to the laptop that had it, or is
// completed by the same command.
func TestKilledTakeOver(t *testing.T) {
	ana, bo := two(t)
	a, _, _, release := begin(t, ana, stopping...)
	require.NoError(t, release(nil))
	whole := contents(t, a.JournalPath())
	spec, err := json.Marshal(bo)
	require.NoError(t, err)
	early, late := 0, 0
	bo.hold(t)
	// It is killed some milliseconds after what it began with was there: at first nothing.
	for _, at := range []string{"", hostLock, filepath.Join(bo.WorkDir, factsFile), filepath.Join(bo.WorkDir, journalFile)} {
		for delay := range 4 {
			for _, f := range []string{filepath.Join(bo.WorkDir, journalFile), filepath.Join(bo.WorkDir, journalFile+".mirrored"), filepath.Join(bo.WorkDir, factsFile), hostLock} {
				require.NoError(t, os.RemoveAll(f))
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), taker+"="+string(spec))
			var said bytes.Buffer
			cmd.Stderr = &said
			require.NoError(t, cmd.Start())
			deadline := time.Now().Add(time.Minute)
			for at != "" && time.Now().Before(deadline) {
				if _, err := os.Stat(at); err == nil {
					break
				}
				time.Sleep(100 * time.Microsecond)
			}
			time.Sleep(time.Duration(delay*delay) * 2 * time.Millisecond)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			assert.Empty(t, said.String())
			time.Sleep(30 * time.Millisecond) // what it had the host do
			if lock, err := os.ReadFile(hostLock); errors.Is(err, os.ErrNotExist) {
				early++
				assert.NoFileExists(t, filepath.Join(bo.WorkDir, journalFile))
			} else {
				late++
				require.NoError(t, err)
				require.Contains(t, string(lock), bo.WorkDir)
			}
			b := bo.migration()
			require.NoError(t, b.TakeOver(t.Context(), false, agree))
			require.NoError(t, b.Close())
			assert.Equal(t, whole, contents(t, filepath.Join(bo.WorkDir, journalFile)))
			assert.FileExists(t, filepath.Join(bo.WorkDir, factsFile))
			assert.Equal(t, whole, contents(t, hostJournal))
		}
	}
	t.Logf("killed %d times before the lock changed hands, %d times after", early, late)
	assert.NotZero(t, early)
	assert.NotZero(t, late)
}
