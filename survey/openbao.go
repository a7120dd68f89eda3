package survey

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/plans"
)

// OpenBao is what the server on the cluster said of itself.
type OpenBao struct {
	// Problem says why the server could not be read; nothing else is known then.
	Problem string `json:"problem,omitempty"`
	// Servers are its pods, or the one address of the plan.
	Servers []OpenBaoServer `json:"servers,omitempty"`
	openbao.Description
	// Missing is what the plan's token may not do and a backup needs.
	Missing []string `json:"missing,omitempty"`
	// NoKeys says why the plan's unseal keys cannot be had. Those that a person is asked
	// for are not asked for beforehand.
	NoKeys string `json:"noKeys,omitempty"`
}

// OpenBaoServer is one of the servers.
type OpenBaoServer struct {
	Name string `json:"name"`
	openbao.Status
	// Claims are those of the volumes that its pod mounts, as namespace/claim.
	Claims []string `json:"claims,omitempty"`
}

// Storage is the kind of storage that the servers keep their data in.
func (b OpenBao) Storage() string { return b.Servers[0].Storage }

// Snapshots tells whether the storage can be asked for a snapshot; without, the
// stopped volume is the backup. Only raft can.
func (b OpenBao) Snapshots() bool { return b.Storage() == "raft" }

// Version is the servers'.
func (b OpenBao) Version() string { return b.Servers[0].Version }

// Keys is how many unseal keys the server asks for; 0 when it unseals itself.
func (b OpenBao) Keys() int {
	if b.Servers[0].RecoverySeal {
		return 0
	}
	return b.Servers[0].Threshold
}

// OpenBaoEndpoint is a way to one of the plan's servers. Whoever gets it closes it.
type OpenBaoEndpoint struct {
	*openbao.Server
	Name string // of the pod, or the address
	// Pod is empty for a server that is reached at an address.
	Pod string
}

// OpenBaoEndpoints finds the servers that the plan names as they are now: by
// port-forward to the pods, ready or not, since a sealed server is not; or at the
// plan's address, dialled from the host. It speaks to none of them yet.
func OpenBaoEndpoints(ctx context.Context, h cluster.Dialer, c *cluster.Client, p *plans.OpenBao, token string) ([]OpenBaoEndpoint, error) {
	const field = "spec.backup.openBao"
	o := openbao.Options{Address: p.Address, Dial: h.DialContext, Token: token}
	if p.TLS != nil {
		o.ServerName = p.TLS.ServerName
		if p.TLS.CAFile != "" {
			var err error
			if o.CA, err = os.ReadFile(p.TLS.CAFile); err != nil {
				return nil, fmt.Errorf("%s.tls.caFile: %w", field, err)
			}
		}
	}
	if p.Address != "" {
		s, err := openbao.New(o)
		if err != nil {
			return nil, fmt.Errorf("%s.address: %w", field, err)
		}
		return []OpenBaoEndpoint{{Server: s, Name: p.Address}}, nil
	}
	pods := p.Pods
	if len(pods) == 0 {
		var err error
		if pods, err = c.ServicePods(ctx, p.Namespace, p.Service); err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
	}
	scheme := "http://"
	if p.TLS != nil {
		scheme = "https://"
	}
	var out []OpenBaoEndpoint
	for _, pod := range pods {
		// A name for messages; what the certificate is for says spec.backup.openBao.tls.serverName.
		o.Address = scheme + net.JoinHostPort(pod+"."+p.Namespace, strconv.Itoa(p.Port))
		o.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.DialPod(ctx, p.Namespace, pod, p.Port)
		}
		s, err := openbao.New(o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		out = append(out, OpenBaoEndpoint{Server: s, Name: p.Namespace + "/" + pod, Pod: pod})
	}
	return out, nil
}

// ActiveOpenBao is the server that answers for all, which must all be unsealed.
func ActiveOpenBao(ctx context.Context, all []OpenBaoEndpoint) (active OpenBaoEndpoint, statuses []openbao.Status, err error) {
	for _, e := range all {
		status, err := e.Status(ctx)
		switch {
		case err != nil:
		case !status.Initialised:
			err = &openbao.UninitialisedError{Address: e.Name}
		case status.Sealed:
			err = &openbao.SealedError{Address: e.Name, Status: status}
		}
		if err != nil {
			return active, nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		if active.Server == nil || status.Active {
			active = e
		}
		statuses = append(statuses, status)
	}
	return active, statuses, nil
}

// ReadOpenBao surveys the plan's server; what hinders it is part of the answer.
func ReadOpenBao(ctx context.Context, h cluster.Dialer, c *cluster.Client, p *plans.OpenBao, token func(context.Context) (string, error)) (*OpenBao, error) {
	out, err := readOpenBao(ctx, h, c, p, token)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return &OpenBao{Problem: err.Error()}, nil
	}
	return out, nil
}

func readOpenBao(ctx context.Context, h cluster.Dialer, c *cluster.Client, p *plans.OpenBao, token func(context.Context) (string, error)) (*OpenBao, error) {
	secret, err := token(ctx)
	if err != nil {
		return nil, err
	}
	endpoints, err := OpenBaoEndpoints(ctx, h, c, p, secret)
	if err != nil {
		return nil, err
	}
	defer CloseOpenBao(endpoints)
	active, statuses, err := ActiveOpenBao(ctx, endpoints)
	if err != nil {
		return nil, err
	}
	out := &OpenBao{}
	for i, e := range endpoints {
		server := OpenBaoServer{Name: e.Name, Status: statuses[i]}
		if e.Pod != "" {
			claims, err := c.PodVolumes(ctx, p.Namespace, e.Pod)
			if err != nil {
				return nil, err
			}
			for _, claim := range claims {
				server.Claims = append(server.Claims, p.Namespace+"/"+claim)
			}
		}
		out.Servers = append(out.Servers, server)
	}
	// What the token may not do explains a refusal better than the refusal.
	if out.Missing, err = active.Missing(ctx, p.Mounts...); err != nil {
		return nil, fmt.Errorf("%s: %w", active.Name, err)
	}
	if out.Description, err = active.Describe(ctx); err != nil {
		var denied *openbao.DeniedError
		if errors.As(err, &denied) && len(out.Missing) > 0 {
			return out, nil
		}
		return nil, fmt.Errorf("%s: %w", active.Name, err)
	}
	return out, nil
}

// CloseOpenBao ends the connections to the servers.
func CloseOpenBao(all []OpenBaoEndpoint) {
	for _, e := range all {
		e.Close()
	}
}

// OpenBaoCopied tells whether each server has a volume whose data are carried over.
func (f *Facts) OpenBaoCopied() bool {
	for _, s := range f.OpenBao.Servers {
		copied := slices.ContainsFunc(f.Cluster.Volumes, func(v Volume) bool {
			return v.Copied() && slices.Contains(s.Claims, v.Namespace+"/"+v.Claim)
		})
		if !copied {
			return false
		}
	}
	return true
}
