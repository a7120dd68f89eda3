package restore_test

import (
	"context"
	"database/sql"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/restore"
)

func TestTreeRoundTrip(t *testing.T) {
	sshtest.Root(t)
	sshtest.Need(t, "setfacl", "acl")
	h := sshtest.Dial(t)
	ctx := t.Context()
	set := newSet(t)
	root := t.TempDir()
	top := filepath.Join(root, "server")
	grow(t, filepath.Join(top, "tls"), 20)
	put(t, filepath.Join(top, "token"), "secret")
	require.NoError(t, os.Chmod(filepath.Join(top, "token"), 0o600))
	require.NoError(t, os.Chmod(top, 0o710))
	put(t, filepath.Join(root, "bin", "k3s"), "#!/bin/sh\n")
	require.NoError(t, os.Chmod(filepath.Join(root, "bin", "k3s"), 0o755))
	want, tls := look(t, root), look(t, filepath.Join(top, "tls"))

	tree := backup.TreeRef{Name: "k3s/files", Paths: []string{
		filepath.Join(top, "token"), filepath.Join(root, "bin/k3s"), filepath.Join(top, "tls"), filepath.Join(top, "tls/modes"),
	}, Optional: []string{filepath.Join(top, "cred")}}
	require.NoError(t, backup.Tree(ctx, h, set, tree, nil))
	require.NoError(t, set.Verify(ctx, []string{"k3s/files"}, nil))
	data, err := set.File("k3s/files", filepath.Join(top, "tls/links/two"))
	require.NoError(t, err, "a further name of a hard link has its content")
	require.Equal(t, "linked", string(data))

	// One file alone, into directories that are gone.
	require.NoError(t, os.RemoveAll(root))
	require.NoError(t, os.Mkdir(root, 0o755))
	require.NoError(t, restore.File(ctx, h, set, "k3s/files", filepath.Join(top, "token")))
	got := look(t, root)
	require.Equal(t, want["server/token"], got["server/token"])
	require.Contains(t, got["server"], "mode=40710")
	require.Len(t, got, 3)

	// One directory, with something else in its place.
	put(t, filepath.Join(top, "tls/names/a"), "another identity")
	require.NoError(t, restore.Tree(ctx, h, set, "k3s/files", nil, filepath.Join(top, "tls/names"), filepath.Join(top, "tls"), filepath.Join(top, "tls")))
	require.Empty(t, cmp.Diff(tls, look(t, filepath.Join(top, "tls"))))
	_, err = os.Lstat(filepath.Join(root, "bin"))
	require.ErrorIs(t, err, os.ErrNotExist)

	// Everything.
	require.NoError(t, restore.Tree(ctx, h, set, "k3s/files", nil, restore.Everything))
	got = look(t, root)
	for _, dir := range []string{".", "bin", "server"} { // not in the archive; their times are today's
		delete(got, dir)
		delete(want, dir)
	}
	require.Empty(t, cmp.Diff(want, got))

	require.ErrorIs(t, restore.File(ctx, h, set, "k3s/files", "/nothing"), os.ErrNotExist)
	require.ErrorIs(t, restore.Tree(ctx, h, set, "nothing", nil, restore.Everything), os.ErrNotExist)
	require.ErrorContains(t, restore.Tree(ctx, h, set, "k3s/files", nil), "nothing was asked for")
}

