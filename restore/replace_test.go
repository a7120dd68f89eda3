package restore_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/restore"
)

// mount ends the test where nothing can be mounted, as sshtest.Need does, and unmounts after it.
func mount(t *testing.T, dir string, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		why := fmt.Sprintf("nothing can be mounted here: %s", out)
		if os.Getenv("CI") == "true" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	t.Cleanup(func() { exec.Command("umount", dir).Run() }) // some tests unmount it themselves
}

// written is what workloads do to a volume after its restore; it returns what is there then.
func written(t *testing.T, vol backup.VolumeRef, text string) map[string]string {
	t.Helper()
	time.Sleep(20 * time.Millisecond) // the clock that stamps files ticks every few milliseconds
	put(t, filepath.Join(vol.Path, "names/a"), text)
	put(t, filepath.Join(vol.Path, "new dir/"+text), text)
	require.NoError(t, os.RemoveAll(filepath.Join(vol.Path, "dirs/a!")))
	return look(t, vol.Path)
}

func requireTree(t *testing.T, want map[string]string, dir string) {
	t.Helper()
	require.Empty(t, cmp.Diff(want, look(t, dir)))
}

func requireNone(t *testing.T, p string) {
	t.Helper()
	_, err := os.Lstat(p)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// replaceVolume calls ReplaceVolume, which must end well, and asserts that the backup
// is in place and nothing but the kept directories beside it.
func replaceVolume(t *testing.T, h *remote.Host, vol backup.VolumeRef, set *backup.Set, aside string, want map[string]string) (kept []string) {
	t.Helper()
	kept, err := restore.ReplaceVolume(t.Context(), h, vol, set, aside, nil)
	require.NoError(t, err)
	requireTree(t, want, vol.Path)
	requireNone(t, vol.Path+".migrate-restoring")
	done, err := restore.VolumeDone(t.Context(), h, vol, set)
	require.NoError(t, err)
	require.True(t, done)
	n, err := restore.Written(t.Context(), h, vol, set)
	require.NoError(t, err)
	require.Zero(t, n)
	return kept
}

func TestReplaceVolume(t *testing.T) {
	h, vol, set, want := taken(t)
	aside := vol.Path + ".replaced now"
	require.NoError(t, os.RemoveAll(vol.Path))
	require.Empty(t, replaceVolume(t, h, vol, set, aside, want), "nothing was there")
	require.NoError(t, os.RemoveAll(vol.Path))
	require.NoError(t, os.Mkdir(vol.Path, 0o777))
	require.Empty(t, replaceVolume(t, h, vol, set, aside, want), "an empty directory was there")

	// What a workload wrote since is kept, although the volume counts as restored.
	first := written(t, vol, "first")
	done, err := restore.VolumeDone(t.Context(), h, vol, set)
	require.NoError(t, err)
	require.True(t, done)
	require.Equal(t, []string{aside}, replaceVolume(t, h, vol, set, aside, want))
	requireTree(t, first, aside)

	// Again: nothing moves.
	before, err := os.Stat(vol.Path)
	require.NoError(t, err)
	require.Equal(t, []string{aside}, replaceVolume(t, h, vol, set, aside, want))
	after, err := os.Stat(vol.Path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
	require.Empty(t, replaceVolume(t, h, vol, set, vol.Path+".of another rollback", want))

	// Whatever comes to be there is kept, too, and never in the place of what was kept before.
	second := written(t, vol, "second")
	require.Equal(t, []string{aside, aside + "-2"}, replaceVolume(t, h, vol, set, aside, want))
	// Same names and metadata: the contents alone tell.
	st, err := os.Stat(filepath.Join(vol.Path, "names/a"))
	require.NoError(t, err)
	put(t, filepath.Join(vol.Path, "names/a"), "contenT 10")
	require.NoError(t, os.Chtimes(filepath.Join(vol.Path, "names/a"), st.ModTime(), st.ModTime()))
	third := look(t, vol.Path)
	require.Equal(t, []string{aside, aside + "-2", aside + "-3"}, replaceVolume(t, h, vol, set, aside, want))
	requireTree(t, first, aside)
	requireTree(t, second, aside+"-2")
	requireTree(t, third, aside+"-3")

	for _, bad := range []string{"", vol.Path, vol.Path + ".migrate-restoring", "/tmp/elsewhere", vol.Path + "/below", vol.Path + "/", "relative"} {
		_, err := restore.ReplaceVolume(t.Context(), h, vol, set, bad, nil)
		require.ErrorContains(t, err, "another path in the same directory", "%q", bad)
	}
}

func TestReplaceVolumeLeavesAlone(t *testing.T) {
	h, vol, set, want := taken(t)
	aside := vol.Path + ".aside"
	refused := func(words ...string) {
		t.Helper()
		above := look(t, filepath.Dir(vol.Path))
		kept, err := restore.ReplaceVolume(t.Context(), h, vol, set, aside, nil)
		require.Empty(t, kept)
		for _, w := range append(words, vol.ID, vol.Path) {
			require.ErrorContains(t, err, w)
		}
		requireTree(t, above, filepath.Dir(vol.Path))
	}
	real := filepath.Join(filepath.Dir(vol.Path), "real")
	require.NoError(t, os.Rename(vol.Path, real))
	require.NoError(t, os.Symlink("real", vol.Path))
	refused("a symbolic link is there; nothing was changed: move it aside")
	require.NoError(t, os.Remove(vol.Path))
	put(t, vol.Path, "a file")
	refused("not a directory is there; nothing was changed: move it aside")
	require.NoError(t, os.Remove(vol.Path))

	// A bind mount of the same file system is one, too.
	require.NoError(t, os.Mkdir(vol.Path, 0o755))
	mount(t, vol.Path, "--bind", real)
	require.Empty(t, replaceVolume(t, h, vol, set, aside, want), "the mounted file system is as it was taken")
	put(t, filepath.Join(vol.Path, "names/a"), "written")
	refused("mount point of a file system whose contents differ", "--volumes present")
	run(t, "umount", vol.Path)
	mount(t, vol.Path, "-t", "tmpfs", "tmpfs")
	refused("mount point of an empty file system")
}

// network is a TCP proxy before the server whose connections can be cut.
type network struct {
	mu    sync.Mutex
	conns []net.Conn
}

// cut ends all connections; new ones are let through.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Close()
	}
	n.conns = nil
}

