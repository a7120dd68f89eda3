package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/restore"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// uninstall is the point of no return.
func (m *Migration) uninstall(context.Context) ([]runner.Action, error) {
	in := m.Facts.K3s
	summary, unmount := "Run K3s's uninstall script: it deletes binary, configuration, datastore and local-path volumes", ""
	if apart := in.Apart(); len(apart) > 0 {
		summary = "Unmount the volumes' file system, which keeps them, and run K3s's uninstall script: it deletes binary, configuration and datastore"
		unmount = "umount " + remote.Quote(apart...) + " && "
	}
	return []runner.Action{{
		Name: "look", Target: m.onHost(), Alone: true,
		Summary: "Compare the stopped host with the backup set once more; back up again what differs",
		Command: "find … -printf … | sha256sum; sha256sum " + remote.Quote(in.Database()),
		Run:     func(ctx context.Context) (any, error) { return nil, m.lastLook(ctx) },
		Done: func(ctx context.Context) (bool, error) {
			h, err := m.Host(ctx)
			if err != nil {
				return false, err
			}
			return m.uninstallBegun(ctx, h)
		},
	}, {
		Name: "uninstall", Target: m.onHost(), Alone: true,
		Summary: summary,
		Command: unmount + "K3S_DATA_DIR=" + remote.Quote(in.DataDir, in.Uninstall),
		Run: func(ctx context.Context) (any, error) {
			h, err := m.Host(ctx)
			if err != nil {
				return nil, err
			}
			// Once the script has begun, what is on the host is less than what
			// was backed up: from then on nothing may be taken from it anew.
			begun, err := m.uninstallBegun(ctx, h)
			if err != nil {
				return nil, err
			}
			refused := "" // what an earlier attempt removed stays noted
			if !begun {
				refused = "rm -f " + uninstalling
				if !m.looked { // an earlier process did, who knows when
					if err := m.lastLook(ctx); err != nil {
						return nil, err
					}
				}
				set, err := m.Set()
				if err != nil {
					return nil, err
				}
				if err := h.WriteFile(ctx, uninstalling, []byte(m.Facts.Digest()+"\n"+m.setDigest(set)), 0o600); err != nil {
					return nil, fmt.Errorf("host %s: noting that the uninstall begins: %w", h.Name(), err)
				}
			}
			// The script deletes itself even when it did not get through; the
			// backup has it for another try.
			if err := m.putScripts(ctx, h); err != nil {
				return nil, err
			}
			return nil, m.job(ctx, "uninstall", "Uninstalling K3s", in.UninstallJob(refused))
		},
		Done: func(ctx context.Context) (bool, error) {
			h, err := m.Host(ctx)
			if err != nil {
				return false, err
			}
			return in.Uninstalled(ctx, h)
		},
	}}, nil
}

// putScripts puts back K3s's killall and uninstall scripts where they are gone.
func (m *Migration) putScripts(ctx context.Context, h *remote.Host) error {
	for _, script := range []string{m.Facts.K3s.Killall, m.Facts.K3s.Uninstall} {
		_, err := h.ReadFile(ctx, script)
		if errors.Is(err, fs.ErrNotExist) {
			var set *backup.Set
			if set, err = m.Set(); err != nil {
				return err
			}
			err = restore.Tree(ctx, h, set, k3sFiles, m.Progress, script)
		}
		if err != nil {
			return fmt.Errorf("putting back %s: %w", script, err)
		}
	}
	return nil
}

// uninstalling lies on the host from before the uninstall's first deletion until a
// rollback has undone it. It names by their digests the facts of the run that did
// it, and on a second line the backup set that was proven right before.
const uninstalling = remote.StateDir + "/uninstalling"

// uninstallNote reads it; begun tells whether this run's uninstall may have deleted
// something.
func (m *Migration) uninstallNote(ctx context.Context, h *remote.Host) (begun bool, set string, err error) {
	note, err := h.ReadFile(ctx, uninstalling)
	if errors.Is(err, fs.ErrNotExist) {
		return false, "", nil
	}
	facts, set, _ := strings.Cut(string(note), "\n")
	return facts == m.Facts.Digest(), set, err
}

func (m *Migration) uninstallBegun(ctx context.Context, h *remote.Host) (bool, error) {
	begun, _, err := m.uninstallNote(ctx, h)
	return begun, err
}

