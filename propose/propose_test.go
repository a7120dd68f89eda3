package propose

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh/agent"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/snapshot"
	"sunbeam.pt/k3s-dualstack/survey"
)

// nasty are strings as hosts and clusters have them, and as nobody wants them.
func nasty() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.String(),
		rapid.StringMatching(`[a-z][a-z0-9.-]{0,20}`),
		rapid.SampledFrom([]string{"", "yes", "null", "~", "1e3", "0x10", "- a", "a: b", "# x", "'", `"`, "{", "]", "|", "a\nspec:\n  hosts: []",
			"a # FILL IN: b", "%", "\x1b[31m", "\xff", "\u2028", "FILL IN", "*x", "&x", "!x", "a: |", "\t", "10.42.0.0/7", "fd00::/8", "2001:db8::", "AGE-SECRET-KEY-1X"}),
	)
}

func someList() *rapid.Generator[[]string] { return rapid.SliceOfN(nasty(), 0, 3) }

func someAddress(t *rapid.T) survey.Address {
	bits := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")
	a := netip.AddrFrom16([16]byte(bits))
	if rapid.Bool().Draw(t, "IPv4") {
		a = netip.AddrFrom4([4]byte(bits[:4]))
	}
	return survey.Address{Interface: nasty().Draw(t, "interface"), Prefix: netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")), Dynamic: rapid.Bool().Draw(t, "dynamic")}
}

func someFacts(t *rapid.T) *Found {
	in := &k3s.Installation{
		Role: k3s.Server, Version: nasty().Draw(t, "version"), Binary: nasty().Draw(t, "binary"), Unit: nasty().Draw(t, "unit"),
		DataDir: nasty().Draw(t, "dir"), Datastore: k3s.SQLite, EnvFiles: someList().Draw(t, "env files"), EnvNames: someList().Draw(t, "env"),
		Config: someList().Draw(t, "config"), AgentFiles: someList().Draw(t, "agent files"), Manifests: someList().Draw(t, "manifests"), DropIns: someList().Draw(t, "drop-ins"),
		Settings: map[string]k3s.Setting{},
	}
	for range rapid.IntRange(0, 4).Draw(t, "settings") {
		in.Settings[nasty().Draw(t, "key")] = k3s.Setting{Values: someList().Draw(t, "values"), Source: nasty().Draw(t, "source")}
	}
	for _, key := range []string{"cluster-cidr", "service-cidr", "cluster-dns", "node-name"} {
		if rapid.Bool().Draw(t, key) {
			in.Settings[key] = k3s.Setting{Values: someList().Draw(t, "values"), Source: k3s.SourceFlag}
		}
	}
	f := &Found{Facts: &survey.Facts{Taken: time.Unix(0, 0), K3s: in}, Cluster: rapid.Bool().Draw(t, "cluster"), Egress: rapid.Bool().Draw(t, "egress")}
	h := &f.Facts.Host
	h.Hostname, h.OS, h.Kernel, h.Uplink = nasty().Draw(t, "hostname"), nasty().Draw(t, "os"), nasty().Draw(t, "kernel"), nasty().Draw(t, "uplink")
	for range rapid.IntRange(0, 3).Draw(t, "addresses") {
		a := someAddress(t)
		h.Addresses = append(h.Addresses, a)
		h.Routes = append(h.Routes, survey.Route{Destination: netip.PrefixFrom(a.Prefix.Addr(), 0), Interface: a.Interface, Gateway: nasty().Draw(t, "gateway"), Protocol: nasty().Draw(t, "protocol")})
	}
	if f.Cluster {
		c := &f.Facts.Cluster
		c.Version, c.TLSSecrets = nasty().Draw(t, "server"), map[string]string{nasty().Draw(t, "secret"): ""}
		c.Nodes = []survey.Node{{Name: nasty().Draw(t, "node"), InternalIPs: someList().Draw(t, "ips")}}
		for range rapid.SampledFrom([]int{0, 1, 3, 60}).Draw(t, "volumes") {
			c.Volumes = append(c.Volumes, survey.Volume{Volume: cluster.Volume{PV: "pv", Namespace: "n", Claim: nasty().Draw(t, "claim"), Kind: cluster.Local, Path: nasty().Draw(t, "path")}})
			c.Services = append(c.Services, cluster.ServiceChange{Namespace: "n", Name: "s", Skip: nasty().Draw(t, "skip"), Families: []corev1.IPFamily{corev1.IPv4Protocol}})
			f.Hostnames = append(f.Hostnames, Hostname{Name: rapid.StringMatching(`[a-z0-9]{1,9}\.[a-z]{2,5}`).Draw(t, "name"), From: someList().Draw(t, "from"), IPv4: true, IPv6: rapid.Bool().Draw(t, "v6"), Asked: rapid.Bool().Draw(t, "asked")})
		}
		for _, tool := range someList().Draw(t, "tools") {
			f.Owners = append(f.Owners, Owner{Tool: tool, Names: someList().Draw(t, "objects")})
		}
		for range rapid.IntRange(0, 2).Draw(t, "servers") {
			b := OpenBao{Image: nasty().Draw(t, "image"), Namespace: "bao", Service: rapid.SampledFrom([]string{"", "bao"}).Draw(t, "service"), Pods: []string{"bao-0"}, Port: rapid.IntRange(1, 65535).Draw(t, "port"), TLS: rapid.Bool().Draw(t, "tls")}
			if rapid.Bool().Draw(t, "status") {
				b.Status = &openbao.Status{Initialised: true, Threshold: rapid.IntRange(1, 9).Draw(t, "threshold"), RecoverySeal: rapid.Bool().Draw(t, "auto"), Version: nasty().Draw(t, "version")}
			}
			f.OpenBao = append(f.OpenBao, b)
		}
	}
	for range rapid.IntRange(0, 2).Draw(t, "files") {
		f.Files = append(f.Files, File{Path: nasty().Draw(t, "path"), By: nasty().Draw(t, "by")})
	}
	for range rapid.IntRange(0, 2).Draw(t, "gaps") {
		f.Gaps = append(f.Gaps, Gap{What: nasty().Draw(t, "what"), Why: nasty().Draw(t, "why")})
	}
	return f
}

// Whatever a host has: the plan can be read, and whatever validation has against it is
// marked; the platform's command always is.
func TestAnyPlanLoadsButForItsMarks(t *testing.T) {
	key := "age1fg3vr6djck0qpreaqr6vnmvzy7y5lwg9vf9323uuy72zn92jlaaqsv3c7v"
	rapid.Check(t, func(t *rapid.T) {
		f := someFacts(t)
		w := Wishes{Host: plans.Host{Address: "192.0.2.7", User: "admin"}, Recipients: []string{key}, Identities: []string{nasty().Draw(t, "identity")}}
		if rapid.Bool().Draw(t, "no keys") {
			w.Recipients, w.Identities = nil, nil
		}
		p, err := f.Plan(w)
		if err != nil {
			t.Fatalf("%v", err)
		}
		plan, err := plans.Decode(p.Text, "/somewhere")
		var invalid *plans.InvalidError
		if !errors.As(err, &invalid) {
			t.Fatalf("%v, %v\n%s", plan, err, p.Text)
		}
		marked := false
		for _, place := range p.Places {
			marked = marked || strings.Contains(place.What, "the command that deploys the workloads")
		}
		if !marked {
			t.Fatalf("the command is not marked: %v\n%s", p.Places, p.Text)
		}
		if len(p.Places) < len(invalid.Errors) {
			t.Fatalf("%v\nmarked are %v\n%s", invalid, p.Places, p.Text)
		}
		text := strings.Replace(string(p.Text), "command: []", "command: [./up.sh]", 1)
		if len(p.Places) == 1 {
			if _, err := plans.Decode([]byte(text), "/somewhere"); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
		}
		for n, line := range strings.Split(text, "\n") {
			if strings.ContainsAny(line, "\x1b\r\t\u2028") {
				t.Fatalf("line %d: %q", n+1, line)
			}
		}
	})
}

func TestRanges(t *testing.T) {
	t.Parallel()
	p := netip.MustParsePrefix
	assert.Equal(t, Ranges{p("fd12:3456:789a::/48"), p("fd12:3456:789a::/56"), p("fd12:3456:789a:ffff::/112")}, cut(p("fd12:3456:789a::/48")))
	assert.Equal(t, Ranges{p("fd00::/55"), p("fd00::/56"), p("fd00:0:0:1ff::/112")}, cut(p("fd00::/55")))
	seen := map[netip.Prefix]bool{}
	for range 100 {
		r := RandomPrefix()
		assert.Equal(t, r, r.Masked())
		assert.True(t, ulaRange.Contains(r.Addr()))
		assert.False(t, seen[r])
		seen[r] = true
	}
	for text, want := range map[string]string{
		"fd00:1::/48": "", "fd00::/8": "",
		"x": "not a prefix", "fd00:1::1/48": "fd00:1::/48", "2001:db8::/48": "not unique local", "fc00::/7": "not unique local", "fd00::/56": "too small", "10.0.0.0/8": "not unique local",
	} {
		_, err := ParsePrefix(text)
		if want == "" {
			assert.NoError(t, err, text)
		} else {
			assert.ErrorContains(t, err, want, text)
		}
	}
}

func TestAPrefixThatTheHostUsesIsRefused(t *testing.T) {
	t.Parallel()
	f := &Found{Facts: &survey.Facts{}}
	f.Facts.Host.Addresses = []survey.Address{{Interface: "wg0", Prefix: netip.MustParsePrefix("fd12:3456:789a:5::1/64")}}
	_, err := f.ranges(netip.MustParsePrefix("fd12:3456:789a::/48"))
	assert.ErrorContains(t, err, "address fd12:3456:789a:5::1/64 on wg0")
	f.Facts.Host.Addresses = nil
	f.Facts.Host.Routes = []survey.Route{{Destination: netip.MustParsePrefix("fd12::/16"), Interface: "wg1"}}
	_, err = f.ranges(netip.MustParsePrefix("fd12:3456:789a::/48"))
	assert.ErrorContains(t, err, "route to fd12::/16 via wg1")
	f.Facts.Host.Routes, f.Facts.Host.PolicyRoutes = nil, f.Facts.Host.Routes
	_, err = f.ranges(netip.MustParsePrefix("fd12:3456:789a::/48"))
	assert.ErrorContains(t, err, "route to fd12::/16 via wg1", "a VPN's own table")
}

func TestClusterDNSKeepsItsPlace(t *testing.T) {
	t.Parallel()
	v6 := netip.MustParsePrefix("fd12:3456:789a:ffff::/112")
	assert.Equal(t, []string{"10.43.0.53", "fd12:3456:789a:ffff::35"}, clusterDNS([]string{"10.43.0.53"}, "10.43.0.0/16", v6))
	assert.Equal(t, []string{"10.43.1.2", "fd12:3456:789a:ffff::102"}, clusterDNS([]string{"10.43.1.2"}, "10.43.0.0/16", v6))
	assert.Equal(t, []string{"192.0.2.1"}, clusterDNS([]string{"192.0.2.1"}, "10.43.0.0/16", v6), "outside: validation says so")
}

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	w := Wishes{}
	require.NoError(t, w.FindKeys())
	assert.Empty(t, w.Recipients, "nothing is there")
	assert.Empty(t, w.Identities)

	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	file := filepath.Join(dir, "age.key")
	require.NoError(t, os.WriteFile(file, []byte("# comment\n"+id.String()+"\n"), 0o600))
	w = Wishes{Identities: []string{"~/age.key"}}
	require.NoError(t, w.FindKeys())
	assert.Equal(t, []string{id.Recipient().String()}, w.Recipients)
	assert.Equal(t, []string{"~/age.key"}, w.Identities)

	require.NoError(t, os.WriteFile(file, []byte("AGE-SECRET-KEY-1QQQ\n"), 0o600))
	w = Wishes{Identities: []string{file}}
	err = w.FindKeys()
	require.ErrorContains(t, err, file)
	assert.NotContains(t, err.Error(), "SECRET")
	w = Wishes{Identities: []string{filepath.Join(dir, "missing")}}
	require.ErrorContains(t, w.FindKeys(), "missing")
}

