package snapshot

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// btrfs takes read-only snapshots of subvolumes, which share the space of their file system. The return puts a writable
// snapshot of each in its subvolume's place, so that the host's next start mounts that; what was there is kept.
//
// All of it is in directories at the file system's top level, whose names tell how far it has come:
//
//	migrate-before-PLAN     the read-only snapshots, all of them: it gets its name when the last is made
//	migrate-return-PLAN     writable ones, all of them, each until it takes its subvolume's place
//	migrate-replacing-PLAN  the subvolumes replaced by a return under way
//	migrate-replaced-PLAN   those by one that is complete; -2, -3, … by later ones
//
// A subvolume's place is empty between two renames alone, which the file system almost always commits together.
type btrfs struct{ base }

// topLevel is one btrfs file system with the subvolumes that hold what a rebuild touches, outer ones first.
type topLevel struct {
	system string // as mount takes it
	held   []Subvolume
	// nested are those in them that hold nothing of it.
	nested []string
}

func (b btrfs) topLevels() []topLevel {
	var out []topLevel
	for _, v := range b.Storage.Subvolumes {
		i := slices.IndexFunc(out, func(t topLevel) bool { return t.system == v.System })
		if i < 0 {
			i = len(out)
			out = append(out, topLevel{system: v.System})
		}
		if len(v.Paths) > 0 {
			out[i].held = append(out[i].held, v)
		} else if !strings.HasPrefix(v.Path, ours) {
			out[i].nested = append(out[i].nested, v.Path)
		}
	}
	out = slices.DeleteFunc(out, func(t topLevel) bool { return len(t.held) == 0 })
	for i := range out {
		slices.SortFunc(out[i].held, func(a, b Subvolume) int { return strings.Compare(a.Path, b.Path) })
		slices.Sort(out[i].nested)
	}
	slices.SortFunc(out, func(a, b topLevel) int { return strings.Compare(a.system, b.system) })
	return out
}

// name is what a subvolume's snapshot is called.
func (v Subvolume) name() string {
	name := strings.NewReplacer("%", "%25", "/", "%2F").Replace(v.Path)
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	if len(name) > 200 {
		return fmt.Sprintf("%s%%-%d", name[:180], v.ID) // no file name has more than 255 bytes
	}
	return name
}

// ours begins the names of all directories of the method.
const ours = "migrate-"

func (b btrfs) before() string    { return ours + "before-" + b.Name }
func (b btrfs) returning() string { return ours + "return-" + b.Name }
func (b btrfs) replacing() string { return ours + "replacing-" + b.Name }
func (b btrfs) replaced() string  { return ours + "replaced-" + b.Name }

// Outside are the paths on anything but btrfs, and the subvolumes below them that hold none themselves: a snapshot ends
// where a nested one begins.
func (b btrfs) Outside() []string {
	out := outside(b.Storage, func(fs FileSystem) bool { return fs.Type == "btrfs" })
	for _, v := range b.Storage.Subvolumes {
		if len(v.Paths) == 0 && v.Below {
			out = append(out, v.Seen+" (a nested subvolume)")
		}
	}
	return out
}

