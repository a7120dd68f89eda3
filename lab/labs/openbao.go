package labs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// OpenBao is the server of the demo's platform, and where what opens it is kept: files
// on this machine, as an administrator has them elsewhere than on the cluster.
type OpenBao struct {
	Namespace string `json:"namespace"`
	// Token is a file with the root token, Keys one with an unseal key a line.
	Token string `json:"token"`
	Keys  string `json:"keys"`
	// Sentinel is the mount and path of a secret by which the right data are recognised.
	Sentinel string `json:"sentinel"`
}

const (
	unsealShares    = 5
	unsealThreshold = 3
	openBaoTimeout  = 3 * time.Minute
)

// initialiseOpenBao makes the server usable as soon as its pod runs: initialised, unsealed
// and filled. Its token and keys are kept before anything depends on them.
func (l *Lab) initialiseOpenBao(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, openBaoTimeout)
	defer cancel()
	b, err := l.reachOpenBao(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.wait(ctx, "answer", "sys/seal-status"); err != nil {
		return err
	}
	var initial struct {
		Keys  []string `json:"keys_base64"`
		Token string   `json:"root_token"`
	}
	if err := b.write(ctx, "sys/init", object{"secret_shares": unsealShares, "secret_threshold": unsealThreshold}, &initial); err != nil {
		return fmt.Errorf("initialising OpenBao: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(l.OpenBao.Token), 0o700); err != nil {
		return fmt.Errorf("keeping OpenBao's token and keys: %w", err)
	}
	for path, lines := range map[string][]string{l.OpenBao.Token: {initial.Token}, l.OpenBao.Keys: initial.Keys} {
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			return fmt.Errorf("keeping OpenBao's token and keys: %w", err)
		}
	}
	if err := b.unseal(ctx, initial.Keys); err != nil {
		return err
	}
	b.token = initial.Token
	if err := b.seed(ctx); err != nil {
		return fmt.Errorf("filling OpenBao: %w", err)
	}
	return nil
}

// Unseal unseals the lab's OpenBao with the keys that the lab keeps.
func (l *Lab) Unseal(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, openBaoTimeout)
	defer cancel()
	b, err := l.openOpenBao(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	keys, err := os.ReadFile(l.OpenBao.Keys)
	if err != nil {
		return fmt.Errorf("reading OpenBao's keys: %w", err)
	}
	return b.unseal(ctx, strings.Fields(string(keys)))
}

// Secrets writes all that the lab's OpenBao holds as JSON lines in a fixed order: what was asked
// for, and the answer's data. It asks over plain HTTP, so that what migrate says of the secrets can be
// checked without any of its code.
func (l *Lab) Secrets(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, openBaoTimeout)
	defer cancel()
	b, err := l.openOpenBao(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	token, err := os.ReadFile(l.OpenBao.Token)
	if err != nil {
		return fmt.Errorf("reading OpenBao's token: %w", err)
	}
	b.token = strings.TrimSpace(string(token))
	return b.dump(ctx, w)
}

// openBaoState tells how the server is, empty when it does not answer soon.
func (l *Lab) openBaoState(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	b, err := l.reachOpenBao(ctx)
	if err != nil {
		return ""
	}
	defer b.close()
	var status sealStatus
	if err := b.read(ctx, "sys/seal-status", &status); err != nil {
		return ""
	}
	return status.String()
}

// openOpenBao reaches the server of a lab that has one.
func (l *Lab) openOpenBao(ctx context.Context) (*bao, error) {
	if l.OpenBao == nil {
		return nil, fmt.Errorf("lab %s has no OpenBao; the demo's platform brings it", l.Name)
	}
	return l.reachOpenBao(ctx)
}

// bao asks an OpenBao server over plain HTTP.
type bao struct {
	http  *http.Client
	url   string
	token string
	close func()
}

