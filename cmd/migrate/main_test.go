package main

import (
	"bytes"
	"context"
	"encoding/json"
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

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
	"sunbeam.pt/k3s-dualstack/survey"
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

// The plan as a person reads it, from kept facts.
func TestPrintPlan(t *testing.T) {
	data, err := os.ReadFile("../../steps/testdata/facts.json")
	require.NoError(t, err)
	facts := &survey.Facts{}
	require.NoError(t, json.Unmarshal(data, facts))
	data, err = os.ReadFile("testdata/plan.yaml")
	require.NoError(t, err)
	plan, err := plans.Decode(data, "/home/ana")
	require.NoError(t, err)
	m := &steps.Migration{Plan: plan, Facts: facts}
	planned, err := runner.Preview(context.Background(), m.Sequence())
	require.NoError(t, err)
	fallbacks, err := m.Fallbacks(context.Background())
	require.NoError(t, err)
	p := preview{
		Name: plan.Metadata.Name, Host: "dedi", Version: facts.K3s.Version, Facts: facts, Steps: planned, Fallbacks: fallbacks,
		Settings: []k3s.Change{
			{Key: "cluster-cidr", After: "10.42.0.0/16,fd42::/48", Source: "/etc/rancher/k3s/config.yaml"},
			{Key: "disable", Before: "servicelb", After: "servicelb,traefik", Source: k3s.SourceFlag},
		},
	}
	warning := preflight.Finding{ID: "volumes.stray", Severity: preflight.Warning, Detail: "something lies there", Remedy: "look at it"}
	inhibitor := preflight.Finding{ID: "k3s.stack", Severity: preflight.Inhibitor, Detail: "it is dual-stack", Remedy: "be glad"}
	for _, tc := range []struct {
		name  string
		found []preflight.Finding
		begun bool
	}{{"warned", []preflight.Finding{warning}, false}, {"inhibited", []preflight.Finding{inhibitor, warning}, false}, {"begun", nil, true}} {
		t.Run(tc.name, func(t *testing.T) {
			p := p
			p.Findings, p.Begun = tc.found, tc.begun
			var b bytes.Buffer
			p.print(&b, "plan.yaml")
			got := b.String()
			if tc.name != "warned" { // the rest is the same
				i, j := strings.Index(got, "\nSettings of K3s"), strings.Index(got, "$ find /var/lib/k3s-dualstack")
				got = got[:i] + "\n…\n" + got[j:]
			}
			name := "testdata/plan-" + tc.name + ".golden"
			if *update {
				require.NoError(t, os.WriteFile(name, []byte(got), 0o644))
			}
			want, err := os.ReadFile(name)
			require.NoError(t, err)
			if d := cmp.Diff(string(want), got); d != "" {
				t.Error(d)
			}
		})
	}
	// For programs: every step with its actions, and no secret of the plan's.
	var b bytes.Buffer
	require.NoError(t, writeJSON(&b, p))
	var read struct {
		Steps []struct {
			Name    string
			Actions []struct{ Name, Command, Summary string }
		}
	}
	require.NoError(t, json.Unmarshal(b.Bytes(), &read))
	if len(read.Steps) != len(steps.Names()) {
		t.Errorf("%d steps", len(read.Steps))
	}
	for _, s := range read.Steps {
		if len(s.Actions) == 0 {
			t.Errorf("step %s has no actions", s.Name)
		}
	}
}