func (b btrfs) Problems() []Problem {
	var out []Problem
	if slices.Contains(b.Storage.Missing, missingBtrfs) {
		out = append(out, Problem{Detail: "the host has btrfs file systems, and btrfs-progs is not installed", Remedy: "`apt install btrfs-progs`, or what your distribution calls it"})
	}
	if slices.Contains(b.Storage.Missing, brokenBtrfs) {
		out = append(out, Problem{Detail: "the host has btrfs file systems, and what `btrfs` says of their subvolumes could not be read", Remedy: "`btrfs subvolume list -a /` shows what is wrong"})
	}
	levels := b.topLevels()
	if len(levels) == 0 {
		if len(out) == 0 {
			out = append(out, Problem{Field: "method", Detail: "nothing of what the rebuild touches lies on btrfs: " + b.Storage.described(), Remedy: "choose another spec.snapshot.method"})
		}
		return out
	}
	if len(levels) == 1 && !b.Storage.Taken { // of several it cannot be told what is written to which
		out = append(out, b.Storage.cramped(plans.SnapshotBtrfs, "the btrfs file system "+levels[0].system, b.Storage.free(func(fs FileSystem) bool { return fs.Type == "btrfs" }))...)
	}
	for _, t := range levels {
		for _, v := range t.held {
			if v.Path == "" {
				out = append(out, Problem{Field: "method", Detail: fmt.Sprintf("%s is no subvolume: it lies on the top level of the btrfs file system %s, which cannot be replaced by a snapshot", strings.Join(v.Paths, ", "), t.system),
					Remedy: "choose another spec.snapshot.method, or move the system to a subvolume and mount that"})
				continue
			}
			for _, by := range v.ByID {
				out = append(out, Problem{Detail: fmt.Sprintf("%s mounts the subvolume %s by its number, subvolid=%d, and would mount it after a return, too, instead of what took its place", by, v.Path, v.ID), Remedy: fmt.Sprintf("write subvol=/%s there", v.Path)})
			}
			if v.MountedUpon {
				out = append(out, Problem{Detail: fmt.Sprintf("the subvolume %s is mounted at %s, which is the subvolume itself as it is seen in the one around it: it cannot be replaced while it is in use", v.Path, v.Seen),
					Remedy: fmt.Sprintf("remove that mount from /etc/fstab and restart the host: %s is there without it", v.Seen)})
			}
		}
	}
	for _, v := range b.Storage.Subvolumes {
		dir, _, _ := strings.Cut(v.Path, "/")
		if b.Storage.Taken {
			break
		}
		switch dir {
		case b.before(), b.returning():
			out = append(out, Problem{Detail: fmt.Sprintf("the subvolume %s is there already at the top level of the btrfs file system %s, from an earlier run", v.Path, v.System),
				Remedy: fmt.Sprintf("when it is not needed any more: `mount -o subvolid=5 %s /mnt && btrfs subvolume delete %s && rmdir --ignore-fail-on-non-empty %s`", remote.Quote(v.System), remote.Quote("/mnt/"+v.Path), remote.Quote("/mnt/"+dir))})
		case b.replacing():
			out = append(out, Problem{Detail: fmt.Sprintf("an earlier run's return to its snapshot is not complete: what it replaced is in %s at the top level of the btrfs file system %s", v.Path, v.System),
				Remedy: "complete it with `migrate rollback --via snapshot`"})
		}
	}
	return out
}

// scriptAid stands before every script at the top level; tests cut scripts off with it.
var scriptAid string

// at makes a script that runs at the file system's top level, which is mounted in a mount namespace of its own; that ends
// with the script.
func (t topLevel) at(script string) string {
	device := remote.Quote(t.system)
	if uuid, ok := strings.CutPrefix(t.system, "UUID="); ok { // as the kernel knows it: it is mounted
		device = fmt.Sprintf(`"/dev/$(ls /sys/fs/btrfs/%s/devices | head -n 1)"`, remote.Quote(uuid))
	}
	return "unshare --mount sh -c " + remote.Quote(fmt.Sprintf("set -eu\n%s%smkdir -p %s && mount -t btrfs -o subvolid=5 %s %s && cd %s\n%s",
		scriptAid, subvolumeAid, opened, device, opened, opened, script))
}

// byHand is what a person would type for something at the top level.
func (t topLevel) byHand(commands ...string) string {
	return fmt.Sprintf(`d=$(mktemp -d) && mount -o subvolid=5 %s "$d" && cd "$d" && %s && cd / && umount "$d"`, remote.Quote(t.system), strings.Join(commands, " && "))
}

