package verify

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// parallelPods bounds how many pods are probed from at once.
const parallelPods = 4

// network is what the checks of one round share: who can be probed from, what is known of host and pods, and the
// probes that wait to be made.
type network struct {
	state    *state
	facts    *hostFacts
	tables   map[string]string // see podSections
	host     string
	probers  []prober // every pod that can be probed from
	tasks    map[int][]task
	outcomes []func() []Check
}

// prober is a pod in whose network namespace a probe can be made.
type prober struct {
	pod *corev1.Pod
	pid int
}

func (p prober) String() string { return "pod " + qualified(p.pod) }

// task is a probe and where its answer goes.
type task struct {
	probe  probe
	answer *answer
}

// evaluateTools checks that the probes can be made at all.
func evaluateTools(f *hostFacts, host string) Check {
	target := "host " + host
	if len(f.missing) == 0 {
		return pass(HostTools, target, "", "curl and nsenter are there")
	}
	var packages []string
	for _, tool := range f.missing {
		packages = append(packages, needed[tool])
	}
	slices.Sort(packages)
	return lasting(fail(HostTools, target, "", "the host lacks "+strings.Join(f.missing, ", ")+"; nothing was probed from inside a pod",
		"on the host: apt-get install "+strings.Join(slices.Compact(packages), " ")))
}

// checkNetwork makes the checks that need probes from pods.
func checkNetwork(ctx context.Context, o Options, h site, s *state, f *hostFacts, r *resolver) ([]Check, error) {
	n := &network{state: s, facts: f, host: h.name, tasks: map[int][]task{}}
	var pids []int
	for i := range s.pods {
		p := &s.pods[i]
		if pid := f.pids[cgroupUID(p)]; onPodNetwork(p) && pid > 0 {
			n.probers = append(n.probers, prober{p, pid})
			pids = append(pids, pid)
		}
	}
	slices.SortFunc(n.probers, func(a, b prober) int { return strings.Compare(qualified(a.pod), qualified(b.pod)) })
	var err error
	if n.tables, err = podSections(ctx, h, pids); err != nil {
		return nil, err
	}

	n.planServices()
	n.planPairs()
	n.planDNS(r)
	names := r.resolveAll(ctx, namesOf(o.Plan.Spec.Verify.EgressURLs, o.Plan.Spec.Verify.Hostnames))
	n.planEgress(o.Plan.Spec.Verify.EgressURLs, names)
	n.planHostnames(o.Plan.Spec.Verify.Hostnames, names)

	o.Detail("connections from pods")
	if err := n.run(ctx, h); err != nil {
		return nil, err
	}
	var out []Check
	for _, outcome := range n.outcomes {
		out = append(out, outcome()...)
	}
	return out, nil
}

// cgroupUID is the UID under which the kubelet files the pod's processes; a static pod's is the hash of its manifest.
func cgroupUID(p *corev1.Pod) string {
	if hash := p.Annotations["kubernetes.io/config.hash"]; hash != "" {
		return hash
	}
	return string(p.UID)
}

// add plans a probe from the process' network namespace (0 is the host's); the answer is there after run.
func (n *network) add(pid int, p probe) *answer {
	a := &answer{}
	n.tasks[pid] = append(n.tasks[pid], task{p, a})
	return a
}

// then plans what is made of the answers.
func (n *network) then(outcome func() []Check) { n.outcomes = append(n.outcomes, outcome) }

// known plans a check that needs no probe.
func (n *network) known(c ...Check) { n.then(func() []Check { return c }) }

// run makes all probes. A pod that ended meanwhile makes its own probes fail, not the verification.
func (n *network) run(ctx context.Context, h site) error {
	var g errgroup.Group
	g.SetLimit(parallelPods)
	var mu sync.Mutex
	for pid, tasks := range n.tasks {
		g.Go(func() error {
			probes := make([]probe, len(tasks))
			for i, t := range tasks {
				probes[i] = t.probe
			}
			answers, err := probePod(ctx, h, pid, probes)
			mu.Lock()
			defer mu.Unlock()
			for i, t := range tasks {
				if err != nil {
					*t.answer = answer{exit: -1, message: err.Error()}
				} else {
					*t.answer = answers[i]
				}
			}
			return nil
		})
	}
	g.Wait()
	return ctx.Err()
}

