// Package sshtest starts a real OpenSSH server on 127.0.0.1 for tests, which
// lets the current user in with throw-away keys.
package sshtest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Missing ends the test for want of something on this machine: as a failure
// where CI=true, else by skipping it.
func Missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Need ends the test when a program is missing that its Debian package pkg
// has, as Missing does.
func Need(t testing.TB, program, pkg string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		file := filepath.Join(dir, program)
		if st, err := os.Stat(file); err == nil && st.Mode()&0o111 != 0 && !st.IsDir() {
			return file
		}
	}
	Missing(t, fmt.Sprintf("%s is missing; install it with: apt-get install %s", program, pkg))
	return ""
}

// Root ends the test where it does not run as root, as Missing does.
func Root(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		Missing(t, "this test needs root")
	}
}

// IPv6 ends the test where this machine has no ::1, as Missing does.
func IPv6(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		Missing(t, fmt.Sprintf("this test needs IPv6: %v", err))
	}
	l.Close()
}

// Start starts a server, which ends with the test, and returns it as a plan names it.
func Start(t testing.TB) plans.Host {
	t.Helper()
	sshd := Need(t, "sshd", "openssh-server")
	if os.Getuid() == 0 {
		require.NoError(t, os.MkdirAll("/run/sshd", 0o755)) // where sshd separates its privileges
	}
	u, err := user.Current()
	require.NoError(t, err)
	dir := t.TempDir()
	hostKey, userKey := key(t, filepath.Join(dir, "host")), key(t, filepath.Join(dir, "id"))
	port := freePort(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	write(t, filepath.Join(dir, "authorized_keys"), string(ssh.MarshalAuthorizedKey(userKey)))
	write(t, filepath.Join(dir, "known_hosts"), knownhosts.Line([]string{knownhosts.Normalize(addr)}, hostKey)+"\n")
	write(t, filepath.Join(dir, "sshd_config"), strings.Join([]string{
		fmt.Sprintf("Port %d", port), "ListenAddress 127.0.0.1", "PidFile none", "UsePAM no", "StrictModes no",
		"PasswordAuthentication no", "PermitRootLogin prohibit-password", "MaxSessions 100", "MaxStartups 100",
		"HostKey " + filepath.Join(dir, "host"), "AuthorizedKeysFile " + filepath.Join(dir, "authorized_keys"), "",
	}, "\n"))
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	cmd := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	cmd.Stderr = log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
	})
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, 10*time.Second, 20*time.Millisecond, "sshd does not listen")
	return plans.Host{
		Name: "host", Role: plans.RoleServer, Address: "127.0.0.1", Port: port, User: u.Username, SSHConfig: "none",
		IdentityFiles: []string{filepath.Join(dir, "id")}, KnownHosts: []string{filepath.Join(dir, "known_hosts")},
	}
}

// Dial starts a server and connects to it.
func Dial(t testing.TB) *remote.Host {
	t.Helper()
	h, err := remote.Dial(context.Background(), Start(t))
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

func key(t testing.TB, file string) ssh.PublicKey {
	t.Helper()
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	require.NoError(t, err)
	write(t, file, string(pem.EncodeToMemory(block)))
	out, err := ssh.NewPublicKey(pub)
	require.NoError(t, err)
	return out
}

func write(t testing.TB, file, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
