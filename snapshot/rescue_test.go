package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// rescued is a dedicated server of the fake, whose disks are files.
type rescued struct {
	*scwRescue
	f     *fakeScaleway
	disks []string
	log   *told
	again func() *scwRescue // as another process makes it
}

const fakeDiskSize = 5<<20 + 4096

func newRescued(t testing.TB, product plans.ScalewayProduct) *rescued {
	sshtest.Need(t, "zstd", "zstd")
	f := newFakeScaleway(t)
	dir := t.TempDir()
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	key := filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(key, []byte(id.String()+"\n"), 0o600))
	at := plans.ScalewayServer{Product: product, Zone: fakeZone, ID: fakeID, Images: filepath.Join(dir, "images"), TrustRescueHostKey: true}
	if product == plans.ScalewayDedibox {
		at.ID = fakeNumber
	}
	for _, name := range []string{"disk one", "disk'two"} {
		disk := filepath.Join(dir, name)
		data := make([]byte, fakeDiskSize)
		_, err := rand.Read(data[:3<<20])
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(disk, data, 0o600))
		at.Disks = append(at.Disks, disk)
	}
	a, log := asking(t, f, at)
	a.Encryption = plans.Encryption{Recipients: []string{id.Recipient().String()}, Identities: []string{key}}
	make := func() *scwRescue {
		r := newScaleway(a, quickPace).(*scwRescue)
		r.port = f.machine.port
		r.tools = tools{size: "stat -Lc %s", flush: "true", release: "true", btrfs: filepath.Join(dir, "btrfs")}
		return r
	}
	return &rescued{make(), f, slices.Clone(at.Disks), log, make}
}

func (r *rescued) read(t *testing.T) (out []string) {
	t.Helper()
	for _, disk := range r.disks {
		data, err := os.ReadFile(disk)
		require.NoError(t, err)
		out = append(out, string(data))
	}
	return out
}

// change is what a rebuild does to the disks.
func (r *rescued) change(t *testing.T) {
	t.Helper()
	for _, disk := range r.disks {
		data := make([]byte, fakeDiskSize)
		_, err := rand.Read(data)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(disk, data, 0o600))
	}
}

// same compares disks without printing them.
func same(t *testing.T, want, got []string) {
	t.Helper()
	for i := range want {
		require.True(t, want[i] == got[i], "disk %d differs", i)
	}
}

// secretless looks that no password that the API gave stands where a person or the journal may see it.
func (r *rescued) secretless(t *testing.T, err error) {
	t.Helper()
	texts := []string{r.log.String()}
	if err != nil {
		texts = append(texts, err.Error())
	}
	for _, o := range append(append(r.Take(), r.Return()...), r.Remove()...) {
		texts = append(texts, o.Command, o.Summary)
	}
	if data, err := os.ReadFile(filepath.Join(r.dir(), "manifest.json")); err == nil {
		texts = append(texts, string(data))
	}
	for _, text := range texts {
		require.NotContains(t, text, "Rescue-Pa55")
	}
}

func TestRescue(t *testing.T) {
	for _, product := range []plans.ScalewayProduct{plans.ScalewayElasticMetal, plans.ScalewayDedibox} {
		t.Run(string(product), func(t *testing.T) {
			r := newRescued(t, product)
			before := r.read(t)
			done, err := r.Take()[1].Done(t.Context())
			require.NoError(t, err)
			require.False(t, done)
			require.NoError(t, r.Ready(t.Context()))
			require.Empty(t, r.f.writes(), "looking changes nothing")
			runAll(t, t.Context(), r.Take())
			done, err = r.Take()[1].Done(t.Context())
			require.NoError(t, err)
			require.True(t, done)
			require.Equal(t, "own", r.f.machine.now())
			same(t, before, r.read(t))
			require.ErrorContains(t, r.Take()[0].Run(t.Context()), "of an earlier run")
			set, err := backup.Open(r.dir(), nil, r.Encryption.Identities)
			require.NoError(t, err)
			require.Len(t, set.Artifacts(), 2)
			for _, a := range set.Artifacts() {
				require.Equal(t, backup.Zstd, a.Codec)
				require.Less(t, a.Size, int64(fakeDiskSize), "compressed")
			}
			require.Contains(t, r.log.String(), "is trusted by the host key that it showed first: SHA256:")

			r.change(t)
			runAll(t, t.Context(), r.Return())
			require.Equal(t, "own", r.f.machine.now())
			same(t, before, r.read(t))
			pending, err := r.Pending(t.Context())
			require.NoError(t, err)
			require.Empty(t, pending)

			runAll(t, t.Context(), r.Remove())
			require.NoDirExists(t, r.dir())
			runAll(t, t.Context(), r.Remove())
			require.ErrorContains(t, r.Return()[0].Run(t.Context()), otherwise)
			r.secretless(t, nil)
			rescue, normal := r.machine.commands()
			require.Contains(t, r.Take()[1].Command, rescue)
			require.Contains(t, r.Take()[1].Command, normal)
			require.Contains(t, r.Take()[1].Summary, "restarts the host twice")
			for _, o := range []Operation{r.Take()[1], r.Return()[1]} {
				require.Contains(t, o.Summary, "when that is cut off, the next run or rollback restarts it", "%s: what Reach does is in the plan", o.Name)
			}
		})
	}
}

