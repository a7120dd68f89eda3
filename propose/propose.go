// Package propose writes the first plan of a host that nobody has described yet: it looks at host and
// cluster and puts what it found into a commented plan that is right for them.
//
// It stands beside steps, above survey, k3s and cluster, and is used by `migrate init` alone. What it reads
// is what the plan needs and a survey does not know: who put the workloads there, which names they are
// reached by, which files the configuration names, where OpenBao runs. It changes nothing anywhere.
// What cannot be found out is no error: the plan is written all the same, with a place that is marked [Mark],
// and the reason. Whether the migration may run is not judged here; that is preflight's.
//
// One file a concern: look.go (connection and facts), owners.go (the cluster's inhabitants), openbao.go,
// hostnames.go, ranges.go (IPv6 ranges), keys.go (who can read the backup set), plan.go (the plan's text), text.go (YAML
// and comments).
package propose

import (
	"net/netip"
	"slices"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

// Mark stands in the plan wherever a person has to write something.
const Mark = "FILL IN"

// Wishes are what the person who asks for a plan says of it.
type Wishes struct {
	// Host is how the host is reached, as it goes into the plan. Its name is found.
	Host plans.Host
	// ULA is the prefix that the IPv6 ranges are cut from; the zero value: a random one.
	ULA netip.Prefix
	// Recipients and Identities are spec.backup.encryption's; empty: found.
	Recipients, Identities []string
	// InstallScript is spec.k3s's; "" for the default.
	InstallScript string
	// EgressURLs and Hostnames are spec.verify's; empty: found.
	EgressURLs, Hostnames []string
	// TokenFile and UnsealKeysFile hold OpenBao's; "": asked for in the terminal.
	TokenFile, UnsealKeysFile string

	// inAgent are the keys that only the SSH agent has, where no file was found.
	inAgent []string
}

// Found is what is known of a host and its cluster.
type Found struct {
	// Facts hold no cluster where its API could not be asked.
	Facts *survey.Facts
	// Cluster tells whether the API was asked; of what it did not tell there is a gap.
	Cluster bool
	// Files are those that the configuration names, and what becomes of them.
	Files []File
	// Owners are who put workloads there.
	Owners []Owner
	// OpenBao are the servers on the cluster, Vault's included.
	OpenBao   []OpenBao
	Hostnames []Hostname
	// Egress is whether the host reaches the URL that the plan proposes.
	Egress bool
	// Gaps are what could not be found out.
	Gaps []Gap
}

// File is one that the configuration of K3s names or reads.
type File struct {
	Path string
	// By is the setting that names it, "" for one that K3s reads by itself.
	By string
	// Missing tells that it is not there.
	Missing bool
}

// Owner is a tool by which workloads were put on the cluster.
type Owner struct {
	Tool string
	// Names are of its objects: releases, applications, charts.
	Names []string
}

// Gap is something that could not be found out.
type Gap struct {
	What string
	Why  string
}

// Knows tells whether something of the cluster was found out: there is no gap of that name.
func (f *Found) Knows(what string) bool {
	return f.Cluster && !slices.ContainsFunc(f.Gaps, func(g Gap) bool { return g.What == what })
}

func (f *Found) gap(what string, why error) {
	f.Gaps = append(f.Gaps, Gap{What: what, Why: visible(why.Error())})
}
