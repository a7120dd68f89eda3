package propose

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
)

// Ranges are the IPv6 ranges of pods and Services, both cut from Prefix.
type Ranges struct{ Prefix, Pods, Services netip.Prefix }

// ulaRange is where RFC 4193 puts prefixes that are assigned locally, by lot.
var ulaRange = netip.MustParsePrefix("fd00::/8")

// podBits and serviceBits are the masks that K3s's documentation shows: nodes get
// a /64 each, and the API server takes no more Services than this.
const (
	podBits     = 56
	serviceBits = 112
	// maxPrefixBits leaves a /56 for the pods and room beside it.
	maxPrefixBits = podBits - 1
)

// RandomPrefix is a /48 with a global ID by lot (RFC 4193, section 3.2).
func RandomPrefix() netip.Prefix {
	a := [16]byte{0xfd}
	rand.Read(a[1:6])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// ParsePrefix reads the prefix that a person names.
func ParsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not a prefix such as fd12:3456:789a::/48", s)
	case p != p.Masked():
		return p, fmt.Errorf("%s has bits set behind its mask; the prefix is %s", s, p.Masked())
	case !ulaRange.Overlaps(p) || p.Bits() < 8:
		return p, fmt.Errorf("%s is not unique local: it has to lie in %s (RFC 4193)", s, ulaRange)
	case p.Bits() > maxPrefixBits:
		return p, fmt.Errorf("%s is too small: take a mask of /%d or shorter, best /48, for the pods' /%d and the Services beside it", s, maxPrefixBits, podBits)
	}
	return p, nil
}

// cut takes the first /56 for the pods and the last /64's first /112 for the Services.
func cut(p netip.Prefix) Ranges {
	last := p.Addr().As16()
	for bit := p.Bits(); bit < 64; bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	return Ranges{Prefix: p, Pods: netip.PrefixFrom(p.Addr(), podBits), Services: netip.PrefixFrom(netip.AddrFrom16(last), serviceBits)}
}

// ranges proposes IPv6 ranges that nothing on the host has: a prefix that was
// asked for must be free, another is drawn until it is.
func (f *Found) ranges(asked netip.Prefix) (Ranges, error) {
	if asked.IsValid() {
		if by := f.uses(asked); by != "" {
			return Ranges{}, fmt.Errorf("the prefix %s overlaps the host's %s; take another one", asked, by)
		}
		return cut(asked), nil
	}
	p := RandomPrefix()
	for range draws {
		if f.uses(p) == "" {
			return cut(p), nil
		}
		p = RandomPrefix()
	}
	f.Gaps = append(f.Gaps, Gap{What: "IPv6 ranges that are free", Why: fmt.Sprintf("the host's %s leaves none of those drawn; look at its routes, and name a prefix with --ula", f.uses(p))})
	return cut(p), nil
}

// draws is how often a random prefix is drawn: one that is in use twice is no bad
// luck but a route to all of them.
const draws = 20

// uses says which address or route of the host overlaps a prefix.
func (f *Found) uses(p netip.Prefix) string {
	for _, a := range f.Facts.Host.Addresses {
		if p.Overlaps(a.Prefix.Masked()) {
			return fmt.Sprintf("address %s on %s", a.Prefix, a.Interface)
		}
	}
	for _, r := range slices.Concat(f.Facts.Host.Routes, f.Facts.Host.PolicyRoutes) {
		if r.Destination.Bits() > 8 && p.Overlaps(r.Destination) {
			return fmt.Sprintf("route to %s via %s", r.Destination, r.Interface)
		}
	}
	return ""
}
