//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
)

// fault is one thing that is wrong with a host, a cluster or a plan.
type fault struct {
	name string
	// id is the finding that it has to give; "" for what must give none.
	id string
	// says is a part of what was seen.
	says string
	// on and off are scripts on the host; gw and ip are set to its IPv6 gateway and address.
	on, off string
	// plan plants it in the plan, once the host is as it should be.
	plan func(t *testing.T, l *lab, spec object)
	// also are findings that come with it.
	also []string
}

// setting is a fault of K3s's configuration.
func setting(name, id, says, text string, also ...string) fault {
	const file = "/etc/rancher/k3s/config.yaml.d/fault.yaml"
	return fault{name: name, id: id, says: says, also: also, on: "mkdir -p /etc/rancher/k3s/config.yaml.d; echo '" + text + "' >" + file, off: "rm " + file}
}

// inPlan is a fault of the plan.
func inPlan(name, id, says string, edit func(spec object)) fault {
	return fault{name: name, id: id, says: says, plan: func(_ *testing.T, _ *lab, spec object) { edit(spec) }}
}

func away(name, id, says, file string) fault {
	return fault{name: name, id: id, says: says, on: "mv " + file + " " + file + ".away", off: "mv " + file + ".away " + file}
}

const (
	learned = "sysctl -q -w net.ipv6.conf.eth0.accept_ra=%s; ip -6 route del default; ip -6 route add default via $gw dev eth0 proto ra expires 1700"
	static  = "ip -6 route del default; ip -6 route add default via $gw dev eth0; sysctl -q -w net.ipv6.conf.eth0.accept_ra=0"
)

