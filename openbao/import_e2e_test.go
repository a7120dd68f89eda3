//go:build e2e

package openbao_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
	"sunbeam.pt/k3s-dualstack/openbao"
)

// A server that lost or changed something differs in exactly that.
func TestCompareFindsWhatChanged(t *testing.T) {
	n := running(t)
	n.mount(t, "secret", "2")
	n.mount(t, "gone", "2")
	n.mount(t, "legacy", "1")
	n.mount(t, "upgraded", "1")
	for _, name := range []string{"same", "lost", "data", "deleted", "destroyed", "undeleted", "custom", "settings", "newer", "newer-pruned", "rewritten", "short"} {
		n.put(t, "secret", name, map[string]any{"v": 1, "secret": secretText}, map[string]any{"v": 2})
	}
	n.put(t, "gone", "x", map[string]any{"v": 1})
	n.must(t, "POST", map[string]any{"versions": []int{1}}, "secret/delete/undeleted")
	n.must(t, "POST", map[string]any{"delete_version_after": "2s"}, "secret/metadata/expiring")
	n.must(t, "POST", map[string]any{"data": map[string]any{"v": 1}}, "secret/data/expiring")
	for _, name := range []string{"same", "changed", "lost"} {
		n.must(t, "POST", map[string]any{"v": 1}, "legacy", name)
	}
	n.must(t, "POST", map[string]any{"v": 1}, "upgraded/x")
	s := n.server(t, n.token)
	b := export(t, s)
	same, err := s.Compare(t.Context(), bytes.NewReader(b), nil)
	require.NoError(t, err)
	require.True(t, same.Same())

	n.must(t, "DELETE", nil, "sys/mounts/gone")
	n.must(t, "DELETE", nil, "secret/metadata/lost")
	n.must(t, "DELETE", nil, "secret/metadata/data")
	n.put(t, "secret", "data", map[string]any{"v": 1, "secret": secretText}, map[string]any{"v": "other " + secretText})
	n.must(t, "DELETE", nil, "secret/metadata/short")
	n.put(t, "secret", "short", map[string]any{"v": 1, "secret": secretText})
	n.must(t, "DELETE", nil, "secret/metadata/rewritten")
	n.put(t, "secret", "rewritten", map[string]any{"v": 1, "secret": secretText}, map[string]any{"v": 2})
	n.must(t, "POST", map[string]any{"versions": []int{2}}, "secret/delete/deleted")
	n.must(t, "POST", map[string]any{"versions": []int{1}}, "secret/destroy/destroyed")
	n.must(t, "POST", map[string]any{"versions": []int{1}}, "secret/undelete/undeleted")
	n.must(t, "POST", map[string]any{"custom_metadata": map[string]string{"a": "b"}}, "secret/metadata/custom")
	n.must(t, "POST", map[string]any{"cas_required": true, "max_versions": 4, "delete_version_after": "3h"}, "secret/metadata/settings")
	n.must(t, "POST", map[string]any{"data": map[string]any{"v": 3}}, "secret/data/newer")
	n.must(t, "POST", map[string]any{"max_versions": 2}, "secret/metadata/newer-pruned")
	n.must(t, "POST", map[string]any{"data": map[string]any{"v": 3}}, "secret/data/newer-pruned")
	n.must(t, "POST", map[string]any{"v": 2}, "legacy/changed")
	n.must(t, "DELETE", nil, "legacy/lost")
	n.must(t, "DELETE", nil, "sys/mounts/upgraded")
	n.mount(t, "upgraded", "2")
	require.Eventually(t, func() bool { return n.ask(t, "GET", n.token, nil, "secret/data/expiring").Code == 404 }, wait, tick)

	c, err := s.Compare(t.Context(), bytes.NewReader(b), nil)
	require.NoError(t, err)
	require.Equal(t, []string{
		"gone/: the mount is missing, and so are its secrets",
		"upgraded/: the mount is KV version 2 and was KV version 1",
		"legacy/changed: its data differ",
		"legacy/lost: it is missing",
		"secret/custom: its custom metadata differ",
		"secret/data: the data of version 2 differ",
		"secret/deleted: version 2 is deleted and was there",
		"secret/destroyed: version 1 is destroyed and was there",
		"secret/lost: it is missing",
		"secret/newer-pruned: its max_versions is 2 and was 0",
		"secret/settings: its max_versions is 4 and was 0",
		"secret/settings: its cas_required is true and was false",
		"secret/settings: its delete_version_after is 3h0m0s and was 0s",
		"secret/short: its newest version is 1 and was 2",
		"secret/short: version 2 is missing",
		"secret/undeleted: version 1 is there and was deleted",
	}, c.Differences)
	require.Equal(t, len(c.Differences), c.Total)
	require.Equal(t, 2, c.Newer)
	require.Equal(t, 2, c.Expired, "the expired version and the pruned one")
	require.Equal(t, 3, c.Times, "those that were written anew")

	require.NoError(t, s.CompareSecret(t.Context(), bytes.NewReader(b), "secret/newer"))
	var different *openbao.DifferentError
	for _, name := range []string{"secret/data", "secret/lost", "gone/x", "upgraded/x", "legacy/changed"} {
		err := s.CompareSecret(t.Context(), bytes.NewReader(b), name)
		require.ErrorAs(t, err, &different, name)
		require.Equal(t, name, different.Path)
		require.NotContains(t, err.Error(), secretText)
	}
	var absent *openbao.NotExportedError
	require.ErrorAs(t, s.CompareSecret(t.Context(), bytes.NewReader(b), "secret/never"), &absent)

	// More differences than are kept are counted.
	n.must(t, "DELETE", nil, "sys/mounts/secret")
	n.mount(t, "secret", "2")
	for i := range 30 {
		n.put(t, "secret", fmt.Sprintf("many/%d", i), map[string]any{"v": 1})
	}
	b = export(t, s)
	for i := range 30 {
		n.must(t, "DELETE", nil, fmt.Sprintf("secret/metadata/many/%d", i))
	}
	c, err = s.Compare(t.Context(), bytes.NewReader(b), nil)
	require.NoError(t, err)
	require.Len(t, c.Differences, 20)
	require.Equal(t, 30, c.Total)
}

