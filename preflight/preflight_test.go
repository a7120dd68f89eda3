package preflight

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// subject is what the checks look at.
type subject struct {
	plan   *plans.Plan
	facts  *survey.Facts
	laptop Laptop
}

// sound is a host that can be migrated as it is: no check says a word.
func sound() subject {
	return subject{
		plan: &plans.Plan{Spec: plans.Spec{Network: plans.Network{
			ClusterCIDR: []string{"10.42.0.0/16", "fd42::/48"}, ServiceCIDR: []string{"10.43.0.0/16", "fd43::/108"},
		}}},
		facts: &survey.Facts{
			Host: survey.Host{
				Name: "dedi", Uplink: "eth0",
				Addresses: []survey.Address{
					{Interface: "eth0", Prefix: netip.MustParsePrefix("192.0.2.10/24")},
					{Interface: "eth0", Prefix: netip.MustParsePrefix("2001:db8::10/64")},
					{Interface: "cni0", Prefix: netip.MustParsePrefix("10.42.0.1/24")},
				},
				Routes: []survey.Route{
					{Destination: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0", Protocol: "static"},
					{Destination: netip.MustParsePrefix("::/0"), Interface: "eth0", Protocol: "ra"},
					{Destination: netip.MustParsePrefix("::/0"), Interface: "lo", Type: "unreachable"},
					{Destination: netip.MustParsePrefix("10.42.0.0/24"), Interface: "cni0", Protocol: "kernel"},
					{Destination: netip.MustParsePrefix("10.42.1.0/24"), Interface: "flannel.1"},
				},
				Free: map[string]int64{"/var/lib/rancher/k3s": 10 << 30, "/var/lib/k3s-dualstack": 10 << 30},
			},
			K3s: &k3s.Installation{
				Role: k3s.Server, Version: "v1.34.4+k3s1", Binary: "/usr/local/bin/k3s", BinarySize: 70 << 20, Unit: "/etc/systemd/system/k3s.service",
				Active: true, DataDir: "/var/lib/rancher/k3s", Datastore: k3s.SQLite,
				Killall: "/usr/local/bin/k3s-killall.sh", Uninstall: "/usr/local/bin/k3s-uninstall.sh",
			},
			Cluster: survey.Cluster{
				Nodes: []survey.Node{{Name: "dedi", Ready: true, PodCIDRs: []string{"10.42.0.0/24"}, InternalIPs: []string{"192.0.2.10"}}},
				Volumes: []survey.Volume{
					volume("pvc-1", "db", "/var/lib/rancher/k3s/storage/pvc-1", cluster.HostPath),
					volume("nas", "media", "", cluster.Remote),
				},
			},
		},
		laptop: Laptop{WorkDir: "/home/ana/dedi.migration", Free: 10 << 30},
	}
}

func volume(pv, claim, dir string, kind cluster.VolumeKind) survey.Volume {
	return survey.Volume{Volume: cluster.Volume{PV: pv, Namespace: "data", Claim: claim, Path: dir, Kind: kind, Driver: string(kind)}, Bytes: 100 << 20, Files: 1000}
}

// triggers break one thing each. The names of those that must stay silent
// begin with "silent".
var triggers = []struct {
	name  string
	spoil func(*subject)
	ids   []string // of the findings, in order
}{
	{"agent", func(s *subject) { s.facts.K3s.Role = k3s.Agent }, []string{"k3s.role"}},
	{"not running", func(s *subject) { s.facts.K3s.Active = false }, []string{"k3s.active"}},
	{"node not ready", func(s *subject) { s.facts.Cluster.Nodes[0].Ready = false }, []string{"node.ready"}},
	{"dual-stack by its settings", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"cluster-cidr": {Values: []string{"10.42.0.0/16", "fd42::/48"}, Source: "/etc/rancher/k3s/config.yaml"}}
	}, []string{"k3s.stack"}},
	{"dual-stack by its node", func(s *subject) {
		s.facts.Cluster.Nodes[0].PodCIDRs = []string{"10.42.0.0/24", "fd42::/64"}
	}, []string{"k3s.stack"}},
	{"IPv6-only", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"cluster-cidr": {Values: []string{"fd42::/48"}, Source: k3s.SourceFlag}}
	}, []string{"k3s.stack"}},
	{"silent: IPv4 by its settings", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"cluster-cidr": {Values: []string{"10.42.0.0/16"}, Source: k3s.SourceFlag}}
	}, nil},
	{"two nodes", func(s *subject) {
		s.facts.Cluster.Nodes = append(s.facts.Cluster.Nodes, survey.Node{Name: "agent", Ready: true})
	}, []string{"cluster.nodes"}},
	{"embedded etcd", func(s *subject) { s.facts.K3s.Datastore = k3s.Etcd }, []string{"k3s.datastore"}},
	{"external datastore", func(s *subject) { s.facts.K3s.Datastore = k3s.External }, []string{"k3s.datastore"}},
	{"no killall script", func(s *subject) { s.facts.K3s.Killall = "" }, []string{"k3s.scripts"}},
	{"no uninstall script", func(s *subject) { s.facts.K3s.Uninstall = "" }, []string{"k3s.scripts"}},
	{"further units", func(s *subject) {
		s.facts.K3s.OtherUnit = []string{"/etc/systemd/system/k3s-agent.service", "/etc/systemd/system/k3s-old.service"}
	}, []string{"k3s.units"}},
	{"tools missing", func(s *subject) {
		s.facts.Host.MissingTools = "host dedi: GNU tar is missing; install the package tar"
	}, []string{"host.tools"}},
	{"no IPv6 default route", func(s *subject) { s.facts.Host.Uplink = "" }, []string{"host.ipv6"}},
	{"temporary IPv6 address alone", func(s *subject) { s.facts.Host.Addresses[1].Temporary = true }, []string{"host.ipv6"}},
	{"silent: the plan names the address", func(s *subject) {
		s.facts.Host.Addresses[1].Temporary = true
		s.plan.Spec.Network.NodeIP = []string{"192.0.2.10", "2001:db8::10"}
	}, nil},
	{"the plan names the address, and there is no default route", func(s *subject) {
		s.facts.Host.Uplink = ""
		s.plan.Spec.Network.NodeIP = []string{"192.0.2.10", "2001:db8::10"}
	}, []string{"host.ipv6"}},
	{"the plan names an address that the host does not have", func(s *subject) {
		s.plan.Spec.Network.NodeIP = []string{"192.0.2.10", "2001:db8::99"}
	}, []string{"host.nodeip"}},
	{"another IPv4 Service range", func(s *subject) {
		s.facts.Cluster.ServiceCIDRs = []string{"10.96.0.0/16"}
	}, []string{"network.servicecidr"}},
	{"silent: the same IPv4 Service range", func(s *subject) {
		s.facts.Cluster.ServiceCIDRs = s.plan.Spec.Network.ServiceCIDR[:1]
	}, nil},
	{"a drop-in of the unit", func(s *subject) {
		s.facts.K3s.DropIns = []string{"/etc/systemd/system/k3s.service.d/override.conf"}
	}, []string{"k3s.dropins"}},
	{"overlap with an address", func(s *subject) {
		s.facts.Host.Addresses = append(s.facts.Host.Addresses, survey.Address{Interface: "wg0", Prefix: netip.MustParsePrefix("fd42:0:0:7::1/64")})
	}, []string{"network.overlap"}},
	{"a range inside of the host's prefix", func(s *subject) { s.plan.Spec.Network.ServiceCIDR[1] = "2001:db8::1:0/112" }, []string{"network.overlap"}},
	{"overlap with a route", func(s *subject) {
		s.facts.Host.Routes = append(s.facts.Host.Routes, survey.Route{Destination: netip.MustParsePrefix("10.0.0.0/8"), Interface: "tun0", Protocol: "static"})
	}, []string{"network.overlap", "network.overlap"}},
	{"overlap with a blackhole", func(s *subject) {
		s.facts.Host.Routes = append(s.facts.Host.Routes, survey.Route{Destination: netip.MustParsePrefix("fd43::/16"), Type: "blackhole"})
	}, []string{"network.overlap"}},
	{"silent: routes of the kernel and K3s's own interfaces", func(s *subject) {
		for _, dev := range []string{"cni0", "flannel-v6.1", "veth1", "kube-ipvs0", "kube-bridge"} {
			s.facts.Host.Addresses = append(s.facts.Host.Addresses, survey.Address{Interface: dev, Prefix: netip.MustParsePrefix("10.43.0.1/32")})
			s.facts.Host.Routes = append(s.facts.Host.Routes, survey.Route{Destination: netip.MustParsePrefix("10.43.0.0/24"), Interface: dev})
		}
		s.facts.Host.Routes = append(s.facts.Host.Routes, survey.Route{Destination: netip.MustParsePrefix("10.42.0.0/24"), Interface: "x", Protocol: "kernel"})
	}, nil},
	{"silent: a range that validation refuses", func(s *subject) { s.plan.Spec.Network.ClusterCIDR[0] = "nonsense" }, nil},
	{"unsupported volume", func(s *subject) {
		s.facts.Cluster.Volumes = append(s.facts.Cluster.Volumes, volume("pvc-9", "lh", "", cluster.Unsupported))
	}, []string{"volumes.kind"}},
	{"unsupported volume without a claim", func(s *subject) {
		v := volume("pv-9", "", "", cluster.Unsupported)
		v.Namespace = ""
		s.facts.Cluster.Volumes = append(s.facts.Cluster.Volumes, v)
	}, []string{"volumes.kind"}},
	{"excluded volume that the uninstall deletes", func(s *subject) { s.facts.Cluster.Volumes[0].Excluded = true }, []string{"volumes.excluded"}},
	{"silent: excluded volume elsewhere", func(s *subject) {
		s.facts.Cluster.Volumes[0].Excluded = true
		s.facts.Cluster.Volumes[0].Path = "/var/lib/rancher/k3s-data/pvc-1"
	}, nil},
	{"a stray", func(s *subject) { s.facts.Host.Strays = []string{"/var/lib/rancher/k3s/storage/old"} }, []string{"volumes.stray"}},
	{"laptop full", func(s *subject) { s.laptop.Free = 1 << 20 }, []string{"laptop.space"}},
	{"silent: just room enough on the laptop", func(s *subject) { s.laptop.Free = (100 + 70 + 256) << 20 }, nil},
	{"a byte too little on the laptop", func(s *subject) { s.laptop.Free = (100+70+256)<<20 - 1 }, []string{"laptop.space"}},
	{"host full", func(s *subject) {
		s.facts.Host.Free = map[string]int64{"/var/lib/rancher/k3s": 1 << 20, "/var/lib/k3s-dualstack": 2 << 20}
	}, []string{"host.space", "host.space"}},
	{"many files", func(s *subject) {
		s.facts.Host.Free = map[string]int64{"/var/lib/k3s-dualstack": 300 << 20}
		s.facts.Cluster.Volumes[0].Files = 1_000_000
	}, []string{"host.space"}},
	{"a warning comes behind the inhibitors", func(s *subject) {
		s.facts.Cluster.Volumes[0].Excluded = true
		s.laptop.Free = 0
		s.facts.K3s.Datastore = k3s.Etcd
	}, []string{"k3s.datastore", "laptop.space", "volumes.excluded"}},
}

