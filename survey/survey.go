// Package survey takes the facts: a read-only look at host and cluster before
// anything is changed. Facts are kept for the whole run; whatever is done after
// the uninstall is computed from them, since the cluster they describe is gone.
// They hold no secret. Whether they allow a run is preflight's to say.
package survey

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/snapshot"
	"sunbeam.pt/k3s-dualstack/verify"
)

// Facts is what a survey found.
type Facts struct {
	Taken   time.Time         `json:"taken"`
	Host    Host              `json:"host"`
	K3s     *k3s.Installation `json:"k3s"`
	Cluster Cluster           `json:"cluster"`
	// OpenBao is nil when the plan names none.
	OpenBao *OpenBao `json:"openBao,omitempty"`
	// Names are the plan's hostnames as the laptop sees them.
	Names []Name `json:"names,omitempty"`
	// Rates are those of the connection, for estimates.
	Rates Rates `json:"rates,omitzero"`
	// Unready are programs, services and servers that the plan's hooks and its snapshot take and that were not
	// found: each the plan's field, what was seen, and what to do about it.
	Unready []string `json:"unready,omitempty"`
}

// Host is the machine.
type Host struct {
	Name      string `json:"name"` // the plan's
	Hostname  string `json:"hostname"`
	MachineID string `json:"machineID"`
	OS        string `json:"os"`
	Kernel    string `json:"kernel"`
	Arch      string `json:"arch"`
	// Addresses are those of global scope; container interfaces included.
	Addresses []Address `json:"addresses"`
	Routes    []Route   `json:"routes"`
	// Uplink is the interface of the IPv6 default route, "" without one.
	Uplink string `json:"uplink"`
	// AcceptRA is net.ipv6.conf.<uplink>.accept_ra, -1 when unknown.
	AcceptRA int `json:"acceptRA"`
	// Free is the space left, in bytes, on the file systems of the directories
	// that the migration writes to.
	Free map[string]int64 `json:"free"`
	// Strays are directories in the local-path provisioner's storage that belong
	// to no PersistentVolume; the uninstall deletes them with the rest.
	Strays []string `json:"strays,omitempty"`
	// MissingTools says which of the tools that backups need are not there.
	MissingTools string `json:"missingTools,omitempty"`

	// Skew is how many seconds the host's clock is ahead of the laptop's.
	Skew int `json:"skew,omitempty"`
	// Forwarding tells whether the host forwards IPv6 already.
	Forwarding bool `json:"forwarding,omitempty"`
	// IPv6Off tells that new interfaces, as those of pods are, get no IPv6.
	IPv6Off bool `json:"ipv6Off,omitempty"`
	// NoIP6Tables tells that neither the host nor K3s has ip6tables.
	NoIP6Tables bool `json:"noIP6Tables,omitempty"`
	// PolicyRoutes are those of further tables, as VPNs make them.
	PolicyRoutes []Route  `json:"policyRoutes,omitempty"`
	Disk         Disk     `json:"disk,omitzero"`
	Firewall     Firewall `json:"firewall,omitzero"`
	// Storage is what the paths that a rebuild touches lie on.
	Storage snapshot.Storage `json:"storage,omitzero"`
}

// Address is one address of an interface.
type Address struct {
	Interface  string       `json:"interface"`
	Prefix     netip.Prefix `json:"prefix"`
	Temporary  bool         `json:"temporary,omitempty"`
	Deprecated bool         `json:"deprecated,omitempty"`
	Dynamic    bool         `json:"dynamic,omitempty"`
}

// Route is one route of the main table.
type Route struct {
	Destination netip.Prefix `json:"destination"` // 0.0.0.0/0 or ::/0 for a default route
	// Type is empty for a route that leads somewhere; else it is blackhole,
	// unreachable, prohibit or throw.
	Type      string `json:"type,omitempty"`
	Interface string `json:"interface"`
	Gateway   string `json:"gateway,omitempty"`
	Protocol  string `json:"protocol"`          // kernel, static, ra, …
	Expires   int    `json:"expires,omitempty"` // seconds; 0 when it does not
}

// OwnInterface tells the interfaces that K3s makes itself: their addresses and
// routes go with it.
func OwnInterface(name string) bool {
	return name == "cni0" || name == "kube-ipvs0" || name == "kube-bridge" || strings.HasPrefix(name, "flannel") || strings.HasPrefix(name, "veth")
}

// Default tells whether it is a default route that leads somewhere.
func (r Route) Default() bool { return r.Destination.Bits() == 0 && r.Type == "" }

