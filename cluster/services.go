package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sunbeam.pt/k3s-dualstack/plans"
)

// ServiceChange is what is to become of one Service, and why.
type ServiceChange struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Type is the Service's type; "Headless" for a ClusterIP Service without one.
	Type string `json:"type"`
	// Families, Policy and ClusterIPs are as the Service has them now.
	Families   []corev1.IPFamily `json:"families,omitempty"`
	Policy     string            `json:"policy,omitempty"`
	ClusterIPs []string          `json:"clusterIPs,omitempty"`
	// Skip says why the Service is left as it is; empty for one that is patched.
	Skip string `json:"skip,omitempty"`
	// WantPolicy and WantFamilies are what the patch sets. WantFamilies is empty
	// where Kubernetes adds the second family by itself.
	WantPolicy   string            `json:"wantPolicy,omitempty"`
	WantFamilies []corev1.IPFamily `json:"wantFamilies,omitempty"`
	// Owner is who else writes the Service, and so could take the patch back.
	Owner Owner `json:"owner"`
}

// String is the Service's namespace/name.
func (s ServiceChange) String() string { return s.Namespace + "/" + s.Name }

// Patch is the JSON merge patch that PatchService sends; nil for a Service that is left.
func (s ServiceChange) Patch() []byte {
	if s.Skip != "" {
		return nil
	}
	spec := map[string]any{"ipFamilyPolicy": s.WantPolicy}
	if len(s.WantFamilies) > 0 {
		spec["ipFamilies"] = s.WantFamilies
	}
	patch, err := mergePatch(map[string]any{"spec": spec})
	if err != nil {
		panic(err) // strings in maps: cannot fail
	}
	return patch
}

// OwnerKind is the sort of tool that an Owner is.
type OwnerKind string

const (
	OwnedByHelm     OwnerKind = "helm"
	OwnedByAddon    OwnerKind = "addon" // a manifest in K3s's server/manifests
	OwnedByArgoCD   OwnerKind = "argocd"
	OwnedByFlux     OwnerKind = "flux"
	OwnedByObject   OwnerKind = "object" // an operator, through an owner reference
	OwnedByManifest OwnerKind = "manifest"
	OwnedByManager  OwnerKind = "manager" // known by its name in managedFields only
)

// Owner is what writes a Service. The zero Owner means that nothing says who does.
type Owner struct {
	Kind OwnerKind `json:"kind,omitempty"`
	Name string    `json:"name,omitempty"`
	// Source says what to set where, so that the Service stays dual-stack.
	Source string `json:"source,omitempty"`
}

// Services returns every Service of the cluster, sorted by namespace and name, with
// what policy would change in it. exclude holds "namespace/name". Nothing is changed.
func (c *Client) Services(ctx context.Context, policy plans.ServicePolicy, exclude []string) ([]ServiceChange, error) {
	list, err := c.Kube.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing Services: %w", c.explain(err))
	}
	changes := make([]ServiceChange, 0, len(list.Items))
	for i := range list.Items {
		changes = append(changes, changeOf(&list.Items[i], policy, exclude))
	}
	slices.SortFunc(changes, func(a, b ServiceChange) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return changes, nil
}

// changeOf applies the rules for one Service.
func changeOf(s *corev1.Service, policy plans.ServicePolicy, exclude []string) ServiceChange {
	change := ServiceChange{
		Namespace: s.Namespace, Name: s.Name,
		Type:     string(cmp.Or(s.Spec.Type, corev1.ServiceTypeClusterIP)),
		Families: s.Spec.IPFamilies, ClusterIPs: s.Spec.ClusterIPs,
	}
	if s.Spec.IPFamilyPolicy != nil {
		change.Policy = string(*s.Spec.IPFamilyPolicy)
	}
	headless := s.Spec.ClusterIP == corev1.ClusterIPNone
	if headless {
		change.Type = "Headless"
	}
	change.Owner = ownerOf(&s.ObjectMeta, policy)

	switch name := s.Namespace + "/" + s.Name; {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		change.Skip = "ExternalName: it has no addresses"
	case name == "default/kubernetes":
		change.Skip = "the API server owns it"
	case name == "kube-system/kube-dns":
		change.Skip = "K3s owns it (cluster-dns)"
	case slices.Contains(exclude, name):
		change.Skip = "excluded by the plan"
	case policy == plans.ServicesKeep:
		change.Skip = "the plan keeps Services as they are"
	case headless && len(s.Spec.Selector) == 0:
		change.Skip = "headless without a selector: its endpoints are its owner's"
	case len(s.Spec.IPFamilies) == 2:
		change.Skip = "dual-stack already"
	default:
		change.WantPolicy = string(policy)
		// With this policy and one address already (made before the cluster was
		// dual-stack), the policy alone is a silent no-op: the families must be named.
		if s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
			change.WantFamilies = bothFamilies(s.Spec.IPFamilies)
		}
	}
	return change
}

