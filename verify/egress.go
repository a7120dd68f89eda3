package verify

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// path is what explains why a connection out of a pod fails.
type path struct {
	family    string
	pod       string       // whose it is, in words
	addresses []netip.Addr // of the pod, in the family
	route     bool         // the pod has a default route
	single    bool         // the cluster is single-stack, so nothing settles by waiting
	podRange  string       // the node's pod range of the family

	target        string
	host          answer // the same target from the host's own network namespace
	hostAddress   bool   // the host has an address of the family
	hostRoute     bool   // the host has a default route
	forwarding    string // the host's forwarding sysctl, "" when not known
	rules         string // the host's rules that rewrite sources
	rulesComplete bool   // a program that lists such rules was there
}

// explain says exactly what is wrong with a connection that failed, what to do, and whether waiting is of no use. The order
// goes outwards: pod, host's own access, forwarding, source address, the rest.
func explain(a answer, p path) (detail, remedy string, final bool) {
	if len(p.addresses) == 0 {
		remedy := "see " + PodAddresses
		if p.single {
			remedy = remedyMigrate
		}
		return fmt.Sprintf("%s has no %s address", p.pod, p.family), remedy, p.single
	}
	if !p.route {
		return fmt.Sprintf("no route: %s has the address %s but no %s default route", p.pod, p.addresses[0], p.family),
			"look at the CNI's configuration; a pod that is older than it must be made anew", false
	}
	if p.host.connected == 0 {
		detail := fmt.Sprintf("the host itself has no %s egress: from the host to %s: %s", p.family, p.target, p.host.words())
		switch {
		case !p.hostAddress:
			return detail + fmt.Sprintf("; the host has no global %s address", p.family), "give the host an " + p.family + " address and a default route first", true
		case !p.hostRoute:
			return detail + fmt.Sprintf("; the host has no %s default route", p.family),
				"give the host a default route; if it comes from router advertisements, the uplink needs accept_ra=2 once forwarding is on", true
		}
		return detail, "mend the host's network first, or name another URL in the plan if the target is down", false
	}
	if p.forwarding == "0" {
		return fmt.Sprintf("%s, and the host does not forward %s", a.words(), p.family),
			"set net.ipv6.conf.all.forwarding=1 (net.ipv4.ip_forward=1) on the host, persistently; K3s sets it when it starts", true
	}
	if a.refused() {
		return fmt.Sprintf("%s, while the host itself gets through", a.words()),
			"something answered and refused: look at the host's firewall (FORWARD chain of the family) and at NetworkPolicies for outgoing traffic", false
	}
	pod := p.addresses[0]
	_, masked := masquerade(p.rules, pod)
	if !masked && p.rulesComplete {
		tools, setting := "ip6tables and nft", "flannel-ipv6-masq"
		if p.family == IPv4 {
			tools, setting = "iptables and nft", "flannel"
		}
		rule := fmt.Sprintf("no MASQUERADE rule for the pod's %s range %s in %s on the host", p.family, p.podRange, tools)
		if local(pod) {
			return fmt.Sprintf("%s: packets leave with the %s source %s, which nobody routes back; %s masquerade (%s) is missing: %s",
					a.words(), sourceKind(pod), pod, p.family, setting, rule),
				remedyMasquerade(p.family), true
		}
		return fmt.Sprintf("%s: packets leave with the pod's own source %s; %s, so the range must be routed back to the node", a.words(), pod, rule),
			"have the provider route " + p.podRange + " to the node; otherwise: " + remedyMasquerade(p.family), true
	}
	if !masked {
		return fmt.Sprintf("%s, while the host itself gets through; the host has no program that lists its masquerade rules", a.words()),
			"install iptables or nftables on the host and verify again; " + remedyMasquerade(p.family), false
	}
	return fmt.Sprintf("%s, while the host itself gets through and masquerades the pod's range", a.words()),
		"look at the host's firewall (FORWARD chain of the family) and at NetworkPolicies for outgoing traffic", false
}

func remedyMasquerade(family string) string {
	if family == IPv6 {
		return "set spec.network.flannelIPv6Masq: true in the plan, which installs K3s with flannel-ipv6-masq: true; on a running server add it to /etc/rancher/k3s/config.yaml and restart K3s"
	}
	return "look at flannel in K3s's log on the host (journalctl -u k3s): it adds the rule when it starts"
}

// local tells whether nobody outside routes to the address.
func local(a netip.Addr) bool { return a.IsPrivate() || a.IsLinkLocalUnicast() }

// sourceKind names such an address.
func sourceKind(a netip.Addr) string {
	if a.Is4() {
		return "private"
	}
	return "ULA"
}

// destination is a URL as curl gets it, per family.
type destination struct {
	url     string
	resolve map[string]string // by family; a name's addresses for curl, absent for a literal address
	skip    map[string]string // families in which the URL cannot be tried, with the reason
	literal bool              // the URL has an address instead of a name, and so is of one family by intent
}

