package openbao

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/openbao/openbao/api/v2"
	"k8s.io/apimachinery/pkg/util/version"
)

// Options say how a server is reached and who asks.
type Options struct {
	// Address is the server's URL, http(s)://host:port; certificate and Host header
	// go by it.
	Address string
	// Dial reaches the address. Nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// CA holds the PEM certificates that the server's is checked against. Nil: the
	// system's.
	CA []byte
	// ServerName is the name that the certificate must be for. "": the address's
	// host.
	ServerName string
	// Token is whom the server takes the caller for; "" for what needs none.
	Token string
}

// Server is one OpenBao server, as one pod is. Its methods may be called
// concurrently.
type Server struct {
	address   string
	transport *http.Transport
	client    *api.Client
	malformed bool // the token is no token, and is not sent
}

// Detailer shows how far something came. A progress.Task is one.
type Detailer interface{ Detail(string) }

// Status is what a server says of itself to anybody.
type Status struct {
	Initialised bool   `json:"initialised"`
	Sealed      bool   `json:"sealed"`
	Version     string `json:"version,omitempty"`
	Storage     string `json:"storage,omitempty"` // "raft", "file", …
	// Seal is "shamir" for unseal keys, else by what the server unseals itself.
	Seal string `json:"seal,omitempty"`
	// RecoverySeal is whether the server unseals itself; its keys recover only.
	RecoverySeal bool `json:"recoverySeal,omitempty"`
	Shares       int  `json:"shares,omitempty"`
	Threshold    int  `json:"threshold,omitempty"`
	// Progress is how many keys of an unsealing under way were given.
	Progress int `json:"progress,omitempty"`
	// Active is whether the server answers for its cluster; an unsealed one that does
	// not is a standby.
	Active bool `json:"active,omitempty"`
	// Leader is the address of the active server as this one knows it; "" if it
	// knows none.
	Leader      string `json:"leader,omitempty"`
	ClusterName string `json:"clusterName,omitempty"`
	ClusterID   string `json:"clusterID,omitempty"`
}

// Description is what a server has, without what is in it.
type Description struct {
	Mounts   []Mount  `json:"mounts,omitempty"`
	Auths    []Auth   `json:"auths,omitempty"`
	Policies []string `json:"policies,omitempty"`
	// Namespaces below the root, which alone is exported; snapshots hold them all.
	Namespaces []string `json:"namespaces,omitempty"`
}

// Mount is a secrets engine.
type Mount struct {
	Path string `json:"path"` // with the slash at its end
	Type string `json:"type"`
	KV   int    `json:"kv,omitempty"` // version of a KV engine, 1 or 2; 0: not KV
}

// Auth is an auth method.
type Auth struct {
	Path       string          `json:"path"`
	Type       string          `json:"type"`
	Kubernetes *KubernetesAuth `json:"kubernetes,omitempty"` // nil: not Kubernetes, or not configured
}

// KubernetesAuth is how an auth method knows the cluster.
type KubernetesAuth struct {
	Host    string `json:"host,omitempty"`
	FixedCA bool   `json:"fixedCA,omitempty"` // a CA set by hand
	// ReviewerToken is whether a token for reviews was set by hand: "set", "unset", or
	// "unknown" where the server does not say.
	ReviewerToken  string `json:"reviewerToken,omitempty"`
	DisableLocalCA bool   `json:"disableLocalCA,omitempty"`
}

// Initial is what initialising a server gives.
type Initial struct {
	Keys  []string // in base64; those for recovery where a server unseals itself
	Token string
}

// Bounds of one small request, of what runs at once, and of the pause between two
// looks at something that is waited for.
const (
	requestTimeout = time.Minute
	parallel       = 8
	pollInterval   = 250 * time.Millisecond
)

