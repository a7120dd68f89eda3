// Package login is what logging in to a host of the lab takes: key pairs, the known_hosts line, a port of this
// machine, and the wait until sshd is there. It knows nothing of what the host is.
package login

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// KeyPair is an SSH key in the forms that files have.
type KeyPair struct {
	Private []byte // OpenSSH format
	Public  ssh.PublicKey
}

// NewKey makes an ed25519 key.
func NewKey(comment string) (KeyPair, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return KeyPair{}, fmt.Errorf("making an SSH key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(crypto.PrivateKey(private), comment)
	if err != nil {
		return KeyPair{}, fmt.Errorf("making an SSH key: %w", err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return KeyPair{}, fmt.Errorf("making an SSH key: %w", err)
	}
	return KeyPair{Private: pem.EncodeToMemory(block), Public: key}, nil
}

// Authorized is the public key as a line of authorized_keys.
func (k KeyPair) Authorized() []byte { return ssh.MarshalAuthorizedKey(k.Public) }

// KnownHosts is the line by which a client recognises the host at its addresses, such as its published
// port and its address on the lab's network.
func KnownHosts(key ssh.PublicKey, addresses ...string) []byte {
	var names []string
	for _, address := range addresses {
		names = append(names, knownhosts.Normalize(address))
	}
	return []byte(knownhosts.Line(names, key) + "\n")
}
