package backup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"
)

// Passphrase asks a person for the passphrase of the private key in file.
type Passphrase func(file string) ([]byte, error)

// EncryptedKeyError says that an identity file is protected by a passphrase
// that nobody could be asked for.
type EncryptedKeyError struct {
	File string
	Err  error
}

func (e *EncryptedKeyError) Error() string {
	return fmt.Sprintf("private key %s is protected by a passphrase and it cannot be opened: %v; "+
		"run in a terminal where the passphrase can be asked for, or name an unprotected age identity in spec.backup.encryption.identities", e.File, e.Err)
}

func (e *EncryptedKeyError) Unwrap() error { return e.Err }

// ParseRecipients understands the recipients that a plan may name: age1…
// public keys (X25519 and hybrid), and ssh-ed25519 or ssh-rsa public keys.
func ParseRecipients(keys []string) ([]age.Recipient, error) {
	var out []age.Recipient
	for _, key := range keys {
		key = strings.TrimSpace(key)
		switch {
		case strings.HasPrefix(key, "ssh-"):
			r, err := agessh.ParseRecipient(key)
			if err != nil {
				return nil, fmt.Errorf("reading recipient %q: %w", shorten(key), err)
			}
			out = append(out, r)
		default:
			rs, err := age.ParseRecipients(strings.NewReader(key))
			if err != nil {
				return nil, fmt.Errorf("reading recipient %q: %w; give an age1…, ssh-ed25519 or ssh-rsa public key", shorten(key), err)
			}
			out = append(out, rs...)
		}
	}
	return out, nil
}

// describe lists public keys that ParseRecipients accepts in the form of [MetaRecipients].
func describe(keys []string) string {
	var out []string
	for _, key := range keys {
		if pub, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(key)); err == nil {
			key = strings.TrimSpace(pub.Type() + " " + ssh.FingerprintSHA256(pub) + " " + comment)
		}
		if key = strings.TrimSpace(key); len(key) > 100 {
			key = shorten(key) // a hybrid key has some 2,000 characters
		}
		out = append(out, key)
	}
	return strings.Join(out, "\n")
}

// shorten keeps messages readable; public keys are long.
func shorten(key string) string {
	if len(key) > 40 {
		return key[:37] + "..."
	}
	return key
}

// ParseIdentities reads private keys: files of age identities, or SSH private
// keys. ask may be nil; a protected SSH key is then an [EncryptedKeyError].
// A protected key is only opened when an artifact needs it.
func ParseIdentities(files []string, ask Passphrase) ([]age.Identity, error) {
	var out []age.Identity
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading identity: %w", err)
		}
		if !bytes.Contains(data, []byte("-----BEGIN")) {
			ids, err := age.ParseIdentities(bytes.NewReader(data))
			if err != nil {
				return nil, fmt.Errorf("reading identity %s: %w; it must hold an age identity (AGE-SECRET-KEY-1…) or an SSH private key", file, err)
			}
			out = append(out, ids...)
			continue
		}
		id, err := agessh.ParseIdentity(data)
		var missing *ssh.PassphraseMissingError
		switch {
		case err == nil:
			out = append(out, id)
		case errors.As(err, &missing):
			id, err := protectedIdentity(file, data, missing.PublicKey, ask)
			if err != nil {
				return nil, err
			}
			out = append(out, id)
		default:
			return nil, fmt.Errorf("reading identity %s: %w", file, err)
		}
	}
	return out, nil
}

func protectedIdentity(file string, pem []byte, pub ssh.PublicKey, ask Passphrase) (age.Identity, error) {
	if ask == nil {
		return nil, &EncryptedKeyError{File: file, Err: errors.New("no terminal to ask on")}
	}
	if pub == nil {
		// Old PEM keys do not carry their public half in the clear.
		data, err := os.ReadFile(file + ".pub")
		if err != nil {
			return nil, &EncryptedKeyError{File: file, Err: fmt.Errorf("its public key is needed beside it: %w", err)}
		}
		if pub, _, _, _, err = ssh.ParseAuthorizedKey(data); err != nil {
			return nil, &EncryptedKeyError{File: file, Err: fmt.Errorf("reading %s.pub: %w", file, err)}
		}
	}
	id, err := agessh.NewEncryptedSSHIdentity(pub, pem, func() ([]byte, error) { return ask(file) })
	if err != nil {
		return nil, fmt.Errorf("reading identity %s: %w", file, err)
	}
	return &lockedIdentity{id, file}, nil
}

// lockedIdentity tells that a passphrase was wrong or not to be had, which
// agessh says in words only.
type lockedIdentity struct {
	age.Identity
	file string
}

func (l *lockedIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	key, err := l.Identity.Unwrap(stanzas)
	if err != nil && !errors.Is(err, age.ErrIncorrectIdentity) {
		err = &EncryptedKeyError{File: l.file, Err: err}
	}
	return key, err
}
