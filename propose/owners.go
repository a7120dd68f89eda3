package propose

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"

	"sunbeam.pt/k3s-dualstack/cluster"
)

// tools are known by the API groups that they bring; the resource's objects are
// listed by name.
var tools = []struct{ name, group, resource string }{
	{"cert-manager: Certificates", "cert-manager.io", "certificates"},
	{"cert-manager: Issuers", "cert-manager.io", "issuers"},
	{"cert-manager: ClusterIssuers", "cert-manager.io", "clusterissuers"},
	{"Vault Secrets Operator: VaultStaticSecrets", "secrets.hashicorp.com", "vaultstaticsecrets"},
	{"Vault Secrets Operator: VaultDynamicSecrets", "secrets.hashicorp.com", "vaultdynamicsecrets"},
	{"Vault Secrets Operator: VaultPKISecrets", "secrets.hashicorp.com", "vaultpkisecrets"},
	{"External Secrets", "external-secrets.io", "externalsecrets"},
	{"Velero: Schedules", "velero.io", "schedules"},
	{"Velero: BackupStorageLocations", "velero.io", "backupstoragelocations"},
	{"Argo CD: Applications", "argoproj.io", "applications"},
	{"Flux: Kustomizations", "kustomize.toolkit.fluxcd.io", "kustomizations"},
	{"Flux: HelmReleases", "helm.toolkit.fluxcd.io", "helmreleases"},
	{"Flux: GitRepositories", "source.toolkit.fluxcd.io", "gitrepositories"},
	{"K3s: HelmCharts", "helm.cattle.io", "helmcharts"},
	{"K3s: HelmChartConfigs", "helm.cattle.io", "helmchartconfigs"},
}

// The gaps where owners could not be asked for.
const (
	whichOwners   = "who put the workloads there (Helm, Argo CD, Flux, operators)"
	whichReleases = "Helm releases"
)

// readOwners lists names alone: what the objects hold stays in the cluster.
func (f *Found) readOwners(ctx context.Context, c *cluster.Client) {
	client, err := metadata.NewForConfig(c.REST)
	if err != nil {
		f.gap(whichOwners, err)
		return
	}
	releases, err := list(ctx, client, schema.GroupVersionResource{Version: "v1", Resource: "secrets"},
		metav1.ListOptions{LabelSelector: "owner=helm,status=deployed", FieldSelector: "type=helm.sh/release.v1"})
	if err != nil {
		f.gap(whichReleases, err)
	}
	var names []string
	for _, r := range releases {
		names = append(names, r.Namespace+"/"+r.Labels["name"])
	}
	f.own(whichReleases, names)

	groups, err := c.Kube.Discovery().ServerGroups()
	if err != nil {
		f.gap(whichOwners, fmt.Errorf("asking the API server for its groups: %w", err))
		return
	}
	for _, tool := range tools {
		i := slices.IndexFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == tool.group })
		if i < 0 {
			continue
		}
		gv := schema.GroupVersion{Group: tool.group, Version: groups.Groups[i].PreferredVersion.Version}
		objects, err := list(ctx, client, gv.WithResource(tool.resource), metav1.ListOptions{})
		if err != nil {
			f.gap(tool.name, err)
			continue
		}
		var names []string
		for _, o := range objects {
			names = append(names, strings.TrimPrefix(o.Namespace+"/"+o.Name, "/"))
		}
		f.own(tool.name, names)
	}
}

func (f *Found) own(tool string, names []string) {
	slices.Sort(names)
	if names = slices.Compact(names); len(names) > 0 {
		f.Owners = append(f.Owners, Owner{Tool: tool, Names: names})
	}
}

// list gets the metadata of objects, page by page. A resource that the server
// does not have is an empty list: groups differ from version to version.
func list(ctx context.Context, client metadata.Interface, gvr schema.GroupVersionResource, o metav1.ListOptions) ([]metav1.PartialObjectMetadata, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var out []metav1.PartialObjectMetadata
	for o.Limit = 500; ; {
		page, err := client.Resource(gvr).List(ctx, o)
		if absent(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", gvr.GroupResource(), err)
		}
		out = append(out, page.Items...)
		if o.Continue = page.Continue; o.Continue == "" {
			return out, nil
		}
	}
}

// pods are all of the cluster.
func pods(ctx context.Context, c *cluster.Client) ([]corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var out []corev1.Pod
	for o := (metav1.ListOptions{Limit: 500}); ; {
		page, err := c.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("listing pods: %w", err)
		}
		out = append(out, page.Items...)
		if o.Continue = page.Continue; o.Continue == "" {
			return out, nil
		}
	}
}

// absent tells that the server does not have a resource.
func absent(err error) bool { return apierrors.IsNotFound(err) || meta.IsNoMatchError(err) }
