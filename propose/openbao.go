package propose

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

// OpenBao is a server on the cluster, OpenBao's or Vault's.
type OpenBao struct {
	Image     string
	Namespace string
	// Service selects all its pods; "" where none does.
	Service string
	Pods    []string
	Port    int
	TLS     bool
	// Status is nil where the server did not say.
	Status *openbao.Status
}

// String is the server's namespace and Service.
func (b OpenBao) String() string { return b.Namespace + "/" + b.name() }

// name is what its certificate is most likely for.
func (b OpenBao) name() string {
	if b.Service == "" {
		return b.Pods[0]
	}
	return b.Service
}

// serverImages are the last words of the images that hold a server. Sidecars that
// speak to one have the same.
var serverImages = regexp.MustCompile(`^(openbao|vault)(-ubi|-hsm(-ubi)?|-enterprise(-fips)?|-nonroot)?$`)

var (
	serves = regexp.MustCompile(`\bserver\b`)
	asks   = regexp.MustCompile(`\b(agent|proxy)\b`)
)

// serverContainer finds the container that is a server, nil without one.
func serverContainer(p corev1.Pod) *corev1.Container {
	for i, c := range p.Spec.Containers {
		words := strings.Join(append(slices.Clone(c.Command), c.Args...), " ")
		if !serverImages.MatchString(imageName(c.Image)) || asks.MatchString(words) {
			continue
		}
		if words == "" || serves.MatchString(words) {
			return &p.Spec.Containers[i]
		}
	}
	return nil
}

// imageName is the last word of an image, without tag and digest.
func imageName(image string) string {
	image, _, _ = strings.Cut(image, "@")
	name, _, _ := strings.Cut(path.Base(image), ":")
	return name
}

// whetherOpenBao is a gap where pods could not be listed.
const whetherOpenBao = "whether OpenBao runs"

func (f *Found) readOpenBao(ctx context.Context, h cluster.Dialer, c *cluster.Client) {
	all, err := pods(ctx, c)
	if err != nil {
		f.gap(whetherOpenBao, err)
		return
	}
	servers := map[string]*OpenBao{} // by namespace and owner
	selected := map[string][]corev1.Pod{}
	for _, p := range all {
		server := serverContainer(p)
		if server == nil {
			continue
		}
		owner := p.Name
		if ref := metav1.GetControllerOf(&p); ref != nil {
			owner = string(ref.UID)
		}
		key := p.Namespace + "/" + owner
		if servers[key] == nil {
			b := &OpenBao{Image: server.Image, Namespace: p.Namespace}
			b.Port, b.TLS = listens(*server)
			servers[key] = b
		}
		servers[key].Pods = append(servers[key].Pods, p.Name)
		selected[key] = append(selected[key], p)
	}
	for _, key := range slices.Sorted(maps.Keys(servers)) {
		b := servers[key]
		slices.Sort(b.Pods)
		if b.Service, err = serviceOf(ctx, c, b.Namespace, selected[key]); err != nil {
			f.gap("the Service of the server "+b.String(), err)
		}
		if b.Status, err = statusOf(ctx, h, c, *b); err != nil {
			f.gap("how the server "+b.String()+" is unsealed", err)
		}
		f.OpenBao = append(f.OpenBao, *b)
	}
}

// listens tells where a server listens and whether by TLS: by its ports, its probe
// and what its own commands use.
func listens(c corev1.Container) (port int, tls bool) {
	for _, p := range c.Ports {
		if p.ContainerPort == 8200 || port == 0 && strings.HasPrefix(p.Name, "http") {
			port = int(p.ContainerPort)
			tls = p.Name == "https"
		}
	}
	for _, e := range c.Env {
		if e.Name == "BAO_ADDR" || e.Name == "VAULT_ADDR" {
			tls = strings.HasPrefix(e.Value, "https:")
		}
	}
	if p := c.ReadinessProbe; p != nil && p.HTTPGet != nil && p.HTTPGet.Scheme == corev1.URISchemeHTTPS {
		tls = true
	}
	return cmp.Or(port, 8200), tls
}

// serviceOf is the Service that selects all the pods; of several the one with the
// shortest name, since the others (-active, -standby, -ui, -internal) add to it.
func serviceOf(ctx context.Context, c *cluster.Client, namespace string, pods []corev1.Pod) (string, error) {
	list, err := c.Kube.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("listing the Services of namespace %s: %w", namespace, err)
	}
	var names []string
	for _, s := range list.Items {
		selector := labels.SelectorFromSet(s.Spec.Selector)
		if len(s.Spec.Selector) > 0 && !slices.ContainsFunc(pods, func(p corev1.Pod) bool { return !selector.Matches(labels.Set(p.Labels)) }) {
			names = append(names, s.Name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	if len(names) == 0 {
		return "", nil
	}
	return names[0], nil
}

// plan is the server as a plan names it, token and keys aside.
func (b OpenBao) plan() *plans.OpenBao {
	p := &plans.OpenBao{Namespace: b.Namespace, Service: b.Service, Port: b.Port}
	if b.Service == "" {
		p.Pods = b.Pods
	}
	if b.TLS {
		p.TLS = &plans.OpenBaoTLS{ServerName: b.name() + "." + b.Namespace + ".svc"}
	}
	return p
}

// statusOf asks the servers how they are sealed; it needs no token.
func statusOf(ctx context.Context, h cluster.Dialer, c *cluster.Client, b OpenBao) (*openbao.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	endpoints, err := survey.OpenBaoEndpoints(ctx, h, c, b.plan(), "")
	if err != nil {
		return nil, err
	}
	defer survey.CloseOpenBao(endpoints)
	for _, e := range endpoints {
		var s openbao.Status
		if s, err = e.Status(ctx); err == nil {
			return &s, nil
		}
	}
	return nil, err
}
