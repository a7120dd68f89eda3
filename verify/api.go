package verify

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sunbeam.pt/k3s-dualstack/plans"
)

// What a person does about a cluster that has one family only.
const remedyMigrate = "the cluster is single-stack: migrate it (migrate run)"

// evaluateNodes checks pod ranges and addresses of each node, and the Service ranges of the API server.
func evaluateNodes(s *state, p *plans.Plan) []Check {
	var out []Check
	for i := range s.nodes {
		n := &s.nodes[i]
		target := "node " + n.Name
		for _, f := range families {
			switch have := ofFamily(n.Spec.PodCIDRs, f); {
			case len(have) == 0:
				// A node gets its ranges when it registers and keeps them, so waiting does not help once it has one.
				c := fail(NodePodCIDRs, target, f, fmt.Sprintf("the node has no %s pod range; it has %s", f, list(n.Spec.PodCIDRs)), remedyMigrate)
				c.final = len(n.Spec.PodCIDRs) > 0
				out = append(out, c)
			case !within(have[0], p.Spec.Network.ClusterCIDR):
				out = append(out, lasting(fail(NodePodCIDRs, target, f,
					fmt.Sprintf("the node's pod range %s is not inside the plan's clusterCIDR %s", have[0], list(p.Spec.Network.ClusterCIDR)),
					"compare cluster-cidr in K3s's configuration with spec.network.clusterCIDR of the plan")))
			default:
				out = append(out, pass(NodePodCIDRs, target, f, have[0]))
			}
		}
		for _, f := range families {
			if have := ofFamily(nodeIPs(n), f); len(have) == 0 {
				c := fail(NodeAddresses, target, f, fmt.Sprintf("the node has no internal %s address; it has %s", f, list(nodeIPs(n))),
					fmt.Sprintf("give the host an %s address and name both addresses in K3s's node-ip (spec.network.nodeIP)", f))
				c.final = s.singleStack()
				out = append(out, c)
			} else {
				out = append(out, pass(NodeAddresses, target, f, strings.Join(have, ", ")))
			}
		}
	}
	if len(s.nodes) == 0 {
		out = append(out, fail(NodePodCIDRs, "cluster", "", "no node is registered", "look at K3s's log on the host: journalctl -u k3s"))
	}
	return append(out, evaluateServiceCIDRs(s, p)...)
}

// evaluateServiceCIDRs compares what the API server really uses with the plan.
func evaluateServiceCIDRs(s *state, p *plans.Plan) []Check {
	const target = "ServiceCIDR kubernetes"
	if s.serviceCIDRs == nil {
		return []Check{skip(ServiceCIDRs, target, "", "the API server has no such object (Kubernetes before 1.33)")}
	}
	var out []Check
	for _, f := range families {
		have, want := ofFamily(s.serviceCIDRs, f), ofFamily(p.Spec.Network.ServiceCIDR, f)
		switch {
		case len(have) == 0:
			out = append(out, lasting(fail(ServiceCIDRs, target, f,
				fmt.Sprintf("the API server has no %s Service range; it has %s", f, list(s.serviceCIDRs)), remedyMigrate)))
		case len(want) > 0 && !samePrefix(have[0], want[0]):
			out = append(out, lasting(fail(ServiceCIDRs, target, f,
				fmt.Sprintf("the API server uses %s, the plan says %s", have[0], want[0]),
				"compare service-cidr in K3s's configuration with spec.network.serviceCIDR of the plan")))
		default:
			out = append(out, pass(ServiceCIDRs, target, f, have[0]))
		}
	}
	return out
}

// evaluatePods checks that each running pod with a network of its own has an address of each family.
func evaluatePods(s *state) []Check {
	single := map[string]bool{}
	for i := range s.nodes {
		n := &s.nodes[i]
		single[n.Name] = len(ofFamily(n.Spec.PodCIDRs, IPv4)) == 0 || len(ofFamily(n.Spec.PodCIDRs, IPv6)) == 0
	}
	var out []Check
	for i := range s.pods {
		p := &s.pods[i]
		if !onPodNetwork(p) {
			continue
		}
		for _, f := range families {
			if have := ofFamily(podIPs(p), f); len(have) > 0 {
				out = append(out, pass(PodAddresses, qualified(p), f, strings.Join(have, ", ")))
				continue
			}
			remedy := "the pod is older than the node's second range: delete the pod so that its controller makes it anew"
			if single[p.Spec.NodeName] {
				remedy = remedyMigrate
			}
			c := fail(PodAddresses, qualified(p), f, fmt.Sprintf("the pod has no %s address; it has %s", f, list(podIPs(p))), remedy)
			c.final = single[p.Spec.NodeName]
			out = append(out, c)
		}
	}
	return out
}

