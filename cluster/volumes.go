package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// VolumeKind tells how a volume's data must be treated by a rebuild.
type VolumeKind string

const (
	// HostPath and Local volumes are directories of the host: their data is copied.
	HostPath VolumeKind = "hostPath"
	Local    VolumeKind = "local"
	// Remote volumes lie where no uninstall reaches (NFS, a cloud's disks): their
	// object is kept, their data needs no copy.
	Remote VolumeKind = "remote"
	// Unsupported volumes need a person: their driver keeps its state in the
	// cluster's API, is not known to keep it elsewhere, or the volume is a raw device.
	Unsupported VolumeKind = "unsupported"
)

// Volume is one persistent volume, with its claim if it has one.
type Volume struct {
	PV string `json:"pv"`
	// Namespace and Claim name the claim that the volume is bound to or reserved
	// for; empty for one that nobody claims.
	Namespace string `json:"namespace,omitempty"`
	Claim     string `json:"claim,omitempty"`
	// Path is the directory on the host, from the volume itself: a provisioner's
	// pathPattern can put it anywhere. Empty unless Kind is HostPath or Local.
	Path string     `json:"path,omitempty"`
	Kind VolumeKind `json:"kind"`
	// Driver says in words what kind of volume it is: "nfs", "csi ebs.csi.aws.com".
	Driver string `json:"driver"`
	// Node is the kubernetes.io/hostname that the volume's node affinity asks for.
	Node          string `json:"node,omitempty"`
	StorageClass  string `json:"storageClass,omitempty"`
	ReclaimPolicy string `json:"reclaimPolicy"`
	Phase         string `json:"phase"`
	// Object and ClaimObject are the volume and its claim as the API server had
	// them. ClaimObject is empty when the claim does not exist (any more).
	Object      json.RawMessage `json:"object"`
	ClaimObject json.RawMessage `json:"claimObject,omitempty"`
}

var (
	pvResource  = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}
	pvcResource = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
)

// Volumes returns all persistent volumes, sorted by name.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	pvs, err := c.Dynamic.Resource(pvResource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing persistent volumes: %w", c.explain(err))
	}
	pvcs, err := c.Dynamic.Resource(pvcResource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing persistent volume claims: %w", c.explain(err))
	}
	claims := map[string]*unstructured.Unstructured{}
	for i := range pvcs.Items {
		claims[pvcs.Items[i].GetNamespace()+"/"+pvcs.Items[i].GetName()] = &pvcs.Items[i]
	}
	out := make([]Volume, 0, len(pvs.Items))
	for i := range pvs.Items {
		v, err := readVolume(&pvs.Items[i], claims)
		if err != nil {
			return nil, fmt.Errorf("reading the persistent volume %s: %w", pvs.Items[i].GetName(), err)
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Volume) int { return cmp.Compare(a.PV, b.PV) })
	return out, nil
}

// readVolume describes one persistent volume; claims are keyed by namespace/name.
func readVolume(u *unstructured.Unstructured, claims map[string]*unstructured.Unstructured) (Volume, error) {
	var pv corev1.PersistentVolume
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &pv); err != nil {
		return Volume{}, err
	}
	object, err := u.MarshalJSON()
	if err != nil {
		return Volume{}, err
	}
	v := Volume{
		PV:            pv.Name,
		StorageClass:  pv.Spec.StorageClassName,
		ReclaimPolicy: string(pv.Spec.PersistentVolumeReclaimPolicy),
		Phase:         string(pv.Status.Phase),
		Node:          nodeOf(pv.Spec.NodeAffinity),
		Object:        trimmed(object),
	}
	v.Kind, v.Driver, v.Path = classify(&pv.Spec)
	ref := pv.Spec.ClaimRef
	if ref == nil {
		return v, nil
	}
	v.Namespace, v.Claim = ref.Namespace, ref.Name
	// A claim of the same name that is bound to another volume, or was made after
	// this volume's claim was deleted, is not this volume's.
	claim := claims[ref.Namespace+"/"+ref.Name]
	if claim == nil || ref.UID != "" && ref.UID != claim.GetUID() {
		return v, nil
	}
	if bound, _, _ := unstructured.NestedString(claim.Object, "spec", "volumeName"); bound != pv.Name {
		return v, nil
	}
	object, err = claim.MarshalJSON()
	if err != nil {
		return Volume{}, err
	}
	v.ClaimObject = trimmed(object)
	return v, nil
}

