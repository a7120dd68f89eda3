package steps

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-multierror"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/restore"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// undoUninstall puts the old installation back from the backup set: files, state,
// datastore, volumes. It begins wherever the run stopped, with half of K3s
// deleted or with the new cluster complete, and loses nothing of what it finds:
// that is set aside. Nothing here needs the host to be computed, so that the work
// can be printed when the host is gone.
func (m *Migration) undoUninstall(context.Context) ([]runner.Action, error) {
	in := m.Facts.K3s
	state, err := m.State()
	if err != nil {
		return nil, err
	}
	_, looked := state.ActionState("uninstall", "look")
	if _, begun := state.ActionState("uninstall", "uninstall"); looked && !begun {
		return nil, nil // it stopped at the last look
	}
	stamp, err := m.stamp()
	if err != nil {
		return nil, err
	}
	aside := path.Join(replacedDir, stamp)
	size := m.artifactSizes()
	extract := func(artifact, into string) string {
		return fmt.Sprintf("migrate backup extract %s -f %s | %s", remote.Quote(artifact), remote.Quote(m.Plan.Path()), m.IntoSSH(into))
	}
	const untar = "tar -C / -xpf - --acls --xattrs '--xattrs-include=*' --numeric-owner"

	actions := []runner.Action{{
		Name: "prove again", Target: m.onLaptop(), Like: "seal/prove", Alone: true,
		Summary: "Prove what is to be put back, before anything is stopped or moved",
		Command: "migrate backup verify -f " + remote.Quote(m.Plan.Path()),
		Run:     m.ifUninstalled(m.proveAgain),
	}, {
		Name: "stop again", Target: m.onHost(), Like: "quiesce/stop", Alone: true,
		Summary: "Stop K3s, whichever is there, and its containers",
		Command: fmt.Sprintf("systemctl disable --now %s; [ ! -x %s ] || %s", remote.Quote(in.UnitName()), remote.Quote(in.Killall), in.KillallCommand()),
		Run: m.onceUninstalled(func(context.Context, *remote.Host, *backup.Set) (any, error) {
			return nil, nil // it is stopped before each of these
		}),
	}}
	actions = append(actions, m.mountAgain(m.onceUninstalled(func(context.Context, *remote.Host, *backup.Set) (any, error) {
		return nil, nil // so is the file system mounted
	}))...)
	actions = append(actions, []runner.Action{{
		Name: "set aside", Target: m.onHost(), Alone: true,
		Summary: "Move what is there of K3s's configuration and state to " + aside,
		Command: fmt.Sprintf(`mkdir -p -m 700 %[1]s && for f in %[2]s; do [ ! -e "$f" ] || mv --backup=numbered "$f" %[1]s/ || exit; done`, remote.Quote(aside), remote.Quote(in.Replaced()...)),
		Run: m.onceUninstalled(func(ctx context.Context, _ *remote.Host, _ *backup.Set) (any, error) {
			return map[string]string{"aside": aside}, m.job(ctx, "set-aside", "Setting aside what is there of K3s", in.SetAsideJob(aside))
		}),
	}, {
		Name: "files back", Target: m.onHost(), Like: "install/files", Bytes: size[k3sFiles], Alone: true,
		Summary: fmt.Sprintf("Put back K3s %s's binary, scripts, unit, env files and configuration as they were", in.Version),
		Command: extract(k3sFiles, untar+" && systemctl daemon-reload"),
		Run: m.onceUninstalled(func(ctx context.Context, h *remote.Host, set *backup.Set) (any, error) {
			if err := restore.Tree(ctx, h, set, k3sFiles, m.Progress, restore.Everything); err != nil {
				return nil, err
			}
			return nil, h.Run(ctx, "systemctl daemon-reload")
		}),
	}, {
		Name: "state back", Target: m.onHost(), Like: "install/identity", Bytes: size[k3sState], Alone: true,
		Summary: "Put back token, CAs, credentials, node passwords and manifests",
		Command: extract(k3sState, "mkdir -p -m 700 "+remote.Quote(in.ServerDir())+" && "+untar),
		Run: m.onceUninstalled(func(ctx context.Context, h *remote.Host, set *backup.Set) (any, error) {
			return nil, restore.Tree(ctx, h, set, k3sState, m.Progress, restore.Everything)
		}),
	}, {
		Name: "datastore back", Target: m.onHost(), Bytes: size[k3sDatabase] + size[backup.WALName(k3sDatabase)], Alone: true,
		Summary: "Put back K3s's datastore: the cluster with all its objects",
		Command: m.datastoreCommand(extract),
		Run: m.onceUninstalled(func(ctx context.Context, h *remote.Host, set *backup.Set) (any, error) {
			// There is one when this is repeated; K3s, started by hand meanwhile, may
			// have served from it.
			dir := remote.Quote(path.Dir(in.Database()))
			script := fmt.Sprintf(`mkdir -p -m 700 %[1]s && for f in %[2]s; do [ ! -e "$f" ] || { mkdir -p -m 700 %[3]s && mv --backup=numbered "$f" %[3]s/ || exit; }; done`,
				dir, remote.Quote(in.Database(), in.Database()+"-wal", in.Database()+"-shm"), remote.Quote(path.Join(aside, "db")))
			if err := h.Run(ctx, script); err != nil {
				return nil, fmt.Errorf("host %s: setting aside the datastore in %s: %w", h.Name(), dir, err)
			}
			return nil, restore.Datastore(ctx, h, set, k3sDatabase, in.Database(), m.Progress)
		}),
	}}...)
	if len(m.Facts.Host.Strays) > 0 {
		actions = append(actions, runner.Action{
			Name: "strays back", Target: m.onHost(), Bytes: size[strays], Alone: true,
			Summary: "Put back what lay in the storage and belongs to no volume",
			Command: extract(strays, untar),
			Run: m.onceUninstalled(func(ctx context.Context, h *remote.Host, set *backup.Set) (any, error) {
				return nil, restore.Tree(ctx, h, set, strays, m.Progress, restore.Everything)
			}),
		})
	}
	if empty := m.leftOut(); len(empty) > 0 {
		command := "for d in " + remote.Quote(empty...) + `; do [ -e "$d" ] || mkdir -p -m 777 "$d" || exit; done`
		actions = append(actions, runner.Action{
			Name: "empty volumes", Target: m.onHost(), Alone: true,
			Summary: fmt.Sprintf("Make the directories of the volumes that the plan left out of the backup (%d), empty: without them their pods do not start", len(empty)),
			Command: command,
			Run: m.onceUninstalled(func(ctx context.Context, h *remote.Host, _ *backup.Set) (any, error) {
				if err := h.Run(ctx, command); err != nil {
					return nil, fmt.Errorf("host %s: making the directories of volumes that were left out: %w", h.Name(), err)
				}
				return nil, nil
			}),
		})
	}
	for _, v := range m.Facts.Cluster.Volumes {
		if !v.Copied() {
			continue
		}
		kept := v.Path + ".replaced-" + stamp
		a := runner.Action{
			Name: "volume back " + v.PV, Target: m.onHost(), Like: "volumes/volume " + v.PV, Bytes: v.Bytes,
			Summary: fmt.Sprintf("Bring back volume %s as it was when K3s was stopped; what is there and differs is kept beside it", claim(v)),
			Command: fmt.Sprintf("%s && %s", m.OverSSH(fmt.Sprintf("if [ -e %[1]s ]; then mv -T %[1]s %[2]s; fi; mkdir -p %[1]s", remote.Quote(v.Path), remote.Quote(kept))),
				extract("volumes/"+v.PV, strings.Replace(untar, "-C /", "-C "+remote.Quote(v.Path), 1))),
			Run: m.onceUninstalled(func(ctx context.Context, h *remote.Host, set *backup.Set) (any, error) {
				return m.volumeBack(ctx, h, set, v, kept)
			}),
		}
		if m.KeepPresent {
			a.Summary = fmt.Sprintf("Leave volume %s as it is; bring it back from the backup only when it is not there", claim(v))
			a.Command = fmt.Sprintf("%s || { %s; }", m.OverSSH("[ -e "+remote.Quote(v.Path)+" ]"), a.Command)
		}
		actions = append(actions, a)
	}
	return append(actions, runner.Action{
		Name: restored, Target: m.onHost(), Alone: true,
		Summary: "Note on the host that nothing is uninstalled any longer",
		Command: "rm -f " + uninstalling,
		Run: func(ctx context.Context) (any, error) {
			h, err := m.Host(ctx)
			if err != nil {
				return nil, err
			}
			return nil, h.Run(ctx, "rm -f "+uninstalling)
		},
	}), nil
}

