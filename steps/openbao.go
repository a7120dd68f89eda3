package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/credentials"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
	"sunbeam.pt/k3s-dualstack/verify"
)

// Names of OpenBao's artifacts in the backup set.
const (
	baoSnapshot = "openbao/snapshot"
	// OpenBaoExport is what `migrate openbao import` reads.
	OpenBaoExport = "openbao/export"
	// baoThrowAway has key and token of a server that was initialised only so that
	// a snapshot can be restored into it, from before the one until after the other.
	baoThrowAway = "openbao/throw-away"
	// baoSecrets are the Kubernetes Secrets that the plan takes token or keys from.
	baoSecrets = "openbao/credentials"
)

// baoVersion is the key of an artifact's Meta with the version of the server that
// made it.
const baoVersion = "version"

// hasBao tells whether there is an OpenBao to be kept.
func (m *Migration) hasBao() bool {
	return m.Plan.Spec.Backup.OpenBao != nil && m.Facts.OpenBao != nil && m.Facts.OpenBao.Problem == ""
}

// baoArtifacts are those that the facts ask for, made while the cluster runs.
// baoSecrets is none of them: where token and keys come from may be mended.
func (m *Migration) baoArtifacts() []string {
	if m.Facts.OpenBao == nil || m.Facts.OpenBao.Problem != "" {
		return nil
	}
	names := []string{OpenBaoExport}
	if m.Facts.OpenBao.Snapshots() {
		names = append(names, baoSnapshot)
	}
	return names
}

// baoSecretKeys are the plan's pointers to Kubernetes Secrets.
func (m *Migration) baoSecretKeys() (keys []plans.SecretKey) {
	p := m.Plan.Spec.Backup.OpenBao
	for _, s := range append([]plans.Secret{p.Token}, p.UnsealKeys...) {
		if s.Kubernetes != nil {
			keys = append(keys, *s.Kubernetes)
		}
	}
	return keys
}

// protectBao keeps OpenBao's secrets twice, beside its volume.
func (m *Migration) protectBao() (actions []runner.Action) {
	if !m.hasBao() {
		return nil
	}
	target := m.onCluster()
	if m.Facts.OpenBao.Snapshots() {
		actions = append(actions, runner.Action{
			Name: baoSnapshot, Target: target,
			Summary: "Take OpenBao's raft snapshot; it is taken again right before the stop",
			Command: "bao operator raft snapshot save openbao.snap",
			Run:     func(ctx context.Context) (any, error) { return nil, m.keepBaoSnapshot(ctx) },
		})
	}
	actions = append(actions, runner.Action{
		Name: OpenBaoExport, Target: target,
		Summary: "Export OpenBao's KV secrets, every version, with mounts, auth methods and policies",
		Command: "bao secrets list; bao kv list …; bao kv metadata get …; bao kv get -version=…",
		Run:     m.exportBao,
	})
	if keys := m.baoSecretKeys(); len(keys) > 0 {
		actions = append(actions, runner.Action{
			Name: baoSecrets, Target: target,
			Summary: fmt.Sprintf("Keep the Kubernetes Secrets (%d) that hold OpenBao's token or keys: the next cluster does not have them", len(keys)),
			Command: "kubectl get secret -n … -o json",
			Run:     func(ctx context.Context) (any, error) { return nil, m.keepBaoSecrets(ctx) },
		})
	}
	return actions
}

// baoToken gets the plan's token.
func (m *Migration) baoToken(ctx context.Context) (string, error) {
	return m.credentials().Read(ctx, "spec.backup.openBao.token", m.Plan.Spec.Backup.OpenBao.Token)
}

// baoKeys gets the plan's unseal keys; it names none for a server that unseals
// itself.
func (m *Migration) baoKeys(ctx context.Context) ([]string, error) {
	if len(m.Plan.Spec.Backup.OpenBao.UnsealKeys) == 0 {
		return nil, nil
	}
	return m.credentials().Keys(ctx, "spec.backup.openBao.unsealKeys", m.Plan.Spec.Backup.OpenBao.UnsealKeys)
}

// noBaoKeys says why the plan's sources do not give as many keys as the server needs,
// as far as nobody has to be asked for them; whether they are right shows at the gate.
func (m *Migration) noBaoKeys(ctx context.Context, need int) (why string, err error) {
	asks := slices.ContainsFunc(m.Plan.Spec.Backup.OpenBao.UnsealKeys, func(s plans.Secret) bool { return s.Prompt })
	if need == 0 || asks || len(m.Plan.Spec.Backup.OpenBao.UnsealKeys) == 0 {
		return "", nil
	}
	keys, err := m.baoKeys(ctx)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return err.Error(), nil
	case len(keys) < need:
		return fmt.Sprintf("spec.backup.openBao.unsealKeys: %v", &openbao.TooFewKeysError{Have: len(keys), Need: need}), nil
	}
	return "", nil
}

