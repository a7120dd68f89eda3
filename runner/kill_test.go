package runner

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The test binary runs itself as the victim: a run or a rollback in a process
// of its own, in the directory that victimDir names, which dies by SIGKILL.
const (
	victimDir  = "RUNNER_TEST_VICTIM"
	victimTo   = "RUNNER_TEST_TO"   // the checkpoint to which it rolls back; "": it runs
	victimKill = "RUNNER_TEST_KILL" // "before 3", "in 3", "after 3": around its third write to the journal; or "": its parent kills it
)

func victim(dir string) int {
	lock, err := Acquire(filepath.Join(dir, "lock"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer lock.Release()
	j, err := OpenJournal(filepath.Join(dir, "journal.jsonl"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	j.open = func(path string) (file, error) {
		f, err := openFile(path)
		d := &deadly{file: f}
		fmt.Sscan(os.Getenv(victimKill), &d.when, &d.in)
		return d, err
	}
	r := &Runner{Steps: victimSteps(effects(filepath.Join(dir, "effects"))), Journal: j, Confirm: func(context.Context, Gate) (bool, error) { return true, nil }}
	if to := os.Getenv(victimTo); to != "" {
		err = r.Rollback(context.Background(), to)
	} else {
		err = r.Run(context.Background(), "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// victimSteps are repeatable where their names say so; the others refuse to
// take effect twice.
func victimSteps(e effects) []Step {
	return []Step{
		{Name: "survey", Checkpoint: true, Actions: list(e.action("read, repeatable"))},
		{
			Name: "backup", Checkpoint: true, Parallel: 2,
			Actions: list(e.action("volume a"), e.action("volume b"), e.action("volume c, repeatable")),
			Undo:    list(e.undo("volume a"), e.undo("volume b"), e.undo("volume c, repeatable")),
		},
		{
			Name: "rebuild", Gate: &Gate{},
			Actions: list(e.action("uninstall"), e.action("set up")),
			Undo:    list(e.undo("set up"), e.undo("uninstall")),
		},
	}
}

// effects is the file in which actions and undo actions leave a line each.
type effects string

const undoOf = "undo "

func (e effects) lines() ([]string, error) {
	data, err := os.ReadFile(string(e))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n"), err
}

// last is the last line of an action or its undo, "" when there is none.
func (e effects) last(action string) (string, error) {
	lines, err := e.lines()
	for _, line := range slices.Backward(lines) {
		if strings.TrimPrefix(line, undoOf) == action {
			return line, err
		}
	}
	return "", err
}

func (e effects) leave(line string) error {
	fmt.Println("before", line)
	f, err := os.OpenFile(string(e), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	fmt.Println("after", line)
	return errors.Join(err, f.Close())
}

func (e effects) action(name string) Action {
	return e.once(Action{Name: name, Run: func(context.Context) (any, error) { return nil, e.leave(name) }}, name)
}

func (e effects) undo(action string) Action {
	return e.once(Action{Name: undoOf + action, Run: func(context.Context) (any, error) {
		if last, err := e.last(action); last == "" || err != nil {
			return nil, err // it never took effect
		}
		return nil, e.leave(undoOf + action)
	}}, action)
}

func (e effects) once(a Action, action string) Action {
	if strings.HasSuffix(a.Name, "repeatable") {
		return a
	}
	a.Done = func(context.Context) (bool, error) {
		last, err := e.last(action)
		return last == a.Name, err
	}
	run := a.Run
	a.Run = func(ctx context.Context) (any, error) {
		if did, err := a.Done(ctx); err != nil || did {
			return nil, fmt.Errorf("%s is done a second time (%v)", a.Name, err)
		}
		return run(ctx)
	}
	return a
}

// deadly kills its own process around a write.
type deadly struct {
	file
	when string
	in   int
}

func (d *deadly) Write(p []byte) (int, error) {
	d.in--
	die := func(when string) {
		if d.when == when && d.in == 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
	}
	die("before")
	if d.when == "in" && d.in == 0 {
		d.file.Write(p[:len(p)/2])
		die("in")
	}
	n, err := d.file.Write(p)
	fmt.Println("written")
	die("after")
	return n, err
}

// start runs the victim until it ends or has printed so many lines, and says
// whether it completed what it was to do: to roll back, or with to "" to run.
func start(t *testing.T, dir, to, kill string, lines int) bool {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), victimDir+"="+dir, victimTo+"="+to, victimKill+"="+kill)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewScanner(out); lines > 0 && in.Scan(); lines-- {
	}
	if kill == "" && lines == 0 {
		c.Process.Kill()
	}
	err = c.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return false
	}
	if err != nil {
		t.Fatalf("it failed by itself: %v\n%s", err, stderr.String())
	}
	return true
}

// whole starts a victim that nobody kills.
func whole(t *testing.T, dir, to string) {
	t.Helper()
	if !start(t, dir, to, "none", 1000) {
		t.Fatal("killed by somebody else")
	}
}

// stands checks that the actions which stand in reality are those that the
// journal has as done, and that there are so many.
func stands(t *testing.T, dir string, actions int) State {
	t.Helper()
	s := open(t, filepath.Join(dir, "journal.jsonl")).State()
	e := effects(filepath.Join(dir, "effects"))
	lines, err := e.lines()
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, a := range s.Actions {
		if a.Status != Done {
			t.Errorf("%s is %s", a.Action, a.Status)
		}
		want = append(want, a.Action)
	}
	for _, line := range lines {
		if last, _ := e.last(line); last == line && !slices.Contains(got, line) {
			got = append(got, line)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) || len(got) != actions {
		t.Errorf("done in the journal: %q, in reality: %q, want %d", want, got, actions)
	}
	return s
}

// survived checks what a run that was killed and continued must amount to.
func survived(t *testing.T, dir string) {
	t.Helper()
	if s := stands(t, dir, 6); !s.Finished || s.Rollback != nil {
		t.Errorf("state %+v", s)
	}
}

// takenBack checks the same of a rollback to the first checkpoint.
func takenBack(t *testing.T, dir string) {
	t.Helper()
	if s := stands(t, dir, 1); s.RolledBack != "survey" || s.Rollback != nil || s.Finished {
		t.Errorf("state %+v", s)
	}
}

// killAtEveryRecord kills a victim before, in and after each write to its
// journal in turn, and hands what is left to what follows. It returns how many
// records the victim writes.
func killAtEveryRecord(t *testing.T, to string, prepare, follow func(dir string)) (records int) {
	for when, whole := range map[string]int{"before": 0, "in": 0, "after": 1} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			path := filepath.Join(dir, "journal.jsonl")
			prepare(dir)
			had := len(open(t, path).Records())
			if start(t, dir, to, fmt.Sprint(when, " ", n), 1000) {
				records = n - 1
				break
			}
			j := open(t, path)
			if got, want := len(j.Records())-had, n-1+whole; got != want {
				t.Fatalf("killed %s record %d: %d records", when, n, got)
			}
			if torn := len(j.Notices()) == 1; torn != (when == "in") {
				t.Errorf("killed %s record %d: torn is %v", when, n, torn)
			}
			if follow(dir); t.Failed() {
				t.Fatalf("killed %s record %d", when, n)
			}
		}
	}
	return records
}

func TestKilledAtEveryRecordAndContinued(t *testing.T) {
	records := killAtEveryRecord(t, "", func(string) {}, func(dir string) {
		whole(t, dir, "")
		survived(t, dir)
	})
	// begin, 6 actions, 3 steps, 1 gate, finished
	if want := 1 + 2*6 + 3 + 1 + 1; records != want {
		t.Errorf("%d records, want %d", records, want)
	}
}

func TestKilledAtEveryRecordAndRolledBack(t *testing.T) {
	killAtEveryRecord(t, "", func(string) {}, func(dir string) {
		if !open(t, filepath.Join(dir, "journal.jsonl")).State().StepState("survey").Complete {
			return // nothing to roll back to
		}
		whole(t, dir, "survey")
		takenBack(t, dir)
		whole(t, dir, "")
		survived(t, dir)
	})
}

func TestRollbackKilledAtEveryRecordAndContinued(t *testing.T) {
	records := killAtEveryRecord(t, "survey", func(dir string) { whole(t, dir, "") }, func(dir string) {
		whole(t, dir, "survey")
		takenBack(t, dir)
		whole(t, dir, "")
		survived(t, dir)
	})
	// rollback, 5 undo actions, 2 steps, rolled back
	if want := 1 + 2*5 + 2 + 1; records != want {
		t.Errorf("%d records, want %d", records, want)
	}
}

func TestKilledFromOutsideAndContinued(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 5 {
		dir := t.TempDir()
		for _, to := range []string{"", "survey", ""} {
			for !start(t, dir, to, "", 1+random.IntN(8)) {
				// The lock went with its process, the journal is readable.
				l, err := Acquire(filepath.Join(dir, "lock"))
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Release(); err != nil {
					t.Fatal(err)
				}
				open(t, filepath.Join(dir, "journal.jsonl"))
			}
			if to == "" {
				survived(t, dir)
			} else {
				takenBack(t, dir)
			}
		}
	}
}

func TestLockNamesAHolderInAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	l, err := Acquire(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), victimDir+"="+dir)
	out, err := c.CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "journal.jsonl")); err == nil {
		t.Error("a second run began")
	}
}
