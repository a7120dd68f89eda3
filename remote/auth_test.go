package remote

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
	"sunbeam.pt/k3s-dualstack/plans"
)

func TestHostKeys(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{hostKeyTypes: []string{"rsa", "ecdsa", "ed25519"}})
	ed := s.hostKeys[2]
	connect := func() (string, error) {
		h, err := Dial(t.Context(), s.host(), s.quick(t))
		if err != nil {
			return "", err
		}
		defer h.Close()
		return h.HostKey(), nil
	}

	for _, known := range s.hostKeys {
		s.trust(t, known)
		shown, err := connect()
		require.NoError(t, err, known.Type())
		require.Equal(t, ssh.FingerprintSHA256(known), shown, "the server is asked for the key that is known")

		hashed := knownhosts.HashHostname(knownhosts.Normalize(s.address())) + " " + string(ssh.MarshalAuthorizedKey(known))
		require.NoError(t, os.WriteFile(s.knownHosts, []byte(hashed), 0o600))
		shown, err = connect()
		require.NoError(t, err, "hashed")
		require.Equal(t, ssh.FingerprintSHA256(known), shown)
	}

	var unknown *UnknownHostKeyError
	require.NoError(t, os.WriteFile(s.knownHosts, nil, 0o600))
	_, err := connect()
	require.ErrorAs(t, err, &unknown)
	require.Equal(t, ed.Marshal(), unknown.Key.Marshal(), "the one that is easiest to compare")
	require.NoError(t, os.Remove(s.knownHosts))
	_, err = connect()
	require.ErrorAs(t, err, &unknown)

	// What the message says is what works.
	_, advice, _ := strings.Cut(err.Error(), "run\n")
	advice, _, _ = strings.Cut(advice, "\n")
	out, err := exec.Command("sh", "-c", advice).CombinedOutput()
	require.NoError(t, err, "%s", out)
	_, err = connect()
	require.NoError(t, err)

	var changed *ChangedHostKeyError
	s.trust(t, testKey(t, 1))
	_, err = connect()
	require.ErrorAs(t, err, &changed)
	require.Equal(t, ed.Marshal(), changed.Key.Marshal())
	require.ErrorContains(t, err, s.knownHosts+":1")
	require.ErrorContains(t, err, ssh.FingerprintSHA256(testKey(t, 1)))
	_, advice, _ = strings.Cut(err.Error(), "remove the old one\n")
	out, err = exec.Command("sh", "-c", advice).CombinedOutput()
	require.NoError(t, err, "%s", out)
	_, err = connect()
	require.ErrorAs(t, err, &unknown)

	// Known by a key of a type that the server no longer has.
	s2 := startServer(t, serverOptions{hostKeyTypes: []string{"ecdsa"}})
	s2.trust(t, ed)
	_, err = Dial(t.Context(), s2.host(), s2.quick(t))
	require.ErrorAs(t, err, &changed)

	line := knownhosts.Line([]string{s.address()}, ed)
	require.NoError(t, os.WriteFile(s.knownHosts, []byte(line+"\n@revoked * "+string(ssh.MarshalAuthorizedKey(ed))), 0o600))
	_, err = connect()
	require.ErrorContains(t, err, "key is revoked")
	require.NoError(t, os.WriteFile(s.knownHosts, []byte("nonsense\n"), 0o600))
	_, err = connect()
	require.ErrorContains(t, err, s.knownHosts+":1")
}

func TestHostCertificate(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{extra: []string{"HostCertificate " + "/nonexistent"}})
	ca := filepath.Join(s.dir, "ca")
	keygen(t, "-t", "ed25519", "-f", ca, "-N", "")
	keygen(t, "-s", ca, "-I", "host", "-h", "-n", "127.0.0.1", filepath.Join(s.dir, "host_ed25519.pub"))
	s.restart(t, func(config string) string {
		return strings.ReplaceAll(config, "/nonexistent", filepath.Join(s.dir, "host_ed25519-cert.pub"))
	})
	authority := readPublic(t, ca+".pub")
	require.NoError(t, os.WriteFile(s.knownHosts, []byte("@cert-authority "+knownhosts.Line([]string{s.address()}, authority)+"\n"), 0o600))
	s.dial(t)
}

