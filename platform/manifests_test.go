package platform

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tree writes files, named by their paths, and returns their directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return dir
}

func names(m *Manifests) (out []string) {
	for _, o := range m.Objects {
		out = append(out, o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName())
	}
	return out
}

func left(m *Manifests, dir string) (out []string) {
	for _, l := range m.Left {
		rel, err := filepath.Rel(dir, l.Path)
		if err != nil {
			panic(err)
		}
		out = append(out, rel+": "+l.Why)
	}
	return out
}

func TestADirectoryIsReadInOrder(t *testing.T) {
	dir := tree(t, map[string]string{
		"00-ns.yaml": "# the namespace\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n",
		"10-web.yml": "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n---\r\napiVersion: v1\r\nkind: ConfigMap\r\nmetadata: &m\r\n  name: web\r\n  labels: {a: b}\r\n",
		"20-list.json": `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"one"}},
			{"apiVersion":"v1","kind":"SecretList","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"two"}}]}]}`,
		"30-deep/a/job.yaml":         "apiVersion: batch/v1\nkind: Job\nmetadata: {generateName: once-}\n",
		"40-kust/kustomization.yaml": "namePrefix: blue-\nresources: [cm.yaml]\n",
		"40-kust/cm.yaml":            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: colour}\n",
		"50-chart/Chart.yaml":        "name: shop\n",
		"50-chart/templates/x.yaml":  "{{ .Values }}: {{\n",
		"60-values.yaml":             "replicas: 3\n",
		"61-words.yaml":              "- a\n- b\n",
		"70-sops.yaml":               "apiVersion: v1\nkind: Secret\nmetadata: {name: closed}\nsops: {version: 3.9.0}\n",
		"80-again.yaml":              "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {later: 'yes'}\n",
		".hidden/x.yaml":             "}{",
		".hidden.yaml":               "}{",
		"README.md":                  "}{",
	})
	m, err := Read([]string{dir})
	require.NoError(t, err)
	assert.Equal(t, []string{"Namespace /shop", "Service shop/web", "Secret /one", "Secret /two", "ConfigMap /blue-colour", "ConfigMap /web"}, names(m))
	assert.Equal(t, "yes", m.Objects[5].Object["data"].(map[string]any)["later"])
	assert.Equal(t, []string{
		"30-deep/a/job.yaml: Job once-… has another name each time that it is made",
		"50-chart: a Helm chart: what it makes depends on its values; name the rendered objects instead",
		"60-values.yaml: no object of Kubernetes: it has no apiVersion and kind",
		"61-words.yaml: no object of Kubernetes: it has no apiVersion and kind",
		"70-sops.yaml: Secret closed is encrypted with SOPS",
		"80-again.yaml: ConfigMap web is there twice; the later one counts",
	}, left(m, dir))
}

func TestAKustomizationIsBuilt(t *testing.T) {
	dir := tree(t, map[string]string{
		"base/kustomization.yaml":    "resources: [web.yaml]\n",
		"base/web.yaml":              "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 1}\n",
		"overlay/kustomization.yml":  "namespace: shop\nresources: [../base]\ncomponents: [../part]\npatches:\n- path: more.yaml\nsecretGenerator:\n- name: door\n  literals: [url=https://example.org]\n",
		"overlay/more.yaml":          "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 3}\n",
		"part/kustomization.yaml":    "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nconfigMapGenerator:\n- name: part\n  literals: [a=b]\n  options: {disableNameSuffixHash: true}\n",
		"elsewhere/not-looked-at.md": "",
	})
	m, err := Read([]string{filepath.Join(dir, "overlay")})
	require.NoError(t, err)
	require.Len(t, m.Objects, 3)
	assert.Equal(t, "Deployment shop/web", names(m)[0])
	assert.Regexp(t, "^Secret shop/door-[a-z0-9]{10}$", names(m)[1], "its name bears a hash")
	assert.Equal(t, "ConfigMap shop/part", names(m)[2])
	assert.Equal(t, map[string]any{"replicas": int64(3)}, m.Objects[0].Object["spec"])
	assert.Empty(t, m.Left)
}

