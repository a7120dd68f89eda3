package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// zfs takes snapshots of datasets, those of one pool at one instant. The return rolls the datasets back under the running
// system, which is why it ends with a restart, and destroys whatever snapshots are newer, which is why it has to be told.
type zfs struct{ base }

// Dataset of ZFS that is mounted: one that holds something a rebuild touches, or lies below that.
type Dataset struct {
	Name   string `json:"name"`
	Target string `json:"target"` // where it is mounted
	// Paths are those that it holds of what a rebuild touches.
	Paths []string `json:"paths,omitempty"`
	// Before are the names of the snapshots of it that were there.
	Before []string `json:"before,omitempty"`
}

func (d Dataset) pool() string {
	pool, _, _ := strings.Cut(d.Name, "/")
	return pool
}

// held are the datasets that hold what a rebuild touches.
func (z zfs) held() []Dataset {
	var out []Dataset
	for _, d := range z.Storage.Datasets {
		if len(d.Paths) > 0 {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b Dataset) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (z zfs) tag() string { return ours + "before-" + z.Name }

func (z zfs) of(d Dataset) string { return d.Name + "@" + z.tag() }

// onZFS tells whether a file system is a dataset, by the kernel's module or through FUSE.
func (fs FileSystem) onZFS() bool { return fs.Type == "zfs" || fs.Type == "fuse.zfs" }

// dataset is the one that is mounted, or a directory of which is.
func (fs FileSystem) dataset() string {
	name, _, _ := strings.Cut(fs.Source, "[")
	return name
}

// Outside are the paths on anything but ZFS, and the datasets mounted below them that hold none themselves.
func (z zfs) Outside() []string {
	out := outside(z.Storage, FileSystem.onZFS)
	for _, d := range z.Storage.Datasets {
		if len(d.Paths) == 0 {
			out = append(out, fmt.Sprintf("%s (the dataset %s)", d.Target, d.Name))
		}
	}
	return out
}

func (z zfs) Problems() []Problem {
	var out []Problem
	if slices.Contains(z.Storage.Missing, missingZFS) {
		out = append(out, Problem{Detail: "the host has ZFS datasets, and ZFS's programs are not installed", Remedy: "`apt install zfsutils-linux`, or what your distribution calls it"})
	}
	if slices.Contains(z.Storage.Missing, brokenZFS) {
		out = append(out, Problem{Detail: "the host has ZFS datasets, and what `zfs` says of them could not be read", Remedy: "`zfs list -t all` shows what is wrong"})
	}
	held := z.held()
	if len(held) == 0 && len(out) == 0 {
		return []Problem{{Field: "method", Detail: "nothing of what the rebuild touches lies on ZFS: " + z.Storage.described(), Remedy: "choose another spec.snapshot.method"}}
	}
	if pools := z.pools(); len(pools) == 1 && !z.Storage.Taken {
		out = append(out, z.Storage.cramped(plans.SnapshotZFS, "the ZFS pool "+held[0].pool(), z.Storage.free(FileSystem.onZFS))...)
	}
	for _, d := range held {
		if slices.Contains(d.Before, z.tag()) && !z.Storage.Taken {
			out = append(out, Problem{Detail: fmt.Sprintf("the snapshot %s is there already, from an earlier run", z.of(d)), Remedy: fmt.Sprintf("`zfs destroy %s` when it is not needed any more, or `zfs rename` it", remote.Quote(z.of(d)))})
		}
	}
	return out
}

// pools are the datasets that hold what a rebuild touches, those of one pool together.
func (z zfs) pools() [][]Dataset {
	var out [][]Dataset
	for _, d := range z.held() { // in the names' order
		if n := len(out); n > 0 && out[n-1][0].pool() == d.pool() {
			out[n-1] = append(out[n-1], d)
		} else {
			out = append(out, []Dataset{d})
		}
	}
	return out
}

// there makes a script's function that tells whether a snapshot is there.
const there = `there() { zfs list -H -d 1 -t snapshot -o name -r "${1%@*}" >/dev/null || exit; zfs list -H -t snapshot -o name "$1" >/dev/null 2>&1; }
`

// Take makes the snapshots in all pools in one operation, all or none: a return to some of today and some of yesterday
// would be to no state that the host ever had.
func (z zfs) Take() []Operation {
	pools := z.pools()
	if len(pools) == 0 {
		return nil
	}
	var commands, firsts, names []string
	for _, pool := range pools { // in each, all or none are there
		var all []string
		for _, d := range pool {
			all, names = append(all, z.of(d)), append(names, d.Name)
		}
		commands, firsts = append(commands, "zfs snapshot "+remote.Quote(all...)), append(firsts, all[0])
	}
	what := "taking a snapshot of " + strings.Join(names, ", ")
	out := []Operation{{
		Name: "snapshot", Place: OnHost, Command: strings.Join(commands, " && "),
		Summary: fmt.Sprintf("Take a snapshot of the datasets %s, those of a pool at one instant; others, such as those below them, are not in it", strings.Join(names, ", ")),
		Run: func(ctx context.Context) error {
			// What preflight did not find is of an attempt that has not come to the last pool.
			script := there + "if ! there " + remote.Quote(firsts[len(firsts)-1]) + "; then\n:\n"
			for _, pool := range pools[:len(pools)-1] {
				for _, d := range pool {
					script += fmt.Sprintf("if there %[1]s; then zfs destroy %[1]s || exit; fi\n", remote.Quote(z.of(d)))
				}
			}
			return z.run(ctx, what, script+"fi\nsync && "+strings.Join(commands, " && "))
		},
		Done: func(ctx context.Context) (bool, error) {
			script := there
			for _, first := range firsts {
				script += "there " + remote.Quote(first) + " || exit 0\n"
			}
			said, err := z.output(ctx, "looking for the snapshots", script+"echo there")
			return said == "there", err
		},
	}}
	if d, file, ok := z.proof(); ok {
		out = append(out, Operation{
			Name: "open " + d.Name, Place: OnHost, Command: "ls -d " + remote.Quote(file),
			Summary: fmt.Sprintf("Open the snapshot of %s and find %s in it", d.Name, z.Proof),
			Run: func(ctx context.Context) error {
				return z.run(ctx, "opening the snapshot "+z.of(d), "ls -d "+remote.Quote(file)+" >/dev/null || exit\n"+
					// Where looking has mounted it, it would be in the uninstall's way.
					"umount "+remote.Quote(path.Join(d.Target, ".zfs/snapshot", z.tag()))+" 2>/dev/null || true")
			},
		})
	}
	return out
}

// proof is where the proof is found in the snapshot that should hold it: each dataset shows its own in a directory that is
// there even where it is hidden.
func (z zfs) proof() (d Dataset, file string, ok bool) {
	on := FileSystem{}
	for _, fs := range z.Storage.FileSystems {
		if below(z.Proof, fs.Target) && len(fs.Target) > len(on.Target) {
			on = fs
		}
	}
	i := slices.IndexFunc(z.held(), func(d Dataset) bool { return d.Name == on.dataset() })
	if i < 0 {
		return d, "", false
	}
	d = z.held()[i]
	return d, path.Join(d.Target, ".zfs/snapshot", z.tag(), on.Root, strings.TrimPrefix(path.Clean(z.Proof), strings.TrimSuffix(on.Target, "/"))), true
}

// newer prints, in the order of the words there, what was made of a dataset after the snapshot; the last line tells that
// the snapshot was found. Bookmarks and the number of the transaction are asked for where ZFS knows them.
const newerScript = `
by=createtxg
zfs list -H -t snapshot -d 1 -r -o name,$by "$D" >/dev/null 2>&1 || by=creation
zfs list -H -t snapshot -d 1 -r -o name -s $by "$D" >/dev/null || exit
zfs list -H -t snapshot -d 1 -r -o name -s $by "$D" | awk -v s="$D@$T" '$0 == s { found = 1; next } found { print "snapshot\t" $0 } END { if (found) print "found" }'
if txg=$(zfs get -H -o value createtxg "$D@$T" 2>/dev/null) && zfs list -H -t bookmark -d 1 -r -o name,createtxg "$D" >/dev/null 2>&1; then
  zfs list -H -t bookmark -d 1 -r -o name,createtxg "$D" | awk -F '\t' -v t="$txg" '$2 + 0 > t + 0 { print "bookmark\t" $1 }'
fi
zfs list -H -t snapshot -d 1 -r -o name,userrefs "$D" 2>/dev/null | awk -F '\t' '$2 + 0 > 0 { print "hold\t" $1 }'
zfs list -H -t filesystem,volume -r -o name,origin "$POOL" | awk -F '\t' '$2 != "-" { print "clone\t" $1 "\t" $2 }'`

// newer is what was made of a dataset after the snapshot.
type newer struct {
	there bool     // the snapshot itself
	made  []string // snapshots and bookmarks
	held  []string // those on which somebody has a hold, which cannot be destroyed
	clone []string // clones of those
}

func (z zfs) newer(ctx context.Context, d Dataset) (n newer, err error) {
	out, err := z.output(ctx, "looking for snapshots of "+d.Name, fmt.Sprintf("D=%s T=%s POOL=%s", remote.Quote(d.Name), remote.Quote(z.tag()), remote.Quote(d.pool()))+newerScript)
	if err != nil {
		return n, err
	}
	return parseNewer(out), nil
}

func parseNewer(out string) (n newer) {
	for line := range strings.SplitSeq(out, "\n") {
		f := strings.Split(line, "\t")
		switch {
		case f[0] == "found":
			n.there = true
		case len(f) == 2 && (f[0] == "snapshot" || f[0] == "bookmark"):
			n.made = append(n.made, f[1])
		case len(f) == 2 && f[0] == "hold" && slices.Contains(n.made, f[1]):
			n.held = append(n.held, f[1])
		case len(f) == 3 && f[0] == "clone" && slices.Contains(n.made, f[2]):
			n.clone = append(n.clone, f[1])
		}
	}
	return n
}

// look finds all snapshots, and nothing newer that a return would destroy without having been told to.
func (z zfs) look(ctx context.Context) error {
	if len(z.held()) == 0 {
		return nothing(plans.SnapshotZFS)
	}
	var made, held, clones []string
	for _, d := range z.held() {
		n, err := z.newer(ctx, d)
		if err != nil {
			return err
		}
		if !n.there {
			return fmt.Errorf("there is no snapshot %s on the host: %s", z.of(d), otherwise)
		}
		made, held, clones = append(made, n.made...), append(held, n.held...), append(clones, n.clone...)
	}
	switch {
	case len(clones) > 0:
		return fmt.Errorf("%s came to be by cloning what is newer than the snapshot (%s), and a return would have to destroy them with it, which it never does: `zfs promote` or `zfs destroy` them, then repeat the command; %s",
			strings.Join(clones, ", "), strings.Join(made, ", "), otherwise)
	case len(held) > 0:
		return fmt.Errorf("somebody has a hold on %s, newer than the snapshot, which a return would have to destroy and cannot: `zfs holds %s` tells who, `zfs release` ends a hold, then repeat the command; %s",
			strings.Join(held, ", "), remote.Quote(held...), otherwise)
	case len(made) > 0 && !z.DestroyNewer:
		return fmt.Errorf("a return would destroy what is newer than the snapshot: %s; with --destroy-newer it does; %s", strings.Join(made, ", "), otherwise)
	}
	return nil
}

func (z zfs) rollback(d Dataset) string {
	if z.DestroyNewer {
		return "zfs rollback -r " + remote.Quote(z.of(d))
	}
	return "zfs rollback " + remote.Quote(z.of(d))
}

func (z zfs) Return() []Operation {
	look := Operation{Name: "look", Place: OnHost, Summary: "See that every snapshot is there and that there are none that are newer", Run: z.look}
	if z.DestroyNewer {
		look.Summary = "See that every snapshot is there and that what is newer can be destroyed"
	}
	var commands, names []string
	for _, d := range z.held() {
		look.Command = "zfs list -t snapshot -s creation -r " + remote.Quote(d.pool())
		commands, names = append(commands, z.rollback(d)), append(names, d.Name)
	}
	summary := "Roll the datasets " + strings.Join(names, ", ") + " back to the snapshot"
	if z.DestroyNewer {
		summary += ", and destroy the snapshots of them that are newer"
	}
	// One operation, so that all are repeated where the host was started anew between. Nothing is newer than the snapshot in one
	// that is rolled back.
	back := Operation{
		Name: "rollback", Place: OnHost, Summary: summary, Command: strings.Join(commands, " && "),
		Run: func(ctx context.Context) error {
			// One that was refused has changed nothing, and needs no restart.
			script := fmt.Sprintf("before=; [ -e %[1]s ] || before=none\n%[2]s\n", restartWanted, restartMark)
			for _, c := range commands {
				script += fmt.Sprintf("%s || { e=$?; [ -z \"$before\" ] || rm -f %s; exit $e; }\nbefore=\n", c, restartWanted)
			}
			return z.run(ctx, "rolling back the datasets "+strings.Join(names, ", "), script)
		},
	}
	return []Operation{look, back, z.restart("it runs on what was rolled back under it")}
}

// Pending tells that datasets were rolled back under the running system.
func (z zfs) Pending(ctx context.Context) (string, error) {
	out, err := z.output(ctx, "looking whether it has to be restarted", "if [ -e "+restartWanted+" ]; then echo wanted; fi")
	if err != nil || out == "" {
		return "", err
	}
	var names []string
	for _, d := range z.held() {
		names = append(names, d.Name)
	}
	return fmt.Sprintf("datasets of it (%s) have begun to be rolled back under the running system, which cannot be relied on until its next start", strings.Join(names, ", ")), nil
}

func (z zfs) Remove() []Operation {
	var out []Operation
	for _, d := range z.held() {
		command := "zfs destroy " + remote.Quote(z.of(d))
		out = append(out, Operation{
			Name: "remove " + z.of(d), Place: OnHost, Command: command,
			Summary: "Remove the snapshot of the dataset " + d.Name,
			Run: func(ctx context.Context) error {
				return z.run(ctx, "removing the snapshot "+z.of(d), there+"if there "+remote.Quote(z.of(d))+"; then "+command+"; fi")
			},
		})
	}
	return out
}

// What of ZFS's programs stands in the way.
const (
	missingZFS = "zfsutils-linux"
	brokenZFS  = "zfs"
)

// datasetReadings prints where datasets are mounted, in findmnt's JSON, then the snapshots of those that are of interest.
const datasetReadings = `
command -v zfs >/dev/null || { echo missing; exit 0; }
findmnt -J -l -t zfs,fuse.zfs -o TARGET,SOURCE || exit
zfs list -H -t snapshot -o name || echo failed`

// readDatasets is the script for what lies on ZFS; "" for nothing.
func (s Storage) readDatasets() string {
	if !slices.ContainsFunc(s.FileSystems, FileSystem.onZFS) {
		return ""
	}
	return datasetReadings
}

// addDatasets notes what readDatasets' script prints.
func (s *Storage) addDatasets(out string) {
	if out == "missing" {
		s.Missing = append(s.Missing, missingZFS)
		return
	}
	d := json.NewDecoder(strings.NewReader(out))
	var r report
	if err := d.Decode(&r); err != nil {
		s.Missing = append(s.Missing, brokenZFS)
		return
	}
	var touched []string
	var found []Dataset
	for _, fs := range s.FileSystems {
		touched = append(touched, fs.Paths...)
		if !fs.onZFS() {
			continue
		}
		i := slices.IndexFunc(found, func(d Dataset) bool { return d.Name == fs.dataset() })
		if i < 0 {
			i = len(found)
			found = append(found, Dataset{Name: fs.dataset(), Target: fs.Target})
		}
		found[i].Paths = append(found[i].Paths, fs.Paths...)
	}
	for _, m := range r.FileSystems {
		inside := slices.ContainsFunc(touched, func(p string) bool { return below(m.Target, p) })
		i := slices.IndexFunc(found, func(d Dataset) bool { return d.Name == m.Source })
		switch {
		case i >= 0:
			found[i].Target = m.Target // the whole of it, and not a directory of it that is mounted elsewhere
		case inside && !strings.ContainsAny(m.Source, "@["): // a snapshot that is looked at is mounted, too
			found = append(found, Dataset{Name: m.Source, Target: m.Target})
		}
	}
	for line := range strings.SplitSeq(out[d.InputOffset():], "\n") {
		if line == "failed" {
			s.Missing = append(s.Missing, brokenZFS)
			return
		}
		name, tag, _ := strings.Cut(line, "@")
		for i := range found {
			if found[i].Name == name && strings.HasPrefix(tag, ours) {
				found[i].Before = append(found[i].Before, tag)
			}
		}
	}
	s.Datasets = found
}
