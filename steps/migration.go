package steps

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/credentials"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
	"sunbeam.pt/k3s-dualstack/verify"
)

// Files in the work directory.
const (
	factsFile   = "facts.json"
	journalFile = "journal.jsonl"
	lockFile    = "lock"
	setDir      = "backup"
	reportFile  = "verify.json"
)

// Migration is one plan being carried out, or looked at. Connections are made
// when they are first needed and closed by [Migration.Close].
type Migration struct {
	Plan     *plans.Plan
	Progress *progress.Reporter
	// Output gets what the platform command prints.
	Output io.Writer
	// Ask gets the passphrases of protected key files; nil where nobody can be
	// asked.
	Ask remote.AskFunc
	// AskSecret asks for secret values that the plan wants typed in; nil where
	// nobody can be asked.
	AskSecret func(question string) ([]byte, error)

	// Pauser lets a person in between the steps and actions of a run; it may be nil.
	Pauser runner.Pauser

	// KeepPresent makes a rollback leave volumes that are there as they are; by
	// default the backup's contents come back and what differs is set aside.
	KeepPresent bool
	// Via is the way back that a rollback takes, [ViaSnapshot] or [ViaBackup]; "" goes
	// on by that of the rollback under way, and else by the backup set.
	Via string
	// DestroyNewer lets a rollback by snapshot destroy snapshots that are newer than it.
	DestroyNewer bool
	// RollbackBegins is when a rollback that has not begun is taken to begin, for
	// the names under which it keeps what it replaces; zero: not known yet.
	RollbackBegins time.Time

	// Facts are nil until the survey has taken them.
	Facts *survey.Facts
	// Waivers are the findings that do not stop the run, with the reasons.
	Waivers preflight.Waivers
	// Findings are preflight's, once it ran.
	Findings []preflight.Finding
	// Report is the verification's, once it ran.
	Report *verify.Report
	// Unlike is what a rollback's comparison with the old cluster found, once it
	// was made.
	Unlike []verify.Check

	// proven is set once this process has proven the whole set, as it then was.
	proven bool
	// taken are the facts that were held against the saved plan with the digest savedAs, by
	// this process, right before the run.
	taken   *survey.Facts
	savedAs string
	// looked is set once this process has taken the last look.
	looked  bool
	quiet   sync.Mutex // serialises stopping K3s again
	holding sync.Mutex // one at a time uses the lock on the host
	mu      sync.Mutex // guards what follows
	host    *remote.Host
	client  *cluster.Client
	set     *backup.Set
	// reader reads what the plan points to.
	reader *credentials.Reader
	// bao is what was done to OpenBao in the new cluster, by one goroutine at a time.
	bao revived
}

// New prepares a migration; facts that an earlier run kept are read again.
func New(plan *plans.Plan, p *progress.Reporter, output io.Writer) (*Migration, error) {
	m := &Migration{Plan: plan, Progress: p, Output: output}
	data, err := os.ReadFile(m.file(factsFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, nil
	case err != nil:
		return nil, fmt.Errorf("reading the facts of the run: %w", err)
	}
	m.Facts = &survey.Facts{}
	err = json.Unmarshal(data, m.Facts)
	if err == nil && m.Facts.K3s == nil {
		err = errors.New("it does not hold facts")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the facts of the run in %s: %w: the run cannot be continued without them; restore the file from where the work directory is kept", m.file(factsFile), err)
	}
	return m, nil
}

// Close ends the connections.
func (m *Migration) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.host == nil {
		return nil
	}
	err := m.host.Close()
	m.host, m.client = nil, nil
	return err
}

func (m *Migration) file(name string) string { return filepath.Join(m.Plan.Spec.WorkDir, name) }

// JournalPath is where the run's memory lies on the laptop.
func (m *Migration) JournalPath() string { return m.file(journalFile) }

// LockPath is the laptop's half of the lock.
func (m *Migration) LockPath() string { return m.file(lockFile) }

// Host is the connection to the server.
func (m *Migration) Host(ctx context.Context) (*remote.Host, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.host == nil {
		h, err := remote.Dial(ctx, m.Plan.Server(), remote.AskPassphrase(m.Ask))
		if err != nil {
			return nil, err
		}
		m.host = h
	}
	return m.host, nil
}

// Client is the API of the cluster that runs on the host now.
func (m *Migration) Client(ctx context.Context, in *k3s.Installation) (*cluster.Client, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client == nil {
		kubeconfig, err := h.ReadFile(ctx, in.Kubeconfig())
		if err != nil {
			return nil, fmt.Errorf("host %s: reading the cluster's kubeconfig: %w", h.Name(), err)
		}
		if m.client, err = cluster.Connect(h, kubeconfig); err != nil {
			return nil, fmt.Errorf("host %s: %s: %w", h.Name(), in.Kubeconfig(), err)
		}
	}
	return m.client, nil
}

