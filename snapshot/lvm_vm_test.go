//go:build vm

// Tests of the LVM method in virtual machines.
package snapshot

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// update keeps what the machines say as testdata, for the unit tests.
var update = flag.Bool("update", false, "rewrite testdata/lvm from the virtual machines' readings")

// keep has what a script prints on the machine kept for the unit tests.
func (m *guest) keep(t *testing.T, name, script string) {
	t.Helper()
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Join("testdata", "lvm"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join("testdata", "lvm", name+".json"), []byte(m.sh(t, script)+"\n"), 0o644))
	}
}

// reading keeps what [Look] reads.
func (m *guest) reading(t *testing.T, name string, paths []string) {
	t.Helper()
	m.keep(t, name, fmt.Sprintf(readings, remote.Quote(paths...), "/var/lib/rancher/k3s/agent", "/var/lib/rancher/k3s/agent"))
}

// method is the LVM method with what a survey found, as a new process would make it.
func (m *guest) method(t *testing.T, s Storage, size string) lvm {
	t.Helper()
	made := New(m.ask(s, plans.Snapshot{Method: plans.SnapshotLVM, Size: size}))
	require.IsType(t, lvm{}, made)
	return made.(lvm)
}

// saying keeps what [states] prints of every origin.
func (m *guest) saying(t *testing.T, name string, l lvm) {
	t.Helper()
	for _, o := range l.origins() {
		m.keep(t, name+"-"+o.Name, fmt.Sprintf(states, remote.Quote(o.Group), remote.Quote("/dev/"+o.path())))
	}
}

// gone asserts that nothing of a snapshot is left.
func (m *guest) gone(t *testing.T, l lvm) {
	t.Helper()
	assert.NotContains(t, m.sh(t, "lvs -a --noheadings -o lv_name"), "before-trial")
	f, err := l.Fill(t.Context())
	require.NoError(t, err)
	assert.Zero(t, f)
	l.pending(t, false)
}

func (l lvm) pending(t *testing.T, waits bool) {
	t.Helper()
	text, err := l.Pending(t.Context())
	require.NoError(t, err)
	if !waits {
		assert.Empty(t, text)
		return
	}
	for _, o := range l.origins() {
		assert.Contains(t, text, o.at())
	}
	assert.Contains(t, text, "waits for the host's next start")
}

// fill is how full the snapshot is.
func (l lvm) fill(t *testing.T) (string, float64) {
	t.Helper()
	f, err := l.Fill(t.Context())
	require.NoError(t, err)
	return f.Part, f.Percent
}

