package steps

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

func lasting(d time.Duration) plans.Duration { return plans.Duration{Duration: d} }

// names are a step's actions.
func actionNames(t *testing.T, m *Migration, step string) []string {
	t.Helper()
	var out []string
	for _, s := range preview(t, m) {
		if s.Name == step {
			for _, a := range s.Actions {
				out = append(out, a.Name)
			}
		}
	}
	return out
}

func TestHooksSurroundEveryStep(t *testing.T) {
	for _, step := range plans.Steps {
		bare := actionNames(t, migration(t, nil), string(step))
		m := migration(t, func(s *plans.Spec) {
			for _, name := range []string{"a", "b"} {
				s.Hooks = append(s.Hooks,
					plans.Hook{Name: "late-" + name, After: step, On: plans.OnHost, Command: []string{"true"}},
					plans.Hook{Name: "early-" + name, Before: step, On: plans.OnLaptop, Command: []string{"true"}})
			}
		})
		want := slices.Concat([]string{"hook early-a", "hook early-b"}, bare, []string{"hook late-a", "hook late-b"})
		assert.Equal(t, want, actionNames(t, m, string(step)), step)
		for _, s := range preview(t, m) {
			if s.Name == string(step) {
				assert.False(t, s.ReadOnly, step)
				assert.True(t, s.Actions[0].Alone && s.Actions[len(s.Actions)-1].Alone, step)
			}
		}
	}
}

func TestWhereAHookHasAnAPI(t *testing.T) {
	for _, tc := range []struct {
		hook plans.Hook
		want bool
	}{
		{plans.Hook{Before: "survey"}, true},
		{plans.Hook{After: "gate"}, true},
		{plans.Hook{Before: "quiesce"}, true},
		{plans.Hook{After: "quiesce"}, false},
		{plans.Hook{Before: "freeze"}, false},
		{plans.Hook{After: "volumes"}, false},
		{plans.Hook{Before: "start"}, false},
		{plans.Hook{After: "start"}, true},
		{plans.Hook{Before: "secrets"}, true},
		{plans.Hook{After: "finish"}, true},
	} {
		assert.Equal(t, tc.want, apiUp(tc.hook), "%+v", tc.hook)
	}
}

// hooking is a run of one step, with hooks, in a directory of its own.
type hooking struct {
	*Migration
	dir     string
	printed bytes.Buffer
}

func newHooking(t *testing.T, m *Migration, hooks ...plans.Hook) *hooking {
	t.Helper()
	h := &hooking{Migration: m, dir: t.TempDir()}
	m.Output = &h.printed
	m.Plan.Spec.Platform.Directory = h.dir
	m.Plan.Spec.Platform.Environment = map[string]string{"COLOUR": "green"}
	m.Plan.Spec.Hooks = hooks
	for i := range hooks {
		if hooks[i].Timeout.Duration == 0 {
			hooks[i].Timeout = lasting(time.Minute)
		}
	}
	return h
}

// run performs freeze, in which the API is down, with work for what it does.
func (h *hooking) run(ctx context.Context, t *testing.T, work func() error) error {
	t.Helper()
	return h.runStep(ctx, t, "freeze", work)
}

func (h *hooking) runStep(ctx context.Context, t *testing.T, step string, work func() error) error {
	t.Helper()
	j, err := runner.OpenJournal(h.JournalPath())
	require.NoError(t, err)
	defer j.Close()
	r := runner.Runner{Journal: j, Steps: h.hooked([]runner.Step{{Name: step, ReadOnly: true, Actions: func(context.Context) ([]runner.Action, error) {
		return []runner.Action{{Name: "work", Run: func(context.Context) (any, error) { return nil, work() }}}, nil
	}}})}
	return r.Run(ctx, "")
}

// noted is what hooks and work wrote into the file log, in order.
func (h *hooking) noted(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(h.dir, "log"))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", " ")
}