// setDigest identifies the backup set by what the uninstall endangers.
func (m *Migration) setDigest(set *backup.Set) string {
	sum := sha256.New()
	for _, name := range append(m.artifacts(), backup.WALName(k3sDatabase)) {
		a, _ := set.Artifact(name)
		fmt.Fprintf(sum, "%s %s\n", name, a.SHA256)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// WrongSetError says that the work directory has another backup set than the one
// that was proven before the uninstall: an older one, of another laptop's run.
type WrongSetError struct{ Dir string }

func (e *WrongSetError) Error() string {
	return fmt.Sprintf("the backup set %s is not the one that was proven right before the uninstall: its contents are of another time, and what was written since would be lost; nothing was done: put the right one there, from the laptop whose run uninstalled K3s", e.Dir)
}

// sameSet keeps a run and a rollback from bringing back another set's contents. It
// is asked before anything is done.
func (m *Migration) sameSet(ctx context.Context) error {
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	begun, proven, err := m.uninstallNote(ctx, h)
	if err != nil || !begun || proven == "" {
		return err
	}
	if m.hasSet() {
		set, err := m.Set()
		if err != nil {
			return err
		}
		if m.setDigest(set) == proven {
			return nil
		}
	}
	return &WrongSetError{Dir: m.SetDir()}
}

// lastLook is taken right before the uninstall, whatever was proven how long
// ago: a run may have rested between seal and here, and K3s been started by hand
// or the backup set been touched. Where the host has moved, what was taken is
// taken once more.
func (m *Migration) lastLook(ctx context.Context) error {
	h, set, err := m.mountedAndSet(ctx)
	if err != nil {
		return err
	}
	served, err := m.servedSince(ctx, h, set)
	if err != nil {
		return err
	}
	if served {
		if err := m.reopen(ctx, h); err != nil {
			return fmt.Errorf("K3s was started since the last backup; taking it anew: %w", err)
		}
	}
	stale := ""
	if !served {
		if stale, err = m.stale(ctx, h, set); err != nil {
			return err
		}
	}
	var again []runner.Action
	if served || stale != "" {
		if again, err = m.freeze(ctx); err != nil {
			return err
		}
		m.proven = false
	}
	if !m.proven {
		again = append(again, m.proof(m.artifacts())...)
	}
	for _, a := range again {
		if _, err := a.Run(ctx); err != nil {
			return fmt.Errorf("a last look before the uninstall, %s: %w", a.Name, err)
		}
	}
	if stale, err = m.stale(ctx, h, set); err != nil {
		return err
	}
	m.looked = stale == ""
	if !m.looked {
		return fmt.Errorf("host %s: %s while K3s is stopped, though it was backed up just now: find out who writes there; nothing was removed", h.Name(), stale)
	}
	return nil
}

// servedSince tells whether K3s runs, or ran since freeze: then its objects may
// be others than those that were exported.
func (m *Migration) servedSince(ctx context.Context, h *remote.Host, set *backup.Set) (bool, error) {
	quiet, err := m.Facts.K3s.Quiesced(ctx, h)
	if err != nil || !quiet {
		return true, err
	}
	db := m.Facts.K3s.Database()
	sums, err := h.Output(ctx, fmt.Sprintf("for f in %s; do [ -s \"$f\" ] && sha256sum <\"$f\" || echo none; done", remote.Quote(db, backup.WALName(db))))
	if err != nil {
		return false, fmt.Errorf("host %s: reading K3s's datastore: %w", h.Name(), err)
	}
	lines := strings.Split(sums, "\n")
	for i, name := range []string{k3sDatabase, backup.WALName(k3sDatabase)} {
		have := "none"
		if a, ok := set.Artifact(name); ok {
			have = a.ContentSHA256
		}
		if i >= len(lines) {
			return true, nil
		}
		if sum, _, _ := strings.Cut(lines[i], " "); sum != have {
			return true, nil
		}
	}
	return false, nil
}

// reopen lets K3s serve once more, so that what its API has now can be exported,
// and stops it again.
func (m *Migration) reopen(ctx context.Context, h *remote.Host) error {
	t := m.Progress.Wait("Starting K3s once more to export its objects")
	defer t.Done()
	if err := m.Facts.K3s.Start(ctx, h, t); err != nil {
		return err
	}
	m.forgetClient()
	c, err := m.rebuilt(ctx)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, apiDeadline)
	defer cancel()
	if err := c.WaitAPI(wait, t); err != nil {
		return err
	}
	if m.hasBao() {
		if err := m.reviveBao(wait, reviveMode{}, &revived{}); err != nil {
			return err
		}
	}
	if err := m.refresh(ctx); err != nil {
		return err
	}
	_, err = m.stillQuiet(ctx)
	return err
}

// stale says what the uninstall would delete and the backup set does not have as
// it is; "" for nothing.
func (m *Migration) stale(ctx context.Context, h *remote.Host, set *backup.Set) (string, error) {
	unknown, err := m.Facts.Unknown(ctx, h)
	if err != nil {
		return "", err
	}
	if len(unknown) > 0 {
		return strings.Join(unknown, ", ") + " appeared", nil
	}
	served, err := m.servedSince(ctx, h, set)
	if err != nil {
		return "", err
	}
	if served {
		return "K3s's datastore changed", nil
	}
	for _, v := range m.Facts.Cluster.Volumes {
		if !v.Copied() || !m.endangered(v) {
			continue
		}
		same, err := backup.DeltaTaken(ctx, h, v.Ref(), set)
		if err != nil {
			return "", err
		}
		if !same {
			return v.Ref().Label() + " changed", nil
		}
	}
	return "", nil
}

// endangered tells whether the uninstall deletes the volume's data: it lies in
// K3s's data directory or the kubelet's.
func (m *Migration) endangered(v survey.Volume) bool {
	for _, dir := range []string{m.Facts.K3s.DataDir, "/var/lib/kubelet"} {
		if strings.HasPrefix(v.Path+"/", path.Clean(dir)+"/") {
			return true
		}
	}
	return false
}
