package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	configDir         = "/etc/rancher/k3s"
	defaultConfigFile = configDir + "/config.yaml"
	defaultKubeconfig = configDir + "/k3s.yaml"
	defaultDataDir    = "/var/lib/rancher/k3s"
)

// Config is what the server runs with, after all sources are merged.
type Config struct {
	ConfigFile        string
	DataDir           string
	Debug             bool
	Token             string
	TokenFile         string
	ClusterInit       bool
	DatastoreEndpoint string
	ClusterCIDR       []string
	ServiceCIDR       []string
	ClusterDNS        []string
	ClusterDomain     string
	NodePortRange     string
	NodeIP            []string
	NodeExternalIP    []string
	NodeName          string
	NodeLabels        []string
	NodeTaints        []string
	ResolvConf        string
	FlannelBackend    string
	FlannelIPv6Masq   bool
	FlannelIface      string
	Disable           []string
	DisableNetPolicy  bool
	DisableCloud      bool
	DisableHelm       bool
	DisableKubeProxy  bool
	TLSSAN            []string
	Kubeconfig        string
	KubeconfigMode    string
	KubeletArgs       []string
	APIServerArgs     []string
	ControllerArgs    []string
	SchedulerArgs     []string
	ProxyArgs         []string

	// Given is what the configuration files and the flags set, as arguments: K3s
	// shows it on the Node.
	Given []string
}

// option binds a flag, which is also a configuration key, to its field.
type option struct {
	name  string
	short string
	env   string
	usage string
	to    any // *string, *bool or *[]string
	// whole keeps commas: kubelet-arg and its like take one argument each.
	whole bool
}

func (c *Config) options() []option {
	return []option{
		{name: "config", short: "c", env: "K3S_CONFIG_FILE", usage: "configuration file", to: &c.ConfigFile},
		{name: "debug", env: "K3S_DEBUG", usage: "more log", to: &c.Debug},
		{name: "data-dir", short: "d", env: "K3S_DATA_DIR", usage: "directory for all state", to: &c.DataDir},
		{name: "token", short: "t", env: "K3S_TOKEN", usage: "shared secret; key of the bootstrap data in the datastore", to: &c.Token},
		{name: "token-file", env: "K3S_TOKEN_FILE", usage: "file with the token", to: &c.TokenFile},
		{name: "cluster-init", env: "K3S_CLUSTER_INIT", usage: "embedded etcd; refused by the lab", to: &c.ClusterInit},
		{name: "datastore-endpoint", env: "K3S_DATASTORE_ENDPOINT", usage: "empty or sqlite; all else is refused by the lab", to: &c.DatastoreEndpoint},
		{name: "cluster-cidr", usage: "pod ranges", to: &c.ClusterCIDR},
		{name: "service-cidr", usage: "service ranges", to: &c.ServiceCIDR},
		{name: "cluster-dns", usage: "addresses of CoreDNS's Service; default index 10 of each service range", to: &c.ClusterDNS},
		{name: "cluster-domain", usage: "DNS domain", to: &c.ClusterDomain},
		{name: "service-node-port-range", usage: "ports of NodePort Services", to: &c.NodePortRange},
		{name: "node-ip", short: "i", usage: "addresses of this node", to: &c.NodeIP},
		{name: "node-external-ip", usage: "external addresses of this node", to: &c.NodeExternalIP},
		{name: "node-name", env: "K3S_NODE_NAME", usage: "name of this node", to: &c.NodeName},
		{name: "node-label", usage: "label of this node", to: &c.NodeLabels, whole: true},
		{name: "node-taint", usage: "taint of this node", to: &c.NodeTaints, whole: true},
		{name: "resolv-conf", env: "K3S_RESOLV_CONF", usage: "resolv.conf for pods", to: &c.ResolvConf},
		{name: "flannel-backend", usage: "none leaves the pod network out; all others are the lab's bridge", to: &c.FlannelBackend},
		{name: "flannel-ipv6-masq", usage: "masquerade IPv6 traffic of pods", to: &c.FlannelIPv6Masq},
		{name: "flannel-iface", usage: "interface whose addresses the node takes", to: &c.FlannelIface},
		{name: "disable", usage: "packaged components not to deploy", to: &c.Disable},
		{name: "disable-network-policy", usage: "the lab has no network policy controller: accepted", to: &c.DisableNetPolicy},
		{name: "disable-cloud-controller", usage: "the lab has no cloud controller: accepted", to: &c.DisableCloud},
		{name: "disable-helm-controller", usage: "the lab has no Helm controller: accepted", to: &c.DisableHelm},
		{name: "disable-kube-proxy", usage: "run no kube-proxy", to: &c.DisableKubeProxy},
		{name: "tls-san", usage: "further names and addresses of the API's certificate", to: &c.TLSSAN},
		{name: "write-kubeconfig", short: "o", env: "K3S_KUBECONFIG_OUTPUT", usage: "where the administrator's kubeconfig goes", to: &c.Kubeconfig},
		{name: "write-kubeconfig-mode", env: "K3S_KUBECONFIG_MODE", usage: "its mode, octal", to: &c.KubeconfigMode},
		{name: "kubelet-arg", usage: "argument for kubelet", to: &c.KubeletArgs, whole: true},
		{name: "kube-apiserver-arg", usage: "argument for kube-apiserver", to: &c.APIServerArgs, whole: true},
		{name: "kube-controller-manager-arg", usage: "argument for kube-controller-manager", to: &c.ControllerArgs, whole: true},
		{name: "kube-scheduler-arg", usage: "argument for kube-scheduler", to: &c.SchedulerArgs, whole: true},
		{name: "kube-proxy-arg", usage: "argument for kube-proxy", to: &c.ProxyArgs, whole: true},
	}
}

