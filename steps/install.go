package steps

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/restore"
	"sunbeam.pt/k3s-dualstack/runner"
)

const hostInstallScript = remote.StateDir + "/install.sh"

// install lays down binary, configuration and identity and runs the install
// script over them; the server is neither enabled nor started.
func (m *Migration) install(ctx context.Context) ([]runner.Action, error) {
	in := m.Facts.K3s
	summary, binary := fmt.Sprintf("Put back K3s %s's binary and configuration, dual-stack settings merged in", in.Version), in.BinarySize
	if m.Plan.Spec.K3s.Version != plans.VersionKeep {
		summary, binary = "Put back the configuration, dual-stack settings merged in", 0
	}
	identity := "The cluster gets new CAs, keys and token"
	if m.preservesIdentity() {
		identity = "Put back CAs, service-account key, token and node password, so that clients recognise the cluster"
	}
	return []runner.Action{{
		Name: "files", Target: m.onHost(), Summary: summary, Bytes: binary,
		Command: "scp k3s config.yaml …",
		Run:     func(ctx context.Context) (any, error) { return m.putFiles(ctx) },
	}, {
		Name: "identity", Target: m.onHost(), Summary: identity,
		Command: m.IntoSSH("tar -C "+remote.Quote(path.Dir(in.ServerDir()))+" --wildcards -xpf - 'server/tls/*-ca.*' server/tls/service.key server/token server/cred/passwd") + " < k3s-state.tar",
		Run:     func(ctx context.Context) (any, error) { return nil, m.putIdentity(ctx) },
	}, {
		Name: "install", Target: m.onHost(),
		Summary: "Run K3s's install script: unit, env file, killall and uninstall scripts",
		Command: "INSTALL_K3S_SKIP_ENABLE=true sh install.sh server …",
		Run:     func(ctx context.Context) (any, error) { return nil, m.runInstaller(ctx) },
	}}, nil
}

// Settings is the configuration after the rebuild, and what changes in it. It
// is read from the host while K3s is there and from the backup set later.
func (m *Migration) Settings(ctx context.Context) (k3s.Config, []k3s.Change, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return k3s.Config{}, nil, err
	}
	read := func(p string) ([]byte, error) { return h.ReadFile(ctx, p) }
	if m.hasSet() {
		set, err := m.Set()
		if err != nil {
			return k3s.Config{}, nil, err
		}
		if _, kept := set.Artifact(k3sFiles); kept {
			read = func(p string) ([]byte, error) { return set.File(k3sFiles, p) }
		}
	}
	c, err := m.Facts.K3s.ReadConfig(read)
	if err != nil {
		return c, nil, err
	}
	spec := m.Plan.Spec
	nodeIPs := spec.Network.NodeIP
	if len(nodeIPs) == 0 {
		nodeIPs = m.Facts.NodeIPs()
	}
	c, changes, err := c.With(k3s.Wants(spec.Network, nodeIPs, spec.K3s.Disable))
	if err != nil {
		return c, nil, err
	}
	c, more := c.WithArgs(spec.K3s.ExtraArgs)
	return c, append(changes, more...), nil
}

func (m *Migration) putFiles(ctx context.Context) (any, error) {
	h, set, err := m.mountedAndSet(ctx)
	if err != nil {
		return nil, err
	}
	in := m.Facts.K3s
	c, changes, err := m.Settings(ctx)
	if err != nil {
		return nil, err
	}
	var edited []string
	for _, f := range c.Files {
		edited = append(edited, f.Path)
	}
	var back []string
	for _, p := range in.Files() {
		// The install script writes unit, env file, links and scripts itself.
		own := p == in.Unit || p == in.Killall || p == in.Uninstall || p == in.Unit+".env" || slices.Contains(in.Links, path.Base(p))
		if own || (p == in.Binary && m.Plan.Spec.K3s.Version != plans.VersionKeep) {
			continue
		}
		back = append(back, p)
	}
	if err := restore.Tree(ctx, h, set, k3sFiles, m.Progress, back...); err != nil {
		return nil, err
	}
	for _, f := range c.Files {
		mode := fs.FileMode(0o600) // a file that was not there may come to hold a token
		if out, err := h.Output(ctx, "stat -c %a "+remote.Quote(f.Path)+" 2>/dev/null || true"); err != nil {
			return nil, fmt.Errorf("host %s: looking at %s: %w", h.Name(), f.Path, err)
		} else if bits, err := strconv.ParseUint(out, 8, 12); err == nil {
			mode = fs.FileMode(bits)
		}
		if err := h.WriteFile(ctx, f.Path, f.Data, mode); err != nil {
			return nil, fmt.Errorf("host %s: writing K3s's configuration: %w", h.Name(), err)
		}
	}
	return map[string]any{"changes": WithoutSecrets(changes), "written": edited}, nil
}

