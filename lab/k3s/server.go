package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/scrypt"
)

// paths is where everything lies; all of it is where K3s has it.
type paths struct {
	data, server, tls, cred, db string
	agent, images, storage      string
	cniConf, certsD             string
	containerdRoot              string
	containerdConfig            string
	kubeletConfig               string
	kineSocket                  string
}

func pathsBelow(data string) paths {
	server, agent := filepath.Join(data, "server"), filepath.Join(data, "agent")
	return paths{
		data: data, server: server, agent: agent,
		tls: filepath.Join(server, "tls"), cred: filepath.Join(server, "cred"), db: filepath.Join(server, "db"),
		images: filepath.Join(agent, "images"), storage: filepath.Join(data, "storage"),
		cniConf:          filepath.Join(agent, "etc/cni/net.d"),
		certsD:           filepath.Join(agent, "etc/containerd/certs.d"),
		containerdRoot:   filepath.Join(agent, "containerd"),
		containerdConfig: filepath.Join(agent, "etc/containerd/config.toml"),
		kubeletConfig:    filepath.Join(agent, "etc/kubelet.conf.d/00-k3s-defaults.conf"),
		kineSocket:       filepath.Join(server, "kine.sock"),
	}
}

// cniFile bears flannel's name: it is where tools look for the pod network.
func (p paths) cniFile() string { return filepath.Join(p.cniConf, "10-flannel.conflist") }

// serve runs the node until ctx ends or a part of it dies.
func serve(ctx context.Context, cfg *Config) error {
	if os.Geteuid() != 0 {
		return errors.New("must run as root")
	}
	if err := refuse(cfg); err != nil {
		return err
	}
	if cfg.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find this node's name: %w", err)
		}
		cfg.NodeName = name
	}
	cfg.NodeName = strings.ToLower(cfg.NodeName)
	n, err := resolveNetwork(cfg, detectAddresses)
	if err != nil {
		return err
	}
	mode, err := strconv.ParseUint(cfg.KubeconfigMode, 8, 32)
	if err != nil {
		return fmt.Errorf("write-kubeconfig-mode %q is not octal", cfg.KubeconfigMode)
	}
	logf("info", "Starting k3s %s (the lab's stand-in)", version)
	p := pathsBelow(cfg.DataDir)
	bin, err := prepareDirectories(p)
	if err != nil {
		return err
	}
	want4, want6 := wanted(n.Cluster)
	contained := insideContainer()
	if err := prepareHost(want4, want6, contained); err != nil {
		return err
	}
	parts := newChildren(bin)
	defer parts.stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-parts.exited:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	s := &server{cfg, n, p, parts, mode, contained}
	if err := s.start(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return cause
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	logf("info", "Stopping; containers go on running")
	return nil
}

// refuse names the settings of K3s that the lab's node cannot honour.
func refuse(cfg *Config) error {
	if cfg.ClusterInit {
		return errors.New("cluster-init: the lab's node has no embedded etcd; it keeps its state in SQLite")
	}
	if e := cfg.DatastoreEndpoint; e != "" && e != "sqlite" && e != "sqlite://" {
		return errors.New("datastore-endpoint: the lab's node keeps its state in SQLite only; leave it empty")
	}
	return nil
}

func prepareDirectories(p paths) (bin string, err error) {
	for _, dir := range []string{p.db, p.tls, p.cred} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", fmt.Errorf("prepare the data directory: %w", err)
		}
	}
	for _, dir := range []string{p.images, p.containerdRoot, p.cniConf, filepath.Join(p.agent, "pod-manifests"), "/run/k3s/containerd", "/etc/rancher/node", "/var/log/pods"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", fmt.Errorf("prepare the data directory: %w", err)
		}
	}
	if err := os.MkdirAll(p.storage, 0o701); err != nil {
		return "", fmt.Errorf("prepare the data directory: %w", err)
	}
	if bin, err = unpack(filepath.Join(p.data, "data")); err != nil {
		return "", err
	}
	if err := copyShim(bin); err != nil {
		return "", err
	}
	current := filepath.Join(p.data, "data", "current")
	if target, err := os.Readlink(current); err != nil || target != filepath.Dir(bin) {
		if err := os.Remove(current); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("link the unpacked payload: %w", err)
		}
		if err := os.Symlink(filepath.Dir(bin), current); err != nil {
			return "", fmt.Errorf("link the unpacked payload: %w", err)
		}
	}
	// Children find each other, and containerd its shim, in the payload first.
	return bin, os.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

