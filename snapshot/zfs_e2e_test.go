//go:build e2e

package snapshot

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// pool is a pool in a file, of ZFS through FUSE: it takes one snapshot at a time and shows none in .zfs. Its root dataset holds
// what a rebuild touches, with one below that.
type pool struct {
	t         *testing.T
	name, dir string
	ask       Ask
}

func newPool(t *testing.T) *pool {
	must(t, "zfs-fuse", "zfs-fuse", "zfs", "zpool")
	if exec.Command("zpool", "list").Run() != nil {
		daemon := exec.Command("zfs-fuse", "-n")
		require.NoError(t, daemon.Start())
		t.Cleanup(func() {
			daemon.Process.Kill()
			daemon.Wait()
		})
		require.Eventually(t, func() bool { return exec.Command("zpool", "list").Run() == nil }, 10*time.Second, 100*time.Millisecond, "zfs-fuse does not answer")
	}
	p := &pool{t: t, name: fmt.Sprintf("t%d", time.Now().UnixNano()), dir: filepath.Join(t.TempDir(), "host")}
	image := filepath.Join(t.TempDir(), "disk")
	t.Cleanup(func() { os.Remove(restartWanted) })
	os.Remove(restartWanted)
	sh(t, `truncate -s 100M %[1]s; zpool create -m %[2]s %[3]s %[1]s`, image, p.dir, p.name)
	t.Cleanup(func() {
		require.Eventually(t, func() bool { return exec.Command("zpool", "destroy", "-f", p.name).Run() == nil }, 20*time.Second, 500*time.Millisecond, "the pool is left")
	})
	sh(t, `cd %s; mkdir -p etc usr/local/bin var/lib/rancher/k3s/server
echo secret > var/lib/rancher/k3s/server/token; echo old > etc/conf; echo k3s > usr/local/bin/k3s`, p.dir)
	h := sshtest.Dial(t)
	p.ask = Ask{
		Host: func(context.Context) (*remote.Host, error) { return h, nil },
		Plan: &plans.Snapshot{Method: plans.SnapshotZFS}, Name: "shop",
		Proof: filepath.Join(p.dir, "var/lib/rancher/k3s/server/token"),
	}
	p.look()
	return p
}

func (p *pool) look() {
	p.t.Helper()
	h, err := p.ask.Host(p.t.Context())
	require.NoError(p.t, err)
	p.ask.Storage, err = Look(p.t.Context(), h, []string{p.dir + "/etc", p.dir + "/usr/local/bin", p.dir + "/var/lib/rancher/k3s"}, "/var/empty")
	require.NoError(p.t, err)
}

func (p *pool) method() zfs { return New(p.ask).(zfs) }

func (p *pool) rebuild() {
	sh(p.t, `cd %s; rm -rf var/lib/rancher/k3s usr/local/bin/k3s; mkdir -p var/lib/rancher/k3s; echo new > etc/conf; echo dual > var/lib/rancher/k3s/new`, p.dir)
}

func TestZFSLook(t *testing.T) {
	p := newPool(t)
	assert.Empty(t, p.method().Problems())
	assert.Empty(t, p.method().Outside())
	proposal := Proposed(p.ask.Storage)
	assert.Equal(t, plans.SnapshotZFS, proposal.Method, proposal.Why)
	assert.Equal(t, []Dataset{{Name: p.name, Target: p.dir, Paths: p.ask.Storage.FileSystems[0].Paths}}, p.ask.Storage.Datasets)

	sh(t, `zfs create -o mountpoint=%[2]s/var/lib/rancher/k3s/images %[1]s/images; zfs create %[1]s/other`, p.name, p.dir)
	p.look()
	assert.Equal(t, []string{p.dir + "/var/lib/rancher/k3s/images (the dataset " + p.name + "/images)"}, p.method().Outside())
}