func (h *hooking) note(word string) func() error {
	return func() error {
		f, err := os.OpenFile(filepath.Join(h.dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(word + "\n")
		return err
	}
}

func sh(script string, args ...string) []string {
	return append([]string{"sh", "-c", script}, args...)
}

func TestLaptopHooks(t *testing.T) {
	h := newHooking(t, atHome(t),
		plans.Hook{Name: "last", After: "freeze", Command: sh(`echo last >>log`)},
		plans.Hook{Name: "first", Before: "freeze", Command: sh(`echo first "$1" "$COLOUR" >>log; ls "$KUBECONFIG" 2>&1; echo hunter2`, "sh", "it's $HOME")},
		plans.Hook{Name: "second", Before: "freeze", Command: sh(`echo second >>log; [ -e mended ] || { echo hunter2 >&2; exit 7; }`)})

	err := h.run(t.Context(), t, h.note("work"))
	require.ErrorContains(t, err, "step freeze, hook second: spec.hooks[2]: laptop: exit status 7; ")
	require.NotContains(t, err.Error(), "hunter2", "what it prints may be secret")
	require.Equal(t, "first it's $HOME green second", h.noted(t))
	require.Equal(t, 2, strings.Count(h.printed.String(), "hunter2\n"), h.printed.String())
	require.Contains(t, h.printed.String(), "No such file", "where the API is down there is no kubeconfig")

	// It is repeated, those before it are not.
	require.NoError(t, os.WriteFile(filepath.Join(h.dir, "mended"), nil, 0o600))
	require.NoError(t, h.run(t.Context(), t, h.note("work")))
	require.Equal(t, "first it's $HOME green second second work last", h.noted(t))
	require.NotContains(t, contents(t, h.JournalPath()), "hunter2")
}

// Where the API is up, the KUBECONFIG is there for as long as the hook runs.
func TestLaptopHookHasTheCluster(t *testing.T) {
	ana, _ := two(t)
	m := ana.migration()
	defer m.Close()
	m.Facts = facts(t)
	h := newHooking(t, m, plans.Hook{Name: "look", After: "start", Command: sh(`stat -c %a "$KUBECONFIG"; grep server: "$KUBECONFIG"`)})
	var err error
	h.client, err = cluster.Connect(&net.Dialer{}, []byte(`{"apiVersion": "v1", "kind": "Config", "current-context": "default",
"clusters": [{"name": "default", "cluster": {"server": "https://127.0.0.1:6443"}}], "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
"users": [{"name": "default", "user": {"token": "hunter2"}}]}`))
	require.NoError(t, err)
	require.NoError(t, h.runStep(t.Context(), t, "start", h.note("work")))
	require.Regexp(t, `^600\n +server: https://127\.0\.0\.1:[0-9]+\n$`, h.printed.String())
	require.NotContains(t, h.printed.String(), ":6443", "it is a forward")
	require.NoFileExists(t, h.kubeconfig())
}

func TestLaptopHookThatTakesTooLong(t *testing.T) {
	h := newHooking(t, atHome(t), plans.Hook{Name: "slow", Before: "freeze", Command: sh(`(sleep 60; echo late >>log) & sleep 60`), Timeout: lasting(300 * time.Millisecond)})
	began := time.Now()
	err := h.run(t.Context(), t, h.note("work"))
	require.ErrorContains(t, err, "spec.hooks[0].timeout of 300ms passed")
	require.Less(t, time.Since(began), 50*time.Second)
	require.Empty(t, h.noted(t))
}

// A run that was killed in a hook has its intent alone in the journal.
func TestHookIsRepeatedAfterAKill(t *testing.T) {
	h := newHooking(t, atHome(t), plans.Hook{Name: "one", Before: "freeze", Command: sh("echo one >>log")})
	ctx, kill := context.WithCancel(t.Context())
	h.Plan.Spec.Hooks[0].Command = sh("echo one >>log; sleep 60")
	go func() {
		for h.noted(t) == "" && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		kill()
	}()
	require.ErrorIs(t, h.run(ctx, t, h.note("work")), context.Canceled)
	state, err := h.State()
	require.NoError(t, err)
	one, _ := state.ActionState("freeze", "hook one")
	require.Equal(t, runner.Intent, one.Status)

	h.Plan.Spec.Hooks[0].Command = sh("echo again >>log") // mended meanwhile
	require.NoError(t, h.run(t.Context(), t, h.note("work")))
	require.Equal(t, "one again work", h.noted(t))
}

// hostHooking has this machine for its host.
func hostHooking(t *testing.T, hooks ...plans.Hook) *hooking {
	t.Helper()
	ana, _ := two(t)
	m := ana.migration()
	t.Cleanup(func() { m.Close() })
	for i := range hooks {
		hooks[i].On = plans.OnHost
	}
	return newHooking(t, m, hooks...)
}

func (h *hooking) host(t *testing.T) *remote.Host {
	t.Helper()
	host, err := h.Host(t.Context())
	require.NoError(t, err)
	return host
}

func TestHostHooks(t *testing.T) {
	h := hostHooking(t,
		plans.Hook{Name: "first", Before: "freeze", Command: sh(`cd "$0" && echo first "$1" "$(id -un)" >>log; echo hunter2`, "", `it's "$HOME" *`)},
		plans.Hook{Name: "last", After: "freeze", Command: sh(`cd "$0" && echo last >>log; echo hunter2; [ -e mended ] || exit 7`, "")})
	for i := range h.Plan.Spec.Hooks {
		h.Plan.Spec.Hooks[i].Command[3] = h.dir
	}
	err := h.run(t.Context(), t, h.note("work"))
	require.ErrorContains(t, err, "step freeze, hook last: spec.hooks[1]: host host: exit status 7; ")
	require.NotContains(t, err.Error(), "hunter2", "what it prints may be secret")
	require.Equal(t, `first it's "$HOME" * root work last`, h.noted(t))
	require.Equal(t, 2, strings.Count(h.printed.String(), "hunter2\n"), h.printed.String())
	state, err := h.State()
	require.NoError(t, err)
	require.NoDirExists(t, remote.StateDir+"/jobs/"+hookJob(state.Run, "freeze", "last"), "what it printed is not kept on the host")

	require.NoError(t, os.WriteFile(filepath.Join(h.dir, "mended"), nil, 0o600))
	require.NoError(t, h.run(t.Context(), t, h.note("work")))
	require.Equal(t, `first it's "$HOME" * root work last last`, h.noted(t))
	require.NotContains(t, contents(t, h.JournalPath()), "hunter2")
}

func TestHookProgramsAreLookedForFirst(t *testing.T) {
	h := hostHooking(t,
		plans.Hook{Name: "there", After: "start", Command: sh("true")},
		plans.Hook{Name: "typo", After: "start", Command: []string{"systemclt", "start", "postfix"}},
		plans.Hook{Name: "path", After: "start", Command: []string{"/opt/my shop/tell"}})
	missing, err := h.hooksUnready(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{
		`spec.hooks[1].command[0]: hook typo: host host has no program "systemclt"; install it there, or write its path`,
		`spec.hooks[2].command[0]: hook path: host host has no program "/opt/my shop/tell"; install it there, or write its path`,
	}, missing)
	for _, hooks := range [][]plans.Hook{h.Plan.Spec.Hooks[:1], nil} {
		h.Plan.Spec.Hooks = hooks
		missing, err = h.hooksUnready(t.Context())
		require.NoError(t, err)
		require.Empty(t, missing)
	}
}

func TestHostHookThatTakesTooLong(t *testing.T) {
	h := hostHooking(t, plans.Hook{Name: "slow", Before: "freeze", Command: sh("sleep 60 & sleep 60"), Timeout: lasting(300 * time.Millisecond)})
	began := time.Now()
	err := h.run(t.Context(), t, h.note("work"))
	require.ErrorContains(t, err, "exit status 124, as when it takes longer than spec.hooks[0].timeout of 300ms")
	require.Less(t, time.Since(began), 50*time.Second)
}

// A hook goes on on the host when the run is cut off; the next run waits for the same one.
func TestHostHookOutlivesTheRun(t *testing.T) {
	h := hostHooking(t, plans.Hook{Name: "long", Before: "freeze", Command: sh(`cd "$0"; echo begun >>log; until [ -e go ]; do sleep 0.05; done; echo ended >>log; echo done`, "")})
	h.Plan.Spec.Hooks[0].Command[3] = h.dir
	cut := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for h.noted(t) == "" && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			cancel()
		}()
		require.ErrorIs(t, h.run(ctx, t, h.note("work")), context.Canceled)
	}
	cut()
	require.Equal(t, "begun", h.noted(t))
	require.NoError(t, h.note("cut")())
	require.NoError(t, os.WriteFile(filepath.Join(h.dir, "go"), nil, 0o600))
	require.NoError(t, h.run(t.Context(), t, h.note("work")))
	require.Equal(t, "begun cut ended work", h.noted(t), "it ran once")
	require.Contains(t, h.printed.String(), "done\n")

	// A rollback waits for its end, too.
	require.NoError(t, errors.Join(os.Remove(filepath.Join(h.dir, "go")), os.Remove(h.JournalPath()), os.Remove(filepath.Join(h.dir, "log"))))
	cut()
	state, err := h.State()
	require.NoError(t, err)
	time.AfterFunc(time.Second, func() { _ = h.note("go")(); _ = os.WriteFile(filepath.Join(h.dir, "go"), nil, 0o600) })
	require.NoError(t, h.settleHooks(t.Context(), state))
	require.Equal(t, "begun go ended", h.noted(t))
	require.ErrorIs(t, h.host(t).WaitJob(t.Context(), hookJob(state.Run, "freeze", "long"), nil), remote.ErrNoJob, "it is forgotten")
}

// A hook that is mended while an earlier attempt goes on is waited out, and run as it is now.
func TestHostHookMendedMeanwhile(t *testing.T) {
	h := hostHooking(t, plans.Hook{Name: "long", Before: "freeze", Command: sh(`cd "$0"; echo old >>log; until [ -e go ]; do sleep 0.05; done`, "")})
	h.Plan.Spec.Hooks[0].Command[3] = h.dir
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for h.noted(t) == "" && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	require.ErrorIs(t, h.run(ctx, t, h.note("work")), context.Canceled)
	h.Plan.Spec.Hooks[0].Command = sh(`cd "$0"; echo new >>log`, h.dir)
	require.NoError(t, os.WriteFile(filepath.Join(h.dir, "go"), nil, 0o600))
	require.NoError(t, h.run(t.Context(), t, h.note("work")))
	require.Equal(t, "old new work", h.noted(t))
}
