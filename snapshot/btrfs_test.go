package snapshot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
)

// captured is a file of what real tools said.
func captured(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return strings.TrimSpace(string(data))
}

// subvolumes is a host with the default subvolume @ at "/a host", what is nested in it, and @other mounted in it.
func subvolumes(t *testing.T, change func(string) string) Storage {
	t.Helper()
	s, err := parse(captured(t, "btrfs-filesystems.json"), []string{"/a host/etc", "/a host/var/lib/rancher/k3s", "/a host/srv vol/data", "/a host/mnt/other/claim", "/a host/var/lib/kubelet"})
	require.NoError(t, err)
	s.addSubvolumes(change(captured(t, "btrfs-subvolumes.txt")))
	return s
}

func TestSubvolumesRead(t *testing.T) {
	same := func(s string) string { return s }
	uuid := "UUID=c4abac7c-31f4-4dec-88b7-2c149065c498"
	assert.Equal(t, []Subvolume{
		{System: uuid, Path: "@", ID: 256, Seen: "/a host", Paths: []string{"/a host/etc", "/a host/var/lib/rancher/k3s", "/a host/var/lib/kubelet"}},
		{System: uuid, Path: "@/srv vol", ID: 257, Seen: "/a host/srv vol", Paths: []string{"/a host/srv vol/data"}},
		{System: uuid, Path: "@other", ID: 258, Seen: "/a host/mnt/other", Paths: []string{"/a host/mnt/other/claim"}},
		{System: uuid, Path: "@/var/lib/machines", ID: 259, Seen: "/a host/var/lib/machines"},
		{System: uuid, Path: "@/var/lib/rancher/k3s/images", ID: 261, Seen: "/a host/var/lib/rancher/k3s/images", Below: true},
	}, subvolumes(t, same).Subvolumes)

	for name, c := range map[string]struct {
		change func(string) string
		want   []string // of the problems, nil for none
	}{
		"as it was":              {same, nil},
		"no btrfs-progs":         {func(string) string { return "missing" }, []string{"btrfs-progs is not installed"}},
		"no list":                {func(s string) string { return strings.ReplaceAll(s, "\nID ", "\nno ") }, []string{"could not be read"}},
		"a path of no subvolume": {func(s string) string { return strings.Replace(s, "path 256 ", "path  ", 1) }, []string{"could not be read"}},
		"a path less":            {func(s string) string { _, rest, _ := strings.Cut(s, "\n"); return rest }, []string{"could not be read"}},
		"by its number":          {func(s string) string { return s + "\nmounts /etc/fstab:" + uuid + " / btrfs defaults,subvolid=256 0 0" }, []string{"/etc/fstab mounts the subvolume @ by its number"}},
		"by its number, to the kernel": {func(s string) string {
			return s + "\nmounts /proc/cmdline:root=" + uuid + " ro rootflags=subvolid=0x102 quiet"
		}, []string{"/proc/cmdline mounts the subvolume @other by its number"}},
		"another's number":         {func(s string) string { return s + "\nmounts /etc/fstab:UUID=1234 / btrfs subvolid=256 0 0" }, nil},
		"another number":           {func(s string) string { return s + "\nmounts /etc/fstab:/dev/sda1 / btrfs subvolid=2560 0 0" }, nil},
		"a comment":                {func(s string) string { return s + "\nmounts /etc/fstab: # /dev/sda1 / btrfs subvolid=256 0 0" }, nil},
		"another run's":            {func(s string) string { return s + "\nID 300 gen 9 top level 5 path migrate-before-other/@" }, nil},
		"an earlier run's":         {func(s string) string { return s + "\nID 300 gen 9 top level 5 path <FS_TREE>/migrate-before-shop/@" }, []string{"migrate-before-shop/@ is there already"}},
		"an earlier run's return":  {func(s string) string { return s + "\nID 300 gen 9 top level 5 path migrate-replacing-shop/@" }, []string{"return to its snapshot is not complete"}},
		"what the top level holds": {func(s string) string { return strings.Replace(s, "path 258 ", "path 5 ", 1) }, []string{"/a host/mnt/other/claim is no subvolume: it lies on the top level"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(Ask{Plan: &plans.Snapshot{Method: plans.SnapshotBtrfs}, Name: "shop", Storage: subvolumes(t, c.change)})
			problems := m.Problems()
			require.Len(t, problems, len(c.want), "%v", problems)
			for i, want := range c.want {
				assert.Contains(t, problems[i].Detail, want)
				assert.NotEmpty(t, problems[i].Remedy)
			}
			if c.want == nil {
				assert.Equal(t, []string{"/a host/var/lib/rancher/k3s/images (a nested subvolume)"}, m.Outside())
			}
		})
	}
}

