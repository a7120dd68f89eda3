//go:build e2e

package snapshot

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// must ends the test where it cannot run: these are real or nothing.
func must(t *testing.T, pkg string, programs ...string) {
	t.Helper()
	require.Zero(t, os.Getuid(), "this test needs root")
	for _, p := range programs {
		_, err := exec.LookPath(p)
		require.NoError(t, err, "install it with: apt-get install %s", pkg)
	}
}

// sh runs a script on this machine.
func sh(t *testing.T, script string, args ...any) string {
	t.Helper()
	out, err := exec.Command("sh", "-euc", fmt.Sprintf(script, args...)).CombinedOutput()
	require.NoError(t, err, "%s\n%s", fmt.Sprintf(script, args...), out)
	return strings.TrimSpace(string(out))
}

// tree is what lies below a directory, without what lies below the ones left out.
func tree(t *testing.T, dir string, without ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil || slices.Contains(without, rel) {
			return fs.SkipDir
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		out[rel] = st.Mode().String()
		if st.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			out[rel] += " " + string(data)
			return err
		}
		return nil
	}))
	return out
}

// performance runs operations as the runner does: those that are done are not done again, one that was begun is asked for.
type performance struct {
	done    map[string]bool
	begun   map[string]bool
	restart func() // instead of the host's
}

func perform(restart func()) *performance {
	return &performance{map[string]bool{}, map[string]bool{}, restart}
}

func (p *performance) all(ctx context.Context, list []Operation) error {
	for _, o := range list {
		if p.done[o.Name] {
			continue
		}
		if p.begun[o.Name] && o.Done != nil {
			done, err := o.Done(ctx)
			if err != nil {
				return fmt.Errorf("%s: is it done? %w", o.Name, err)
			}
			if done {
				p.done[o.Name] = true
				continue
			}
		}
		p.begun[o.Name] = true
		if o.Name == "restart" {
			p.restart()
		} else if err := o.Run(ctx); err != nil {
			return fmt.Errorf("%s: %w", o.Name, err)
		}
		p.done[o.Name] = true
	}
	return nil
}

// cutAfter has the scripts on the host killed after that many of their changes; left tells how many of those are left.
func cutAfter(t *testing.T, n int) (left func() int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "left")
	require.NoError(t, os.WriteFile(file, []byte(strconv.Itoa(n)), 0o600))
	scriptAid = fmt.Sprintf(`tick() { n=$(($(cat %[1]s) - 1)); echo $n > %[1]s; if [ $n -eq 0 ]; then kill -9 $$; fi; }
mv() { command mv "$@" || return; tick; }
mkdir() { command mkdir "$@" || return; tick; }
rmdir() { command rmdir "$@" || return; tick; }
touch() { command touch "$@" || return; tick; }
btrfs() { command btrfs "$@" || return; case "$1 $2" in "subvolume snapshot"|"subvolume delete"|"subvolume set-default"|"filesystem sync") tick ;; esac; }
`, file)
	t.Cleanup(func() { scriptAid = "" })
	return func() int {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		n, err := strconv.Atoi(strings.TrimSpace(string(data)))
		require.NoError(t, err)
		return n
	}
}

// disk is a btrfs file system on a loop device, laid out as a host's: the default subvolume is the root, with nested ones
// that hold some of what a rebuild touches or nothing of it, and another is mounted in it.
type disk struct {
	t          *testing.T
	image, dir string
	ask        Ask
}