// forgetClient makes the next use read the kubeconfig anew: a rebuilt server
// has other client certificates.
func (m *Migration) forgetClient() {
	m.mu.Lock()
	m.client = nil
	m.mu.Unlock()
}

// rebuilt is the API of the new cluster.
func (m *Migration) rebuilt(ctx context.Context) (*cluster.Client, error) {
	return m.Client(ctx, m.Facts.K3s)
}

// connected is the API that is spoken to, before the first facts are kept too.
func (m *Migration) connected(ctx context.Context) (*cluster.Client, error) {
	m.mu.Lock()
	c := m.client
	m.mu.Unlock()
	if c != nil {
		return c, nil
	}
	return m.rebuilt(ctx)
}

// hasSet tells whether a backup set was begun, without beginning one.
func (m *Migration) hasSet() bool {
	_, err := os.Stat(m.file(setDir))
	return err == nil
}

// Set is the backup set in the work directory.
func (m *Migration) Set() (*backup.Set, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.set == nil {
		e := m.Plan.Spec.Backup.Encryption
		s, err := backup.OpenAsking(m.file(setDir), e.Recipients, e.Identities, backup.Passphrase(m.Ask))
		if err != nil {
			return nil, err
		}
		m.set = s
	}
	return m.set, nil
}

// hostAndSet are the two ends of every transfer.
func (m *Migration) hostAndSet(ctx context.Context) (*remote.Host, *backup.Set, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, nil, err
	}
	set, err := m.Set()
	return h, set, err
}

// hostKey names the host key's fingerprint among what a run is bound to.
const hostKey = "host key"

// bind is what the run is bound to from its first backup on: the host that has
// this key, what the cluster becomes and what is kept of it. How the host is
// reached, the platform's command, hooks, the Services' policy, what is watched, the verification and the
// private keys may be mended meanwhile. Machine, K3s and volumes are compared with the facts, see
// unmoved.
func (m *Migration) bind(key string) runner.Bind {
	spec := m.Plan.Spec
	text := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err) // plain data: cannot fail
		}
		return string(data)
	}
	// Of OpenBao what is kept; how it is reached and where token and keys come from
	// may be mended.
	var kept []string
	if b := spec.Backup.OpenBao; b != nil {
		kept = append([]string{b.Sentinel}, b.Mounts...)
	}
	return runner.Bind{Plan: m.Plan.Metadata.Name, Extra: map[string]string{
		hostKey:                             key,
		"spec.hosts[0].name":                m.Plan.Server().Name,
		"spec.network":                      text(spec.Network),
		"spec.k3s.version":                  spec.K3s.Version,
		"spec.k3s.disable":                  text(spec.K3s.Disable),
		"spec.k3s.extraArgs":                withoutSecretArgs(spec.K3s.ExtraArgs),
		"spec.k3s.identity":                 string(spec.K3s.Identity),
		"spec.backup.volumes.exclude":       text(spec.Backup.Volumes.Exclude),
		"spec.backup.tlsSecrets":            text(spec.Backup.TLSSecrets),
		"spec.backup.objects":               text(spec.Backup.Objects),
		"spec.backup.encryption.recipients": text(spec.Backup.Encryption.Recipients),
		"spec.backup.openBao":               text(kept),
		snapshotKey:                         text(snapshotBind(spec.Snapshot)),
	}}
}

// withoutSecretArgs replaces arguments by their digest: some of K3s's flags hold
// secrets, and the journal is not encrypted.
func withoutSecretArgs(args []string) string {
	if len(args) == 0 {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join(args, "\x00")))
	return fmt.Sprintf("%d arguments with SHA-256 %x", len(args), sum)
}

// Survey takes the facts without keeping them.
func (m *Migration) Survey(ctx context.Context) (*survey.Facts, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	in, err := k3s.Read(ctx, h)
	if err != nil {
		return nil, err
	}
	if err := usable(h, in); err != nil {
		return nil, err
	}
	c, err := m.Client(ctx, in)
	if err != nil {
		return nil, err
	}
	facts, err := survey.Take(ctx, h, c, in, m.Plan, m.baoToken)
	if err == nil {
		if state, stateErr := m.State(); stateErr == nil { // what is wrong with the journal others tell
			began := slices.ContainsFunc(state.Steps, func(s runner.StepState) bool { return s.Step == snapshotStep })
			facts.Host.Storage.Taken = began && state.RolledBack == "" && !state.Finished
		}
	}
	if err == nil && facts.OpenBao != nil && facts.OpenBao.Problem == "" {
		facts.OpenBao.NoKeys, err = m.noBaoKeys(ctx, facts.OpenBao.Keys())
	}
	return facts, err
}