// evaluateClusterIPs checks that each eligible Service has what its kind has in both families.
func evaluateClusterIPs(s *state) []Check {
	var out []Check
	for i := range s.services {
		svc := &s.services[i]
		name := qualified(svc)
		if reason, kept := s.kept[name]; kept {
			out = append(out, skip(ServiceClusterIPs, name, "", reason))
			continue
		}
		if headless(svc) {
			out = append(out, headlessEndpoints(s, svc)...)
			continue
		}
		for _, f := range families {
			if have := ofFamily(svc.Spec.ClusterIPs, f); len(have) > 0 {
				out = append(out, pass(ServiceClusterIPs, name, f, have[0]))
				continue
			}
			detail := fmt.Sprintf("the Service has no %s ClusterIP; it has %s and ipFamilyPolicy %s", f,
				list(svc.Spec.ClusterIPs), orNone(string(deref(svc.Spec.IPFamilyPolicy))))
			remedy := s.remedyService(name)
			out = append(out, lasting(fail(ServiceClusterIPs, name, f, detail, remedy)))
		}
	}
	return out
}

// remedyService is for a Service that has one family where it could have two. What a Service's owner must set is told where
// it is known, since the owner may take a patch back.
func (s *state) remedyService(name string) string {
	if s.singleStack() {
		return remedyMigrate
	}
	remedy := "patch the Service (kubectl -n NAMESPACE patch service NAME --type merge -p '{\"spec\":{\"ipFamilyPolicy\":\"PreferDualStack\",\"ipFamilies\":[\"IPv4\",\"IPv6\"]}}')"
	if source := s.sources[name]; source != "" {
		remedy += ", and for good " + source
	}
	return remedy
}

// headlessEndpoints checks that a headless Service, which has no address of its own, has endpoints of each family.
func headlessEndpoints(s *state, svc *corev1.Service) []Check {
	name := qualified(svc)
	if len(svc.Spec.Selector) == 0 {
		return []Check{skip(ServiceEndpoints, name, "", "headless without a selector: whoever writes its endpoints chooses the families")}
	}
	if len(s.addresses(svc, IPv4)) == 0 && len(s.addresses(svc, IPv6)) == 0 {
		return []Check{skip(ServiceEndpoints, name, "", "no pod of the Service is ready")}
	}
	var out []Check
	for _, f := range families {
		if have := s.addresses(svc, f); len(have) > 0 {
			out = append(out, pass(ServiceEndpoints, name, f, strings.Join(have, ", ")))
			continue
		}
		remedy := "see " + PodAddresses
		wanted := slices.Contains(svc.Spec.IPFamilies, corev1.IPFamily(f))
		if !wanted {
			remedy = s.remedyService(name)
		}
		c := fail(ServiceEndpoints, name, f, fmt.Sprintf("no ready %s endpoint; the Service's ipFamilies are %s", f, list(svc.Spec.IPFamilies)), remedy)
		c.final = !wanted
		out = append(out, c)
	}
	return out
}

// singleStack tells whether no node has pod ranges of both families.
func (s *state) singleStack() bool {
	for i := range s.nodes {
		c := s.nodes[i].Spec.PodCIDRs
		if len(ofFamily(c, IPv4)) > 0 && len(ofFamily(c, IPv6)) > 0 {
			return false
		}
	}
	return true
}

