package preflight

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"

	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

func warn(id, remedy, detail string, args ...any) []Finding {
	return []Finding{{ID: id, Severity: Warning, Detail: fmt.Sprintf(detail, args...), Remedy: remedy}}
}

func note(id, remedy, detail string, args ...any) []Finding {
	return []Finding{{ID: id, Severity: Note, Detail: fmt.Sprintf(detail, args...), Remedy: remedy}}
}

// mounts: what is mounted where K3s's scripts delete.
func mounts(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, m := range f.K3s.Mounts {
		unmounted := slices.ContainsFunc(f.Host.Disk.Unmounts, func(prefix string) bool { return strings.HasPrefix(m.Path, prefix) })
		switch {
		case m.Data && unmounted:
			out = append(out, inhibit("host.mounts", newScripts,
				"%s has the data directory, and %s unmounts it: the uninstall would leave the old datastore", m, f.K3s.Killall)...)
		case m.Apart:
			out = append(out, note("host.mounts", "nothing to do; by hand, `umount "+m.Path+"` comes before the uninstall script",
				"the volumes are on %s: migrate unmounts it before the uninstall, which would empty it, and mounts it again with what it has", m)...)
		}
	}
	for _, m := range f.Host.Disk.Mounts {
		at := path.Clean(m.Path)
		unmounted := slices.ContainsFunc(f.Host.Disk.Unmounts, func(prefix string) bool { return strings.HasPrefix(at, prefix) })
		if at == path.Clean(f.K3s.DataDir) && !unmounted {
			continue // the directory itself stays mounted, and is emptied as any other
		}
		if at == path.Clean(f.K3s.Storage()) {
			out = append(out, inhibit("host.mounts", "give it one entry in /etc/fstab without x-systemd.automount, then `systemctl daemon-reload` and `systemctl start \"$(systemd-escape --path --suffix=mount "+at+")\"`",
				"%s is a mount point (%s, %s) that systemd cannot simply mount again", at, m.Type, m.Source)...)
			continue
		}
		remedy := "stop what uses it, `umount " + at + "` and take it out of /etc/fstab until the migration is over"
		if below(at, f.K3s.DataDir) {
			remedy = "move the data into the directory that it is mounted on, or mount it outside of " + f.K3s.DataDir + " and name that in default-local-storage-path"
		}
		out = append(out, inhibit("host.mounts", remedy, "%s is a mount point (%s, %s)", at, m.Type, m.Source)...)
	}
	return out
}

// newScripts makes K3s's scripts those of a newer release.
const newScripts = "let the install script of a newer release write its scripts anew: INSTALL_K3S_SKIP_DOWNLOAD=true INSTALL_K3S_SKIP_START=true"

// dataDir: the uninstall script goes by its environment and not by the
// configuration.
func dataDir(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	const usual = k3s.DefaultDataDir
	if path.Clean(f.K3s.DataDir) == usual {
		return nil
	}
	if f.Host.Disk.DefaultDataOnly {
		return inhibit("k3s.datadir", newScripts,
			"the data directory is %s, and %s or %s knows %s alone: they would leave containers and the old datastore", f.K3s.DataDir, f.K3s.Killall, f.K3s.Uninstall, usual)
	}
	return note("k3s.datadir", "nothing to do; whoever uninstalls by hand gives it: `K3S_DATA_DIR="+f.K3s.DataDir+" "+f.K3s.Uninstall+"`",
		"the data directory is %s (%s): migrate gives it to the uninstall script, which would not find it by itself", f.K3s.DataDir, f.K3s.Settings["data-dir"].Source)
}

func token(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if !f.Host.Disk.NoToken {
		return nil
	}
	return inhibit("k3s.token", "write the token that the server was started with to that file, mode 0600",
		"%s/token is not there", f.K3s.ServerDir())
}

// envFiles outlive K3s and are read by the unit of the new install.
func envFiles(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, file := range []string{"/etc/default/k3s", "/etc/sysconfig/k3s"} {
		if names := f.Host.Disk.Variables[file]; len(names) > 0 {
			out = append(out, warn("k3s.envfiles", "remove from "+file+" what is not meant to be in force; the rest belongs into "+k3s.DefaultConfigFile,
				"%s sets %s", file, strings.Join(names, ", "))...)
		}
	}
	return out
}