func newDisk(t *testing.T) *disk {
	must(t, "btrfs-progs", "btrfs", "mkfs.btrfs")
	must(t, "util-linux", "findmnt", "unshare", "losetup")
	memory, err := os.MkdirTemp("/dev/shm", "btrfs") // each look takes a sync
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(memory) })
	d := &disk{t: t, image: filepath.Join(memory, "disk"), dir: filepath.Join(t.TempDir(), "a host")}
	require.NoError(t, os.Mkdir(d.dir, 0o755))
	sh(t, `truncate -s 300M %[1]s; mkfs.btrfs -q %[1]s >/dev/null 2>&1`, d.image)
	t.Cleanup(d.umount)
	t.Cleanup(func() { os.Remove(restartWanted) })
	os.Remove(restartWanted)
	sh(t, `mount -o loop %s '%s'; cd '%[2]s'
for s in @ @/srv\ vol @other; do btrfs subvolume create "$s"; done
mkdir -p @/etc @/usr/local/bin @/var/lib/rancher/k3s/server @/mnt/other @/srv\ vol/data @other/claim
btrfs subvolume create @/var/lib/machines
btrfs subvolume create @/var/lib/machines/deep
echo secret > @/var/lib/rancher/k3s/server/token
echo old > @/etc/conf; echo k3s > @/usr/local/bin/k3s; chmod 755 @/usr/local/bin/k3s
echo shop > @/srv\ vol/data/db; echo mine > @other/claim/file; echo machine > @/var/lib/machines/m
btrfs subvolume set-default @`, d.image, d.dir)
	d.umount()
	d.mount()
	h := sshtest.Dial(t)
	d.ask = Ask{
		Host: func(context.Context) (*remote.Host, error) { return h, nil },
		Plan: &plans.Snapshot{Method: plans.SnapshotBtrfs}, Name: "shop",
		Proof: d.at("var/lib/rancher/k3s/server/token"),
	}
	d.look()
	return d
}

func (d *disk) at(p string) string { return filepath.Join(d.dir, p) }

// look surveys the host.
func (d *disk) look(more ...string) {
	d.t.Helper()
	h, err := d.ask.Host(d.t.Context())
	require.NoError(d.t, err)
	paths := []string{d.at("etc"), d.at("usr/local/bin"), d.at("var/lib/rancher/k3s"), d.at("var/lib/kubelet/not/there"), d.at("srv vol/data"), d.at("mnt/other/claim")}
	d.ask.Storage, err = Look(d.t.Context(), h, append(paths, more...), "/var/empty")
	require.NoError(d.t, err)
}

func (d *disk) method() btrfs { return New(d.ask).(btrfs) }

func (d *disk) mount() {
	sh(d.t, `mount -o loop %s '%[2]s'; mount -o subvol=@other "$(findmnt -n -v -o SOURCE -M '%[2]s')" '%[2]s/mnt/other'`, d.image, d.dir)
}

// umount detaches the loop devices, too, which losetup -D of others' would not do.
func (d *disk) umount() {
	exec.Command("umount", "--recursive", d.dir).Run()
	sh(d.t, `sync; for l in $(losetup -n -O NAME -j %s); do losetup -d $l; done`, d.image)
}

func (d *disk) restart() {
	d.umount()
	d.mount()
	os.Remove(restartWanted)
}

// rebuild does to the host what a rebuild does, and what others do meanwhile.
func (d *disk) rebuild(n int) {
	sh(d.t, `cd '%s'
rm -rf var/lib/rancher/k3s usr/local/bin/k3s mnt/other/claim
mkdir -p var/lib/rancher/k3s var/lib/kubelet
echo new > etc/conf; echo added > etc/added; echo dual > var/lib/rancher/k3s/new; echo lost > srv\ vol/data/db
if [ $((%[2]d %% 2)) = 0 ]; then rm -rf srv\ vol; mkdir -p srv\ vol/data; echo plain > srv\ vol/data/db; fi
echo later > var/lib/machines/later%[2]d
[ -d var/lib/later ] || btrfs subvolume create var/lib/later >/dev/null`, d.dir, n)
}

