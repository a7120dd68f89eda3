package remote

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"sunbeam.pt/k3s-dualstack/plans"
)

// server is a real OpenSSH server on 127.0.0.1 that lets the current user in with one throw-away key.
type server struct {
	dir        string
	port       int
	user       string
	hostKeys   []ssh.PublicKey
	key        string // private key file that is let in
	authorized string
	knownHosts string
	cmd        *exec.Cmd
	config     string
}

type serverOptions struct {
	hostKeyTypes []string // of ssh-keygen; default ed25519
	extra        []string // lines of sshd_config
	user         string   // default: the current user
}

func findSSHD(t testing.TB) string {
	t.Helper()
	for _, p := range []string{"/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	const why = "no sshd on this machine; install it with: apt-get install openssh-server"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
	return ""
}

func startServer(t testing.TB, o serverOptions) *server {
	t.Helper()
	sshd := findSSHD(t)
	u, err := user.Current()
	require.NoError(t, err)
	if o.user == "" {
		o.user = u.Username
	}
	if os.Getuid() == 0 {
		require.NoError(t, os.MkdirAll("/run/sshd", 0o755)) // sshd's directory for privilege separation
	}
	// Not t.TempDir: a throw-away user must be able to pass through it.
	dir, err := os.MkdirTemp("", "remote-sshd-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	s := &server{dir: dir, user: o.user, key: filepath.Join(dir, "id"), authorized: filepath.Join(dir, "authorized_keys"), knownHosts: filepath.Join(dir, "known_hosts"), config: filepath.Join(dir, "sshd_config")}

	if o.hostKeyTypes == nil {
		o.hostKeyTypes = []string{"ed25519"}
	}
	lines := []string{
		"ListenAddress 127.0.0.1", "PidFile none", "UsePAM no", "StrictModes no", "PasswordAuthentication no",
		"PermitRootLogin prohibit-password", "AuthorizedKeysFile " + s.authorized, "MaxSessions 100", "MaxStartups 100",
		"AllowTcpForwarding yes",
	}
	for _, typ := range o.hostKeyTypes {
		file := filepath.Join(dir, "host_"+typ)
		keygen(t, "-t", typ, "-f", file, "-N", "")
		lines = append(lines, "HostKey "+file)
		s.hostKeys = append(s.hostKeys, readPublic(t, file+".pub"))
	}
	public := writeKey(t, s.key)
	require.NoError(t, os.WriteFile(s.authorized, ssh.MarshalAuthorizedKey(public), 0o644))
	if os.Getuid() != 0 && o.user == u.Username && exec.Command("sudo", "-n", "true").Run() != nil {
		// No real sudo to be had: this FAKE runs the command as the user who logged in.
		bin := filepath.Join(dir, "fake-sudo-bin")
		require.NoError(t, os.Mkdir(bin, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(bin, "sudo"), []byte("#!/bin/sh\n# FAKE sudo of the tests\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n"), 0o755))
		lines = append(lines, "SetEnv PATH="+bin+":/usr/local/bin:/usr/bin:/bin")
	}
	lines = append(lines, o.extra...)

	s.port = freePort(t)
	lines = append(lines, "Port "+strconv.Itoa(s.port))
	require.NoError(t, os.WriteFile(s.config, []byte(strings.Join(lines, "\n")+"\n"), 0o644))
	s.start(t, sshd)
	t.Cleanup(func() { s.stop() })
	s.trust(t, s.hostKeys...)
	return s
}

func (s *server) start(t testing.TB, sshd string) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	defer log.Close()
	s.cmd = exec.Command(sshd, "-D", "-e", "-f", s.config)
	s.cmd.Stderr = log
	require.NoError(t, s.cmd.Start())
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", s.address())
		if err != nil {
			return false
		}
		c.Close()
		return true
	}, time.Minute, 20*time.Millisecond, "sshd does not listen; see its log in %s", s.dir)
}

func (s *server) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *server) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// restart starts the server anew with another configuration, on the same port.
func (s *server) restart(t testing.TB, change func(config string) string) {
	t.Helper()
	s.stop()
	data, err := os.ReadFile(s.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.config, []byte(change(string(data))), 0o644))
	s.start(t, findSSHD(t))
}