// WithoutSecrets leaves the values of secret settings out of the journal.
func WithoutSecrets(changes []k3s.Change) []k3s.Change {
	out := slices.Clone(changes)
	for i, c := range out {
		if key, _, _ := strings.Cut(strings.TrimLeft(c.Key, "-"), "="); k3s.Secret(key) {
			out[i].Key, out[i].Before, out[i].After = key, "(secret)", "(secret)"
		}
	}
	return out
}

func (m *Migration) putIdentity(ctx context.Context) error {
	h, set, err := m.mountedAndSet(ctx)
	if err != nil {
		return err
	}
	in := m.Facts.K3s
	skips, _ := in.Skips()
	want := append(in.NamedFiles(), skips...)
	if m.preservesIdentity() {
		want = append(want, in.IdentityPaths()...)
	}
	// Not every installation has every file of the list.
	kept := map[string]bool{}
	if err := set.Members(k3sState, func(f index.Member) error { kept["/"+f.Path] = true; return nil }); err != nil {
		return err
	}
	want = slices.DeleteFunc(want, func(p string) bool { return !kept[p] })
	if len(want) == 0 {
		return nil
	}
	return restore.Tree(ctx, h, set, k3sState, m.Progress, want...)
}

func (m *Migration) runInstaller(ctx context.Context) error {
	h, set, err := m.hostAndSet(ctx)
	if err != nil {
		return err
	}
	c, _, err := m.Settings(ctx)
	if err != nil {
		return err
	}
	r, err := set.Reader(installScript)
	if err != nil {
		return err
	}
	defer r.Close()
	script, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := h.WriteFile(ctx, hostInstallScript, script, 0o700); err != nil {
		return fmt.Errorf("host %s: %w", h.Name(), err)
	}
	version := m.Plan.Spec.K3s.Version
	if version == plans.VersionKeep {
		version = ""
	}
	in := m.Facts.K3s
	if err := m.job(ctx, "install", "Installing K3s", in.InstallJob(hostInstallScript, c, version)); err != nil {
		return err
	}
	// The script wrote the env file from the variables it knows and in its own
	// quoting: the one that was there is put back to the byte.
	if env := in.Unit + ".env"; slices.Contains(in.EnvFiles, env) {
		return restore.Tree(ctx, h, set, k3sFiles, m.Progress, env)
	}
	return nil
}

// start starts the server and waits for its node with a range of each family.
func (m *Migration) start(context.Context) ([]runner.Action, error) {
	in := m.Facts.K3s
	return []runner.Action{{
		Name: "start", Target: m.onHost(), Summary: "Start K3s and wait until it is up",
		Command: m.enable() + "systemctl start " + remote.Quote(in.UnitName()),
		Run: func(ctx context.Context) (any, error) {
			return nil, m.startK3s(ctx)
		},
	}, {
		Name: "node", Target: m.onCluster(), Summary: "Wait for the node to be Ready with a podCIDR of each family",
		Command: "kubectl wait --for=condition=Ready node --all && kubectl get nodes -o jsonpath='{.items[*].spec.podCIDRs}'",
		Run:     func(ctx context.Context) (any, error) { return nil, m.waitNodes(ctx, 2) },
	}}, nil
}

// enable is shell that makes the unit start with the host where it did before,
// up to the command that follows.
func (m *Migration) enable() string {
	if m.Facts.K3s.Disabled {
		return ""
	}
	return "systemctl enable -q " + remote.Quote(m.Facts.K3s.UnitName()) + " && "
}

// startK3s enables the server and starts it, and waits until it is up. The file
// systems that it is on are mounted before.
func (m *Migration) startK3s(ctx context.Context) error {
	h, err := m.mounted(ctx)
	if err != nil {
		return err
	}
	if err := h.Run(ctx, m.enable()+"true"); err != nil {
		return fmt.Errorf("host %s: enabling K3s: %w", h.Name(), err)
	}
	t := m.Progress.Wait("Starting K3s")
	defer t.Done()
	m.forgetClient()
	return m.Facts.K3s.Start(ctx, h, t)
}

// waitNodes waits for the API and for every node to be Ready with a podCIDR of so
// many families.
func (m *Migration) waitNodes(ctx context.Context, families int) error {
	ctx, cancel := context.WithTimeout(ctx, apiDeadline)
	defer cancel()
	c, err := m.rebuilt(ctx)
	if err != nil {
		return err
	}
	t := m.Progress.Wait("Waiting for the node")
	defer t.Done()
	if err := c.WaitAPI(ctx, t); err != nil {
		return err
	}
	for _, n := range m.Facts.Cluster.Nodes {
		if err := c.WaitNode(ctx, n.Name, families, t); err != nil {
			return err
		}
	}
	return nil
}
