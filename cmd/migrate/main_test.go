package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

// The statuses are what scripts rely on, wherever in an error their cause lies.
func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{errors.New("anything"), 1},
		{fs.ErrNotExist, 1},
		{usageError{errors.New("flag")}, 2},
		{&plans.InvalidError{}, 2},
		{&plans.SyntaxError{}, 2},
		{&steps.InhibitedError{}, 3},
		{&steps.UnverifiedError{Failed: 2}, 4},
		{runner.ErrDeclined, 5},
		{context.Canceled, 130},
		{context.DeadlineExceeded, 1},
	} {
		for _, err := range []error{tc.err, fmt.Errorf("more: %w", tc.err), &runner.StepError{Step: "s", Err: tc.err}, &shownError{tc.err}, errors.Join(tc.err, errors.New("the lock"))} {
			if got := exitStatus(err); got != tc.want {
				t.Errorf("%#v: %d instead of %d", err, got, tc.want)
			}
		}
	}
}

func TestAsk(t *testing.T) {
	gate := runner.Gate{Question: "The cluster goes down. Type its host", Expect: "dedi"}
	for _, tc := range []struct {
		answer string
		yes    bool
		err    error
	}{
		{"dedi\n", true, nil},
		{"  dedi \n", true, nil},
		{"dedi", true, nil}, // the end of the input ends the line
		{"y\n", false, nil},
		{"yes\n", false, nil},
		{"DEDI\n", false, nil},
		{"\n", false, nil},
		{"", false, runner.ErrDeclined},
	} {
		var out bytes.Buffer
		yes, err := ask(context.Background(), strings.NewReader(tc.answer), &out, gate)
		if yes != tc.yes || !errors.Is(err, tc.err) {
			t.Errorf("%q: %t, %v", tc.answer, yes, err)
		}
		if !strings.Contains(out.String(), "The cluster goes down. Type its host (dedi)") {
			t.Errorf("asked: %q", out.String())
		}
	}
	// Nobody answers, and an interrupt comes.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	silent, w := io.Pipe()
	defer w.Close()
	if yes, err := ask(ctx, silent, io.Discard, gate); yes || !errors.Is(err, context.Canceled) {
		t.Error(yes, err)
	}
}

func TestNotAgreed(t *testing.T) {
	for typed, want := range map[string]string{
		"":        "Not agreed: there is nobody to answer; --yes agrees beforehand",
		"other\n": "Not agreed",
	} {
		yes, err := ask(t.Context(), strings.NewReader(typed), io.Discard, runner.Gate{Expect: "dedi"})
		if got := notAgreed(&runner.StepError{Step: "quiesce", Err: err}); yes || got != want || err != nil && exitStatus(err) != exitDeclined {
			t.Errorf("%q: %v, %v, %q", typed, yes, err, got)
		}
	}
}

// An interrupt while a host does not speak ends the command in good order.
func TestInterrupt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		// The command listens for signals since before it connected.
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(io.Discard, c)
	}()
	dir := t.TempDir()
	plan, err := os.ReadFile("testdata/plan.yaml")
	require.NoError(t, err)
	plan = bytes.Replace(plan, []byte("port: 1\n"), fmt.Appendf(nil, "port: %d\n", l.Addr().(*net.TCPAddr).Port), 1)
	for _, name := range []string{"age.key", "known_hosts", "id"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	file := filepath.Join(dir, "plan.yaml")
	require.NoError(t, os.WriteFile(file, plan, 0o600))
	// A file, as standard error is: two goroutines write to it.
	stderr, err := os.Create(filepath.Join(dir, "stderr"))
	require.NoError(t, err)
	defer stderr.Close()
	status := run([]string{"plan", "-f", file}, strings.NewReader(""), io.Discard, stderr)
	said, err := os.ReadFile(stderr.Name())
	require.NoError(t, err)
	if status != exitInterrupted {
		t.Errorf("exit status %d\n%s", status, said)
	}
	if !strings.Contains(string(said), "migrate: stopping") {
		t.Errorf("%s", said)
	}
}