// InhibitedError says that preflight forbids the run.
type InhibitedError struct{ Findings []preflight.Finding }

func (e *InhibitedError) Error() string {
	n := 0
	for _, f := range e.Findings {
		if f.Inhibits() {
			n++
		}
	}
	if n == 1 {
		return "1 finding forbids the migration; nothing was changed"
	}
	return fmt.Sprintf("%d findings forbid the migration; nothing was changed", n)
}

// usable refuses a host whose API server cannot be asked, in the words of a
// finding: everything else that preflight looks at needs the API.
func usable(h *remote.Host, in *k3s.Installation) error {
	partial := &survey.Facts{K3s: in, Host: survey.Host{Name: h.Name()}}
	if findings := preflight.Installed(partial); preflight.Inhibited(findings) {
		return &InhibitedError{Findings: findings}
	}
	return nil
}

// Check runs preflight over the facts.
func (m *Migration) Check() error {
	laptop := preflight.Laptop{WorkDir: m.Plan.Spec.WorkDir}
	var err error
	if laptop.Free, err = free(m.Plan.Spec.WorkDir); err != nil {
		return fmt.Errorf("laptop: measuring the space below %s: %w", m.Plan.Spec.WorkDir, err)
	}
	m.Findings = preflight.Judge(preflight.Check(m.Plan, m.Facts, laptop), m.Waivers)
	if preflight.Inhibited(m.Findings) {
		return &InhibitedError{Findings: m.Findings}
	}
	return nil
}

// keep writes a file of the work directory, durably.
func (m *Migration) keep(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.Plan.Spec.WorkDir, 0o700); err != nil {
		return fmt.Errorf("laptop: making the work directory: %w", err)
	}
	if err := renameio.WriteFile(m.file(name), append(data, '\n'), 0o600, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("laptop: keeping %s: %w", m.file(name), err)
	}
	return nil
}

func (m *Migration) onHost() runner.Target {
	return runner.Target{Kind: runner.Host, Name: m.Plan.Server().Name}
}

func (m *Migration) onCluster() runner.Target {
	return runner.Target{Kind: runner.Cluster, Name: m.Plan.Metadata.Name}
}

func (m *Migration) onLaptop() runner.Target { return runner.Target{Kind: runner.Laptop} }

// job runs a script on the host as a detached job and waits for it, over lost
// connections; its output is kept there until the job is forgotten. A job of
// that name that an earlier process left is attached to; one that did not do its
// work is begun anew.
func (m *Migration) job(ctx context.Context, name, label, script string) error {
	tail := &lastLines{}
	err := m.jobTo(ctx, name, label, script, tail)
	if inVain(err) {
		return &outputError{err: err, output: tail.String()}
	}
	return err
}

// jobTo is job with the output written to out.
func (m *Migration) jobTo(ctx context.Context, name, label, script string, out io.Writer) error {
	h, err := m.Host(ctx)
	if err != nil {
		return err
	}
	t := m.Progress.Wait(label)
	defer t.Done()
	if err = h.WaitJob(ctx, name, out); err != nil && (errors.Is(err, remote.ErrNoJob) || inVain(err)) {
		if inVain(err) {
			fmt.Fprintln(out, "(an earlier attempt did not do its work; it is begun anew)")
		}
		if err := h.ForgetJob(ctx, name); err != nil {
			return err
		}
		if err := h.StartJob(ctx, name, script); err != nil {
			return fmt.Errorf("host %s: starting job %s: %w", h.Name(), name, err)
		}
		err = h.WaitJob(ctx, name, out)
	}
	switch {
	case err == nil:
		return h.ForgetJob(ctx, name)
	case inVain(err):
		return fmt.Errorf("host %s: job %s: %w", h.Name(), name, err)
	}
	return fmt.Errorf("host %s: waiting for job %s: %w: the job goes on without this connection; the same command attaches to it again", h.Name(), name, err)
}

// inVain tells that a job ended and did not do its work.
func inVain(err error) bool {
	var exit *remote.ExitError
	return errors.As(err, &exit) || errors.Is(err, remote.ErrJobLost)
}

// lastLines keeps the end of an output.
type lastLines struct{ buf []byte }

const lastLinesMax = 4096

func (l *lastLines) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p...)
	if len(l.buf) > lastLinesMax {
		l.buf = append([]byte(nil), l.buf[len(l.buf)-lastLinesMax:]...)
	}
	return len(p), nil
}

func (l *lastLines) String() string { return string(l.buf) }

// apiDeadline bounds the waits for the API and the node after a start.
const apiDeadline = 5 * time.Minute

// releaseDeadline bounds what is still done after an interrupt: a lock given up,
// a line mirrored.
const releaseDeadline = 10 * time.Second

// SetDir is where the backup set lies.
func (m *Migration) SetDir() string { return m.file(setDir) }
