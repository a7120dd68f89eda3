package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// Drift is how a cluster differs from the objects that it is said to be made from.
// It holds no data of secrets, nor of what may well hold one (see shown).
type Drift struct {
	// Same counts the objects that are as they are said to be.
	Same int `json:"same"`
	// Changed are objects of which fields differ.
	Changed []ChangedObject `json:"changed"`
	// Missing are objects that the cluster does not have.
	Missing []Object `json:"missing"`
	// Extra are objects that only the cluster has, and that no controller made.
	Extra []ExtraObject `json:"extra"`
	// Uncompared are objects that the API server would not compare, wholly or in part.
	Uncompared []UncomparedObject `json:"uncompared"`
	// Left counts the other objects that only the cluster has, by the reason for
	// which nobody has to declare them.
	Left map[string]int `json:"left"`
	// Warnings name what the cluster could not be asked for.
	Warnings []string `json:"warnings"`
}

// None tells that nothing differs, as far as it could be compared.
func (d *Drift) None() bool { return len(d.Changed)+len(d.Missing)+len(d.Extra) == 0 }

// Object names one object.
type Object struct {
	Kind      string `json:"kind"` // with its group: Deployment.apps
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (o Object) String() string {
	return o.Kind + " " + strings.TrimPrefix(o.Namespace+"/"+o.Name, "/")
}

func compareObjects(a, b Object) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// ChangedObject is an object of which fields differ.
type ChangedObject struct {
	Object
	Fields []Field `json:"fields"`
}

// Field is a field that differs.
type Field struct {
	Path string `json:"path"`
	// Cluster and Manifests are the values; "" where there is none, and Hidden for
	// one that is not shown.
	Cluster   string `json:"cluster,omitempty"`
	Manifests string `json:"manifests,omitempty"`
	// By says who set it in the cluster, the latest first; nobody may be recorded.
	By []Author `json:"by,omitempty"`
}

// Hidden stands for a value that may be a secret, or is long.
const Hidden = "(not shown)"

// Author is who set something, as the API server recorded it.
type Author struct {
	Manager string    `json:"manager"`
	At      time.Time `json:"at,omitzero"`
}

func (a Author) String() string {
	if a.At.IsZero() {
		return a.Manager
	}
	return a.Manager + " " + a.At.UTC().Format("2006-01-02 15:04")
}

// ExtraObject is an object that only the cluster has.
type ExtraObject struct {
	Object
	By []Author `json:"by,omitempty"`
}

// UncomparedObject is an object that could not be compared, and why.
type UncomparedObject struct {
	Object
	Why string `json:"why"`
}

// driftManager is the field manager of the comparison's dry runs. It is another than
// [FieldManager], which may own fields already, and would give them up.
const driftManager = FieldManager + "-drift"

// freshName is what an object is called that is made anew, in a dry run.
const freshName = "k3s-dualstack-drift"

// Drift compares the cluster with the objects that it is said to be made from. Nothing
// is changed: each object is applied in a dry run, by server-side apply, so that the API
// server itself says what would become of it, defaults and admission included.
//
// A field counts as changed when applying would change it, and when somebody has set a field that
// the object does not name to another value than the default: controllers are not somebody. t may be nil.
func (c *Client) Drift(ctx context.Context, objects []*unstructured.Unstructured, t Detailer) (*Drift, error) {
	groups, err := restmapper.GetAPIGroupResources(c.Kube.Discovery())
	if err != nil {
		return nil, fmt.Errorf("comparing the cluster with its manifests: asking the API server for its resources: %w", c.explain(err))
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	d := &Drift{Changed: []ChangedObject{}, Missing: []Object{}, Extra: []ExtraObject{}, Uncompared: []UncomparedObject{}, Left: map[string]int{}, Warnings: []string{}}
	declared := map[declaration]bool{}
	for i, o := range objects {
		if t != nil {
			t.Detail(fmt.Sprintf("%d of %d: %s %s", i+1, len(objects), o.GetKind(), o.GetName()))
		}
		if err := c.compareObject(ctx, mapper, o, d, declared); err != nil {
			return nil, fmt.Errorf("comparing the cluster with its manifests: %s: %w", named(o), c.explain(err))
		}
	}
	if t != nil {
		t.Detail("what only the cluster has")
	}
	if err := c.extraObjects(ctx, declared, d); err != nil {
		return nil, fmt.Errorf("comparing the cluster with its manifests: %w", c.explain(err))
	}
	slices.SortFunc(d.Changed, func(a, b ChangedObject) int { return compareObjects(a.Object, b.Object) })
	slices.SortFunc(d.Missing, compareObjects)
	slices.SortFunc(d.Extra, func(a, b ExtraObject) int { return compareObjects(a.Object, b.Object) })
	return d, nil
}

// declaration identifies an object, whatever version it is written in.
type declaration struct {
	resource        schema.GroupResource
	namespace, name string
}

func named(o *unstructured.Unstructured) Object {
	return Object{Kind: o.GroupVersionKind().GroupKind().String(), Namespace: o.GetNamespace(), Name: o.GetName()}
}

// compareObject compares one object. The error is one of the connection: what the API
// server says of the object is part of the result.
func (c *Client) compareObject(ctx context.Context, mapper meta.RESTMapper, o *unstructured.Unstructured, d *Drift, declared map[declaration]bool) error {
	want, err := asWritten(o)
	if err != nil {
		d.Uncompared = append(d.Uncompared, UncomparedObject{named(o), err.Error()})
		return nil
	}
	gvk := want.GroupVersionKind()
	mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		d.Missing = append(d.Missing, named(want)) // nor does the cluster know its kind
		return nil
	}
	if err != nil {
		return err
	}
	var client dynamic.ResourceInterface = c.Dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		if want.GetNamespace() == "" {
			want.SetNamespace(metav1.NamespaceDefault)
		}
		client = c.Dynamic.Resource(mapping.Resource).Namespace(want.GetNamespace())
	} else {
		want.SetNamespace("")
	}
	id := named(want)
	declared[declaration{mapping.Resource.GroupResource(), id.Namespace, id.Name}] = true

	live, err := client.Get(ctx, id.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		d.Missing = append(d.Missing, id)
		return nil
	}
	var applied *unstructured.Unstructured
	if err == nil {
		applied, err = client.Apply(ctx, id.Name, want, metav1.ApplyOptions{DryRun: []string{metav1.DryRunAll}, Force: true, FieldManager: driftManager})
	}
	if err != nil {
		return d.uncompared(id, "", err)
	}
	ours, err := ownedBySet(applied, driftManager)
	if err != nil {
		return err
	}
	fields := changed(live, applied, ours)
	if comparable := anew(want); comparable != nil {
		fresh, err := client.Create(ctx, comparable, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: driftManager})
		switch {
		case err != nil:
			if err := d.uncompared(id, "only the fields that the manifests name were compared: ", err); err != nil {
				return err
			}
		default:
			fields = append(fields, added(live, fresh, ours)...)
		}
	}
	if len(fields) == 0 {
		d.Same++
		return nil
	}
	slices.SortFunc(fields, func(a, b Field) int { return cmp.Compare(a.Path, b.Path) })
	d.Changed = append(d.Changed, ChangedObject{id, fields})
	return nil
}