// files that the configuration names and that will not be there.
func files(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, file := range f.Host.Disk.Gone {
		out = append(out, inhibit("k3s.files", "put the file back, or take its name out of the configuration", "K3s's configuration names %s, which is not there", file)...)
	}
	for _, file := range f.Host.Disk.Removed {
		if slices.Contains(f.Host.Disk.Gone, file) {
			continue
		}
		out = append(out, inhibit("k3s.files", "move it to /etc/rancher/k3s or "+f.K3s.ServerDir()+", which are kept, and name it there",
			"K3s's configuration names %s, which the uninstall removes", file)...)
	}
	return out
}

// floor: the settings of dual-stack came with these versions.
func floor(p *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	want, field := f.K3s.Version, "K3s"
	if v := p.Spec.K3s.Version; v != "" && v != plans.VersionKeep {
		want, field = v, "spec.k3s.version"
	}
	v, err := version.ParseGeneric(want)
	if err != nil {
		return nil // a build of one's own, which says nothing
	}
	if first := version.MustParseGeneric("v1.23.7"); v.LessThan(first) {
		return inhibit("k3s.version", "upgrade K3s first, one minor version after the other, or name a release from v1.23.7+k3s1 on in spec.k3s.version",
			"%s is %s: dual-stack is stable from v1.23.7+k3s1 on, and flannel-ipv6-masq is not known before v1.22", field, want)
	}
	if have, err := version.ParseGeneric(f.K3s.Version); err == nil && v.LessThan(have) {
		return warn("k3s.downgrade", "keep the present version (spec.k3s.version: keep) and change it another day",
			"spec.k3s.version %s is older than the running %s: objects that the platform applies may not be known to it", want, f.K3s.Version)
	}
	return nil
}

// sources: what is set in a stronger source than config.yaml wins over it.
func sources(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, key := range []string{"cluster-cidr", "service-cidr", "node-ip"} {
		if s, ok := f.K3s.Settings[key]; ok && s.Source != k3s.DefaultConfigFile {
			out = append(out, note("k3s.source", "nothing to do: migrate changes the setting where it is in force; mend what generates that source, if anything does",
				"%s %s is set by %s, which is stronger than %s", key, s, s.Source, k3s.DefaultConfigFile)...)
		}
	}
	return out
}

// arguments of Kubernetes' own programs win over what K3s would give them, and stay
// in force.
func arguments(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, program := range []struct {
		setting string
		names   []string
	}{
		{"kube-apiserver-arg", []string{"service-cluster-ip-range"}},
		{"kube-controller-manager-arg", []string{"cluster-cidr", "node-cidr-mask-size", "service-cluster-ip-range"}},
		{"kubelet-arg", []string{"node-ip"}},
	} {
		for _, argument := range f.K3s.Setting(program.setting) {
			name, value, _ := strings.Cut(argument, "=")
			if !slices.Contains(program.names, name) || strings.Contains(value, ":") {
				continue
			}
			remedy := "take it out: K3s gives it by itself, from cluster-cidr, service-cidr and node-ip"
			if name == "node-cidr-mask-size" {
				remedy = "write node-cidr-mask-size-ipv4=" + value + " instead, which does the same today"
			}
			out = append(out, inhibit("k3s.args", remedy, "%s sets %s (%s), which is of one family", program.setting, argument, f.K3s.Settings[program.setting].Source)...)
		}
	}
	return out
}

// clusterDNS: an address that was set by hand.
func clusterDNS(p *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	set, ok := f.K3s.Settings["cluster-dns"]
	if !ok || len(p.Spec.Network.ClusterDNS) > 0 {
		return nil
	}
	v6 := false
	for _, text := range set.Values {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		v6 = v6 || ip.Is6()
		if !slices.ContainsFunc(p.Spec.Network.ServiceCIDR, func(r string) bool {
			prefix, err := netip.ParsePrefix(r)
			return err == nil && prefix.Contains(ip)
		}) {
			out = append(out, inhibit("network.clusterdns", "name addresses of spec.network.serviceCIDR in spec.network.clusterDNS",
				"cluster-dns %s (%s) is in none of the new Service ranges: CoreDNS's Service would be refused", ip, set.Source)...)
		}
	}
	if !v6 && len(out) == 0 {
		out = warn("network.clusterdns", "name an address of each family in spec.network.clusterDNS to have DNS over IPv6 as well",
			"cluster-dns is %s (%s) and stays so: CoreDNS's Service has IPv4 alone; it answers AAAA all the same", set, set.Source)
	}
	return out
}

