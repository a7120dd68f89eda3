//go:build vm

package snapshot

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// onBtrfs is a machine with its root on btrfs, mounted by its subvolume's name; what a rebuild touches lies on that and on another,
// and one more is nested in it.
type onBtrfs struct {
	*guest
	storage Storage
	// failed are the units of the first start that did.
	failed string
}

// touched is about what the survey asks for. One of them is not there.
var touched = []string{"/etc", "/usr/local/bin", "/var/lib/kubelet", "/var/lib/rancher/k3s"}

func bootOnBtrfs(t *testing.T) onBtrfs {
	t.Helper()
	m := onBtrfs{guest: boot(t, "btrfs")}
	m.furnish(t)
	m.sh(t, `set -e
echo debian >/var/lib/machines/image
btrfs subvolume create /var/lib/machines/deep
echo deep >/var/lib/machines/deep/image`)
	m.storage, m.failed = m.look(t, touched), m.failures(t)
	return m
}

// method is the one with what a survey found, as a new process would make it.
func (m onBtrfs) method(t *testing.T, s Storage) btrfs {
	t.Helper()
	made := New(m.ask(s, plans.Snapshot{Method: plans.SnapshotBtrfs}))
	require.IsType(t, btrfs{}, made)
	return made.(btrfs)
}

// again is what a survey would say now.
func (m onBtrfs) again(t *testing.T) btrfs {
	t.Helper()
	return m.method(t, m.look(t, touched))
}

// top runs a script at the file system's top level, without the method's help.
func (m onBtrfs) top(t *testing.T, script string) string {
	t.Helper()
	return m.sh(t, "mkdir -p /run/top && unshare --mount sh -ec "+remote.Quote("mount -o subvolid=5 /dev/vda /run/top; cd /run/top\n"+script))
}

// mounted is what of the file system is mounted there, and the subvolume's number, as the kernel says.
func (m onBtrfs) mounted(t *testing.T, target string) (root, id string) {
	t.Helper()
	root, options, _ := strings.Cut(m.sh(t, "findmnt -n -r -o FSROOT,OPTIONS -M "+target), " ")
	_, id, _ = strings.Cut(options, "subvolid=")
	id, _, _ = strings.Cut(id, ",")
	require.NotEmpty(t, id, options)
	return root, id
}

// uses asserts that the subvolumes at their names are what is mounted, and returns their numbers.
func (m onBtrfs) uses(t *testing.T) (ids [2]string) {
	t.Helper()
	for i, at := range [][2]string{{"/", "@"}, {"/var/lib/rancher", "@rancher"}} {
		var root string
		root, ids[i] = m.mounted(t, at[0])
		assert.Equal(t, "/"+at[1], root, "mounted at %s", at[0])
		assert.Equal(t, m.top(t, "btrfs inspect-internal rootid "+at[1]), ids[i], "mounted at %s", at[0])
	}
	return ids
}

// failures are the units that failed, once the machine has started.
func (m onBtrfs) failures(t *testing.T) string {
	t.Helper()
	return m.sh(t, "systemctl is-system-running --wait >/dev/null || true; systemctl list-units --failed --plain --no-legend")
}

func (b btrfs) pending(t *testing.T, want string) {
	t.Helper()
	text, err := b.Pending(t.Context())
	require.NoError(t, err)
	if want == "" {
		assert.Empty(t, text)
	} else {
		assert.Contains(t, text, want)
	}
}

// take takes a snapshot and looks at it.
func (m onBtrfs) take(t *testing.T, b btrfs) {
	t.Helper()
	take := b.Take()
	assert.False(t, done(t, take[0]))
	performAll(t, take)
	assert.Equal(t, "@\n@rancher", m.top(t, "ls migrate-before-trial"))
	for _, name := range []string{"@", "@rancher"} {
		assert.Equal(t, "ro=true", m.top(t, "btrfs property get -t subvol migrate-before-trial/"+name+" ro"))
	}
	assert.Equal(t, "K10token", m.top(t, "cat migrate-before-trial/@rancher/k3s/server/token"))
	assert.Empty(t, m.top(t, "ls -A migrate-before-trial/@/var/lib/machines"), "a snapshot ends where a nested one begins")
	b.pending(t, "")
}

// rebuild changes what the snapshot holds and, to what is told, what is nested in it.
func (m onBtrfs) rebuild(t *testing.T, machine string) {
	t.Helper()
	m.change(t)
	m.sh(t, "set -e; echo "+machine+" >/var/lib/machines/now; btrfs subvolume create /srv/later; echo later >/srv/later/file; sync")
}

