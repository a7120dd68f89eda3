package cluster

import (
	"testing"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// What nobody has to declare, and what only looks like it.
func TestLeft(t *testing.T) {
	sets := []appsv1.StatefulSet{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: appsv1.StatefulSetSpec{VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}}}}
	meta := func(namespace, name string, labels, annotations map[string]string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, Annotations: annotations}
	}
	with := func(key string) map[string]string { return map[string]string{key: "x"} }
	by := func(o metav1.ObjectMeta, managers ...string) metav1.ObjectMeta {
		for _, m := range managers {
			o.ManagedFields = append(o.ManagedFields, metav1.ManagedFieldsEntry{Manager: m})
		}
		return o
	}
	for _, tc := range []struct {
		resource string
		object   metav1.ObjectMeta
		want     string
	}{
		{"secrets", meta("shop", "by-hand", nil, nil), ""},
		{"secrets", by(meta("shop", "by-hand", nil, nil), "kubectl-create"), ""},
		{"secrets", by(meta("shop", "account", nil, nil), "cert-manager-clusterissuers"), leftOperator},
		{"secrets", by(meta("shop", "account", nil, nil), "cert-manager-clusterissuers", "kubectl-edit"), ""},
		{"secrets", meta("shop", "web-tls", nil, with("cert-manager.io/certificate-name")), leftBroughtBack},
		{"secrets", meta("shop", "token-x", nil, with("kubernetes.io/service-account.name")), leftKubernetes},
		{"secrets", meta("shop", "sh.helm.release.v1.web.v1", map[string]string{"owner": "helm"}, nil), leftHelm},
		{"secrets", meta("kube-system", "k3s-serving", nil, nil), leftK3s},
		{"secrets", meta("kube-system", "dedi.node-password.k3s", nil, nil), leftK3s},
		{"secrets", meta("shop", "k3s-serving", nil, nil), ""},
		{"configmaps", meta("shop", "kube-root-ca.crt", nil, nil), leftKubernetes},
		{"configmaps", meta("shop", "extension-apiserver-authentication", nil, nil), ""},
		{"configmaps", meta("shop", "leader", nil, with("control-plane.alpha.kubernetes.io/leader")), leftKubernetes},
		{"configmaps", meta("kube-system", "coredns", with("objectset.rio.cattle.io/hash"), nil), leftK3s},
		{"configmaps", meta("kube-system", "coredns-custom", nil, nil), ""},
		{"configmaps", meta("shop", "web", nil, with("meta.helm.sh/release-name")), leftHelm},
		{"configmaps", meta("shop", "web", with("kustomize.toolkit.fluxcd.io/name"), nil), leftGitOps},
		{"configmaps", meta("shop", "web", nil, with("argocd.argoproj.io/tracking-id")), leftGitOps},
		{"serviceaccounts", meta("shop", "default", nil, nil), leftKubernetes},
		{"serviceaccounts", meta("kube-system", "job-controller", nil, nil), leftKubernetes},
		{"serviceaccounts", meta("shop", "job-controller", nil, nil), ""},
		{"services", meta("default", "kubernetes", nil, nil), leftKubernetes},
		{"services", meta("shop", "kubernetes", nil, nil), ""},
		{"namespaces", meta("", "kube-system", nil, nil), leftKubernetes},
		{"namespaces", meta("", "shop", nil, nil), leftBroughtBack},
		{"persistentvolumes", meta("", "pvc-1", nil, nil), leftBroughtBack},
		{"persistentvolumeclaims", meta("shop", "data-db-0", nil, nil), leftBroughtBack},
		{"persistentvolumeclaims", meta("shop", "data-db-old", nil, nil), ""},
		{"persistentvolumeclaims", meta("else", "data-db-0", nil, nil), ""},
		{"clusterroles.rbac.authorization.k8s.io", meta("", "cluster-admin", nil, nil), leftKubernetes},
		{"clusterroles.rbac.authorization.k8s.io", meta("", "system:node", nil, nil), leftKubernetes},
		{"clusterroles.rbac.authorization.k8s.io", meta("", "viewer", nil, nil), ""},
		{"customresourcedefinitions.apiextensions.k8s.io", meta("", "helmcharts.helm.cattle.io", nil, nil), leftK3s},
		{"customresourcedefinitions.apiextensions.k8s.io", meta("", "things.example.org", nil, nil), ""},
		{"priorityclasses.scheduling.k8s.io", meta("", "system-node-critical", nil, nil), leftKubernetes},
	} {
		assert.Equal(t, tc.want, left(schema.ParseGroupResource(tc.resource), &tc.object, sets), "%s %s/%s", tc.resource, tc.object.Namespace, tc.object.Name)
	}
	owned := metav1.ObjectMeta{Name: "x", OwnerReferences: []metav1.OwnerReference{{Name: "y"}}}
	assert.Equal(t, leftOwned, left(schema.GroupResource{Resource: "pods"}, &owned, nil))
}

func TestAutomatic(t *testing.T) {
	for _, name := range []string{"kube-controller-manager", "k3s", "deploy@dedi", "cert-manager-cainjector", "local-path-provisioner", "manager"} {
		assert.True(t, automatic(name), name)
	}
	for _, name := range []string{"kubectl", "kubectl-edit", "kubectl-client-side-apply", "k9s", "helm", "node-fetch", FieldManager} {
		assert.False(t, automatic(name), name)
	}
}
