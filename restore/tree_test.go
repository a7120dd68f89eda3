package restore_test

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// look is what an outsider sees of a tree, by other means than the product's
// own lists: one line for each entry with everything that must survive.
func look(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	firsts := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return nil
		}
		line := fmt.Sprintf("mode=%o owner=%d:%d mtime=%d.%09d rdev=%d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d sha256=%x", st.Size, sha256.Sum256(data))
			if st.Size > 1<<20 && st.Blocks*512 < st.Size/2 {
				line += " sparse"
			}
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" to=%q", to)
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if firsts[st.Ino] == "" {
				firsts[st.Ino] = rel
			}
			line += fmt.Sprintf(" links=%d first=%q", st.Nlink, firsts[st.Ino])
		}
		out[rel] = line + attributes(t, path)
		return nil
	})
	require.NoError(t, err)
	return out
}

// attributes are all extended attributes; ACLs are among them.
func attributes(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	require.NoError(t, err)
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		if name == "" {
			continue
		}
		val := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, val)
		require.NoError(t, err)
		fmt.Fprintf(&out, " %s=%x", name, val[:n])
	}
	return out.String()
}

func put(t testing.TB, file, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}

// grow makes a tree with everything in it that a volume may have.
func grow(t testing.TB, root string, files int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range files {
		dir := filepath.Join(root, "many", fmt.Sprintf("d%02d", i%37))
		put(t, filepath.Join(dir, fmt.Sprintf("f%05d", i)), strings.Repeat(fmt.Sprintf("%d\n", rnd.Uint64()), i%50))
	}
	names := []string{
		"with space", "new\nline", "-dash", "--files-from=x", "quote'\"", "back\\slash", "ünïcödé", "latin\xe9", "tab\t",
		"\x01low", "a", "a!", "a.b", "a0", ".hidden", "*", "x//y"[:1], strings.Repeat("long", 60), "dollar$HOME`id`", "trailing ", "%P//%y", "=",
	}
	for i, name := range names {
		put(t, filepath.Join(root, "names", name), fmt.Sprintf("content %d", i))
		put(t, filepath.Join(root, "dirs", name, "sub\x01dir", name), fmt.Sprintf("deep content %d", i))
	}
	deep := root
	for range 30 {
		deep = filepath.Join(deep, "deeper-and-deeper")
	}
	put(t, filepath.Join(deep, "bottom"), "bottom")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "empty"), 0o700))

	put(t, filepath.Join(root, "links", "one"), "linked")
	require.NoError(t, os.Link(filepath.Join(root, "links", "one"), filepath.Join(root, "links", "two")))
	require.NoError(t, os.Link(filepath.Join(root, "links", "one"), filepath.Join(root, "a link elsewhere")))
	put(t, filepath.Join(root, "links", "split1"), "to be split")
	require.NoError(t, os.Link(filepath.Join(root, "links", "split1"), filepath.Join(root, "links", "split2")))
	put(t, filepath.Join(root, "links", "later"), "gets a link later")
	require.NoError(t, os.Symlink("/nowhere//at all", filepath.Join(root, "links", "dangling")))
	require.NoError(t, os.Symlink("one", filepath.Join(root, "links", "relative")))
	require.NoError(t, os.Symlink("../empty", filepath.Join(root, "links", "directory")))
	require.NoError(t, os.Link(filepath.Join(root, "links", "relative"), filepath.Join(root, "links", "relative too")))
	require.NoError(t, unix.Lchown(filepath.Join(root, "links", "relative"), 12, 34))

	sparse, err := os.Create(filepath.Join(root, "sparse"))
	require.NoError(t, err)
	_, err = sparse.WriteAt([]byte("island"), 5<<20)
	require.NoError(t, err)
	require.NoError(t, sparse.Truncate(20<<20))
	require.NoError(t, sparse.Close())

	for i, mode := range []os.FileMode{0, 0o400, 0o777, 0o755 | os.ModeSetuid, 0o2755 | os.ModeSetgid, 0o111} {
		file := filepath.Join(root, "modes", fmt.Sprintf("m%d", i))
		put(t, file, "mode")
		require.NoError(t, os.Chown(file, 1000+i, 70000+i))
		require.NoError(t, os.Chmod(file, mode))
	}
	require.NoError(t, os.Mkdir(filepath.Join(root, "sticky"), 0o777))
	require.NoError(t, os.Chmod(filepath.Join(root, "sticky"), 0o777|os.ModeSticky|os.ModeSetgid))
	put(t, filepath.Join(root, "readonly", "in it"), "x")
	require.NoError(t, os.Chmod(filepath.Join(root, "readonly"), 0o500))
	require.NoError(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	require.NoError(t, unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))

	for _, p := range []string{"names/with space", "empty", "links/one", "sticky"} {
		require.NoError(t, unix.Setxattr(filepath.Join(root, p), "user.note", []byte("a\x00b\xff"), 0))
	}
	require.NoError(t, unix.Setxattr(filepath.Join(root, "names/a"), "trusted.overlay.opaque", []byte("y"), 0))
	// cap_net_bind_service+ep
	require.NoError(t, unix.Setxattr(filepath.Join(root, "modes/m2"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	run(t, "setfacl", "-m", "u:1234:rwx,g:55:r", filepath.Join(root, "names/a!"))
	run(t, "setfacl", "-d", "-m", "u:1234:rwx,g:55:r", filepath.Join(root, "empty"))
	run(t, "setfacl", "-m", "u:99:r-x", filepath.Join(root, "empty"))

	old := time.Date(1969, 7, 20, 20, 17, 40, 123456789, time.UTC)
	require.NoError(t, os.Chtimes(filepath.Join(root, "names/a0"), old, old))
	future := time.Date(2099, 1, 2, 3, 4, 5, 6, time.UTC)
	require.NoError(t, os.Chtimes(filepath.Join(root, "names/a.b"), future, future))

	require.NoError(t, unix.Setxattr(root, "user.root", []byte("the root's own"), 0))
	require.NoError(t, os.Chown(root, 4242, 2424))
	require.NoError(t, os.Chmod(root, 0o711|os.ModeSetgid))
}

// live changes a tree as workloads do between the two passes.
func live(t testing.TB, root string) {
	t.Helper()
	in := func(p string) string { return filepath.Join(root, p) }
	put(t, in("new dir/new file"), "new")
	put(t, in("many/d00/created"), "created")
	require.NoError(t, os.Remove(in("many/d01/f00001")))
	require.NoError(t, os.RemoveAll(in("many/d02")))
	require.NoError(t, os.Rename(in("many/d03"), in("renamed")))
	require.NoError(t, os.Rename(in("names/a"), in("names/moved")))
	// Types change: file to directory, directory to file, file to link.
	require.NoError(t, os.Remove(in("names/a.b")))
	put(t, in("names/a.b/below"), "now a directory")
	require.NoError(t, os.RemoveAll(in("dirs/a")))
	put(t, in("dirs/a"), "now a file")
	require.NoError(t, os.Remove(in("names/*")))
	require.NoError(t, os.Symlink("a!", in("names/*")))
	require.NoError(t, os.Chmod(in("names/=")[:len(in("names/="))], 0o640))
	require.NoError(t, os.Chown(in("names/tab\t"), 7, 8))
	require.NoError(t, unix.Setxattr(in("names/quote'\""), "user.late", []byte("late"), 0))
	run(t, "setfacl", "-m", "u:77:rw", in("names/trailing "))
	require.NoError(t, os.Link(in("links/later"), in("links/later too")))
	require.NoError(t, os.Remove(in("links/split2")))
	put(t, in("links/split2"), "split off")
	require.NoError(t, os.Remove(in("links/two")))

	// Same size, and the time of modification set back: only ctime tells.
	st, err := os.Stat(in("names/new\nline"))
	require.NoError(t, err)
	put(t, in("names/new\nline"), strings.Repeat("!", int(st.Size())))
	require.NoError(t, os.Chtimes(in("names/new\nline"), st.ModTime(), st.ModTime()))
	// Appended, and changed in place.
	f, err := os.OpenFile(in("many/d05/f00005"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("appended")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	s, err := os.OpenFile(in("sparse"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = s.WriteAt([]byte("second island"), 9<<20)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(in("fifo")))
	require.NoError(t, os.Chtimes(in("empty"), time.Unix(1, 1), time.Unix(1, 1)))
}