// New makes a server of its options. It contacts nobody and takes nothing from
// the environment.
func New(o Options) (*Server, error) {
	u, err := url.Parse(o.Address)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the OpenBao server's address is not of the form http(s)://host:port, with nothing before and behind; correct it")
	}
	address := u.Scheme + "://" + u.Host
	trust := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(o.ServerName, u.Hostname())}
	if o.CA != nil {
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(o.CA) {
			return nil, fmt.Errorf("the CA for the OpenBao server at %s holds no certificate in PEM form; name a file with the CA's certificates", address)
		}
	}
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	transport := &http.Transport{ // without proxies: the dialer alone says how the server is reached
		DialContext:         dial,
		TLSClientConfig:     trust,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: parallel,
		IdleConnTimeout:     30 * time.Second,
	}
	c := api.NewConfig()
	c.Address = address
	c.HttpClient = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.Timeout = 0 // contexts bound it
	c.MaxRetries = 0
	c.DisableRedirects = true // a standby's are explained, not followed
	client, err := api.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("making a client for the OpenBao server at %s: %w", address, err)
	}
	s := &Server{address: address, transport: transport, client: client}
	return s.WithToken(o.Token), nil
}

// WithToken is the same server asked with another token.
func (s *Server) WithToken(token string) *Server {
	// Not Client.Clone: that forgets that nothing is to come from the environment.
	client := s.client.WithNamespace("")
	token = strings.TrimSpace(token)
	malformed := strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
	if malformed {
		token = ""
	}
	client.SetToken(token)
	return &Server{address: s.address, transport: s.transport, client: client, malformed: malformed}
}

// Close gives up idle connections.
func (s *Server) Close() { s.transport.CloseIdleConnections() }

// request is one small request to the server.
type request struct {
	doing  string // "reading the policies"
	method string
	path   string // below /v1/, as it is: escaping is done here
	query  url.Values
	body   any
	// What a policy must grant for it. None: nobody's token is needed.
	grant string
	needs []string
}

// call makes a request and decodes the answer into out, unless out is nil. What
// does not exist is not an error but false; the answer is decoded all the same if it
// has one.
func (s *Server) call(ctx context.Context, q request, out any) (found bool, err error) {
	if err := s.checkToken(q.grant); err != nil {
		return false, err
	}
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r := s.client.NewRequest(q.method, "/v1")
	r.URL.Path = "/v1/" + q.path // NewRequest would clean it
	r.Params = q.query
	if q.body != nil {
		if err := r.SetJSONBody(q.body); err != nil {
			return false, fmt.Errorf("%s: the request cannot be written as JSON", q.doing)
		}
	}
	response, err := s.client.RawRequestWithContext(limited, r)
	if response != nil && response.Body != nil {
		defer response.Body.Close()
	}
	if err == nil && response.StatusCode >= 300 {
		return false, s.redirected(response.Header)
	}
	found = true
	var answer *api.ResponseError
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound && !answer.RawError {
		found, err = false, nil
	}
	if err != nil {
		return false, s.explain(ctx, q, err)
	}
	if out == nil || response.StatusCode == http.StatusNoContent {
		return found, nil
	}
	if err := response.DecodeJSON(out); err != nil {
		if ctx.Err() != nil || limited.Err() != nil || errors.Is(err, io.ErrUnexpectedEOF) || isNet(err) {
			return false, s.explain(ctx, q, err)
		}
		// The decoder's words may quote what was sent.
		return false, &ForeignError{Address: s.address, Problem: fmt.Sprintf("%s got an answer that is not the expected JSON", q.doing)}
	}
	return found, nil
}

// checkToken says early what the server would say in fewer words.
func (s *Server) checkToken(grant string) error {
	switch {
	case grant == "":
		return nil
	case s.malformed:
		return &TokenError{Address: s.address, Malformed: true}
	case s.client.Token() == "":
		return &TokenError{Address: s.address, Missing: true}
	}
	return nil
}