// destinationOf works out how a URL is reached in each family.
func destinationOf(raw string, names map[string]*resolved) (destination, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return destination{}, fmt.Errorf("%q is not a http or https URL", raw)
	}
	d := destination{url: raw, resolve: map[string]string{}, skip: map[string]string{}}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil {
		d.literal = true
		for _, f := range families {
			if f != familyOf(a.String()) {
				d.skip[f] = "the URL names an address of the other family"
			}
		}
		return d, nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	for _, f := range families {
		name := names[u.Hostname()]
		if name == nil || len(name.addresses[f]) == 0 {
			why := "it was not resolved"
			if name != nil {
				why = name.words[f]
			}
			d.skip[f] = u.Hostname() + ": " + why
			continue
		}
		d.resolve[f] = u.Hostname() + ":" + port + ":" + bracketed(name.addresses[f])
	}
	return d, nil
}

// bracketed writes addresses as curl's --resolve wants them.
func bracketed(all []string) string {
	var out []string
	for _, a := range all[:min(len(all), 3)] {
		if strings.Contains(a, ":") {
			a = "[" + a + "]"
		}
		out = append(out, a)
	}
	return strings.Join(out, ",")
}

// probe is the attempt to reach the destination in the family.
func (d destination) probe(family string) probe {
	return probe{url: d.url, resolve: d.resolve[family], family: family}
}

// planEgress has each URL fetched from a pod of every node, over each family by itself; and from the host, as a control.
func (n *network) planEgress(urls []string, names map[string]*resolved) {
	ids := map[string]string{IPv4: EgressIPv4, IPv6: EgressIPv6}
	if len(urls) == 0 {
		for _, f := range families {
			n.known(skip(ids[f], "cluster", f, "the plan names no URL to try (spec.verify.egressURLs)"))
		}
		return
	}
	tried := map[string]bool{}
	reasons := map[string][]string{}
	for _, raw := range urls {
		d, err := destinationOf(raw, names)
		if err != nil {
			n.known(lasting(fail(EgressIPv4, raw, "", err.Error(), "mend spec.verify.egressURLs of the plan")))
			continue
		}
		for _, f := range families {
			if why, cannot := d.skip[f]; cannot {
				reasons[f] = append(reasons[f], why)
				if !d.literal {
					n.known(skip(ids[f], raw, f, why))
				}
				continue
			}
			tried[f] = true
			control := n.add(0, d.probe(f))
			n.eachNode(func(node string, p *prober) {
				n.planFetch(ids[f], "node "+node+" to "+raw, d.probe(f), raw, node, p, control)
			})
		}
	}
	for _, f := range families {
		if !tried[f] {
			// Egress that was never tried must not look like egress that works.
			n.known(fail(ids[f], "cluster", f, fmt.Sprintf("no URL of the plan can be tried over %s: %s", f, strings.Join(slices.Compact(reasons[f]), "; ")),
				"name a URL in spec.verify.egressURLs that has an address of each family"))
		}
	}
}

// planFetch has one URL fetched from one pod.
func (n *network) planFetch(id, target string, pr probe, raw, node string, p *prober, control *answer) {
	family := pr.family
	if p == nil {
		n.known(fail2(id, target, family, n.noProber, node))
		return
	}
	facts := n.pathOf(p, family, raw)
	if len(facts.addresses) == 0 {
		n.then(func() []Check { return []Check{noAddress(id, target, facts, *control)} })
		return
	}
	a := n.add(p.pid, pr)
	n.then(func() []Check {
		if a.connected == 0 {
			facts.host = *control
			detail, remedy, final := explain(*a, facts)
			if len(facts.addresses) > 0 && !strings.Contains(detail, p.String()) {
				detail = fmt.Sprintf("from %s: %s", p, detail)
			}
			c := fail(id, target, family, detail, remedy)
			c.final = final
			return []Check{c}
		}
		if a.code == 0 {
			return []Check{fail(id, target, family, fmt.Sprintf("%s connects, but there is no HTTP answer: %s", p, a.words()),
				"look at the target; the way to it is open")}
		}
		return []Check{pass(id, target, family, fmt.Sprintf("HTTP %d%s", a.code, n.seenAs(*a, p)))}
	})
}

// noAddress is the failure of a pod that cannot even try. Whether the host gets through tells what dual-stack will bring.
func noAddress(id, target string, p path, control answer) Check {
	detail, remedy, final := explain(answer{}, p)
	if control.connected > 0 {
		detail += "; the host itself gets through"
	} else {
		detail += fmt.Sprintf("; the host itself has no %s egress either: %s", p.family, control.words())
	}
	c := fail(id, target, p.family, detail, remedy)
	c.final = final
	return c
}

// seenAs tells which source address the target saw, when it says so.
func (n *network) seenAs(a answer, p *prober) string {
	seen, ok := source(a.body)
	if !ok {
		return ""
	}
	whose := ""
	same := func(all []string) bool { return slices.Contains(canonical(all), seen.String()) }
	switch {
	case same(podIPs(p.pod)):
		whose = " (the pod's own address, routed without masquerade)"
	default:
		for i := range n.state.nodes {
			if node := &n.state.nodes[i]; node.Name == p.pod.Spec.NodeName && same(nodeIPs(node)) {
				whose = " (the node's address)"
			}
		}
	}
	return ", seen outside as " + seen.String() + whose
}