// A key that only the agent has opens no backup set, and the plan says so.
func TestKeysInTheAgentAlone(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	socket := filepath.Join(t.TempDir(), "agent")
	t.Setenv("SSH_AUTH_SOCK", socket)
	w := Wishes{Host: plans.Host{Address: "192.0.2.7"}}
	require.NoError(t, w.FindKeys(), "no agent listens there")
	assert.Empty(t, w.inAgent)

	ring := agent.NewKeyring()
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: key, Comment: "ana@laptop"}))
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = agent.ServeAgent(ring, conn) // until the client is gone
			conn.Close()
		}
	}()
	require.NoError(t, w.FindKeys())
	assert.Empty(t, w.Recipients)
	require.Len(t, w.inAgent, 1)
	f := &Found{Facts: &survey.Facts{K3s: &k3s.Installation{}}}
	p, err := f.Plan(w)
	require.NoError(t, err)
	assert.Contains(t, strings.Join(strings.Fields(strings.ReplaceAll(string(p.Text), "#", "")), " "),
		"The SSH agent holds ana@laptop SHA256:")
	assert.Contains(t, string(p.Text), "FILL IN: no key was found")
}

func TestServerContainers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		image string
		args  []string
		want  bool
	}{
		{"quay.io/openbao/openbao:2.4.1", []string{"/bin/sh", "-ec", "exec /usr/local/bin/docker-entrypoint.sh bao server -config=/tmp/x"}, true},
		{"hashicorp/vault:1.17@sha256:0", []string{"server", "-dev"}, true},
		{"registry:5000/hashicorp/vault", nil, true},
		{"hashicorp/vault:1.17", []string{"/bin/sh", "-ec", "vault agent -config=/home/vault/config.json"}, false},
		{"hashicorp/vault-k8s:1.4", []string{"agent-inject"}, false},
		{"hashicorp/vault-secrets-operator:0.9", nil, false},
		{"nginx:1", []string{"server"}, false},
	} {
		p := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "pause"}, {Image: c.image, Args: c.args}}}}
		assert.Equal(t, c.want, serverContainer(p) != nil, "%s %q", c.image, c.args)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"a.example.org", "b.example.org"}, namesIn("Host(`a.example.org`, `b.example.org`) && PathPrefix(`/x`)"))
	assert.Equal(t, []string{"c.example.org"}, namesIn("c.example.org"))
	o := map[string]any{"spec": map[string]any{"listeners": []any{map[string]any{"hostname": "x.example.org"}, map[string]any{"port": 80}}}}
	assert.Equal(t, []string{"x.example.org"}, stringsAt(o, []string{"spec", "listeners", "hostname"}))
	for name, want := range map[string]bool{
		"sunbeam.pt": true, "a.sunbeam.pt": true, "*.sunbeam.pt": false, "localhost": false, "web.shop.svc": false,
		"kubernetes.default.svc.cluster.local": false, "10.0.0.1": false, "": false, "a_b.example": false,
	} {
		assert.Equal(t, want, outside(name), name)
	}
}

