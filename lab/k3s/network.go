package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"
)

// network is the validated addressing of the node, in the configuration's order
// of families.
type network struct {
	Cluster []netip.Prefix
	Service []netip.Prefix
	DNS     []netip.Addr
	Node    []netip.Addr
}

const (
	defaultCluster4, defaultService4 = "10.42.0.0/16", "10.43.0.0/16"
	defaultCluster6, defaultService6 = "fd00:42::/56", "fd00:43::/112"
	// dnsIndex is where K3s puts CoreDNS's Service in each service range.
	dnsIndex = 10
)

// resolveNetwork fills in defaults and refuses what K3s refuses. detect finds
// the host's own addresses and is asked only when node-ip is not set.
func resolveNetwork(cfg *Config, detect func(iface string, want4, want6 bool) ([]netip.Addr, error)) (*network, error) {
	var n network
	var err error
	for _, s := range cfg.NodeIP {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("invalid node-ip %q: %w", s, err)
		}
		n.Node = append(n.Node, a)
	}
	only6 := len(n.Node) > 0 && n.Node[0].Is6() && families(n.Node) == "IPv6"
	if n.Cluster, err = prefixes("cluster-cidr", cfg.ClusterCIDR, pick(only6, defaultCluster6, defaultCluster4)); err != nil {
		return nil, err
	}
	if n.Service, err = prefixes("service-cidr", cfg.ServiceCIDR, pick(only6, defaultService6, defaultService4)); err != nil {
		return nil, err
	}
	if len(n.Node) == 0 {
		want4, want6 := wanted(n.Cluster)
		if n.Node, err = detect(cfg.FlannelIface, want4, want6); err != nil {
			return nil, fmt.Errorf("find this node's addresses: %w", err)
		}
		if len(n.Node) == 2 && n.Cluster[0].Addr().Is6() {
			n.Node[0], n.Node[1] = n.Node[1], n.Node[0]
		}
	}
	for _, l := range []struct {
		name string
		n    int
		dual bool
	}{
		{"cluster-cidr", len(n.Cluster), isDual(families(addrs(n.Cluster)))},
		{"service-cidr", len(n.Service), isDual(families(addrs(n.Service)))},
		{"node-ip", len(n.Node), isDual(families(n.Node))},
	} {
		if l.n > 2 || l.n == 2 && !l.dual {
			return nil, fmt.Errorf("%s: at most one value per IP family is possible", l.name)
		}
	}
	cluster, service, node := families(addrs(n.Cluster)), families(addrs(n.Service)), families(n.Node)
	if !sameFamilies(cluster, service) {
		return nil, fmt.Errorf("cluster-cidr: %v and service-cidr: %v, must share the same IP version (IPv4, IPv6 or dual-stack)", n.Cluster, n.Service)
	}
	if !sameFamilies(cluster, node) {
		return nil, fmt.Errorf("cluster-cidr: %v and node-ip: %v, must share the same IP version (IPv4, IPv6 or dual-stack)", n.Cluster, n.Node)
	}
	if cluster != service || cluster != node {
		return nil, fmt.Errorf("cluster-cidr: %v, service-cidr: %v and node-ip: %v must list the IP families in the same order", n.Cluster, n.Service, n.Node)
	}
	for i := range n.Cluster {
		if n.Cluster[i].Overlaps(n.Service[i]) {
			return nil, fmt.Errorf("cluster-cidr %v and service-cidr %v overlap", n.Cluster[i], n.Service[i])
		}
		if bits := n.Service[i].Addr().BitLen() - n.Service[i].Bits(); n.Service[i].Addr().Is6() && bits > 64 || n.Service[i].Addr().Is4() && bits > 20 {
			return nil, fmt.Errorf("service-cidr %v is too large for the API server", n.Service[i])
		}
	}
	if len(cfg.ClusterDNS) == 0 {
		for _, p := range n.Service {
			n.DNS = append(n.DNS, nth(p, dnsIndex))
		}
	}
	for _, s := range cfg.ClusterDNS {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("invalid cluster-dns address %q: %w", s, err)
		}
		inRange := false
		for _, p := range n.Service {
			inRange = inRange || p.Contains(a)
		}
		if !inRange {
			return nil, fmt.Errorf("cluster-dns: %v is not in service-cidr: %v", a, n.Service)
		}
		n.DNS = append(n.DNS, a)
	}
	return &n, nil
}