// uncompared notes what the API server has against an object; any other error is returned.
func (d *Drift) uncompared(id Object, before string, err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || apierrors.IsUnauthorized(err) {
		return err
	}
	why := err.Error()
	if id.Kind == secretKind {
		why = fmt.Sprintf("the API server refuses it (%s)", status.Status().Reason) // the message may quote what is in it
	}
	d.Uncompared = append(d.Uncompared, UncomparedObject{id, before + why})
	return nil
}

const secretKind = "Secret"

// asWritten is an object as it is applied: without what the server alone writes, and
// with a secret's stringData where they end up.
func asWritten(o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	u := o.DeepCopy()
	for _, field := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"} {
		unstructured.RemoveNestedField(u.Object, "metadata", field)
	}
	stripAnnotations(u, corev1.LastAppliedConfigAnnotation)
	if len(u.GetAnnotations()) == 0 {
		unstructured.RemoveNestedField(u.Object, "metadata", "annotations")
	}
	unstructured.RemoveNestedField(u.Object, "status")
	if u.GroupVersionKind().GroupKind() != (schema.GroupKind{Kind: secretKind}) || u.Object["stringData"] == nil {
		return u, nil
	}
	plain, ok := u.Object["stringData"].(map[string]any)
	if !ok {
		return nil, errors.New("its stringData are no map")
	}
	data, _ := u.Object["data"].(map[string]any)
	if data == nil {
		data = map[string]any{}
	}
	for key, v := range plain {
		text, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("stringData.%s is no string", key)
		}
		data[key] = base64.StdEncoding.EncodeToString([]byte(text))
	}
	delete(u.Object, "stringData")
	u.Object["data"] = data
	return u, nil
}

