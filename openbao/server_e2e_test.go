//go:build e2e

package openbao_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"sunbeam.pt/k3s-dualstack/openbao"
)

func TestExportIsWhatAnIndependentReaderSees(t *testing.T) {
	n := seeded()
	b := export(t, n.server(t, n.token))
	require.Equal(t, independent(t, n, n.token), exported(t, b))
	require.Equal(t, b[bytes.IndexByte(b, '\n'):], func() []byte {
		again := export(t, n.server(t, n.token))
		return again[bytes.IndexByte(again, '\n'):]
	}(), "but for the time in its head, an export is the same again")
}

func TestImportIntoAnotherServer(t *testing.T) {
	n := seeded()
	b := export(t, n.server(t, n.token))
	other := running(t)
	s := other.server(t, other.token)

	dry, err := s.Import(t.Context(), bytes.NewReader(b), openbao.ImportOptions{DryRun: true})
	require.NoError(t, err)
	require.Empty(t, independent(t, other, other.token), "a dry run changes nothing")

	report, err := s.Import(t.Context(), bytes.NewReader(b), openbao.ImportOptions{})
	require.NoError(t, err)
	require.Zero(t, report.Conflicts)
	require.Equal(t, timeless(independent(t, n, n.token)), timeless(independent(t, other, other.token)))
	dry.DryRun = false
	require.Equal(t, dry, report, "a dry run tells what would be done")

	compared, err := s.Compare(t.Context(), bytes.NewReader(b), nil)
	require.NoError(t, err)
	require.Empty(t, compared.Differences)
	require.Equal(t, report.Written, compared.Secrets)

	again, err := s.Import(t.Context(), bytes.NewReader(b), openbao.ImportOptions{})
	require.NoError(t, err)
	require.Equal(t, report.Written, again.Unchanged)
	require.Zero(t, again.Written+again.Conflicts+again.Versions)
}

func TestRestoreIntoAFreshServer(t *testing.T) {
	n := seeded()
	s := n.server(t, n.token)
	var snapshot bytes.Buffer
	require.NoError(t, s.Snapshot(t.Context(), &snapshot))
	b := export(t, s)

	fresh := started(t)
	throwaway := fresh.server(t, "")
	old, err := s.Status(t.Context())
	require.NoError(t, err)
	initial, err := throwaway.Init(t.Context(), old.Shares, old.Threshold)
	require.NoError(t, err)
	require.NoError(t, throwaway.Unseal(t.Context(), initial.Keys))
	require.NoError(t, throwaway.WaitActive(t.Context(), nil))
	require.NoError(t, throwaway.WithToken(initial.Token).Restore(t.Context(), &snapshot))

	status, err := throwaway.Status(t.Context())
	require.NoError(t, err)
	require.True(t, status.Sealed)
	var wrong *openbao.WrongKeysError
	require.ErrorAs(t, throwaway.Unseal(t.Context(), initial.Keys), &wrong)
	require.NoError(t, throwaway.Unseal(t.Context(), n.keys[1:]))
	require.NoError(t, throwaway.WaitActive(t.Context(), nil))
	restored := fresh.server(t, n.token)
	// In its first seconds a restored server may stand by once more.
	var compared openbao.Comparison
	var standby *openbao.StandbyError
	require.Eventually(t, func() bool {
		compared, err = restored.Compare(t.Context(), bytes.NewReader(b), nil)
		return !errors.As(err, &standby)
	}, 30*time.Second, 250*time.Millisecond)
	require.NoError(t, err)
	require.Empty(t, compared.Differences)
	require.Zero(t, compared.Times)
	require.NoError(t, restored.CompareSecret(t.Context(), bytes.NewReader(b), "secret/sentinel"))
	require.Equal(t, independent(t, n, n.token), independent(t, fresh, n.token))

	// Its own snapshot leaves it unsealed.
	fresh.token = n.token
	snapshot.Reset()
	require.NoError(t, restored.Snapshot(t.Context(), &snapshot))
	fresh.must(t, "DELETE", nil, "sys/mounts/secret")
	require.NoError(t, fresh.server(t, n.token).Restore(t.Context(), &snapshot))
	require.NoError(t, restored.WaitActive(t.Context(), nil))
	require.Equal(t, independent(t, n, n.token), independent(t, fresh, n.token))
}