// bothFamilies are the two families with those that are there first.
func bothFamilies(have []corev1.IPFamily) []corev1.IPFamily {
	if len(have) > 0 && have[0] == corev1.IPv6Protocol {
		return []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
	}
	return []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
}

// ownerOf reads who writes an object from its labels, annotations, owner
// references and managers, the one that has the last word first: what GitOps
// reconciles, it reconciles over Helm and over manifests.
func ownerOf(m *metav1.ObjectMeta, policy plans.ServicePolicy) Owner {
	field := "ipFamilyPolicy: " + string(policy)
	named := func(namespace, name string) string {
		if namespace == "" {
			return name
		}
		return namespace + "/" + name
	}
	if id := m.Annotations["argocd.argoproj.io/tracking-id"]; id != "" {
		app, _, _ := strings.Cut(id, ":")
		return Owner{OwnedByArgoCD, app, fmt.Sprintf("in the repository of the Argo CD application %s, set spec.%s on this Service (or its chart's value)", app, field)}
	}
	if app := m.Labels["argocd.argoproj.io/instance"]; app != "" {
		return Owner{OwnedByArgoCD, app, fmt.Sprintf("in the repository of the Argo CD application %s, set spec.%s on this Service (or its chart's value)", app, field)}
	}
	if name := m.Labels["helm.toolkit.fluxcd.io/name"]; name != "" {
		name = named(m.Labels["helm.toolkit.fluxcd.io/namespace"], name)
		return Owner{OwnedByFlux, "HelmRelease " + name, fmt.Sprintf("in the values of the HelmRelease %s, set the chart's %s (often service.%s)", name, field, field)}
	}
	if name := m.Labels["kustomize.toolkit.fluxcd.io/name"]; name != "" {
		name = named(m.Labels["kustomize.toolkit.fluxcd.io/namespace"], name)
		return Owner{OwnedByFlux, "Kustomization " + name, fmt.Sprintf("in the manifests of the Kustomization %s, set spec.%s on this Service", name, field)}
	}
	if name := m.Annotations["objectset.rio.cattle.io/owner-name"]; name != "" {
		full := named(m.Annotations["objectset.rio.cattle.io/owner-namespace"], name)
		if gvk := m.Annotations["objectset.rio.cattle.io/owner-gvk"]; gvk != "" && !strings.HasSuffix(gvk, "Kind=Addon") {
			_, kind, _ := strings.Cut(gvk, "Kind=")
			return Owner{OwnedByObject, kind + " " + full, fmt.Sprintf("on the %s %s, set what becomes spec.%s", kind, full, field)}
		}
		return Owner{OwnedByAddon, full, fmt.Sprintf("in the manifest of the addon %s (server/manifests on the server), set spec.%s on this Service", full, field)}
	}
	if name := m.Annotations["meta.helm.sh/release-name"]; name != "" {
		name = named(m.Annotations["meta.helm.sh/release-namespace"], name)
		return Owner{OwnedByHelm, name, fmt.Sprintf("in the values of the Helm release %s, set the chart's %s (often service.%s; for a chart that K3s installs, in a HelmChartConfig)", name, field, field)}
	}
	if m.Labels["app.kubernetes.io/managed-by"] == "Helm" {
		name := cmp.Or(m.Labels["app.kubernetes.io/instance"], m.Labels["release"], m.Name)
		return Owner{OwnedByHelm, name, fmt.Sprintf("in the values of the Helm release %s, set the chart's %s (often service.%s)", name, field, field)}
	}
	for _, ref := range m.OwnerReferences {
		if ref.Controller != nil && *ref.Controller {
			name := ref.Kind + " " + named(m.Namespace, ref.Name)
			return Owner{OwnedByObject, name, fmt.Sprintf("on the %s, set what becomes spec.%s", name, field)}
		}
	}
	if _, ok := m.Annotations[corev1.LastAppliedConfigAnnotation]; ok {
		return Owner{OwnedByManifest, "kubectl apply", fmt.Sprintf("in the manifest that is applied, set spec.%s", field)}
	}
	return managerOf(m, field)
}

