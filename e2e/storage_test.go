//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Volumes on a file system of their own stay on it through everything: a killall of K3s's
// that unmounts it, the uninstall, a kill and a restart of the host in the middle, and a rollback.
func TestStorageOfItsOwn(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-storage", "--store-mib", "20", "--prepare", script(t, disk(storage)+fstab(storage)))
	// As some releases of K3s do it: what is mounted below the data directory goes, and its mount point.
	l.on(t, `sed -i 's#^exit 0#unmount_below /var/lib/rancher/k3s remove\nexit 0#' /usr/local/bin/k3s-killall.sh; grep unmount_below.*k3s.remove /usr/local/bin/k3s-killall.sh`)
	r := takeBack(t, l)
	// The large volume is not written to: it is the same directory for ever.
	const mounted, inode = "mountpoint -q " + storage, "ls -di " + large
	original := l.on(t, inode)

	r.round(t, "the uninstall leaves the volumes on their disk, and a rollback finds them there", func(t *testing.T) {
		beats := r.stop(t)
		r.run(t, "--until", "uninstall")
		l.on(t, "! "+mounted)
		onDisk := strings.Replace(volumes, "cd "+storage, "mkdir -p /run/look; mount -o loop,ro /srv/disk.img /run/look; trap 'cd /; umount /run/look' EXIT; cd /run/look", 1)
		assert.Equal(t, r.before.volumes, l.on(t, onDisk), "on the disk")
		r.rollback(t)
		r.asBefore(t, beats)
		assert.Equal(t, original, l.on(t, inode))
	})

	r.round(t, "killed between unmount and uninstall on a host that then restarts; only the right disk comes back, and hides nothing", func(t *testing.T) {
		beats := r.stop(t)
		r.halt(t, "uninstall", "! "+mounted)
		restart(t, l, nil)
		l.on(t, mounted) // by the host's own start
		r.run(t, "--until", "install")

		l.on(t, "umount "+storage+" && echo new >"+storage+"/file")
		got := migrate(t, "run", "-f", r.file, "--yes")
		assert.Equal(t, 1, got.code, "%s", got)
		assert.Contains(t, got.stderr, "would be hidden by it")
		l.on(t, "rm "+storage+"/file && mount -t tmpfs other "+storage)
		got = migrate(t, "run", "-f", r.file, "--yes")
		assert.Equal(t, 1, got.code, "%s", got)
		assert.Contains(t, got.stderr, "another one is mounted there")
		require.Empty(t, l.on(t, "ls -A "+storage), "nothing was written to it")
		l.on(t, "umount "+storage)

		r.run(t)
		assert.Equal(t, original, l.on(t, inode))
		r.migrated(t, beats)
	})
}
