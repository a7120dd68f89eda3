package labs

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// keyPair is an SSH key in the forms that files have.
type keyPair struct {
	private []byte // OpenSSH format
	public  ssh.PublicKey
}

func newKey(comment string) (keyPair, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return keyPair{}, fmt.Errorf("making an SSH key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(crypto.PrivateKey(private), comment)
	if err != nil {
		return keyPair{}, fmt.Errorf("making an SSH key: %w", err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return keyPair{}, fmt.Errorf("making an SSH key: %w", err)
	}
	return keyPair{private: pem.EncodeToMemory(block), public: key}, nil
}

func (k keyPair) authorized() []byte { return ssh.MarshalAuthorizedKey(k.public) }

// knownHosts is the line by which a client recognises the host at its published
// port and at its address on the lab's network.
func knownHosts(key ssh.PublicKey, addresses ...string) []byte {
	var names []string
	for _, address := range addresses {
		names = append(names, knownhosts.Normalize(address))
	}
	return []byte(knownhosts.Line(names, key) + "\n")
}
