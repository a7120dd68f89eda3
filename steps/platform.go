package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/restore"
	"sunbeam.pt/k3s-dualstack/runner"
)

// workloadsDeadline bounds the wait for everything to be available after the
// platform was deployed: images are pulled again.
const workloadsDeadline = 15 * time.Minute

// platform deploys the workloads again, from where they came from the first
// time: the plan's command, and the admin's own files in K3s's manifests.
func (m *Migration) platform(context.Context) ([]runner.Action, error) {
	p := m.Plan.Spec.Platform
	var actions []runner.Action
	if _, manifests := m.Facts.K3s.Skips(); len(manifests) > 0 {
		actions = append(actions, runner.Action{
			Name: "manifests", Target: m.onHost(),
			Summary: fmt.Sprintf("Put back the admin's files (%d) in K3s's manifests directory, which K3s applies", len(manifests)),
			Command: "cp … " + m.Facts.K3s.ServerDir() + "/manifests/",
			Run: func(ctx context.Context) (any, error) {
				h, set, err := m.hostAndSet(ctx)
				if err != nil {
					return nil, err
				}
				return nil, restore.Tree(ctx, h, set, k3sState, m.Progress, manifests...)
			},
		})
	}
	actions = append(actions, runner.Action{
		Name: "up", Target: m.onLaptop(),
		Summary: "Run the platform's own deployment, with a KUBECONFIG that goes through the SSH connection",
		Command: "KUBECONFIG=… " + strings.Join(p.Command, " "),
		Run:     func(ctx context.Context) (any, error) { return nil, m.platformUp(ctx) },
	})
	actions = append(actions, m.baoBack()...)
	actions = append(actions, runner.Action{
		Name: "workloads", Target: m.onCluster(),
		Summary: "Wait until every Deployment, StatefulSet and DaemonSet is available",
		Command: "kubectl rollout status …",
		Run: func(ctx context.Context) (any, error) {
			ctx, cancel := context.WithTimeout(ctx, workloadsDeadline)
			defer cancel()
			c, err := m.rebuilt(ctx)
			if err != nil {
				return nil, err
			}
			t := m.Progress.Wait("Waiting for workloads")
			defer t.Done()
			return nil, c.WaitWorkloads(ctx, t)
		},
	})
	actions = append(actions, m.dependentsBack()...)
	return append(actions, m.release()...), nil
}

func (m *Migration) kubeconfig() string { return m.file("kubeconfig") }

func (m *Migration) platformUp(ctx context.Context) error {
	ctx, stopBao, err := m.baoMeanwhile(ctx)
	if err != nil {
		return err
	}
	defer stopBao()
	c, err := m.rebuilt(ctx)
	if err != nil {
		return err
	}
	return m.platformCommand(ctx, c, "spec.platform.command", m.Plan.Spec.Platform.Command,
		"the cluster is dual-stack and its volumes and secrets are back: repair what the output names, then `migrate run` repeats the command")
}

// platformCommand runs a command of the plan's platform on the laptop, with a KUBECONFIG
// for c. field is where it stands in the plan, next what to do when it fails.
func (m *Migration) platformCommand(ctx context.Context, c *cluster.Client, field string, command []string, next string) error {
	stop, err := m.lendKubeconfig(ctx, c)
	if err != nil {
		return err
	}
	defer stop()
	tail := &lastLines{}
	err = m.runHere(ctx, command, m.Plan.Spec.Platform.Timeout.Duration, "spec.platform.timeout", io.MultiWriter(m.Output, tail))
	var bao *baoError
	if err == nil || errors.As(err, &bao) {
		return err
	}
	return &outputError{err: fmt.Errorf("%s %q: %w", field, strings.Join(command, " "), err), output: tail.String(), next: next}
}

// outputError is the failure of a program, with the end of what it printed. That is for the
// person alone: it may hold anything.
type outputError struct {
	err          error
	output, next string
}

func (e *outputError) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("%v; the end of its output:\n%s\n%s", e.err, e.output, e.next), "\n")
}

func (e *outputError) Recorded() string { return e.err.Error() }
func (e *outputError) Unwrap() error    { return e.err }

// lendKubeconfig makes the file that commands on the laptop have for their KUBECONFIG lead to c until
// stop. It holds the cluster's admin credentials: it exists for as long as the command runs.
func (m *Migration) lendKubeconfig(ctx context.Context, c *cluster.Client) (stop func(), err error) {
	kubeconfig, unforward, err := c.Forward(ctx)
	if err != nil {
		return nil, err
	}
	file := m.kubeconfig()
	if err := renameio.WriteFile(file, kubeconfig, 0o600, renameio.IgnoreUmask()); err != nil {
		unforward()
		return nil, fmt.Errorf("laptop: writing the kubeconfig for commands of the plan: %w", err)
	}
	return func() {
		_ = os.Remove(file) // the next run removes what is left
		unforward()
	}, nil
}

// runHere runs a command of the plan on the laptop, in the platform's directory and environment, and
// writes what it prints to out. Whatever it started ends with it; limited is the field that limits its time.
func (m *Migration) runHere(ctx context.Context, command []string, limit time.Duration, limited string, out io.Writer) error {
	p := m.Plan.Spec.Platform
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s of %s passed", limited, limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = p.Directory
	cmd.Env = os.Environ()
	for _, name := range slices.Sorted(maps.Keys(p.Environment)) {
		cmd.Env = append(cmd.Env, name+"="+p.Environment[name])
	}
	cmd.Env = append(cmd.Env, "KUBECONFIG="+m.kubeconfig())
	// A process group of its own: whatever the command started ends with it.
	cmd.SysProcAttr = ownGroup()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = out, out
	// The kernel ends the child when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind
	}
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}