func TestKeys(t *testing.T) {
	s := startServer(t, serverOptions{})
	connect := func(h plans.Host, opts ...DialOption) error {
		host, err := Dial(t.Context(), h, append(opts, s.quick(t))...)
		if err == nil {
			host.Close()
		}
		return err
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	t.Setenv("HOME", t.TempDir())
	only := func(files ...string) plans.Host {
		h := s.host()
		h.IdentityFiles = files
		return h
	}

	stranger := filepath.Join(s.dir, "stranger")
	writeKey(t, stranger)
	var auth *AuthError
	err := connect(only(stranger))
	require.ErrorAs(t, err, &auth)
	require.Len(t, auth.Tried, 1)
	require.Contains(t, auth.Tried[0], stranger)
	require.NoError(t, connect(only(stranger, s.key)))
	require.ErrorContains(t, connect(only(filepath.Join(s.dir, "none"))), "does not exist")
	require.ErrorAs(t, connect(only()), &auth)
	require.Empty(t, auth.Tried)

	// Encrypted keys, in both formats: that of ssh-keygen tells its public half, PEM does not.
	public, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("open sesame"))
	require.NoError(t, err)
	encrypted := filepath.Join(s.dir, "encrypted")
	require.NoError(t, os.WriteFile(encrypted, pem.EncodeToMemory(block), 0o600))
	sshPublic, err := ssh.NewPublicKey(public)
	require.NoError(t, err)
	s.letIn(t, sshPublic)
	encryptedPEM := filepath.Join(s.dir, "encrypted-pem")
	keygen(t, "-t", "rsa", "-m", "PEM", "-f", encryptedPEM, "-N", "open sesame")
	s.letIn(t, readPublic(t, encryptedPEM+".pub"))
	withoutPublic := filepath.Join(s.dir, "encrypted-pem-alone")
	data, err := os.ReadFile(encryptedPEM)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(withoutPublic, data, 0o600))
	for _, file := range []string{encrypted, encryptedPEM, withoutPublic} {
		err = connect(only(file))
		require.ErrorAs(t, err, &auth, file)
		require.ErrorContains(t, err, "ssh-add "+file)

		asked := 0
		ask := func(name string) ([]byte, error) {
			asked++
			require.Equal(t, file, name)
			return []byte("open sesame"), nil
		}
		host, err := Dial(t.Context(), only(file), AskPassphrase(ask), s.quick(t))
		require.NoError(t, err, file)
		other, err := host.Another(t.Context())
		require.NoError(t, err)
		other.Close()
		host.Close()
		require.Equal(t, 1, asked, "asked once for all connections")

		err = connect(only(file), AskPassphrase(func(string) ([]byte, error) { return []byte("wrong"), nil }))
		require.ErrorContains(t, err, "the passphrase does not open the key "+file)
		err = connect(only(file), AskPassphrase(func(string) ([]byte, error) { return nil, context.Canceled }))
		require.ErrorIs(t, err, context.Canceled)
	}
	// Nobody is asked for a key that the server would not take.
	err = connect(only(s.key, encrypted), AskPassphrase(func(string) ([]byte, error) { return nil, errors.New("asked") }))
	require.NoError(t, err)

	// The agent.
	ring := agent.NewKeyring()
	require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: private}))
	socket := filepath.Join(s.dir, "agent.sock")
	serveAgent(t, ring, socket)
	t.Setenv("SSH_AUTH_SOCK", socket)
	require.NoError(t, connect(only()), "a key of the agent")
	require.NoError(t, connect(only(encrypted)), "an encrypted file whose key the agent holds")
	require.NoError(t, connect(only(encrypted), AskPassphrase(func(string) ([]byte, error) { return nil, errors.New("asked") })))
	publicFile := filepath.Join(s.dir, "only.pub")
	require.NoError(t, os.WriteFile(publicFile, ssh.MarshalAuthorizedKey(sshPublic), 0o644))
	require.NoError(t, connect(only(publicFile)), "a public key file whose key the agent holds")

	// Among many keys of the agent the named one is first, before the server loses its patience.
	for range 8 {
		_, k, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: k}))
	}
	require.NoError(t, connect(only(s.key)))

	// IdentitiesOnly keeps the agent's other keys away.
	config := filepath.Join(s.dir, "config")
	require.NoError(t, os.WriteFile(config, []byte(fmt.Sprintf("Host *\n IdentitiesOnly yes\n IdentityFile %s\n", stranger)), 0o600))
	h := only()
	h.SSHConfig = config
	require.ErrorAs(t, connect(h), &auth)
	require.Len(t, auth.Tried, 1)

	t.Setenv("SSH_AUTH_SOCK", "/nonexistent/agent")
	require.ErrorAs(t, connect(only(stranger)), &auth)
	require.ErrorContains(t, auth, "/nonexistent/agent")
}

