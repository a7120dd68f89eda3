package cluster

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// TLSSecrets returns the secrets that must be in the cluster before the platform
// is, else certificates are issued anew and run into the CA's rate limit: those of
// type kubernetes.io/tls, the ACME account keys that cert-manager's Issuers and
// ClusterIssuers name, and those that any of the label selectors matches. They are
// as the cluster has them (ApplySecret strips), sorted by namespace and name.
//
// Left out: cert-manager's next private keys, which belong to a request that
// does not come along; service-account tokens, which the cluster makes itself; the
// serving certificates that K3s keeps for itself (kube-system/k3s-serving), which
// it makes for the addresses it has; and what an operator made from OpenBao or
// another store (see ownedByOperator).
func (c *Client) TLSSecrets(ctx context.Context, selectors []string) ([]corev1.Secret, error) {
	options := []metav1.ListOptions{{FieldSelector: fields.OneTermEqualSelector("type", string(corev1.SecretTypeTLS)).String()}}
	for _, s := range selectors {
		if _, err := labels.Parse(s); err != nil {
			return nil, fmt.Errorf("selecting TLS secrets by %q: no label selector: %w", s, err)
		}
		options = append(options, metav1.ListOptions{LabelSelector: s})
	}
	found := map[string]corev1.Secret{}
	for _, o := range options {
		o.Limit = pageSize
		for {
			list, err := c.Kube.CoreV1().Secrets(metav1.NamespaceAll).List(ctx, o)
			if err != nil {
				return nil, fmt.Errorf("listing TLS secrets (%s%s): %w", o.FieldSelector, o.LabelSelector, c.explain(err))
			}
			for _, s := range list.Items {
				found[s.Namespace+"/"+s.Name] = s
			}
			if list.Continue == "" {
				break
			}
			o.Continue = list.Continue
		}
	}
	if err := c.accountKeys(ctx, found); err != nil {
		return nil, err
	}
	var out []corev1.Secret
	for _, key := range slices.Sorted(maps.Keys(found)) {
		if secretComesAlong(found[key]) {
			out = append(out, found[key])
		}
	}
	return out, nil
}

func secretComesAlong(s corev1.Secret) bool {
	if s.Type == corev1.SecretTypeServiceAccountToken {
		return false
	}
	if _, ok := s.Labels["cert-manager.io/next-private-key"]; ok {
		return false
	}
	for key := range s.Annotations {
		// K3s's own dynamic listener notes each name and address it serves here.
		if strings.HasPrefix(key, "listener.cattle.io/") {
			return false
		}
	}
	return !ownedByOperator(s)
}

// ownedByOperator tells whether Vault Secrets Operator or External Secrets made the
// secret, and will again once the store is back. Vault Secrets Operator knows its own
// by their owner's UID, which is another in a new cluster: it refuses a secret that
// was put back by hand ("not the owner of the destination Secret") and never syncs it.
func ownedByOperator(s corev1.Secret) bool {
	for _, owner := range s.OwnerReferences {
		gv, err := schema.ParseGroupVersion(owner.APIVersion)
		if err == nil && (gv.Group == vaultSecretsGroup || gv.Group == externalSecretsGroup) {
			return true
		}
	}
	// The owner's reference is lost where a secret was copied, its labels are not.
	_, made := s.Labels[vaultSecretsOwnerLabel]
	return made || s.Labels["app.kubernetes.io/managed-by"] == "hashicorp-vso"
}

var (
	issuers        = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "issuers"}
	clusterIssuers = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "clusterissuers"}
)

// accountKeys adds the ACME account keys of all issuers. The key of a
// ClusterIssuer lies in a namespace that only cert-manager's command line names:
// every secret of that name is taken.
func (c *Client) accountKeys(ctx context.Context, found map[string]corev1.Secret) error {
	for _, gvr := range []schema.GroupVersionResource{issuers, clusterIssuers} {
		list, err := c.Dynamic.Resource(gvr).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			continue // no cert-manager here
		}
		if err != nil {
			return fmt.Errorf("listing cert-manager's %s for their ACME account keys: %w", gvr.Resource, c.explain(err))
		}
		for _, issuer := range list.Items {
			name, _, _ := unstructured.NestedString(issuer.Object, "spec", "acme", "privateKeySecretRef", "name")
			if name == "" {
				continue
			}
			keys, err := c.Kube.CoreV1().Secrets(issuer.GetNamespace()).List(ctx, metav1.ListOptions{
				FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(),
			})
			if err != nil {
				return fmt.Errorf("reading the ACME account key %s of %s %s: %w", name, issuer.GetKind(), issuer.GetName(), c.explain(err))
			}
			for _, s := range keys.Items {
				found[s.Namespace+"/"+s.Name] = s
			}
		}
	}
	return nil
}

// DifferentError says that an object which was to be created exists already and
// is not the same. Nothing was changed. It names fields, never a secret's values.
type DifferentError struct {
	Kind, Name string // Name is namespace/name where there is a namespace
	Fields     []string
}