func TestFates(t *testing.T) {
	t.Parallel()
	f := &Found{Facts: &survey.Facts{K3s: &k3s.Installation{DataDir: "/var/lib/rancher/k3s"}}}
	for file, want := range map[string]string{
		"/etc/rancher/k3s/audit.yaml": "kept", "/var/lib/rancher/k3s/server/psa.yaml": "kept",
		"/var/lib/rancher/k3s/audit.yaml": "LOST", "/etc/audit.yaml": "stays",
	} {
		assert.Contains(t, f.fate(file), want, file)
	}
}

var update = flag.Bool("update", false, "rewrite the golden files")

// The plan as a person reads it.
func TestPlan(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../steps/testdata/facts.json")
	require.NoError(t, err)
	f := &Found{Facts: &survey.Facts{}, Cluster: true, Egress: true}
	require.NoError(t, json.Unmarshal(data, f.Facts))
	f.Facts.K3s.Settings = map[string]k3s.Setting{
		"service-cidr": {Values: []string{"10.43.0.0/16"}, Source: k3s.SourceFlag},
		"cluster-dns":  {Values: []string{"10.43.0.53"}, Source: "/etc/rancher/k3s/config.yaml"},
		"token":        {Values: []string{"(secret)"}, Source: k3s.SourceEnv},
		"etcd-arg":     {Values: []string{"password=hunter2"}, Source: k3s.SourceFlag},
	}
	f.Files = []File{{Path: "/etc/rancher/k3s/audit.yaml", By: "kube-apiserver-arg audit-policy-file"}, {Path: "/srv/psa.yaml", By: "kube-apiserver-arg admission-control-config-file", Missing: true}}
	f.Owners = []Owner{{Tool: "Helm releases", Names: []string{"cert-manager/cert-manager", "velero/velero"}}, {Tool: "Argo CD: Applications", Names: []string{"argocd/shop"}}}
	f.OpenBao = []OpenBao{{Image: "quay.io/openbao/openbao:2.4.1", Namespace: "openbao", Service: "openbao", Pods: []string{"openbao-0"}, Port: 8200,
		Status: &openbao.Status{Initialised: true, Version: "2.4.1", Storage: "raft", Shares: 5, Threshold: 3}}}
	f.Hostnames = []Hostname{{Name: "shop.example.org", From: []string{"Ingress shop/web"}, IPv4: true, IPv6: true, Asked: true},
		{Name: "old.example.org", From: []string{"certificate shop/old"}, IPv4: true, Asked: true}}
	f.Gaps = []Gap{{What: "Flux: Kustomizations", Why: "listing kustomizations: the server is too busy"}}
	f.Facts.Host.Storage = snapshot.Storage{
		FileSystems: []snapshot.FileSystem{{Target: "/", Source: "/dev/mapper/vg-root", Type: "ext4", Device: "253:0", Paths: []string{"/etc", "/var/lib/rancher/k3s"}}},
		Logical:     []snapshot.LogicalVolume{{Group: "vg", Name: "root", Device: "253:0", Size: 80 << 30, Type: "linear"}},
		Groups:      []snapshot.VolumeGroup{{Name: "vg", Free: 30 << 30, Extent: 4 << 20}},
		Writes:      900 << 20,
	}
	w := Wishes{Host: plans.Host{Address: "192.0.2.7", User: "admin", Sudo: true}, ULA: netip.MustParsePrefix("fd12:3456:789a::/48"),
		Recipients: []string{"age1fg3vr6djck0qpreaqr6vnmvzy7y5lwg9vf9323uuy72zn92jlaaqsv3c7v"}}
	p, err := f.Plan(w)
	require.NoError(t, err)
	assert.NotContains(t, string(p.Text), "hunter2")
	golden(t, "plan.golden", p.Text)
	lines := strings.Split(string(p.Text), "\n")
	require.Len(t, p.Places, 2, "the identity and the command")
	for _, place := range p.Places {
		assert.Contains(t, lines[place.Line-1], Mark)
	}
}