// cni: without flannel the address ranges are somebody else's to hand out.
func cni(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if b := f.K3s.Setting("flannel-backend"); len(b) != 1 || b[0] != "none" {
		return nil
	}
	return inhibit("k3s.cni", "have the network plugin installed by a manifest in "+f.K3s.ServerDir()+"/manifests, set up for both families, and waive this",
		"flannel-backend is none (%s): the node is not Ready before a network plugin is installed, which the run waits for", f.K3s.Settings["flannel-backend"].Source)
}

// nodeName: volumes and pods ask for the node by its name.
func nodeName(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if len(f.Cluster.Nodes) != 1 || f.Host.Hostname == "" {
		return nil
	}
	have, will := f.Cluster.Nodes[0].Name, strings.ToLower(f.Host.Hostname)
	if set := f.K3s.Setting("node-name"); len(set) == 1 && set[0] != "" {
		will = strings.ToLower(set[0])
	}
	if v := f.K3s.Setting("with-node-id"); have == will || len(v) == 1 && v[0] == "true" {
		return nil
	}
	return inhibit("node.name", "set `node-name: "+have+"` in "+k3s.DefaultConfigFile+", or give the host its old name",
		"the node is called %s and would come back as %s", have, will)
}

// routes: of the host's own way to the internet.
func routes(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	h := f.Host
	if h.IPv6Off {
		out = inhibit("host.ipv6off", "`sysctl -w net.ipv6.conf.default.disable_ipv6=0`, and where /etc/sysctl.d sets it",
			"net.ipv6.conf.default.disable_ipv6 is 1 on host %s: the bridge of the pods would get no IPv6", h.Name)
	}
	if h.NoIP6Tables {
		out = append(out, inhibit("host.ip6tables", "install the package iptables", "neither host %s nor K3s has ip6tables", h.Name)...)
	}
	for _, r := range h.Routes {
		if !r.Default() || !r.Destination.Addr().Is6() || r.Interface != h.Uplink {
			continue
		}
		// With accept_ra 0 another program than the kernel reads advertisements.
		if learned := r.Protocol == "ra" && r.Expires > 0 && h.AcceptRA == 1; learned && h.Forwarding {
			out = append(out, warn("host.ra", "`sysctl -w net.ipv6.conf."+strings.ReplaceAll(r.Interface, ".", "/")+".accept_ra=2`; migrate sets it as well, in its step network",
				"the IPv6 default route via %s was learned from router advertisements and ends in %d s: accept_ra is 1 and the host forwards, so that the kernel ignores the next", r.Interface, r.Expires)...)
		} else if learned {
			out = append(out, note("host.ra", "nothing to do: migrate sets accept_ra to 2 before it turns forwarding on",
				"the IPv6 default route via %s is learned from router advertisements (%d s left) and accept_ra is 1: it would end with them once the host forwards", r.Interface, r.Expires)...)
		}
		break
	}
	return out
}

// lasting: an address that may change makes node-ip go stale.
func lasting(p *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	chosen, ok := f.Host.IPv6()
	if named := p.Spec.Network.NodeIP; len(named) > 0 {
		ok = false
		for _, text := range named {
			if ip, err := netip.ParseAddr(text); err == nil && ip.Is6() {
				chosen, ok = ip, true
			}
		}
	}
	for _, a := range f.Host.Addresses {
		if !ok || a.Prefix.Addr() != chosen || !(a.Dynamic || a.Temporary || a.Deprecated) {
			continue
		}
		kind := "was given by router advertisements or DHCP"
		if a.Temporary {
			kind = "is temporary (privacy extensions)"
		} else if a.Deprecated {
			kind = "is deprecated"
		}
		out = append(out, warn("host.address", "configure a static address on "+a.Interface+" and name it in spec.network.nodeIP", "the node's IPv6 address %s %s", chosen, kind)...)
	}
	return out
}

