package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
)

// lvmPaths are those that the readings of testdata/lvm are of; virtual machines made them (lvm_vm_test.go, -update).
var lvmPaths = []string{"/var/lib/rancher", "/etc/rancher", "/usr/local/bin"}

func lvmReading(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "lvm", name+".json"))
	require.NoError(t, err)
	return string(data)
}

// lvmOn is the method on what a machine said.
func lvmOn(t *testing.T, reading, size string) lvm {
	t.Helper()
	s, err := parse(lvmReading(t, reading), lvmPaths)
	require.NoError(t, err)
	return New(Ask{Plan: &plans.Snapshot{Method: plans.SnapshotLVM, Size: size}, Name: "trial", Storage: s, Proof: "/var/lib/rancher/k3s/server/token"}).(lvm)
}

func TestLVMProblems(t *testing.T) {
	for _, tc := range []struct {
		reading, size string
		field         string // of the one problem
		detail        string // part of it; "" for no problem
		remedy        string
	}{
		{reading: "thick"},
		{reading: "thick", size: "900Mi"},
		{reading: "thick", size: "100Gi"}, // never more than the volume takes
		{reading: "thin"},
		{reading: "thick-no-room", field: "size", detail: "the volume group thick has 0.0 GiB free, and the snapshot takes 1.1 GiB", remedy: "vgextend thick"},
		{reading: "thick-earlier", detail: "thick/root-before-trial is there already, from an earlier run", remedy: "`lvremove thick/root-before-trial`"},
		{reading: "thin-full", detail: "the thin pool thin/pool is full to 8", remedy: "`lvextend --size +10G thin/pool`"},
		{reading: "plain", field: "method", detail: "nothing of what the rebuild touches lies on a logical volume of which a snapshot can be taken: / on /dev/vda (ext4)", remedy: "choose another"},
	} {
		t.Run(fmt.Sprint(tc.reading, " ", tc.size), func(t *testing.T) {
			problems := lvmOn(t, tc.reading, tc.size).Problems()
			if tc.detail == "" {
				assert.Empty(t, problems)
				return
			}
			require.NotEmpty(t, problems)
			for _, p := range problems {
				assert.Equal(t, tc.field, p.Field)
				assert.Contains(t, p.Detail, tc.detail)
				assert.Contains(t, p.Remedy, tc.remedy)
			}
		})
	}
}

// What the rebuild writes has to find room beside what the snapshot keeps.
func TestCramped(t *testing.T) {
	l := lvmOn(t, "thin", "")
	require.Empty(t, l.Problems())
	l.Storage.Writes = 100 << 30
	require.Len(t, l.Problems(), 1, "once for both volumes in the pool")
	assert.Regexp(t, `^the thin pool thin/pool has [0-9.]+ GiB free, and the rebuild writes about 100.0 GiB anew`, l.Problems()[0].Detail)

	for _, m := range []struct {
		method plans.SnapshotMethod
		s      Storage
		on     string
	}{
		{plans.SnapshotBtrfs, subvolumes(t, func(s string) string { return s }), "the btrfs file system UUID="},
		{plans.SnapshotZFS, datasets(mounted), "the ZFS pool rpool"},
	} {
		problems := func(free, writes int64) []Problem {
			s := m.s
			s.Writes, s.FileSystems = writes, nil
			for _, fs := range m.s.FileSystems {
				fs.Free = free
				s.FileSystems = append(s.FileSystems, fs)
			}
			// A second pool is left out: what is written to which cannot be told.
			s.Datasets = nil
			for _, d := range m.s.Datasets {
				if d.pool() == "rpool" {
					s.Datasets = append(s.Datasets, d)
				}
			}
			return New(Ask{Plan: &plans.Snapshot{Method: m.method}, Name: "other", Storage: s}).Problems()
		}
		assert.Empty(t, problems(3<<30, 2<<30), "%s: room for both", m.method)
		assert.Empty(t, problems(0, 2<<30), "%s: unknown", m.method)
		cramped := problems(1<<30, 2<<30)
		require.Len(t, cramped, 1, m.method)
		assert.Contains(t, cramped[0].Detail, m.on)
		assert.Contains(t, cramped[0].Detail, "has 1.0 GiB free, and the rebuild writes about 2.0 GiB anew")
	}
}

// findmnt writes sizes in quotes or without, by its release.
func TestFreeRead(t *testing.T) {
	for _, avail := range []string{`1234`, `"1234"`} {
		s, err := parse(`{"filesystems": [{"target":"/","source":"/dev/vda1","fstype":"ext4","fsroot":"/","maj:min":"254:1","uuid":null,"avail":`+avail+`}]}`, []string{"/etc"})
		require.NoError(t, err)
		assert.EqualValues(t, 1234, s.FileSystems[0].Free)
	}
}

