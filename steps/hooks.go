package steps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// hooked puts the plan's hooks around what the steps do. A step that has one no longer
// only reads.
func (m *Migration) hooked(sequence []runner.Step) []runner.Step {
	for i, s := range sequence {
		var before, after []runner.Action
		for j, h := range m.Plan.Spec.Hooks {
			switch plans.Step(s.Name) {
			case h.Before:
				before = append(before, m.hook(j, s.Name))
			case h.After:
				after = append(after, m.hook(j, s.Name))
			}
		}
		if len(before)+len(after) == 0 {
			continue
		}
		sequence[i].ReadOnly = false
		sequence[i].Actions = func(ctx context.Context) ([]runner.Action, error) {
			actions, err := s.Actions(ctx)
			return slices.Concat(before, actions, after), err
		}
	}
	return sequence
}

// hookAction is the name of a hook's action, by which the journal knows it.
const hookAction = "hook "

// hook is the action of the plan's hook i.
func (m *Migration) hook(i int, step string) runner.Action {
	h := m.Plan.Spec.Hooks[i]
	a := runner.Action{
		Name: hookAction + h.Name, Target: m.onLaptop(), Alone: true,
		Summary: fmt.Sprintf("Hook %s, after all else of the step", h.Name),
		Command: remote.Quote(h.Command...),
	}
	if h.Before != "" {
		a.Summary = fmt.Sprintf("Hook %s, before the step", h.Name)
	}
	run := m.laptopHook
	switch {
	case h.On == plans.OnHost:
		run, a.Target = m.hostHook, m.onHost()
	case apiUp(h):
		a.Command = "KUBECONFIG=… " + a.Command
	}
	a.Run = func(ctx context.Context) (any, error) {
		if err := run(ctx, i, step); err != nil {
			return nil, fmt.Errorf("spec.hooks[%d]: %w", i, err)
		}
		return nil, nil
	}
	return a
}

// hooksUnready are the programs of the host's hooks that are not there; loading the plan has looked for the laptop's.
func (m *Migration) hooksUnready(ctx context.Context) (missing []string, err error) {
	script := "cd /\n"
	asked := false
	for i, h := range m.Plan.Spec.Hooks {
		if h.On == plans.OnHost {
			asked = true
			script += fmt.Sprintf("%s || echo %d\n", remote.HasProgram(h.Command[0]), i)
		}
	}
	if !asked {
		return nil, nil
	}
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	out, err := h.Output(ctx, script)
	if err != nil {
		return nil, fmt.Errorf("host %s: looking for the programs of its hooks: %w", h.Name(), err)
	}
	for line := range strings.FieldsSeq(out) {
		i, err := strconv.Atoi(line)
		if err != nil || i < 0 || i >= len(m.Plan.Spec.Hooks) {
			return nil, fmt.Errorf("host %s: looking for the programs of its hooks: it says %q", h.Name(), out)
		}
		hook := m.Plan.Spec.Hooks[i]
		missing = append(missing, fmt.Sprintf("spec.hooks[%d].command[0]: hook %s: host %s has no program %q; install it there, or write its path", i, hook.Name, h.Name(), hook.Command[0]))
	}
	return missing, nil
}

// apiUp tells whether there is a cluster to speak to where the hook stands.
func apiUp(h plans.Hook) bool {
	place := func(s plans.Step) int { return slices.Index(plans.Steps, s) }
	quiesce, start := place("quiesce"), place("start")
	if h.Before != "" {
		return place(h.Before) <= quiesce || place(h.Before) > start
	}
	return place(h.After) < quiesce || place(h.After) >= start
}