// leftOut are the directories of excluded volumes that the uninstall deletes.
func (m *Migration) leftOut() (dirs []string) {
	for _, v := range m.Facts.Cluster.Volumes {
		if v.Excluded && strings.HasPrefix(v.Path, m.Facts.K3s.DataDir+"/") {
			dirs = append(dirs, v.Path)
		}
	}
	return dirs
}

// restored is the undo action that comes when everything is put back.
const restored = "note"

// replacedDir keeps on the host what a rollback replaced: a directory a rollback.
const replacedDir = remote.StateDir + "/replaced"

// stamp is the time of the rollback that is under way, for names on the host: the
// same however often it is continued. Of one that has not begun it is that of
// RollbackBegins, or a word that stands for it.
func (m *Migration) stamp() (string, error) {
	state, err := m.State()
	began := m.RollbackBegins
	if state.Rollback != nil {
		began = state.Rollback.Began
	}
	if err != nil || began.IsZero() {
		return "TIME", err
	}
	return began.UTC().Format("20060102T150405Z"), nil
}

// artifactSizes are the sizes of the contents, as far as the set is there.
func (m *Migration) artifactSizes() map[string]int64 {
	sizes := map[string]int64{}
	if !m.hasSet() {
		return sizes
	}
	// To look only: a run may be writing to the set, and no key is needed.
	set, err := backup.Open(m.SetDir(), nil, nil)
	if err != nil {
		return sizes // whoever needs the set will say what is wrong with it
	}
	for _, a := range set.Artifacts() {
		sizes[a.Name] = a.ContentSize
	}
	return sizes
}

