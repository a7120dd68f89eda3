package k3s

import (
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Grace is how long containers get to end by themselves once they were asked,
// before k3s-killall.sh kills them; Kubernetes's default grace period.
const Grace = 30 * time.Second

// shims lists the shims of K3s's own containerd, which names its socket among
// their arguments: a host may run Docker beside it. (containerd-shim is their
// name as the kernel cuts it, at 15 characters.)
const shims = `shims() {
  for shim in $(pgrep -x containerd-shim); do
    tr '\0' ' ' </proc/"$shim"/cmdline 2>/dev/null | grep -qF " /run/k3s/containerd/" && echo "$shim"
  done
}
`

// Quiesce is the script that stops the server and every container in good order:
// K3s first, so that nothing is started again and the datastore keeps the
// workloads as they were; then a TERM to each container's first process and
// [Grace] for databases to close; then K3s's own killall. Stopping the unit
// alone leaves containers running and writing (KillMode=process). The unit is
// disabled, or a reboot of the host would start it again; the install enables it.
// It may run any number of times, and may leave [Installation.Mounts] unmounted.
func (i *Installation) Quiesce() string {
	return fmt.Sprintf(shims+`systemctl disable -q %[1]s
systemctl stop %[1]s
mains() {
  for shim in $(shims); do
    for p in $(pgrep -P "$shim"); do
      case $(cat /proc/"$p"/comm 2>/dev/null) in pause|'') ;; *) echo "$p" ;; esac
    done
  done
}
pids=$(mains)
[ -n "$pids" ] && kill -TERM $pids 2>/dev/null
waited=0
while [ -n "$(mains)" ] && [ "$waited" -lt %[2]d ]; do sleep 1; waited=$((waited+1)); done
K3S_DATA_DIR=%[3]s %[4]s >/dev/null 2>&1
if systemctl is-active --quiet %[1]s; then echo "K3s is still active" >&2; exit 1; fi
left=$(mains)
if [ -n "$left" ]; then echo "containers still run: processes" $left >&2; exit 1; fi
sync`,
		remote.Quote(i.UnitName()), int(Grace.Seconds()), remote.Quote(i.DataDir), remote.Quote(i.Killall))
}

// KillallCommand is K3s's killall script as a person would call it.
func (i *Installation) KillallCommand() string {
	if path.Clean(i.DataDir) == DefaultDataDir {
		return remote.Quote(i.Killall)
	}
	return "K3S_DATA_DIR=" + remote.Quote(i.DataDir, i.Killall)
}

// Quiesced tells whether neither the server nor any of its containers runs.
func (i *Installation) Quiesced(ctx context.Context, h *remote.Host) (bool, error) {
	out, err := h.Output(ctx, fmt.Sprintf(shims+`systemctl is-active --quiet %s || [ -n "$(shims)" ] || echo quiet; true`, remote.Quote(i.UnitName())))
	if err != nil {
		return false, fmt.Errorf("host %s: asking whether K3s is stopped: %w", h.Name(), err)
	}
	return out == "quiet", nil
}

// UnitName is the systemd unit without its suffix.
func (i *Installation) UnitName() string { return strings.TrimSuffix(path.Base(i.Unit), ".service") }

// UninstallJob is the script that removes K3s. It unmounts the volumes' own file
// system, which keeps them, and refuses while something else is mounted where the
// uninstall script deletes (below /var/lib/kubelet it erases a mounted share's files;
// the data directory is recursed into, mounts included), or while files lie there that a
// mounted file system has hidden from every backup. Nothing is removed when it refuses:
// what it unmounted is mounted again, and the shell in refused runs. K3S_DATA_DIR is given
// because the script honours it and not the configuration's data-dir (k3s #8740).
func (i *Installation) UninstallJob(refused string) string {
	return i.uninstallJob("/var/lib/kubelet", "/proc/self/mounts", refused)
}

// uninstallJob compares the mount points literally with the directories and
// with where they lead: both are often symbolic links to a larger disk. In
// /proc/self/mounts white space and backslashes are written in octal.
func (i *Installation) uninstallJob(kubelet, mounts, refused string) string {
	unmount, remount := "", ""
	for _, p := range i.Apart() {
		unmount += fmt.Sprintf(`if mountpoint -q %[1]s; then umount -- %[1]s || refuse %[2]s; fi
if [ -n "$(ls -A -- %[1]s 2>/dev/null)" ]; then refuse %[3]s; fi
`, remote.Quote(p), remote.Quote(p+" could not be unmounted; nothing was removed: see who uses it (`fuser -vm "+p+"`), then run again"),
			remote.Quote("files lie in the directory "+p+" itself, hidden while its file system is mounted; nothing was removed: unmount it by hand and move them away, then run again"))
		remount += "systemctl start -- " + mountUnit(p) + "\n"
	}
	return fmt.Sprintf(`refuse() {
printf '%%s\n' "$1" >&2
%[6]s%[7]s
exit 32
}
%[8]smounts=$(for dir in %[1]s; do
  for path in "$dir" "$(readlink -f -- "$dir" || printf %%s "$dir")"; do
    below=$(printf '%%s/' "$path" | sed -e 's/\\/\\134/g' -e 's/ /\\040/g' -e 's/\t/\\011/g') \
      awk 'index($2, ENVIRON["below"]) == 1 && $3 !~ /^(tmpfs|overlay|proc|nsfs)$/ { print $2 " " $3 }' %[2]s || echo unknown
  done
done | sort -u)
if [ -n "$mounts" ]; then
  refuse "mounted where the uninstall deletes: $mounts
unmount it first; nothing was removed"
fi
K3S_DATA_DIR=%[3]s %[4]s || exit
for left in %[5]s; do
  if [ -e "$left" ]; then echo "$left is still there after the uninstall" >&2; exit 33; fi
done
sync`,
		remote.Quote(kubelet, i.DataDir), remote.Quote(mounts), remote.Quote(i.DataDir), remote.Quote(i.Uninstall),
		remote.Quote(i.Binary, i.Unit, i.ServerDir()), remount, refused, unmount)
}

// Uninstalled tells whether the uninstall has done its work: unit, binary,
// scripts and server directory are gone.
func (i *Installation) Uninstalled(ctx context.Context, h *remote.Host) (bool, error) {
	out, err := h.Output(ctx, fmt.Sprintf(`for f in %s; do [ -e "$f" ] && exit 0; done; echo gone`,
		remote.Quote(i.Binary, i.Unit, i.Uninstall, i.ServerDir())))
	if err != nil {
		return false, fmt.Errorf("host %s: asking whether K3s is removed: %w", h.Name(), err)
	}
	return out == "gone", nil
}

// SetAsideJob is the script that makes way for an installation that is put back:
// whatever is there now of configuration, unit, env files and the server's state is
// moved into dir, under the path that it had, and nothing is deleted that is not
// complete there. Binary and scripts are left to be replaced, the agent's images
// to be used again. K3s must be stopped.
func (i *Installation) SetAsideJob(dir string) string {
	return setAsideJob(dir, i.Replaced(), path.Join(i.DataDir, "agent"))
}

// Replaced are the files and directories that SetAsideJob moves, where they are there.
func (i *Installation) Replaced() []string {
	files := []string{i.Unit, i.Unit + ".env", "/etc/rancher"}
	for _, f := range append(slices.Clone(i.EnvFiles), i.Config...) {
		if !slices.Contains(files, f) && !strings.HasPrefix(f, "/etc/rancher/") {
			files = append(files, f)
		}
	}
	return append(files, i.ServerDir())
}

// setAsideJob also moves what the server has issued to its agent, which that gets anew at
// every start: the server that is put back may have other CAs.
func setAsideJob(dir string, files []string, agent string) string {
	return fmt.Sprintf(`set -eu
umask 077
aside() {
  [ -e "$1" ] || [ -L "$1" ] || return 0
  to=%[1]s$1 n=1
  while [ -e "$to" ] || [ -L "$to" ]; do n=$((n+1)); to=%[1]s$1.$n; done
  mkdir -p -- "$(dirname -- "$to")"
  if [ "$(stat -c %%d -- "$1")" = "$(stat -c %%d -- "$(dirname -- "$to")")" ]; then
    mv -T -- "$1" "$to"
  else
    rm -rf -- "$to.part"
    cp -a -- "$1" "$to.part"
    sync -f "$to.part"
    mv -T -- "$to.part" "$to"
    sync -f "$to"
    rm -rf --one-file-system -- "$1"
  fi
}
for f in %[2]s %[3]s/*.crt %[3]s/*.key %[3]s/*.kubeconfig; do aside "$f"; done
systemctl daemon-reload
sync`, remote.Quote(dir), remote.Quote(files...), remote.Quote(agent))
}

// InstallJob is the script that runs K3s's install script, which lies at
// scriptPath on the host, over the binary that was put back; version is empty to
// keep that binary, else the release to download. The service is neither enabled nor
// started: a reboot must not start it before the volumes are back, and its start
// can hang for ever (TimeoutStartSec=0) and wants a deadline.
// Of the env files' variables it is given those that it writes to the unit's env
// file; others (a PATH) are not for it. The script holds their values and is not
// to be logged.
func (i *Installation) InstallJob(scriptPath string, c Config, version string) string {
	env := maps.Clone(c.Env)
	maps.DeleteFunc(env, func(name, _ string) bool { return !keptVariable.MatchString(name) })
	if env == nil {
		env = map[string]string{}
	}
	env["INSTALL_K3S_SKIP_ENABLE"] = "true"
	env["INSTALL_K3S_BIN_DIR"] = path.Dir(i.Binary)
	if version == "" {
		env["INSTALL_K3S_SKIP_DOWNLOAD"] = "true"
	} else {
		env["INSTALL_K3S_VERSION"] = version
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&b, "export %s=%s\n", name, remote.Quote(env[name]))
	}
	fmt.Fprintf(&b, "sh %s %s\n", remote.Quote(scriptPath), remote.Quote(append([]string{string(Server)}, c.Args...)...))
	return b.String()
}

