package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/discovery"
)

// pageSize is how many objects one list request asks for.
const pageSize = 500

// Exported says what an export holds, and what it does not.
type Exported struct {
	Objects int
	// Warnings name each resource or API group that the cluster has and the export
	// has not, with the reason: an APIService without a working backend, a custom
	// resource whose conversion webhook is gone, an exclusion that matches nothing.
	Warnings []string
}

// Export writes every object of every resource that can be listed, one JSON object
// a line, as the API server has it: nothing is stripped. Each kind is written once,
// in its group's preferred version. What belongs first when objects are applied again
// comes first (facts of re-applying: namespaces, CRDs, storage classes, PVs, PVCs,
// secrets, config maps, service accounts, RBAC, then workloads, Services, and custom
// resources at the end); within a resource the order is the API server's, by
// namespace and name.
//
// exclude holds resources as "plural" (of the core group) or "plural.group":
// "events", "events.events.k8s.io". Metrics and component statuses, which are
// nobody's objects, are never written.
//
// Objects are read in pages and passed on one by one: memory stays at about one
// object, whatever the cluster holds. What cannot be listed, but is not part of
// Kubernetes itself, becomes a warning; any other failure is an error, and then w has
// an incomplete export.
func (c *Client) Export(ctx context.Context, exclude []string, w io.Writer) (Exported, error) {
	var out Exported
	resources, warnings, err := c.resources(exclude)
	if err != nil {
		return out, fmt.Errorf("exporting objects: asking the API server for its resources: %w", c.explain(err))
	}
	out.Warnings = warnings
	for _, r := range resources {
		err := c.exportResource(ctx, r, func(object []byte) error {
			out.Objects++
			_, err := w.Write(append(object, '\n'))
			return err
		})
		var status apierrors.APIStatus
		switch {
		case err == nil:
		case ctx.Err() == nil && errors.As(err, &status) && !builtIn(r.gvr.Group) && !apierrors.IsUnauthorized(err) && !apierrors.IsForbidden(err):
			out.Warnings = append(out.Warnings, fmt.Sprintf("%s could not be listed and are not in the export: %v", r, err))
		default:
			return out, fmt.Errorf("exporting %s: %w", r, c.explain(err))
		}
	}
	return out, nil
}

// resource is one kind that can be listed.
type resource struct {
	gvr  schema.GroupVersionResource
	kind string
}

func (r resource) String() string { return r.gvr.GroupResource().String() }

func (r resource) path() string {
	if r.gvr.Group == "" {
		return "/api/" + r.gvr.Version + "/" + r.gvr.Resource
	}
	return "/apis/" + r.gvr.Group + "/" + r.gvr.Version + "/" + r.gvr.Resource
}

// resources lists what Export writes, in its order, and a warning for each API
// group that the API server could not say anything about.
func (c *Client) resources(exclude []string) ([]resource, []string, error) {
	var warnings []string
	lists, err := discovery.ServerPreferredResources(c.Kube.Discovery())
	if failed, partial := discovery.GroupDiscoveryFailedErrorGroups(err); partial {
		for _, gv := range slices.SortedFunc(maps.Keys(failed), func(a, b schema.GroupVersion) int { return cmp.Compare(a.String(), b.String()) }) {
			warnings = append(warnings, fmt.Sprintf("the API group %s does not answer, its objects are not in the export: %v; see `kubectl get apiservice %s.%s`", gv, failed[gv], gv.Version, gv.Group))
		}
	} else if err != nil {
		return nil, nil, err
	}
	unmatched := map[schema.GroupResource]bool{}
	for _, e := range exclude {
		unmatched[schema.ParseGroupResource(e)] = true
	}
	skip := maps.Clone(unmatched)
	var all []resource
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, nil, err
		}
		for _, api := range list.APIResources {
			r := resource{gvr: gv.WithResource(api.Name), kind: api.Kind}
			delete(unmatched, r.gvr.GroupResource())
			if !slices.Contains(api.Verbs, "list") || strings.Contains(api.Name, "/") || skip[r.gvr.GroupResource()] || observed(r.gvr.GroupResource()) {
				continue
			}
			all = append(all, r)
		}
	}
	for _, gr := range slices.SortedFunc(maps.Keys(unmatched), func(a, b schema.GroupResource) int { return cmp.Compare(a.String(), b.String()) }) {
		warnings = append(warnings, fmt.Sprintf("the exclusion %q matches no resource of this cluster", gr))
	}
	slices.SortFunc(all, func(a, b resource) int {
		return cmp.Or(cmp.Compare(rank(a.gvr.GroupResource()), rank(b.gvr.GroupResource())),
			cmp.Compare(a.gvr.Group, b.gvr.Group), cmp.Compare(a.gvr.Resource, b.gvr.Resource))
	})
	return all, warnings, nil
}

// observed tells the resources that are measurements of the moment.
func observed(gr schema.GroupResource) bool {
	return gr.Group == "metrics.k8s.io" || strings.HasSuffix(gr.Group, ".metrics.k8s.io") ||
		gr == schema.GroupResource{Resource: "componentstatuses"}
}

