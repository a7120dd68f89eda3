package steps

import (
	"context"

	"sunbeam.pt/k3s-dualstack/runner"
)

// survey takes the facts and keeps them for the whole run.
func (m *Migration) survey(context.Context) ([]runner.Action, error) {
	return []runner.Action{{
		Name: "facts", Target: m.onHost(),
		Summary: "Read K3s's installation, the network, the cluster and its volumes",
		Command: "ssh " + m.Plan.Server().Address + " 'systemctl cat k3s; k3s --version; ip addr; ip route' && kubectl get nodes,pv,pvc,svc -A",
		Run: func(ctx context.Context) (any, error) {
			return m.takeFacts(ctx)
		},
	}}, nil
}

func (m *Migration) takeFacts(ctx context.Context) (any, error) {
	t := m.Progress.Wait("Reading host and cluster")
	defer t.Done()
	facts, err := m.Survey(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.keep(factsFile, facts); err != nil {
		return nil, err
	}
	m.Facts = facts
	return map[string]any{"facts": facts.Digest(), "volumeBytes": facts.VolumeBytes()}, nil
}

// preflight judges the facts.
func (m *Migration) preflight(context.Context) ([]runner.Action, error) {
	return []runner.Action{{
		Name: "checks", Target: m.onLaptop(),
		Summary: "Check plan and facts; inhibitors stop the run",
		Run: func(ctx context.Context) (any, error) {
			err := m.Check()
			return map[string]any{"findings": m.Findings}, err
		},
	}}, nil
}