// Wherever taking is cut off, the host answers after Reach, and the next attempt makes all images.
func TestRescueTakeCutOff(t *testing.T) {
	for n := 1; ; n++ {
		r := newRescued(t, plans.ScalewayElasticMetal)
		r.f.slow = 1
		ctx, cancel := context.WithCancel(t.Context())
		r.f.at = func(k int) {
			if k == n {
				cancel()
			}
		}
		err := r.take(ctx)
		cancel()
		r.secretless(t, err)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, context.Canceled)
		again := r.again()
		require.NoError(t, again.Reach(t.Context(), "image"))
		require.Equal(t, "own", r.f.machine.now(), "cut off at request %d", n)
		require.NoError(t, again.take(t.Context()))
		require.NoError(t, again.Return()[0].Run(t.Context()))
	}
}

// The same for the return: the server ends on its disks, and these as they were.
func TestRescueReturnCutOff(t *testing.T) {
	r := newRescued(t, plans.ScalewayDedibox)
	before := r.read(t)
	r.f.slow = 1
	require.NoError(t, r.take(t.Context()))
	for n := 1; ; n++ {
		r.change(t)
		ctx, cancel := context.WithCancel(t.Context())
		begun := r.f.count()
		r.f.mu.Lock()
		r.f.at = func(k int) {
			if k == begun+n {
				cancel()
			}
		}
		r.f.mu.Unlock()
		again := r.again()
		err := again.write(ctx)
		cancel()
		if err == nil {
			same(t, before, r.read(t))
			break
		}
		require.ErrorIs(t, err, context.Canceled)
		r.secretless(t, err)
		again = r.again()
		require.NoError(t, again.Reach(t.Context(), "write"), "cut off at request %d", n)
		require.Equal(t, "own", r.f.machine.now())
		require.NoError(t, again.write(t.Context()))
		require.Equal(t, "own", r.f.machine.now())
		same(t, before, r.read(t))
	}
}

// A connection that is lost while a disk is read or written is no harm: the stream is begun anew.
func TestRescueLostConnection(t *testing.T) {
	r := newRescued(t, plans.ScalewayElasticMetal)
	before := r.read(t)
	r.f.machine.cutAfter = 1 << 20
	require.NoError(t, r.take(t.Context()))
	require.Zero(t, r.f.machine.cutAfter)
	r.change(t)
	r.f.machine.takeAfter = 1 << 20
	require.NoError(t, r.write(t.Context()))
	require.Zero(t, r.f.machine.takeAfter)
	same(t, before, r.read(t))
}

