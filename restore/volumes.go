package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// OccupiedError says that something else is where a volume should be restored to.
type OccupiedError struct {
	Host, Volume, Path string
	Differences        Differences
}

func (e *OccupiedError) Error() string {
	first := ""
	for _, d := range append(e.Differences.Lost, e.Differences.Written...) {
		first = ", for one " + d.String()
		break
	}
	return fmt.Sprintf("host %s: volume %s: %s is not empty and differs from the backup in %d entries%s; nothing was changed there: move it aside, then run again",
		e.Host, e.Volume, e.Path, e.Differences.LostTotal+e.Differences.WrittenTotal, first)
}

// UnequalError says that what was extracted is not what was taken.
type UnequalError struct {
	Host, Volume, Path string
	Differences        Differences
}

func (e *UnequalError) Error() string {
	var words []string
	for _, d := range e.Differences.Lost[:min(3, len(e.Differences.Lost))] {
		words = append(words, d.String())
	}
	return fmt.Sprintf("host %s: volume %s: what was extracted to %s differs from what was taken in %d entries: %s; it is left there to look at and was not put in place",
		e.Host, e.Volume, e.Path, e.Differences.LostTotal, strings.Join(words, "; "))
}

func staging(vol backup.VolumeRef) string { return vol.Path + ".migrate-restoring" }

// What can be at a volume's place, as look tells it.
const (
	missing    = "missing"
	empty      = "empty"
	full       = "full"
	emptyMount = "empty mount"
	fullMount  = "full mount"
	link       = "link"
	other      = "other"
)

// look tells what is at the volume's place.
func look(ctx context.Context, host *remote.Host, vol backup.VolumeRef) (string, error) {
	found, err := host.Output(ctx, `p=`+remote.Quote(vol.Path)+`
if [ -L "$p" ]; then echo link
elif [ ! -e "$p" ]; then echo missing
elif [ ! -d "$p" ]; then echo other
else
	if [ -n "$(find "$p" -mindepth 1 -maxdepth 1 -printf x -quit)" ]; then what=full; else what=empty; fi
	# A bind mount may be of the same file system as the directory above it.
	if mountpoint -q -- "$p"; then what="$what mount"; fi
	echo "$what"
fi
`)
	if err != nil {
		return "", fmt.Errorf("host %s: volume %s (%s): looking what is there: %w", host.Name(), vol.ID, vol.Path, err)
	}
	return found, nil
}

// inTheWay is the error for what can be neither replaced nor renamed.
func inTheWay(host *remote.Host, vol backup.VolumeRef, found string) error {
	why := map[string]string{
		emptyMount: "the directory is the mount point of an empty file system, into which nothing can be renamed; unmount it, run again, and copy the restored directory onto it",
		fullMount:  "the directory is the mount point of a file system whose contents differ from the backup, and a mount point cannot be renamed; nothing was changed there: roll back with --volumes present, which leaves it as it is",
		link:       "a symbolic link is there; nothing was changed: move it aside, then run again",
		other:      "something that is not a directory is there; nothing was changed: move it aside, then run again",
	}[found]
	if why == "" {
		why = fmt.Sprintf("unexpected answer %.80q", found)
	}
	return fmt.Errorf("host %s: volume %s (%s): restoring it: %s", host.Name(), vol.ID, vol.Path, why)
}

// Volume brings a volume back to its path. It is extracted beside the path,
// proven equal to what was taken — names, metadata, contents, hard links — and
// then renamed into place. An empty directory there is replaced; one that
// equals the backup is left as it is, and the restore is done; anything else is an *OccupiedError.
func Volume(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, r *progress.Reporter) error {
	found, err := look(ctx, host, vol)
	if err != nil {
		return err
	}
	switch found {
	case missing, empty:
		return bring(ctx, host, vol, set, "", r)
	case full, fullMount:
		diffs, err := compare(ctx, host, vol, set, vol.Path, "")
		if err != nil {
			return err
		}
		if !diffs.Equal() {
			return &OccupiedError{Host: host.Name(), Volume: vol.ID, Path: vol.Path, Differences: diffs}
		}
		return mark(ctx, host, vol, set)
	}
	return inTheWay(host, vol, found)
}

