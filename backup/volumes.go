package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"
	"sync"

	"github.com/hashicorp/go-multierror"

	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// VolumeRef is one volume of a host.
type VolumeRef struct {
	// ID is the PersistentVolume's name.
	ID string
	// Path is its directory on the host.
	Path string
	// Claim is its claim's namespace/name, by which people know it; empty
	// without one.
	Claim string
}

// Label names the volume on a progress display.
func (v VolumeRef) Label() string {
	if v.Claim != "" {
		return "volume " + v.Claim
	}
	return "volume " + v.ID
}

// Full, Delta and Index are the names of a volume's artifacts.
func (v VolumeRef) Full() string  { return "volumes/" + v.ID + "/full" }
func (v VolumeRef) Delta() string { return "volumes/" + v.ID + "/delta" }
func (v VolumeRef) Index() string { return "volumes/" + v.ID + "/index" }

// Artifacts lists the names of all artifacts of a volume that was taken
// completely, for the list of what [Set.Verify] requires.
func (v VolumeRef) Artifacts() []string {
	return []string{v.Full(), ListName(v.Full()), v.Delta(), ListName(v.Delta()), v.Index()}
}

// StateDir is where the host keeps what it knows of the volume between the passes.
func (v VolumeRef) StateDir() string { return path.Join(remote.StateDir, "volumes", v.ID) }

func (v VolumeRef) check() error {
	if !nameRule.MatchString(v.ID) || strings.Contains(v.ID, "/") {
		return fmt.Errorf("volume name %q is not one of a PersistentVolume", v.ID)
	}
	if !path.IsAbs(v.Path) || path.Clean(v.Path) != v.Path || v.Path == "/" {
		return fmt.Errorf("volume %s: path %q must be absolute, clean, and not the root", v.ID, v.Path)
	}
	return nil
}

// Keys of Artifact.Meta.
const (
	MetaPath    = "path"     // of a volume or file on the host
	MetaParent  = "parent"   // mode, uid and gid of the directory that holds it
	metaIndex0  = "index0"   // SHA-256 of the host's list at the full pass
	metaFull    = "full"     // content SHA-256 of the full pass that a delta belongs to
	metaDelta   = "delta"    // content SHA-256 of the delta that an index belongs to
	MetaLinks   = "links"    // index.LinkGroups of the volume
	MetaTaken   = "taken"    // host's clock when the delta was complete, seconds since 1970
	MetaEntries = "entries"  // number of entries or members
	metaHostIdx = "index1"   // SHA-256 of the host's list at the delta
	metaMissing = "missing"  // optional paths that a tree did not have, one a line
	MetaOwner   = "owner"    // mode, uid and gid of a file
	MetaClaim   = "claim"    // namespace/name of a volume's claim, "" without one
	MetaMTime   = "modified" // modification time of a file, seconds since 1970 with a fraction
)

// enter is shell: goes into the volume and refuses what would be lost.
const enter = `
cd -- %[1]s || { echo "the volume's directory is missing or cannot be entered" >&2; exit 1; }
mounts=$(awk -v p="$(pwd -P)/" 'index($5 "/", p) == 1 && $5 "/" != p { print $5 }' /proc/self/mountinfo)
if [ -n "$mounts" ]; then
	echo "other file systems are mounted inside of the volume, and their contents would not be saved; unmount them first:" $mounts >&2
	exit 1
fi
`

// hotIndex lists the volume before the full pass. What is dirty in memory is
// written first: a page that a program has mapped for writing moves the ctime of its
// file only when it is written to for the first time after a write-back, so that later
// changes through a mapping would pass unseen. Entries younger than that are
// marked, as a second change within the same tick of the clock leaves no trace.
const hotIndex = `
since=$(($(date +%s) - 2))
sync -f .
stage find list_tree "$since" | stage order to_order | stage sort in_order >"$run/index0"
bad=$(failed order sort)
[ -z "$bad" ] || { echo "listing the volume failed:$bad" >&2; exit 1; }
sync "$run/index0"
mv -f "$run/index0" "$state/index0"
sha256sum <"$state/index0" | cut -c 1-64
stat -c '%a %u %g' ..
`

const tarCreate = "tar --create --file=- --format=posix --pax-option=delete=atime,delete=ctime --sparse --acls --xattrs --xattrs-include='*' --numeric-owner"

