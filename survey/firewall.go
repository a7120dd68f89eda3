package survey

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/remote"
)

// Firewall is what may drop forwarded IPv6 packets.
type Firewall struct {
	// Forward are the chains of nftables that see forwarded IPv6 packets first.
	Forward []Chain `json:"forward,omitempty"`
	// UFW holds the lines of `ufw status` while it is active.
	UFW []string `json:"ufw,omitempty"`
	// Firewalld tells whether it runs, and Trusted the sources of its zone of that name.
	Firewalld bool     `json:"firewalld,omitempty"`
	Trusted   []string `json:"trusted,omitempty"`
}

// Chain is one chain of nftables.
type Chain struct {
	Name  string   `json:"name"` // family, table and chain, as nft takes them
	Drops bool     `json:"drops,omitempty"`
	Rules []string `json:"rules,omitempty"`
}

const firewallReadings = `PATH=$PATH:/usr/sbin:/sbin
if command -v nft >/dev/null; then
  nft list chains 2>/dev/null | awk '$1=="table"{f=$2;t=$3} $1=="chain"{c=$2} /hook forward/ && (f=="inet" || f=="ip6") {print f, t, c}' |
  while read -r f t c; do echo "chain=$f $t $c"; nft -s list chain "$f" "$t" "$c" 2>/dev/null | sed 's/^/line=/'; done
fi
command -v ufw >/dev/null && ufw status 2>/dev/null | sed 's/^/ufw=/'
if command -v firewall-cmd >/dev/null && firewall-cmd --state >/dev/null 2>&1; then
  echo "firewalld="
  for s in $(firewall-cmd --zone=trusted --list-sources 2>/dev/null); do echo "trusted=$s"; done
fi
true`

func readFirewall(ctx context.Context, h *remote.Host) (Firewall, error) {
	out, err := h.Output(ctx, firewallReadings)
	if err != nil {
		return Firewall{}, fmt.Errorf("host %s: looking at its firewall: %w", h.Name(), err)
	}
	return parseFirewall(out), nil
}

func parseFirewall(out string) (f Firewall) {
	out = strings.ToValidUTF8(out, "\uFFFD") // as JSON keeps it
	var ufw []string
	for line := range strings.SplitSeq(out, "\n") {
		name, value, _ := strings.Cut(line, "=")
		value = strings.Join(strings.Fields(value), " ")
		switch name {
		case "chain":
			f.Forward = append(f.Forward, Chain{Name: value})
		case "line":
			if len(f.Forward) == 0 {
				continue
			}
			c := &f.Forward[len(f.Forward)-1]
			switch {
			case strings.HasPrefix(value, "type "):
				c.Drops = strings.Contains(value, "policy drop")
			case value == "" || value == "}" || strings.HasPrefix(value, "table ") || strings.HasPrefix(value, "chain "):
			default:
				c.Rules = append(c.Rules, value)
			}
		case "ufw":
			ufw = append(ufw, value)
		case "firewalld":
			f.Firewalld = true
		case "trusted":
			f.Trusted = append(f.Trusted, value)
		}
	}
	if slices.Contains(ufw, "Status: active") {
		f.UFW = ufw
	}
	return f
}