func TestWhatLeadsOutsideIsRefused(t *testing.T) {
	cm := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	for name, kustomization := range map[string]string{
		"a repository":             "resources: ['https://github.com/o/r//base?ref=v1']",
		"without a scheme":         "resources: [github.com/o/r/base]",
		"over ssh":                 "resources: ['git@example.org:o/r.git']",
		"a file of a server":       "resources: ['https://example.org/a.yaml']",
		"nowhere":                  "resources: [gone]",
		"an old base":              "bases: ['https://github.com/o/r//base']",
		"a component":              "components: ['https://github.com/o/r//part']",
		"a patch":                  "resources: [cm.yaml]\npatches: [{path: 'https://example.org/p.yaml'}]",
		"a generator's file":       "configMapGenerator: [{name: a, files: ['k=https://example.org/f']}]",
		"a schema":                 "openapi: {path: 'https://example.org/schema.json'}",
		"an old chart":             "helmChartInflationGenerator: [{chartName: web, chartRepoUrl: 'https://example.org/charts'}]",
		"an environment":           "secretGenerator: [{name: a, env: 'https://example.org/env'}]",
		"a chart":                  "helmCharts: [{name: web, repo: 'https://example.org/charts'}]",
		"a transformer":            "resources: [cm.yaml]\ntransformers: ['https://github.com/o/r//t']",
		"a transformer's file":     "resources: [cm.yaml]\ntransformers: [t.yaml]",
		"a transformer in place":   "resources: [cm.yaml]\ntransformers:\n- |-\n  apiVersion: builtin\n  kind: PatchTransformer\n  metadata: {name: p}\n  path: https://example.org/p.yaml\n",
		"a base of a base":         "resources: [deep]",
		"a directory of that name": "resources: [github.com/o/r]",
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, map[string]string{
				"kustomization.yaml":                kustomization + "\n",
				"cm.yaml":                           cm,
				"t.yaml":                            "apiVersion: builtin\nkind: PatchTransformer\nmetadata: {name: p}\npath: 'https://example.org/p.yaml'\n",
				"deep/kustomization.yaml":           "resources: ['ssh://git@example.org/o/r']\n",
				"github.com/o/r/kustomization.yaml": "resources: []\n",
			})
			_, err := Read([]string{dir})
			var outside *OutsideError
			require.ErrorAs(t, err, &outside)
			assert.Contains(t, err.Error(), "keep a copy in the repository")
		})
	}
}

// A plugin would be a program of somebody's.
func TestNoPluginRuns(t *testing.T) {
	dir := tree(t, map[string]string{
		"kustomization.yaml": "generators: [g.yaml]\n",
		"g.yaml":             "apiVersion: example.org/v1\nkind: Maker\nmetadata:\n  name: g\n  annotations:\n    config.kubernetes.io/function: |\n      exec: {path: ./make}\n",
		"make":               "#!/bin/sh\ntouch ran\n",
	})
	require.NoError(t, os.Chmod(filepath.Join(dir, "make"), 0o755))
	_, err := Read([]string{dir})
	require.Error(t, err)
	assert.NoFileExists(t, filepath.Join(dir, "ran"))
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	dir := tree(t, map[string]string{
		"torn/a.yaml":               "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\na: [b\n",
		"item/a.yaml":               "apiVersion: v1\nkind: List\nitems: [3]\n",
		"circle/kustomization.yaml": "resources: [../circle]\n",
		"bad/kustomization.yaml":    "resources: {\n",
	})
	for name, want := range map[string]string{
		"gone":   "gone: no such file",
		"torn":   "a.yaml, document 2: ",
		"item":   "items[0] of its List is no object",
		"circle": "building the kustomization " + filepath.Join(dir, "circle"),
		"bad":    "reading the kustomization " + filepath.Join(dir, "bad", "kustomization.yaml"),
	} {
		_, err := Read([]string{filepath.Join(dir, name)})
		assert.ErrorContains(t, err, want, name)
	}
}