// nodeProbers returns a pod to probe from for each node, none for a node where there is none. Pods that no NetworkPolicy
// keeps from going out come first.
func (n *network) nodeProbers() map[string]*prober {
	out := map[string]*prober{}
	for i := range n.state.nodes {
		out[n.state.nodes[i].Name] = nil
	}
	for i := range n.probers {
		p := &n.probers[i]
		old, known := out[p.pod.Spec.NodeName]
		if !known {
			continue
		}
		if old == nil || n.state.guarded(old.pod.Namespace, networkingv1.PolicyTypeEgress) && !n.state.guarded(p.pod.Namespace, networkingv1.PolicyTypeEgress) {
			out[p.pod.Spec.NodeName] = p
		}
	}
	return out
}

// eachNode calls f for the prober of each node, in the order of the nodes.
func (n *network) eachNode(f func(node string, p *prober)) {
	probers := n.nodeProbers()
	for i := range n.state.nodes {
		name := n.state.nodes[i].Name
		f(name, probers[name])
	}
}

// suffix tells nodes apart in a target when there are several.
func (n *network) suffix(node string) string {
	if len(n.state.nodes) < 2 {
		return ""
	}
	return " from node " + node
}

// noProber is why a node cannot be probed from.
func (n *network) noProber(node string) (detail, remedy string) {
	return fmt.Sprintf("no process of a running pod of node %s was found on host %s, so nothing can be probed from a pod there", node, n.host),
		"look whether the node's pods run: kubectl get pods -A -o wide --field-selector spec.nodeName=" + node
}

// connectTo is a probe of a TCP port.
func connectTo(address string, port int32) probe {
	return probe{url: "http://" + net.JoinHostPort(address, strconv.Itoa(int(port))) + "/", family: familyOf(address), connect: true}
}

// planServices has each Service's TCP ports connected to on each of its ClusterIPs, from a pod of each node.
func (n *network) planServices() {
	s := n.state
	for i := range s.services {
		svc := &s.services[i]
		if headless(svc) || svc.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		for j := range svc.Spec.Ports {
			port := &svc.Spec.Ports[j]
			target := fmt.Sprintf("%s:%d", qualified(svc), port.Port)
			if protocol(port.Protocol) != corev1.ProtocolTCP {
				if qualified(svc) != dnsNamespace+"/"+dnsName { // asked by planDNS
					n.known(skip(ServiceAnswer, target+"/"+strings.ToLower(string(port.Protocol)), "", string(port.Protocol)+" is not probed: no answer would tell nothing"))
				}
				continue
			}
			if len(s.endpoints(svc, port, IPv4)) == 0 && len(s.endpoints(svc, port, IPv6)) == 0 {
				n.known(skip(ServiceAnswer, target, "", "no endpoint is ready"))
				continue
			}
			for _, address := range svc.Spec.ClusterIPs {
				n.planService(svc, port, target, address)
			}
		}
	}
}

