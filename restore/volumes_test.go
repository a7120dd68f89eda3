package restore_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/restore"
)

// newSet begins a set with a key of its own.
func newSet(t testing.TB) *backup.Set {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte(id.String()+"\n"), 0o600))
	set, err := backup.Open(filepath.Join(t.TempDir(), "set"), []string{id.Recipient().String()}, []string{file})
	require.NoError(t, err)
	return set
}

var volumes atomic.Int64

// newVolume makes an empty volume that the host forgets after the test.
func newVolume(t testing.TB, h *remote.Host) backup.VolumeRef {
	t.Helper()
	vol := backup.VolumeRef{
		ID:   fmt.Sprintf("test-%d-%d", os.Getpid(), volumes.Add(1)),
		Path: filepath.Join(t.TempDir(), "base", "pvc one"),
	}
	require.NoError(t, os.MkdirAll(vol.Path, 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(vol.Path), 0o701))
	t.Cleanup(func() { require.NoError(t, backup.Forget(context.Background(), h, vol)) }) // the test's context is over by then
	return vol
}

func setup(t testing.TB) (*remote.Host, backup.VolumeRef, *backup.Set) {
	t.Helper()
	sshtest.Root(t)
	sshtest.Need(t, "setfacl", "acl")
	h := sshtest.Dial(t)
	return h, newVolume(t, h), newSet(t)
}

func TestVolumeRoundTrip(t *testing.T) {
	h, vol, set := setup(t)
	ctx := t.Context()
	require.NoError(t, backup.HostTools(ctx, h))
	grow(t, vol.Path, 3000)

	require.NoError(t, backup.Take(ctx, h, vol, set, nil))
	live(t, vol.Path)
	require.NoError(t, backup.Delta(ctx, h, vol, set, nil))
	done, err := backup.DeltaTaken(ctx, h, vol, set)
	require.NoError(t, err)
	require.True(t, done)
	want := look(t, vol.Path)

	// As the uninstall does: the directory above goes, too.
	require.NoError(t, os.RemoveAll(filepath.Dir(vol.Path)))
	ok, err := restore.VolumeDone(ctx, h, vol, set)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil))
	require.Empty(t, cmp.Diff(want, look(t, vol.Path)))
	st, err := os.Stat(filepath.Dir(vol.Path))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o701), st.Mode().Perm())
	ok, err = restore.VolumeDone(ctx, h, vol, set)
	require.NoError(t, err)
	require.True(t, ok)

	diffs, err := restore.Compare(ctx, h, vol, set)
	require.NoError(t, err)
	require.True(t, diffs.Equal())
	require.Zero(t, diffs.WrittenTotal)
	require.EqualValues(t, len(want), diffs.Entries)
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil), "a second restore is done already")
	require.Empty(t, cmp.Diff(want, look(t, vol.Path)))
}

// taken makes a small volume and takes it completely.
func taken(t *testing.T) (*remote.Host, backup.VolumeRef, *backup.Set, map[string]string) {
	t.Helper()
	h, vol, set := setup(t)
	grow(t, vol.Path, 50)
	require.NoError(t, backup.Take(t.Context(), h, vol, set, nil))
	require.NoError(t, backup.Delta(t.Context(), h, vol, set, nil))
	return h, vol, set, look(t, vol.Path)
}

func TestVolumeIntoWhatIsThere(t *testing.T) {
	h, vol, set, want := taken(t)
	ctx := t.Context()
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil), "the volume is as it was taken")

	// Anything else is refused and left alone.
	put(t, filepath.Join(vol.Path, "names/a"), "other content")
	there := look(t, vol.Path)
	err := restore.Volume(ctx, h, vol, set, nil)
	var occupied *restore.OccupiedError
	require.ErrorAs(t, err, &occupied)
	require.Contains(t, err.Error(), "names/a")
	require.Empty(t, cmp.Diff(there, look(t, vol.Path)))

	// An empty directory, as a kubelet makes it, is replaced; what an
	// interrupted restore left is not kept.
	require.NoError(t, os.RemoveAll(vol.Path))
	require.NoError(t, os.Mkdir(vol.Path, 0o777))
	put(t, vol.Path+".migrate-restoring/left over/by a crash", "x")
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil))
	require.Empty(t, cmp.Diff(want, look(t, vol.Path)))
	_, err = os.Lstat(vol.Path + ".migrate-restoring")
	require.ErrorIs(t, err, os.ErrNotExist)

	require.NoError(t, os.RemoveAll(vol.Path))
	put(t, vol.Path, "a file")
	require.ErrorContains(t, restore.Volume(ctx, h, vol, set, nil), "not a directory")
}

