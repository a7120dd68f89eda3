package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// lvm takes snapshots of logical volumes. Of a thick volume the snapshot holds what is overwritten in extents of
// its own, and is lost when these are full; a thin one's shares the pool. The return merges it into its origin,
// which the kernel defers until the origin is activated anew: until the reboot.
type lvm struct{ base }

// origin is a logical volume with what lies on it.
type origin struct {
	LogicalVolume
	fileSystems []FileSystem
	snapshot    string // its name, in the same group
	size        int64  // of a thick one's extents, in bytes
}

func (o origin) at() string { return o.Group + "/" + o.snapshot }

// origins are the logical volumes that hold what a rebuild touches, in a lasting order.
func (l lvm) origins() []origin {
	var out []origin
	for _, fs := range l.Storage.FileSystems {
		v := l.Storage.logicalVolume(fs)
		if v == nil {
			continue
		}
		i := slices.IndexFunc(out, func(o origin) bool { return o.path() == v.path() })
		if i < 0 {
			i = len(out)
			out = append(out, origin{LogicalVolume: *v, snapshot: v.Name + "-before-" + l.Name})
		}
		out[i].fileSystems = append(out[i].fileSystems, fs)
	}
	slices.SortFunc(out, func(a, b origin) int { return strings.Compare(a.path(), b.path()) })
	asked, _ := l.Plan.SizeBytes() // valid since the plan was read
	thick := map[string]int64{}
	for _, o := range out {
		if !o.Thin() {
			thick[o.Group]++
		}
	}
	for i, o := range out {
		if !o.Thin() {
			out[i].size = l.extents(o, asked, thick[o.Group])
		}
	}
	return out
}

// extents is the size of a thick volume's snapshot, in whole extents: as the plan says, otherwise as proposed for one of
// so many in the group; never more than the volume with what LVM itself needs.
func (l lvm) extents(o origin, asked, many int64) int64 {
	extent := max(l.Storage.group(o.Group).Extent, 4<<20)
	size := asked
	if size == 0 {
		size = l.proposed(o.Group, many)
	}
	size = min(size, o.Size+o.Size/50+extent)
	return (size + extent - 1) / extent * extent
}

// spareWrites is what else is written in the hours of a rebuild: logs, K3s itself, the platform's own.
const spareWrites = 2 << 30

// proposed is the room that a snapshot of a volume in the group gets: twice what the rebuild is expected to write, since
// blocks are kept where they are overwritten and where they are freed and filled anew; or its share of half of what the
// group has left, where that is more. Which of several volumes is written to cannot be told: each gets as much.
func (l lvm) proposed(group string, many int64) int64 {
	return max(2*l.Storage.Writes+spareWrites, l.Storage.group(group).Free/2/many)
}

// size is spec.snapshot.size as proposed, "" where all volumes are thin.
func (l lvm) size() string {
	var most int64
	for _, o := range l.origins() {
		most = max(most, o.size)
	}
	if most == 0 {
		return ""
	}
	return fmt.Sprintf("%dMi", most>>20)
}

// fullPool is how full, in per cent, a pool may be before a snapshot is taken of a volume in it.
const fullPool = 80

// Outside are the paths on anything but a logical volume.
func (l lvm) Outside() []string {
	return outside(l.Storage, func(fs FileSystem) bool { return l.Storage.logicalVolume(fs) != nil })
}