// A disk that is written in part cannot be started from, and nothing but the whole return ends the rescue mode.
func TestRescueWriteCutOff(t *testing.T) {
	r := newRescued(t, plans.ScalewayElasticMetal)
	before := r.read(t)
	require.NoError(t, r.take(t.Context()))
	r.change(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.write(ctx) }()
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(r.disks[0])
		return err == nil && strings.Trim(string(data[:1<<20]), "\x00") == ""
	}, 10*time.Second, 100*time.Microsecond)
	cancel()
	err := <-done
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "do not start it from its disks, repeat the command")
	require.Equal(t, "rescue", r.f.machine.now())
	r.secretless(t, err)

	again := r.again()
	pending, err := again.Pending(t.Context())
	require.NoError(t, err)
	require.Contains(t, pending, "are written in part")
	require.ErrorContains(t, again.Remove()[0].Run(t.Context()), "complete the rollback")
	require.NoError(t, os.Rename(again.dir(), again.dir()+".away"))
	require.ErrorContains(t, again.Reach(t.Context(), "write"), "put them back there")
	require.Equal(t, "rescue", r.f.machine.now(), "disks that may be written in part are not started from")
	require.NoError(t, os.Rename(again.dir()+".away", again.dir()))
	require.NoError(t, again.Reach(t.Context(), "write"))
	require.Equal(t, "own", r.f.machine.now())
	same(t, before, r.read(t))
	pending, err = again.Pending(t.Context())
	require.NoError(t, err)
	require.Empty(t, pending)
}

// With block devices, and the commands that are used of them in a rescue system, but for what lets go of arrays and groups.
func TestRescueBlockDevice(t *testing.T) {
	sshtest.Root(t)
	sshtest.Need(t, "losetup", "mount")
	r := newRescued(t, plans.ScalewayElasticMetal)
	files := r.disks
	require.NoError(t, os.Truncate(files[0], 6<<20))
	require.NoError(t, os.Truncate(files[1], 7<<20))
	before := r.read(t)
	for i, file := range files {
		out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
		if err != nil {
			sshtest.Missing(t, fmt.Sprintf("no loop device to be had: %s", out))
		}
		device := strings.TrimSpace(string(out))
		t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "-d", device).Run()) })
		r.at.Disks[i] = filepath.Join(t.TempDir(), "by-id")
		require.NoError(t, os.Symlink(device, r.at.Disks[i]))
	}
	r.tools.size, r.tools.flush = rescueTools.size, rescueTools.flush
	r.disks = files
	require.NoError(t, r.Ready(t.Context()))
	r.Storage.FileSystems = []FileSystem{{Source: r.at.Disks[0] + "[/@]", Paths: []string{"/var/lib/rancher"}}}
	require.NoError(t, r.Ready(t.Context()))
	runAll(t, t.Context(), r.Take())
	for i, device := range r.at.Disks {
		require.NoError(t, os.WriteFile(device, []byte(strings.Repeat("changed ", 6<<17)), 0), "%d", i)
	}
	runAll(t, t.Context(), r.Return())
	require.NoError(t, exec.Command("sync").Run())
	same(t, before, r.read(t))
}

// What the rebuild touches has to lie on the plan's disks.
func TestRescueCovers(t *testing.T) {
	r := newRescued(t, plans.ScalewayElasticMetal)
	out, err := exec.Command("lsblk", "-nrpo", "NAME,TYPE").Output()
	require.NoError(t, err)
	disk := ""
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[1] == "disk" {
			disk = fields[0]
		}
	}
	if disk == "" {
		sshtest.Missing(t, "this machine has no disk")
	}
	r.Storage.FileSystems = []FileSystem{{Source: "tank/root", Paths: []string{"/"}}, {Source: disk, Paths: []string{"/etc/rancher", "/var/lib/rancher"}}}
	err = r.Ready(t.Context())
	require.ErrorContains(t, err, "spec.snapshot.scaleway.disks: /etc/rancher, /var/lib/rancher lies on "+disk+", which is not among them")
}

// The scripts leave the first mebibyte and the last empty when the stream breaks off.
func TestWritingStopsShort(t *testing.T) {
	r := newRescued(t, plans.ScalewayElasticMetal)
	require.NoError(t, r.take(t.Context()))
	r.change(t)
	h, err := r.Host(t.Context())
	require.NoError(t, err)
	artifact := filepath.Join(r.dir(), "half")
	require.NoError(t, h.Run(t.Context(), "head -c 3000000 /dev/urandom | zstd -q | head -c 2000000 >"+remote.Quote(artifact)))
	script := fmt.Sprintf(writing, remote.Quote(r.disks[0]), unpacks[backup.Zstd], fakeDiskSize-1<<20)
	require.Error(t, h.Run(t.Context(), "{ "+script+"\n} <"+remote.Quote(artifact)))
	data := r.read(t)[0]
	require.Len(t, data, fakeDiskSize)
	require.Empty(t, strings.Trim(data[:1<<20], "\x00"), "cannot be started from")
	require.Empty(t, strings.Trim(data[fakeDiskSize-1<<20:], "\x00"), "nor by the copy of the partition table")
}

