package preflight

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/openbao"
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

// sound is a host that can be migrated as it is: no check says a word. It has what the
// checks look at, so that their silence says something.
func sound() subject {
	s := subject{
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
	s.facts.Taken = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s.facts.K3s.Settings = map[string]k3s.Setting{"tls-san": {Values: []string{"k3s.example"}, Source: k3s.DefaultConfigFile}}
	h := &s.facts.Host
	h.Hostname, h.AcceptRA, h.Skew = "dedi", 2, 1
	h.PolicyRoutes = []survey.Route{{Destination: netip.MustParsePrefix("10.99.0.0/24"), Interface: "wg0"}}
	h.Disk.Unmounts = []string{"/run/k3s", "/var/lib/kubelet/pods"}
	h.Firewall.Forward = []survey.Chain{{Name: "inet filter forward", Drops: true, Rules: []string{`iifname "cni0" accept`}}}
	s.facts.Names = []survey.Name{{Host: "shop.example", A: four, AAAA: six, HTTP4: "308", HTTP6: "308"}}
	c := &s.facts.Cluster
	c.ServiceCIDRs = []string{"10.43.0.0/16"}
	c.Services = []cluster.ServiceChange{{Namespace: "shop", Name: "web", WantPolicy: "PreferDualStack", Owner: cluster.Owner{Kind: cluster.OwnedByManifest, Name: "web", Source: "set it"}}}
	c.Workloads.Certificates = []survey.Certificate{{Name: "shop/web", Ready: true, Renewal: s.facts.Taken.Add(30 * 24 * time.Hour), Requests: 1}}
	s.openBao()
	return s
}

func volume(pv, claim, dir string, kind cluster.VolumeKind) survey.Volume {
	return survey.Volume{Volume: cluster.Volume{PV: pv, Namespace: "data", Claim: claim, Path: dir, Kind: kind, Driver: string(kind)}, Bytes: 100 << 20, Files: 1000}
}

var (
	four = []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	six  = []netip.Addr{netip.MustParseAddr("2001:db8::10")}
)

// openBao puts a sound server on the volume of the cluster.
func (s *subject) openBao() *survey.OpenBao {
	s.plan.Spec.Backup.OpenBao = &plans.OpenBao{UnsealKeys: []plans.Secret{{Prompt: true}}}
	s.facts.OpenBao = &survey.OpenBao{
		Servers: []survey.OpenBaoServer{{Name: "data/bao-0", Status: openbao.Status{Initialised: true, Storage: "raft", Seal: "shamir", Shares: 5, Threshold: 3}, Claims: []string{"data/db"}}},
		Description: openbao.Description{Auths: []openbao.Auth{
			{Path: "token/", Type: "token"},
			{Path: "kubernetes/", Type: "kubernetes", Kubernetes: &openbao.KubernetesAuth{Host: "https://kubernetes.default.svc", ReviewerToken: "unset"}},
		}},
	}
	return s.facts.OpenBao
}

// triggers break one thing each. The names of those that must stay silent
// begin with "silent".
type trigger struct {
	name  string
	spoil func(*subject)
	ids   []string // of the findings, in order
}

var triggers = slices.Concat(snapshotTriggers, []trigger{
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
		s.facts.K3s.Settings = map[string]k3s.Setting{"cluster-cidr": {Values: []string{"fd42::/48"}, Source: k3s.DefaultConfigFile}}
	}, []string{"k3s.stack"}},
	{"silent: IPv4 by its settings", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"cluster-cidr": {Values: []string{"10.42.0.0/16"}, Source: k3s.DefaultConfigFile}}
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
	{"the plan names an address that is temporary", func(s *subject) {
		s.facts.Host.Addresses[1].Temporary = true
		s.plan.Spec.Network.NodeIP = []string{"192.0.2.10", "2001:db8::10"}
	}, []string{"host.address"}},
	{"silent: the plan names the address", func(s *subject) { s.plan.Spec.Network.NodeIP = []string{"192.0.2.10", "2001:db8::10"} }, nil},
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
	{"storage on a disk of its own", func(s *subject) {
		s.facts.Host.Disk.Mounts = []survey.Mount{{Path: "/var/lib/rancher/k3s/storage", Type: "ext4", Source: "/dev/sdb1"}}
	}, []string{"host.mounts"}},
	{"a share in the kubelet's directory", func(s *subject) {
		s.facts.Host.Disk.Mounts = []survey.Mount{{Path: "/var/lib/kubelet/share", Type: "nfs4", Source: "nas:/x"}}
	}, []string{"host.mounts"}},
	{"silent: the data directory is a disk of its own", func(s *subject) {
		s.facts.Host.Disk.Mounts = []survey.Mount{{Path: "/var/lib/rancher/k3s", Type: "ext4", Source: "/dev/sdb1"}}
		s.facts.Host.Disk.Unmounts = []string{"/run/k3s", "/var/lib/kubelet/pods"}
	}, nil},
	{"the data directory is a disk of its own, and killall unmounts it", func(s *subject) {
		s.facts.Host.Disk.Mounts = []survey.Mount{{Path: "/var/lib/rancher/k3s", Type: "ext4", Source: "/dev/sdb1"}}
		s.facts.Host.Disk.Unmounts = []string{"/var/lib/rancher/k3s"}
	}, []string{"host.mounts"}},
	{"the volumes' file system, which systemd can mount again", func(s *subject) {
		s.facts.K3s.Mounts = []k3s.Mount{{Path: "/var/lib/rancher/k3s/storage", Type: "ext4", Source: "/dev/sdb1", Apart: true}}
		s.facts.Host.Disk.Unmounts = []string{"/run/k3s", "/var/lib/rancher/k3s"}
	}, []string{"host.mounts"}},
	{"the data directory's file system, and killall unmounts it", func(s *subject) {
		s.facts.K3s.Mounts = []k3s.Mount{{Path: "/var/lib/rancher/k3s", Type: "ext4", Source: "/dev/sdb1", Data: true}}
		s.facts.Host.Disk.Unmounts = []string{"/run/k3s", "/var/lib/rancher/k3s"}
	}, []string{"host.mounts"}},
	{"silent: file systems that nobody unmounts or empties", func(s *subject) {
		s.facts.K3s.Mounts = []k3s.Mount{{Path: "/var/lib/rancher", Type: "ext4", Source: "/dev/sdb1", Data: true}, {Path: "/var/lib/rancher/k3s", Type: "ext4", Source: "/dev/sdb2", Data: true}, {Path: "/srv", Type: "xfs", Source: "/dev/sdc1"}}
		s.facts.Host.Disk.Unmounts = []string{"/run/k3s", "/var/lib/kubelet/pods"}
	}, nil},
	{"another data directory", func(s *subject) {
		s.facts.K3s.DataDir = "/srv/k3s"
		s.facts.K3s.Settings = map[string]k3s.Setting{"data-dir": {Values: []string{"/srv/k3s"}, Source: k3s.SourceFlag}}
	}, []string{"k3s.datadir"}},
	{"another data directory, and an uninstall script of old", func(s *subject) {
		s.facts.K3s.DataDir, s.facts.Host.Disk.DefaultDataOnly = "/srv/k3s", true
	}, []string{"k3s.datadir"}},
	{"silent: an uninstall script of old, and the usual data directory", func(s *subject) { s.facts.Host.Disk.DefaultDataOnly = true }, nil},
	{"no token", func(s *subject) { s.facts.Host.Disk.NoToken = true }, []string{"k3s.token"}},
	{"settings in a file that stays", func(s *subject) {
		s.facts.Host.Disk.Variables = map[string][]string{"/etc/default/k3s": {"K3S_NODE_NAME", "K3S_TOKEN"}}
	}, []string{"k3s.envfiles"}},
	{"a named file that is not there", func(s *subject) { s.facts.Host.Disk.Gone = []string{"/etc/audit.yaml"} }, []string{"k3s.files"}},
	{"a named file that the uninstall removes", func(s *subject) {
		s.facts.Host.Disk.Removed = []string{"/var/lib/kubelet/config.yaml"}
	}, []string{"k3s.files"}},
	{"K3s of another time", func(s *subject) { s.facts.K3s.Version = "v1.22.17+k3s1" }, []string{"k3s.version"}},
	{"the plan names K3s of another time", func(s *subject) { s.plan.Spec.K3s.Version = "v1.21.1+k3s1" }, []string{"k3s.version"}},
	{"silent: K3s of another time, and the plan names a new one", func(s *subject) {
		s.facts.K3s.Version, s.plan.Spec.K3s.Version = "v1.22.17+k3s1", "v1.23.7+k3s1"
	}, nil},
	{"silent: a candidate of the first version", func(s *subject) { s.facts.K3s.Version = "v1.23.7-rc1+k3s1" }, nil},
	{"silent: a version of one's own", func(s *subject) { s.facts.K3s.Version = "dev" }, nil},
	{"a downgrade", func(s *subject) { s.plan.Spec.K3s.Version = "v1.33.1+k3s1" }, []string{"k3s.downgrade"}},
	{"silent: an upgrade", func(s *subject) { s.plan.Spec.K3s.Version = "v1.35.0+k3s1" }, nil},
	{"ranges by a flag, node-ip by a drop-in", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{
			"service-cidr": {Values: []string{"10.43.0.0/16"}, Source: k3s.SourceFlag},
			"node-ip":      {Values: []string{"192.0.2.10"}, Source: "/etc/rancher/k3s/config.yaml.d/ip.yaml"},
		}
	}, []string{"k3s.source", "k3s.source"}},
	{"silent: ranges by config.yaml", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"service-cidr": {Values: []string{"10.43.0.0/16"}, Source: k3s.DefaultConfigFile}}
	}, nil},
	{"ranges by arguments of Kubernetes' programs", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{
			"kube-controller-manager-arg": {Values: []string{"v=2", "node-cidr-mask-size=25", "cluster-cidr=10.42.0.0/16"}, Source: k3s.DefaultConfigFile},
			"kubelet-arg":                 {Values: []string{"node-ip=192.0.2.10"}, Source: k3s.SourceFlag},
		}
	}, []string{"k3s.args", "k3s.args", "k3s.args"}},
	{"silent: arguments that go with two families", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{
			"kube-controller-manager-arg": {Values: []string{"node-cidr-mask-size-ipv4=25", "cluster-cidr=10.42.0.0/16,fd42::/56"}, Source: k3s.DefaultConfigFile},
			"kube-apiserver-arg":          {Values: []string{"audit-policy-file=/etc/audit.yaml"}, Source: k3s.DefaultConfigFile},
		}
	}, nil},
	{"cluster-dns of IPv4 alone", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"cluster-dns": {Values: []string{"10.43.0.10"}, Source: k3s.SourceFlag}}
	}, []string{"network.clusterdns"}},
	{"cluster-dns outside of the new ranges", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"cluster-dns": {Values: []string{"10.96.0.10"}, Source: k3s.SourceFlag}}
	}, []string{"network.clusterdns"}},
	{"silent: the plan names cluster-dns", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"cluster-dns": {Values: []string{"10.96.0.10"}, Source: k3s.SourceFlag}}
		s.plan.Spec.Network.ClusterDNS = []string{"10.43.0.10", "fd43::a"}
	}, nil},
	{"no flannel", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"flannel-backend": {Values: []string{"none"}, Source: k3s.DefaultConfigFile}}
	}, []string{"k3s.cni"}},
	{"silent: flannel over WireGuard", func(s *subject) {
		s.facts.K3s.Settings = map[string]k3s.Setting{"flannel-backend": {Values: []string{"wireguard-native"}, Source: k3s.DefaultConfigFile}}
	}, nil},
	{"the host was given another name", func(s *subject) { s.facts.Host.Hostname = "dedi2" }, []string{"node.name"}},
	{"silent: the host was given another name, and K3s the old one", func(s *subject) {
		s.facts.Host.Hostname = "dedi2"
		s.facts.K3s.Settings = map[string]k3s.Setting{"node-name": {Values: []string{"dedi"}, Source: k3s.SourceEnv}}
	}, nil},
	{"silent: the host's name has capitals", func(s *subject) { s.facts.Host.Hostname = "Dedi" }, nil},
	{"IPv6 is off for new interfaces", func(s *subject) { s.facts.Host.IPv6Off = true }, []string{"host.ipv6off"}},
	{"no ip6tables", func(s *subject) { s.facts.Host.NoIP6Tables = true }, []string{"host.ip6tables"}},
	{"a default route that is ending", func(s *subject) {
		s.facts.Host.Routes[1].Expires, s.facts.Host.AcceptRA, s.facts.Host.Forwarding = 1700, 1, true
	}, []string{"host.ra"}},
	{"a default route that would end", func(s *subject) { s.facts.Host.Routes[1].Expires, s.facts.Host.AcceptRA = 1700, 1 }, []string{"host.ra"}},
	{"silent: router advertisements are heard while the host forwards", func(s *subject) {
		s.facts.Host.Routes[1].Expires, s.facts.Host.AcceptRA, s.facts.Host.Forwarding = 1700, 2, true
	}, nil},
	{"silent: another program reads router advertisements", func(s *subject) {
		s.facts.Host.Routes[1].Expires, s.facts.Host.AcceptRA, s.facts.Host.Forwarding = 1700, 0, true
	}, nil},
	{"an address by DHCP", func(s *subject) { s.facts.Host.Addresses[1].Dynamic = true }, []string{"host.address"}},
	{"the plan names a deprecated address", func(s *subject) {
		s.facts.Host.Addresses[1].Deprecated = true
		s.plan.Spec.Network.NodeIP = []string{"192.0.2.10", "2001:db8::10"}
	}, []string{"host.address"}},
	{"unique local pods without masquerading", func(s *subject) { s.plan.Spec.Network.FlannelIPv6Masq = new(bool) }, []string{"network.masquerade"}},
	{"routed pods without masquerading", func(s *subject) {
		s.plan.Spec.Network.FlannelIPv6Masq = new(bool)
		s.plan.Spec.Network.ClusterCIDR[1] = "2001:db8:42::/48"
	}, []string{"network.masquerade"}},
	{"the host's clock is fast", func(s *subject) { s.facts.Host.Skew = 61 }, []string{"host.clock"}},
	{"the host's clock is slow", func(s *subject) { s.facts.Host.Skew = -86400 }, []string{"host.clock"}},
	{"silent: the clocks are as good as the same", func(s *subject) { s.facts.Host.Skew = -60 }, nil},
	{"overlap with a VPN's table", func(s *subject) {
		s.facts.Host.PolicyRoutes = []survey.Route{{Destination: netip.MustParsePrefix("10.43.8.0/24"), Interface: "wg0"}}
	}, []string{"network.overlap"}},
	{"a firewall that drops", func(s *subject) {
		s.facts.Host.Firewall.Forward = []survey.Chain{{Name: "inet filter forward", Drops: true, Rules: []string{"ct state established,related accept", "ip saddr 10.42.0.0/16 accept"}}}
	}, []string{"host.firewall"}},
	{"a firewall that drops in the end", func(s *subject) {
		s.facts.Host.Firewall.Forward = []survey.Chain{{Name: "ip6 filter FORWARD", Rules: []string{"counter jump KUBE-FORWARD", "counter reject with icmpv6 port-unreachable"}}}
	}, []string{"host.firewall"}},
	{"silent: a firewall that knows the pods", func(s *subject) {
		s.facts.Host.Firewall.Forward = []survey.Chain{
			{Name: "inet filter forward", Drops: true, Rules: []string{"ip6 saddr fd42::/48 accept", "drop"}},
			{Name: "inet second forward", Drops: true, Rules: []string{`iifname "cni0" counter accept`}},
			{Name: "inet third forward", Drops: true, Rules: []string{"counter accept", "drop"}},
		}
	}, nil},
	{"silent: iptables, to which K3s adds its own", func(s *subject) {
		s.facts.Host.Firewall.Forward = []survey.Chain{{Name: "ip6 filter FORWARD", Drops: true, Rules: []string{"counter jump KUBE-FORWARD"}}}
	}, nil},
	{"ufw", func(s *subject) { s.facts.Host.Firewall.UFW = []string{"Status: active", "22/tcp ALLOW Anywhere"} }, []string{"host.firewall"}},
	{"silent: ufw that knows the pods", func(s *subject) {
		s.facts.Host.Firewall.UFW = []string{"Status: active", "Anywhere (v6) ALLOW fd42::/48"}
	}, nil},
	{"firewalld", func(s *subject) {
		s.facts.Host.Firewall.Firewalld = true
		s.facts.Host.Firewall.Forward = []survey.Chain{{Name: "inet firewalld filter_FORWARD", Rules: []string{"reject with icmpx admin-prohibited"}}}
	}, []string{"host.firewall"}},
	{"silent: firewalld that knows the pods", func(s *subject) {
		s.facts.Host.Firewall.Firewalld, s.facts.Host.Firewall.Trusted = true, []string{"10.42.0.0/16", "fd42::/48"}
		s.facts.Host.Firewall.Forward = []survey.Chain{{Name: "inet firewalld filter_FORWARD", Rules: []string{"reject with icmpx admin-prohibited"}}}
	}, nil},
	{"a volume's directory is missing", func(s *subject) { s.facts.Cluster.Volumes[0].Missing = true }, []string{"volumes.missing"}},
	{"a volume whose claim is gone", func(s *subject) { s.facts.Cluster.Volumes[0].Phase = "Released" }, []string{"volumes.released"}},
	{"a share that its claim's end deletes", func(s *subject) { s.facts.Cluster.Volumes[1].ReclaimPolicy = "Delete" }, []string{"volumes.reclaim"}},
	{"silent: a directory that its claim's end deletes, which is kept", func(s *subject) { s.facts.Cluster.Volumes[0].ReclaimPolicy = "Delete" }, nil},
	{"a claim that waits", func(s *subject) {
		s.facts.Cluster.Workloads.Unbound = []survey.Claim{{Name: "shop/cache", Phase: "Pending"}}
	}, []string{"claims.unbound"}},
	{"jobs", func(s *subject) { s.facts.Cluster.Workloads.Jobs = []string{"shop/import"} }, []string{"workloads.jobs"}},
	{"many pods on the way", func(s *subject) {
		s.facts.Cluster.Workloads.Unsettled = []string{"a/1: Pending", "a/2: Pending", "a/3: Pending", "a/4: Pending", "a/5: Pending", "a/6: being deleted", "a/7: Unknown"}
	}, []string{"workloads.pods"}},
	{"a pod that writes into K3s's directory", func(s *subject) {
		s.facts.Cluster.Workloads.HostPaths = []survey.HostPath{{Path: "/var/lib/rancher/k3s/mine", Pod: "shop/db-0"}}
	}, []string{"workloads.hostpath"}},
	{"images that no registry gives", func(s *subject) {
		s.facts.Cluster.Workloads.Images = []survey.Image{{Name: "shop/web:dev", Pod: "shop/web-1"}, {Name: "docker.io/library/redis:7", Pod: "shop/redis-0", Never: true}}
	}, []string{"workloads.images", "workloads.images"}},
	{"silent: images from an archive that is kept", func(s *subject) {
		s.facts.Cluster.Workloads.Images = []survey.Image{{Name: "shop/web:dev", Pod: "shop/web-1"}}
		s.facts.K3s.AgentFiles = []string{"/var/lib/rancher/k3s/agent/images/shop.tar"}
	}, nil},
	{"a certificate that is renewed soon, one that is not Ready, one that is asked for often", func(s *subject) {
		s.facts.Taken = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
		s.facts.Cluster.Workloads.Certificates = []survey.Certificate{
			{Name: "web/soon", Ready: true, Renewal: s.facts.Taken.Add(23 * time.Hour)}, {Name: "web/broken"},
			{Name: "web/often", Ready: true, Renewal: s.facts.Taken.Add(60 * 24 * time.Hour), Requests: 4},
		}
	}, []string{"certificates.renewal", "certificates.ready", "certificates.limit"}},
	{"silent: a certificate as it should be", func(s *subject) {
		s.facts.Cluster.Workloads.Certificates = []survey.Certificate{{Name: "web/fine", Ready: true, Renewal: s.facts.Taken.Add(25 * time.Hour), Requests: 1}}
	}, nil},
	{"a chart's Service", func(s *subject) {
		s.facts.Cluster.Services = []cluster.ServiceChange{
			{Namespace: "shop", Name: "web", Owner: cluster.Owner{Kind: cluster.OwnedByHelm, Name: "shop", Source: "set service.ipFamilyPolicy in the chart's values"}},
			{Namespace: "shop", Name: "skipped", Skip: "ExternalName", Owner: cluster.Owner{Kind: cluster.OwnedByHelm, Name: "shop", Source: "set it"}},
			{Namespace: "shop", Name: "manifest", Owner: cluster.Owner{Kind: cluster.OwnedByManifest, Name: "web", Source: "set it"}},
		}
	}, []string{"services.owner"}},
	{"an apex that its wildcard does not stand for", func(s *subject) {
		s.facts.Names = []survey.Name{{Host: "shop.example"}, {Host: "www.shop.example", A: four, AAAA: six, HTTP4: "200", HTTP6: "308"}}
	}, []string{"dns.name"}},
	{"a name without A", func(s *subject) { s.facts.Names = []survey.Name{{Host: "shop.example", AAAA: six, HTTP6: "200"}} }, []string{"dns.name"}},
	{"a name without AAAA", func(s *subject) { s.facts.Names = []survey.Name{{Host: "shop.example", A: four, HTTP4: "200"}} }, []string{"dns.aaaa"}},
	{"DNS does not answer", func(s *subject) {
		s.facts.Names = []survey.Name{{Host: "shop.example", Problem: "lookup shop.example.: i/o timeout"}}
	}, []string{"dns.answer"}},
	{"sites that do not answer", func(s *subject) {
		s.facts.Names = []survey.Name{{Host: "shop.example", A: four, AAAA: six, HTTP4: "dial tcp 192.0.2.10:80: connect: connection refused", HTTP6: "dial tcp [2001:db8::10]:80: i/o timeout"}}
	}, []string{"http.ipv4", "http.ipv6"}},
	{"silent: the laptop has no IPv6", func(s *subject) {
		s.facts.Names = []survey.Name{{Host: "shop.example", A: four, AAAA: six, HTTP4: "404", HTTP6: "dial tcp [2001:db8::10]:80: connect: network is unreachable"}}
	}, nil},
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
	{"silent: OpenBao as it should be", func(s *subject) { s.openBao() }, nil},
	{"OpenBao cannot be read", func(s *subject) { s.openBao().Problem = "openbao/openbao-0: it is sealed" }, []string{"openbao.server"}},
	{"a token that may too little", func(s *subject) { s.openBao().Missing = []string{"read sys/storage/raft/snapshot"} }, []string{"openbao.token"}},
	{"storage without snapshots", func(s *subject) { s.openBao().Servers[0].Storage = "file" }, []string{"openbao.storage"}},
	{"storage without snapshots, and its volume is left out", func(s *subject) {
		s.openBao().Servers[0].Storage = "file"
		s.facts.Cluster.Volumes[0].Excluded = true
	}, []string{"openbao.storage", "volumes.excluded"}},
	{"storage without snapshots, and one of two servers has no volume", func(s *subject) {
		b := s.openBao()
		b.Servers[0].Storage = "postgresql"
		b.Servers = append(b.Servers, survey.OpenBaoServer{Name: "data/bao-1", Status: b.Servers[0].Status})
	}, []string{"openbao.storage"}},
	{"silent: raft, and its volume is left out", func(s *subject) {
		s.openBao()
		s.facts.Cluster.Volumes[0].Excluded = true
		s.facts.Cluster.Volumes[0].Path = "/srv/bao"
	}, nil},
	{"keys are needed, and none is named", func(s *subject) {
		s.openBao()
		s.plan.Spec.Backup.OpenBao.UnsealKeys = nil
	}, []string{"openbao.keys"}},
	{"it unseals itself, and keys are named", func(s *subject) { s.openBao().Servers[0].RecoverySeal = true }, []string{"openbao.keys"}},
	{"it unseals itself", func(s *subject) {
		b := s.openBao()
		b.Servers[0].RecoverySeal, b.Servers[0].Seal = true, "awskms"
		s.plan.Spec.Backup.OpenBao.UnsealKeys = nil
	}, []string{"openbao.seal"}},
	{"Kubernetes auth with a fixed CA, which the cluster keeps", func(s *subject) {
		s.openBao().Auths[1].Kubernetes.FixedCA = true
	}, []string{"openbao.kubernetes"}},
	{"Kubernetes auth with a fixed CA, and the cluster gets a new one", func(s *subject) {
		s.openBao().Auths[1].Kubernetes.FixedCA = true
		s.plan.Spec.K3s.Identity = plans.IdentityNew
	}, []string{"openbao.kubernetes"}},
	{"Kubernetes auth with a reviewer's token", func(s *subject) {
		s.openBao().Auths[1].Kubernetes.ReviewerToken = "set"
	}, []string{"openbao.kubernetes"}},
	{"Kubernetes auth that does not tell of a reviewer's token", func(s *subject) {
		s.openBao().Auths[1].Kubernetes.ReviewerToken = "unknown"
	}, []string{"openbao.kubernetes"}},
	{"namespaces", func(s *subject) { s.openBao().Namespaces = []string{"team-a/", "team-b/"} }, []string{"openbao.namespaces"}},
	{"a warning comes behind the inhibitors", func(s *subject) {
		s.facts.Cluster.Volumes[0].Excluded = true
		s.laptop.Free = 0
		s.facts.K3s.Datastore = k3s.Etcd
	}, []string{"k3s.datastore", "laptop.space", "volumes.excluded"}},
})

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
			if f.Detail == "" || f.Remedy == "" || f.Why == "" || f.Source == "" {
				t.Errorf("%s: %s says nothing, not why it matters, or not what to do", tc.name, f.ID)
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

// Firewalls as they were read on real hosts, before and after what the remedy says.
func TestFirewallsOfRealHosts(t *testing.T) {
	for name, want := range map[string]string{
		"ufw": "ufw is active and allows nothing from the pods' range", "ufw-allowed": "",
		"firewalld": "its zone trusted does not have the pods' range", "firewalld-trusted": "",
	} {
		data, err := os.ReadFile("../survey/testdata/firewall/" + name + ".golden")
		if err != nil {
			t.Fatal(err)
		}
		s := sound()
		s.facts.Host.Firewall = survey.Firewall{}
		if err := json.Unmarshal(data, &s.facts.Host.Firewall); err != nil {
			t.Fatal(err)
		}
		found := show(Check(s.plan, s.facts, s.laptop))
		if (want == "") != (found == "") || !strings.Contains(found, want) {
			t.Errorf("%s:\n%s", name, found)
		}
	}
}

// Each check is triggered above, and has a rule.
func TestEveryCheckIsTriggered(t *testing.T) {
	known := map[string]bool{DriftID: true} // see TestDrift
	for _, tc := range triggers {
		for _, id := range tc.ids {
			known[id] = true
		}
	}
	if d := cmp.Diff(IDs(), slices.Sorted(maps.Keys(known))); d != "" {
		t.Errorf("rules, and what is triggered: %s", d)
	}
}

func TestParseWaivers(t *testing.T) {
	w, err := ParseWaivers([]string{"laptop.space=it  compresses\n well", "network.overlap=a=b"})
	if d := cmp.Diff(Waivers{"laptop.space": "it compresses well", "network.overlap": "a=b"}, w); d != "" || err != nil {
		t.Error(d, err)
	}
	for _, tc := range []struct{ in, want string }{
		{"", "no check of that name"},
		{"nonsense=why", `"nonsense": there is no check of that name`},
		{"laptop.space", "a reason is needed"},
		{"laptop.space= \t", "a reason is needed"},
		{"k3s.datastore=I know", "k3s.datastore cannot be waived: the run could not work"},
		{"host.space=again", "waived twice"},
	} {
		if _, err := ParseWaivers([]string{"host.space=a", tc.in}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v", tc.in, err)
		}
	}
	if slices.Contains(Waivable(), "k3s.datastore") || !slices.Contains(Waivable(), "host.space") {
		t.Error(Waivable())
	}
}

// A waived inhibitor does not forbid the run, one that is firm always does.
func TestJudge(t *testing.T) {
	found := []Finding{
		{ID: "volumes.stray", Severity: Warning}, {ID: "network.overlap", Severity: Inhibitor},
		{ID: "laptop.space", Severity: Note}, {ID: "k3s.units", Severity: Inhibitor},
	}
	waivers := Waivers{"network.overlap": "unused", "k3s.units": "no", "volumes.stray": "known"}
	judged := Judge(found, waivers)
	var ids []string
	for _, f := range judged {
		ids = append(ids, f.ID)
	}
	if d := cmp.Diff([]string{"k3s.units", "network.overlap", "volumes.stray", "laptop.space"}, ids); d != "" {
		t.Error(d)
	}
	if !Inhibited(judged) || judged[0].Waived != "" || judged[0].Firm == "" || judged[1].Waived != "unused" || judged[2].Waived != "known" {
		t.Errorf("%+v", judged)
	}
	if Inhibited(judged[1:]) {
		t.Error("a waived inhibitor forbids")
	}
	if found[1].Waived != "" {
		t.Error("judging changed what was found")
	}
}

// Checks are pure: whatever is wrong together, the same facts give the same
// findings, none is changed by looking, and inhibitors come first.
func TestCheckIsPure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sound()
		// Those of OpenBao begin each with a sound one: the last wins.
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
		if !slices.IsSortedFunc(found, func(a, b Finding) int { return a.rank() - b.rank() }) {
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