// An import that is cut off after any number of requests is ended by the next one.
func TestImportGoesOn(t *testing.T) {
	n := running(t)
	n.mount(t, "secret", "2")
	n.must(t, "POST", map[string]any{"max_versions": 5}, "secret/config")
	n.put(t, "secret", "a b", map[string]any{"v": 1}, map[string]any{"v": 2}, map[string]any{"v": 3}, map[string]any{"v": 4})
	n.must(t, "POST", map[string]any{"versions": []int{1, 2}}, "secret/delete/a%20b")
	n.must(t, "POST", map[string]any{"versions": []int{3}}, "secret/destroy/a%20b")
	n.must(t, "POST", map[string]any{"max_versions": 2, "custom_metadata": map[string]string{"a": "b"}}, "secret/metadata/pruned")
	for i := range 8 {
		n.must(t, "POST", map[string]any{"data": map[string]any{"v": i}}, "secret/data/pruned")
	}
	n.must(t, "POST", map[string]any{"delete_version_after": "5h"}, "secret/metadata/expiring")
	n.put(t, "secret", "expiring", map[string]any{"v": 1}, map[string]any{"v": 2})
	b := export(t, n.server(t, n.token))
	want := timeless(independent(t, n, n.token))

	other := running(t)
	to, err := url.Parse(other.url)
	require.NoError(t, err)
	var left atomic.Int64
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
	}, Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if left.Add(-1) < 0 {
			panic(http.ErrAbortHandler)
		}
		return http.DefaultTransport.RoundTrip(r)
	})})
	defer proxy.Close()
	s, err := openbao.New(openbao.Options{Address: proxy.URL, Token: other.token})
	require.NoError(t, err)
	defer s.Close()
	cuts := 0
	for requests := int64(3); ; requests += 7 {
		left.Store(requests)
		_, err := s.Import(t.Context(), bytes.NewReader(b), openbao.ImportOptions{})
		if err == nil {
			break
		}
		var unreachable *openbao.UnreachableError
		require.ErrorAs(t, err, &unreachable)
		cuts++
	}
	require.Greater(t, cuts, 3)
	require.Equal(t, want, timeless(independent(t, other, other.token)))
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// What is in the target otherwise is left alone, and reported.
func TestImportConflicts(t *testing.T) {
	n, other := running(t), running(t)
	n.mount(t, "secret", "2")
	n.mount(t, "legacy", "1")
	n.mount(t, "typed", "2")
	n.mount(t, "settled", "2")
	n.must(t, "POST", map[string]any{"max_versions": 5}, "settled/config")
	other.mount(t, "secret", "2")
	other.mount(t, "legacy", "1")
	other.mount(t, "typed", "1")
	other.mount(t, "settled", "2")
	other.must(t, "POST", map[string]any{"max_versions": 6}, "settled/config")
	v := func(i int) map[string]any { return map[string]any{"v": i, "secret": secretText} }
	for _, name := range []string{"newer", "differs", "prefix", "custom", "settings", "absent", "destroyed"} {
		n.put(t, "secret", name, v(1), v(2))
	}
	n.put(t, "secret", "deleted", v(1), v(2))
	n.must(t, "POST", map[string]any{"versions": []int{1}}, "secret/delete/deleted")
	n.put(t, "typed", "x", v(1))
	n.put(t, "settled", "x", v(1))
	n.must(t, "POST", v(1), "legacy/same")
	n.must(t, "POST", v(1), "legacy/differs")

	other.put(t, "secret", "newer", v(1), v(2), v(3))
	other.put(t, "secret", "differs", v(7))
	other.put(t, "secret", "prefix", v(1))
	other.put(t, "secret", "deleted", v(1))
	other.put(t, "secret", "destroyed", v(1))
	other.must(t, "POST", map[string]any{"versions": []int{1}}, "secret/destroy/destroyed")
	other.must(t, "POST", map[string]any{"custom_metadata": map[string]string{"mine": "yes"}}, "secret/metadata/custom")
	other.must(t, "POST", map[string]any{"cas_required": true}, "secret/metadata/settings")
	other.must(t, "POST", v(1), "legacy/same")
	other.must(t, "POST", v(2), "legacy/differs")
	before := independent(t, other, other.token)

	report, err := other.server(t, other.token).Import(t.Context(), bytes.NewReader(export(t, n.server(t, n.token))), openbao.ImportOptions{})
	require.NoError(t, err)
	got := map[string]string{}
	for _, s := range report.Secrets {
		got[s.Path] = string(s.State) + " " + s.Conflict
	}
	require.Equal(t, map[string]string{
		"legacy/differs":   "conflict its data differ",
		"legacy/same":      "unchanged ",
		"secret/absent":    "written ",
		"secret/custom":    "conflict its custom metadata differ",
		"secret/deleted":   "conflict version 1 holds data that the export has not",
		"secret/destroyed": "conflict version 1 differs",
		"secret/differs":   "conflict version 1 differs",
		"secret/newer":     "conflict it has newer versions than the export",
		"secret/prefix":    "continued ",
		"secret/settings":  "conflict its settings differ",
		"settled/x":        "written ",
		"typed/x":          "conflict the mount is KV version 1 and was KV version 2",
	}, got)
	require.Equal(t, 8, report.Conflicts)
	require.Equal(t, []openbao.ImportedMount{
		{Path: "legacy/", State: openbao.ImportUnchanged}, {Path: "secret/", State: openbao.ImportUnchanged},
		{Path: "settled/", State: openbao.ImportUnchanged, Conflict: "its settings differ from the export's, and are left alone"},
		{Path: "typed/", State: openbao.ImportConflict, Conflict: "the mount is KV version 1 and was KV version 2"},
	}, report.Mounts)
	after := independent(t, other, other.token)
	for name, state := range got {
		if strings.HasPrefix(state, "conflict") || strings.HasPrefix(state, "unchanged") {
			require.Equal(t, before[name], after[name], name)
		}
	}
	text, err := json.Marshal(report)
	require.NoError(t, err)
	require.NotContains(t, string(text), secretText)

	var denied *openbao.DeniedError
	reader := other.tokenWith(t, "reader", `path "*" { capabilities = ["read", "list"] }`)
	_, err = other.server(t, reader).Import(t.Context(), bytes.NewReader(export(t, seeded().server(t, seeded().token))), openbao.ImportOptions{})
	require.ErrorAs(t, err, &denied)
}