// explain gives what went wrong with a request its type. No text of a server that
// is not OpenBao is passed on, and no token.
func (s *Server) explain(ctx context.Context, q request, err error) error {
	var answer *api.ResponseError
	if !errors.As(err, &answer) {
		if ctx.Err() != nil {
			return fmt.Errorf("%s at %s: %w", q.doing, s.address, context.Cause(ctx))
		}
		return s.unreachable(err)
	}
	if answer.RawError {
		problem := fmt.Sprintf("%s got HTTP status %d and no JSON", q.doing, answer.StatusCode)
		if strings.Contains(strings.Join(answer.Errors, ""), "HTTP request to an HTTPS server") {
			problem = "it speaks https"
		}
		return &ForeignError{Address: s.address, Problem: problem}
	}
	says := s.clean(answer.Errors)
	switch {
	case answer.StatusCode == http.StatusForbidden:
		return s.denied(ctx, q, says)
	case strings.Contains(says, "raft storage is not in use"):
		status, err := s.Status(ctx)
		if err != nil {
			return err
		}
		return &NoSnapshotError{Storage: status.Storage}
	case strings.Contains(says, "active cluster node not found"):
		return &StandbyError{Address: s.address}
	case q.grant == "": // asked the status itself, or what changes it
	case answer.StatusCode >= 500 || strings.Contains(says, "sealed") || strings.Contains(says, "not initialized"):
		status, err := s.Status(ctx)
		if err != nil {
			return err
		}
		if err := s.usable(status); err != nil {
			return err
		}
	}
	return &RefusedError{Doing: q.doing, Status: answer.StatusCode, Says: says}
}

// clean makes one line of the server's words, without the token.
func (s *Server) clean(words []string) string {
	says := strings.Join(strings.Fields(strings.Join(words, "; ")), " ")
	if token := s.client.Token(); token != "" {
		says = strings.ReplaceAll(says, token, "(token)")
	}
	if runes := []rune(says); len(runes) > 300 {
		says = string(runes[:300]) + "…"
	}
	return cmp.Or(says, "nothing")
}

// denied tells a token that the server does not know from one that may not.
func (s *Server) denied(ctx context.Context, q request, says string) error {
	const self = "auth/token/lookup-self"
	if strings.Contains(says, "invalid token") || strings.Contains(says, "bad token") {
		return &TokenError{Address: s.address}
	}
	if q.path != self {
		_, err := s.call(ctx, request{doing: "looking the token up", method: http.MethodGet, path: self, grant: self, needs: []string{"read"}}, nil)
		if err != nil {
			return err
		}
		return &DeniedError{Path: q.grant, Capabilities: q.needs}
	}
	// Every token may look itself up that was not denied the default policy.
	return &TokenError{Address: s.address}
}

// redirected explains a standby that sends to the active server.
func (s *Server) redirected(h http.Header) error {
	active := ""
	if u, err := url.Parse(h.Get("Location")); err == nil && u.Host != "" {
		active = u.Scheme + "://" + u.Host
	}
	return &StandbyError{Address: s.address, Active: active}
}

// unreachable types what broke a connection.
func (s *Server) unreachable(err error) error {
	var in *url.Error
	if errors.As(err, &in) {
		err = in.Err
	}
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &certificate):
		return &UntrustedError{Address: s.address, Err: certificate.Err}
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return &ForeignError{Address: s.address, Problem: "it does not speak https"}
	case errors.Is(err, context.DeadlineExceeded):
		return &UnreachableError{Address: s.address, Err: fmt.Errorf("no answer within %s", requestTimeout)}
	case !isNet(err) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && strings.Contains(err.Error(), "malformed HTTP"):
		return &ForeignError{Address: s.address, Problem: "it does not speak HTTP"}
	}
	return &UnreachableError{Address: s.address, Err: err}
}

func isNet(err error) bool {
	var n net.Error
	return errors.As(err, &n)
}

// usable is an error unless the status is that of an unsealed server.
func (s *Server) usable(status Status) error {
	switch {
	case !status.Initialised:
		return &UninitialisedError{Address: s.address}
	case status.Sealed:
		return &SealedError{Address: s.address, Status: status}
	}
	return nil
}