// The proof is where the links lead: in the snapshot, too.
func TestProofBehindLinks(t *testing.T) {
	s, err := parse(lvmReading(t, "thick"), lvmPaths)
	require.NoError(t, err)
	s.Links = map[string]string{"/var/lib/rancher": "/data/rancher", "/var/lib": "/elsewhere"}
	l := New(Ask{Plan: &plans.Snapshot{Method: plans.SnapshotLVM}, Name: "trial", Storage: s, Proof: "/var/lib/rancher/k3s/server/token"}).(lvm)
	assert.Equal(t, "/data/rancher/k3s/server/token", l.Proof)
	assert.Equal(t, "/elsewhere/rancherless", s.real("/var/lib/rancherless"))
	assert.Equal(t, "/etc/conf", s.real("/etc/conf"))
}

// A return of which no part is known is refused, and does not pass for one that is complete.
func TestNothingToReturnTo(t *testing.T) {
	for _, method := range []plans.SnapshotMethod{plans.SnapshotLVM, plans.SnapshotBtrfs, plans.SnapshotZFS} {
		m := New(Ask{Plan: &plans.Snapshot{Method: method}, Name: "trial"})
		assert.ErrorContains(t, m.Return()[0].Run(t.Context()), "nothing is known of what lies on "+string(method))
	}
}

func TestLVMWithoutItsTools(t *testing.T) {
	l := lvmOn(t, "thick-no-tools", "")
	require.Len(t, l.Problems(), 2)
	assert.Contains(t, l.Problems()[0].Detail, "cannot be read with lvm2")
	assert.Contains(t, l.Problems()[0].Remedy, "apt install lvm2")
	assert.Equal(t, "method", l.Problems()[1].Field)
	assert.ElementsMatch(t, lvmPaths, l.Outside())
}

func TestLVMOperations(t *testing.T) {
	for _, tc := range []struct {
		reading string
		take    []string
		back    []string
	}{
		{"thick", []string{
			"lvcreate --yes --snapshot --size 218103808b --name rancher-before-trial thick/rancher && lvcreate --yes --snapshot --size 968884224b --name root-before-trial thick/root",
			"unshare --mount sh -c 'mkdir -p /run/k3s-dualstack-snapshot && mount -t ext4 -o ro,noload /dev/thick/rancher-before-trial /run/k3s-dualstack-snapshot && ls -d /run/k3s-dualstack-snapshot/k3s/server/token'",
		}, []string{
			"lvs -o +lv_snapshot_invalid thick",
			"lvconvert --yes --merge thick/rancher-before-trial",
			"lvconvert --yes --merge thick/root-before-trial",
			"systemctl reboot",
			"lvs -a -o name,data_percent,lv_merging thick",
			"lvs -a -o name,data_percent,lv_merging thick",
		}},
		{"thin", []string{
			"lvcreate --yes --snapshot --name rancher-before-trial thin/rancher && lvcreate --yes --snapshot --name root-before-trial thin/root",
			"lvchange --yes -ay -K thin/rancher-before-trial && { e=0; unshare --mount sh -c 'mkdir -p /run/k3s-dualstack-snapshot && mount -t ext4 -o ro,noload /dev/thin/rancher-before-trial /run/k3s-dualstack-snapshot && ls -d /run/k3s-dualstack-snapshot/k3s/server/token' || e=$?; lvchange -an thin/rancher-before-trial && exit $e; }",
		}, []string{
			"lvs -o +lv_snapshot_invalid thin",
			"lvconvert --yes --merge thin/rancher-before-trial",
			"lvconvert --yes --merge thin/root-before-trial",
			"systemctl reboot",
			"lvs -a -o name,data_percent,lv_merging thin",
			"lvs -a -o name,data_percent,lv_merging thin",
		}},
	} {
		t.Run(tc.reading, func(t *testing.T) {
			l := lvmOn(t, tc.reading, "")
			commands := func(list []Operation) (out []string) {
				for _, o := range list {
					out = append(out, o.Command)
				}
				return out
			}
			assert.Equal(t, tc.take, commands(l.Take()))
			assert.Equal(t, tc.back, commands(l.Return()))
			assert.Empty(t, l.Outside())
		})
	}
}