// ReplaceVolume brings a volume back to its path as Volume does, but where that
// refuses, what is there is kept: it is renamed to aside, another path in the
// same directory. Nobody may write to the volume meanwhile.
//
// A directory that equals the backup is left where it is. An aside that exists is never
// touched; the next goes to aside-2, aside-3 and so on. kept lists those that exist
// in the end, the oldest first, whichever attempt made them, so that an aside of
// one's own for each rollback tells what that rollback set aside.
//
// It is repeatable: wherever an earlier call ended, the next one continues or
// finds nothing left to do, for which it reads the volume once on the host. VolumeDone is no question to
// ask before it: that is true from a restore on, whatever was written since.
func ReplaceVolume(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, aside string, r *progress.Reporter) (kept []string, err error) {
	if path.Dir(aside) != path.Dir(vol.Path) || path.Clean(aside) != aside || aside == vol.Path || aside == staging(vol) {
		return nil, fmt.Errorf("host %s: volume %s (%s): it cannot be kept as %q: that must be another path in the same directory", host.Name(), vol.ID, vol.Path, aside)
	}
	found, err := look(ctx, host, vol)
	if err != nil {
		return nil, err
	}
	switch found {
	case missing, empty:
		err = bring(ctx, host, vol, set, "", r)
	case full, fullMount:
		var same bool
		same, err = equal(ctx, host, vol, set, vol.Path)
		switch {
		case err != nil:
		case same:
			err = mark(ctx, host, vol, set)
		case found == fullMount:
			err = inTheWay(host, vol, found)
		default:
			err = bring(ctx, host, vol, set, aside, r)
		}
	default:
		err = inTheWay(host, vol, found)
	}
	if err != nil {
		return nil, err
	}
	out, err := host.Output(ctx, "aside="+remote.Quote(aside)+nextAside+`echo "$n"`)
	if err != nil {
		return nil, fmt.Errorf("host %s: volume %s: looking for what was kept as %s: %w", host.Name(), vol.ID, aside, err)
	}
	next, err := strconv.Atoi(out)
	if err != nil {
		return nil, fmt.Errorf("host %s: volume %s: looking for what was kept as %s: unexpected answer %.80q", host.Name(), vol.ID, aside, out)
	}
	for n := 1; n < next; n++ {
		if n == 1 {
			kept = append(kept, aside)
		} else {
			kept = append(kept, fmt.Sprintf("%s-%d", aside, n))
		}
	}
	return kept, nil
}

// nextAside is shell: $next is the first path for $aside that is not taken, and $n its number.
const nextAside = `
n=1 next=$aside
while [ -e "$next" ] || [ -L "$next" ]; do n=$((n + 1)); next=$aside-$n; done
`

// bring extracts the volume beside its path, proves it, and puts it in place. What is there is renamed to
// aside; without one there is nothing, or an empty directory.
func bring(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, aside string, r *progress.Reporter) error {
	fail := func(doing string, err error) error {
		return fmt.Errorf("host %s: volume %s (%s): %s: %w", host.Name(), vol.ID, vol.Path, doing, err)
	}
	if err := prepare(ctx, host, vol, set); err != nil {
		return fail("preparing", err)
	}
	dir := staging(vol)
	if err := unpack(ctx, host, vol, set, dir, r); err != nil {
		var exit *remote.ExitError
		if errors.As(err, &exit) {
			// What is half there would keep a full disk full, for others, too. If this
			// fails, the next attempt does it.
			_ = host.Run(ctx, "rm -rf --one-file-system -- "+remote.Quote(dir))
		}
		return fail("extracting it", err)
	}
	task := r.Wait("proving " + vol.Label())
	defer task.Done()
	diffs, err := compare(ctx, host, vol, set, dir, "")
	if err != nil {
		return err
	}
	if !diffs.Equal() {
		return &UnequalError{Host: host.Name(), Volume: vol.ID, Path: dir, Differences: diffs}
	}
	setAside := ""
	if aside != "" {
		setAside = `mv -T -- "$path" "$next"` + "\n"
	}
	// While the old is aside and the new not yet in place, no signal ends the script.
	err = host.Run(ctx, `set -eu
dir=`+remote.Quote(dir)+` path=`+remote.Quote(vol.Path)+` aside=`+remote.Quote(aside)+`
cd -- "$dir"
sync -f .
`+nextAside+`trap '' HUP INT TERM PIPE
# A script that a lost connection left running finds the directory of its successor here, or none.
[ . -ef "$dir" ] || { echo "$dir is not what was proven; run again" >&2; exit 1; }
`+setAside+`mv -T -- "$dir" "$path"
sync "${path%/*}/"
`)
	if err != nil {
		return fail("putting it in place", err)
	}
	return mark(ctx, host, vol, set)
}

// unpack makes the staging directory what the volume was.
func unpack(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir string, r *progress.Reporter) error {
	if err := extract(ctx, host, vol.StateDir(), dir, set, vol.Full(), vol.Label(), r); err != nil {
		return fmt.Errorf("the full pass: %w", err)
	}
	if err := prune(ctx, host, vol, set, dir); err != nil {
		return fmt.Errorf("removing what was gone when the changes were taken: %w", err)
	}
	if err := extract(ctx, host, vol.StateDir(), dir, set, vol.Delta(), "changes of "+vol.Label(), r); err != nil {
		return fmt.Errorf("the changes: %w", err)
	}
	return nil
}

