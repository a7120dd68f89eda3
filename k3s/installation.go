package k3s

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Role of a K3s node.
type Role string

const (
	Server Role = "server"
	Agent  Role = "agent"
)

// Datastore kinds.
type Datastore string

const (
	SQLite   Datastore = "SQLite"
	Etcd     Datastore = "embedded etcd"
	External Datastore = "external"
)

// Installation is K3s as it is installed on a host. It holds no secret: values
// of secret settings and of the env files stay on the host.
type Installation struct {
	Role    Role   `json:"role"`
	Version string `json:"version"` // as in v1.34.4+k3s1
	// VersionText is the whole output of k3s --version.
	VersionText  string `json:"versionText"`
	Binary       string `json:"binary"`
	BinarySHA256 string `json:"binarySHA256"`
	BinarySize   int64  `json:"binarySize"` // bytes
	// Links are the names beside the binary that lead to it (kubectl, crictl, ctr).
	Links     []string           `json:"links"`
	Unit      string             `json:"unit"` // path of the unit file
	Active    bool               `json:"active"`
	Disabled  bool               `json:"disabled,omitempty"`   // the unit does not start with the host
	OtherUnit []string           `json:"otherUnits,omitempty"` // further k3s*.service files
	DropIns   []string           `json:"dropIns,omitempty"`    // of the unit
	EnvFiles  []string           `json:"envFiles"`             // those that exist
	EnvNames  []string           `json:"envNames"`             // variables set there, without values
	Config    []string           `json:"config"`               // configuration files that exist
	Settings  map[string]Setting `json:"settings"`             // in force, secrets left out
	DataDir   string             `json:"dataDir"`
	Mounts    []Mount            `json:"mounts,omitempty"` // that K3s is on
	Datastore Datastore          `json:"datastore"`
	Killall   string             `json:"killall"`
	Uninstall string             `json:"uninstall"`
	// AgentFiles are the admin's in the agent directory: image archives, static
	// pods, templates of containerd's configuration.
	AgentFiles []string `json:"agentFiles,omitempty"`
	Manifests  []string `json:"manifests,omitempty"` // the admin's own files in server/manifests
}

// DefaultDataDir is where a server keeps its data unless it is told otherwise.
const DefaultDataDir = "/var/lib/rancher/k3s"

// NotFoundError says that the host has no K3s.
type NotFoundError struct{ Host string }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("host %s: K3s is not installed there (no k3s.service or k3s-agent.service): check spec.hosts[0].address; `systemctl status k3s` on the host shows what systemd knows", e.Host)
}

// Setting returns the values in force of one setting; nil when no source sets it.
func (i *Installation) Setting(key string) []string { return i.Settings[key].Values }

// Families tells the address families of the cluster range in force; K3s's
// default is IPv4 alone.
func (i *Installation) Families() (v4, v6 bool) {
	ranges := i.Setting("cluster-cidr")
	if len(ranges) == 0 {
		return true, false
	}
	for _, r := range ranges {
		if strings.Contains(r, ":") {
			v6 = true
		} else {
			v4 = true
		}
	}
	return v4, v6
}

// Kubeconfig is the admin kubeconfig that the server writes.
func (i *Installation) Kubeconfig() string {
	if v := i.Setting("write-kubeconfig"); len(v) == 1 && v[0] != "" {
		return v[0]
	}
	return "/etc/rancher/k3s/k3s.yaml"
}

// Storage is the local-path provisioner's directory.
func (i *Installation) Storage() string {
	if v := i.Setting("default-local-storage-path"); len(v) == 1 && v[0] != "" {
		return v[0]
	}
	return path.Join(i.DataDir, "storage")
}

// find locates units, binary and scripts in one round trip. Lines are
// NAME=VALUE; a name may come several times.
const find = `
for u in k3s k3s-agent; do
  p=$(systemctl show -p FragmentPath --value $u.service 2>/dev/null)
  [ -n "$p" ] && [ -e "$p" ] && echo "unit=$p" && echo "active=$u $(systemctl is-active $u.service)" && echo "enabled=$u $(systemctl is-enabled $u.service 2>/dev/null)"
  for f in $(systemctl show -p DropInPaths --value $u.service 2>/dev/null); do case $f in */$u.service.d/*) echo "dropin=$f" ;; esac; done
done
for f in /etc/systemd/system/k3s*.service; do [ -e "$f" ] && echo "units=$f"; done
[ -x /sbin/openrc-run ] && [ -e /etc/init.d/k3s ] && echo openrc=1
true`

