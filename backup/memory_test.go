package backup

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/remote"
)

// maxMemory is what a run may take on the laptop however large a volume is.
const maxMemory = 128 << 20

// watchMemory starts the kernel's record of the process's largest resident
// size anew, and returns a function that reads it in bytes.
func watchMemory(t testing.TB) func() int64 {
	t.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Skipf("this system does not record the largest resident size: %v", err)
	}
	return func() int64 {
		data, err := os.ReadFile("/proc/self/status")
		require.NoError(t, err)
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); f[0] == "VmHWM:" {
				kib, err := strconv.ParseInt(f[1], 10, 64)
				require.NoError(t, err)
				return kib << 10
			}
		}
		t.Fatal("the kernel does not tell the largest resident size")
		return 0
	}
}

// fillVolume makes a volume of some bytes, half of which do not compress, and
// of some small files.
func fillVolume(t testing.TB, h *remote.Host, bytes int64, small int) VolumeRef {
	t.Helper()
	vol := VolumeRef{ID: fmt.Sprintf("memory-%d-%d", os.Getpid(), bytes), Path: filepath.Join(t.TempDir(), "pv")}
	t.Cleanup(func() { require.NoError(t, Forget(context.Background(), h, vol)) })
	require.NoError(t, os.MkdirAll(vol.Path, 0o755))
	const piece = 64 << 20
	noise := rand.NewChaCha8([32]byte{1})
	half := make([]byte, 64<<10)
	text := []byte(strings.Repeat("a line of some log that compresses well\n", 1639)[:64<<10])
	for n := int64(0); n < bytes; n += piece {
		f, err := os.Create(filepath.Join(vol.Path, fmt.Sprintf("piece-%05d", n/piece)))
		require.NoError(t, err)
		w := bufio.NewWriterSize(f, 1<<20)
		for range min(piece, bytes-n) / (128 << 10) {
			noise.Read(half)
			w.Write(half)
			w.Write(text)
		}
		require.NoError(t, w.Flush())
		require.NoError(t, f.Close())
	}
	for i := range small {
		dir := filepath.Join(vol.Path, "small", strconv.Itoa(i%100))
		require.NoError(t, os.MkdirAll(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), []byte("small"), 0o644))
	}
	return vol
}

// TestMemoryStaysSmall takes and verifies more than fits into what a run may have.
func TestMemoryStaysSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("moves some hundred megabytes")
	}
	sshtest.Root(t)
	h := sshtest.Dial(t)
	s := openIn(t, t.TempDir())
	vol := fillVolume(t, h, 320<<20, 20000)
	peak := watchMemory(t)
	require.NoError(t, Take(t.Context(), h, vol, s, nil))
	require.NoError(t, Delta(t.Context(), h, vol, s, nil))
	require.NoError(t, s.Verify(t.Context(), vol.Artifacts(), nil))
	require.NoError(t, s.VolumeTar(t.Context(), vol, io.Discard, nil))
	t.Logf("largest resident size: %d MiB", peak()>>20)
	if raceEnabled {
		return // the race detector's shadow memory counts, too
	}
	require.Less(t, peak(), int64(maxMemory))
}

// BenchmarkVolumeStream takes a volume of 4 GiB (BENCH_BYTES says otherwise)
// through a real sshd. It reports the largest resident size, and how long it
// takes relative to "ssh host tar -c | zstd" on the same data.
func BenchmarkVolumeStream(b *testing.B) {
	sshtest.Root(b)
	sshtest.Need(b, "zstd", "zstd")
	size := int64(4 << 30)
	if v := os.Getenv("BENCH_BYTES"); v != "" {
		var err error
		size, err = strconv.ParseInt(v, 10, 64)
		require.NoError(b, err)
	}
	plan := sshtest.Start(b)
	h, err := remote.Dial(b.Context(), plan)
	require.NoError(b, err)
	b.Cleanup(func() { h.Close() })
	vol := fillVolume(b, h, size, 2000)

	start := time.Now()
	cmd := exec.Command("sh", "-c", fmt.Sprintf("ssh -F none -i %s -o UserKnownHostsFile=%s -p %d %s@%s tar -c -C %s . | zstd -q -3 -T0",
		plan.IdentityFiles[0], plan.KnownHosts[0], plan.Port, plan.User, plan.Address, remote.Quote(remote.Quote(vol.Path))))
	out, err := os.Create(filepath.Join(b.TempDir(), "plain.tar.zst"))
	require.NoError(b, err)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	require.NoError(b, cmd.Run())
	n, err := out.Seek(0, io.SeekCurrent)
	require.NoError(b, err)
	require.Greater(b, n, size/4)
	require.NoError(b, out.Close())
	require.NoError(b, os.Remove(out.Name()))
	plain := time.Since(start)

	b.SetBytes(size)
	peak := watchMemory(b)
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		s := openIn(b, dir)
		require.NoError(b, Forget(b.Context(), h, vol))
		b.StartTimer()
		require.NoError(b, Take(b.Context(), h, vol, s, nil))
		b.StopTimer()
		require.NoError(b, os.RemoveAll(dir))
		b.StartTimer()
	}
	b.ReportMetric(float64(peak())/(1<<20), "peak-RSS-MiB")
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(plain), "times-ssh-tar-zstd")
}