// prepare makes the empty staging directory, and the directory that it is in
// as that was when the volume was taken.
func prepare(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set) error {
	idx, ok := set.Artifact(vol.Index())
	if !ok {
		return &backup.NotFoundError{Dir: set.Dir(), Name: vol.Index()}
	}
	var mode, uid, gid string
	if n, err := fmt.Sscan(idx.Meta[backup.MetaParent], &mode, &uid, &gid); n != 3 {
		return fmt.Errorf("reading the mode of the directory above: %w", err)
	}
	return host.Run(ctx, `set -eu
umask 022
dir=`+remote.Quote(staging(vol))+` above=`+remote.Quote(path.Dir(vol.Path))+`
if [ ! -d "$above" ]; then
	mkdir -p -- "$above"
	chown `+remote.Quote(uid+":"+gid)+` -- "$above"
	chmod `+remote.Quote(mode)+` -- "$above"
fi
rm -rf --one-file-system -- "$dir"
mkdir -m 700 -- "$dir"
`)
}

const tarExtract = `tar --extract --file=- --same-owner --numeric-owner --preserve-permissions --acls --xattrs --xattrs-include='*' --delay-directory-restore --warning=no-timestamp`

// extract streams an archive of the set into a directory of the host. tar
// reports an attribute that it could not set without failing, so that anything
// it says counts as a failure.
func extract(ctx context.Context, host *remote.Host, state, dir string, set *backup.Set, name, label string, r *progress.Reporter, args ...string) error {
	content, unpack, err := open(ctx, host, set, name)
	if err != nil {
		return err
	}
	defer content.Close()
	a, _ := set.Artifact(name)
	task := r.Bytes(label, a.ContentSize)
	defer task.Done()
	body := `umask 022
stage unpack ` + unpack + ` | stage tar ` + tarExtract + ` --directory=` + remote.Quote(dir) + ` ` + remote.Quote(args...) + ` 2>"$run/err"
bad=$(failed unpack tar)
if [ -z "$bad" ] && [ ! -s "$run/err" ]; then exit 0; fi
# tar does not always say why it could not write.
free=$(df -Pk -- ` + remote.Quote(dir) + ` | awk 'END { print $4 }')
[ "$free" -ge 1024 ] || echo "the disk is full: $free KiB are free in" ` + remote.Quote(dir) + `"; make room there, then run again" >&2
echo "extracting failed:$bad" >&2
head -c 2000 "$run/err" >&2
exit 1
`
	return host.Run(ctx, index.Script(state, "extract", body), remote.Stdin(io.TeeReader(content, counter{task})))
}

type counter struct{ task *progress.Task }

func (c counter) Write(p []byte) (int, error) {
	c.task.Add(int64(len(p)))
	return len(p), nil
}

// open opens an artifact in the form that the host can unpack, and the command for it.
func open(ctx context.Context, host *remote.Host, set *backup.Set, name string) (io.ReadCloser, string, error) {
	a, ok := set.Artifact(name)
	if !ok {
		return nil, "", &backup.NotFoundError{Dir: set.Dir(), Name: name}
	}
	unpack := map[backup.Codec]string{backup.None: "cat", backup.Gzip: "gzip -dc", backup.Zstd: "zstd -q -dc"}[a.Codec]
	if a.Codec == backup.Zstd {
		if _, err := host.Output(ctx, "command -v zstd"); err != nil {
			var exit *remote.ExitError
			if !errors.As(err, &exit) {
				return nil, "", err
			}
			content, err := set.Reader(name)
			return content, "cat", err
		}
	}
	content, _, err := set.Content(name)
	return content, unpack, err
}

// prune removes what the full pass has and the final list has not, or has as
// something else.
func prune(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir string) error {
	list, err := set.Reader(vol.Index())
	if err != nil {
		return err
	}
	defer list.Close()
	return host.Run(ctx, index.Script(vol.StateDir(), "prune", `
stage cut sed -z 's|//\(.\) .*|//\1|' | stage order to_order >"$run/want"
cd -- `+remote.Quote(dir)+`
stage find find . -xdev -printf '%P//%y\0' | stage order2 to_order | stage sort in_order >"$run/have"
stage comm comm -z -23 "$run/have" "$run/want" | stage back from_order | stage path sed -z -e 's|//.*||' -e 's|^|./|' >"$run/gone"
bad=$(failed cut order find order2 sort comm back path)
[ -z "$bad" ] || { echo "comparing failed:$bad" >&2; exit 1; }
xargs -0 -r rm -rf --one-file-system -- <"$run/gone"
`), remote.Stdin(list))
}

// mark records on the host that the volume was restored from this set, and when.
func mark(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set) error {
	idx, _ := set.Artifact(vol.Index())
	if err := host.WriteFile(ctx, markFile(vol), []byte(idx.ContentSHA256+"\n"), 0o600); err != nil {
		return fmt.Errorf("host %s: volume %s: recording that it was restored: %w", host.Name(), vol.ID, err)
	}
	return nil
}

// VolumeDone tells whether the volume was restored from this set and is in its place.
// What was written to it since does not matter.
func VolumeDone(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set) (bool, error) {
	when, err := readMark(ctx, host, vol, set)
	if err != nil || when == "" {
		return false, err
	}
	found, err := look(ctx, host, vol)
	if err != nil {
		return false, err
	}
	return found != missing && found != link && found != other, nil
}
