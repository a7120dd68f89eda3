package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
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

// look is shell: what is at the volume's place.
const look = `
p=%s
if [ ! -e "$p" ] && [ ! -L "$p" ]; then echo missing
elif [ -L "$p" ] || [ ! -d "$p" ]; then echo other
elif [ -n "$(find "$p" -mindepth 1 -maxdepth 1 -printf x -quit)" ]; then echo full
elif [ "$(stat -c %%d -- "$p")" != "$(stat -c %%d -- "$p/..")" ]; then echo mount
else echo empty
fi
`

// Volume brings a volume back to its path. It is extracted beside the path,
// proven equal to what was taken — names, metadata, contents, hard links — and
// then renamed into place. An empty directory there is replaced; one that
// equals the backup is left as it is, and the restore is done; anything else is an *OccupiedError.
func Volume(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, r *progress.Reporter) error {
	fail := func(doing string, err error) error {
		return fmt.Errorf("host %s: volume %s (%s): %s: %w", host.Name(), vol.ID, vol.Path, doing, err)
	}
	found, err := host.Output(ctx, fmt.Sprintf(look, remote.Quote(vol.Path)))
	if err != nil {
		return fail("looking what is there", err)
	}
	switch found {
	case "missing", "empty":
	case "full":
		diffs, err := compare(ctx, host, vol, set, vol.Path, "")
		if err != nil {
			return err
		}
		if diffs.LostTotal > 0 {
			return &OccupiedError{Host: host.Name(), Volume: vol.ID, Path: vol.Path, Differences: diffs}
		}
		return mark(ctx, host, vol, set)
	case "mount":
		return fail("restoring it", errors.New("the directory is the mount point of an empty file system, into which nothing can be renamed; unmount it, run again, and copy the restored directory onto it"))
	default:
		return fail("restoring it", errors.New("something that is not a directory is there; move it aside, then run again"))
	}
	if err := prepare(ctx, host, vol, set); err != nil {
		return fail("preparing", err)
	}
	dir := staging(vol)
	if err := extract(ctx, host, vol.StateDir(), dir, set, vol.Full(), vol.Label(), r); err != nil {
		return fail("extracting the full pass", err)
	}
	if err := prune(ctx, host, vol, set, dir); err != nil {
		return fail("removing what was gone when the changes were taken", err)
	}
	if err := extract(ctx, host, vol.StateDir(), dir, set, vol.Delta(), "changes of "+vol.Label(), r); err != nil {
		return fail("extracting the changes", err)
	}
	task := r.Wait("proving " + vol.Label())
	defer task.Done()
	diffs, err := compare(ctx, host, vol, set, dir, "")
	if err != nil {
		return err
	}
	if diffs.LostTotal > 0 {
		return &UnequalError{Host: host.Name(), Volume: vol.ID, Path: dir, Differences: diffs}
	}
	err = host.Run(ctx, `set -eu
dir=`+remote.Quote(dir)+` path=`+remote.Quote(vol.Path)+`
sync -f "$dir"
mv -T -- "$dir" "$path"
sync "${path%/*}/"
`)
	if err != nil {
		return fail("putting it in place", err)
	}
	return mark(ctx, host, vol, set)
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
[ "$free" -ge 1024 ] || echo "the disk is full: $free KiB are free in" ` + remote.Quote(dir) + ` >&2
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
	found, err := host.Output(ctx, fmt.Sprintf(look, remote.Quote(vol.Path)))
	if err != nil {
		return false, fmt.Errorf("host %s: volume %s (%s): looking what is there: %w", host.Name(), vol.ID, vol.Path, err)
	}
	return found != "missing" && found != "other", nil
}