func trimmed(object []byte) json.RawMessage {
	return json.RawMessage(strings.TrimSpace(string(object)))
}

// nodeOf is the one host name that a node affinity asks for, "" if it asks for
// none or for several.
func nodeOf(affinity *corev1.VolumeNodeAffinity) string {
	if affinity == nil || affinity.Required == nil {
		return ""
	}
	var names []string
	for _, term := range affinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == corev1.LabelHostname && e.Operator == corev1.NodeSelectorOpIn {
				names = append(names, e.Values...)
			}
		}
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn {
				names = append(names, f.Values...)
			}
		}
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 1 {
		return names[0]
	}
	return ""
}

// remoteDrivers are the CSI drivers known to keep volumes and all that is needed
// to find them again outside of the cluster. Any other is unsupported until a person
// has looked.
var remoteDrivers = []string{
	"nfs.csi.k8s.io", "smb.csi.k8s.io", "iscsi.csi.k8s.io",
	"ebs.csi.aws.com", "efs.csi.aws.com", "fsx.csi.aws.com",
	"pd.csi.storage.gke.io", "filestore.csi.storage.gke.io",
	"disk.csi.azure.com", "file.csi.azure.com", "blob.csi.azure.com",
	"csi.hetzner.cloud", "csi.scaleway.com", "csi.exoscale.com", "storage.csi.upcloud.com",
	"dobs.csi.digitalocean.com", "linodebs.csi.linode.com", "block.csi.vultr.com", "mass.csi.vultr.com",
	"blockvolume.csi.oraclecloud.com", "vpc.block.csi.ibm.io",
	"cinder.csi.openstack.org", "manila.csi.openstack.org", "nfs.manila.csi.openstack.org",
	"csi.vsphere.vmware.com", "csi.proxmox.sinextra.dev",
	"rbd.csi.ceph.com", "cephfs.csi.ceph.com", "csi.san.synology.com",
}

// classify tells a volume's kind, what it is in words, and its directory.
func classify(spec *corev1.PersistentVolumeSpec) (kind VolumeKind, driver, path string) {
	block := spec.VolumeMode != nil && *spec.VolumeMode == corev1.PersistentVolumeBlock
	switch s := spec.PersistentVolumeSource; {
	case s.HostPath != nil && block, s.Local != nil && block:
		return Unsupported, "raw block device", ""
	case s.HostPath != nil && !isDirectory(s.HostPath.Type):
		return Unsupported, fmt.Sprintf("hostPath of type %s", *s.HostPath.Type), ""
	case s.HostPath != nil:
		return HostPath, "hostPath", s.HostPath.Path
	case s.Local != nil:
		return Local, "local", s.Local.Path
	case s.CSI != nil:
		if slices.Contains(remoteDrivers, s.CSI.Driver) {
			return Remote, "csi " + s.CSI.Driver, ""
		}
		return Unsupported, "csi " + s.CSI.Driver, ""
	case s.NFS != nil:
		return Remote, "nfs", ""
	case s.ISCSI != nil:
		return Remote, "iscsi", ""
	case s.FC != nil:
		return Remote, "fc", ""
	case s.CephFS != nil:
		return Remote, "cephfs", ""
	case s.RBD != nil:
		return Remote, "rbd", ""
	case s.AWSElasticBlockStore != nil:
		return Remote, "awsElasticBlockStore", ""
	case s.GCEPersistentDisk != nil:
		return Remote, "gcePersistentDisk", ""
	case s.AzureDisk != nil:
		return Remote, "azureDisk", ""
	case s.AzureFile != nil:
		return Remote, "azureFile", ""
	case s.Cinder != nil:
		return Remote, "cinder", ""
	case s.VsphereVolume != nil:
		return Remote, "vsphereVolume", ""
	case s.FlexVolume != nil:
		return Unsupported, "flexVolume " + s.FlexVolume.Driver, ""
	}
	return Unsupported, "a volume source that is not known", ""
}

