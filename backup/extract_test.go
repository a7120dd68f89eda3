package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
)

// shell runs a script in dir, the way a person would look at it.
func shell(t testing.TB, dir, script string) string {
	t.Helper()
	cmd := exec.Command("bash", "-euc", "set -o pipefail\n"+script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	require.NoError(t, err, "%s", said.String())
	return string(out)
}

// seen is what other programs than this one see of a tree: names, metadata,
// contents, attributes, hard links, holes.
func seen(t testing.TB, dir string) []string {
	t.Helper()
	out := strings.Split(shell(t, dir, `
find . -type d -printf '%p %y %m %U %G %T@\0' -o -printf '%p %y %m %U %G %s %T@ %l\0' | sort -z
find . -type f -print0 | sort -z | xargs -0 sha256sum -z
find . -size +1M -printf '%p in %k KiB\0' | sort -z
find . -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex -- | tr '\n' '\0'
`), "\x00")
	groups := map[string][]string{}
	for _, line := range strings.Split(shell(t, dir, `find . ! -type d -links +1 -printf '%i %p\0'`), "\x00") {
		inode, name, _ := strings.Cut(line, " ")
		groups[inode] = append(groups[inode], name)
	}
	var links []string
	for _, names := range groups {
		slices.Sort(names)
		links = append(links, fmt.Sprintf("links %q", names))
	}
	slices.Sort(links)
	return append(out, links...)
}

// everyKind fills a directory with what a volume may have in it, and
// changeEverything changes it as workloads do between the two passes.
const everyKind = `
chown 4242:2424 . && chmod 2711 . && setfattr -n user.root -v own .
for n in 'with space' $'new\nline' -dash "quote'\"" 'back\slash' ünïcödé $'latin\xe9' 'a' 'a!' a.b a0 .hidden '*' 'trailing '; do
	mkdir -p names "dirs/$n/sub"
	echo "content of $n" >"names/$n"
	echo "deep content of $n" >"dirs/$n/sub/$n"
done
deep=deep; for i in 1 2 3 4 5 6 7 8; do deep=$deep/$(printf 'deeper%.0s' 1 2 3 4 5 6 7 8); done; mkdir -p "$deep"; echo bottom >"$deep/bottom"
mkdir modes links empty; : >nothing
for m in 0 400 777 4755 6755 111; do echo "$m" >"modes/$m"; chown "1$m:70$m" "modes/$m"; chmod "$m" "modes/$m"; done
mkdir -m 1777 sticky; mkdir readonly; echo x >readonly/in; chmod 500 readonly; chown -R 3000000:3000001 readonly
for l in gone kept split later; do echo "$l" >"links/$l-1"; ln "links/$l-1" "links/$l-2"; ln "links/$l-1" "a link to $l"; done
ln -s /nowhere//at\ all links/dangling; ln -s kept-1 links/relative; ln links/relative links/'relative too'; chown -h 12:34 links/relative
mkfifo fifo; mknod null c 1 3; mknod disk b 7 300
truncate -s 20M sparse; printf island | dd of=sparse bs=1 seek=5M conv=notrunc status=none
truncate -s 30M holes-only
truncate -s 12M late-sparse
head -c 700000 /dev/urandom >noise; head -c 512 /dev/urandom >block; head -c 513 /dev/urandom >block1
setfattr -n user.note -v 0x6100ff62 names/a; setfattr -n user.empty names/a; setfattr -n 'user.a=b%' -v x names/a0
setfattr -n trusted.overlay.opaque -v y dirs/a; setfattr -h -n trusted.link -v z links/dangling
setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 modes/777
setfacl -m u:1234:rwx,g:55:r names/a! && setfacl -d -m u:1234:rwx,g:55:r empty && setfacl -m u:99:r-x empty
touch -d '1969-07-20 20:17:40.123456789 UTC' names/a0; touch -d '2099-01-02 03:04:05.000000006 UTC' names/a.b
mkdir -p file-to-dir.d dir-to-file/sub replaced moving other outer; echo f >file-to-dir; echo x >dir-to-file/sub/x
echo old >replaced/x; echo r >rename-me; mkdir -p rename-dir/sub; echo x >rename-dir/sub/x
# Names of one file in a directory that is renamed, that leaves the volume, and elsewhere.
echo both >moving/x; ln moving/x other/y; ln moving/x 'other/a first'
echo leaves >outer/x; ln outer/x other/stays; ln outer/x other/stays-too
echo swap >replaced/s; ln replaced/s other/swap
`

const changeEverything = `
mkdir 'new dir'; echo new >'new dir/new file'; echo more >>names/a
rm 'names/with space' fifo; rm -r 'dirs/with space' 'dirs/a.b'; rm links/gone-1
mv names/a0 'names/moved'; mv rename-me 'renamed'; mv rename-dir 'renamed dir'; mv 'renamed dir/sub' 'renamed dir/sub2'
rm file-to-dir; mkdir file-to-dir; echo below >file-to-dir/below
rm -r dir-to-file; echo 'now a file' >dir-to-file; chown 5:6 dir-to-file
rm 'names/*'; ln -s a! 'names/*'; rm modes/400; mkdir modes/400; mknod modes/111.p p
chmod 640 'names/-dash'; chown 7:8 names/ünïcödé; setfattr -n user.late -v late "names/quote'\""; setfacl -m u:77:rw 'names/trailing '
setfattr -x user.note names/a
rm links/split-2; echo 'split off' >links/split-2; ln links/later-1 links/later-0; ln links/kept-1 'zz kept'
t=$(stat -c %y "names/back\slash"); printf '%0*d' "$(stat -c %s 'names/back\slash')" 0 >'names/back\slash'; touch -d "$t" 'names/back\slash'
printf second | dd of=sparse bs=1 seek=9M conv=notrunc status=none; printf data | dd of=late-sparse bs=1 seek=3M conv=notrunc status=none
printf X | dd of=noise bs=1 seek=1000 conv=notrunc status=none
mv moving moved; mv outer "$1"; mv replaced replaced.old; mkdir replaced; echo other >replaced/s
touch -d @1.000000001 empty; chmod 2755 .
`

// taken makes a volume of every kind and takes it, with a delta if asked to.
func taken(t *testing.T, delta bool) (*Set, VolumeRef) {
	t.Helper()
	sshtest.Root(t)
	sshtest.Need(t, "setfacl", "acl")
	sshtest.Need(t, "getfattr", "attr")
	h := sshtest.Dial(t)
	require.NoError(t, HostTools(t.Context(), h))
	s := openIn(t, t.TempDir())
	vol := VolumeRef{ID: fmt.Sprintf("extract-%d", os.Getpid()), Path: filepath.Join(t.TempDir(), "pv"), Claim: "data/shop"}
	t.Cleanup(func() { require.NoError(t, Forget(context.Background(), h, vol)) })
	require.NoError(t, os.Mkdir(vol.Path, 0o755))
	shell(t, vol.Path, everyKind)
	time.Sleep(3 * time.Second) // younger entries are taken again by the delta, changed or not
	require.NoError(t, Take(t.Context(), h, vol, s, nil))
	if delta {
		shell(t, vol.Path, "set -- "+filepath.Join(filepath.Dir(vol.Path), "outside")+"\n"+changeEverything)
		require.NoError(t, Delta(t.Context(), h, vol, s, nil))
		require.NoError(t, s.Verify(t.Context(), vol.Artifacts(), nil))
	}
	return s, vol
}

// unpack gives an archive to GNU tar as the help of `migrate backup extract` says.
func unpack(t testing.TB, archive string) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("tar", "-C", dir, "-xpf", archive, "--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--warning=no-timestamp").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
	return dir
}

