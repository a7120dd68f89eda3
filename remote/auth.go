package remote

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// AskFunc returns the passphrase of an encrypted private key file.
type AskFunc func(keyFile string) ([]byte, error)

// AskPassphrase lets Dial ask for the passphrase of an encrypted key, once in the life of the Host and only
// when a server is ready to accept that key. Without it encrypted keys are used through the agent alone.
func AskPassphrase(ask AskFunc) DialOption {
	return func(s *settings) { s.keys.ask = ask }
}

// keyring keeps keys that were opened once, so that reconnections never ask again.
type keyring struct {
	ask AskFunc

	mu     sync.Mutex
	opened map[string]ssh.Signer
}

// offer is what is offered to one server, and what the user is told when none of it is accepted.
type offer struct {
	signers []ssh.Signer
	tried   []string
	unused  []string
	close   func()
}

// offer collects the keys for e: the named files first, since servers close the connection after a handful
// of attempts, then the agent's.
func (k *keyring) offer(e endpoint) (*offer, error) {
	o := &offer{close: func() {}}
	held := k.agentKeys(e, o)
	seen := map[string]bool{}
	add := func(s ssh.Signer, from string) {
		id := string(s.PublicKey().Marshal())
		if seen[id] {
			return
		}
		seen[id] = true
		o.signers = append(o.signers, s)
		o.tried = append(o.tried, fmt.Sprintf("%s %s (%s)", s.PublicKey().Type(), ssh.FingerprintSHA256(s.PublicKey()), from))
	}
	var fromAgent []ssh.PublicKey // public halves of the named files, for the agent to sign with
	for _, file := range e.identities {
		signer, public, err := k.open(file.path)
		var locked *unlockError
		if errors.As(err, &locked) {
			o.close()
			return nil, err
		}
		if locked, ok := signer.(*lockedKey); ok {
			// Held by the agent as well: nobody need be asked.
			if i := slices.IndexFunc(held, func(s ssh.Signer) bool { return sameKey(s.PublicKey(), locked.public) }); i >= 0 {
				signer = held[i]
			}
		}
		switch {
		case err == nil:
			add(signer, file.path)
		case errors.Is(err, fs.ErrNotExist) && !file.planned:
		case errors.Is(err, fs.ErrNotExist):
			o.close()
			return nil, fmt.Errorf("the plan's identity file %s does not exist", file.path)
		default:
			if public != nil {
				fromAgent = append(fromAgent, public)
				if i := slices.IndexFunc(held, func(s ssh.Signer) bool { return sameKey(s.PublicKey(), public) }); i >= 0 {
					add(held[i], file.path+" through the agent")
					continue
				}
			}
			o.unused = append(o.unused, fmt.Sprintf("%s: %v", file.path, err))
		}
	}
	for _, s := range held {
		if e.identitiesOnly && !slices.ContainsFunc(fromAgent, func(p ssh.PublicKey) bool { return sameKey(p, s.PublicKey()) }) {
			continue
		}
		add(s, "agent")
	}
	return o, nil
}

func sameKey(a, b ssh.PublicKey) bool { return string(a.Marshal()) == string(b.Marshal()) }

// agentKeys connects to the agent; its signers work until o.close.
func (k *keyring) agentKeys(e endpoint, o *offer) []ssh.Signer {
	if e.agent == "" {
		return nil
	}
	conn, err := net.Dial("unix", e.agent)
	if err != nil {
		o.unused = append(o.unused, fmt.Sprintf("agent: %v", err))
		return nil
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		conn.Close()
		o.unused = append(o.unused, fmt.Sprintf("agent at %s: %v", e.agent, err))
		return nil
	}
	o.close = func() { conn.Close() }
	return signers
}

// open reads a private key file. For an encrypted one that cannot be opened here it returns the public key,
// when that can be learned, beside the error.
func (k *keyring) open(path string) (ssh.Signer, ssh.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.opened[path]; s != nil {
		return s, nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.ParsePrivateKey(data)
	var encrypted *ssh.PassphraseMissingError
	switch {
	case err == nil:
	case errors.As(err, &encrypted):
		public := encrypted.PublicKey
		if public == nil {
			if line, err := os.ReadFile(path + ".pub"); err == nil {
				public, _, _, _, _ = ssh.ParseAuthorizedKey(line)
			}
		}
		switch {
		case k.ask == nil:
			return nil, public, fmt.Errorf("the key is encrypted and there is no terminal to ask for its passphrase; add it to the agent: ssh-add %s", Quote(path))
		case public == nil:
			// The server cannot be asked about a key whose public half is unknown.
			if signer, err = k.decrypt(path, data); err != nil {
				return nil, nil, err
			}
		default:
			signer = &lockedKey{public: public, open: sync.OnceValues(func() (ssh.Signer, error) { return k.decrypt(path, data) })}
		}
	default:
		if public, _, _, _, pubErr := ssh.ParseAuthorizedKey(data); pubErr == nil {
			return nil, public, errors.New("a public key, and the agent does not hold its private key")
		}
		return nil, nil, fmt.Errorf("not a private key that can be used: %w", err)
	}
	if k.opened == nil {
		k.opened = map[string]ssh.Signer{}
	}
	k.opened[path] = signer
	return signer, nil, nil
}

func (k *keyring) decrypt(path string, data []byte) (ssh.Signer, error) {
	passphrase, err := k.ask(path)
	if err != nil {
		return nil, &unlockError{path, err}
	}
	signer, err := ssh.ParsePrivateKeyWithPassphrase(data, passphrase)
	clear(passphrase)
	if err != nil {
		return nil, &unlockError{path, err}
	}
	return signer, nil
}

// unlockError says that an encrypted key could not be opened.
type unlockError struct {
	path string
	err  error
}

func (e *unlockError) Error() string {
	if errors.Is(e.err, x509.IncorrectPasswordError) {
		return "the passphrase does not open the key " + e.path
	}
	return fmt.Sprintf("opening the key %s: %v", e.path, e.err)
}

func (e *unlockError) Unwrap() error { return e.err }

// lockedKey is an encrypted key that is opened when a server accepts it, so that nobody is asked for the
// passphrase of a key that would not help.
type lockedKey struct {
	public ssh.PublicKey
	open   func() (ssh.Signer, error)
}

func (l *lockedKey) PublicKey() ssh.PublicKey { return l.public }

func (l *lockedKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return l.SignWithAlgorithm(rand, data, "")
}

func (l *lockedKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	s, err := l.open()
	if err != nil {
		return nil, err
	}
	if a, ok := s.(ssh.AlgorithmSigner); ok {
		return a.SignWithAlgorithm(rand, data, algorithm)
	}
	return s.Sign(rand, data)
}