// keptVariable matches what the install script writes to the unit's env file.
var keptVariable = regexp.MustCompile(`^((K3S|CONTAINERD)_[A-Za-z0-9_]*|(?i:(NO|HTTP|HTTPS)_PROXY))$`)

// StartDeadline is how long a server may take from start to ready; K3s itself
// sets no limit.
const StartDeadline = 5 * time.Minute

// Start starts the server and waits until systemd calls it active, which K3s
// announces once its API is up. An error carries the end of its log.
func (i *Installation) Start(ctx context.Context, h *remote.Host, t *progress.Task) error {
	ctx, cancel := context.WithTimeout(ctx, StartDeadline)
	defer cancel()
	unit := remote.Quote(i.UnitName())
	if err := h.Run(ctx, "systemctl daemon-reload && systemctl reset-failed "+unit+" 2>/dev/null; systemctl start --no-block "+unit); err != nil {
		return fmt.Errorf("host %s: starting K3s: %w", h.Name(), err)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	restarts := 0
	for {
		out, err := h.Output(ctx, "systemctl show -p ActiveState -p SubState -p NRestarts "+unit)
		if err == nil {
			s := lines(out)
			fmt.Sscan(first(s["NRestarts"]), &restarts)
			state := first(s["ActiveState"]) + "/" + first(s["SubState"])
			t.Detail(state)
			if state == "active/running" {
				return nil
			}
			if first(s["ActiveState"]) == "failed" || restarts >= 5 {
				return fmt.Errorf("host %s: K3s does not start (%s, %d restarts); the end of its log:\n%s", h.Name(), state, restarts, i.logTail(h))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("host %s: K3s was not ready %s after its start; the end of its log:\n%s", h.Name(), StartDeadline, i.logTail(h))
		case <-tick.C:
		}
	}
}

// logTail is for error texts and has a deadline of its own: the caller's may
// just have passed.
func (i *Installation) logTail(h *remote.Host) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := h.Output(ctx, "journalctl --no-pager -o cat -n 25 -u "+remote.Quote(i.UnitName()))
	if err != nil {
		return "(not to be read: " + err.Error() + ")"
	}
	return out
}

// IsActive tells whether the server runs.
func (i *Installation) IsActive(ctx context.Context, h *remote.Host) (bool, error) {
	out, err := h.Output(ctx, "systemctl is-active "+remote.Quote(i.UnitName())+" || true")
	if err != nil {
		return false, fmt.Errorf("host %s: asking whether K3s runs: %w", h.Name(), err)
	}
	return out == "active", nil
}
