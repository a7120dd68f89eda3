// Package preflight decides from plan and facts whether the migration may run.
// Checks are pure functions: what they need was gathered by the survey, so that
// the same facts always give the same findings and every check can be tested
// without a host.
package preflight

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

// Severity of a finding.
type Severity string

const (
	// Inhibitor forbids the run.
	Inhibitor Severity = "inhibitor"
	// Warning is to be read and does not forbid.
	Warning Severity = "warning"
	// Note is good to know; nothing needs to be done.
	Note Severity = "note"
)

// Finding is something about host, cluster or plan that the admin must know.
type Finding struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Detail is what was seen.
	Detail string `json:"detail"`
	// Why it matters, and where that is written; see [Judge].
	Why    string `json:"why,omitempty"`
	Source string `json:"source,omitempty"`
	// Remedy is a command in backquotes, or a sentence.
	Remedy string `json:"remedy"`
	// Firm says why the finding cannot be waived; empty for one that can.
	Firm string `json:"cannotBeWaived,omitempty"`
	// Waived is the reason for which it was waived.
	Waived string `json:"waived,omitempty"`
}

// Inhibits tells whether the finding forbids the run.
func (f Finding) Inhibits() bool { return f.Severity == Inhibitor && f.Waived == "" }

// Laptop is what the checks need to know of the machine migrate runs on.
type Laptop struct {
	WorkDir string
	Free    int64 // bytes on its file system
}

// Check returns all findings, inhibitors first in the order of the checks.
func Check(p *plans.Plan, f *survey.Facts, laptop Laptop) []Finding {
	var found []Finding
	for _, check := range []func(*plans.Plan, *survey.Facts, Laptop) []Finding{
		role, health, stack, nodes, nodeName, datastore, scripts, dropIns, dataDir, token, envFiles, files, floor, sources, arguments, cni,
		mounts, tools, clock, ipv6, routes, nodeIPs, lasting, overlap, masquerade, firewall, serviceRange, clusterDNS,
		volumes, reclaim, work, images, certificates, reverted, names, openBao, hostSnapshot, unready, space,
	} {
		found = append(found, check(p, f, laptop)...)
	}
	return Judge(found, nil)
}

// Installed returns the findings that K3s's installation alone shows: without a
// running server the rest of the facts cannot be gathered.
func Installed(f *survey.Facts) []Finding {
	findings := role(nil, f, Laptop{})
	if len(findings) == 0 {
		findings = health(nil, f, Laptop{})
	}
	return Judge(findings, nil)
}

// Inhibited tells whether a finding forbids the run.
func Inhibited(findings []Finding) bool {
	return slices.ContainsFunc(findings, Finding.Inhibits)
}

func inhibit(id, remedy, detail string, args ...any) []Finding {
	return []Finding{{ID: id, Severity: Inhibitor, Detail: fmt.Sprintf(detail, args...), Remedy: remedy}}
}

func role(p *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if f.K3s.Role == k3s.Agent {
		return inhibit("k3s.role", "name the server's address in spec.hosts[0].address",
			"host %s is a K3s agent: address ranges belong to the server", f.Host.Name)
	}
	return nil
}

func health(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if !f.K3s.Active {
		return inhibit("k3s.active", "start it (`systemctl start "+f.K3s.UnitName()+"`) and let it settle",
			"K3s is installed on host %s and not running: its objects cannot be backed up", f.Host.Name)
	}
	for _, n := range f.Cluster.Nodes {
		if !n.Ready {
			return inhibit("node.ready", "`kubectl describe node "+n.Name+"` says why; repair it before it is rebuilt",
				"node %s is not Ready", n.Name)
		}
	}
	return nil
}

func stack(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	const remedy = "nothing to migrate; `migrate verify` shows whether all of it works"
	v4, v6 := f.K3s.Families()
	if v4 && v6 {
		return inhibit("k3s.stack", remedy, "K3s is dual-stack already: cluster-cidr is %s (%s)", f.K3s.Settings["cluster-cidr"], f.K3s.Settings["cluster-cidr"].Source)
	}
	if v6 {
		return inhibit("k3s.stack", "IPv6-only clusters are outside of what this tool does", "the cluster is IPv6-only: cluster-cidr is %s", f.K3s.Settings["cluster-cidr"])
	}
	for _, n := range f.Cluster.Nodes {
		if len(n.PodCIDRs) > 1 {
			return inhibit("k3s.stack", remedy, "node %s has podCIDRs of both families already: %s", n.Name, strings.Join(n.PodCIDRs, ", "))
		}
	}
	return nil
}

