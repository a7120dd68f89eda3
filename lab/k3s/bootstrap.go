package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// bootstrapPrefix is where the datastore holds the identity files, encrypted
// with the token, under a key that is named after the token's hash: one kine key
// among Kubernetes's own, as K3s has it. The value is the lab's own format:
// base64 of salt, nonce and AES-GCM of the JSON of bootstrapData.
const bootstrapPrefix = "/bootstrap/"

// bootstrapData is what a datastore remembers of its server.
type bootstrapData struct {
	Files map[string]bootstrapFile `json:"files"` // by path below server/
	// Ranges that the cluster was created with. Kubernetes keeps the service
	// ranges in the datastore and nodes keep their pod ranges; K3s over such a
	// datastore with other ranges fails late and in several ways, the lab at once.
	ClusterCIDR []string `json:"clusterCIDR"`
	ServiceCIDR []string `json:"serviceCIDR"`
}

type bootstrapFile struct {
	Modified time.Time `json:"modified"`
	Content  []byte    `json:"content"`
}

var errOtherToken = errors.New("bootstrap data already found and encrypted with different token")

// datastore is the part of etcd's API that the bootstrap needs; kine answers it.
type datastore struct{ client *clientv3.Client }

func openDatastore(ctx context.Context, endpoint string) (*datastore, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Context: ctx, DialTimeout: 5 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("connect to the datastore: %w", err)
	}
	return &datastore{c}, nil
}

func (d *datastore) close() { _ = d.client.Close() } // only reads are pending

// wait returns when the datastore answers.
func (d *datastore) wait(ctx context.Context) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := d.client.Get(attempt, bootstrapPrefix, clientv3.WithPrefix(), clientv3.WithLimit(1))
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the datastore: %w (last: %w)", context.Cause(ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// load finds the bootstrap data that belongs to the token; nil when the
// datastore is new, errOtherToken when it belongs to another token.
func (d *datastore) load(ctx context.Context, token string) (data *bootstrapData, revision int64, err error) {
	resp, err := d.client.Get(ctx, bootstrapPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("read the bootstrap data: %w", err)
	}
	for _, kv := range resp.Kvs {
		if string(kv.Key) != bootstrapKey(token) {
			continue
		}
		plain, err := decrypt(token, kv.Value)
		if err != nil {
			return nil, 0, errOtherToken
		}
		if err := json.Unmarshal(plain, &data); err != nil {
			return nil, 0, fmt.Errorf("read the bootstrap data: %w", err)
		}
		return data, kv.ModRevision, nil
	}
	if len(resp.Kvs) > 0 {
		return nil, 0, errOtherToken
	}
	return nil, 0, nil
}

// holdsIdentity tells whether some token's bootstrap data is there.
func (d *datastore) holdsIdentity(ctx context.Context) (bool, error) {
	resp, err := d.client.Get(ctx, bootstrapPrefix, clientv3.WithPrefix())
	if err != nil {
		return false, fmt.Errorf("read the bootstrap data: %w", err)
	}
	return len(resp.Kvs) > 0, nil
}

func (d *datastore) save(ctx context.Context, token string, data *bootstrapData, revision int64) error {
	plain, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("save the bootstrap data: %w", err)
	}
	value, err := encrypt(token, plain)
	if err != nil {
		return fmt.Errorf("save the bootstrap data: %w", err)
	}
	// kine knows the transactions that Kubernetes makes and no plain put.
	key := bootstrapKey(token)
	resp, err := d.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(clientv3.OpPut(key, string(value))).
		Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return fmt.Errorf("save the bootstrap data: %w", err)
	}
	if !resp.Succeeded {
		return errors.New("save the bootstrap data: another server changed it; start again")
	}
	return nil
}

func bootstrapKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return bootstrapPrefix + hex.EncodeToString(sum[:])[:12]
}

func tokenCipher(token string, salt []byte) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, token, salt, 4096, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func encrypt(token string, plain []byte) ([]byte, error) {
	salt := make([]byte, 16)
	rand.Read(salt)
	aead, err := tokenCipher(token, salt)
	if err != nil {
		return nil, err
	}
	sealed := aead.Seal(salt, nil, plain, nil)
	return []byte(base64.StdEncoding.EncodeToString(sealed)), nil
}

func decrypt(token string, value []byte) ([]byte, error) {
	sealed, err := base64.StdEncoding.DecodeString(string(value))
	if err != nil {
		return nil, err
	}
	if len(sealed) < 16 {
		return nil, errors.New("too short")
	}
	aead, err := tokenCipher(token, sealed[:16])
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, sealed[16:], nil)
}

// secretOf gives the secret of a token in any of K3s's forms: the bare secret,
// or K10<hash of the CA>::<user>:<secret>.
func secretOf(token string) (string, error) {
	token = strings.TrimSpace(token)
	if !strings.HasPrefix(token, "K10") {
		return token, nil
	}
	_, rest, ok := strings.Cut(token, "::")
	if !ok {
		return token, nil // a bare secret that happens to begin so
	}
	if _, secret, ok := strings.Cut(rest, ":"); ok {
		rest = secret
	}
	if rest == "" {
		return "", errors.New("invalid token format: it has no secret after the CA's hash")
	}
	return rest, nil
}

