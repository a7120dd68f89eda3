package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// What makes secrets from OpenBao's.
const (
	vaultSecretsGroup      = "secrets.hashicorp.com"
	vaultSecretsOwnerLabel = vaultSecretsGroup + "/vso-ownerRefUID"
	externalSecretsGroup   = "external-secrets.io"
)

// synced is a kind of object whose operator makes a secret from it.
type synced struct {
	group, resource string
	versions        []string // the first that is served is read
	// unsynced says what its status lacks, "" if nothing.
	unsynced func(*unstructured.Unstructured) string
	// destination is the secret that the operator must have made; "" asks for none.
	// owned: it must be this object's own.
	destination func(*unstructured.Unstructured) (name string, owned bool)
}

var syncedKinds = []synced{
	{vaultSecretsGroup, "vaultstaticsecrets", []string{"v1beta1"}, vaultUnsynced, vaultDestination},
	{vaultSecretsGroup, "vaultdynamicsecrets", []string{"v1beta1"}, vaultUnsynced, vaultDestination},
	{vaultSecretsGroup, "vaultpkisecrets", []string{"v1beta1"}, vaultPKIUnsynced, vaultDestination},
	{externalSecretsGroup, "externalsecrets", []string{"v1", "v1beta1"}, externalUnsynced, externalDestination},
}

// WaitSecretsSynced waits until every object from which Vault Secrets Operator
// (VaultStaticSecret, VaultDynamicSecret, VaultPKISecret) or External Secrets
// (ExternalSecret) makes a secret is synced: its status says so of its present
// generation, and the secret is there and is its own. The secret tells apart a status
// that was copied from another cluster, where the object had another UID. Kinds that
// the cluster does not have are not waited for. The error names each object, with what
// its operator last said of it. t may be nil.
func (c *Client) WaitSecretsSynced(ctx context.Context, t Detailer) error {
	var last []unsyncedObject
	return c.wait(ctx, "the secrets that operators make to be synced", t, func(ctx context.Context) ([]string, error) {
		now, err := c.unsyncedObjects(ctx)
		if err != nil {
			return nil, err
		}
		last = now
		var missing []string
		for _, o := range now {
			missing = append(missing, o.String())
		}
		return missing, nil
	}, func(ctx context.Context) []string {
		var long []string
		for _, o := range last {
			said := o.String()
			if event := c.lastWarning(ctx, o.namespace, o.kind, o.name); event != "" && !strings.Contains(said, event) {
				said += "; last warning: " + event
			}
			long = append(long, said)
		}
		return long
	})
}

// unsyncedObject is an object whose secret is not synced, and why.
type unsyncedObject struct {
	kind, namespace, name, why string
}

func (o unsyncedObject) String() string {
	return fmt.Sprintf("%s %s/%s: %s", o.kind, o.namespace, o.name, o.why)
}

// unsyncedObjects lists the objects that are not synced, kind by kind, sorted as the API sorts.
func (c *Client) unsyncedObjects(ctx context.Context) ([]unsyncedObject, error) {
	var out []unsyncedObject
	for _, kind := range syncedKinds {
		items, err := c.listServed(ctx, kind)
		if err != nil {
			return nil, err
		}
		for i := range items {
			u := &items[i]
			why := kind.unsynced(u)
			if why == "" {
				if why, err = c.destinationLacks(ctx, kind, u); err != nil {
					return nil, err
				}
			}
			if why != "" {
				out = append(out, unsyncedObject{u.GetKind(), u.GetNamespace(), u.GetName(), why})
			}
		}
	}
	return out, nil
}

// listServed lists all objects of a kind in the first of its versions that the cluster
// serves; none if it serves none.
func (c *Client) listServed(ctx context.Context, kind synced) ([]unstructured.Unstructured, error) {
	for _, version := range kind.versions {
		list, err := c.Dynamic.Resource(schema.GroupVersionResource{Group: kind.group, Version: version, Resource: kind.resource}).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing %s.%s: %w", kind.resource, kind.group, err)
		}
		return list.Items, nil
	}
	return nil, nil
}

// destinationLacks says what is wrong with the secret that an object's operator makes, "" if nothing.
func (c *Client) destinationLacks(ctx context.Context, kind synced, u *unstructured.Unstructured) (string, error) {
	name, owned := kind.destination(u)
	if name == "" {
		return "", nil
	}
	s, err := c.Kube.CoreV1().Secrets(u.GetNamespace()).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("its secret %s is not there", name), nil
	case err != nil:
		return "", fmt.Errorf("reading the secret %s/%s of %s %s: %w", u.GetNamespace(), name, u.GetKind(), u.GetName(), err)
	case owned && !ownedBy(s, u.GetUID()):
		return fmt.Sprintf("its secret %s belongs to another or to nobody; if it was put there by hand, remove it: kubectl -n %s delete secret %s", name, u.GetNamespace(), name), nil
	}
	return "", nil
}

