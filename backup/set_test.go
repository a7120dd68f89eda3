package backup

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// keys makes an age key and gives its public half and the file of its private one.
func keys(t testing.TB) (recipient, file string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	file = filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte("# a comment\n"+id.String()+"\n"), 0o600))
	return id.Recipient().String(), file
}

func openIn(t testing.TB, dir string) *Set {
	t.Helper()
	recipient, key := keys(t)
	s, err := Open(dir, []string{recipient}, []string{key})
	require.NoError(t, err)
	return s
}

func store(t testing.TB, s *Set, name string, kind Kind, text string, opts ...CreateOption) Artifact {
	t.Helper()
	w, err := s.Create(name, kind, opts...)
	require.NoError(t, err)
	defer w.Abort()
	_, err = io.WriteString(w, text)
	require.NoError(t, err)
	a, err := w.Commit(map[string]string{"k": "v"})
	require.NoError(t, err)
	return a
}

func fetch(t testing.TB, s *Set, name string) string {
	t.Helper()
	r, err := s.Reader(name)
	require.NoError(t, err)
	defer r.Close()
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(data)
}

// filesOf lists what is in the set's directory.
func filesOf(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			rel, _ := filepath.Rel(dir, p)
			out = append(out, rel)
		}
		require.Equal(t, want, st.Mode().Perm(), p)
		return nil
	}))
	return out
}

func TestSetKeepsArtifacts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "set")
	recipient, key := keys(t)
	s, err := Open(dir, []string{recipient}, []string{key})
	require.NoError(t, err)
	long := strings.Repeat("compressible ", 100000)
	plain := store(t, s, "a/plain", KindFile, long)
	packed := store(t, s, "packed", KindFile, long, Compressed())
	store(t, s, "empty", KindFile, "", Compressed())
	require.EqualValues(t, len(long), plain.ContentSize)
	require.Less(t, packed.Size, plain.Size/10)

	again, err := Open(dir, nil, []string{key})
	require.NoError(t, err)
	require.Equal(t, s.Artifacts(), again.Artifacts())
	require.Equal(t, long, fetch(t, again, "a/plain"))
	require.Equal(t, long, fetch(t, again, "packed"))
	require.Equal(t, "", fetch(t, again, "empty"))
	require.NoError(t, again.Verify(t.Context(), []string{"a/plain"}, nil))
	r, n, c, err := again.ReaderAt("a/plain")
	require.NoError(t, err)
	defer c.Close()
	require.EqualValues(t, len(long), n)
	part := make([]byte, 10)
	_, err = r.ReadAt(part, 700001)
	require.NoError(t, err)
	require.Equal(t, long[700001:700011], string(part))
	_, _, _, err = again.ReaderAt("packed")
	require.ErrorContains(t, err, "compressed")

	_, err = again.Create("x", KindFile)
	require.ErrorIs(t, err, ErrReadOnly)
	_, err = again.Reader("nothing")
	require.ErrorIs(t, err, fs.ErrNotExist)
	for _, bad := range []string{"", "/a", "../a", "a//b", "a/../b", ".a", "a b"} {
		_, err = s.Create(bad, KindFile)
		require.ErrorContains(t, err, "not allowed", bad)
	}
	require.Equal(t, []string{"a/plain.age", "empty.age", "manifest.json", "packed.age"}, filesOf(t, dir))

	for _, file := range filesOf(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, file))
		require.NoError(t, err)
		require.NotContains(t, string(data), "compressible", "nothing lies there unencrypted")
	}
	// The manifest stays JSON that any program can read.
	var any map[string]any
	data, err := os.ReadFile(filepath.Join(dir, manifestFile))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &any))
}

func TestSetHoldsOnlyWhatIsComplete(t *testing.T) {
	dir := t.TempDir()
	recipient, key := keys(t)
	s, err := Open(dir, []string{recipient}, []string{key})
	require.NoError(t, err)
	store(t, s, "kept", KindFile, "first")

	w, err := s.Create("kept", KindFile)
	require.NoError(t, err)
	_, err = s.Create("kept", KindFile)
	require.ErrorContains(t, err, "being written already")
	_, err = io.WriteString(w, "second")
	require.NoError(t, err)
	require.Equal(t, "first", fetch(t, s, "kept"), "the old one stays until the new one is complete")
	w.Abort()
	require.Equal(t, []string{"kept.age", "manifest.json"}, filesOf(t, dir))

	store(t, s, "kept", KindFile, "third")
	require.Equal(t, "third", fetch(t, s, "kept"))
	require.Len(t, filesOf(t, dir), 2, "the replaced file is gone")
	_, err = w.Commit(nil)
	require.Error(t, err)

	// A crash leaves a temporary file, or a file that the manifest does not
	// know; the next run removes both, somebody who only looks does not.
	left := []string{"volumes/x/full.age.tmp", "kept.7.age", ".manifest.json12345"}
	for _, f := range left {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, f), []byte("part"), 0o600))
	}
	_, err = Open(dir, nil, []string{key})
	require.NoError(t, err)
	require.Len(t, filesOf(t, dir), 5)
	_, err = Open(dir, []string{recipient}, []string{key})
	require.NoError(t, err)
	require.Len(t, filesOf(t, dir), 2)

	require.NoError(t, s.Remove("kept"))
	require.NoError(t, s.Remove("kept"))
	require.Equal(t, []string{"manifest.json"}, filesOf(t, dir))
}