func nodes(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if n := len(f.Cluster.Nodes); n > 1 {
		return inhibit("cluster.nodes", "remove the other nodes from the cluster, or wait for a version that rebuilds several",
			"the cluster has %d nodes: this version rebuilds single-node clusters only", n)
	}
	return nil
}

func datastore(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	switch f.K3s.Datastore {
	case k3s.SQLite:
		return nil
	case k3s.External:
		return inhibit("k3s.datastore", "use a version of migrate that knows external datastores",
			"the datastore is external: this version migrates SQLite only")
	}
	return inhibit("k3s.datastore", "use a version of migrate that knows this datastore",
		"the datastore is %s: this version migrates SQLite only", f.K3s.Datastore)
}

func scripts(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	if f.K3s.Role == k3s.Server && (f.K3s.Killall == "" || f.K3s.Uninstall == "") {
		out = inhibit("k3s.scripts", "run the install script of the same version once with INSTALL_K3S_SKIP_DOWNLOAD=true INSTALL_K3S_SKIP_START=true",
			"k3s-killall.sh or k3s-uninstall.sh is not beside %s: K3s was not installed by its install script", f.K3s.Binary)
	}
	if len(f.K3s.OtherUnit) > 0 {
		out = append(out, inhibit("k3s.units", "remove the unit that is not in use",
			"there are further units of K3s: %s",
			strings.Join(f.K3s.OtherUnit, ", "))...)
	}
	return out
}

func tools(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if f.Host.MissingTools != "" {
		return inhibit("host.tools", "install what is named", "%s", f.Host.MissingTools)
	}
	return nil
}

func ipv6(p *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if f.Host.Uplink == "" {
		return inhibit("host.ipv6", "give the host IPv6 from its provider first; `ip -6 route` must show a default route",
			"host %s has no IPv6 default route: pods could not reach the IPv6 internet through it", f.Host.Name)
	}
	if len(p.Spec.Network.NodeIP) > 0 {
		return nil
	}
	if _, ok := f.Host.IPv6(); !ok {
		return inhibit("host.ipv6", "configure a static IPv6 address on "+f.Host.Uplink+", or name one in spec.network.nodeIP",
			"host %s has no lasting global IPv6 address on %s (temporary and deprecated ones do not count)", f.Host.Name, f.Host.Uplink)
	}
	return nil
}

// nodeIPs: with an address that the host does not have K3s starts and its pods
// never reach it.
func nodeIPs(p *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for i, text := range p.Spec.Network.NodeIP {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			continue // validation of the plan has said so
		}
		if !slices.ContainsFunc(f.Host.Addresses, func(a survey.Address) bool { return a.Prefix.Addr() == ip }) {
			out = append(out, inhibit("host.nodeip", "`ip addr` on the host shows what it has; leave the field out to have them found",
				"spec.network.nodeIP[%d] %s is not an address of host %s", i, ip, f.Host.Name)...)
		}
	}
	return out
}

// serviceRange: the addresses of all Services change with their range.
func serviceRange(p *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if len(f.Cluster.ServiceCIDRs) == 0 || len(p.Spec.Network.ServiceCIDR) == 0 || f.Cluster.ServiceCIDRs[0] == p.Spec.Network.ServiceCIDR[0] {
		return nil
	}
	return []Finding{{ID: "network.servicecidr", Severity: Warning,
		Detail: fmt.Sprintf("spec.network.serviceCIDR[0] %s is not the present range %s: every IPv4 ClusterIP changes, and a manifest that fixes one outside the new range is refused",
			p.Spec.Network.ServiceCIDR[0], f.Cluster.ServiceCIDRs[0]),
		Remedy: "keep the present range as spec.network.serviceCIDR[0] unless it has to change"}}
}

// dropIns: what a drop-in sets for the unit wins over what the install script
// writes, and would be neither kept nor edited.
func dropIns(_ *plans.Plan, f *survey.Facts, _ Laptop) []Finding {
	if len(f.K3s.DropIns) == 0 {
		return nil
	}
	return inhibit("k3s.dropins", "move their settings to "+k3s.DefaultConfigFile+" or the unit's env file, and remove them",
		"the unit of K3s has drop-ins (%s): this version reads and keeps the unit file alone", strings.Join(f.K3s.DropIns, ", "))
}

