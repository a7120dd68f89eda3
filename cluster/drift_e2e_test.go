//go:build e2e

package cluster

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

const shop = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: registry.example/web:1
        env: [{name: DOOR, value: open-sesame}]
        ports: [{containerPort: 80}]
        resources: {limits: {cpu: 1000m}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, type: NodePort, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Secret
metadata: {name: door}
stringData: {key: open-sesame}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {index: hello}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
`

func objectsOf(t *testing.T, ns, manifests string) (out []*unstructured.Unstructured) {
	t.Helper()
	for _, document := range strings.Split(manifests, "\n---\n") {
		u := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal([]byte(document), &u.Object))
		data, err := json.Marshal(u.Object)
		require.NoError(t, err)
		require.NoError(t, u.UnmarshalJSON(data)) // numbers as the API has them
		u.SetNamespace(ns)
		out = append(out, u)
	}
	return out
}

func resourceOf(kind string) schema.GroupVersionResource {
	return map[string]schema.GroupVersionResource{
		"Deployment": {Group: "apps", Version: "v1", Resource: "deployments"},
		"Role":       {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
		"Service":    {Version: "v1", Resource: "services"},
		"Secret":     {Version: "v1", Resource: "secrets"},
		"ConfigMap":  {Version: "v1", Resource: "configmaps"},
	}[kind]
}

// in keeps of a comparison what lies in a namespace: the tests share an API server.
func in(d *Drift, ns string) (fields, extra []string) {
	for _, o := range d.Changed {
		if o.Namespace == ns {
			for _, f := range o.Fields {
				by := ""
				for _, a := range f.By {
					by += " " + a.Manager
				}
				fields = append(fields, o.Kind+" "+o.Name+" "+f.Path+": "+f.Cluster+" → "+f.Manifests+by)
			}
		}
	}
	for _, o := range d.Extra {
		if o.Namespace == ns {
			extra = append(extra, o.Kind+" "+o.Name)
		}
	}
	return fields, extra
}

func TestDrift(t *testing.T) {
	c := connected(t, dualStack)
	for name, install := range map[string]func(t *testing.T, u *unstructured.Unstructured){
		"created": func(t *testing.T, u *unstructured.Unstructured) {
			_, err := c.Dynamic.Resource(resourceOf(u.GetKind())).Namespace(u.GetNamespace()).Create(t.Context(), u, metav1.CreateOptions{FieldManager: "kubectl-client-side-apply"})
			require.NoError(t, err)
		},
		"applied": func(t *testing.T, u *unstructured.Unstructured) {
			_, err := c.Dynamic.Resource(resourceOf(u.GetKind())).Namespace(u.GetNamespace()).Apply(t.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: "kubectl"})
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := namespaced(t, c)
			want := objectsOf(t, ns, shop)
			for _, u := range want {
				install(t, u.DeepCopy())
			}
			d, err := c.Drift(t.Context(), want, nil)
			require.NoError(t, err)
			fields, extra := in(d, ns)
			require.Empty(t, fields, "nothing was changed")
			require.Empty(t, extra)
			require.Empty(t, d.Uncompared)
			require.Empty(t, d.Missing)
			require.Equal(t, len(want), d.Same)

			patch := func(kind, name, manager, patch string) {
				t.Helper()
				_, err := c.Dynamic.Resource(resourceOf(kind)).Namespace(ns).Patch(t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: manager})
				require.NoError(t, err)
			}
			patch("Deployment", "web", "kubectl-edit", `{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null},"template":{"spec":{"containers":[{"name":"web","image":"registry.example/web:2","env":[{"name":"DOOR","value":"shut"},{"name":"EXTRA","value":"open-sesame"}]},{"name":"side","image":"registry.example/side:1"}]}}}}`)
			patch("Deployment", "web", "kubectl-annotate", `{"metadata":{"annotations":{"note":"open-sesame"}}}`)
			patch("Deployment", "web", "kube-controller-manager", `{"metadata":{"annotations":{"deployment.kubernetes.io/revision":"1"}}}`)
			_, err = c.Dynamic.Resource(resourceOf("Deployment")).Namespace(ns).Patch(t.Context(), "web", types.MergePatchType, []byte(`{"spec":{"replicas":3}}`), metav1.PatchOptions{FieldManager: "kubectl-scale"}, "scale")
			require.NoError(t, err)
			patch("Service", "web", "kubectl-patch", `{"spec":{"ipFamilyPolicy":"PreferDualStack"}}`)
			patch("Secret", "door", "kubectl-edit", `{"data":{"key":"c2h1dA==","more":"c2h1dA=="}}`)
			patch("ConfigMap", "page", "k9s", `{"data":{"index":"bye","about":"us"}}`)
			patch("Role", "reader", "kubectl-edit", `{"rules":[{"apiGroups":[""],"resources":["secrets"],"verbs":["get"]}]}`)
			for _, extra := range objectsOf(t, ns, `
