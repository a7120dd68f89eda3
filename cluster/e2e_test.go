//go:build e2e

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"

	"sunbeam.pt/k3s-dualstack/plans"
)

// namespaced makes a namespace of the test's own.
func namespaced(t *testing.T, c *Client) string {
	t.Helper()
	ns, err := c.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	return ns.Name
}

func service(t *testing.T, c *Client, ns, name string, change func(*corev1.Service)) *corev1.Service {
	t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}
	change(s)
	s, err := c.Kube.CoreV1().Services(ns).Create(t.Context(), s, metav1.CreateOptions{})
	require.NoError(t, err)
	return s
}

func find(t *testing.T, changes []ServiceChange, ns, name string) ServiceChange {
	t.Helper()
	i := slices.IndexFunc(changes, func(c ServiceChange) bool { return c.Namespace == ns && c.Name == name })
	require.GreaterOrEqual(t, i, 0, "no Service %s/%s", ns, name)
	return changes[i]
}

func TestServicesBecomeDualStack(t *testing.T) {
	for _, policy := range []plans.ServicePolicy{plans.ServicesPreferDualStack, plans.ServicesRequireDualStack} {
		t.Run(string(policy), func(t *testing.T) {
			c := connected(t, dualStack)
			ns := namespaced(t, c)
			none := func(s *corev1.Service) {}
			cases := []struct {
				name    string
				make    func(*corev1.Service)
				patched bool
				ips     int
			}{
				{"clusterip", none, true, 2},
				{"nodeport", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, true, 2},
				{"loadbalancer", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }, true, 2},
				{"v6first", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }, true, 2},
				{"headless", func(s *corev1.Service) { s.Spec.ClusterIP = "None" }, true, 1},
				{"noselector", func(s *corev1.Service) { s.Spec.Selector = nil }, true, 2},
				{"headless-noselector", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.Selector = "None", nil }, false, 1},
				{"external", func(s *corev1.Service) {
					s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}
				}, false, 0},
				{"excluded", none, false, 1},
				{"dual", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack) }, false, 2},
			}
			before := map[string]*corev1.Service{}
			for _, tc := range cases {
				before[tc.name] = service(t, c, ns, tc.name, tc.make)
			}
			changes, err := c.Services(t.Context(), policy, []string{ns + "/excluded"})
			require.NoError(t, err)
			for _, tc := range cases {
				change := find(t, changes, ns, tc.name)
				if tc.patched {
					require.Empty(t, change.Skip, tc.name)
					require.NoError(t, c.PatchService(t.Context(), change), tc.name)
					require.NoError(t, c.PatchService(t.Context(), change), "%s: a second time", tc.name)
				} else {
					require.NotEmpty(t, change.Skip, tc.name)
					require.Error(t, c.PatchService(t.Context(), change), tc.name)
				}
				s, err := c.Kube.CoreV1().Services(ns).Get(t.Context(), tc.name, metav1.GetOptions{})
				require.NoError(t, err)
				assert.Len(t, s.Spec.ClusterIPs, tc.ips, tc.name)
				assert.Equal(t, before[tc.name].Spec.ClusterIP, s.Spec.ClusterIP, "%s keeps its address", tc.name)
				if tc.patched {
					assert.Len(t, s.Spec.IPFamilies, 2, tc.name)
					assert.Equal(t, before[tc.name].Spec.IPFamilies[0], s.Spec.IPFamilies[0], "%s keeps its first family", tc.name)
					assert.EqualValues(t, policy, *s.Spec.IPFamilyPolicy, tc.name)
				} else {
					assert.Equal(t, before[tc.name].ResourceVersion, s.ResourceVersion, "%s was written to", tc.name)
				}
			}

			changes, err = c.Services(t.Context(), policy, nil)
			require.NoError(t, err)
			for _, tc := range cases {
				if change := find(t, changes, ns, tc.name); tc.patched {
					assert.Equal(t, "dual-stack already", change.Skip, tc.name)
				}
			}
			assert.NotEmpty(t, find(t, changes, "default", "kubernetes").Skip)
		})
	}
}