// Cluster is what the API server said.
type Cluster struct {
	Version       string                  `json:"version"`
	KubeSystemUID string                  `json:"kubeSystemUID"`
	Nodes         []Node                  `json:"nodes"`
	ServiceCIDRs  []string                `json:"serviceCIDRs"`
	Volumes       []Volume                `json:"volumes"`
	Namespaces    []string                `json:"namespaces"`
	TLSSecrets    map[string]string       `json:"tlsSecrets"` // namespace/name → SHA-256 of type, data and annotations
	Services      []cluster.ServiceChange `json:"services"`
	Workloads     Workloads               `json:"workloads,omitzero"`
}

// Node of the cluster.
type Node struct {
	Name        string   `json:"name"`
	UID         string   `json:"uid"`
	Ready       bool     `json:"ready"`
	PodCIDRs    []string `json:"podCIDRs"`
	InternalIPs []string `json:"internalIPs"`
}

// Volume with its size on the host.
type Volume struct {
	cluster.Volume
	Bytes    int64 `json:"bytes"`
	Files    int64 `json:"files"`
	Excluded bool  `json:"excluded,omitempty"` // by the plan
	// Missing tells that its directory is not there.
	Missing bool `json:"missing,omitempty"`
}

// Ref is how backup and restore name the volume.
func (v Volume) Ref() backup.VolumeRef {
	ref := backup.VolumeRef{ID: v.PV, Path: v.Path}
	if v.Claim != "" {
		ref.Claim = v.Namespace + "/" + v.Claim
	}
	return ref
}

// Copied tells whether the volume's data lies on the host and is carried over.
func (v Volume) Copied() bool {
	return !v.Excluded && (v.Kind == cluster.HostPath || v.Kind == cluster.Local)
}

