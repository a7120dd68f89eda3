package preflight

import (
	"fmt"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

// reclaim: what the cluster itself would delete.
func reclaim(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, v := range f.Cluster.Volumes {
		name := v.PV
		if v.Claim != "" {
			name = v.Namespace + "/" + v.Claim + " (" + v.PV + ")"
		}
		switch {
		case v.Missing:
			out = append(out, inhibit("volumes.missing", "put the directory back, delete the PersistentVolume, or name the claim in spec.backup.volumes.exclude",
				"volume %s: its directory %s is not there", name, v.Path)...)
		case v.Phase == "Released" || v.Phase == "Failed":
			out = append(out, warn("volumes.released", "`kubectl delete pv "+v.PV+"` if its data may go; else make it Available again: `kubectl patch pv "+v.PV+` -p '{"spec":{"claimRef":null}}'`+"`",
				"volume %s is %s: its claim is gone", name, v.Phase)...)
		case v.Kind == cluster.Remote && v.ReclaimPolicy == "Delete":
			out = append(out, warn("volumes.reclaim", "`kubectl patch pv "+v.PV+` -p '{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}'`+"` until the migration is over",
				"volume %s (%s) lies elsewhere and its reclaim policy is Delete: whoever deletes the claim on the new cluster deletes the data", name, v.Driver)...)
		}
	}
	for _, c := range f.Cluster.Workloads.Unbound {
		out = append(out, warn("claims.unbound", "`kubectl describe pvc -n "+namespaceOf(c.Name)+"` says why; delete what nobody needs",
			"claim %s is %s: it has no volume, and so no data to keep", c.Name, c.Phase)...)
	}
	return out
}

func namespaceOf(name string) string {
	namespace, rest, _ := strings.Cut(name, "/")
	return namespace + " " + rest
}

// work that is under way.
func work(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	w := f.Cluster.Workloads
	if len(w.Jobs) > 0 {
		out = warn("workloads.jobs", "wait until they are over, and suspend the CronJobs that make them", "jobs are running: %s", some(w.Jobs))
	}
	if len(w.Unsettled) > 0 {
		out = append(out, warn("workloads.pods", "`kubectl get pods -A` shows them: mend or remove them, so that what is not well afterwards is known to be new",
			"pods are neither running nor over: %s", some(w.Unsettled))...)
	}
	for _, h := range w.HostPaths {
		out = append(out, inhibit("workloads.hostpath", "move the data to a volume or to a directory outside of "+f.K3s.DataDir+" and the kubelet's; waive this if they may be lost",
			"pod %s uses the directory %s of the host past any volume: the uninstall deletes it, and no backup has it", h.Pod, h.Path)...)
	}
	return out
}

// images: the uninstall removes all of them.
func images(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, file := range f.K3s.AgentFiles {
		if strings.Contains(file, "/agent/images/") {
			return nil // they come back with the archives, which are kept
		}
	}
	for _, i := range f.Cluster.Workloads.Images {
		why := "was imported by hand"
		if i.Never {
			why = "is never pulled (imagePullPolicy)"
		}
		out = append(out, inhibit("workloads.images", fmt.Sprintf("push it to a registry, or keep it: `k3s ctr images export %s/agent/images/%s.tar %s`", f.K3s.DataDir, fileName(i.Name), i.Name),
			"image %s of pod %s %s", i.Name, i.Pod, why)...)
	}
	return out
}

func fileName(image string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("/:@", r) {
			return '-'
		}
		return r
	}, image)
}

// certificates that would be renewed, or could not be, while the cluster is rebuilt.
func certificates(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	const (
		soon      = 24 * time.Hour
		nearLimit = 4 // of the five that Let's Encrypt issues in a week
	)
	for _, c := range f.Cluster.Workloads.Certificates {
		renew := "`cmctl renew -n " + namespaceOf(c.Name) + "`"
		switch {
		case !c.Ready:
			out = append(out, warn("certificates.ready", "`kubectl describe certificate -n "+namespaceOf(c.Name)+"` says why", "certificate %s is not Ready", c.Name)...)
		case !c.Renewal.IsZero() && c.Renewal.Before(f.Taken.Add(soon)):
			out = append(out, warn("certificates.renewal", renew+" before the migration", "certificate %s is renewed at %s", c.Name, c.Renewal.Format("2006-01-02 15:04 MST"))...)
		}
		if c.Requests >= nearLimit {
			out = append(out, warn("certificates.limit", "do not delete its secret, and wait with the migration if it is not kept",
				"certificate %s was requested %d times within a week", c.Name, c.Requests)...)
		}
	}
	return out
}

// some names the first of many.
func some(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}

// reverted: whoever else writes a Service may take its second family away.
func reverted(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, s := range f.Cluster.Services {
		if s.Skip != "" || s.Owner.Source == "" || !(s.Owner.Kind == cluster.OwnedByHelm || s.Owner.Kind == cluster.OwnedByArgoCD || s.Owner.Kind == cluster.OwnedByFlux) {
			continue
		}
		out = append(out, note("services.owner", s.Owner.Source, "Service %s/%s is written by %s %s, which may take ipFamilyPolicy back", s.Namespace, s.Name, s.Owner.Kind, s.Owner.Name)...)
	}
	return out
}
