package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"sunbeam.pt/k3s-dualstack/lab/k3s/bundle"
)

//go:embed manifests/*.yaml
var shipped embed.FS

// fillManifest puts this cluster's values into a shipped manifest.
func fillManifest(text string, cfg *Config, n *network, paths paths) string {
	// K3s makes the Service dual-stack when it has a DNS address per family; an
	// explicit single cluster-dns keeps it single-stack.
	policy := "SingleStack"
	if len(n.DNS) > 1 {
		policy = "RequireDualStack"
	}
	var hosts strings.Builder
	for _, a := range n.Node {
		fmt.Fprintf(&hosts, "    %s %s\n", a, cfg.NodeName)
	}
	return strings.NewReplacer(
		"%{CLUSTER_DOMAIN}%", cfg.ClusterDomain,
		"%{CLUSTER_DNS}%", n.DNS[0].String(),
		"%{CLUSTER_DNS_LIST}%", `"`+strings.ReplaceAll(join(n.DNS), ",", `", "`)+`"`,
		"%{CLUSTER_DNS_IPFAMILYPOLICY}%", policy,
		"%{NODE_HOSTS}%\n", hosts.String(),
		"%{DEFAULT_LOCAL_STORAGE_PATH}%", paths.storage,
		"%{COREDNS_IMAGE}%", bundle.CoreDNSImage,
		"%{LOCAL_PATH_IMAGE}%", bundle.LocalPathImage,
		"%{BUSYBOX_IMAGE}%", bundle.BusyboxImage,
	).Replace(text)
}

// deployer applies what lies in server/manifests, as K3s's addon controller
// does: again whenever a file changes, and once at every start.
type deployer struct {
	kubectl, kubeconfig string
	dir                 string
	disabled            []string
	applied             map[string][32]byte
}

// stage writes the shipped manifests into the directory; those with a .skip file
// beside them stay out, as the disabled ones do.
func (d *deployer) stage(cfg *Config, n *network, paths paths) error {
	entries, err := shipped.ReadDir("manifests")
	if err != nil {
		return fmt.Errorf("stage the manifests: %w", err)
	}
	for _, e := range entries {
		text, err := shipped.ReadFile("manifests/" + e.Name())
		if err != nil {
			return fmt.Errorf("stage the manifests: %w", err)
		}
		path := filepath.Join(d.dir, e.Name())
		if exists(path+".skip") || slices.Contains(d.disabled, stem(path)) {
			continue
		}
		if err := write(path, []byte(fillManifest(string(text), cfg, n, paths)), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func stem(path string) string {
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}

// watch applies and applies again until ctx ends. What cannot be applied yet
// (a resource type that comes with another file, a server that starts) is tried
// again soon.
func (d *deployer) watch(ctx context.Context) {
	for {
		wait := 15 * time.Second
		for _, path := range d.files() {
			if err := d.deploy(ctx, path); err != nil && ctx.Err() == nil {
				logf("error", "Failed to process %s: %v", path, err)
				wait = 2 * time.Second
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (d *deployer) files() []string {
	var out []string
	err := filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
			if !e.IsDir() && !exists(path+".skip") {
				out = append(out, path)
			}
		}
		return nil
	})
	if err != nil {
		logf("error", "list the manifests: %v", err)
	}
	return out
}

func (d *deployer) deploy(ctx context.Context, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	off := slices.Contains(d.disabled, stem(path))
	sum := sha256.Sum256(data)
	if d.applied[path] == sum && !off {
		return nil
	}
	objects, err := owned(data, stem(path))
	if err != nil {
		return err
	}
	verb := []string{"apply"}
	if off {
		verb = []string{"delete", "--ignore-not-found", "--wait=false"}
	}
	cmd := exec.CommandContext(ctx, d.kubectl, append(verb, "-f", "-", "--cache-dir=/run/k3s/kubectl-cache")...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+d.kubeconfig)
	cmd.Stdin = bytes.NewReader(objects)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", verb[0], err, strings.TrimSpace(string(out)))
	}
	if off {
		return os.Remove(path)
	}
	logf("info", "Applied manifest at %q", path)
	d.applied[path] = sum
	return nil
}

// owned marks every object of a manifest as an addon's, as K3s does: whoever
// changes such an object must know that its file wins at the next start.
func owned(data []byte, addon string) ([]byte, error) {
	var out bytes.Buffer
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var object map[string]any
		err := dec.Decode(&object)
		if errors.Is(err, io.EOF) {
			return out.Bytes(), nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the manifest: %w", err)
		}
		if object == nil {
			continue
		}
		list := []any{object}
		if items, ok := object["items"].([]any); ok {
			list = items
		}
		for _, item := range list {
			if m, ok := item.(map[string]any); ok {
				mark(m, addon)
			}
		}
		if err := json.NewEncoder(&out).Encode(object); err != nil {
			return nil, fmt.Errorf("read the manifest: %w", err)
		}
	}
}

func mark(object map[string]any, addon string) {
	meta, _ := object["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		object["metadata"] = meta
	}
	set := func(field string, pairs map[string]string) {
		m, _ := meta[field].(map[string]any)
		if m == nil {
			m = map[string]any{}
			meta[field] = m
		}
		for k, v := range pairs {
			m[k] = v
		}
	}
	sum := sha256.Sum256([]byte("k3s.cattle.io/v1, Kind=Addon/kube-system/" + addon))
	set("labels", map[string]string{"objectset.rio.cattle.io/hash": fmt.Sprintf("%x", sum[:20])})
	set("annotations", map[string]string{
		"objectset.rio.cattle.io/id":              "",
		"objectset.rio.cattle.io/owner-gvk":       "k3s.cattle.io/v1, Kind=Addon",
		"objectset.rio.cattle.io/owner-name":      addon,
		"objectset.rio.cattle.io/owner-namespace": "kube-system",
	})
}