// hotArchive lets tar walk by itself, as a name that vanishes is then no error,
// in the order of the lists.
const hotArchive = `archive() { ` + tarCreate + ` --one-file-system --sort=name .; }
`

// coldIndex lists the volume once it is quiet. Nothing may go wrong any more.
const coldIndex = `
stage find list_tree | stage order to_order | stage sort in_order >"$run/%[1]s"
bad=$(failed find order sort)
[ -z "$bad" ] || { echo "listing the volume failed:$bad" >&2; exit 1; }
sync "$run/%[1]s"
mv -f "$run/%[1]s" "$state/%[1]s"
sha256sum <"$state/%[1]s" | cut -c 1-64
`

// deltaArchive holds what differs from the full pass in any field, ctime and
// inode included, and of each the directory it is in, whose times an
// extraction disturbs. Of a file that came to or left any name it holds all
// names: renaming a directory changes the paths in it and no ctime, so that names elsewhere
// look unchanged, and would be links to a name that is gone.
const deltaArchive = `
moved() { comm -z -23 "$state/index0" "$state/index1" && comm -z -13 "$state/index0" "$state/index1"; }
inode_of() { sed -z -e ':a' -e 's|^[^/]*/\([^/]\)|\1|' -e 'ta' -e 's|^[^/]*//[^ ]* \([0-9]*\) .*|\1|'; }
stage moved moved | stage plain from_order | stage inode inode_of | stage unique sort -z -u -T "$run" >"$run/inodes"
stage find list_links | stage byinode sort -z -t ' ' -k 1,1 -T "$run" | stage join join -z -t ' ' "$run/inodes" - | stage path sed -z 's|^[0-9]* ||' >"$run/linked"
bad=$(failed moved plain inode unique find byinode join path)
[ -z "$bad" ] || { echo "comparing hard links with the full pass failed:$bad" >&2; exit 1; }
stage comm comm -z -13 "$state/index0" "$state/index1" | stage names from_order | stage cut sed -z 's|//.*||' >"$run/changed"
cat "$run/linked" >>"$run/changed"
{ printf '\0'; cat "$run/changed"; sed -z -e 's|/[^/]*$||' -e t -e 's|.*||' "$run/changed"; } |
	stage order to_order | stage sort sort -z -u -T "$run" | stage back from_order | stage dots sed -z 's|^|./|' >"$run/names"
bad=$(failed comm names cut order sort back dots)
[ -z "$bad" ] || { echo "comparing with the full pass failed:$bad" >&2; exit 1; }
archive() { ` + tarCreate + ` --no-recursion --null --files-from="$run/names"; }
`

// stillQuiet lists the volume again and tells what has changed since the
// delta's list was made.
const stillQuiet = `
stage find list_tree | stage order to_order | stage sort in_order >"$run/index2"
bad=$(failed find order sort)
[ -z "$bad" ] || { echo "listing the volume failed:$bad" >&2; exit 1; }
{ comm -z -13 "$state/index1" "$run/index2"; comm -z -23 "$state/index1" "$run/index2"; } | from_order | sed -z 's|//.*||' | tr '\000' '\n' | head -n 5
`

// liveLine accepts what tar says of files that change under it: all of them
// count as changed in the delta.
func liveLine(line string) bool {
	for _, end := range []string{"file changed as we read it", "File removed before we read it", "No such file or directory"} {
		if strings.HasSuffix(line, end) {
			return true
		}
	}
	return quietLine(line) || (strings.Contains(line, "File shrank by ") && strings.Contains(line, "padding with zeros"))
}

// quietLine accepts what tar says of a volume that nobody writes to.
func quietLine(line string) bool { return strings.HasSuffix(line, ": socket ignored") }

