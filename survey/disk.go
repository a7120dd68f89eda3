package survey

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Disk is what lies where K3s's scripts stop, unmount and delete.
type Disk struct {
	// Mounts are file systems at the data directory or below it or the kubelet's,
	// those of [k3s.Installation.Mounts] aside. What the kubelet mounts for pods goes
	// with them and is left out.
	Mounts []Mount `json:"mounts,omitempty"`
	// Unmounts are the path prefixes that k3s-killall.sh unmounts.
	Unmounts []string `json:"unmounts,omitempty"`
	// NoToken is set when the server directory has no token file.
	NoToken bool `json:"noToken,omitempty"`
	// DefaultDataOnly is set when the uninstall script or k3s-killall.sh knows no other
	// data directory than K3s's default.
	DefaultDataOnly bool `json:"defaultDataOnly,omitempty"`
	// Variables are those that K3s reads, by the env file that outlives it.
	Variables map[string][]string `json:"variables,omitempty"`
	// Gone are the files that the configuration names and that are not there.
	Gone []string `json:"gone,omitempty"`
	// Removed are those that the uninstall removes and no backup set has.
	Removed []string `json:"removed,omitempty"`
}

// Mount is a mounted file system.
type Mount struct {
	Path   string `json:"path"`
	Type   string `json:"type"`
	Source string `json:"source"`
}

const kubelet = "/var/lib/kubelet"

// diskReadings are NAME=VALUE lines; the directories are told with where they
// lead, since both are often symbolic links to a larger disk.
const diskReadings = `
data=%[1]s uninstall=%[2]s killall=%[3]s
for d in ` + kubelet + ` "$data"; do echo "leads=$(readlink -f -- "$d" || echo "$d")"; done
sed 's/^/mount=/' /proc/self/mounts
[ -e "$data/server/token" ] || echo "notoken="
for f in "$uninstall" "$killall"; do
  if [ -e "$f" ] && ! grep -q K3S_DATA_DIR "$f"; then echo "default="; fi
done
[ ! -e "$killall" ] || sed -n "s/^do_unmount_and_remove '\(.*\)'.*/unmounts=\1/p" "$killall"
for f in /etc/default/k3s /etc/sysconfig/k3s; do
  [ ! -e "$f" ] || sed -n "s#^[[:space:]]*\(export[[:space:]]*\)\{0,1\}\(K3S_[A-Z0-9_]*\|CONTAINERD_[A-Z0-9_]*\)=.*#variable=$f \2#p" "$f"
done
for f in %[4]s; do [ -e "$f" ] || echo "gone=$f"; done
true`

func readDisk(ctx context.Context, h *remote.Host, in *k3s.Installation) (Disk, error) {
	out, err := h.Output(ctx, fmt.Sprintf(diskReadings, remote.Quote(in.DataDir), remote.Quote(in.Uninstall), remote.Quote(in.Killall), remote.Quote(namedFiles(in)...)))
	if err != nil {
		return Disk{}, fmt.Errorf("host %s: looking at its mounts and at K3s's directories: %w", h.Name(), err)
	}
	d := parseDisk(out, in.DataDir)
	for _, own := range in.Mounts {
		if at := slices.IndexFunc(d.Mounts, func(m Mount) bool { return m.Path == own.Path && m.Type == own.Type }); at >= 0 {
			d.Mounts = slices.Delete(d.Mounts, at, at+1)
		}
	}
	within := func(file, dir string) bool { return strings.HasPrefix(path.Clean(file), path.Clean(dir)+"/") }
	for _, f := range namedFiles(in) {
		if !slices.Contains(in.AgentFiles, f) && !within(f, in.ServerDir()) && (within(f, in.DataDir) || within(f, kubelet) || within(f, "/run/k3s")) {
			d.Removed = append(d.Removed, f)
		}
	}
	return d, nil
}

// namedFiles are the absolute paths of files that the configuration names: those
// that it would be started again with.
func namedFiles(in *k3s.Installation) []string {
	var out []string
	for key, s := range in.Settings {
		if !strings.HasSuffix(key, "-arg") && key != "token-file" && key != "agent-token-file" && key != "resolv-conf" {
			continue
		}
		for _, v := range s.Values {
			if at := strings.Index(v, "="); strings.HasSuffix(key, "-arg") {
				name := v[:max(at, 0)]
				if name == "log-file" || !strings.HasSuffix(name, "-file") && !strings.HasSuffix(name, "config") {
					continue // made by who is told it, or no path
				}
				v = v[at+1:]
			}
			if path.IsAbs(v) && !slices.Contains(out, v) {
				out = append(out, v)
			}
		}
	}
	slices.Sort(out)
	return out
}

func parseDisk(out, dataDir string) (d Disk) {
	var dirs, mounts []string
	out = strings.ToValidUTF8(out, "\uFFFD") // as JSON keeps it
	for line := range strings.SplitSeq(out, "\n") {
		name, value, _ := strings.Cut(line, "=")
		switch name {
		case "leads":
			dirs = append(dirs, value)
		case "mount":
			mounts = append(mounts, value)
		case "notoken":
			d.NoToken = true
		case "default":
			d.DefaultDataOnly = true
		case "unmounts":
			d.Unmounts = append(d.Unmounts, value)
		case "variable":
			if file, variable, ok := strings.Cut(value, " "); ok {
				if d.Variables == nil {
					d.Variables = map[string][]string{}
				}
				d.Variables[file] = append(d.Variables[file], variable)
			}
		case "gone":
			d.Gone = append(d.Gone, value)
		}
	}
	dirs = append(dirs, kubelet, dataDir)
	for _, m := range mounts {
		// White space and backslashes are written in octal.
		f := strings.Fields(m)
		if len(f) < 3 || slices.Contains([]string{"tmpfs", "overlay", "proc", "nsfs"}, f[2]) {
			continue
		}
		p := unescape(f[1])
		own := slices.ContainsFunc(dirs, func(dir string) bool {
			return strings.HasPrefix(p, path.Join(dir, "pods")+"/") || strings.HasPrefix(p, path.Join(dir, "plugins")+"/")
		})
		if !own && slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(p+"/", path.Clean(dir)+"/") }) {
			d.Mounts = append(d.Mounts, Mount{Path: p, Type: f[2], Source: unescape(f[0])})
		}
	}
	return d
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