// anew is an object under a name of its own, as it would be made on an empty cluster; nil
// for kinds whose names mean something, or which the server fills in differently each time.
func anew(want *unstructured.Unstructured) *unstructured.Unstructured {
	u := want.DeepCopy()
	u.SetName(freshName)
	switch u.GroupVersionKind().GroupKind() {
	case schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"},
		schema.GroupKind{Group: "apiregistration.k8s.io", Kind: "APIService"},
		schema.GroupKind{Kind: "Pod"}, schema.GroupKind{Group: "batch", Kind: "Job"},
		schema.GroupKind{Kind: "PersistentVolume"}, schema.GroupKind{Kind: "PersistentVolumeClaim"}:
		return nil
	case schema.GroupKind{Kind: "Service"}: // its addresses and ports are taken, by itself
		if ip, _, _ := unstructured.NestedString(u.Object, "spec", "clusterIP"); ip != corev1.ClusterIPNone {
			unstructured.RemoveNestedField(u.Object, "spec", "clusterIP")
			unstructured.RemoveNestedField(u.Object, "spec", "clusterIPs")
		}
		unstructured.RemoveNestedField(u.Object, "spec", "healthCheckNodePort")
		ports, _, _ := unstructured.NestedSlice(u.Object, "spec", "ports")
		for _, p := range ports {
			if port, ok := p.(map[string]any); ok {
				delete(port, "nodePort")
			}
		}
		if ports != nil {
			_ = unstructured.SetNestedSlice(u.Object, ports, "spec", "ports")
		}
	}
	return u
}

// ownedBySet are the fields that a manager has applied.
func ownedBySet(u *unstructured.Unstructured, manager string) (*fieldpath.Set, error) {
	for _, m := range u.GetManagedFields() {
		if m.Manager == manager && m.Subresource == "" {
			return fieldSet(m)
		}
	}
	return fieldpath.NewSet(), nil
}

func fieldSet(m metav1.ManagedFieldsEntry) (*fieldpath.Set, error) {
	set := fieldpath.NewSet()
	if m.FieldsV1 == nil {
		return set, nil
	}
	if err := set.FromJSON(bytes.NewReader(m.FieldsV1.Raw)); err != nil {
		return nil, fmt.Errorf("reading the managedFields of %s: %w", m.Manager, err)
	}
	return set, nil
}

// changed are the fields among ours that applying changes.
func changed(live, applied *unstructured.Unstructured, ours *fieldpath.Set) (out []Field) {
	seen := map[string]bool{}
	ours.Leaves().Iterate(func(p fieldpath.Path) {
		if insignificant(p) {
			return
		}
		after, depth := lookup(applied.Object, p)
		before, reached := lookup(live.Object, p)
		if depth < len(p) || reached == len(p) && same(before, after) {
			return
		}
		missing := reached < len(p)
		if missing {
			p = item(p, reached)
			after, _ = lookup(applied.Object, p)
		}
		path := fieldPath(p)
		if seen[path] {
			return
		}
		seen[path] = true
		f := Field{Path: path, Manifests: shown(live, p, after), By: authors(live, p)}
		if !missing {
			f.Cluster = shown(live, p, before)
		}
		out = append(out, f)
	})
	return out
}