// credentials reads what the plan points to, each once in the life of the process.
func (m *Migration) credentials() *credentials.Reader {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reader == nil {
		m.reader = &credentials.Reader{Ask: m.AskSecret, Kubernetes: m.kubernetesSecret, Stderr: m.Output}
	}
	return m.reader
}

// kubernetesSecret reads a Secret of the old cluster: from the cluster until it is
// stopped, then from the backup set. The new cluster's may be of the same name and
// hold something else.
func (m *Migration) kubernetesSecret(ctx context.Context, key plans.SecretKey) ([]byte, error) {
	state, err := m.State()
	if err != nil {
		return nil, err
	}
	if _, stopped := state.ActionState("quiesce", "stop"); !stopped {
		c, err := m.connected(ctx)
		if err != nil {
			return nil, err
		}
		return c.SecretValue(ctx, key.Namespace, key.Name, key.Key)
	}
	set, err := m.Set()
	if err != nil {
		return nil, err
	}
	r, err := set.Reader(baoSecrets)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for dec := json.NewDecoder(r); ; {
		var s corev1.Secret
		if err := dec.Decode(&s); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("the backup set's %s has no Secret %s/%s: it was not kept before the uninstall; name another source", baoSecrets, key.Namespace, key.Name)
			}
			return nil, fmt.Errorf("reading %s: %w", baoSecrets, err)
		}
		if s.Namespace == key.Namespace && s.Name == key.Name {
			if value, ok := s.Data[key.Key]; ok {
				return value, nil
			}
		}
	}
}

