package preflight

import (
	"fmt"
	"strings"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/plans"
)

// DriftID is the finding that the cluster is not what its manifests say.
const DriftID = "platform.drift"

// Drift judges how the cluster differs from spec.platform.manifests.
func Drift(p *plans.Plan, d *cluster.Drift) []Finding {
	var parts []string
	differs := func(what string, n int, name func(int) cluster.Object) {
		if n > 0 {
			var names []string
			for i := range n {
				names = append(names, name(i).String())
			}
			parts = append(parts, fmt.Sprintf("%d %s: %s", n, what, some(names)))
		}
	}
	differs("with changed fields", len(d.Changed), func(i int) cluster.Object { return d.Changed[i].Object })
	differs("in the cluster alone", len(d.Extra), func(i int) cluster.Object { return d.Extra[i].Object })
	differs("in the manifests alone", len(d.Missing), func(i int) cluster.Object { return d.Missing[i] })
	differs("not compared in full", len(d.Uncompared), func(i int) cluster.Object { return d.Uncompared[i].Object })
	if len(parts) == 0 {
		return nil
	}
	f := Finding{ID: DriftID, Severity: Warning,
		Detail: "objects of the cluster and of spec.platform.manifests: " + strings.Join(parts, "; "),
		Remedy: "`migrate drift` shows each, and who changed it; what has to be there after the rebuild belongs into the manifests"}
	if !d.None() && p.Spec.Platform.Drift == plans.DriftInhibit {
		f.Severity = Inhibitor
	}
	return []Finding{f}
}
