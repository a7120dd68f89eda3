package preflight

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/plans"
)

func TestDrift(t *testing.T) {
	plan := &plans.Plan{}
	plan.Spec.Platform.Drift = plans.DriftInhibit
	require.Empty(t, Drift(plan, &cluster.Drift{Same: 9, Left: map[string]int{"K3s's own": 3}}))

	object := func(n int) cluster.Object {
		return cluster.Object{Kind: "ConfigMap", Namespace: "shop", Name: fmt.Sprintf("c%d", n)}
	}
	d := &cluster.Drift{Changed: []cluster.ChangedObject{{Object: object(1)}}, Missing: []cluster.Object{{Kind: "Namespace", Name: "gone"}}}
	for n := range 7 {
		d.Extra = append(d.Extra, cluster.ExtraObject{Object: object(n)})
	}
	found := Judge(Drift(plan, d), nil)
	require.Len(t, found, 1)
	require.True(t, Inhibited(found))
	require.Equal(t, "objects of the cluster and of spec.platform.manifests: 1 with changed fields: ConfigMap shop/c1; "+
		"7 in the cluster alone: ConfigMap shop/c0, ConfigMap shop/c1, ConfigMap shop/c2, ConfigMap shop/c3, ConfigMap shop/c4 and 2 more; 1 in the manifests alone: Namespace gone", found[0].Detail)
	require.NotEmpty(t, found[0].Why)
	require.False(t, Inhibited(Judge(found, Waivers{DriftID: "it is made anew by hand"})))

	plan.Spec.Platform.Drift = plans.DriftWarn
	require.Equal(t, Warning, Drift(plan, d)[0].Severity)

	// What was not compared is not known to differ.
	plan.Spec.Platform.Drift = plans.DriftInhibit
	found = Drift(plan, &cluster.Drift{Uncompared: []cluster.UncomparedObject{{Object: object(1), Why: "a webhook does not answer"}}})
	require.Len(t, found, 1)
	require.Equal(t, Warning, found[0].Severity)
}