func show(findings []Finding) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "  %s %s\n    %s\n    → %s\n", f.Severity, f.ID, f.Detail, f.Remedy)
	}
	return b.String()
}

func TestChecks(t *testing.T) {
	s := sound()
	if found := Check(s.plan, s.facts, s.laptop); len(found) > 0 {
		t.Fatalf("a sound host:\n%s", show(found))
	}
	var all strings.Builder
	for _, tc := range triggers {
		s := sound()
		tc.spoil(&s)
		found := Check(s.plan, s.facts, s.laptop)
		var ids []string
		for _, f := range found {
			ids = append(ids, f.ID)
			if f.Detail == "" || f.Remedy == "" {
				t.Errorf("%s: %s says nothing, or not what to do", tc.name, f.ID)
			}
		}
		if d := cmp.Diff(tc.ids, ids); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
		fmt.Fprintf(&all, "%s\n%s", tc.name, show(found))
	}
	const name = "testdata/findings.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), all.String()); d != "" {
		t.Error(d)
	}
}

// What stands in the source as an ID is triggered above.
func TestEveryCheckIsTriggered(t *testing.T) {
	source, err := os.ReadFile("preflight.go")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, tc := range triggers {
		for _, id := range tc.ids {
			known[id] = true
		}
	}
	for id := range known {
		if !strings.Contains(string(source), `"`+id+`"`) {
			t.Errorf("%s is not in the source", id)
		}
	}
	for _, call := range []string{`inhibit("`, `ID: "`} {
		for _, part := range strings.Split(string(source), call)[1:] {
			id, _, _ := strings.Cut(part, `"`)
			if !known[id] {
				t.Errorf("%s is never triggered", id)
			}
		}
	}
}

