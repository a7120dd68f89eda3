package preflight

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Rule is what is known of a check before it looks at anything.
type Rule struct {
	// Why a finding matters.
	Why string
	// Source is where that is written.
	Source string
	// Firm says what the run would do in spite of an inhibitor, for those that
	// cannot be waived: it would lose data, or could not work.
	Firm string
}

const (
	losesData  = "the run would lose data"
	cannotWork = "the run could not work"

	uninstallScript = "K3s install script: k3s-uninstall.sh"
	killallScript   = "K3s install script: k3s-killall.sh"
	dualStackDocs   = "K3s docs: Basic Network Options, Dual-stack"
)

// rules are all checks, by the ID of their findings.
var rules = map[string]Rule{
	"k3s.role":    {"An agent has neither the datastore nor the address ranges: both are the server's.", "K3s docs: Architecture", cannotWork},
	"k3s.active":  {"Only a running API server tells what there is to keep.", "migrate", cannotWork},
	"node.ready":  {"What does not work before the rebuild is not expected to work after it, and a backup of it proves less.", "migrate", ""},
	"k3s.stack":   {"The tool takes a cluster from IPv4-only to dual-stack, and from nothing else.", dualStackDocs, cannotWork},
	"k3s.scripts": {"The migration stops and removes K3s with its own scripts.", "K3s docs: Uninstalling K3s", cannotWork},
	"k3s.units":   {"With another unit of K3s the uninstall skips the removal of data, and the new server would start on the old datastore.", uninstallScript, cannotWork},
	"k3s.dropins": {"What a drop-in sets wins over the unit that the install script writes, and outlives it.", "systemd.unit(5)", ""},
	"k3s.datastore": {"An external datastore is left by the uninstall, and a fresh install resurrects the single-stack cluster from it; embedded etcd is restored in another way than SQLite.",
		"k3s #8024; K3s docs: Cluster Datastore", cannotWork},
	"cluster.nodes":        {"Agents keep the old server's CA and token, and each node has address ranges of its own.", "K3s docs: k3s token", cannotWork},
	"host.tools":           {"Backup and restore run on the host with these.", "migrate", cannotWork},
	"host.ipv6":            {"Without an IPv6 address and a default route the node gets no node-ip of that family, and K3s does not start as dual-stack.", dualStackDocs + "; k3s #5918", cannotWork},
	"host.nodeip":          {"With an address that the host does not have K3s starts, and nothing reaches its pods.", "k3s #11735", cannotWork},
	"network.overlap":      {"Packets to the overlapping addresses go either to pods and Services or to where they go today, never to both.", "RFC 4193, section 3.2; K3s docs: Requirements, Networking", ""},
	"network.servicecidr":  {"The IPv4 addresses of all Services change with their range.", "Kubernetes docs: Services, Choosing your own IP address", ""},
	"volumes.kind":         {"A driver that keeps its state in the cluster's API, or a raw device, is not brought back by copying files.", "Kubernetes docs: Persistent Volumes, Types", losesData},
	"volumes.excluded":     {"What lies below the data directory goes with it.", uninstallScript + "; k3s #10484", ""},
	"volumes.stray":        {"What lies in the volumes' storage goes with the data directory, and is put back from the backup set.", uninstallScript + "; k3s #11131", ""},
	"laptop.space":         {"The backup set is whole before anything is stopped.", "migrate", ""},
	"host.space":           {"Indexes and the old K3s lie on the host while the cluster is rebuilt.", "migrate", ""},
	DriftID:                {"The platform comes back from its manifests: what was changed or made in the cluster alone is lost with it.", "Kubernetes docs: Server-Side Apply, Field management", ""},
	"plan.unready":         {"What the plan's hooks or its snapshot take and is missed later is missed in the downtime.", "migrate", cannotWork},
	"snapshot.none":        {"With a snapshot of the host there is a second way back, which needs no backup set.", "migrate", ""},
	"snapshot.method":      {"A snapshot that cannot be taken, or that would be lost while it is needed, is no way back.", "lvmthin(7), btrfs-subvolume(8), zfs-rollback(8)", cannotWork},
	"snapshot.holds":       {"What a snapshot does not hold is not brought back by it.", "lvmthin(7), btrfs-subvolume(8), zfs-rollback(8)", ""},
	"snapshot.checkpoint":  {"A disk that fails takes its snapshots with it.", "lvmthin(7), btrfs-subvolume(8), zfs-rollback(8)", ""},
	"openbao.server":       {"What cannot be read now can be neither kept nor opened afterwards.", "OpenBao docs: Seal/Unseal", losesData},
	"openbao.token":        {"A backup of what the token does not see is not whole.", "OpenBao docs: Policies", losesData},
	"openbao.storage":      {"Only raft storage can be asked for a snapshot while it is in use.", "OpenBao docs: Integrated Storage", losesData},
	"openbao.keys":         {"Without its unseal keys nobody opens what is brought back.", "OpenBao docs: Seal/Unseal", losesData},
	"openbao.seal":         {"A seal outside of the cluster is needed again after the rebuild.", "OpenBao docs: Auto Unseal", ""},
	"openbao.kubernetes":   {"What was configured by hand for the old cluster may not do for the new one.", "OpenBao docs: Kubernetes auth method", ""},
	"k3s.datadir":          {"The uninstall script goes by the environment variable K3S_DATA_DIR and not by data-dir in the configuration; what it leaves, the new server starts on.", uninstallScript + "; k3s #8740", cannotWork},
	"k3s.token":            {"The token is the key of the bootstrap data in the datastore: without it the old cluster cannot be brought back.", "k3s #4640", losesData},
	"k3s.envfiles":         {"The uninstall leaves these files, and the unit of the next install reads them: settings of another day come back.", uninstallScript, ""},
	"k3s.files":            {"The API server or the kubelet does not start without a file that it is told to read.", "K3s docs: Server Configuration", ""},
	"k3s.version":          {"Older versions stop at the settings of dual-stack, or serve only part of it.", dualStackDocs, cannotWork},
	"k3s.downgrade":        {"An API server does not take objects of versions that it does not know.", "Kubernetes docs: Version Skew Policy", ""},
	"k3s.source":           {"Of several sources of a setting the strongest wins; a value that is written to a weaker one has no effect.", "K3s docs: Configuration File, Value Precedence", ""},
	"k3s.args":             {"What a program of Kubernetes is told by itself wins over the ranges of K3s, and kube-controller-manager stops at node-cidr-mask-size when there are two families.", "K3s docs: k3s server, Customized Flags; Kubernetes docs: kube-controller-manager", cannotWork},
	"k3s.cni":              {"The migration deploys the platform once the node is Ready.", "K3s docs: Custom CNI", ""},
	"node.name":            {"Volumes of the host are bound to the node by its name, and stay unusable under another.", "Kubernetes docs: Persistent Volumes, Node Affinity", losesData},
	"host.mounts":          {"k3s-killall.sh unmounts what is mounted there, so that a backup finds an empty directory, and the uninstall empties what is still mounted.", killallScript + "; k3s #3264", losesData},
	"host.clock":           {"The certificates that K3s makes are valid from the host's now on, and the laptop would refuse them as of the future or as expired.", "RFC 5280, section 4.1.2.5", ""},
	"host.ipv6off":         {"Interfaces that are made from now on have no IPv6.", "Linux: Documentation/networking/ip-sysctl, disable_ipv6", cannotWork},
	"host.ip6tables":       {"Services and masquerading of IPv6 are made with ip6tables.", dualStackDocs, cannotWork},
	"host.ra":              {"A host that forwards ignores router advertisements unless accept_ra is 2: its default route ends with the last one's lifetime, and the internet with it.", dualStackDocs + "; k3s #5019", ""},
	"host.address":         {"node-ip is fixed when K3s starts; when the address changes, the node is not reached under it any more.", "RFC 8981; k3s #5918", ""},
	"host.firewall":        {"What pods send and get is forwarded by the host.", "K3s docs: Requirements, Operating Systems", ""},
	"network.masquerade":   {"Nobody on the internet knows the way back to a unique local address.", "RFC 4193; k3s #5766, #4683", ""},
	"network.clusterdns":   {"The families of CoreDNS's Service are those of cluster-dns; its address must be in the Service ranges.", "K3s docs: k3s server, cluster-dns", ""},
	"volumes.missing":      {"The kubelet makes a missing hostPath directory again, empty, which hides the loss.", "Kubernetes docs: Volumes, hostPath", losesData},
	"volumes.released":     {"A released volume is deleted with its data where its policy is Delete, and is bound by nobody else.", "Kubernetes docs: Persistent Volumes, Reclaiming", ""},
	"volumes.reclaim":      {"Data elsewhere outlive the host, and not the reclaim policy.", "Kubernetes docs: Persistent Volumes, Reclaiming", ""},
	"claims.unbound":       {"What waits for a volume before the rebuild waits after it.", "Kubernetes docs: Persistent Volumes, Binding", ""},
	"workloads.jobs":       {"They are stopped in the middle and come back only if the platform makes them again, from the beginning.", "Kubernetes docs: Jobs", ""},
	"workloads.pods":       {"The verification compares with what ran before.", "migrate", ""},
	"workloads.hostpath":   {"The data directory and the kubelet's are deleted whole; kept are volumes, the server directory and /etc/rancher.", uninstallScript, ""},
	"workloads.images":     {"The uninstall removes containerd's images, and each is pulled again.", uninstallScript + "; K3s docs: Air-Gap Install", ""},
	"certificates.ready":   {"A certificate that is not issued now is asked for again by the new cluster, at the CA's limits.", "cert-manager docs: Troubleshooting", ""},
	"certificates.renewal": {"A renewal in the downtime fails, and is tried again only after a while.", "cert-manager docs: Certificate resource, Renewal", ""},
	"certificates.limit":   {"A CA issues the same certificate a few times a week only.", "Let's Encrypt docs: Rate Limits, five per exact set of names in seven days", ""},
	"services.owner":       {"A chart or a GitOps source is applied again, and overwrites what was patched.", "Kubernetes docs: Server-Side Apply, Conflicts", ""},
	"dns.answer":           {"What the clients of the cluster find cannot be told without DNS.", "migrate", ""},
	"dns.name":             {"A name is found by its own records; a wildcard stands for the names below it, not for itself.", "RFC 4592, section 4.3", ""},
	"dns.aaaa":             {"Clients use IPv6 once there is an AAAA record, and only then.", "RFC 6724", ""},
	"http.ipv4":            {"What does not answer before the rebuild is not expected to answer after it.", "migrate", ""},
	"http.ipv6":            {"Clients with IPv6 try it first; a CA that validates over HTTP does, too, and falls back for a timeout alone.", "RFC 8305; Let's Encrypt docs: IPv6 Support", ""},
	"openbao.namespaces":   {"An export is read namespace by namespace.", "OpenBao docs: Namespaces", ""},
}