func (n *network) planService(svc *corev1.Service, port *corev1.ServicePort, target, address string) {
	s, family := n.state, familyOf(address)
	behind := s.endpoints(svc, port, family)
	if len(behind) == 0 {
		if len(svc.Spec.Selector) == 0 {
			n.known(skip(ServiceAnswer, target, family, "no "+family+" endpoint; the Service has no selector, so whoever writes its endpoints chooses the families"))
		} else {
			n.known(fail(ServiceAnswer, target, family, "the Service has a ClusterIP but no ready "+family+" endpoint",
				"look at the pods' addresses: a pod that is older than the second family, or on the host network of a host without it, has none"))
		}
		return
	}
	n.eachNode(func(node string, p *prober) {
		p = n.proberFor(svc, behind, node, p)
		target := target + n.suffix(node)
		if p == nil {
			n.known(fail2(ServiceAnswer, target, family, n.noProber, node))
			return
		}
		if len(ofFamily(podIPs(p.pod), family)) == 0 {
			n.known(fail(ServiceAnswer, target, family, fmt.Sprintf("%s, the one to probe from, has no %s address", p, family), n.remedyAddress()))
			return
		}
		a := n.add(p.pid, connectTo(address, port.Port))
		n.then(func() []Check {
			if a.connected > 0 {
				return []Check{pass(ServiceAnswer, target, family, fmt.Sprintf("%s connects to %s", p, net.JoinHostPort(address, strconv.Itoa(int(port.Port)))))}
			}
			detail := fmt.Sprintf("from %s to %s: %s", p, net.JoinHostPort(address, strconv.Itoa(int(port.Port))), a.words())
			remedy := "look at kube-proxy's rules on the host (K3s's log: journalctl -u k3s) and at firewalls between pods and Services"
			if deaf := n.deaf(behind, family); deaf != "" {
				detail += "; " + deaf
				remedy = fmt.Sprintf("make the application listen on %s, or leave the Service as it is (spec.services.exclude of the plan)", wildcard(family))
			} else if s.guarded(svc.Namespace, networkingv1.PolicyTypeIngress) {
				remedy = "a NetworkPolicy in namespace " + svc.Namespace + " may refuse the probe; it must allow the " + family + " ranges as well"
			}
			return []Check{fail(ServiceAnswer, target, family, detail, remedy)}
		})
	})
}

// proberFor returns the pod of the node from which the Service is tried: not one that stands behind it, if there is another, and
// one of its own namespace where a NetworkPolicy guards that, since to let in its own namespace only is common and no
// trouble of a family. Without such a pod it is the node's usual one.
func (n *network) proberFor(svc *corev1.Service, behind []endpoint, node string, usual *prober) *prober {
	guarded := n.state.guarded(svc.Namespace, networkingv1.PolicyTypeIngress)
	best, least := usual, 0
	for i := range n.probers {
		p := &n.probers[i]
		if p.pod.Spec.NodeName != node {
			continue
		}
		cost := 1
		if guarded && p.pod.Namespace != svc.Namespace {
			cost += 2
		}
		if slices.ContainsFunc(behind, func(e endpoint) bool { return e.pod == qualified(p.pod) }) {
			cost += 4
		}
		if n.state.guarded(p.pod.Namespace, networkingv1.PolicyTypeEgress) {
			cost += 8
		}
		if least == 0 || cost < least {
			best, least = p, cost
		}
	}
	return best
}

// fail2 makes a check of a detail and a remedy that belong together.
func fail2(id, target, family string, why func(string) (string, string), node string) Check {
	detail, remedy := why(node)
	return fail(id, target, family, detail, remedy)
}

// remedyAddress is for a pod without an address of a family.
func (n *network) remedyAddress() string {
	if n.state.singleStack() {
		return remedyMigrate
	}
	return "see " + PodAddresses
}

func wildcard(family string) string {
	if family == IPv6 {
		return "[::]"
	}
	return "0.0.0.0 or [::]"
}

// deaf says that the pod behind an endpoint listens, but not for the family; empty when that is not so or not known.
func (n *network) deaf(behind []endpoint, family string) string {
	for _, e := range behind {
		for _, p := range n.probers {
			if qualified(p.pod) != e.pod {
				continue
			}
			v4, v6 := listens(n.table("tcp", p.pid), n.table("tcp6", p.pid), e.port)
			if family == IPv6 && v4 && !v6 || family == IPv4 && v6 && !v4 {
				other := map[string]string{IPv4: IPv6, IPv6: IPv4}[family]
				return fmt.Sprintf("the application in %s listens on port %d for %s only", p, e.port, other)
			}
			if !v4 && !v6 {
				return fmt.Sprintf("nothing in %s listens on port %d", p, e.port)
			}
		}
	}
	return ""
}