// deleted tells whether the uninstall may have deleted something: a host on which
// it never began has everything, and maybe newer than the set.
func (m *Migration) deleted(ctx context.Context, h *remote.Host, state runner.State) (bool, error) {
	if past, _ := state.ActionState("uninstall", "uninstall"); past.Status == runner.Done {
		return true, nil
	}
	return m.uninstallBegun(ctx, h)
}

// putBack lists the artifacts that undoUninstall puts back.
func (m *Migration) putBack() []string {
	needed := []string{k3sFiles, k3sState, k3sDatabase}
	if len(m.Facts.Host.Strays) > 0 {
		needed = append(needed, strays)
	}
	for _, v := range m.Facts.Cluster.Volumes {
		if v.Copied() && !m.KeepPresent {
			needed = append(needed, backup.ListName(v.Ref().Full()))
			needed = append(needed, v.Ref().Artifacts()...)
		}
	}
	return needed
}

// haveSet refuses a backup set without the files of what is put back; their
// contents are for proveAgain.
func (m *Migration) haveSet() error {
	needed := m.putBack()
	if m.hasSet() {
		set, err := m.Set()
		if err != nil {
			return err
		}
		needed = slices.DeleteFunc(needed, func(name string) bool {
			a, ok := set.Artifact(name)
			if !ok {
				return false
			}
			st, err := os.Stat(filepath.Join(set.Dir(), a.File))
			return err == nil && st.Size() == a.Size
		})
	}
	if len(needed) > 0 {
		return fmt.Errorf("the old cluster cannot be brought back: the backup set %s lacks %s; nothing was done: put the set back from where a copy of it is kept", m.SetDir(), few(needed))
	}
	return nil
}

// onceUninstalled does something only where the uninstall may have deleted, and
// while nothing of K3s runs: a person may have started it since the action before.
// The file systems that it is on are mounted then.
func (m *Migration) onceUninstalled(do func(context.Context, *remote.Host, *backup.Set) (any, error)) func(context.Context) (any, error) {
	return m.ifUninstalled(func(ctx context.Context, h *remote.Host, set *backup.Set) (any, error) {
		if err := m.stopAgain(ctx, h); err != nil {
			return nil, err
		}
		if _, err := m.mounted(ctx); err != nil {
			return nil, err
		}
		return do(ctx, h, set)
	})
}

// ifUninstalled does something only where the uninstall may have deleted.
func (m *Migration) ifUninstalled(do func(context.Context, *remote.Host, *backup.Set) (any, error)) func(context.Context) (any, error) {
	return func(ctx context.Context) (any, error) {
		h, err := m.Host(ctx)
		if err != nil {
			return nil, err
		}
		state, err := m.State()
		if err != nil {
			return nil, err
		}
		deleted, err := m.deleted(ctx, h, state)
		if err != nil {
			return nil, err
		}
		if !deleted {
			return map[string]string{"skipped": "the uninstall never began on the host"}, nil
		}
		set, err := m.Set()
		if err != nil {
			return nil, err
		}
		return do(ctx, h, set)
	}
}