// dialThrough connects to a server of its own through a network.
func dialThrough(t *testing.T) (*remote.Host, *network) {
	t.Helper()
	plan := sshtest.Start(t)
	to := fmt.Sprintf("127.0.0.1:%d", plan.Port)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n := &network{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			n.mu.Lock()
			n.conns = append(n.conns, c, s)
			n.mu.Unlock()
			pass := func(to, from net.Conn) {
				io.Copy(to, from)
				to.Close()
				from.Close()
			}
			wg.Go(func() { pass(s, c) })
			wg.Go(func() { pass(c, s) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		n.cut()
		wg.Wait()
	})
	known, err := os.ReadFile(plan.KnownHosts[0])
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	known = bytes.ReplaceAll(known, fmt.Appendf(nil, ":%d", plan.Port), fmt.Appendf(nil, ":%d", port))
	require.NoError(t, os.WriteFile(plan.KnownHosts[0], known, 0o600))
	plan.Port = port
	h, err := remote.Dial(t.Context(), plan)
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	return h, n
}

// when calls do once the progress display begins with a label.
type when struct {
	label string
	do    func()
	once  sync.Once
}

func (w *when) Write(p []byte) (int, error) {
	if strings.HasPrefix(string(p), w.label) {
		w.once.Do(w.do)
	}
	return len(p), nil
}

// underWay waits for a process of this program on the host that has all the words in its command line, and
// gives its group: the script that started it, and all that this started. It is 0 when none comes. The login shell,
// which has the script in its command line, too, is another program: what it does at its start is not to be killed.
func underWay(program string, words ...string) (group int) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	next:
		for _, p := range procs {
			line, err := os.ReadFile(p)
			if err != nil || !bytes.HasPrefix(line, []byte(program+"\x00")) {
				continue
			}
			for _, w := range words {
				if !bytes.Contains(line, []byte(w)) {
					continue next
				}
			}
			var pid int
			fmt.Sscanf(p, "/proc/%d/", &pid)
			if group, err := syscall.Getpgid(pid); err == nil && group != syscall.Getpgrp() {
				return group
			}
		}
	}
	return 0
}