func masquerade(p *plans.Plan, _ *survey.Facts, _ Laptop) []Finding {
	n := p.Spec.Network
	if n.FlannelIPv6Masq == nil || *n.FlannelIPv6Masq || len(n.ClusterCIDR) < 2 {
		return nil
	}
	r, err := netip.ParsePrefix(n.ClusterCIDR[1])
	switch {
	case err != nil:
		return nil // validation of the plan has said so
	case r.Addr().IsPrivate():
		return inhibit("network.masquerade", "leave spec.network.flannelIPv6Masq out, or name a range that is routed to the host",
			"pods get unique local addresses (%s) and spec.network.flannelIPv6Masq is false: they cannot reach the IPv6 internet", r)
	}
	return note("network.masquerade", "make sure that the provider routes it: `ip -6 route get` from outside",
		"pods go out with their own addresses (%s, spec.network.flannelIPv6Masq is false): answers come back only if that range is routed to host", r)
}

// clock: certificates that the new server makes are valid from its now.
func clock(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	const tolerated = 60
	s := f.Host.Skew
	if -tolerated <= s && s <= tolerated {
		return nil
	}
	where := "ahead of"
	if s < 0 {
		s, where = -s, "behind"
	}
	return warn("host.clock", "`timedatectl set-ntp true` on the host; compare `date -u` on both", "the clock of host %s is %d s %s the laptop's", f.Host.Name, s, where)
}

// firewall: what drops forwarded packets drops those of pods.
func firewall(p *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	if len(p.Spec.Network.ClusterCIDR) < 2 {
		return nil
	}
	pods, fw := p.Spec.Network.ClusterCIDR[1], f.Host.Firewall
	for _, c := range fw.Forward {
		if strings.HasPrefix(c.Name, "inet firewalld ") {
			continue // judged by its zones
		}
		drops, jumps := dropsFrom(c, pods)
		if !drops {
			continue
		}
		remedy := fmt.Sprintf("`nft insert rule %s ip6 saddr %s accept` and `… ip6 daddr %[2]s accept`, and where the ruleset is kept", c.Name, pods)
		if jumps {
			out = append(out, warn("host.firewall", remedy, "the nftables chain %s drops what is forwarded, but for what further chains accept: see whether they do for %s", c.Name, pods)...)
		} else {
			out = append(out, inhibit("host.firewall", remedy, "the nftables chain %s drops what is forwarded, and has no rule for the pods' range %s", c.Name, pods)...)
		}
	}
	if len(fw.UFW) > 0 && !slices.ContainsFunc(fw.UFW, func(l string) bool { return strings.Contains(l, pods) && strings.Contains(l, "ALLOW") }) {
		out = append(out, warn("host.firewall", fmt.Sprintf("`ufw allow from %s` and `ufw allow from %s`", pods, p.Spec.Network.ServiceCIDR[1]),
			"ufw is active and allows nothing from the pods' range %s", pods)...)
	}
	if fw.Firewalld && !slices.Contains(fw.Trusted, pods) {
		out = append(out, inhibit("host.firewall", fmt.Sprintf("`firewall-cmd --permanent --zone=trusted --add-source=%s --add-source=%s && firewall-cmd --reload`", pods, p.Spec.Network.ServiceCIDR[1]),
			"firewalld runs, and its zone trusted does not have the pods' range %s", pods)...)
	}
	return out
}

// dropsFrom tells whether a chain drops packets of the pods' range, as far as its
// own rules say; jumps tells that others may accept them.
func dropsFrom(c survey.Chain, pods string) (drops, jumps bool) {
	for _, rule := range c.Rules {
		rule = strings.TrimPrefix(rule, "counter ")
		words := strings.Fields(rule)
		switch {
		case rule == "drop" || strings.HasPrefix(rule, "reject"):
			return true, jumps
		case rule == "accept":
			return false, jumps
		case strings.HasSuffix(rule, " accept") && (strings.Contains(rule, pods) || strings.Contains(rule, `"cni0"`)):
			return false, jumps
		case slices.Contains(words, "jump") || slices.Contains(words, "goto"):
			jumps = true
		}
	}
	// To the chain of iptables K3s adds rules of its own.
	return c.Drops && c.Name != "ip6 filter FORWARD", jumps
}
