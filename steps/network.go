package steps

import (
	"context"
	"fmt"
	"strings"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// sysctlFile persists the host's network settings over reboots.
const sysctlFile = "/etc/sysctl.d/90-k3s-dualstack.conf"

// network makes the host forward IPv6 and keep its own default route while it
// does: a forwarding interface ignores router advertisements unless accept_ra
// is 2, and a default route learned from one then dies with its lifetime.
func (m *Migration) network(context.Context) ([]runner.Action, error) {
	return []runner.Action{{
		Name: "sysctl", Target: m.onHost(),
		Summary: "Forwarding for both families, router advertisements kept on " + m.Facts.Host.Uplink,
		Command: "sysctl -p " + sysctlFile,
		Run: func(ctx context.Context) (any, error) {
			h, err := m.Host(ctx)
			if err != nil {
				return nil, err
			}
			if err := h.WriteFile(ctx, sysctlFile, []byte(sysctls(m.Facts.Host.Uplink)), 0o644); err != nil {
				return nil, fmt.Errorf("host %s: %w", h.Name(), err)
			}
			if err := h.Run(ctx, "sysctl -q -p "+remote.Quote(sysctlFile)); err != nil {
				return nil, fmt.Errorf("host %s: applying %s: %w", h.Name(), sysctlFile, err)
			}
			return nil, nil
		},
	}}, nil
}

func sysctls(uplink string) string {
	return fmt.Sprintf(`# Written by migrate for dual-stack K3s.
net.ipv4.ip_forward = 1
net.ipv6.conf.all.forwarding = 1
net.ipv6.conf.%s.accept_ra = 2
`, strings.ReplaceAll(uplink, ".", "/"))
}