// proveAgain opens every artifact that the way back needs: months may have passed
// since it was proven, and what runs on the host may be all that there is.
func (m *Migration) proveAgain(ctx context.Context, _ *remote.Host, set *backup.Set) (any, error) {
	names := m.putBack()
	if set.HasWAL(k3sDatabase) {
		names = append(names, backup.WALName(k3sDatabase))
	}
	var wrong error
	var needed []backup.Artifact
	for _, name := range names {
		if a, ok := set.Artifact(name); ok {
			needed = append(needed, a)
		} else {
			wrong = multierror.Append(wrong, &backup.NotFoundError{Dir: set.Dir(), Name: name})
		}
	}
	checked, err := set.Check(ctx, needed, m.Progress)
	if err != nil {
		return nil, err
	}
	for _, c := range checked {
		if c.Err != nil {
			wrong = multierror.Append(wrong, c.Err)
		}
	}
	if wrong != nil {
		return nil, fmt.Errorf("%w\nK3s and its volumes are left as they are; put back an undamaged copy of what is named, then roll back again", wrong)
	}
	return map[string]int{"artifacts": len(needed)}, nil
}

// stopAgain stops what runs of K3s, old or new, once the jobs of the run have ended.
// A reboot meanwhile must not start it.
func (m *Migration) stopAgain(ctx context.Context, h *remote.Host) error {
	m.quiet.Lock()
	defer m.quiet.Unlock()
	// A quiesce that ended long ago would be taken for the one to come.
	for _, job := range []string{"uninstall", "install", "quiesce"} {
		if err := m.settle(ctx, h, job); err != nil {
			return err
		}
	}
	in := m.Facts.K3s
	if err := h.Run(ctx, "systemctl disable -q "+remote.Quote(in.UnitName())+" 2>/dev/null || true"); err != nil {
		return fmt.Errorf("host %s: disabling K3s: %w", h.Name(), err)
	}
	quiet, err := in.Quiesced(ctx, h)
	if err != nil || quiet {
		return err
	}
	if err := m.putScripts(ctx, h); err != nil {
		return err
	}
	return m.job(ctx, "quiesce", "Stopping K3s and its containers", in.Quiesce())
}

// volumeBack decides between what is there and the backup. Present contents win
// only when they are asked to and are a volume's: the uninstall may have left a half.
func (m *Migration) volumeBack(ctx context.Context, h *remote.Host, set *backup.Set, v survey.Volume, kept string) (any, error) {
	if m.KeepPresent {
		there := !m.endangered(v)
		if !there {
			var err error
			if there, err = restore.VolumeDone(ctx, h, v.Ref(), set); err != nil {
				return nil, err
			}
		}
		if there {
			return map[string]string{"kept": "present contents"}, nil
		}
	}
	h, err := h.Another(ctx)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	asides, err := restore.ReplaceVolume(ctx, h, v.Ref(), set, kept, m.Progress)
	return map[string][]string{"aside": asides}, err
}

// OverSSH is shell of the laptop that runs a command as root on the host, by a
// function that a runbook defines.
func (m *Migration) OverSSH(command string) string { return "on_host " + m.asRoot(command) }

// IntoSSH is OverSSH for a command that reads what is piped to it.
func (m *Migration) IntoSSH(command string) string { return "into_host " + m.asRoot(command) }

func (m *Migration) asRoot(command string) string {
	if m.Plan.Server().Sudo {
		command = "sudo -n " + remote.Quote("sh", "-c", command)
	}
	return remote.Quote(command)
}

// SSH is the command that runs its last argument on the host.
func (m *Migration) SSH() string {
	h := m.Plan.Server()
	words := []string{"ssh"}
	if h.Port != 0 {
		words = append(words, "-p", strconv.Itoa(h.Port))
	}
	if h.SSHConfig != "" {
		words = append(words, "-F", h.SSHConfig)
	}
	for _, f := range h.IdentityFiles {
		words = append(words, "-i", f)
	}
	if len(h.KnownHosts) > 0 {
		files := ""
		for _, f := range h.KnownHosts {
			files += ` "` + f + `"` // ssh's quoting, not the shell's
		}
		words = append(words, "-o", "UserKnownHostsFile="+files[1:])
	}
	if h.JumpHost != "" {
		words = append(words, "-J", h.JumpHost)
	}
	switch {
	case h.User != "":
		words = append(words, "-l", h.User)
	case h.SSHConfig == "none":
		words = append(words, "-l", "root")
	}
	return remote.Quote(append(words, h.Address)...)
}

func (m *Migration) datastoreCommand(extract func(artifact, into string) string) string {
	db := m.Facts.K3s.Database()
	put := func(file string) string {
		return fmt.Sprintf("umask 077; mkdir -p %s; cat >%s", remote.Quote(path.Dir(file)), remote.Quote(file))
	}
	command := extract(k3sDatabase, put(db))
	if m.artifactSizes()[backup.WALName(k3sDatabase)] > 0 {
		command += " && " + extract(backup.WALName(k3sDatabase), put(db+"-wal"))
	}
	return command
}
