package steps

import (
	"context"
	"fmt"
	"slices"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// gate proves what was backed up so far: every artifact is read again, summed,
// decrypted with a key that is at hand, and opened.
func (m *Migration) gate(context.Context) ([]runner.Action, error) {
	return m.proof(m.hotArtifacts()), nil
}

// seal proves the set once more when nothing can change any longer: the
// uninstall that follows destroys what the set holds.
func (m *Migration) seal(context.Context) ([]runner.Action, error) {
	actions := m.proof(m.artifacts())
	actions[0].Like = "gate/prove"
	return actions, nil
}

func (m *Migration) proof(required []string) []runner.Action {
	return append([]runner.Action{{
		Name: "prove", Target: m.onLaptop(),
		Summary: fmt.Sprintf("Re-read, checksum, decrypt and open %d artifacts", len(required)),
		Command: "migrate backup verify -f " + remote.Quote(m.Plan.Path()),
		Run: func(ctx context.Context) (any, error) {
			set, err := m.Set()
			if err != nil {
				return nil, err
			}
			if err := set.Verify(ctx, required, m.Progress); err != nil {
				return nil, fmt.Errorf("%w\nK3s was not uninstalled; `migrate run` continues once the backup set is whole", err)
			}
			m.proven = slices.Contains(required, k3sState) // the last there is
			return map[string]int{"artifacts": len(required)}, nil
		},
	}}, m.proveBao()...)
}

// hotArtifacts are made while the cluster runs.
func (m *Migration) hotArtifacts() []string {
	names := append([]string{installScript, objects, namespaces, tlsSecrets, k3sFiles}, m.baoArtifacts()...)
	if len(m.Facts.Host.Strays) > 0 {
		names = append(names, strays)
	}
	for _, v := range m.Facts.Cluster.Volumes {
		if v.Copied() {
			names = append(names, v.Ref().Full(), backup.ListName(v.Ref().Full()))
		}
	}
	return names
}

// artifacts are all that must be there before the uninstall.
func (m *Migration) artifacts() []string {
	names := append(m.hotArtifacts(), k3sState, k3sDatabase)
	for _, v := range m.Facts.Cluster.Volumes {
		if v.Copied() {
			names = append(names, v.Ref().Artifacts()...)
		}
	}
	return names
}

// question is asked before the downtime; the name of the host has to be typed.
func (m *Migration) question() *runner.Gate {
	name := m.Plan.Server().Name
	return &runner.Gate{
		Question: "The backup set is complete and proven. From here on the cluster on " + name + " is down: K3s is stopped, uninstalled and installed again.\nType the host's name to go on",
		Expect:   name,
	}
}
