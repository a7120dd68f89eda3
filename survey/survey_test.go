package survey

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}

// Each file is what the readings print on one host; the golden file holds the
// facts, and the choice of an address that is made from them.
func TestParseHosts(t *testing.T) {
	files, err := filepath.Glob("testdata/hosts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			f := Facts{Host: Host{Name: "host", AcceptRA: -1, Free: map[string]int64{}}}
			if err := f.Host.parse(string(data)); err != nil {
				t.Fatal(err)
			}
			f.Cluster.Nodes = []Node{{InternalIPs: []string{"192.0.2.99"}}}
			got, err := json.MarshalIndent(struct {
				Host
				NodeIPs []string `json:"chosen nodeIPs"`
			}{f.Host, f.NodeIPs()}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(name, ".txt")+".golden", string(got)+"\n")
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"addresses=", "`ip -j` (addresses): it printed nothing"},
		{"addresses=Usage: ip", "`ip -j` (addresses)"},
		{`addresses=[{"addr_info":[{"scope":"global","local":"nonsense"}]}]`, "nonsense"},
		{"routes4=Option \"-j\" is unknown", "`ip -j` (routes4)"},
		{`routes6=[{"dst":"2001:db8::/200"}]`, "2001:db8::/200"},
		{`routes4=[{"dst":"everywhere"}]`, "everywhere"},
		{"free= /srv", "`df` for /srv"},
	} {
		h := Host{Free: map[string]int64{}}
		if err := h.parse(tc.in); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.in, err)
		}
	}
}

func TestParseRoutesOfNothing(t *testing.T) {
	for _, js := range []string{"", " ", "[]", "[ ]", "[{}]", "[{},{}]", "null"} {
		routes, err := parseRoutes(js, true, false)
		if err != nil || len(routes) != 0 {
			t.Errorf("%q: %v, %v", js, routes, err)
		}
	}
	for _, js := range []string{"[]", "[{}]", `[{"ifname":"lo"}]`, "null"} {
		addresses, err := parseAddresses(js)
		if err != nil || len(addresses) != 0 {
			t.Errorf("%q: %v, %v", js, addresses, err)
		}
	}
}

func TestIPv6(t *testing.T) {
	const up, other = "eth0", "wg0"
	address := func(dev, prefix, flags string) Address {
		return Address{Interface: dev, Prefix: netip.MustParsePrefix(prefix),
			Temporary: strings.Contains(flags, "temporary"), Deprecated: strings.Contains(flags, "deprecated"), Dynamic: strings.Contains(flags, "dynamic")}
	}
	for _, tc := range []struct {
		name      string
		addresses []Address
		want      string
	}{
		{"none", nil, ""},
		{"IPv4 alone", []Address{address(up, "192.0.2.1/24", "")}, ""},
		{"on another interface", []Address{address(other, "2001:db8::1/64", "")}, ""},
		{"temporary alone", []Address{address(up, "2001:db8::1/64", "temporary dynamic")}, ""},
		{"deprecated alone", []Address{address(up, "2001:db8::1/64", "deprecated")}, ""},
		{"static before dynamic", []Address{address(up, "2001:db8::1/64", "dynamic"), address(up, "2001:db8::2/64", "")}, "2001:db8::2"},
		{"the first of several static ones", []Address{address(up, "2001:db8::1/64", ""), address(up, "2001:db8::2/64", "")}, "2001:db8::1"},
		{"dynamic for want of a static one", []Address{address(up, "2001:db8::9/64", "temporary dynamic"), address(up, "2001:db8::1/64", "dynamic")}, "2001:db8::1"},
		{"routed before unique local", []Address{address(up, "fd00::1/64", ""), address(up, "2001:db8::1/64", "")}, "2001:db8::1"},
		{"routed before unique local, both dynamic", []Address{address(up, "fd00::1/64", "dynamic"), address(up, "2001:db8::1/64", "dynamic")}, "2001:db8::1"},
		{"static unique local before dynamic", []Address{address(up, "2001:db8::1/64", "dynamic"), address(up, "fd00::1/64", "")}, "fd00::1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := Host{Uplink: up, Addresses: tc.addresses}.IPv6()
			if ok != (tc.want != "") || (ok && got.String() != tc.want) {
				t.Errorf("%v, %t", got, ok)
			}
			if _, ok := (Host{Addresses: tc.addresses}).IPv6(); ok {
				t.Error("an address without an uplink")
			}
		})
	}
}

func TestNodeIPs(t *testing.T) {
	v6 := Host{Uplink: "eth0", Addresses: []Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("2001:db8::1/64")}}}
	for _, tc := range []struct {
		name string
		in   Facts
		want []string
	}{
		{"nothing", Facts{}, nil},
		{"IPv4 alone", Facts{Cluster: Cluster{Nodes: []Node{{InternalIPs: []string{"192.0.2.1"}}}}}, []string{"192.0.2.1"}},
		{"both", Facts{Host: v6, Cluster: Cluster{Nodes: []Node{{InternalIPs: []string{"192.0.2.1"}}}}}, []string{"192.0.2.1", "2001:db8::1"}},
		{"the node's own IPv6 address and nonsense are not taken", Facts{Host: v6, Cluster: Cluster{Nodes: []Node{{InternalIPs: []string{"2001:db8::9", "x", "192.0.2.1"}}}}}, []string{"192.0.2.1", "2001:db8::1"}},
	} {
		if d := cmp.Diff(tc.want, tc.in.NodeIPs()); d != "" {
			t.Error(tc.name, d)
		}
	}
}

