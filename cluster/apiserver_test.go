//go:build e2e

package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The tests with the tag e2e speak to a real kube-apiserver on a real kine (SQLite),
// with the controllers that bind volumes, and no node. KUBERNETES_PARTS is the
// directory of the lab's binaries `kubernetes` and `kine`; each API server is
// started once and kept for all tests.

// apiServer is a running control plane.
type apiServer struct {
	dir        string
	kubeconfig []byte
	port       int
	args       []string // of kube-apiserver
	proc       *process // kube-apiserver's
	binder     *process // kube-controller-manager's
	all        []*process
}

// Service ranges of the two kinds of cluster, as before and after a migration.
const (
	singleStack = "10.43.0.0/16"
	dualStack   = "10.43.0.0/16,fd43::/108"
)

var servers struct {
	sync.Mutex
	by map[string]*apiServer
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, s := range servers.by {
		s.stop()
		os.RemoveAll(s.dir)
	}
	os.Exit(code)
}

// startedWith returns the API server with these service ranges, starting it if need be.
// binaries is the directory of the control plane's binaries.
func binaries(t *testing.T) string {
	t.Helper()
	parts := os.Getenv("KUBERNETES_PARTS")
	if parts == "" {
		t.Fatal("KUBERNETES_PARTS names no directory with the binaries kubernetes and kine; `make e2e` sets it")
	}
	return parts
}

func startedWith(t *testing.T, serviceRanges string) *apiServer {
	t.Helper()
	parts := binaries(t)
	servers.Lock()
	defer servers.Unlock()
	if s := servers.by[serviceRanges]; s != nil {
		return s
	}
	s, err := startAPIServer(parts, serviceRanges)
	require.NoError(t, err)
	if servers.by == nil {
		servers.by = map[string]*apiServer{}
	}
	servers.by[serviceRanges] = s
	return s
}

// connected is a client of an API server that is ready.
func connected(t *testing.T, serviceRanges string) *Client {
	t.Helper()
	s := startedWith(t, serviceRanges)
	if err := s.ready(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, s.logs())
	}
	c, err := Connect(&net.Dialer{}, s.kubeconfig)
	require.NoError(t, err)
	return c
}

func startAPIServer(parts, serviceRanges string) (_ *apiServer, err error) {
	dir, err := os.MkdirTemp("", "cluster-e2e-")
	if err != nil {
		return nil, err
	}
	s := &apiServer{dir: dir}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	for _, name := range []string{"kube-apiserver", "kube-controller-manager"} {
		if err := os.Symlink(filepath.Join(parts, "kubernetes"), s.file(name)); err != nil {
			return nil, err
		}
	}
	if s.port, err = freePort(); err != nil {
		return nil, err
	}
	if err := s.credentials(); err != nil {
		return nil, err
	}
	socket := "unix://" + s.file("kine.sock")
	if _, err := s.start(filepath.Join(parts, "kine"), "--endpoint", "sqlite://"+s.file("state.db")+"?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate", "--listen-address", socket, "--metrics-bind-address", "0"); err != nil {
		return nil, err
	}
	s.args = []string{
		"--etcd-servers=" + socket, "--secure-port=" + fmt.Sprint(s.port), "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=" + serviceRanges, "--authorization-mode=Node,RBAC",
		"--client-ca-file=" + s.file("ca.crt"), "--tls-cert-file=" + s.file("server.crt"), "--tls-private-key-file=" + s.file("server.key"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + s.file("server.key"), "--service-account-signing-key-file=" + s.file("server.key"),
		"--proxy-client-cert-file=" + s.file("admin.crt"), "--proxy-client-key-file=" + s.file("admin.key"), "--requestheader-client-ca-file=" + s.file("ca.crt"),
		"--anonymous-auth=false", "--disable-admission-plugins=ServiceAccount",
	}
	s.proc, err = s.start(s.file("kube-apiserver"), s.args...)
	return s, err
}

// ready waits for the API server, and starts the volume binder (it alone: namespaces
// and workloads stay as the tests write them) when the first test is through here.
func (s *apiServer) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	proc := s.proc
	go func() {
		select {
		case <-proc.gone: // it will not come any more
			cancel()
		case <-ctx.Done():
		}
	}()
	c, err := Connect(&net.Dialer{}, s.kubeconfig)
	if err != nil {
		return err
	}
	if err := c.WaitAPI(ctx, nil); err != nil {
		return err
	}
	if s.binder == nil {
		s.binder, err = s.start(s.file("kube-controller-manager"), "--kubeconfig="+s.file("kubeconfig"), "--leader-elect=false", "--secure-port=0",
			"--controllers=persistentvolume-binder-controller")
	}
	return err
}

func (s *apiServer) file(name string) string { return filepath.Join(s.dir, name) }

// again starts the API server that was ended.
func (s *apiServer) again() error {
	var err error
	s.proc, err = s.start(s.file("kube-apiserver"), s.args...)
	return err
}

type process struct {
	cmd  *exec.Cmd
	gone chan struct{}
}

func (s *apiServer) start(name string, args ...string) (*process, error) {
	out, err := os.Create(s.file(filepath.Base(name) + ".log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, gone: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(p.gone)
	}()
	s.all = append(s.all, p)
	return p, nil
}

func (p *process) end() {
	select {
	case <-p.gone: // its number may be another process's by now
		return
	default:
	}
	p.cmd.Process.Kill()
	<-p.gone
}

func (s *apiServer) stop() {
	for i := len(s.all) - 1; i >= 0; i-- {
		s.all[i].end()
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// credentials writes a CA, the server's certificate, an admin's, and the kubeconfig.
func (s *apiServer) credentials() error {
	ca, caKey, caPEM, _, err := certificate(nil, nil, &x509.Certificate{Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature})
	if err != nil {
		return err
	}
	_, _, serverPEM, serverKey, err := certificate(ca, caKey, &x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature})
	if err != nil {
		return err
	}
	_, _, adminPEM, adminKey, err := certificate(ca, caKey, &x509.Certificate{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature})
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: fmt.Sprintf("https://127.0.0.1:%d", s.port), CertificateAuthorityData: caPEM}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: adminPEM, ClientKeyData: adminKey}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	if s.kubeconfig, err = clientcmd.Write(*config); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"ca.crt": caPEM, "server.crt": serverPEM, "server.key": serverKey, "admin.crt": adminPEM, "admin.key": adminKey, "kubeconfig": s.kubeconfig} {
		if err := os.WriteFile(s.file(name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// certificate signs tmpl with ca (with its own key when ca is nil).
func certificate(ca *x509.Certificate, caKey *ecdsa.PrivateKey, tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	tmpl.BasicConstraintsValid = true
	if ca == nil {
		ca, caKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, key.Public(), caKey)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), nil
}

// logs is the end of what the control plane wrote.
func (s *apiServer) logs() string {
	var out strings.Builder
	names, _ := filepath.Glob(s.file("*.log"))
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			data = []byte(err.Error())
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&out, "%s:\n%s\n", filepath.Base(name), strings.Join(lines[max(0, len(lines)-8):], "\n"))
	}
	return out.String()
}

// logged prints the logs when the test fails.
func (s *apiServer) logged(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.logs())
		}
	})
}
