package preflight

import (
	"fmt"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/snapshot"
	"sunbeam.pt/k3s-dualstack/survey"
)

// hostSnapshot judges the snapshot that the plan wants of the host, or that it wants none.
func hostSnapshot(p *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	spec := p.Spec.Snapshot
	if spec == nil {
		if can := snapshot.Proposed(f.Host.Storage).Method; can != plans.SnapshotNone {
			out = append(out, Finding{ID: "snapshot.none", Severity: Note,
				Detail: "no snapshot is taken of the host, and its storage allows one",
				Remedy: fmt.Sprintf("`spec: {snapshot: {method: %s}}` in the plan", can)})
		}
		return out
	}
	method := snapshot.New(snapshot.Ask{Plan: spec, Name: p.Metadata.Name, Storage: f.Host.Storage})
	if method == nil {
		return nil
	}
	for _, problem := range method.Problems() {
		field := "spec.snapshot"
		if problem.Field != "" {
			field += "." + problem.Field
		}
		out = append(out, inhibit("snapshot.method", problem.Remedy, "%s: %s", field, problem.Detail)...)
	}
	if len(out) > 0 {
		return out
	}
	if outside := method.Outside(); len(outside) > 0 {
		out = append(out, Finding{ID: "snapshot.holds", Severity: Warning,
			Detail: fmt.Sprintf("the snapshot (%s) does not hold %s: a rollback cannot go by way of it", spec.Method, strings.Join(outside, ", ")),
			Remedy: "nothing to do for a rollback from the backup set; for one by way of the snapshot choose a method that holds them"})
	}
	if spec.Method.OnItsDisks() {
		out = append(out, Finding{ID: "snapshot.checkpoint", Severity: Note,
			Detail: fmt.Sprintf("the snapshot (%s) lies on the disks that it is of: it is a checkpoint to return to, and no backup", spec.Method),
			Remedy: "nothing to do: the backup set lies on the laptop"})
	}
	return out
}

// unready judges what hooks and snapshot take and the survey did not find.
func unready(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, what := range f.Unready {
		out = append(out, inhibit("plan.unready", "mend that, or take it out of the plan", "%s", what)...)
	}
	return out
}
