package verify

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// hostFacts is what the probes need to know of the host, and what explains their failures.
type hostFacts struct {
	missing  []string       // tools that are not there
	bash     bool           // bash and timeout are there, for queries over UDP
	pids     map[string]int // pod UID to a process in the pod's network namespace
	sections map[string]string
}

// needed are the programs that the probes are made with, and the Debian package that holds each.
var needed = map[string]string{"curl": "curl", "nsenter": "util-linux", "mktemp": "coreutils", "base64": "coreutils"}

// factsScript asks the host for everything at once. Programs that list firewall rules may be missing; K3s brings
// its own iptables when the host has none. A section that a program could not fill is left out.
const factsScript = `export LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/var/lib/rancher/k3s/data/current/bin:/var/lib/rancher/k3s/data/current/bin/aux
section() { printf 'section %s %s\n' "$1" "$(base64 | tr -d '\n')"; }
rules() {
	name=$1; shift
	command -v "$1" >/dev/null 2>&1 || return 0
	if out=$("$@" 2>/dev/null); then printf '%s\n' "$out" | grep -E -e '-j (MASQUERADE|SNAT)|(^|[[:space:]])(masquerade|snat)([[:space:]]|$)|"(MASQUERADE|SNAT)"' | head -n 5000 | section "$name"; fi
}
for tool in curl nsenter mktemp base64 bash timeout; do command -v $tool >/dev/null 2>&1 || echo missing $tool; done
stat -L -c 'netns %i %n' /proc/[0-9]*/ns/net 2>/dev/null
grep -H -o -E 'pod[0-9a-f]{8}[-_0-9a-f]{24,28}' /proc/[0-9]*/cgroup 2>/dev/null | sed 's/^/cgroup /'
cat /proc/net/if_inet6 2>/dev/null | section inet6
cat /proc/net/ipv6_route 2>/dev/null | section route6
cat /proc/net/route 2>/dev/null | section route
cat /proc/sys/net/ipv6/conf/all/forwarding 2>/dev/null | section forwarding6
cat /proc/sys/net/ipv4/ip_forward 2>/dev/null | section forwarding4
for family in ip ip6; do
	rules ${family}tables ${family}tables -w 5 -t nat -S
	rules ${family}tables-nft ${family}tables-nft -w 5 -t nat -S
	# Listing a legacy table that is not in use would bring it into being.
	if grep -q '^nat' /proc/net/${family}_tables_names 2>/dev/null; then rules ${family}tables-legacy ${family}tables-legacy -w 5 -t nat -S; fi
done
rules nft nft list ruleset
echo end facts
`

// readFacts asks the host.
func readFacts(ctx context.Context, h site) (*hostFacts, error) {
	out := limited{limit: 8 << 20}
	if err := h.run(ctx, factsScript, nil, &out); err != nil {
		return nil, fmt.Errorf("verify: looking for the pods' processes on %s: %w", h.name, err)
	}
	f, err := parseFacts(out.Bytes())
	if err != nil {
		return nil, fmt.Errorf("verify: looking for the pods' processes on %s: %w", h.name, err)
	}
	return f, nil
}

var cgroupLine = regexp.MustCompile(`^cgroup /proc/([0-9]+)/cgroup:pod([-_0-9a-f]+)$`)

