package manifests

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"sunbeam.pt/k3s-dualstack/plans"
)

var update = flag.Bool("update", false, "rewrite what the corpus is compared with")

var prefer = Options{Policy: plans.ServicesPreferDualStack, Exclude: []string{"shop/excluded"}}

// corpus are files as repositories have them: what Helm, kustomize, K3s and operators
// write, what people write, and what YAML allows.
func corpus(t interface {
	require.TestingT
	Helper()
}) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/corpus/*")
	require.NoError(t, err)
	all := map[string][]byte{}
	for _, name := range files {
		if filepath.Ext(name) == ".golden" {
			continue
		}
		all[filepath.Base(name)], err = os.ReadFile(name)
		require.NoError(t, err)
	}
	require.NotEmpty(t, all)
	return all
}

// What is found in each file of the corpus, and what becomes of it.
func TestCorpus(t *testing.T) {
	for name, data := range corpus(t) {
		t.Run(name, func(t *testing.T) {
			services, changes := Edit(Source{Name: name, Data: data, Template: name == "helm-template.yaml"}, prefer)
			var got bytes.Buffer
			for _, s := range services {
				fmt.Fprintf(&got, "%d %s: %s: %s\n", s.Line, s, s.State, s.Reason)
			}
			report := &Report{files: []edited{{name: name, data: data, changes: changes}}}
			got.WriteString("\n" + report.Diff())
			golden := filepath.Join("testdata/corpus", name+".golden")
			if *update {
				require.NoError(t, os.WriteFile(golden, got.Bytes(), 0o666))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			if d := cmp.Diff(string(want), got.String()); d != "" {
				t.Error(d)
			}
		})
	}
}

var inserted = regexp.MustCompile(`^[ \t]*("?)ipFamilyPolicy("?): ?("?)PreferDualStack("?),?[ \t]*(\r\n|\n|\r)?[ \t]*$`)

// pure asserts that out is data with the changes inserted, each of which is the one key.
func pure(t require.TestingT, data, out []byte, changes []Change) {
	rest, original, at := out, data, 0
	for _, c := range changes {
		require.Zero(t, c.Length)
		require.Regexp(t, inserted, c.Text)
		n := c.Offset - at
		require.Equal(t, original[:n], rest[:n])
		require.True(t, bytes.HasPrefix(rest[n:], []byte(c.Text)))
		original, rest, at = original[n:], rest[n+len(c.Text):], c.Offset
	}
	require.Equal(t, string(original), string(rest))
}

// Whatever the corpus's files are put through, an edit is a pure insertion, by another
// parser's reading it sets the one key and nothing else, and the next
// edit finds nothing to do.
func TestEditIsOneKey(t *testing.T) {
	all := corpus(t)
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	rapid.Check(t, func(t *rapid.T) {
		var data []byte
		for i, name := range rapid.SliceOfN(rapid.SampledFrom(names), 1, 3).Draw(t, "files") {
			if i > 0 {
				data = append(bytes.TrimRight(data, "\n"), "\n---\n"...)
			}
			data = append(data, all[name]...)
		}
		for _, m := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(mutations)-1), 0, 3, rapid.ID[int]).Draw(t, "mutations") {
			data = mutations[m](data)
		}
		checkEdit(t, data)
	})
}

// mutations keep what a file means.
var mutations = []func([]byte) []byte{
	func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) },
	func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r")) },
	func(b []byte) []byte { return append([]byte("\xef\xbb\xbf"), b...) },
	func(b []byte) []byte { return bytes.TrimRight(b, "\r\n") },
	func(b []byte) []byte { return append([]byte("# kind: Service\n\n"), b...) },
	func(b []byte) []byte { return append(b, "\n\n# the end\n"...) },
	func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("spec:\n"), []byte("spec: # spec:\n")) },
	func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\nspec:"), []byte("\n\n# spec:\n\nspec:")) },
	func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("name: "), []byte("name:   ")) },
	func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("  ports:"), []byte("  # ports:\n  ports:")) },
	func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte("\nspec:"), []byte("\n#\ttabs\tin a comment\nspec:"))
	},
	func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte("\n---\n"), []byte("\n--- # kind: Service\n"))
	},
	func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte("\n---\n"), []byte("\n...\n# between\n---\n"))
	},
}

func checkEdit(t require.TestingT, data []byte) {
	services, changes := Edit(Source{Name: "f.yaml", Data: data}, prefer)
	out := apply(data, changes)
	pure(t, data, out, changes)
	set := 0
	for _, s := range services {
		if s.State == ToSet {
			set++
		}
		require.Positive(t, s.Line)
		require.NotEqual(t, "", string(s.State))
		require.Equal(t, s.State == ToSet || s.State == ByHand || s.State == Chosen, s.Want != "", "%+v", s)
	}
	require.Len(t, changes, set)
	require.Equal(t, set, setsKeys(t, data, out))
	again, none := Edit(Source{Name: "f.yaml", Data: out}, prefer)
	require.Empty(t, none)
	require.Len(t, again, len(services))
}

// setsKeys compares two files by goccy's parser, document by document, and returns at
// how many places the second has the key in a spec and the first does not; there may be
// no other difference.
func setsKeys(t require.TestingT, before, after []byte) int {
	n := 0
	a, b := split(before), split(after)
	require.Len(t, b, len(a))
	for i := range a {
		switch {
		case a[i] == b[i]:
		case strings.Contains(a[i], "%TAG"), strings.Contains(a[i], "!!map"): // goccy knows neither between documents
			n += strings.Count(b[i], key) - strings.Count(a[i], key)
		default:
			var x, y any
			require.NoError(t, yaml.Unmarshal([]byte(a[i]), &x))
			require.NoError(t, yaml.Unmarshal([]byte(b[i]), &y))
			n += setKeys(t, x, y)
		}
	}
	return n
}

var start = regexp.MustCompile(`(^|[\r\n])---`)

// split cuts a file before each document's start.
func split(data []byte) []string {
	text := strings.TrimPrefix(string(data), "\ufeff")
	var parts []string
	at := 0
	for _, m := range start.FindAllStringIndex(text, -1) {
		parts = append(parts, text[at:m[0]])
		at = m[0]
	}
	return append(parts, text[at:])
}

func setKeys(t require.TestingT, a, b any) int {
	n := 0
	switch b := b.(type) {
	case map[string]any:
		a, ok := a.(map[string]any)
		require.True(t, ok)
		for k, v := range b {
			old, had := a[k]
			if spec, isMap := v.(map[string]any); k == "spec" && isMap && spec[key] == "PreferDualStack" {
				if was, ok := old.(map[string]any); ok && was[key] == nil {
					delete(spec, key)
					n++
				}
			}
			require.True(t, had, k)
			n += setKeys(t, old, v)
		}
		require.Len(t, b, len(a))
	case []any:
		a, ok := a.([]any)
		require.True(t, ok)
		require.Len(t, b, len(a))
		for i := range b {
			n += setKeys(t, a[i], b[i])
		}
	default:
		require.Equal(t, fmt.Sprint(a), fmt.Sprint(b))
	}
	return n
}

// SingleStack is replaced where it is written, and overruled where it comes from elsewhere.
func TestReplace(t *testing.T) {
	for before, after := range map[string]string{
		"spec: {ipFamilyPolicy: SingleStack, ports: [1]}":                       "spec: {ipFamilyPolicy: PreferDualStack, ports: [1]}",
		"spec: {\"ipFamilyPolicy\":\"SingleStack\",\"ports\":[1]}":              "spec: {\"ipFamilyPolicy\":\"PreferDualStack\",\"ports\":[1]}",
		"spec:\r\n  ports: [1]\r\n  ipFamilyPolicy: 'SingleStack' # why":        "spec:\r\n  ports: [1]\r\n  ipFamilyPolicy: 'PreferDualStack' # why",
		"base: &b {ipFamilyPolicy: SingleStack}\nspec:\n  <<: *b\n  ports: [1]": "base: &b {ipFamilyPolicy: SingleStack}\nspec:\n  ipFamilyPolicy: PreferDualStack\n  <<: *b\n  ports: [1]",
		"spec:\n  ipFamilyPolicy: &p SingleStack\n  ports: [1]":                 "",
		"spec:\n  ipFamilyPolicy: !!str SingleStack\n  ports: [1]":              "",
	} {
		const head = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"
		src := Source{Data: []byte(head + before)}
		o := prefer
		services, changes := Edit(src, o)
		require.Empty(t, changes, before)
		require.Equal(t, Chosen, services[0].State, before)
		o.Replace = true
		services, changes = Edit(src, o)
		if after == "" {
			require.Empty(t, changes, before)
			require.Equal(t, ByHand, services[0].State, before)
			continue
		}
		require.Equal(t, head+after, string(apply(src.Data, changes)))
	}
}

func FuzzEdit(f *testing.F) {
	for _, data := range corpus(f) {
		f.Add(data)
		f.Add(bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n")))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		services, changes := Edit(Source{Data: data}, prefer)
		out := apply(data, changes)
		pure(t, data, out, changes)
		if again, none := Edit(Source{Data: out}, prefer); len(none) > 0 || len(again) != len(services) {
			t.Errorf("edited again: %d changes, %d Services instead of %d", len(none), len(again), len(services))
		}
		Edit(Source{Data: data, Template: true}, prefer)
	})
}