// A snapshot of the root and of a volume beside it, thick: taken, returned to with a real restart, and what overflows.
func TestLVMThick(t *testing.T) {
	m := boot(t, "thick")
	m.furnish(t)
	storage := m.look(t, allPaths)
	m.reading(t, "thick", allPaths)

	t.Run("survey", func(t *testing.T) {
		require.Len(t, storage.FileSystems, 2)
		assert.Equal(t, "/var/lib/rancher", storage.FileSystems[0].Target)
		assert.Equal(t, []string{"/var/lib/rancher"}, storage.FileSystems[0].Paths)
		assert.Equal(t, "/", storage.FileSystems[1].Target)
		assert.Equal(t, rootPaths, storage.FileSystems[1].Paths)
		l := m.method(t, storage, "")
		assert.Empty(t, l.Problems())
		assert.Empty(t, l.Outside())
		proposal := Proposed(storage)
		assert.Equal(t, plans.SnapshotLVM, proposal.Method, "%v", proposal.Why)
		var names []string
		for _, o := range l.origins() {
			names = append(names, o.at())
		}
		assert.Equal(t, []string{"thick/rancher-before-trial", "thick/root-before-trial"}, names)
	})

	t.Run("problems", func(t *testing.T) {
		m.sh(t, "lvcreate -qq --yes -l 100%FREE -n filler thick")
		full := m.look(t, allPaths)
		m.reading(t, "thick-no-room", allPaths)
		m.sh(t, "lvremove -qq --yes thick/filler")
		l := m.method(t, full, "")
		require.Len(t, l.Problems(), 1)
		assert.Equal(t, "size", l.Problems()[0].Field)
		assert.Contains(t, details(l.Problems()), "the volume group thick has 0.0 GiB free, and the snapshot takes 1.1 GiB")

		m.sh(t, "lvcreate -qq --yes -s -L 20M -n root-before-trial thick/root")
		m.reading(t, "thick-earlier", allPaths)
		l = m.method(t, m.look(t, allPaths), "")
		m.sh(t, "lvremove -qq --yes thick/root-before-trial")
		require.Len(t, l.Problems(), 1)
		assert.Contains(t, details(l.Problems()), "the logical volume thick/root-before-trial is there already, from an earlier run -> `lvremove thick/root-before-trial`")

		m.sh(t, "mv /usr/sbin/lvs /usr/sbin/lvs.away")
		m.reading(t, "thick-no-tools", allPaths)
		l = m.method(t, m.look(t, allPaths), "")
		m.sh(t, "mv /usr/sbin/lvs.away /usr/sbin/lvs")
		assert.Contains(t, details(l.Problems()), "cannot be read with lvm2 -> `apt install lvm2`")
		assert.ElementsMatch(t, allPaths, l.Outside(), "without the tools nothing is known to lie on a logical volume")
	})

	t.Run("overflow", func(t *testing.T) {
		// The root's is whole, the other's overflows: neither is merged.
		l := m.method(t, storage, "40Mi")
		performAll(t, l.Take())
		m.sh(t, "head -c 60000000 /dev/urandom >/var/lib/rancher/large; sync; udevadm settle")
		part, full := l.fill(t)
		assert.Equal(t, "thick/rancher-before-trial", part)
		assert.EqualValues(t, 100, full)
		m.saying(t, "thick-overflown", l)
		err := l.Return()[0].Run(t.Context())
		require.Error(t, err)
		assert.Contains(t, err.Error(), "the snapshot thick/rancher-before-trial has overflown and holds nothing any more")
		assert.Contains(t, err.Error(), "nothing was changed")
		assert.Contains(t, err.Error(), "--via backup")
		l.pending(t, false)
		for _, o := range l.origins() {
			s, err := l.state(t.Context(), o)
			require.NoError(t, err)
			assert.True(t, s.there, o.at())
			assert.False(t, s.merging, o.at())
			assert.Equal(t, o.Name == "rancher", s.invalid, o.at())
		}
		m.sh(t, "rm /var/lib/rancher/large")
		performAll(t, l.Remove())
		m.gone(t, l)
		err = l.Return()[0].Run(t.Context())
		require.Error(t, err)
		assert.Contains(t, err.Error(), "there is no snapshot thick/rancher-before-trial on the host")
	})

	t.Run("remove", func(t *testing.T) {
		l := m.method(t, storage, "40Mi")
		performAll(t, l.Take())
		performAll(t, l.Remove())
		m.gone(t, l)
	})

	t.Run("nearly full", func(t *testing.T) {
		l := m.method(t, storage, "40Mi")
		performAll(t, l.Take())
		m.sh(t, `head -c 36000000 /dev/urandom >/usr/local/bin/large
until lvs --noheadings -o data_percent thick/root-before-trial | awk '$1 < 95.5 { exit 1 }'; do head -c 200000 /dev/urandom >>/usr/local/bin/large; sync /usr/local/bin/large; done`)
		part, full := l.fill(t)
		assert.Equal(t, "thick/root-before-trial", part)
		assert.Less(t, full, 100.0)
		merges, _, _ := split(t, l.Return())
		for _, o := range merges[:2] { // the first merge is the other one's
			err := o.Run(t.Context())
			require.Error(t, err, o.Name)
			assert.Contains(t, err.Error(), "the snapshot thick/root-before-trial is full to 9")
			assert.Contains(t, err.Error(), "`lvextend --size +1G thick/root-before-trial`")
		}
		assert.False(t, done(t, merges[1]))
		l.pending(t, false)
		m.sh(t, "test ! -e "+restartWanted)
		m.sh(t, "lvextend -qq --size +20M thick/root-before-trial")
		require.NoError(t, merges[0].Run(t.Context()))
		performAll(t, l.Remove())
		m.sh(t, "rm /usr/local/bin/large")
		m.gone(t, l)
	})

	t.Run("removed between a merge that was refused and its repetition", func(t *testing.T) {
		l := m.method(t, storage, "40Mi")
		performAll(t, l.Take())
		merges, _, _ := split(t, l.Return())
		m.sh(t, "mv /usr/sbin/lvconvert /usr/sbin/lvconvert.away")
		require.Error(t, merges[1].Run(t.Context()))
		m.sh(t, "mv /usr/sbin/lvconvert.away /usr/sbin/lvconvert; test -e "+restartWanted+"; lvremove -qq --yes thick/rancher-before-trial")
		_, err := merges[1].Done(t.Context())
		require.Error(t, err)
		assert.Contains(t, err.Error(), "the snapshot thick/rancher-before-trial is gone, and was not merged: `migrate rollback --via backup`")
		err = merges[1].Run(t.Context())
		require.Error(t, err)
		assert.Contains(t, err.Error(), "there is no snapshot thick/rancher-before-trial on the host")
		assert.False(t, done(t, merges[2]))
		l.pending(t, false)
		m.sh(t, "rm "+restartWanted)
		performAll(t, l.Remove())
		m.gone(t, l)
	})

	require.True(t, t.Run("return", func(t *testing.T) {
		before := m.tree(t)
		l := m.method(t, storage, "")
		take := l.Take()
		require.Equal(t, []string{"snapshot", "open thick/rancher-before-trial"}, operationNames(take))
		// Cut off between the two: what there is of the first attempt is not mixed with the second's.
		m.sh(t, "lvcreate -qq --yes -s -L 20M -n rancher-before-trial thick/rancher")
		assert.False(t, done(t, take[0]))
		// And none is left where one cannot be made.
		m.sh(t, "lvcreate -qq --yes -l 70%FREE -n filler thick")
		require.Error(t, take[0].Run(t.Context()))
		assert.NotContains(t, m.sh(t, "lvs -a --noheadings -o lv_name"), "before-trial")
		m.sh(t, "lvremove -qq --yes thick/filler")
		performAll(t, take)
		_, empty := l.fill(t)
		m.saying(t, "thick-taken", l)

		m.change(t)
		require.NotEqual(t, before, m.tree(t))
		part, full := l.fill(t)
		assert.Equal(t, "thick/rancher-before-trial", part)
		assert.Greater(t, full, empty+5)
		t.Logf("filled from %.2f %% to %.2f %%", empty, full)

		merges, restart, merged := split(t, l.Return())
		require.Equal(t, []string{"look", "merge thick/rancher-before-trial", "merge thick/root-before-trial"}, operationNames(merges))
		// Cut off between the two merges, and again before the restart.
		performAll(t, merges[:2])
		assert.False(t, done(t, merges[2]))
		text, err := l.Pending(t.Context())
		require.NoError(t, err)
		assert.Contains(t, text, "thick/rancher-before-trial")
		assert.NotContains(t, text, "root-before-trial")
		performAll(t, merges[2:])
		l = m.method(t, storage, "")
		l.pending(t, true)
		m.saying(t, "thick-waiting", l)
		assert.True(t, done(t, merges[1]))
		assert.False(t, done(t, restart), "the host has not been restarted")
		removal := l.Remove()[0].Run(t.Context())
		require.Error(t, removal)
		assert.Contains(t, removal.Error(), "is being merged into thick/rancher and cannot be removed")

		restarted(t, restart.Run)
		assert.True(t, done(t, restart))
		m.underWay(t, l)
		m.hurry(t)
		performAll(t, merged)
		assert.Equal(t, before, m.tree(t))
		m.gone(t, l)
		performAll(t, l.Remove())
		assert.True(t, done(t, restart))
		for _, o := range merges[1:] {
			assert.True(t, done(t, o), "%s, with the restart since", o.Name)
		}
	}))

	t.Run("root alone", func(t *testing.T) {
		before := m.tree(t)
		l := m.method(t, m.look(t, rootPaths), "200Mi")
		l.Proof = "/etc/rancher/k3s/config.yaml"
		require.Empty(t, l.Problems())
		performAll(t, l.Take())
		m.sh(t, "rm -r /etc/rancher; head -c 50000000 /dev/urandom >/usr/local/bin/k3s; sync")
		part, full := l.fill(t)
		assert.Equal(t, "thick/root-before-trial", part)
		assert.Greater(t, full, 20.0)
		merges, restart, merged := split(t, l.Return())
		performAll(t, merges)
		// The power fails before the restart is asked for: that start, too, begins the merge.
		m.crash(t)
		assert.True(t, done(t, restart))
		m.underWay(t, l)
		m.hurry(t)
		performAll(t, merged)
		assert.Equal(t, before, m.tree(t))
		m.gone(t, l)
	})
}

