package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// quiesce ends everything that writes. The workloads' objects are left as they
// are, so that the datastore which is kept next starts the same cluster again.
func (m *Migration) quiesce(context.Context) ([]runner.Action, error) {
	in := m.Facts.K3s
	stop := "systemctl stop " + in.UnitName() + " && " + in.KillallCommand()
	if len(in.Apart()) > 0 {
		stop += " && " + in.MountCommand() // some releases' killall unmounts it
	}
	return []runner.Action{{
		Name: "refresh", Target: m.onCluster(),
		Summary: "See that nothing moved since the survey; export objects, secrets and configuration as they are now" + m.alsoBao(),
		Command: "kubectl get pv && kubectl get secrets -A --field-selector type=kubernetes.io/tls -o yaml > tls-backup.yaml",
		Run:     func(ctx context.Context) (any, error) { return nil, m.refresh(ctx) },
		Done: func(ctx context.Context) (bool, error) {
			// Once K3s was stopped there is nobody to ask; "stop" comes after
			// this, so that then it was done.
			h, err := m.Host(ctx)
			if err != nil {
				return false, err
			}
			return in.Quiesced(ctx, h)
		},
	}, {
		Name: "stop", Target: m.onHost(),
		Summary: "Stop K3s, ask containers to end, then kill what is left",
		Command: stop,
		Run: func(ctx context.Context) (any, error) {
			return nil, m.job(ctx, "quiesce", "Stopping K3s and its containers", in.Quiesce())
		},
		Done: func(ctx context.Context) (bool, error) {
			h, err := m.Host(ctx)
			if err != nil {
				return false, err
			}
			return in.Quiesced(ctx, h)
		},
	}}, nil
}

// undoQuiesce starts the old cluster again, as it was.
func (m *Migration) undoQuiesce(context.Context) ([]runner.Action, error) {
	in := m.Facts.K3s
	actions := []runner.Action{{
		// Durable before the start: an attempt that was cut off has started K3s, and
		// the next could not tell what is of before.
		Name: stoppedAt, Target: m.onHost(),
		Summary: "Note the host's time: by it, pods that run are told from those that did before",
		Command: "date",
		Run:     func(ctx context.Context) (any, error) { return m.noteTime(ctx) },
	}, {
		Name: "start again", Target: m.onHost(), Like: "start/start",
		Summary: "Start K3s as it was, and wait until it is up",
		Command: m.enable() + "systemctl start " + remote.Quote(in.UnitName()),
		Run: func(ctx context.Context) (any, error) {
			return nil, m.startK3s(ctx)
		},
	}, {
		Name: "node again", Target: m.onCluster(), Like: "start/node",
		Summary: "Wait for the node to be Ready",
		Command: "kubectl wait --for=condition=Ready --timeout=5m node --all",
		Run:     func(ctx context.Context) (any, error) { return nil, m.waitNodes(ctx, 1) },
	}, {
		Name: "pods again", Target: m.onCluster(),
		Summary: "Wait until the kubelet has started the pods again",
		Command: "kubectl get pods -A",
		Run:     m.waitPodsAgain,
	}}
	return append(actions, m.baoAgain()...), nil
}

// stoppedAt is the undo action whose data say until when K3s was stopped.
const stoppedAt = "time"

// stoppedUntil is the host's time, in seconds, right before K3s was started; 0 when
// it was running.
type stoppedUntil struct {
	Epoch int64 `json:"stoppedUntil,omitempty"`
}

func (m *Migration) noteTime(ctx context.Context) (stopped stoppedUntil, err error) {
	h, err := m.Host(ctx)
	if err != nil {
		return stopped, err
	}
	if err := m.settle(ctx, h, "quiesce"); err != nil {
		return stopped, err
	}
	quiet, err := m.Facts.K3s.Quiesced(ctx, h)
	if err != nil || !quiet && m.Via != ViaSnapshot {
		return stopped, err
	}
	now := "date +%s"
	if !quiet { // it was started with the host
		now = "sed -n 's/^btime //p' /proc/stat"
	}
	out, err := h.Output(ctx, now)
	if err == nil {
		stopped.Epoch, err = strconv.ParseInt(out, 10, 64)
	}
	if err != nil {
		return stopped, fmt.Errorf("host %s: asking for its time: %w", h.Name(), err)
	}
	return stopped, nil
}