func pick(second bool, b, a string) string {
	if second {
		return b
	}
	return a
}

func prefixes(name string, list []string, fallback string) ([]netip.Prefix, error) {
	if len(list) == 0 {
		list = []string{fallback}
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("invalid %s %q: %w", name, s, err)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func addrs(list []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range list {
		out = append(out, p.Addr())
	}
	return out
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// families writes the families of a list in its order, each once.
func families(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		if f := family(a); len(out) == 0 || !strings.Contains(strings.Join(out, ","), f) {
			out = append(out, f)
		}
	}
	return strings.Join(out, ",")
}

func isDual(families string) bool { return strings.Contains(families, ",") }

func sameFamilies(a, b string) bool { return a == b || isDual(a) && isDual(b) }

func wanted(list []netip.Prefix) (want4, want6 bool) {
	f := families(addrs(list))
	return strings.Contains(f, "IPv4"), strings.Contains(f, "IPv6")
}

func (n *network) dual() bool { return len(n.Cluster) == 2 }

// nth gives the address at an index of a range.
func nth(p netip.Prefix, index int64) netip.Addr {
	v := new(big.Int).SetBytes(p.Masked().Addr().AsSlice())
	v.Add(v, big.NewInt(index))
	b := v.FillBytes(make([]byte, p.Addr().BitLen()/8))
	a, _ := netip.AddrFromSlice(b)
	return a
}

func join[T fmt.Stringer](list []T) string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, ",")
}

// detectAddresses gives the addresses of the interface that holds the default
// route (or of the named one), one per wanted family, IPv4 first. A family that
// the interface lacks is left out: the family checks then name the mismatch.
func detectAddresses(iface string, want4, want6 bool) ([]netip.Addr, error) {
	if iface == "" {
		route := "/proc/net/route"
		data, err := os.ReadFile(route)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 1 && f[1] == "00000000" {
				iface = f[0]
				break
			}
		}
		if iface == "" {
			return nil, errors.New("no default route; set node-ip")
		}
	}
	dev, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", iface, err)
	}
	list, err := dev.Addrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", iface, err)
	}
	var v4, v6 netip.Addr
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().IsGlobalUnicast() {
			continue
		}
		switch ip := p.Addr().Unmap(); {
		case ip.Is4() && !v4.IsValid():
			v4 = ip
		case ip.Is6() && !v6.IsValid():
			v6 = ip
		}
	}
	var out []netip.Addr
	if want4 && v4.IsValid() {
		out = append(out, v4)
	}
	if want6 && v6.IsValid() {
		out = append(out, v6)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("interface %s has no address of the wanted family; set node-ip", iface)
	}
	return out, nil
}

// podNetwork waits until the node has its pod ranges, then writes the CNI
// configuration and the masquerade rules: what flannel does in K3s. It fails, as
// flannel does, when the node has not the families of cluster-cidr; that is the
// case of an old single-stack datastore under dual-stack settings.
func podNetwork(ctx context.Context, api *api, cfg *Config, n *network, paths paths) error {
	ranges, err := podRanges(ctx, api, cfg.NodeName)
	if err != nil {
		return err
	}
	for _, c := range n.Cluster {
		found := false
		for _, r := range ranges {
			found = found || family(r.Addr()) == family(c.Addr()) && c.Contains(r.Addr())
		}
		if !found {
			return fmt.Errorf("flannel exited: cluster-cidr lists %v but node %q has only the pod ranges %v; a node keeps the ranges that it was given when it was created", c, cfg.NodeName, ranges)
		}
	}
	if cfg.FlannelBackend == "none" {
		return nil
	}
	conf, err := cniConfig(ranges)
	if err != nil {
		return err
	}
	if err := os.WriteFile(paths.cniFile(), conf, 0o600); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	for _, c := range n.Cluster {
		if err := applyRules(ctx, masqueradeRules(c, cfg.FlannelIPv6Masq), c.Addr().Is6()); err != nil {
			return err
		}
	}
	return nil
}

