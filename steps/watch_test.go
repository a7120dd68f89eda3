package steps

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/probe"
)

func TestWatchedAPIs(t *testing.T) {
	set := func(values ...string) k3s.Setting { return k3s.Setting{Values: values} }
	for name, test := range map[string]struct {
		nodeIP   []string
		settings map[string]k3s.Setting
		want     []string
	}{
		"both families, as surveyed": {nil, nil, []string{"IPv4 192.0.2.10:6443", "IPv6 [2001:db8::10]:6443"}},
		"as the plan says":           {[]string{"192.0.2.11", "2001:db8::11"}, nil, []string{"IPv4 192.0.2.11:6443", "IPv6 [2001:db8::11]:6443"}},
		"another port":               {nil, map[string]k3s.Setting{"https-listen-port": set("7443")}, []string{"IPv4 192.0.2.10:7443", "IPv6 [2001:db8::10]:7443"}},
		"bound to one address":       {nil, map[string]k3s.Setting{"bind-address": set("10.0.0.1")}, []string{"IPv4 10.0.0.1:6443"}},
		"bound to all of them":       {nil, map[string]k3s.Setting{"bind-address": set("0.0.0.0")}, []string{"IPv4 192.0.2.10:6443", "IPv6 [2001:db8::10]:6443"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := migration(t, func(s *plans.Spec) { s.Network.NodeIP = test.nodeIP })
			m.Facts = facts(t)
			m.Facts.K3s.Settings = test.settings
			var got []string
			for _, a := range m.apis(nil) {
				got = append(got, a.family+" "+a.address)
			}
			assert.Equal(t, test.want, got)
		})
	}
}

// apiServer is a server that answers for /readyz as told, under a CA of its own.
type apiServer struct {
	*httptest.Server
	status     atomic.Int32
	kubeconfig []byte
}

// startAPI starts one at all addresses of this machine.
func startAPI(t *testing.T, port int) *apiServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	s := &apiServer{}
	s.status.Store(http.StatusOK)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "/readyz", r.URL.Path)
		w.WriteHeader(int(s.status.Load()))
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of what is not trusted
	s.Listener.Close()
	s.Listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
	require.NoError(t, err)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	t.Cleanup(s.Close)
	config := clientcmdapi.NewConfig()
	config.Clusters["default"] = &clientcmdapi.Cluster{
		Server:                   fmt.Sprintf("https://127.0.0.1:%d", s.port()),
		CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}
	config.AuthInfos["default"] = &clientcmdapi.AuthInfo{}
	config.Contexts["default"] = &clientcmdapi.Context{Cluster: "default", AuthInfo: "default"}
	config.CurrentContext = "default"
	s.kubeconfig, err = clientcmd.Write(*config)
	require.NoError(t, err)
	return s
}

func (s *apiServer) port() int { return s.Listener.Addr().(*net.TCPAddr).Port }

func TestAPIProbe(t *testing.T) {
	host := sshtest.Dial(t)
	kubeconfig := filepath.Join(t.TempDir(), "k3s.yaml")
	write := func(s *apiServer) { require.NoError(t, os.WriteFile(kubeconfig, s.kubeconfig, 0o600)) }
	s := startAPI(t, 0)
	port := s.port()
	again := func() { s = startAPI(t, port) }
	for _, address := range []string{"127.0.0.1", "::1"} {
		t.Run(address, func(t *testing.T) {
			if address == "::1" {
				sshtest.IPv6(t)
			}
			a := &apiProbe{host: host, kubeconfig: kubeconfig, address: net.JoinHostPort(address, fmt.Sprint(port))}
			check := func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				return a.check(ctx)
			}
			require.NoError(t, os.RemoveAll(kubeconfig))
			assert.ErrorContains(t, check(), "its kubeconfig cannot be read")
			write(s)
			require.NoError(t, check())
			s.status.Store(http.StatusInternalServerError)
			assert.EqualError(t, check(), "readyz: HTTP 500")

			// Other credentials are read once they are there.
			s.status.Store(http.StatusUnauthorized)
			assert.EqualError(t, check(), "readyz: HTTP 401")
			s.status.Store(http.StatusOK)
			assert.NoError(t, check())

			s.Close()
			assert.EqualError(t, check(), "nothing listens there")
			again()
			assert.EqualError(t, check(), "its certificate is of another CA")
			write(s)
			assert.NoError(t, check())

			// Before its first answer, too.
			s.Close()
			a = &apiProbe{host: host, kubeconfig: kubeconfig, address: a.address}
			assert.EqualError(t, check(), "nothing listens there")
			again()
		})
	}
	require.NoError(t, host.Close())
	a := &apiProbe{host: host, kubeconfig: kubeconfig, address: s.Listener.Addr().String()}
	var unknown *probe.UnknownError
	assert.ErrorAs(t, a.check(t.Context()), &unknown)
}