// server is one run of the node.
type server struct {
	cfg       *Config
	net       *network
	paths     paths
	parts     *children
	kubeMode  uint64
	contained bool
}

// start brings the parts up in their order and tells systemd when the API
// answers and the node's agent runs.
func (s *server) start(ctx context.Context) error {
	// containerd and the images need nothing of the control plane.
	containerdReady := make(chan error, 1)
	if err := s.startContainerd(); err != nil {
		return err
	}
	go func() {
		err := waitContainerd(ctx)
		if err == nil {
			err = importImages(ctx, s.paths, filepath.Join(filepath.Dir(s.parts.bin), "images"))
		}
		containerdReady <- err
	}()
	if err := s.startDatastore(ctx); err != nil {
		return err
	}
	if err := s.certificates(); err != nil {
		return err
	}
	if err := s.startAPIServer(); err != nil {
		return err
	}
	tls := func(name string) string { return filepath.Join(s.paths.tls, name) }
	api, err := newAPI(tls("server-ca.crt"), tls("client-admin.crt"), tls("client-admin.key"))
	if err != nil {
		return err
	}
	limit, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("the API server is not ready after 3 minutes"))
	defer cancel()
	if err := api.ready(limit); err != nil {
		return err
	}
	logf("info", "Kube API server is now running")
	// These give up when they find no API server.
	if err := s.startControllers(); err != nil {
		return err
	}
	if err := s.nodePassword(ctx, api); err != nil {
		return err
	}
	if err := s.publishServing(ctx, api); err != nil {
		return err
	}
	if err := <-containerdReady; err != nil {
		return err
	}
	if err := s.startAgent(); err != nil {
		return err
	}
	d := &deployer{
		kubectl: filepath.Join(s.parts.bin, "kubectl"), kubeconfig: filepath.Join(s.paths.cred, "admin.kubeconfig"),
		dir: filepath.Join(s.paths.server, "manifests"), disabled: s.cfg.Disable, applied: map[string][32]byte{},
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("make the manifests' directory: %w", err)
	}
	if err := d.stage(s.cfg, s.net, s.paths); err != nil {
		return err
	}
	go d.watch(ctx)
	if err := podNetwork(ctx, api, s.cfg, s.net, s.paths); err != nil {
		return err
	}
	if err := s.describeNode(ctx, api); err != nil {
		return err
	}
	logf("info", "k3s is up and running")
	return notify("READY=1")
}

func (s *server) startContainerd() error {
	if err := configureContainerd(s.paths, s.contained); err != nil {
		return err
	}
	if err := forgetNetwork(s.paths); err != nil {
		return err
	}
	// As in K3s, containerd logs to a file of its own.
	log, err := os.OpenFile(filepath.Join(s.paths.containerdRoot, "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open containerd's log: %w", err)
	}
	defer log.Close()
	return s.parts.run(log, "containerd", "--config", s.paths.containerdConfig)
}

// startDatastore runs kine, and settles the identity with what it holds.
func (s *server) startDatastore(ctx context.Context) error {
	if err := os.Remove(s.paths.kineSocket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the datastore's old socket: %w", err)
	}
	err := s.parts.run(os.Stderr, "kine",
		"--endpoint", "sqlite://"+filepath.Join(s.paths.db, "state.db")+"?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate",
		"--listen-address", "unix://"+s.paths.kineSocket, "--metrics-bind-address", "0")
	if err != nil {
		return err
	}
	d, err := openDatastore(ctx, "unix://"+s.paths.kineSocket)
	if err != nil {
		return err
	}
	defer d.close()
	limit, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the datastore does not answer after a minute"))
	defer cancel()
	if err := d.wait(limit); err != nil {
		return err
	}
	_, err = ensureIdentity(limit, d, s.cfg, s.net, s.paths.server)
	return err
}

