package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"sunbeam.pt/k3s-dualstack/lab/k3s/bundle"
)

const containerdSocket = "/run/k3s/containerd/containerd.sock"

// containerdConfig is the configuration of containerd 1.6, with everything where
// K3s has it, so that what an uninstall removes and leaves is the same.
func containerdConfig(paths paths, contained bool) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Written by the lab's k3s at every start.
version = 2
root = %q
state = "/run/k3s/containerd"

[grpc]
  address = %q

[plugins."io.containerd.internal.v1.opt"]
  path = %q

[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"
  enable_selinux = false
  restrict_oom_score_adj = %t
  sandbox_image = %q

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = %q

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = %q
`, paths.containerdRoot, containerdSocket, paths.containerdRoot, contained, bundle.PauseImage, paths.cniConf, paths.certsD)
	return b.Bytes()
}

// registries is /etc/rancher/k3s/registries.yaml.
type registries struct {
	Mirrors map[string]struct {
		Endpoints []string          `yaml:"endpoint"`
		Rewrites  map[string]string `yaml:"rewrite"`
	} `yaml:"mirrors"`
	Configs map[string]struct {
		Auth *yaml.Node `yaml:"auth"`
		TLS  *struct {
			CAFile             string `yaml:"ca_file"`
			CertFile           string `yaml:"cert_file"`
			KeyFile            string `yaml:"key_file"`
			InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
		} `yaml:"tls"`
	} `yaml:"configs"`
}

// hostsFiles turns registries.yaml into containerd's hosts.toml files, by
// directory name below certs.d.
func hostsFiles(data []byte) (map[string][]byte, error) {
	var r registries
	if err := yaml.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read registries.yaml: %w", err)
	}
	for name, c := range r.Configs {
		if c.Auth != nil {
			return nil, fmt.Errorf("read registries.yaml: configs.%s.auth: the lab's node knows no registry credentials", name)
		}
	}
	files := map[string][]byte{}
	for name, mirror := range r.Mirrors {
		if len(mirror.Rewrites) > 0 {
			return nil, fmt.Errorf("read registries.yaml: mirrors.%s.rewrite: the lab's node knows no rewrites", name)
		}
		var b bytes.Buffer
		if name != "*" {
			fmt.Fprintf(&b, "server = %q\n", "https://"+name+"/v2")
		}
		for _, endpoint := range mirror.Endpoints {
			u, err := url.Parse(endpoint)
			if err != nil || u.Host == "" {
				return nil, fmt.Errorf("read registries.yaml: mirrors.%s: %q is no URL", name, endpoint)
			}
			if u.Path == "" || u.Path == "/" {
				u.Path = "/v2"
			}
			fmt.Fprintf(&b, "\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", u)
			if c := r.Configs[u.Host]; c.TLS != nil {
				if c.TLS.InsecureSkipVerify {
					b.WriteString("  skip_verify = true\n")
				}
				if c.TLS.CAFile != "" {
					fmt.Fprintf(&b, "  ca = %q\n", c.TLS.CAFile)
				}
				if c.TLS.CertFile != "" {
					fmt.Fprintf(&b, "  client = [[%q, %q]]\n", c.TLS.CertFile, c.TLS.KeyFile)
				}
			}
		}
		dir := name
		if name == "*" {
			dir = "_default"
		}
		files[dir] = b.Bytes()
	}
	return files, nil
}

// configureContainerd writes all that containerd reads.
func configureContainerd(paths paths, contained bool) error {
	if err := os.RemoveAll(paths.certsD); err != nil {
		return fmt.Errorf("renew the registries' configuration: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(configDir, "registries.yaml"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read registries.yaml: %w", err)
	}
	files, err := hostsFiles(data)
	if err != nil {
		return err
	}
	for dir, content := range files {
		if err := write(filepath.Join(paths.certsD, dir, "hosts.toml"), content, 0o600); err != nil {
			return err
		}
	}
	for _, dir := range []string{paths.cniConf, paths.certsD} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("configure containerd: %w", err)
		}
	}
	return write(paths.containerdConfig, containerdConfig(paths, contained), 0o600)
}

// forgetNetwork removes the pod network's configuration of an earlier run when
// its bridge is gone, after a boot or the killall script: the ranges may be
// others now, and no pod shall start with the old ones before podNetwork has run.
func forgetNetwork(paths paths) error {
	if exists("/sys/class/net/cni0") {
		return nil
	}
	if err := os.Remove(paths.cniFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the old CNI configuration: %w", err)
	}
	return nil
}

func ctr(ctx context.Context, args ...string) ([]byte, error) {
	program, err := hostProgram("ctr")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"--address", containerdSocket, "--namespace", "k8s.io"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

func waitContainerd(ctx context.Context) error {
	for {
		_, err := ctr(ctx, "version")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for containerd: %w (last: %w)", context.Cause(ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// imported remembers, beside the images, which archive gave which.
type imported struct {
	Size     int64
	Modified time.Time
	Images   []string
}

// importImages imports the payload's archives and those that an administrator
// laid in agent/images. An archive is read again only when it changed or one of
// its images is gone: an import takes a second and more.
func importImages(ctx context.Context, paths paths, shipped string) error {
	record := filepath.Join(paths.containerdRoot, "lab-imported.json")
	known := map[string]imported{}
	if data, err := os.ReadFile(record); err == nil {
		_ = json.Unmarshal(data, &known) // a damaged record only costs a second import
	}
	present, err := imageNames(ctx)
	if err != nil {
		return err
	}
	for _, dir := range []string{shipped, paths.images} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("import images: %w", err)
		}
		for _, e := range entries {
			if name := e.Name(); !strings.HasSuffix(name, ".tar") && !strings.HasSuffix(name, ".tar.gz") && !strings.HasSuffix(name, ".tgz") {
				continue
			}
			path := filepath.Join(dir, e.Name())
			info, err := os.Stat(path)
			if err != nil {
				return fmt.Errorf("import images: %w", err)
			}
			k, ok := known[path]
			if ok && k.Size == info.Size() && k.Modified.Equal(info.ModTime()) && subset(k.Images, present) {
				continue
			}
			out, err := ctr(ctx, "images", "import", path)
			if err != nil {
				return fmt.Errorf("import images from %s: %w", path, err)
			}
			known[path] = imported{info.Size(), info.ModTime(), importedNames(out)}
			logf("info", "Imported images from %s: %s", path, strings.Join(known[path].Images, ", "))
		}
	}
	data, err := json.Marshal(known)
	if err != nil {
		return fmt.Errorf("import images: %w", err)
	}
	return write(record, data, 0o600)
}

func imageNames(ctx context.Context) ([]string, error) {
	out, err := ctr(ctx, "images", "list", "-q")
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(out)), nil
}

// importedNames reads ctr's report, a line "unpacking NAME (sha256:…)...done" per image.
func importedNames(out []byte) []string {
	var names []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "unpacking" {
			names = append(names, f[1])
		}
	}
	return names
}

func subset(want, have []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}