func TestVolumeTarIsTheVolume(t *testing.T) {
	s, vol := taken(t, true)
	require.Equal(t, []VolumeRef{vol}, s.Volumes())
	require.True(t, s.Whole(vol))
	held := map[string]bool{}
	require.NoError(t, s.Members(vol.Delta(), func(m index.Member) error {
		held[m.Path] = true
		return nil
	}))
	for path, want := range map[string]bool{"noise": true, "holes-only": false, "links/relative": false, "other/y": true, "other/stays": true, "dirs/a!/sub/a!": false} {
		require.Equal(t, want, held[path], path)
	}
	file := filepath.Join(t.TempDir(), "pv.tar")
	require.NoError(t, s.ExtractFile(t.Context(), vol.Name(), file, nil))
	want := seen(t, vol.Path)
	require.Contains(t, strings.Join(want, "\n"), `links ["./moved/x" "./other/a first" "./other/y"]`)
	require.Contains(t, strings.Join(want, "\n"), `links ["./other/stays" "./other/stays-too"]`)
	require.Empty(t, cmp.Diff(want, seen(t, unpack(t, file))))
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.Less(t, st.Size(), int64(5<<20), "holes stay holes")
}

func TestVolumeTarBeforeTheDelta(t *testing.T) {
	s, vol := taken(t, false)
	require.False(t, s.Whole(vol))
	var whole, full bytes.Buffer
	require.NoError(t, s.Extract(t.Context(), vol.Name(), &whole, nil))
	require.NoError(t, s.Extract(t.Context(), vol.Full(), &full, nil))
	require.Equal(t, full.Bytes(), whole.Bytes())
	file := filepath.Join(t.TempDir(), "pv.tar")
	require.NoError(t, os.WriteFile(file, whole.Bytes(), 0o600))
	require.Empty(t, cmp.Diff(seen(t, vol.Path), seen(t, unpack(t, file))))
}