// oneByOne are planted each by itself, on one host.
var oneByOne = []fault{
	{name: "settings in a file that stays", id: "k3s.envfiles", says: "/etc/sysconfig/k3s sets K3S_TOKEN", on: "mkdir -p /etc/sysconfig; echo K3S_TOKEN=x >/etc/sysconfig/k3s", off: "rm -r /etc/sysconfig"},
	{name: "an env file without settings of K3s", on: "mkdir -p /etc/sysconfig; printf '# K3S_TOKEN=x\\nOTHER=1\\n' >/etc/sysconfig/k3s", off: "rm -r /etc/sysconfig"},
	{name: "a drop-in of the unit", id: "k3s.dropins", says: "override.conf", on: "mkdir /etc/systemd/system/k3s.service.d; echo '[Service]' >/etc/systemd/system/k3s.service.d/override.conf; systemctl daemon-reload", off: "rm -r /etc/systemd/system/k3s.service.d; systemctl daemon-reload"},
	away("no uninstall script", "k3s.scripts", "k3s-uninstall.sh is not beside", "/usr/local/bin/k3s-uninstall.sh"),
	away("no token", "k3s.token", "/server/token is not there", "/var/lib/rancher/k3s/server/token"),
	setting("node-ip in a drop-in", "k3s.source", "node-ip", "node-ip: 192.0.2.1"),
	setting("an explicit cluster-dns", "network.clusterdns", "cluster-dns is 10.43.0.10", "cluster-dns: 10.43.0.10"),
	setting("cluster-dns outside of the ranges", "network.clusterdns", "in none of the new Service ranges", "cluster-dns: 10.99.0.10"),
	setting("a named file that is not there", "k3s.files", "/etc/none.yaml", "kube-apiserver-arg: [audit-policy-file=/etc/none.yaml]"),
	setting("a named file that is there", "", "", "kube-apiserver-arg: [audit-policy-file=/etc/hosts]"),
	setting("a mask for one family", "k3s.args", "node-cidr-mask-size=25", "kube-controller-manager-arg: [node-cidr-mask-size=25]"),
	setting("a mask for each family", "", "", "kube-controller-manager-arg: [node-cidr-mask-size-ipv4=25]"),
	setting("no flannel", "k3s.cni", "flannel-backend is none", "flannel-backend: none"),
	setting("another node name", "node.name", "come back as other", "node-name: other"),
	setting("dual-stack by its settings", "k3s.stack", "dual-stack already", "cluster-cidr: 10.42.0.0/16,fd42::/56", "k3s.source"),
	setting("an external datastore", "k3s.datastore", "external", "datastore-endpoint: postgres://db.example/k3s"),
	setting("embedded etcd", "k3s.datastore", "", "cluster-init: true"),
	{name: "IPv6 is off for new interfaces", id: "host.ipv6off", says: "disable_ipv6 is 1", on: "sysctl -q -w net.ipv6.conf.default.disable_ipv6=1", off: "sysctl -q -w net.ipv6.conf.default.disable_ipv6=0"},
	{name: "no IPv6 default route", id: "host.ipv6", says: "no IPv6 default route", on: "ip -6 route del default", off: "ip -6 route add default via $gw dev eth0"},
	{name: "its address is deprecated", id: "host.ipv6", says: "no lasting global IPv6 address", on: "ip addr change $ip/64 dev eth0 valid_lft forever preferred_lft 0", off: "ip addr change $ip/64 dev eth0 valid_lft forever preferred_lft forever"},
	{name: "its address has a lifetime", id: "host.address", says: "given by router advertisements or DHCP", on: "ip addr change $ip/64 dev eth0 valid_lft 3600 preferred_lft 1800", off: "ip addr change $ip/64 dev eth0 valid_lft forever preferred_lft forever"},
	{name: "a temporary address beside the lasting one", on: temporary, off: noTemporary},
	{name: "the plan names a temporary address", id: "host.address", says: "is temporary", on: temporary, off: noTemporary, plan: func(t *testing.T, l *lab, spec object) {
		a := l.on(t, `for i in $(seq 50); do a=$(ip -6 -o addr show dev eth0 temporary | awk '{print $4; exit}'); [ -n "$a" ] && break; sleep 0.1; done; echo ${a%/*}`)
		spec["network"] = object{"nodeIP": []string{l.Host.IPv4, a}}
	}},
	{name: "a default route that ends with its advertisements", id: "host.ra", says: "it would end with them", on: strings.Replace(learned, "%s", "1", 1) + "; sysctl -q -w net.ipv6.conf.all.forwarding=0", off: static},
	{name: "a default route that is ending", id: "host.ra", says: "accept_ra is 1 and the host forwards", on: "sysctl -q -w net.ipv6.conf.all.forwarding=1; " + strings.Replace(learned, "%s", "1", 1), off: static},
	{name: "advertisements are heard while the host forwards", on: "sysctl -q -w net.ipv6.conf.all.forwarding=1; " + strings.Replace(learned, "%s", "2", 1), off: static + "; sysctl -q -w net.ipv6.conf.all.forwarding=0"},
	away("no ip6tables", "host.ip6tables", "ip6tables", "/usr/sbin/ip6tables"),
	away("a tool is missing", "host.tools", "GNU comm", "/usr/bin/comm"),
	// The clock is the machine's: what tells it is another.
	{name: "the host's clock is fast", id: "host.clock", says: "ahead of the laptop's", on: `printf '#!/bin/sh\n[ "$*" = +%%s ] || exec /usr/bin/date "$@"\necho $(($(/usr/bin/date +%%s) + 300))\n' >/usr/local/bin/date; chmod +x /usr/local/bin/date`, off: "rm /usr/local/bin/date"},
	{name: "no room on the host", id: "host.space", says: "/var/lib/k3s-dualstack", on: "mkdir -p /var/lib/k3s-dualstack; mount -t tmpfs -o size=1m tmpfs /var/lib/k3s-dualstack", off: "umount /var/lib/k3s-dualstack"},
	{name: "a container bridge in the Service range", id: "network.overlap", says: "10.43.7.1/24 on br-lan", on: "ip link add br-lan type bridge; ip addr add 10.43.7.1/24 dev br-lan", off: "ip link del br-lan"},
	{name: "a container bridge elsewhere", on: "ip link add br-lan type bridge; ip addr add 172.17.0.1/16 dev br-lan; ip link set br-lan up", off: "ip link del br-lan"},
	{name: "a firewall that drops what is forwarded", id: "host.firewall", says: "inet mine forward drops", on: drops, off: "nft delete table inet mine"},
	{name: "a firewall that drops but for further chains", id: "host.firewall", says: "further chains", on: drops + "\nnft add chain inet mine more\nnft add rule inet mine forward jump more", off: "nft delete table inet mine"},
	{name: "a firewall that knows the pods", on: drops + "\nnft add rule inet mine forward ip6 saddr fd42::/48 accept\nnft add rule inet mine forward ip6 daddr fd42::/48 accept", off: "nft delete table inet mine"},
	inPlan("an address that the host does not have", "host.nodeip", "2001:db8::99", func(s object) { s["network"] = object{"nodeIP": []string{"192.0.2.1", "2001:db8::99"}} }),
	inPlan("another IPv4 Service range", "network.servicecidr", "10.96.0.0/16", func(s object) { s["network"] = object{"serviceCIDR": []string{"10.96.0.0/16", "fd43::/108"}} }),
	inPlan("unique local pods without masquerading", "network.masquerade", "cannot reach the IPv6 internet", func(s object) { s["network"] = object{"flannelIPv6Masq": false} }),
	inPlan("K3s of another time", "k3s.version", "v1.21.1+k3s1", func(s object) { s["k3s"].(object)["version"] = "v1.21.1+k3s1" }),
	inPlan("a downgrade", "k3s.downgrade", "v1.33.1+k3s1", func(s object) { s["k3s"].(object)["version"] = "v1.33.1+k3s1" }),
	inPlan("a snapshot of logical volumes where there are none", "snapshot.method", "lies on a logical volume", func(s object) { s["snapshot"] = object{"method": "lvm"} }),
	inPlan("a snapshot by a program that is not there", "plan.unready", `host e2e-check has no program "take-snapshot"`, func(s object) {
		s["snapshot"] = object{"method": "command", "command": object{"on": "host", "create": []string{"take-snapshot"}, "status": []string{"true"}, "restore": []string{"true"}, "delete": []string{"true"}}}
	}),
	inPlan("a hook that is not there", "plan.unready", `spec.hooks[0].command[0]: hook tell: host e2e-check has no program "systemclt"`, func(s object) {
		s["hooks"] = []object{{"name": "tell", "after": "start", "on": "host", "command": []string{"systemclt", "start", "postfix"}}}
	}),
	inPlan("no snapshot, for a reason", "", "", func(s object) { s["snapshot"] = object{"method": "none", "reason": "none can be taken"} }),
	inPlan("a volume is left out", "volumes.excluded", "data/small-store-0", func(s object) {
		s["backup"].(object)["volumes"] = object{"exclude": []string{"data/small-store-0"}}
	}),
	inPlan("there is no such OpenBao", "openbao.server", "no-such", func(s object) { openBaoOf(s)["service"] = "no-such" }),
	inPlan("no unseal keys", "openbao.keys", "the plan names none", func(s object) { delete(openBaoOf(s), "unsealKeys") }),
	{name: "a token that may too little", id: "openbao.token", says: "may not do", plan: func(t *testing.T, l *lab, spec object) {
		token, err := os.ReadFile(l.OpenBao.Token)
		require.NoError(t, err)
		narrow := l.on(t, fmt.Sprintf(`ip=$(k3s kubectl get pod -n openbao openbao-0 -o jsonpath='{.status.podIP}')
curl -sSf -H 'X-Vault-Token: %s' -d '{"policies":["default"]}' "http://$ip:8200/v1/auth/token/create" | grep -o '"client_token":"[^"]*"' | cut -d'"' -f4`, strings.TrimSpace(string(token))))
		require.NotEmpty(t, narrow)
		file := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(file, []byte(narrow), 0o600))
		openBaoOf(spec)["token"] = object{"file": file}
	}},
	{name: "the node is not Ready", id: "node.ready", says: "is not Ready", on: `pkill -STOP -x kubelet; k3s kubectl patch node "$(hostname)" --subresource=status -p '{"status":{"conditions":[{"type":"Ready","status":"False"}]}}'`,
		off: `pkill -CONT -x kubelet; k3s kubectl wait --for=condition=Ready --timeout=60s node --all`,
		// Which is reached through the kubelet.
		plan: func(_ *testing.T, _ *lab, spec object) { delete(spec["backup"].(object), "openBao") }},
	{name: "K3s does not run", id: "k3s.active", says: "not running", on: "systemctl stop k3s", off: "systemctl start k3s; for i in $(seq 60); do k3s kubectl get --raw /readyz && break; sleep 1; done; k3s kubectl wait --for=condition=Ready --timeout=60s node --all"},
}

