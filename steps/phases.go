package steps

import "sunbeam.pt/k3s-dualstack/runner"

// Phase is a part of the migration, in the words in which plan, run and report tell
// a person of it.
type Phase struct {
	Name      string `json:"name"`      // what [runner.Step] has as Phase
	What      string `json:"what"`      // what happens
	Why       string `json:"why"`       // why it has to
	Meanwhile string `json:"meanwhile"` // how the cluster is, and what a person can do or should leave alone
	Failure   string `json:"failure"`   // what a failure in it means
}

// Phases lists the phases of [Migration.Sequence] in its order.
func Phases() []Phase {
	return []Phase{{
		Name:      look,
		What:      "Host and cluster are read, and checked for all that is known to go wrong.",
		Why:       "What is done later is computed from these facts: after the uninstall there is no cluster left to ask.",
		Meanwhile: "The cluster runs. Nothing is written to host or cluster.",
		Failure:   "Nothing was changed. Each finding says how to mend it; the next run looks anew.",
	}, {
		Name:      protect,
		What:      "Everything that the uninstall destroys is copied to this laptop, encrypted, and then proven: read again, summed, decrypted, opened.",
		Why:       "All that can be done before the downtime is done before it, and nothing is destroyed that is not proven to be here.",
		Meanwhile: "The cluster runs; workloads may go on writing. Install, change or remove nothing on it from here on.",
		Failure:   "The cluster runs as before. Mend what the message says and run again: what is done is not repeated.",
	}, {
		Name:      rebuild,
		What:      "After a question, K3s is stopped, what changed since is copied and all is proven once more. Then K3s is uninstalled, and installed again with dual-stack settings.",
		Why:       "K3s decides at its first start which families a cluster has. Only a rebuild gives it IPv6.",
		Meanwhile: "The cluster is down until the next phase has ended. The host keeps running; do not restart it.",
		Failure:   "Run again to continue. A rollback starts the old cluster again; after the uninstall it puts it back from the backup set first.",
	}, {
		Name:      revive,
		What:      "The volumes' data come back, K3s starts, namespaces, TLS secrets and claims come back, and the platform is deployed as you deploy it.",
		Why:       "Data go first, so that no workload ever starts on an empty volume, and secrets before what would ask for new certificates.",
		Meanwhile: "The cluster is down until its workloads are up again, at the end of this phase.",
		Failure:   "Nothing is lost: the backup set holds it all. Run again to continue, or roll back to the old cluster.",
	}, {
		Name:      dual,
		What:      "Every eligible Service gets an address of the other family, too.",
		Why:       "Services keep a single family in a dual-stack cluster until their ipFamilyPolicy is changed.",
		Meanwhile: "The new cluster runs, and workloads with it; IPv4 addresses stay in use.",
		Failure:   "The new cluster runs with those Services patched that were reached. Run again to continue.",
	}, {
		Name:      prove,
		What:      "Addresses, Services, DNS, the way between pods and the way out are tried over both families; volumes and secrets are compared with the backup. Then the host is tidied up.",
		Why:       "That K3s started does not mean that dual-stack works.",
		Meanwhile: "The new cluster runs and can be used.",
		Failure:   "The new cluster runs, and each check that falls short says what to do. Run again to check anew; a rollback is still possible.",
	}}
}

// Condition says in a sentence how the cluster is when the run rests, and whether
// it is down.
func Condition(s runner.State) (text string, down bool) {
	begun := func(step, action string) bool { _, ok := s.ActionState(step, action); return ok }
	switch {
	case s.StepState("platform").Complete:
		return "The new cluster runs.", false
	case s.StepState("start").Complete:
		return "The new cluster runs; its workloads are not all back yet.", true
	case begun("start", "start"):
		return "The cluster is down: the new K3s is just being started.", true
	case begun("uninstall", "uninstall"):
		return "The cluster is down: the old K3s is uninstalled, the new one not started yet.", true
	case begun("quiesce", "stop"):
		return "The cluster is down: K3s is stopped, not yet uninstalled.", true
	}
	return "The cluster runs as before.", false
}