func (l lvm) Problems() []Problem {
	var out []Problem
	for _, tool := range l.Storage.Missing {
		if tool != "lvs" && tool != "lvm2" {
			continue
		}
		out = append(out, Problem{Detail: fmt.Sprintf("the host has logical volumes, and they cannot be read with %s", tool), Remedy: "`apt install lvm2`, or what your distribution calls it; `lvs` shows what is wrong"})
	}
	if len(l.origins()) == 0 {
		return append(out, Problem{Field: "method", Detail: "nothing of what the rebuild touches lies on a logical volume of which a snapshot can be taken: " + l.Storage.described(), Remedy: "choose another spec.snapshot.method"})
	}
	need, pools := map[string]int64{}, map[string]bool{}
	for _, o := range l.origins() {
		switch {
		case slices.ContainsFunc(l.Storage.Logical, func(v LogicalVolume) bool { return v.Group == o.Group && v.Name == o.snapshot }):
			if l.Storage.Taken {
				continue
			}
			out = append(out, Problem{Detail: fmt.Sprintf("the logical volume %s is there already, from an earlier run", o.at()), Remedy: fmt.Sprintf("`lvremove %s` when it is not needed any more, or `lvrename` it", o.at())})
		case o.Type != "linear" && o.Type != "striped" && o.Type != "thin" && !strings.HasPrefix(o.Type, "raid") && o.Type != "mirror":
			out = append(out, Problem{Field: "method", Detail: fmt.Sprintf("the logical volume %s has the segment type %s, of which no snapshot can be merged back", o.path(), o.Type), Remedy: "choose another spec.snapshot.method"})
		case o.Thin():
			pools[o.Group+"/"+o.Pool] = true
		default:
			need[o.Group] += o.size
		}
	}
	for _, pool := range l.Storage.Logical {
		switch {
		case !pools[pool.path()]:
		case max(pool.Data, pool.Metadata) > fullPool:
			out = append(out, Problem{Detail: fmt.Sprintf("the thin pool %s is full to %.0f %% (data) and %.0f %% (metadata)", pool.path(), pool.Data, pool.Metadata), Remedy: fmt.Sprintf("`lvextend --size +10G %s`, or --poolmetadatasize", pool.path())})
		case pool.Data >= 0:
			out = append(out, l.Storage.cramped(plans.SnapshotLVM, "the thin pool "+pool.path(), int64(float64(pool.Size)*(100-pool.Data)/100))...)
		}
	}
	for _, g := range l.Storage.Groups {
		if need[g.Name] > g.Free {
			out = append(out, Problem{Field: "size", Detail: fmt.Sprintf("the volume group %s has %s free, and the snapshot takes %s", g.Name, bytes(g.Free), bytes(need[g.Name])),
				Remedy: fmt.Sprintf("`vgextend %s /dev/…`, or set spec.snapshot.size to less; the rebuild writes about %s", g.Name, bytes(l.Storage.Writes))})
		}
	}
	return out
}

