package preflight

import (
	"fmt"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

// names are the plan's, as the laptop sees them.
func names(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	v6 := "the host's IPv6 address"
	if ip, ok := f.Host.IPv6(); ok {
		v6 = ip.String()
	}
	for _, n := range f.Names {
		switch {
		case n.Problem != "":
			out = append(out, warn("dns.answer", "`dig A "+n.Host+"` and `dig AAAA "+n.Host+"` show what does answer", "DNS did not answer for %s: %s", n.Host, n.Problem)...)
			continue
		case len(n.A) == 0 && len(n.AAAA) == 0:
			apex := ""
			for _, other := range f.Names {
				if strings.HasSuffix(other.Host, "."+n.Host) && len(other.A)+len(other.AAAA) > 0 {
					apex = fmt.Sprintf(", though %s has: a wildcard does not stand for the name above it", other.Host)
				}
			}
			out = append(out, warn("dns.name", "add A and AAAA records for "+n.Host+", or take it out of spec.verify.hostnames",
				"%s has no address as seen from the laptop%s", n.Host, apex)...)
			continue
		case len(n.A) == 0:
			out = append(out, warn("dns.name", "add an A record for "+n.Host, "%s has AAAA records and no A record", n.Host)...)
		case len(n.AAAA) == 0:
			out = append(out, note("dns.aaaa", "once the migration is verified, add an AAAA record for "+n.Host+" with "+v6, "%s has no AAAA record yet", n.Host)...)
		}
		if n.HTTP4 != "" && !survey.Answers(n.HTTP4) {
			out = append(out, warn("http.ipv4", "`curl -4 http://"+n.Host+"/`: mend the site, or go on if it is not meant to be reached from here",
				"%s does not answer the laptop over IPv4: %s", n.Host, n.HTTP4)...)
		}
		if n.HTTP6 != "" && !survey.Answers(n.HTTP6) && !strings.Contains(n.HTTP6, "network is unreachable") {
			out = append(out, note("http.ipv6", "nothing to do if it is the cluster that has no IPv6 yet; else `curl -6 http://"+n.Host+"/`",
				"%s has an AAAA record and does not answer over IPv6: %s", n.Host, n.HTTP6)...)
		}
	}
	return out
}