// member is a member of a hand-made archive.
type member struct {
	path, link, text string
	dir              bool
}

func archive(t rapidOrTest, members ...member) string {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		hdr := &tar.Header{Name: "./" + m.path, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(m.text)), ModTime: time.Unix(1, 5), Format: tar.FormatPAX}
		switch {
		case m.dir:
			hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o755
		case m.link != "":
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, "./"+m.link
		}
		require.NoError(t, w.WriteHeader(hdr))
		_, err := io.WriteString(w, m.text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return out.String()
}

type rapidOrTest interface {
	require.TestingT
	Helper()
}

// byHand makes a set with one volume out of two archives and the list of what
// there was in the end.
func byHand(t rapidOrTest, s *Set, id string, full, delta []member, last []index.Entry) VolumeRef {
	t.Helper()
	vol := VolumeRef{ID: id}
	put := func(name string, kind Kind, text string, meta map[string]string) Artifact {
		w, err := s.Create(name, kind)
		require.NoError(t, err)
		defer w.Abort()
		_, err = io.WriteString(w, text)
		require.NoError(t, err)
		a, err := w.Commit(meta)
		require.NoError(t, err)
		return a
	}
	f := put(vol.Full(), KindTar, archive(t, full...), nil)
	d := put(vol.Delta(), KindTar, archive(t, delta...), map[string]string{metaFull: f.ContentSHA256})
	var list bytes.Buffer
	w := index.NewWriter(&list)
	for _, e := range last {
		require.NoError(t, w.Write(e.Lasting()))
	}
	put(vol.Index(), KindIndex, list.String(), map[string]string{metaFull: f.ContentSHA256, metaDelta: d.ContentSHA256})
	return vol
}

func entry(m member) index.Entry {
	e := index.Entry{Path: m.path, Type: 'f', Size: fmt.Sprint(len(m.text)), Mode: "644", UID: "0", GID: "0", MTime: "1.5"}
	if m.dir {
		e.Type, e.Size = 'd', "-"
	}
	return e
}