// TestTreeOverAnotherState brings everything back over what a new cluster would have there.
func TestTreeOverAnotherState(t *testing.T) {
	sshtest.Root(t)
	sshtest.Need(t, "setfacl", "acl")
	h := sshtest.Dial(t)
	ctx := t.Context()
	set := newSet(t)
	top := filepath.Join(t.TempDir(), "server")
	grow(t, top, 20)
	in := func(p string) string { return filepath.Join(top, p) }
	want := look(t, top)
	require.NoError(t, backup.Tree(ctx, h, set, backup.TreeRef{Name: "k3s/state", Paths: []string{top}}, nil))
	back := func() error { return restore.Tree(ctx, h, set, "k3s/state", nil, restore.Everything) }

	// Other contents, modes, owners and times; hard links joined and split, links turned.
	live(t, top)
	for _, p := range []string{"names/a.b", "dirs/a", "renamed", "names/moved", "new dir", "many/d00/created", "links/later too"} {
		require.NoError(t, os.RemoveAll(in(p))) // what is of another type, or there besides
	}
	require.NoError(t, os.Chmod(in("empty"), 0o755))
	require.NoError(t, os.Chown(in("sticky"), 5, 6))
	require.NoError(t, os.Chtimes(in("many"), time.Unix(9, 9), time.Unix(9, 9)))
	require.NoError(t, os.Remove(in("links/dangling")))
	require.NoError(t, os.Symlink("elsewhere", in("links/dangling")))
	require.NoError(t, os.Link(in("names/tab\t"), in("links/two")))
	require.NoError(t, back())
	require.Empty(t, cmp.Diff(want, look(t, top)))

	// A type that differs is refused before anything changes.
	refused := func(p, why string) {
		t.Helper()
		put(t, in("names/a"), "not to be touched")
		now := look(t, top)
		err := back()
		require.ErrorContains(t, err, in(p)+" is "+why)
		require.ErrorContains(t, err, "nothing was changed: move it aside, then run again")
		require.Empty(t, cmp.Diff(now, look(t, top)))
		require.NoError(t, os.Remove(in(p)))
		require.NoError(t, back())
		require.Empty(t, cmp.Diff(want, look(t, top)))
	}
	require.NoError(t, os.Remove(in("empty")))
	put(t, in("empty"), "a file")
	refused("empty", "not a directory, and was one when it was taken")
	require.NoError(t, os.Remove(in("empty")))
	require.NoError(t, os.Symlink("sticky", in("empty")))
	refused("empty", "a symbolic link, and was a directory")
	require.NoError(t, os.Remove(in("names/a!")))
	require.NoError(t, os.Mkdir(in("names/a!"), 0o755))
	refused("names/a!", "a directory, and was none")

	require.NoError(t, os.RemoveAll(filepath.Dir(top)))
	put(t, filepath.Dir(top), "a file")
	require.ErrorContains(t, back(), filepath.Dir(top)+" is not a directory; move it aside")
}