// subvolumeAid are the functions of the scripts. A subvolume's root has the inode 256; in a snapshot the place of one
// that was nested is an empty directory with the inode 2.
const subvolumeAid = `die() { printf '%s\n' "$*" >&2; exit 1; }
inode() { stat -c %i -- "$1" 2>/dev/null || true; }
is() { [ ! -L "$1" ] && [ -d "$1" ] && [ "$(inode "$1")" = 256 ]; }
number() { btrfs inspect-internal rootid "$1"; }
says() { btrfs subvolume show "$2" | sed -n "s/^[[:space:]]*$1:[[:space:]]*//p"; }
# nested PATH: the subvolumes directly in it, relative to it.
nested() {
  in=$(number "$1")
  list=$(btrfs subvolume list -o "$1")
  printf '%s\n' "$list" | sed -n 's/^ID [0-9]* gen [0-9]* top level [0-9]* path //p' | sed 's/^<FS_TREE>\///' | while IFS= read -r n; do
    case $n in "$1"/*) ;; *) continue ;; esac
    is "$n" || continue
    [ "$(number "$(dirname -- "$n")")" = "$in" ] || continue
    printf '%s\n' "${n#"$1"/}"
  done
}
# fit PATH SEEN [SNAPSHOT]: that it can be replaced: what is nested in it, and in the snapshot, can be taken along.
fit() {
  is "$1" || die "$1 is no subvolume at the top level (any more)"
  case $(says Flags "$1") in *readonly*) die "the subvolume $1 is read-only" ;; esac
  seen=${2%/}
  all=$(nested "$1")
  printf '%s\n' "$all" | while IFS= read -r n; do
    [ -n "$n" ] || continue
    [ -z "${3-}" ] || [ "$(inode "$3/$n")" = 2 ] || continue
    case $(says Flags "$1/$n") in *readonly*) die "the subvolume $1/$n is nested in $1 and read-only, so that it cannot be taken along when that is replaced: move it elsewhere" ;; esac
    ! findmnt -n -M "$seen/$n" >/dev/null || die "the subvolume $1/$n is nested in $1, and something is mounted on it at $seen/$n, so that it cannot be taken along when that is replaced: unmount it, with its line in /etc/fstab"
    for x in /etc/passwd /etc/ssh "${HOME:-/root}" ${SUDO_USER:+"/home/$SUDO_USER"} $(command -v sh mv btrfs systemctl systemd-run sshd) /usr/lib/systemd /lib/systemd; do
      [ -e "$x" ] || continue
      case $(realpath -- "$x")/ in "$seen/$n"/*) die "the subvolume $1/$n is nested in $1 and holds $x, without which the host cannot be restarted once that is replaced: mount it by a line in /etc/fstab, from where it is not nested" ;; esac
    done
  done
}
# drop DIRECTORY: deletes it with the subvolumes in it.
drop() {
  [ -d "$1" ] || return 0
  for s in "$1"/*; do
    if is "$s"; then btrfs subvolume delete -- "$s" >/dev/null; fi
  done
  rmdir -- "$1"
}
`

// each calls a shell function for every subvolume held, with its path, its name and where it is seen.
func (t topLevel) each(format string) string {
	var s strings.Builder
	for _, v := range t.held {
		s.WriteString(t.one(v, format))
	}
	return s.String()
}

// one fills in a subvolume's path (P), its snapshot's name (N), where it is seen (S), and, for one that is nested in another that is
// held, that one's name (O) and the place in it (I).
func (t topLevel) one(v Subvolume, format string) string {
	name, place := "", ""
	if around := t.around(v.Path); around.Path != "" {
		name, place = around.name(), strings.TrimPrefix(v.Path, around.Path+"/")
	}
	return fmt.Sprintf("P=%s N=%s S=%s O=%s I=%s\n%s\n", remote.Quote(v.Path), remote.Quote(v.name()), remote.Quote(v.Seen), remote.Quote(name), remote.Quote(place), format)
}

// around is the subvolume held in which another lies, the innermost of them.
func (t topLevel) around(nested string) (around Subvolume) {
	for _, o := range t.held {
		if o.Path != nested && below(nested, o.Path) && len(o.Path) > len(around.Path) {
			around = o
		}
	}
	return around
}

// inside are the subvolumes directly in one that is held.
func (t topLevel) inside(v Subvolume) []string {
	var out []string
	for _, h := range t.held {
		out = append(out, h.Path)
	}
	out = slices.DeleteFunc(append(out, t.nested...), func(p string) bool { return v.Path == "" || t.around(p).Path != v.Path })
	slices.Sort(out)
	return out
}

// names are the method's directories as the scripts know them: before, returning, replacing and replaced.
func (b btrfs) names() string {
	return fmt.Sprintf("B=%s W=%s R=%s K=%s\n", remote.Quote(b.before()), remote.Quote(b.returning()), remote.Quote(b.replacing()), remote.Quote(b.replaced()))
}

func (t topLevel) paths() string {
	var out []string
	for _, v := range t.held {
		out = append(out, v.Path)
	}
	return strings.Join(out, ", ")
}

// some shortens a list for a line.
func some(all []string) string {
	if len(all) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:5], ", "), len(all)-5)
	}
	return strings.Join(all, ", ")
}

// create makes all snapshots in a directory that gets its name when they are complete, so that those of an attempt that
// was cut off are not mixed with later ones.
func (b btrfs) create(t topLevel) string {
	return t.at(b.names() + `
[ ! -e "$B" ] || die "there is a directory $B at the top level already, of an earlier run: delete the subvolumes in it (btrfs subvolume delete) when they are not needed any more"
` + t.each(`fit "$P" "$S"`) + `
drop "$B.part"
mkdir -- "$B.part"
sync
` + t.each(`btrfs subvolume snapshot -r -- "$P" "$B.part/$N" >/dev/null`) + `
btrfs filesystem sync . >/dev/null
mv -T -- "$B.part" "$B"
btrfs filesystem sync . >/dev/null`)
}