func overlap(p *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	ranges := map[string][]string{
		"spec.network.clusterCIDR": p.Spec.Network.ClusterCIDR,
		"spec.network.serviceCIDR": p.Spec.Network.ServiceCIDR,
	}
	for _, field := range []string{"spec.network.clusterCIDR", "spec.network.serviceCIDR"} {
		for i, text := range ranges[field] {
			r, err := netip.ParsePrefix(text)
			if err != nil {
				continue // validation of the plan has said so
			}
			for _, a := range f.Host.Addresses {
				if !survey.OwnInterface(a.Interface) && r.Overlaps(a.Prefix.Masked()) {
					out = append(out, inhibit("network.overlap", "choose another range; a random ULA prefix (RFC 4193) does not collide",
						"%s[%d] %s overlaps the host's own prefix %s on %s", field, i, r, a.Prefix, a.Interface)...)
				}
			}
			for _, t := range slices.Concat(f.Host.Routes, f.Host.PolicyRoutes) {
				if survey.OwnInterface(t.Interface) || t.Destination.Bits() == 0 || t.Protocol == "kernel" || !r.Overlaps(t.Destination) {
					continue
				}
				route := "route to " + t.Destination.String() + " via " + t.Interface
				if t.Type != "" {
					route = t.Type + " route to " + t.Destination.String()
				}
				out = append(out, inhibit("network.overlap", "choose another range, or remove the route",
					"%s[%d] %s overlaps the host's %s", field, i, r, route)...)
			}
		}
	}
	return out
}

func volumes(_ *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	for _, v := range f.Cluster.Volumes {
		name := v.PV
		if v.Claim != "" {
			name = v.Namespace + "/" + v.Claim + " (" + v.PV + ")"
		}
		switch {
		case v.Kind == cluster.Unsupported:
			out = append(out, inhibit("volumes.kind", "back it up and remove its PersistentVolume, or move its data to a supported kind",
				"volume %s is of kind %s: how to bring it back is not known", name, v.Driver)...)
		case v.Excluded && below(v.Path, f.K3s.DataDir):
			out = append(out, Finding{ID: "volumes.excluded", Severity: Warning,
				Detail: fmt.Sprintf("volume %s is excluded by the plan and lies at %s: the uninstall deletes it", name, v.Path),
				Remedy: "take it out of spec.backup.volumes.exclude unless its data may be lost"})
		}
	}
	for _, stray := range f.Host.Strays {
		out = append(out, Finding{ID: "volumes.stray", Severity: Warning,
			Detail: fmt.Sprintf("%s lies in the volumes' storage and belongs to no PersistentVolume: the uninstall deletes it, and it is put back from the backup set", stray),
			Remedy: "remove it beforehand if nobody needs it"})
	}
	return out
}

func below(p, dir string) bool { return strings.HasPrefix(path.Clean(p)+"/", path.Clean(dir)+"/") }

const mib = 1 << 20

// space asks for what will be kept. On the laptop: volumes at their full size
// (they may not compress), the K3s binary, and slack for the rest. On the host:
// the indexes of volumes beside the running cluster; volumes that are restored
// take the room that the uninstall frees.
func space(_ *plans.Plan, f *survey.Facts, laptop Laptop) (out []Finding) {
	need := f.VolumeBytes() + f.K3s.BinarySize + 256*mib
	if laptop.Free < need {
		out = append(out, inhibit("laptop.space", "free the space, or name another spec.workDir",
			"the laptop has %d MiB free below %s; the backup set needs up to %d MiB", laptop.Free/mib, laptop.WorkDir, (need+mib-1)/mib)...)
	}
	var files int64
	for _, v := range f.Cluster.Volumes {
		files += v.Files
	}
	const indexRecord = 3 * 256 // bytes for each file: two indexes and their sort
	need = files*indexRecord + f.K3s.BinarySize + 128*mib
	for _, dir := range slices.Sorted(maps.Keys(f.Host.Free)) {
		if free := f.Host.Free[dir]; free < need {
			out = append(out, inhibit("host.space", "free the space on the host",
				"host %s has %d MiB free at %s; the migration needs %d MiB there", f.Host.Name, free/mib, dir, (need+mib-1)/mib)...)
		}
	}
	return out
}
