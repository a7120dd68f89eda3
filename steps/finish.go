package steps

import (
	"context"
	"fmt"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// finish removes from the host what only the run needed; journal and lock
// are the run's own to end.
func (m *Migration) finish(context.Context) ([]runner.Action, error) {
	return append([]runner.Action{{
		Name: "tidy", Target: m.onHost(),
		Summary: "Remove the volumes' indexes and the install script; the backup set stays on the laptop",
		Command: "find " + remote.StateDir + "/volumes -type f ! -name restored -delete",
		Run: func(ctx context.Context) (any, error) {
			h, err := m.Host(ctx)
			if err != nil {
				return nil, err
			}
			// When each volume was restored is kept: a later verification tells by
			// it what workloads wrote since.
			return nil, h.Run(ctx, fmt.Sprintf("find %s/volumes -type f ! -name restored -delete 2>/dev/null; rm -rf %s",
				remote.StateDir, remote.Quote(hostInstallScript)))
		},
	}}, m.removeSnapshot()...), nil
}