// certificates makes every certificate and kubeconfig that the parts need.
func (s *server) certificates() error {
	now := time.Now()
	tls := func(name string) string { return filepath.Join(s.paths.tls, name) }
	agent := func(name string) string { return filepath.Join(s.paths.agent, name) }
	load := func(name string) (*authority, error) { return loadAuthority(tls(name+".crt"), tls(name+".key")) }
	clientCA, err := load("client-ca")
	if err != nil {
		return err
	}
	serverCA, err := load("server-ca")
	if err != nil {
		return err
	}
	frontCA, err := load("request-header-ca")
	if err != nil {
		return err
	}
	nodeIPs := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, a := range s.net.Node {
		nodeIPs = append(nodeIPs, a.AsSlice())
	}
	apiIPs, apiNames := nodeIPs, []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + s.cfg.ClusterDomain, "localhost", s.cfg.NodeName}
	for _, p := range s.net.Service {
		apiIPs = append(apiIPs, nth(p, 1).AsSlice())
	}
	for _, san := range append(s.cfg.TLSSAN, s.cfg.NodeExternalIP...) {
		if a, err := netip.ParseAddr(san); err == nil {
			apiIPs = append(apiIPs, a.AsSlice())
		} else {
			apiNames = append(apiNames, san)
		}
	}
	for _, c := range []struct {
		by *authority
		leaf
	}{
		{clientCA, leaf{base: tls("client-admin"), cn: "system:admin", org: "system:masters"}},
		{clientCA, leaf{base: tls("client-supervisor"), cn: "system:k3s-supervisor", org: "system:masters"}},
		{clientCA, leaf{base: tls("client-controller"), cn: "system:kube-controller-manager"}},
		{clientCA, leaf{base: tls("client-scheduler"), cn: "system:kube-scheduler"}},
		{clientCA, leaf{base: tls("client-kube-apiserver"), cn: "system:apiserver", org: "system:masters"}},
		{clientCA, leaf{base: agent("client-kube-proxy"), cn: "system:kube-proxy"}},
		{clientCA, leaf{base: agent("client-kubelet"), cn: "system:node:" + s.cfg.NodeName, org: "system:nodes"}},
		{frontCA, leaf{base: tls("client-auth-proxy"), cn: "system:auth-proxy"}},
		{serverCA, leaf{base: tls("serving-kube-apiserver"), cn: "kube-apiserver", server: true, ips: apiIPs, names: apiNames}},
		{serverCA, leaf{base: agent("serving-kubelet"), cn: s.cfg.NodeName, server: true, ips: nodeIPs, names: []string{s.cfg.NodeName, "localhost"}}},
	} {
		if err := c.by.ensure(c.leaf, now); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{
		tls("service.key"):   tls("service.current.key"),
		tls("client-ca.crt"): agent("client-ca.crt"),
		tls("server-ca.crt"): agent("server-ca.crt"),
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
		if err := write(to, data, 0o600); err != nil {
			return err
		}
	}
	for path, cert := range map[string]string{
		filepath.Join(s.paths.cred, "admin.kubeconfig"):      tls("client-admin"),
		filepath.Join(s.paths.cred, "controller.kubeconfig"): tls("client-controller"),
		filepath.Join(s.paths.cred, "scheduler.kubeconfig"):  tls("client-scheduler"),
		agent("kubelet.kubeconfig"):                          agent("client-kubelet"),
		agent("kubeproxy.kubeconfig"):                        agent("client-kube-proxy"),
		s.cfg.Kubeconfig:                                     tls("client-admin"),
	} {
		data, err := kubeconfig(tls("server-ca.crt"), cert+".crt", cert+".key")
		if err != nil {
			return err
		}
		mode := os.FileMode(0o600)
		if path == s.cfg.Kubeconfig {
			mode = os.FileMode(s.kubeMode)
		}
		if err := write(path, data, mode); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) startAPIServer() error {
	tls := func(name string) string { return filepath.Join(s.paths.tls, name) }
	issuer := "https://kubernetes.default.svc." + s.cfg.ClusterDomain
	return s.component("kube-apiserver", []string{
		"--advertise-address=" + s.net.Node[0].String(),
		"--allow-privileged=true",
		"--anonymous-auth=false",
		"--api-audiences=" + issuer + ",k3s",
		"--authorization-mode=Node,RBAC",
		"--cert-dir=" + tls("temporary-certs"),
		"--client-ca-file=" + tls("client-ca.crt"),
		"--enable-admission-plugins=NodeRestriction",
		"--enable-aggregator-routing=true",
		"--etcd-servers=unix://" + s.paths.kineSocket,
		"--kubelet-certificate-authority=" + tls("server-ca.crt"),
		"--kubelet-client-certificate=" + tls("client-kube-apiserver.crt"),
		"--kubelet-client-key=" + tls("client-kube-apiserver.key"),
		"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
		"--profiling=false",
		"--proxy-client-cert-file=" + tls("client-auth-proxy.crt"),
		"--proxy-client-key-file=" + tls("client-auth-proxy.key"),
		"--requestheader-allowed-names=system:auth-proxy",
		"--requestheader-client-ca-file=" + tls("request-header-ca.crt"),
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--secure-port=6443",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + tls("service.key"),
		"--service-account-signing-key-file=" + tls("service.current.key"),
		"--service-cluster-ip-range=" + join(s.net.Service),
		"--service-node-port-range=" + s.cfg.NodePortRange,
		"--storage-backend=etcd3",
		"--tls-cert-file=" + tls("serving-kube-apiserver.crt"),
		"--tls-private-key-file=" + tls("serving-kube-apiserver.key"),
	}, s.cfg.APIServerArgs)
}

func (s *server) startControllers() error {
	tls := func(name string) string { return filepath.Join(s.paths.tls, name) }
	cred := func(name string) string { return filepath.Join(s.paths.cred, name) }
	err := s.component("kube-controller-manager", []string{
		"--allocate-node-cidrs=true",
		"--authentication-kubeconfig=" + cred("controller.kubeconfig"),
		"--authorization-kubeconfig=" + cred("controller.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--cluster-cidr=" + join(s.net.Cluster),
		"--cluster-signing-cert-file=" + tls("client-ca.crt"),
		"--cluster-signing-key-file=" + tls("client-ca.key"),
		"--configure-cloud-routes=false",
		"--kubeconfig=" + cred("controller.kubeconfig"),
		"--leader-elect=false",
		"--profiling=false",
		"--root-ca-file=" + tls("server-ca.crt"),
		"--service-account-private-key-file=" + tls("service.current.key"),
		"--service-cluster-ip-range=" + join(s.net.Service),
		"--use-service-account-credentials=true",
	}, s.cfg.ControllerArgs)
	if err != nil {
		return err
	}
	return s.component("kube-scheduler", []string{
		"--authentication-kubeconfig=" + cred("scheduler.kubeconfig"),
		"--authorization-kubeconfig=" + cred("scheduler.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--kubeconfig=" + cred("scheduler.kubeconfig"),
		"--leader-elect=false",
		"--profiling=false",
	}, s.cfg.SchedulerArgs)
}

func (s *server) startAgent() error {
	if err := s.writeKubeletConfig(); err != nil {
		return err
	}
	kubelet := []string{
		"--config=" + s.paths.kubeletConfig,
		"--kubeconfig=" + filepath.Join(s.paths.agent, "kubelet.kubeconfig"),
		"--hostname-override=" + s.cfg.NodeName,
		"--node-ip=" + join(s.net.Node),
		"--root-dir=/var/lib/kubelet",
	}
	if len(s.cfg.NodeLabels) > 0 {
		kubelet = append(kubelet, "--node-labels="+strings.Join(s.cfg.NodeLabels, ","))
	}
	if len(s.cfg.NodeTaints) > 0 {
		kubelet = append(kubelet, "--register-with-taints="+strings.Join(s.cfg.NodeTaints, ","))
	}
	if err := s.component("kubelet", kubelet, s.cfg.KubeletArgs); err != nil {
		return err
	}
	if s.cfg.DisableKubeProxy {
		return nil
	}
	proxy := []string{
		"--cluster-cidr=" + join(s.net.Cluster),
		"--hostname-override=" + s.cfg.NodeName,
		"--kubeconfig=" + filepath.Join(s.paths.agent, "kubeproxy.kubeconfig"),
		"--proxy-mode=iptables",
		"--healthz-bind-address=127.0.0.1:10256",
		"--metrics-bind-address=127.0.0.1:10249",
		"--conntrack-max-per-core=0",
		"--conntrack-tcp-timeout-established=0",
		"--conntrack-tcp-timeout-close-wait=0",
	}
	return s.component("kube-proxy", proxy, s.cfg.ProxyArgs)
}

func (s *server) writeKubeletConfig() error {
	type object = map[string]any
	agent := func(name string) string { return filepath.Join(s.paths.agent, name) }
	resolvConf, err := s.resolvConf()
	if err != nil {
		return err
	}
	config := object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": object{
			"anonymous": object{"enabled": false},
			"webhook":   object{"enabled": true},
			"x509":      object{"clientCAFile": agent("client-ca.crt")},
		},
		"authorization":            object{"mode": "Webhook"},
		"cgroupDriver":             "cgroupfs",
		"clusterDNS":               strings.Split(join(s.net.DNS), ","),
		"clusterDomain":            s.cfg.ClusterDomain,
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"evictionHard":             object{"imagefs.available": "5%", "nodefs.available": "5%"},
		"evictionMinimumReclaim":   object{"imagefs.available": "10%", "nodefs.available": "10%"},
		"failSwapOn":               false,
		"providerID":               "k3s://" + s.cfg.NodeName,
		"resolvConf":               resolvConf,
		"serializeImagePulls":      false,
		"staticPodPath":            agent("pod-manifests"),
		"tlsCertFile":              agent("serving-kubelet.crt"),
		"tlsPrivateKeyFile":        agent("serving-kubelet.key"),
	}
	if s.contained {
		data, err := os.ReadFile("/proc/1/cgroup")
		if err != nil {
			return fmt.Errorf("find the host container's cgroup: %w", err)
		}
		own := ownCgroup(string(data))
		if err := completeCgroup(own); err != nil {
			return err
		}
		config["cgroupRoot"] = own
		config["failCgroupV1"] = false
		config["featureGates"] = object{"KubeletInUserNamespace": true}
		// The disk is the machine's, shared with all else on it.
		config["evictionHard"] = object{"imagefs.available": "1%", "nodefs.available": "1%"}
		delete(config, "evictionMinimumReclaim")
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("write kubelet's configuration: %w", err)
	}
	return write(s.paths.kubeletConfig, data, 0o600)
}

// resolvConf gives pods the host's name servers. Where the host has only a
// loopback one, which no pod reaches, K3s puts a public one in its place.
func (s *server) resolvConf() (string, error) {
	if s.cfg.ResolvConf != "" {
		return s.cfg.ResolvConf, nil
	}
	const host = "/etc/resolv.conf"
	data, err := os.ReadFile(host)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read %s: %w", host, err)
	}
	if usableResolvConf(string(data)) {
		return host, nil
	}
	own := filepath.Join(s.paths.agent, "etc/resolv.conf")
	logf("warning", "Host resolv.conf includes loopback or no nameservers - kubelet will use autogenerated resolv.conf with nameserver 8.8.8.8")
	return own, write(own, []byte("nameserver 8.8.8.8\n"), 0o644)
}

