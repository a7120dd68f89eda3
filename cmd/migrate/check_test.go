package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/preflight"
)

// The report as a person reads it, at 80 columns.
func TestPrintCheck(t *testing.T) {
	found := preflight.Judge([]preflight.Finding{
		{ID: "k3s.units", Severity: preflight.Inhibitor, Detail: "there are further units of K3s: /etc/systemd/system/k3s-old.service", Remedy: "remove the unit that is not in use"},
		{ID: "laptop.space", Severity: preflight.Inhibitor, Detail: "the laptop has 1 MiB free below /home/ana/dedi.migration; the backup set needs up to 426 MiB", Remedy: "free the space, or name another spec.workDir"},
		{ID: "network.overlap", Severity: preflight.Inhibitor, Detail: "spec.network.clusterCIDR[1] fd42::/48 overlaps the host's own prefix fd42:0:0:7::1/64 on wg0", Remedy: "choose another range; a random ULA prefix (RFC 4193) does not collide"},
		{ID: "volumes.stray", Severity: preflight.Warning, Detail: "/var/lib/rancher/k3s/storage/" + strings.Repeat("long", 20) + " lies in the volumes' storage and belongs to no PersistentVolume", Remedy: "remove it beforehand if nobody needs it"},
		{ID: "openbao.seal", Severity: preflight.Note, Detail: "OpenBao unseals itself", Remedy: "nothing to do"},
	}, preflight.Waivers{"network.overlap": "wg0 goes away with the old office"})
	report := checked{Name: "shop", Host: "dedi", OS: "Debian GNU/Linux 12 (bookworm)", K3sVersion: "v1.34.4+k3s1"}
	var all bytes.Buffer
	for _, findings := range [][]preflight.Finding{found, found[2:], nil} {
		report.Findings = findings
		require.NoError(t, report.print(&all, "plan.yaml"))
		all.WriteString("--\n")
	}
	// K3s that does not run tells neither its version nor its system.
	require.NoError(t, checked{Name: "shop", Host: "dedi", Findings: found[:1]}.print(&all, "plan.yaml"))
	for line := range strings.Lines(all.String()) {
		if !strings.Contains(line, "longlong") {
			assert.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")), columns, line)
		}
	}
	const name = "testdata/check.golden"
	if *update {
		require.NoError(t, os.WriteFile(name, all.Bytes(), 0o644))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	if d := cmp.Diff(string(want), all.String()); d != "" {
		t.Error(d)
	}
}
