package remote

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// hostKeys checks the key of one SSH server against the known_hosts files.
type hostKeys struct {
	check ssh.HostKeyCallback
	known []knownhosts.KnownKey // for this server's address
	files []string
}

func readHostKeys(e endpoint) (*hostKeys, error) {
	var present []string
	for _, f := range e.knownHosts {
		if _, err := os.Stat(f); err == nil {
			present = append(present, f)
		}
	}
	check, err := knownhosts.New(present...)
	if err != nil {
		return nil, fmt.Errorf("reading known_hosts: %w; correct or remove the line", err)
	}
	k := &hostKeys{check: check, files: e.knownHosts}
	// Asking for a key that nobody has makes the check tell all keys of the address, hashed entries included.
	probe, err := ssh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)))
	if err != nil {
		return nil, err
	}
	var keyErr *knownhosts.KeyError
	if err := check(joinHostPort(e.address, e.port), &net.TCPAddr{IP: net.IPv4zero}, probe); errors.As(err, &keyErr) {
		k.known = keyErr.Want
	}
	return k, nil
}

// algorithms orders the host key algorithms so that a server with several keys shows the one that is known.
// All others follow: a server that no longer has the known key is then told as changed.
func (k *hostKeys) algorithms() []string {
	var first, rest []string
	for _, known := range k.known {
		algorithms := signatureAlgorithms(known.Key.Type())
		if k.isAuthority(known) {
			// The line's key signs host keys of any type.
			for _, a := range ssh.SupportedAlgorithms().HostKeys {
				if strings.Contains(a, "-cert-") {
					first = append(first, a)
				}
			}
			continue
		}
		first = append(first, algorithms...)
	}
	for _, a := range ssh.SupportedAlgorithms().HostKeys {
		if !strings.Contains(a, "-cert-") {
			rest = append(rest, a)
		}
	}
	// Without a known key the one that people compare most easily comes first.
	slices.SortStableFunc(rest, func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == ssh.KeyAlgoED25519:
			return -1
		case b == ssh.KeyAlgoED25519:
			return 1
		}
		return 0
	})
	var all []string
	for _, a := range append(first, rest...) {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

func signatureAlgorithms(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{keyType}
}

// isAuthority looks at the line itself, since the library does not tell authorities from host keys.
func (k *hostKeys) isAuthority(known knownhosts.KnownKey) bool {
	data, err := os.ReadFile(known.Filename)
	if err != nil {
		return false
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, len(data)+1)
	for n := 1; lines.Scan(); n++ {
		if n == known.Line {
			return strings.HasPrefix(strings.TrimSpace(lines.Text()), "@cert-authority")
		}
	}
	return false
}

// explain turns the library's finding into an error that says what to do.
func (k *hostKeys) explain(host, via string, e endpoint, key ssh.PublicKey, err error) error {
	var keyErr *knownhosts.KeyError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &keyErr) && len(keyErr.Want) == 0:
		return &UnknownHostKeyError{Host: host, Address: e.address, Port: e.port, Via: via, Key: key, Files: k.files}
	case errors.As(err, &keyErr):
		return &ChangedHostKeyError{Host: host, Address: e.address, Port: e.port, Key: key, Known: keyErr.Want}
	}
	return fmt.Errorf("host %s: the host key %s of %s is refused: %w", host, ssh.FingerprintSHA256(key), joinHostPort(e.address, e.port), err)
}
