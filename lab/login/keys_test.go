package login

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// The keys that a client gets must be those that the host shows.
func TestKeysFitTheirKnownHosts(t *testing.T) {
	key, err := NewKey("host")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(key.Private)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(file, KnownHosts(key.Public, "127.0.0.1:2222", "fd30::10"), 0o600); err != nil {
		t.Fatal(err)
	}
	check, err := knownhosts.New(file)
	if err != nil {
		t.Fatal(err)
	}
	for address, port := range map[string]int{"127.0.0.1": 2222, "fd30::10": 22} {
		remote := &net.TCPAddr{IP: net.ParseIP(address), Port: port}
		if err := check(net.JoinHostPort(address, strconv.Itoa(port)), remote, signer.PublicKey()); err != nil {
			t.Errorf("%s: %v", remote, err)
		}
	}
	other, err := NewKey("other")
	if err != nil {
		t.Fatal(err)
	}
	if err := check("127.0.0.1:2222", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2222}, other.Public); err == nil {
		t.Error("another key was accepted")
	}
}