// Take makes the snapshots on all file systems in one operation, all or none: a return to some of today and some of yesterday
// would be to no state that the host ever had.
func (b btrfs) Take() []Operation {
	levels := b.topLevels()
	if len(levels) == 0 {
		return nil
	}
	var commands, summaries []string
	for _, t := range levels {
		summary := fmt.Sprintf("of the subvolumes %s, in %s at the top level of the btrfs file system %s", t.paths(), b.before(), t.system)
		if len(t.nested) > 0 {
			summary += fmt.Sprintf("; they do not hold the nested %s", some(t.nested))
		}
		byHand := []string{"mkdir " + remote.Quote(b.before())}
		for _, v := range t.held {
			byHand = append(byHand, "btrfs subvolume snapshot -r "+remote.Quote(v.Path, b.before()+"/"+v.name()))
		}
		commands, summaries = append(commands, t.byHand(byHand...)), append(summaries, summary)
	}
	there := func(ctx context.Context) (some []topLevel, err error) {
		for _, t := range levels {
			said, err := b.output(ctx, "looking for the snapshots", t.at(b.names()+`if [ -d "$B" ]; then echo there; fi`))
			if err != nil {
				return nil, err
			}
			if said == "there" {
				some = append(some, t)
			}
		}
		return some, nil
	}
	out := []Operation{{
		Name: "snapshot", Place: OnHost, Command: strings.Join(commands, " && "),
		Summary: "Take read-only snapshots " + strings.Join(summaries, "; "),
		Run: func(ctx context.Context) error {
			// What preflight did not find is of an attempt that has not come to the others.
			some, err := there(ctx)
			if err != nil {
				return err
			}
			if len(some) < len(levels) {
				for _, t := range some {
					if err := b.run(ctx, "removing the snapshots of an attempt that was cut off", t.at(b.names()+`drop "$B"`)); err != nil {
						return err
					}
				}
			}
			for _, t := range levels {
				if err := b.run(ctx, "taking snapshots of the subvolumes "+t.paths(), b.create(t)); err != nil {
					return err
				}
			}
			return nil
		},
		Done: func(ctx context.Context) (bool, error) {
			some, err := there(ctx)
			return len(some) == len(levels), err
		},
	}}
	if t, v, inside, ok := b.proof(); ok {
		file := b.before() + "/" + v.name() + inside
		out = append(out, Operation{
			Name: "open " + t.system, Place: OnHost,
			Summary: fmt.Sprintf("Open the snapshot of %s and find %s in it", v.Path, b.Proof),
			Command: t.byHand("ls -d " + remote.Quote(file)),
			Run: func(ctx context.Context) error {
				return b.run(ctx, "opening the snapshot of "+v.Path, t.at(b.names()+`
[ -d "$B" ] || die "there is no directory $B at the top level"
`+t.each(`is "$B/$N" || die "there is no snapshot $B/$N"
case $(says Flags "$B/$N") in *readonly*) ;; *) die "the snapshot $B/$N is not read-only" ;; esac`)+
					fmt.Sprintf("test -e %s || die %s", remote.Quote(file), remote.Quote("it does not hold "+b.Proof))))
			},
		})
	}
	return out
}

// proof is the subvolume that should hold the proof, and where in it.
func (b btrfs) proof() (t topLevel, v Subvolume, inside string, ok bool) {
	for _, level := range b.topLevels() {
		for _, held := range level.held {
			if below(b.Proof, held.Seen) && len(held.Seen) >= len(v.Seen) {
				t, v, ok = level, held, true
			}
		}
	}
	return t, v, "/" + strings.TrimPrefix(strings.TrimPrefix(path.Clean(b.Proof), strings.TrimSuffix(v.Seen, "/")), "/"), ok
}

// replaceable finds the subvolume that a snapshot was taken of, and that it can be replaced. Where it is nested in another that
// is held, it may be gone: deleting it as a directory, as an uninstall does, deletes a subvolume, and its place is in that
// one's snapshot.
const replaceable = `if is "$P" || [ -z "$O" ] || [ "$(inode "$B/$O/$I")" != 2 ]; then
  fit "$P" "$S" "$B/$N"
  if [ "$(says 'Parent UUID' "$B/$N")" != "$(says UUID "$P")" ] && [ "$(says 'Parent UUID' "$P")" != "$(says UUID "$B/$N")" ]; then
    die "the subvolume $P is another than the one that the snapshot $B/$N was taken of"
  fi
fi`