func bytes(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

// create is the command that makes the snapshot.
func (o origin) create() string {
	if o.Thin() {
		return "lvcreate --yes --snapshot --name " + remote.Quote(o.snapshot, o.path())
	}
	return fmt.Sprintf("lvcreate --yes --snapshot --size %db --name %s", o.size, remote.Quote(o.snapshot, o.path()))
}

// Take makes the snapshots of all volumes in one operation, all or none: a return to some of today and some of yesterday
// would be to no state that the host ever had.
func (l lvm) Take() []Operation {
	origins := l.origins()
	if len(origins) == 0 {
		return nil
	}
	var commands, volumes []string
	for _, o := range origins {
		what := bytes(o.size) + " for what is overwritten"
		if o.Thin() {
			what = "in the pool " + o.Pool
		}
		commands, volumes = append(commands, o.create()), append(volumes, fmt.Sprintf("%s (%s)", o.path(), what))
	}
	there := func(ctx context.Context) (some []origin, err error) {
		for _, o := range origins {
			s, err := l.state(ctx, o)
			if err != nil {
				return nil, err
			}
			if s.there {
				some = append(some, o)
			}
		}
		return some, nil
	}
	out := []Operation{{
		Name: "snapshot", Place: OnHost, Command: strings.Join(commands, " && "),
		Summary: "Take a snapshot of each logical volume, all or none: " + strings.Join(volumes, ", "),
		Run: func(ctx context.Context) error {
			// What preflight did not find is of an attempt that was cut off.
			some, err := there(ctx)
			if err != nil {
				return err
			}
			script := "set -e\nsync\n"
			for _, o := range some {
				script += "lvremove --yes " + remote.Quote(o.at()) + "\n"
			}
			undo := ""
			for _, o := range origins {
				script += fmt.Sprintf("%s || { e=$?; %sexit $e; }\n", o.create(), undo)
				undo += "lvremove --yes " + remote.Quote(o.at()) + " >&2 || true; "
			}
			return l.run(ctx, "taking snapshots of logical volumes", script)
		},
		Done: func(ctx context.Context) (bool, error) {
			some, err := there(ctx)
			return len(some) == len(origins), err
		},
	}}
	for _, o := range origins {
		for _, fs := range o.fileSystems {
			if !below(l.Proof, fs.Target) || l.deeper(fs) {
				continue
			}
			out = append(out, Operation{
				Name: "open " + o.at(), Place: OnHost,
				Summary: fmt.Sprintf("Open the snapshot, read-only, and find %s in it", l.Proof),
				Command: l.open(o, fs),
				Run:     func(ctx context.Context) error { return l.run(ctx, "opening the snapshot "+o.at(), l.open(o, fs)) },
			})
		}
	}
	return out
}

// deeper tells that the proof lies on another file system, mounted below this one.
func (l lvm) deeper(fs FileSystem) bool {
	return slices.ContainsFunc(l.Storage.FileSystems, func(other FileSystem) bool {
		return len(other.Target) > len(fs.Target) && below(l.Proof, other.Target)
	})
}

// opened is where a snapshot is opened; /run is writable where nothing else may be.
const opened = "/run/k3s-dualstack-snapshot"

// open mounts the snapshot in a mount namespace of its own, which ends with the script. A journal is not
// replayed: that would write.
func (l lvm) open(o origin, fs FileSystem) string {
	options := "ro"
	switch fs.Type {
	case "ext4", "ext3":
		options = "ro,noload"
	case "xfs":
		options = "ro,norecovery,nouuid"
	}
	// What is mounted may be a directory of the file system.
	inside := path.Join(opened, fs.Root, strings.TrimPrefix(l.Proof, strings.TrimSuffix(fs.Target, "/")))
	look := "unshare --mount sh -c " + remote.Quote(fmt.Sprintf("mkdir -p %[1]s && mount -t %[2]s -o %[3]s %[4]s %[1]s && ls -d %[5]s", opened, remote.Quote(fs.Type), options, remote.Quote("/dev/"+o.at()), remote.Quote(inside)))
	if !o.Thin() {
		return look
	}
	// A thin one is active for as long as this takes: it has the UUID of its origin, by which it might be mounted instead.
	return fmt.Sprintf("lvchange --yes -ay -K %[1]s && { e=0; %[2]s || e=$?; lvchange -an %[1]s && exit $e; }", remote.Quote(o.at()), look)
}

// lvState is what LVM says of a snapshot.
type lvState struct {
	there    bool
	attached bool    // to an origin; one that is not has been merged, and is to be removed
	full     float64 // per cent; of a thin one, its pool's
	invalid  bool    // overflown
	merging  bool    // the merge was asked for
	underWay bool    // and has begun, which it does when the origin is activated
}

// states prints JSON documents: what LVM says of a group's volumes, then what the kernel's table of the origin is: of a
// merge, or of the thin volume with that number in the pool.
const states = `timeout 60 lvs --config report/binary_values_as_numeric=0 --reportformat json -a -o lv_name,origin,lv_snapshot_invalid,lv_merging,thin_id,data_percent,metadata_percent %s || exit
dmsetup table %s 2>/dev/null | awk '$3 == "snapshot-merge" { print "{\"merge\": true}" } $3 == "thin" { printf "{\"thin\": \"%%s\"}\n", $5 }'`

// state reads what LVM says of a snapshot. A return is under way when the kernel's table of the origin is of a
// merge (thick), or of the snapshot's own data (thin: with its next activation the snapshot is the origin).
func (l lvm) state(ctx context.Context, o origin) (lvState, error) {
	what := "looking at the logical volumes of " + o.Group
	out, err := l.output(ctx, what, fmt.Sprintf(states, remote.Quote(o.Group), remote.Quote("/dev/"+o.path())))
	if err != nil {
		return lvState{}, err
	}
	s, err := o.read(out)
	if err != nil {
		return lvState{}, fmt.Errorf("%s: reading what lvs says: %w", what, err)
	}
	return s, nil
}

// read reads what [states] prints.
func (o origin) read(out string) (s lvState, err error) {
	room := o.snapshot // what fills
	if o.Thin() {
		room = o.Pool
	}
	thin := "" // the snapshot's number in the pool
	d := json.NewDecoder(strings.NewReader(out))
	for d.More() {
		var r struct {
			report
			Merge bool
			Thin  string
		}
		if err := d.Decode(&r); err != nil {
			return lvState{}, err
		}
		s.underWay = s.underWay || r.Merge || r.Thin != "" && r.Thin == thin
		for _, part := range r.Report {
			for _, lv := range part.LV {
				name := strings.Trim(lv["lv_name"], "[]")
				if name == o.snapshot {
					s.there, s.attached = true, lv["origin"] != ""
					s.invalid = strings.Contains(lv["lv_snapshot_invalid"], "invalid")
					s.merging = strings.Contains(lv["lv_merging"], "merging")
					thin = lv["thin_id"]
				}
				if name == room {
					s.full = max(percent(lv["data_percent"]), percent(lv["metadata_percent"]))
				}
			}
		}
	}
	return s, nil
}

func (l lvm) Fill(ctx context.Context) (fullest Fill, err error) {
	for _, o := range l.origins() {
		s, err := l.state(ctx, o)
		if err != nil {
			return Fill{}, err
		}
		drop := fmt.Sprintf("remove it (`lvremove %s`) and go on with the backup set alone", o.at())
		f := Fill{Part: o.at(), Percent: s.full, Remedy: fmt.Sprintf("give it room (`lvextend --size +5G %s`) and repeat the command, or %s", o.at(), drop)}
		switch {
		case !s.there || s.merging:
			continue
		case s.invalid:
			f.Percent, f.Remedy = 100, drop+": it has overflown, and holds nothing any more"
		case o.Thin():
			pool := o.Group + "/" + o.Pool
			f.Part, f.Remedy = pool, fmt.Sprintf("give the pool room (`lvextend --size +10G %[1]s` for data, `lvextend --poolmetadatasize +256M %[1]s` for metadata; `lvs -a` shows which) and repeat the command; or %[2]s", pool, drop)
		}
		if fullest.Part == "" || f.Percent > fullest.Percent {
			fullest = f
		}
	}
	return fullest, nil
}

// fullReturn is how full, in per cent, a thick snapshot may be when its merge is asked for: the host writes until it is
// restarted.
const fullReturn = 95

// whole looks whether every snapshot is there and holds what it should. One that is being merged does.
func (l lvm) whole(ctx context.Context, origins ...origin) error {
	for _, o := range origins {
		s, err := l.state(ctx, o)
		switch {
		case err != nil:
			return err
		case !s.there:
			return fmt.Errorf("there is no snapshot %s on the host: %s", o.at(), l.otherwise(ctx))
		case s.invalid:
			return fmt.Errorf("the snapshot %s has overflown and holds nothing any more: %s", o.at(), l.otherwise(ctx))
		case !o.Thin() && !s.merging && s.full > fullReturn:
			return fmt.Errorf("the snapshot %s is full to %.0f %%, and may overflow before the host is restarted: give it room (`lvextend --size +1G %s`), then repeat the command", o.at(), s.full, o.at())
		}
	}
	return nil
}

// otherwise is what is left when a snapshot is lost: merges of others may wait for a start of the host.
func (l lvm) otherwise(ctx context.Context) string {
	pending, err := l.Pending(ctx)
	if err != nil || pending == "" {
		return otherwise
	}
	return pending + ": restart the host, then `migrate rollback --via backup` brings the old cluster back from the backup set"
}

// mergeMark notes on the host, until it is started anew, that the merge of a snapshot was asked for and not refused.
func (o origin) mergeMark() string { return "/run/k3s-dualstack-merging-" + o.Group + "-" + o.snapshot }

// accepted tells whether the merge was: the snapshot says so, or is gone for that reason alone.
func (l lvm) accepted(ctx context.Context, o origin) (bool, error) {
	s, err := l.state(ctx, o)
	if err != nil || s.there {
		return s.merging, err
	}
	// Merged at once, or with a start of the host since.
	out, err := l.output(ctx, "looking whether "+o.at()+" was merged", fmt.Sprintf("if [ -e %s ] && [ ! -e %s ]; then echo no; fi", restartWanted, remote.Quote(o.mergeMark())))
	if err != nil {
		return false, err
	}
	if out == "no" {
		return false, fmt.Errorf("the snapshot %s is gone, and was not merged: `migrate rollback --via backup` brings the old cluster back from the backup set", o.at())
	}
	return true, nil
}

func (l lvm) Return() []Operation {
	look := Operation{Name: "look", Place: OnHost, Summary: "See that every snapshot is there and whole"}
	origins := l.origins()
	look.Run = func(ctx context.Context) error {
		if len(origins) == 0 {
			return nothing(plans.SnapshotLVM)
		}
		return l.whole(ctx, origins...)
	}
	var merges, merged []Operation
	for i, o := range origins {
		look.Command = "lvs -o +lv_snapshot_invalid " + remote.Quote(o.Group)
		merge := "lvconvert --yes --merge " + remote.Quote(o.at())
		merges = append(merges, Operation{
			Name: "merge " + o.at(), Place: OnHost, Command: merge,
			Summary: fmt.Sprintf("Have the snapshot merged into %s, with the next start of the host where that is in use", o.path()),
			Run: func(ctx context.Context) error {
				// Those before it may be through.
				if err := l.whole(ctx, origins[i:]...); err != nil {
					return err
				}
				return l.run(ctx, "having the snapshot "+o.at()+" merged", fmt.Sprintf("%[1]s && touch %[2]s && %[3]s || { e=$?; rm -f %[2]s; exit $e; }", restartMark, remote.Quote(o.mergeMark()), merge))
			},
			Done: func(ctx context.Context) (bool, error) { return l.accepted(ctx, o) },
		})
		merged = append(merged, Operation{
			Name: "merged " + o.at(), Place: OnHost, Command: "lvs -a -o name,data_percent,lv_merging " + remote.Quote(o.Group),
			Summary: fmt.Sprintf("Wait until the snapshot is merged into %s; the host is in use meanwhile", o.path()),
			Run:     func(ctx context.Context) error { return l.waitMerged(ctx, o) },
		})
	}
	return slices.Concat([]Operation{look}, merges, []Operation{l.restart("the merge begins with it, and goes on after a power cycle should it not come up")}, merged)
}

const (
	mergeStep = 2 * time.Second
	// mergeNudge is for how long a merge may be seen to make no progress before it is helped along; dmsetup
	// counts in whole minutes how long something has been waiting.
	mergeNudge = 70 * time.Second
	// mergeStall is for how long a merge may be seen to make no progress.
	mergeStall = 10 * time.Minute
)

// timedOut is how timeout ends.
const timedOut = 124

func exited(err error, code int) bool {
	var exit *remote.ExitError
	return errors.As(err, &exit) && exit.Code == code
}

// nudge is a script that goes on with a merge whose process does not. The process that ends a merge is started by
// whatever activates the volume: for a root that is the initial RAM disk, whose udev ends before the process has its
// answer, and then it waits for ever, holding the group's lock. The kernel has the data merged by then, and what LVM
// has not written down yet anybody may.
func (o origin) nudge(s lvState) string {
	goOn := "lvchange --poll y " + remote.Quote(o.path())
	if !s.attached {
		goOn = "lvremove --yes " + remote.Quote(o.at())
	}
	// LVM's commands fail where the process has gone on meanwhile.
	return "dmsetup udevcomplete_all --yes 1 >/dev/null; timeout 60 " + goOn + " >&2 || true"
}

// poll is a script that has a process of LVM's wait for the end of a merge: one that the initial RAM disk started ends
// with it. Where that still lives, it may hold the group's lock.
func (o origin) poll() string {
	return "timeout 60 lvchange --poll y " + remote.Quote(o.path()) + " >&2 || true"
}

func (l lvm) waitMerged(ctx context.Context, o origin) error {
	t := l.Progress.Wait("Waiting for " + o.at() + " to be merged")
	defer t.Done()
	if err := l.run(ctx, "having the end of the merge of "+o.at()+" looked for", o.poll()); err != nil {
		return err
	}
	last, since, nudged := lvState{}, time.Now(), time.Now()
	for {
		s, err := l.state(ctx, o)
		if exited(err, timedOut) { // whoever holds the group's lock may be what is to be helped along
			s, err = last, nil
			s.there = true
		}
		switch {
		case err != nil:
			return err
		case !s.there:
			return nil
		case s.invalid:
			return fmt.Errorf("the snapshot %s became invalid while it was merged into %s, whose contents cannot be trusted now: look at `lvs -a` and the kernel's messages on the host", o.at(), o.path())
		case s != last:
			last, since, nudged = s, time.Now(), time.Now()
		case time.Since(since) > mergeStall:
			return fmt.Errorf("the merge of %s has made no progress for %s: look at `lvs -a` on the host; `lvchange --refresh %s` begins one that waits, otherwise restart the host; then repeat the command", o.at(), mergeStall, o.path())
		}
		if time.Since(nudged) > mergeNudge {
			if err := l.run(ctx, "helping the merge of "+o.at()+" along", o.nudge(s)); err != nil {
				return err
			}
			nudged = time.Now()
		}
		t.Detail(fmt.Sprintf("%.0f %% left", max(0, s.full)))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(mergeStep):
		}
	}
}

