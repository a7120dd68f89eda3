package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/propose"
	"sunbeam.pt/k3s-dualstack/survey"
)

// What init says when it is done, at 80 columns.
func TestInitSummary(t *testing.T) {
	data, err := os.ReadFile("../../steps/testdata/facts.json")
	require.NoError(t, err)
	f := &propose.Found{Facts: &survey.Facts{}, Cluster: true}
	require.NoError(t, json.Unmarshal(data, f.Facts))
	f.OpenBao = []propose.OpenBao{{Namespace: "openbao", Service: "openbao", Pods: []string{"openbao-0"}}}
	f.Gaps = []propose.Gap{{What: "Flux: Kustomizations", Why: "listing kustomizations.kustomize.toolkit.fluxcd.io: the server is currently unable to handle the request"}}
	p := &propose.Proposal{Host: "dedi", Places: []propose.Place{{Line: 95, What: "the command that deploys the workloads, such as [sunbeam, platform, up] or [./up.sh]"}}}
	var out strings.Builder
	require.NoError(t, summary(&out, "shop.yaml", p, f))
	golden := filepath.Join("testdata", "init-summary.golden")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), out.String())
	for line := range strings.SplitSeq(out.String(), "\n") {
		assert.LessOrEqual(t, len([]rune(line)), 80, line)
	}
}