// Digest identifies the facts; the run is bound to it.
func (f *Facts) Digest() string {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // plain data: cannot fail
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Take surveys the host and the cluster; whatever of it cannot be read is an error.
// token gets the one with which OpenBao is read, where the plan names an OpenBao.
func Take(ctx context.Context, h *remote.Host, c *cluster.Client, in *k3s.Installation, plan *plans.Plan, token func(context.Context) (string, error)) (*Facts, error) {
	return take(ctx, h, c, in, plan, token, func(_ string, err error) error { return err })
}

// Glimpse is [Take] for a cluster that may be half dead, and without OpenBao: the parts of
// the cluster that cannot be read are told to missing and are not in the facts. Such
// facts are good to be looked at, and for no run.
func Glimpse(ctx context.Context, h *remote.Host, c *cluster.Client, in *k3s.Installation, plan *plans.Plan, missing func(part string, err error)) (*Facts, error) {
	var one sync.Mutex
	return take(ctx, h, c, in, plan, nil, func(part string, err error) error {
		one.Lock()
		defer one.Unlock()
		missing(part, err)
		return nil
	})
}

func take(ctx context.Context, h *remote.Host, c *cluster.Client, in *k3s.Installation, plan *plans.Plan, token func(context.Context) (string, error), failed func(part string, err error) error) (*Facts, error) {
	f := &Facts{Taken: time.Now().UTC(), K3s: in}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { f.Host, err = readHost(gctx, h, in); return err })
	if p := plan.Spec.Backup.OpenBao; p != nil {
		g.Go(func() (err error) { f.OpenBao, err = ReadOpenBao(gctx, h, c, p, token); return err })
	}
	listed := true
	for _, p := range f.parts(h, c, plan) {
		g.Go(func() error {
			err := p.read(gctx)
			if err != nil && gctx.Err() == nil {
				if p.name == Volumes {
					listed = false
				}
				return failed(p.name, err)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var err error
	if listed { // otherwise every directory would look like nobody's
		if f.Host.Strays, err = f.Unknown(ctx, h); err != nil {
			return nil, err
		}
	}
	f.Host.Storage, err = snapshot.Look(ctx, h, f.touched(), path.Join(f.K3s.DataDir, "agent"))
	f.Host.Storage.Writes += f.VolumeBytes()
	return f, err
}

// touched lists what a rebuild writes to or deletes: where a snapshot of the host has to
// reach.
func (f *Facts) touched() []string {
	out := []string{"/etc", path.Dir(f.K3s.Binary), f.K3s.DataDir, kubelet, remote.StateDir}
	for _, v := range f.Cluster.Volumes {
		if v.Copied() && !v.Missing {
			out = append(out, v.Path)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Unknown lists the entries of the storage directory that are no volume of the
// facts and no stray of theirs: an uninstall would delete what nobody backed up. The
// lost+found of a file system is none as long as it is empty.
func (f *Facts) Unknown(ctx context.Context, h *remote.Host) ([]string, error) {
	dir := f.K3s.Storage()
	out, err := h.Output(ctx, fmt.Sprintf(`[ ! -d %[1]s ] || find %[1]s -mindepth 1 -maxdepth 1 ! \( -name lost+found -empty \) -printf '%%p\n'`, remote.Quote(dir)))
	if err != nil {
		return nil, fmt.Errorf("host %s: listing %s: %w", h.Name(), dir, err)
	}
	var unknown []string
	for entry := range strings.SplitSeq(out, "\n") {
		known := entry == "" || slices.Contains(f.Host.Strays, entry)
		for _, v := range f.Cluster.Volumes {
			known = known || v.Path == entry || strings.HasPrefix(v.Path, entry+"/")
		}
		if !known {
			unknown = append(unknown, entry)
		}
	}
	return unknown, nil
}

// Moved names what is another now than it was in the facts, as far as the
// backup of the old would not do for the new. Both are surveys of one host.
func (f *Facts) Moved(now *Facts) (moved []string) {
	differ := func(what, was, is string) {
		if was != is {
			moved = append(moved, fmt.Sprintf("%s: was %s, is %s", what, was, is))
		}
	}
	differ("machine-id of the host", f.Host.MachineID, now.Host.MachineID)
	differ("UID of namespace kube-system", f.Cluster.KubeSystemUID, now.Cluster.KubeSystemUID)
	differ("K3s", f.K3s.Version+" "+f.K3s.BinarySHA256, now.K3s.Version+" "+now.K3s.BinarySHA256)
	differ("data directory", f.K3s.DataDir, now.K3s.DataDir)
	on := func(in *k3s.Installation) string {
		var all []string
		for _, m := range in.Mounts {
			all = append(all, m.Identity())
		}
		return cmp.Or(strings.Join(all, "; "), "the host's")
	}
	differ("file systems that K3s is on", on(f.K3s), on(now.K3s))
	was, is := map[string]string{}, map[string]string{}
	for _, v := range f.Cluster.Volumes {
		was[v.PV] = v.Namespace + "/" + v.Claim + " at " + v.Path
	}
	for _, v := range now.Cluster.Volumes {
		is[v.PV] = v.Namespace + "/" + v.Claim + " at " + v.Path
	}
	for _, pv := range slices.Sorted(maps.Keys(is)) {
		if _, ok := was[pv]; !ok {
			moved = append(moved, fmt.Sprintf("volume %s (%s) is new", pv, is[pv]))
		} else {
			differ("volume "+pv, was[pv], is[pv])
		}
	}
	for _, v := range now.Cluster.Volumes {
		if v.Missing && !slices.ContainsFunc(f.Cluster.Volumes, func(w Volume) bool { return w.PV == v.PV && w.Missing }) {
			moved = append(moved, fmt.Sprintf("volume %s: its directory %s is gone", v.PV, v.Path))
		}
	}
	for _, pv := range slices.Sorted(maps.Keys(was)) {
		if _, ok := is[pv]; !ok {
			moved = append(moved, fmt.Sprintf("volume %s (%s) is gone", pv, was[pv]))
		}
	}
	for _, s := range now.Host.Strays {
		if !slices.Contains(f.Host.Strays, s) {
			moved = append(moved, s+" in the volumes' storage is new")
		}
	}
	return moved
}

// readings gathers what needs no parsing beyond lines, and iproute2's JSON.
const readings = `
echo "hostname=$(uname -n)"; echo "kernel=$(uname -r)"; echo "arch=$(uname -m)"
echo "machine=$(cat /etc/machine-id 2>/dev/null)"
echo "os=$(. /etc/os-release 2>/dev/null; echo "$PRETTY_NAME")"
echo "addresses=$(ip -j addr)"
echo "routes4=$(ip -j -4 route)"
echo "routes6=$(ip -j -6 route)"
echo "tables4=$(ip -j -4 route show table all)"
echo "tables6=$(ip -j -6 route show table all)"
echo "now=$(date +%%s)"
echo "forwarding=$(cat /proc/sys/net/ipv6/conf/all/forwarding 2>/dev/null)"
echo "off=$(cat /proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null)"
PATH=$PATH:/usr/sbin:/sbin
command -v ip6tables >/dev/null || [ -x %s ] || echo "noip6tables="
for i in /proc/sys/net/ipv6/conf/*; do echo "ra=${i##*/} $(cat $i/accept_ra 2>/dev/null)"; done
for d in %s; do
  e=$d; while [ ! -e "$e" ]; do e=$(dirname "$e"); done
  echo "free=$(df -PB1 "$e" | awk 'NR==2{print $4}') $d"
done
true`

func readHost(ctx context.Context, h *remote.Host, in *k3s.Installation) (Host, error) {
	host := Host{Name: h.Name(), AcceptRA: -1, Free: map[string]int64{}}
	bundled := path.Join(in.DataDir, "data/current/bin/aux/ip6tables")
	out, err := h.Output(ctx, fmt.Sprintf(readings, remote.Quote(bundled), remote.Quote(in.DataDir, in.Storage(), remote.StateDir)))
	if err != nil {
		return host, fmt.Errorf("host %s: surveying it: %w", h.Name(), err)
	}
	if err := host.parse(out); err != nil {
		return host, fmt.Errorf("host %s: surveying it: %w", h.Name(), err)
	}
	_, clock, _ := strings.Cut(out, "\nnow=")
	clock, _, _ = strings.Cut(clock, "\n")
	if now, err := strconv.ParseInt(clock, 10, 64); err == nil {
		host.Skew = int(now - time.Now().Unix())
	}
	if err := backup.HostTools(ctx, h); err != nil {
		host.MissingTools = err.Error()
	}
	if host.Disk, err = readDisk(ctx, h, in); err != nil {
		return host, err
	}
	host.Firewall, err = readFirewall(ctx, h)
	return host, err
}

func (host *Host) parse(out string) error {
	ra := map[string]int{}
	out = strings.ToValidUTF8(out, "\uFFFD") // as JSON keeps it
	for line := range strings.SplitSeq(out, "\n") {
		name, value, _ := strings.Cut(line, "=")
		var err error
		switch name {
		case "hostname":
			host.Hostname = value
		case "kernel":
			host.Kernel = value
		case "arch":
			host.Arch = value
		case "machine":
			host.MachineID = value
		case "os":
			host.OS = value
		case "addresses":
			host.Addresses, err = parseAddresses(value)
		case "routes4", "routes6":
			var routes []Route
			routes, err = parseRoutes(value, name == "routes6", false)
			host.Routes = append(host.Routes, routes...)
		case "tables4", "tables6":
			var routes []Route
			routes, err = parseRoutes(value, name == "tables6", true)
			host.PolicyRoutes = append(host.PolicyRoutes, routes...)
		case "forwarding":
			host.Forwarding = value == "1"
		case "off":
			host.IPv6Off = value == "1"
		case "noip6tables":
			host.NoIP6Tables = true
		case "ra":
			var dev string
			v := -1
			fmt.Sscan(value, &dev, &v)
			ra[dev] = v
		case "free":
			bytes, dir, _ := strings.Cut(value, " ")
			n, err := strconv.ParseInt(bytes, 10, 64)
			if err != nil {
				return fmt.Errorf("reading the answer of `df` for %s: %w", dir, err)
			}
			host.Free[dir] = n
		}
		if err != nil {
			return fmt.Errorf("reading the answer of `ip -j` (%s): %w", name, err)
		}
	}
	for _, r := range host.Routes {
		if r.Default() && r.Destination.Addr().Is6() {
			host.Uplink = r.Interface
			host.AcceptRA = -1
			if v, ok := ra[r.Interface]; ok {
				host.AcceptRA = v
			}
			break
		}
	}
	return nil
}

func parseAddresses(js string) ([]Address, error) {
	var ifs []struct {
		Name string `json:"ifname"`
		Info []struct {
			Local      string `json:"local"`
			Bits       int    `json:"prefixlen"`
			Scope      string `json:"scope"`
			Temporary  bool   `json:"temporary"`
			Deprecated bool   `json:"deprecated"`
			Dynamic    bool   `json:"dynamic"`
			DADFailed  bool   `json:"dadfailed"`
		} `json:"addr_info"`
	}
	if strings.TrimSpace(js) == "" {
		return nil, errors.New("it printed nothing: iproute2 4.14 or newer is needed on the host")
	}
	if err := json.Unmarshal([]byte(js), &ifs); err != nil {
		return nil, err
	}
	var out []Address
	for _, i := range ifs {
		for _, a := range i.Info {
			if a.Scope != "global" || a.DADFailed {
				continue // another machine has an address that failed the detection of duplicates
			}
			addr, err := netip.ParseAddr(a.Local)
			if err != nil {
				return nil, err
			}
			prefix := netip.PrefixFrom(addr, a.Bits)
			if !prefix.IsValid() {
				return nil, fmt.Errorf("address %s has a prefix length of %d", a.Local, a.Bits)
			}
			out = append(out, Address{Interface: i.Name, Prefix: prefix, Temporary: a.Temporary, Deprecated: a.Deprecated, Dynamic: a.Dynamic})
		}
	}
	return out, nil
}

// parseRoutes reads those of the main table, or with policy those of further
// ones that lead somewhere else than to the internet.
func parseRoutes(js string, v6, policy bool) ([]Route, error) {
	if strings.TrimSpace(js) == "" {
		return nil, nil
	}
	var rs []struct {
		Type    string `json:"type"`
		Table   string `json:"table"`
		Dst     string `json:"dst"`
		Dev     string `json:"dev"`
		Gateway string `json:"gateway"`
		Via     struct {
			Host string `json:"host"`
		} `json:"via"` // instead of gateway, when it is of the other family
		Protocol string `json:"protocol"`
		Expires  int    `json:"expires"`
		Nexthops []struct {
			Dev     string `json:"dev"`
			Gateway string `json:"gateway"`
		} `json:"nexthops"`
	}
	if err := json.Unmarshal([]byte(js), &rs); err != nil {
		return nil, err
	}
	var out []Route
	for _, r := range rs {
		if r.Dst == "" {
			continue // an entry that a filter emptied
		}
		if policy && (r.Table == "" || r.Table == "main" || r.Table == "local" || r.Dst == "default") {
			continue
		}
		if r.Dev == "" && len(r.Nexthops) > 0 {
			r.Dev, r.Gateway = r.Nexthops[0].Dev, r.Nexthops[0].Gateway
		}
		if r.Gateway == "" {
			r.Gateway = r.Via.Host
		}
		if r.Type == "unicast" {
			r.Type = ""
		}
		var dst netip.Prefix
		switch {
		case r.Dst == "default" && v6:
			dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		case r.Dst == "default":
			dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		case strings.Contains(r.Dst, "/"):
			p, err := netip.ParsePrefix(r.Dst)
			if err != nil {
				return nil, err
			}
			dst = p
		default:
			a, err := netip.ParseAddr(r.Dst)
			if err != nil {
				return nil, err
			}
			dst = netip.PrefixFrom(a, a.BitLen())
		}
		if dst.Addr().IsLinkLocalUnicast() || dst.Addr().IsMulticast() {
			continue
		}
		out = append(out, Route{Destination: dst, Type: r.Type, Interface: r.Dev, Gateway: r.Gateway, Protocol: r.Protocol, Expires: r.Expires})
	}
	return out, nil
}

// The parts of the cluster's survey, each read by itself, as people call them.
const (
	Version      = "the version of Kubernetes"
	Identity     = "the cluster's identity"
	Nodes        = "nodes"
	ServiceCIDRs = "Service ranges"
	Namespaces   = "namespaces"
	TLSSecrets   = "TLS secrets"
	Services     = "Services"
	Volumes      = "volumes"
	Claims       = "claims without a volume"
	Jobs         = "jobs"
	Pods         = "pods"
	Certificates = "certificates of cert-manager"
)

type part struct {
	name string
	read func(context.Context) error
}

// parts are all of the cluster's survey. Each fills in fields of its own, so that they can be
// read at once.
func (f *Facts) parts(h *remote.Host, c *cluster.Client, plan *plans.Plan) []part {
	out := &f.Cluster
	return append([]part{
		{Version, func(context.Context) error {
			v, err := c.Kube.Discovery().ServerVersion()
			if err != nil {
				return fmt.Errorf("cluster: asking the API server for its version: %w", err)
			}
			out.Version = v.GitVersion
			return nil
		}},
		{Identity, func(ctx context.Context) (err error) { out.KubeSystemUID, err = c.Identity(ctx); return err }},
		{Nodes, func(ctx context.Context) error {
			nodes, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("cluster: listing nodes: %w", err)
			}
			for _, n := range nodes.Items {
				out.Nodes = append(out.Nodes, describeNode(n))
			}
			return nil
		}},
		{ServiceCIDRs, func(ctx context.Context) (err error) { out.ServiceCIDRs, err = c.ServiceCIDRs(ctx); return err }},
		{Namespaces, func(ctx context.Context) error {
			namespaces, err := c.Namespaces(ctx)
			for _, n := range namespaces {
				out.Namespaces = append(out.Namespaces, n.Name)
			}
			return err
		}},
		{TLSSecrets, func(ctx context.Context) error {
			secrets, err := c.TLSSecrets(ctx, plan.Spec.Backup.TLSSecrets.Selectors)
			if err != nil {
				return err
			}
			out.TLSSecrets = map[string]string{}
			for _, s := range secrets {
				out.TLSSecrets[s.Namespace+"/"+s.Name] = verify.SecretDigest(&s)
			}
			return nil
		}},
		{Services, func(ctx context.Context) (err error) {
			out.Services, err = c.Services(ctx, plan.Spec.Services.Policy, plan.Spec.Services.Exclude)
			return err
		}},
		{Volumes, func(ctx context.Context) error {
			volumes, err := c.Volumes(ctx)
			if err != nil {
				return err
			}
			return measureVolumes(ctx, h, plan, volumes, out)
		}},
	}, out.Workloads.parts(c, f.K3s, f.Taken)...)
}

func describeNode(n corev1.Node) Node {
	out := Node{Name: n.Name, UID: string(n.UID), PodCIDRs: n.Spec.PodCIDRs}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			out.InternalIPs = append(out.InternalIPs, a.Address)
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	return out
}

func measureVolumes(ctx context.Context, h *remote.Host, plan *plans.Plan, volumes []cluster.Volume, out *Cluster) error {
	var paths []string
	for _, v := range volumes {
		if v.Path != "" {
			paths = append(paths, v.Path)
		}
	}
	answer, err := h.Output(ctx, "for d in "+remote.Quote(paths...)+`; do [ -d "$d" ] || echo "$d"; done`)
	if err != nil {
		return fmt.Errorf("host %s: looking for the volumes' directories: %w", h.Name(), err)
	}
	missing := strings.Split(answer, "\n")
	var measured []Volume
	for _, v := range volumes {
		fv := Volume{Volume: v, Excluded: slices.Contains(plan.Spec.Backup.Volumes.Exclude, v.Namespace+"/"+v.Claim)}
		fv.Missing = fv.Copied() && slices.Contains(missing, v.Path)
		if fv.Copied() && !fv.Missing {
			if fv.Bytes, fv.Files, err = backup.Measure(ctx, h, []string{v.Path}); err != nil {
				return fmt.Errorf("volume %s/%s (%s): measuring %s: %w", v.Namespace, v.Claim, v.PV, path.Clean(v.Path), err)
			}
		}
		measured = append(measured, fv)
	}
	slices.SortFunc(measured, func(a, b Volume) int {
		return strings.Compare(a.Namespace+"/"+a.Claim+a.PV, b.Namespace+"/"+b.Claim+b.PV)
	})
	out.Volumes = measured
	return nil
}

// VolumeBytes is the sum of what is copied.
func (f *Facts) VolumeBytes() (n int64) {
	for _, v := range f.Cluster.Volumes {
		if v.Copied() {
			n += v.Bytes
		}
	}
	return n
}

// Secrets are the TLS secrets' names in order.
func (f *Facts) Secrets() []string { return slices.Sorted(maps.Keys(f.Cluster.TLSSecrets)) }

// NodeIPs are the node's addresses of both families: the one the node has, and
// the steadiest global IPv6 address of the uplink (temporary and deprecated ones
// never: node-ip would go stale). With no such address only IPv4 is returned.
func (f *Facts) NodeIPs() []string {
	var out []string
	for _, n := range f.Cluster.Nodes {
		for _, ip := range n.InternalIPs {
			if a, err := netip.ParseAddr(ip); err == nil && a.Is4() {
				out = append(out, ip)
			}
		}
	}
	if a, ok := f.Host.IPv6(); ok {
		out = append(out, a.String())
	}
	return out
}

// IPv6 is the uplink's global address that a node can keep: static ones are
// preferred to those that router advertisements or DHCP gave, then those that
// the internet can answer to unique local ones.
func (h Host) IPv6() (best netip.Addr, ok bool) {
	rank := -1
	for _, a := range h.Addresses {
		addr := a.Prefix.Addr()
		if a.Interface != h.Uplink || !addr.Is6() || a.Temporary || a.Deprecated {
			continue
		}
		r := 0
		if !a.Dynamic {
			r += 2
		}
		if !addr.IsPrivate() {
			r++
		}
		if r > rank {
			best, rank = addr, r
		}
	}
	return best, rank >= 0
}
