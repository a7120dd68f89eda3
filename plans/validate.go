package plans

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxConcurrency keeps the connections for volumes well below what sshd (MaxStartups) and one disk stand.
const maxConcurrency = 16

// validate finds everything in a plan with defaults that can be judged without looking at any machine. Paths are
// still as they were written.
func validate(p *Plan) field.ErrorList {
	var errs field.ErrorList
	if p.APIVersion == "" {
		errs = append(errs, field.Required(field.NewPath("apiVersion"), "write apiVersion: "+APIVersion))
	}
	if p.Kind == "" {
		errs = append(errs, field.Required(field.NewPath("kind"), "write kind: "+Kind))
	}
	if name := field.NewPath("metadata", "name"); p.Metadata.Name == "" {
		errs = append(errs, field.Required(name, "give the migration a name, such as sunbeam"))
	} else {
		errs = append(errs, invalid(name, p.Metadata.Name, validation.IsDNS1123Label(p.Metadata.Name))...)
	}
	spec := field.NewPath("spec")
	errs = append(errs, validateHosts(spec.Child("hosts"), p.Spec.Hosts)...)
	errs = append(errs, validateNetwork(spec.Child("network"), p.Spec.Network)...)
	errs = append(errs, validateK3s(spec.Child("k3s"), p.Spec.K3s)...)
	errs = append(errs, validateSnapshot(spec.Child("snapshot"), p.Spec.Snapshot)...)
	errs = append(errs, validateBackup(spec.Child("backup"), p.Spec.Backup)...)
	errs = append(errs, validatePlatform(spec.Child("platform"), p.Spec.Platform)...)
	errs = append(errs, validateServices(spec.Child("services"), p.Spec.Services)...)
	errs = append(errs, validateVerify(spec.Child("verify"), p.Spec.Verify)...)
	errs = append(errs, validateHooks(spec.Child("hooks"), p.Spec.Hooks)...)
	errs = append(errs, validateWatch(spec.Child("watch"), p.Spec.Watch)...)
	errs = append(errs, validatePath(spec.Child("workDir"), p.Spec.WorkDir)...)
	return errs
}

// invalid turns the messages of apimachinery's validators into one error.
func invalid(path *field.Path, value any, messages []string) field.ErrorList {
	if len(messages) == 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(path, value, strings.Join(messages, "; "))}
}

func validateHosts(path *field.Path, hosts []Host) field.ErrorList {
	var errs field.ErrorList
	switch {
	case len(hosts) == 0:
		return field.ErrorList{field.Required(path, "name the one host of the cluster, with its address")}
	case len(hosts) > 1:
		errs = append(errs, field.Forbidden(path, fmt.Sprintf("%d hosts are named, but only clusters of one server are migrated so far: "+
			"the rebuild does not yet take agents or further servers along; leave one host with role server", len(hosts))))
	}
	for i, h := range hosts {
		errs = append(errs, validateHost(path.Index(i), h)...)
	}
	return errs
}

var (
	// hostPattern admits DNS names and aliases of an SSH configuration, and nothing that ssh could take for an option.
	hostPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)
	userPattern = regexp.MustCompile(`^[^-\s:/@][^\s:/]*$`)
)

