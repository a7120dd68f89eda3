package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func (s *server) job(name string, file ...string) string {
	return filepath.Join(append([]string{s.dir, "state", "jobs", name}, file...)...)
}

func TestJobs(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	h := s.dial(t)
	var exit *ExitError

	require.ErrorIs(t, h.WaitJob(t.Context(), "none", nil), ErrNoJob)
	require.NoError(t, h.ForgetJob(t.Context(), "none"))
	for _, name := range []string{"", "Upper", "a/b", "..", "-a", "a-", "a b", strings.Repeat("a", 64)} {
		require.ErrorContains(t, h.StartJob(t.Context(), name, "true"), "not a DNS label")
		require.ErrorContains(t, h.WaitJob(t.Context(), name, nil), "not a DNS label")
		require.ErrorContains(t, h.ForgetJob(t.Context(), name), "not a DNS label")
	}

	// Output in order, standard error included; the usual umask and directory; the exit status.
	script := "echo out; echo err >&2; umask; pwd; echo \"$HOME $LC_ALL\"; read x || echo no input\nexit 7\n"
	require.NoError(t, h.StartJob(t.Context(), "one", script))
	var b bytes.Buffer
	err := h.WaitJob(t.Context(), "one", &b)
	require.ErrorAs(t, err, &exit)
	const want = "out\nerr\n0022\n/\n/root C\nno input\n"
	require.Equal(t, &ExitError{Code: 7, Stderr: want}, exit)
	require.Equal(t, want, b.String())
	require.ErrorContains(t, err, "host node1: job one: exit status 7")

	// A script may hold secrets.
	for file, mode := range map[string]os.FileMode{"": 0o700 | os.ModeDir, "script": 0o600, "out": 0o600, "rc": 0o600, "pid": 0o600, "run": 0o600} {
		info, err := os.Stat(s.job("one", file))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), file)
	}

	// The same name attaches, to an ended job too.
	b.Reset()
	require.NoError(t, h.StartJob(t.Context(), "one", "echo other"))
	require.ErrorAs(t, h.WaitJob(t.Context(), "one", &b), &exit)
	require.Equal(t, want, b.String())
	require.NoError(t, h.ForgetJob(t.Context(), "one"))
	require.ErrorIs(t, h.WaitJob(t.Context(), "one", nil), ErrNoJob)
	require.NoError(t, h.StartJob(t.Context(), "one", "echo other"))
	require.NoError(t, h.WaitJob(t.Context(), "one", nil))

	// Started by many at once, it runs once.
	count := filepath.Join(s.dir, "count")
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		wg.Go(func() { errs[i] = h.StartJob(t.Context(), "many", "echo run >>"+Quote(count)) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.NoError(t, h.WaitJob(t.Context(), "many", nil))
	data, err := os.ReadFile(count)
	require.NoError(t, err)
	require.Equal(t, "run\n", string(data))

	left, err := filepath.Glob(filepath.Join(s.dir, "state", "jobs", ".*-*"))
	require.NoError(t, err)
	require.Empty(t, left)

	// A writer that fails ends the wait, not the job.
	broken := errors.New("the disk broke")
	require.NoError(t, h.StartJob(t.Context(), "on", "echo x; sleep 1; echo >"+Quote(filepath.Join(s.dir, "went-on"))))
	require.ErrorIs(t, h.WaitJob(t.Context(), "on", writerFunc(func([]byte) (int, error) { return 0, broken })), broken)
	require.NoError(t, h.WaitJob(t.Context(), "on", nil))
	require.FileExists(t, filepath.Join(s.dir, "went-on"))
}

// TestJobOutlivesEverything cuts the connection again and again while a job prints, and ends the server's
// own sessions; the output arrives whole.
func TestJobOutlivesEverything(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	n := startNetwork(t, s.address())
	h := s.dialAs(t, s.through(t, n))
	const lines = 60
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); sleep 0.05; done", lines)
	require.NoError(t, h.StartJob(t.Context(), "long", script))
	cuts := 0
	var b bytes.Buffer
	err := h.WaitJob(t.Context(), "long", writerFunc(func(p []byte) (int, error) {
		if cuts < 4 {
			cuts++
			n.reset()
		}
		return b.Write(p)
	}))
	require.NoError(t, err)
	require.GreaterOrEqual(t, cuts, 2)
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	require.Equal(t, want.String(), b.String())

	// The one who started it is gone for good; another attaches and sees all from the beginning.
	go1 := filepath.Join(s.dir, "go")
	require.NoError(t, h.StartJob(t.Context(), "left", "echo begun; until [ -e "+Quote(go1)+" ]; do sleep 0.05; done; echo ended"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, h.WaitJob(ctx, "left", nil), context.Canceled)
	require.NoError(t, h.Close())
	n.reset()
	other := s.dialAs(t, s.through(t, n))
	require.ErrorContains(t, other.ForgetJob(t.Context(), "left"), "still runs")
	require.NoError(t, os.WriteFile(go1, nil, 0o600))
	b.Reset()
	require.NoError(t, other.WaitJob(t.Context(), "left", &b))
	require.Equal(t, "begun\nended\n", b.String())
}

func TestJobRecovery(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	h := s.dial(t)

	// The host went down after the job was written and before it was started.
	require.NoError(t, h.StartJob(t.Context(), "written", "echo ran"))
	require.NoError(t, h.WaitJob(t.Context(), "written", nil))
	for _, file := range []string{"pid", "out", "rc"} {
		require.NoError(t, os.Remove(s.job("written", file)))
	}
	require.ErrorIs(t, h.WaitJob(t.Context(), "written", nil), ErrNoJob)
	require.NoError(t, h.StartJob(t.Context(), "written", "echo ran"))
	var b bytes.Buffer
	require.NoError(t, h.WaitJob(t.Context(), "written", &b))
	require.Equal(t, "ran\n", b.String())

	// Killed: nothing is run again in silence.
	require.NoError(t, h.StartJob(t.Context(), "killed", "echo begun; sleep 1000"))
	expectTrue(t, func() bool { out, _ := os.ReadFile(s.job("killed", "out")); return len(out) > 0 }, "the job's start")
	fields := s.pidFile(t, "killed")
	pid, err := strconv.Atoi(fields[0])
	require.NoError(t, err)
	result := make(chan error, 1)
	b.Reset()
	go func() { result <- h.WaitJob(t.Context(), "killed", &b) }()
	require.NoError(t, syscall.Kill(-pid, syscall.SIGKILL))
	err = <-result
	require.ErrorIs(t, err, ErrJobLost)
	require.ErrorContains(t, err, "it was killed")
	require.Equal(t, "begun\n", b.String())
	require.NoError(t, h.StartJob(t.Context(), "killed", "echo again"))
	require.ErrorIs(t, h.WaitJob(t.Context(), "killed", nil), ErrJobLost)
	require.NoError(t, h.ForgetJob(t.Context(), "killed"))

	// Another life of the machine, and another life of the container on the same machine.
	for name, change := range map[string]func([]string){
		"rebooted":  func(f []string) { f[2] = "00000000-0000-0000-0000-000000000000" },
		"restarted": func(f []string) { f[3] += "1" },
	} {
		file := filepath.Join(s.dir, "go-"+name)
		require.NoError(t, h.StartJob(t.Context(), name, "until [ -e "+Quote(file)+" ]; do sleep 0.05; done"))
		fields := s.pidFile(t, name)
		change(fields)
		require.NoError(t, os.WriteFile(s.job(name, "pid"), []byte(strings.Join(fields, " ")+"\n"), 0o600))
		err = h.WaitJob(t.Context(), name, nil)
		require.ErrorIs(t, err, ErrJobLost)
		require.ErrorContains(t, err, "the host was restarted")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		expectTrue(t, func() bool { _, err := os.Stat(s.job(name, "rc")); return err == nil }, "the end")
		require.NoError(t, h.ForgetJob(t.Context(), name))
	}

	// A job whose end was recorded has ended, whatever happened to the host since.
	require.NoError(t, h.StartJob(t.Context(), "ended", "true"))
	require.NoError(t, h.WaitJob(t.Context(), "ended", nil))
	require.NoError(t, os.WriteFile(s.job("ended", "pid"), []byte("1 2 other 3\n"), 0o600))
	require.NoError(t, h.WaitJob(t.Context(), "ended", nil))
}

func (s *server) pidFile(t *testing.T, name string) []string {
	t.Helper()
	data, err := os.ReadFile(s.job(name, "pid"))
	require.NoError(t, err)
	fields := strings.Fields(string(data))
	require.Len(t, fields, 4)
	return fields
}
