package propose

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// FindKeys fills in who can read the backup set: the public halves of the
// private keys that were named, or of the SSH key by which the host is reached, or
// of ~/.ssh/id_ed25519 or id_rsa. What is not found stays empty.
func (w *Wishes) FindKeys() error {
	named := len(w.Identities) > 0
	if !named && len(w.Recipients) == 0 {
		w.Identities = w.Host.IdentityFiles
	}
	if len(w.Identities) == 0 && len(w.Recipients) == 0 {
		w.Identities = []string{"~/.ssh/id_ed25519", "~/.ssh/id_rsa"}
	}
	if len(w.Recipients) > 0 {
		return nil
	}
	var usable []string
	for _, file := range w.Identities {
		public, err := publicKeys(expand(file))
		if err != nil && named {
			return fmt.Errorf("--identity %s: %w", file, err)
		}
		if err == nil {
			usable = append(usable, file)
			w.Recipients = append(w.Recipients, public...)
			if !named {
				break // one is enough
			}
		}
	}
	w.Identities = usable
	if len(usable) == 0 {
		w.inAgent = agentKeys()
	}
	return nil
}

// agentKeys are what the SSH agent holds, for a person to recognise. An agent signs and
// never decrypts: without the key's file, nothing that was encrypted to it is opened.
func agentKeys() (out []string) {
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil
	}
	conn, err := net.DialTimeout("unix", socket, agentPatience)
	if err != nil {
		return nil
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(agentPatience)); err != nil {
		return nil
	}
	keys, err := agent.NewClient(conn).List()
	if err != nil {
		return nil
	}
	for _, k := range keys {
		out = append(out, strings.TrimSpace(k.Comment+" "+ssh.FingerprintSHA256(k)))
	}
	return out
}

// agentPatience is how long an agent may take to name its keys; one that asks a person
// first is not waited for.
const agentPatience = 2 * time.Second

// publicKeys are what a private key file's data can be encrypted to.
func publicKeys(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(data), "AGE-SECRET-KEY-") {
		return agePublic(string(data))
	}
	private, err := ssh.ParseRawPrivateKey(data)
	var encrypted *ssh.PassphraseMissingError
	var public ssh.PublicKey
	switch {
	case errors.As(err, &encrypted) && encrypted.PublicKey != nil:
		public = encrypted.PublicKey
	case errors.As(err, &encrypted):
		line, err := os.ReadFile(file + ".pub")
		if err != nil {
			return nil, fmt.Errorf("it is encrypted, and its public half is not beside it: %w", err)
		}
		if public, _, _, _, err = ssh.ParseAuthorizedKey(line); err != nil {
			return nil, fmt.Errorf("reading %s.pub: %w", file, err)
		}
	case err != nil:
		return nil, fmt.Errorf("it is no private key: %w", err)
	default:
		signer, err := ssh.NewSignerFromKey(private)
		if err != nil {
			return nil, err
		}
		public = signer.PublicKey()
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
	if _, err := agessh.ParseRecipient(line); err != nil {
		return nil, fmt.Errorf("nothing can be encrypted to a key of type %s: take an ed25519 or RSA key, or make one with age-keygen", public.Type())
	}
	return []string{line}, nil
}

func agePublic(data string) ([]string, error) {
	identities, err := age.ParseIdentities(strings.NewReader(data))
	if err != nil {
		return nil, errors.New("it is no key file of age") // whose error may quote the key
	}
	var out []string
	for _, id := range identities {
		switch id := id.(type) {
		case *age.X25519Identity:
			out = append(out, id.Recipient().String())
		case *age.HybridIdentity:
			out = append(out, id.Recipient().String())
		}
	}
	if slices.Equal(out, nil) {
		return nil, errors.New("it holds no key whose public half is known")
	}
	return out, nil
}

// expand makes "~/" the home directory.
func expand(file string) string {
	home, err := os.UserHomeDir()
	if rest, ok := strings.CutPrefix(file, "~/"); ok && err == nil {
		return filepath.Join(home, rest)
	}
	return file
}

func expandAll(files []string) (out []string) {
	for _, f := range files {
		out = append(out, expand(f))
	}
	return out
}

// Portable writes a file's path as a plan keeps it best: from the home directory,
// else absolute.
func Portable(file string) (string, error) {
	if file == "" || strings.HasPrefix(file, "~/") {
		return file, nil
	}
	absolute, err := filepath.Abs(file)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", file, err)
	}
	if home, err := os.UserHomeDir(); err == nil && home != "/" {
		if rest, ok := strings.CutPrefix(absolute, home+"/"); ok {
			return "~/" + rest, nil
		}
	}
	return absolute, nil
}
