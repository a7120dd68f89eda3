//go:build e2e

package e2e

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A dual-stack cluster without IPv6 masquerade: everything inside works, and
// nothing comes back from outside. verify must say exactly that.
func TestWithoutMasquerade(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-nomasq", "--store-mib", "1", "--install-args",
		"--cluster-cidr=10.42.0.0/16,fd42::/48 --service-cidr=10.43.0.0/16,fd43::/108")
	file := l.plan(t, nil)
	r := migrate(t, "verify", "-f", file, "-o", "json", "--timeout", "10s")
	require.Equal(t, 4, r.code, "%s", r)
	var report struct {
		Checks []struct{ ID, Status, Detail, Remedy string }
	}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &report))
	failed := 0
	for _, c := range report.Checks {
		switch c.ID {
		case "egress.ipv4":
			assert.Equal(t, "pass", c.Status, c.Detail)
		case "egress.ipv6":
			if assert.Equal(t, "fail", c.Status, c.Detail) {
				failed++
				assert.Contains(t, c.Detail, "masquerade")
				assert.Contains(t, c.Remedy, "flannel-ipv6-masq")
			}
		case "pods.connect", "pods.addresses", "node.podcidrs":
			assert.Equal(t, "pass", c.Status, "%s: %s", c.ID, c.Detail)
		}
	}
	assert.NotZero(t, failed)

	r = migrate(t, "run", "-f", file, "--yes")
	assert.Equal(t, 3, r.code, "a dual-stack cluster is nothing to migrate: %s", r)
	assert.Contains(t, r.stderr, "dual-stack already")
}