func serveAgent(t *testing.T, ring agent.Agent, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = agent.ServeAgent(ring, c)
				c.Close()
			}()
		}
	}()
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	var unreachable *UnreachableError
	h := s.host()
	h.Port = freePort(t)
	_, err := Dial(t.Context(), h, s.quick(t))
	require.ErrorAs(t, err, &unreachable)
	require.ErrorContains(t, err, "connection refused")

	n := startNetwork(t, s.address())
	n.set(true, false)
	_, err = Dial(t.Context(), s.through(t, n), s.quick(t), func(c *settings) { c.connectTimeout = 200 * time.Millisecond })
	require.ErrorAs(t, err, &unreachable)
	require.ErrorContains(t, err, "no answer within 200ms")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err = Dial(ctx, s.through(t, n), s.quick(t))
	require.ErrorIs(t, err, context.Canceled)

	h.Address = "no-such-host.invalid"
	_, err = Dial(t.Context(), h, s.quick(t))
	require.ErrorAs(t, err, &unreachable)
}

func TestLoginShellThatTalks(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{extra: []string{`ForceCommand echo "Welcome!"; eval "$SSH_ORIGINAL_COMMAND"`}})
	_, err := Dial(t.Context(), s.host(), s.quick(t))
	require.ErrorContains(t, err, `the answer is "Welcome!`)
}

func TestJumpHosts(t *testing.T) {
	t.Parallel()
	first, second, last := startServer(t, serverOptions{}), startServer(t, serverOptions{}), startServer(t, serverOptions{})
	for _, s := range []*server{second, last} {
		s.letIn(t, readPublicOf(t, first.key))
	}
	config := filepath.Join(last.dir, "config")
	write := func(firstKnown string) {
		require.NoError(t, os.WriteFile(config, []byte(fmt.Sprintf(`
Host gate
  HostName 127.0.0.1
  Port %d
  User %s
  UserKnownHostsFile %s
Host middle
  HostName 127.0.0.1
  Port %d
  User %s
  ProxyJump gate
  UserKnownHostsFile %s
Host target
  HostName 127.0.0.1
  Port %d
  ProxyJump middle
  UserKnownHostsFile %s
`, first.port, first.user, firstKnown, second.port, second.user, second.knownHosts, last.port, last.knownHosts)), 0o600))
	}
	write(first.knownHosts)
	h := last.host()
	h.Address, h.Port, h.KnownHosts, h.IdentityFiles, h.SSHConfig = "target", 0, nil, []string{first.key}, config
	host := last.dialAs(t, h)
	out, err := host.Output(t.Context(), "echo $SSH_CONNECTION")
	require.NoError(t, err)
	require.Contains(t, out, fmt.Sprint(last.port))

	// Every hop's key is checked.
	write(filepath.Join(first.dir, "none"))
	_, err = Dial(t.Context(), h, last.quick(t))
	var unknown *UnknownHostKeyError
	require.ErrorAs(t, err, &unknown)
	require.Equal(t, fmt.Sprint(first.port), unknown.Port)
	write(first.knownHosts)
	require.NoError(t, os.WriteFile(last.knownHosts, nil, 0o600))
	_, err = Dial(t.Context(), h, last.quick(t))
	require.ErrorAs(t, err, &unknown)
	require.Equal(t, fmt.Sprint(last.port), unknown.Port)
	require.Contains(t, unknown.Via, fmt.Sprint(second.port))

	// The loss of the first hop is the loss of all.
	last.trust(t, last.hostKeys...)
	n := startNetwork(t, first.address())
	first.trust(t, first.hostKeys...)
	n.rename(t, first)
	port := first.port
	first.port = n.port()
	write(first.knownHosts)
	first.port = port
	host = last.dialAs(t, h)
	result := make(chan error, 1)
	started := filepath.Join(last.dir, "started")
	go func() { result <- host.Run(t.Context(), "echo >"+started+"; sleep 20", Stdin(endless(0))) }()
	expectTrue(t, func() bool { _, err := os.Stat(started); return err == nil }, "the command's start")
	n.set(true, false)
	require.ErrorIs(t, <-result, ErrConnectionLost)
	n.set(false, false)
	require.NoError(t, host.Run(t.Context(), "true"))
}