func usableResolvConf(text string) bool {
	usable := false
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		host, _, _ := strings.Cut(f[1], "%")
		a, err := netip.ParseAddr(host)
		if err != nil || a.IsLoopback() {
			return false
		}
		usable = true
	}
	return usable
}

// component starts a part of Kubernetes with the launcher's arguments and the
// user's.
func (s *server) component(name string, args, extra []string) error {
	if s.cfg.Debug {
		args = append(args, "--v=4")
	}
	return s.parts.run(os.Stderr, name, withExtra(args, extra)...)
}

// withExtra adds a user's arguments for a component, "name=value"; they win over
// the launcher's.
func withExtra(args, extra []string) []string {
	var out []string
	for _, a := range args {
		name, _, _ := strings.Cut(a, "=")
		overridden := false
		for _, e := range extra {
			given, _, _ := strings.Cut(e, "=")
			overridden = overridden || "--"+strings.TrimLeft(given, "-") == name
		}
		if !overridden {
			out = append(out, a)
		}
	}
	for _, e := range extra {
		out = append(out, "--"+strings.TrimLeft(e, "-"))
	}
	return out
}

// systemSecrets is where K3s keeps its own Secrets.
const systemSecrets = "/api/v1/namespaces/kube-system/secrets"

// nodePassword proves that this host is the node of that name: the first start
// keeps a hash of /etc/rancher/node/password in the cluster, later ones compare.
func (s *server) nodePassword(ctx context.Context, api *api) error {
	const file = "/etc/rancher/node/password"
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		data = []byte(randomHex(16) + "\n")
		err = write(file, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("read the node's password: %w", err)
	}
	password := strings.TrimSpace(string(data))
	name := s.cfg.NodeName + ".node-password.k3s"
	var secret struct {
		Data struct {
			Hash []byte `json:"hash"`
		} `json:"data"`
	}
	err = api.get(ctx, systemSecrets+"/"+name, &secret)
	if errors.Is(err, errNotFound) {
		hash, err := hashPassword(password, randomHex(8))
		if err != nil {
			return err
		}
		object := map[string]any{
			"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true,
			"metadata": map[string]any{"name": name, "namespace": "kube-system"},
			"data":     map[string]any{"hash": []byte(hash)},
		}
		return createSecret(ctx, api, object)
	}
	if err != nil {
		return fmt.Errorf("check the node's password: %w", err)
	}
	fields := strings.Split(string(secret.Data.Hash), ":")
	if len(fields) != 3 {
		return fmt.Errorf("check the node's password: the Secret %s holds no hash", name)
	}
	hash, err := hashPassword(password, fields[1])
	if err != nil {
		return err
	}
	if hash != string(secret.Data.Hash) {
		return fmt.Errorf("Node password rejected, duplicate hostname or contents of '%s' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag; or delete the Secret kube-system/%s", file, name)
	}
	return nil
}

