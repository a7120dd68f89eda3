package verify

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"sunbeam.pt/k3s-dualstack/cluster"
)

// state is what the API said at one moment; the evaluations are pure functions of it.
type state struct {
	nodes        []corev1.Node
	pods         []corev1.Pod
	services     []corev1.Service
	slices       []discoveryv1.EndpointSlice
	policies     []networkingv1.NetworkPolicy
	deployments  []appsv1.Deployment
	statefulSets []appsv1.StatefulSet
	daemonSets   []appsv1.DaemonSet
	serviceCIDRs []string          // of the ServiceCIDR object "kubernetes"; nil before Kubernetes 1.33
	kept         map[string]string // Services that need not be dual-stack, "namespace/name" to the reason
	sources      map[string]string // where a Service is made dual-stack for good, by "namespace/name"
	domain       string            // cluster domain
}

// gather reads the state. Lists are small next to a node's limits, so they are read whole.
func gather(ctx context.Context, kube kubernetes.Interface) (*state, error) {
	s := &state{domain: "cluster.local"}
	all := metav1.ListOptions{}
	reads := []struct {
		what string
		read func() error
	}{
		{"nodes", func() error {
			l, err := kube.CoreV1().Nodes().List(ctx, all)
			if err == nil {
				s.nodes = l.Items
			}
			return err
		}},
		{"pods", func() error {
			l, err := kube.CoreV1().Pods("").List(ctx, all)
			if err == nil {
				s.pods = l.Items
			}
			return err
		}},
		{"Services", func() error {
			l, err := kube.CoreV1().Services("").List(ctx, all)
			if err == nil {
				s.services = l.Items
			}
			return err
		}},
		{"EndpointSlices", func() error {
			l, err := kube.DiscoveryV1().EndpointSlices("").List(ctx, all)
			if err == nil {
				s.slices = l.Items
			}
			return err
		}},
		{"NetworkPolicies", func() error {
			l, err := kube.NetworkingV1().NetworkPolicies("").List(ctx, all)
			if err == nil {
				s.policies = l.Items
			}
			return err
		}},
		{"Deployments", func() error {
			l, err := kube.AppsV1().Deployments("").List(ctx, all)
			if err == nil {
				s.deployments = l.Items
			}
			return err
		}},
		{"StatefulSets", func() error {
			l, err := kube.AppsV1().StatefulSets("").List(ctx, all)
			if err == nil {
				s.statefulSets = l.Items
			}
			return err
		}},
		{"DaemonSets", func() error {
			l, err := kube.AppsV1().DaemonSets("").List(ctx, all)
			if err == nil {
				s.daemonSets = l.Items
			}
			return err
		}},
		{"the ServiceCIDR kubernetes", func() error {
			c, err := kube.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil // not served, or not there: a release before 1.33
			}
			if err == nil {
				s.serviceCIDRs = c.Spec.CIDRs
			}
			return err
		}},
		{"CoreDNS's configuration", func() error {
			c, err := kube.CoreV1().ConfigMaps("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err == nil {
				s.domain = clusterDomain(c.Data["Corefile"])
			}
			return err
		}},
	}
	for _, r := range reads {
		if err := r.read(); err != nil {
			return nil, fmt.Errorf("verify: reading %s from the cluster: %w", r.what, err)
		}
	}
	return s, nil
}

// know takes over what cluster's rules say of the Services. One that has both families already is verified whatever the rules say.
func (s *state) know(changes []cluster.ServiceChange) {
	s.kept, s.sources = map[string]string{}, map[string]string{}
	for _, c := range changes {
		if c.Skip != "" && len(c.Families) != 2 {
			s.kept[c.String()] = c.Skip
		}
		s.sources[c.String()] = c.Owner.Source
	}
}

var kubernetesPlugin = regexp.MustCompile(`(?m)^\s*kubernetes\s+([A-Za-z0-9.-]+)`)

