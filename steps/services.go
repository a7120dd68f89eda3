package steps

import (
	"context"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
)

// services gives every eligible Service its second family. Which those are is
// asked of the new cluster: the platform may have made others than there were.
func (m *Migration) services(context.Context) ([]runner.Action, error) {
	spec := m.Plan.Spec.Services
	if spec.Policy == plans.ServicesKeep {
		return nil, nil
	}
	return []runner.Action{{
		Name: "patch", Target: m.onCluster(),
		Summary: "Set ipFamilyPolicy " + string(spec.Policy) + " on every eligible Service",
		Command: `kubectl patch service … -p '{"spec":{"ipFamilyPolicy":"` + string(spec.Policy) + `"}}'`,
		Run: func(ctx context.Context) (any, error) {
			c, err := m.rebuilt(ctx)
			if err != nil {
				return nil, err
			}
			changes, err := c.Services(ctx, spec.Policy, spec.Exclude)
			if err != nil {
				return nil, err
			}
			t := m.Progress.Wait("Patching Services")
			defer t.Done()
			var patched []string
			for _, s := range changes {
				if s.Skip != "" {
					continue
				}
				t.Detail(s.Namespace + "/" + s.Name)
				if err := c.PatchService(ctx, s); err != nil {
					return nil, err
				}
				patched = append(patched, s.Namespace+"/"+s.Name)
			}
			return map[string]any{"patched": patched}, nil
		},
	}}, nil
}