func TestDescribe(t *testing.T) {
	n := seeded()
	d, err := n.server(t, n.token).Describe(t.Context())
	require.NoError(t, err)
	require.Equal(t, []openbao.Mount{
		{Path: "cubbyhole/", Type: "cubbyhole"}, {Path: "empty/", Type: "kv", KV: 2}, {Path: "identity/", Type: "identity"},
		{Path: "legacy/", Type: "kv", KV: 1}, {Path: "secret/", Type: "kv", KV: 2}, {Path: "sys/", Type: "system"}, {Path: "team/apps/", Type: "kv", KV: 2},
	}, d.Mounts)
	require.Equal(t, []openbao.Auth{
		{Path: "kubernetes/", Type: "kubernetes", Kubernetes: &openbao.KubernetesAuth{Host: "https://10.43.0.1:443", FixedCA: true, ReviewerToken: "unknown", DisableLocalCA: true}},
		{Path: "token/", Type: "token"}, {Path: "unset/", Type: "kubernetes"},
	}, d.Auths)
	require.Contains(t, d.Policies, "default")
	require.Empty(t, d.Namespaces)
}

func TestStatus(t *testing.T) {
	n := started(t)
	s := n.server(t, "")
	status, err := s.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, openbao.Status{Sealed: true, Version: "1.14.0", Storage: "raft", Seal: "shamir"}, status)
	n.initialise(t, 5, 3)
	status, err = s.Status(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, status.ClusterID)
	require.NotEmpty(t, status.ClusterName)
	status.ClusterID, status.ClusterName = "", ""
	require.Equal(t, openbao.Status{Initialised: true, Version: "1.14.0", Storage: "raft", Seal: "shamir", Shares: 5, Threshold: 3, Active: true, Leader: n.url}, status)
	var initialised *openbao.InitialisedError
	_, err = s.Init(t.Context(), 1, 1)
	require.ErrorAs(t, err, &initialised)
}

// What a policy has to grant is told as stanzas, which granted leave nothing missing
// and suffice.
func TestMissing(t *testing.T) {
	n := seeded()
	all, err := n.server(t, n.token).Missing(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)

	policy := `path "sys/mounts" { capabilities = ["read"] } path "sys/auth" { capabilities = ["read"] }`
	for range 2 {
		s := n.server(t, n.tokenWith(t, "missing", policy))
		missing, err := s.Missing(t.Context())
		require.NoError(t, err)
		if len(missing) == 0 {
			b := export(t, s)
			require.Equal(t, exported(t, export(t, n.server(t, n.token))), exported(t, b))
			require.NoError(t, s.Snapshot(t.Context(), io.Discard))
			return
		}
		require.Contains(t, missing, `take the raft snapshot: path "sys/storage/raft/snapshot" { capabilities = ["read"] }`)
		require.Contains(t, missing, `list the secrets of team/apps/: path "team/apps/metadata/*" { capabilities = ["list"] }`)
		paths := map[string][]string{}
		for _, m := range missing {
			_, stanza, _ := strings.Cut(m, ": path ")
			path, capability, _ := strings.Cut(stanza, " { ")
			paths[path] = append(paths[path], strings.TrimSuffix(strings.TrimPrefix(capability, "capabilities = ["), "] }"))
		}
		for path, capabilities := range paths { // a policy names a path once
			policy += " path " + path + " { capabilities = [" + strings.Join(capabilities, ", ") + "] }"
		}
	}
	t.Fatal("the policy that was asked for does not suffice")
}

func TestMissingOfChosenMounts(t *testing.T) {
	n := seeded()
	s := n.server(t, n.tokenWith(t, "chosen", `path "sys/mounts" { capabilities = ["read"] }`))
	missing, err := s.Missing(t.Context(), "legacy")
	require.NoError(t, err)
	require.NotContains(t, strings.Join(missing, " "), "team/apps")
	require.Contains(t, strings.Join(missing, " "), `path "legacy/*"`)
	_, err = s.Missing(t.Context(), "nowhere")
	var mount *openbao.MountError
	require.ErrorAs(t, err, &mount)
}