// Status asks the server for its status; that needs no token.
func (s *Server) Status(ctx context.Context) (Status, error) {
	var seal struct {
		api.SealStatusResponse
		Sealed *bool `json:"sealed"` // there is no seal-status without
	}
	q := request{doing: "asking for the seal's status", method: http.MethodGet, path: "sys/seal-status"}
	found, err := s.call(ctx, q, &seal)
	if err != nil {
		return Status{}, err
	}
	if !found || seal.Sealed == nil {
		return Status{}, &ForeignError{Address: s.address, Problem: "it has no seal's status"}
	}
	status := statusOf(&seal.SealStatusResponse)
	status.Sealed = *seal.Sealed
	if !status.Initialised || status.Sealed {
		return status, nil
	}
	var leader api.LeaderResponse
	q = request{doing: "asking for the active server", method: http.MethodGet, path: "sys/leader"}
	if _, err := s.call(ctx, q, &leader); err != nil {
		return Status{}, err
	}
	status.Active = leader.IsSelf || !leader.HAEnabled
	status.Leader = leader.LeaderAddress
	return status, nil
}

func statusOf(r *api.SealStatusResponse) Status {
	return Status{
		Initialised: r.Initialized, Sealed: r.Sealed, Version: r.Version, Storage: r.StorageType,
		Seal: r.Type, RecoverySeal: r.RecoverySeal, Shares: r.N, Threshold: r.T, Progress: r.Progress,
		ClusterName: r.ClusterName, ClusterID: r.ClusterID,
	}
}

// Describe asks for mounts, auth methods, policies and namespaces. What the token
// may not see is a *DeniedError.
func (s *Server) Describe(ctx context.Context) (Description, error) {
	var d Description
	status, err := s.Status(ctx)
	if err != nil {
		return d, err
	}
	if err := s.usable(status); err != nil {
		return d, err
	}
	mounts, err := s.mounts(ctx)
	if err != nil {
		return d, err
	}
	for _, m := range mounts {
		d.Mounts = append(d.Mounts, m.Mount)
	}
	var auths struct{ Data map[string]mountAnswer }
	if _, err := s.call(ctx, reading("the auth methods", "sys/auth"), &auths); err != nil {
		return d, err
	}
	for _, path := range slices.Sorted(maps.Keys(auths.Data)) {
		a := Auth{Path: path, Type: auths.Data[path].Type}
		if a.Type == "kubernetes" {
			if a.Kubernetes, err = s.kubernetesAuth(ctx, path); err != nil {
				return d, err
			}
		}
		d.Auths = append(d.Auths, a)
	}
	if d.Policies, _, err = s.list(ctx, "the policies", "sys/policies/acl", "sys/policies/acl"); err != nil {
		return d, err
	}
	if hasNamespaces(status.Version) {
		d.Namespaces, _, err = s.list(ctx, "the namespaces", "sys/namespaces", "sys/namespaces")
		var refused *RefusedError
		if err != nil && !errors.As(err, &refused) { // refused: a build without them
			return d, err
		}
	}
	return d, nil
}

// hasNamespaces is whether the release has them: OpenBao since 2.3. Older ones and
// Vault deny the path to most tokens rather than say that it is not there.
func hasNamespaces(release string) bool {
	v, err := version.ParseSemantic(release)
	return err == nil && v.AtLeast(version.MajorMinor(2, 3))
}

// reading is the request that reads a path of the API.
func reading(what, path string) request {
	return request{doing: "reading " + what, method: http.MethodGet, path: path, grant: path, needs: []string{"read"}}
}

// list reads the names below a path; false if there is nothing.
func (s *Server) list(ctx context.Context, what, path, grant string) ([]string, bool, error) {
	var answer struct{ Data struct{ Keys []string } }
	q := request{doing: "listing " + what, method: http.MethodGet, path: path, query: url.Values{"list": {"true"}}, grant: grant, needs: []string{"list"}}
	found, err := s.call(ctx, q, &answer)
	if err != nil {
		return nil, false, err
	}
	slices.Sort(answer.Data.Keys)
	return answer.Data.Keys, found, nil
}

type mountAnswer struct {
	Type        string
	Description string
	Options     map[string]string
}