// Checks are pure: whatever is wrong together, the same facts give the same
// findings, none is changed by looking, and inhibitors come first.
func TestCheckIsPure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sound()
		for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(triggers)-1), 0, 6, rapid.ID).Draw(t, "triggers") {
			triggers[i].spoil(&s)
		}
		before := encode(t, s)
		found := Check(s.plan, s.facts, s.laptop)
		for range 5 {
			if d := cmp.Diff(found, Check(s.plan, s.facts, s.laptop)); d != "" {
				t.Fatalf("looking again finds something else: %s", d)
			}
		}
		if d := cmp.Diff(before, encode(t, s)); d != "" {
			t.Fatalf("looking changed what was looked at: %s", d)
		}
		if !slices.IsSortedFunc(found, func(a, b Finding) int { return strings.Compare(string(a.Severity), string(b.Severity)) }) {
			t.Fatalf("a warning before an inhibitor:\n%s", show(found))
		}
		inhibited := slices.ContainsFunc(found, func(f Finding) bool { return f.Severity == Inhibitor })
		if Inhibited(found) != inhibited {
			t.Fatalf("Inhibited is %t:\n%s", !inhibited, show(found))
		}
	})
}

func encode(t *rapid.T, s subject) string {
	data, err := json.Marshal([]any{s.plan, s.facts, s.laptop})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// With nothing but the installation known, its role and whether it runs are
// judged, and nothing that was not looked at.
func TestInstalled(t *testing.T) {
	for _, tc := range []struct {
		name   string
		role   k3s.Role
		active bool
		want   []string
	}{
		{"a running server", k3s.Server, true, nil},
		{"a stopped server", k3s.Server, false, []string{"k3s.active"}},
		{"a running agent", k3s.Agent, true, []string{"k3s.role"}},
		{"a stopped agent", k3s.Agent, false, []string{"k3s.role"}},
	} {
		var ids []string
		for _, f := range Installed(&survey.Facts{K3s: &k3s.Installation{Role: tc.role, Active: tc.active, Unit: "/etc/systemd/system/k3s.service"}}) {
			ids = append(ids, f.ID)
		}
		if d := cmp.Diff(tc.want, ids); d != "" {
			t.Error(tc.name, d)
		}
	}
}