apiVersion: v1
kind: Secret
metadata: {name: by-hand}
data: {key: c2h1dA==}
---
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata: {name: certificate}
data: {tls.crt: "", tls.key: ""}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: release, annotations: {meta.helm.sh/release-name: web}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: owned, ownerReferences: [{apiVersion: v1, kind: Pod, name: a, uid: b}]}
`) {
				_, err := c.Dynamic.Resource(resourceOf(extra.GetKind())).Namespace(ns).Create(t.Context(), extra, metav1.CreateOptions{FieldManager: "kubectl-create"})
				require.NoError(t, err)
			}
			before, err := c.Dynamic.Resource(resourceOf("Deployment")).Namespace(ns).Get(t.Context(), "web", metav1.GetOptions{})
			require.NoError(t, err)
			want = append(want, objectsOf(t, ns, `
apiVersion: v1
kind: ConfigMap
metadata: {name: gone}
---
apiVersion: example.org/v1
kind: Thing
metadata: {name: unheard-of}
---
apiVersion: v1
kind: Service
metadata: {name: impossible}
spec: {ports: [{port: 0}]}
`)...)
			service(t, c, ns, "impossible", func(*corev1.Service) {})

			d, err = c.Drift(t.Context(), want, nil)
			require.NoError(t, err)
			fields, extra = in(d, ns)
			by := map[string]string{"created": "kubectl-client-side-apply", "applied": "kubectl"}[name]
			assert.Equal(t, []string{
				"ConfigMap page data.about: (not shown) →  k9s",
				"ConfigMap page data.index: (not shown) → (not shown) k9s",
				"Deployment.apps web metadata.annotations.note: (not shown) →  kubectl-annotate",
				"Deployment.apps web spec.replicas: 3 → 2 kubectl-scale",
				"Deployment.apps web spec.strategy.type: Recreate →  kubectl-edit",
				"Deployment.apps web spec.template.spec.containers[name=side]: (not shown) →  kubectl-edit",
				"Deployment.apps web spec.template.spec.containers[name=web].env[name=DOOR].value: (not shown) → (not shown) kubectl-edit",
				"Deployment.apps web spec.template.spec.containers[name=web].env[name=EXTRA]: (not shown) →  kubectl-edit",
				"Deployment.apps web spec.template.spec.containers[name=web].image: registry.example/web:2 → registry.example/web:1 kubectl-edit",
				"Role.rbac.authorization.k8s.io reader rules: (not shown) → (not shown) kubectl-edit",
				"Secret door data.key: (not shown) → (not shown) kubectl-edit",
				"Secret door data.more: (not shown) →  kubectl-edit",
				"Service web spec.ipFamilyPolicy: PreferDualStack →  kubectl-patch",
			}, fields, "installed by %s", by)
			assert.Equal(t, []string{"Secret by-hand"}, extra)
			assert.Equal(t, []Object{{"ConfigMap", ns, "gone"}, {"Thing.example.org", ns, "unheard-of"}}, d.Missing)
			require.Len(t, d.Uncompared, 1)
			assert.Equal(t, "impossible", d.Uncompared[0].Name)
			assert.False(t, d.None())

			all, err := json.Marshal(d)
			require.NoError(t, err)
			for _, secret := range []string{"open-sesame", "c2h1dA", "shut", "bye"} {
				assert.NotContains(t, string(all), secret)
			}
			after, err := c.Dynamic.Resource(resourceOf("Deployment")).Namespace(ns).Get(t.Context(), "web", metav1.GetOptions{})
			require.NoError(t, err)
			assert.Equal(t, before.GetResourceVersion(), after.GetResourceVersion(), "the comparison wrote")
			_, err = c.Dynamic.Resource(resourceOf("Deployment")).Namespace(ns).Get(t.Context(), freshName, metav1.GetOptions{})
			assert.Error(t, err, "the comparison made an object")
		})
	}
}
