package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Storage is where the paths that a rebuild touches lie, and what is underneath.
type Storage struct {
	FileSystems []FileSystem    `json:"fileSystems,omitempty"`
	Logical     []LogicalVolume `json:"logicalVolumes,omitempty"`
	Groups      []VolumeGroup   `json:"volumeGroups,omitempty"`
	Subvolumes  []Subvolume     `json:"subvolumes,omitempty"`
	Datasets    []Dataset       `json:"datasets,omitempty"`
	// Links are the paths, of those that a rebuild touches, that lead elsewhere by symbolic links, and where to.
	Links map[string]string `json:"links,omitempty"`
	// Writes is about how much a rebuild writes anew, in bytes: the volumes' data and the images.
	Writes int64 `json:"writes,omitempty"`
	// Taken tells that the snapshot of the run that goes on may be there: it is in nobody's way.
	Taken bool `json:"taken,omitempty"`
	// Missing are the tools that are not there although something on the host needs them.
	Missing []string `json:"missing,omitempty"`
}

// FileSystem is one with paths that a rebuild touches.
type FileSystem struct {
	Target string `json:"target"` // where it is mounted
	Source string `json:"source"`
	Type   string `json:"type"`
	Root   string `json:"root"`   // what of it is mounted: / or a subvolume
	Device string `json:"device"` // major:minor
	UUID   string `json:"uuid,omitempty"`
	// Free is the room there, in bytes; 0 for unknown.
	Free int64 `json:"free,omitempty"`
	// Paths are those that lie there.
	Paths []string `json:"paths"`
}

// LogicalVolume of LVM; sizes are in bytes.
type LogicalVolume struct {
	Group  string `json:"group"`
	Name   string `json:"name"`
	Device string `json:"device"` // major:minor
	Size   int64  `json:"size"`
	Type   string `json:"type"`           // segment type: linear, thin, thin-pool, …
	Pool   string `json:"pool,omitempty"` // of a thin volume
	// Data and Metadata are how full a pool or a snapshot is, in per cent; negative when unknown.
	Data     float64 `json:"data"`
	Metadata float64 `json:"metadata"`
}

// Thin tells whether snapshots of the volume share its pool.
func (v LogicalVolume) Thin() bool { return v.Pool != "" }

func (v LogicalVolume) path() string { return v.Group + "/" + v.Name }

// VolumeGroup of LVM; sizes are in bytes.
type VolumeGroup struct {
	Name   string `json:"name"`
	Free   int64  `json:"free"`
	Extent int64  `json:"extent"`
}

// readings prints JSON documents one after the other: findmnt's for every path, of which the nearest directory
// that is there counts, the size of the images' directory, then those of LVM, where a volume of it is about.
const readings = `
for p in %s; do
  while [ ! -e "$p" ]; do p=$(dirname -- "$p"); done
  findmnt -J -b -o TARGET,SOURCE,FSTYPE,FSROOT,MAJ:MIN,UUID,AVAIL -T "$p" || exit 1
done
if [ -d %s ]; then echo "{\"kib\": $(du -skx %s 2>/dev/null | cut -f1)}"; fi
if command -v lvs >/dev/null; then
  lvs --reportformat json --units b --nosuffix -a -o vg_name,lv_name,lv_size,segtype,pool_lv,origin,data_percent,metadata_percent,lv_kernel_major,lv_kernel_minor 2>/dev/null &&
  vgs --reportformat json --units b --nosuffix -o vg_name,vg_free,vg_extent_size 2>/dev/null || echo '{"missing": "lvs"}'
elif ls -d /sys/block/dm-*/dm/uuid >/dev/null 2>&1 && grep -qs ^LVM- /sys/block/dm-*/dm/uuid; then
  echo '{"missing": "lvm2"}'
fi`

// Look reads where the paths lie, and how much there is in the directory of the images. It changes nothing.
func Look(ctx context.Context, h *remote.Host, paths []string, images string) (Storage, error) {
	out, err := h.Output(ctx, fmt.Sprintf(readings, remote.Quote(paths...), remote.Quote(images), remote.Quote(images)))
	if err == nil {
		var s Storage
		if s, err = parse(out, paths); err == nil {
			err = s.inside(ctx, h)
		}
		if err == nil {
			err = s.follow(ctx, h, paths)
		}
		if err == nil {
			return s, nil
		}
	}
	return Storage{}, failed(h, "reading what its file systems lie on", err)
}

// inside reads what the file systems are divided into, those of which that are.
func (s *Storage) inside(ctx context.Context, h *remote.Host) error {
	for _, part := range []struct {
		script string
		add    func(out string)
	}{{s.readSubvolumes(), s.addSubvolumes}, {s.readDatasets(), s.addDatasets}} {
		if part.script == "" {
			continue
		}
		out, err := h.Output(ctx, part.script)
		if err != nil {
			return err
		}
		part.add(out)
	}
	return nil
}