// Take makes the full pass of a volume while workloads may run. It is done
// already, and returns at once, when the set has the pass that the host's list is about.
func Take(ctx context.Context, host *remote.Host, vol VolumeRef, set *Set, r *progress.Reporter) error {
	if err := vol.check(); err != nil {
		return err
	}
	if done, err := Taken(ctx, host, vol, set); err != nil || done {
		return err
	}
	fail := func(doing string, err error) error {
		return fmt.Errorf("host %s: volume %s (%s): %s: %w", host.Name(), vol.ID, vol.Path, doing, err)
	}
	in := fmt.Sprintf(enter, remote.Quote(vol.Path))
	out, err := host.Output(ctx, index.Script(vol.StateDir(), "hot", in+hotIndex))
	if err != nil {
		return fail("listing it", err)
	}
	index0, parent, ok := strings.Cut(out, "\n")
	if !ok || !hexSum.MatchString(index0) {
		return fail("listing it", fmt.Errorf("unexpected answer %.80q", out))
	}
	bytes, _, err := Measure(ctx, host, []string{vol.Path})
	if err != nil {
		return fail("measuring it", err)
	}
	task := r.Bytes(vol.Label(), -1)
	defer task.Done()
	_, err = source{
		name: vol.Full(), state: vol.StateDir(), archive: in + hotArchive,
		live: true, allow: liveLine, expected: bytes,
	}.take(ctx, host, set, task, map[string]string{MetaPath: vol.Path, MetaClaim: vol.Claim, MetaParent: parent, metaIndex0: index0})
	return err
}

// Taken tells whether the set has a full pass to which the host can still make a delta.
func Taken(ctx context.Context, host *remote.Host, vol VolumeRef, set *Set) (bool, error) {
	full, ok := set.Artifact(vol.Full())
	if _, listed := set.Artifact(ListName(vol.Full())); !ok || !listed || full.Meta[MetaPath] != vol.Path {
		return false, nil
	}
	have, err := hostSum(ctx, host, path.Join(vol.StateDir(), "index0"))
	if err != nil {
		return false, err
	}
	return have == full.Meta[metaIndex0], nil
}

// hostSum is the SHA-256 of a file of the host, "" when there is none.
func hostSum(ctx context.Context, host *remote.Host, file string) (string, error) {
	q := remote.Quote(file)
	out, err := host.Output(ctx, "[ ! -e "+q+" ] || sha256sum <"+q+" | cut -c 1-64")
	if err != nil {
		return "", fmt.Errorf("host %s: reading %s: %w", host.Name(), file, err)
	}
	return out, nil
}

// Delta takes what changed since the full pass, and the final list of the
// volume's entries. Nobody may write to the volume any more; a write during
// the delta is an error.
func Delta(ctx context.Context, host *remote.Host, vol VolumeRef, set *Set, r *progress.Reporter) error {
	if err := vol.check(); err != nil {
		return err
	}
	fail := func(doing string, err error) error {
		return fmt.Errorf("host %s: volume %s (%s): %s: %w", host.Name(), vol.ID, vol.Path, doing, err)
	}
	if ok, err := Taken(ctx, host, vol, set); err != nil {
		return err
	} else if !ok {
		return fail("taking what changed", errors.New("the host's list of the full pass is not the one that the backup set knows; take the full pass again"))
	}
	full, err := set.lookup(vol.Full())
	if err != nil {
		return err
	}
	in := fmt.Sprintf(enter, remote.Quote(vol.Path))
	index1, err := host.Output(ctx, index.Script(vol.StateDir(), "cold", in+fmt.Sprintf(coldIndex, "index1")))
	if err != nil {
		return fail("listing it", err)
	}
	task := r.Bytes("changes of "+vol.Label(), -1)
	defer task.Done()
	meta := map[string]string{MetaPath: vol.Path, metaFull: full.ContentSHA256}
	_, err = source{name: vol.Delta(), state: vol.StateDir(), archive: in + deltaArchive, allow: quietLine}.take(ctx, host, set, task, meta)
	if err != nil {
		return err
	}
	moved, err := host.Output(ctx, index.Script(vol.StateDir(), "quiet", in+stillQuiet))
	if err != nil {
		return fail("listing it again", err)
	}
	if moved != "" {
		return fail("taking what changed", fmt.Errorf("it is still being written to (%q); stop what writes there, then run again", strings.Split(moved, "\n")))
	}
	links, err := HostLinks(ctx, host, vol.Path, vol.StateDir())
	if err != nil {
		return fail("listing its hard links", err)
	}
	delta, err := set.lookup(vol.Delta())
	if err != nil {
		return err
	}
	err = keepIndex(ctx, host, vol, set, map[string]string{
		MetaPath: vol.Path, metaFull: full.ContentSHA256, metaDelta: delta.ContentSHA256,
		MetaParent: full.Meta[MetaParent], MetaLinks: links.String(), metaHostIdx: index1,
	})
	if err != nil {
		return fail("keeping its list", err)
	}
	return nil
}

