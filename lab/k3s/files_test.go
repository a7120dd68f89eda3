package main

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestFillManifest(t *testing.T) {
	cfg := &Config{NodeName: "dedi", ClusterDomain: "cluster.local"}
	n := &network{
		Node: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")},
		DNS:  []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd43::a")},
	}
	for name, golds := range map[string]string{"coredns.yaml": "coredns-dual.yaml", "local-storage.yaml": "local-storage.yaml"} {
		text, err := shipped.ReadFile("manifests/" + name)
		if err != nil {
			t.Fatal(err)
		}
		filled := fillManifest(string(text), cfg, n, pathsBelow("/var/lib/rancher/k3s"))
		golden(t, golds, []byte(filled))
		if strings.Contains(filled, "%{") {
			t.Errorf("%s: a value is missing", name)
		}
		if _, err := owned([]byte(filled), stem(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	n.DNS = n.DNS[:1]
	text, _ := shipped.ReadFile("manifests/coredns.yaml")
	if filled := fillManifest(string(text), cfg, n, paths{}); !strings.Contains(filled, "ipFamilyPolicy: SingleStack") {
		t.Error("one DNS address does not give a single-stack Service")
	}
}

func TestOwned(t *testing.T) {
	got, err := owned([]byte("kind: A\nmetadata: {name: a, annotations: {x: y}}\n---\n---\nkind: List\nitems:\n- kind: B\n"), "mine")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "owned.json", got)
}

func TestHostsFiles(t *testing.T) {
	got, err := hostsFiles([]byte(`
mirrors:
  registry.lab:
    endpoint: ["http://192.0.2.20:5000", "https://r.example/v2/cache"]
  "*":
    endpoint: ["https://r.example"]
configs:
  r.example:
    tls: {insecure_skip_verify: true, ca_file: /etc/ca.pem}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"registry.lab": `server = "https://registry.lab/v2"

[host."http://192.0.2.20:5000/v2"]
  capabilities = ["pull", "resolve"]

[host."https://r.example/v2/cache"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
  ca = "/etc/ca.pem"
`,
		"_default": `
[host."https://r.example/v2"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
  ca = "/etc/ca.pem"
`,
	}
	if len(got) != len(want) {
		t.Errorf("got %d files, want %d", len(got), len(want))
	}
	for name, text := range want {
		if string(got[name]) != text {
			t.Errorf("%s:\n%s\nwant\n%s", name, got[name], text)
		}
	}
	for _, bad := range []string{"mirrors: {a: {endpoint: [nonsense]}}", "mirrors: {a: {rewrite: {b: c}}}", "configs: {a: {auth: {username: u}}}", "mirrors: 1"} {
		if _, err := hostsFiles([]byte(bad)); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func FuzzHostsFiles(f *testing.F) {
	f.Add([]byte("mirrors: {a: {endpoint: [http://b]}}"))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = hostsFiles(data) })
}

func TestImportedNames(t *testing.T) {
	got := importedNames([]byte("unpacking k3s.lab/pause:3.10 (sha256:abc)...done\nother line\n"))
	if want := []string{"k3s.lab/pause:3.10"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOwnCgroup(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"version 2", "0::/docker/abc/init.scope\n", "/docker/abc"},
		{"version 1 and hybrid", "21:hugetlb:/\n9:name=systemd:/docker/abc/init.scope\n4:memory:/docker/abc/init.scope\n0::/docker/abc/init.scope\n", "/docker/abc"},
		{"no systemd", "4:memory:/docker/abc\n0::/\n", "/docker/abc"},
		{"own namespace", "0::/init.scope\n", "/"},
		{"empty", "", "/"},
	} {
		if got := ownCgroup(tc.text); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestUsableResolvConf(t *testing.T) {
	for text, want := range map[string]bool{
		"nameserver 192.0.2.1\n":                          true,
		"nameserver 127.0.0.11\n":                         false,
		"nameserver 192.0.2.1\nnameserver 127.0.0.53\n":   false,
		"search example\n":                                false,
		"nameserver fe80::1%eth0\nnameserver 2001:db8::1": true,
		"":                         false,
		"# nameserver 192.0.2.1\n": false,
	} {
		if got := usableResolvConf(text); got != want {
			t.Errorf("%q: got %t, want %t", text, got, want)
		}
	}
}