func validateHost(path *field.Path, h Host) field.ErrorList {
	var errs field.ErrorList
	if h.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), "name the host; best as its Kubernetes node is called"))
	} else {
		errs = append(errs, invalid(path.Child("name"), h.Name, validation.IsDNS1123Subdomain(h.Name))...)
	}
	switch h.Role {
	case RoleServer:
	case RoleAgent:
		errs = append(errs, field.Forbidden(path.Child("role"), "agents are not migrated so far: the migration rebuilds the server; name the server's host here"))
	default:
		errs = append(errs, field.NotSupported(path.Child("role"), h.Role, []Role{RoleServer, RoleAgent}))
	}
	address := path.Child("address")
	switch {
	case h.Address == "":
		errs = append(errs, field.Required(address, "an IP address, a DNS name, or an alias of the SSH configuration"))
	case strings.Contains(h.Address, "@"):
		errs = append(errs, field.Invalid(address, h.Address, "the user has a field of its own, user"))
	case !isHost(h.Address):
		errs = append(errs, field.Invalid(address, h.Address, "neither an IP address (without brackets) nor a DNS name or alias; a port goes into the field port"))
	}
	if h.Port < 0 || h.Port > 65535 {
		errs = append(errs, field.Invalid(path.Child("port"), h.Port, "must be between 1 and 65535"))
	}
	if h.User != "" && !userPattern.MatchString(h.User) {
		errs = append(errs, field.Invalid(path.Child("user"), h.User, "not a user name"))
	}
	errs = append(errs, validatePaths(path.Child("identityFiles"), h.IdentityFiles)...)
	errs = append(errs, validatePaths(path.Child("knownHosts"), h.KnownHosts)...)
	if h.JumpHost != "" {
		for jump := range strings.SplitSeq(h.JumpHost, ",") {
			if !isJump(strings.TrimSpace(jump)) {
				errs = append(errs, field.Invalid(path.Child("jumpHost"), h.JumpHost, fmt.Sprintf("%q is not [user@]host[:port]; an IPv6 address with a port stands in brackets", jump)))
			}
		}
	}
	errs = append(errs, validatePath(path.Child("sshConfig"), h.SSHConfig)...)
	return errs
}

func isHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || hostPattern.MatchString(s)
}

func isJump(s string) bool {
	if i := strings.LastIndex(s, "@"); i >= 0 {
		if !userPattern.MatchString(s[:i]) {
			return false
		}
		s = s[i+1:]
	}
	if isHost(s) {
		return true
	}
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		return isHost(strings.TrimSuffix(inner, "]"))
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && isHost(host)
}

// Rules for ranges that Kubernetes 1.34 sets: kube-apiserver takes at most 2^20 Service addresses a family,
// kube-controller-manager cuts node ranges of /24 and /64 from the pod ranges and keeps at most 2^16 of them. The lower bound of
// Service ranges is K3s's, whose cluster DNS is the tenth address.
const (
	clusterIPv4Min, clusterIPv4Max = 8, 24
	clusterIPv6Min, clusterIPv6Max = 48, 64
	serviceIPv4Min, serviceIPv4Max = 12, 28
	serviceIPv6Min, serviceIPv6Max = 108, 124
)

func validateNetwork(path *field.Path, n Network) field.ErrorList {
	cluster, errs := validateRanges(path.Child("clusterCIDR"), n.ClusterCIDR, "10.42.0.0/16", "fd42::/48", clusterMask)
	service, more := validateRanges(path.Child("serviceCIDR"), n.ServiceCIDR, "10.43.0.0/16", "fd43::/108", serviceMask)
	errs = append(errs, more...)
	ranges := slices.Concat(cluster, service)
	for i, a := range ranges {
		for _, b := range ranges[:i] {
			if a.prefix.Overlaps(b.prefix) {
				errs = append(errs, field.Invalid(a.path, a.prefix.String(), fmt.Sprintf("overlaps %s %s; pods and Services need ranges of their own", b.path, b.prefix)))
			}
		}
	}
	errs = append(errs, validateNodeIP(path.Child("nodeIP"), n.NodeIP, ranges)...)
	errs = append(errs, validateClusterDNS(path.Child("clusterDNS"), n.ClusterDNS, service)...)
	return errs
}

// clusterRange is a range of the plan and where it stands there.
type clusterRange struct {
	path   *field.Path
	prefix netip.Prefix
}

// validateRanges checks a pair of ranges and returns those that can be compared with others.
func validateRanges(path *field.Path, values []string, ipv4, ipv6 string, mask func(netip.Prefix) string) ([]clusterRange, field.ErrorList) {
	var errs field.ErrorList
	var ranges []clusterRange
	var families []bool
	for i, value := range values {
		prefix, problem := parseRange(value)
		if problem == "" {
			families = append(families, prefix.Addr().Is4())
			problem = mask(prefix)
		}
		if problem != "" {
			errs = append(errs, field.Invalid(path.Index(i), value, problem))
			continue
		}
		ranges = append(ranges, clusterRange{path.Index(i), prefix})
	}
	if len(families) == len(values) {
		errs = append(errs, validateFamilies(path, values, families, ipv4, ipv6)...)
	}
	return ranges, errs
}