// Read finds K3s on a host without changing anything there. A host without it
// is a [NotFoundError]; everything else that cannot be understood is an error
// naming the file.
func Read(ctx context.Context, h *remote.Host) (*Installation, error) {
	in := &Installation{Settings: map[string]Setting{}}
	out, err := h.Output(ctx, find)
	if err != nil {
		return nil, fmt.Errorf("host %s: looking for K3s: %w", h.Name(), err)
	}
	facts := lines(out)
	if len(facts["openrc"]) > 0 {
		return nil, fmt.Errorf("host %s: K3s runs under OpenRC: this version migrates systemd hosts only", h.Name())
	}
	if len(facts["unit"]) == 0 {
		return nil, &NotFoundError{Host: h.Name()}
	}
	in.Unit = facts["unit"][0]
	for _, u := range facts["units"] {
		if u != in.Unit {
			in.OtherUnit = append(in.OtherUnit, u)
		}
	}
	in.DropIns = facts["dropin"]
	name := strings.TrimSuffix(path.Base(in.Unit), ".service")
	in.Active = slices.Contains(facts["active"], name+" active")
	in.Disabled = !slices.Contains(facts["enabled"], name+" enabled")

	unit, err := h.ReadFile(ctx, in.Unit)
	if err != nil {
		return nil, fmt.Errorf("host %s: reading the unit of K3s: %w", h.Name(), err)
	}
	words, envFiles := parseUnit(unit)
	if len(words) < 2 {
		return nil, fmt.Errorf("host %s: %s: ExecStart does not start `k3s server` or `k3s agent`", h.Name(), in.Unit)
	}
	in.Binary, in.Role = words[0], Role(words[1])
	if in.Role != Server && in.Role != Agent {
		return nil, fmt.Errorf("host %s: %s: ExecStart starts `k3s %s`: neither server nor agent", h.Name(), in.Unit, words[1])
	}

	conf, existing, err := readConfig(ctx, h, words[2:], envFiles)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name(), err)
	}
	in.EnvFiles = existing
	in.EnvNames = slices.Sorted(maps.Keys(conf.Env))
	for _, f := range conf.Files {
		in.Config = append(in.Config, f.Path)
	}
	settings, err := conf.Effective()
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name(), err)
	}
	in.DataDir = DefaultDataDir
	if v := settings["data-dir"].Values; len(v) == 1 && v[0] != "" {
		in.DataDir = v[0]
	}
	in.Datastore, err = datastore(ctx, h, in.DataDir, settings)
	if err != nil {
		return nil, err
	}
	for key, s := range settings {
		if Secret(key) {
			s.Values = []string{"(secret)"}
		}
		in.Settings[key] = s
	}

	if in.VersionText, err = h.Output(ctx, remote.Quote(in.Binary, "--version")); err != nil {
		return nil, fmt.Errorf("host %s: asking %s for its version: %w", h.Name(), in.Binary, err)
	}
	if f := strings.Fields(in.VersionText); len(f) > 2 && f[0] == "k3s" && f[1] == "version" {
		in.Version = f[2]
	} else {
		return nil, fmt.Errorf("host %s: %s --version answers %q: not K3s", h.Name(), in.Binary, in.VersionText)
	}
	if err := in.readMounts(ctx, h); err != nil {
		return nil, err
	}
	return in, in.readFiles(ctx, h)
}

// readFiles looks at what lies around the binary and in the data directory.
func (i *Installation) readFiles(ctx context.Context, h *remote.Host) error {
	script := fmt.Sprintf(`
b=%s d=%s
echo "sha=$(sha256sum "$b" | cut -d' ' -f1)"
echo "size=$(stat -L -c %%s "$b")"
for n in kubectl crictl ctr; do l=$(dirname "$b")/$n; [ -L "$l" ] && echo "link=$n"; done
for s in killall uninstall agent-uninstall; do f=$(dirname "$b")/k3s-$s.sh; [ -e "$f" ] && echo "$s=$f"; done
for f in "$d"/agent/images/* "$d"/agent/pod-manifests/* "$d"/agent/etc/containerd/*.tmpl; do [ -e "$f" ] && echo "agent=$f"; done
for f in "$d"/server/manifests/*; do [ -e "$f" ] && echo "manifest=$f"; done
true`, remote.Quote(i.Binary), remote.Quote(i.DataDir))
	out, err := h.Output(ctx, script)
	if err != nil {
		return fmt.Errorf("host %s: looking at K3s's files: %w", h.Name(), err)
	}
	f := lines(out)
	i.BinarySHA256 = first(f["sha"])
	fmt.Sscan(first(f["size"]), &i.BinarySize)
	i.Links, i.AgentFiles = f["link"], f["agent"]
	i.Killall, i.Uninstall = first(f["killall"]), first(f["uninstall"])
	if i.Role == Agent {
		i.Uninstall = first(f["agent-uninstall"])
	}
	for _, m := range f["manifest"] {
		if !shipped[path.Base(m)] {
			i.Manifests = append(i.Manifests, m)
		}
	}
	return nil
}

// shipped are the manifests that K3s writes itself at every start.
var shipped = map[string]bool{
	"ccm.yaml": true, "coredns.yaml": true, "local-storage.yaml": true, "rolebindings.yaml": true,
	"runtimes.yaml": true, "traefik.yaml": true, "metrics-server": true,
}

