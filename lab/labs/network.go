package labs

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"

	"sunbeam.pt/k3s-dualstack/lab/engine"
)

// subnet is a lab's own pair of address ranges, 172.30.N.0/24 and fd30:N::/64, in which
// the host is .10 and ::10, the internet .20 and ::20.
type subnet int

func (s subnet) v4(last int) string { return fmt.Sprintf("172.30.%d.%d", int(s), last) }
func (s subnet) v6(last int) string { return fmt.Sprintf("fd30:%x::%d", int(s), last) }

// prefixes are the two ranges.
func (s subnet) prefixes() (v4, v6 string) {
	return fmt.Sprintf("172.30.%d.0/24", int(s)), fmt.Sprintf("fd30:%x::/64", int(s))
}

const (
	gatewayIndex  = 1
	hostIndex     = 10
	internetIndex = 20
)

// createNetwork makes the lab's network on ranges that nothing on this engine uses. The
// search starts at a place that the name decides, so that a lab comes back under
// the same addresses when it can.
func createNetwork(ctx context.Context, lab, network string) (subnet, error) {
	h := fnv.New32a()
	h.Write([]byte(lab))
	first := int(h.Sum32() % 256)
	var refused error
	for i := range 256 {
		s := subnet((first + i) % 256)
		v4, v6 := s.prefixes()
		refused = engine.Run(ctx, "network", "create", "--label", label+"="+lab, "--ipv6",
			"--subnet", v4, "--gateway", s.v4(gatewayIndex),
			"--subnet", v6, "--gateway", s.v6(gatewayIndex), network)
		if refused == nil {
			return s, nil
		}
		if !strings.Contains(strings.ToLower(refused.Error()), "overlap") && !strings.Contains(refused.Error(), "conflicts") {
			break
		}
	}
	return 0, fmt.Errorf("making the lab's network: %w", refused)
}
