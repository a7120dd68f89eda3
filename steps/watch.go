package steps

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"k8s.io/client-go/rest"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/probe"
	"sunbeam.pt/k3s-dualstack/remote"
)

// availabilityFile holds what the watch over API and URLs saw, of every process of the run.
const availabilityFile = "availability.jsonl"

// Availability is what was watched during the run and its rollback, also while they go on.
func (m *Migration) Availability() ([]probe.Availability, error) {
	return probe.Read(m.file(availabilityFile))
}

// watch watches the API and the plan's URLs until stop is called, or ctx ends. What hinders it
// is a note and no error.
func (m *Migration) watch(ctx context.Context, h *remote.Host) (stop func()) {
	notice := func(text string) { fmt.Fprintf(m.Progress.Writer(), "   note: %s\n", text) }
	var targets []probe.Target
	for _, a := range m.apis(h) {
		targets = append(targets, probe.Target{Name: "API", Family: a.family, Check: a.check})
	}
	for _, u := range m.Plan.Watched() {
		more, err := probe.URL(u)
		if err != nil {
			notice(err.Error())
			continue
		}
		targets = append(targets, more...)
	}
	return probe.Watch(ctx, m.file(availabilityFile), targets, notice).Close
}

// apis are the API server at the node's addresses, as reached from the host itself. K3s listens on
// all of them, of both families, before the migration too, unless bind-address names one.
func (m *Migration) apis(h *remote.Host) []*apiProbe {
	addresses := m.Plan.Spec.Network.NodeIP
	if len(addresses) == 0 {
		addresses = m.Facts.NodeIPs()
	}
	if v := m.Facts.K3s.Setting("bind-address"); len(v) == 1 {
		if a, err := netip.ParseAddr(v[0]); err == nil && !a.IsUnspecified() {
			addresses = v
		}
	}
	port := "6443"
	if v := m.Facts.K3s.Setting("https-listen-port"); len(v) == 1 {
		port = v[0]
	}
	var apis []*apiProbe
	for _, text := range addresses {
		family := probe.IPv6
		if a, err := netip.ParseAddr(text); err != nil {
			continue // preflight has more to say about it
		} else if a.Is4() {
			family = probe.IPv4
		}
		if slices.ContainsFunc(apis, func(a *apiProbe) bool { return a.family == family }) {
			continue
		}
		apis = append(apis, &apiProbe{host: h, family: family, address: net.JoinHostPort(text, port), kubeconfig: m.Facts.K3s.Kubeconfig()})
	}
	return apis
}

// apiProbe asks the API server whether it is ready, at one address, with a new connection each time. It
// shares with the run its SSH connection alone.
type apiProbe struct {
	host       *remote.Host
	family     string
	address    string // with its port
	kubeconfig string // its path on the host

	// client is nil until the kubeconfig was read; a server with a new identity has another.
	client *http.Client
	url    string
}

// lineTime is kept for finding out whether a request that was not answered was lost on the line.
const lineTime = 500 * time.Millisecond

func (a *apiProbe) check(ctx context.Context) error {
	line := func() error {
		if a.host.Answers(ctx) != nil {
			return &probe.UnknownError{Why: "the SSH connection to the host did not answer"}
		}
		return nil
	}
	// Before, too: a request would connect anew, every second, to a host that may count that as an attack.
	if err := line(); err != nil {
		return err
	}
	asking, cancel := ctx, context.CancelFunc(func() {})
	if end, ok := ctx.Deadline(); ok {
		asking, cancel = context.WithDeadline(ctx, end.Add(-lineTime))
	}
	defer cancel()
	err := a.ask(asking)
	if err != nil {
		if lost := line(); lost != nil {
			return lost
		}
	}
	return err
}

func (a *apiProbe) ask(ctx context.Context) error {
	if a.client == nil {
		// Before it listens there is no use in reading what it may be about to write.
		conn, err := a.dial(ctx, "tcp", a.address)
		if err != nil {
			return err
		}
		conn.Close()
		if err := a.readKubeconfig(ctx); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url, nil)
	if err != nil {
		return err
	}
	answer, err := a.client.Do(request)
	var unknownCA x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknownCA):
		a.client = nil
		return errors.New("its certificate is of another CA")
	case errors.Is(err, errRefused):
		return errRefused
	case err != nil:
		return err
	}
	answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		a.client = nil
	}
	return fmt.Errorf("readyz: HTTP %d", answer.StatusCode)
}

var errRefused = errors.New("nothing listens there")

func (a *apiProbe) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	conn, err := a.host.DialContext(ctx, network, a.address)
	if err != nil && ctx.Err() == nil {
		err = errRefused
	}
	return conn, err
}

// readKubeconfig prepares requests that check the server's certificate and show the admin's, whatever
// address they go to: before the migration the certificate does not name the node's IPv6 address.
func (a *apiProbe) readKubeconfig(ctx context.Context) error {
	kubeconfig, err := a.host.ReadFile(ctx, a.kubeconfig)
	if err != nil {
		return fmt.Errorf("its kubeconfig cannot be read: %w", err)
	}
	c, err := cluster.Connect(a.host, kubeconfig)
	if err != nil {
		return err
	}
	tls, err := rest.TLSConfigFor(c.REST)
	if err != nil {
		return err
	}
	a.url = c.REST.Host + "/readyz"
	a.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: a.dial, TLSClientConfig: tls}}
	return nil
}
