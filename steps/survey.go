package steps

import (
	"context"
	"fmt"
	"slices"

	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// survey takes the facts and keeps them for the whole run.
func (m *Migration) survey(context.Context) ([]runner.Action, error) {
	more := ""
	if len(m.Plan.Spec.Hooks) > 0 || m.takesSnapshot() {
		more = ", and whether what hooks and snapshot take is there"
	}
	return []runner.Action{{
		Name: "facts", Target: m.onHost(),
		Summary: "Read K3s's installation, the network, the cluster and its volumes" + more,
		Command: "systemctl cat k3s; k3s --version; ip addr; ip route; k3s kubectl get nodes,pv,pvc,svc -A",
		Run: func(ctx context.Context) (any, error) {
			return m.takeFacts(ctx)
		},
	}}, nil
}

// SurveyAll is [Migration.Survey] with the plan's hostnames as the laptop sees them, what
// the connection carries, and what hooks and snapshot take: what is missed later is missed in
// the downtime.
func (m *Migration) SurveyAll(ctx context.Context) (*survey.Facts, error) {
	names := make(chan []survey.Name, 1)
	go func() { names <- survey.Laptop{}.Names(ctx, m.Plan.Spec.Verify.Hostnames) }()
	facts, err := m.Survey(ctx)
	if err != nil {
		return nil, err
	}
	facts.Names = <-names
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	if facts.Rates, err = survey.MeasureRates(ctx, h); err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name(), err)
	}
	if facts.Unready, err = m.hooksUnready(ctx); err != nil {
		return nil, err
	}
	unready, err := m.snapshotUnready(ctx, facts)
	facts.Unready = append(facts.Unready, unready...)
	return facts, err
}

func (m *Migration) takeFacts(ctx context.Context) (any, error) {
	t := m.Progress.Wait("Reading host and cluster")
	defer t.Done()
	facts := m.taken
	if facts == nil {
		var err error
		if facts, err = m.SurveyAll(ctx); err != nil {
			return nil, err
		}
	}
	if err := m.keep(factsFile, facts); err != nil {
		return nil, err
	}
	m.Facts = facts
	return takenFacts{Facts: facts.Digest(), VolumeBytes: facts.VolumeBytes(), Saved: m.savedAs}, nil
}

// takenFacts are the data of the survey.
type takenFacts struct {
	Facts       string `json:"facts"` // their digest
	VolumeBytes int64  `json:"volumeBytes"`
	// Saved is the digest of the saved plan that the run began from.
	Saved string `json:"saved,omitempty"`
}

// checks is the action whose data are what preflight found.
const checks = "checks"

// judged are the data of checks.
type judged struct {
	Findings []preflight.Finding `json:"findings"`
}

// Findings are those of a run's preflight, with the reasons for which some were
// waived; none before it passed.
func Findings(state runner.State) ([]preflight.Finding, error) {
	var kept, drifted judged
	_, err := state.Data("preflight", checks, &kept)
	if err == nil {
		_, err = state.Data("preflight", drift, &drifted)
	}
	return append(kept.Findings, drifted.Findings...), err
}

// Waived are the waivers with which the run passed preflight.
func (m *Migration) Waived() (preflight.Waivers, error) {
	state, err := m.State()
	if err != nil {
		return nil, err
	}
	found, err := Findings(state)
	waivers := preflight.Waivers{}
	for _, f := range found {
		if f.Waived != "" {
			waivers[f.ID] = f.Waived
		}
	}
	return waivers, err
}

// preflight judges the facts.
func (m *Migration) preflight(context.Context) ([]runner.Action, error) {
	actions := []runner.Action{{
		Name: checks, Target: m.onLaptop(),
		Summary: "Check plan and facts; inhibitors stop the run",
		Command: "migrate check -f " + remote.Quote(m.Plan.Path()),
		Run: func(ctx context.Context) (any, error) {
			err := m.Check()
			return judged{m.Findings}, err
		},
	}}
	return slices.Concat(actions, m.source()), nil
}