func volume(pv, claim, dir string, kind cluster.VolumeKind, size int64) Volume {
	return Volume{Volume: cluster.Volume{PV: pv, Namespace: "data", Claim: claim, Path: dir, Kind: kind}, Bytes: size}
}

func TestVolumeBytes(t *testing.T) {
	excluded := volume("c", "c", "/c", cluster.HostPath, 100)
	excluded.Excluded = true
	f := Facts{Cluster: Cluster{Volumes: []Volume{
		volume("a", "a", "/a", cluster.HostPath, 1), volume("b", "b", "/b", cluster.Local, 2), excluded,
		volume("d", "d", "", cluster.Remote, 1000), volume("e", "e", "", cluster.Unsupported, 10000),
	}}}
	if n := f.VolumeBytes(); n != 3 {
		t.Error(n)
	}
}

func TestMoved(t *testing.T) {
	base := func() *Facts {
		return &Facts{
			Host: Host{MachineID: "m", Strays: []string{"/s/old"}},
			K3s:  &k3s.Installation{Version: "v1", BinarySHA256: "x", DataDir: "/d"},
			Cluster: Cluster{KubeSystemUID: "u", Volumes: []Volume{
				volume("pv-1", "a", "/s/1", cluster.HostPath, 1), volume("pv-2", "b", "/s/2", cluster.HostPath, 1),
			}},
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*Facts)
		want   []string
	}{
		{"nothing", func(*Facts) {}, nil},
		{"what a backup covers", func(f *Facts) {
			f.Cluster.Volumes[0].Bytes = 7
			f.Cluster.TLSSecrets = map[string]string{"a/b": "new"}
			f.Host.Kernel = "newer"
			f.Host.Strays = nil
		}, nil},
		{"another host", func(f *Facts) { f.Host.MachineID = "n" }, []string{"machine-id of the host: was m, is n"}},
		{"another cluster", func(f *Facts) { f.Cluster.KubeSystemUID = "v" }, []string{"UID of namespace kube-system: was u, is v"}},
		{"another binary", func(f *Facts) { f.K3s.BinarySHA256 = "y" }, []string{"K3s: was v1 x, is v1 y"}},
		{"another data directory", func(f *Facts) { f.K3s.DataDir = "/e" }, []string{"data directory: was /d, is /e"}},
		{"a new volume", func(f *Facts) {
			f.Cluster.Volumes = append(f.Cluster.Volumes, volume("pv-3", "c", "/s/3", cluster.HostPath, 1))
		}, []string{"volume pv-3 (data/c at /s/3) is new"}},
		{"a volume less", func(f *Facts) { f.Cluster.Volumes = f.Cluster.Volumes[1:] }, []string{"volume pv-1 (data/a at /s/1) is gone"}},
		{"a directory less", func(f *Facts) { f.Cluster.Volumes[0].Missing = true }, []string{"volume pv-1: its directory /s/1 is gone"}},
		{"another claim", func(f *Facts) { f.Cluster.Volumes[0].Claim = "z" }, []string{"volume pv-1: was data/a at /s/1, is data/z at /s/1"}},
		{"a stray", func(f *Facts) { f.Host.Strays = append(f.Host.Strays, "/s/new") }, []string{"/s/new in the volumes' storage is new"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := base()
			tc.change(now)
			if d := cmp.Diff(tc.want, base().Moved(now)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDescribeNode(t *testing.T) {
	n := corev1.Node{}
	n.Name, n.UID, n.Spec.PodCIDRs = "dedi", "u", []string{"10.42.0.0/24"}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "dedi"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"}}
	for _, status := range []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown} {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse}, {Type: corev1.NodeReady, Status: status}}
		want := Node{Name: "dedi", UID: "u", Ready: status == corev1.ConditionTrue, PodCIDRs: []string{"10.42.0.0/24"}, InternalIPs: []string{"192.0.2.1"}}
		if d := cmp.Diff(want, describeNode(n)); d != "" {
			t.Error(status, d)
		}
	}
}

func TestDigestFollowsTheFacts(t *testing.T) {
	a, b := &Facts{Host: Host{Free: map[string]int64{"/a": 1, "/b": 2}}}, &Facts{Host: Host{Free: map[string]int64{"/b": 2, "/a": 1}}}
	if a.Digest() != b.Digest() || len(a.Digest()) != 64 {
		t.Error(a.Digest(), b.Digest())
	}
	if b.Host.Kernel = "x"; a.Digest() == b.Digest() {
		t.Error("another kernel, the same digest")
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/hosts/*.txt")
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add("routes6=[{\"dst\":\"default\",\"dev\":\"a\"}]\nra=a 2")
	f.Add("addresses=[{\"addr_info\":[{\"scope\":\"global\",\"local\":\"fe80::1%eth0\",\"prefixlen\":-1}]}]")
	f.Fuzz(func(t *testing.T, out string) {
		h := Host{AcceptRA: -1, Free: map[string]int64{}}
		if h.parse(out) != nil {
			return
		}
		for _, r := range h.Routes {
			if !r.Destination.IsValid() {
				t.Errorf("route %+v", r)
			}
		}
		for _, a := range h.Addresses {
			if !a.Prefix.IsValid() {
				t.Errorf("address %+v", a)
			}
		}
		facts := Facts{Host: h}
		facts.NodeIPs()
		// Facts are kept and read again for the whole run.
		data, err := json.Marshal(facts)
		if err != nil {
			t.Fatal(err)
		}
		var again Facts
		if err := json.Unmarshal(data, &again); err != nil {
			t.Fatal(err)
		}
		if again.Digest() != facts.Digest() {
			t.Errorf("the digest changes when the facts are read again: %s", data)
		}
	})
}
