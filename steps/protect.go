package steps

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// Names of the artifacts in the backup set; a volume's are backup's to name.
const (
	installScript = "install-script"
	objects       = "objects"
	namespaces    = "namespaces"
	tlsSecrets    = "tls-secrets"
	k3sFiles      = "k3s-files"
	strays        = "strays"
	k3sState      = "k3s-state"
	k3sDatabase   = "k3s-database"
)

// protect backs up everything that can be backed up while the cluster runs, so
// that the downtime has only the rest to do.
func (m *Migration) protect(context.Context) ([]runner.Action, error) {
	in := m.Facts.K3s
	actions := []runner.Action{{
		Name: installScript, Target: m.onLaptop(),
		Summary: "Fetch K3s's install script now: the downtime must not depend on a download",
		Command: fetch(m.Plan.Spec.K3s.InstallScript),
		Run:     m.keepInstallScript,
	}, {
		Name: objects, Target: m.onCluster(),
		Summary: "Export all API objects",
		Command: "kubectl get \"$(kubectl api-resources --verbs=list -o name | paste -sd,)\" -A -o json > objects.json",
		Run:     m.keepObjects,
	}, {
		Name: tlsSecrets, Target: m.onCluster(),
		Summary: fmt.Sprintf("Keep the TLS secrets (%d) with their annotations", len(m.Facts.Cluster.TLSSecrets)),
		Command: "kubectl get secrets -A --field-selector type=kubernetes.io/tls -o yaml > tls-backup.yaml",
		Run:     m.keepSecrets,
	}, {
		Name: k3sFiles, Target: m.onHost(),
		Summary: fmt.Sprintf("Keep K3s %s's binary, scripts, unit, env files and configuration", in.Version),
		Command: m.OverSSH("tar -C / -cf - "+remote.Quote(in.Files()...)) + " > k3s-files.tar",
		Bytes:   in.BinarySize,
		Run:     func(ctx context.Context) (any, error) { return nil, m.keepTree(ctx, k3sFiles, in.Files()) },
	}}
	if found := m.Facts.Host.Strays; len(found) > 0 {
		actions = append(actions, runner.Action{
			Name: strays, Target: m.onHost(),
			Summary: fmt.Sprintf("Keep what lies in the storage and belongs to no volume (%d)", len(found)),
			Command: m.OverSSH("tar -C / -cf - "+remote.Quote(found...)) + " > strays.tar",
			Run:     func(ctx context.Context) (any, error) { return nil, m.keepTree(ctx, strays, found) },
		})
	}
	actions = append(actions, m.protectBao()...)
	for _, v := range m.Facts.Cluster.Volumes {
		if !v.Copied() {
			continue
		}
		actions = append(actions, runner.Action{
			Name: "volume " + v.PV, Target: m.onHost(),
			Summary: fmt.Sprintf("Stream volume %s to the laptop while workloads run", claim(v)),
			Command: m.OverSSH("mkdir -p "+listDir+" && "+archive(v)) + " > " + remote.Quote(v.PV+".tar.zst"),
			Bytes:   v.Bytes,
			Run:     func(ctx context.Context) (any, error) { return nil, m.keepVolume(ctx, v) },
		})
	}
	return actions, nil
}

// listDir is where tar would keep its lists of what it archived, by hand.
const listDir = remote.StateDir + "/volumes"

// archive is the command that prints a volume as an archive: all of it the first time,
// what changed since the next.
func archive(v survey.Volume) string {
	return fmt.Sprintf("tar -C %s --listed-incremental=%s --sparse --acls --xattrs --numeric-owner -cf - . | zstd", remote.Quote(v.Path), remote.Quote(path.Join(listDir, v.PV+".list")))
}

func claim(v survey.Volume) string {
	size := fmt.Sprintf("%d files, %.1f MiB", v.Files, float64(v.Bytes)/(1<<20))
	if v.Claim == "" {
		return v.PV + " (" + size + ")"
	}
	return v.Namespace + "/" + v.Claim + " (" + size + ")"
}

// fetch is the command that gets the install script, a URL or a file.
func fetch(from string) string {
	if strings.Contains(from, "://") {
		return "curl -sfL " + remote.Quote(from) + " -o install.sh"
	}
	return "cp " + remote.Quote(from) + " install.sh"
}

// installScriptLimit keeps a wrong URL from filling the disk; the real script
// has some 40 KiB.
const installScriptLimit = 4 << 20

