package cluster

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// kubeconfigFor is a kubeconfig as K3s writes it, changed by change.
func kubeconfigFor(t *testing.T, server string, ca []byte, change func(*clientcmdapi.Config)) []byte {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["default"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos["default"] = &clientcmdapi.AuthInfo{Token: "secret-token"}
	config.Contexts["default"] = &clientcmdapi.Context{Cluster: "default", AuthInfo: "default"}
	config.CurrentContext = "default"
	if change != nil {
		change(config)
	}
	data, err := clientcmd.Write(*config)
	require.NoError(t, err)
	return data
}

// served is a client of an HTTPS server with this handler.
func served(t *testing.T, h http.Handler) *Client {
	t.Helper()
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	c, err := Connect(&net.Dialer{}, kubeconfigFor(t, server.URL, ca, nil))
	require.NoError(t, err)
	return c
}

func TestConnectRefusesWhatIsNoKubeconfig(t *testing.T) {
	const server = "https://127.0.0.1:6443"
	for _, tc := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "names no cluster"},
		{"other YAML", []byte("a: b"), "names no cluster"},
		{"no YAML", []byte("{secret-token"), "cannot be read"},
		{"no context", kubeconfigFor(t, server, nil, func(c *clientcmdapi.Config) { c.CurrentContext = "x" }), `current-context "x"`},
		{"no user", kubeconfigFor(t, server, nil, func(c *clientcmdapi.Config) { delete(c.AuthInfos, "default") }), `the user "default"`},
		{"no such cluster", kubeconfigFor(t, server, nil, func(c *clientcmdapi.Config) { c.Contexts["default"].Cluster = "x" }), `the cluster "x"`},
		{"exec", kubeconfigFor(t, server, nil, func(c *clientcmdapi.Config) {
			c.AuthInfos["default"].Exec = &clientcmdapi.ExecConfig{Command: "rm", APIVersion: "client.authentication.k8s.io/v1"}
		}), "runs a command"},
		{"auth-provider", kubeconfigFor(t, server, nil, func(c *clientcmdapi.Config) {
			c.AuthInfos["default"].AuthProvider = &clientcmdapi.AuthProviderConfig{Name: "gcp"}
		}), "auth-provider"},
		{"files", kubeconfigFor(t, server, nil, func(c *clientcmdapi.Config) { c.AuthInfos["default"].TokenFile = "/etc/shadow" }), "names files"},
		{"http", kubeconfigFor(t, "http://127.0.0.1:8080", nil, nil), "is not https"},
		{"no server", kubeconfigFor(t, "", nil, nil), "is no URL"},
		{"bad CA", kubeconfigFor(t, server, []byte("x"), nil), "credentials cannot be used"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Connect(&net.Dialer{}, tc.data)
			var bad *KubeconfigError
			require.ErrorAs(t, err, &bad)
			require.ErrorContains(t, err, tc.want)
			require.NotContains(t, err.Error(), "secret-token")
		})
	}
}

// recorder is a dialer that notes what it was asked for.
type recorder struct {
	asked chan string
	to    string
	err   error
}

func (d recorder) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	select {
	case d.asked <- network + " " + address:
	default:
	}
	if d.err != nil {
		return nil, d.err
	}
	return (&net.Dialer{}).DialContext(ctx, network, d.to)
}

// The address of the kubeconfig is the dialer's to reach, a proxy of the laptop's
// environment notwithstanding.
func TestConnectDialsThroughTheDialer(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	d := recorder{asked: make(chan string, 1), to: server.Listener.Addr().String()}
	c, err := Connect(d, kubeconfigFor(t, "https://example.com:6443", ca, nil)) // httptest's certificate is for example.com
	require.NoError(t, err)
	require.NoError(t, c.WaitAPI(t.Context(), nil))
	require.Equal(t, "tcp example.com:6443", <-d.asked)

	kubeconfig, stop, err := c.Forward(t.Context())
	require.NoError(t, err)
	defer stop()
	through, err := Connect(&net.Dialer{}, kubeconfig)
	require.NoError(t, err)
	require.NoError(t, through.WaitAPI(t.Context(), nil), "the certificate is checked against the first name still")
	require.Equal(t, "tcp example.com:6443", <-d.asked)
}

func TestForwardEndsWithItsContext(t *testing.T) {
	far, near := net.Pipe()
	defer far.Close()
	d := dialed(func() (net.Conn, error) { return near, nil })
	c, err := Connect(d, kubeconfigFor(t, "https://127.0.0.1:6443", nil, nil))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	kubeconfig, stop, err := c.Forward(ctx)
	require.NoError(t, err)
	config, err := clientcmd.Load(kubeconfig)
	require.NoError(t, err)
	local, err := net.Dial("tcp", strings.TrimPrefix(config.Clusters["default"].Server, "https://"))
	require.NoError(t, err)
	defer local.Close()
	_, err = local.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(far, make([]byte, 1)) // the connection is carried
	require.NoError(t, err)
	cancel()
	_, err = local.Read(make([]byte, 1))
	require.Error(t, err)
	stop()
}

type dialed func() (net.Conn, error)

func (d dialed) DialContext(context.Context, string, string) (net.Conn, error) { return d() }

func TestUnreachableIsTyped(t *testing.T) {
	refused := errors.New("connection refused on the other side")
	c, err := Connect(recorder{err: refused}, kubeconfigFor(t, "https://127.0.0.1:6443", nil, nil))
	require.NoError(t, err)
	_, err = c.Identity(t.Context())
	var unreachable *UnreachableError
	require.ErrorAs(t, err, &unreachable)
	require.ErrorIs(t, err, refused)
	require.Equal(t, "127.0.0.1:6443", unreachable.Server)
}

func FuzzConnect(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Config\nclusters:\n- name: default\n  cluster: {server: https://127.0.0.1:6443}\nusers:\n- name: default\n  user: {token: t}\ncontexts:\n- name: default\n  context: {cluster: default, user: default}\ncurrent-context: default\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Connect(&net.Dialer{}, bytes.Clone(data))
		var bad *KubeconfigError
		if err != nil && !errors.As(err, &bad) {
			t.Fatalf("an error without its type: %v", err)
		}
		if err == nil && (c.REST.ExecProvider != nil || c.REST.TLSClientConfig.KeyFile != "" || c.REST.BearerTokenFile != "") {
			t.Fatal("a kubeconfig that names commands or files was accepted")
		}
	})
}
