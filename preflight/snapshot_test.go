package preflight

import (
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/snapshot"
)

// logical puts the whole host on a logical volume, with half as much free beside it.
func (s *subject) logical() *snapshot.Storage {
	s.facts.Host.Storage = snapshot.Storage{
		FileSystems: []snapshot.FileSystem{{Target: "/", Source: "/dev/mapper/vg-root", Type: "ext4", Root: "/", Device: "253:0", Paths: []string{"/etc", "/var/lib/rancher/k3s"}}},
		Logical:     []snapshot.LogicalVolume{{Group: "vg", Name: "root", Device: "253:0", Size: 20 << 30, Type: "linear", Data: -1, Metadata: -1}},
		Groups:      []snapshot.VolumeGroup{{Name: "vg", Free: 10 << 30, Extent: 4 << 20}},
	}
	s.plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotLVM}
	return &s.facts.Host.Storage
}

var snapshotTriggers = []trigger{
	{"a snapshot could be taken, and the plan says nothing of one", func(s *subject) { s.logical(); s.plan.Spec.Snapshot = nil }, []string{"snapshot.none"}},
	{"silent: none is wanted, for a reason", func(s *subject) {
		s.logical()
		s.plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotNone, Reason: "the provider's are taken at night"}
	}, nil},
	{"a snapshot of the logical volume", func(s *subject) { s.logical() }, []string{"snapshot.checkpoint"}},
	{"a thick volume, and no room for its snapshot", func(s *subject) {
		t := s.logical()
		t.Groups[0].Free, t.Writes = 9<<30, 4<<30
	}, []string{"snapshot.method"}},
	{"the asked size is more than there is", func(s *subject) { s.logical(); s.plan.Spec.Snapshot.Size = "11Gi" }, []string{"snapshot.method"}},
	{"a thin pool that is nearly full", func(s *subject) {
		t := s.logical()
		t.Logical[0].Type, t.Logical[0].Pool = "thin", "pool"
		t.Logical = append(t.Logical, snapshot.LogicalVolume{Group: "vg", Name: "pool", Type: "thin-pool", Data: 12, Metadata: 93.5})
	}, []string{"snapshot.method"}},
	{"silent: a thin pool with room", func(s *subject) {
		t := s.logical()
		t.Logical[0].Type, t.Logical[0].Pool, t.Groups[0].Free = "thin", "pool", 0
		t.Logical = append(t.Logical, snapshot.LogicalVolume{Group: "vg", Name: "pool", Type: "thin-pool", Data: 12, Metadata: 3.5})
	}, []string{"snapshot.checkpoint"}},
	{"a snapshot of an earlier run is there", func(s *subject) {
		t := s.logical()
		t.Logical = append(t.Logical, snapshot.LogicalVolume{Group: "vg", Name: "root-before-" + s.plan.Metadata.Name, Origin: "root", Type: "linear"})
	}, []string{"snapshot.method"}},
	{"no logical volume", func(s *subject) { s.logical().Logical = nil }, []string{"snapshot.method"}},
	{"logical volumes, and no lvm2", func(s *subject) {
		t := s.logical()
		t.Logical, t.Missing = nil, []string{"lvm2"}
	}, []string{"snapshot.method", "snapshot.method"}},
	{"a kind of logical volume that cannot be merged", func(s *subject) { s.logical().Logical[0].Type = "cache" }, []string{"snapshot.method"}},
	{"part of it lies elsewhere", func(s *subject) {
		t := s.logical()
		t.FileSystems = append(t.FileSystems, snapshot.FileSystem{Target: "/srv", Source: "/dev/sdb1", Type: "xfs", Root: "/", Device: "8:17", Paths: []string{"/srv/data"}})
	}, []string{"snapshot.holds", "snapshot.checkpoint"}},
	{"commands of the user's own", func(s *subject) {
		s.plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotCommand}
	}, nil},
}