// values holds one source's settings: option name to values, in order.
type values map[string][]string

var errHelp = flag.ErrHelp

// loadConfig merges the sources, weakest first: the environment, the configuration
// file, its drop-ins in name order, the flags. K3s turns the files into arguments in
// front of its own: so they beat the environment, and a flag that takes a list adds to
// theirs. Among files the later replaces a list, unless its key+ appends.
func loadConfig(args []string, env func(string) (string, bool)) (*Config, error) {
	cfg := &Config{
		ConfigFile:     defaultConfigFile,
		DataDir:        defaultDataDir,
		ClusterDomain:  "cluster.local",
		NodePortRange:  "30000-32767",
		FlannelBackend: "vxlan",
		Kubeconfig:     defaultKubeconfig,
		KubeconfigMode: "0600",
	}
	options := cfg.options()
	flags, err := fromFlags(options, args)
	if err != nil {
		return nil, err
	}
	environment := fromEnvironment(options, env)
	explicit := false
	for _, source := range []values{environment, flags} {
		if v, ok := source["config"]; ok {
			cfg.ConfigFile, explicit = v[len(v)-1], true
		}
	}
	files, err := fromFiles(options, cfg.ConfigFile, explicit)
	if err != nil {
		return nil, err
	}
	for _, o := range options {
		if _, ok := flags[o.name]; ok {
			continue
		}
		for _, v := range files[o.name] {
			cfg.Given = append(cfg.Given, "--"+o.name, v)
		}
	}
	cfg.Given = append(cfg.Given, args...)
	merged := environment
	maps.Copy(merged, files)
	for _, o := range options {
		if v, ok := flags[o.name]; ok {
			if _, list := o.to.(*[]string); list {
				v = append(slices.Clone(files[o.name]), v...)
			}
			merged[o.name] = v
		}
		v, ok := merged[o.name]
		if !ok {
			continue
		}
		if err := o.set(v); err != nil {
			return nil, fmt.Errorf("read the setting %s: %w", o.name, err)
		}
	}
	return cfg, nil
}