// isDirectory tells whether a hostPath is a directory, as far as it says.
func isDirectory(t *corev1.HostPathType) bool {
	return t == nil || *t == corev1.HostPathUnset || *t == corev1.HostPathDirectory || *t == corev1.HostPathDirectoryOrCreate
}

// ReservationError says why a volume was not reserved for its claim, or not
// released. Nothing that it speaks of was changed.
type ReservationError struct {
	PV, Namespace, Claim string
	Problem              string
}

func (e *ReservationError) Error() string {
	if e.Claim == "" {
		return fmt.Sprintf("reserving the volume %s: %s", e.PV, e.Problem)
	}
	return fmt.Sprintf("reserving the volume %s for the claim %s/%s: %s", e.PV, e.Namespace, e.Claim, e.Problem)
}

func (v Volume) problem(format string, args ...any) error {
	return &ReservationError{PV: v.PV, Namespace: v.Namespace, Claim: v.Claim, Problem: fmt.Sprintf(format, args...)}
}

// ReserveVolume creates a volume again, held for its claim, and then the claim.
// The volume's data must be in its place before; the claim's namespace must exist.
//
// The volume gets the policy Retain whatever it had, and a claimRef without the
// old claim's UID: so it is Available to that claim alone, and nothing that goes
// wrong from here on can remove its data. (With the old UID it would be Released at
// once, and under Delete its data removed.) ReleaseReservation puts the policy back.
//
// It may be called again after any interruption. A volume or claim that exists and
// is not the one of the backup, or is bound to another, is a *ReservationError, and
// nothing was changed; so is a node affinity that names a node the cluster does not have.
func (c *Client) ReserveVolume(ctx context.Context, v Volume) error {
	wantPV, wantPVC, err := v.reservation()
	if err != nil {
		return err
	}
	if err := c.checkNode(ctx, v); err != nil {
		return err
	}

	// All that could forbid it is read before anything is written.
	havePV, err := c.getPV(ctx, v)
	if err != nil {
		return err
	}
	var havePVC *corev1.PersistentVolumeClaim
	if v.Claim != "" {
		if havePVC, err = c.getPVC(ctx, v); err != nil {
			return err
		}
	}
	if havePVC != nil {
		if err := v.checkClaim(havePVC, wantPVC); err != nil {
			return err
		}
	}
	if havePV != nil {
		if err := v.checkVolume(havePV, wantPV, havePVC); err != nil {
			return err
		}
	}

	switch {
	case havePV == nil:
		_, err := c.Dynamic.Resource(pvResource).Create(ctx, wantPV, metav1.CreateOptions{FieldManager: FieldManager})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating the persistent volume %s: %w", v.PV, c.explain(err))
		}
		if err != nil {
			return v.problem("a volume of that name appeared meanwhile; run it again")
		}
	case havePV.Status.Phase != corev1.VolumeBound && havePV.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain:
		if err := c.setPolicy(ctx, v.PV, string(corev1.PersistentVolumeReclaimRetain)); err != nil {
			return err
		}
	}
	if wantPVC == nil || havePVC != nil {
		return nil
	}
	_, err = c.Dynamic.Resource(pvcResource).Namespace(v.Namespace).Create(ctx, wantPVC, metav1.CreateOptions{FieldManager: FieldManager})
	switch {
	case apierrors.IsNotFound(err):
		return v.problem("the namespace %s does not exist; create it first", v.Namespace)
	case apierrors.IsAlreadyExists(err):
		return v.problem("a claim of that name appeared meanwhile; run it again")
	case err != nil:
		return fmt.Errorf("creating the claim %s/%s: %w", v.Namespace, v.Claim, c.explain(err))
	}
	return nil
}