// added are the fields not among ours that somebody has set in the cluster to what they
// are not in an object that is made anew.
func added(live, fresh *unstructured.Unstructured, ours *fieldpath.Set) (out []Field) {
	seen := map[string]bool{}
	all, theirs := fieldpath.NewSet(), fieldpath.NewSet()
	for _, m := range live.GetManagedFields() {
		set, err := fieldSet(m)
		if err != nil {
			continue // of a version that the server no longer knows
		}
		all = all.Union(set)
		if m.Subresource != "status" && !automatic(m.Manager) {
			theirs = theirs.Union(set)
		}
	}
	theirs.Leaves().Difference(ours).Iterate(func(p fieldpath.Path) {
		now, reached := lookup(live.Object, p)
		if insignificant(p) || given(live, p) || reached < len(p) || !below(all, p).Empty() { // what is in it speaks for itself
			return
		}
		then, depth := lookup(fresh.Object, p)
		if depth == len(p) && same(now, then) {
			return
		}
		if depth < len(p) {
			p = item(p, depth)
			now, _ = lookup(live.Object, p)
		}
		path := fieldPath(p)
		if ours.Has(p) || seen[path] {
			return
		}
		seen[path] = true
		out = append(out, Field{Path: path, Cluster: shown(live, p, now), By: authors(live, p)})
	})
	return out
}

// item is a path cut off behind the first list item that is missing as a whole, where one is.
func item(p fieldpath.Path, missing int) fieldpath.Path {
	for i, e := range p[missing:] {
		if e.Key != nil {
			return p[:missing+i+1].Copy()
		}
	}
	return p.Copy()
}

// below are the fields of a set that lie below a path.
func below(set *fieldpath.Set, p fieldpath.Path) *fieldpath.Set {
	for _, e := range p {
		set = set.WithPrefix(e)
	}
	return set
}

// insignificant tells the fields that say nothing about what an object is meant to be.
func insignificant(p fieldpath.Path) bool {
	switch fieldPath(p) {
	case "apiVersion", "kind", "metadata.name", "metadata.namespace", "metadata.generateName",
		"metadata.labels[kubernetes.io/metadata.name]",
		"metadata.annotations[" + corev1.LastAppliedConfigAnnotation + "]",
		"spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt]":
		return true
	}
	return p[0].FieldName != nil && *p[0].FieldName == "status"
}

// given tells the fields of a Service that the server hands out.
func given(u *unstructured.Unstructured, p fieldpath.Path) bool {
	if u.GroupVersionKind().GroupKind() != (schema.GroupKind{Kind: "Service"}) {
		return false
	}
	path := fieldPath(p)
	return strings.HasPrefix(path, "spec.clusterIP") || strings.HasSuffix(path, ".nodePort") || path == "spec.healthCheckNodePort"
}