func damage(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.WriteFile(file, data, 0o600))
}

func TestRescueRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		before func(*testing.T, *rescued)
		run    func(*rescued) error
		err    []string
		begun  bool // orders may have been given
	}{
		"no such disk": {before: func(t *testing.T, r *rescued) { r.at.Disks[1] += "x" }, run: func(r *rescued) error { return r.Ready(context.Background()) },
			err: []string{"spec.snapshot.scaleway.disks[1]: there is no ", "lsblk"}},
		"no room": {before: func(t *testing.T, r *rescued) { r.tools.size = "printf 9000000000000000; true" }, run: func(r *rescued) error { return r.Ready(context.Background()) },
			err: []string{"spec.snapshot.scaleway.images: ", "imagesFit: true"}},
		"wrong id": {before: func(t *testing.T, r *rescued) { r.at.ID = "99999999-2222-4333-8444-555555555555" }, run: func(r *rescued) error { return r.Ready(context.Background()) },
			err: []string{"there is none of this ID"}},
		"a damaged image": {before: func(t *testing.T, r *rescued) {
			require.NoError(t, r.take(t.Context()))
			damage(t, filepath.Join(r.dir(), r.artifact(1)+".age"))
		}, run: func(r *rescued) error { return r.Return()[0].Run(context.Background()) }, err: []string{"is damaged", otherwise}},
		"an image that is gone": {before: func(t *testing.T, r *rescued) {
			require.NoError(t, r.take(t.Context()))
			require.NoError(t, os.Remove(filepath.Join(r.dir(), r.artifact(0)+".age")))
		}, run: func(r *rescued) error { return r.Return()[0].Run(context.Background()) }, err: []string{"its file is missing", otherwise}},
		"another server's images": {before: func(t *testing.T, r *rescued) {
			require.NoError(t, r.take(t.Context()))
			r.at.Zone = "fr-par-1"
		}, run: func(r *rescued) error { _, err := r.whole(context.Background()); return err }, err: []string{"is of elastic-metal " + fakeID + " in fr-par-2, not of"}},
		"another disk": {before: func(t *testing.T, r *rescued) {
			require.NoError(t, r.take(t.Context()))
			require.NoError(t, os.Truncate(r.disks[0], 2*fakeDiskSize))
		}, run: func(r *rescued) error { return r.write(context.Background()) }, begun: true, err: []string{"it is another disk", "nothing was written"}},
		"a disk that cannot be read": {before: func(t *testing.T, r *rescued) {
			r.tools.size = "rm -rf " + remote.Quote(r.disks[1]) + "; mkdir " + remote.Quote(r.disks[1]) + "; printf 5246976; true"
		}, run: func(r *rescued) error { return r.take(context.Background()) }, begun: true, err: []string{"making the image of ", "exit status 1: reading\ndd: "}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRescued(t, plans.ScalewayElasticMetal)
			c.before(t, r)
			writes := len(r.f.writes())
			err := c.run(r)
			require.Error(t, err)
			for _, part := range c.err {
				require.ErrorContains(t, err, part)
			}
			if !c.begun {
				require.Len(t, r.f.writes(), writes, "nothing is begun")
			}
			require.Equal(t, "own", r.f.machine.now(), "the host runs")
			r.secretless(t, err)
		})
	}
}

