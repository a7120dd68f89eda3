package steps

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/runner"
)

// Every phase of the sequence is told of, in its order.
func TestPhases(t *testing.T) {
	var want, got []string
	for _, s := range migration(t, nil).Sequence() {
		if len(want) == 0 || want[len(want)-1] != s.Phase {
			want = append(want, s.Phase)
		}
	}
	for _, p := range Phases() {
		got = append(got, p.Name)
		for _, text := range []string{p.What, p.Why, p.Meanwhile, p.Failure} {
			require.Regexp(t, `^[A-Z].*\.$`, text, p.Name)
		}
	}
	require.Equal(t, want, got)
}

// The cluster is down from K3s's stop until its workloads are back.
func TestCondition(t *testing.T) {
	var s runner.State
	for _, c := range []struct {
		step, action string // the action that has begun, or the step that is complete
		says         string
		down         bool
	}{
		{"protect", "", "as before", false},
		{"quiesce", "refresh", "as before", false},
		{"quiesce", "stop", "not yet uninstalled", true},
		{"quiesce", "", "not yet uninstalled", true},
		{"uninstall", "look", "not yet uninstalled", true},
		{"uninstall", "uninstall", "is uninstalled", true},
		{"volumes", "", "is uninstalled", true},
		{"start", "start", "just being started", true},
		{"start", "", "not all back", true},
		{"platform", "up", "not all back", true},
		{"platform", "", "The new cluster runs.", false},
	} {
		if c.action == "" {
			s.Steps = append(s.Steps, runner.StepState{Step: c.step, Complete: true})
		} else {
			s.Actions = append(s.Actions, runner.ActionState{Step: c.step, Action: c.action, Status: runner.Intent})
		}
		text, down := Condition(s)
		require.Contains(t, text, c.says, "%s/%s", c.step, c.action)
		require.Equal(t, c.down, down, "%s/%s", c.step, c.action)
	}
}