// reservation is the volume and the claim as they are to be created.
func (v Volume) reservation() (pv, pvc *unstructured.Unstructured, err error) {
	pv, pvc = &unstructured.Unstructured{}, &unstructured.Unstructured{}
	if err := pv.UnmarshalJSON(v.Object); err != nil {
		return nil, nil, v.problem("the backed-up volume cannot be read: %v", err)
	}
	Strip(pv)
	if err := unstructured.SetNestedField(pv.Object, string(corev1.PersistentVolumeReclaimRetain), "spec", "persistentVolumeReclaimPolicy"); err != nil {
		return nil, nil, v.problem("the backed-up volume has no spec: %v", err)
	}
	if len(v.ClaimObject) == 0 {
		return pv, nil, nil
	}
	if err := pvc.UnmarshalJSON(v.ClaimObject); err != nil {
		return nil, nil, v.problem("the backed-up claim cannot be read: %v", err)
	}
	Strip(pvc)
	if err := unstructured.SetNestedField(pvc.Object, v.PV, "spec", "volumeName"); err != nil {
		return nil, nil, v.problem("the backed-up claim has no spec: %v", err)
	}
	return pv, pvc, nil
}

// checkNode refuses a volume whose node is not there: no pod could ever use it.
func (c *Client) checkNode(ctx context.Context, v Volume) error {
	if v.Node == "" {
		return nil
	}
	list, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("looking for the node of the volume %s: %w", v.PV, c.explain(err))
	}
	var names []string
	for _, n := range list.Items {
		if n.Labels[corev1.LabelHostname] == v.Node || n.Name == v.Node {
			return nil
		}
		names = append(names, n.Name)
	}
	return v.problem("its node affinity names the node %s, and the cluster has %s; the node must come back under its name (K3s's node-name)", v.Node, cmp.Or(strings.Join(names, ", "), "no node"))
}

func (c *Client) getPV(ctx context.Context, v Volume) (*corev1.PersistentVolume, error) {
	pv, err := c.Kube.CoreV1().PersistentVolumes().Get(ctx, v.PV, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the persistent volume %s: %w", v.PV, c.explain(err))
	}
	return pv, nil
}

func (c *Client) getPVC(ctx context.Context, v Volume) (*corev1.PersistentVolumeClaim, error) {
	pvc, err := c.Kube.CoreV1().PersistentVolumeClaims(v.Namespace).Get(ctx, v.Claim, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the claim %s/%s: %w", v.Namespace, v.Claim, c.explain(err))
	}
	return pvc, nil
}