// evaluateWorkloads checks that each workload has the replicas that it asks for.
func evaluateWorkloads(s *state) []Check {
	var out []Check
	add := func(kind string, o metav1.Object, selector *metav1.LabelSelector, seen bool, have, want int32) {
		target := strings.ToLower(kind) + " " + qualified(o)
		switch {
		case !seen:
			out = append(out, fail(Workloads, target, "", "its controller has not seen the latest change yet", "look at K3s's log on the host: journalctl -u k3s"))
		case have < want:
			detail := fmt.Sprintf("%d of %d replicas are available", have, want)
			if why := s.why(o.GetNamespace(), selector); why != "" {
				detail += ": " + why
			}
			out = append(out, fail(Workloads, target, "", detail,
				fmt.Sprintf("kubectl -n %s describe %s %s; kubectl -n %s get events", o.GetNamespace(), strings.ToLower(kind), o.GetName(), o.GetNamespace())))
		default:
			out = append(out, pass(Workloads, target, "", fmt.Sprintf("%d of %d", have, want)))
		}
	}
	replicas := func(n *int32) int32 {
		if n == nil {
			return 1
		}
		return *n
	}
	for i := range s.deployments {
		d := &s.deployments[i]
		add("Deployment", d, d.Spec.Selector, d.Status.ObservedGeneration >= d.Generation, min(d.Status.AvailableReplicas, d.Status.UpdatedReplicas), replicas(d.Spec.Replicas))
	}
	for i := range s.statefulSets {
		d := &s.statefulSets[i]
		add("StatefulSet", d, d.Spec.Selector, d.Status.ObservedGeneration >= d.Generation, d.Status.AvailableReplicas, replicas(d.Spec.Replicas))
	}
	for i := range s.daemonSets {
		d := &s.daemonSets[i]
		add("DaemonSet", d, d.Spec.Selector, d.Status.ObservedGeneration >= d.Generation, d.Status.NumberAvailable, d.Status.DesiredNumberScheduled)
	}
	return out
}

// why says what keeps the first unready pod of the selector from being ready.
func (s *state) why(namespace string, selector *metav1.LabelSelector) string {
	match, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return ""
	}
	found := false
	for i := range s.pods {
		p := &s.pods[i]
		if p.Namespace != namespace || p.DeletionTimestamp != nil || !match.Matches(labels.Set(p.Labels)) {
			continue
		}
		found = true
		if reason := podTrouble(p); reason != "" {
			return "pod " + p.Name + " " + reason
		}
	}
	if !found {
		return "it has no pod"
	}
	return ""
}

// podTrouble says in words what keeps a pod from being ready; empty when nothing does.
func podTrouble(p *corev1.Pod) string {
	for _, st := range append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		switch {
		case st.State.Waiting != nil && st.State.Waiting.Reason != "PodInitializing":
			return strings.TrimSuffix(fmt.Sprintf("waits in container %s: %s: %s", st.Name, st.State.Waiting.Reason, st.State.Waiting.Message), ": ")
		case st.State.Terminated != nil && st.State.Terminated.ExitCode != 0:
			return fmt.Sprintf("has container %s ended with exit code %d (%s)", st.Name, st.State.Terminated.ExitCode, st.State.Terminated.Reason)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == corev1.ConditionFalse && (c.Type == corev1.PodScheduled || c.Type == corev1.PodReady) {
			return strings.TrimSuffix(fmt.Sprintf("is not %s: %s: %s", strings.ToLower(strings.TrimPrefix(string(c.Type), "Pod")), c.Reason, c.Message), ": ")
		}
	}
	return ""
}

// list joins what there is, and says when there is nothing.
func list[T ~string](all []T) string {
	words := make([]string, len(all))
	for i, s := range all {
		words[i] = string(s)
	}
	return orNone(strings.Join(words, ", "))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// within tells whether the range lies in one of the wider ranges; true when there is none of its family to compare with.
func within(cidr string, wider []string) bool {
	in, err := netip.ParsePrefix(cidr)
	if err != nil {
		return false
	}
	compared := false
	for _, w := range wider {
		out, err := netip.ParsePrefix(w)
		if err != nil || out.Addr().Is4() != in.Addr().Is4() {
			continue
		}
		compared = true
		if out.Bits() <= in.Bits() && out.Contains(in.Addr()) {
			return true
		}
	}
	return !compared
}

func samePrefix(a, b string) bool {
	x, err1 := netip.ParsePrefix(a)
	y, err2 := netip.ParsePrefix(b)
	return err1 == nil && err2 == nil && x.Masked() == y.Masked()
}