const (
	drops = `nft add table inet mine
nft 'add chain inet mine forward { type filter hook forward priority 0; policy drop; }'
nft add rule inet mine forward ct state established,related accept
nft add rule inet mine forward ip saddr 10.42.0.0/16 accept
nft add rule inet mine forward ip daddr 10.42.0.0/16 accept`
	temporary   = "sysctl -q -w net.ipv6.conf.eth0.use_tempaddr=2; ip -6 addr add ${ip%:*}:aaaa/64 dev eth0 mngtmpaddr valid_lft 7200 preferred_lft 3600"
	noTemporary = "ip -6 addr del ${ip%:*}:aaaa/64 dev eth0; ip -6 addr flush dev eth0 temporary; sysctl -q -w net.ipv6.conf.eth0.use_tempaddr=0"
)

func openBaoOf(spec object) object { return spec["backup"].(object)["openBao"].(object) }

// elsewhere is where the checks are triggered that no fault of TestCheck triggers.
var elsewhere = map[string]string{
	"snapshot.none":       "readings in the tests of preflight; file systems that can do it in those of snapshot",
	"snapshot.holds":      "readings in the tests of preflight; file systems in those of snapshot",
	"snapshot.checkpoint": "readings in the tests of preflight; file systems in those of snapshot",
	"k3s.role":            "TestRefusals, on an agent",
	"k3s.datadir":         "TestInit, on a host with another data directory",
	"laptop.space":        "preflight's own test: the disk is that of whoever runs this",
	"openbao.storage":     "preflight's own test: the lab's OpenBao has raft storage",
	"openbao.seal":        "preflight's own test: the lab's OpenBao has unseal keys",
	"openbao.namespaces":  "preflight's own test: the lab's OpenBao has none",
	"platform.drift":      "TestCheck/drift",
}