// lookSubvolume finds a snapshot whole, and the subvolume that it is of replaceable.
const lookSubvolume = `is "$B/$N" || die "there is no snapshot $B/$N at the top level"
case $(says Flags "$B/$N") in *readonly*) ;; *) die "the snapshot $B/$N is not read-only any more: what it holds cannot be trusted" ;; esac
if [ ! -e "$R" ]; then # or else a return is unfinished, which the next one finishes first
` + replaceable + `
fi`

func (b btrfs) look(ctx context.Context) error {
	if len(b.topLevels()) == 0 {
		return nothing(plans.SnapshotBtrfs)
	}
	for _, t := range b.topLevels() {
		err := b.run(ctx, "looking at the snapshots of the subvolumes "+t.paths(), t.at(b.names()+`[ -d "$B" ] || die "there is no directory $B with snapshots at the top level of the btrfs file system"
`+t.each(lookSubvolume)))
		if err != nil {
			return fmt.Errorf("%w: %s", err, otherwise)
		}
	}
	return nil
}

// swapAid puts the prepared snapshot in a subvolume's place. It can be cut off anywhere and repeated: which of the
// three is where tells how far it has come. What is nested goes along where the snapshot has a place for it, by a rename over
// that place; what was made after the snapshot was taken stays in what is replaced.
const swapAid = `swap() {
  if is "$W/$2"; then
    mkdir -p -- "$R"
    if [ ! -e "$R/$2" ] && is "$1"; then mv -T -- "$1" "$R/$2"; fi
    # Nothing, or the place for it in the one around it, which took its own place before.
    [ ! -e "$1" ] || [ "$(inode "$1")" = 2 ] || die "there is something else than a subvolume at $1, or its other half is in $R/$2: nothing is overwritten; see which is wanted"
    mv -T -- "$W/$2" "$1"
  fi
  is "$1" || die "there is no subvolume $1"
  if [ ! -e "$R/$2" ]; then
    [ "$(says 'Parent UUID' "$1")" = "$(says UUID "$B/$2")" ] || die "nothing was prepared to take the place of $1: there is no $W/$2"
    return 0
  fi
  default=$(btrfs subvolume get-default . | sed 's/^ID \([0-9]*\).*/\1/')
  if [ "$default" = "$(number "$R/$2")" ]; then btrfs subvolume set-default "$(number "$1")" .; fi
  all=$(nested "$R/$2")
  printf '%s\n' "$all" | while IFS= read -r n; do
    if [ -n "$n" ] && [ "$(inode "$1/$n")" = 2 ]; then mv -T -- "$R/$2/$n" "$1/$n"; fi
  done
}
settle() {
  [ ! -d "$W" ] || rmdir -- "$W"
  if [ -d "$R" ]; then
    to=$K i=1
    while [ -e "$to" ]; do i=$((i+1)); to=$K-$i; done
    mv -T -- "$R" "$to"
  fi
  btrfs filesystem sync . >/dev/null
}
`

// prepare makes the writable snapshots. What an earlier return left unfinished is finished first.
func (b btrfs) prepare(t topLevel) string {
	return `if [ -d "$R" ]; then
` + t.each(`if [ -e "$R/$N" ]; then swap "$P" "$N"; fi`) + `
drop "$W"
settle
fi
` + t.each(replaceable) + `
drop "$W.part"
drop "$W"
mkdir -- "$W.part"
` + t.each(`btrfs subvolume snapshot -- "$B/$N" "$W.part/$N" >/dev/null`) + `
btrfs filesystem sync . >/dev/null
mv -T -- "$W.part" "$W"
btrfs filesystem sync . >/dev/null
`
}

// swap puts what was prepared in the place of all subvolumes. Where the host was started anew since some of that was done, it has
// run on old and new together: what is in place already is prepared once more, so that all are as the snapshots are.
func (b btrfs) swap(ctx context.Context) error {
	for _, t := range b.topLevels() {
		again := fmt.Sprintf("if [ ! -e %s ] && [ -d \"$R\" ]; then\n%sfi", restartWanted, b.prepare(t))
		if err := b.run(ctx, "looking how far the subvolumes "+t.paths()+" are replaced", t.at(b.names()+swapAid+again)); err != nil {
			return err
		}
	}
	for _, t := range b.topLevels() {
		err := b.run(ctx, "putting snapshots in the place of the subvolumes "+t.paths(), t.at(b.names()+swapAid+restartMark+"\n"+t.each(`swap "$P" "$N"`)+"btrfs filesystem sync . >/dev/null"))
		if err != nil {
			return err
		}
	}
	return nil
}

