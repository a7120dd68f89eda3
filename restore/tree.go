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
// there besides stays. The contents are read again on the host and proven equal.
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

// makeAbove makes missing directories above the members as they were.
func makeAbove(ctx context.Context, host *remote.Host, parents string, members []string) error {
	var b strings.Builder
	b.WriteString("set -eu\n")
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
			d := remote.Quote(f[3])
			fmt.Fprintf(&b, "[ -d %s ] || { mkdir -- %s; chown %s -- %s; chmod %s -- %s; }\n", d, d, remote.Quote(f[1]+":"+f[2]), d, remote.Quote(f[0]), d)
		}
	}
	return host.Run(ctx, b.String())
}

// proveTree has the host read the restored files and compares their sums with the list.
func proveTree(ctx context.Context, host *remote.Host, state string, set *backup.Set, name string, members []string) error {
	pr, pw := io.Pipe()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		out := bufio.NewWriterSize(pw, 64<<10)
		err := set.Members(name, func(m index.Member) error {
			if m.Type != 'f' || !within("/"+m.Path, members) {
				return nil
			}
			_, err := io.WriteString(out, "./"+m.Path+"\x00")
			return err
		})
		pw.CloseWithError(errors.Join(err, out.Flush()))
	}()
	defer func() {
		pr.Close()
		<-sent
	}()
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
	}, remote.Stdin(pr))
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