// parseFacts reads what the facts script wrote.
func parseFacts(out []byte) (*hostFacts, error) {
	f := &hostFacts{pids: map[string]int{}, sections: map[string]string{}, bash: true}
	netns := map[int]string{}
	ended := false
	var candidates []struct {
		pid int
		uid string
	}
	for line := range bytes.Lines(out) {
		text := strings.TrimRight(string(line), "\r\n")
		words := strings.Fields(text)
		switch {
		case len(words) == 2 && words[0] == "missing":
			if _, need := needed[words[1]]; need {
				f.missing = append(f.missing, words[1])
			} else {
				f.bash = false
			}
		case len(words) == 3 && words[0] == "netns":
			pid, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(words[2], "/proc/"), "/ns/net"))
			if err == nil {
				netns[pid] = words[1]
			}
		case cgroupLine.MatchString(text):
			m := cgroupLine.FindStringSubmatch(text)
			pid, err := strconv.Atoi(m[1])
			if err != nil {
				continue
			}
			candidates = append(candidates, struct {
				pid int
				uid string
			}{pid, strings.ReplaceAll(m[2], "_", "-")})
		case len(words) >= 2 && len(words) <= 3 && words[0] == "section":
			text := ""
			if len(words) == 3 {
				b, err := base64.StdEncoding.DecodeString(words[2])
				if err != nil {
					return nil, fmt.Errorf("section %q is not base64: %w", trim(words[1]), err)
				}
				text = string(b)
			}
			f.sections[words[1]] = text
		case text == "end facts":
			ended = true
		}
	}
	if !ended {
		return nil, fmt.Errorf("the answer is cut off; the script on the host did not run to its end")
	}
	// The lowest number is the oldest process, the pod's sandbox. A process that shares the host's namespace
	// (a runtime's shim that a cgroup driver put there) is none of the pod's.
	for _, c := range candidates {
		ns := netns[c.pid]
		if ns == "" || ns == netns[1] {
			continue
		}
		if old, known := f.pids[c.uid]; !known || c.pid < old {
			f.pids[c.uid] = c.pid
		}
	}
	return f, nil
}

// rules returns the host's rules that rewrite sources, as each program that could be had lists them, and whether there was any
// such program. The variants of iptables do not see each other's rules.
func (f *hostFacts) rules(iptables string) (string, bool) {
	var all []string
	listed := false
	for _, name := range []string{iptables, iptables + "-nft", iptables + "-legacy", "nft"} {
		text, ok := f.sections[name]
		listed = listed || ok
		all = append(all, text)
	}
	return strings.Join(all, "\n"), listed
}

// podSections reads address and route tables, and listening sockets, of the processes' network namespaces, through /proc.
func podSections(ctx context.Context, h site, pids []int) (map[string]string, error) {
	if len(pids) == 0 {
		return nil, nil
	}
	var b strings.Builder
	b.WriteString("section() { printf 'section %s %s\\n' \"$1\" \"$(base64 | tr -d '\\n')\"; }\n")
	for _, pid := range pids {
		for _, table := range []string{"if_inet6", "ipv6_route", "route"} {
			fmt.Fprintf(&b, "cat /proc/%d/net/%s 2>/dev/null | section %s/%d\n", pid, table, table, pid)
		}
		// 0A is the state LISTEN.
		for _, table := range []string{"tcp", "tcp6"} {
			fmt.Fprintf(&b, "grep ' 0A ' /proc/%d/net/%s 2>/dev/null | section %s/%d\n", pid, table, table, pid)
		}
	}
	b.WriteString("echo end facts\n")
	out := limited{limit: 8 << 20}
	if err := h.run(ctx, "sh -s", strings.NewReader(b.String()), &out); err != nil {
		return nil, fmt.Errorf("verify: reading the pods' network tables on %s: %w", h.name, err)
	}
	f, err := parseFacts(out.Bytes())
	if err != nil {
		return nil, fmt.Errorf("verify: reading the pods' network tables on %s: %w", h.name, err)
	}
	return f.sections, nil
}

// inet6Addresses reads the addresses of global scope (ULAs are of that scope) from a table in the format of /proc/net/if_inet6.
func inet6Addresses(table string) []netip.Addr {
	var out []netip.Addr
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 6 || f[3] != "00" || f[5] == "lo" {
			continue
		}
		b, err := hex.DecodeString(f[0])
		if err != nil || len(b) != 16 {
			continue
		}
		out = append(out, netip.AddrFrom16([16]byte(b)))
	}
	return out
}

