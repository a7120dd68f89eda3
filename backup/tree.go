package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// TreeRef names files and directories of a host that are kept together in one artifact.
type TreeRef struct {
	// Name of the artifact.
	Name string
	// Paths must exist on the host; Optional ones may. All are absolute, and
	// directories count with all that is in them.
	Paths, Optional []string
}

// MetaParents are the directories above a tree's paths, one a line: mode, uid,
// gid, path.
const MetaParents = "parents"

// treeState is where the host keeps scratch files while a tree or file is read.
func treeState(name string) string {
	return path.Join(remote.StateDir, "transfer", strings.ReplaceAll(name, "/", "_"))
}

// Tree takes a tree of the host into the set, replacing the artifact of that
// name. A file that changes while it is read is an error.
func Tree(ctx context.Context, host *remote.Host, set *Set, tree TreeRef, r *progress.Reporter) error {
	fail := func(doing string, err error) error {
		return fmt.Errorf("host %s: files %s: %s: %w", host.Name(), tree.Name, doing, err)
	}
	all := slices.Concat(tree.Paths, tree.Optional)
	for _, p := range all {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return fail("reading them", fmt.Errorf("path %q must be absolute, clean, and not the root", p))
		}
	}
	there, missing, err := existing(ctx, host, all)
	if err != nil {
		return fail("looking for them", err)
	}
	for _, p := range missing {
		if slices.Contains(tree.Paths, p) {
			return fail("looking for them", fmt.Errorf("%s is missing on the host", p))
		}
	}
	there = index.Topmost(there)
	parents, err := above(ctx, host, there)
	if err != nil {
		return fail("looking at the directories above them", err)
	}
	var names []string
	for _, p := range there {
		names = append(names, strings.TrimPrefix(p, "/"))
	}
	list := `: >"$run/names"` + "\n"
	if len(names) > 0 {
		list = `printf '%s\0' ` + remote.Quote(names...) + ` >"$run/names"` + "\n"
	}
	task := r.Bytes("files "+tree.Name, -1)
	defer task.Done()
	state := treeState(tree.Name)
	defer forgetState(host, state)
	_, err = source{
		name: tree.Name, state: state, allow: quietLine,
		archive: list + `archive() { ` + tarCreate + ` --sort=name --directory=/ --null --files-from="$run/names"; }` + "\n",
	}.take(ctx, host, set, task, map[string]string{
		MetaPath: strings.Join(there, "\n"), metaMissing: strings.Join(missing, "\n"), MetaParents: parents,
	})
	return err
}

// forgetState removes an empty scratch directory; what a running or broken
// stream has there is left to the next one of that name.
func forgetState(host *remote.Host, state string) {
	_ = host.Run(context.Background(), "rmdir -- "+remote.Quote(state)+" 2>/dev/null || true")
}

func existing(ctx context.Context, host *remote.Host, paths []string) (there, missing []string, err error) {
	if len(paths) == 0 {
		return nil, nil, nil
	}
	out, err := host.Output(ctx, `for p in `+remote.Quote(paths...)+`; do
	if [ -e "$p" ] || [ -L "$p" ]; then echo yes; else echo no; fi
done`)
	if err != nil {
		return nil, nil, err
	}
	answers := strings.Fields(out)
	if len(answers) != len(paths) {
		return nil, nil, fmt.Errorf("unexpected answer %.80q", out)
	}
	for i, p := range paths {
		if answers[i] == "yes" {
			there = append(there, p)
		} else {
			missing = append(missing, p)
		}
	}
	return there, missing, nil
}

// above describes the directories above the paths.
func above(ctx context.Context, host *remote.Host, paths []string) (string, error) {
	var dirs []string
	for _, p := range paths {
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			dirs = append(dirs, d)
		}
	}
	if len(dirs) == 0 {
		return "", nil
	}
	slices.SortFunc(dirs, index.Compare)
	return host.Output(ctx, "stat -c '%a %u %g %n' -- "+remote.Quote(slices.Compact(dirs)...))
}

// maxFile bounds what File holds in memory.
const maxFile = 64 << 20