// letIn adds a key to those that are let in.
func (s *server) letIn(t testing.TB, key ssh.PublicKey) {
	t.Helper()
	f, err := os.OpenFile(s.authorized, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(ssh.MarshalAuthorizedKey(key))
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// trust writes the known_hosts file.
func (s *server) trust(t testing.TB, keys ...ssh.PublicKey) {
	t.Helper()
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(knownhosts.Line([]string{s.address()}, k) + "\n")
	}
	require.NoError(t, os.WriteFile(s.knownHosts, []byte(b.String()), 0o644))
}

// host is the plan's entry for the server.
func (s *server) host() plans.Host {
	return plans.Host{
		Name: "node1", Address: "127.0.0.1", Port: s.port, User: s.user, Sudo: true,
		IdentityFiles: []string{s.key}, KnownHosts: []string{s.knownHosts}, SSHConfig: "none",
	}
}

// quick makes everything that waits short, and keeps the state directory apart.
func (s *server) quick(t testing.TB) DialOption {
	return func(c *settings) {
		c.stateDir = filepath.Join(s.dir, "state")
		c.connectTimeout = time.Minute
		c.keepalive = 2 * time.Second
		c.backoff = 20 * time.Millisecond
		c.maxBackoff = 100 * time.Millisecond
		c.redialFor = time.Minute
	}
}

func (s *server) dial(t testing.TB) *Host { return s.dialAs(t, s.host()) }

func (s *server) dialAs(t testing.TB, h plans.Host) *Host {
	t.Helper()
	host, err := Dial(t.Context(), h, s.quick(t))
	require.NoError(t, err)
	t.Cleanup(func() { host.Close() })
	return host
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func keygen(t testing.TB, args ...string) {
	t.Helper()
	out, err := exec.Command("ssh-keygen", append([]string{"-q"}, args...)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func readPublic(t testing.TB, file string) ssh.PublicKey {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	require.NoError(t, err)
	return key
}

// writeKey makes a new ed25519 key, unencrypted.
func writeKey(t testing.TB, file string) ssh.PublicKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return signer.PublicKey()
}

// through is the plan's entry for the server behind n.
func (s *server) through(t testing.TB, n *network) plans.Host {
	t.Helper()
	n.rename(t, s)
	h := s.host()
	h.Port = n.port()
	return h
}

// rename makes what the server is known by hold for the network's address.
func (n *network) rename(t testing.TB, s *server) {
	t.Helper()
	data, err := os.ReadFile(s.knownHosts)
	require.NoError(t, err)
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		_, key, _ := strings.Cut(line, " ")
		b.WriteString(knownhosts.Normalize(n.listener.Addr().String()) + " " + key)
	}
	require.NoError(t, os.WriteFile(s.knownHosts, []byte(b.String()), 0o644))
}

// network is a TCP proxy before the server that can be cut in the two ways in which networks fail.
type network struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	conns map[net.Conn]bool
	mute  bool // swallow all data: a blackhole
	down  bool // close new connections at once
	wg    sync.WaitGroup
}

func startNetwork(t testing.TB, to string) *network {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n := &network{listener: l, to: to, conns: map[net.Conn]bool{}}
	n.wg.Go(n.serve)
	t.Cleanup(func() {
		l.Close()
		n.reset()
		n.wg.Wait()
	})
	return n
}

func (n *network) port() int { return n.listener.Addr().(*net.TCPAddr).Port }

func (n *network) serve() {
	for {
		c, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.mu.Lock()
		down := n.down
		n.mu.Unlock()
		if down {
			c.Close()
			continue
		}
		s, err := net.Dial("tcp", n.to)
		if err != nil {
			c.Close()
			continue
		}
		n.mu.Lock()
		n.conns[c], n.conns[s] = true, true
		n.mu.Unlock()
		n.wg.Go(func() { n.pass(s, c) })
		n.wg.Go(func() { n.pass(c, s) })
	}
}

func (n *network) pass(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		count, err := from.Read(buf)
		n.mu.Lock()
		mute := n.mute
		n.mu.Unlock()
		if mute {
			count = 0
		}
		if count > 0 {
			if _, err := to.Write(buf[:count]); err != nil {
				return
			}
		}
		if err != nil {
			if mute {
				// Not even the end gets through a blackhole.
				return
			}
			return
		}
	}
}

// reset ends every connection, as a router does that lost its state.
func (n *network) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		c.Close()
		delete(n.conns, c)
	}
}

func (n *network) set(mute, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mute, n.down = mute, down
}

// expectEnd waits for the end of the process whose id is in file.
func expectEnd(t *testing.T, file string) {
	t.Helper()
	expectTrue(t, func() bool {
		pid, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, "the end of the command")
}

func expectTrue(t *testing.T, cond func() bool, what string) {
	t.Helper()
	require.Eventually(t, cond, time.Minute, 10*time.Millisecond, fmt.Sprintf("never happened: %s", what))
}