// clusterDomain reads the cluster's domain from a Corefile.
func clusterDomain(corefile string) string {
	if m := kubernetesPlugin.FindStringSubmatch(corefile); m != nil {
		if d := strings.TrimSuffix(m[1], "."); d != "" {
			return d
		}
	}
	return "cluster.local"
}

// familyOf names the family of an address or a range; empty when it is neither.
func familyOf(s string) string {
	a, err := netip.ParseAddr(s)
	if err != nil {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return ""
		}
		a = p.Addr()
	}
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// ofFamily returns the addresses or ranges of the family.
func ofFamily(all []string, family string) []string {
	var out []string
	for _, s := range all {
		if familyOf(s) == family {
			out = append(out, s)
		}
	}
	return out
}

var families = []string{IPv4, IPv6}

// qualified is "namespace/name".
func qualified(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }

// podIPs returns the pod's addresses.
func podIPs(p *corev1.Pod) []string {
	var out []string
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// nodeIPs returns the node's internal addresses.
func nodeIPs(n *corev1.Node) []string {
	var out []string
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			out = append(out, a.Address)
		}
	}
	return out
}

// onPodNetwork tells whether the pod runs now and has a network of its own.
func onPodNetwork(p *corev1.Pod) bool {
	return !p.Spec.HostNetwork && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil
}

// endpoint is one address and port behind a Service that takes traffic.
type endpoint struct {
	address string
	port    int32
	pod     string // namespace/name, empty when no pod stands behind it
}

// endpoints returns what stands behind the Service's port in the family. An empty port name stands for the unnamed port.
func (s *state) endpoints(svc *corev1.Service, port *corev1.ServicePort, family string) []endpoint {
	var out []endpoint
	for i := range s.slices {
		sl := &s.slices[i]
		if sl.Namespace != svc.Namespace || sl.Labels[discoveryv1.LabelServiceName] != svc.Name || string(sl.AddressType) != family {
			continue
		}
		for _, p := range sl.Ports {
			if p.Port == nil || deref(p.Name) != port.Name || protocol(deref(p.Protocol)) != protocol(port.Protocol) {
				continue
			}
			for _, e := range sl.Endpoints {
				if !ready(svc, e) {
					continue
				}
				for _, a := range e.Addresses {
					out = append(out, endpoint{address: a, port: *p.Port, pod: podOf(svc.Namespace, e)})
				}
			}
		}
	}
	return out
}

// addresses returns the addresses behind the Service in the family whatever the port; a headless Service may have none.
func (s *state) addresses(svc *corev1.Service, family string) []string {
	var out []string
	for i := range s.slices {
		sl := &s.slices[i]
		if sl.Namespace != svc.Namespace || sl.Labels[discoveryv1.LabelServiceName] != svc.Name || string(sl.AddressType) != family {
			continue
		}
		for _, e := range sl.Endpoints {
			if ready(svc, e) {
				out = append(out, e.Addresses...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ready follows the API's rule that an unset condition means ready, and the Service's wish to publish what is not.
func ready(svc *corev1.Service, e discoveryv1.Endpoint) bool {
	return svc.Spec.PublishNotReadyAddresses || e.Conditions.Ready == nil || *e.Conditions.Ready
}

func podOf(namespace string, e discoveryv1.Endpoint) string {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return ""
	}
	return namespace + "/" + e.TargetRef.Name
}

// protocol gives the API's default.
func protocol(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

// headless tells whether the Service has no ClusterIP on purpose.
func headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

// guarded tells whether a NetworkPolicy of the namespace may refuse traffic to its pods (or from them).
func (s *state) guarded(namespace string, direction networkingv1.PolicyType) bool {
	return slices.ContainsFunc(s.policies, func(p networkingv1.NetworkPolicy) bool {
		return p.Namespace == namespace &&
			(slices.Contains(p.Spec.PolicyTypes, direction) || len(p.Spec.PolicyTypes) == 0 && direction == networkingv1.PolicyTypeIngress)
	})
}
