package main

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestResolveNetwork(t *testing.T) {
	host := func(_ string, want4, want6 bool) ([]netip.Addr, error) {
		var out []netip.Addr
		if want4 {
			out = append(out, netip.MustParseAddr("192.0.2.10"))
		}
		if want6 {
			out = append(out, netip.MustParseAddr("2001:db8::10"))
		}
		return out, nil
	}
	only4 := func(string, bool, bool) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("192.0.2.10")}, nil
	}
	none := func(string, bool, bool) ([]netip.Addr, error) { return nil, errors.New("no default route") }
	dual := Config{ClusterCIDR: []string{"10.42.0.0/16", "fd42::/56"}, ServiceCIDR: []string{"10.43.0.0/16", "fd43::/112"}}
	with := func(c Config, change func(*Config)) Config { change(&c); return c }
	for _, tc := range []struct {
		name    string
		cfg     Config
		detect  func(string, bool, bool) ([]netip.Addr, error)
		want    string // node / cluster / service / DNS
		wantErr string
	}{
		{name: "defaults", detect: host, want: "192.0.2.10 10.42.0.0/16 10.43.0.0/16 10.43.0.10"},
		{name: "dual", cfg: dual, detect: host, want: "192.0.2.10,2001:db8::10 10.42.0.0/16,fd42::/56 10.43.0.0/16,fd43::/112 10.43.0.10,fd43::a"},
		{name: "IPv6 first", cfg: Config{ClusterCIDR: []string{"fd42::/56", "10.42.0.0/16"}, ServiceCIDR: []string{"fd43::/112", "10.43.0.0/16"}}, detect: host, want: "2001:db8::10,192.0.2.10 fd42::/56,10.42.0.0/16 fd43::/112,10.43.0.0/16 fd43::a,10.43.0.10"},
		{name: "IPv6 only", cfg: Config{NodeIP: []string{"2001:db8::10"}}, detect: none, want: "2001:db8::10 fd00:42::/56 fd00:43::/112 fd00:43::a"},
		{name: "single DNS", cfg: with(dual, func(c *Config) { c.ClusterDNS = []string{"10.43.0.53"} }), detect: host, want: "192.0.2.10,2001:db8::10 10.42.0.0/16,fd42::/56 10.43.0.0/16,fd43::/112 10.43.0.53"},
		{name: "large service range", cfg: with(dual, func(c *Config) { c.ServiceCIDR = []string{"10.43.0.0/16", "fd43::/64"} }), detect: host, want: "192.0.2.10,2001:db8::10 10.42.0.0/16,fd42::/56 10.43.0.0/16,fd43::/64 10.43.0.10,fd43::a"},
		{name: "cluster dual, service not", cfg: Config{ClusterCIDR: dual.ClusterCIDR}, detect: host, wantErr: "cluster-cidr: [10.42.0.0/16 fd42::/56] and service-cidr: [10.43.0.0/16], must share the same IP version (IPv4, IPv6 or dual-stack)"},
		{name: "host without IPv6", cfg: dual, detect: only4, wantErr: "cluster-cidr: [10.42.0.0/16 fd42::/56] and node-ip: [192.0.2.10], must share the same IP version (IPv4, IPv6 or dual-stack)"},
		{name: "node-ip single", cfg: with(dual, func(c *Config) { c.NodeIP = []string{"192.0.2.10"} }), wantErr: "must share the same IP version"},
		{name: "order", cfg: with(dual, func(c *Config) { c.NodeIP = []string{"2001:db8::10", "192.0.2.10"} }), wantErr: "same order"},
		{name: "two of a family", cfg: Config{ClusterCIDR: []string{"10.42.0.0/16", "10.44.0.0/16"}}, detect: host, wantErr: "at most one value per IP family"},
		{name: "overlap", cfg: Config{ServiceCIDR: []string{"10.42.128.0/17"}}, detect: host, wantErr: "overlap"},
		{name: "service range too large", cfg: with(dual, func(c *Config) { c.ServiceCIDR = []string{"10.43.0.0/16", "fd43::/48"} }), detect: host, wantErr: "too large"},
		{name: "DNS outside", cfg: Config{ClusterDNS: []string{"10.96.0.10"}}, detect: host, wantErr: "is not in service-cidr"},
		{name: "no address", detect: none, wantErr: "no default route"},
		{name: "not a range", cfg: Config{ClusterCIDR: []string{"10.42.0.0"}}, detect: host, wantErr: "invalid cluster-cidr"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := tc.cfg
			n, err := resolveNetwork(&cfg, tc.detect)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("got %v, want %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := join(n.Node) + " " + join(n.Cluster) + " " + join(n.Service) + " " + join(n.DNS); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestMasqueradeRules(t *testing.T) {
	for _, tc := range []struct {
		cluster string
		masq6   bool
		want    bool
	}{
		{"10.42.0.0/16", false, true},
		{"10.42.0.0/16", true, true},
		{"fd42::/56", false, false},
		{"fd42::/56", true, true},
	} {
		masquerades := false
		for _, r := range masqueradeRules(netip.MustParsePrefix(tc.cluster), tc.masq6) {
			masquerades = masquerades || r.spec[len(r.spec)-1] == "MASQUERADE"
			if !strings.Contains(r.chain, "FLANNEL") {
				t.Errorf("%s: the killall script would not find a rule in %s", tc.cluster, r.chain)
			}
		}
		if masquerades != tc.want {
			t.Errorf("%s with flannel-ipv6-masq=%t: masquerades %t, want %t", tc.cluster, tc.masq6, masquerades, tc.want)
		}
	}
}

func TestCNIConfig(t *testing.T) {
	got, err := cniConfig([]netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd42::/64")})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "conflist.json", got)
}

// golden compares with testdata; -update rewrites it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs; go test -update rewrites it. Got:\n%s", path, got)
	}
}
