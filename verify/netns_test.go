package verify

import (
	"encoding/base64"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMasquerade(t *testing.T) {
	v6, v4 := netip.MustParseAddr("fd42::7"), netip.MustParseAddr("10.42.0.7")
	for _, tc := range []struct {
		name, rule string
		pod        netip.Addr
		want       bool
	}{
		{"flannel", "-A FLANNEL-POSTRTG -s fd42::/48 ! -d ff00::/8 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully", v6, true},
		{"flannel, what comes to the pods", "-A FLANNEL-POSTRTG ! -s fd42::/48 -d fd42::/48 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully", v6, false},
		{"flannel, IPv4", "-A FLANNEL-POSTRTG -s 10.42.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully", v4, true},
		{"the other family's range", "-A FLANNEL-POSTRTG -s 10.42.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE", v6, false},
		{"kube-proxy", "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully", v6, false},
		{"kube-proxy, marked", "-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -o eth0 -j MASQUERADE", v6, false},
		{"another bridge", "-A POSTROUTING -s fd30::/64 ! -o docker0 -j MASQUERADE", v6, false},
		{"an uplink", "-A POSTROUTING -o eth0 -j MASQUERADE", v6, true},
		{"a fixed source", "-A POSTROUTING -s fd42::/64 -o eth0 -j SNAT --to-source 2001:db8::1", v6, true},
		{"no source rewritten", "-A POSTROUTING -s fd42::/64 -j RETURN", v6, false},
		{"nft", "ip6 saddr fd42::/48 ip6 daddr != ff00::/8 counter packets 3 bytes 240 masquerade fully-random", v6, true},
		{"nft, what comes to the pods", "ip6 saddr != fd42::/48 ip6 daddr fd42::/48 counter packets 0 bytes 0 masquerade fully-random", v6, false},
		{"nft shown for iptables-nft", "ip6 saddr fd42::/48 ip6 daddr != ff00::/8 counter packets 0 bytes 0 xt target \"MASQUERADE\"", v6, true},
		{"nft, an uplink", "oifname \"eth0\" masquerade", v6, true},
		{"nft, kube-proxy", "masquerade fully-random", v6, false},
		{"nothing", "", v6, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, got := masquerade("# a line before\n"+tc.rule+"\n", tc.pod); got != tc.want {
				t.Errorf("masquerade(%q) = %v", tc.rule, got)
			}
		})
	}
}

func FuzzMasquerade(f *testing.F) {
	f.Add("-A FLANNEL-POSTRTG -s fd42::/48 ! -d ff00::/8 -j MASQUERADE")
	f.Add("ip6 saddr != fd42::/48 masquerade")
	f.Add("saddr")
	f.Add("-s")
	f.Fuzz(func(t *testing.T, rules string) { masquerade(rules, netip.MustParseAddr("fd42::7")) })
}