// Whatever the names, data and states of versions: an export, its import and the
// export of that agree but for times.
func TestAnythingGoesThroughExportAndImport(t *testing.T) {
	n, other := running(t), running(t)
	segment := rapid.StringMatching(`[ -.0-~éßπ→日]{1,12}`).Filter(func(s string) bool {
		return strings.TrimSpace(s) == s && !strings.Contains(s, "..") && s != "."
	})
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(segment, 1, 3).Draw(t, "segments"), "/")
	})
	scalar := rapid.OneOf(rapid.Just[any](nil), rapid.Map(rapid.Bool(), asAny), rapid.Map(rapid.Int32(), asAny), rapid.Map(rapid.String(), asAny), rapid.Map(rapid.SliceOfN(rapid.Int16(), 0, 3), asAny))
	data := rapid.MapOfN(rapid.String(), scalar, 0, 4)
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		kv, legacy := fmt.Sprintf("round/%d", round), fmt.Sprintf("legacy/%d", round)
		n.mount(t, kv, "2")
		n.mount(t, legacy, "1")
		for i := range rapid.IntRange(1, 3).Draw(r, "secrets") {
			path := fmt.Sprintf("%d/%s", i, name.Draw(r, "name"))
			if values := data.Draw(r, "v1"); len(values) > 0 { // KV v1 takes no empty ones
				n.must(t, "POST", values, legacy, path)
			}
			keep := rapid.IntRange(0, 4).Draw(r, "max_versions")
			meta := map[string]any{"max_versions": keep, "delete_version_after": rapid.SampledFrom([]string{"0s", "3h"}).Draw(r, "delete_version_after")}
			n.must(t, "POST", meta, kv, "metadata", path)
			count := rapid.IntRange(0, 7).Draw(r, "versions")
			for range count {
				n.must(t, "POST", map[string]any{"data": data.Draw(r, "data")}, kv, "data", path)
			}
			if count > 0 {
				for _, kind := range []string{"delete", "destroy"} {
					if which := rapid.SliceOfN(rapid.IntRange(1, count), 0, 2).Draw(r, kind); len(which) > 0 {
						n.must(t, "POST", map[string]any{"versions": which}, kv, kind, path)
					}
				}
			}
			n.must(t, "POST", map[string]any{"max_versions": rapid.IntRange(0, 12).Draw(r, "final max_versions"), "cas_required": rapid.Bool().Draw(r, "cas_required")}, kv, "metadata", path)
		}
		export := func(n *node) []byte {
			var b bytes.Buffer
			_, err := n.server(t, n.token).Export(t.Context(), []string{kv, legacy}, &b, nil)
			require.NoError(r, err)
			return b.Bytes()
		}
		b := export(n)
		report, err := other.server(t, other.token).Import(t.Context(), bytes.NewReader(b), openbao.ImportOptions{})
		require.NoError(r, err)
		require.Zero(r, report.Conflicts, "%v", report.Secrets)
		require.Equal(r, timeless(exported(t, b)), timeless(exported(t, export(other))))
	})
	require.Equal(t, timeless(independent(t, n, n.token)), timeless(independent(t, other, other.token)))
}