func TestCompareTellsLossFromWrites(t *testing.T) {
	h, vol, set, _ := taken(t)
	ctx := t.Context()
	require.NoError(t, os.RemoveAll(vol.Path))
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil))
	time.Sleep(20 * time.Millisecond) // the clock that stamps files ticks every few milliseconds

	in := func(p string) string { return filepath.Join(vol.Path, p) }
	put(t, in("names/a"), "written by a workload")
	put(t, in("new dir/below"), "new")
	require.NoError(t, os.RemoveAll(in("dirs/a!")))
	require.NoError(t, os.Chmod(in("names/=")[:len(in("names/="))], 0o600))
	diffs, err := restore.Compare(ctx, h, vol, set)
	require.NoError(t, err)
	require.True(t, diffs.Equal(), "%v", diffs.Lost)
	words := fmt.Sprint(diffs.Written)
	for _, want := range []string{`"names/a" `, `"new dir" was not there`, `"dirs/a!" is missing`, `"names/=" mode is 600 instead of 644`} {
		require.Contains(t, words, want)
	}
}

func TestCompareFindsLoss(t *testing.T) {
	h, vol, set, _ := taken(t)
	ctx := t.Context()
	// What a copy by hand from an old place would look like: nothing was
	// written after the restore that the host remembers.
	require.NoError(t, os.Rename(vol.Path, vol.Path+".old"))
	run(t, "cp", "-a", vol.Path+".old", vol.Path)
	put(t, filepath.Join(vol.Path, "names/a"), "contenT 10")
	st, err := os.Stat(filepath.Join(vol.Path+".old", "names/a"))
	require.NoError(t, err)
	require.NoError(t, os.Chtimes(filepath.Join(vol.Path, "names/a"), st.ModTime(), st.ModTime()))
	require.NoError(t, os.Remove(filepath.Join(vol.Path, "links/one")))
	err = restore.Volume(ctx, h, vol, set, nil)
	var occupied *restore.OccupiedError
	require.ErrorAs(t, err, &occupied)
	words := fmt.Sprint(occupied.Differences.Lost)
	require.Contains(t, words, `"names/a" has the content SHA-256`)
	require.Contains(t, words, `"links/one" is missing`)
	require.Contains(t, words, `hard links`)
}