func TestDatastoreRoundTrip(t *testing.T) {
	sshtest.Root(t)
	h := sshtest.Dial(t)
	ctx := t.Context()
	set := newSet(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "state.db")
	db, err := sql.Open("sqlite", "file:"+file)
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	for _, q := range []string{
		"PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE kine (id INTEGER PRIMARY KEY, name TEXT)",
		"INSERT INTO kine (name) VALUES ('a'), ('b')", "PRAGMA wal_checkpoint(TRUNCATE)", "INSERT INTO kine (name) VALUES ('c')",
	} {
		_, err := db.Exec(q)
		require.NoError(t, err, q)
	}
	// A killed server leaves its log behind: take copies of the open files.
	killed := filepath.Join(dir, "killed")
	require.NoError(t, os.Mkdir(killed, 0o700))
	run(t, "cp", file, file+"-wal", file+"-shm", killed)
	require.NoError(t, db.Close())
	file = filepath.Join(killed, "state.db")
	require.NoError(t, os.Chmod(file, 0o600))
	require.NoError(t, os.Chown(file, 12, 34))
	require.NoError(t, os.Chtimes(file, time.Unix(5, 6), time.Unix(7, 8)))
	require.NoError(t, os.Remove(file+"-shm"))
	want := look(t, killed)
	delete(want, ".")

	require.NoError(t, backup.Datastore(ctx, h, set, "k3s/state.db", file, backup.KineTable, nil))
	rows, err := set.CheckDatabase(ctx, "k3s/state.db")
	require.NoError(t, err)
	require.EqualValues(t, 3, rows)

	put(t, file, "a new cluster's")
	put(t, file+"-wal", "a new cluster's")
	put(t, file+"-shm", "a new cluster's")
	require.NoError(t, restore.Datastore(ctx, h, set, "k3s/state.db", file, nil))
	got := look(t, killed)
	delete(got, ".")
	require.Empty(t, cmp.Diff(want, got))

	// Ended between the log and the main file: no database is there rather
	// than half a one, and the next call ends well.
	require.NoError(t, os.MkdirAll(file+".migrate-restoring/in the way", 0o755))
	require.Error(t, restore.Datastore(ctx, h, set, "k3s/state.db", file, nil))
	requireNone(t, file)
	require.FileExists(t, file+"-wal")
	require.NoError(t, os.RemoveAll(file+".migrate-restoring"))
	require.NoError(t, restore.Datastore(ctx, h, set, "k3s/state.db", file, nil))
	got = look(t, killed)
	delete(got, ".")
	require.Empty(t, cmp.Diff(want, got))

	db, err = sql.Open("sqlite", "file:"+file)
	require.NoError(t, err)
	require.NoError(t, db.QueryRow("SELECT count(*) FROM kine").Scan(&rows))
	require.EqualValues(t, 3, rows)
	require.NoError(t, db.Close()) // puts the log into the main file

	// Without a log, and with the old one gone from the set.
	require.NoError(t, backup.Datastore(ctx, h, set, "k3s/state.db", file, backup.KineTable, nil))
	_, ok := set.Artifact("k3s/state.db-wal")
	require.False(t, ok)
	require.NoError(t, set.Verify(ctx, []string{"k3s/state.db"}, nil))
	put(t, file+"-wal", "stale")
	require.NoError(t, restore.Datastore(ctx, h, set, "k3s/state.db", file, nil))
	_, err = os.Lstat(file + "-wal")
	require.ErrorIs(t, err, os.ErrNotExist)

	// A damaged one is noticed when it is taken.
	put(t, file, "not a database")
	var damaged *backup.DamagedError
	require.ErrorAs(t, backup.Datastore(ctx, h, set, "k3s/state.db", file, backup.KineTable, nil), &damaged)
}

// TestInterruptedAndBegunAgain ends every pass in the middle, then lets it finish.
func TestInterruptedAndBegunAgain(t *testing.T) {
	h, vol, set := setup(t)
	grow(t, vol.Path, 500)
	big, err := os.Create(filepath.Join(vol.Path, "big"))
	require.NoError(t, err)
	random, err := os.Open("/dev/urandom")
	require.NoError(t, err)
	defer random.Close()
	_, err = io.CopyN(big, random, 20<<20)
	require.NoError(t, err)
	require.NoError(t, big.Close())

	interrupted := func(what func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		timer := time.AfterFunc(300*time.Millisecond, cancel) // somewhere in the middle; the outcome is the same wherever
		defer timer.Stop()
		if err := what(ctx); err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		require.NoError(t, what(t.Context()))
	}
	interrupted(func(ctx context.Context) error { return backup.Take(ctx, h, vol, set, nil) })
	full, ok := set.Artifact(vol.Full())
	require.True(t, ok)
	require.NoError(t, backup.Take(t.Context(), h, vol, set, nil))
	again, _ := set.Artifact(vol.Full())
	require.Equal(t, full, again, "what is complete is not taken again")

	put(t, filepath.Join(vol.Path, "names/a"), "changed")
	interrupted(func(ctx context.Context) error { return backup.Delta(ctx, h, vol, set, nil) })
	want := look(t, vol.Path)
	require.NoError(t, os.RemoveAll(vol.Path))
	interrupted(func(ctx context.Context) error { return restore.Volume(ctx, h, vol, set, nil) })
	require.Empty(t, cmp.Diff(want, look(t, vol.Path)))
	interrupted(func(ctx context.Context) error { return set.Verify(ctx, vol.Artifacts(), nil) })
	entries, err := os.ReadDir(filepath.Join(remote.StateDir, "volumes", vol.ID))
	require.NoError(t, err)
	for _, e := range entries {
		require.NotContains(t, e.Name(), "run.", "scratch directories are removed")
	}
}