// TestVolumeTarMerges merges archives of any members, and compares with what
// the words say: the delta's before the full pass's, and none that the list has not.
func TestVolumeTarMerges(t *testing.T) {
	s := openIn(t, t.TempDir())
	name := rapid.StringOfN(rapid.SampledFrom([]rune("ab!.\n é")), 1, 3, -1).Filter(func(s string) bool { return s != "." && s != ".." })
	content := rapid.Map(rapid.IntRange(0, 1100), func(n int) string { return strings.Repeat("x", n) })
	file := rapid.Custom(func(t *rapid.T) member {
		return member{path: strings.Join(rapid.SliceOfN(name, 1, 3).Draw(t, "name"), "/"), text: content.Draw(t, "text"), dir: rapid.Bool().Draw(t, "dir")}
	})
	files := rapid.Map(rapid.SliceOfNDistinct(file, 0, 12, func(m member) string { return m.path }), func(ms []member) []member {
		for i := range ms {
			if ms[i].dir {
				ms[i].text = ""
			}
		}
		slices.SortFunc(ms, func(a, b member) int { return index.Compare(a.path, b.path) })
		return ms
	})
	rapid.Check(t, func(t *rapid.T) {
		full, delta := files.Draw(t, "full"), files.Draw(t, "delta")
		var want []member
		var last []index.Entry
		all := map[string]member{}
		for _, m := range full {
			all[m.path] = m
		}
		for _, m := range delta {
			all[m.path] = m
		}
		for _, p := range slices.SortedFunc(maps.Keys(all), index.Compare) {
			// Whatever the delta has was there in the end.
			if m := all[p]; slices.Contains(delta, m) || rapid.Bool().Draw(t, "lasts") {
				want = append(want, m)
			}
		}
		for _, m := range want {
			last = append(last, entry(m))
		}
		vol := byHand(t, s, "pv", full, delta, last)
		var got bytes.Buffer
		require.NoError(t, s.VolumeTar(context.Background(), vol, &got, nil))
		require.Equal(t, archive(t, want...), got.String())
	})
}

func TestVolumeTarRefusesWhatIsNotTheVolume(t *testing.T) {
	a, b, c := member{path: "a", text: "1"}, member{path: "b", link: "a"}, member{path: "c", text: "22"}
	link := index.Entry{Path: "b", Type: 'f', Size: "1"}
	for name, tc := range map[string]struct {
		full, delta []member
		last        []index.Entry
		err         string
	}{
		"link":        {full: []member{a, b}, last: []index.Entry{entry(a), link}},
		"link's file": {full: []member{a, b, c}, last: []index.Entry{link, entry(c)}, err: `"b" is a hard link to "a" in the full pass, which changed later while the link did not; extract volumes/pv/full, then volumes/pv/delta over it`},
		"other file":  {full: []member{a, b}, delta: []member{{path: "a", text: "2"}}, last: []index.Entry{entry(a), link}, err: `"b" is a hard link to "a"`},
		"nowhere":     {full: []member{a}, last: []index.Entry{entry(a), entry(c)}, err: `"c" was on the host, but no archive of the set holds it`},
		"type":        {full: []member{a}, last: []index.Entry{entry(member{path: "a", dir: true})}, err: `"a" was of type d on the host, and f in the archive`},
		"size":        {full: []member{a}, last: []index.Entry{entry(member{path: "a", text: "long"})}, err: `"a" had 4 bytes on the host, and 1 in the archive`},
	} {
		t.Run(name, func(t *testing.T) {
			s := openIn(t, t.TempDir())
			vol := byHand(t, s, "pv", tc.full, tc.delta, tc.last)
			var out bytes.Buffer
			err := s.VolumeTar(t.Context(), vol, &out, nil)
			if tc.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "extracting volume pv: ")
			require.ErrorContains(t, err, tc.err)
			require.False(t, bytes.HasSuffix(out.Bytes(), make([]byte, 2*tarBlock)), "the end of the archive was not written")
		})
	}
}

