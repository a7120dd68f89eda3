package cluster

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sunbeam.pt/k3s-dualstack/plans"
)

var (
	v4 = []corev1.IPFamily{corev1.IPv4Protocol}
	v6 = []corev1.IPFamily{corev1.IPv6Protocol}
)

// svc is a Service of a single-stack cluster.
func svc(name string, change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.43.0.7", ClusterIPs: []string{"10.43.0.7"},
			IPFamilies: v4, IPFamilyPolicy: new(corev1.IPFamilyPolicySingleStack), Selector: map[string]string{"app": name},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

func headless(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }

func TestServiceRules(t *testing.T) {
	const onlyPolicy = `{"spec":{"ipFamilyPolicy":"PreferDualStack"}}`
	const both = `{"spec":{"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack"}}`
	for _, tc := range []struct {
		name    string
		service *corev1.Service
		policy  plans.ServicePolicy
		patch   string
		skip    string
	}{
		{name: "ClusterIP", service: svc("a", nil), patch: onlyPolicy},
		{name: "NodePort", service: svc("a", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }), patch: onlyPolicy},
		{name: "LoadBalancer", service: svc("a", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }), patch: onlyPolicy},
		{name: "without a selector", service: svc("a", func(s *corev1.Service) { s.Spec.Selector = nil }), patch: onlyPolicy},
		{name: "RequireDualStack", service: svc("a", nil), policy: plans.ServicesRequireDualStack, patch: `{"spec":{"ipFamilyPolicy":"RequireDualStack"}}`},
		{name: "PreferDualStack with one address", service: svc("a", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyPreferDualStack) }), patch: both},
		{name: "PreferDualStack with one IPv6 address", service: svc("a", func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = new(corev1.IPFamilyPolicyPreferDualStack), v6
		}), patch: `{"spec":{"ipFamilies":["IPv6","IPv4"],"ipFamilyPolicy":"PreferDualStack"}}`},
		{name: "headless with a selector", service: svc("a", headless), patch: onlyPolicy},
		{name: "headless PreferDualStack", service: svc("a", func(s *corev1.Service) {
			headless(s)
			s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyPreferDualStack)
		}), patch: both},
		{name: "headless without a selector", service: svc("a", func(s *corev1.Service) { headless(s); s.Spec.Selector = nil }), skip: "headless without a selector: its endpoints are its owner's"},
		{name: "ExternalName", service: svc("a", func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}
		}), skip: "ExternalName: it has no addresses"},
		{name: "the API server's", service: svc("kubernetes", func(s *corev1.Service) { s.Namespace = "default" }), skip: "the API server owns it"},
		{name: "CoreDNS's", service: svc("kube-dns", func(s *corev1.Service) { s.Namespace = "kube-system" }), skip: "K3s owns it (cluster-dns)"},
		{name: "kubernetes elsewhere", service: svc("kubernetes", nil), patch: onlyPolicy},
		{name: "excluded", service: svc("out", nil), skip: "excluded by the plan"},
		{name: "of the same name elsewhere", service: svc("out", func(s *corev1.Service) { s.Namespace = "other" }), patch: onlyPolicy},
		{name: "kept", service: svc("a", nil), policy: plans.ServicesKeep, skip: "the plan keeps Services as they are"},
		{name: "dual-stack", service: svc("a", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv4", "IPv6"} }), skip: "dual-stack already"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			policy := tc.policy
			if policy == "" {
				policy = plans.ServicesPreferDualStack
			}
			change := changeOf(tc.service, policy, []string{"web/out"})
			assert.Equal(t, tc.skip, change.Skip)
			if tc.skip != "" {
				assert.Nil(t, change.Patch())
				return
			}
			require.JSONEq(t, tc.patch, string(change.Patch()))
		})
	}
}