// Each bad input has its own error, which holds no secret.
func TestBadInput(t *testing.T) {
	n := seeded()
	sealed, blank := running(t), started(t)
	sealed.must(t, "PUT", nil, "sys/seal")
	file := running(t, "--storage", "file")
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("X-Vault-Token"), "<html>")
	}))
	t.Cleanup(plain.Close)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"token": %q}`, r.Header.Get("X-Vault-Token"))
	}))
	t.Cleanup(other.Close)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { silent.Close() })
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()

	const wrong = "hvs.thisTokenIsNobodys"
	poor := n.tokenWith(t, "poor", `path "secret/*" { capabilities = ["read", "list"] } path "sys/mounts" { capabilities = ["read"] } path "sys/auth" { capabilities = ["read"] } path "sys/policies/acl" { capabilities = ["list"] } path "auth/*" { capabilities = ["read"] }`)
	snapshot := func(s *openbao.Server) error { return s.Snapshot(t.Context(), io.Discard) }
	all := func(s *openbao.Server) error {
		_, err := s.Export(t.Context(), nil, io.Discard, nil)
		return err
	}
	some := func(names ...string) func(s *openbao.Server) error {
		return func(s *openbao.Server) error {
			_, err := s.Export(t.Context(), names, io.Discard, nil)
			return err
		}
	}
	restore := func(s *openbao.Server) error { return s.Restore(t.Context(), strings.NewReader("")) }
	garbage := func(s *openbao.Server) error { return s.Restore(t.Context(), strings.NewReader("no snapshot")) }
	broken := func(s *openbao.Server) error {
		return s.Restore(t.Context(), iotest.ErrReader(errors.New("the disk is gone")))
	}
	full := func(s *openbao.Server) error { return s.Snapshot(t.Context(), fullDisk{}) }
	unseal := func(keys ...string) func(s *openbao.Server) error {
		return func(s *openbao.Server) error { return s.Unseal(t.Context(), keys) }
	}
	short := func(do func(*openbao.Server, context.Context) error) func(*openbao.Server) error {
		return func(s *openbao.Server) error {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			return do(s, ctx)
		}
	}
	status := func(s *openbao.Server, ctx context.Context) error { _, err := s.Status(ctx); return err }
	active := func(s *openbao.Server, ctx context.Context) error { return s.WaitActive(ctx, nil) }
	for name, test := range map[string]struct {
		address, token string
		do             func(*openbao.Server) error
		want           any
		says           string
	}{
		"sealed":                       {sealed.url, sealed.token, snapshot, new(*openbao.SealedError), "unseal it with 3 of its 5 keys"},
		"sealed, exporting":            {sealed.url, sealed.token, all, new(*openbao.SealedError), "sealed"},
		"uninitialised":                {blank.url, n.token, snapshot, new(*openbao.UninitialisedError), "not initialised"},
		"uninitialised, exporting":     {blank.url, n.token, all, new(*openbao.UninitialisedError), "not initialised"},
		"uninitialised, unsealing":     {blank.url, "", unseal(n.keys...), new(*openbao.UninitialisedError), "not initialised"},
		"uninitialised, restoring":     {blank.url, n.token, restore, new(*openbao.UninitialisedError), "not initialised"},
		"no token":                     {n.url, "", all, new(*openbao.TokenError), "none is given"},
		"no token, snapshot":           {n.url, "", snapshot, new(*openbao.TokenError), "none is given"},
		"wrong token":                  {n.url, wrong, all, new(*openbao.TokenError), "wrong, expired or revoked"},
		"wrong token, snapshot":        {n.url, wrong, snapshot, new(*openbao.TokenError), "wrong, expired or revoked"},
		"token of two lines":           {n.url, wrong + "\n" + n.token, all, new(*openbao.TokenError), "characters that no token has"},
		"token that may no snapshot":   {n.url, poor, snapshot, new(*openbao.DeniedError), `path "sys/storage/raft/snapshot" { capabilities = ["read"] }`},
		"token that may no export":     {n.url, poor, all, new(*openbao.DeniedError), `{ capabilities = ["`},
		"token that may no restore":    {n.url, poor, garbage, new(*openbao.DeniedError), `path "sys/storage/raft/snapshot-force" { capabilities = ["update"] }`},
		"file storage":                 {file.url, file.token, snapshot, new(*openbao.NoSnapshotError), `"file" storage`},
		"file storage, restoring":      {file.url, file.token, restore, new(*openbao.NoSnapshotError), `"file" storage`},
		"no snapshot to restore":       {n.url, n.token, garbage, new(*openbao.RefusedError), "restoring the raft snapshot"},
		"snapshot that breaks off":     {n.url, n.token, broken, nil, "reading the raft snapshot: the disk is gone"},
		"full disk":                    {n.url, n.token, full, nil, "writing the raft snapshot: no space left"},
		"no keys":                      {sealed.url, "", unseal(), new(*openbao.TooFewKeysError), "needs 3 unseal keys, and 0 are given"},
		"too few keys":                 {sealed.url, "", unseal(sealed.keys[0], sealed.keys[1]), new(*openbao.TooFewKeysError), "needs 3 unseal keys, and 2 are given"},
		"the same key again":           {sealed.url, "", unseal(sealed.keys[0], sealed.keys[1], " "+sealed.keys[0]), new(*openbao.TooFewKeysError), "2 are given"},
		"another server's keys":        {sealed.url, "", unseal(n.keys...), new(*openbao.WrongKeysError), "do not open it"},
		"one of another server's keys": {sealed.url, "", unseal(sealed.keys[0], sealed.keys[1], n.keys[2]), new(*openbao.WrongKeysError), "do not open it"},
		"a key of no key's form":       {sealed.url, "", unseal(sealed.keys[0], "what?", sealed.keys[2]), new(*openbao.WrongKeysError), "neither hexadecimal nor base64"},
		"plain HTTP server":            {plain.URL, n.token, snapshot, new(*openbao.ForeignError), "not an OpenBao server"},
		"another JSON server":          {other.URL, n.token, snapshot, new(*openbao.ForeignError), "no seal's status"},
		"no HTTP server":               {"http://" + echo.Addr().String(), n.token, snapshot, new(*openbao.ForeignError), "not an OpenBao server"},
		"https for http":               {strings.Replace(n.url, "http", "https", 1), n.token, snapshot, new(*openbao.ForeignError), "does not speak https"},
		"nobody there":                 {"http://" + freePort(t), n.token, snapshot, new(*openbao.UnreachableError), "connection refused"},
		"nobody answers":               {"http://" + silent.Addr().String(), n.token, short(status), nil, "deadline exceeded"},
		"stays sealed":                 {sealed.url, "", short(active), nil, "it is sealed"},
		"mount that is not there":      {n.url, n.token, some("secret/", "nowhere"), new(*openbao.MountError), `no mount "nowhere"`},
		"mount that is not KV":         {n.url, n.token, some("identity"), new(*openbao.MountError), "of type identity"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := openbao.New(openbao.Options{Address: test.address, Token: test.token})
			require.NoError(t, err)
			defer s.Close()
			err = test.do(s)
			require.ErrorContains(t, err, test.says)
			if test.want != nil {
				require.ErrorAs(t, err, test.want)
			}
			for _, secret := range slices.Concat(n.keys, sealed.keys, []string{n.token, sealed.token, file.token, wrong, poor, secretText}) {
				require.NotContains(t, err.Error(), secret)
			}
		})
	}
	require.NoError(t, sealed.server(t, "").Unseal(t.Context(), sealed.keys), "what was wrong before does not count")
	require.NoError(t, sealed.server(t, "").Unseal(t.Context(), nil), "an unsealed server needs no keys")
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestKeysInBase64AndHex(t *testing.T) {
	n := running(t)
	n.must(t, "PUT", nil, "sys/seal")
	n.must(t, "PUT", map[string]string{"key": n.keys[4]}, "sys/unseal") // somebody began
	b, err := hex.DecodeString(n.keys[0])
	require.NoError(t, err)
	require.NoError(t, n.server(t, "").Unseal(t.Context(), []string{base64.StdEncoding.EncodeToString(b) + "\n", n.keys[1], n.keys[2]}))
}

