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
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The test binary runs itself as the victim: a run in a process of its own,
// in the directory that victimDir names, which dies by SIGKILL.
const (
	victimDir  = "RUNNER_TEST_VICTIM"
	victimKill = "RUNNER_TEST_KILL" // "before 3", "in 3", "after 3": around its third write to the journal; or "": its parent kills it
)

// victim is a run whose actions leave a line in the file "effects"; those
// with Done refuse to do so twice.
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
	r := &Runner{Steps: victimSteps(dir), Journal: j, Confirm: func(context.Context, Gate) (bool, error) { return true, nil }}
	if err := r.Run(context.Background(), ""); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func victimSteps(dir string) []Step {
	has := func(line string) (bool, error) {
		data, err := os.ReadFile(filepath.Join(dir, "effects"))
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return bytes.Contains(data, []byte(line+"\n")), err
	}
	effect := func(line string, once bool) Action {
		a := Action{Name: line, Run: func(context.Context) (any, error) {
			if did, err := has(line); err != nil || did && once {
				return nil, fmt.Errorf("%s is done a second time (%v)", line, err)
			}
			fmt.Println("before", line)
			f, err := os.OpenFile(filepath.Join(dir, "effects"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return nil, err
			}
			_, err = f.WriteString(line + "\n")
			fmt.Println("after", line)
			return line, errors.Join(err, f.Close())
		}}
		if once {
			a.Done = func(context.Context) (bool, error) { return has(line) }
		}
		return a
	}
	return []Step{
		{Name: "survey", Actions: list(effect("read", false))},
		{Name: "backup", Checkpoint: true, Parallel: 2, Actions: list(effect("volume a", true), effect("volume b", true), effect("volume c", false))},
		{Name: "rebuild", Gate: &Gate{}, Actions: list(effect("uninstall", true), effect("set up", true))},
	}
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
// whether it completed its run.
func start(t *testing.T, dir, kill string, lines int) bool {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), victimDir+"="+dir, victimKill+"="+kill)
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
		t.Fatalf("the run failed by itself: %v\n%s", err, stderr.String())
	}
	return true
}

// survived checks what a run that was killed and continued must amount to.
func survived(t *testing.T, dir string) {
	t.Helper()
	j := open(t, filepath.Join(dir, "journal.jsonl"))
	s := j.State()
	if !s.Finished || len(s.Actions) != 6 {
		t.Errorf("state %+v", s)
	}
	data, err := os.ReadFile(filepath.Join(dir, "effects"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range s.Actions {
		if a.Status != Done {
			t.Errorf("%s is %s", a.Action, a.Status)
		}
		n := bytes.Count(data, []byte(a.Action+"\n"))
		if once := a.Action != "read" && a.Action != "volume c"; n < 1 || once && n > 1 {
			t.Errorf("%s took effect %d times", a.Action, n)
		}
	}
}

func TestKilledAtEveryRecordAndContinued(t *testing.T) {
	for when, whole := range map[string]int{"before": 0, "in": 0, "after": 1} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			if start(t, dir, fmt.Sprint(when, " ", n), 1000) {
				if n < 15 {
					t.Errorf("completed after %d records", n)
				}
				break
			}
			j := open(t, filepath.Join(dir, "journal.jsonl"))
			if got, want := len(j.Records()), n-1+whole; got != want {
				t.Fatalf("killed %s record %d: %d records", when, n, got)
			}
			if torn := len(j.Notices()) == 1; torn != (when == "in") {
				t.Errorf("killed %s record %d: torn is %v", when, n, torn)
			}
			if !start(t, dir, "none", 1000) {
				t.Fatal("killed by somebody else")
			}
			survived(t, dir)
		}
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
		for !start(t, dir, "", 1+random.IntN(8)) {
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
		survived(t, dir)
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