// returned compares with what was there when the snapshot was taken, and what is nested with what it was later.
func (d *disk) returned(want map[string]string, n int) {
	d.t.Helper()
	require.Equal(d.t, want, tree(d.t, d.dir, "var/lib/machines"), "rebuild %d", n)
	machines := tree(d.t, d.at("var/lib/machines"))
	assert.Equal(d.t, "-rw-r--r-- machine\n", machines["m"])
	assert.Equal(d.t, "-rw-r--r-- later\n", machines[fmt.Sprintf("later%d", n)])
	assert.Contains(d.t, machines, "deep")
	pending, err := d.method().Pending(d.t.Context())
	require.NoError(d.t, err)
	assert.Empty(d.t, pending)
	assert.NotContains(d.t, d.top("ls"), "replacing")
	assert.NotContains(d.t, d.top("ls"), "return")
}

// top runs a script at the top level.
func (d *disk) top(script string) string {
	d.t.Helper()
	return sh(d.t, "%s", d.method().topLevels()[0].at(script))
}

func TestBtrfsLook(t *testing.T) {
	d := newDisk(t)
	b := d.method()
	assert.Empty(t, b.Problems())
	assert.Empty(t, b.Outside())
	proposal := Proposed(d.ask.Storage)
	assert.Equal(t, plans.SnapshotBtrfs, proposal.Method, proposal.Why)
	var held []string
	for _, v := range b.topLevels()[0].held {
		held = append(held, v.Path+" at "+v.Seen)
	}
	assert.Equal(t, []string{"@ at " + d.dir, "@/srv vol at " + d.at("srv vol"), "@other at " + d.at("mnt/other")}, held)
	assert.Equal(t, []string{"@/var/lib/machines"}, b.topLevels()[0].nested)
	for _, fs := range d.ask.Storage.FileSystems {
		assert.Equal(t, sh(t, "df -B1 --output=avail '%s' | tail -n 1 | tr -d ' '", fs.Target), fmt.Sprint(fs.Free))
	}
	assert.Empty(t, d.ask.Storage.Links)
	sh(t, `ln -s var/lib '%s'`, d.at("linked"))
	d.look(d.at("linked/rancher/k3s"))
	assert.Equal(t, map[string]string{d.at("linked/rancher/k3s"): d.at("var/lib/rancher/k3s")}, d.ask.Storage.Links)

	sh(t, `btrfs subvolume create '%s'`, d.at("var/lib/rancher/k3s/images"))
	d.look()
	assert.Equal(t, []string{d.at("var/lib/rancher/k3s/images") + " (a nested subvolume)"}, d.method().Outside())
}

func TestBtrfsTopLevelAndOtherFileSystems(t *testing.T) {
	d := newDisk(t)
	d.umount()
	sh(t, `mount -o loop,subvolid=5 %s '%s'`, d.image, d.dir)
	h, err := d.ask.Host(t.Context())
	require.NoError(t, err)
	d.ask.Storage, err = Look(t.Context(), h, []string{d.at("@/etc"), d.at("claim"), "/etc"}, "/var/empty")
	require.NoError(t, err)
	assert.Contains(t, d.method().Outside(), "/etc")
	require.Len(t, d.method().Problems(), 1)
	assert.Contains(t, d.method().Problems()[0].Detail, d.at("claim")+" is no subvolume: it lies on the top level")
}