// A rescue system that never comes up: the server is told to start from its disks, and the person how to do it.
func TestRescueNeverUp(t *testing.T) {
	for _, product := range []plans.ScalewayProduct{plans.ScalewayElasticMetal, plans.ScalewayDedibox} {
		t.Run(string(product)+" state", func(t *testing.T) {
			r := newRescued(t, product)
			r.f.stuck = true
			r.pace.state = 50 * time.Millisecond
			err := r.take(t.Context())
			var late *LateError
			require.ErrorAs(t, err, &late)
			_, normal := r.machine.commands()
			require.ErrorContains(t, err, "Starting the rescue system: not so after 50ms")
			require.ErrorContains(t, err, normal)
			require.ErrorContains(t, err, r.console())

			r.f.mu.Lock()
			r.f.stuck = false
			r.f.mu.Unlock()
			again := r.again()
			require.NoError(t, again.Reach(t.Context(), "image"))
			require.Equal(t, "own", r.f.machine.now())
		})
		t.Run(string(product)+" SSH", func(t *testing.T) {
			r := newRescued(t, product)
			r.f.machine.mu.Lock()
			r.f.machine.deaf = true
			r.f.machine.mu.Unlock()
			r.pace.start = 300 * time.Millisecond
			err := r.take(t.Context())
			require.ErrorContains(t, err, "Waiting for the rescue system to answer: not so after 300ms")
			require.False(t, errors.Is(err, context.Canceled))
			require.Equal(t, "own", r.f.machine.now(), "it runs from its disks again")
			r.secretless(t, err)
		})
	}
}

// What fails for good while the server is away ends with how to get it back, as what takes too long does.
func TestRescueLostForGood(t *testing.T) {
	const expired = `{"type":"denied_authentication","method":"api_key","reason":"expired","message":"authentication is denied"}`
	expire := func(r *rescued) {
		r.f.fail(fault{method: "GET", suffix: fakeID, times: -1, status: 401, body: expired})
	}
	for name, fail := range map[string]struct {
		fail func(*rescued)
		err  string
	}{
		"expired key": {expire, "API key is expired"},
		"forbidden": {func(r *rescued) {
			r.f.fail(fault{method: "GET", suffix: fakeID, times: -1, status: 403, body: `{"type":"permissions_denied","message":"insufficient permissions","details":[{"resource":"server","action":"read"}]}`})
		}, "read server"},
		"broken": {func(r *rescued) { r.f.mu.Lock(); r.f.state, r.f.next = "error", nil; r.f.mu.Unlock() }, "its status is error"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRescued(t, plans.ScalewayElasticMetal)
			h, err := r.enter(t.Context(), r.byHand())
			require.NoError(t, err)
			h.Close()
			fail.fail(r)
			_, normal := r.machine.commands()
			err = r.Reach(t.Context(), "image")
			require.ErrorContains(t, err, fail.err)
			require.ErrorContains(t, err, normal)
			require.ErrorContains(t, err, r.console())
			r.secretless(t, err)
		})
	}
	t.Run("disks written in part", func(t *testing.T) {
		r := newRescued(t, plans.ScalewayElasticMetal)
		require.NoError(t, r.take(t.Context()))
		require.NoError(t, r.mark(true))
		expire(r)
		err := r.Reach(t.Context(), "write")
		require.ErrorContains(t, err, "API key is expired")
		require.Equal(t, 1, strings.Count(err.Error(), "do not start it from its disks"), err.Error())
	})
	t.Run("instance", func(t *testing.T) {
		f := newFakeScaleway(t)
		i, _ := instanceOf(t, f)
		require.NoError(t, i.take(t.Context()))
		f.fail(fault{method: "PATCH", suffix: fakeID, times: -1, status: 403, body: `{"type":"permissions_denied","message":"insufficient permissions","details":[{"resource":"server","action":"write"}]}`})
		err := i.back(t.Context())
		require.ErrorContains(t, err, "write server")
		require.ErrorContains(t, err, "scw instance server start "+fakeID+" zone=fr-par-2")
	})
}

// What an earlier attempt has left counts as free, and what is refused is refused before the server is restarted.
func TestRescueRoom(t *testing.T) {
	r := newRescued(t, plans.ScalewayElasticMetal)
	const room = 2 * fakeDiskSize
	r.free = func() int64 { return room - 1 }
	require.ErrorContains(t, r.take(t.Context()), "imagesFit: true")
	require.Empty(t, r.f.writes(), "it was not restarted for that")
	require.Equal(t, "own", r.f.machine.now())

	r.free = func() int64 { return room }
	require.NoError(t, r.take(t.Context()))
	set, err := r.set(true)
	require.NoError(t, err)
	require.NoError(t, set.Remove(r.artifact(1)), "as if it had been cut off before that one")
	first, _ := set.Artifact(r.artifact(0))
	again := r.again()
	again.free = func() int64 { return room - first.Size }
	require.NoError(t, again.take(t.Context()))
	require.NoError(t, again.Return()[0].Run(t.Context()))
	set, err = again.set(false)
	require.NoError(t, err)
	now, _ := set.Artifact(r.artifact(0))
	require.NotEqual(t, first.Meta[metaSession], now.Meta[metaSession])
}