func TestManifestIsNotMadeUp(t *testing.T) {
	dir := t.TempDir()
	recipient, _ := keys(t)
	_, err := Open(dir, nil, nil)
	var bad *ManifestError
	require.ErrorAs(t, err, &bad, "a set to read must be there")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lost.age"), nil, 0o600))
	_, err = Open(dir, []string{recipient}, nil)
	require.ErrorAs(t, err, &bad)
	require.ErrorContains(t, err, "lost.age is there")
	_, err = os.Stat(filepath.Join(dir, "lost.age"))
	require.NoError(t, err)
}

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	sshPub, err := ssh.NewPublicKey(pub)
	require.NoError(t, err)
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPub))) + " admin@laptop"
	save := func(name string, block *pem.Block, err error) string {
		require.NoError(t, err)
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
		return file
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	open := save("open", block, err)
	block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("secret"))
	locked := save("locked", block, err)
	recipient, key := keys(t)

	set := filepath.Join(dir, "set")
	s, err := Open(set, []string{line, recipient}, nil)
	require.NoError(t, err)
	store(t, s, "x", KindFile, "hello")
	_, err = s.Reader("x")
	require.ErrorContains(t, err, "artifact x: no identity is given; it is encrypted to ssh-ed25519 "+ssh.FingerprintSHA256(sshPub)+" admin@laptop, "+recipient)
	for _, file := range []string{open, key} {
		s, err := Open(set, nil, []string{file})
		require.NoError(t, err)
		require.Equal(t, "hello", fetch(t, s, "x"))
	}

	_, err = Open(set, nil, []string{locked})
	var protected *EncryptedKeyError
	require.ErrorAs(t, err, &protected)
	require.Equal(t, locked, protected.File)
	asked := 0
	s, err = OpenAsking(set, nil, []string{locked}, func(file string) ([]byte, error) {
		asked++
		require.Equal(t, locked, file)
		return []byte("secret"), nil
	})
	require.NoError(t, err)
	require.Zero(t, asked, "nobody is asked before it is needed")
	require.Equal(t, "hello", fetch(t, s, "x"))
	s, err = OpenAsking(set, nil, []string{locked}, func(string) ([]byte, error) { return nil, errors.New("declined") })
	require.NoError(t, err)
	_, err = s.Reader("x")
	require.ErrorAs(t, err, &protected)
	require.ErrorContains(t, err, "declined")
	require.NotContains(t, err.Error(), "damaged")
	s, err = OpenAsking(set, nil, []string{locked}, func(string) ([]byte, error) { return []byte("another"), nil })
	require.NoError(t, err)
	_, err = s.Reader("x")
	require.ErrorAs(t, err, &protected)

	_, other := keys(t)
	s, err = Open(set, nil, []string{other})
	require.NoError(t, err)
	var none *NoIdentityError
	_, err = s.Reader("x")
	require.ErrorAs(t, err, &none)
	require.ErrorContains(t, err, "artifact x: none of the identities opens it; it is encrypted to ssh-ed25519 SHA256:")
	require.ErrorContains(t, s.Verify(t.Context(), nil, nil), "artifact x: none of the identities opens it")
	_, _, _, err = s.ReaderAt("x")
	require.ErrorAs(t, err, &none)
	// The key is wanting, but the file is broken, too: that is worse.
	data, err := os.ReadFile(filepath.Join(set, "x.age"))
	require.NoError(t, err)
	data[len(data)-1] ^= 1
	require.NoError(t, os.WriteFile(filepath.Join(set, "x.age"), data, 0o600))
	_, err = s.Reader("x")
	var damaged *DamagedError
	require.ErrorAs(t, err, &damaged)

	for _, bad := range []string{"age1nonsense", "ssh-ed25519 AAAA", "ecdsa-sha2-nistp256 AAAA", ""} {
		_, err = ParseRecipients([]string{bad})
		require.Error(t, err, bad)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "junk"), []byte("junk"), 0o600))
	_, err = ParseIdentities([]string{filepath.Join(dir, "junk")}, nil)
	require.ErrorContains(t, err, "junk")
}

func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("mounting a small file system needs root")
		}
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %s", out)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	s := openIn(t, dir)
	store(t, s, "small", KindFile, "fits")
	w, err := s.Create("big", KindFile, Expect(50<<20))
	require.NoError(t, err)
	defer w.Abort()
	block := bytes.Repeat([]byte("x"), 64<<10)
	for err == nil {
		_, err = w.Write(block)
	}
	var full *DiskFullError
	require.ErrorAs(t, err, &full)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Equal(t, dir, full.Dir)
	require.EqualValues(t, 50<<20, full.Expected)
	require.Greater(t, full.Free, int64(500<<10), "the part is gone before the free space is told")
	require.ErrorContains(t, err, fmt.Sprintf("needs up to %d bytes, and %d bytes are free", 50<<20, full.Free))
	_, err = w.Commit(nil)
	require.ErrorAs(t, err, &full)
	require.Equal(t, []string{"manifest.json", "small.age"}, filesOf(t, dir))
	require.Equal(t, "fits", fetch(t, s, "small"))
	require.NoError(t, s.Verify(t.Context(), nil, nil))
}

func FuzzManifest(f *testing.F) {
	data, err := manifest{Artifacts: []Artifact{{Name: "a", Kind: KindFile, File: "a.age", SHA256: strings.Repeat("0", 64), ContentSHA256: strings.Repeat("1", 64), Codec: None}}}.encode()
	require.NoError(f, err)
	f.Add(data)
	f.Add([]byte(manifestHead))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeManifest(data)
		if err != nil {
			return
		}
		for _, a := range m.Artifacts {
			if !filepath.IsLocal(a.File) {
				t.Fatalf("file %q leads out of the set", a.File)
			}
		}
	})
}