// After a return to a snapshot that is older than the set, what was written between the two is no loss; what the snapshot
// should have had is.
func TestCompareReturned(t *testing.T) {
	h, vol, set := setup(t)
	ctx := t.Context()
	now := time.Now()
	snapshot := fmt.Sprintf("%d.5", now.Add(-time.Hour).Unix())
	in := func(p string) string { return filepath.Join(vol.Path, "dir", p) }
	write := func(p, text string, age time.Duration) {
		put(t, in(p), text)
		require.NoError(t, os.Chtimes(in(p), now.Add(-age), now.Add(-age)))
	}
	const old, young = 2 * time.Hour, 30 * time.Minute
	// All that the snapshot may turn out to be lies beside the volume before that is taken, as nothing is written later.
	snapshots := map[string]func(){
		"as it was":                   func() {},
		"without what is older":       func() { require.NoError(t, os.Remove(in("old"))) },
		"what is older is another":    func() { write("old", "odl", old) },
		"what is older is shorter":    func() { write("old", "o", old) },
		"empty":                       func() { require.NoError(t, os.RemoveAll(in(""))) },
		"what is older was unguarded": func() { require.NoError(t, os.Chmod(in("old"), 0o600)) },
	}
	write("old", "old", old)
	write("second", "second", old)
	write("changed", "before", old)
	write("removed", "removed", old)
	for name, change := range snapshots {
		run(t, "cp", "-a", vol.Path, vol.Path+".base")
		change()
		require.NoError(t, os.Rename(vol.Path, vol.Path+"."+name))
		require.NoError(t, os.Rename(vol.Path+".base", vol.Path))
	}
	write("changed", "after", young)
	write("new", "new", young)
	require.NoError(t, os.Remove(in("removed")))
	time.Sleep(20 * time.Millisecond)
	require.NoError(t, backup.Take(ctx, h, vol, set, nil))
	require.NoError(t, backup.Delta(ctx, h, vol, set, nil))
	for name, lost := range map[string]string{
		"as it was":                   "",
		"without what is older":       `"dir/old" is missing`,
		"what is older is another":    `"dir/old" has the content SHA-256`,
		"what is older is shorter":    `"dir/old" size is 1 instead of 3`,
		"empty":                       `has none of the 2 files that are older than the snapshot`,
		"what is older was unguarded": "",
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(vol.Path))
			require.NoError(t, os.Rename(vol.Path+"."+name, vol.Path))
			diffs, err := restore.CompareReturned(ctx, h, vol, set, snapshot)
			require.NoError(t, err)
			require.Equal(t, lost == "", diffs.Equal(), "%v", diffs.Lost)
			require.Contains(t, fmt.Sprint(diffs.Lost), lost)
			if name != "empty" {
				words := fmt.Sprint(diffs.Between)
				for _, want := range []string{`"dir/new" is missing`, `"dir/changed" size`, `"dir/removed" was not there`} {
					require.Contains(t, words, want)
				}
			}
			diffs, err = restore.Compare(ctx, h, vol, set)
			require.NoError(t, err)
			require.False(t, diffs.Equal() && name != "empty", "without a snapshot nothing is explained by it")
		})
	}
}

func TestRestoreRefusesDamage(t *testing.T) {
	h, vol, set, _ := taken(t)
	a, ok := set.Artifact(vol.Full())
	require.True(t, ok)
	file := filepath.Join(set.Dir(), a.File)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	data[len(data)/2] ^= 4
	require.NoError(t, os.WriteFile(file, data, 0o600))
	require.NoError(t, os.RemoveAll(vol.Path))
	err = restore.Volume(t.Context(), h, vol, set, nil)
	var damaged *backup.DamagedError
	require.ErrorAs(t, err, &damaged)
	_, err = os.Lstat(vol.Path)
	require.ErrorIs(t, err, os.ErrNotExist, "nothing is put in place")
}

func TestDeltaRefusesWriters(t *testing.T) {
	h, vol, set := setup(t)
	ctx := t.Context()
	grow(t, vol.Path, 2000)
	require.ErrorContains(t, backup.Delta(ctx, h, vol, set, nil), "take the full pass again")
	require.NoError(t, backup.Take(ctx, h, vol, set, nil))
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				os.WriteFile(filepath.Join(vol.Path, "busy"), fmt.Append(nil, i), 0o600)
			}
		}
	})
	err := backup.Delta(ctx, h, vol, set, nil)
	close(stop)
	writer.Wait()
	require.Error(t, err)
	_, ok := set.Artifact(vol.Index())
	require.False(t, ok)
	require.NoError(t, backup.Delta(ctx, h, vol, set, nil))
	done, err := backup.DeltaTaken(ctx, h, vol, set)
	require.NoError(t, err)
	require.True(t, done)
	put(t, filepath.Join(vol.Path, "late"), "x")
	done, err = backup.DeltaTaken(ctx, h, vol, set)
	require.NoError(t, err)
	require.False(t, done)
}