// builtIn tells the API groups that Kubernetes itself serves.
func builtIn(group string) bool {
	switch group {
	case "", "apps", "batch", "autoscaling", "policy", "extensions":
		return true
	}
	return strings.HasSuffix(group, ".k8s.io") && !strings.HasSuffix(group, ".x-k8s.io") &&
		slices.Contains([]string{
			"admissionregistration", "apiextensions", "apiregistration", "authentication", "authorization",
			"certificates", "coordination", "discovery", "events", "flowcontrol.apiserver", "internal.apiserver",
			"networking", "node", "rbac.authorization", "resource", "scheduling", "storage", "storagemigration",
		}, strings.TrimSuffix(group, ".k8s.io"))
}

var order = []schema.GroupResource{
	{Resource: "namespaces"},
	{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
	{Group: "storage.k8s.io", Resource: "storageclasses"},
	{Resource: "persistentvolumes"},
	{Resource: "persistentvolumeclaims"},
	{Resource: "secrets"},
	{Resource: "configmaps"},
	{Resource: "serviceaccounts"},
	{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
	{Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
	{Group: "rbac.authorization.k8s.io", Resource: "roles"},
	{Group: "rbac.authorization.k8s.io", Resource: "rolebindings"},
	{Group: "apps", Resource: "daemonsets"},
	{Group: "apps", Resource: "deployments"},
	{Group: "apps", Resource: "statefulsets"},
	{Group: "apps", Resource: "replicasets"},
	{Group: "batch", Resource: "cronjobs"},
	{Group: "batch", Resource: "jobs"},
	{Resource: "replicationcontrollers"},
	{Resource: "pods"},
	{Resource: "services"},
}

// rank is a resource's place: the listed ones, then the rest of Kubernetes, then
// custom resources.
func rank(gr schema.GroupResource) int {
	if i := slices.Index(order, gr); i >= 0 {
		return i
	}
	if builtIn(gr.Group) {
		return len(order)
	}
	return len(order) + 1
}

// exportResource lists one resource in pages.
func (c *Client) exportResource(ctx context.Context, r resource, emit func([]byte) error) error {
	token := ""
	for {
		req := c.Kube.Discovery().RESTClient().Get().AbsPath(r.path()).
			SetHeader("Accept", "application/json").
			Param("limit", strconv.Itoa(pageSize))
		if token != "" {
			req = req.Param("continue", token)
		}
		body, err := req.Stream(ctx)
		if apierrors.IsResourceExpired(err) && token != "" {
			// The snapshot that the pages came from is gone (compacted); the error carries
			// a token that continues after the last object in what is there now.
			var status apierrors.APIStatus
			if errors.As(err, &status) && status.Status().ListMeta.Continue != "" && status.Status().ListMeta.Continue != token {
				token = status.Status().ListMeta.Continue
				continue
			}
		}
		if err != nil {
			return err
		}
		token, err = readList(body, func(item []byte) error {
			object, err := completed(item, r)
			if err != nil {
				return err
			}
			return emit(object)
		})
		body.Close()
		if err != nil {
			return err
		}
		if token == "" {
			return nil
		}
	}
}

// readList reads a Kubernetes list as JSON and hands on its items one by one; it
// returns the token of the next page. The order of the list's own fields is free:
// built-in lists say metadata first, custom ones last.
func readList(r io.Reader, item func([]byte) error) (next string, err error) {
	dec := json.NewDecoder(r)
	if err := expect(dec, '{'); err != nil {
		return "", fmt.Errorf("reading a list: %w", err)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return "", fmt.Errorf("reading a list: %w", err)
		}
		switch key {
		case "metadata":
			var m metav1.ListMeta
			if err := dec.Decode(&m); err != nil {
				return "", fmt.Errorf("reading a list's metadata: %w", err)
			}
			next = m.Continue
		case "items":
			open, err := dec.Token()
			if err != nil {
				return "", fmt.Errorf("reading a list's items: %w", err)
			}
			if open == nil {
				continue // null: an empty list
			}
			if open != json.Delim('[') {
				return "", fmt.Errorf("reading a list's items: found %v, want an array", open)
			}
			for dec.More() {
				var raw json.RawMessage
				if err := dec.Decode(&raw); err != nil {
					return "", fmt.Errorf("reading a list's items: %w", err)
				}
				if err := item(raw); err != nil {
					return "", err
				}
			}
			if err := expect(dec, ']'); err != nil {
				return "", fmt.Errorf("reading a list's items: %w", err)
			}
		default:
			var ignored json.RawMessage
			if err := dec.Decode(&ignored); err != nil {
				return "", fmt.Errorf("reading a list: %w", err)
			}
		}
	}
	if err := expect(dec, '}'); err != nil {
		return "", fmt.Errorf("reading a list: %w", err)
	}
	return next, nil
}

func expect(dec *json.Decoder, want json.Delim) error {
	got, err := dec.Token()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("found %v, want %v", got, want)
	}
	return nil
}

// completed is an item with the apiVersion and kind that built-in lists leave out,
// on one line with its keys sorted. Numbers stay as they are.
func completed(item []byte, r resource) ([]byte, error) {
	var object map[string]any
	if err := utiljson.Unmarshal(item, &object); err != nil {
		return nil, fmt.Errorf("reading an object: %w", err)
	}
	if object == nil {
		return nil, errors.New("reading an object: found null")
	}
	object["apiVersion"], object["kind"] = r.gvr.GroupVersion().String(), r.kind
	return json.Marshal(object)
}

// Namespaces returns all namespaces, sorted by name, as the cluster has them.
func (c *Client) Namespaces(ctx context.Context) ([]corev1.Namespace, error) {
	list, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing namespaces: %w", c.explain(err))
	}
	slices.SortFunc(list.Items, func(a, b corev1.Namespace) int { return cmp.Compare(a.Name, b.Name) })
	return list.Items, nil
}