// pathOf gathers what is known of the way out of a pod.
func (n *network) pathOf(p *prober, family, target string) path {
	out := path{family: family, pod: p.String(), single: n.state.singleStack(), target: target}
	for _, ip := range ofFamily(podIPs(p.pod), family) {
		if a, err := netip.ParseAddr(ip); err == nil {
			out.addresses = append(out.addresses, a)
		}
	}
	for i := range n.state.nodes {
		if node := &n.state.nodes[i]; node.Name == p.pod.Spec.NodeName {
			out.podRange = strings.Join(ofFamily(node.Spec.PodCIDRs, family), ", ")
		}
	}
	f := n.facts
	if family == IPv6 {
		out.route = defaultRoute6(n.table("ipv6_route", p.pid))
		out.hostAddress = len(inet6Addresses(f.sections["inet6"])) > 0
		out.hostRoute = defaultRoute6(f.sections["route6"])
		out.forwarding = strings.TrimSpace(f.sections["forwarding6"])
		out.rules, out.rulesComplete = f.rules("ip6tables")
		return out
	}
	out.route = defaultRoute4(n.table("route", p.pid))
	out.hostRoute = defaultRoute4(f.sections["route"])
	out.hostAddress = true // the host was reached, and the node has an address
	out.forwarding = strings.TrimSpace(f.sections["forwarding4"])
	out.rules, out.rulesComplete = f.rules("iptables")
	return out
}

// planHostnames has each host name of the plan reached from a pod of every node over each family, by HTTP and HTTPS, as
// cert-manager's self-check and any client in the cluster would.
func (n *network) planHostnames(hostnames []string, names map[string]*resolved) {
	for _, name := range hostnames {
		for _, f := range families {
			r := names[name]
			if len(r.addresses[f]) == 0 {
				record := map[string]string{IPv4: "A", IPv6: "AAAA"}[f]
				if r.dead[f] {
					n.known(fail(HostnamesResolve, name, f, r.words[f], remedyDNS))
					continue
				}
				n.known(lasting(fail(HostnamesResolve, name, f, r.words[f],
					fmt.Sprintf("add an %s record for %s itself: a wildcard record does not match the zone's apex (RFC 4592)", record, name))))
				continue
			}
			n.known(pass(HostnamesResolve, name, f, strings.Join(r.addresses[f], ", ")))
			n.planHostname(name, f, names)
		}
	}
}

func (n *network) planHostname(name, family string, names map[string]*resolved) {
	var probes []probe
	for _, scheme := range []string{"http", "https"} {
		if d, err := destinationOf(scheme+"://"+name+"/", names); err == nil && d.skip[family] == "" {
			probes = append(probes, d.probe(family))
		}
	}
	if len(probes) == 0 {
		n.known(lasting(fail(HostnamesReachable, name, family, "it is not a host name", "mend spec.verify.hostnames of the plan")))
		return
	}
	var controls []*answer
	for _, p := range probes {
		controls = append(controls, n.add(0, p))
	}
	n.eachNode(func(node string, p *prober) {
		target := name + n.suffix(node)
		if p == nil {
			n.known(fail2(HostnamesReachable, target, family, n.noProber, node))
			return
		}
		facts := n.pathOf(p, family, name)
		if len(facts.addresses) == 0 {
			n.then(func() []Check {
				control := controls[0]
				for _, c := range controls {
					if c.connected > 0 {
						control = c
					}
				}
				return []Check{noAddress(HostnamesReachable, target, facts, *control)}
			})
			return
		}
		var answers []*answer
		for _, pr := range probes {
			answers = append(answers, n.add(p.pid, pr))
		}
		n.then(func() []Check {
			var words []string
			answered, connected := false, -1
			for i, a := range answers {
				scheme, _, _ := strings.Cut(probes[i].url, ":")
				switch {
				case a.code > 0:
					answered = true
					words = append(words, fmt.Sprintf("%s %d", scheme, a.code))
				default:
					words = append(words, scheme+": "+a.words())
				}
				if a.connected > 0 && connected < 0 {
					connected = i
				}
			}
			detail := strings.Join(words, ", ")
			if answered {
				return []Check{pass(HostnamesReachable, target, family, detail)}
			}
			if connected >= 0 {
				return []Check{fail(HostnamesReachable, target, family, fmt.Sprintf("from %s: %s", p, detail), "look at the proxy that serves the name; the way to it is open")}
			}
			facts.host = *controls[0]
			if facts.host.connected == 0 {
				facts.host = *controls[len(controls)-1]
			}
			if answers[0].refused() && facts.host.connected == 0 {
				return []Check{fail(HostnamesReachable, target, family, fmt.Sprintf("from %s: %s; the host is refused as well", p, detail),
					fmt.Sprintf("let the proxy listen on %s, ports 80 and 443", wildcard(family)))}
			}
			why, remedy, final := explain(*answers[0], facts)
			c := fail(HostnamesReachable, target, family, fmt.Sprintf("from %s: %s", p, why), remedy)
			c.final = final
			return []Check{c}
		})
	})
}
