package steps

import (
	"context"
	"fmt"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/restore"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// volumes brings back the data of the volumes that the uninstall took, under
// the paths that their PersistentVolumes name. Data that the uninstall did not
// touch is found equal to the set and left alone.
func (m *Migration) volumes(context.Context) ([]runner.Action, error) {
	actions := m.mountAgain(func(ctx context.Context) (any, error) {
		_, err := m.mounted(ctx)
		return nil, err
	})
	for _, v := range m.Facts.Cluster.Volumes {
		if !v.Copied() {
			continue
		}
		actions = append(actions, runner.Action{
			Name: "volume " + v.PV, Target: m.onHost(),
			Summary: fmt.Sprintf("Stream volume %s back and compare every file", claim(v)),
			Command: m.unarchive(v),
			Bytes:   v.Bytes,
			Run:     func(ctx context.Context) (any, error) { return nil, m.restoreVolume(ctx, v) },
			Done: func(ctx context.Context) (bool, error) {
				h, set, err := m.hostAndSet(ctx)
				if err != nil {
					return false, err
				}
				return restore.VolumeDone(ctx, h, v.Ref(), set)
			},
		})
	}
	if found := m.Facts.Host.Strays; len(found) > 0 {
		actions = append(actions, runner.Action{
			Name: strays, Target: m.onHost(),
			Summary: fmt.Sprintf("Put back what lay in the storage and belongs to no volume (%d)", len(found)),
			Command: m.IntoSSH("tar -C / -xpf -") + " < strays.tar",
			Run: func(ctx context.Context) (any, error) {
				h, set, err := m.mountedAndSet(ctx)
				if err != nil {
					return nil, err
				}
				return nil, restore.Tree(ctx, h, set, strays, m.Progress, restore.Everything)
			},
		})
	}
	return actions, nil
}

// unarchive is the command that puts back what archive printed, the second time over the first.
func (m *Migration) unarchive(v survey.Volume) string {
	into := m.IntoSSH(fmt.Sprintf("mkdir -p %[1]s && zstd -d | tar -C %[1]s --ignore-zeros --listed-incremental=/dev/null --acls --xattrs --numeric-owner -xpf -", remote.Quote(v.Path)))
	return into + " < <(cat " + remote.Quote(v.PV+".tar.zst", v.PV+".changes.tar.zst") + ")"
}

// mountAgain is the action by which the volumes' own file system comes back, where
// there is one: what it has is found equal to the set and left alone.
func (m *Migration) mountAgain(run func(context.Context) (any, error)) []runner.Action {
	if len(m.Facts.K3s.Apart()) == 0 {
		return nil
	}
	return []runner.Action{{
		Name: "mount", Target: m.onHost(), Alone: true,
		Summary: "Mount the volumes' file system again, with what it has",
		Command: m.Facts.K3s.MountCommand(),
		Run:     run,
	}}
}

func (m *Migration) restoreVolume(ctx context.Context, v survey.Volume) error {
	h, set, err := m.mountedAndSet(ctx)
	if err != nil {
		return err
	}
	if !m.endangered(v) {
		// The uninstall did not touch it, and what is there may be newer than
		// the backup.
		there, err := h.Output(ctx, "[ -d "+remote.Quote(v.Path)+" ] && ls -A "+remote.Quote(v.Path)+" | head -n 1; true")
		if err != nil || there != "" {
			return err
		}
	}
	if h, err = h.Another(ctx); err != nil {
		return err
	}
	defer h.Close()
	return restore.Volume(ctx, h, v.Ref(), set, m.Progress)
}

// carried are the PersistentVolumes whose objects come back: those with data
// that was copied, and those whose data lies elsewhere.
func (m *Migration) carried() (out []survey.Volume) {
	for _, v := range m.Facts.Cluster.Volumes {
		if v.Copied() || v.Kind == cluster.Remote {
			out = append(out, v)
		}
	}
	return out
}

// claims makes each PersistentVolume and its claim before the platform does: a
// claim that comes first would get a new, empty volume.
func (m *Migration) claims(context.Context) ([]runner.Action, error) {
	var actions []runner.Action
	for _, v := range m.carried() {
		actions = append(actions, runner.Action{
			Name: "reserve " + v.PV, Target: m.onCluster(),
			Summary: reservation(v),
			Command: "kubectl create -f … # out of objects.json, without uid, resourceVersion and status",
			Run: func(ctx context.Context) (any, error) {
				c, err := m.rebuilt(ctx)
				if err != nil {
					return nil, err
				}
				return nil, c.ReserveVolume(ctx, v.Volume)
			},
		})
	}
	return actions, nil
}

func reservation(v survey.Volume) string {
	if v.Claim == "" {
		return fmt.Sprintf("Create volume %s, which nobody claims", v.PV)
	}
	return fmt.Sprintf("Create volume %s, reserved for claim %s/%s, and the claim", v.PV, v.Namespace, v.Claim)
}

// release gives the volumes their reclaim policy back once they are bound.
func (m *Migration) release() []runner.Action {
	var actions []runner.Action
	for _, v := range m.carried() {
		if v.Claim == "" {
			continue
		}
		actions = append(actions, runner.Action{
			Name: "release " + v.PV, Target: m.onCluster(),
			Summary: fmt.Sprintf("Give volume %s its reclaim policy %s back once it is bound", v.PV, v.ReclaimPolicy),
			Command: fmt.Sprintf(`kubectl patch pv %s -p '{"spec":{"persistentVolumeReclaimPolicy":"%s"}}'`, v.PV, v.ReclaimPolicy),
			Run: func(ctx context.Context) (any, error) {
				c, err := m.rebuilt(ctx)
				if err != nil {
					return nil, err
				}
				t := m.Progress.Wait("Waiting for volume " + v.PV + " to be bound")
				defer t.Done()
				bound, err := c.ReleaseReservation(ctx, v.Volume, t)
				return map[string]bool{"bound": bound}, err
			},
		})
	}
	return actions
}