func (m *Migration) keepBaoSecrets(ctx context.Context) error {
	c, err := m.rebuilt(ctx)
	if err != nil {
		return err
	}
	return m.create(baoSecrets, backup.KindSecrets, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		for _, key := range m.baoSecretKeys() {
			value, err := c.SecretValue(ctx, key.Namespace, key.Name, key.Key)
			if err != nil {
				return err
			}
			err = enc.Encode(corev1.Secret{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
				ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
				Data:       map[string][]byte{key.Key: value},
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// baoEndpoints are the ways to the servers of the cluster that runs now.
func (m *Migration) baoEndpoints(ctx context.Context, token string) ([]survey.OpenBaoEndpoint, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	c, err := m.rebuilt(ctx)
	if err != nil {
		return nil, err
	}
	return survey.OpenBaoEndpoints(ctx, h, c, m.Plan.Spec.Backup.OpenBao, token)
}

// withBao speaks to the active server; all must be unsealed.
func (m *Migration) withBao(ctx context.Context, do func(survey.OpenBaoEndpoint, openbao.Status) error) error {
	token, err := m.baoToken(ctx)
	if err != nil {
		return err
	}
	all, err := m.baoEndpoints(ctx, token)
	if err != nil {
		return err
	}
	defer survey.CloseOpenBao(all)
	active, statuses, err := survey.ActiveOpenBao(ctx, all)
	if err != nil {
		return err
	}
	if err := do(active, statuses[0]); err != nil {
		return fmt.Errorf("%s: %w", active.Name, err)
	}
	return nil
}

func (m *Migration) keepBaoSnapshot(ctx context.Context) error {
	set, err := m.Set()
	if err != nil {
		return err
	}
	return m.withBao(ctx, func(bao survey.OpenBaoEndpoint, status openbao.Status) error {
		t := m.Progress.Wait("Taking OpenBao's snapshot")
		defer t.Done()
		w, err := set.Create(baoSnapshot, backup.KindRaftSnapshot, backup.Encoded(backup.None))
		if err != nil {
			return err
		}
		defer w.Abort()
		if err := bao.Snapshot(ctx, w); err != nil {
			return err
		}
		_, err = w.Commit(map[string]string{baoVersion: status.Version})
		return err
	})
}

func (m *Migration) exportBao(ctx context.Context) (any, error) {
	var summary openbao.Summary
	err := m.withBao(ctx, func(bao survey.OpenBaoEndpoint, _ openbao.Status) error {
		t := m.Progress.Wait("Exporting OpenBao's secrets")
		defer t.Done()
		return m.create(OpenBaoExport, backup.KindOpenBaoExport, func(w io.Writer) (err error) {
			summary, err = bao.Export(ctx, m.Plan.Spec.Backup.OpenBao.Mounts, w, t)
			var mount *openbao.MountError
			if errors.As(err, &mount) {
				err = fmt.Errorf("spec.backup.openBao.mounts[%d]: %w", mount.Index, err)
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return summary, m.readSentinel()
}

// readSentinel sees that the export has the sentinel, with data to compare.
func (m *Migration) readSentinel() error {
	sentinel := m.Plan.Spec.Backup.OpenBao.Sentinel
	if sentinel == "" {
		return nil
	}
	return m.withExport(func(export io.Reader) error {
		secret, err := openbao.FindSecret(export, sentinel)
		if err != nil {
			return fmt.Errorf("spec.backup.openBao.sentinel: %w", err)
		}
		if latest, ok := secret.Latest(); !ok || latest.Data == nil {
			return fmt.Errorf("spec.backup.openBao.sentinel: the latest version of %s is deleted or destroyed: nothing is recognised by it; name another secret", sentinel)
		}
		return nil
	})
}

// withExport reads the export of the KV secrets.
func (m *Migration) withExport(do func(export io.Reader) error) error {
	set, err := m.Set()
	if err != nil {
		return err
	}
	r, err := set.Reader(OpenBaoExport)
	if err != nil {
		return err
	}
	defer r.Close()
	return do(r)
}

// proveBao proves that what is kept of OpenBao can be opened with the operator's
// keys. No server is asked: it need not be sealed, nor be there at all.
func (m *Migration) proveBao() []runner.Action {
	if !m.hasBao() || len(m.Plan.Spec.Backup.OpenBao.UnsealKeys) == 0 {
		return nil
	}
	return []runner.Action{{
		Name: "unseal keys", Target: m.onLaptop(),
		Summary: fmt.Sprintf("Prove with OpenBao's backup that the unseal keys (%d) open it; the running server is left alone", m.Facts.OpenBao.Keys()),
		Run:     func(ctx context.Context) (any, error) { return nil, m.proveBaoKeys(ctx) },
	}}
}

func (m *Migration) proveBaoKeys(ctx context.Context) error {
	keys, err := m.baoKeys(ctx)
	if err != nil {
		return err
	}
	set, err := m.Set()
	if err != nil {
		return err
	}
	sealed, err := m.sealedBao(set)
	if err != nil {
		return err
	}
	if err := sealed.Prove(keys); err != nil {
		return fmt.Errorf("spec.backup.openBao.unsealKeys: %w\nK3s was not uninstalled; give the right keys and `migrate run` continues", err)
	}
	return nil
}

// keysProver is what unseal keys can be proven on.
type keysProver interface{ Prove(keys []string) error }

// sealedBao reads from the backup what the unseal keys open.
func (m *Migration) sealedBao(set *backup.Set) (keysProver, error) {
	if m.Facts.OpenBao.Snapshots() {
		r, err := set.Reader(baoSnapshot)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		s, err := openbao.ReadSnapshot(r)
		if err != nil {
			return nil, fmt.Errorf("artifact %s: %w", baoSnapshot, err)
		}
		if s.Namespaces > 0 {
			fmt.Fprintf(m.Output, "warning: %d namespaces of OpenBao have a seal of their own: their keys are not proven here\n", s.Namespaces)
		}
		return s, nil
	}
	return m.baoFiles(set)
}

// baoFiles reads what the unseal keys open from the volume of the first server,
// whose storage is files there.
func (m *Migration) baoFiles(set *backup.Set) (keysProver, error) {
	for _, v := range m.Facts.Cluster.Volumes {
		if !v.Copied() || !slices.Contains(m.Facts.OpenBao.Servers[0].Claims, v.Namespace+"/"+v.Claim) {
			continue
		}
		// What was written since the full pass is in the delta.
		archives := []string{v.Ref().Delta(), v.Ref().Full()}
		if _, taken := set.Artifact(v.Ref().Delta()); !taken {
			archives = archives[1:]
		}
		root, err := storageIn(set, archives)
		if err != nil {
			return nil, err
		}
		if root != "" {
			return openbao.ReadFileStorage(func(name string) (data []byte, err error) {
				for _, archive := range archives {
					if data, err = set.File(archive, path.Join(root, name)); !errors.Is(err, fs.ErrNotExist) {
						return data, err
					}
				}
				return nil, err
			})
		}
	}
	return nil, errors.New("the volumes of OpenBao hold no storage of files (core/_keyring): where its data lie is not known")
}

// storageIn finds the directory of file storage in a volume's archives, as a path
// that begins with a slash; "" when there is none.
func storageIn(set *backup.Set, archives []string) (root string, err error) {
	for _, archive := range archives {
		err := set.Members(archive, func(f index.Member) error {
			if dir, ok := strings.CutSuffix("/"+f.Path, "/core/_keyring"); ok {
				root = "/" + dir
			}
			return nil
		})
		if err != nil || root != "" {
			return root, err
		}
	}
	return "", nil
}

// refreshBao keeps OpenBao as it is now, right before the stop.
func (m *Migration) refreshBao(ctx context.Context, now *survey.Facts) error {
	if m.Plan.Spec.Backup.OpenBao == nil {
		return nil
	}
	if now.OpenBao.Problem != "" {
		return fmt.Errorf("OpenBao can no longer be read: %s\nthe cluster runs as before; mend it, and `migrate run` continues", now.OpenBao.Problem)
	}
	if _, err := m.exportBao(ctx); err != nil {
		return err
	}
	if len(m.baoSecretKeys()) > 0 {
		if err := m.keepBaoSecrets(ctx); err != nil {
			return err
		}
	}
	if now.OpenBao.Snapshots() {
		if err := m.keepBaoSnapshot(ctx); err != nil {
			return err
		}
	}
	if len(m.Plan.Spec.Backup.OpenBao.UnsealKeys) == 0 {
		return nil
	}
	// Whoever has to be asked for them is asked now, not in the downtime.
	return m.proveBaoKeys(ctx)
}

// alsoBao is what the refresh's summary says of OpenBao.
func (m *Migration) alsoBao() string {
	if !m.hasBao() {
		return ""
	}
	return "; the same of OpenBao"
}

// dependentsBack waits for what an operator makes from OpenBao's secrets.
func (m *Migration) dependentsBack() []runner.Action {
	if !m.hasBao() {
		return nil
	}
	return []runner.Action{{
		Name: "synced secrets", Target: m.onCluster(),
		Summary: "Wait until what operators make from OpenBao's secrets is synced (VaultStaticSecret and its siblings, ExternalSecret), where there are any",
		Command: "kubectl get vaultstaticsecrets,vaultdynamicsecrets,vaultpkisecrets -A",
		Run: func(ctx context.Context) (any, error) {
			ctx, cancel := context.WithTimeout(ctx, workloadsDeadline)
			defer cancel()
			c, err := m.rebuilt(ctx)
			if err != nil {
				return nil, err
			}
			t := m.Progress.Wait("Waiting for synced secrets")
			defer t.Done()
			return nil, c.WaitSecretsSynced(ctx, t)
		},
	}}
}

// compareBao holds the server against the export, where there is one.
func (m *Migration) compareBao(ctx context.Context) ([]verify.Check, error) {
	if !m.hasBao() {
		return nil, nil
	}
	c := verify.Check{ID: verify.OpenBao, Name: "OpenBao", Target: m.Plan.Spec.Backup.OpenBao.Namespace, Status: verify.Pass}
	var result openbao.Comparison
	err := m.withBao(ctx, func(bao survey.OpenBaoEndpoint, _ openbao.Status) error {
		c.Target = bao.Name
		return m.withExport(func(export io.Reader) (err error) {
			result, err = bao.Compare(ctx, export, nil)
			return err
		})
	})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		c.Status, c.Detail = verify.Fail, err.Error()
		var sealed *openbao.SealedError
		if errors.As(err, &sealed) {
			c.Remedy = "migrate openbao unseal -f " + remote.Quote(m.Plan.Path())
		}
	case result.Total > 0:
		c.Status, c.Detail = verify.Fail, fmt.Sprintf("%d differences, the first: %s", result.Total, result.Differences[0])
		c.Remedy = "if they were not changed on purpose, the backup set has what they were: " + m.baoCopies()
	default:
		c.Detail = fmt.Sprintf("unsealed; %d secrets with %d versions as they were exported", result.Secrets, result.Versions)
	}
	return []verify.Check{c}, nil
}

// compareContents holds what was brought back against the set.
func (m *Migration) compareContents(ctx context.Context) ([]verify.Check, error) {
	volumes, err := m.compareVolumes(ctx)
	if err != nil {
		return nil, err
	}
	bao, err := m.compareBao(ctx)
	return append(volumes, bao...), err
}
