package verify

// Status is the outcome of a check.
type Status string

// The outcomes of a check.
const (
	// Pass: what the check wants is so, seen from where a workload would see it.
	Pass Status = "pass"
	// Fail: it is not so; the detail says what is wrong and the remedy what to do.
	Fail Status = "fail"
	// Skip: the check does not apply to its target; the detail says why. A skip never makes a report fall short.
	Skip Status = "skip"
)

// The address families as a check names them.
const (
	IPv4 = "IPv4"
	IPv6 = "IPv6"
)

// The stable IDs of the checks. Programs may rely on them.
const (
	HostTools          = "host.tools"          // the host has what the probes are made with
	NodePodCIDRs       = "node.podcidrs"       // a node has a pod range of the family
	NodeAddresses      = "node.addresses"      // a node has an InternalIP of the family
	ServiceCIDRs       = "cluster.servicecidr" // the ServiceCIDR object has a range of the family
	Workloads          = "workloads.available" // a workload has the replicas that it asks for
	PodAddresses       = "pods.addresses"      // a pod has an address of the family
	PodConnect         = "pods.connect"        // pod to pod
	ServiceClusterIPs  = "services.clusterips" // a Service has a ClusterIP of the family
	ServiceEndpoints   = "services.endpoints"  // a headless Service has endpoints of the family
	ServiceAnswer      = "services.answer"     // a Service answers on its ClusterIP, from a pod
	DNSServer          = "dns.server"          // the cluster DNS answers on its ClusterIP, asked from the host
	DNSPod             = "dns.pod"             // the cluster DNS answers over UDP, asked from a pod
	DNSA               = "dns.a"               // a Service's A records
	DNSAAAA            = "dns.aaaa"            // a Service's AAAA records
	EgressIPv4         = "egress.ipv4"         // IPv4 from a pod to the plan's URLs
	EgressIPv6         = "egress.ipv6"         // IPv6 from a pod to the plan's URLs
	HostnamesResolve   = "hostnames.resolve"   // the plan's host names have addresses of the family, asked of the cluster DNS
	HostnamesReachable = "hostnames.reachable" // they answer HTTP or HTTPS from a pod
	VolumeContents     = "volumes.contents"    // a volume holds what was backed up
	TLSSecrets         = "secrets.tls"         // a TLS secret is what was backed up
	OpenBao            = "openbao.secrets"     // OpenBao is unsealed and has every version of every secret that was exported
)

// group is the part of the table that a check belongs to, and what the check is called there.
type group struct{ id, heading, title string }

// groups lists the checks in the order of the table.
var groups = []group{
	{HostTools, "host", "tools for the probes"},
	{NodePodCIDRs, "node", "pod ranges"},
	{NodeAddresses, "node", "internal addresses"},
	{ServiceCIDRs, "node", "Service ranges"},
	{Workloads, "workloads", "available"},
	{PodAddresses, "pods", "addresses"},
	{PodConnect, "pods", "pod to pod"},
	{ServiceClusterIPs, "services", "ClusterIPs"},
	{ServiceEndpoints, "services", "headless endpoints"},
	{ServiceAnswer, "services", "answer a pod"},
	{DNSServer, "dns", "server answers the host"},
	{DNSPod, "dns", "server answers a pod (UDP)"},
	{DNSA, "dns", "A records"},
	{DNSAAAA, "dns", "AAAA records"},
	{EgressIPv4, "egress", "from a pod"},
	{EgressIPv6, "egress", "from a pod"},
	{HostnamesResolve, "hostnames", "resolve"},
	{HostnamesReachable, "hostnames", "reachable from a pod"},
	{VolumeContents, "data", "volumes"},
	{TLSSecrets, "data", "TLS secrets"},
	{OpenBao, "data", "OpenBao"},
}

// Check is one thing that was looked at, and what was seen.
type Check struct {
	// ID is one of the constants of this package; stable over releases.
	ID string `json:"id"`
	// Name is the check in words.
	Name string `json:"name"`
	// Target is what was checked: a node, "namespace/pod", "namespace/service:port", a URL.
	Target string `json:"target"`
	// Family is IPv4 or IPv6, empty where the check has none.
	Family string `json:"family,omitempty"`
	// Status is the outcome.
	Status Status `json:"status"`
	// Detail is what was seen, or why the check was skipped.
	Detail string `json:"detail,omitempty"`
	// Remedy is what to do about a failure.
	Remedy string `json:"remedy,omitempty"`

	// final marks a failure that waiting does not mend, such as a missing masquerade rule.
	final bool
}

// Report is everything that a verification looked at, in the order of the table.
type Report struct {
	// Want is what the cluster was held against.
	Want Stack `json:"want"`
	// Cluster names the migration that the plan describes.
	Cluster string `json:"cluster"`
	// Passed tells whether no check failed.
	Passed bool `json:"passed"`
	// Checks in the order in which the table shows them.
	Checks []Check `json:"checks"`
}

// OK tells whether no check failed. A report without checks proves nothing and is not OK.
func (r Report) OK() bool {
	return len(r.Checks) > 0 && r.count(Fail) == 0
}

// count returns the number of checks with the status.
func (r Report) count(s Status) int {
	n := 0
	for _, c := range r.Checks {
		if c.Status == s {
			n++
		}
	}
	return n
}

// Failed returns the checks that failed.
func (r Report) Failed() []Check {
	var out []Check
	for _, c := range r.Checks {
		if c.Status == Fail {
			out = append(out, c)
		}
	}
	return out
}

// title is what the table calls the check.
func title(id string) string {
	for _, g := range groups {
		if g.id == id {
			return g.heading + ": " + g.title
		}
	}
	return id
}

// rank is the place of the check in the table; unknown IDs come last.
func rank(id string) int {
	for i, g := range groups {
		if g.id == id {
			return i
		}
	}
	return len(groups)
}

// pass, fail and skip make a check with its name.
func pass(id, target, family, detail string) Check {
	return Check{ID: id, Name: title(id), Target: target, Family: family, Status: Pass, Detail: detail}
}

func fail(id, target, family, detail, remedy string) Check {
	return Check{ID: id, Name: title(id), Target: target, Family: family, Status: Fail, Detail: detail, Remedy: remedy}
}

func skip(id, target, family, why string) Check {
	return Check{ID: id, Name: title(id), Target: target, Family: family, Status: Skip, Detail: why}
}

// lasting marks a failure as one that waiting does not mend.
func lasting(c Check) Check {
	c.final = true
	return c
}
