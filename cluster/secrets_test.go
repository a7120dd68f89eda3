package cluster

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
)

func TestSecretComesAlong(t *testing.T) {
	for _, tc := range []struct {
		name   string
		secret corev1.Secret
		want   bool
	}{
		{"TLS", corev1.Secret{Type: corev1.SecretTypeTLS}, true},
		{"cert-manager's", corev1.Secret{Type: corev1.SecretTypeTLS, ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"cert-manager.io/issuer-name": "le"}}}, true},
		{"chosen by a selector", corev1.Secret{Type: corev1.SecretTypeOpaque}, true},
		{"next private key", corev1.Secret{Type: corev1.SecretTypeOpaque, ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"cert-manager.io/next-private-key": "true"}}}, false},
		{"service-account token", corev1.Secret{Type: corev1.SecretTypeServiceAccountToken}, false},
		{"k3s-serving", corev1.Secret{Type: corev1.SecretTypeTLS, ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"listener.cattle.io/fingerprint": "SHA1=…"}}}, false},
		{"Vault Secrets Operator's", corev1.Secret{Type: corev1.SecretTypeTLS, ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{APIVersion: "secrets.hashicorp.com/v1beta1", Kind: "VaultPKISecret"}}}}, false},
		{"its labels alone", corev1.Secret{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/managed-by": "hashicorp-vso", "secrets.hashicorp.com/vso-ownerRefUID": "4711"}}}, false},
		{"its own storage key", corev1.Secret{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/managed-by": "hashicorp-vso"}}}, false},
		{"External Secrets'", corev1.Secret{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{APIVersion: "external-secrets.io/v1", Kind: "ExternalSecret"}}}}, false},
		{"owned by a Certificate", corev1.Secret{Type: corev1.SecretTypeTLS, ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{APIVersion: "cert-manager.io/v1", Kind: "Certificate"}}}}, true},
		{"managed by Helm", corev1.Secret{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/managed-by": "Helm"}}}, true},
	} {
		assert.Equal(t, tc.want, secretComesAlong(tc.secret), tc.name)
	}
}

func TestSecretDiffers(t *testing.T) {
	base := func(change func(*corev1.Secret)) *corev1.Secret {
		s := &corev1.Secret{Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": []byte("c"), "tls.key": []byte("k")},
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "1"}}}
		if change != nil {
			change(s)
		}
		return s
	}
	for _, tc := range []struct {
		name string
		have *corev1.Secret
		want []string
	}{
		{"same", base(nil), nil},
		{"with more labels", base(func(s *corev1.Secret) { s.Labels["more"] = "x" }), nil},
		{"data", base(func(s *corev1.Secret) { s.Data["tls.key"] = []byte("other") }), []string{"data[tls.key]"}},
		{"key lacking and key more", base(func(s *corev1.Secret) { delete(s.Data, "tls.crt"); s.Data["ca.crt"] = nil }), []string{"data[ca.crt]", "data[tls.crt]"}},
		{"type", base(func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }), []string{"type"}},
		{"annotation lacking", base(func(s *corev1.Secret) { s.Annotations = nil }), []string{"annotations[a]"}},
		{"label", base(func(s *corev1.Secret) { s.Labels["l"] = "2" }), []string{"labels[l]"}},
	} {
		assert.Equal(t, tc.want, secretDiffers(base(nil), tc.have), tc.name)
	}
	opaque := &corev1.Secret{}
	assert.Empty(t, secretDiffers(opaque, &corev1.Secret{Type: corev1.SecretTypeOpaque}), "no type is Opaque")
}

// The fake clientset knows no field selectors: every secret is "listed" by type and
// by name, which is told from the real selection in the e2e tests. What this shows is
// that issuers are followed to their keys at all.
func TestFakeClientsetAccountKeys(t *testing.T) {
	issuer := func(kind, namespace, name string, spec map[string]any) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "cert-manager.io/v1", "kind": kind, "spec": spec}}
		u.SetNamespace(namespace)
		u.SetName(name)
		return u
	}
	acme := map[string]any{"acme": map[string]any{"privateKeySecretRef": map[string]any{"name": "account"}}}
	dyn := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{issuers: "IssuerList", clusterIssuers: "ClusterIssuerList"},
		issuer("ClusterIssuer", "", "le", acme), issuer("Issuer", "web", "own", map[string]any{"selfSigned": map[string]any{}}))
	c := &Client{Dynamic: dyn, Kube: fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "cert-manager", Name: "account"}})}
	found := map[string]corev1.Secret{}
	require.NoError(t, c.accountKeys(t.Context(), found))
	require.Contains(t, found, "cert-manager/account")
}