func (m *Migration) keepInstallScript(ctx context.Context) (any, error) {
	from := m.Plan.Spec.K3s.InstallScript
	var body io.ReadCloser
	if u, err := url.Parse(from); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
		if err != nil {
			return nil, fmt.Errorf("spec.k3s.installScript: %w", err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, fmt.Errorf("spec.k3s.installScript: fetching it: %w: download it by hand and name the file", err)
		}
		if resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			return nil, fmt.Errorf("spec.k3s.installScript: fetching %s: %s", from, resp.Status)
		}
		body = resp.Body
	} else if body, err = os.Open(from); err != nil {
		return nil, fmt.Errorf("spec.k3s.installScript: %w", err)
	}
	defer body.Close()
	return nil, m.create(installScript, backup.KindFile, func(w io.Writer) error {
		n, err := io.Copy(w, io.LimitReader(body, installScriptLimit+1))
		if err == nil && n > installScriptLimit {
			err = fmt.Errorf("spec.k3s.installScript: %s is larger than %d bytes: no install script of K3s", from, installScriptLimit)
		}
		return err
	})
}

// create writes an artifact in one go; one that is there already is replaced.
func (m *Migration) create(name string, kind backup.Kind, write func(io.Writer) error) error {
	set, err := m.Set()
	if err != nil {
		return err
	}
	w, err := set.Create(name, kind, backup.Compressed())
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := write(w); err != nil {
		return err
	}
	_, err = w.Commit(nil)
	return err
}

func (m *Migration) keepObjects(ctx context.Context) (any, error) {
	c, err := m.rebuilt(ctx)
	if err != nil {
		return nil, err
	}
	t := m.Progress.Wait("Exporting API objects")
	defer t.Done()
	var exported cluster.Exported
	err = m.create(objects, backup.KindObjects, func(w io.Writer) (err error) {
		exported, err = c.Export(ctx, m.Plan.Spec.Backup.Objects.ExcludeResources, w)
		return err
	})
	for _, warning := range exported.Warnings {
		fmt.Fprintf(m.Output, "warning: %s\n", warning)
	}
	return map[string]any{"objects": exported.Objects, "warnings": exported.Warnings}, err
}

func (m *Migration) keepSecrets(ctx context.Context) (any, error) {
	c, err := m.rebuilt(ctx)
	if err != nil {
		return nil, err
	}
	secrets, err := c.TLSSecrets(ctx, m.Plan.Spec.Backup.TLSSecrets.Selectors)
	if err != nil {
		return nil, err
	}
	spaces, err := c.Namespaces(ctx)
	if err != nil {
		return nil, err
	}
	// Namespaces go along: a secret needs its own before the platform makes it.
	err = m.create(namespaces, backup.KindObjects, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		for _, n := range spaces {
			n.APIVersion, n.Kind = "v1", "Namespace"
			if err := enc.Encode(n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]int{"namespaces": len(spaces), "secrets": len(secrets)}, m.create(tlsSecrets, backup.KindSecrets, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		for _, s := range secrets {
			s.APIVersion, s.Kind = "v1", "Secret"
			if err := enc.Encode(s); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *Migration) keepTree(ctx context.Context, name string, paths []string) error {
	h, set, err := m.hostAndSet(ctx)
	if err != nil {
		return err
	}
	return backup.Tree(ctx, h, set, backup.TreeRef{Name: name, Paths: paths}, m.Progress)
}

func (m *Migration) keepVolume(ctx context.Context, v survey.Volume) error {
	h, set, err := m.hostAndSet(ctx)
	if err != nil {
		return err
	}
	// A connection of its own: one channel carries 2 MiB a round trip at most.
	if h, err = h.Another(ctx); err != nil {
		return err
	}
	defer h.Close()
	if err := backup.Take(ctx, h, v.Ref(), set, m.Progress); err != nil || set.Whole(v.Ref()) {
		return err
	}
	// Changes since another full pass, which a run that was taken back left in the
	// set, would be found not to belong to this one.
	full := []string{v.Ref().Full(), backup.ListName(v.Ref().Full())}
	for _, name := range v.Ref().Artifacts() {
		if !slices.Contains(full, name) {
			if err := set.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// preservesIdentity tells whether the plan keeps the cluster's identity.
func (m *Migration) preservesIdentity() bool {
	return m.Plan.Spec.K3s.Identity != plans.IdentityNew
}