func (e *DifferentError) Error() string {
	return fmt.Sprintf("%s %s exists already and differs from the backup in %s; it was left as it is: make the two agree, or leave it out of the restore",
		e.Kind, e.Name, strings.Join(e.Fields, ", "))
}

// ApplyNamespace creates a namespace as it was backed up, less what the server
// made. One that exists is given the labels and annotations that it lacks; a label
// or annotation that it has with another value is a *DifferentError.
func (c *Client) ApplyNamespace(ctx context.Context, ns corev1.Namespace) error {
	want := ns.DeepCopy()
	stripMeta(&want.ObjectMeta)
	want.Status = corev1.NamespaceStatus{}
	api := c.Kube.CoreV1().Namespaces()
	_, err := api.Create(ctx, want, metav1.CreateOptions{FieldManager: FieldManager})
	if err == nil {
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating the namespace %s: %w", ns.Name, c.explain(err))
	}
	have, err := api.Get(ctx, ns.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the namespace %s: %w", ns.Name, c.explain(err))
	}
	if have.DeletionTimestamp != nil {
		return fmt.Errorf("creating the namespace %s: one of that name is being deleted; wait until it is gone", ns.Name)
	}
	if differ := metaDiffers(want.ObjectMeta, have.ObjectMeta, false); len(differ) > 0 {
		return &DifferentError{Kind: "namespace", Name: ns.Name, Fields: differ}
	}
	if len(metaDiffers(want.ObjectMeta, have.ObjectMeta, true)) == 0 {
		return nil
	}
	patch, err := mergePatch(map[string]any{"metadata": map[string]any{"labels": want.Labels, "annotations": want.Annotations}})
	if err != nil {
		return err
	}
	if _, err := api.Patch(ctx, ns.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager}); err != nil {
		return fmt.Errorf("labelling the namespace %s: %w", ns.Name, c.explain(err))
	}
	return nil
}

// ApplySecret creates a secret as it was backed up, less what the server made:
// labels and annotations stay, for cert-manager recognises its certificates by them.
// One that exists with the same type, data, labels and annotations (it may have
// more of the latter two) is left alone; one that differs is a *DifferentError.
func (c *Client) ApplySecret(ctx context.Context, s corev1.Secret) error {
	name := s.Namespace + "/" + s.Name
	if s.Type == corev1.SecretTypeServiceAccountToken {
		return fmt.Errorf("creating the secret %s: it is a service-account token of the old cluster, the new one makes its own", name)
	}
	want := s.DeepCopy()
	stripMeta(&want.ObjectMeta)
	api := c.Kube.CoreV1().Secrets(s.Namespace)
	_, err := api.Create(ctx, want, metav1.CreateOptions{FieldManager: FieldManager})
	if err == nil {
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating the secret %s: %w", name, c.explain(err))
	}
	have, err := api.Get(ctx, s.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the secret %s: %w", name, c.explain(err))
	}
	if differ := secretDiffers(want, have); len(differ) > 0 {
		return &DifferentError{Kind: "secret", Name: name, Fields: differ}
	}
	return nil
}

// SecretValue returns one value of a secret. No error holds a value.
func (c *Client) SecretValue(ctx context.Context, namespace, name, key string) ([]byte, error) {
	doing := fmt.Sprintf("reading the key %q of the secret %s/%s", key, namespace, name)
	s, err := c.Kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %s", doing, c.absent(ctx, namespace, "secret"))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, c.explain(err))
	}
	value, ok := s.Data[key]
	switch {
	case ok:
		return value, nil
	case len(s.Data) == 0:
		return nil, fmt.Errorf("%s: the secret is empty", doing)
	}
	return nil, fmt.Errorf("%s: it has no such key, only %s", doing, strings.Join(slices.Sorted(maps.Keys(s.Data)), ", "))
}

// secretDiffers names the fields in which have is not what want asks for.
func secretDiffers(want, have *corev1.Secret) []string {
	var differ []string
	wantType := want.Type
	if wantType == "" {
		wantType = corev1.SecretTypeOpaque
	}
	if wantType != have.Type {
		differ = append(differ, "type")
	}
	keys := map[string]bool{}
	for k := range want.Data {
		keys[k] = true
	}
	for k := range have.Data {
		keys[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		w, inWant := want.Data[k]
		h, inHave := have.Data[k]
		if inWant != inHave || !bytes.Equal(w, h) {
			differ = append(differ, "data["+k+"]")
		}
	}
	return append(differ, metaDiffers(want.ObjectMeta, have.ObjectMeta, true)...)
}

// metaDiffers names the labels and annotations of want that have has with
// another value or, where lacking counts, not at all.
func metaDiffers(want, have metav1.ObjectMeta, lacking bool) []string {
	var differ []string
	for _, m := range []struct {
		name       string
		want, have map[string]string
	}{{"labels", want.Labels, have.Labels}, {"annotations", want.Annotations, have.Annotations}} {
		for _, k := range slices.Sorted(maps.Keys(m.want)) {
			h, ok := m.have[k]
			if ok && h != m.want[k] || !ok && lacking {
				differ = append(differ, m.name+"["+k+"]")
			}
		}
	}
	return differ
}
