package cluster

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestServicePodsAndVolumes(t *testing.T) {
	object := func(name string, labels map[string]string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "openbao", Name: name, Labels: labels}
	}
	app := map[string]string{"app": "openbao"}
	claim := func(volume, claim string) corev1.Volume {
		return corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}
	}
	c := &Client{Kube: fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "openbao"}},
		&corev1.Service{ObjectMeta: object("openbao", nil), Spec: corev1.ServiceSpec{Selector: app}},
		&corev1.Service{ObjectMeta: object("outside", nil)},
		&corev1.Service{ObjectMeta: object("idle", nil), Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "idle"}}},
		&corev1.Pod{ObjectMeta: object("openbao-1", app)},
		&corev1.Pod{ObjectMeta: object("openbao-0", app), Spec: corev1.PodSpec{Volumes: []corev1.Volume{
			claim("data", "data-openbao-0"), claim("audit", "audit-openbao-0"), claim("again", "data-openbao-0"),
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
			{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}}},
		&corev1.Pod{ObjectMeta: object("other", map[string]string{"app": "other"})},
	)}
	pods, err := c.ServicePods(t.Context(), "openbao", "openbao")
	require.NoError(t, err)
	assert.Equal(t, []string{"openbao-0", "openbao-1"}, pods, "none of them is ready")
	for _, tc := range []struct{ namespace, service, want string }{
		{"bao", "openbao", "finding the pods of the Service bao/openbao: there is no namespace bao"},
		{"openbao", "bao", "finding the pods of the Service openbao/bao: there is no such Service"},
		{"openbao", "outside", "it selects none (it has no selector)"},
		{"openbao", "idle", "no pod has the labels that it selects (app=idle)"},
	} {
		_, err := c.ServicePods(t.Context(), tc.namespace, tc.service)
		assert.ErrorContains(t, err, tc.want)
	}

	claims, err := c.PodVolumes(t.Context(), "openbao", "openbao-0")
	require.NoError(t, err)
	assert.Equal(t, []string{"audit-openbao-0", "data-openbao-0", "openbao-0-scratch"}, claims)
	claims, err = c.PodVolumes(t.Context(), "openbao", "openbao-1")
	require.NoError(t, err)
	assert.Empty(t, claims)
	_, err = c.PodVolumes(t.Context(), "openbao", "openbao-2")
	assert.ErrorContains(t, err, "reading the volumes of the pod openbao/openbao-2: there is no such pod")
}

func TestSecretValue(t *testing.T) {
	c := &Client{Kube: fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "openbao"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "openbao", Name: "keys"}, Data: map[string][]byte{"unseal": []byte("hush"), "token": []byte("hush")}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "openbao", Name: "empty"}},
	)}
	value, err := c.SecretValue(t.Context(), "openbao", "keys", "unseal")
	require.NoError(t, err)
	assert.Equal(t, "hush", string(value))
	for _, tc := range []struct{ namespace, name, key, want string }{
		{"bao", "keys", "unseal", `reading the key "unseal" of the secret bao/keys: there is no namespace bao`},
		{"openbao", "key", "unseal", "there is no such secret"},
		{"openbao", "keys", "unsael", "it has no such key, only token, unseal"},
		{"openbao", "empty", "unseal", "the secret is empty"},
	} {
		_, err := c.SecretValue(t.Context(), tc.namespace, tc.name, tc.key)
		assert.ErrorContains(t, err, tc.want)
		assert.NotContains(t, err.Error(), "hush")
	}
}