// automatic tells the names under which programs of the cluster itself write. Operators are
// told by what they are commonly called: the API server records a program's name, not what it is.
func automatic(manager string) bool {
	name, _, _ := strings.Cut(strings.ToLower(manager), "@") // K3s: deploy@host
	switch name {
	case "kube-controller-manager", "kube-apiserver", "kube-scheduler", "kubelet", "k3s", "deploy", "kine",
		"cloud-controller-manager", "apiserver", "manager", "controller", "operator", "coredns", "traefik":
		return true
	}
	for _, part := range []string{"-controller", "-operator", "-manager", "-provisioner", "-webhook", "-injector", "cainjector", "certmanager", "cert-manager"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// lookup walks down a path and returns what is there, or what is at its deepest part that
// there is, and how many elements were walked.
func lookup(v any, p fieldpath.Path) (any, int) {
	for i, e := range p {
		var next any
		found := false
		switch {
		case e.FieldName != nil:
			if m, ok := v.(map[string]any); ok {
				next, found = m[*e.FieldName]
			}
		case e.Index != nil:
			if l, ok := v.([]any); ok && *e.Index < len(l) {
				next, found = l[*e.Index], true
			}
		default:
			l, _ := v.([]any)
			at := slices.IndexFunc(l, func(item any) bool { return matches(e, item) })
			if found = at >= 0; found {
				next = l[at]
			}
		}
		if !found {
			return v, i
		}
		v = next
	}
	return v, len(p)
}

func matches(e fieldpath.PathElement, item any) bool {
	if e.Value != nil {
		return value.Equals(*e.Value, value.NewValueInterface(item))
	}
	m, ok := item.(map[string]any)
	if !ok || e.Key == nil {
		return false
	}
	for _, k := range *e.Key {
		v, found := m[k.Name]
		if !found || !value.Equals(k.Value, value.NewValueInterface(v)) {
			return false
		}
	}
	return true
}

func same(a, b any) bool {
	return value.Equals(value.NewValueInterface(a), value.NewValueInterface(b))
}

// fieldPath is a path as a person would write it: spec.containers[name=web].image.
func fieldPath(p fieldpath.Path) string {
	var s strings.Builder
	for _, e := range p {
		switch {
		case e.FieldName != nil && strings.ContainsAny(*e.FieldName, "./"):
			fmt.Fprintf(&s, "[%s]", *e.FieldName)
		case e.FieldName != nil:
			if s.Len() > 0 {
				s.WriteByte('.')
			}
			s.WriteString(*e.FieldName)
		case e.Index != nil:
			fmt.Fprintf(&s, "[%d]", *e.Index)
		case e.Value != nil:
			fmt.Fprintf(&s, "[%v]", (*e.Value).Unstructured())
		case e.Key != nil:
			var keys []string
			for _, k := range *e.Key {
				keys = append(keys, fmt.Sprintf("%s=%v", k.Name, k.Value.Unstructured()))
			}
			fmt.Fprintf(&s, "[%s]", strings.Join(keys, ","))
		}
	}
	return s.String()
}

// authors are those who own a field of an object, or a part of it.
func authors(u *unstructured.Unstructured, p fieldpath.Path) (out []Author) {
	for _, m := range u.GetManagedFields() {
		set, err := fieldSet(m)
		if err != nil || !owns(set, p) {
			continue
		}
		a := Author{Manager: m.Manager}
		if m.Time != nil {
			a.At = m.Time.Time
		}
		out = append(out, a)
	}
	slices.SortStableFunc(out, func(a, b Author) int { return b.At.Compare(a.At) })
	return out
}

func owns(set *fieldpath.Set, p fieldpath.Path) bool {
	return set.Has(p) || !below(set, p).Empty()
}

// shown is a value for a report, which is neither encrypted nor kept from anybody: only
// what can hardly be a secret. Of custom resources nobody knows which of their texts are.
func shown(u *unstructured.Unstructured, p fieldpath.Path, v any) string {
	kind := u.GroupVersionKind().GroupKind()
	switch v := v.(type) {
	case bool, int64, float64:
		if kind.Kind == secretKind {
			return Hidden
		}
		return fmt.Sprint(v)
	case string:
		if !builtIn(kind.Group) || kind == (schema.GroupKind{Kind: secretKind}) || kind == (schema.GroupKind{Kind: "ConfigMap"}) || len(v) > 100 || strings.ContainsAny(v, "\n\r") {
			return Hidden
		}
		for _, e := range p {
			if e.FieldName == nil {
				if e.Index != nil {
					return Hidden // of an atomic list: arguments and the like
				}
				continue
			}
			switch *e.FieldName {
			case "annotations", "env", "args", "command", "exec", "httpHeaders", "parameters", "volumeAttributes", "options", "caBundle":
				return Hidden
			}
		}
		return cmp.Or(v, `""`)
	}
	return Hidden
}

// extraObjects finds what only the cluster has. It reads metadata alone, so that no
// secret's data leave the cluster for it.
func (c *Client) extraObjects(ctx context.Context, declared map[declaration]bool, d *Drift) error {
	resources, warnings, err := c.resources(nil)
	if err != nil {
		return fmt.Errorf("asking the API server for its resources: %w", err)
	}
	d.Warnings = append(d.Warnings, warnings...)
	client, err := metadata.NewForConfig(metadata.ConfigFor(c.REST))
	if err != nil {
		return err
	}
	sets, err := c.Kube.AppsV1().StatefulSets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing StatefulSets: %w", err)
	}
	tls, err := client.Resource(corev1.SchemeGroupVersion.WithResource("secrets")).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(corev1.SecretTypeTLS)})
	if err != nil {
		return fmt.Errorf("listing TLS secrets: %w", err)
	}
	kept := map[types.UID]bool{}
	for i := range tls.Items {
		kept[tls.Items[i].UID] = true
	}
	for _, r := range resources {
		gr := r.gvr.GroupResource()
		if measured(gr) {
			continue
		}
		next := ""
		for {
			list, err := client.Resource(r.gvr).List(ctx, metav1.ListOptions{Limit: pageSize, Continue: next})
			var status apierrors.APIStatus
			if errors.As(err, &status) && !builtIn(gr.Group) && !apierrors.IsUnauthorized(err) {
				d.Warnings = append(d.Warnings, fmt.Sprintf("%s could not be listed: %v", r, err))
				break
			}
			if err != nil {
				return fmt.Errorf("listing %s: %w", r, err)
			}
			for i := range list.Items {
				o := &list.Items[i]
				if declared[declaration{gr, o.Namespace, o.Name}] {
					continue
				}
				why := left(gr, &o.ObjectMeta, sets.Items)
				if why == "" && kept[o.UID] {
					why = leftBroughtBack
				}
				if why != "" {
					d.Left[why]++
					continue
				}
				d.Extra = append(d.Extra, ExtraObject{
					Object{schema.GroupKind{Group: gr.Group, Kind: r.kind}.String(), o.Namespace, o.Name}, writers(o.ManagedFields)})
			}
			if next = list.Continue; next == "" {
				break
			}
		}
	}
	return nil
}