// HostLinks summarises the hard links below a directory of the host; state is
// a directory for scratch files.
func HostLinks(ctx context.Context, host *remote.Host, dir, state string) (index.LinkGroups, error) {
	var g index.LinkGroups
	err := HostList(ctx, host, state, "links", "cd -- "+remote.Quote(dir)+`
stage find list_links | stage sort links_in_order | stage form links_records
bad=$(failed find sort form)
[ -z "$bad" ] || { echo "listing hard links failed:$bad" >&2; exit 1; }
`, func(r io.Reader) error {
		var err error
		g, err = index.ReadLinkGroups(r)
		return err
	})
	return g, err
}

// HostList runs a script with the functions of index.Shell on the host and
// hands what it prints to read. state is a directory of the host, where the
// scratch directory is named after name.
func HostList(ctx context.Context, host *remote.Host, state, name, body string, read func(io.Reader) error, opts ...remote.Option) error {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := read(bufio.NewReaderSize(pr, 64<<10))
		if err == nil {
			_, err = io.Copy(io.Discard, pr)
		}
		pr.CloseWithError(err)
		done <- err
	}()
	runErr := host.Run(ctx, index.Script(state, name, body), append(opts, remote.Stdout(pw))...)
	pw.CloseWithError(runErr)
	if err := <-done; err != nil {
		return err
	}
	return runErr
}

// keepIndex brings the host's final list into the set, without what a restore
// cannot bring back.
func keepIndex(ctx context.Context, host *remote.Host, vol VolumeRef, set *Set, meta map[string]string) error {
	w, err := set.Create(vol.Index(), KindIndex, Compressed())
	if err != nil {
		return err
	}
	defer w.Abort()
	var entries int64
	err = HostList(ctx, host, vol.StateDir(), "keep", `from_order <"$state/index1"
`, func(r io.Reader) error {
		out := bufio.NewWriterSize(w, 64<<10)
		list := index.NewWriter(out)
		in := index.NewReader(r)
		for {
			rec, err := in.Next()
			if err == io.EOF {
				return out.Flush()
			}
			if err != nil {
				return err
			}
			e, err := index.ParseHost(rec)
			if err != nil {
				return err
			}
			if err := list.Write(e.Lasting()); err != nil {
				return err
			}
			entries++
		}
	})
	if err != nil {
		return err
	}
	if meta[MetaTaken], err = host.Output(ctx, "date +%s.%N"); err != nil {
		return err
	}
	meta[MetaEntries] = fmt.Sprint(entries)
	_, err = w.Commit(meta)
	return err
}

// DeltaTaken tells whether the set holds the volume as it is on the host now.
func DeltaTaken(ctx context.Context, host *remote.Host, vol VolumeRef, set *Set) (bool, error) {
	idx, ok := set.Artifact(vol.Index())
	if !ok || !set.Whole(vol) {
		return false, nil
	}
	in := fmt.Sprintf(enter, remote.Quote(vol.Path))
	sum, err := host.Output(ctx, index.Script(vol.StateDir(), "now", in+fmt.Sprintf(coldIndex, "now")+`rm -f "$state/now"`+"\n"))
	if err != nil {
		return false, fmt.Errorf("host %s: volume %s (%s): listing it: %w", host.Name(), vol.ID, vol.Path, err)
	}
	return sum == idx.Meta[metaHostIdx], nil
}

// Whole tells whether the volume was taken completely: full pass, delta and
// index are there and belong together.
func (s *Set) Whole(vol VolumeRef) bool {
	full, ok1 := s.Artifact(vol.Full())
	delta, ok2 := s.Artifact(vol.Delta())
	idx, ok3 := s.Artifact(vol.Index())
	return ok1 && ok2 && ok3 && delta.Meta[metaFull] == full.ContentSHA256 &&
		idx.Meta[metaFull] == full.ContentSHA256 && idx.Meta[metaDelta] == delta.ContentSHA256
}

// Forget removes what the host keeps of the volume between the passes.
func Forget(ctx context.Context, host *remote.Host, vol VolumeRef) error {
	if err := vol.check(); err != nil {
		return err
	}
	return host.Run(ctx, "rm -rf -- "+remote.Quote(vol.StateDir()))
}