func (b btrfs) Return() []Operation {
	look := Operation{Name: "look", Place: OnHost, Summary: "See that every snapshot is there and can take its subvolume's place", Run: b.look}
	out := []Operation{look}
	var kept []Operation
	var where, paths, swaps []string
	for _, t := range b.topLevels() {
		if out[0].Command == "" {
			out[0].Command = t.byHand("btrfs subvolume list -r -q -u .")
		}
		writable, swap := []string{"mkdir " + remote.Quote(b.returning())}, []string{"mkdir " + remote.Quote(b.replacing())}
		for _, v := range t.held {
			writable = append(writable, "btrfs subvolume snapshot "+remote.Quote(b.before()+"/"+v.name(), b.returning()+"/"+v.name()))
			swap = append(swap, "mv -T "+remote.Quote(v.Path, b.replacing()+"/"+v.name()), "mv -T "+remote.Quote(b.returning()+"/"+v.name(), v.Path))
			for _, n := range t.inside(v) {
				swap = append(swap, "mv -T "+remote.Quote(b.replacing()+"/"+v.name()+strings.TrimPrefix(n, v.Path), n))
			}
			// Only the host knows whether it is what is mounted when nothing is named.
			swap = append(swap, fmt.Sprintf(`case "$(btrfs subvolume get-default .)" in *" path "%s) btrfs subvolume set-default %s ;; esac`, remote.Quote(b.replacing()+"/"+v.name()), remote.Quote(v.Path)))
		}
		out = append(out, Operation{
			Name: "prepare " + t.system, Place: OnHost, Command: t.byHand(writable...),
			Summary: "Make writable snapshots of the snapshots, which stay as they are",
			Run: func(ctx context.Context) error {
				return b.run(ctx, "making writable snapshots of the subvolumes "+t.paths(), t.at(b.names()+swapAid+b.prepare(t)))
			},
		})
		kept = append(kept, Operation{
			Name: "keep " + t.system, Place: OnHost, Command: t.byHand("rmdir "+remote.Quote(b.returning()), "mv -T "+remote.Quote(b.replacing(), b.replaced())),
			Summary: fmt.Sprintf("Keep what was replaced as %s, or with the next number at its end", b.replaced()),
			Run: func(ctx context.Context) error {
				return b.run(ctx, "keeping what was replaced", t.at(b.names()+swapAid+"settle"))
			},
		})
		where, paths, swaps = append(where, t.system), append(paths, t.paths()), append(swaps, t.byHand(swap...))
	}
	// One operation, so that it is done for all of them without a start of the host between.
	out = append(out, Operation{
		Name: "swap", Place: OnHost, Command: strings.Join(swaps, " && "), Run: b.swap,
		Summary: fmt.Sprintf("Put writable snapshots in the place of the subvolumes %s, from the host's next start; those nested in them go along", strings.Join(paths, ", ")),
	})
	return slices.Concat(out, kept, []Operation{b.restart(fmt.Sprintf("it mounts what took the subvolumes' place; what was replaced stays in %s* at the top level of %s until you delete it", b.replaced(), strings.Join(where, ", ")))})
}

// Pending are the subvolumes that are not what is mounted any more. One that is seen only in another goes with that one.
func (b btrfs) Pending(ctx context.Context) (string, error) {
	var waiting []string
	for _, t := range b.topLevels() {
		out, err := b.output(ctx, "looking which subvolumes are in use", t.at(b.names()+t.each(`if [ -e "$R" ] || { is "$P" && is "$S" && [ "$(number "$P")" != "$(number "$S")" ]; }; then printf '%s\n' "$P"; fi`)))
		if err != nil {
			return "", err
		}
		if out != "" {
			waiting = append(waiting, strings.Split(out, "\n")...)
		}
	}
	if len(waiting) == 0 {
		return "", nil
	}
	return fmt.Sprintf("snapshots have begun to take the place of the subvolumes %s; the host's next start mounts them, and would then undo whatever was done until then", strings.Join(waiting, ", ")), nil
}