func (o option) set(v []string) error {
	switch to := o.to.(type) {
	case *string:
		*to = v[len(v)-1]
	case *bool:
		b, err := strconv.ParseBool(v[len(v)-1])
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", v[len(v)-1])
		}
		*to = b
	case *[]string:
		*to = nil
		for _, s := range v {
			if o.whole {
				*to = append(*to, s)
				continue
			}
			for part := range strings.SplitSeq(s, ",") {
				if part = strings.TrimSpace(part); part != "" {
					*to = append(*to, part)
				}
			}
		}
	}
	return nil
}

// collector is a flag's value that only notes what was given.
type collector struct {
	into values
	name string
	bool bool
}

func (c collector) String() string { return "" }
func (c collector) Set(s string) error {
	c.into[c.name] = append(c.into[c.name], s)
	return nil
}
func (c collector) IsBoolFlag() bool { return c.bool }

func fromFlags(options []option, args []string) (values, error) {
	got := values{}
	fs := flag.NewFlagSet("server", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for _, o := range options {
		_, isBool := o.to.(*bool)
		fs.Var(collector{got, o.name, isBool}, o.name, o.usage)
		if o.short != "" {
			fs.Var(collector{got, o.name, isBool}, o.short, o.usage)
		}
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, errHelp
		}
		return nil, fmt.Errorf("%w; k3s server --help lists the flags of the lab's node", err)
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: the server takes flags only", fs.Arg(0))
	}
	return got, nil
}

func fromEnvironment(options []option, lookup func(string) (string, bool)) values {
	got := values{}
	for _, o := range options {
		if o.env == "" {
			continue
		}
		if v, ok := lookup(o.env); ok && v != "" {
			got[o.name] = []string{v}
		}
	}
	return got
}

func fromFiles(options []option, path string, mustExist bool) (values, error) {
	canonical := map[string]string{}
	for _, o := range options {
		canonical[o.name] = o.name
		if o.short != "" {
			canonical[o.short] = o.name
		}
	}
	merged := values{}
	files := []string{path}
	dropIns, err := filepath.Glob(path + ".d/*")
	if err != nil {
		return nil, fmt.Errorf("list %s.d: %w", path, err)
	}
	slices.Sort(dropIns)
	for _, f := range dropIns {
		if ext := filepath.Ext(f); ext == ".yaml" || ext == ".yml" {
			files = append(files, f)
		}
	}
	for i, file := range files {
		data, err := os.ReadFile(file)
		if i == 0 && !mustExist && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		if err := mergeFile(merged, canonical, file, data); err != nil {
			return nil, err
		}
	}
	return merged, nil
}

func mergeFile(into values, canonical map[string]string, file string, data []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("read the configuration %s: %w", file, err)
	}
	if len(doc.Content) == 0 {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("read the configuration %s: it is not a mapping of keys to values", file)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, appends := strings.CutSuffix(root.Content[i].Value, "+")
		name, ok := canonical[key]
		if !ok {
			logf("warning", "Unknown flag --%s found in %s, skipping", key, filepath.Base(file))
			continue
		}
		var v []string
		switch node := root.Content[i+1]; node.Kind {
		case yaml.ScalarNode:
			v = []string{node.Value}
		case yaml.SequenceNode:
			for _, item := range node.Content {
				if item.Kind != yaml.ScalarNode {
					return fmt.Errorf("read the configuration %s: %s holds more than plain values", file, key)
				}
				v = append(v, item.Value)
			}
		default:
			return fmt.Errorf("read the configuration %s: %s is neither a value nor a list", file, key)
		}
		if len(v) == 0 {
			delete(into, name)
			continue
		}
		if appends {
			v = append(slices.Clone(into[name]), v...)
		}
		into[name] = v
	}
	return nil
}

func serverUsage() string {
	var b strings.Builder
	b.WriteString("NAME:\n   k3s server - run the lab's node\n\nOPTIONS:\n")
	for _, o := range new(Config).options() {
		name := "--" + o.name
		if o.short != "" {
			name += ", -" + o.short
		}
		if o.env != "" {
			o.usage += " [$" + o.env + "]"
		}
		fmt.Fprintf(&b, "   %-34s %s\n", name, o.usage)
	}
	return b.String()
}