func (n *network) table(name string, pid int) string {
	return n.tables[name+"/"+strconv.Itoa(pid)]
}

// listener is a pod with a TCP port that a Service leads to.
type listener struct {
	prober
	port int32
	both bool // listens for both families
}

// pair is a connection to try from one pod to another.
type pair struct {
	from prober
	to   listener
}

// pairsPerRoute bounds the pairs from one node to another (or to itself).
const pairsPerRoute = 4

// listeners returns the pods that can be connected to, a port each, those that listen for both families first.
func (n *network) listeners() []listener {
	byName := map[string]prober{}
	for _, p := range n.probers {
		byName[qualified(p.pod)] = p
	}
	found := map[string]listener{}
	for i := range n.state.services {
		svc := &n.state.services[i]
		for j := range svc.Spec.Ports {
			port := &svc.Spec.Ports[j]
			if protocol(port.Protocol) != corev1.ProtocolTCP {
				continue
			}
			for _, family := range families {
				for _, e := range n.state.endpoints(svc, port, family) {
					p, ok := byName[e.pod]
					if !ok {
						continue
					}
					v4, v6 := listens(n.table("tcp", p.pid), n.table("tcp6", p.pid), e.port)
					l := listener{p, e.port, v4 && v6}
					if old, known := found[e.pod]; (v4 || v6) && (!known || l.both && !old.both) {
						found[e.pod] = l
					}
				}
			}
		}
	}
	var out []listener
	for _, l := range found {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b listener) int {
		if a.both != b.both {
			if a.both {
				return -1
			}
			return 1
		}
		return strings.Compare(qualified(a.pod), qualified(b.pod))
	})
	return out
}

// choosePairs picks, for every way from node to node, some pairs with as many different namespaces as there are. Pods that a
// NetworkPolicy guards are left out where others can be had.
func (n *network) choosePairs(listeners []listener) []pair {
	type route struct{ from, to string }
	chosen := map[route][]pair{}
	var order []route
	penalty := func(p pair) int {
		cost := 0
		if p.from.pod.Namespace == p.to.pod.Namespace {
			cost++
		}
		if n.state.guarded(p.from.pod.Namespace, networkingv1.PolicyTypeEgress) || n.state.guarded(p.to.pod.Namespace, networkingv1.PolicyTypeIngress) {
			cost += 10
		}
		for _, c := range chosen[route{p.from.pod.Spec.NodeName, p.to.pod.Spec.NodeName}] {
			if c.to.pod.Namespace == p.to.pod.Namespace {
				cost += 2
			}
			if c.from.pod.Namespace == p.from.pod.Namespace {
				cost += 2
			}
			if c.to.pod == p.to.pod {
				cost += 4
			}
		}
		if !p.to.both {
			cost += 5
		}
		return cost
	}
	for range pairsPerRoute {
		best := map[route]pair{}
		costs := map[route]int{}
		for _, l := range listeners {
			for _, f := range n.probers {
				if f.pid == l.pid {
					continue
				}
				p := pair{f, l}
				r := route{f.pod.Spec.NodeName, l.pod.Spec.NodeName}
				if slices.ContainsFunc(chosen[r], func(c pair) bool { return c.from.pid == p.from.pid && c.to.pid == p.to.pid }) {
					continue
				}
				if cost := penalty(p); best[r].from.pod == nil || cost < costs[r] {
					best[r], costs[r] = p, cost
				}
			}
		}
		for r, p := range best {
			if len(chosen[r]) > 0 && costs[r] >= 10 {
				continue
			}
			if len(chosen[r]) == 0 {
				order = append(order, r)
			}
			chosen[r] = append(chosen[r], p)
		}
	}
	slices.SortFunc(order, func(a, b route) int {
		return cmp.Or(strings.Compare(a.from, b.from), strings.Compare(a.to, b.to))
	})
	var out []pair
	for _, r := range order {
		out = append(out, chosen[r]...)
	}
	return out
}