// While the API calls the rescue system started and the server's own still answers, nothing is done to that.
func TestRescueNotYet(t *testing.T) {
	for name, known := range map[string]bool{"by its host key": true, "by its boot id": false} {
		t.Run(name, func(t *testing.T) {
			r := newRescued(t, plans.ScalewayElasticMetal)
			before := r.read(t)
			r.tools.release = ": letting go"
			r.f.machine.otherKey = !known
			r.f.machine.late = 3
			require.NoError(t, r.take(t.Context()))
			require.Zero(t, r.f.machine.late)
			r.change(t)
			r.f.machine.late = 3
			require.NoError(t, r.write(t.Context()))
			require.Zero(t, r.f.machine.late)
			same(t, before, r.read(t))
			systems := []string{}
			for _, command := range r.f.machine.commands {
				if strings.Contains(command, "letting go") {
					systems = append(systems, command[:strings.Index(command, " ")])
				}
			}
			require.Equal(t, []string{"rescue", "rescue"}, systems)
		})
	}
}

// Disks that a system uses are let go of by nobody. lsblk and zpool are FAKES, after what util-linux 2.38 and OpenZFS 2.1 print.
func TestRescueUsed(t *testing.T) {
	const lsblk = `#!/bin/sh
case "$2" in
KNAME) echo sdx; echo sdx1;;
FSTYPE) [ "$3" != /dev/sdx1 ] || echo "$FAKE_FSTYPE";;
LABEL) echo "tank\\x20two";;
NAME,MOUNTPOINT) echo "/dev/sdx "; echo "/dev/sdx1 $FAKE_MOUNT";;
NAME,TYPE,MOUNTPOINT) echo "/dev/sdx disk "; echo "/dev/sdx1 part $FAKE_MOUNT";;
SERIAL) ;;
*) echo "lsblk $*: not known to the fake" >&2; exit 1;;
esac
`
	for name, c := range map[string]struct {
		fsType, mount, pools string
		member               bool // of a btrfs that is mounted
		used                 bool
	}{
		"nothing":             {fsType: "ext4"},
		"swap":                {fsType: "swap", mount: "[SWAP]", used: true}, // which stays, since the release is none
		"mounted":             {fsType: "ext4", mount: "/", used: true},
		"btrfs elsewhere":     {fsType: "btrfs"},
		"btrfs, two devices":  {fsType: "btrfs", member: true, used: true},
		"a pool":              {fsType: "zfs_member", pools: "tank two", used: true},
		"pool not imported":   {fsType: "zfs_member", pools: "tank"},
		"a pool on other":     {fsType: "ext4", pools: "tank two"},
		"no pool is imported": {fsType: "zfs_member"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for tool, script := range map[string]string{"lsblk": lsblk, "zpool": "#!/bin/sh\n[ \"$*\" = 'list -H -o name' ] && [ -n \"$FAKE_POOLS\" ] && echo \"$FAKE_POOLS\"\n"} {
				require.NoError(t, os.WriteFile(filepath.Join(dir, tool), []byte(script), 0o755))
			}
			member := filepath.Join(dir, "btrfs", "0b1a", "devices", "sdx1")
			if !c.member {
				member += "0"
			}
			require.NoError(t, os.MkdirAll(member, 0o755))
			disk, released := filepath.Join(dir, "disk"), filepath.Join(dir, "released")
			require.NoError(t, os.WriteFile(disk, nil, 0o600))
			cmd := exec.Command("sh", "-c", fmt.Sprintf(using, remote.Quote(disk), filepath.Join(dir, "btrfs"), "touch "+remote.Quote(released)))
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "FAKE_FSTYPE="+c.fsType, "FAKE_MOUNT="+c.mount, "FAKE_POOLS="+c.pools)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			require.NoError(t, err)
			want := ""
			if c.used {
				want = "/dev/sdx1"
			}
			require.Equal(t, want, strings.TrimSpace(string(out)))
			if c.used && c.mount != "[SWAP]" {
				require.NoFileExists(t, released, "nothing is let go of")
			} else {
				require.FileExists(t, released)
			}
		})
	}
}