// follow notes where the paths lead, as far as that can be told.
func (s *Storage) follow(ctx context.Context, h *remote.Host, paths []string) error {
	out, err := h.Output(ctx, "realpath -m -z -- "+remote.Quote(paths...)+" 2>/dev/null || true")
	if err != nil {
		return err
	}
	for i, to := range strings.Split(strings.TrimSuffix(out, "\x00"), "\x00") {
		if i < len(paths) && path.IsAbs(to) && to != path.Clean(paths[i]) {
			if s.Links == nil {
				s.Links = map[string]string{}
			}
			s.Links[paths[i]] = to
		}
	}
	return nil
}

// real is where a path lies when the links are followed.
func (s Storage) real(p string) string {
	from := ""
	for link := range s.Links {
		if below(p, link) && len(link) > len(from) {
			from = link
		}
	}
	if from == "" {
		return p
	}
	return path.Join(s.Links[from], strings.TrimPrefix(path.Clean(p), path.Clean(from)))
}

// described names the file systems for a person.
func (s Storage) described() string {
	var on []string
	for _, fs := range s.FileSystems {
		on = append(on, fmt.Sprintf("%s on %s (%s)", fs.Target, fs.Source, fs.Type))
	}
	return strings.Join(on, ", ")
}

// report is any of the documents.
type report struct {
	FileSystems []struct {
		Target, Source, FSType, FSRoot, UUID string
		Device                               string      `json:"maj:min"`
		Avail                                json.Number // in quotes or not, by findmnt's release
	}
	Report []struct {
		LV []map[string]string
		VG []map[string]string
	}
	KiB     int64
	Missing string
}

func parse(out string, paths []string) (s Storage, err error) {
	d := json.NewDecoder(strings.NewReader(out))
	for n := 0; d.More(); {
		var r report
		if err := d.Decode(&r); err != nil {
			return s, err
		}
		if len(r.FileSystems) > 0 {
			if n == len(paths) {
				return s, fmt.Errorf("more file systems than the %d paths asked for", n)
			}
			f := r.FileSystems[len(r.FileSystems)-1] // the topmost of those mounted there
			s.place(FileSystem{Target: f.Target, Source: f.Source, Type: f.FSType, Root: f.FSRoot, Device: strings.TrimSpace(f.Device), UUID: f.UUID, Free: whole(f.Avail.String())}, paths[n])
			n++
		}
		for _, part := range r.Report {
			for _, lv := range part.LV {
				s.Logical = append(s.Logical, LogicalVolume{Group: lv["vg_name"], Name: strings.Trim(lv["lv_name"], "[]"), Size: whole(lv["lv_size"]), Type: lv["segtype"],
					Pool: lv["pool_lv"], Data: percent(lv["data_percent"]), Metadata: percent(lv["metadata_percent"]),
					Device: lv["lv_kernel_major"] + ":" + lv["lv_kernel_minor"]})
			}
			for _, vg := range part.VG {
				s.Groups = append(s.Groups, VolumeGroup{Name: vg["vg_name"], Free: whole(vg["vg_free"]), Extent: whole(vg["vg_extent_size"])})
			}
		}
		s.Writes += r.KiB << 10
		if r.Missing != "" {
			s.Missing = append(s.Missing, r.Missing)
		}
	}
	return s, nil
}

// place notes that a path lies on a file system.
func (s *Storage) place(fs FileSystem, path string) {
	i := slices.IndexFunc(s.FileSystems, func(x FileSystem) bool { return x.Target == fs.Target && x.Device == fs.Device })
	if i < 0 {
		i = len(s.FileSystems)
		s.FileSystems = append(s.FileSystems, fs)
	}
	s.FileSystems[i].Paths = append(s.FileSystems[i].Paths, path)
}

// free is the least room that one of the file systems has.
func (s Storage) free(of func(FileSystem) bool) (least int64) {
	for _, fs := range s.FileSystems {
		if of(fs) && fs.Free > 0 && (least == 0 || fs.Free < least) {
			least = fs.Free
		}
	}
	return least
}

// cramped is the problem of a snapshot that keeps, where the rebuild writes, what the rebuild deletes, with no room for both.
func (s Storage) cramped(method plans.SnapshotMethod, on string, free int64) []Problem {
	if free == 0 || free >= s.Writes {
		return nil
	}
	return []Problem{{Detail: fmt.Sprintf("%s has %s free, and the rebuild writes about %s anew, while the snapshot keeps what was there before", on, bytes(free), bytes(s.Writes)),
		Remedy: fmt.Sprintf("make room there, or choose another spec.snapshot.method than %s", method)}}
}

func whole(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

func percent(text string) float64 {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return -1
	}
	return n
}

// logicalVolume is what the file system lies on directly, nil when that is none.
func (s Storage) logicalVolume(fs FileSystem) *LogicalVolume {
	i := slices.IndexFunc(s.Logical, func(v LogicalVolume) bool { return v.Device == fs.Device })
	if i < 0 {
		return nil
	}
	return &s.Logical[i]
}

func (s Storage) group(name string) VolumeGroup {
	for _, g := range s.Groups {
		if g.Name == name {
			return g
		}
	}
	return VolumeGroup{Name: name}
}
