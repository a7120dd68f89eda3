package restore

import (
	"context"
	"fmt"
	"io"
	"iter"
	"path"
	"strconv"
	"strings"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Difference is one entry of a volume that is not as it was taken.
type Difference struct {
	// Path is relative to the volume; "" is the volume's directory itself.
	Path string
	// What says in words how it differs.
	What string
	// WrittenSince says that the host's file system shows a change after the
	// restore, so that the difference is a workload's work and no loss.
	WrittenSince bool
	// Between says that what the set has of it was written after the snapshot to which the host was
	// returned, so that the difference is no loss but what such a return leaves out.
	Between bool
}

func (d Difference) String() string {
	if d.WrittenSince {
		return fmt.Sprintf("%q %s (written since)", d.Path, d.What)
	}
	return fmt.Sprintf("%q %s", d.Path, d.What)
}

// maxDifferences is how many Compare lists of each sort; more are counted only.
const maxDifferences = 100

// Differences is the result of Compare.
type Differences struct {
	// Lost lists entries that differ without having been written since the
	// restore; Written lists those that were. Each holds the first 100.
	Lost, Written []Difference
	// Between lists those that a return to a snapshot leaves out, in the same way.
	Between []Difference
	// The totals count all of them.
	LostTotal, WrittenTotal, BetweenTotal int64
	// Entries is how many entries the volume had when it was taken.
	Entries int64

	snapshot    string // when the host's snapshot was made, by its clock; "" where it was not returned to one
	older, kept int64  // files that are older than that: how many the set has, and how many of them are there
}

// between tells whether what the set has at a path was written after the snapshot. The set's lists know when an entry
// was modified, not when its name or mode was changed: what was copied or moved into the volume since, with an older time of
// modification, is taken for older than the snapshot.
func (d *Differences) between(x backup.Expected) bool {
	return d.snapshot != "" && !index.Later(d.snapshot, x.MTime)
}

// Equal tells that nothing was lost, whatever was written since.
func (d Differences) Equal() bool { return d.LostTotal == 0 }

func (d *Differences) add(x Difference) {
	list, total := &d.Lost, &d.LostTotal
	switch {
	case x.WrittenSince:
		list, total = &d.Written, &d.WrittenTotal
	case x.Between:
		list, total = &d.Between, &d.BetweenTotal
	}
	*total++
	if len(*list) < maxDifferences {
		*list = append(*list, x)
	}
}

// Compare compares a volume on the host with what was taken of it: names,
// metadata, contents and hard links. What the host wrote after the restore (or, when
// the volume was never restored, after it was taken) is told apart by the
// change times of the host's file system. Workloads may run.
func Compare(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set) (Differences, error) {
	since, err := whenBack(ctx, host, vol, set)
	if err != nil {
		return Differences{}, err
	}
	return compare(ctx, host, vol, set, vol.Path, since)
}

// CompareReturned is Compare of a volume that came back with a snapshot of the host, which was made before the volume was
// taken: at the host's time snapshot, in seconds since 1970 with a fraction. What the set has and was modified since is no
// loss, nor is what was removed since, or changed in its metadata alone.
func CompareReturned(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, snapshot string) (Differences, error) {
	since, err := whenBack(ctx, host, vol, set)
	if err != nil {
		return Differences{}, err
	}
	diffs := Differences{snapshot: snapshot}
	if err := diffs.compare(ctx, host, vol, set, vol.Path, since); err != nil {
		return Differences{}, err
	}
	return diffs, nil
}

// Written counts the entries of a volume that the host changed since the volume was restored
// from this set, or since it was taken when it never was. What was removed counts
// as a change of the directory that it was in. It goes by the change times of the host's
// file system, reads no contents, and is 0 when nothing is at the volume's path. Workloads may run.
func Written(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set) (entries int64, err error) {
	fail := func(err error) (int64, error) {
		return 0, fmt.Errorf("host %s: volume %s (%s): counting what was written: %w", host.Name(), vol.ID, vol.Path, err)
	}
	since, err := whenBack(ctx, host, vol, set)
	if err != nil {
		return 0, err
	}
	if since == "" {
		return fail(&backup.NotFoundError{Dir: set.Dir(), Name: vol.Index()})
	}
	// The status of find is lost in a pipeline, so that its end is said.
	out, err := host.Output(ctx, `path=`+remote.Quote(vol.Path)+`
[ -e "$path" ] || [ -L "$path" ] || { echo 0; exit 0; }
{ find "$path" -ignore_readdir_race -xdev ! -type s -newerct `+remote.Quote("@"+since)+` -printf '.\n' && echo end; } |
	awk '$0 == "end" { ended = 1; next } { n++ } END { if (!ended) exit 1; print n + 0 }'
`)
	if err != nil {
		return fail(err)
	}
	if entries, err = strconv.ParseInt(out, 10, 64); err != nil {
		return fail(fmt.Errorf("unexpected answer %.80q", out))
	}
	return entries, nil
}

// whenBack is the host's time since which a change of the volume is a workload's: when it was
// restored from this set, or when it was taken; "" when it was neither.
func whenBack(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set) (string, error) {
	when, err := readMark(ctx, host, vol, set)
	if when == "" && err == nil {
		when = set.TakenAt(vol)
	}
	return when, err
}

// comparisons are what a directory is compared by; contents come late, as they take the longest.
var comparisons = []struct {
	of  string
	run func(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir, since string, diffs *Differences) error
}{
	{"names and metadata", compareMetadata},
	{"contents", compareContents},
	{"hard links", compareLinks},
}

// compare compares the directory dir. An empty since says that nobody writes
// there, and no difference is explained away.
func compare(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir, since string) (Differences, error) {
	var diffs Differences
	if err := diffs.compare(ctx, host, vol, set, dir, since); err != nil {
		return Differences{}, err
	}
	return diffs, nil
}

func (d *Differences) compare(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir, since string) error {
	for _, c := range comparisons {
		if err := c.run(ctx, host, vol, set, dir, since, d); err != nil {
			return fmt.Errorf("host %s: volume %s: comparing %s: %w", host.Name(), vol.ID, c.of, err)
		}
	}
	return nil
}

// equal tells whether the directory dir, where nobody writes, is the volume as
// it was taken. Contents are read only when nothing else differs.
func equal(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir string) (bool, error) {
	var diffs Differences
	for _, c := range comparisons {
		if err := c.run(ctx, host, vol, set, dir, "", &diffs); err != nil {
			return false, fmt.Errorf("host %s: volume %s: comparing %s: %w", host.Name(), vol.ID, c.of, err)
		}
		if !diffs.Equal() {
			return false, nil
		}
	}
	return true, nil
}

func compareLinks(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir, since string, diffs *Differences) error {
	idx, _ := set.Artifact(vol.Index())
	links, err := backup.HostLinks(ctx, host, dir, vol.StateDir())
	if err != nil {
		return err
	}
	// Which group changed is not known, so a change after the restore can
	// only be told by there being any.
	if want := idx.Meta[backup.MetaLinks]; links.String() != want {
		diffs.add(Difference{What: fmt.Sprintf("hard links are %s instead of %s", links, want), WrittenSince: since != "" && diffs.WrittenTotal > 0, Between: diffs.snapshot != ""})
	}
	return nil
}

// touched remembers for the directories above the current entry whether they
// were changed after the restore.
type touched []struct {
	path  string
	since bool
}

// above drops what is not above p and tells whether the nearest directory
// that exists was changed.
func (t *touched) above(p string) bool {
	for len(*t) > 0 {
		last := (*t)[len(*t)-1]
		if last.path == "" || strings.HasPrefix(p, last.path+"/") {
			return last.since
		}
		*t = (*t)[:len(*t)-1]
	}
	return false
}

func compareMetadata(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir, since string, diffs *Differences) error {
	next, stop := iter.Pull2(set.Volume(vol))
	defer stop()
	want := pulled{next: next}
	err := backup.HostList(ctx, host, vol.StateDir(), "compare", "cd -- "+remote.Quote(dir)+`
stage find list_tree | stage order to_order | stage sort in_order | stage back from_order
`+failWhen(since == "", "find order sort back", "order sort back"), func(r io.Reader) error {
		var dirs touched
		return index.Merge(func(p string, recs []*index.Record) error {
			expected := want.current(recs[0])
			older := false
			if recs[0] != nil {
				diffs.Entries++
				older = diffs.snapshot != "" && expected.Type == 'f' && !diffs.between(expected)
			}
			if older {
				diffs.older++
			}
			if recs[1] == nil {
				diffs.add(Difference{Path: p, What: "is missing", WrittenSince: dirs.above(p), Between: diffs.between(expected)})
				return nil
			}
			if older {
				diffs.kept++
			}
			got, err := index.ParseHost(*recs[1])
			if err != nil {
				return err
			}
			changed := since != "" && index.Later(got.CTime, since)
			dirs.above(p)
			if got.Type == 'd' {
				dirs = append(dirs, struct {
					path  string
					since bool
				}{p, changed})
			}
			if recs[0] == nil {
				diffs.add(Difference{Path: p, What: "was not there", WrittenSince: changed, Between: diffs.snapshot != ""})
				return nil
			}
			if what := expected.Differs(got); what != "" {
				same := expected.Type == got.Type && (got.Type != 'f' || expected.Size == got.Size) && expected.Target == got.Target // but for its metadata
				diffs.add(Difference{Path: p, What: what, WrittenSince: changed, Between: diffs.snapshot != "" && (same || diffs.between(expected))})
			}
			return nil
		}, &want, index.NewReader(r))
	})
	if err == nil && diffs.older > 0 && diffs.kept == 0 {
		// Whatever workloads have written into it since: they began with nothing.
		diffs.add(Difference{What: fmt.Sprintf("has none of the %d files that are older than the snapshot", diffs.older)})
	}
	return err
}

// pulled turns expected entries into a list for index.Merge and keeps the entry itself.
type pulled struct {
	next func() (backup.Expected, error, bool)
	last backup.Expected
}

func (p *pulled) Next() (index.Record, error) {
	x, err, ok := p.next()
	if !ok {
		return index.Record{}, io.EOF
	}
	p.last = x
	return index.Record{Path: x.Path}, err
}

// current is the entry of rec, which index.Merge visits before it asks for the next one.
func (p *pulled) current(rec *index.Record) backup.Expected {
	if rec == nil {
		return backup.Expected{}
	}
	return p.last
}

// contents is shell: the SHA-256 sums of all regular files in order.
const contents = `
stage find list_files | stage order to_order | stage sort in_order | stage back from_order |
	stage dots sed -z 's|^|./|' | stage sum xargs -0 -r sha256sum -z -- 2>"$run/err" |
	stage form sed -z 's|^\([0-9a-f]*\) [ *]\./\(.*\)$|\2//\1|'
`

func compareContents(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set, dir, since string, diffs *Differences) error {
	next, stop := iter.Pull2(set.Volume(vol))
	defer stop()
	want := pulled{next: next}
	body := "cd -- " + remote.Quote(dir) + "\n"
	if since == "" {
		body += `list_files() { find . -xdev -type f -printf '%P\0'; }` + contents + `
if [ -s "$run/err" ]; then head -c 2000 "$run/err" >&2; exit 1; fi
` + failWhen(true, "find order sort back dots sum form", "")
	} else {
		// What was changed since is a difference already, and what vanishes now
		// has changed, too.
		body += `list_files() { find . -xdev -type f ! -newerct ` + remote.Quote("@"+since) + ` -printf '%P\0'; }` + contents + `
if grep -v 'No such file or directory$' "$run/err" >&2; then exit 1; fi
` + failWhen(false, "", "order sort back dots form")
	}
	return backup.HostList(ctx, host, vol.StateDir(), "contents", body, func(r io.Reader) error {
		return index.Merge(func(p string, recs []*index.Record) error {
			expected := want.current(recs[0])
			switch {
			case recs[0] == nil || expected.Sum == "":
			case recs[1] == nil:
				if since == "" {
					diffs.add(Difference{Path: p, What: "could not be read"})
				}
			case recs[1].Fields != expected.Sum:
				diffs.add(Difference{Path: p, What: fmt.Sprintf("has the content SHA-256 %s instead of %s", recs[1].Fields, expected.Sum), Between: diffs.between(expected)})
			}
			return nil
		}, &want, index.NewReader(r))
	})
}

// failWhen is shell: ends the script when one of the stages failed.
func failWhen(strict bool, all, some string) string {
	if !strict {
		all = some
	}
	return `bad=$(failed ` + all + `)
[ -z "$bad" ] || { echo "reading the volume failed:$bad" >&2; exit 1; }
`
}

func markFile(vol backup.VolumeRef) string { return path.Join(vol.StateDir(), "restored") }

// readMark gives the host's time at which vol was restored from this very set;
// "" when it was not.
func readMark(ctx context.Context, host *remote.Host, vol backup.VolumeRef, set *backup.Set) (string, error) {
	q := remote.Quote(markFile(vol))
	out, err := host.Output(ctx, "[ ! -e "+q+" ] || { cat "+q+"; find "+q+" -printf '%T@\\n'; }")
	if err != nil {
		return "", fmt.Errorf("host %s: volume %s: reading when it was restored: %w", host.Name(), vol.ID, err)
	}
	sum, when, _ := strings.Cut(out, "\n")
	idx, ok := set.Artifact(vol.Index())
	if !ok || sum != idx.ContentSHA256 {
		return "", nil
	}
	return when, nil
}