// mounts are the secrets engines by path, KV ones without their configuration.
func (s *Server) mounts(ctx context.Context) ([]MountRecord, error) {
	var answer struct{ Data map[string]mountAnswer }
	if _, err := s.call(ctx, reading("the secrets engines", "sys/mounts"), &answer); err != nil {
		return nil, err
	}
	var all []MountRecord
	for _, path := range slices.Sorted(maps.Keys(answer.Data)) {
		m := answer.Data[path]
		r := MountRecord{Mount: Mount{Path: path, Type: m.Type}, Description: m.Description}
		switch {
		case m.Type == "kv" && m.Options["version"] == "2":
			r.KV = 2
		case m.Type == "kv" || m.Type == "generic": // generic is what KV was called once
			r.KV = 1
		}
		all = append(all, r)
	}
	return all, nil
}

// kubernetesAuth reads how a Kubernetes auth method is configured; nil if it is not.
func (s *Server) kubernetesAuth(ctx context.Context, path string) (*KubernetesAuth, error) {
	var answer struct {
		Data struct {
			Host           string `json:"kubernetes_host"`
			CA             string `json:"kubernetes_ca_cert"`
			DisableLocalCA bool   `json:"disable_local_ca_jwt"`
			ReviewerSet    *bool  `json:"token_reviewer_jwt_set"` // newer releases
		}
	}
	path = "auth/" + path + "config"
	found, err := s.call(ctx, reading("the Kubernetes auth method's configuration", path), &answer)
	if err != nil || !found {
		return nil, err
	}
	k := &KubernetesAuth{Host: answer.Data.Host, FixedCA: strings.TrimSpace(answer.Data.CA) != "", DisableLocalCA: answer.Data.DisableLocalCA, ReviewerToken: "unknown"}
	if set := answer.Data.ReviewerSet; set != nil {
		k.ReviewerToken = map[bool]string{true: "set", false: "unset"}[*set]
	}
	return k, nil
}

// Missing tells what the token may not do that keeping everything needs, each with
// the policy that grants it. Nothing is changed or read for that. The mounts are the
// ones to export; none: all.
func (s *Server) Missing(ctx context.Context, mounts ...string) ([]string, error) {
	status, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.usable(status); err != nil {
		return nil, err
	}
	type wanted struct{ what, grant, capability, probe string }
	want := []wanted{
		{"list the secrets engines", "sys/mounts", "read", ""},
		{"list the auth methods", "sys/auth", "read", ""},
		{"list the policies", "sys/policies/acl", "list", ""},
	}
	if status.Storage == "raft" {
		want = append(want, wanted{"take the raft snapshot", "sys/storage/raft/snapshot", "read", ""})
	}
	if hasNamespaces(status.Version) {
		want = append(want, wanted{"list the namespaces", "sys/namespaces", "list", ""})
	}
	var denied *DeniedError
	all, err := s.mounts(ctx)
	if err != nil && !errors.As(err, &denied) {
		return nil, err
	}
	if err == nil {
		chosen, err := choose(all, mounts)
		if err != nil {
			return nil, err
		}
		for _, m := range chosen {
			// Names that nobody has stand for those below the mount.
			if m.KV == 1 {
				want = append(want, wanted{"list the secrets of " + m.Path, m.Path + "*", "list", m.Path},
					wanted{"read the secrets of " + m.Path, m.Path + "*", "read", m.Path + "0/0"})
				continue
			}
			want = append(want, wanted{"read the settings of " + m.Path, m.Path + "config", "read", ""},
				wanted{"list the secrets of " + m.Path, m.Path + "metadata/*", "list", m.Path + "metadata/"},
				wanted{"read the metadata of " + m.Path, m.Path + "metadata/*", "read", m.Path + "metadata/0/0"},
				wanted{"read the secrets of " + m.Path, m.Path + "data/*", "read", m.Path + "data/0/0"})
		}
	}
	var auths struct{ Data map[string]mountAnswer }
	if _, err := s.call(ctx, reading("the auth methods", "sys/auth"), &auths); err != nil && !errors.As(err, &denied) {
		return nil, err
	}
	for _, path := range slices.Sorted(maps.Keys(auths.Data)) {
		if auths.Data[path].Type == "kubernetes" {
			want = append(want, wanted{"read how auth/" + path + " is configured", "auth/" + path + "config", "read", ""})
		}
	}
	probes := make([]string, len(want))
	for i := range want {
		probes[i] = cmp.Or(want[i].probe, want[i].grant)
	}
	var has struct{ Data map[string]json.RawMessage }
	const self = "sys/capabilities-self"
	q := request{doing: "asking what the token may do", method: http.MethodPost, path: self, body: map[string]any{"paths": probes}, grant: self, needs: []string{"update"}}
	if _, err := s.call(ctx, q, &has); err != nil {
		return nil, err
	}
	var missing []string
	for i, w := range want {
		var capabilities []string
		if err := json.Unmarshal(has.Data[probes[i]], &capabilities); err != nil {
			return nil, &ForeignError{Address: s.address, Problem: "it does not say what the token may do"}
		}
		if !slices.Contains(capabilities, w.capability) && !slices.Contains(capabilities, "root") {
			missing = append(missing, w.what+": "+stanza(w.grant, []string{w.capability}))
		}
	}
	return missing, nil
}