// validateFamilies demands IPv4 first and IPv6 second; families tells for each value whether it is IPv4.
func validateFamilies(path *field.Path, values []string, families []bool, ipv4, ipv6 string) field.ErrorList {
	problem := ""
	switch {
	case slices.Equal(families, []bool{true, false}):
		return nil
	case slices.Equal(families, []bool{false, true}):
		problem = fmt.Sprintf("the families are reversed: IPv4 comes first, so that the API's address and every IPv4 ClusterIP stay as they are; write [%s, %s]", values[1], values[0])
	case !slices.Contains(families, true):
		problem = fmt.Sprintf("IPv6 only: the cluster keeps IPv4 and gains IPv6; put an IPv4 one such as %s first", ipv4)
	case !slices.Contains(families, false):
		problem = fmt.Sprintf("IPv4 only: that is what the cluster is already; add an IPv6 one such as %s as the second", ipv6)
	}
	if len(values) > 2 {
		problem = "exactly two are needed, first IPv4, then IPv6"
	}
	return field.ErrorList{field.Invalid(path, values, problem)}
}

// parseRange reads a range in CIDR notation, or says what is wrong with it.
func parseRange(s string) (netip.Prefix, string) {
	const notation = "not a range in CIDR notation such as 10.42.0.0/16 or fd42::/48"
	if strings.Contains(s, ",") {
		return netip.Prefix{}, "holds several ranges; write each as a list item of its own"
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		if _, err := netip.ParseAddr(s); err == nil {
			return netip.Prefix{}, "an address without a mask; " + notation
		}
		return netip.Prefix{}, notation
	}
	if prefix.Addr().Is4In6() {
		return netip.Prefix{}, "IPv4 written as IPv6; write the IPv4 range itself"
	}
	if masked := prefix.Masked(); masked != prefix {
		return netip.Prefix{}, fmt.Sprintf("has bits set behind its mask; the range is %s", masked)
	}
	for _, s := range specialRanges {
		if prefix.Overlaps(s.prefix) {
			return netip.Prefix{}, fmt.Sprintf("holds %s addresses (%s), which pods and Services cannot have; take a private range", s.name, s.prefix)
		}
	}
	if prefix.Addr().Is6() && !slices.ContainsFunc(unicastRanges, func(u netip.Prefix) bool { return u.Bits() <= prefix.Bits() && u.Overlaps(prefix) }) {
		return netip.Prefix{}, "lies neither in fc00::/7 (unique local) nor in 2000::/3 (global unicast); take a unique local range such as fd42::/48"
	}
	return prefix, ""
}