func ownedBy(s *corev1.Secret, uid types.UID) bool {
	return slices.ContainsFunc(s.OwnerReferences, func(o metav1.OwnerReference) bool { return o.UID == uid })
}

const notSynced = "its operator has not synced it yet"

// vaultUnsynced reads the status of VaultStaticSecret and VaultDynamicSecret.
// lastGeneration is set when the object was synced, or after every attempt in
// versions that have conditions.
func vaultUnsynced(u *unstructured.Unstructured) string {
	last, _, _ := unstructured.NestedInt64(u.Object, "status", "lastGeneration")
	why := unhealthy(u)
	if why == "" && last != u.GetGeneration() {
		return notSynced
	}
	return why
}

// vaultPKIUnsynced reads the status of VaultPKISecret, which says by itself whether
// the certificate was issued; lastGeneration came later, and is set after every attempt.
func vaultPKIUnsynced(u *unstructured.Unstructured) string {
	if why := unhealthy(u); why != "" {
		return why
	}
	if said, _, _ := unstructured.NestedString(u.Object, "status", "error"); said != "" {
		return said
	}
	valid, _, _ := unstructured.NestedBool(u.Object, "status", "valid")
	last, told, _ := unstructured.NestedInt64(u.Object, "status", "lastGeneration")
	if !valid || told && last != u.GetGeneration() {
		return notSynced
	}
	return ""
}

// unhealthy says what the conditions of Vault Secrets Operator's objects say against
// an object, "" if nothing; older versions have no conditions. SecretSynced is asked
// only where the others are missing: it stays False after an outage of the server
// until the secret's data change (hashicorp/vault-secrets-operator#1225).
func unhealthy(u *unstructured.Unstructured) string {
	for _, kind := range []string{"Ready", "Healthy", "SecretSynced"} {
		if c := condition(u, kind); c != nil {
			return c.against(u)
		}
	}
	return ""
}

// externalUnsynced reads the status of ExternalSecret.
func externalUnsynced(u *unstructured.Unstructured) string {
	c := condition(u, "Ready")
	if c == nil {
		return notSynced
	}
	if why := c.against(u); why != "" {
		return why
	}
	// <generation>-<hash of the metadata>, as of the last sync.
	version, _, _ := unstructured.NestedString(u.Object, "status", "syncedResourceVersion")
	if !strings.HasPrefix(version, fmt.Sprintf("%d-", u.GetGeneration())) {
		return notSynced
	}
	return ""
}

// reported is a condition of an object's status.
type reported struct {
	kind, status, reason, message string
	generation                    int64 // that was observed; 0 if it does not say
}

func condition(u *unstructured.Unstructured, kind string) *reported {
	all, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, one := range all {
		m, ok := one.(map[string]any)
		if !ok || m["type"] != kind {
			continue
		}
		c := &reported{kind: kind}
		c.status, _ = m["status"].(string)
		c.reason, _ = m["reason"].(string)
		c.message, _ = m["message"].(string)
		c.generation, _ = m["observedGeneration"].(int64)
		return c
	}
	return nil
}

// against says what a condition that should be true says against its object, "" if nothing.
func (c *reported) against(u *unstructured.Unstructured) string {
	switch {
	case c.generation != 0 && c.generation != u.GetGeneration():
		return notSynced
	case c.status == string(metav1.ConditionTrue):
		return ""
	}
	said := fmt.Sprintf("%s is %s", c.kind, c.status)
	if c.reason != "" {
		said += ": " + c.reason
	}
	if c.message != "" {
		said += ": " + strings.TrimSpace(c.message)
	}
	return said
}

func vaultDestination(u *unstructured.Unstructured) (name string, owned bool) {
	name, _, _ = unstructured.NestedString(u.Object, "spec", "destination", "name")
	owned, _, _ = unstructured.NestedBool(u.Object, "spec", "destination", "create")
	return name, owned
}

func externalDestination(u *unstructured.Unstructured) (name string, owned bool) {
	policy, _, _ := unstructured.NestedString(u.Object, "spec", "target", "creationPolicy")
	if policy == "None" {
		return "", false
	}
	if name, _, _ = unstructured.NestedString(u.Object, "spec", "target", "name"); name == "" {
		name = u.GetName()
	}
	return name, policy == "" || policy == "Owner"
}