// serverToken finds the token's secret: setting, file setting, the file that an
// earlier start wrote; empty when there is none.
func serverToken(cfg *Config, server string) (string, error) {
	given := cfg.Token
	if given == "" && cfg.TokenFile != "" {
		data, err := os.ReadFile(cfg.TokenFile)
		if err != nil {
			return "", fmt.Errorf("read token-file: %w", err)
		}
		given = string(data)
	}
	if strings.TrimSpace(given) == "" {
		data, err := os.ReadFile(filepath.Join(server, "token"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("read the server's token: %w", err)
		}
		given = string(data)
	}
	return secretOf(given)
}

// reconcile makes the identity files on disk and those of the datastore one. The
// datastore wins over what is older on disk; what is newer and differs is
// refused, as K3s refuses it: neither side can be known to be right.
func reconcile(server string, data *bootstrapData) error {
	var newer []string
	for _, name := range sortedNames(data.Files) {
		stored := data.Files[name]
		path := filepath.Join(server, name)
		content, err := os.ReadFile(path)
		switch {
		case err == nil && bytes.Equal(content, stored.Content):
			continue
		case err == nil:
			info, err := os.Stat(path)
			if err != nil {
				return fmt.Errorf("compare %s with the datastore: %w", path, err)
			}
			if info.ModTime().After(stored.Modified) {
				newer = append(newer, path)
				continue
			}
		case !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("compare %s with the datastore: %w", path, err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("write %s from the datastore: %w", path, err)
		}
		mode := os.FileMode(0o600)
		if strings.HasSuffix(name, ".crt") {
			mode = 0o644
		}
		if err := write(path, stored.Content, mode); err != nil {
			return err
		}
		if err := os.Chtimes(path, stored.Modified, stored.Modified); err != nil {
			return fmt.Errorf("write %s from the datastore: %w", path, err)
		}
	}
	if len(newer) > 0 {
		return fmt.Errorf("%s newer than datastore and could cause a cluster outage. Remove the file(s) from disk and restart to be recreated from datastore", strings.Join(newer, ", "))
	}
	return nil
}

// readIdentity collects the identity files from disk.
func readIdentity(server string) (map[string]bootstrapFile, error) {
	files := map[string]bootstrapFile{}
	for _, name := range identityFiles() {
		path := filepath.Join(server, name)
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("collect the identity: %w", err)
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("collect the identity: %w", err)
		}
		files[name] = bootstrapFile{info.ModTime(), content}
	}
	return files, nil
}

// sameRanges refuses other ranges than the datastore's.
func sameRanges(data *bootstrapData, n *network) error {
	if want := strings.Split(join(n.Service), ","); !slices.Equal(want, data.ServiceCIDR) {
		return fmt.Errorf("service-cidr: %v differs from %v, with which this datastore was created: Kubernetes keeps the ServiceCIDR of its first start; single-stack clusters cannot be made dual-stack in place", want, data.ServiceCIDR)
	}
	if want := strings.Split(join(n.Cluster), ","); !slices.Equal(want, data.ClusterCIDR) {
		return fmt.Errorf("cluster-cidr: %v differs from %v, with which this datastore was created: nodes keep their pod ranges and flannel fails", want, data.ClusterCIDR)
	}
	return nil
}

// ensureIdentity leaves server/ with a complete identity that the datastore
// knows, and gives the token's secret. It refuses a datastore of another token
// or of other ranges.
func ensureIdentity(ctx context.Context, d *datastore, cfg *Config, n *network, server string) (secret string, err error) {
	if secret, err = serverToken(cfg, server); err != nil {
		return "", err
	}
	if secret == "" {
		held, err := d.holdsIdentity(ctx)
		if err != nil {
			return "", err
		}
		if held {
			return "", fmt.Errorf("%w; no token is set: set the one this datastore was created with", errOtherToken)
		}
		secret = randomHex(16)
	}
	data, revision, err := d.load(ctx, secret)
	if err != nil {
		return "", err
	}
	fresh := data == nil
	if fresh {
		data = &bootstrapData{ClusterCIDR: strings.Split(join(n.Cluster), ","), ServiceCIDR: strings.Split(join(n.Service), ",")}
	} else {
		if err := sameRanges(data, n); err != nil {
			return "", err
		}
		if err := reconcile(server, data); err != nil {
			return "", err
		}
	}
	if err := ensureAuthorities(filepath.Join(server, "tls"), time.Now()); err != nil {
		return "", err
	}
	passwd := fmt.Sprintf("%[1]s,node,node,k3s:agent\n%[1]s,server,server,k3s:server\n", secret)
	if err := os.MkdirAll(filepath.Join(server, "cred"), 0o700); err != nil {
		return "", fmt.Errorf("make the credentials' directory: %w", err)
	}
	if err := write(filepath.Join(server, "cred", "passwd"), []byte(passwd), 0o600); err != nil {
		return "", err
	}
	files, err := readIdentity(server)
	if err != nil {
		return "", err
	}
	if fresh || len(files) != len(data.Files) {
		data.Files = files
		if err := d.save(ctx, secret, data, revision); err != nil {
			return "", err
		}
	}
	return secret, writeToken(server, secret)
}

// writeToken writes the files from which people read the join token.
func writeToken(server, secret string) error {
	ca, err := os.ReadFile(filepath.Join(server, "tls", "server-ca.crt"))
	if err != nil {
		return fmt.Errorf("write the token: %w", err)
	}
	path := filepath.Join(server, "token")
	if err := write(path, fmt.Appendf(nil, "K10%s::server:%s\n", caHash(ca), secret), 0o600); err != nil {
		return err
	}
	for _, link := range []string{"node-token", "agent-token"} {
		at := filepath.Join(server, link)
		if target, err := os.Readlink(at); err == nil && target == path {
			continue
		}
		if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("link %s: %w", at, err)
		}
		if err := os.Symlink(path, at); err != nil {
			return fmt.Errorf("link %s: %w", at, err)
		}
	}
	return nil
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func sortedNames(files map[string]bootstrapFile) []string {
	var out []string
	for name := range files {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