// returned asserts that the machine is what it was, on other subvolumes than those; what is nested is what it has become.
func (m onBtrfs) returned(t *testing.T, want string, than [2]string, machine string) {
	t.Helper()
	ids := m.uses(t)
	assert.NotEqual(t, than[0], ids[0])
	assert.NotEqual(t, than[1], ids[1])
	assert.Equal(t, want, m.tree(t))
	assert.Equal(t, "debian\n"+machine+"\ndeep", m.sh(t, "cd /var/lib/machines && cat image now deep/image"))
	assert.Equal(t, "256\n256", m.sh(t, "stat -c %i /var/lib/machines /var/lib/machines/deep"), "they are subvolumes")
	assert.Equal(t, "absent", m.sh(t, "[ -e /srv/later ] || echo absent"))
	m.method(t, m.storage).pending(t, "")
	assert.Equal(t, m.failed, m.failures(t))
	assert.Equal(t, "ID 5 (FS_TREE)", m.top(t, "btrfs subvolume get-default ."))
}

// replaced is what was replaced, as a machine would see it that runs on it.
func (m onBtrfs) replaced(t *testing.T, in string) string {
	t.Helper()
	return m.top(t, fmt.Sprintf("mount --bind %[1]s/@rancher %[1]s/@/var/lib/rancher\ncd %[1]s/@\n%[2]s", in, everything))
}

// ours are the method's directories at the top level.
func (m onBtrfs) ours(t *testing.T) string {
	t.Helper()
	return m.top(t, "ls -d migrate-* 2>/dev/null || true")
}

// The root is taken, returned to with a real restart, taken and returned to once more.
func TestBtrfsVM(t *testing.T) {
	m := bootOnBtrfs(t)
	b := m.method(t, m.storage)

	t.Run("survey", func(t *testing.T) {
		require.Len(t, m.storage.FileSystems, 2)
		for i, want := range []FileSystem{
			{Target: "/", Root: "/@", Paths: touched[:3]},
			{Target: "/var/lib/rancher", Root: "/@rancher", Paths: touched[3:]},
		} {
			got := m.storage.FileSystems[i]
			assert.Equal(t, want, FileSystem{Target: got.Target, Root: got.Root, Paths: got.Paths})
			assert.Equal(t, "btrfs", got.Type)
			assert.NotEmpty(t, got.UUID)
		}
		assert.Empty(t, b.Problems())
		assert.Empty(t, b.Outside())
		proposal := Proposed(m.storage)
		assert.Equal(t, plans.SnapshotBtrfs, proposal.Method, "%v", proposal.Why)
		require.Len(t, b.topLevels(), 1)
		var held []string
		for _, v := range b.topLevels()[0].held {
			held = append(held, fmt.Sprint(v.Path, " at ", v.Seen, " is ", v.ID))
		}
		ids := m.uses(t)
		assert.Equal(t, []string{"@ at / is " + ids[0], "@rancher at /var/lib/rancher is " + ids[1]}, held)
		assert.Contains(t, b.topLevels()[0].nested, "@/var/lib/machines")
		t.Logf("nested: %v", b.topLevels()[0].nested)
		f, err := b.Fill(t.Context())
		require.NoError(t, err)
		assert.Zero(t, f)
	})

	t.Run("problems", func(t *testing.T) {
		m.sh(t, "btrfs subvolume create /usr/local/bin/nested")
		assert.Equal(t, []string{"/usr/local/bin/nested (a nested subvolume)"}, m.again(t).Outside())
		m.sh(t, "btrfs subvolume delete /usr/local/bin/nested")

		_, id := m.mounted(t, "/var/lib/rancher")
		m.sh(t, "cp -p /etc/fstab /root/fstab; sed -i s,subvol=/@rancher,subvolid="+id+", /etc/fstab")
		found := m.again(t).Problems()
		m.sh(t, "mv /root/fstab /etc/fstab")
		require.Len(t, found, 1)
		assert.Contains(t, details(found), "/etc/fstab mounts the subvolume @rancher by its number, subvolid="+id)
		assert.Contains(t, details(found), "write subvol=/@rancher there")

		m.sh(t, "mv /usr/bin/btrfs /usr/bin/btrfs.away")
		found = m.again(t).Problems()
		m.sh(t, "mv /usr/bin/btrfs.away /usr/bin/btrfs")
		assert.Contains(t, details(found), "btrfs-progs is not installed")
		assert.Empty(t, m.again(t).Problems())
	})

	// The second snapshot is of what the first has brought back.
	for _, kept := range []string{"migrate-replaced-trial", "migrate-replaced-trial-2"} {
		require.True(t, t.Run("return that keeps "+kept, func(t *testing.T) {
			before, than := m.tree(t), m.uses(t)
			m.take(t, b)
			found := m.again(t).Problems()
			require.Len(t, found, 2, "a run that begins now finds it")
			assert.Contains(t, details(found), "the subvolume migrate-before-trial/@rancher is there already")

			m.rebuild(t, kept)
			changed := m.tree(t)
			require.NotEqual(t, before, changed)
			list, restart, after := split(t, b.Return())
			assert.Empty(t, after)
			system := m.storage.FileSystems[0].system()
			require.Equal(t, []string{"look", "prepare " + system, "swap", "keep " + system}, operationNames(list))
			performAll(t, list[:1])
			assert.Equal(t, than, m.uses(t), "a look changes nothing")
			performAll(t, list[1:])

			b := m.method(t, m.storage)
			b.pending(t, "subvolumes @, @rancher;")
			assert.False(t, done(t, restart), "the host has not been restarted")
			root, id := m.mounted(t, "/")
			assert.Equal(t, "/"+kept+"/@", root, "until then it runs on what is replaced")
			assert.Equal(t, than[0], id)
			assert.Equal(t, changed, m.tree(t))
			restarted(t, restart.Run)
			assert.True(t, done(t, restart))
			m.returned(t, before, than, kept)

			assert.Equal(t, changed, m.replaced(t, kept), "what was replaced is kept")
			assert.Equal(t, "later\n256", m.top(t, "cd "+kept+"/@/srv/later; cat file; stat -c %i ."), "and what was made in it later")
			assert.Equal(t, "absent", m.top(t, "[ -e "+kept+"/@/var/lib/machines ] || echo absent"), "what is nested went along")
			performAll(t, b.Remove())
			assert.NotContains(t, m.ours(t), "migrate-before-trial")
			assert.Equal(t, changed, m.replaced(t, kept), "the removal leaves it")
			err := b.Return()[0].Run(t.Context())
			require.Error(t, err)
			assert.Contains(t, err.Error(), "there is no directory migrate-before-trial")
		}))
	}
	assert.Equal(t, "migrate-replaced-trial\nmigrate-replaced-trial-2", m.ours(t))
}