func TestOwnerOf(t *testing.T) {
	managed := func(manager, fields, subresource string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Subresource: subresource, FieldsV1: &metav1.FieldsV1{Raw: []byte(fields)}}
	}
	for _, tc := range []struct {
		name string
		meta metav1.ObjectMeta
		want Owner
	}{
		{"nobody", metav1.ObjectMeta{}, Owner{}},
		{"helm", metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/managed-by": "Helm"}, Annotations: map[string]string{"meta.helm.sh/release-name": "pg", "meta.helm.sh/release-namespace": "data"}},
			Owner{OwnedByHelm, "data/pg", "in the values of the Helm release data/pg, set the chart's ipFamilyPolicy: PreferDualStack (often service.ipFamilyPolicy: PreferDualStack; for a chart that K3s installs, in a HelmChartConfig)"}},
		{"helm template", metav1.ObjectMeta{Name: "x", Labels: map[string]string{"app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/instance": "pg"}},
			Owner{OwnedByHelm, "pg", "in the values of the Helm release pg, set the chart's ipFamilyPolicy: PreferDualStack (often service.ipFamilyPolicy: PreferDualStack)"}},
		{"addon", metav1.ObjectMeta{Annotations: map[string]string{"objectset.rio.cattle.io/owner-gvk": "k3s.cattle.io/v1, Kind=Addon", "objectset.rio.cattle.io/owner-name": "metrics-server-service", "objectset.rio.cattle.io/owner-namespace": "kube-system"}},
			Owner{OwnedByAddon, "kube-system/metrics-server-service", "in the manifest of the addon kube-system/metrics-server-service (server/manifests on the server), set spec.ipFamilyPolicy: PreferDualStack on this Service"}},
		{"another owner of rancher's kind", metav1.ObjectMeta{Annotations: map[string]string{"objectset.rio.cattle.io/owner-gvk": "example.org/v1, Kind=App", "objectset.rio.cattle.io/owner-name": "x"}},
			Owner{OwnedByObject, "App x", "on the App x, set what becomes spec.ipFamilyPolicy: PreferDualStack"}},
		{"argocd over helm", metav1.ObjectMeta{Annotations: map[string]string{"argocd.argoproj.io/tracking-id": "shop:/Service:web/a", "meta.helm.sh/release-name": "pg"}},
			Owner{OwnedByArgoCD, "shop", "in the repository of the Argo CD application shop, set spec.ipFamilyPolicy: PreferDualStack on this Service (or its chart's value)"}},
		{"argocd by label", metav1.ObjectMeta{Labels: map[string]string{"argocd.argoproj.io/instance": "shop"}},
			Owner{OwnedByArgoCD, "shop", "in the repository of the Argo CD application shop, set spec.ipFamilyPolicy: PreferDualStack on this Service (or its chart's value)"}},
		{"flux kustomization", metav1.ObjectMeta{Labels: map[string]string{"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}},
			Owner{OwnedByFlux, "Kustomization flux-system/apps", "in the manifests of the Kustomization flux-system/apps, set spec.ipFamilyPolicy: PreferDualStack on this Service"}},
		{"flux release over helm", metav1.ObjectMeta{Labels: map[string]string{"helm.toolkit.fluxcd.io/name": "pg", "helm.toolkit.fluxcd.io/namespace": "data"}, Annotations: map[string]string{"meta.helm.sh/release-name": "pg"}},
			Owner{OwnedByFlux, "HelmRelease data/pg", "in the values of the HelmRelease data/pg, set the chart's ipFamilyPolicy: PreferDualStack (often service.ipFamilyPolicy: PreferDualStack)"}},
		{"operator", metav1.ObjectMeta{Namespace: "data", OwnerReferences: []metav1.OwnerReference{{Kind: "Cluster", Name: "pg", Controller: new(true)}}},
			Owner{OwnedByObject, "Cluster data/pg", "on the Cluster data/pg, set what becomes spec.ipFamilyPolicy: PreferDualStack"}},
		{"kubectl apply", metav1.ObjectMeta{Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: "{}"}},
			Owner{OwnedByManifest, "kubectl apply", "in the manifest that is applied, set spec.ipFamilyPolicy: PreferDualStack"}},
		{"managers", metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{
			managed("k3s", `{"f:status":{}}`, "status"), managed(FieldManager, `{"f:spec":{}}`, ""), managed("labeller", `{"f:metadata":{}}`, ""), managed("kustomize-controller", `{"f:spec":{}}`, "")}},
			Owner{OwnedByFlux, "kustomize-controller", "in what kustomize-controller applies, set spec.ipFamilyPolicy: PreferDualStack on this Service"}},
		{"K3s's deploy controller", metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{managed("deploy@server", `{"f:spec":{}}`, "")}},
			Owner{OwnedByAddon, "deploy@server", "in its manifest in server/manifests on the server, set spec.ipFamilyPolicy: PreferDualStack"}},
		{"a manager", metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{managed("sunbeam", `{"f:spec":{}}`, "")}},
			Owner{OwnedByManager, "sunbeam", "in what sunbeam writes, set spec.ipFamilyPolicy: PreferDualStack"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			assert.Equal(t, tc.want, ownerOf(&tc.meta, plans.ServicesPreferDualStack))
		})
	}
}

func TestBecameDual(t *testing.T) {
	before := svc("a", nil)
	after := func(change func(*corev1.Service)) *corev1.Service {
		return svc("a", func(s *corev1.Service) {
			s.Spec.IPFamilies, s.Spec.ClusterIPs = []corev1.IPFamily{"IPv4", "IPv6"}, []string{"10.43.0.7", "fd43::7"}
			change(s)
		})
	}
	require.NoError(t, becameDual(before, after(func(*corev1.Service) {})))
	require.ErrorIs(t, becameDual(before, svc("a", nil)), ErrStillSingleStack)
	require.ErrorContains(t, becameDual(before, after(func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv6", "IPv4"} })), "first family would change from IPv4 to IPv6")
	require.ErrorContains(t, becameDual(before, after(func(s *corev1.Service) { s.Spec.ClusterIP = "10.43.0.8" })), "first address would change")
	require.ErrorContains(t, becameDual(before, after(func(s *corev1.Service) { s.Spec.ClusterIPs = s.Spec.ClusterIPs[:1] })), "two families and 1 addresses")
	require.NoError(t, becameDual(svc("a", headless), after(headless)))
}