// defaultRoute6 tells whether a table in the format of /proc/net/ipv6_route has a default route that leads somewhere.
func defaultRoute6(table string) bool {
	const reject = 0x0200 // RTF_REJECT: an unreachable route, which the kernel keeps at the end of the table
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 10 || strings.Trim(f[0], "0") != "" || f[1] != "00" || f[9] == "lo" {
			continue
		}
		flags, err := strconv.ParseUint(f[8], 16, 32)
		if err == nil && flags&reject == 0 {
			return true
		}
	}
	return false
}

// defaultRoute4 is the same for the format of /proc/net/route.
func defaultRoute4(table string) bool {
	const reject = 0x0200
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err == nil && flags&reject == 0 {
			return true
		}
	}
	return false
}

// listens tells whether the tables (/proc/net/tcp and tcp6) have a listening socket for the port that takes
// connections to an address that is not the loopback's, per family. A socket on :: is counted for both families,
// as all but those with IPV6_V6ONLY take both.
func listens(tcp, tcp6 string, port int32) (v4, v6 bool) {
	each := func(table string, size int, found func(netip.Addr)) {
		for line := range strings.Lines(table) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "0A" {
				continue
			}
			address, number, ok := strings.Cut(f[1], ":")
			p, err := strconv.ParseUint(number, 16, 16)
			if !ok || err != nil || int32(p) != port {
				continue
			}
			b, err := hex.DecodeString(address)
			if err != nil || len(b) != size {
				continue
			}
			// Words of 32 bits in the machine's order, which is little endian wherever K3s runs.
			for i := 0; i < len(b); i += 4 {
				slices.Reverse(b[i : i+4])
			}
			if a, ok := netip.AddrFromSlice(b); ok && !a.Unmap().IsLoopback() {
				found(a)
			}
		}
	}
	each(tcp, 4, func(netip.Addr) { v4 = true })
	each(tcp6, 16, func(a netip.Addr) {
		switch {
		case a.IsUnspecified():
			v4, v6 = true, true
		case a.Is4In6():
			v4 = true
		default:
			v6 = true
		}
	})
	return v4, v6
}

// masquerade looks for a rule that rewrites the source of what the pod sends out. It takes rules as
// "iptables -t nat -S" and "nft list ruleset" write them. A rule counts when it names a source range that holds the
// pod's address, or when it hangs on an outgoing interface without a mark: kube-proxy's own MASQUERADE rules
// take marked packets only, which egress is not, and flannel's rule for what comes *to* the pods excludes them as source.
func masquerade(rules string, pod netip.Addr) (string, bool) {
	for line := range strings.Lines(rules) {
		line = strings.TrimSpace(line)
		if rewrites(strings.Fields(line), pod) {
			return line, true
		}
	}
	return "", false
}

func rewrites(f []string, pod netip.Addr) bool {
	acts, named, holds, out, marked := false, false, false, false, false
	hasSource := func(i int, negated bool) {
		named = true
		holds = i < len(f) && holdsAddress(strings.Trim(f[i], ","), pod) != negated
	}
	for i, w := range f {
		before := ""
		if i > 0 {
			before = f[i-1]
		}
		switch {
		case (before == "-j" || before == "--jump") && (w == "MASQUERADE" || w == "SNAT"):
			acts = true
		case w == "masquerade" || w == "snat" || strings.Trim(w, `"`) == "MASQUERADE" && before == "target":
			acts = true
		case w == "-s" || w == "--source":
			hasSource(i+1, before == "!")
		case w == "saddr" && i+1 < len(f) && f[i+1] == "!=":
			hasSource(i+2, true)
		case w == "saddr":
			hasSource(i+1, false)
		case w == "-o" || w == "oifname" || w == "oif":
			out = true
		case w == "mark" || w == "--mark":
			marked = true
		}
	}
	if named {
		return acts && holds && !marked
	}
	return acts && out && !marked
}

// holdsAddress tells whether the text, an address or a range, holds the pod's address.
func holdsAddress(text string, pod netip.Addr) bool {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Contains(pod)
	}
	a, err := netip.ParseAddr(text)
	return err == nil && a == pod
}