// Each calls do for every volume, over as many connections at once as
// concurrency says (at least one). A failure does not stop the others; all failures are
// returned together.
func Each(ctx context.Context, host *remote.Host, vols []VolumeRef, concurrency int, do func(ctx context.Context, host *remote.Host, vol VolumeRef) error) error {
	queue := make(chan VolumeRef)
	var mu sync.Mutex
	var all *multierror.Error
	note := func(err error) {
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			all = multierror.Append(all, err)
		}
	}
	work := func(h *remote.Host) {
		for vol := range queue {
			if ctx.Err() != nil {
				continue
			}
			note(do(ctx, h, vol))
		}
	}
	var wg sync.WaitGroup
	for i := range max(1, min(concurrency, len(vols))) {
		wg.Go(func() {
			h := host
			// The SSH window bounds what one connection can carry.
			if i > 0 {
				other, err := host.Another(ctx)
				if err != nil {
					return // the connections that stand do the work
				}
				defer other.Close()
				h = other
			}
			work(h)
		})
	}
	for _, vol := range vols {
		queue <- vol
	}
	close(queue)
	wg.Wait()
	if ctx.Err() != nil {
		note(context.Cause(ctx))
	}
	return all.ErrorOrNil()
}

// Expected is what a restored volume must hold at one path.
type Expected struct {
	index.Entry
	// Sum is the SHA-256 of a regular file's content, hex. It is empty for
	// further names of a hard link, which have the content of the first.
	Sum string
}

// Volume walks what the volume held when its delta was taken: every entry with its
// metadata and its content's sum, in the order of package index. An entry
// that no archive of the set holds is an error, which ends the walk.
func (s *Set) Volume(vol VolumeRef) iter.Seq2[Expected, error] {
	return func(yield func(Expected, error) bool) {
		stopped := errors.New("stopped")
		err := s.walkVolume(vol, func(x Expected) error {
			if !yield(x, nil) {
				return stopped
			}
			return nil
		})
		if err != nil && err != stopped {
			yield(Expected{}, err)
		}
	}
}

func (s *Set) walkVolume(vol VolumeRef, visit func(Expected) error) error {
	if !s.Whole(vol) {
		return fmt.Errorf("backup set %s: the full pass, changes and list of volume %s are not all there, or do not belong together; take the volume again", s.dir, vol.ID)
	}
	var lists []index.Lists
	for _, name := range []string{vol.Index(), ListName(vol.Full()), ListName(vol.Delta())} {
		r, err := s.Reader(name)
		if err != nil {
			return err
		}
		defer r.Close()
		lists = append(lists, index.NewReader(r))
	}
	return index.Merge(func(p string, recs []*index.Record) error {
		if recs[0] == nil {
			return nil // was removed after the full pass
		}
		e, m, err := held(vol, p, recs)
		if err != nil {
			return err
		}
		x := Expected{Entry: e}
		if m.Type == 'f' {
			x.Sum = m.Sum
		}
		return visit(x)
	}, lists...)
}

// held finds the member that holds the entry p of the index: the delta's
// before the full pass's. recs are those of index, full pass and delta.
func held(vol VolumeRef, p string, recs []*index.Record) (e index.Entry, m index.Member, err error) {
	if e, err = index.ParseLasting(*recs[0]); err != nil {
		return e, m, err
	}
	from := recs[1]
	if recs[2] != nil {
		from = recs[2]
	}
	if from == nil {
		return e, m, fmt.Errorf("volume %s: %q was on the host, but no archive of the set holds it", vol.ID, p)
	}
	if m, err = index.ParseMember(*from); err != nil {
		return e, m, err
	}
	switch {
	case m.Type == 'h' && e.Type != 'd':
	case m.Type != e.Type:
		err = fmt.Errorf("volume %s: %q was of type %c on the host, and %c in the archive", vol.ID, p, e.Type, m.Type)
	case m.Type == 'f' && fmt.Sprint(m.Size) != e.Size:
		err = fmt.Errorf("volume %s: %q had %s bytes on the host, and %d in the archive", vol.ID, p, e.Size, m.Size)
	}
	return e, m, err
}

// TakenAt is the host's time when the delta was complete, in seconds since 1970
// with a fraction; "" when the volume was not taken.
func (s *Set) TakenAt(vol VolumeRef) string {
	a, _ := s.Artifact(vol.Index())
	return a.Meta[MetaTaken]
}