// Every check is triggered on a real host, or it is said where else.
func TestEveryCheckHasAHost(t *testing.T) {
	golden, err := os.ReadFile("../preflight/testdata/findings.golden") // which holds each
	require.NoError(t, err)
	all := map[string]bool{"platform.drift": true}
	for _, m := range regexp.MustCompile(`(?m)^  (?:inhibitor|warning|note) (\S+)$`).FindAllStringSubmatch(string(golden), -1) {
		all[m[1]] = true
	}
	triggered := maps.Clone(elsewhere)
	for _, f := range oneByOne {
		triggered[f.id] = f.name
	}
	for id := range together {
		triggered[id] = "together"
	}
	for _, n := range sites {
		for _, id := range n.ids {
			triggered[id] = n.name
		}
	}
	delete(triggered, "")
	triggered["openbao.kubernetes"] = "the lab's OpenBao as it is"
	assert.Equal(t, slices.Sorted(maps.Keys(all)), slices.Sorted(maps.Keys(triggered)))
}

// plantOneByOne: each fault is found while it is there, alone, and not before or after.
func plantOneByOne(t *testing.T, l *lab) {
	gw := l.on(t, "ip -6 route show default | awk '{print $3}'")
	on := func(script string) {
		t.Helper()
		if script != "" {
			l.on(t, "set -e; gw="+gw+" ip="+l.Host.IPv6+"\n"+script)
		}
	}
	sound := l.plan(t, nil)
	for _, f := range oneByOne {
		t.Run(f.name, func(t *testing.T) {
			on(f.on)
			mended := false
			mend := func() {
				if !mended {
					mended = true
					on(f.off)
				}
			}
			defer mend()
			file := sound
			if f.plan != nil {
				file = l.plan(t, func(spec object) { f.plan(t, l, spec) })
			}
			_, details := found(t, file)
			if f.id != "" {
				assert.Contains(t, details, f.id)
				assert.Contains(t, details[f.id], f.says)
			}
			others(t, details, append(f.also, f.id))
			mend()
		})
	}
	_, details := found(t, sound)
	others(t, details, nil)
}