// checkVolume accepts a volume that exists if it is the one that would be
// created, or what became of it.
func (v Volume) checkVolume(have *corev1.PersistentVolume, wantObject *unstructured.Unstructured, claim *corev1.PersistentVolumeClaim) error {
	var want corev1.PersistentVolume
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(wantObject.Object, &want); err != nil {
		return v.problem("the backed-up volume cannot be read: %v", err)
	}
	var differ []string
	for _, f := range []struct {
		name       string
		have, want any
	}{
		{"source", have.Spec.PersistentVolumeSource, want.Spec.PersistentVolumeSource},
		{"capacity", have.Spec.Capacity, want.Spec.Capacity},
		{"accessModes", have.Spec.AccessModes, want.Spec.AccessModes},
		{"storageClassName", have.Spec.StorageClassName, want.Spec.StorageClassName},
		{"volumeMode", have.Spec.VolumeMode, want.Spec.VolumeMode},
		{"nodeAffinity", have.Spec.NodeAffinity, want.Spec.NodeAffinity},
	} {
		if !equality.Semantic.DeepEqual(f.have, f.want) {
			differ = append(differ, f.name)
		}
	}
	ref := have.Spec.ClaimRef
	switch {
	case have.DeletionTimestamp != nil:
		return v.problem("a volume of that name is being deleted")
	case len(differ) > 0:
		return v.problem("a volume of that name exists and differs in %s; it was left as it is", strings.Join(differ, ", "))
	case ref == nil && v.Claim == "":
		return nil
	case ref == nil:
		return v.problem("the volume exists and is not reserved for anything; set its claimRef or delete the object (policy Retain first)")
	case ref.Namespace != v.Namespace || ref.Name != v.Claim:
		return v.problem("the volume exists and belongs to the claim %s/%s", ref.Namespace, ref.Name)
	case have.Status.Phase == corev1.VolumeReleased || have.Status.Phase == corev1.VolumeFailed:
		return v.problem("the volume exists and is %s: its claimRef names an earlier claim; make sure that its policy is Retain, then remove spec.claimRef.uid", have.Status.Phase)
	case ref.UID != "" && (claim == nil || claim.UID != ref.UID):
		return v.problem("the volume exists with the UID of a claim that is not there; make sure that its policy is Retain, then remove spec.claimRef.uid")
	}
	return nil
}

// checkClaim accepts a claim that exists if it is bound to the volume, or will be:
// one of the same name, class and mode without a volume takes the one that is
// reserved for it.
func (v Volume) checkClaim(have *corev1.PersistentVolumeClaim, wantObject *unstructured.Unstructured) error {
	switch {
	case have.DeletionTimestamp != nil:
		return v.problem("a claim of that name is being deleted")
	case have.Status.Phase == corev1.ClaimLost:
		return v.problem("the claim exists and is Lost: it was bound to a volume that is gone; delete the claim")
	case have.Spec.VolumeName == v.PV:
		return nil
	case have.Spec.VolumeName != "":
		return v.problem("the claim exists and has the volume %s; it was left as it is", have.Spec.VolumeName)
	case have.Annotations["volume.kubernetes.io/selected-node"] != "":
		return v.problem("the claim exists, and a new, empty volume is being made for it; delete the claim")
	}
	if wantObject == nil {
		return v.problem("a claim of that name exists that the backup does not have")
	}
	var want corev1.PersistentVolumeClaim
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(wantObject.Object, &want); err != nil {
		return v.problem("the backed-up claim cannot be read: %v", err)
	}
	var differ []string
	if !equality.Semantic.DeepEqual(have.Spec.StorageClassName, want.Spec.StorageClassName) {
		differ = append(differ, "storageClassName")
	}
	if !equality.Semantic.DeepEqual(have.Spec.AccessModes, want.Spec.AccessModes) {
		differ = append(differ, "accessModes")
	}
	if !equality.Semantic.DeepEqual(have.Spec.VolumeMode, want.Spec.VolumeMode) {
		differ = append(differ, "volumeMode")
	}
	if !equality.Semantic.DeepEqual(have.Spec.Resources.Requests, want.Spec.Resources.Requests) {
		differ = append(differ, "resources")
	}
	if len(differ) > 0 {
		return v.problem("the claim exists and differs in %s; it was left as it is", strings.Join(differ, ", "))
	}
	return nil
}

func (c *Client) setPolicy(ctx context.Context, pv, policy string) error {
	patch, err := mergePatch(map[string]any{"spec": map[string]any{"persistentVolumeReclaimPolicy": policy}})
	if err != nil {
		return err
	}
	_, err = c.Kube.CoreV1().PersistentVolumes().Patch(ctx, pv, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
	if err != nil {
		return fmt.Errorf("setting the reclaim policy of the volume %s to %s: %w", pv, policy, c.explain(err))
	}
	return nil
}

func mergePatch(fields map[string]any) ([]byte, error) {
	patch, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("writing a patch: %w", err)
	}
	return patch, nil
}

