//go:build e2e

package e2e

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A disk that fills up under a run stops it with the numbers that matter, and the
// same command goes on once there is space again.
func TestFullDisks(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-full", "--store-mib", "200")
	small := t.TempDir()
	require.Zero(t, execute(t, nil, "mount", "-t", "tmpfs", "-o", "size=1200m", "tmpfs", small).code)
	t.Cleanup(func() { execute(t, nil, "umount", "-l", small) })
	work := filepath.Join(small, "work")
	file := l.plan(t, func(spec object) { spec["workDir"] = work })
	journal := &journal{path: filepath.Join(work, "journal.jsonl")}
	files, ca, beats := l.on(t, fingerprint), l.on(t, identity), heartbeats(t, l)
	goOn := "To continue: migrate run -f " + file

	t.Run("the laptop's while a backup is written", func(t *testing.T) {
		run := start(t, nil, bin("migrate"), "run", "-f", file, "--yes")
		journal.await(t, run, 0, "protect/volume .*/intent")
		filler := filepath.Join(small, "filler")
		// It must not write meanwhile, nor be through before the disk is full.
		require.NoError(t, run.Signal(syscall.SIGSTOP))
		fill(t, filler, 20<<20)
		require.NoError(t, run.Signal(syscall.SIGCONT))
		require.Equal(t, 1, run.wait(t, time.Minute), "%s", &run.printed)
		for _, want := range []string{"disk full", work, "needs", "bytes are free", "spec.workDir", goOn} {
			assert.Contains(t, run.printed.String(), want)
		}
		assert.Equal(t, "active", l.on(t, "systemctl is-active k3s"), "the cluster runs")
		fill(t, filler, 20<<20) // what the part of an artifact had
		again := migrate(t, "run", "-f", file, "--yes")
		require.Equal(t, 1, again.code, "nothing was freed: %s", again)
		assert.Contains(t, again.stderr, "disk full")

		require.NoError(t, os.Remove(filler))
		r := migrate(t, "run", "-f", file, "--yes", "--until", "install")
		require.Zero(t, r.code, "%s", r)
	})
	if t.Failed() {
		t.FailNow()
	}

	t.Run("the host's while a volume is restored", func(t *testing.T) {
		// A disk of its own for the volumes, so that filling it harms nothing else.
		const storage = "/var/lib/rancher/k3s/storage"
		l.on(t, "mkdir -p "+storage+" && mount -t tmpfs -o size=600m,mode=700 tmpfs "+storage+" && fallocate -l 500M "+storage+"/filler")
		r := migrate(t, "run", "-f", file, "--yes")
		require.Equal(t, 1, r.code, "%s", r)
		for _, want := range []string{"the disk is full", "KiB are free", storage, goOn} {
			assert.Contains(t, r.stderr, want)
		}
		l.on(t, "rm "+storage+"/filler")
		r = migrate(t, "run", "-f", file, "--yes")
		require.Zero(t, r.code, "%s", r)
	})

	assert.Equal(t, files, l.on(t, fingerprint), "volumes")
	assert.Equal(t, ca, l.on(t, identity), "identity")
	assert.Greater(t, len(heartbeats(t, l)), len(beats), "the store writes again")
	r := migrate(t, "verify", "-f", file)
	assert.Zero(t, r.code, "%s", r)
}

// fill has a file take what its file system has left, but for so many bytes.
func fill(t testing.TB, path string, leave int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer f.Close()
	var st unix.Statfs_t
	require.NoError(t, unix.Fstatfs(int(f.Fd()), &st))
	has, err := f.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	if more := int64(st.Bavail)*int64(st.Bsize) - leave; more > 0 {
		require.NoError(t, unix.Fallocate(int(f.Fd()), 0, has, more))
	}
}