// TestReplaceVolumeInterrupted ends the replacing at every stage, in every way.
func TestReplaceVolumeInterrupted(t *testing.T) {
	sshtest.Root(t)
	sshtest.Need(t, "setfacl", "acl")
	h, n := dialThrough(t)
	ctx := t.Context()
	vol, set := newVolume(t, h), newSet(t)
	grow(t, vol.Path, 50)
	random, err := os.Open("/dev/urandom")
	require.NoError(t, err)
	defer random.Close()
	data, err := io.ReadAll(io.LimitReader(random, 12<<20))
	require.NoError(t, err)
	put(t, filepath.Join(vol.Path, "big"), string(data))
	require.NoError(t, backup.Take(ctx, h, vol, set, nil))
	live(t, vol.Path)
	put(t, filepath.Join(vol.Path, "big too"), string(data))
	require.NoError(t, backup.Delta(ctx, h, vol, set, nil))
	want := look(t, vol.Path)
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil))
	put(t, filepath.Join(vol.Path, "names/moved"), "written since")
	old := look(t, vol.Path)
	aside := vol.Path + ".aside"

	ways := map[string]func(group int, cancel func()){
		"cancelled": func(_ int, cancel func()) { cancel() },
		"cut":       func(int, func()) { n.cut() },
		"killed": func(group int, _ func()) {
			if group != 0 {
				syscall.Kill(-group, syscall.SIGKILL)
			}
		},
	}
	// interrupted replaces the volume, and interrupts that when the display has begun with label, a process of the
	// program with the words runs, and the file until exists.
	interrupted := func(t *testing.T, label string, program string, words []string, until string, interrupt func(int, func())) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		w := &when{label: label, do: func() {
			wg.Go(func() {
				group := underWay(program, words...)
				for ctx.Err() == nil {
					if _, err := os.Lstat(until); err == nil {
						break
					}
				}
				interrupt(group, cancel)
			})
		}}
		_, err := restore.ReplaceVolume(ctx, h, vol, set, aside, progress.New(w, false))
		cancel()
		wg.Wait()
		return err
	}

	// Before the swap the volume stays as it is, and nothing is aside.
	for _, stage := range []struct {
		label, program string
		words          []string
	}{
		{vol.Label(), "tar", []string{"--directory=" + vol.Path + ".migrate-restoring"}},
		{"changes of " + vol.Label(), "tar", []string{"--directory=" + vol.Path + ".migrate-restoring"}},
		{"proving " + vol.Label(), "sh", []string{vol.ID, "run.contents"}},
	} {
		for how, interrupt := range ways {
			t.Run(how+" while "+stage.label, func(t *testing.T) {
				require.Error(t, interrupted(t, stage.label, stage.program, stage.words, vol.Path, interrupt))
				requireTree(t, old, vol.Path)
				requireNone(t, aside)
			})
		}
	}

	// About the swap: all that is old is in one place, and the next call ends well.
	for how, interrupt := range ways {
		for when, until := range map[string]string{"before the renames": vol.Path, "after the first": aside} {
			t.Run(how+" "+when, func(t *testing.T) {
				_ = interrupted(t, "proving "+vol.Label(), "sh", []string{vol.Path, "-ef"}, until, interrupt) // it may have ended before
				time.Sleep(300 * time.Millisecond)                                                            // what a lost connection left running
				if _, err := os.Lstat(aside); err != nil {
					requireTree(t, old, vol.Path)
				} else if _, err := os.Lstat(vol.Path); err == nil {
					requireTree(t, want, vol.Path)
				}
				require.Equal(t, []string{aside}, replaceVolume(t, h, vol, set, aside, want))
				requireTree(t, old, aside)
				require.NoError(t, os.RemoveAll(vol.Path))
				require.NoError(t, os.Rename(aside, vol.Path))
			})
		}
	}

	// A power cut between the two renames, with and without what the proof left.
	for _, left := range []bool{true, false} {
		require.NoError(t, os.Rename(vol.Path, aside))
		if left {
			put(t, vol.Path+".migrate-restoring/names/a", "half")
		}
		require.Equal(t, []string{aside}, replaceVolume(t, h, vol, set, aside, want))
		requireTree(t, old, aside)
		require.NoError(t, os.RemoveAll(vol.Path))
		require.NoError(t, os.Rename(aside, vol.Path))
	}

	// And after them, before it was recorded.
	require.Equal(t, []string{aside}, replaceVolume(t, h, vol, set, aside, want))
	require.NoError(t, os.Remove(filepath.Join(vol.StateDir(), "restored")))
	require.Equal(t, []string{aside}, replaceVolume(t, h, vol, set, aside, want))
	requireTree(t, old, aside)
}