const (
	inet6Table = `00000000000000000000000000000001 01 80 10 80       lo
fd420000000000000000000000000007 02 40 00 80     eth0
fe80000000000000042f28fffe1a0b01 02 40 20 80     eth0
`
	route6Table = `fd420000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd420000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
`
	noRoute6Table = `fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200     eth0
`
	routeTable = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	01002A0A	0003	0	0	0	00000000	0	0	0
eth0	00002A0A	00000000	0001	0	0	0	00FFFFFF	0	0	0
`
	tcpTable = `   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
`
	tcp6Table = `   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 000042FD000000000000000007000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   2: 00000000000000000000000001000000:0019 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   3: 0000000000000000FFFF00000700000A:2382 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
`
)

func TestTables(t *testing.T) {
	if diff := cmp.Diff([]netip.Addr{netip.MustParseAddr("fd42::7")}, inet6Addresses(inet6Table), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if !defaultRoute6(route6Table) || defaultRoute6(noRoute6Table) || defaultRoute6("") {
		t.Error("defaultRoute6")
	}
	if !defaultRoute4(routeTable) || defaultRoute4("eth0	00002A0A	00000000	0001	0	0	0	00FFFFFF	0	0	0\n") {
		t.Error("defaultRoute4")
	}
	for port, want := range map[int32][2]bool{
		8080: {true, false},  // 0.0.0.0
		25:   {false, false}, // the loopback's only
		80:   {true, true},   // ::
		443:  {false, true},  // an IPv6 address
		9090: {true, false},  // an IPv4 address on an IPv6 socket
		1:    {false, false},
	} {
		if v4, v6 := listens(tcpTable, tcp6Table, port); v4 != want[0] || v6 != want[1] {
			t.Errorf("listens(%d) = %v, %v; want %v", port, v4, v6, want)
		}
	}
}

func FuzzTables(f *testing.F) {
	for _, s := range []string{inet6Table, route6Table, noRoute6Table, routeTable, tcpTable, tcp6Table} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, table string) {
		inet6Addresses(table)
		defaultRoute6(table)
		defaultRoute4(table)
		listens(table, table, 80)
	})
}

const factsOutput = `missing timeout
netns 4026531840 /proc/1/ns/net
netns 4026531840 /proc/90/ns/net
netns 4026532200 /proc/200/ns/net
netns 4026532200 /proc/201/ns/net
netns 4026532300 /proc/300/ns/net
netns 4026531840 /proc/400/ns/net
cgroup /proc/201/cgroup:pod6c1f0d3e-0f3a-4c57-9b42-2f4d0a7f1b11
cgroup /proc/90/cgroup:pod6c1f0d3e-0f3a-4c57-9b42-2f4d0a7f1b11
cgroup /proc/200/cgroup:pod6c1f0d3e-0f3a-4c57-9b42-2f4d0a7f1b11
cgroup /proc/300/cgroup:podaaaaaaaa_0f3a_4c57_9b42_2f4d0a7f1b11
cgroup /proc/400/cgroup:podbbbbbbbb-0f3a-4c57-9b42-2f4d0a7f1b11
cgroup /proc/500/cgroup:podcccccccc-0f3a-4c57-9b42-2f4d0a7f1b11
section forwarding6 MQo=
section nft
end facts
`

func TestParseFacts(t *testing.T) {
	f, err := parseFacts([]byte(factsOutput))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{
		"6c1f0d3e-0f3a-4c57-9b42-2f4d0a7f1b11": 200, // not 90, which is in the host's namespace
		"aaaaaaaa-0f3a-4c57-9b42-2f4d0a7f1b11": 300, // systemd's way to write a UID
		// bbbbbbbb is on the host's network; cccccccc ended between the two looks
	}
	if diff := cmp.Diff(want, f.pids); diff != "" {
		t.Error(diff)
	}
	if f.bash || len(f.missing) != 0 || f.sections["forwarding6"] != "1\n" {
		t.Errorf("%+v", f)
	}
	if _, listed := f.sections["nft"]; !listed {
		t.Error("an empty section is a section: the program was there and listed nothing")
	}
	f, err = parseFacts([]byte("missing curl\nend facts\n"))
	if err != nil || len(f.missing) != 1 {
		t.Errorf("%+v, %v", f, err)
	}
	if c := evaluateTools(f, "one"); c.Status != Fail || !strings.Contains(c.Remedy, "apt-get install curl") || !c.final {
		t.Errorf("%+v", c)
	}
	for _, bad := range []string{"", "missing curl\n", "section x %%%\nend facts\n"} {
		if _, err := parseFacts([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func FuzzParseFacts(f *testing.F) {
	f.Add([]byte(factsOutput))
	f.Add([]byte("section x " + base64.StdEncoding.EncodeToString([]byte(tcp6Table)) + "\nend facts\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		facts, err := parseFacts(out)
		if err != nil {
			return
		}
		for uid, pid := range facts.pids {
			if pid <= 0 || uid == "" {
				t.Errorf("pod %q has process %d", uid, pid)
			}
		}
	})
}

// TestFactsScript only shows that the script is one that a shell runs to its end, and that it reads tables as the kernel writes them.
func TestFactsScript(t *testing.T) {
	if _, err := exec.LookPath("stat"); err != nil {
		t.Skip("this machine has no stat")
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", factsScript).Output()
	if err != nil {
		t.Fatal(err)
	}
	f, err := parseFacts(out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, ok := f.sections["route"]; !ok {
		t.Skip("not Linux")
	}
}

func TestExplain(t *testing.T) {
	timeout := answer{exit: 28, message: "Connection timed out after 5001 milliseconds"}
	works := answer{connected: 0.01, code: 200}
	base := path{
		family: IPv6, pod: "pod matrix/chat-1", addresses: []netip.Addr{netip.MustParseAddr("fd42::7")}, route: true,
		podRange: "fd42::/64", target: "http://internet.lab/", host: works, hostAddress: true, hostRoute: true,
		forwarding: "1", rules: "-A FLANNEL-POSTRTG -s 10.42.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE\n", rulesComplete: true,
	}
	with := func(change func(*path)) path { p := base; change(&p); return p }
	var b strings.Builder
	for _, tc := range []struct {
		name string
		path path
	}{
		{"no address, single-stack", with(func(p *path) { p.addresses, p.single = nil, true })},
		{"no address, dual-stack", with(func(p *path) { p.addresses = nil })},
		{"no route", with(func(p *path) { p.route = false })},
		{"host without address", with(func(p *path) { p.host, p.hostAddress = timeout, false })},
		{"host without route", with(func(p *path) { p.host, p.hostRoute = timeout, false })},
		{"host without egress", with(func(p *path) { p.host = timeout })},
		{"no forwarding", with(func(p *path) { p.forwarding = "0" })},
		{"no masquerade", base},
		{"no masquerade, rules unknown", with(func(p *path) { p.rulesComplete = false })},
		{"no masquerade, global range", with(func(p *path) {
			p.addresses, p.podRange = []netip.Addr{netip.MustParseAddr("2001:db8:42::7")}, "2001:db8:42::/64"
		})},
		{"no masquerade, IPv4", with(func(p *path) {
			p.family, p.addresses, p.podRange, p.rules = IPv4, []netip.Addr{netip.MustParseAddr("10.42.0.7")}, "10.42.0.0/24", ""
		})},
		{"masquerade, and yet", with(func(p *path) { p.rules = "-A FLANNEL-POSTRTG -s fd42::/48 ! -d ff00::/8 -j MASQUERADE" })},
	} {
		detail, remedy, final := explain(timeout, tc.path)
		settles := "may settle"
		if final {
			settles = "lasting"
		}
		b.WriteString(tc.name + " (" + settles + ")\n  " + detail + "\n  -> " + remedy + "\n")
	}
	golden(t, "explain.txt", []byte(b.String()))
}
