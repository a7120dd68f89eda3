package steps

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/runner"
)

// Volumes on a file system of their own, and K3s in another directory than usual:
// what that changes in the plan, and in what takes the uninstall back.
func TestPlanWithStorageOfItsOwn(t *testing.T) {
	all := func(m *Migration) (plan, undo string) {
		actions, err := m.undoUninstall(t.Context())
		require.NoError(t, err)
		return text(preview(t, m)), text([]runner.Planned{{Step: runner.Step{Name: "uninstall"}, Actions: actions}})
	}
	plan, undo := all(migration(t, nil))
	m := migration(t, nil)
	m.Facts.K3s.Mounts = []k3s.Mount{
		{Path: "/var/lib/rancher", Type: "xfs", Source: "/dev/mapper/vg-rancher", UUID: "b7c2", Root: "/", Data: true},
		{Path: m.Facts.K3s.Storage(), Type: "ext4", Source: "/dev/mapper/vg-volumes", UUID: "d8fa", Root: "/", Apart: true},
	}
	ownPlan, ownUndo := all(m)
	golden(t, "testdata/plan-storage.golden", changed(plan, ownPlan)+"\nTo take it back:\n"+changed(undo, ownUndo))

	// The action needs no Done: mounting what is mounted does nothing.
	for _, s := range preview(t, m) {
		if s.Name == "volumes" {
			require.Equal(t, "mount", s.Actions[0].Name)
			require.True(t, s.Actions[0].Alone, "before every volume")
		}
	}
}