// IDs are those of all checks, in order.
func IDs() []string { return slices.Sorted(maps.Keys(rules)) }

// Waivable are the IDs of the checks whose inhibitors can be waived.
func Waivable() []string {
	return slices.DeleteFunc(IDs(), func(id string) bool { return rules[id].Firm != "" })
}

// Waivers are the reasons for which findings do not stop a run, by their IDs.
type Waivers map[string]string

// ParseWaivers reads waivers as a person writes them, each ID=REASON.
func ParseWaivers(texts []string) (Waivers, error) {
	w := Waivers{}
	for _, text := range texts {
		id, reason, _ := strings.Cut(text, "=")
		reason = strings.Join(strings.Fields(reason), " ")
		rule, known := rules[id]
		switch _, twice := w[id]; {
		case !known:
			return nil, fmt.Errorf("%q: there is no check of that name; the report names those that found something", id)
		case reason == "":
			return nil, fmt.Errorf("%s: a reason is needed, as in %s='why it is acceptable here': it is kept in the journal", id, id)
		case twice:
			return nil, fmt.Errorf("%s is waived twice", id)
		case rule.Firm != "":
			return nil, fmt.Errorf("%s cannot be waived: %s", id, rule.Firm)
		}
		w[id] = reason
	}
	return w, nil
}

// Judge adds to findings what is known of their checks and for what they are
// waived, and puts them in the order in which they are read: open inhibitors,
// waived ones, warnings, notes.
func Judge(found []Finding, w Waivers) []Finding {
	out := slices.Clone(found)
	for i := range out {
		rule := rules[out[i].ID]
		out[i].Why, out[i].Source, out[i].Firm = rule.Why, rule.Source, ""
		if out[i].Severity == Inhibitor {
			out[i].Firm = rule.Firm
		}
		if out[i].Firm == "" {
			out[i].Waived = w[out[i].ID]
		}
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return a.rank() - b.rank() })
	return out
}

func (f Finding) rank() int {
	switch {
	case f.Inhibits():
		return 0
	case f.Severity == Inhibitor:
		return 1
	case f.Severity == Warning:
		return 2
	}
	return 3
}