// underWay asserts that thick snapshots are being merged.
func (m *guest) underWay(t *testing.T, l lvm) {
	t.Helper()
	for _, o := range l.origins() {
		s, err := l.state(t.Context(), o)
		require.NoError(t, err)
		assert.True(t, s.merging && s.underWay && s.attached && !s.invalid, "%s: %+v", o.at(), s)
	}
	l.pending(t, false)
}

// inactive asserts that the snapshots are not active beside their origins.
func (m *guest) inactive(t *testing.T, l lvm) {
	t.Helper()
	active := m.sh(t, "ls /dev/mapper; lvs -a --noheadings -o lv_name,lv_active | awk '$2 == \"active\" { print $1 }'")
	for _, o := range l.origins() {
		assert.NotContains(t, active, o.snapshot)
		assert.NotContains(t, active, strings.ReplaceAll(o.snapshot, "-", "--"))
	}
}

// The same of thin volumes, whose snapshots share their pool.
func TestLVMThin(t *testing.T) {
	m := boot(t, "thin")
	m.furnish(t)
	storage := m.look(t, allPaths)
	m.reading(t, "thin", allPaths)
	l := m.method(t, storage, "")
	require.Empty(t, l.Problems())
	require.Empty(t, l.Outside())

	t.Run("full pool", func(t *testing.T) {
		m.sh(t, `lvcreate -qq --yes --thin --virtualsize 800M --name filler thin/pool
dd if=/dev/zero of=/dev/thin/filler bs=1M count=720 conv=fsync status=none`)
		m.reading(t, "thin-full", allPaths)
		full := m.method(t, m.look(t, allPaths), "")
		m.sh(t, "lvremove -qq --yes thin/filler")
		require.NotEmpty(t, full.Problems())
		assert.Contains(t, details(full.Problems()), "the thin pool thin/pool is full to ")
		assert.Contains(t, details(full.Problems()), "`lvextend --size +10G thin/pool`")
	})

	t.Run("remove", func(t *testing.T) {
		performAll(t, l.Take())
		m.inactive(t, l)
		part, full := l.fill(t)
		assert.Equal(t, "thin/pool", part)
		assert.Greater(t, full, 20.0)
		performAll(t, l.Remove())
		m.gone(t, l)
	})

	t.Run("open", func(t *testing.T) {
		performAll(t, l.Take()[:1])
		o, fs := l.origins()[0], l.origins()[0].fileSystems[0]
		lost := l
		lost.Proof = "/var/lib/rancher/nothing"
		require.Error(t, lost.run(t.Context(), "opening it", lost.open(o, fs)))
		m.inactive(t, l)
		// One that a cut left active is opened, and is inactive then.
		m.sh(t, "lvchange -qq -ay -K "+o.at())
		require.NoError(t, l.run(t.Context(), "opening it", l.open(o, fs)))
		m.inactive(t, l)
		performAll(t, l.Remove())
		m.gone(t, l)
	})

	for _, power := range []string{"restart", "power failure"} {
		ok := t.Run("return by "+power, func(t *testing.T) {
			before := m.tree(t)
			performAll(t, l.Take())
			m.inactive(t, l)
			_, empty := l.fill(t)
			m.saying(t, "thin-taken", l)
			m.change(t)
			require.NotEqual(t, before, m.tree(t))
			_, full := l.fill(t)
			assert.Greater(t, full, empty+1)
			t.Logf("filled from %.2f %% to %.2f %%", empty, full)

			merges, restart, merged := split(t, l.Return())
			performAll(t, merges)
			l := m.method(t, storage, "")
			l.pending(t, true)
			m.inactive(t, l)
			m.saying(t, "thin-waiting", l)
			assert.False(t, done(t, restart), "the host has not been restarted")
			if power == "restart" {
				restarted(t, restart.Run)
				assert.True(t, done(t, restart))
			} else {
				m.crash(t)
				assert.True(t, done(t, restart))
			}
			l.pending(t, false)
			performAll(t, merged)
			assert.Equal(t, before, m.tree(t))
			m.gone(t, l)
			performAll(t, l.Remove())
		})
		require.True(t, ok)
	}
}

// Without logical volumes the method says so, with LVM's tools there and without.
func TestLVMOnAPlainDisk(t *testing.T) {
	m := boot(t, "plain")
	m.reading(t, "plain", allPaths)
	for _, tools := range []string{"with lvm2", "without lvm2"} {
		t.Run(tools, func(t *testing.T) {
			if tools == "without lvm2" {
				m.sh(t, "mv /usr/sbin/lvs /usr/sbin/lvs.away")
			}
			storage := m.look(t, allPaths)
			l := m.method(t, storage, "")
			require.Len(t, l.Problems(), 1)
			assert.Equal(t, "method", l.Problems()[0].Field)
			assert.Contains(t, details(l.Problems()), "nothing of what the rebuild touches lies on a logical volume of which a snapshot can be taken: / on /dev/vda (ext4)")
			assert.ElementsMatch(t, allPaths, l.Outside())
			proposal := Proposed(storage)
			assert.Equal(t, plans.SnapshotNone, proposal.Method)
			assert.NotEmpty(t, proposal.Why)
			assert.Empty(t, l.Take())
		})
	}
}