var (
	// specialRanges are those of the IANA special-purpose registries that no pod or Service can be reached at.
	specialRanges = []struct {
		prefix netip.Prefix
		name   string
	}{
		{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
		{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
		{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
		{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
		{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
		{netip.MustParsePrefix("::1/128"), "loopback"},
		{netip.MustParsePrefix("fe80::/10"), "link-local"},
		{netip.MustParsePrefix("ff00::/8"), "multicast"},
	}
	unicastRanges = []netip.Prefix{netip.MustParsePrefix("2000::/3"), netip.MustParsePrefix("fc00::/7")}
)

func clusterMask(p netip.Prefix) string {
	minimum, maximum, node := clusterIPv6Min, clusterIPv6Max, 64
	if p.Addr().Is4() {
		minimum, maximum, node = clusterIPv4Min, clusterIPv4Max, 24
	}
	if p.Bits() < minimum || p.Bits() > maximum {
		return fmt.Sprintf("Kubernetes cuts a /%d for each node from it and refuses more than 16 bits of difference; take a mask from /%d to /%d", node, minimum, maximum)
	}
	return ""
}

func serviceMask(p netip.Prefix) string {
	minimum, maximum := serviceIPv6Min, serviceIPv6Max
	if p.Addr().Is4() {
		minimum, maximum = serviceIPv4Min, serviceIPv4Max
	}
	switch {
	case p.Bits() < minimum:
		return fmt.Sprintf("Kubernetes refuses more than 2^20 Service addresses; take a mask of /%d or longer", minimum)
	case p.Bits() > maximum:
		return fmt.Sprintf("too small: K3s gives cluster DNS the tenth address; take a mask of /%d or shorter", maximum)
	}
	return ""
}

func validateNodeIP(path *field.Path, values []string, ranges []clusterRange) field.ErrorList {
	var errs field.ErrorList
	var families []bool
	for i, value := range values {
		address, problem := parseAddress(value)
		if problem == "" {
			families = append(families, address.Is4())
			for _, r := range ranges {
				if r.prefix.Contains(address) {
					problem = fmt.Sprintf("lies in %s %s; the node's address comes from its own network", r.path, r.prefix)
				}
			}
		}
		if problem != "" {
			errs = append(errs, field.Invalid(path.Index(i), value, problem))
		}
	}
	if len(values) > 0 && len(families) == len(values) {
		errs = append(errs, validateFamilies(path, values, families, "192.0.2.10", "2001:db8::10")...)
	}
	return errs
}

// parseAddress reads an address that a node can have, or says what is wrong with it.
func parseAddress(s string) (netip.Addr, string) {
	address, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, "not an IP address"
	case address.Zone() != "" || address.IsLinkLocalUnicast():
		return netip.Addr{}, "a link-local address; write one that other networks reach"
	case address.Is4In6():
		return netip.Addr{}, "IPv4 written as IPv6; write the IPv4 address itself"
	case !address.IsGlobalUnicast():
		return netip.Addr{}, "not a unicast address of a host; write one that other networks reach"
	}
	return address, ""
}

// validateClusterDNS admits one IPv4 address (CoreDNS answers AAAA over it all the same) or one of each family.
func validateClusterDNS(path *field.Path, values []string, service []clusterRange) field.ErrorList {
	var errs field.ErrorList
	var families []bool
	for i, value := range values {
		address, err := netip.ParseAddr(value)
		if err != nil {
			errs = append(errs, field.Invalid(path.Index(i), value, "not an IP address"))
			continue
		}
		families = append(families, address.Is4())
		home := slices.IndexFunc(service, func(r clusterRange) bool { return r.prefix.Contains(address) })
		switch {
		case home < 0 && len(service) < 2: // the ranges have mistakes of their own
		case home < 0:
			errs = append(errs, field.Invalid(path.Index(i), value, fmt.Sprintf("lies outside the Service ranges %s and %s; K3s itself takes the tenth address of each", service[0].prefix, service[1].prefix)))
		case address == service[home].prefix.Addr(), address == service[home].prefix.Addr().Next():
			errs = append(errs, field.Invalid(path.Index(i), value, "the first address of a Service range is the API server's; K3s itself takes the tenth"))
		}
	}
	if len(values) > 0 && len(families) == len(values) && !slices.Equal(families, []bool{true}) {
		errs = append(errs, validateFamilies(path, values, families, "10.43.0.10", "fd43::a")...)
	}
	return errs
}

var (
	versionPattern   = regexp.MustCompile(`^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+k3s\d+)?$`)
	componentPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	// splitPattern finds a flag and its value in one argument, which K3s would take for a flag of that long name.
	splitPattern = regexp.MustCompile(`^-[^\s=]*\s`)
)

// ownedArgs are settings of K3s that the plan has fields for. K3s takes the last of several values, so that a second one
// among the extra arguments would win without a word.
var ownedArgs = map[string]string{
	"cluster-cidr":      "spec.network.clusterCIDR",
	"service-cidr":      "spec.network.serviceCIDR",
	"flannel-ipv6-masq": "spec.network.flannelIPv6Masq",
	"node-ip":           "spec.network.nodeIP",
	"i":                 "spec.network.nodeIP",
	"cluster-dns":       "spec.network.clusterDNS",
	"disable":           "spec.k3s.disable",
}

// tokenArgs carry the cluster's token, which is part of the identity and, as a secret, has no place in a plan.
var tokenArgs = []string{"token", "t", "token-file", "agent-token", "agent-token-file"}

func validateK3s(path *field.Path, k K3s) field.ErrorList {
	var errs field.ErrorList
	if k.Version != VersionKeep && !versionPattern.MatchString(k.Version) {
		errs = append(errs, field.Invalid(path.Child("version"), k.Version, `write "keep", or a release such as v1.34.4+k3s1`))
	}
	if script := path.Child("installScript"); isURL(k.InstallScript) {
		errs = append(errs, validateURL(script, k.InstallScript)...)
	} else {
		errs = append(errs, validatePath(script, k.InstallScript)...)
	}
	for i, arg := range k.ExtraArgs {
		errs = append(errs, validateExtraArg(path.Child("extraArgs").Index(i), arg)...)
	}
	for i, name := range k.Disable {
		if !componentPattern.MatchString(name) {
			errs = append(errs, field.Invalid(path.Child("disable").Index(i), name, "not the name of one component, such as traefik or servicelb; several are several list items"))
		}
	}
	if choices := []Identity{IdentityPreserve, IdentityNew}; !slices.Contains(choices, k.Identity) {
		errs = append(errs, field.NotSupported(path.Child("identity"), k.Identity, choices))
	}
	return errs
}

func validateExtraArg(path *field.Path, arg string) field.ErrorList {
	if arg == "" {
		return field.ErrorList{field.Required(path, "an empty argument; fill it in or remove it")}
	}
	if strings.ContainsAny(arg, "\n\r\x00") {
		return field.ErrorList{field.Invalid(path, arg, "an argument of a systemd unit is one line")}
	}
	flag := strings.TrimLeft(arg, "-")
	if flag == arg {
		return nil // the value of the flag before it
	}
	flag, _, _ = strings.Cut(flag, "=")
	flag, _, split := strings.Cut(flag, " ")
	if owner, owned := ownedArgs[flag]; owned {
		return field.ErrorList{field.Forbidden(path, fmt.Sprintf("--%s is set by %s; write it there and remove it here", flag, owner))}
	}
	if slices.Contains(tokenArgs, flag) {
		return field.ErrorList{field.Forbidden(path, fmt.Sprintf("--%s has no place in a plan: the token comes with spec.k3s.identity; remove it here", flag))}
	}
	if split || splitPattern.MatchString(arg) {
		return field.ErrorList{field.Invalid(path, arg, "a flag and its value in one argument; write --flag=value, or two list items")}
	}
	return nil
}

func validateBackup(path *field.Path, b Backup) field.ErrorList {
	var errs field.ErrorList
	recipients := path.Child("encryption", "recipients")
	if len(b.Encryption.Recipients) == 0 {
		errs = append(errs, field.Required(recipients, "the backup set is encrypted; name at least one public key: the age1… line of age-keygen, or an SSH public key"))
	}
	for i, r := range b.Encryption.Recipients {
		if err := validateRecipient(recipients.Index(i), r); err != nil {
			errs = append(errs, err)
		}
	}
	identities := path.Child("encryption", "identities")
	if len(b.Encryption.Identities) == 0 {
		errs = append(errs, field.Required(identities, "gate and restore open the backup set; name the private key file that belongs to a recipient"))
	}
	errs = append(errs, validatePaths(identities, b.Encryption.Identities)...)
	errs = append(errs, validateNames(path.Child("volumes", "exclude"), b.Volumes.Exclude, "claim", validation.IsDNS1123Subdomain)...)
	if c := b.Volumes.Concurrency; c < 1 || c > maxConcurrency {
		errs = append(errs, field.Invalid(path.Child("volumes", "concurrency"), c, fmt.Sprintf("must be between 1 and %d; each is an SSH connection of its own", maxConcurrency)))
	}
	for i, s := range b.TLSSecrets.Selectors {
		selector := path.Child("tlsSecrets", "selectors").Index(i)
		if strings.TrimSpace(s) == "" {
			errs = append(errs, field.Required(selector, "an empty selector selects every secret; write one such as app.kubernetes.io/name=acme, or remove it"))
		} else if _, err := labels.Parse(s); err != nil {
			errs = append(errs, field.Invalid(selector, s, fmt.Sprintf("not a label selector such as app=acme: %v", err)))
		}
	}
	for i, r := range b.Objects.ExcludeResources {
		errs = append(errs, invalid(path.Child("objects", "excludeResources").Index(i), r, validation.IsDNS1123Subdomain(r))...)
	}
	if b.OpenBao != nil {
		errs = append(errs, validateOpenBao(path.Child("openBao"), b.OpenBao)...)
	}
	return errs
}

// validateRecipient checks one public key. A private key is named without being shown.
func validateRecipient(path *field.Path, r string) *field.Error {
	var err error
	switch {
	case strings.HasPrefix(strings.ToUpper(r), "AGE-SECRET-KEY-"), strings.Contains(r, "PRIVATE KEY"):
		return field.Forbidden(path, "this is a private key, which does not belong into a plan; write its public key (age-keygen -y, ssh-keygen -y) and take the key as exposed")
	case strings.HasPrefix(r, "age1pq1"):
		_, err = age.ParseHybridRecipient(r)
	case strings.HasPrefix(r, "age1"):
		_, err = age.ParseX25519Recipient(r)
	case strings.HasPrefix(r, "ssh-"):
		_, err = agessh.ParseRecipient(r)
	default:
		err = errors.New("of an unknown type")
	}
	if err != nil {
		return field.Invalid(path, r, fmt.Sprintf("not a public key of age: write age1…, ssh-ed25519 … or ssh-rsa … (%v)", err))
	}
	return nil
}

var variablePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func validatePlatform(path *field.Path, p Platform) field.ErrorList {
	var errs field.ErrorList
	command := path.Child("command")
	if len(p.Command) == 0 {
		errs = append(errs, field.Required(command, "missing platform command: what deploys the workloads again, such as [sunbeam, platform, up]"))
	}
	errs = append(errs, validateCommand(command, p.Command)...)
	errs = append(errs, validateCommand(path.Child("rehearse"), p.Rehearse)...)
	for i, m := range p.Manifests {
		if isURL(m) {
			errs = append(errs, field.Invalid(path.Child("manifests").Index(i), m, "nothing is fetched; name a file or directory of this machine"))
		}
	}
	errs = append(errs, validatePaths(path.Child("manifests"), p.Manifests)...)
	switch drift, choices := path.Child("drift"), []DriftPolicy{DriftWarn, DriftInhibit}; {
	case p.Drift == "":
	case !slices.Contains(choices, p.Drift):
		errs = append(errs, field.NotSupported(drift, p.Drift, choices))
	case len(p.Manifests) == 0:
		errs = append(errs, field.Forbidden(drift, "there is nothing to compare the cluster with; name the manifests, or remove this"))
	}
	errs = append(errs, validatePath(path.Child("directory"), p.Directory)...)
	for _, name := range slices.Sorted(maps.Keys(p.Environment)) {
		value, variable := p.Environment[name], path.Child("environment").Key(name)
		switch {
		case name == "KUBECONFIG":
			errs = append(errs, field.Forbidden(variable, "the migration sets KUBECONFIG to reach the new cluster; remove it"))
		case !variablePattern.MatchString(name):
			errs = append(errs, field.Invalid(variable, name, "not the name of an environment variable"))
		case strings.Contains(value, "\x00"):
			errs = append(errs, field.Invalid(variable, value, "no variable can hold a zero byte"))
		}
	}
	return append(errs, validateTimeout(path.Child("timeout"), p.Timeout)...)
}

// validateCommand checks a program and its arguments.
func validateCommand(path *field.Path, command []string) field.ErrorList {
	var errs field.ErrorList
	for i, arg := range command {
		switch {
		case i == 0 && arg == "":
			errs = append(errs, field.Required(path.Index(0), "name the program"))
		case strings.Contains(arg, "\x00"):
			errs = append(errs, field.Invalid(path.Index(i), arg, "no argument can hold a zero byte"))
		}
	}
	return errs
}

func validateServices(path *field.Path, s Services) field.ErrorList {
	var errs field.ErrorList
	if choices := []ServicePolicy{ServicesPreferDualStack, ServicesRequireDualStack, ServicesKeep}; !slices.Contains(choices, s.Policy) {
		errs = append(errs, field.NotSupported(path.Child("policy"), s.Policy, choices))
	}
	return append(errs, validateNames(path.Child("exclude"), s.Exclude, "name", validation.IsDNS1123Label)...)
}

func validateVerify(path *field.Path, v Verify) field.ErrorList {
	var errs field.ErrorList
	for i, u := range v.EgressURLs {
		errs = append(errs, validateURL(path.Child("egressURLs").Index(i), u)...)
	}
	for i, name := range v.Hostnames {
		hostname := path.Child("hostnames").Index(i)
		if _, err := netip.ParseAddr(name); err == nil {
			errs = append(errs, field.Invalid(hostname, name, "an address; write the DNS name that resolves to it"))
			continue
		}
		errs = append(errs, invalid(hostname, name, validation.IsDNS1123Subdomain(name))...)
	}
	return append(errs, validateTimeout(path.Child("timeout"), v.Timeout)...)
}

func validateWatch(path *field.Path, urls []string) field.ErrorList {
	var errs field.ErrorList
	for i, text := range urls {
		if u, err := url.Parse(text); err == nil && u.User != nil {
			errs = append(errs, field.Forbidden(path.Index(i), "a user or password has no place here; an answer that refuses access counts as up, too"))
			continue
		}
		if slices.Contains(urls[:i], text) {
			errs = append(errs, field.Duplicate(path.Index(i), text))
			continue
		}
		errs = append(errs, validateURL(path.Index(i), text)...)
	}
	return errs
}

// validateNames checks entries of the form namespace/<kind>.
func validateNames(path *field.Path, values []string, kind string, valid func(string) []string) field.ErrorList {
	var errs field.ErrorList
	for i, value := range values {
		namespace, name, found := strings.Cut(value, "/")
		if !found {
			errs = append(errs, field.Invalid(path.Index(i), value, "must be namespace/"+kind))
			continue
		}
		errs = append(errs, invalid(path.Index(i), value, prefixed("namespace: ", validation.IsDNS1123Label(namespace)))...)
		errs = append(errs, invalid(path.Index(i), value, prefixed(kind+": ", valid(name)))...)
	}
	return errs
}

func prefixed(prefix string, messages []string) []string {
	for i := range messages {
		messages[i] = prefix + messages[i]
	}
	return messages
}

func validateTimeout(path *field.Path, t Duration) field.ErrorList {
	if t.Duration < 0 {
		return field.ErrorList{field.Invalid(path, t.Duration.String(), `must be longer than nothing, such as "30m"`)}
	}
	return nil
}

func isURL(s string) bool { return strings.Contains(s, "://") }

func validateURL(path *field.Path, s string) field.ErrorList {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return field.ErrorList{field.Invalid(path, s, "not an absolute URL such as https://example.org/path; http and https are known")}
	}
	if u.User != nil {
		return field.ErrorList{field.Forbidden(path, "a user or password has no place here: a plan is shown and saved in clear; write a URL that needs none")}
	}
	return nil
}

func validatePaths(path *field.Path, values []string) field.ErrorList {
	var errs field.ErrorList
	for i, value := range values {
		if value == "" {
			errs = append(errs, field.Required(path.Index(i), "an empty path; fill it in or remove it"))
		}
		errs = append(errs, validatePath(path.Index(i), value)...)
	}
	return errs
}

func validatePath(path *field.Path, value string) field.ErrorList {
	if strings.ContainsAny(value, "\x00\n") {
		return field.ErrorList{field.Invalid(path, value, "not the path of a file")}
	}
	return nil
}

// checkFiles looks for the files and programs that a plan names; its paths are absolute already.
func checkFiles(p *Plan) field.ErrorList {
	var errs field.ErrorList
	check := func(path *field.Path, value, next string) {
		if value == "" {
			return
		}
		if problem := checkFile(value); problem != "" {
			errs = append(errs, field.Invalid(path, value, problem+"; "+next))
		}
	}
	spec := field.NewPath("spec")
	for i, h := range p.Spec.Hosts {
		host := spec.Child("hosts").Index(i)
		for j, file := range h.IdentityFiles {
			check(host.Child("identityFiles").Index(j), file, "name the private key that the host accepts")
		}
		for j, file := range h.KnownHosts {
			check(host.Child("knownHosts").Index(j), file, "name the file that holds the host's key, or leave the field out for ~/.ssh/known_hosts")
		}
		if h.SSHConfig != SSHConfigNone {
			check(host.Child("sshConfig"), h.SSHConfig, `name the SSH configuration, or "none"`)
		}
	}
	if script := p.Spec.K3s.InstallScript; !isURL(script) {
		check(spec.Child("k3s", "installScript"), script, "name K3s's installer by a file or a URL")
	}
	for i, file := range p.Spec.Backup.Encryption.Identities {
		check(spec.Child("backup", "encryption", "identities").Index(i), file, "name the private key file that belongs to a recipient")
	}
	if bao := p.Spec.Backup.OpenBao; bao != nil && bao.TLS != nil {
		check(spec.Child("backup", "openBao", "tls", "caFile"), bao.TLS.CAFile, "name the file with the CA's certificates, or leave the field out for the laptop's")
	}
	errs = append(errs, checkPlatform(spec.Child("platform"), p.Spec.Platform)...)
	errs = append(errs, checkSnapshot(spec.Child("snapshot"), p.Spec.Snapshot, p.Spec.Platform.Directory)...)
	return append(errs, checkHooks(spec.Child("hooks"), p.Spec.Hooks, p.Spec.Platform.Directory)...)
}

// checkFile says what keeps a file from being read.
func checkFile(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return reason(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return reason(err)
	} else if !info.Mode().IsRegular() {
		return "not a regular file"
	}
	return ""
}

// reason is an error of the file system without the path, which stands in front of it already.
func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "no such file"
	case errors.Is(err, fs.ErrPermission):
		return "it cannot be read by this user"
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	return err.Error()
}

// checkPlatform looks for the platform's directory and program, the way that os/exec does: a name with a slash starts at
// the directory, any other is searched for in PATH.
func checkPlatform(path *field.Path, p Platform) field.ErrorList {
	info, err := os.Stat(p.Directory)
	switch {
	case err != nil:
		return field.ErrorList{field.Invalid(path.Child("directory"), p.Directory, reason(err)+"; name the directory that the platform's command runs in")}
	case !info.IsDir():
		return field.ErrorList{field.Invalid(path.Child("directory"), p.Directory, "not a directory; name the one that the platform's command runs in")}
	}
	var errs field.ErrorList
	for i, m := range p.Manifests {
		if info, err := os.Stat(m); err != nil {
			errs = append(errs, field.Invalid(path.Child("manifests").Index(i), m, reason(err)+"; name the file or directory from which the cluster was made"))
		} else if !info.IsDir() && !info.Mode().IsRegular() {
			errs = append(errs, field.Invalid(path.Child("manifests").Index(i), m, "neither a file nor a directory; name what the cluster was made from"))
		}
	}
	errs = append(errs, checkProgram(path.Child("command"), p.Command, p.Directory, "missing platform command: ")...)
	return append(errs, checkProgram(path.Child("rehearse"), p.Rehearse, p.Directory, "missing command: ")...)
}

// checkProgram looks for a program that is run in the platform's directory.
func checkProgram(path *field.Path, command []string, directory, missing string) field.ErrorList {
	if len(command) == 0 || command[0] == "" {
		return nil
	}
	program, at := command[0], path.Index(0)
	local := program
	if !filepath.IsAbs(local) {
		local = filepath.Join(directory, program)
	}
	if strings.Contains(program, "/") {
		if _, err := exec.LookPath(local); err != nil {
			return field.ErrorList{field.Invalid(at, program, fmt.Sprintf("%s%s is no program that this user can run; relative names start at spec.platform.directory", missing, local))}
		}
		return nil
	}
	if _, err := exec.LookPath(program); err != nil {
		next := "install it, extend PATH, or write its path"
		if _, err := exec.LookPath(local); err == nil {
			next = fmt.Sprintf("for the one in spec.platform.directory write ./%s", program)
		}
		return field.ErrorList{field.Invalid(at, program, missing+"no such program in PATH; "+next)}
	}
	return nil
}