// TestTakeWhileBusy takes the full pass while everything moves, which must
// do no harm to what the delta ends up with.
func TestTakeWhileBusy(t *testing.T) {
	h, vol, set := setup(t)
	ctx := t.Context()
	grow(t, vol.Path, 2000)
	stop := make(chan struct{})
	var workload sync.WaitGroup
	workload.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			dir := filepath.Join(vol.Path, "many", fmt.Sprintf("d%02d", i%37))
			os.WriteFile(filepath.Join(dir, fmt.Sprint("w", i%11)), fmt.Append(nil, i), 0o600)
			os.Remove(filepath.Join(dir, fmt.Sprintf("f%05d", i%2000)))
			os.Rename(dir, dir+".moved")
			os.Rename(dir+".moved", dir)
			os.Link(filepath.Join(dir, fmt.Sprint("w", i%11)), filepath.Join(vol.Path, "links", fmt.Sprint("w", i)))
			os.Remove(filepath.Join(vol.Path, "links", fmt.Sprint("w", i-20)))
		}
	})
	err := backup.Take(ctx, h, vol, set, nil)
	close(stop)
	workload.Wait()
	require.NoError(t, err)
	require.NoError(t, backup.Delta(ctx, h, vol, set, nil))
	want := look(t, vol.Path)
	require.NoError(t, os.RemoveAll(vol.Path))
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil))
	require.Empty(t, cmp.Diff(want, look(t, vol.Path)))
}

func TestSeveralVolumesAtOnce(t *testing.T) {
	sshtest.Root(t)
	h := sshtest.Dial(t)
	ctx := t.Context()
	set := newSet(t)
	var vols []backup.VolumeRef
	var required []string
	for i := range 4 {
		vol := newVolume(t, h)
		put(t, filepath.Join(vol.Path, "data"), strings.Repeat(fmt.Sprint(i), 1<<20))
		vols = append(vols, vol)
		required = append(required, vol.Artifacts()...)
	}
	require.Error(t, set.Verify(ctx, required, nil))
	for _, pass := range []func(context.Context, *remote.Host, backup.VolumeRef, *backup.Set, *progress.Reporter) error{backup.Take, backup.Delta} {
		require.NoError(t, backup.Each(ctx, h, vols, 3, func(ctx context.Context, h *remote.Host, vol backup.VolumeRef) error {
			return pass(ctx, h, vol, set, nil)
		}))
	}
	require.NoError(t, set.Verify(ctx, required, nil))
	bytes, entries, err := backup.Measure(ctx, h, []string{vols[0].Path, vols[1].Path})
	require.NoError(t, err)
	require.EqualValues(t, 4, entries)
	require.Greater(t, bytes, int64(2<<20))

	// One that fails does not stop the others, and is named.
	require.NoError(t, os.RemoveAll(vols[2].Path))
	vols[2].ID += "-other"
	t.Cleanup(func() { require.NoError(t, backup.Forget(context.Background(), h, vols[2])) })
	err = backup.Each(ctx, h, vols, 2, func(ctx context.Context, h *remote.Host, vol backup.VolumeRef) error {
		return backup.Take(ctx, h, vol, set, nil)
	})
	require.ErrorContains(t, err, vols[2].ID)
	require.ErrorContains(t, err, "missing or cannot be entered")
}

// TestHostDiskFull restores to a file system that is too small.
func TestHostDiskFull(t *testing.T) {
	h, vol, set := setup(t)
	ctx := t.Context()
	put(t, filepath.Join(vol.Path, "data"), strings.Repeat("x", 3<<20))
	require.NoError(t, backup.Take(ctx, h, vol, set, nil))
	require.NoError(t, backup.Delta(ctx, h, vol, set, nil))
	require.NoError(t, os.RemoveAll(vol.Path))
	base := filepath.Dir(vol.Path)
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", base).CombinedOutput(); err != nil {
		t.Skipf("tmpfs cannot be mounted here: %s", out)
	}
	err := restore.Volume(ctx, h, vol, set, nil)
	unmountErr := exec.Command("umount", base).Run()
	require.ErrorContains(t, err, "the disk is full: 0 KiB are free in ")
	require.ErrorContains(t, err, vol.ID)
	require.NoError(t, unmountErr)
	_, err = os.Lstat(vol.Path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil), "with room enough the next run succeeds")
}