func TestReplaceVolumeDiskFull(t *testing.T) {
	h, vol, set := setup(t)
	base := filepath.Dir(vol.Path)
	mount(t, base, "-t", "tmpfs", "-o", "size=4m", "tmpfs")
	put(t, filepath.Join(vol.Path, "data"), strings.Repeat("x", 3<<20))
	require.NoError(t, backup.Take(t.Context(), h, vol, set, nil))
	require.NoError(t, backup.Delta(t.Context(), h, vol, set, nil))
	want := look(t, vol.Path)
	put(t, filepath.Join(vol.Path, "data"), "written since"+strings.Repeat("y", 2<<20))
	old := look(t, base)
	_, err := restore.ReplaceVolume(t.Context(), h, vol, set, vol.Path+".aside", nil)
	require.ErrorContains(t, err, "the disk is full: 0 KiB are free in ")
	require.ErrorContains(t, err, "make room there, then run again")
	now := look(t, base)
	maps.DeleteFunc(now, func(p, _ string) bool { return p == "." }) // its time of change
	delete(old, ".")
	require.Empty(t, cmp.Diff(old, now), "what could not be extracted does not keep the disk full")
	run(t, "mount", "-o", "remount,size=8m", base)
	require.Equal(t, []string{vol.Path + ".aside"}, replaceVolume(t, h, vol, set, vol.Path+".aside", want))
}

func TestWritten(t *testing.T) {
	h, vol, set, _ := taken(t)
	ctx := t.Context()
	count := func() int64 {
		t.Helper()
		n, err := restore.Written(ctx, h, vol, set)
		require.NoError(t, err)
		return n
	}
	in := func(p string) string { return filepath.Join(vol.Path, p) }
	require.Zero(t, count(), "never restored: since it was taken")
	time.Sleep(20 * time.Millisecond)
	put(t, in("names/a"), "written")
	require.EqualValues(t, 1, count())

	require.NoError(t, os.RemoveAll(vol.Path))
	require.Zero(t, count())
	require.NoError(t, restore.Volume(ctx, h, vol, set, nil))
	require.Zero(t, count(), "since it was restored")
	time.Sleep(20 * time.Millisecond)
	require.NoError(t, os.Chmod(in("names/a0"), 0o600))
	put(t, in("new\nfile"), "x")                               // and the volume's directory
	require.NoError(t, os.Remove(in("dirs/a!/sub\x01dir/a!"))) // its directory
	l, err := net.Listen("unix", in("links/socket"))           // no entry, but a change of its directory
	require.NoError(t, err)
	defer l.Close()
	require.EqualValues(t, 5, count())

	// A set that was not restored from here has its own time.
	_, err = restore.Written(ctx, h, vol, newSet(t))
	require.ErrorIs(t, err, os.ErrNotExist)
}