// laptopHook runs a hook as the platform's command is run. Where the API is down, its KUBECONFIG
// names a file that is not there: kubectl must not take another cluster for this one.
func (m *Migration) laptopHook(ctx context.Context, i int, _ string) error {
	h := m.Plan.Spec.Hooks[i]
	if apiUp(h) {
		c, err := m.running(ctx)
		if err != nil {
			return err
		}
		stop, err := m.lendKubeconfig(ctx, c)
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := m.runHere(ctx, h.Command, h.Timeout.Duration, timeoutOf(i), m.Output); err != nil {
		return fmt.Errorf("laptop: %w; %s", err, mendHook)
	}
	return nil
}

// mendHook is what to do when a hook failed. Its output may hold secrets: it is in no error.
const mendHook = "what it printed is shown above and kept nowhere; once it is mended, `migrate run` repeats the hook and goes on"

func timeoutOf(i int) string { return fmt.Sprintf("spec.hooks[%d].timeout", i) }

// running is the API of the cluster that runs now, before the first facts are kept, too.
func (m *Migration) running(ctx context.Context) (*cluster.Client, error) {
	if m.Facts != nil {
		return m.rebuilt(ctx)
	}
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	in, err := k3s.Read(ctx, h)
	if err != nil {
		return nil, err
	}
	if err := usable(h, in); err != nil {
		return nil, err
	}
	return m.Client(ctx, in)
}

// How `timeout` ends when the time is over: 124, or 137 when what it ran had to be killed.
const timedOut, killed = 124, 137

// hostHook runs a hook as a job. It keeps its time itself, since it goes on when the laptop is gone. A job that
// failed is forgotten: what it printed may hold secrets, and was shown.
func (m *Migration) hostHook(ctx context.Context, i int, step string) error {
	hook := m.Plan.Spec.Hooks[i]
	state, err := m.State()
	if err != nil {
		return err
	}
	job := hookJob(state.Run, step, hook.Name)
	limit := hook.Timeout.Duration
	script := fmt.Sprintf("exec timeout -k 10 %d %s\n", int(math.Ceil(limit.Seconds())), remote.Quote(hook.Command...))
	err = m.ownJob(ctx, job, "Running hook "+hook.Name, script)
	var exit *remote.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if exit.Code == timedOut || exit.Code == killed {
		err = fmt.Errorf("%w, as when it takes longer than %s of %s", err, timeoutOf(i), limit)
	}
	return fmt.Errorf("%w; %s", err, mendHook)
}

// ownJob runs a program of the plan on the host as a job. What it prints may hold secrets: it is shown, and is
// forgotten with a job that failed; no error has it.
func (m *Migration) ownJob(ctx context.Context, job, label, script string) error {
	if err := m.settleOther(ctx, job, script); err != nil {
		return err
	}
	err := m.jobTo(ctx, job, label, script, m.Output)
	var exit *remote.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	h, gone := m.Host(ctx)
	if gone == nil {
		gone = h.ForgetJob(ctx, job)
	}
	return errors.Join(fmt.Errorf("host %s: %w", m.Plan.Server().Name, &remote.ExitError{Code: exit.Code}), gone)
}

// settleOther waits for a job of that name with another script, and forgets it: the plan's hook
// was mended while an earlier attempt went on, which must not be taken for the new one.
func (m *Migration) settleOther(ctx context.Context, job, script string) error {
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	was, err := h.ReadFile(ctx, remote.StateDir+"/jobs/"+job+"/script")
	if errors.Is(err, fs.ErrNotExist) || err == nil && string(was) == script {
		return nil
	}
	if err != nil {
		return fmt.Errorf("host %s: looking at job %s of an earlier attempt: %w", h.Name(), job, err)
	}
	return m.settle(ctx, h, job)
}

// hookJob names the job of a hook. It is the run's own: one that an earlier run left does not count.
func hookJob(run, step, name string) string { return ownJobName("hook", run) + "-" + step + "-" + name }

// ownJobName marks a job's name with the run.
func ownJobName(name, run string) string { return name + "-" + strings.ToLower(run[:min(8, len(run))]) }

// settleHooks waits until none of the run's hooks goes on on the host, and forgets what they left: a
// rollback must not meet them, nor a later run take them for its own.
func (m *Migration) settleHooks(ctx context.Context, state runner.State) error {
	for _, a := range state.Actions {
		name, hook := strings.CutPrefix(a.Action, hookAction)
		if !hook || a.Status == runner.Done {
			continue
		}
		h, err := m.Host(ctx)
		if err != nil {
			return err
		}
		if err := m.settle(ctx, h, hookJob(state.Run, a.Step, name)); err != nil {
			return err
		}
	}
	return nil
}