func podRanges(ctx context.Context, api *api, node string) ([]netip.Prefix, error) {
	for {
		var object struct {
			Spec struct {
				PodCIDRs []string `json:"podCIDRs"`
			} `json:"spec"`
		}
		err := api.get(ctx, "/api/v1/nodes/"+node, &object)
		if err == nil && len(object.Spec.PodCIDRs) > 0 {
			var out []netip.Prefix
			for _, s := range object.Spec.PodCIDRs {
				p, err := netip.ParsePrefix(s)
				if err != nil {
					return nil, fmt.Errorf("read the pod ranges of node %s: %w", node, err)
				}
				out = append(out, p)
			}
			return out, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// cniConfig is a bridge with host-local addresses out of each range. The bridge
// plugin's own ipMasq is off: it masquerades both families or none.
func cniConfig(ranges []netip.Prefix) ([]byte, error) {
	type object = map[string]any
	var subnets [][]object
	var routes []object
	for _, r := range ranges {
		subnets = append(subnets, []object{{"subnet": r.String()}})
		all := "0.0.0.0/0"
		if r.Addr().Is6() {
			all = "::/0"
		}
		routes = append(routes, object{"dst": all})
	}
	return json.MarshalIndent(object{
		"cniVersion": "1.0.0",
		"name":       "cbr0",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
				"ipam": object{"type": "host-local", "ranges": subnets, "routes": routes},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
}

// rule is one iptables rule: its table and chain, and what follows -A CHAIN.
type rule struct {
	table, chain string
	spec         []string
}

// masqueradeRules are flannel's, under flannel's chain names, so that the killall
// script finds them. Pods reach pods with their own addresses; what leaves for
// elsewhere takes the node's, for IPv6 only when asked: without it, an IPv6 pod
// has no way back from the internet.
func masqueradeRules(cluster netip.Prefix, ipv6Masq bool) []rule {
	c := cluster.String()
	rules := []rule{
		{"filter", "FLANNEL-FWD", []string{"-s", c, "-m", "comment", "--comment", "flanneld forward", "-j", "ACCEPT"}},
		{"filter", "FLANNEL-FWD", []string{"-d", c, "-m", "comment", "--comment", "flanneld forward", "-j", "ACCEPT"}},
	}
	if cluster.Addr().Is6() && !ipv6Masq {
		return rules
	}
	multicast := "224.0.0.0/4"
	if cluster.Addr().Is6() {
		multicast = "ff00::/8"
	}
	return append(rules,
		rule{"nat", "FLANNEL-POSTRTG", []string{"-s", c, "-d", c, "-m", "comment", "--comment", "flanneld masq", "-j", "RETURN"}},
		rule{"nat", "FLANNEL-POSTRTG", []string{"-s", c, "!", "-d", multicast, "-m", "comment", "--comment", "flanneld masq", "-j", "MASQUERADE"}},
	)
}

// applyRules makes the flannel chains hold exactly the given rules.
func applyRules(ctx context.Context, rules []rule, v6 bool) error {
	iptables := "iptables"
	if v6 {
		iptables = "ip6tables"
	}
	run := func(args ...string) error {
		out, err := exec.CommandContext(ctx, iptables, append([]string{"-w"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", iptables, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	for _, hook := range []rule{
		{"filter", "FORWARD", []string{"-m", "comment", "--comment", "flanneld forward", "-j", "FLANNEL-FWD"}},
		{"nat", "POSTROUTING", []string{"-m", "comment", "--comment", "flanneld masq", "-j", "FLANNEL-POSTRTG"}},
	} {
		chain := hook.spec[len(hook.spec)-1]
		if run("-t", hook.table, "-N", chain) != nil { // there already
			if err := run("-t", hook.table, "-F", chain); err != nil {
				return err
			}
		}
		if run(append([]string{"-t", hook.table, "-C", hook.chain}, hook.spec...)...) != nil {
			if err := run(append([]string{"-t", hook.table, "-A", hook.chain}, hook.spec...)...); err != nil {
				return err
			}
		}
	}
	for _, r := range rules {
		if err := run(append([]string{"-t", r.table, "-A", r.chain}, r.spec...)...); err != nil {
			return err
		}
	}
	return nil
}