func asAny[T any](v T) any { return v }

// A cut or altered export is found, wherever.
func TestDamagedExport(t *testing.T) {
	b := export(t, seeded().server(t, seeded().token))
	read := func(b []byte) error {
		_, err := openbao.ReadExport(bytes.NewReader(b), func(openbao.Record) error { return nil })
		return err
	}
	require.NoError(t, read(b))
	var damaged *openbao.DamagedExport
	for at := 0; at < len(b); at += 1 + len(b)/500 {
		require.ErrorAs(t, read(b[:at]), &damaged, "cut at %d", at)
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	for i := range lines {
		if bytes.HasPrefix(lines[i], []byte(`{"secret"`)) {
			less := bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil)
			require.ErrorAs(t, read(less), &damaged, "without line %d", i)
		}
	}
	require.ErrorAs(t, read(append(bytes.Clone(b), b...)), &damaged)
	require.ErrorAs(t, read([]byte("{\"head\":{\"format\":2}}\n")), &damaged)
	require.ErrorContains(t, damaged, "form 2")
	err := read([]byte(strings.Replace(string(b), `"version":1,`, `"version":"`+secretText+`",`, 1)))
	require.ErrorAs(t, err, &damaged)
	require.NotContains(t, err.Error(), secretText)

	secret, err := openbao.FindSecret(bytes.NewReader(b), "secret/sentinel")
	require.NoError(t, err)
	latest, ok := secret.Latest()
	require.True(t, ok)
	require.JSONEq(t, `{"is": "there", "secret": "`+secretText+`"}`, string(latest.Data))
	_, err = openbao.FindSecret(bytes.NewReader(b[:len(b)/2]), "secret/sentinel")
	require.ErrorAs(t, err, &damaged)
	_, err = openbao.FindSecret(io.MultiReader(bytes.NewReader(b)), "secret/data/sentinel")
	var absent *openbao.NotExportedError
	require.ErrorAs(t, err, &absent)
}
