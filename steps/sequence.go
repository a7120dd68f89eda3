// Package steps is the migration: this file lists every step in order, then
// there is one file a step. A step computes its actions from the plan and the
// facts; `migrate plan` prints the same actions that `migrate run` performs.
//
// steps ties everything below together and is alone in doing so: backup,
// restore, verify, preflight and survey do the work, k3s and cluster know their
// subjects, remote and plans are underneath, and runner performs the result
// without knowing what it is.
package steps

import (
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
)

// The phases, for people.
const (
	look    = "Look"
	protect = "Protect"
	rebuild = "Rebuild"
	revive  = "Restore"
	dual    = "Dual-stack"
	prove   = "Prove"
)

// whole is the checkpoint at which the old cluster runs. Between seal, at which
// it is stopped, and verify, at which the new one runs, there is no other: what
// the new cluster holds until then goes with it, so that the steps which fill it
// have nothing of their own to undo.
const whole = "protect"

// Sequence is the migration from beginning to end.
func (m *Migration) Sequence() []runner.Step {
	return m.hooked([]runner.Step{
		{Name: "survey", Title: "Read host and cluster", Phase: look, ReadOnly: true, Actions: m.survey},
		{Name: "preflight", Title: "Check that the migration may run", Phase: look, ReadOnly: true, Actions: m.preflight},

		{Name: snapshotStep, Title: m.snapshotTitle(), Phase: protect, Actions: m.takeSnapshot},
		{Name: "protect", Title: "Back up while the cluster runs", Phase: protect, Parallel: m.Plan.Spec.Backup.Volumes.Concurrency, Checkpoint: true, Actions: m.protect},
		{Name: "gate", Title: "Prove the backup set", Phase: protect, ReadOnly: true, Actions: m.gate},

		// Here the downtime begins.
		{Name: "quiesce", Title: "Stop K3s and its containers in good order", Phase: rebuild, Gate: m.question(), Actions: m.quiesce, Undo: m.undoQuiesce},
		{Name: "freeze", Title: "Back up what changed until the stop, and K3s's state", Phase: rebuild, Parallel: m.Plan.Spec.Backup.Volumes.Concurrency, Actions: m.freeze},
		{Name: "seal", Title: "Prove the whole backup set", Phase: rebuild, ReadOnly: true, Checkpoint: true, Actions: m.seal},
		// Before the uninstall, so that it is taken back after it, when the new K3s, which
		// sets some of the same, is gone.
		{Name: "network", Title: "Prepare the host's network for IPv6 forwarding", Phase: rebuild, Actions: m.network, Undo: m.undoNetwork},
		// Here is the point of no return: what follows destroys the old cluster.
		{Name: "uninstall", Title: "Uninstall K3s", Phase: rebuild, Parallel: m.Plan.Spec.Backup.Volumes.Concurrency, Actions: m.uninstall, Undo: m.undoUninstall},
		{Name: "install", Title: "Install K3s again with dual-stack settings", Phase: rebuild, Actions: m.install},

		{Name: "volumes", Title: "Bring back the volumes' data", Phase: revive, Parallel: m.Plan.Spec.Backup.Volumes.Concurrency, Actions: m.volumes},
		{Name: "start", Title: "Start K3s", Phase: revive, Actions: m.start},
		{Name: "secrets", Title: "Bring back namespaces and TLS secrets", Phase: revive, Actions: m.secrets},
		{Name: "claims", Title: "Reserve the volumes for their claims", Phase: revive, Actions: m.claims},
		{Name: "platform", Title: "Redeploy the platform", Phase: revive, Actions: m.platform},

		{Name: "services", Title: "Patch Services to dual-stack", Phase: dual, Actions: m.services},
		{Name: "verify", Title: "Verify dual-stack, from inside and outside", Phase: prove, ReadOnly: true, Checkpoint: true, Actions: m.verify},
		{Name: "finish", Title: "Tidy up on the host", Phase: prove, Actions: m.finish},
	})
}

// Names lists the steps in order, for completion and messages.
func Names() []string {
	var out []string
	for _, s := range plans.Steps {
		out = append(out, string(s))
	}
	return out
}
