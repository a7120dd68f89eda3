package backup

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-multierror"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/remote"
)

func write(t testing.TB, file string, data []byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, data, 0o640))
}

// smallSet takes one artifact of every kind from a host.
func smallSet(t *testing.T, dir string) (*Set, *remote.Host, []string) {
	t.Helper()
	sshtest.Root(t)
	h := sshtest.Dial(t)
	ctx := t.Context()
	s := openIn(t, dir)
	src := t.TempDir()
	vol := VolumeRef{ID: fmt.Sprintf("set-%d", os.Getpid()), Path: filepath.Join(src, "pv")}
	t.Cleanup(func() { require.NoError(t, Forget(context.Background(), h, vol)) })
	for i := range 20 {
		write(t, filepath.Join(vol.Path, fmt.Sprint("f", i)), bytes.Repeat([]byte{byte(i)}, 100*i))
	}
	require.NoError(t, os.Link(filepath.Join(vol.Path, "f1"), filepath.Join(vol.Path, "link")))
	require.NoError(t, Take(ctx, h, vol, s, nil))
	write(t, filepath.Join(vol.Path, "f2"), []byte("changed"))
	require.NoError(t, os.Remove(filepath.Join(vol.Path, "f3")))
	require.NoError(t, Delta(ctx, h, vol, s, nil))

	main, wal := database(t, 4096, 5, 5)
	write(t, filepath.Join(src, "db/state.db"), main)
	write(t, filepath.Join(src, "db/state.db-wal"), wal)
	require.NoError(t, Datastore(ctx, h, s, "k3s/state.db", filepath.Join(src, "db/state.db"), KineTable, nil))
	write(t, filepath.Join(src, "etc/config.yaml"), []byte("cluster-cidr: 10.42.0.0/16\n"))
	require.NoError(t, Tree(ctx, h, s, TreeRef{Name: "k3s/config", Paths: []string{filepath.Join(src, "etc")}}, nil))
	store(t, s, "objects", KindObjects, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}`+"\n"+`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}`+"\n", Compressed())
	store(t, s, "secrets", KindSecrets, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}`+"\n", Compressed())
	store(t, s, "notes", KindFile, "anything")
	return s, h, vol.Artifacts()
}

