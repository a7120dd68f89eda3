package propose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/survey"
)

// Connect reaches the host as root: as it is, or by sudo where the user is
// another one; h says which of them it was.
func Connect(ctx context.Context, h *plans.Host, ask remote.AskFunc) (*remote.Host, error) {
	dialled := *h
	dialled.IdentityFiles, dialled.KnownHosts = expandAll(h.IdentityFiles), expandAll(h.KnownHosts)
	dialled.SSHConfig = expand(h.SSHConfig)
	host, err := remote.Dial(ctx, dialled, remote.AskPassphrase(ask))
	var sudo *remote.SudoError
	if errors.As(err, &sudo) && sudo.Reason == remote.SudoOff {
		h.Sudo, dialled.Sudo = true, true
		host, err = remote.Dial(ctx, dialled, remote.AskPassphrase(ask))
	}
	var auth *remote.AuthError
	if errors.As(err, &auth) {
		return nil, fmt.Errorf("%w\n  (for init: --identity-file FILE, or another user in --host)", err)
	}
	return host, err
}

// AgentError says that the host is an agent: it has no plan of its own.
type AgentError struct {
	Host   string
	Server string // URL of its server, "" when unknown
}

func (e *AgentError) Error() string {
	server := "the cluster's server"
	if e.Server != "" {
		server += ", which is at " + e.Server
	}
	return fmt.Sprintf("host %s is a K3s agent: the address ranges belong to the server; name %s, with --host", e.Host, server)
}

// patience is how long the cluster's API may take to say that it is ready, and
// every look at it after that.
const patience = 20 * time.Second

// Look reads host and cluster. A host without K3s is a *k3s.NotFoundError, an
// agent an *AgentError; a configuration that cannot be read is an error, since nothing that
// a plan said would be right then. All else that hinders is a gap.
func Look(ctx context.Context, h *remote.Host, w Wishes, t cluster.Detailer) (*Found, error) {
	t.Detail("K3s")
	in, err := k3s.Read(ctx, h)
	if err != nil {
		return nil, err
	}
	if in.Role == k3s.Agent {
		e := &AgentError{Host: h.Name()}
		if v := in.Setting("server"); len(v) == 1 {
			e.Server = v[0]
		}
		return nil, e
	}
	f := &Found{}
	c, err := connect(ctx, h, in, t)
	var unready *cluster.WaitError
	if errors.As(err, &unready) && unready.Outage == nil && len(unready.Missing) > 0 && ctx.Err() == nil {
		// It answers, if only to say what is wrong with it.
		f.gap("whether the cluster is well", err)
		err = nil
	}
	if err == nil {
		t.Detail("cluster and volumes")
		draft := &plans.Plan{}
		draft.Spec.Hosts = []plans.Host{w.Host}
		draft.Spec.Services.Policy = plans.ServicesPreferDualStack
		f.Facts, err = survey.Glimpse(ctx, h, c, in, draft, f.gap)
		f.Cluster = err == nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		f.gap("the cluster: nodes, volumes, TLS secrets, host names and OpenBao", err)
		machine, err := survey.ReadHost(ctx, h, in)
		if err != nil {
			return nil, err
		}
		f.Facts = &survey.Facts{Taken: time.Now().UTC(), Host: machine, K3s: in}
	}
	f.readFiles(ctx, h)
	if f.Cluster {
		t.Detail("what runs on the cluster")
		f.readOwners(ctx, c)
		f.readOpenBao(ctx, h, c)
		f.readHostnames(ctx, c)
	}
	t.Detail("names and ways out")
	f.resolve(ctx, h, w.Hostnames)
	if len(w.EgressURLs) == 0 {
		f.reach(ctx, h)
	}
	return f, ctx.Err()
}

// connect is the API of the cluster, once it says that it is ready; one that says what
// it is not ready for comes with the error.
func connect(ctx context.Context, h *remote.Host, in *k3s.Installation, t cluster.Detailer) (*cluster.Client, error) {
	if !in.Active {
		return nil, fmt.Errorf("K3s is installed and not running; `systemctl start %s` on the host starts it", in.UnitName())
	}
	kubeconfig, err := h.ReadFile(ctx, in.Kubeconfig())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("its kubeconfig %s is missing; K3s writes it when it starts: `systemctl restart %s` on the host", in.Kubeconfig(), in.UnitName())
	}
	if err != nil {
		return nil, fmt.Errorf("reading its kubeconfig: %w", err)
	}
	c, err := cluster.Connect(h, kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", in.Kubeconfig(), err)
	}
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c, c.WaitAPI(soon, t)
}

// readFiles finds the files that K3s reads or its settings name.
func (f *Found) readFiles(ctx context.Context, h *remote.Host) {
	in := f.Facts.K3s
	by := map[string]string{"/etc/rancher/k3s/registries.yaml": ""}
	if v := in.Setting("private-registry"); len(v) > 0 {
		delete(by, "/etc/rancher/k3s/registries.yaml")
		by[v[0]] = "private-registry"
	}
	for key, s := range in.Settings {
		if notNamed[key] || k3s.Secret(key) {
			continue
		}
		for _, v := range s.Values {
			if name, value, ok := strings.Cut(v, "="); ok && strings.HasPrefix(value, "/") {
				by[value] = key + " " + name
			} else if strings.HasPrefix(v, "/") {
				by[v] = key
			}
		}
	}
	paths := slices.Sorted(maps.Keys(by))
	out, err := h.Output(ctx, "for f in "+remote.Quote(paths...)+`; do if [ -f "$f" ]; then echo file; elif [ -e "$f" ]; then echo other; else echo none; fi; done`)
	if err != nil {
		f.gap("files that the configuration names", err)
		return
	}
	for i, kind := range strings.Fields(out) {
		if i >= len(paths) {
			break
		}
		missing := kind == "none"
		if kind == "file" || missing && by[paths[i]] != "" {
			f.Files = append(f.Files, File{Path: paths[i], By: by[paths[i]], Missing: missing})
		}
	}
}

// notNamed are settings whose values are no files that must be there.
var notNamed = map[string]bool{
	"data-dir": true, "default-local-storage-path": true, "write-kubeconfig": true, "log": true, "config": true,
	"kubelet-root-dir": true, "container-runtime-endpoint": true, "etcd-snapshot-dir": true,
}

// egressURL is reached by certificate clients everywhere, over both families.
const egressURL = "https://acme-v02.api.letsencrypt.org/directory"

// reach tries the proposed URL from the host.
func (f *Found) reach(ctx context.Context, h *remote.Host) {
	u, err := url.Parse(egressURL)
	if err != nil {
		panic(err) // a constant
	}
	soon, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := h.DialContext(soon, "tcp", u.Hostname()+":443")
	if err == nil {
		conn.Close()
	}
	f.Egress = err == nil
}
