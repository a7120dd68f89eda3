//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shop is a kustomization: what it makes differs from what lies there.
var shop = map[string]string{
	"base/kustomization.yaml": "resources: [shop.yaml]\n",
	"base/shop.yaml": `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "registry.lab/sunbeam/app:1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
`,
	"over/kustomization.yaml": `
resources: [../base]
labels: [{pairs: {tier: front}}]
configMapGenerator:
- {name: page, namespace: shop, literals: [index=hello]}
`,
}

// unremarkable is in the cluster alone, and nobody's to declare.
const unremarkable = `
apiVersion: v1
kind: Secret
type: helm.sh/release.v1
metadata: {name: sh.helm.release.v1.db.v1, namespace: shop, labels: {owner: helm, status: deployed, name: db}}
stringData: {release: unlisted}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: of-a-release, namespace: shop, annotations: {meta.helm.sh/release-name: db, meta.helm.sh/release-namespace: shop}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: of-argo, namespace: shop, annotations: {argocd.argoproj.io/tracking-id: "shop:/ConfigMap:shop/of-argo"}}
`

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
	}
}

// driftOf runs `migrate drift` and returns what differs, one line each.
func driftOf(t *testing.T, file string) (lines []string) {
	t.Helper()
	r := migrate(t, "drift", "-f", file, "-o", "json")
	require.Zero(t, r.code, "%s", r)
	type named struct{ Kind, Namespace, Name string }
	var d struct {
		Changed []struct {
			named
			Fields []struct {
				Path, Cluster, Manifests string
				By                       []struct{ Manager string }
			}
		}
		Extra, Missing, Uncompared []named
	}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &d), "%s", r)
	for _, o := range d.Changed {
		for _, f := range o.Fields {
			line := "changed " + o.Namespace + "/" + o.Name + " " + f.Path + ": " + f.Cluster + " → " + f.Manifests
			for _, by := range f.By {
				line += " by " + by.Manager
			}
			lines = append(lines, line)
		}
	}
	for what, objects := range map[string][]named{"extra": d.Extra, "missing": d.Missing, "uncompared": d.Uncompared} {
		for _, o := range objects {
			lines = append(lines, what+" "+o.Kind+" "+o.Namespace+"/"+o.Name)
		}
	}
	return lines
}

// followDrift: a cluster is what its manifests say, until somebody changes either.
func followDrift(t *testing.T, l *lab) {
	source := t.TempDir()
	write(t, source, shop)
	// The lab's platform as its command applies it.
	files, err := filepath.Glob(filepath.Join(filepath.Dir(l.Platform[0]), "manifests", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		write(t, source, map[string]string{"platform/" + filepath.Base(name): strings.Replace(string(text), "--mib=300", "--mib="+l.PlatformEnvironment["STORE_MIB"], 1)})
	}
	write(t, source, map[string]string{"others.yaml": unremarkable})
	l.kubectl(t, "apply", "-k", filepath.Join(source, "over"))
	l.kubectl(t, "apply", "-f", filepath.Join(source, "others.yaml"))
	planned := func(edit func(platform object)) string {
		return l.plan(t, func(spec object) {
			p := spec["platform"].(object)
			p["manifests"] = []string{filepath.Join(source, "platform"), filepath.Join(source, "over")}
			if edit != nil {
				edit(p)
			}
		})
	}
	file := planned(nil)

	require.Empty(t, driftOf(t, file), "as it was made")
	r := migrate(t, "drift", "-f", file)
	assert.Contains(t, r.stdout, "The cluster is what its manifests say")
	assert.Contains(t, r.stdout, "of a Helm release")
	code, details := found(t, file)
	assert.Zero(t, code)
	assert.NotContains(t, details, "platform.drift")

	r = execute(t, []string{"KUBECONFIG=" + l.Kubeconfig, "KUBE_EDITOR=sed -i s/replicas:.0/replicas:\\ 1/"}, l.Kubectl, "edit", "-n", "shop", "deployment", "web")
	require.Zero(t, r.code, "%s", r)
	l.kubectl(t, "wait", "-n", "shop", "--for=jsonpath={.status.replicas}=1", "--timeout=60s", "deployment/web") // and the pods that its controller makes are silent
	l.kubectl(t, "create", "-n", "shop", "configmap", "by-hand", "--from-literal=a=b")
	write(t, source, map[string]string{"base/shop.yaml": shop["base/shop.yaml"] + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: gone, namespace: shop}\n"})
	assert.ElementsMatch(t, []string{"changed shop/web spec.replicas: 1 → 0 by kubectl-edit", "extra ConfigMap shop/by-hand", "missing ConfigMap shop/gone"}, driftOf(t, file))
	r = migrate(t, "drift", "-f", file)
	for _, want := range []string{"The cluster differs", "spec.replicas", "by kubectl-edit 20", "ConfigMap shop/by-hand", "ConfigMap shop/gone"} {
		assert.Contains(t, r.stdout, want)
	}

	// What a person sets: the status, which controllers write for as long as pods come and go, has a part in the resource version.
	const set = `jsonpath={range .items[*]}{.metadata.uid} {.metadata.generation} {.metadata.labels} {.metadata.annotations} {.spec} {.data}{"\n"}{end}`
	before := l.kubectl(t, "get", "configmap,deployment,service,secret", "-n", "shop", "-o", set)
	code, details = found(t, file)
	assert.Zero(t, code, "a warning")
	assert.Contains(t, details["platform.drift"], "Deployment.apps shop/web")
	strict := planned(func(p object) { p["drift"] = "inhibit" })
	code, details = found(t, strict)
	assert.Equal(t, 3, code)
	assert.Contains(t, details, "platform.drift")
	r = migrate(t, "run", "-f", strict, "--yes")
	assert.Equal(t, 3, r.code, "%s", r)
	assert.Contains(t, r.stdout+r.stderr, "platform.drift")
	r = migrate(t, "run", "-f", strict, "--until", "preflight", "--waive", "platform.drift=a test's")
	assert.Zero(t, r.code, "%s", r)

	// A rehearsal that fails stops before anything.
	failing := planned(func(p object) { p["rehearse"] = []string{"sh", "-c", `echo "seed 7 is missing"; exit 1`} })
	r = migrate(t, "run", "-f", failing, "--yes")
	assert.Equal(t, 1, r.code, "%s", r)
	assert.Contains(t, r.stderr, "spec.platform.rehearse")
	assert.Contains(t, r.stderr, "seed 7 is missing")
	for _, record := range journalOf(failing).now(t) {
		assert.Contains(t, []string{"", "survey", "preflight"}, record.Step, "%s", record)
	}
	rehearsed := planned(func(p object) { p["rehearse"] = []string{"sh", "-c", l.Kubectl + " get namespace shop"} })
	r = migrate(t, "run", "-f", rehearsed, "--until", "preflight")
	assert.Zero(t, r.code, "%s", r)
	assert.Equal(t, before, l.kubectl(t, "get", "configmap,deployment,service,secret", "-n", "shop", "-o", set), "nothing was changed")

	l.kubectl(t, "delete", "-n", "shop", "configmap", "by-hand")
	l.kubectl(t, "apply", "-k", filepath.Join(source, "over"))
	assert.Empty(t, driftOf(t, file), "mended")
	l.kubectl(t, "delete", "namespace", "shop")
}
