package remote

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"sunbeam.pt/k3s-dualstack/plans"
)

// A rescue system's host key is accepted when it is seen first, and from then on no other.
func TestRescueHostKey(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	h := s.host()
	h.KnownHosts = []string{filepath.Join(t.TempDir(), "none")}
	var unknown *UnknownHostKeyError
	_, err := Dial(t.Context(), h, s.quick(t))
	require.ErrorAs(t, err, &unknown)

	host, err := Dial(t.Context(), h, s.quick(t), Rescue(""))
	require.NoError(t, err)
	t.Cleanup(func() { host.Close() })
	require.Equal(t, ssh.FingerprintSHA256(s.hostKeys[0]), host.HostKey())
	another, err := host.Another(t.Context())
	require.NoError(t, err)
	another.Close()

	s.stop()
	file := filepath.Join(s.dir, "host_ed25519")
	require.NoError(t, os.Remove(file))
	keygen(t, "-t", "ed25519", "-f", file, "-N", "")
	s.start(t, findSSHD(t))
	var changed *ChangedHostKeyError
	_, err = host.Another(t.Context())
	require.ErrorAs(t, err, &changed)
}

// The password lets in and is what sudo wants, and stands in no error. With a real sshd, a real sudo and a throw-away user.
func TestRescuePassword(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make a throw-away user")
	}
	for _, tool := range []string{"sudo", "useradd", "chpasswd"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("no %s on this machine; install it with apt-get install sudo passwd", tool)
			}
			t.Skipf("no %s on this machine", tool)
		}
	}
	const password = "the-Rescue's password 7"
	name := fmt.Sprintf("rr%d", os.Getpid())
	out, err := exec.Command("useradd", "-m", "-s", "/bin/bash", name).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() { _ = exec.Command("userdel", "-f", "-r", name).Run() })
	set := exec.Command("chpasswd")
	set.Stdin = strings.NewReader(name + ":" + password + "\n")
	out, err = set.CombinedOutput()
	require.NoError(t, err, "%s", out)
	rules := "/etc/sudoers.d/" + name
	require.NoError(t, os.WriteFile(rules, []byte(name+" ALL=(ALL) ALL\n"), 0o440))
	t.Cleanup(func() { os.Remove(rules); os.Remove("/etc/sudoers.d/zz-k3s-dualstack") })

	// Whoever is logged in meanwhile would see what sudo and its parent are given as arguments: that is recorded.
	tools, err := os.MkdirTemp("", "remote-sudo-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(tools) })
	require.NoError(t, os.Chmod(tools, 0o755))
	log := filepath.Join(tools, "log")
	require.NoError(t, os.WriteFile(log, nil, 0o600))
	require.NoError(t, os.Chmod(log, 0o666))
	sudo, err := exec.LookPath("sudo")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(tools, "sudo"), []byte(fmt.Sprintf("#!/bin/sh\n{ echo \"sudo $*\"; cat /proc/$$/cmdline /proc/$PPID/cmdline | tr '\\0' ' '; tr '\\0' '\\n' </proc/$$/environ; echo; } >>%s 2>/dev/null\nexec %s \"$@\"\n", log, sudo)), 0o755))

	s := startServer(t, serverOptions{user: name, extra: []string{"SetEnv PATH=" + tools + ":/usr/local/bin:/usr/bin:/bin"}})
	s.stop()
	config, err := os.ReadFile(s.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.config, []byte(strings.Replace(string(config), "PasswordAuthentication no", "PasswordAuthentication yes", 1)), 0o600))
	s.start(t, findSSHD(t))
	h := s.host()
	h.Sudo, h.KnownHosts = true, []string{filepath.Join(t.TempDir(), "none")}
	h.IdentityFiles = []string{filepath.Join(s.dir, "nobody's")}
	writeKey(t, h.IdentityFiles[0])

	var auth *AuthError
	_, err = Dial(t.Context(), h, s.quick(t), Rescue("wrong "+password))
	require.ErrorAs(t, err, &auth)
	require.Contains(t, err.Error(), "the rescue system's password")
	require.NotContains(t, err.Error(), password)

	// The system in whose place it comes is given nothing, whichever way it lets in.
	own := ssh.FingerprintSHA256(s.hostKeys[0])
	byKey := h
	byKey.IdentityFiles = []string{s.key}
	for _, h := range []plans.Host{h, byKey} {
		_, err = Dial(t.Context(), h, s.quick(t), Rescue(password, "SHA256:other", own))
		require.Error(t, err)
		require.NoFileExists(t, "/etc/sudoers.d/zz-k3s-dualstack")
	}
	require.ErrorContains(t, err, "it is not the rescue system that answers")

	host, err := Dial(t.Context(), h, s.quick(t), Rescue(password, "SHA256:other"))
	require.NoError(t, err)
	t.Cleanup(func() { host.Close() })
	id, err := host.Output(t.Context(), "id -u")
	require.NoError(t, err)
	require.Equal(t, "0", id)
	seen, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Contains(t, string(seen), "sudo -S -p", "the one that is given the password")
	require.NotContains(t, string(seen), "password 7", "whole, or as far as it may be quoted")
}