// TestExtractRefusesDamage flips bits of the artifacts that a volume is made of.
func TestExtractRefusesDamage(t *testing.T) {
	s, vol := taken(t, true)
	for _, name := range []string{vol.Full(), vol.Delta(), vol.Index()} {
		a, _ := s.Artifact(name)
		path := filepath.Join(s.Dir(), a.File)
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, at := range []int{20, len(whole) / 2, len(whole) - 1} {
			data := bytes.Clone(whole)
			data[at] ^= 8
			require.NoError(t, os.WriteFile(path, data, 0o600))
			for _, what := range []string{vol.Name(), name} {
				to := filepath.Join(t.TempDir(), "to")
				err := s.ExtractFile(t.Context(), what, to, nil)
				var damaged *DamagedError
				require.ErrorAs(t, err, &damaged, "%s, byte %d", what, at)
				require.Equal(t, name, damaged.Name)
				left, err := os.ReadDir(filepath.Dir(to))
				require.NoError(t, err)
				require.Empty(t, left)
			}
		}
		require.NoError(t, os.WriteFile(path, whole, 0o600))
	}
	require.NoError(t, s.Extract(t.Context(), vol.Name(), io.Discard, nil))
}

func TestExtractFile(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, filepath.Join(dir, "set"))
	text := strings.Repeat("compressible ", 100000)
	store(t, s, "k3s/notes", KindFile, text, Compressed())
	before := filesOf(t, s.Dir())
	file := filepath.Join(dir, "out", "notes")
	require.ErrorIs(t, s.ExtractFile(t.Context(), "k3s/notes", file, nil), fs.ErrNotExist)
	require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
	require.NoError(t, s.ExtractFile(t.Context(), "k3s/notes", file, nil))
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, text, string(data))
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), st.Mode())

	require.NoError(t, os.WriteFile(file, []byte("mine"), 0o600))
	require.NoError(t, os.Symlink("nowhere", file+".link"))
	for _, there := range []string{file, file + ".link", filepath.Dir(file)} {
		require.ErrorIs(t, s.ExtractFile(t.Context(), "k3s/notes", there, nil), fs.ErrExist)
	}
	data, err = os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "mine", string(data))

	err = s.ExtractFile(t.Context(), "k3s/nothing", file+"2", nil)
	var unknown *NotFoundError
	require.ErrorAs(t, err, &unknown)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.ExtractFile(ctx, "k3s/notes", file+"2", nil), context.Canceled)
	full := errors.New("the pipe is gone")
	require.ErrorIs(t, s.Extract(t.Context(), "k3s/notes", failing{full}, nil), full)
	left, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, left, 2)
	require.Equal(t, before, filesOf(t, s.Dir()), "reading changes nothing in the set")
}

// failing is a writer that takes nothing.
type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestExtractFileOnFullDisk(t *testing.T) {
	sshtest.Root(t)
	dir := t.TempDir()
	s := openIn(t, filepath.Join(dir, "set"))
	store(t, s, "zeros", KindFile, strings.Repeat("\x00", 4<<20), Compressed())
	small := filepath.Join(dir, "small")
	require.NoError(t, os.Mkdir(small, 0o700))
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(small, 0)) })
	require.ErrorIs(t, s.ExtractFile(t.Context(), "zeros", filepath.Join(small, "out"), nil), unix.ENOSPC)
	left, err := os.ReadDir(small)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestCheckTellsOfEach(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	store(t, s, "good", KindFile, "x")
	store(t, s, "gone", KindFile, "x")
	store(t, s, "objects", KindObjects, `{"kind":""}`)
	require.NoError(t, os.Remove(filepath.Join(dir, "gone.age")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "good.1.age"), nil, 0o600))
	checked, err := s.Check(t.Context(), s.Artifacts(), nil)
	require.NoError(t, err)
	require.Len(t, checked, 3)
	said := map[string]error{}
	for _, c := range checked {
		said[c.Artifact.Name] = c.Err
	}
	require.NoError(t, said["good"])
	require.ErrorIs(t, said["gone"], fs.ErrNotExist)
	require.ErrorContains(t, said["gone"], "its file is missing")
	require.ErrorContains(t, said["objects"], "object 1 has no apiVersion, kind or name")
	good, _ := s.Artifact("good")
	checked, err = s.Check(t.Context(), []Artifact{good}, nil)
	require.NoError(t, err)
	require.Equal(t, []Checked{{Artifact: good}}, checked)
	strays, err := s.Strays()
	require.NoError(t, err)
	require.Equal(t, []string{"good.1.age"}, strays)
}