func TestZFSReturn(t *testing.T) {
	p := newPool(t)
	sh(t, "zfs create %[1]s/other; echo mine > %[2]s/other/file", p.name, p.dir)
	want := tree(t, p.dir, "other")
	z := p.method()
	take := z.Take()
	require.Len(t, take, 2)
	done, err := take[0].Done(t.Context())
	require.NoError(t, err)
	assert.False(t, done)
	assert.ErrorContains(t, z.Return()[0].Run(t.Context()), "there is no snapshot "+p.name+"@migrate-before-shop on the host")
	require.NoError(t, take[0].Run(t.Context()))
	done, err = take[0].Done(t.Context())
	require.NoError(t, err)
	assert.True(t, done)
	assert.ErrorContains(t, take[1].Run(t.Context()), p.dir+"/.zfs/snapshot/migrate-before-shop/var/lib/rancher/k3s/server/token", "through FUSE ZFS shows none")
	p.look()
	require.Len(t, p.method().Problems(), 1)
	assert.Contains(t, p.method().Problems()[0].Detail, "is there already")

	back := func(z zfs) error {
		return perform(func() {
			pending, err := z.Pending(t.Context())
			require.NoError(t, err)
			assert.Contains(t, pending, p.name)
			os.Remove(restartWanted)
		}).all(t.Context(), z.Return())
	}
	p.rebuild()
	sh(t, "echo more > %s/other/file", p.dir)
	require.NoError(t, back(z))
	assert.Equal(t, want, tree(t, p.dir, "other"))
	assert.Equal(t, "-rw-r--r-- more\n", tree(t, p.dir+"/other")["file"], "what holds nothing stays")
	pending, err := z.Pending(t.Context())
	require.NoError(t, err)
	assert.Empty(t, pending)

	// A rollback that is refused leaves nothing to restart for.
	p.rebuild()
	sh(t, "zfs snapshot %s@nightly", p.name)
	err = z.Return()[0].Run(t.Context())
	assert.ErrorContains(t, err, "would destroy what is newer than the snapshot: "+p.name+"@nightly; with --destroy-newer")
	assert.ErrorContains(t, z.Return()[1].Run(t.Context()), "more recent snapshots exist")
	assert.NoFileExists(t, restartWanted)
	assert.NotEqual(t, want, tree(t, p.dir, "other"))

	sh(t, "zfs clone %[1]s@nightly %[1]s/clone; zfs umount %[1]s/clone || true", p.name)
	p.ask.DestroyNewer = true
	assert.ErrorContains(t, p.method().Return()[0].Run(t.Context()), p.name+"/clone came to be by cloning what is newer than the snapshot ("+p.name+"@nightly)")
	assert.Error(t, p.method().Return()[1].Run(t.Context()), "clones are never destroyed")
	sh(t, "zfs destroy %[1]s/clone; zfs hold keep %[1]s@nightly", p.name)
	assert.ErrorContains(t, p.method().Return()[0].Run(t.Context()), "somebody has a hold on "+p.name+"@nightly")
	sh(t, "zfs release keep %s@nightly", p.name)
	require.NoError(t, back(p.method()))
	assert.Equal(t, want, tree(t, p.dir, "other"))
	assert.Equal(t, p.name+"@migrate-before-shop", sh(t, "zfs list -H -t snapshot -o name -r %s", p.name))

	require.NoError(t, perform(nil).all(t.Context(), z.Remove()))
	require.NoError(t, perform(nil).all(t.Context(), z.Remove()), "one that is gone is no error")
	assert.Empty(t, sh(t, "zfs list -H -t snapshot -o name -r %s", p.name))
}

// A second attempt makes all anew: of two pools the snapshots are never of different times.
func TestZFSTwoPools(t *testing.T) {
	p, q := newPool(t), newPool(t)
	h, err := p.ask.Host(t.Context())
	require.NoError(t, err)
	p.ask.Storage, err = Look(t.Context(), h, []string{p.dir + "/etc", p.dir + "/var/lib/rancher/k3s", q.dir + "/usr/local/bin"}, "/var/empty")
	require.NoError(t, err)
	take := p.method().Take()[0]
	ofNext := fmt.Sprintf("%s@migrate-before-shop", max(p.name, q.name))
	ofFirst := fmt.Sprintf("%s@migrate-before-shop", min(p.name, q.name))
	guid := func() string { return sh(t, "zfs get -H -o value guid %s", ofFirst) }

	require.NoError(t, take.Run(t.Context()))
	done, err := take.Done(t.Context())
	require.NoError(t, err)
	assert.True(t, done)
	old := guid()
	assert.Error(t, take.Run(t.Context()), "what is whole is not replaced")
	assert.Equal(t, old, guid())

	sh(t, "zfs destroy %s", ofNext) // as if the attempt had not come to it
	done, err = take.Done(t.Context())
	require.NoError(t, err)
	assert.False(t, done)
	require.NoError(t, take.Run(t.Context()))
	assert.NotEqual(t, old, guid())
	done, err = take.Done(t.Context())
	require.NoError(t, err)
	assert.True(t, done)
	require.NoError(t, perform(nil).all(t.Context(), p.method().Remove()))
}