// waitPodsAgain keeps the comparison that follows from believing what the
// datastore says of containers that were stopped long ago. Should the host's clock
// have been put back meanwhile, it is the deadline that ends the wait.
func (m *Migration) waitPodsAgain(ctx context.Context) (any, error) {
	state, err := m.State()
	if err != nil {
		return nil, err
	}
	var stopped stoppedUntil
	step := "quiesce"
	if back := state.Rollback; back != nil && back.At != "" {
		step = back.At
	}
	if found, err := state.UndoData(step, stoppedAt, &stopped); err != nil || !found || stopped.Epoch == 0 {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiDeadline)
	defer cancel()
	c, err := m.rebuilt(ctx)
	if err != nil {
		return nil, err
	}
	t := m.Progress.Wait("Waiting for pods")
	defer t.Done()
	err = c.WaitStartedSince(ctx, time.Unix(stopped.Epoch, 0), t)
	var late *cluster.WaitError
	if errors.As(err, &late) && late.Outage == nil && errors.Is(late.Err, context.DeadlineExceeded) {
		return map[string][]string{"notSeenAgain": late.Missing}, nil
	}
	return nil, err
}

// settle waits until a job on the host that an earlier process may have left
// running has ended, however it ended, and forgets it.
func (m *Migration) settle(ctx context.Context, h *remote.Host, job string) error {
	// Most often there is none, and nothing to be said about it.
	soon, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := h.WaitJob(soon, job, io.Discard)
	if err != nil && soon.Err() != nil && ctx.Err() == nil {
		t := m.Progress.Wait("Waiting for the end of job " + job)
		defer t.Done()
		err = h.WaitJob(ctx, job, io.Discard)
	}
	var exit *remote.ExitError
	switch {
	case errors.Is(err, remote.ErrNoJob):
		return nil
	case err == nil, errors.Is(err, remote.ErrJobLost), errors.As(err, &exit):
		return h.ForgetJob(ctx, job)
	}
	return fmt.Errorf("host %s: waiting for the end of job %s: %w", h.Name(), job, err)
}

// refresh makes what was exported while the cluster ran current again: between
// the first export and the stop a person may have taken days, and cert-manager
// may have renewed. What a refresh cannot cover stops the run.
func (m *Migration) refresh(ctx context.Context) error {
	now, err := m.Survey(ctx)
	if err != nil {
		return err
	}
	if err := m.moved(now); err != nil {
		return err
	}
	if _, err := m.keepObjects(ctx); err != nil {
		return err
	}
	if _, err := m.keepSecrets(ctx); err != nil {
		return err
	}
	if err := m.keepTree(ctx, k3sFiles, now.K3s.Files()); err != nil {
		return err
	}
	if err := m.refreshBao(ctx, now); err != nil {
		return err
	}
	now.Names, now.Rates = m.Facts.Names, m.Facts.Rates
	now.Host.Storage = m.Facts.Host.Storage // which the snapshot was taken of
	if err := m.keep(factsFile, now); err != nil {
		return err
	}
	if err := m.mirrorFacts(ctx, now); err != nil {
		return err
	}
	m.Facts = now
	return nil
}

// moved refuses what a refresh cannot cover, and names each difference.
func (m *Migration) moved(now *survey.Facts) error {
	moved := m.Facts.Moved(now)
	if len(moved) == 0 {
		return nil
	}
	return fmt.Errorf("the cluster is no longer the one that was surveyed at %s:\n  %s\nit runs as before; to begin anew with what is there now, move %s away and run again",
		m.Facts.Taken.Local().Format(time.DateTime), strings.Join(moved, "\n  "), m.Plan.Spec.WorkDir)
}