// ReleaseReservation waits until a volume that ReserveVolume made is Bound to its
// claim, and then puts back the reclaim policy that it had. It may be called again.
//
// bound is false without an error when there is nothing to wait for: the volume had
// no claim. A volume that nobody claims gets its policy back; one whose claim was gone
// already (Released) keeps Retain, for with Delete its data would be removed. When
// ctx's deadline passes first, the error is a *WaitError, and the policy stays Retain.
// t may be nil.
func (c *Client) ReleaseReservation(ctx context.Context, v Volume, t Detailer) (bound bool, err error) {
	if len(v.ClaimObject) == 0 {
		if v.Claim != "" {
			return false, nil
		}
		return false, c.restorePolicy(ctx, v)
	}
	what := fmt.Sprintf("the claim %s/%s to be bound to its volume %s", v.Namespace, v.Claim, v.PV)
	err = c.wait(ctx, what, t, func(ctx context.Context) ([]string, error) {
		pv, err := c.getPV(ctx, v)
		if err != nil {
			return nil, err
		}
		if pv == nil {
			return nil, v.problem("the volume does not exist; reserve it first")
		}
		pvc, err := c.getPVC(ctx, v)
		if err != nil {
			return nil, err
		}
		return v.notBound(pv, pvc)
	}, func(ctx context.Context) []string {
		event := c.lastWarning(ctx, v.Namespace, "PersistentVolumeClaim", v.Claim)
		if event == "" {
			event = c.lastWarning(ctx, "", "PersistentVolume", v.PV)
		}
		if event == "" {
			return nil
		}
		return []string{"last warning: " + event}
	})
	if err != nil {
		return false, err
	}
	return true, c.restorePolicy(ctx, v)
}

// notBound says what keeps volume and claim from being bound to each other; an
// error is what no waiting will change.
func (v Volume) notBound(pv *corev1.PersistentVolume, pvc *corev1.PersistentVolumeClaim) ([]string, error) {
	switch {
	case pvc == nil:
		return nil, v.problem("the claim does not exist; reserve the volume again")
	case pvc.Spec.VolumeName != "" && pvc.Spec.VolumeName != v.PV:
		return nil, v.problem("the claim took another volume, %s", pvc.Spec.VolumeName)
	case pv.Status.Phase == corev1.VolumeReleased || pv.Status.Phase == corev1.VolumeFailed:
		return nil, v.problem("the volume is %s; its policy stays %s", pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy)
	case pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.Namespace != v.Namespace || pv.Spec.ClaimRef.Name != v.Claim:
		return nil, v.problem("the volume is not reserved for the claim any more")
	case pv.Status.Phase != corev1.VolumeBound:
		return []string{fmt.Sprintf("volume %s is %s", v.PV, cmp.Or(string(pv.Status.Phase), "without a phase"))}, nil
	case pv.Spec.ClaimRef.UID != pvc.UID:
		return nil, v.problem("the volume is bound to an earlier claim of that name")
	case pvc.Status.Phase != corev1.ClaimBound:
		return []string{fmt.Sprintf("claim %s/%s is %s", v.Namespace, v.Claim, cmp.Or(string(pvc.Status.Phase), "without a phase"))}, nil
	}
	return nil, nil
}

func (c *Client) restorePolicy(ctx context.Context, v Volume) error {
	pv, err := c.getPV(ctx, v)
	if err != nil {
		return err
	}
	if pv == nil {
		return v.problem("the volume does not exist; reserve it first")
	}
	if v.ReclaimPolicy == "" || string(pv.Spec.PersistentVolumeReclaimPolicy) == v.ReclaimPolicy {
		return nil
	}
	return c.setPolicy(ctx, v.PV, v.ReclaimPolicy)
}