// A Service made with PreferDualStack while the cluster was single-stack has one
// address, and setting the policy that it has changes nothing. So it is made: the same
// datastore, first single-stack, then dual-stack.
func TestServicePreferDualStackFromBefore(t *testing.T) {
	parts := binaries(t)
	server, err := startAPIServer(parts, singleStack)
	require.NoError(t, err)
	t.Cleanup(func() {
		server.stop()
		os.RemoveAll(server.dir)
	})
	server.logged(t)
	require.NoError(t, server.ready(t.Context()))
	c, err := Connect(&net.Dialer{}, server.kubeconfig)
	require.NoError(t, err)
	prefer := func(s *corev1.Service) { s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyPreferDualStack) }
	old := service(t, c, "default", "old", prefer)
	require.Len(t, old.Spec.ClusterIPs, 1)
	headless := service(t, c, "default", "headless", func(s *corev1.Service) {
		prefer(s)
		s.Spec.ClusterIP = "None"
	})
	require.Len(t, headless.Spec.IPFamilies, 1)

	server.proc.end()
	for i, arg := range server.args {
		if strings.HasPrefix(arg, "--service-cluster-ip-range=") {
			server.args[i] = "--service-cluster-ip-range=" + dualStack
		}
	}
	require.NoError(t, server.again())
	require.NoError(t, server.ready(t.Context()))
	require.Eventually(t, func() bool {
		cidrs, err := c.ServiceCIDRs(t.Context())
		return err == nil && len(cidrs) == 2
	}, time.Minute, 200*time.Millisecond)

	after, err := c.Kube.CoreV1().Services("default").Patch(t.Context(), "old", types.MergePatchType, []byte(`{"spec":{"ipFamilyPolicy":"PreferDualStack"}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	require.Len(t, after.Spec.IPFamilies, 1, "the rule would not be needed")

	changes, err := c.Services(t.Context(), plans.ServicesPreferDualStack, nil)
	require.NoError(t, err)
	for _, name := range []string{"old", "headless"} {
		change := find(t, changes, "default", name)
		require.Equal(t, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, change.WantFamilies)
		require.NoError(t, c.PatchService(t.Context(), change))
	}
	after, err = c.Kube.CoreV1().Services("default").Get(t.Context(), "old", metav1.GetOptions{})
	require.NoError(t, err)
	require.Len(t, after.Spec.ClusterIPs, 2)
	require.Equal(t, old.Spec.ClusterIP, after.Spec.ClusterIP)
}

func TestServiceOnSingleStackClusterStaysAndIsNamed(t *testing.T) {
	c := connected(t, singleStack)
	ns := namespaced(t, c)
	for name, make := range map[string]func(*corev1.Service){
		"single":   func(s *corev1.Service) {},
		"headless": func(s *corev1.Service) { s.Spec.ClusterIP = "None" },
	} {
		service(t, c, ns, name, make)
		changes, err := c.Services(t.Context(), plans.ServicesPreferDualStack, nil)
		require.NoError(t, err)
		err = c.PatchService(t.Context(), find(t, changes, ns, name))
		require.ErrorIs(t, err, ErrStillSingleStack)
		s, err := c.Kube.CoreV1().Services(ns).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		assert.Equal(t, corev1.IPFamilyPolicySingleStack, *s.Spec.IPFamilyPolicy, "the dry run came first: nothing was written")
	}
}

func TestServiceCIDRsAndIdentity(t *testing.T) {
	single, dual := connected(t, singleStack), connected(t, dualStack)
	require.Eventually(t, func() bool {
		got, err := dual.ServiceCIDRs(t.Context())
		return err == nil && slices.Equal(got, []string{"10.43.0.0/16", "fd43::/108"})
	}, 20*time.Second, 200*time.Millisecond)
	require.Eventually(t, func() bool {
		got, err := single.ServiceCIDRs(t.Context())
		return err == nil && slices.Equal(got, []string{"10.43.0.0/16"})
	}, 20*time.Second, 200*time.Millisecond)

	one, err := single.Identity(t.Context())
	require.NoError(t, err)
	other, err := dual.Identity(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, one)
	require.NotEqual(t, one, other)
}

func node(t *testing.T, c *Client, name string, cidrs ...string) {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	if len(cidrs) > 0 {
		n.Spec.PodCIDR = cidrs[0]
	}
	_, err := c.Kube.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { c.Kube.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}) })
}

func setReady(t *testing.T, c *Client, name string, status corev1.ConditionStatus, reason, message string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Reason: reason, Message: message}}}})
	require.NoError(t, err)
	_, err = c.Kube.CoreV1().Nodes().Patch(t.Context(), name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	require.NoError(t, err)
}

func TestWaitNode(t *testing.T) {
	c := connected(t, dualStack)
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	var waited *WaitError
	err := c.WaitNode(soon(), "n1", 2, nil)
	require.ErrorAs(t, err, &waited)
	assert.ErrorContains(t, err, "node n1 has not registered (there is no node yet)")

	node(t, c, "n1", "10.42.0.0/24")
	setReady(t, c, "n1", corev1.ConditionFalse, "KubeletNotReady", "cni plugin not initialized")
	err = c.WaitNode(soon(), "n1", 2, nil)
	require.ErrorAs(t, err, &waited)
	assert.ErrorContains(t, err, "node n1 is not Ready: KubeletNotReady: cni plugin not initialized")
	assert.ErrorContains(t, err, "podCIDRs of 1 of 2 families (10.42.0.0/24)")
	assert.ErrorContains(t, c.WaitNode(soon(), "other", 1, nil), "the cluster has n1")

	node(t, c, "n2", "10.42.1.0/24", "fd42:0:0:1::/64")
	setReady(t, c, "n2", corev1.ConditionTrue, "KubeletReady", "")
	require.NoError(t, c.WaitNode(soon(), "n2", 2, nil))
	cidrs, err := c.PodCIDRs(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string][]string{"n1": {"10.42.0.0/24"}, "n2": {"10.42.1.0/24", "fd42:0:0:1::/64"}}, cidrs)
}

// An API server that goes away in the middle of a wait is waited for.
func TestWaitOutlivesARestart(t *testing.T) {
	server, c := startedWith(t, singleStack), connected(t, singleStack)
	server.logged(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	seen := make(details, 100)
	done := make(chan error, 1)
	go func() { done <- c.WaitNode(ctx, "late", 1, seen) }()
	seen.until(t, "has not registered")
	server.proc.end()
	seen.until(t, "does not answer")
	require.NoError(t, server.again())
	require.NoError(t, c.WaitAPI(ctx, nil))
	node(t, c, "late", "10.42.9.0/24")
	setReady(t, c, "late", corev1.ConditionTrue, "KubeletReady", "")
	require.NoError(t, <-done)
}

// details receives what a wait shows.
type details chan string

func (d details) Detail(s string) {
	select {
	case d <- s:
	default:
	}
}

func (d details) until(t *testing.T, part string) {
	t.Helper()
	for {
		select {
		case s := <-d:
			if strings.Contains(s, part) {
				return
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("never heard of %q", part)
		}
	}
}

func TestConnectErrorsAreTyped(t *testing.T) {
	one, other := startedWith(t, singleStack), startedWith(t, dualStack)
	connected(t, singleStack)
	connected(t, dualStack)

	t.Run("unreachable", func(t *testing.T) {
		port, err := freePort()
		require.NoError(t, err)
		c, err := Connect(&net.Dialer{}, bytes.ReplaceAll(one.kubeconfig, []byte(fmt.Sprint(one.port)), []byte(fmt.Sprint(port))))
		require.NoError(t, err)
		_, err = c.Identity(t.Context())
		var unreachable *UnreachableError
		require.ErrorAs(t, err, &unreachable)
		ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
		defer cancel()
		err = c.WaitAPI(ctx, nil)
		require.ErrorAs(t, err, &unreachable)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
	t.Run("another cluster's kubeconfig", func(t *testing.T) {
		c, err := Connect(&net.Dialer{}, bytes.ReplaceAll(one.kubeconfig, []byte(fmt.Sprint(one.port)), []byte(fmt.Sprint(other.port))))
		require.NoError(t, err)
		_, err = c.Identity(t.Context())
		var untrusted *UntrustedError
		require.ErrorAs(t, err, &untrusted)
		require.ErrorAs(t, c.WaitAPI(t.Context(), nil), &untrusted, "no deadline: it must not wait")
	})
	t.Run("credentials of nobody", func(t *testing.T) {
		c, err := Connect(&net.Dialer{}, one.kubeconfig)
		require.NoError(t, err)
		user := c.config.AuthInfos[clusterName]
		user.ClientCertificateData, user.ClientKeyData, user.Token = nil, nil, "nobody"
		c, err = Connect(&net.Dialer{}, written(t, c))
		require.NoError(t, err)
		_, err = c.Identity(t.Context())
		var unauthorised *UnauthorisedError
		require.ErrorAs(t, err, &unauthorised)
	})
}

func TestForward(t *testing.T) {
	server, c := startedWith(t, singleStack), connected(t, singleStack)
	kubeconfig, stop, err := c.Forward(t.Context())
	require.NoError(t, err)
	require.NotContains(t, string(kubeconfig), fmt.Sprintf(":%d", server.port))
	through, err := Connect(&net.Dialer{}, kubeconfig)
	require.NoError(t, err)
	id, err := through.Identity(t.Context())
	require.NoError(t, err)
	direct, err := c.Identity(t.Context())
	require.NoError(t, err)
	require.Equal(t, direct, id)

	// A program, as the platform command is one.
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, kubeconfig, 0o600))
	kubectl := filepath.Join(t.TempDir(), "kubectl")
	require.NoError(t, os.Symlink(filepath.Join(os.Getenv("KUBERNETES_PARTS"), "kubernetes"), kubectl))
	out, err := exec.CommandContext(t.Context(), kubectl, "--kubeconfig", file, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, direct, string(out))

	stop()
	stop()
	_, err = through.Identity(t.Context())
	var unreachable *UnreachableError
	require.ErrorAs(t, err, &unreachable)
}

func lines(t *testing.T, data []byte) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	scan := bufio.NewScanner(bytes.NewReader(data))
	scan.Buffer(nil, 16<<20)
	for scan.Scan() {
		u := &unstructured.Unstructured{}
		require.NoError(t, u.UnmarshalJSON(scan.Bytes()), "%s", scan.Text())
		out = append(out, u)
	}
	require.NoError(t, scan.Err())
	return out
}

func TestExport(t *testing.T) {
	c := connected(t, dualStack)
	ns := namespaced(t, c)
	// More than two pages of one kind.
	const many = 2*pageSize + 7
	for i := range many {
		_, err := c.Kube.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%05d", i)}}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	service(t, c, ns, "s", func(*corev1.Service) {})
	_, err := c.Kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "k"}, Data: map[string][]byte{"a": {0, 255}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = c.Kube.CoreV1().Events(ns).Create(t.Context(), &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, InvolvedObject: corev1.ObjectReference{Namespace: ns}}, metav1.CreateOptions{})
	require.NoError(t, err)
	widgets := customResource(t, c)
	_, err = c.Dynamic.Resource(widgets).Namespace(ns).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.org/v1", "kind": "Widget", "metadata": map[string]any{"name": "w"}, "big": int64(9007199254740993),
	}}, metav1.CreateOptions{})
	require.NoError(t, err)

	export := func() (Exported, []byte) {
		var buf bytes.Buffer
		out, err := c.Export(t.Context(), []string{"events", "events.events.k8s.io", "nothings.example.org"}, &buf)
		require.NoError(t, err)
		return out, buf.Bytes()
	}
	out, data := export()
	require.Equal(t, []string{`the exclusion "nothings.example.org" matches no resource of this cluster`}, out.Warnings)
	objects := lines(t, data)
	require.Len(t, objects, out.Objects)
	var kinds []string
	configMaps := 0
	for _, u := range objects {
		require.NotEmpty(t, u.GetAPIVersion())
		if u.GetKind() == "ConfigMap" && u.GetNamespace() == ns {
			require.Equal(t, fmt.Sprintf("c%05d", configMaps), u.GetName())
			configMaps++
		}
		if !slices.Contains(kinds, u.GetKind()) {
			kinds = append(kinds, u.GetKind())
		}
		require.NotEqual(t, "Event", u.GetKind())
		if u.GetKind() == "Widget" {
			require.EqualValues(t, int64(9007199254740993), u.Object["big"], "numbers stay as they are")
		}
	}
	require.Equal(t, many, configMaps)
	require.Equal(t, []string{"Namespace", "CustomResourceDefinition"}, kinds[:2])
	require.Equal(t, "Widget", kinds[len(kinds)-1])
	require.Less(t, slices.Index(kinds, "Secret"), slices.Index(kinds, "ConfigMap"))
	require.Less(t, slices.Index(kinds, "ConfigMap"), slices.Index(kinds, "Service"))

	// The same cluster gives the same order.
	_, again := export()
	names := func(objects []*unstructured.Unstructured) (s []string) {
		for _, u := range objects {
			if u.GetKind() != "Lease" {
				s = append(s, u.GroupVersionKind().String()+" "+u.GetNamespace()+"/"+u.GetName())
			}
		}
		return s
	}
	require.Equal(t, names(objects), names(lines(t, again)))

	// What was exported and stripped can be created again.
	for _, u := range objects {
		if u.GetNamespace() != ns || u.GetKind() == "ConfigMap" && u.GetName() != "c00000" {
			continue
		}
		if _, err := c.Kube.CoreV1().Namespaces().Get(t.Context(), ns+"-again", metav1.GetOptions{}); apierrors.IsNotFound(err) {
			_, err := c.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns + "-again"}}, metav1.CreateOptions{})
			require.NoError(t, err)
		}
		gvr, ok := map[string]schema.GroupVersionResource{
			"ConfigMap": {Version: "v1", Resource: "configmaps"}, "Secret": {Version: "v1", Resource: "secrets"},
			"Service": {Version: "v1", Resource: "services"}, "Widget": widgets,
		}[u.GetKind()]
		if !ok {
			continue
		}
		Strip(u)
		u.SetNamespace(ns + "-again")
		_, err := c.Dynamic.Resource(gvr).Namespace(ns+"-again").Create(t.Context(), u, metav1.CreateOptions{})
		require.NoError(t, err, "%s %s", u.GetKind(), u.GetName())
	}
}

func customResource(t *testing.T, c *Client) schema.GroupVersionResource {
	t.Helper()
	gvr := schema.GroupVersionResource{Group: "example.org", Version: "v1", Resource: "widgets"}
	defined(t, c, gvr, "Widget", map[string]any{})
	require.Eventually(t, func() bool {
		resources, _, err := c.resources(nil)
		return err == nil && slices.ContainsFunc(resources, func(r resource) bool { return r.gvr == gvr })
	}, 30*time.Second, 200*time.Millisecond)
	return gvr
}

// defined makes a kind for the time of the test.
func defined(t *testing.T, c *Client, gvr schema.GroupVersionResource, kind string, subresources map[string]any) {
	t.Helper()
	crds := c.Dynamic.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	name := gvr.Resource + "." + gvr.Group
	_, err := crds.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"group": gvr.Group, "scope": "Namespaced", "names": map[string]any{"plural": gvr.Resource, "kind": kind},
			"versions": []any{map[string]any{"name": gvr.Version, "served": true, "storage": true, "subresources": subresources, "schema": map[string]any{
				"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
		},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = crds.Delete(context.Background(), name, metav1.DeleteOptions{})
		assert.Eventually(t, func() bool {
			_, err := crds.Get(context.Background(), name, metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		}, 30*time.Second, 100*time.Millisecond, "%s stays", name)
	})
	require.Eventually(t, func() bool {
		_, err := c.Dynamic.Resource(gvr).List(t.Context(), metav1.ListOptions{})
		return err == nil
	}, 30*time.Second, 200*time.Millisecond)
}

// An API group whose backend is gone does not stop the export, and is not passed over
// in silence.
func TestExportNamesABrokenAPIService(t *testing.T) {
	c := connected(t, singleStack)
	apiServices := schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
	_, err := c.Dynamic.Resource(apiServices).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": "v1.broken.example.org"},
		"spec": map[string]any{
			"group": "broken.example.org", "version": "v1", "groupPriorityMinimum": int64(1000), "versionPriority": int64(15), "insecureSkipTLSVerify": true,
			"service": map[string]any{"namespace": "default", "name": "gone"},
		},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Dynamic.Resource(apiServices).Delete(context.Background(), "v1.broken.example.org", metav1.DeleteOptions{})
	})
	require.Eventually(t, func() bool {
		var buf bytes.Buffer
		out, err := c.Export(t.Context(), nil, &buf)
		require.NoError(t, err)
		return out.Objects > 0 && len(out.Warnings) == 1 && strings.Contains(out.Warnings[0], "broken.example.org/v1")
	}, 30*time.Second, 500*time.Millisecond)
}

func TestSecrets(t *testing.T) {
	c := connected(t, dualStack)
	ns := namespaced(t, c)
	make := func(name string, typ corev1.SecretType, labels, annotations map[string]string, data map[string][]byte) {
		_, err := c.Kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "cert-manager.io/v1", Kind: "Certificate", Name: name, UID: "u"}}},
			Type: typ, Data: data}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	pair := map[string][]byte{"tls.crt": []byte("c"), "tls.key": []byte("k")}
	make("pingora-tls", corev1.SecretTypeTLS, nil, map[string]string{"cert-manager.io/issuer-name": "letsencrypt"}, pair)
	make("account-key", corev1.SecretTypeOpaque, map[string]string{"keep": "me"}, nil, map[string][]byte{"tls.key": []byte("a")})
	make("next", corev1.SecretTypeOpaque, map[string]string{"cert-manager.io/next-private-key": "true", "keep": "me"}, nil, nil)
	make("k3s-serving", corev1.SecretTypeTLS, nil, map[string]string{"listener.cattle.io/cn-127.0.0.1": "127.0.0.1"}, pair)
	make("other", corev1.SecretTypeOpaque, nil, nil, nil)

	got, err := c.TLSSecrets(t.Context(), []string{"keep=me"})
	require.NoError(t, err)
	var names []string
	for _, s := range got {
		if s.Namespace == ns {
			names = append(names, s.Name)
		}
	}
	require.Equal(t, []string{"account-key", "pingora-tls"}, names)
	_, err = c.TLSSecrets(t.Context(), []string{"a=b=c"})
	require.ErrorContains(t, err, `"a=b=c"`)

	// Into another namespace, as into another cluster.
	again := corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns + "-again", UID: "old", ResourceVersion: "7", Labels: map[string]string{"a": "b"}}}
	require.NoError(t, c.ApplyNamespace(t.Context(), again))
	require.NoError(t, c.ApplyNamespace(t.Context(), again), "a second time")
	again.Labels["more"] = "yes"
	require.NoError(t, c.ApplyNamespace(t.Context(), again), "what is lacking is added")
	have, err := c.Kube.CoreV1().Namespaces().Get(t.Context(), again.Name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "yes", have.Labels["more"])
	again.Labels["a"] = "c"
	var different *DifferentError
	require.ErrorAs(t, c.ApplyNamespace(t.Context(), again), &different)
	require.Equal(t, []string{"labels[a]"}, different.Fields)

	for _, s := range got {
		if s.Namespace != ns {
			continue
		}
		s.Namespace = again.Name
		require.NoError(t, c.ApplySecret(t.Context(), s))
		require.NoError(t, c.ApplySecret(t.Context(), s), "a second time")
		have, err := c.Kube.CoreV1().Secrets(again.Name).Get(t.Context(), s.Name, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, s.Data, have.Data)
		require.Equal(t, s.Annotations, have.Annotations)
		require.Empty(t, have.OwnerReferences)
		s.Data = map[string][]byte{"tls.crt": []byte("topsecret"), "tls.key": []byte("k")}
		err = c.ApplySecret(t.Context(), s)
		require.ErrorAs(t, err, &different)
		require.Contains(t, different.Fields, "data[tls.crt]")
		require.NotContains(t, err.Error(), "topsecret")
	}
	orphan := got[0]
	orphan.Namespace = "no-such-namespace"
	require.Error(t, c.ApplySecret(t.Context(), orphan))
}

// localVolume is a volume as local-path-provisioner makes it, bound to its claim.
func localVolume(t *testing.T, c *Client, ns, claim, nodeName string, policy corev1.PersistentVolumeReclaimPolicy) string {
	t.Helper()
	pv := "pvc-" + ns + "-" + claim
	requests := corev1.ResourceList{corev1.ResourceStorage: quantity.MustParse("1Gi")}
	_, err := c.Kube.CoreV1().PersistentVolumes().Create(t.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: pv, Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": "rancher.io/local-path"}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: requests, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: "local-path",
			PersistentVolumeReclaimPolicy: policy,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/data/" + pv}},
			ClaimRef:                      &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: ns, Name: claim},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{nodeName}}},
			}}}},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = c.Kube.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: claim, Labels: map[string]string{"app": "db"}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: new("local-path"), VolumeName: pv,
			Resources: corev1.VolumeResourceRequirements{Requests: requests},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		// The binder writes the volume first, the claim's status last.
		got, err := c.Kube.CoreV1().PersistentVolumes().Get(t.Context(), pv, metav1.GetOptions{})
		if err != nil || got.Status.Phase != corev1.VolumeBound {
			return false
		}
		pvc, err := c.Kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), claim, metav1.GetOptions{})
		return err == nil && pvc.Status.Phase == corev1.ClaimBound
	}, 60*time.Second, 200*time.Millisecond, "the binder did not bind %s", pv)
	return pv
}

// gone removes a volume and its claim as an uninstall does: the objects are away,
// nobody reclaims anything.
func gone(t *testing.T, c *Client, v Volume) {
	t.Helper()
	require.NoError(t, c.setPolicy(t.Context(), v.PV, "Retain"))
	unfinalised := []byte(`{"metadata":{"finalizers":null}}`)
	claims, pvs := c.Kube.CoreV1().PersistentVolumeClaims(v.Namespace), c.Kube.CoreV1().PersistentVolumes()
	if err := pvs.Delete(t.Context(), v.PV, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		require.NoError(t, err)
		_, _ = pvs.Patch(t.Context(), v.PV, types.MergePatchType, unfinalised, metav1.PatchOptions{})
	}
	if err := claims.Delete(t.Context(), v.Claim, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		require.NoError(t, err)
		_, _ = claims.Patch(t.Context(), v.Claim, types.MergePatchType, unfinalised, metav1.PatchOptions{})
	}
	require.Eventually(t, func() bool {
		_, err1 := pvs.Get(t.Context(), v.PV, metav1.GetOptions{})
		_, err2 := claims.Get(t.Context(), v.Claim, metav1.GetOptions{})
		return apierrors.IsNotFound(err1) && apierrors.IsNotFound(err2)
	}, 30*time.Second, 100*time.Millisecond)
}

func volumeOf(t *testing.T, c *Client, pv string) Volume {
	t.Helper()
	all, err := c.Volumes(t.Context())
	require.NoError(t, err)
	i := slices.IndexFunc(all, func(v Volume) bool { return v.PV == pv })
	require.GreaterOrEqual(t, i, 0)
	return all[i]
}

func TestReserveAndRelease(t *testing.T) {
	startedWith(t, dualStack).logged(t)
	c := connected(t, dualStack)
	ns := namespaced(t, c)
	node(t, c, "server", "10.42.0.0/24")
	pv := localVolume(t, c, ns, "data-db-0", "server", corev1.PersistentVolumeReclaimDelete)
	v := volumeOf(t, c, pv)
	assert.Equal(t, HostPath, v.Kind)
	assert.Equal(t, "/data/"+pv, v.Path)
	assert.Equal(t, "server", v.Node)
	assert.Equal(t, "Delete", v.ReclaimPolicy)
	assert.Equal(t, "Bound", v.Phase)
	assert.NotEmpty(t, v.ClaimObject)
	gone(t, c, v)

	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	policy := func() string {
		got, err := c.Kube.CoreV1().PersistentVolumes().Get(ctx, pv, metav1.GetOptions{})
		require.NoError(t, err)
		return string(got.Spec.PersistentVolumeReclaimPolicy)
	}
	// A claim that was deleted leaves a volume with a claimRef and nothing else.
	noClaim := v
	noClaim.ClaimObject = nil
	require.NoError(t, c.ReserveVolume(ctx, noClaim), "interrupted before the claim")
	require.Equal(t, "Retain", policy())
	bound, err := c.ReleaseReservation(ctx, noClaim, nil)
	require.NoError(t, err)
	require.False(t, bound)
	require.Equal(t, "Retain", policy(), "its claim is gone: Delete would remove the data")

	// Interrupted after the volume; then whole; then once more while it binds.
	require.NoError(t, c.ReserveVolume(ctx, v))
	require.NoError(t, c.ReserveVolume(ctx, v))
	bound, err = c.ReleaseReservation(ctx, v, nil)
	require.NoError(t, err)
	require.True(t, bound)
	require.Equal(t, "Delete", policy())
	// And after everything.
	require.NoError(t, c.ReserveVolume(ctx, v))
	require.Equal(t, "Delete", policy(), "a bound volume is left alone")
	bound, err = c.ReleaseReservation(ctx, v, nil)
	require.NoError(t, err)
	require.True(t, bound)

	after := volumeOf(t, c, pv)
	claim := &unstructured.Unstructured{}
	require.NoError(t, claim.UnmarshalJSON(after.ClaimObject))
	assert.Equal(t, map[string]string{"app": "db"}, claim.GetLabels())
	assert.Equal(t, "Bound", after.Phase)
}

func TestReserveTakesAClaimThatWaits(t *testing.T) {
	c := connected(t, dualStack)
	ns := namespaced(t, c)
	node(t, c, "server-2", "10.42.0.0/24")
	pv := localVolume(t, c, ns, "data", "server-2", corev1.PersistentVolumeReclaimRetain)
	v := volumeOf(t, c, pv)
	gone(t, c, v)
	// The platform was faster: a claim without a volume, of a class that waits.
	_, err := c.Kube.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: new("local-path"),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: quantity.MustParse("1Gi")}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	require.NoError(t, c.ReserveVolume(ctx, v))
	bound, err := c.ReleaseReservation(ctx, v, nil)
	require.NoError(t, err)
	require.True(t, bound)
}

func TestReserveRefuses(t *testing.T) {
	c := connected(t, dualStack)
	ns := namespaced(t, c)
	node(t, c, "server-3", "10.42.0.0/24")
	pv := localVolume(t, c, ns, "data", "server-3", corev1.PersistentVolumeReclaimDelete)
	good := volumeOf(t, c, pv)
	other := volumeOf(t, c, localVolume(t, c, ns, "other", "server-3", corev1.PersistentVolumeReclaimDelete))

	edited := func(v Volume, edit func(pv map[string]any)) Volume {
		u := &unstructured.Unstructured{}
		require.NoError(t, u.UnmarshalJSON(v.Object))
		edit(u.Object)
		var err error
		v.Object, err = u.MarshalJSON()
		require.NoError(t, err)
		return v
	}
	for name, tc := range map[string]struct {
		v    Volume
		want string
	}{
		"another path": {edited(good, func(o map[string]any) {
			unstructured.SetNestedField(o, "/elsewhere", "spec", "hostPath", "path")
		}), "differs in source"},
		"another claim's volume": {func() Volume {
			v := good
			v.Claim = "third"
			v.ClaimObject = nil
			return v
		}(), "belongs to the claim " + ns + "/data"},
		"claim bound elsewhere": {func() Volume {
			v := good
			v.PV = "new-pv"
			return v
		}(), "has the volume " + pv},
		"node gone": {func() Volume {
			v := good
			v.Node = "old-name"
			return v
		}(), "names the node old-name"},
	} {
		t.Run(name, func(t *testing.T) {
			var refused *ReservationError
			err := c.ReserveVolume(t.Context(), tc.v)
			require.ErrorAs(t, err, &refused)
			require.ErrorContains(t, err, tc.want)
		})
	}
	// Nothing was touched.
	for _, v := range []Volume{good, other} {
		now := volumeOf(t, c, v.PV)
		require.JSONEq(t, string(v.Object), string(now.Object))
		require.JSONEq(t, string(v.ClaimObject), string(now.ClaimObject))
	}

	t.Run("released", func(t *testing.T) {
		require.NoError(t, c.setPolicy(t.Context(), other.PV, "Retain"))
		require.NoError(t, c.Kube.CoreV1().PersistentVolumeClaims(ns).Delete(t.Context(), "other", metav1.DeleteOptions{}))
		_, _ = c.Kube.CoreV1().PersistentVolumeClaims(ns).Patch(t.Context(), "other", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		require.Eventually(t, func() bool { return volumeOf(t, c, other.PV).Phase == "Released" }, 30*time.Second, 200*time.Millisecond)
		var refused *ReservationError
		err := c.ReserveVolume(t.Context(), other)
		require.ErrorAs(t, err, &refused)
		require.ErrorContains(t, err, "Released")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = c.ReleaseReservation(ctx, other, nil)
		require.ErrorAs(t, err, &refused)
	})
	t.Run("namespace missing", func(t *testing.T) {
		v := good
		v.PV, v.Namespace = "pv-"+ns, "missing-"+ns
		v = edited(v, func(o map[string]any) {
			unstructured.SetNestedField(o, v.PV, "metadata", "name")
			unstructured.SetNestedField(o, v.Namespace, "spec", "claimRef", "namespace")
		})
		claim := &unstructured.Unstructured{}
		require.NoError(t, claim.UnmarshalJSON(v.ClaimObject))
		claim.SetNamespace(v.Namespace)
		var err error
		v.ClaimObject, err = claim.MarshalJSON()
		require.NoError(t, err)
		require.ErrorContains(t, c.ReserveVolume(t.Context(), v), "create it first")
		require.NoError(t, c.ApplyNamespace(t.Context(), corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v.Namespace}}))
		require.NoError(t, c.ReserveVolume(t.Context(), v))
	})
}

func TestWaitWorkloadsSaysWhy(t *testing.T) {
	c := connected(t, singleStack)
	ns := namespaced(t, c)
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	require.NoError(t, c.WaitWorkloads(soon(), nil), "nothing to wait for")

	labels := map[string]string{"app": "web"}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "x"}}}}
	d, err := c.Kube.AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       appsv1.DeploymentSpec{Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.ErrorContains(t, c.WaitWorkloads(soon(), nil), "Deployment "+ns+"/web: its controller has not seen it yet; it has no pods")

	d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1, ReadyReplicas: 1}
	_, err = c.Kube.AppsV1().Deployments(ns).UpdateStatus(t.Context(), d, metav1.UpdateOptions{})
	require.NoError(t, err)
	pod, err := c.Kube.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-1", Labels: labels}, Spec: template.Spec}, metav1.CreateOptions{})
	require.NoError(t, err)
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{Name: "web", State: corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "Back-off pulling image x"}}}}}
	_, err = c.Kube.CoreV1().Pods(ns).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	require.NoError(t, err)
	for i, message := range []string{"an old one", "no space left on device"} {
		_, err = c.Kube.CoreV1().Events(ns).Create(t.Context(), &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("e", i)}, Type: corev1.EventTypeWarning, Reason: "Failed", Message: message,
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: "web-1"}, LastTimestamp: metav1.NewTime(time.Now().Add(time.Duration(i) * time.Minute)),
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	err = c.WaitWorkloads(soon(), nil)
	var waited *WaitError
	require.ErrorAs(t, err, &waited)
	require.Equal(t, []string{"Deployment " + ns + "/web: 1 of 2 available; pod web-1: web: ImagePullBackOff (Back-off pulling image x); last warning: Failed: no space left on device"}, waited.Missing)

	d, err = c.Kube.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
	require.NoError(t, err)
	d.Status.AvailableReplicas = 2
	d.Status.ReadyReplicas = 2
	_, err = c.Kube.AppsV1().Deployments(ns).UpdateStatus(t.Context(), d, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.NoError(t, c.WaitWorkloads(soon(), nil))
}

// Objects of the operators' kinds, their statuses written as the operators write them.
func TestWaitSecretsSynced(t *testing.T) {
	c := connected(t, singleStack)
	ns := namespaced(t, c)
	wait := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		return c.WaitSecretsSynced(ctx, nil)
	}
	missing := func() []string {
		t.Helper()
		var waited *WaitError
		require.ErrorAs(t, wait(), &waited)
		return waited.Missing
	}
	require.NoError(t, wait(), "none of the kinds is there")

	static := schema.GroupVersionResource{Group: "secrets.hashicorp.com", Version: "v1beta1", Resource: "vaultstaticsecrets"}
	external := schema.GroupVersionResource{Group: "external-secrets.io", Version: "v1beta1", Resource: "externalsecrets"}
	status := map[string]any{"status": map[string]any{}}
	defined(t, c, static, "VaultStaticSecret", status)
	defined(t, c, external, "ExternalSecret", status)
	require.NoError(t, wait(), "there are no objects")

	create := func(gvr schema.GroupVersionResource, kind, name string, spec, status map[string]any) *unstructured.Unstructured {
		t.Helper()
		u, err := c.Dynamic.Resource(gvr).Namespace(ns).Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": gvr.Group + "/" + gvr.Version, "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec, "status": status,
		}}, metav1.CreateOptions{})
		require.NoError(t, err)
		return u
	}
	report := func(gvr schema.GroupVersionResource, name string, status map[string]any) {
		t.Helper()
		u, err := c.Dynamic.Resource(gvr).Namespace(ns).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		u.Object["status"] = status
		_, err = c.Dynamic.Resource(gvr).Namespace(ns).UpdateStatus(t.Context(), u, metav1.UpdateOptions{})
		require.NoError(t, err)
	}
	secret := func(name string, owner *unstructured.Unstructured, uid types.UID) {
		t.Helper()
		_, err := c.Kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{{APIVersion: owner.GetAPIVersion(), Kind: owner.GetKind(), Name: owner.GetName(), UID: uid}}},
			Type:       corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": {}, "tls.key": {}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}

	// A status that comes along with an object is dropped by the API server.
	good := map[string]any{"lastGeneration": int64(1), "secretMAC": "x"}
	db := create(static, "VaultStaticSecret", "db", map[string]any{"destination": map[string]any{"name": "db", "create": true}}, good)
	require.Equal(t, []string{"VaultStaticSecret " + ns + "/db: its operator has not synced it yet"}, missing())
	// One that was written later is not enough.
	report(static, "db", good)
	require.Equal(t, []string{"VaultStaticSecret " + ns + "/db: its secret db is not there"}, missing())
	secret("db", db, "of-the-old-cluster")
	require.Contains(t, missing()[0], "its secret db belongs to another or to nobody")
	require.NoError(t, c.Kube.CoreV1().Secrets(ns).Delete(t.Context(), "db", metav1.DeleteOptions{}))
	_, err := c.Kube.CoreV1().Events(ns).Create(t.Context(), &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e"}, Type: corev1.EventTypeWarning, Reason: "VaultClientError", Message: "Failed to read Vault secret: permission denied",
		InvolvedObject: corev1.ObjectReference{Kind: "VaultStaticSecret", Namespace: ns, Name: "db"}, LastTimestamp: metav1.Now(),
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"VaultStaticSecret " + ns + "/db: its secret db is not there; last warning: VaultClientError: Failed to read Vault secret: permission denied"}, missing())

	// It comes while it is waited for.
	late := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		late <- c.WaitSecretsSynced(ctx, nil)
	}()
	secret("db", db, db.GetUID())
	require.NoError(t, <-late)
	// A change of what is asked for is not synced yet.
	_, err = c.Dynamic.Resource(static).Namespace(ns).Patch(t.Context(), "db", types.MergePatchType, []byte(`{"spec":{"path":"other"}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	require.Contains(t, missing()[0], "/db: its operator has not synced it yet; last warning: ")
	report(static, "db", map[string]any{"lastGeneration": int64(2), "conditions": []any{map[string]any{"type": "Healthy", "status": "True", "observedGeneration": int64(2)}}})
	require.NoError(t, wait())

	web := create(external, "ExternalSecret", "web", map[string]any{}, nil)
	require.Equal(t, []string{"ExternalSecret " + ns + "/web: its operator has not synced it yet"}, missing())
	ready := func(status, reason, message string) map[string]any {
		return map[string]any{"syncedResourceVersion": "1-abc", "conditions": []any{map[string]any{"type": "Ready", "status": status, "reason": reason, "message": message}}}
	}
	report(external, "web", ready("False", "SecretSyncedError", "could not get secret data from provider"))
	require.Equal(t, []string{"ExternalSecret " + ns + "/web: Ready is False: SecretSyncedError: could not get secret data from provider"}, missing())
	report(external, "web", ready("True", "SecretSynced", "Secret was synced"))
	require.Equal(t, []string{"ExternalSecret " + ns + "/web: its secret web is not there"}, missing())
	secret("web", web, web.GetUID())
	require.NoError(t, wait())

	// What they make is made again, not put back.
	kept, err := c.TLSSecrets(t.Context(), nil)
	require.NoError(t, err)
	for _, s := range kept {
		require.NotEqual(t, ns, s.Namespace, "%s comes along", s.Name)
	}
}

// written is the kubeconfig of a client.
func written(t *testing.T, c *Client) []byte {
	t.Helper()
	data, err := clientcmd.Write(*c.config)
	require.NoError(t, err)
	return data
}