// writers are those who wrote to an object itself, the latest first.
func writers(fields []metav1.ManagedFieldsEntry) (out []Author) {
	for _, m := range fields {
		if m.Subresource != "" || automatic(m.Manager) {
			continue
		}
		a := Author{Manager: m.Manager}
		if m.Time != nil {
			a.At = m.Time.Time
		}
		out = append(out, a)
	}
	slices.SortStableFunc(out, func(a, b Author) int { return b.At.Compare(a.At) })
	return out
}

// measured tells the resources whose objects describe the moment and come by themselves.
func measured(gr schema.GroupResource) bool {
	switch gr.Resource {
	case "events", "endpoints", "endpointslices", "leases", "nodes", "csinodes", "csistoragecapacities", "volumeattachments",
		"controllerrevisions", "certificatesigningrequests", "ipaddresses", "resourceslices":
		return builtIn(gr.Group)
	}
	return false
}

// Why an object that only the cluster has is nobody's to declare.
const (
	leftOwned       = "made by another object, which owns them"
	leftKubernetes  = "made by Kubernetes itself"
	leftK3s         = "K3s's own, or of its manifests directory"
	leftHelm        = "of a Helm release"
	leftGitOps      = "made by Flux or Argo CD"
	leftOperator    = "made by an operator"
	leftBroughtBack = "brought back by the migration: namespaces, volumes, claims, TLS secrets"
)

// left says why an object that only the cluster has is nobody's to declare, "" if it is somebody's.
func left(gr schema.GroupResource, o *metav1.ObjectMeta, sets []appsv1.StatefulSet) string {
	core := func(resource string) bool { return gr == schema.GroupResource{Resource: resource} }
	_, hasRelease := o.Annotations["meta.helm.sh/release-name"]
	switch {
	case len(o.OwnerReferences) > 0:
		return leftOwned
	case ofKubernetes(gr, o):
		return leftKubernetes
	case ofK3s(gr, o):
		return leftK3s
	case hasRelease, core("secrets") && o.Labels["owner"] == "helm":
		return leftHelm
	case hasAny(o.Labels, "kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name", "argocd.argoproj.io/instance"),
		hasAny(o.Annotations, "argocd.argoproj.io/tracking-id"):
		return leftGitOps
	case hasAny(o.Annotations, "cert-manager.io/certificate-name"):
		return leftBroughtBack
	case hasAny(o.Labels, vaultSecretsOwnerLabel, "reconcile.external-secrets.io/managed", "kubevirt.io", "operators.coreos.com"):
		return leftOperator
	case core("namespaces"), core("persistentvolumes"), core("persistentvolumeclaims") && (claimed(o, sets) || o.Annotations["pv.kubernetes.io/bind-completed"] != ""):
		return leftBroughtBack
	case len(o.ManagedFields) > 0 && !slices.ContainsFunc(o.ManagedFields, func(m metav1.ManagedFieldsEntry) bool { return !automatic(m.Manager) }):
		return leftOperator
	}
	return ""
}

func hasAny(m map[string]string, keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { _, ok := m[k]; return ok })
}

