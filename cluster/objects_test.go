package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// TestStrip strips testdata/strip/*.yaml; the golden file beside each is what is
// created again.
func TestStrip(t *testing.T) {
	files, err := filepath.Glob("testdata/strip/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			u := objects(t, "strip/"+filepath.Base(file))[0]
			Strip(u)
			got, err := yaml.Marshal(u.Object)
			require.NoError(t, err)
			golden(t, "strip/"+name+".golden", got)
		})
	}
}

func TestReadList(t *testing.T) {
	for _, tc := range []struct {
		name, in, next string
		items          []string
		err            string
	}{
		{"built-in", `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1","continue":"t"},"items":[{"a":1},{"b":{"c":[]}}]}`, "t", []string{`{"a":1}`, `{"b":{"c":[]}}`}, ""},
		{"custom", `{"apiVersion":"x/v1","items":[{"a":1}],"kind":"L","metadata":{"continue":"","resourceVersion":"1"}}`, "", []string{`{"a":1}`}, ""},
		{"no items", `{"items":null,"metadata":{}}`, "", nil, ""},
		{"empty", `{"items":[],"metadata":{}}`, "", nil, ""},
		{"cut off in an item", `{"items":[{"a":1},{"b"`, "", []string{`{"a":1}`}, "unexpected EOF"},
		{"cut off between items", `{"items":[{"a":1}`, "", []string{`{"a":1}`}, "EOF"},
		{"cut off after items", `{"items":[{"a":1}]`, "", []string{`{"a":1}`}, "EOF"},
		{"no list", `[]`, "", nil, "found [, want {"},
		{"items of another kind", `{"items":{"a":1}}`, "", nil, "want an array"},
		{"nothing", ``, "", nil, "unexpected EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var items []string
			next, err := readList(strings.NewReader(tc.in), func(item []byte) error {
				items = append(items, string(item))
				return nil
			})
			assert.Equal(t, tc.items, items)
			if tc.err != "" {
				assert.ErrorContains(t, err, tc.err)
				return
			}
			assert.NoError(t, err)
			assert.Equal(t, tc.next, next)
		})
	}
	stop := errors.New("disk full")
	_, err := readList(strings.NewReader(`{"items":[{},{}]}`), func([]byte) error { return stop })
	require.ErrorIs(t, err, stop)
}