// Snapshot writes a raft snapshot, which is complete unless an error is returned.
// Storage that has none is a *NoSnapshotError.
func (s *Server) Snapshot(ctx context.Context, w io.Writer) error {
	q := reading("the raft snapshot", "sys/storage/raft/snapshot")
	if err := s.ready(ctx, q.grant); err != nil {
		return err
	}
	written := &failingWriter{w: w}
	err := s.client.Sys().RaftSnapshotWithContext(ctx, written)
	switch {
	case err == nil:
		return nil
	case written.err != nil:
		return fmt.Errorf("writing the raft snapshot: %w", written.err)
	case errors.Is(err, api.ErrIncompleteSnapshot):
		if status, e := s.Status(ctx); e == nil && !status.Active {
			return &StandbyError{Address: s.address, Active: status.Leader}
		}
		return fmt.Errorf("taking the raft snapshot of the OpenBao server at %s: the server stopped before its end; see the server's log, and take it again", s.address)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return &UnreachableError{Address: s.address, Err: errors.New("the connection broke in the midst of the raft snapshot")}
	}
	return s.explain(ctx, q, err)
}

// ready is an error unless the server is unsealed, has raft storage and a token.
func (s *Server) ready(ctx context.Context, grant string) error {
	status, err := s.Status(ctx)
	if err != nil {
		return err
	}
	if err := s.usable(status); err != nil {
		return err
	}
	if status.Storage != "raft" {
		return &NoSnapshotError{Storage: status.Storage}
	}
	return s.checkToken(grant)
}

// failingWriter and failingReader keep their own error apart from the connection's.
type failingWriter struct {
	w   io.Writer
	err error
}

func (f *failingWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err != nil {
		f.err = err
	}
	return n, err
}

type failingReader struct {
	r   io.Reader
	err error
}

