package restore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// treeState is where the host keeps scratch files meanwhile.
func treeState(name string) string {
	return path.Join(remote.StateDir, "transfer", "restore-"+strings.ReplaceAll(name, "/", "_"))
}

func forgetState(host *remote.Host, state string) {
	_ = host.Run(context.Background(), "rmdir -- "+remote.Quote(state)+" 2>/dev/null || true")
}

// Everything is the member that stands for all members of a tree.
const Everything = "/"

// Tree brings files and directories of a tree artifact back to where they
// were, with owners, modes, times and attributes. members are absolute paths
// of what is wanted, directories with all that is in them; [Everything] stands
// for all there is. What is in their place is replaced file by file; what is
// there besides stays. A directory in the place of something else, or the reverse, is an
// error, and nothing was changed then. The contents are read again on the host and proven equal.
func Tree(ctx context.Context, host *remote.Host, set *backup.Set, name string, r *progress.Reporter, members ...string) error {
	fail := func(doing string, err error) error {
		return fmt.Errorf("host %s: files %s: %s: %w", host.Name(), name, doing, err)
	}
	a, ok := set.Artifact(name)
	if !ok {
		return &backup.NotFoundError{Dir: set.Dir(), Name: name}
	}
	if len(members) == 0 {
		return fail("choosing what to restore", errors.New("nothing was asked for"))
	}
	all := slices.Contains(members, Everything)
	members = index.Topmost(members)
	var wanted map[string]string
	var err error
	if !all {
		wanted, err = choose(set, name, members)
	}
	if err != nil {
		return fail("choosing what to restore", err)
	}
	if err := checkTypes(ctx, host, set, name, members); err != nil {
		return fail("looking what is there", err)
	}
	if err := makeAbove(ctx, host, a.Meta[backup.MetaParents], members); err != nil {
		return fail("making the directories above them", err)
	}
	state := treeState(name)
	defer forgetState(host, state)
	args := []string{}
	if !all {
		args = append(args, "--no-wildcards", "--")
		for _, m := range members {
			args = append(args, wanted[m])
		}
	}
	if err := extract(ctx, host, state, "/", set, name, "files "+name, r, args...); err != nil {
		return fail("extracting", err)
	}
	if err := proveTree(ctx, host, state, set, name, members); err != nil {
		return fail("proving what was extracted", err)
	}
	return nil
}

// File brings one file of a tree artifact back to where it was.
func File(ctx context.Context, host *remote.Host, set *backup.Set, name, file string) error {
	return Tree(ctx, host, set, name, nil, file)
}