func FuzzReadList(f *testing.F) {
	f.Add([]byte(`{"kind":"PodList","metadata":{"continue":"t"},"items":[{"a":1},{"b":9007199254740993}]}`))
	f.Add([]byte(`{"items":null}`))
	f.Add([]byte(`{"items":[1,"x",null,[]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := readList(bytes.NewReader(data), func(item []byte) error {
			if !json.Valid(item) {
				t.Fatalf("an item that is no JSON: %q", item)
			}
			if object, err := completed(item, resource{kind: "K"}); err == nil && bytes.ContainsRune(object, '\n') {
				t.Fatalf("an object on two lines: %q", object)
			}
			return nil
		})
		if err == nil && !json.Valid(data) {
			// What follows the list is not read: a stream ends there.
			var first json.RawMessage
			if json.NewDecoder(bytes.NewReader(data)).Decode(&first) != nil {
				t.Fatalf("a list was read from what is none: %q", data)
			}
		}
	})
}

func TestRank(t *testing.T) {
	var last int
	for _, gr := range []string{
		"namespaces", "customresourcedefinitions.apiextensions.k8s.io", "storageclasses.storage.k8s.io", "persistentvolumes", "persistentvolumeclaims",
		"secrets", "configmaps", "serviceaccounts", "clusterroles.rbac.authorization.k8s.io", "deployments.apps", "services", "ingresses.networking.k8s.io", "gateways.gateway.networking.k8s.io",
	} {
		r := rank(schema.ParseGroupResource(gr))
		assert.GreaterOrEqual(t, r, last, gr)
		last = r
	}
	assert.Greater(t, rank(schema.ParseGroupResource("gateways.gateway.networking.k8s.io")), rank(schema.ParseGroupResource("ingresses.networking.k8s.io")), "a custom resource")
	assert.Equal(t, rank(schema.ParseGroupResource("widgets.example.org")), rank(schema.ParseGroupResource("gateways.gateway.networking.k8s.io")))
}

// scripted answers the paths of an API server with fixed documents: for what a real
// one does only when something is wrong with it.
func scripted(t *testing.T, answers map[string]string) *Client {
	t.Helper()
	return served(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.URL.Path
		if token := r.URL.Query().Get("continue"); token != "" {
			key += "?" + token
		}
		body, ok := answers[key]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		var status struct {
			Kind string
			Code int
		}
		if json.Unmarshal([]byte(body), &status); status.Kind == "Status" {
			w.WriteHeader(status.Code)
		}
		io.WriteString(w, body)
	}))
}

const (
	coreResources = `{"kind":"APIResourceList","groupVersion":"v1","resources":[
		{"name":"configmaps","namespaced":true,"kind":"ConfigMap","verbs":["list"]},
		{"name":"namespaces","kind":"Namespace","verbs":["list"]},
		{"name":"namespaces/status","kind":"Namespace","verbs":["get"]},
		{"name":"bindings","namespaced":true,"kind":"Binding","verbs":["create"]},
		{"name":"componentstatuses","kind":"ComponentStatus","verbs":["list"]},
		{"name":"events","namespaced":true,"kind":"Event","verbs":["list"]}]}`
	groups = `{"kind":"APIGroupList","groups":[
		{"name":"metrics.k8s.io","versions":[{"groupVersion":"metrics.k8s.io/v1","version":"v1"}],"preferredVersion":{"groupVersion":"metrics.k8s.io/v1","version":"v1"}},
		{"name":"gone.example.org","versions":[{"groupVersion":"gone.example.org/v1","version":"v1"}],"preferredVersion":{"groupVersion":"gone.example.org/v1","version":"v1"}},
		{"name":"example.org","versions":[{"groupVersion":"example.org/v1","version":"v1"}],"preferredVersion":{"groupVersion":"example.org/v1","version":"v1"}}]}`
	metrics = `{"kind":"APIResourceList","groupVersion":"metrics.k8s.io/v1","resources":[{"name":"pods","namespaced":true,"kind":"PodMetrics","verbs":["list"]}]}`
	widgets = `{"kind":"APIResourceList","groupVersion":"example.org/v1","resources":[{"name":"widgets","namespaced":true,"kind":"Widget","verbs":["list"]}]}`
)

func discovered(more map[string]string) map[string]string {
	answers := map[string]string{
		"/api": `{"kind":"APIVersions","versions":["v1"]}`, "/apis": groups, "/api/v1": coreResources,
		"/apis/metrics.k8s.io/v1": metrics, "/apis/example.org/v1": widgets,
		"/apis/gone.example.org/v1":    `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"service unavailable","reason":"ServiceUnavailable","code":503}`,
		"/api/v1/namespaces":           `{"kind":"NamespaceList","metadata":{},"items":[{"metadata":{"name":"a"}}]}`,
		"/api/v1/configmaps":           `{"kind":"ConfigMapList","metadata":{},"items":[]}`,
		"/apis/example.org/v1/widgets": `{"kind":"WidgetList","items":[{"apiVersion":"example.org/v1","kind":"Widget","metadata":{"name":"w"},"n":9007199254740993}],"metadata":{}}`,
	}
	for k, v := range more {
		answers[k] = v
	}
	return answers
}

func TestExportSaysWhatItLacks(t *testing.T) {
	c := scripted(t, discovered(map[string]string{
		"/apis/example.org/v1/widgets": `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"conversion webhook failed","reason":"InternalError","code":500}`,
	}))
	var buf bytes.Buffer
	out, err := c.Export(t.Context(), []string{"events", "typo"}, &buf)
	require.NoError(t, err)
	require.Equal(t, 1, out.Objects)
	require.JSONEq(t, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}`, buf.String())
	all := strings.Join(out.Warnings, "\n")
	assert.Len(t, out.Warnings, 3)
	assert.Contains(t, all, "the API group gone.example.org/v1 does not answer")
	assert.Contains(t, all, `the exclusion "typo" matches no resource`)
	assert.Contains(t, all, "widgets.example.org could not be listed and are not in the export")
}

// What is Kubernetes' own must be in the export.
func TestExportFailsWithoutABuiltInResource(t *testing.T) {
	c := scripted(t, discovered(map[string]string{
		"/api/v1/configmaps": `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"etcd is sad","reason":"InternalError","code":500}`,
	}))
	_, err := c.Export(t.Context(), []string{"events"}, io.Discard)
	require.ErrorContains(t, err, "exporting configmaps")
	require.ErrorContains(t, err, "etcd is sad")
}

// A snapshot that is compacted between two pages goes on with the token that the
// API server gives for that.
func TestExportGoesOnAfterExpiry(t *testing.T) {
	page := func(names, token string) string {
		var items []string
		for _, n := range strings.Fields(names) {
			items = append(items, fmt.Sprintf(`{"metadata":{"name":%q}}`, n))
		}
		return fmt.Sprintf(`{"kind":"ConfigMapList","metadata":{"continue":%q},"items":[%s]}`, token, strings.Join(items, ","))
	}
	c := scripted(t, discovered(map[string]string{
		"/api/v1/configmaps":     page("a b", "old"),
		"/api/v1/configmaps?old": `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old","reason":"Expired","code":410,"metadata":{"continue":"new"}}`,
		"/api/v1/configmaps?new": page("c", ""),
	}))
	var buf bytes.Buffer
	_, err := c.Export(t.Context(), []string{"events"}, &buf)
	require.NoError(t, err)
	var names []string
	for line := range strings.Lines(buf.String()) {
		var o struct {
			Kind     string
			Metadata struct{ Name string }
		}
		require.NoError(t, json.Unmarshal([]byte(line), &o))
		if o.Kind == "ConfigMap" {
			names = append(names, o.Metadata.Name)
		}
	}
	require.Equal(t, []string{"a", "b", "c"}, names)
}

func TestExportFailsWhenItCannotWrite(t *testing.T) {
	c := scripted(t, discovered(nil))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, w.Close())
	defer r.Close()
	_, err = c.Export(t.Context(), []string{"events"}, w)
	require.ErrorIs(t, err, os.ErrClosed)
}
