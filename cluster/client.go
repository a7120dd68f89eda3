// Package cluster is the Kubernetes API of the cluster that is migrated, reached
// through the SSH connection to its server.
//
// It stands above a dialer (a remote.Host is one) and below survey, backup,
// restore, verify and steps. It owns the rules of re-applying what Kubernetes
// keeps: which objects are exported and in what order, what is stripped before
// an object may be created again, how a volume is reserved for its claim, which
// TLS secrets come along, which Services become dual-stack; and the waits, whose
// errors name what is missing and why. It keeps no state of its own and opens no
// port but the local forward that Forward is asked for.
//
// One file a concern: client.go (connection and errors), wait.go, nodes.go,
// objects.go, volumes.go, secrets.go, dependents.go, workloads.go, services.go, pods.go, portforward.go,
// drift.go.
package cluster

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// FieldManager is the name under which this project's changes appear in an
// object's managedFields.
const FieldManager = "k3s-dualstack"

// Dialer opens TCP connections as seen from the cluster's server. A remote.Host
// is one: the API server is then reached through SSH, and its port need not be
// open to anything else. So is a *net.Dialer, for an API that is reached directly.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Client is one cluster's API. It is safe for concurrent use.
type Client struct {
	// Kube, Dynamic and REST are client-go's own, for what this package has no
	// method for. Their connections go through the dialer like all others.
	Kube    kubernetes.Interface
	Dynamic dynamic.Interface
	REST    *rest.Config

	dialer  Dialer
	config  *clientcmdapi.Config // one cluster, one user, one context
	address string               // host:port of the API, as the dialer sees it
	every   time.Duration        // between two looks of a wait
}

// Connect prepares a client for the cluster that kubeconfig names, whose server
// address is dialled through d: K3s's own /etc/rancher/k3s/k3s.yaml says
// 127.0.0.1:6443, which is right when d dials from the server.
//
// It does not contact the cluster: WaitAPI does. A kubeconfig that cannot be
// used is a *KubeconfigError. Credentials must be inline, as K3s writes them: a
// kubeconfig that names files or commands would have them read or run on the
// laptop on a remote host's word, and is refused.
func Connect(d Dialer, kubeconfig []byte) (*Client, error) {
	config, err := parseKubeconfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	server, err := url.Parse(config.Clusters[clusterName].Server)
	if err != nil || server.Host == "" {
		return nil, &KubeconfigError{Problem: fmt.Sprintf("its server %q is no URL", config.Clusters[clusterName].Server)}
	}
	if server.Scheme != "https" {
		return nil, &KubeconfigError{Problem: fmt.Sprintf("its server %q is not https", server)}
	}
	address := server.Host
	if server.Port() == "" {
		address = net.JoinHostPort(server.Hostname(), "443")
	}

	cfg, err := clientcmd.NewDefaultClientConfig(*config, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, &KubeconfigError{Problem: "it is incomplete", Err: err}
	}
	cfg.Dial = d.DialContext
	// The laptop's HTTPS_PROXY does not stand between the server and itself.
	cfg.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	cfg.UserAgent = FieldManager
	// Deprecation warnings concern whoever wrote the objects, not who saves them.
	cfg.WarningHandler = rest.NoWarnings{}
	cfg.QPS, cfg.Burst = 50, 100

	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, &KubeconfigError{Problem: "its credentials cannot be used", Err: err}
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, &KubeconfigError{Problem: "its credentials cannot be used", Err: err}
	}
	return &Client{Kube: kube, Dynamic: dyn, REST: cfg, dialer: d, config: config, address: address, every: time.Second}, nil
}

// clusterName is what cluster, user and context are called in the kubeconfigs
// that this package keeps and hands out.
const clusterName = "default"

// parseKubeconfig reduces a kubeconfig to its current context, under one name.
func parseKubeconfig(data []byte) (*clientcmdapi.Config, error) {
	in, err := clientcmd.Load(data)
	if err != nil {
		return nil, &KubeconfigError{Problem: "it cannot be read", Err: err}
	}
	if len(in.Clusters) == 0 {
		return nil, &KubeconfigError{Problem: "it names no cluster"}
	}
	current := in.Contexts[in.CurrentContext]
	if current == nil {
		return nil, &KubeconfigError{Problem: fmt.Sprintf("its current-context %q does not exist", in.CurrentContext)}
	}
	cl, user := in.Clusters[current.Cluster], in.AuthInfos[current.AuthInfo]
	if cl == nil {
		return nil, &KubeconfigError{Problem: fmt.Sprintf("its context names the cluster %q, which does not exist", current.Cluster)}
	}
	if user == nil {
		return nil, &KubeconfigError{Problem: fmt.Sprintf("its context names the user %q, which does not exist", current.AuthInfo)}
	}
	switch {
	case user.Exec != nil:
		return nil, &KubeconfigError{Problem: "its user runs a command (exec); only inline credentials are accepted"}
	case user.AuthProvider != nil:
		return nil, &KubeconfigError{Problem: "its user needs an auth-provider; only inline credentials are accepted"}
	case cl.CertificateAuthority != "" || user.ClientCertificate != "" || user.ClientKey != "" || user.TokenFile != "":
		return nil, &KubeconfigError{Problem: "it names files (certificate-authority, client-certificate, client-key or tokenFile); only inline credentials are accepted"}
	}
	cl.ProxyURL = ""
	out := clientcmdapi.NewConfig()
	out.Clusters[clusterName] = cl
	out.AuthInfos[clusterName] = user
	out.Contexts[clusterName] = &clientcmdapi.Context{Cluster: clusterName, AuthInfo: clusterName, Namespace: current.Namespace}
	out.CurrentContext = clusterName
	return out, nil
}

