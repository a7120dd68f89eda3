//go:build e2e

package openbao_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sunbeam.pt/k3s-dualstack/openbao"
)

// The tests run against the stand-in server, on loopback. What they put there and
// what they expect is written and read over net/http alone: another client than
// the product's.

// wait and tick bound what is waited for.
const (
	wait = time.Minute
	tick = 50 * time.Millisecond
)

// node is one server process.
type node struct {
	url     string // of the API, without /v1
	cluster string
	keys    []string
	token   string
	log     *buffer
	dir     string
	stop    func()
}

// buffer is a log that is read while it is written.
type buffer struct {
	lock sync.Mutex
	b    bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.b.String()
}

func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// started is a server that was never initialised.
func started(t testing.TB, flags ...string) *node {
	t.Helper()
	parts := os.Getenv("KUBERNETES_PARTS")
	if parts == "" {
		t.Fatal("KUBERNETES_PARTS names no directory with the binary openbao; `make e2e` sets it")
	}
	dir, err := os.MkdirTemp("", "openbao-e2e-")
	require.NoError(t, err)
	listen, cluster := freePort(t), freePort(t)
	n := &node{url: "http://" + listen, cluster: "https://" + cluster, log: &buffer{}, dir: dir}
	if slices.Contains(flags, "--tls-cert") {
		n.url = "https://" + listen
	}
	cmd := exec.Command(filepath.Join(parts, "openbao"), append([]string{"server", "--path", dir, "--listen", listen, "--cluster", cluster}, flags...)...)
	cmd.Stdout, cmd.Stderr = n.log, n.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	n.stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	t.Cleanup(n.stop)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", listen)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, wait, tick, "%s", n.log)
	return n
}

// answer is what a server said.
type answer struct {
	Code int
	Body map[string]any
}

func (a answer) data() map[string]any {
	d, _ := a.Body["data"].(map[string]any)
	return d
}

// ask makes a request; the path is given segment by segment as names are, and
// escaped here.
func (n *node) ask(t testing.TB, method, token string, body any, segments ...string) answer {
	t.Helper()
	for i := range segments {
		escaped := strings.Split(segments[i], "/")
		for j := range escaped {
			escaped[j] = url.PathEscape(escaped[j])
		}
		segments[i] = strings.Join(escaped, "/")
	}
	return n.raw(t, method, token, body, strings.Join(segments, "/"))
}

func (n *node) raw(t testing.TB, method, token string, body any, path string) answer {
	t.Helper()
	var sent io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		require.NoError(t, err)
		sent = bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, n.url+"/v1/"+path, sent)
	require.NoError(t, err)
	if token != "" {
		r.Header.Set("X-Vault-Token", token)
	}
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	a := answer{Code: response.StatusCode}
	d := json.NewDecoder(response.Body)
	d.UseNumber()
	if err := d.Decode(&a.Body); err != io.EOF {
		require.NoError(t, err, "%s %s: %d", method, path, response.StatusCode)
	}
	return a
}

// must is ask for what has to succeed, as root.
func (n *node) must(t testing.TB, method string, body any, segments ...string) answer {
	t.Helper()
	a := n.ask(t, method, n.token, body, segments...)
	require.Less(t, a.Code, 300, "%s %v: %v", method, segments, a.Body)
	return a
}

func (n *node) initialise(t testing.TB, shares, threshold int) {
	t.Helper()
	a := n.must(t, "PUT", map[string]int{"secret_shares": shares, "secret_threshold": threshold}, "sys/init")
	for _, k := range a.Body["keys"].([]any) {
		n.keys = append(n.keys, k.(string))
	}
	n.token = a.Body["root_token"].(string)
	n.open(t, n.keys[:threshold])
}

func (n *node) open(t testing.TB, keys []string) {
	t.Helper()
	for _, k := range keys {
		n.must(t, "PUT", map[string]string{"key": k}, "sys/unseal")
	}
	n.ready(t)
}

func (n *node) ready(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool {
		return n.raw(t, "GET", "", nil, "sys/health").Code == 200
	}, wait, tick, "%s", n.log)
}

// running is an initialised and unsealed server with keys 5 and 3.
func running(t testing.TB, flags ...string) *node {
	t.Helper()
	n := started(t, flags...)
	n.initialise(t, 5, 3)
	return n
}