// A proxy that cuts the connection: every cut is an error.
func TestCutSnapshot(t *testing.T) {
	n := seeded()
	var whole bytes.Buffer
	require.NoError(t, n.server(t, n.token).Snapshot(t.Context(), &whole))
	for _, most := range []int64{500, 1000, 4096, int64(whole.Len() / 2), int64(whole.Len() - 1)} {
		s, err := openbao.New(openbao.Options{Address: n.url, Token: n.token, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return &cut{Conn: c, most: most}, err
		}})
		require.NoError(t, err)
		var got bytes.Buffer
		err = s.Snapshot(t.Context(), &got)
		var unreachable *openbao.UnreachableError
		require.ErrorAs(t, err, &unreachable, "after %d bytes", most)
		s.Close()
	}
}

// cut ends a connection after that many bytes of the server's.
type cut struct {
	net.Conn
	most int64
}

func (c *cut) Read(p []byte) (int, error) {
	if c.most <= 0 {
		c.Conn.Close()
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.most)])
	c.most -= int64(n)
	return n, err
}

func TestTLS(t *testing.T) {
	ca, stranger := testCA(t), testCA(t)
	n := started(t, "--tls-cert", ca.cert, "--tls-key", ca.key)
	status := func(o openbao.Options) error {
		s, err := openbao.New(o)
		require.NoError(t, err)
		defer s.Close()
		_, err = s.Status(t.Context())
		return err
	}
	require.NoError(t, status(openbao.Options{Address: n.url, CA: []byte(ca.pem), ServerName: "bao.example"}))
	var untrusted *openbao.UntrustedError
	require.ErrorAs(t, status(openbao.Options{Address: n.url, CA: []byte(stranger.pem), ServerName: "bao.example"}), &untrusted)
	require.ErrorAs(t, status(openbao.Options{Address: n.url, ServerName: "bao.example"}), &untrusted)
	require.ErrorAs(t, status(openbao.Options{Address: n.url, CA: []byte(ca.pem), ServerName: "other.example"}), &untrusted)
	require.ErrorAs(t, status(openbao.Options{Address: n.url, CA: []byte(ca.pem)}), &untrusted)
	var foreign *openbao.ForeignError
	require.ErrorAs(t, status(openbao.Options{Address: strings.Replace(n.url, "https", "http", 1)}), &foreign)
	require.ErrorContains(t, foreign, "it speaks https")
	_, err := openbao.New(openbao.Options{Address: n.url, CA: []byte("no certificate")})
	require.ErrorContains(t, err, "holds no certificate in PEM form")
}