func (b btrfs) Remove() []Operation {
	var out []Operation
	for _, t := range b.topLevels() {
		commands := []string{}
		for _, v := range t.held {
			commands = append(commands, "btrfs subvolume delete "+remote.Quote(b.before()+"/"+v.name()))
		}
		out = append(out, Operation{
			Name: "remove " + t.system, Place: OnHost, Command: t.byHand(append(commands, "rmdir "+remote.Quote(b.before()))...),
			Summary: fmt.Sprintf("Remove the snapshots of the subvolumes %s", t.paths()),
			Run: func(ctx context.Context) error {
				return b.run(ctx, "removing the snapshots of the subvolumes "+t.paths(), t.at(b.names()+`
[ ! -e "$R" ] || die "a return to them was begun and is not complete: complete it, then repeat the command"
drop "$W.part"
drop "$W"
drop "$B.part"
drop "$B"
btrfs filesystem sync . >/dev/null`))
			},
		})
	}
	return out
}

// Subvolume of a btrfs file system that holds something a rebuild touches, lies in one that does, or was made here.
type Subvolume struct {
	System string `json:"system"` // as mount takes it: UUID=… or a device
	Path   string `json:"path"`   // from the top level; "" for the top level itself
	ID     int64  `json:"id"`
	// Seen is where its root is seen on the host.
	Seen string `json:"seen,omitempty"`
	// Paths are those that it holds of what a rebuild touches, Below tells that it lies below one.
	Paths []string `json:"paths,omitempty"`
	Below bool     `json:"below,omitempty"`
	// ByID names what mounts it by its number.
	ByID []string `json:"byID,omitempty"`
	// MountedUpon tells that it is mounted where it is seen anyway.
	MountedUpon bool `json:"mountedUpon,omitempty"`
}

// What of btrfs-progs stands in the way.
const (
	missingBtrfs = "btrfs-progs"
	brokenBtrfs  = "btrfs"
)

// subvolumeReadings prints, for the arguments, a line for every path with the number of its subvolume and its real path,
// and for every file system what subvolumes it has; then what mounts subvolumes by their number.
const subvolumeReadings = `
command -v btrfs >/dev/null || { echo missing; exit 0; }
at() {
  p=$1 rest=
  while [ ! -e "$p" ]; do rest=/${p##*/}$rest; p=$(dirname -- "$p"); done
  real=$(realpath -- "$p")
  printf 'path %%s %%s\n' "$(btrfs inspect-internal rootid "$p")" "${real%%/}$rest"
}
system() { printf 'system %%s\n' "$1"; btrfs subvolume list -a "$2"; }
%s
grep -Hs subvolid= /etc/fstab /etc/systemd/system/*.mount /proc/cmdline | sed 's/^/mounts /'
exit 0`

// readSubvolumes is the script for what lies on btrfs; "" for nothing.
func (s Storage) readSubvolumes() string {
	var calls strings.Builder
	var systems []string
	for _, fs := range s.FileSystems {
		if fs.Type != "btrfs" {
			continue
		}
		for _, p := range fs.Paths {
			fmt.Fprintf(&calls, "at %s\n", remote.Quote(p))
		}
		if !slices.Contains(systems, fs.system()) {
			systems = append(systems, fs.system())
			fmt.Fprintf(&calls, "system %s\n", remote.Quote(fs.system(), fs.Target))
		}
	}
	if calls.Len() == 0 {
		return ""
	}
	return fmt.Sprintf(subvolumeReadings, calls.String())
}

// system is how mount names the file system, over restarts where it has a UUID.
func (fs FileSystem) system() string {
	if fs.UUID != "" {
		return "UUID=" + fs.UUID
	}
	device, _, _ := strings.Cut(fs.Source, "[")
	return device
}

// addSubvolumes notes what readSubvolumes' script prints.
func (s *Storage) addSubvolumes(out string) {
	if out == "missing" {
		s.Missing = append(s.Missing, missingBtrfs)
		return
	}
	if !s.parseSubvolumes(out) {
		s.Subvolumes = nil
		s.Missing = append(s.Missing, brokenBtrfs)
	}
}