// freeze backs up what could not be had while the cluster ran: the datastore,
// and what the volumes' files became since their first pass.
func (m *Migration) freeze(context.Context) ([]runner.Action, error) {
	in := m.Facts.K3s
	actions := []runner.Action{{
		Name: "storage", Target: m.onHost(),
		Summary: "See that the volumes' storage holds nothing that is in no backup",
		Command: "ls " + remote.Quote(in.Storage()),
		Run: func(ctx context.Context) (any, error) {
			h, err := m.stillQuiet(ctx)
			if err != nil {
				return nil, err
			}
			unknown, err := m.Facts.Unknown(ctx, h)
			if err != nil {
				return nil, err
			}
			if len(unknown) > 0 {
				return nil, fmt.Errorf("host %s: the uninstall would delete what is in no backup: %s; move it out of %s, or start K3s again (`systemctl enable --now %s`) and begin anew with another work directory",
					h.Name(), strings.Join(unknown, ", "), in.Storage(), in.UnitName())
			}
			return nil, nil
		},
	}, {
		Name: k3sDatabase, Target: m.onHost(),
		Summary: "Keep K3s's datastore and its write-ahead log",
		Command: m.OverSSH(fmt.Sprintf("cd %s && tar -cf - state.db*", remote.Quote(path.Dir(in.Database())))) + " > k3s-database.tar",
		Run: func(ctx context.Context) (any, error) {
			h, err := m.stillQuiet(ctx)
			if err != nil {
				return nil, err
			}
			set, err := m.Set()
			if err != nil {
				return nil, err
			}
			return nil, backup.Datastore(ctx, h, set, k3sDatabase, in.Database(), backup.KineTable, m.Progress)
		},
	}, {
		Name: k3sState, Target: m.onHost(),
		Summary: "Keep token, CAs, credentials, node passwords and manifests",
		Command: m.OverSSH("tar -C "+remote.Quote(path.Dir(in.ServerDir()))+" --exclude server/db -cf - server") + " > k3s-state.tar",
		Run: func(ctx context.Context) (any, error) {
			h, err := m.stillQuiet(ctx)
			if err != nil {
				return nil, err
			}
			paths, err := in.StatePaths(ctx, h)
			if err != nil {
				return nil, err
			}
			return nil, m.keepTree(ctx, k3sState, paths)
		},
	}}
	for _, v := range m.Facts.Cluster.Volumes {
		if !v.Copied() {
			continue
		}
		actions = append(actions, runner.Action{
			Name: "volume " + v.PV, Target: m.onHost(),
			Summary: fmt.Sprintf("Stream what changed in volume %s since its first pass", claim(v)),
			Command: m.OverSSH(archive(v)) + " > " + remote.Quote(v.PV+".changes.tar.zst"),
			Run: func(ctx context.Context) (any, error) {
				h, err := m.stillQuiet(ctx)
				if err != nil {
					return nil, err
				}
				set, err := m.Set()
				if err != nil {
					return nil, err
				}
				if h, err = h.Another(ctx); err != nil {
					return nil, err
				}
				defer h.Close()
				// Without the list of the first pass, which lies on the host, a
				// delta cannot be told: then all of it is streamed again.
				taken, err := backup.Taken(ctx, h, v.Ref(), set)
				if err != nil {
					return nil, err
				}
				if !taken {
					if err := backup.Take(ctx, h, v.Ref(), set, m.Progress); err != nil {
						return nil, err
					}
				}
				return nil, backup.Delta(ctx, h, v.Ref(), set, m.Progress)
			},
		})
	}
	return actions, nil
}

// stillQuiet is the host, with nothing of K3s running on it: had it been started
// after it was stopped, by hand for instance, it is stopped again. What it wrote
// meanwhile is for lastLook to find. The file systems that it is on are mounted.
func (m *Migration) stillQuiet(ctx context.Context) (*remote.Host, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	m.quiet.Lock()
	defer m.quiet.Unlock()
	quiet, err := m.Facts.K3s.Quiesced(ctx, h)
	if err == nil && !quiet {
		err = m.job(ctx, "quiesce", "Stopping K3s again", m.Facts.K3s.Quiesce())
	}
	if err != nil {
		return nil, err
	}
	return h, m.Facts.K3s.Mount(ctx, h)
}

// mounted is the host with the file systems mounted that K3s is on.
func (m *Migration) mounted(ctx context.Context) (*remote.Host, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	m.quiet.Lock()
	defer m.quiet.Unlock()
	return h, m.Facts.K3s.Mount(ctx, h)
}

// mountedAndSet are the two ends of a transfer to where K3s is.
func (m *Migration) mountedAndSet(ctx context.Context) (*remote.Host, *backup.Set, error) {
	h, err := m.mounted(ctx)
	if err != nil {
		return nil, nil, err
	}
	set, err := m.Set()
	return h, set, err
}