// claimAnnotations are what the volume binder and provisioners note on a claim
// about the cluster it was bound in.
var claimAnnotations = []string{
	"pv.kubernetes.io/bind-completed",
	"pv.kubernetes.io/bound-by-controller",
	"volume.beta.kubernetes.io/storage-provisioner",
	"volume.kubernetes.io/storage-provisioner",
	"volume.kubernetes.io/selected-node",
}

// Strip takes from an exported object what belongs to the cluster it came from, so
// that it can be created in another: the server's metadata, owner references and
// status of any object; of a Service its addresses, families and whatever ports were
// given to it rather than asked for (a headless one stays headless); of a claim the
// binder's notes; of a volume the claim's UID, which would make it Released.
//
// Whether a nodePort was asked for is read from what it takes away (managedFields):
// it is to be given an object as exported, once.
func Strip(u *unstructured.Unstructured) {
	switch u.GroupVersionKind().GroupKind() {
	case schema.GroupKind{Kind: "Service"}:
		stripService(u) // reads managedFields, so it comes before they go
	case schema.GroupKind{Kind: "PersistentVolumeClaim"}:
		stripAnnotations(u, claimAnnotations...)
	case schema.GroupKind{Kind: "PersistentVolume"}:
		stripAnnotations(u, "pv.kubernetes.io/bound-by-controller")
		unstructured.RemoveNestedField(u.Object, "spec", "claimRef", "uid")
		unstructured.RemoveNestedField(u.Object, "spec", "claimRef", "resourceVersion")
	}
	for _, field := range []string{
		"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink",
		"ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds",
	} {
		unstructured.RemoveNestedField(u.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(u.Object, "status")
}

// stripMeta is Strip for the metadata of a typed object.
func stripMeta(m *metav1.ObjectMeta) {
	m.UID, m.ResourceVersion, m.Generation, m.SelfLink = "", "", 0, ""
	m.CreationTimestamp, m.ManagedFields, m.OwnerReferences = metav1.Time{}, nil, nil
	m.DeletionTimestamp, m.DeletionGracePeriodSeconds = nil, nil
}

func stripAnnotations(u *unstructured.Unstructured, keys ...string) {
	annotations := u.GetAnnotations()
	for _, k := range keys {
		delete(annotations, k)
	}
	u.SetAnnotations(annotations)
}

func stripService(u *unstructured.Unstructured) {
	if ip, _, _ := unstructured.NestedString(u.Object, "spec", "clusterIP"); ip != corev1.ClusterIPNone {
		unstructured.RemoveNestedField(u.Object, "spec", "clusterIP")
		unstructured.RemoveNestedField(u.Object, "spec", "clusterIPs")
	}
	for _, field := range []string{"ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"} {
		unstructured.RemoveNestedField(u.Object, "spec", field)
	}
	ports, _, _ := unstructured.NestedSlice(u.Object, "spec", "ports")
	for _, p := range ports {
		if port, ok := p.(map[string]any); ok && !nodePortAskedFor(u, port) {
			delete(port, "nodePort")
		}
	}
	if ports != nil {
		unstructured.SetNestedSlice(u.Object, ports, "spec", "ports")
	}
}

// nodePortAskedFor tells whether somebody chose a port's nodePort: it stands in
// what kubectl applied last, or a manager of the object owns the field. Allocated
// ones stand in neither.
func nodePortAskedFor(u *unstructured.Unstructured, port map[string]any) bool {
	if port["nodePort"] == nil {
		return false
	}
	var applied corev1.Service
	if s := u.GetAnnotations()[corev1.LastAppliedConfigAnnotation]; s != "" && json.Unmarshal([]byte(s), &applied) == nil {
		for _, p := range applied.Spec.Ports {
			if number, ok := port["nodePort"].(int64); ok && int64(p.NodePort) == number {
				return true
			}
		}
	}
	protocol, _ := port["protocol"].(string)
	key, _ := json.Marshal(map[string]any{"port": port["port"], "protocol": cmp.Or(protocol, "TCP")})
	for _, m := range u.GetManagedFields() {
		if m.FieldsV1 == nil {
			continue
		}
		var owned map[string]any
		if json.Unmarshal(m.FieldsV1.Raw, &owned) != nil {
			continue
		}
		if _, found, _ := unstructured.NestedFieldNoCopy(owned, "f:spec", "f:ports", "k:"+string(key), "f:nodePort"); found {
			return true
		}
	}
	return false
}