// parseSubvolumes is false for what cannot be right.
func (s *Storage) parseSubvolumes(out string) bool {
	type touched struct {
		system, path, at string // the path, and where it is from the top level
		id               int64
	}
	var paths []touched
	for _, fs := range s.FileSystems {
		if fs.Type == "btrfs" {
			for _, p := range fs.Paths {
				paths = append(paths, touched{system: fs.system(), path: p})
			}
		}
	}
	var all []Subvolume
	inside := map[string]int64{} // of a subvolume, by system and number, the number of the one around it
	key := func(system string, id int64) string { return fmt.Sprintf("%s %d", system, id) }
	var mounts []string
	system, n := "", 0
	for line := range strings.SplitSeq(out, "\n") {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "path":
			id, real, _ := strings.Cut(rest, " ")
			number, err := strconv.ParseInt(id, 10, 64)
			if err != nil || n == len(paths) {
				return false
			}
			paths[n].id, paths[n].at = number, s.fromTop(paths[n].system, real)
			n++
		case "system":
			system = rest
			all = append(all, Subvolume{System: system, ID: 5})
		case "ID":
			var id, gen, in int64
			if _, err := fmt.Sscanf(line, "ID %d gen %d top level %d path ", &id, &gen, &in); err != nil || system == "" {
				return false
			}
			_, name, _ := strings.Cut(line, " path ")
			all = append(all, Subvolume{System: system, ID: id, Path: strings.TrimPrefix(name, "<FS_TREE>/")})
			inside[key(system, id)] = in
		case "mounts":
			if _, what, _ := strings.Cut(rest, ":"); !strings.HasPrefix(strings.TrimSpace(what), "#") {
				mounts = append(mounts, rest)
			}
		}
	}
	if n != len(paths) {
		return false
	}
	holds := map[string]bool{}
	for i, v := range all {
		for _, p := range paths {
			if p.system == v.System && p.id == v.ID {
				all[i].Paths = append(all[i].Paths, p.path)
				holds[key(v.System, v.ID)] = true
			}
		}
		for _, m := range mounts {
			all[i].ByID = append(all[i].ByID, mountedByID(m, v)...)
		}
	}
	if slices.ContainsFunc(paths, func(p touched) bool { return !holds[key(p.system, p.id)] }) {
		return false
	}
	for _, v := range all {
		v.Seen, v.MountedUpon = s.seen(v)
		nested := holds[key(v.System, inside[key(v.System, v.ID)])] && v.ID != 5
		for _, p := range paths {
			v.Below = v.Below || len(v.Paths) == 0 && nested && p.system == v.System && below("/"+v.Path, "/"+p.at)
		}
		if len(v.Paths) > 0 || nested || strings.HasPrefix(v.Path, ours) {
			s.Subvolumes = append(s.Subvolumes, v)
		}
	}
	return true
}

var subvolid = regexp.MustCompile(`\bsubvolid=(0[xX][0-9a-fA-F]+|[0-9]+)`)

// mountedByID is the file that a line is of, where the line mounts the subvolume by its number. Numbers are those of one file
// system: a line that names another's UUID is of no concern.
func mountedByID(line string, v Subvolume) []string {
	if strings.Contains(line, "UUID=") && strings.HasPrefix(v.System, "UUID=") && !strings.Contains(line, v.System) {
		return nil
	}
	for _, m := range subvolid.FindAllStringSubmatch(line, -1) {
		if id, err := strconv.ParseInt(m[1], 0, 64); err == nil && id == v.ID {
			file, _, _ := strings.Cut(line, ":")
			return []string{file}
		}
	}
	return nil
}

// fromTop is where a path lies from the top level of its btrfs file system.
func (s Storage) fromTop(system, p string) string {
	var on FileSystem
	for _, fs := range s.FileSystems {
		if fs.Type == "btrfs" && fs.system() == system && below(p, fs.Target) && len(fs.Target) > len(on.Target) {
			on = fs
		}
	}
	return strings.Trim(path.Join(on.Root, strings.TrimPrefix(p, strings.TrimSuffix(on.Target, "/"))), "/")
}

// seen is where a subvolume's root is seen, "" for nowhere; upon tells that it is mounted where it is seen in the one around
// it.
func (s Storage) seen(v Subvolume) (at string, upon bool) {
	var on FileSystem
	for _, fs := range s.FileSystems {
		if fs.Type == "btrfs" && fs.system() == v.System && below("/"+v.Path, fs.Root) && len(fs.Root) > len(on.Root) {
			on = fs
		}
	}
	if on.Target == "" {
		return "", false
	}
	at = path.Join(on.Target, strings.TrimPrefix("/"+v.Path, strings.TrimSuffix(on.Root, "/")))
	return at, at == on.Target && at != "/" && v.Path != "" && s.fromTop(v.System, path.Dir(at)) == path.Dir(v.Path) && path.Base(at) == path.Base(v.Path) && s.under(v.System, path.Dir(at))
}

// under tells whether a path lies on the file system.
func (s Storage) under(system, p string) bool {
	var on FileSystem
	for _, fs := range s.FileSystems {
		if below(p, fs.Target) && len(fs.Target) > len(on.Target) {
			on = fs
		}
	}
	return on.Type == "btrfs" && on.system() == system
}