// A nested subvolume that is mounted where it is seen anyway cannot be renamed; one that is mounted elsewhere, or that is
// not nested, can.
func TestSubvolumeMountedUpon(t *testing.T) {
	root := FileSystem{Target: "/", Type: "btrfs", Root: "/@", UUID: "u", Source: "/dev/sda2[/@]"}
	for _, c := range []struct {
		path, target, root string
		want               bool
	}{
		{"@/var", "/var", "/@/var", true},
		{"@/var", "/srv", "/@/var", false},
		{"@var", "/var", "/@var", false},
		{"@/var/lib", "/var", "/@/var", false},
	} {
		s := Storage{FileSystems: []FileSystem{root, {Target: c.target, Type: "btrfs", Root: c.root, UUID: "u"}}}
		_, upon := s.seen(Subvolume{System: "UUID=u", Path: c.path})
		assert.Equal(t, c.want, upon, "%s at %s", c.path, c.target)
	}
}

func TestSubvolumeNames(t *testing.T) {
	for path, want := range map[string]string{
		"@":              "@",
		"@/var/lib/a b":  "@%2Fvar%2Flib%2Fa b",
		"@%2Fvar":        "@%252Fvar",
		".snapshots/1/x": "%2Esnapshots%2F1%2Fx",
	} {
		assert.Equal(t, want, Subvolume{Path: path}.name())
	}
	long := strings.Repeat("a/", 300)
	assert.NotEqual(t, Subvolume{Path: long, ID: 1}.name(), Subvolume{Path: long, ID: 2}.name())
	assert.Less(t, len(Subvolume{Path: long, ID: 1}.name()), 255)
}

// What is there of another plan's, whatever it is called, is put into scripts as it is.
func TestBtrfsCommands(t *testing.T) {
	s := subvolumes(t, func(s string) string { return s })
	m := New(Ask{Plan: &plans.Snapshot{Method: plans.SnapshotBtrfs}, Name: "shop", Storage: s, Proof: "/a host/var/lib/rancher/k3s/server/token"})
	take := m.Take()
	require.Len(t, take, 2)
	assert.Equal(t, "d=$(mktemp -d) && mount -o subvolid=5 'UUID=c4abac7c-31f4-4dec-88b7-2c149065c498' \"$d\" && cd \"$d\" && mkdir migrate-before-shop && btrfs subvolume snapshot -r @ migrate-before-shop/@ && "+
		"btrfs subvolume snapshot -r '@/srv vol' 'migrate-before-shop/@%2Fsrv vol' && btrfs subvolume snapshot -r @other migrate-before-shop/@other && cd / && umount \"$d\"", take[0].Command)
	assert.Contains(t, take[0].Summary, "they do not hold the nested @/var/lib/machines, @/var/lib/rancher/k3s/images")
	assert.Contains(t, take[1].Command, "ls -d migrate-before-shop/@/var/lib/rancher/k3s/server/token")
	var names []string
	def := func(replaced, by string) string {
		return ` && case "$(btrfs subvolume get-default .)" in *" path "` + replaced + ") btrfs subvolume set-default " + by + " ;; esac"
	}
	for _, o := range m.Return() {
		if o.Name == "swap" {
			assert.Contains(t, o.Command, "mkdir migrate-replacing-shop"+
				" && mv -T @ migrate-replacing-shop/@ && mv -T migrate-return-shop/@ @"+
				" && mv -T 'migrate-replacing-shop/@/srv vol' '@/srv vol'"+
				" && mv -T migrate-replacing-shop/@/var/lib/machines @/var/lib/machines"+
				" && mv -T migrate-replacing-shop/@/var/lib/rancher/k3s/images @/var/lib/rancher/k3s/images"+
				def("migrate-replacing-shop/@", "@")+
				" && mv -T '@/srv vol' 'migrate-replacing-shop/@%2Fsrv vol' && mv -T 'migrate-return-shop/@%2Fsrv vol' '@/srv vol'"+
				def("'migrate-replacing-shop/@%2Fsrv vol'", "'@/srv vol'")+
				" && mv -T @other migrate-replacing-shop/@other && mv -T migrate-return-shop/@other @other"+
				def("migrate-replacing-shop/@other", "@other")+" && cd /")
		}
		names = append(names, strings.ReplaceAll(o.Name, "UUID=c4abac7c-31f4-4dec-88b7-2c149065c498", "U"))
		assert.NotEmpty(t, o.Command, o.Name)
	}
	assert.Equal(t, []string{"look", "prepare U", "swap", "keep U", "restart"}, names)
}