// Pending are the merges that were asked for and have not begun.
func (l lvm) Pending(ctx context.Context) (string, error) {
	var waiting []string
	for _, o := range l.origins() {
		s, err := l.state(ctx, o)
		if err != nil {
			return "", err
		}
		if s.merging && !s.underWay {
			waiting = append(waiting, o.at())
		}
	}
	if len(waiting) == 0 {
		return "", nil
	}
	return fmt.Sprintf("the merge of %s waits for the host's next start, and would then undo whatever was done until then", strings.Join(waiting, ", ")), nil
}

func (l lvm) Remove() []Operation {
	var out []Operation
	for _, o := range l.origins() {
		command := "lvremove --yes " + remote.Quote(o.at())
		out = append(out, Operation{
			Name: "remove " + o.at(), Place: OnHost, Command: command,
			Summary: fmt.Sprintf("Remove the snapshot of %s", o.path()),
			Run: func(ctx context.Context) error {
				s, err := l.state(ctx, o)
				switch {
				case err != nil || !s.there:
					return err
				case s.merging:
					return fmt.Errorf("the snapshot %s is being merged into %s and cannot be removed: restart the host, then repeat the command", o.at(), o.path())
				}
				return l.run(ctx, "removing the snapshot "+o.at(), command)
			},
		})
	}
	return out
}