// managerOf is the owner as far as managedFields tell it: whoever wrote the spec
// last, apart from this project.
func managerOf(m *metav1.ObjectMeta, field string) Owner {
	var last *metav1.ManagedFieldsEntry
	for i := range m.ManagedFields {
		e := &m.ManagedFields[i]
		if e.Manager == FieldManager || e.Subresource != "" || e.FieldsV1 == nil || !strings.Contains(string(e.FieldsV1.Raw), `"f:spec"`) {
			continue
		}
		if last == nil || e.Time != nil && (last.Time == nil || e.Time.After(last.Time.Time)) {
			last = e
		}
	}
	if last == nil {
		return Owner{}
	}
	switch name := last.Manager; {
	case strings.HasPrefix(name, "argocd"):
		return Owner{OwnedByArgoCD, name, fmt.Sprintf("in the repository of the Argo CD application, set spec.%s on this Service", field)}
	case name == "kustomize-controller" || name == "helm-controller":
		return Owner{OwnedByFlux, name, fmt.Sprintf("in what %s applies, set spec.%s on this Service", name, field)}
	case name == "helm":
		return Owner{OwnedByHelm, name, fmt.Sprintf("in the values of its Helm release, set the chart's %s", field)}
	case strings.HasPrefix(name, "deploy@"):
		return Owner{OwnedByAddon, name, fmt.Sprintf("in its manifest in server/manifests on the server, set spec.%s", field)}
	case strings.HasPrefix(name, "kubectl"):
		return Owner{OwnedByManifest, name, fmt.Sprintf("in the manifest that is applied, set spec.%s", field)}
	default:
		return Owner{OwnedByManager, name, fmt.Sprintf("in what %s writes, set spec.%s", name, field)}
	}
}

// ErrStillSingleStack is wrapped by what PatchService returns when the API server
// accepted the patch and gave the Service no second family: so it does where the
// cluster is not dual-stack.
var ErrStillSingleStack = errors.New("the API server accepted the patch and the Service still has one family; the cluster is not dual-stack: compare `kubectl get servicecidr kubernetes` with the plan")

// PatchService makes a Service dual-stack as change says: a dry run on the server
// first, then the patch, each followed by the assertion that the Service has two
// families and kept its first address. A Service that became dual-stack meanwhile
// is left alone, so it may be called again. A change with a Skip is an error.
func (c *Client) PatchService(ctx context.Context, change ServiceChange) error {
	if change.Skip != "" {
		return fmt.Errorf("patching the Service %s: it is to be left as it is: %s", change, change.Skip)
	}
	api := c.Kube.CoreV1().Services(change.Namespace)
	before, err := api.Get(ctx, change.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("patching the Service %s: %w", change, c.explain(err))
	}
	if len(before.Spec.IPFamilies) == 2 {
		return nil
	}
	// The Service may have changed since the change was computed.
	now := changeOf(before, plans.ServicePolicy(change.WantPolicy), nil)
	if now.Skip != "" {
		return fmt.Errorf("patching the Service %s: it changed meanwhile and is to be left as it is: %s", change, now.Skip)
	}
	for _, try := range []struct {
		name   string
		dryRun []string
	}{{"dry run of the patch", []string{metav1.DryRunAll}}, {"patch", nil}} {
		after, err := api.Patch(ctx, change.Name, types.MergePatchType, now.Patch(), metav1.PatchOptions{FieldManager: FieldManager, DryRun: try.dryRun})
		if err != nil {
			return fmt.Errorf("%s of the Service %s: %w", try.name, change, c.explain(err))
		}
		if err := becameDual(before, after); err != nil {
			return fmt.Errorf("%s of the Service %s: %w", try.name, change, err)
		}
	}
	return nil
}

// becameDual asserts what a patch is for: two families, the old one first with its
// address.
func becameDual(before, after *corev1.Service) error {
	if len(after.Spec.IPFamilies) != 2 {
		return ErrStillSingleStack
	}
	if len(before.Spec.IPFamilies) > 0 && before.Spec.IPFamilies[0] != after.Spec.IPFamilies[0] {
		return fmt.Errorf("its first family would change from %s to %s", before.Spec.IPFamilies[0], after.Spec.IPFamilies[0])
	}
	if before.Spec.ClusterIP != after.Spec.ClusterIP {
		return fmt.Errorf("its first address would change from %s to %s", before.Spec.ClusterIP, after.Spec.ClusterIP)
	}
	if before.Spec.ClusterIP != corev1.ClusterIPNone && len(after.Spec.ClusterIPs) != 2 {
		return fmt.Errorf("it has two families and %d addresses", len(after.Spec.ClusterIPs))
	}
	return nil
}