// createSecret waits for kube-system, which the API server makes a moment after
// it is ready.
func createSecret(ctx context.Context, api *api, object map[string]any) error {
	for {
		err := api.create(ctx, systemSecrets, object)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errNotFound) {
			return fmt.Errorf("keep a Secret of the node's: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// publishServing keeps the API's serving certificate in kube-system/k3s-serving,
// as K3s's listener does: a Secret of type kubernetes.io/tls that belongs to the
// server and not to any platform.
func (s *server) publishServing(ctx context.Context, api *api) error {
	base := filepath.Join(s.paths.tls, "serving-kube-apiserver")
	crt, err := os.ReadFile(base + ".crt")
	if err != nil {
		return fmt.Errorf("publish the serving certificate: %w", err)
	}
	key, err := os.ReadFile(base + ".key")
	if err != nil {
		return fmt.Errorf("publish the serving certificate: %w", err)
	}
	annotations := map[string]any{"listener.cattle.io/static": "true"}
	for _, a := range s.net.Node {
		// Annotation names take no colon; K3s's listener writes IPv6 with dashes.
		annotations["listener.cattle.io/cn-"+strings.ReplaceAll(a.String(), ":", "-")] = a.String()
	}
	object := map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
		"metadata": map[string]any{"name": "k3s-serving", "namespace": "kube-system", "annotations": annotations},
		"data":     map[string]any{"tls.crt": crt, "tls.key": key},
	}
	err = api.merge(ctx, systemSecrets+"/k3s-serving", object)
	if errors.Is(err, errNotFound) {
		return createSecret(ctx, api, object)
	}
	return err
}

// hashPassword gives "$1:salt:hash", the hash by scrypt.
func hashPassword(password, salt string) (string, error) {
	raw, err := hex.DecodeString(salt)
	if err != nil {
		return "", fmt.Errorf("hash the node's password: %w", err)
	}
	key, err := scrypt.Key([]byte(password), raw, 1<<15, 8, 1, 64)
	if err != nil {
		return "", fmt.Errorf("hash the node's password: %w", err)
	}
	return "$1:" + salt + ":" + hex.EncodeToString(key), nil
}

// describeNode puts K3s's labels and annotations on the Node.
func (s *server) describeNode(ctx context.Context, api *api) error {
	shown, err := json.Marshal(redact(append([]string{"server"}, s.cfg.Given...)))
	if err != nil {
		return fmt.Errorf("describe the node: %w", err)
	}
	annotations := map[string]any{
		"k3s.io/hostname":    s.cfg.NodeName,
		"k3s.io/internal-ip": join(s.net.Node),
		"k3s.io/node-args":   string(shown),
	}
	if len(s.cfg.NodeExternalIP) > 0 {
		annotations["k3s.io/external-ip"] = strings.Join(s.cfg.NodeExternalIP, ",")
	}
	err = api.merge(ctx, "/api/v1/nodes/"+s.cfg.NodeName, map[string]any{"metadata": map[string]any{
		"annotations": annotations,
		"labels": map[string]any{
			"node-role.kubernetes.io/control-plane": "true",
			"node.kubernetes.io/instance-type":      "k3s",
		},
	}})
	if err != nil {
		return fmt.Errorf("describe the node: %w", err)
	}
	return nil
}

// redact hides the values of secret flags.
func redact(args []string) []string {
	out := make([]string, 0, len(args))
	hide := false
	for _, a := range args {
		name, _, inline := strings.Cut(a, "=")
		secret := false
		switch strings.TrimLeft(name, "-") {
		case "token", "t", "datastore-endpoint":
			secret = strings.HasPrefix(a, "-")
		}
		switch {
		case hide:
			a, hide = "********", false
		case secret && inline:
			a = name + "=********"
		case secret:
			hide = true
		}
		out = append(out, a)
	}
	return out
}
