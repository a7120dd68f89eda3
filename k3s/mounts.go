package k3s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/remote"
)

// Mount is a file system of its own on which K3s keeps data, and which systemd knows
// how to mount: from /etc/fstab, or by a unit.
type Mount struct {
	Path   string `json:"path"` // no symbolic links in it
	Type   string `json:"type"`
	Source string `json:"source"`
	// UUID is the file system's, by which it is recognised on whatever device it is;
	// a network share has none.
	UUID string `json:"uuid,omitempty"`
	// Root is the directory of the file system that is mounted.
	Root string `json:"root"`
	// Data is set when the data directory lies on it.
	Data bool `json:"data,omitempty"`
	// Apart is set when it is mounted inside the data directory and has nothing but
	// the volumes. It is unmounted before the uninstall, which would empty it.
	Apart bool `json:"apart,omitempty"`
}

func (m Mount) String() string { return fmt.Sprintf("%s (%s, %s)", m.Path, m.Type, m.Source) }

// Identity is equal for mounts of the same directory of the same file system at the
// same place.
func (m Mount) Identity() string {
	of := "UUID " + m.UUID
	if m.UUID == "" {
		of = m.Type + " " + m.Source
	}
	return fmt.Sprintf("%s, %s of %s", m.Path, m.Root, of)
}

const findmnt = "findmnt --json --nofsroot --output TARGET,FSTYPE,SOURCE,UUID,FSROOT "

// parseMounts reads what findmnt answered, any number of times.
func parseMounts(out string) (mounts []Mount, err error) {
	for answers := json.NewDecoder(strings.NewReader(out)); ; {
		var answer struct {
			Filesystems []struct{ Target, FSType, Source, UUID, FSRoot string }
		}
		if err := answers.Decode(&answer); errors.Is(err, io.EOF) {
			return mounts, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading the answer of findmnt: %w", err)
		}
		for _, f := range answer.Filesystems {
			mounts = append(mounts, Mount{Path: f.Target, Type: f.FSType, Source: f.Source, UUID: f.UUID, Root: f.FSRoot})
		}
	}
}

// ownMounts are those of a host's file systems that K3s may be on, of what findmnt
// says of the data directory and of the volumes' storage: not the host's first, and
// nothing else that is mounted inside the data directory.
func ownMounts(dataDir, storage string, found []Mount) (own []Mount) {
	within := func(p, dir string) bool { return strings.HasPrefix(p+"/", dir+"/") }
	for _, m := range found {
		m.Data = within(dataDir, m.Path)
		m.Apart = m.Path == storage && !m.Data && within(m.Path, dataDir)
		inside := !m.Data && within(m.Path, dataDir)
		known := slices.ContainsFunc(own, func(o Mount) bool { return o.Path == m.Path })
		if m.Path != "/" && !known && (m.Apart || !inside) {
			own = append(own, m)
		}
	}
	slices.SortFunc(own, func(a, b Mount) int { return strings.Compare(a.Path, b.Path) })
	return own
}

// readMounts finds the file systems that data directory and storage are on. What
// systemd could not mount again after a restart of the host is none of them.
func (i *Installation) readMounts(ctx context.Context, h *remote.Host) error {
	fail := func(err error) error {
		return fmt.Errorf("host %s: looking which file systems K3s is on: %w", h.Name(), err)
	}
	leads, err := h.Output(ctx, "readlink -m -- "+remote.Quote(i.DataDir)+"; readlink -m -- "+remote.Quote(i.Storage()))
	if err != nil {
		return fail(err)
	}
	dataDir, storage, _ := strings.Cut(leads, "\n")
	out, err := h.Output(ctx, fmt.Sprintf("for d in %s; do [ ! -d \"$d\" ] || %s --target \"$d\" 2>/dev/null; done; true", remote.Quote(dataDir, storage), findmnt))
	if err != nil {
		return fail(err)
	}
	found, err := parseMounts(out)
	if err != nil {
		return fail(err)
	}
	for _, m := range ownMounts(dataDir, storage, found) {
		unit, err := h.Output(ctx, `systemctl show -p FragmentPath --value -- `+mountUnit(m.Path))
		if err != nil {
			return fail(err)
		}
		if unit != "" {
			i.Mounts = append(i.Mounts, m)
		}
	}
	return nil
}

// mountUnit is shell for the name of the unit that mounts a path.
func mountUnit(path string) string {
	return `"$(systemd-escape --path --suffix=mount -- ` + remote.Quote(path) + `)"`
}

// MountCommand is shell that mounts what [Installation.Mount] does.
func (i *Installation) MountCommand() string {
	var units []string
	for _, m := range i.Mounts {
		units = append(units, mountUnit(m.Path))
	}
	return "systemctl start " + strings.Join(units, " ")
}

// Apart are the file systems that are unmounted before the uninstall.
func (i *Installation) Apart() (paths []string) {
	for _, m := range i.Mounts {
		if m.Apart {
			paths = append(paths, m.Path)
		}
	}
	return paths
}

// Mount sees to it that the file systems which K3s is on are mounted, and are those
// that were: what is written to a directory that waits for its file system would be
// hidden by it later. k3s-killall.sh may have unmounted them, the uninstall job has, and a
// restarted host may have gone on without. It is to be called right before data directory
// or storage are read or written, and not by two at a time.
func (i *Installation) Mount(ctx context.Context, h *remote.Host) error {
	for _, m := range i.Mounts {
		fail := func(err error) error {
			return fmt.Errorf("host %s: file system %s, on which K3s's data are: %w", h.Name(), m, err)
		}
		have, err := mountedAt(ctx, h, m.Path)
		if err != nil {
			return fail(err)
		}
		if len(have) == 0 {
			err := h.Run(ctx, fmt.Sprintf(`set -e
dir=%s
if [ -n "$(ls -A -- "$dir" 2>/dev/null)" ]; then
  echo "it is not mounted, and what lies in the directory $dir would be hidden by it: move that away, then run again" >&2
  exit 1
fi
systemctl start -- %s`, remote.Quote(m.Path), mountUnit(m.Path)))
			if err != nil {
				return fail(fmt.Errorf("mounting it: %w", err))
			}
			if have, err = mountedAt(ctx, h, m.Path); err != nil {
				return fail(err)
			}
		}
		if len(have) == 0 {
			return fail(errors.New("it is not mounted after its unit was started: mount it, then run again"))
		}
		if now := have[len(have)-1].Identity(); now != m.Identity() {
			return fail(fmt.Errorf("another one is mounted there (%s) than when the host was surveyed (%s): mount that one, then run again", now, m.Identity()))
		}
	}
	return nil
}

// mountedAt are the file systems that are mounted at a path, the visible one last.
func mountedAt(ctx context.Context, h *remote.Host, path string) ([]Mount, error) {
	out, err := h.Output(ctx, findmnt+"--mountpoint "+remote.Quote(path)+" || [ $? = 1 ]")
	if err != nil {
		return nil, fmt.Errorf("asking what is mounted: %w", err)
	}
	return parseMounts(out)
}