func TestBtrfsReturn(t *testing.T) {
	d := newDisk(t)
	want := tree(t, d.dir, "var/lib/machines")
	b := d.method()
	require.NoError(t, perform(nil).all(t.Context(), b.Take()))
	assert.ErrorContains(t, b.Take()[0].Run(t.Context()), "there is a directory migrate-before-shop")
	d.look()
	assert.Len(t, d.method().Problems(), 3, "the snapshots are there already")

	d.rebuild(1)
	pending, err := b.Pending(t.Context())
	require.NoError(t, err)
	assert.Empty(t, pending)
	list := b.Return()
	require.NoError(t, perform(nil).all(t.Context(), list[:len(list)-1]))
	pending, err = b.Pending(t.Context())
	require.NoError(t, err)
	assert.Contains(t, pending, "subvolumes @, @other;")
	restarted, err := list[len(list)-1].Done(t.Context())
	require.NoError(t, err)
	assert.False(t, restarted)
	d.restart()
	restarted, err = list[len(list)-1].Done(t.Context())
	require.NoError(t, err)
	assert.True(t, restarted)
	d.returned(want, 1)
	assert.Equal(t, "new", d.top("cat migrate-replaced-shop/@/etc/conf"), "what was replaced is kept")
	assert.Equal(t, "yes", d.top("is migrate-replaced-shop/@/var/lib/later && echo yes"), "and what was made in it later")

	// A second return by the same snapshot.
	d.rebuild(2)
	require.NoError(t, perform(d.restart).all(t.Context(), b.Return()))
	d.returned(want, 2)
	assert.Equal(t, "plain", d.top("cat 'migrate-replaced-shop-2/@/srv vol/data/db'"), "what was there instead of a subvolume that was deleted")
	assert.Equal(t, "migrate-replaced-shop\nmigrate-replaced-shop-2", d.top("ls -d migrate-replaced-*"))

	remove := b.Remove()
	require.NoError(t, perform(nil).all(t.Context(), remove))
	require.NoError(t, perform(nil).all(t.Context(), remove), "one that is gone is no error")
	assert.NotContains(t, d.top("ls"), "before")
	assert.ErrorContains(t, b.Return()[0].Run(t.Context()), "there is no directory migrate-before-shop")
	d.returned(want, 2)
}

// Who types the commands gets the same.
func TestBtrfsByHand(t *testing.T) {
	d := newDisk(t)
	want := tree(t, d.dir, "var/lib/machines")
	b := d.method()
	typed := func(list []Operation) {
		t.Helper()
		for _, o := range list {
			sh(t, "%s", o.Command)
		}
	}
	typed(b.Take())
	d.rebuild(1)
	list := b.Return()
	typed(list[:len(list)-1])
	d.restart()
	d.returned(want, 1)
	assert.Equal(t, "new", d.top("cat migrate-replaced-shop/@/etc/conf"))
	typed(b.Remove())
	assert.NotContains(t, d.top("ls"), "before")
}

// Each change that the scripts make is the last before a kill -9 once. After it the return goes on, at once or after the host was
// started anew, or another begins.
func TestBtrfsCutOff(t *testing.T) {
	d := newDisk(t)
	want := tree(t, d.dir, "var/lib/machines")
	b := d.method()
	cuts := 0
	for n := 1; ; n++ {
		left := cutAfter(t, n)
		p := perform(nil)
		err := p.all(t.Context(), b.Take())
		scriptAid = ""
		require.NoError(t, p.all(t.Context(), b.Take()), "cut off after %d", n)
		if left() > 0 {
			require.NoError(t, err)
			break
		}
		cuts++
		assert.Equal(t, "@\n@%2Fsrv vol\n@other", d.top("ls migrate-before-shop"))
		require.NoError(t, perform(nil).all(t.Context(), b.Remove()))
	}
	assert.Greater(t, cuts, 6)

	for _, mode := range []string{"goes on", "goes on after a start", "begins anew after a start"} {
		cuts := 0
		for n := 1; ; n++ {
			d.rebuild(n)
			left := cutAfter(t, n)
			p := perform(d.restart)
			err := p.all(t.Context(), b.Return())
			scriptAid = ""
			if left() > 0 {
				require.NoError(t, err)
				break
			}
			cuts++
			if mode != "goes on" {
				require.ErrorContains(t, err, "exit status 137")
				// Without what is between two renames the host would not start.
				if d.top(`if is @ && is @other; then echo whole; fi`) == "whole" {
					d.restart()
					if !p.done["swap"] {
						sh(t, `cd '%s'; echo between > etc/conf; echo between > var/lib/between; echo between > mnt/other/between`, d.dir) // on old and new together
					}
				}
			}
			if mode == "begins anew after a start" {
				p = perform(d.restart)
			}
			require.NoError(t, p.all(t.Context(), b.Return()), "cut off after %d: %s", n, mode)
			d.returned(want, n)
		}
		t.Logf("a return that %s: %d cuts", mode, cuts)
		assert.Greater(t, cuts, 15)
	}
}

func TestBtrfsRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(d *disk)
		want   string
	}{
		"a snapshot is gone":             {func(d *disk) { d.top("btrfs subvolume delete migrate-before-shop/@other") }, "there is no snapshot migrate-before-shop/@other"},
		"a snapshot became writable":     {func(d *disk) { d.top("btrfs property set migrate-before-shop/@other ro false") }, "is not read-only any more"},
		"another subvolume in its place": {func(d *disk) { d.top("mv @other away; btrfs subvolume create @other") }, "is another than the one that the snapshot"},
		"no subvolume in its place":      {func(d *disk) { d.top("mv @other away; mkdir @other") }, "@other is no subvolume"},
		"one that was nested is a directory where its outer one has no place for it": {func(d *disk) {
			d.top("btrfs property set migrate-before-shop/@ ro false; rmdir 'migrate-before-shop/@/srv vol'; btrfs property set migrate-before-shop/@ ro true; btrfs subvolume delete '@/srv vol'")
		}, "@/srv vol is no subvolume"},
		"something nested is read-only": {func(d *disk) { d.top("btrfs property set @/var/lib/machines ro true") }, "@/var/lib/machines is nested in @ and read-only"},
		"something nested is mounted upon": {func(d *disk) {
			sh(d.t, `mount -t tmpfs tmpfs '%s'`, d.at("var/lib/machines"))
		}, "something is mounted on it at "},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			b := d.method()
			require.NoError(t, perform(nil).all(t.Context(), b.Take()))
			c.change(d)
			before := d.top("btrfs subvolume list -p -q -u .")
			err := b.Return()[0].Run(t.Context())
			assert.ErrorContains(t, err, c.want)
			assert.ErrorContains(t, err, otherwise)
			assert.Equal(t, before, d.top("btrfs subvolume list -p -q -u ."), "nothing was changed")
			assert.NoFileExists(t, restartWanted)
		})
	}
}

// What a return could not take along is found before the snapshot is taken.
func TestBtrfsTakeRefuses(t *testing.T) {
	d := newDisk(t)
	d.top("btrfs property set @/var/lib/machines ro true")
	assert.ErrorContains(t, d.method().Take()[0].Run(t.Context()), "@/var/lib/machines is nested in @ and read-only")
	assert.NotContains(t, d.top("ls"), "before")
}

// A second attempt makes all anew: on two file systems the snapshots are never of different times.
func TestBtrfsTwoFileSystems(t *testing.T) {
	d, e := newDisk(t), newDisk(t)
	h, err := d.ask.Host(t.Context())
	require.NoError(t, err)
	d.ask.Storage, err = Look(t.Context(), h, []string{d.at("etc"), d.at("var/lib/rancher/k3s"), e.at("usr/local/bin")}, "/var/empty")
	require.NoError(t, err)
	b := d.method()
	levels := b.topLevels()
	require.Len(t, levels, 2)
	take := b.Take()[0]
	number := func() string { return sh(t, "%s", levels[0].at("number migrate-before-shop/@")) }

	require.NoError(t, take.Run(t.Context()))
	done, err := take.Done(t.Context())
	require.NoError(t, err)
	assert.True(t, done)
	old := number()
	assert.ErrorContains(t, take.Run(t.Context()), "of an earlier run", "what is whole is not replaced")
	assert.Equal(t, old, number())

	sh(t, "%s", levels[1].at("drop migrate-before-shop")) // as if the attempt had not come to it
	done, err = take.Done(t.Context())
	require.NoError(t, err)
	assert.False(t, done)
	require.NoError(t, take.Run(t.Context()))
	assert.NotEqual(t, old, number())
	require.NoError(t, perform(nil).all(t.Context(), b.Take()[1:]), "it can be opened")
	require.NoError(t, perform(nil).all(t.Context(), b.Remove()))
	assert.Empty(t, sh(t, "%s", levels[0].at("ls -d migrate-before-* 2>/dev/null || true")))
}