// others asserts that nothing was found but what was planted, and what the lab has.
func others(t *testing.T, details map[string]string, planted []string) {
	t.Helper()
	for id, detail := range details {
		if !slices.Contains(planted, id) && id != "openbao.kubernetes" && id != "dns.name" {
			t.Errorf("%s was not planted: %s", id, detail)
		}
	}
}

// site is a hostname of the plan, and what DNS says of it.
type site struct {
	name  string
	a     func(l *lab) []string
	rcode int
	ids   []string
}

func four(l *lab) []string { return []string{l.Host.IPv4} }
func both(l *lab) []string { return []string{l.Host.IPv4, l.Host.IPv6} }

var sites = []site{
	{name: "www.shop.example", a: both},
	{name: "shop.example", rcode: dns.RcodeNameError, ids: []string{"dns.name"}}, // its wildcard does not stand for it
	{name: "old.example", a: four, ids: []string{"dns.aaaa"}},
	{name: "new.example", a: func(l *lab) []string { return []string{l.Host.IPv6} }, ids: []string{"dns.name"}},
	{name: "mute.example", rcode: dns.RcodeServerFailure, ids: []string{"dns.answer"}},
	// Addresses of this machine on which nothing answers.
	{name: "closed.example", a: func(*lab) []string { return []string{"127.9.9.8", "::1"} }, ids: []string{"http.ipv4", "http.ipv6"}},
}

// askNames: a name server of the test's own answers the laptop.
func askNames(t *testing.T, l *lab) {
	sshtest.Root(t) // the name server is given to migrate in a mount namespace
	if c, err := net.Dial("tcp", "[::1]:80"); err == nil {
		c.Close()
		sshtest.Missing(t, "something answers on [::1]:80 here")
	}
	conn, err := net.ListenPacket("udp", "127.9.9.9:53")
	require.NoError(t, err)
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		reply := new(dns.Msg).SetReply(request)
		reply.Authoritative, reply.Rcode = true, dns.RcodeNameError
		for _, s := range sites {
			q := request.Question[0]
			if q.Name != s.name+"." {
				continue
			}
			reply.Rcode = s.rcode
			if s.a == nil {
				continue
			}
			for _, text := range s.a(l) {
				a := netip.MustParseAddr(text)
				switch {
				case a.Is4() && q.Qtype == dns.TypeA:
					reply.Answer = append(reply.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}, A: a.AsSlice()})
				case a.Is6() && q.Qtype == dns.TypeAAAA:
					reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET}, AAAA: a.AsSlice()})
				}
			}
		}
		_ = w.WriteMsg(reply)
	})}
	go func() { _ = server.ActivateAndServe() }()
	defer func() { _ = server.Shutdown() }()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	require.NoError(t, os.WriteFile(conf, []byte("nameserver 127.9.9.9\noptions timeout:1 attempts:1\n"), 0o644))
	inside := []string{"GODEBUG=netdns=go"}
	for _, s := range sites {
		names := []string{s.name}
		if s.name == "shop.example" {
			names = append(names, "www.shop.example")
		}
		file := l.plan(t, func(spec object) { spec["verify"].(object)["hostnames"] = names })
		r := execute(t, inside, "unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, conf, bin("migrate"), "check", "-f", file, "-o", "json")
		_, details := read(t, r)
		delete(details, "openbao.kubernetes")
		assert.Equal(t, s.ids, nilIfEmpty(slices.Sorted(maps.Keys(details))), "%s: %v", s.name, details)
		if s.name == "shop.example" {
			assert.Contains(t, details["dns.name"], "a wildcard does not stand for the name above it")
		}
	}
}

func nilIfEmpty(s []string) []string {
	if len(s) == 0 {
		return nil
	}
	return s
}
