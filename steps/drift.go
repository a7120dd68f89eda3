package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/platform"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// drift is the preflight action whose data are its finding.
const drift = "drift"

// driftFile is where the last comparison is kept in the work directory.
const driftFile = "drift.json"

// Drift is how the cluster differs from the plan's manifests.
type Drift struct {
	*cluster.Drift
	// Unread is what lies among the manifests and could not be compared.
	Unread []platform.Left `json:"unread"`
}

// NoManifestsError says that the plan does not say what the cluster was made from.
type NoManifestsError struct{}

func (*NoManifestsError) Error() string {
	return "the plan does not say what the cluster was made from: name files, directories or kustomizations in spec.platform.manifests"
}

// source holds the cluster against what it is said to be made from, while it can
// still be mended: after the rebuild it is what the platform's deployment makes of it.
func (m *Migration) source() []runner.Action {
	p := m.Plan.Spec.Platform
	var actions []runner.Action
	if len(p.Manifests) > 0 {
		var diffs []string
		for _, path := range p.Manifests {
			flag := "-R -f "
			if platform.Kustomized(path) {
				flag = "-k "
			}
			diffs = append(diffs, "kubectl diff --server-side --force-conflicts "+flag+remote.Quote(path))
		}
		actions = append(actions, runner.Action{
			Name: drift, Target: m.onCluster(),
			Summary: "Compare the cluster with its manifests, by applying them in a dry run; with what lives in the cluster alone",
			Command: strings.Join(diffs, "; "),
			Run: func(ctx context.Context) (any, error) {
				d, err := m.Drift(ctx)
				if err != nil {
					return nil, err
				}
				if err := m.keep(driftFile, d); err != nil {
					return nil, err
				}
				found, err := m.judgeDrift(d)
				if err == nil {
					for _, f := range found {
						fmt.Fprintf(m.Output, "   %s: %s: %s\n   → %s\n", f.Severity, f.ID, f.Detail, f.Remedy)
					}
				}
				return judged{found}, err
			},
		})
	}
	if len(p.Rehearse) > 0 {
		actions = append(actions, runner.Action{
			Name: "rehearse", Target: m.onLaptop(),
			Summary: "Rehearse the platform's deployment, with a KUBECONFIG for the old cluster, in which it must change nothing",
			Command: "KUBECONFIG=… " + strings.Join(p.Rehearse, " "),
			Run: func(ctx context.Context) (any, error) {
				c, err := m.rebuilt(ctx) // not yet: it is the one that the facts are of
				if err != nil {
					return nil, err
				}
				return nil, m.platformCommand(ctx, c, "spec.platform.rehearse", p.Rehearse,
					"nothing was changed: repair what the output names, then the same command begins again")
			},
		})
	}
	return actions
}

// CheckDrift adds to Findings how the cluster differs from the plan's manifests; nothing
// where the plan names none. The error is an *InhibitedError when that forbids the run.
func (m *Migration) CheckDrift(ctx context.Context) error {
	d, err := m.Drift(ctx)
	var none *NoManifestsError
	if errors.As(err, &none) {
		return nil
	}
	if err == nil {
		_, err = m.judgeDrift(d)
	}
	return err
}

func (m *Migration) judgeDrift(d *Drift) ([]preflight.Finding, error) {
	found := preflight.Judge(preflight.Drift(m.Plan, d.Drift), m.Waivers)
	m.Findings = preflight.Judge(slices.Concat(m.Findings, found), m.Waivers)
	if preflight.Inhibited(found) {
		return found, &InhibitedError{Findings: m.Findings}
	}
	return found, nil
}

// Drift compares the cluster that runs now with the plan's manifests. Nothing is changed.
func (m *Migration) Drift(ctx context.Context) (*Drift, error) {
	paths := m.Plan.Spec.Platform.Manifests
	if len(paths) == 0 {
		return nil, &NoManifestsError{}
	}
	manifests, err := platform.Read(paths)
	if err != nil {
		return nil, fmt.Errorf("spec.platform.manifests: %w", err)
	}
	if len(manifests.Objects) == 0 {
		return nil, errors.New("spec.platform.manifests: there is no object in them; name the directories that hold the manifests")
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
	c, err := m.Client(ctx, in)
	if err != nil {
		return nil, err
	}
	t := m.Progress.Wait("Comparing the cluster with its manifests")
	defer t.Done()
	d, err := c.Drift(ctx, manifests.Objects, t)
	if err != nil {
		return nil, err
	}
	return &Drift{Drift: d, Unread: append([]platform.Left{}, manifests.Left...)}, nil
}