// WaitAPI waits until the API server says that it is ready (/readyz). t may be nil.
func (c *Client) WaitAPI(ctx context.Context, t Detailer) error {
	return c.wait(ctx, "the API server", t, func(ctx context.Context) ([]string, error) {
		r := c.Kube.Discovery().RESTClient().Get().AbsPath("/readyz").Param("verbose", "").Do(ctx)
		body, err := r.Raw()
		if err == nil {
			return nil, nil
		}
		if missing := failedChecks(body); len(missing) > 0 {
			return missing, nil
		}
		return nil, err
	}, nil)
}

// Forward listens on a free port of 127.0.0.1 and carries each connection to the
// API server. The kubeconfig that it returns holds the cluster's own credentials
// (write it 0600) and is of use until stop is called or ctx ends; stop returns
// when no connection and no goroutine is left.
func (c *Client) Forward(ctx context.Context) (kubeconfig []byte, stop func(), err error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("forwarding the API server to this machine: %w", err)
	}
	config := c.config.DeepCopy()
	cl := config.Clusters[clusterName]
	if cl.TLSServerName == "" {
		if u, err := url.Parse(cl.Server); err == nil {
			cl.TLSServerName = u.Hostname() // what the certificate was checked against so far
		}
	}
	cl.Server = "https://" + l.Addr().String()
	kubeconfig, err = clientcmd.Write(*config)
	if err != nil {
		l.Close()
		return nil, nil, fmt.Errorf("writing the kubeconfig of the forward: %w", err)
	}

	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(ctx, func() { l.Close() })
	var open sync.WaitGroup
	open.Go(func() {
		for {
			local, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() { c.carry(ctx, local) })
		}
	})
	return kubeconfig, func() {
		cancel()
		unhook()
		l.Close()
		open.Wait()
	}, nil
}

// carry copies one forwarded connection both ways until both directions ended.
func (c *Client) carry(ctx context.Context, local net.Conn) {
	defer local.Close()
	far, err := c.dialer.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return // the client sees its connection closed, as it would from a server that is down
	}
	defer far.Close()
	unhook := context.AfterFunc(ctx, func() {
		local.Close()
		far.Close()
	})
	defer unhook()
	var both sync.WaitGroup
	both.Go(func() { pipe(far, local) })
	both.Go(func() { pipe(local, far) })
	both.Wait()
}

// pipe copies until src ends, and tells dst that nothing more comes.
func pipe(dst, src net.Conn) {
	io.Copy(dst, src)
	if half, ok := dst.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		return
	}
	dst.Close()
}

// KubeconfigError says that the bytes given to Connect are no kubeconfig that
// can be used. It never quotes them: they hold credentials.
type KubeconfigError struct {
	Problem string
	Err     error // of the parser; nil where Problem says it all
}

func (e *KubeconfigError) Error() string {
	s := "the kubeconfig is not usable: " + e.Problem
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s + "; K3s writes a good one to /etc/rancher/k3s/k3s.yaml when it starts"
}

func (e *KubeconfigError) Unwrap() error { return e.Err }

// UnreachableError says that no answer came from the API server.
type UnreachableError struct {
	Server string // host:port
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("the API server at %s does not answer (%v); see `systemctl status k3s` and `journalctl -u k3s` on the server", e.Server, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// UnauthorisedError says that the API server refused the kubeconfig's
// credentials (401), or what they were used for (403).
type UnauthorisedError struct {
	Server string
	Err    error
}

func (e *UnauthorisedError) Error() string {
	return fmt.Sprintf("the API server at %s refuses the kubeconfig's credentials (%v); read /etc/rancher/k3s/k3s.yaml again, it changes when K3s is installed with a new identity", e.Server, e.Err)
}

func (e *UnauthorisedError) Unwrap() error { return e.Err }

// UntrustedError says that the API server's certificate is not one that the
// kubeconfig's CA vouches for: the kubeconfig is of another cluster, or of this one
// before it got a new identity.
type UntrustedError struct {
	Server string
	Err    error
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("the API server at %s shows a certificate that the kubeconfig does not trust (%v); the kubeconfig belongs to another cluster or to an earlier identity: read /etc/rancher/k3s/k3s.yaml again", e.Server, e.Err)
}

func (e *UntrustedError) Unwrap() error { return e.Err }

// explain gives an error of client-go its type of this package. What the API
// server answered (not found, conflict, invalid) stays as it is.
func (c *Client) explain(err error) error {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) {
			return &UnauthorisedError{Server: c.address, Err: err}
		}
		return err
	case untrusted(err):
		return &UntrustedError{Server: c.address, Err: err}
	case errors.Is(err, context.Canceled):
		return err
	}
	var transport *url.Error
	if errors.As(err, &transport) {
		return &UnreachableError{Server: c.address, Err: transport.Err}
	}
	return err
}

func untrusted(err error) bool {
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid)
}

// Identity returns the UID of the namespace kube-system, by which a cluster is
// told from any other: a rebuilt cluster has a new one, whatever its CA.
func (c *Client) Identity(ctx context.Context) (kubeSystemUID string, err error) {
	ns, err := c.Kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("reading the cluster's identity (namespace kube-system): %w", c.explain(err))
	}
	return string(ns.UID), nil
}
