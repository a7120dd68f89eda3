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

// subvolumes puts the whole host on a btrfs subvolume.
func (s *subject) subvolumes() *snapshot.Storage {
	paths := []string{"/etc", "/var/lib/rancher/k3s"}
	s.facts.Host.Storage = snapshot.Storage{
		FileSystems: []snapshot.FileSystem{{Target: "/", Source: "/dev/sda2[/@]", Type: "btrfs", Root: "/@", Device: "0:42", UUID: "u", Paths: paths}},
		Subvolumes:  []snapshot.Subvolume{{System: "UUID=u", Path: "@", ID: 256, Seen: "/", Paths: paths}},
	}
	s.plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotBtrfs}
	return &s.facts.Host.Storage
}

// datasets puts the whole host on a ZFS dataset.
func (s *subject) datasets() *snapshot.Storage {
	paths := []string{"/etc", "/var/lib/rancher/k3s"}
	s.facts.Host.Storage = snapshot.Storage{
		FileSystems: []snapshot.FileSystem{{Target: "/", Source: "rpool/ROOT/debian", Type: "zfs", Root: "/", Device: "0:30", Paths: paths}},
		Datasets:    []snapshot.Dataset{{Name: "rpool/ROOT/debian", Target: "/", Paths: paths}},
	}
	s.plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotZFS}
	return &s.facts.Host.Storage
}

var snapshotTriggers = []trigger{
	{"what the snapshot takes is not there", func(s *subject) {
		s.facts.Unready = []string{"spec.snapshot.command.create[0]: host h has no program"}
	}, []string{"plan.unready"}},
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
		t.Logical = append(t.Logical, snapshot.LogicalVolume{Group: "vg", Name: "root-before-" + s.plan.Metadata.Name, Type: "linear"})
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
	{"a snapshot of the subvolume", func(s *subject) { s.subvolumes() }, []string{"snapshot.checkpoint"}},
	{"a snapshot of the subvolume could be taken", func(s *subject) { s.subvolumes(); s.plan.Spec.Snapshot = nil }, []string{"snapshot.none"}},
	{"no subvolume: the top level", func(s *subject) { s.subvolumes().Subvolumes[0].Path = "" }, []string{"snapshot.method"}},
	{"a subvolume mounted by its number", func(s *subject) { s.subvolumes().Subvolumes[0].ByID = []string{"/etc/fstab"} }, []string{"snapshot.method"}},
	{"a subvolume with a mount upon it", func(s *subject) { s.subvolumes().Subvolumes[0].MountedUpon = true }, []string{"snapshot.method"}},
	{"snapshots of the subvolumes are there", func(s *subject) {
		t := s.subvolumes()
		t.Subvolumes = append(t.Subvolumes, snapshot.Subvolume{System: "UUID=u", Path: "migrate-before-" + s.plan.Metadata.Name + "/@", ID: 300})
	}, []string{"snapshot.method"}},
	{"subvolumes nested below what is touched", func(s *subject) {
		t := s.subvolumes()
		t.Subvolumes = append(t.Subvolumes, snapshot.Subvolume{System: "UUID=u", Path: "@/var/lib/rancher/k3s/images", ID: 300, Seen: "/var/lib/rancher/k3s/images", Below: true})
	}, []string{"snapshot.holds", "snapshot.checkpoint"}},
	{"btrfs, and no btrfs-progs", func(s *subject) {
		t := s.subvolumes()
		t.Subvolumes, t.Missing = nil, []string{"btrfs-progs"}
	}, []string{"snapshot.method"}},
	{"no btrfs", func(s *subject) { s.logical(); s.plan.Spec.Snapshot.Method = plans.SnapshotBtrfs }, []string{"snapshot.method"}},
	{"a snapshot of the dataset", func(s *subject) { s.datasets() }, []string{"snapshot.checkpoint"}},
	{"a snapshot of the dataset could be taken", func(s *subject) { s.datasets(); s.plan.Spec.Snapshot = nil }, []string{"snapshot.none"}},
	{"a snapshot of the dataset is there", func(s *subject) {
		s.datasets().Datasets[0].Before = []string{"migrate-before-" + s.plan.Metadata.Name}
	}, []string{"snapshot.method"}},
	{"datasets below what is touched", func(s *subject) {
		t := s.datasets()
		t.Datasets = append(t.Datasets, snapshot.Dataset{Name: "rpool/images", Target: "/var/lib/rancher/k3s/images"})
	}, []string{"snapshot.holds", "snapshot.checkpoint"}},
	{"ZFS, and no zfsutils", func(s *subject) {
		t := s.datasets()
		t.Datasets, t.Missing = nil, []string{"zfsutils-linux"}
	}, []string{"snapshot.method"}},
	{"no ZFS", func(s *subject) { s.logical(); s.plan.Spec.Snapshot.Method = plans.SnapshotZFS }, []string{"snapshot.method"}},
	{"commands of the user's own", func(s *subject) {
		s.plan.Spec.Snapshot = &plans.Snapshot{Method: plans.SnapshotCommand}
	}, nil},
}
