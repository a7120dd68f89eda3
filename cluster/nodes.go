package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WaitNode waits until the node called name is Ready and has podCIDRs of
// `families` IP families (1 or 2). The error names what is missing, with the node's
// own words where it has some. t may be nil.
func (c *Client) WaitNode(ctx context.Context, name string, families int, t Detailer) error {
	return c.wait(ctx, "the node "+name, t, func(ctx context.Context) ([]string, error) {
		node, err := c.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			others, err := c.nodeNames(ctx)
			if err != nil {
				return nil, err
			}
			return []string{notRegistered(name, others)}, nil
		}
		if err != nil {
			return nil, err
		}
		return nodeMissing(node, families), nil
	}, nil)
}

func (c *Client) nodeNames(ctx context.Context) ([]string, error) {
	list, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	return names, nil
}

func notRegistered(name string, others []string) string {
	if len(others) == 0 {
		return fmt.Sprintf("node %s has not registered (there is no node yet)", name)
	}
	return fmt.Sprintf("node %s has not registered; the cluster has %s", name, strings.Join(others, ", "))
}

// nodeMissing says what keeps a node from being Ready with that many families of podCIDRs.
func nodeMissing(node *corev1.Node, families int) []string {
	var missing []string
	i := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	switch {
	case i < 0:
		missing = append(missing, fmt.Sprintf("node %s is not Ready: its kubelet has not reported yet", node.Name))
	case node.Status.Conditions[i].Status != corev1.ConditionTrue:
		cond := node.Status.Conditions[i]
		missing = append(missing, fmt.Sprintf("node %s is not Ready: %s: %s", node.Name, cond.Reason, cond.Message))
	}
	if have := familiesOf(node.Spec.PodCIDRs); len(have) < families {
		cidrs := "none"
		if len(node.Spec.PodCIDRs) > 0 {
			cidrs = strings.Join(node.Spec.PodCIDRs, ", ")
		}
		missing = append(missing, fmt.Sprintf("node %s has podCIDRs of %d of %d families (%s)", node.Name, len(have), families, cidrs))
	}
	return missing
}

// familiesOf lists the IP families of CIDRs or addresses, each once, in their order.
func familiesOf(ranges []string) []corev1.IPFamily {
	var have []corev1.IPFamily
	for _, r := range ranges {
		addr, _, _ := strings.Cut(r, "/")
		ip, err := netip.ParseAddr(addr)
		if err != nil {
			continue
		}
		family := corev1.IPv6Protocol
		if ip.Is4() {
			family = corev1.IPv4Protocol
		}
		if !slices.Contains(have, family) {
			have = append(have, family)
		}
	}
	return have
}

// PodCIDRs returns each node's podCIDRs by the node's name, in the order that
// Kubernetes keeps them: the primary family first.
func (c *Client) PodCIDRs(ctx context.Context) (map[string][]string, error) {
	list, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the nodes' podCIDRs: %w", c.explain(err))
	}
	cidrs := make(map[string][]string, len(list.Items))
	for _, n := range list.Items {
		cidrs[n.Name] = n.Spec.PodCIDRs
	}
	return cidrs, nil
}

// ServiceCIDRs returns the ranges that the API server really gives ClusterIPs
// from, the primary family first: the ServiceCIDR object named "kubernetes". It is
// nil where the cluster has no such object (before Kubernetes 1.33).
func (c *Client) ServiceCIDRs(ctx context.Context) ([]string, error) {
	obj, err := c.Kube.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the ServiceCIDR kubernetes: %w", c.explain(err))
	}
	return obj.Spec.CIDRs, nil
}
