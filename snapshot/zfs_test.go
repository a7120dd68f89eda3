package snapshot

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
)

// datasets is a host whose root is a dataset, K3s on one of its own and a volume in another pool.
func datasets(out string) Storage {
	s := Storage{FileSystems: []FileSystem{
		{Target: "/", Source: "rpool/ROOT/debian", Type: "zfs", Root: "/", Paths: []string{"/etc", "/usr/local/bin"}},
		{Target: "/var/lib/rancher", Source: "rpool/k3s", Type: "zfs", Root: "/", Paths: []string{"/var/lib/rancher/k3s"}},
		{Target: "/var/lib/kubelet", Source: "rpool/k3s[/kubelet]", Type: "zfs", Root: "/kubelet", Paths: []string{"/var/lib/kubelet"}},
		{Target: "/tank", Source: "tank", Type: "fuse.zfs", Root: "/", Paths: []string{"/tank/claim"}},
	}}
	s.addDatasets(out)
	return s
}

const mounted = `{"filesystems": [
   {"target": "/", "source": "rpool/ROOT/debian"}, {"target": "/home", "source": "rpool/home"},
   {"target": "/var/lib/rancher", "source": "rpool/k3s"}, {"target": "/tank", "source": "tank"},
   {"target": "/var/lib/rancher/k3s/agent", "source": "rpool/agent"},
   {"target": "/etc/.zfs/snapshot/daily", "source": "rpool/ROOT/debian@daily"}]}
`

func TestDatasetsRead(t *testing.T) {
	s := datasets(mounted + "rpool/k3s@nightly\nrpool/k3s@migrate-before-shop\nrpool/home@migrate-before-shop")
	assert.Equal(t, []Dataset{
		{Name: "rpool/ROOT/debian", Target: "/", Paths: []string{"/etc", "/usr/local/bin"}},
		{Name: "rpool/k3s", Target: "/var/lib/rancher", Paths: []string{"/var/lib/rancher/k3s", "/var/lib/kubelet"}, Before: []string{"migrate-before-shop"}},
		{Name: "tank", Target: "/tank", Paths: []string{"/tank/claim"}},
		{Name: "rpool/agent", Target: "/var/lib/rancher/k3s/agent"},
	}, s.Datasets)
	for _, c := range []struct{ out, name, want string }{
		{mounted, "shop", ""},
		{mounted + "rpool/k3s@migrate-before-shop", "other", ""},
		{mounted + "rpool/k3s@migrate-before-shop", "shop", "the snapshot rpool/k3s@migrate-before-shop is there already"},
		{"missing", "shop", "ZFS's programs are not installed"},
		{mounted + "failed", "shop", "could not be read"},
		{"", "shop", "could not be read"},
	} {
		m := New(Ask{Plan: &plans.Snapshot{Method: plans.SnapshotZFS}, Name: c.name, Storage: datasets(c.out)})
		problems := m.Problems()
		if c.want == "" {
			assert.Empty(t, problems, c.out)
			assert.Equal(t, []string{"/var/lib/rancher/k3s/agent (the dataset rpool/agent)"}, m.Outside())
			continue
		}
		require.Len(t, problems, 1, c.out)
		assert.Contains(t, problems[0].Detail, c.want)
	}
}

func TestZFSCommands(t *testing.T) {
	ask := Ask{Plan: &plans.Snapshot{Method: plans.SnapshotZFS}, Name: "shop", Storage: datasets(mounted), Proof: "/var/lib/rancher/k3s/server/token"}
	commands := func(list []Operation) (out []string) {
		for _, o := range list {
			out = append(out, o.Command)
		}
		return out
	}
	assert.Equal(t, []string{
		"zfs snapshot rpool/ROOT/debian@migrate-before-shop rpool/k3s@migrate-before-shop && zfs snapshot tank@migrate-before-shop", // those of one pool at one instant
		"ls -d /var/lib/rancher/.zfs/snapshot/migrate-before-shop/k3s/server/token",
	}, commands(New(ask).Take()))
	assert.Equal(t, []string{"zfs rollback rpool/ROOT/debian@migrate-before-shop && zfs rollback rpool/k3s@migrate-before-shop && zfs rollback tank@migrate-before-shop", "systemctl reboot"},
		commands(New(ask).Return())[1:])
	ask.Proof = "/var/lib/kubelet/config" // by way of the directory that is mounted there
	assert.Equal(t, "ls -d /var/lib/rancher/.zfs/snapshot/migrate-before-shop/kubelet/config", New(ask).Take()[1].Command)
	ask.DestroyNewer = true
	assert.Contains(t, New(ask).Return()[1].Command, "zfs rollback -r rpool/ROOT/debian@migrate-before-shop && zfs rollback -r rpool/k3s")
	assert.Equal(t, []string{"zfs destroy rpool/ROOT/debian@migrate-before-shop", "zfs destroy rpool/k3s@migrate-before-shop", "zfs destroy tank@migrate-before-shop"}, commands(New(ask).Remove()))
}

func TestNewerRead(t *testing.T) {
	n := parseNewer("snapshot\ttank@nightly\nfound\nbookmark\ttank#mark\nclone\ttank/mine\ttank@nightly\nclone\ttank/old\ttank@before")
	assert.Equal(t, newer{there: true, made: []string{"tank@nightly", "tank#mark"}, clone: []string{"tank/mine"}}, n)
	// As OpenZFS 2.1 has it, with what is older or was made of the snapshot itself left out.
	n = parseNewer("snapshot\trpool/rancher@held\nfound\nhold\trpool/rancher@old\nhold\trpool/rancher@held\nclone\trpool/oldclone\trpool/rancher@old")
	assert.Equal(t, newer{there: true, made: []string{"rpool/rancher@held"}, held: []string{"rpool/rancher@held"}}, n)
	assert.False(t, parseNewer("clone\ttank/old\ttank@before").there)
	assert.Zero(t, parseNewer(""))
}