// TestEveryFlippedBitIsFound flips single bits anywhere in the files of a set.
func TestEveryFlippedBitIsFound(t *testing.T) {
	dir := t.TempDir()
	s, _, required := smallSet(t, dir)
	ctx := t.Context()
	require.NoError(t, s.Verify(ctx, append(required, "objects", "secrets", "k3s/state.db", "k3s/state.db-wal", "k3s/config"), nil))
	byFile := map[string]string{}
	for _, a := range s.Artifacts() {
		byFile[a.File] = a.Name
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	files := filesOf(t, dir)
	require.Len(t, files, len(byFile)+1)
	flips := 1000
	if testing.Short() {
		flips = 50
	}
	for n := range flips {
		file := files[n%len(files)]
		path := filepath.Join(dir, file)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		at, bit := rnd.IntN(len(data)), rnd.IntN(8)
		data[at] ^= 1 << bit
		require.NoError(t, os.WriteFile(path, data, 0o600))
		err = s.Verify(ctx, nil, nil)
		name, isArtifact := byFile[file]
		switch {
		case !isArtifact:
			var bad *ManifestError
			require.ErrorAs(t, err, &bad, "bit %d of byte %d of %s", bit, at, file)
			_, err = Open(dir, nil, nil)
			require.ErrorAs(t, err, &bad)
		default:
			require.ErrorContains(t, err, "artifact "+name+" ", "bit %d of byte %d of %s", bit, at, file)
			require.ErrorContains(t, err, "is damaged")
			r, err := s.Reader(name)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			require.ErrorContains(t, err, "artifact "+name+" ")
		}
		data[at] ^= 1 << bit
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	require.NoError(t, s.Verify(ctx, nil, nil))
}

func TestVerifyNamesAllThatIsWrong(t *testing.T) {
	dir := t.TempDir()
	s, _, _ := smallSet(t, dir)
	at := func(name string) string {
		a, ok := s.Artifact(name)
		require.True(t, ok)
		return filepath.Join(dir, a.File)
	}
	require.NoError(t, os.Remove(at("notes")))
	data, err := os.ReadFile(at("objects"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(at("objects"), data[:len(data)-1], 0o600))
	store(t, s, "bad-objects", KindObjects, `{"apiVersion":"v1","kind":"Node","metadata":{}}`)
	store(t, s, "bad-secrets", KindSecrets, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}}`)
	store(t, s, "bad-json", KindObjects, `{"apiVersion":`)
	store(t, s, "bad-list", KindList, "no separator\x00")
	store(t, s, "bad-kind", "mystery", "x")
	store(t, s, "k3s/state.db-wal", KindSQLiteWAL, "of another copy")
	err = s.Verify(t.Context(), []string{"wanted"}, nil)
	var all *multierror.Error
	require.ErrorAs(t, err, &all)
	for _, want := range []string{
		"no artifact wanted", "artifact notes (notes.age) is damaged: its file is missing: open ", "artifact objects (objects.age) is damaged: it has",
		"artifact bad-objects (bad-objects.age) is damaged: object 1 has no", "object 1 (c) is a ConfigMap",
		"artifact bad-json", "artifact bad-list", `kind "mystery"`, "write-ahead log in the set belongs to another copy",
	} {
		require.ErrorContains(t, err, want)
	}
	require.Len(t, all.Errors, 9)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Verify(ctx, nil, nil), context.Canceled)
}

// TestVerifyComparesListAndArchives takes an entry out of the archives' lists
// that the host had.
func TestVerifyComparesListAndArchives(t *testing.T) {
	s, _, required := smallSet(t, t.TempDir())
	index0 := required[len(required)-1]
	a, ok := s.Artifact(index0)
	require.True(t, ok)
	text := fetch(t, s, index0)
	w, err := s.Create(index0, KindIndex, Compressed())
	require.NoError(t, err)
	_, err = io.WriteString(w, text+"zz-more//f 644 0 0 1 1.0 \x00")
	require.NoError(t, err)
	_, err = w.Commit(a.Meta)
	require.NoError(t, err)
	require.ErrorContains(t, s.Verify(t.Context(), nil, nil), `"zz-more" was on the host, but no archive of the set holds it`)
}

func TestTreeRefusesWhatIsMissing(t *testing.T) {
	s, h, _ := smallSet(t, t.TempDir())
	ctx := t.Context()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), []byte("a"))
	err := Tree(ctx, h, s, TreeRef{Name: "t", Paths: []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}}, nil)
	require.ErrorContains(t, err, filepath.Join(dir, "b")+" is missing")
	require.ErrorContains(t, Tree(ctx, h, s, TreeRef{Name: "t", Paths: []string{"relative"}}, nil), "absolute")
	require.NoError(t, Tree(ctx, h, s, TreeRef{Name: "t", Paths: []string{filepath.Join(dir, "a")}, Optional: []string{filepath.Join(dir, "b")}}, nil))
	data, err := s.File("t", filepath.Join(dir, "a"))
	require.NoError(t, err)
	require.Equal(t, "a", string(data))
	_, err = s.File("t", filepath.Join(dir, "b"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, Tree(ctx, h, s, TreeRef{Name: "none", Optional: []string{filepath.Join(dir, "b")}}, nil))
	require.NoError(t, s.Members("none", func(m index.Member) error { return fmt.Errorf("unexpected %q", m.Path) }))
	require.NoError(t, s.Verify(ctx, []string{"t", "none"}, nil))
	require.ErrorContains(t, HostFile(ctx, h, s, "d", dir, nil), "not a regular file")
	require.Error(t, HostFile(ctx, h, s, "d", filepath.Join(dir, "nothing"), nil))
}

func TestHostToolsAreThere(t *testing.T) {
	h := sshtest.Dial(t)
	require.NoError(t, HostTools(t.Context(), h))
}

func TestStderrVerdict(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for name, tc := range map[string]struct {
		said, err string
		tolerated []string
	}{
		"fine":      {said: streamMark + sum + "\n"},
		"cut":       {said: "tar: x\n", err: "ended without saying"},
		"failed":    {said: "tar: disk\n" + streamMark + sum + " tar=2\n", err: "tar failed with status 2: tar: disk"},
		"killed":    {said: streamMark + sum + " pack=killed\n", err: "pack failed with status killed"},
		"changed":   {said: "tar: ./a: file changed as we read it\n" + streamMark + sum + " tar=1\n", tolerated: []string{"tar=1"}},
		"tolerated": {said: streamMark + sum + " tar=1\n", err: "tar failed with status 1"},
		"attribute": {said: "tar: ./a: Warning: Cannot llistxattr: Permission denied\n" + streamMark + sum + "\n", err: "Cannot llistxattr"},
	} {
		t.Run(name, func(t *testing.T) {
			log := &stderrLog{allow: liveLine}
			for _, b := range []byte(tc.said) {
				log.Write([]byte{b})
			}
			got, err := log.verdict(tc.tolerated...)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, sum, got)
		})
	}
}