// claimed tells a claim that a StatefulSet makes from its template: it owns none of them.
func claimed(o *metav1.ObjectMeta, sets []appsv1.StatefulSet) bool {
	for _, s := range sets {
		for _, t := range s.Spec.VolumeClaimTemplates {
			if ordinal, ok := strings.CutPrefix(o.Name, t.Name+"-"+s.Name+"-"); ok && s.Namespace == o.Namespace && ordinal != "" && strings.Trim(ordinal, "0123456789") == "" {
				return true
			}
		}
	}
	return false
}

// controllerAccounts are those service accounts of kube-controller-manager's controllers that
// do not end in -controller.
var controllerAccounts = []string{"bootstrap-signer", "generic-garbage-collector", "horizontal-pod-autoscaler", "legacy-service-account-token-cleaner",
	"persistent-volume-binder", "pod-garbage-collector", "root-ca-cert-publisher", "token-cleaner"}

// ofKubernetes tells what an empty cluster has.
func ofKubernetes(gr schema.GroupResource, o *metav1.ObjectMeta) bool {
	switch {
	case hasAny(o.Labels, "kubernetes.io/bootstrapping", "kube-aggregator.kubernetes.io/automanaged"),
		hasAny(o.Annotations, "apf.kubernetes.io/autoupdate-spec", "kubernetes.io/config.mirror", "kubernetes.io/service-account.name", "control-plane.alpha.kubernetes.io/leader"),
		strings.HasPrefix(o.Name, "system:"), strings.HasPrefix(o.Name, "system-") && gr.Group == "scheduling.k8s.io":
		return true
	}
	switch gr {
	case schema.GroupResource{Resource: "namespaces"}:
		return slices.Contains([]string{"default", "kube-system", "kube-public", "kube-node-lease"}, o.Name)
	case schema.GroupResource{Resource: "serviceaccounts"}:
		return o.Name == "default" || o.Namespace == metav1.NamespaceSystem && (strings.HasSuffix(o.Name, "-controller") || slices.Contains(controllerAccounts, o.Name))
	case schema.GroupResource{Resource: "configmaps"}:
		return o.Name == "kube-root-ca.crt" || o.Namespace == metav1.NamespaceSystem &&
			(o.Name == "extension-apiserver-authentication" || o.Name == "kube-apiserver-legacy-service-account-token-tracking")
	case schema.GroupResource{Resource: "services"}:
		return o.Namespace == metav1.NamespaceDefault && o.Name == "kubernetes"
	case schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"}:
		return o.Name == "kubernetes"
	case schema.GroupResource{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}, schema.GroupResource{Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"}:
		return slices.Contains([]string{"cluster-admin", "admin", "edit", "view"}, o.Name)
	}
	return false
}

// ofK3s tells what K3s makes: its packaged components, what lies in its manifests
// directory, and its own secrets.
func ofK3s(gr schema.GroupResource, o *metav1.ObjectMeta) bool {
	const objectSet = "objectset.rio.cattle.io/"
	for _, k := range slices.Concat(slices.Collect(maps.Keys(o.Labels)), slices.Collect(maps.Keys(o.Annotations))) {
		if strings.HasPrefix(k, objectSet) || strings.HasPrefix(k, "svccontroller.k3s.cattle.io/") {
			return true
		}
	}
	switch {
	case gr.Group == "k3s.cattle.io", gr.Group == "apiextensions.k8s.io" && (strings.HasSuffix(o.Name, ".k3s.cattle.io") || strings.HasSuffix(o.Name, ".helm.cattle.io")):
		return true
	case strings.HasPrefix(o.Name, "k3s-") && gr.Group == "rbac.authorization.k8s.io":
		return true
	}
	if o.Namespace != metav1.NamespaceSystem {
		return false
	}
	switch gr {
	case schema.GroupResource{Resource: "secrets"}:
		return o.Name == "k3s-serving" || strings.HasSuffix(o.Name, ".node-password.k3s") || strings.HasPrefix(o.Name, "chart-values-")
	case schema.GroupResource{Resource: "configmaps"}:
		return o.Name == "cluster-dns" || strings.HasPrefix(o.Name, "chart-content-")
	}
	return false
}