// server is the product's client of a node.
func (n *node) server(t testing.TB, token string) *openbao.Server {
	t.Helper()
	s, err := openbao.New(openbao.Options{Address: n.url, Token: token})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func (n *node) mount(t testing.TB, path, version string) {
	t.Helper()
	n.must(t, "POST", map[string]any{"type": "kv", "options": map[string]string{"version": version}}, "sys/mounts", path)
	if version == "2" {
		require.Eventually(t, func() bool { return n.ask(t, "GET", n.token, nil, path, "config").Code == 200 }, wait, tick)
	}
}

func (n *node) put(t testing.TB, mount, path string, data ...any) {
	t.Helper()
	for i, d := range data {
		n.must(t, "POST", map[string]any{"data": d, "options": map[string]int{"cas": i}}, mount, "data", path)
	}
}

// token makes a token with the policy.
func (n *node) tokenWith(t testing.TB, name, policy string) string {
	t.Helper()
	n.must(t, "PUT", map[string]string{"policy": policy}, "sys/policies/acl", name)
	a := n.must(t, "POST", map[string]any{"policies": []string{name}, "ttl": "1h"}, "auth/token/create")
	return a.Body["auth"].(map[string]any)["client_token"].(string)
}

// oddNames need escaping, look escaped, or look like something else.
var oddNames = []string{
	"a b", "per%cent", "a%2Fb", "a%252Fb", "plus+plus", "hash#tag", "what?x=1", "ünïcödé", "日本/語", "semi;colon", "am&per=sand",
	".hidden", "...", "data", "metadata/metadata", "deep/er/and/deeper", "deep", "deep-er", `back\slash`, `quo"te`, "a:b@c", "<html>", "~tilde", "star*", "comma,", "paren(s)", "[x]", "{y}", "$z", "'", "|",
}

const secretText = "data that no error may hold" //gitleaks:allow

func seed(t testing.TB, n *node) {
	n.mount(t, "secret", "2")
	n.mount(t, "team/apps", "2")
	n.mount(t, "empty", "2")
	n.mount(t, "legacy", "1")
	for i, name := range oddNames {
		n.put(t, "secret", name, map[string]any{"name": name, "n": i, "secret": secretText})
		if !strings.Contains(name, "..") { // which a server refuses in KV v1
			n.must(t, "POST", map[string]any{"name": name, "secret": secretText}, "legacy", name)
		}
	}
	n.put(t, "secret", "sentinel", map[string]any{"is": "there", "secret": secretText})
	n.put(t, "secret", "kinds", map[string]any{
		"nested": map[string]any{"list": []any{1, "two", nil, true, 2.5}, "empty": map[string]any{}}, "large": json.Number("12345678901234567890"),
		"unicode": "→ß\u0000\u2028<&>", "long": strings.Repeat("0123456789abcdef", 12800),
	}, map[string]any{})
	for _, name := range []string{"versions", "team"} {
		n.put(t, "team/apps", name, map[string]any{"v": 1}, map[string]any{"v": 2}, map[string]any{"v": 3}, map[string]any{"v": 4}, map[string]any{"v": 5})
	}
	n.must(t, "POST", map[string]any{"versions": []int{2, 5}}, "team/apps/delete/versions")
	n.must(t, "POST", map[string]any{"versions": []int{1, 4}}, "team/apps/destroy/versions")
	n.must(t, "POST", map[string]any{"versions": []int{4}}, "team/apps/delete/versions")
	n.must(t, "POST", map[string]any{"versions": []int{1, 2, 3, 4, 5}}, "team/apps/delete/team")
	n.must(t, "POST", map[string]any{"max_versions": 3, "custom_metadata": map[string]string{"owner": "ünit <test>", "purpose": "pruning"}}, "secret/metadata/pruned")
	for i := range 7 {
		n.must(t, "POST", map[string]any{"data": map[string]int{"v": i}}, "secret/data/pruned")
	}
	n.must(t, "POST", map[string]any{"cas_required": true}, "secret/metadata/cas")
	n.put(t, "secret", "cas", map[string]any{"v": 1}, map[string]any{"v": 2})
	n.put(t, "secret", "expiring", map[string]any{"v": 1})
	n.must(t, "POST", map[string]any{"delete_version_after": "2h"}, "secret/metadata/expiring")
	n.must(t, "POST", map[string]any{"data": map[string]int{"v": 2}}, "secret/data/expiring")
	n.must(t, "POST", map[string]any{"delete_version_after": "1s"}, "secret/metadata/expired")
	n.must(t, "POST", map[string]any{"data": map[string]int{"v": 1}}, "secret/data/expired")
	n.must(t, "POST", map[string]any{"custom_metadata": map[string]string{"only": "metadata"}}, "secret/metadata/never-written")
	n.must(t, "POST", map[string]any{"max_versions": 20, "delete_version_after": "0s"}, "team/apps/config")
	n.must(t, "POST", map[string]any{"type": "kubernetes"}, "sys/auth/kubernetes")
	n.must(t, "POST", map[string]any{"type": "kubernetes"}, "sys/auth/unset")
	n.must(t, "POST", map[string]any{"kubernetes_host": "https://10.43.0.1:443", "disable_local_ca_jwt": true, "kubernetes_ca_cert": testCA(t).pem}, "auth/kubernetes/config")
	require.Eventually(t, func() bool { return n.ask(t, "GET", n.token, nil, "secret/data/expired").Code == 404 }, wait, tick)
}

// seeded is one server for all tests that only read.
var seeded = sync.OnceValue(func() *node {
	n := running(leaked{})
	seed(leaked{}, n)
	return n
})

// independent reads every secret over net/http: name to metadata and versions.
func independent(t testing.TB, n *node, token string) map[string]any {
	t.Helper()
	all := map[string]any{}
	mounts := n.ask(t, "GET", token, nil, "sys/mounts").data()
	for mount, m := range mounts {
		fields := m.(map[string]any)
		if fields["type"] != "kv" {
			continue
		}
		mount = strings.TrimSuffix(mount, "/")
		v2 := fields["options"].(map[string]any)["version"] == "2"
		kind := []string{mount}
		if v2 {
			kind = append(kind, "metadata")
			all[mount+" config"] = n.ask(t, "GET", token, nil, mount, "config").data()
		}
		var walk func(folder string)
		walk = func(folder string) {
			r := n.ask(t, "LIST", token, nil, slices.Concat(kind, []string{folder})...)
			if r.Code == 404 {
				return
			}
			for _, k := range r.data()["keys"].([]any) {
				name := folder + k.(string)
				if strings.HasSuffix(name, "/") {
					walk(name)
					continue
				}
				meta := n.ask(t, "GET", token, nil, slices.Concat(kind, []string{name})...)
				require.Equal(t, 200, meta.Code, "%s/%s", mount, name)
				if !v2 {
					all[mount+"/"+name] = meta.data()
					continue
				}
				secret := map[string]any{"metadata": meta.data()}
				for number := range meta.data()["versions"].(map[string]any) {
					d := n.raw(t, "GET", token, nil, mount+"/data/"+pathEscape(name)+"?version="+number)
					secret[number] = d.data()["data"]
				}
				all[mount+"/"+name] = secret
			}
		}
		walk("")
	}
	return all
}

func pathEscape(name string) string {
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// exported brings an export into the form of independent.
func exported(t testing.TB, export []byte) map[string]any {
	t.Helper()
	all := map[string]any{}
	_, err := openbao.ReadExport(bytes.NewReader(export), func(r openbao.Record) error {
		if r.Mount != nil && r.Mount.Config != nil {
			all[strings.TrimSuffix(r.Mount.Path, "/")+" config"] = plain(t, r.Mount.Config)
		}
		if r.Secret == nil {
			return nil
		}
		name := r.Secret.Mount + r.Secret.Path
		require.NotContains(t, all, name)
		if r.Secret.Metadata == nil {
			all[name] = plain(t, r.Secret.Versions[0].Data)
			return nil
		}
		meta := plain(t, r.Secret.Metadata).(map[string]any)
		if meta["custom_metadata"] == nil {
			meta["custom_metadata"] = nil
		}
		versions := map[string]any{}
		secret := map[string]any{"metadata": meta}
		for _, v := range r.Secret.Versions {
			number := fmt.Sprint(v.Version)
			versions[number] = map[string]any{"created_time": v.CreatedTime, "deletion_time": v.DeletionTime, "destroyed": v.Destroyed}
			secret[number] = nil
			if v.Data != nil {
				secret[number] = plain(t, v.Data)
			}
		}
		meta["versions"] = versions
		all[name] = secret
		return nil
	})
	require.NoError(t, err)
	return all
}

// plain is a value as it is in JSON.
func plain(t testing.TB, v any) (out any) {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	require.NoError(t, d.Decode(&out))
	return out
}

// timeless takes the times away, which no import keeps, from what independent found.
func timeless(all map[string]any) map[string]any {
	all = maps.Clone(all)
	for name, secret := range all {
		fields, _ := secret.(map[string]any)
		meta, ok := fields["metadata"].(map[string]any)
		if !ok || fields["secret"] != nil {
			continue
		}
		meta, fields = maps.Clone(meta), maps.Clone(fields)
		delete(meta, "created_time")
		delete(meta, "updated_time")
		versions := map[string]any{}
		for number, v := range meta["versions"].(map[string]any) {
			version := v.(map[string]any)
			versions[number] = map[string]any{"destroyed": version["destroyed"], "expires": version["deletion_time"] != "" || version["destroyed"] == true}
		}
		meta["versions"] = versions
		fields["metadata"] = meta
		all[name] = fields
	}
	return all
}

func export(t testing.TB, s *openbao.Server) []byte {
	t.Helper()
	var b bytes.Buffer
	sum, err := s.Export(t.Context(), nil, &b, nil)
	require.NoError(t, err)
	read, err := openbao.ReadExport(bytes.NewReader(b.Bytes()), func(openbao.Record) error { return nil })
	require.NoError(t, err)
	require.Equal(t, sum, read)
	return b.Bytes()
}

// leaked is a testing.TB of no test, for what outlives one: it panics, and TestMain
// ends the processes.
type leaked struct{ testing.TB }

var leaks struct {
	lock sync.Mutex
	ends []func()
}

func (leaked) Helper()                           {}
func (leaked) Name() string                      { return "preparation" }
func (leaked) Context() context.Context          { return context.Background() }
func (leaked) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (leaked) FailNow()                          { panic("preparing the tests failed") }
func (leaked) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (leaked) Cleanup(end func()) {
	leaks.lock.Lock()
	defer leaks.lock.Unlock()
	leaks.ends = append(leaks.ends, end)
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, end := range leaks.ends {
		end()
	}
	os.Exit(code)
}
