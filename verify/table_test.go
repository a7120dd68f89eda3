package verify

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file of testdata, or writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

// Reports as they come: of a cluster before the migration, after it, and without masquerade.
func reports() map[string]Report {
	after := []Check{
		pass(EgressIPv6, "node one to http://internet.lab/", IPv6, "HTTP 200, seen outside as fd30::10 (the node's address)"),
		pass(EgressIPv4, "node one to http://internet.lab/", IPv4, "HTTP 200, seen outside as 172.30.0.10 (the node's address)"),
		pass(HostTools, "host one", "", "curl and nsenter are there"),
		pass(NodePodCIDRs, "node one", IPv4, "10.42.0.0/24"),
		pass(NodePodCIDRs, "node one", IPv6, "fd42::/64"),
		pass(PodAddresses, "matrix/chat-1", IPv4, "10.42.0.7"),
		pass(PodAddresses, "matrix/chat-1", IPv6, "fd42::7"),
		pass(ServiceClusterIPs, "matrix/chat", IPv4, "10.43.0.7"),
		pass(ServiceClusterIPs, "matrix/chat", IPv6, "fd43::7"),
		skip(ServiceClusterIPs, "default/kubernetes", "", "the API server owns it"),
		skip(ServiceAnswer, "devtools/idle:80", "", "no endpoint is ready"),
		pass(TLSSecrets, "ingress/pingora-tls", "", "as it was backed up"),
	}
	const masq = "from pod matrix/chat-1: the connection times out: packets leave with the ULA source fd42::7, which nobody routes back; IPv6 masquerade (flannel-ipv6-masq) is missing: no MASQUERADE rule for the pod's IPv6 range fd42::/64 in ip6tables and nft on the host"
	unmasked := append([]Check{}, after[1:]...)
	unmasked = append(unmasked,
		fail(EgressIPv6, "node one to http://internet.lab/", IPv6, masq, remedyMasquerade(IPv6)),
		fail(EgressIPv6, "node one to http://[fd30::20]/", IPv6, masq, remedyMasquerade(IPv6)))
	before := []Check{
		fail(NodePodCIDRs, "node one", IPv6, "the node has no IPv6 pod range; it has 10.42.0.0/24", remedyMigrate),
		pass(NodePodCIDRs, "node one", IPv4, "10.42.0.0/24"),
		fail(PodAddresses, "matrix/chat-1", IPv6, "the pod has no IPv6 address; it has 10.42.0.7", remedyMigrate),
		fail(EgressIPv6, "node one to http://internet.lab/", IPv6, "pod matrix/chat-1 has no IPv6 address", remedyMigrate),
		fail(HostnamesReachable, "a\x1b[31mname.example", IPv6, "curl says\r\n\x1b[2Jsomething", "look"),
	}
	for _, pod := range []string{"a", "b", "c", "d", "e"} {
		before = append(before, fail(PodAddresses, "matrix/"+pod, IPv6, "the pod has no IPv6 address; it has 10.42.0.8", remedyMigrate))
	}
	return map[string]Report{
		"after":    newReport(DualStack, "demo", after),
		"unmasked": newReport(DualStack, "demo", unmasked),
		"before":   newReport(SingleStack, "demo", before),
		"nothing":  newReport(DualStack, "demo", nil),
	}
}

func TestTable(t *testing.T) {
	for name, r := range reports() {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := r.Table(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, "table-"+name+".txt", b.Bytes())
			for line := range strings.Lines(b.String()) {
				line = strings.TrimSuffix(line, "\n")
				if utf8.RuneCountInString(line) > width || strings.ContainsAny(line, "\x1b\r") || strings.TrimRight(line, " ") != line {
					t.Errorf("line is too long, commands the terminal or ends in blanks: %q", line)
				}
			}
		})
	}
}

func TestReportJSON(t *testing.T) {
	for name, r := range reports() {
		t.Run(name, func(t *testing.T) {
			b, err := json.MarshalIndent(r, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "report-"+name+".json", append(b, '\n'))
			if want := name == "after"; r.OK() != want || r.Passed != want {
				t.Errorf("OK() = %v, Passed = %v, want %v", r.OK(), r.Passed, want)
			}
		})
	}
}

func TestEveryCheckHasItsPlaceInTheTable(t *testing.T) {
	for _, id := range []string{HostTools, NodePodCIDRs, NodeAddresses, ServiceCIDRs, Workloads, PodAddresses, PodConnect,
		ServiceClusterIPs, ServiceEndpoints, ServiceAnswer, DNSServer, DNSPod, DNSA, DNSAAAA, EgressIPv4, EgressIPv6,
		HostnamesResolve, HostnamesReachable, VolumeContents, TLSSecrets} {
		if rank(id) == len(groups) || title(id) == id {
			t.Errorf("%s has no place in the table", id)
		}
	}
}