func readPublicOf(t *testing.T, file string) ssh.PublicKey {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	signer, err := ssh.ParsePrivateKey(data)
	require.NoError(t, err)
	return signer.PublicKey()
}

// TestSudo uses the machine's sudo and a throw-away user, and therefore runs as root only.
func TestSudo(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make a throw-away user")
	}
	for _, tool := range []string{"sudo", "useradd"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("no %s on this machine; install it with apt-get install sudo passwd", tool)
			}
			t.Skipf("no %s on this machine", tool)
		}
	}
	name := fmt.Sprintf("rt%d", os.Getpid())
	run := func(args ...string) {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("useradd", "-m", "-s", "/bin/bash", "-p", "*", name)
	// -f: the session of the last connection may still be ending.
	t.Cleanup(func() { _ = exec.Command("userdel", "-f", "-r", name).Run() })
	rules := "/etc/sudoers.d/" + name
	t.Cleanup(func() { os.Remove(rules) })

	s := startServer(t, serverOptions{user: name})
	h := s.host()
	var sudo *SudoError
	h.Sudo = false
	_, err := Dial(t.Context(), h, s.quick(t))
	require.ErrorAs(t, err, &sudo)
	require.Equal(t, SudoOff, sudo.Reason)

	h.Sudo = true
	_, err = Dial(t.Context(), h, s.quick(t))
	require.ErrorAs(t, err, &sudo)
	require.Contains(t, []SudoReason{SudoPassword, SudoForbidden}, sudo.Reason)

	require.NoError(t, os.WriteFile(rules, []byte(name+" ALL=(ALL) NOPASSWD: ALL\n"), 0o440))
	host := s.dialAs(t, h)
	out, err := host.Output(t.Context(), "id -u; echo $LC_ALL")
	require.NoError(t, err)
	require.Equal(t, "0\nC", out)
	require.NoError(t, host.WriteFile(t.Context(), s.dir+"/root's", []byte("data"), 0o600))
	data, err := host.ReadFile(t.Context(), s.dir+"/root's")
	require.NoError(t, err)
	require.Equal(t, "data", string(data))
	info, err := os.Stat(s.dir + "/root's")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	require.NoError(t, host.StartJob(t.Context(), "sudo", "id -u"))
	var b strings.Builder
	require.NoError(t, host.WaitJob(t.Context(), "sudo", &b))
	require.Equal(t, "0\n", b.String())

	// The end of the context reaches what sudo started.
	file := s.dir + "/pid"
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- host.Run(ctx, "echo $$ >"+file+"; sleep 1000") }()
	expectTrue(t, func() bool { b, _ := os.ReadFile(file); return len(b) > 0 }, "the command's start")
	cancel()
	require.ErrorIs(t, <-result, context.Canceled)
	expectEnd(t, file)
}