// Wherever in a return the power fails, the machine comes up, and the return goes on.
func TestBtrfsVMPowerFailure(t *testing.T) {
	m := bootOnBtrfs(t)
	b := m.method(t, m.storage)
	before := m.tree(t)
	m.take(t, b)
	for _, c := range []struct {
		name string
		// aid has the script of the swap end in the failure; without it, that comes after the swap.
		aid string
		// root and other tell what the machine comes up with.
		root, other string
		kept        string
	}{
		{
			name: "between the two renames of the root, neither of which is on the disk",
			aid:  `mv() { command mv "$@" || return; case "$*" in *" migrate-replacing-trial/@") ` + powerFailure + ` ;; esac; }`,
			root: "old", other: "old", kept: "migrate-replaced-trial",
		},
		{
			name: "between the root and the other, the first of which is on the disk",
			aid:  `mv() { case "$*" in *" migrate-replacing-trial/@rancher") btrfs filesystem sync .; ` + powerFailure + ` ;; esac; command mv "$@"; }`,
			root: "new", other: "old", kept: "migrate-replaced-trial\nmigrate-replaced-trial-2",
		},
		{name: "after the swap", root: "new", other: "new", kept: "migrate-replaced-trial"},
	} {
		require.True(t, t.Run(c.name, func(t *testing.T) {
			than := m.uses(t)
			m.rebuild(t, c.root+c.other)
			list, restart, _ := split(t, b.Return())
			performAll(t, list[:2])
			if c.aid == "" {
				performAll(t, list[2:3])
				m.crash(t)
			} else {
				scriptAid = c.aid + "\n"
				m.crashes(t, func(ctx context.Context) error { return list[2].Run(ctx) })
				scriptAid = ""
			}

			ids := m.uses(t)
			for i, state := range []string{c.root, c.other} {
				assert.Equal(t, state == "old", than[i] == ids[i], "%s: %v, before %v", state, ids, than)
			}
			if c.aid == "" {
				performAll(t, list[3:])
			} else {
				m.sh(t, "echo between >/etc/between; echo between >/var/lib/rancher/between")
				performAll(t, list[2:])
				assert.False(t, done(t, restart))
				restarted(t, restart.Run)
			}
			assert.True(t, done(t, restart))
			m.returned(t, before, than, c.root+c.other)
			assert.Equal(t, "migrate-before-trial\n"+c.kept, m.ours(t))
			m.top(t, "for s in migrate-replaced-*/@/srv/later migrate-replaced-*/*; do btrfs subvolume delete $s; done; rmdir migrate-replaced-*")
		}))
	}
	performAll(t, b.Remove())
	assert.Empty(t, m.ours(t))
	assert.Equal(t, before, m.tree(t))
}
