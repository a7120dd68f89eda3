package survey

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
)

// Workloads is what of the cluster's work the rebuild interrupts, or may not
// bring back.
type Workloads struct {
	// Unbound are the claims that have no volume.
	Unbound []Claim `json:"unbound,omitempty"`
	// Jobs are running, as namespace/name.
	Jobs []string `json:"jobs,omitempty"`
	// Unsettled are pods that are neither running nor over, with their state.
	Unsettled []string `json:"unsettled,omitempty"`
	// Images are those that no registry gave.
	Images []Image `json:"images,omitempty"`
	// HostPaths are directories in K3s's that pods use past any volume.
	HostPaths []HostPath `json:"hostPaths,omitempty"`
	// Certificates are cert-manager's.
	Certificates []Certificate `json:"certificates,omitempty"`
}

// Claim is a persistent volume claim without a volume.
type Claim struct {
	Name  string `json:"name"` // namespace/name
	Phase string `json:"phase"`
}

// Image is what a container runs that was not pulled.
type Image struct {
	Name string `json:"name"`
	Pod  string `json:"pod"` // namespace/name
	// Never tells that the pod forbids to pull it; else it was put there by hand.
	Never bool `json:"never,omitempty"`
}

// HostPath is a directory of the host that a pod uses.
type HostPath struct {
	Path string `json:"path"`
	Pod  string `json:"pod"` // namespace/name
}

// Certificate of cert-manager.
type Certificate struct {
	Name    string    `json:"name"` // namespace/name
	Ready   bool      `json:"ready"`
	Renewal time.Time `json:"renewal,omitzero"`
	// Requests were made for it in the week before the survey.
	Requests int `json:"requests,omitempty"`
}

func (w *Workloads) parts(c *cluster.Client, in *k3s.Installation, now time.Time) []part {
	return []part{
		{Claims, func(ctx context.Context) error {
			claims, err := c.Kube.CoreV1().PersistentVolumeClaims("").List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("cluster: listing persistent volume claims: %w", err)
			}
			for _, p := range claims.Items {
				if p.Status.Phase != corev1.ClaimBound {
					w.Unbound = append(w.Unbound, Claim{p.Namespace + "/" + p.Name, string(p.Status.Phase)})
				}
			}
			return nil
		}},
		{Jobs, func(ctx context.Context) error {
			jobs, err := c.Kube.BatchV1().Jobs("").List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("cluster: listing jobs: %w", err)
			}
			for _, j := range jobs.Items {
				if j.Status.Active > 0 {
					w.Jobs = append(w.Jobs, j.Namespace+"/"+j.Name)
				}
			}
			return nil
		}},
		{Pods, func(ctx context.Context) error {
			pods, err := c.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("cluster: listing pods: %w", err)
			}
			for _, p := range pods.Items {
				w.addPod(p, in)
			}
			return nil
		}},
		{Certificates, func(ctx context.Context) (err error) { w.Certificates, err = certificates(ctx, c, now); return err }},
	}
}

func (w *Workloads) addPod(p corev1.Pod, in *k3s.Installation) {
	name := p.Namespace + "/" + p.Name
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return // nothing of it runs again
	}
	switch {
	case p.DeletionTimestamp != nil:
		w.Unsettled = append(w.Unsettled, name+": being deleted")
	case p.Status.Phase != corev1.PodRunning:
		w.Unsettled = append(w.Unsettled, name+": "+string(p.Status.Phase))
	}
	never := map[string]bool{} // by container
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		never[c.Name] = c.ImagePullPolicy == corev1.PullNever
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if p.Namespace == metav1.NamespaceSystem {
			break // K3s's own, which it brings again
		}
		// What was pulled is known by the digest in its repository.
		imported := s.ImageID != "" && !strings.Contains(s.ImageID, "@")
		image := Image{Name: s.Image, Pod: name, Never: never[s.Name]}
		if (imported || image.Never) && !slices.ContainsFunc(w.Images, func(i Image) bool { return i.Name == image.Name }) {
			w.Images = append(w.Images, image)
		}
	}
	for _, v := range p.Spec.Volumes {
		if v.HostPath != nil && endangered(v.HostPath.Path, in) {
			w.HostPaths = append(w.HostPaths, HostPath{path.Clean(v.HostPath.Path), name})
		}
	}
}

// endangered tells whether a directory goes with K3s and is not kept: the storage
// is, the server directory is, and what the kubelet and the agent have in theirs
// is made anew.
func endangered(dir string, in *k3s.Installation) bool {
	within := func(parent string) bool {
		return strings.HasPrefix(path.Clean(dir)+"/", path.Clean(parent)+"/")
	}
	for _, kept := range []string{
		in.Storage(), in.ServerDir(), path.Join(in.DataDir, "agent"), path.Join(in.DataDir, "data"),
		path.Join(kubelet, "pods"), path.Join(kubelet, "plugins"), path.Join(kubelet, "plugins_registry"),
		path.Join(kubelet, "device-plugins"), path.Join(kubelet, "pod-resources"), path.Join(kubelet, "seccomp"),
	} {
		if within(kept) {
			return false
		}
	}
	if path.Clean(dir) == kubelet || path.Clean(dir) == path.Clean(in.DataDir) {
		return false // to look at what is in there
	}
	return within(in.DataDir) || within(kubelet)
}

// certificates are cert-manager's, none without it.
func certificates(ctx context.Context, c *cluster.Client, now time.Time) ([]Certificate, error) {
	list := func(resource string) ([]unstructured.Unstructured, error) {
		l, err := c.Dynamic.Resource(schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: resource}).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cluster: listing %s of cert-manager: %w", resource, err)
		}
		return l.Items, nil
	}
	found, err := list("certificates")
	if err != nil || len(found) == 0 {
		return nil, err
	}
	requests, err := list("certificaterequests")
	if err != nil {
		return nil, err
	}
	recent := map[string]int{}
	for _, r := range requests {
		if now.Sub(r.GetCreationTimestamp().Time) < 7*24*time.Hour {
			recent[r.GetNamespace()+"/"+r.GetAnnotations()["cert-manager.io/certificate-name"]]++
		}
	}
	var out []Certificate
	for _, u := range found {
		cert := describeCertificate(u)
		cert.Requests = recent[cert.Name]
		out = append(out, cert)
	}
	return out, nil
}

func describeCertificate(u unstructured.Unstructured) Certificate {
	cert := Certificate{Name: u.GetNamespace() + "/" + u.GetName()}
	renewal, _, _ := unstructured.NestedString(u.Object, "status", "renewalTime")
	if t, err := time.Parse(time.RFC3339, renewal); err == nil {
		cert.Renewal = t.UTC()
	}
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == "Ready" {
			cert.Ready = m["status"] == "True"
		}
	}
	return cert
}