// The second device of a btrfs that is mounted, of which lsblk tells no mount point.
func TestRescueUsedBtrfs(t *testing.T) {
	sshtest.Root(t)
	sshtest.Need(t, "losetup", "mount")
	sshtest.Need(t, "mkfs.btrfs", "btrfs-progs")
	r := newRescued(t, plans.ScalewayElasticMetal)
	dir := t.TempDir()
	var devices []string
	for i := range 2 {
		file := filepath.Join(dir, fmt.Sprint(i))
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Truncate(file, 160<<20))
		out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
		if err != nil {
			sshtest.Missing(t, fmt.Sprintf("no loop device to be had: %s", out))
		}
		device := strings.TrimSpace(string(out))
		devices = append(devices, device)
		t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "-d", device).Run()) })
	}
	out, err := exec.Command("mkfs.btrfs", "-q", "-d", "single", "-m", "single", devices[0], devices[1]).CombinedOutput()
	require.NoError(t, err, "%s", out)
	at := filepath.Join(dir, "at")
	require.NoError(t, os.Mkdir(at, 0o755))
	if out, err := exec.Command("mount", "-t", "btrfs", "-o", "device="+devices[1], devices[0], at).CombinedOutput(); err != nil {
		sshtest.Missing(t, fmt.Sprintf("no btrfs can be mounted: %s", out))
	}
	t.Cleanup(func() { require.NoError(t, exec.Command("umount", at).Run()) })
	for _, device := range devices {
		released := filepath.Join(dir, "released")
		r.at.Disks = []string{device}
		r.tools = rescueTools
		r.tools.release = "touch " + remote.Quote(released)
		require.ErrorContains(t, r.take(t.Context()), "uses the disks itself ("+device+")")
		require.NoFileExists(t, released, "nothing is let go of")
		require.Equal(t, "own", r.f.machine.now())
	}
}

// BenchmarkImage makes the image of a sparse disk of 4 GiB (BENCH_BYTES says otherwise), of which a quarter does not compress,
// through a rescue session, compares it, and writes it back. It reports the largest resident size of both, in which that of the
// FAKE session's server is, too.
func BenchmarkImage(b *testing.B) {
	size := int64(4 << 30)
	if v := os.Getenv("BENCH_BYTES"); v != "" {
		var err error
		size, err = strconv.ParseInt(v, 10, 64)
		require.NoError(b, err)
	}
	r := newRescued(b, plans.ScalewayElasticMetal)
	r.at.Disks = r.at.Disks[:1]
	disk, err := os.Create(r.at.Disks[0])
	require.NoError(b, err)
	noise := make([]byte, 4<<20)
	for at := int64(0); at < size; at += 16 << 20 {
		_, err := rand.Read(noise)
		require.NoError(b, err)
		_, err = disk.WriteAt(noise[:min(4<<20, size-at)], at)
		require.NoError(b, err)
	}
	require.NoError(b, disk.Truncate(size))
	require.NoError(b, disk.Close())

	debug.FreeOSMemory()
	b.SetBytes(2 * size)
	var image, write float64
	for b.Loop() {
		require.NoError(b, os.RemoveAll(r.dir()))
		forgetPeak(b)
		require.NoError(b, r.take(b.Context()))
		image = max(image, peak(b))
		forgetPeak(b)
		require.NoError(b, r.write(b.Context()))
		write = max(write, peak(b))
	}
	b.ReportMetric(image, "image-peak-RSS-MiB")
	b.ReportMetric(write, "write-peak-RSS-MiB")
}

// forgetPeak starts the kernel's record of the process's largest resident size anew.
func forgetPeak(b *testing.B) {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Skipf("this system does not record the largest resident size: %v", err)
	}
}

// peak is that size in MiB.
func peak(b *testing.B) (mib float64) {
	data, err := os.ReadFile("/proc/self/status")
	require.NoError(b, err)
	_, rest, ok := strings.Cut(string(data), "VmHWM:")
	require.True(b, ok)
	_, err = fmt.Sscan(rest, &mib)
	require.NoError(b, err)
	return mib / 1024
}
