package cluster

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// NoPodsError says that a Service, or the pods that it selects, are not there; they
// may come.
type NoPodsError struct{ Namespace, Service, Problem string }

func (e *NoPodsError) Error() string {
	return fmt.Sprintf("finding the pods of the Service %s/%s: %s", e.Namespace, e.Service, e.Problem)
}

// ServicePods returns the names of the pods that a Service selects, sorted. Ready
// or not: a server that waits to be unsealed is not.
func (c *Client) ServicePods(ctx context.Context, namespace, service string) ([]string, error) {
	doing := fmt.Sprintf("finding the pods of the Service %s/%s", namespace, service)
	s, err := c.Kube.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, &NoPodsError{namespace, service, c.absent(ctx, namespace, "Service")}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, c.explain(err))
	}
	if len(s.Spec.Selector) == 0 {
		return nil, fmt.Errorf("%s: it selects none (it has no selector); name the pods themselves, or an address", doing)
	}
	selector := labels.SelectorFromSet(s.Spec.Selector).String()
	pods, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, c.explain(err))
	}
	var names []string
	for _, p := range pods.Items {
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return nil, &NoPodsError{namespace, service, fmt.Sprintf("no pod has the labels that it selects (%s); see what should make them with: kubectl -n %s get statefulset,deployment", selector, namespace)}
	}
	slices.Sort(names)
	return names, nil
}

// PodVolumes returns the names of the claims that a pod mounts, sorted.
func (c *Client) PodVolumes(ctx context.Context, namespace, pod string) ([]string, error) {
	doing := fmt.Sprintf("reading the volumes of the pod %s/%s", namespace, pod)
	p, err := c.Kube.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %s", doing, c.absent(ctx, namespace, "pod"))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, c.explain(err))
	}
	var claims []string
	for _, v := range p.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			claims = append(claims, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			claims = append(claims, p.Name+"-"+v.Name) // the name that Kubernetes gives it
		}
	}
	slices.Sort(claims)
	return slices.Compact(claims), nil
}

// absent says what is missing when an object of a namespace was not found: the
// object, or the namespace as a whole.
func (c *Client) absent(ctx context.Context, namespace, kind string) string {
	if _, err := c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return fmt.Sprintf("there is no namespace %s", namespace)
	}
	return fmt.Sprintf("there is no such %s", kind)
}