// The plan of a cluster that answered half of the questions says which, and marks what a
// person may know.
func TestPlanOfAHalfDeadCluster(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../steps/testdata/facts.json")
	require.NoError(t, err)
	f := &Found{Facts: &survey.Facts{}, Cluster: true, Egress: true}
	require.NoError(t, json.Unmarshal(data, f.Facts))
	f.Facts.Cluster.Volumes, f.Facts.Cluster.TLSSecrets, f.Facts.Cluster.Services, f.Facts.Cluster.Namespaces = nil, nil, nil, nil
	for _, what := range []string{survey.Volumes, survey.TLSSecrets, survey.Services, survey.Namespaces, whetherOpenBao, whichOwners, whichHostnames + "Ingresses"} {
		f.gap(what, errors.New("the server is currently unable to handle the request"))
	}
	w := Wishes{Host: plans.Host{Address: "192.0.2.7"}, ULA: netip.MustParsePrefix("fd12:3456:789a::/48"), inAgent: []string{"ana@laptop SHA256:abc"}}
	p, err := f.Plan(w)
	require.NoError(t, err)
	golden(t, "half.golden", p.Text)
	assert.Len(t, p.Places, 7, "two keys, volumes, TLS secrets, OpenBao, the command and host names")
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(name, got, 0o644))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got))
}

func ExampleWrap() {
	for _, line := range Wrap("one two three", 7) {
		fmt.Println(line)
	}
	// Output:
	// one two
	// three
}
