package remote

import (
	"crypto/ed25519"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, []byte(got+"\n"), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got+"\n")
}

func testKey(t *testing.T, seed byte) ssh.PublicKey {
	t.Helper()
	private := ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), seed))
	key, err := ssh.NewPublicKey(private.Public())
	require.NoError(t, err)
	return key
}

func TestMessages(t *testing.T) {
	old, new := testKey(t, 1), testKey(t, 2)
	for name, err := range map[string]error{
		"unknown-key.txt": &UnknownHostKeyError{Host: "node1", Address: "192.0.2.7", Port: "2222", Key: new,
			Files: []string{"/home/ada/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"}},
		"unknown-key-jump.txt": &UnknownHostKeyError{Host: "node1", Address: "10.0.0.5", Port: "22", Via: "ada@gate:22", Key: new,
			Files: []string{"/home/ada/my hosts"}},
		"changed-key.txt": &ChangedHostKeyError{Host: "node1", Address: "192.0.2.7", Port: "2222", Key: new,
			Known: []knownhosts.KnownKey{{Key: old, Filename: "/home/ada/.ssh/known_hosts", Line: 12}, {Key: old, Filename: "/etc/ssh/ssh_known_hosts", Line: 1}}},
		"changed-key-in-run.txt": &ChangedHostKeyError{Host: "node1", Address: "192.0.2.7", Port: "22", Key: new, Known: []knownhosts.KnownKey{{Key: old}}},
		"auth.txt": &AuthError{Host: "node1", User: "ada", Address: "192.0.2.7", Port: "2222",
			Tried:  []string{"ssh-ed25519 SHA256:abc (/home/ada/.ssh/id_ed25519)", "ssh-rsa SHA256:def (agent)"},
			Unused: []string{"/home/ada/.ssh/id_rsa: the key is encrypted"}, Err: errors.New("ssh: unable to authenticate")},
		"auth-none.txt":     &AuthError{Host: "node1", User: "ada", Address: "fd00::7", Port: "22", Err: errors.New("ssh: unable to authenticate")},
		"unreachable.txt":   &UnreachableError{Host: "node1", Address: "fd00::7", Port: "22", Via: "ada@gate:22", Err: errors.New("connection refused")},
		"sudo-off.txt":      &SudoError{Host: "node1", User: "ada", Reason: SudoOff},
		"sudo-password.txt": &SudoError{Host: "node1", User: "ada", Reason: SudoPassword, Stderr: "sudo: a password is required\n"},
		"sudo-missing.txt":  &SudoError{Host: "node1", User: "ada", Reason: SudoMissing},
		"sudo-terminal.txt": &SudoError{Host: "node1", User: "ada", Reason: SudoTerminal},
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, err.Error()) })
	}
}

func TestSudoReason(t *testing.T) {
	for _, c := range []struct {
		code   int
		stderr string
		want   SudoReason
	}{
		{127, "bash: line 1: sudo: command not found", SudoMissing},
		{127, "env: 'sudo': No such file or directory", SudoMissing},
		{1, "sudo: a password is required", SudoPassword},
		{1, "sudo: no tty present and no askpass program specified", SudoPassword},
		{1, "sudo: sorry, you must have a tty to run sudo", SudoTerminal},
		{1, "ada is not in the sudoers file.", SudoForbidden},
		{1, "Sorry, user ada may not run sudo on node1.", SudoForbidden},
		{1, "sudo: unable to open /run/sudo/ts", SudoFailed},
	} {
		require.Equal(t, c.want, sudoReason(&ExitError{Code: c.code, Stderr: c.stderr}), c.stderr)
	}
}