// planPairs has pods connect to pods, over each family.
func (n *network) planPairs() {
	pairs := n.choosePairs(n.listeners())
	if len(pairs) == 0 {
		n.known(skip(PodConnect, "cluster", "", "there are no two pods of which one has a TCP port that a Service leads to"))
	}
	for _, p := range pairs {
		target := qualified(p.from.pod) + " to " + qualified(p.to.pod)
		for _, family := range families {
			from, to := ofFamily(podIPs(p.from.pod), family), ofFamily(podIPs(p.to.pod), family)
			if len(from) == 0 || len(to) == 0 {
				lacks := p.from.pod
				if len(from) > 0 {
					lacks = p.to.pod
				}
				c := fail(PodConnect, target, family, fmt.Sprintf("pod %s has no %s address", qualified(lacks), family), n.remedyAddress())
				c.final = n.state.singleStack()
				n.known(c)
				continue
			}
			a := n.add(p.from.pid, connectTo(to[0], p.to.port))
			n.then(func() []Check {
				where := net.JoinHostPort(to[0], strconv.Itoa(int(p.to.port)))
				switch {
				case a.connected > 0:
					return []Check{pass(PodConnect, target, family, where)}
				case !p.to.both && a.refused():
					return []Check{skip(PodConnect, target, family, fmt.Sprintf("the application does not listen on port %d for %s, so its refusal tells nothing of the way to it", p.to.port, family))}
				}
				return []Check{fail(PodConnect, target, family, "to "+where+": "+a.words(),
					"look at the host's firewall (FORWARD chain of the family), at NetworkPolicies, and at the routes to the other node's pod range")}
			})
		}
	}
}

// planDNS asks the cluster's DNS from pods, over UDP as resolvers do.
func (n *network) planDNS(r *resolver) {
	name := "kubernetes.default.svc." + r.domain
	for _, server := range r.servers {
		family := familyOf(server)
		n.eachNode(func(node string, p *prober) {
			target := server + n.suffix(node)
			switch {
			case !n.facts.bash:
				n.known(skip(DNSPod, target, family, "the host has no bash and timeout, which the query over UDP is made with"))
				return
			case p == nil:
				n.known(fail2(DNSPod, target, family, n.noProber, node))
				return
			case len(ofFamily(podIPs(p.pod), family)) == 0:
				n.known(fail(DNSPod, target, family, fmt.Sprintf("%s, the one to ask from, has no %s address", p, family), n.remedyAddress()))
				return
			}
			query := new(dns.Msg)
			query.SetQuestion(dns.Fqdn(name), dns.TypeA)
			packed, err := query.Pack()
			if err != nil {
				n.known(fail(DNSPod, target, family, fmt.Sprintf("the query for %s cannot be written: %v", name, err), "look at the cluster domain in CoreDNS's configuration"))
				return
			}
			a := n.add(p.pid, probe{server: server, query: packed, family: family})
			n.then(func() []Check {
				reply := new(dns.Msg)
				if err := reply.Unpack(a.body); len(a.body) == 0 || err != nil {
					detail := fmt.Sprintf("%s gets no answer from %s over UDP", p, net.JoinHostPort(server, "53"))
					if a.message != "" {
						detail += ": " + a.message
					}
					return []Check{fail(DNSPod, target, family, detail, remedyDNS)}
				}
				got, words := records(reply, IPv4)
				if len(got) == 0 {
					return []Check{fail(DNSPod, target, family, name+": "+words, remedyDNS)}
				}
				return []Check{pass(DNSPod, target, family, name+" is "+strings.Join(got, ", "))}
			})
		})
	}
}

// namesOf returns the host names among URLs and names.
func namesOf(urls, hostnames []string) []string {
	var out []string
	for _, u := range urls {
		if parsed, err := url.Parse(u); err == nil {
			if _, err := netip.ParseAddr(parsed.Hostname()); err != nil && parsed.Hostname() != "" {
				out = append(out, parsed.Hostname())
			}
		}
	}
	return append(out, hostnames...)
}