func TestNothingComesFromTheEnvironment(t *testing.T) {
	n := seeded()
	for _, name := range []string{"BAO_ADDR", "VAULT_ADDR", "BAO_AGENT_ADDR", "BAO_PROXY_ADDR", "VAULT_PROXY_ADDR", "HTTP_PROXY", "http_proxy"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	t.Setenv("BAO_TOKEN", "wrong")
	t.Setenv("VAULT_TOKEN", "wrong")
	t.Setenv("BAO_NAMESPACE", "elsewhere")
	t.Setenv("VAULT_NAMESPACE", "elsewhere")
	t.Setenv("BAO_CLIENT_TIMEOUT", "nonsense")
	_, err := n.server(t, n.token).Describe(t.Context())
	require.NoError(t, err)
	var token *openbao.TokenError
	_, err = n.server(t, "").Describe(t.Context())
	require.ErrorAs(t, err, &token)
	require.True(t, token.Missing)
}

type authority struct {
	pem, cert, key string // cert and key: files of a server certificate
}

// testCA makes a CA with a certificate for the name bao.example.
func testCA(t testing.TB) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	require.NoError(t, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"bao.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 2)}, NotAfter: ca.NotAfter}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "openbao-ca-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := authority{pem: block("CERTIFICATE", der), cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	require.NoError(t, os.WriteFile(a.cert, []byte(block("CERTIFICATE", leafDER)), 0o600))
	require.NoError(t, os.WriteFile(a.key, []byte(block("PRIVATE KEY", keyDER)), 0o600))
	return a
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