func (f *failingReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// Restore puts a raft snapshot of any server in place of all that this one holds,
// and returns when the server has applied it. It is sealed then, unless it unseals
// itself or the snapshot is its own, and only the snapshot's keys and tokens work. A
// server that fails to apply it seals itself too: only unsealing it with the
// snapshot's keys shows which of the two it was.
func (s *Server) Restore(ctx context.Context, r io.Reader) error {
	q := request{doing: "restoring the raft snapshot", method: http.MethodPost, path: "sys/storage/raft/snapshot-force", grant: "sys/storage/raft/snapshot-force", needs: []string{"update"}}
	if err := s.ready(ctx, q.grant); err != nil {
		return err
	}
	// The server answers before it begins. What the snapshot cannot hold shows by its
	// absence that it has taken the place of everything.
	mark := "cubbyhole/migrate-" + rand.Text()
	marking := request{doing: "marking the server before the restore", method: http.MethodPost, path: mark, body: map[string]any{"restored": false}, grant: "cubbyhole/*", needs: []string{"create", "read", "delete"}}
	if _, err := s.call(ctx, marking, nil); err != nil {
		return err
	}
	body := &failingReader{r: r}
	if err := s.client.Sys().RaftSnapshotRestoreWithContext(ctx, body, true); err != nil {
		if body.err != nil {
			return fmt.Errorf("reading the raft snapshot: %w", body.err)
		}
		return s.explain(ctx, q, err)
	}
	looking := request{doing: "looking whether the snapshot is applied", method: http.MethodGet, path: mark, grant: marking.grant, needs: marking.needs}
	var last error
	for {
		found, err := s.call(ctx, looking, nil)
		var sealed *SealedError
		var token *TokenError
		switch {
		case err == nil && !found, errors.As(err, &sealed), errors.As(err, &token):
			return nil
		case ctx.Err() == nil:
			last = err
		}
		if err := pause(ctx); err != nil {
			problem := "it goes on as before"
			if last != nil {
				problem = last.Error()
			}
			return fmt.Errorf("waiting for the OpenBao server at %s to apply the snapshot: %w (%s); see the server's log", s.address, err, problem)
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pollInterval):
		return nil
	}
}

// Init initialises a new server with that many keys. One that is to take a snapshot
// needs as many, and the same threshold, as the snapshot's server had: once asked for
// them, a server goes on by the numbers it had before the restore, up to its next
// start, and would not take the snapshot's keys.
func (s *Server) Init(ctx context.Context, shares, threshold int) (Initial, error) {
	status, err := s.Status(ctx)
	if err != nil {
		return Initial{}, err
	}
	if status.Initialised {
		return Initial{}, &InitialisedError{Address: s.address}
	}
	ask := &api.InitRequest{SecretShares: shares, SecretThreshold: threshold}
	if status.RecoverySeal {
		ask = &api.InitRequest{RecoveryShares: shares, RecoveryThreshold: threshold}
	}
	answer, err := s.client.Sys().InitWithContext(ctx, ask)
	if err != nil {
		return Initial{}, s.explain(ctx, request{doing: "initialising the server"}, err)
	}
	keys := slices.Concat(answer.KeysB64, answer.RecoveryKeysB64)
	if len(keys) != shares || answer.RootToken == "" {
		return Initial{}, &ForeignError{Address: s.address, Problem: "initialising it gave no keys and token"}
	}
	return Initial{Keys: keys, Token: answer.RootToken}, nil
}

// Unseal gives the server one key after the other, in hexadecimal or base64, until
// it is unsealed. Wrong and too few keys are a *WrongKeysError and a
// *TooFewKeysError. A server that unseals itself is waited for. Keys that somebody
// else gave to an unsealing under way count no longer.
func (s *Server) Unseal(ctx context.Context, keys []string) error {
	status, err := s.Status(ctx)
	switch {
	case err != nil:
		return err
	case !status.Initialised:
		return &UninitialisedError{Address: s.address}
	case !status.Sealed:
		return nil
	case status.RecoverySeal:
		return s.waitUnsealed(ctx)
	}
	// Without this a malformed key would only be found after its predecessors.
	if bad := malformed(keys); len(bad) > 0 {
		return &WrongKeysError{Wrong: bad, Given: len(keys), Reason: "are neither hexadecimal nor base64, as unseal keys are"}
	}
	distinct := distinctKeys(keys)
	// Only the answer to a reset is sure to be of the storage as it is now, after
	// a restore.
	answer, err := s.client.Sys().ResetUnsealProcessWithContext(ctx)
	if err != nil {
		return s.unsealing(ctx, err, len(keys))
	}
	if len(distinct) < answer.T {
		return &TooFewKeysError{Have: len(distinct), Need: answer.T}
	}
	for _, key := range distinct[:answer.T] {
		if answer, err = s.client.Sys().UnsealWithContext(ctx, key); err != nil {
			return s.unsealing(ctx, err, len(keys))
		}
		if !answer.Sealed {
			return nil
		}
	}
	// Wrong ones would have been refused: it joins its cluster before it unseals.
	limited, cancel := context.WithTimeoutCause(ctx, requestTimeout, errors.New("it took the keys and stays sealed; see its log, and whether it can join its cluster"))
	defer cancel()
	return s.waitUnsealed(limited)
}

// unsealing types an error of unsealing. No words of the server are passed on with
// it but for those of an outage: a key is in what it answers to.
func (s *Server) unsealing(ctx context.Context, err error, given int) error {
	var answer *api.ResponseError
	if errors.As(err, &answer) && !answer.RawError && answer.StatusCode == http.StatusBadRequest {
		status, e := s.Status(ctx)
		switch {
		case e != nil:
			return e
		case !status.Initialised:
			return &UninitialisedError{Address: s.address}
		case !status.Sealed: // by somebody else meanwhile
			return nil
		}
		return &WrongKeysError{Given: given}
	}
	if errors.As(err, &answer) && !answer.RawError {
		return &RefusedError{Doing: "unsealing the server", Status: answer.StatusCode, Says: "see the server's log"}
	}
	return s.explain(ctx, request{doing: "unsealing the server"}, err)
}

// keyBytes decodes a key as the server does.
func keyBytes(key string) ([]byte, bool) {
	if b, err := hex.DecodeString(key); err == nil && len(b) >= 16 && len(b) <= 33 {
		return b, true
	}
	b, err := base64.StdEncoding.DecodeString(key)
	return b, err == nil && len(b) > 0
}

func malformed(keys []string) (places []int) {
	for i, key := range keys {
		if _, ok := keyBytes(strings.TrimSpace(key)); !ok {
			places = append(places, i+1)
		}
	}
	return places
}

// distinctKeys are the keys without repetitions, which the server would not count.
func distinctKeys(keys []string) []string {
	var distinct []string
	seen := map[string]bool{}
	for _, key := range keys {
		key = strings.TrimSpace(key)
		b, _ := keyBytes(key)
		if !seen[string(b)] {
			seen[string(b)] = true
			distinct = append(distinct, key)
		}
	}
	return distinct
}

// waitUnsealed waits for a server that has all that it needs.
func (s *Server) waitUnsealed(ctx context.Context) error {
	for {
		status, err := s.Status(ctx)
		if err == nil && !status.Sealed {
			return nil
		}
		if paused := pause(ctx); paused != nil {
			if err == nil {
				err = &SealedError{Address: s.address, Status: status}
			}
			return fmt.Errorf("waiting for the OpenBao server at %s to unseal: %w: %w", s.address, paused, err)
		}
	}
}

// WaitActive waits until the server is unsealed and the active one of its cluster,
// or the standby of one.
func (s *Server) WaitActive(ctx context.Context, t Detailer) error {
	for {
		status, err := s.Status(ctx)
		var problem string
		switch {
		case err != nil:
			problem = err.Error()
		case !status.Initialised:
			problem = "it is not initialised"
		case status.Sealed:
			problem = "it is sealed"
		case !status.Active && status.Leader == "":
			problem = "no server of its cluster is active"
		case s.answers(ctx):
			return nil
		default:
			problem = "it does not answer requests yet"
		}
		detail(t, problem)
		if err := pause(ctx); err != nil {
			return fmt.Errorf("waiting for the OpenBao server at %s to become active: %w (%s); see the server's log", s.address, err, problem)
		}
	}
}

// answers is whether requests get through to an active server. That a leader is
// named does not tell: the name may be of before a restore, and comes before the
// server is prepared.
func (s *Server) answers(ctx context.Context) bool {
	q := request{doing: "asking whether the server is active", method: http.MethodGet, path: "sys/internal/ui/mounts"}
	_, err := s.WithToken("").call(ctx, q, nil)
	var token *TokenError // of a server that shows it to nobody
	return err == nil || errors.As(err, &token)
}

func detail(t Detailer, text string) {
	if t != nil {
		t.Detail(text)
	}
}

// CheckVersion is an *OlderError if a server of the one release cannot be expected
// to read a snapshot of the other. Releases that are not understood are let pass.
func CheckVersion(server, snapshot string) error {
	is, err := version.ParseSemantic(server)
	if err != nil {
		return nil
	}
	wants, err := version.ParseSemantic(snapshot)
	if err == nil && is.LessThan(wants) {
		return &OlderError{Server: server, Snapshot: snapshot}
	}
	return nil
}