// reachOpenBao returns a client that goes through the host's SSH server, from where pods are reached,
// to wherever the pod is when it connects.
func (l *Lab) reachOpenBao(ctx context.Context) (*bao, error) {
	host, err := l.dialSSH(ctx)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		address, err := l.Exec(ctx, "k3s kubectl --request-timeout=5s get pod openbao-0 --namespace "+l.OpenBao.Namespace+" --output 'jsonpath={.status.podIP}'")
		if err != nil {
			return nil, err
		}
		if address == "" {
			return nil, errors.New("its pod does not run yet")
		}
		return host.DialContext(ctx, network, net.JoinHostPort(address, "8200"))
	}
	transport := &http.Transport{DialContext: dial}
	return &bao{http: &http.Client{Transport: transport}, url: "http://openbao", close: func() { transport.CloseIdleConnections(); host.Close() }}, nil
}

// dialSSH logs in to the host as a plan would.
func (l *Lab) dialSSH(ctx context.Context) (*ssh.Client, error) {
	key, err := os.ReadFile(l.IdentityFile)
	if err != nil {
		return nil, fmt.Errorf("reading the lab's SSH key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("reading the lab's SSH key: %w", err)
	}
	known, err := knownhosts.New(l.KnownHosts)
	if err != nil {
		return nil, fmt.Errorf("reading the host's SSH key: %w", err)
	}
	address := net.JoinHostPort(l.Address, strconv.Itoa(l.Port))
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("reaching the host's sshd: %w", err)
	}
	client, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User: l.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: known, HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("logging in to the host: %w", err)
	}
	return ssh.NewClient(client, channels, requests), nil
}

type sealStatus struct {
	Initialised bool `json:"initialized"`
	Sealed      bool `json:"sealed"`
}

func (s sealStatus) String() string {
	switch {
	case !s.Initialised:
		return "not initialised"
	case s.Sealed:
		return "sealed"
	}
	return "unsealed"
}

// wait asks until the answer is a good one.
func (b *bao) wait(ctx context.Context, what, path string) error {
	for {
		err := b.read(ctx, path, nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for OpenBao to %s: %w, %w", what, ctx.Err(), err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// unseal hands in keys until the server has enough, and waits until it serves.
func (b *bao) unseal(ctx context.Context, keys []string) error {
	status := sealStatus{Sealed: true}
	for _, key := range keys {
		if err := b.write(ctx, "sys/unseal", object{"key": key}, &status); err != nil {
			return fmt.Errorf("unsealing OpenBao: %w", err)
		}
		if !status.Sealed {
			return b.wait(ctx, "become active", "sys/health")
		}
	}
	return fmt.Errorf("unsealing OpenBao: it is still %s after %d keys", status, len(keys))
}

// refusal is an answer other than a good one.
type refusal struct {
	status int
	body   []byte
}

func (r *refusal) Error() string {
	return fmt.Sprintf("HTTP status %d: %s", r.status, bytes.TrimSpace(r.body))
}

func (b *bao) read(ctx context.Context, path string, answer any) error {
	return b.ask(ctx, http.MethodGet, path, nil, answer)
}

func (b *bao) write(ctx context.Context, path string, body object, answer any) error {
	return b.ask(ctx, http.MethodPost, path, body, answer)
}

// ask sends one request. The path is escaped already.
func (b *bao) ask(ctx context.Context, method, path string, body object, answer any) error {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, b.url+"/v1/"+path, in)
	if err != nil {
		return err
	}
	if b.token != "" {
		request.Header.Set("X-Vault-Token", b.token)
	}
	response, err := b.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	out, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %w", method, path, &refusal{response.StatusCode, out})
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(out, answer); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// escape writes a secret's path into a URL: its slashes separate, all else may occur
// in names.
func escape(path string) string {
	names := strings.Split(path, "/")
	for i := range names {
		names[i] = url.PathEscape(names[i])
	}
	return strings.Join(names, "/")
}