// Several volumes share what the group has left.
func TestLVMProposedSizes(t *testing.T) {
	volumes := []string{"a", "b", "c"}
	s := Storage{Groups: []VolumeGroup{{Name: "vg", Free: 25599 * 4 << 20, Extent: 4 << 20}}, Writes: 1 << 30}
	for i, name := range volumes {
		device := fmt.Sprint("253:", i)
		s.FileSystems = append(s.FileSystems, FileSystem{Target: "/" + name, Type: "ext4", Device: device, Paths: []string{"/" + name}})
		s.Logical = append(s.Logical, LogicalVolume{Group: "vg", Name: name, Device: device, Size: 200 << 30, Type: "linear"})
	}
	l := New(Ask{Plan: &plans.Snapshot{Method: plans.SnapshotLVM}, Name: "trial", Storage: s}).(lvm)
	require.Empty(t, l.Problems())
	var all int64
	for _, o := range l.origins() {
		assert.Zero(t, o.size%(4<<20))
		all += o.size
	}
	assert.InDelta(t, s.Groups[0].Free/2, all, 12<<20)
	assert.Equal(t, plans.SnapshotLVM, Proposed(s).Method)

	// What is expected to be written goes before the share.
	l.Storage.Writes = 14 << 30
	for _, o := range l.origins() {
		assert.EqualValues(t, 30<<30, o.size)
	}
	require.Empty(t, l.Problems())
	l.Storage.Writes = 20 << 30
	require.Len(t, l.Problems(), 1)
	assert.Equal(t, "size", l.Problems()[0].Field)
}

func TestLVMState(t *testing.T) {
	for _, tc := range []struct {
		layout, moment string
		name           string // of the volume
		want           lvState
	}{
		{"thick", "taken", "root", lvState{there: true, attached: true}},
		{"thick", "overflown", "rancher", lvState{there: true, attached: true, invalid: true, full: 100}},
		{"thick", "overflown", "root", lvState{there: true, attached: true}},
		{"thick", "waiting", "root", lvState{there: true, attached: true, merging: true}},
		{"thick", "waiting", "rancher", lvState{there: true, attached: true, merging: true}},
		{"thin", "taken", "root", lvState{there: true, attached: true}},
		{"thin", "waiting", "root", lvState{there: true, attached: true, merging: true}},
		{"thin", "waiting", "rancher", lvState{there: true, attached: true, merging: true}},
	} {
		t.Run(tc.layout+" "+tc.moment+" "+tc.name, func(t *testing.T) {
			got, err := lvmOrigin(t, tc.layout, tc.name).read(lvmReading(t, tc.layout+"-"+tc.moment+"-"+tc.name))
			require.NoError(t, err)
			if tc.layout == "thin" {
				assert.Greater(t, got.full, 20.0, "the pool's")
			}
			if !tc.want.invalid {
				assert.Less(t, got.full, 50.0)
				got.full = 0
			}
			assert.Equal(t, tc.want, got)
		})
	}
}

// A merge whose process the initial RAM disk started and which hung: what lvs said of it in a virtual machine.
func TestLVMStateOfAMergeThatHangs(t *testing.T) {
	const volumes = `{"report": [{"lv": [
		{"lv_name":"rancher", "origin":"", "lv_snapshot_invalid":"unknown", "lv_merging":"merging", "data_percent":"0.00", "metadata_percent":""},
		{"lv_name":"[rancher-before-trial]", "origin":"rancher", "lv_snapshot_invalid":"", "lv_merging":"merging", "data_percent":"0.00", "metadata_percent":""},
		{"lv_name":"root", "origin":"", "lv_snapshot_invalid":"unknown", "lv_merging":"", "data_percent":"", "metadata_percent":""},
		{"lv_name":"root-before-trial", "origin":"", "lv_snapshot_invalid":"unknown", "lv_merging":"", "data_percent":"", "metadata_percent":""}]}]}
`
	merging := lvmOrigin(t, "thick", "rancher")
	s, err := merging.read(volumes + `{"merge": true}`)
	require.NoError(t, err)
	assert.Equal(t, lvState{there: true, attached: true, merging: true, underWay: true}, s)
	assert.Contains(t, merging.nudge(s), "lvchange --poll y thick/rancher")

	left := lvmOrigin(t, "thick", "root")
	s, err = left.read(volumes)
	require.NoError(t, err)
	assert.Equal(t, lvState{there: true, full: -1}, s)
	assert.Contains(t, left.nudge(s), "lvremove --yes thick/root-before-trial")

	// A thin one is begun when the origin's table is of the snapshot's data.
	const thin = `{"report": [{"lv": [
		{"lv_name":"root", "origin":"", "lv_merging":"merging", "thin_id":"1", "data_percent":"25.88", "metadata_percent":""},
		{"lv_name":"[root-before-trial]", "origin":"root", "lv_merging":"merging", "thin_id":"4", "data_percent":"25.88", "metadata_percent":""}]}]}
`
	for table, underWay := range map[string]bool{"": false, `{"thin": "1"}`: false, `{"thin": "4"}`: true} {
		s, err = lvmOrigin(t, "thin", "root").read(thin + table)
		require.NoError(t, err)
		assert.True(t, s.merging)
		assert.Equal(t, underWay, s.underWay, table)
	}

	_, err = left.read("  WARNING: not JSON")
	assert.Error(t, err)
}

func lvmOrigin(t *testing.T, layout, name string) origin {
	t.Helper()
	for _, o := range lvmOn(t, layout, "").origins() {
		if o.Name == name {
			return o
		}
	}
	require.Fail(t, "no origin "+name)
	return origin{}
}
