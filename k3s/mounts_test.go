package k3s

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Which file systems migrate unmounts and mounts again, and which it leaves for a
// finding to tell.
func TestOwnMounts(t *testing.T) {
	const data, storage = "/var/lib/rancher/k3s", "/var/lib/rancher/k3s/storage"
	for _, tc := range []struct {
		name          string
		data, storage string // what they lead to
		on            []string
		want          string
	}{
		{"all on the host's first", data, storage, []string{"/", "/"}, ""},
		{"the storage", data, storage, []string{"/", storage}, storage + " apart"},
		{"the data directory with the storage", data, storage, []string{data, data}, data + " data"},
		{"the data directory, and in it the storage", data, storage, []string{data, storage}, data + " data," + storage + " apart"},
		{"the directory above", data, storage, []string{"/var/lib/rancher", "/var/lib/rancher"}, "/var/lib/rancher data"},
		{"above, and the storage", data, storage, []string{"/var", storage}, "/var data," + storage + " apart"},
		{"something between them", data, data + "/disk/volumes", []string{"/", data + "/disk"}, ""},
		{"a storage elsewhere", data, "/srv/volumes", []string{"/", "/srv"}, "/srv"},
		{"a neighbour with the same beginning", data, data + "-volumes", []string{"/", data + "-volumes"}, data + "-volumes"},
		{"data directory and storage on one elsewhere", "/srv/k3s", "/srv/k3s/storage", []string{"/srv", "/srv"}, "/srv data"},
		{"a data directory that is its storage", "/srv", "/srv", []string{"/srv", "/srv"}, "/srv data"},
		{"no such directories", data, storage, nil, ""},
	} {
		var found []Mount
		for _, p := range tc.on {
			found = append(found, Mount{Path: p})
		}
		var got []string
		for _, m := range ownMounts(tc.data, tc.storage, found) {
			s := m.Path
			if m.Data {
				s += " data"
			}
			if m.Apart {
				s += " apart"
			}
			got = append(got, s)
		}
		if have := strings.Join(got, ","); have != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, have, tc.want)
		}
	}
}

func TestParseMounts(t *testing.T) {
	got, err := parseMounts(`{
   "filesystems": [
      {"target": "/my disk", "fstype": "ext4", "source": "/dev/mapper/vg-lv", "uuid": "d8fa1b39", "fsroot": "/"}
   ]
}
{"filesystems": [{"target": "/share", "fstype": "nfs4", "source": "nas:/x", "uuid": null, "fsroot": "/"}, {"target":"/share", "fstype":"btrfs", "source":"/dev/sdb", "uuid":"1-2", "fsroot":"/@k3s"}]}
`)
	want := []Mount{
		{Path: "/my disk", Type: "ext4", Source: "/dev/mapper/vg-lv", UUID: "d8fa1b39", Root: "/"},
		{Path: "/share", Type: "nfs4", Source: "nas:/x", Root: "/"}, {Path: "/share", Type: "btrfs", Source: "/dev/sdb", UUID: "1-2", Root: "/@k3s"},
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Error(err, d)
	}
	if got, err := parseMounts(""); err != nil || got != nil {
		t.Error(got, err)
	}
	for _, bad := range []string{"findmnt: unknown option", `{"filesystems": [`, `{"filesystems": "x"}`} {
		if _, err := parseMounts(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestIdentityOfAMount(t *testing.T) {
	m := Mount{Path: "/s", Type: "ext4", Source: "/dev/sdb1", UUID: "u", Root: "/"}
	for name, tc := range map[string]struct {
		other Mount
		same  bool
	}{
		"a device of another name":      {Mount{Path: "/s", Type: "ext4", Source: "/dev/sdc1", UUID: "u", Root: "/"}, true},
		"another file system":           {Mount{Path: "/s", Type: "ext4", Source: "/dev/sdb1", UUID: "v", Root: "/"}, false},
		"another directory of it":       {Mount{Path: "/s", Type: "ext4", Source: "/dev/sdb1", UUID: "u", Root: "/old"}, false},
		"one that is not known by UUID": {Mount{Path: "/s", Type: "ext4", Source: "/dev/sdb1", Root: "/"}, false},
	} {
		if same := tc.other.Identity() == m.Identity(); same != tc.same {
			t.Errorf("%s: the same: %t", name, same)
		}
	}
}