// choose finds the members in the archive and gives the names that tar has for them.
func choose(set *backup.Set, name string, members []string) (map[string]string, error) {
	names := map[string]string{}
	err := set.Members(name, func(m index.Member) error {
		for _, want := range members {
			if "/"+m.Path == want {
				names[want] = m.Path
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, want := range members {
		if names[want] == "" {
			return nil, &backup.NotFoundError{Dir: set.Dir(), Name: name + ": " + want}
		}
	}
	return names, nil
}

func within(p string, members []string) bool {
	for _, m := range members {
		if m == Everything || p == m || strings.HasPrefix(p, m+"/") {
			return true
		}
	}
	return false
}

// list streams what form makes of the wanted members, each with a NUL behind it; "" leaves one out. end
// must be called once the list is read no more.
func list(set *backup.Set, name string, members []string, form func(index.Member) string) (r io.Reader, end func()) {
	pr, pw := io.Pipe()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		out := bufio.NewWriterSize(pw, 64<<10)
		err := set.Members(name, func(m index.Member) error {
			line := form(m)
			if line == "" || !within("/"+m.Path, members) {
				return nil
			}
			_, err := io.WriteString(out, line+"\x00")
			return err
		})
		pw.CloseWithError(errors.Join(err, out.Flush()))
	}()
	return pr, func() {
		pr.Close()
		<-sent
	}
}

// checkTypes refuses a directory where another thing is, and another thing where a directory is: tar
// removes a file or link there without a word, and stops half-way at a directory with something in it.
func checkTypes(ctx context.Context, host *remote.Host, set *backup.Set, name string, members []string) error {
	wanted, end := list(set, name, members, func(m index.Member) string {
		if m.Type == 'd' {
			return "d/" + m.Path
		}
		return "-/" + m.Path
	})
	defer end()
	return host.Run(ctx, `set -eu
found=$(xargs -0 -r sh -c 'for a; do
	p=${a#?}
	if [ "${a%%/*}" = d ]; then
		if [ -L "$p" ]; then printf "%s is a symbolic link, and was a directory when it was taken\n" "$p"
		elif [ -e "$p" ] && [ ! -d "$p" ]; then printf "%s is not a directory, and was one when it was taken\n" "$p"
		fi
	elif [ -d "$p" ] && [ ! -L "$p" ]; then printf "%s is a directory, and was none when it was taken\n" "$p"
	fi
done' sh)
[ -z "$found" ] || { printf '%s\n' "$found" | head -n 5 >&2; echo "nothing was changed: move it aside, then run again" >&2; exit 1; }
`, remote.Stdin(wanted))
}

// makeAbove makes missing directories above the members as they were.
func makeAbove(ctx context.Context, host *remote.Host, parents string, members []string) error {
	var b strings.Builder
	b.WriteString(`set -eu
make() {
	[ ! -d "$3" ] || return 0
	[ ! -e "$3" ] && [ ! -L "$3" ] || { echo "$3 is not a directory; move it aside, then run again" >&2; exit 1; }
	mkdir -- "$3"; chown "$2" -- "$3"; chmod "$1" -- "$3"
}
`)
	for line := range strings.Lines(parents) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 {
			return fmt.Errorf("unexpected record %q", line)
		}
		needed := false
		for _, m := range members {
			needed = needed || m == Everything || strings.HasPrefix(m, f[3]+"/")
		}
		if needed {
			fmt.Fprintf(&b, "make %s\n", remote.Quote(f[0], f[1]+":"+f[2], f[3]))
		}
	}
	return host.Run(ctx, b.String())
}

// proveTree has the host read the restored files and compares their sums with the list.
func proveTree(ctx context.Context, host *remote.Host, state string, set *backup.Set, name string, members []string) error {
	files, end := list(set, name, members, func(m index.Member) string {
		if m.Type == 'f' {
			return "./" + m.Path
		}
		return ""
	})
	defer end()
	return backup.HostList(ctx, host, state, "prove", `cd /
stage sum xargs -0 -r sha256sum -z -- | stage form sed -z 's|^\([0-9a-f]*\) [ *]\./\(.*\)$|\2//\1|'
bad=$(failed sum form)
[ -z "$bad" ] || { echo "reading what was restored failed:$bad" >&2; exit 1; }
`, func(r io.Reader) error {
		got := index.NewReader(r)
		err := set.Members(name, func(m index.Member) error {
			if m.Type != 'f' || !within("/"+m.Path, members) {
				return nil
			}
			rec, err := got.Next()
			if err == io.EOF {
				return fmt.Errorf("/%s was not read", m.Path)
			}
			if err != nil {
				return err
			}
			if rec.Path != m.Path || rec.Fields != m.Sum {
				return fmt.Errorf("/%s has SHA-256 %s instead of %s", m.Path, rec.Fields, m.Sum)
			}
			return nil
		})
		return err
	}, remote.Stdin(files))
}

// HostFile brings a file taken by [backup.HostFile] or [backup.Datastore] back to file, with its owner, mode
// and time. It appears in its place only once it is complete and durable.
func HostFile(ctx context.Context, host *remote.Host, set *backup.Set, name, file string, r *progress.Reporter) error {
	fail := func(err error) error {
		return fmt.Errorf("host %s: restoring file %s: %w", host.Name(), file, err)
	}
	content, a, err := set.Content(name)
	if err != nil {
		return err
	}
	defer content.Close()
	if a.Codec != backup.None {
		return fail(fmt.Errorf("artifact %s is not a file of a host", name))
	}
	var mode, uid, gid string
	if n, err := fmt.Sscan(a.Meta[backup.MetaOwner], &mode, &uid, &gid); n != 3 {
		return fail(fmt.Errorf("reading its owner from the manifest: %w", err))
	}
	task := r.Bytes("file "+file, a.ContentSize)
	defer task.Done()
	q, tmp := remote.Quote(file), remote.Quote(file+".migrate-restoring")
	err = host.Run(ctx, `set -eu
umask 077
trap 'rm -f -- `+tmp+`' EXIT
cat >`+tmp+`
[ "$(sha256sum <`+tmp+` | cut -c 1-64)" = `+remote.Quote(a.ContentSHA256)+` ] || { echo "what arrived has another SHA-256 than what was taken" >&2; exit 1; }
chown `+remote.Quote(uid+":"+gid)+` -- `+tmp+`
chmod `+remote.Quote(mode)+` -- `+tmp+`
touch -d `+remote.Quote("@"+a.Meta[backup.MetaMTime])+` -- `+tmp+`
sync `+tmp+`
mv -fT -- `+tmp+` `+q+`
sync `+remote.Quote(path.Dir(file))+`
`, remote.Stdin(io.TeeReader(content, counter{task})))
	if err != nil {
		return fail(err)
	}
	return nil
}

// Datastore brings an SQLite database taken by [backup.Datastore] back to
// file, with the write-ahead log that belongs to it. Nobody may have it open. The directory must exist.
func Datastore(ctx context.Context, host *remote.Host, set *backup.Set, name, file string, r *progress.Reporter) error {
	if _, err := set.CheckDatabase(ctx, name); err != nil {
		return err
	}
	// A main file beside the wrong log, or without its own, is a database of
	// another time that nothing would notice. So it comes last: until the
	// restore is complete there is none.
	wal := file + "-wal"
	if err := host.Run(ctx, "rm -f -- "+remote.Quote(file, wal, file+"-shm")); err != nil {
		return fmt.Errorf("host %s: removing %s: %w", host.Name(), file, err)
	}
	if set.HasWAL(name) {
		if err := HostFile(ctx, host, set, backup.WALName(name), wal, r); err != nil {
			return err
		}
	}
	return HostFile(ctx, host, set, name, file, r)
}