// ReadConfig reads the sources of the server's configuration, secrets and all,
// for an edit: from the host with remote.Host.ReadFile, or from the backup set
// once the host has lost them. The result is not to be logged or kept in the
// clear.
func (i *Installation) ReadConfig(read func(path string) ([]byte, error)) (Config, error) {
	c := Config{Env: map[string]string{}}
	unit, err := read(i.Unit)
	if err != nil {
		return c, fmt.Errorf("reading the unit of K3s: %w", err)
	}
	words, _ := parseUnit(unit)
	if len(words) < 2 {
		return c, fmt.Errorf("%s: ExecStart has no command", i.Unit)
	}
	c.Args = words[2:]
	for _, f := range i.EnvFiles {
		data, err := read(f)
		if err != nil {
			return c, fmt.Errorf("reading K3s's env file: %w", err)
		}
		maps.Copy(c.Env, parseEnv(data))
	}
	for _, f := range i.Config {
		data, err := read(f)
		if err != nil {
			return c, fmt.Errorf("reading K3s's configuration: %w", err)
		}
		c.Files = append(c.Files, ConfigFile{Path: f, Data: data})
	}
	return c, nil
}

// Wants are the settings of a dual-stack server.
func Wants(n plans.Network, nodeIPs []string, disable []string) []Want {
	masq := n.FlannelIPv6Masq == nil || *n.FlannelIPv6Masq
	wants := []Want{
		{Key: "cluster-cidr", Values: n.ClusterCIDR},
		{Key: "service-cidr", Values: n.ServiceCIDR},
		{Key: "node-ip", Values: nodeIPs},
		{Key: "flannel-ipv6-masq", Values: []string{strconv.FormatBool(masq)}},
	}
	if len(n.ClusterDNS) > 0 {
		wants = append(wants, Want{Key: "cluster-dns", Values: n.ClusterDNS})
	}
	if len(disable) > 0 {
		wants = append(wants, Want{Key: "disable", Values: disable, Add: true})
	}
	return wants
}

// readConfig also returns which of the unit's env files exist.
func readConfig(ctx context.Context, h *remote.Host, args, envFiles []string) (Config, []string, error) {
	c := Config{Args: args, Env: map[string]string{}}
	var existing []string
	for _, f := range envFiles {
		data, err := h.ReadFile(ctx, f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, nil, fmt.Errorf("reading K3s's env file: %w", err)
		}
		existing = append(existing, f)
		maps.Copy(c.Env, parseEnv(data))
	}
	main := c.main()
	out, err := h.Output(ctx, fmt.Sprintf(`for f in %[1]s %[1]s.d/*.yaml %[1]s.d/*.yml; do [ -e "$f" ] && echo "$f"; done; true`, remote.Quote(main)))
	if err != nil {
		return c, nil, fmt.Errorf("listing K3s's configuration files: %w", err)
	}
	for f := range strings.SplitSeq(out, "\n") {
		if f == "" {
			continue
		}
		data, err := h.ReadFile(ctx, f)
		if err != nil {
			return c, nil, fmt.Errorf("reading K3s's configuration: %w", err)
		}
		c.Files = append(c.Files, ConfigFile{Path: f, Data: data})
	}
	sortFiles(c.Files, main)
	return c, existing, nil
}

// datastore follows K3s's own choice: an endpoint that is not SQLite's is
// external; else a directory server/db/etcd or cluster-init means embedded etcd;
// else SQLite.
func datastore(ctx context.Context, h *remote.Host, dataDir string, settings map[string]Setting) (Datastore, error) {
	if v := settings["datastore-endpoint"].Values; len(v) == 1 && v[0] != "" && !strings.HasPrefix(v[0], "sqlite") {
		return External, nil
	}
	etcd, err := h.Output(ctx, "[ -d "+remote.Quote(path.Join(dataDir, "server/db/etcd"))+" ] && echo yes; true")
	if err != nil {
		return "", fmt.Errorf("host %s: looking for the datastore of K3s: %w", h.Name(), err)
	}
	if etcd == "yes" || slices.Equal(settings["cluster-init"].Values, []string{"true"}) {
		return Etcd, nil
	}
	return SQLite, nil
}

// parseUnit returns the words of ExecStart and the env files in the order in
// which systemd reads them.
func parseUnit(unit []byte) (exec, envFiles []string) {
	text := strings.ReplaceAll(string(unit), "\\\n", " ")
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		name, v, _ := strings.Cut(line, "=")
		v = strings.TrimSpace(v)
		switch strings.TrimSpace(name) {
		case "ExecStart":
			exec = splitWords(strings.TrimLeft(v, "-@:+!"))
		case "EnvironmentFile":
			v = strings.TrimPrefix(v, "-")
			envFiles = append(envFiles, strings.ReplaceAll(v, "%N", "k3s"))
		}
	}
	return exec, envFiles
}

// lines parses NAME=VALUE output.
func lines(out string) map[string][]string {
	m := map[string][]string{}
	for line := range strings.SplitSeq(out, "\n") {
		if name, value, ok := strings.Cut(line, "="); ok {
			m[name] = append(m[name], value)
		}
	}
	return m
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