// File reads one regular file out of a tar artifact into memory; member is its path
// on the host, or in a volume relative to it. Files of more than 64 MiB are refused.
func (s *Set) File(artifact, member string) ([]byte, error) {
	member = memberPath(strings.TrimPrefix(member, "/"))
	for range 2 {
		data, link, err := s.member(artifact, member)
		if err != nil || link == "" {
			return data, err
		}
		member = link // a hard link has its content at the first of its names
	}
	return nil, fmt.Errorf("artifact %s: %s is a hard link to a hard link", artifact, member)
}

func (s *Set) member(artifact, member string) (data []byte, link string, err error) {
	r, err := s.Reader(artifact)
	if err != nil {
		return nil, "", err
	}
	defer r.Close()
	tr := tar.NewReader(r)
	found := false
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, "", fmt.Errorf("reading artifact %s: %w", artifact, err)
		}
		if memberPath(hdr.Name) != member {
			continue
		}
		found = true
		switch {
		case hdr.Typeflag == tar.TypeLink:
			link = memberPath(hdr.Linkname)
		case tarTypes[hdr.Typeflag] != 'f':
			return nil, "", fmt.Errorf("artifact %s: %s is not a regular file", artifact, member)
		case hdr.Size > maxFile:
			return nil, "", fmt.Errorf("artifact %s: %s has %d bytes, too many to read into memory", artifact, member, hdr.Size)
		default:
			if data, err = io.ReadAll(tr); err != nil {
				return nil, "", fmt.Errorf("reading %s of artifact %s: %w", member, artifact, err)
			}
		}
	}
	// The sums are known at the very end only.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, "", err
	}
	if !found {
		return nil, "", &NotFoundError{Dir: s.dir, Name: artifact + ": " + member}
	}
	return data, link, nil
}

// Members walks the list of a tar artifact: every member with its type, size and sum.
func (s *Set) Members(artifact string, visit func(index.Member) error) error {
	r, err := s.Reader(ListName(artifact))
	if err != nil {
		return err
	}
	defer r.Close()
	list := index.NewReader(r)
	for {
		rec, err := list.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		m, err := index.ParseMember(rec)
		if err != nil {
			return err
		}
		if err := visit(m); err != nil {
			return err
		}
	}
}

// HostFile takes one regular file of the host into the set, unchanged and
// uncompressed, with its owner, mode and time in the manifest. A file that
// changes while it is read is an error.
func HostFile(ctx context.Context, host *remote.Host, set *Set, name, file string, r *progress.Reporter) error {
	return takeFile(ctx, host, set, name, KindFile, file, nil, r)
}

func takeFile(ctx context.Context, host *remote.Host, set *Set, name string, kind Kind, file string, meta map[string]string, r *progress.Reporter) error {
	fail := func(err error) error {
		return fmt.Errorf("host %s: file %s: %w", host.Name(), file, err)
	}
	describe := "LC_ALL=C stat -c '%F/%a %u %g/%.9Y/%s %i %.9Z' -- " + remote.Quote(file)
	before, err := host.Output(ctx, describe)
	if err != nil {
		return fail(err)
	}
	parts := strings.SplitN(before, "/", 4)
	if len(parts) != 4 || !strings.HasPrefix(parts[0], "regular") {
		return fail(errors.New("it is not a regular file"))
	}
	var size int64
	fmt.Sscan(parts[3], &size)
	w, err := set.Create(name, kind, Expect(size))
	if err != nil {
		return err
	}
	defer w.Abort()
	task := r.Bytes("file "+file, size)
	defer task.Done()
	state := treeState(name)
	defer forgetState(host, state)
	sum, err := receive(ctx, host, state, "archive() { cat -- "+remote.Quote(file)+"; }\n", None, &stderrLog{}, w, task)
	if err != nil {
		return fail(err)
	}
	if here := w.content.hex(); here != sum {
		return fail(fmt.Errorf("the host sent SHA-256 %s and %s arrived", sum, here))
	}
	after, err := host.Output(ctx, describe)
	if err != nil {
		return fail(err)
	}
	if after != before {
		return fail(errors.New("it changed while it was read; stop what writes to it, then run again"))
	}
	all := map[string]string{MetaPath: file, MetaOwner: parts[1], MetaMTime: parts[2], "host": host.Name()}
	maps.Copy(all, meta)
	_, err = w.Commit(all)
	return err
}
