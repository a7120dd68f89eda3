package parts

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/k3s/bundle"
)

// K3s is what a node is installed from: a binary and the installer that goes with it.
type K3s struct{ Binary, InstallScript string }

// Where K3s's own parts are published, for the lab that is told to download them.
const (
	releases  = "https://github.com/k3s-io/k3s/releases/download/"
	installer = "https://get.k3s.io"
)

// K3s returns the node's parts. From is "assembled" (from upstream parts, built here),
// "download" (K3s's own release), or the path of a K3s binary.
func (s *Shop) K3s(ctx context.Context, from string) (K3s, error) {
	switch from {
	case "assembled":
		return s.assembled(ctx)
	case "download":
		return s.downloaded(ctx)
	}
	binary, err := filepath.Abs(from)
	if err != nil {
		return K3s{}, err
	}
	if info, err := os.Stat(binary); err != nil {
		return K3s{}, fmt.Errorf("taking K3s from a path (--k3s takes a path, download or assembled): %w", err)
	} else if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return K3s{}, fmt.Errorf("taking K3s from %s: not an executable file", binary)
	}
	// The lab's installer speaks the same language as K3s's, and needs no network.
	return K3s{binary, s.installScript()}, nil
}

func (s *Shop) installScript() string { return filepath.Join(s.Source, "k3s", "install.sh") }

// assembled appends the upstream parts to the launcher.
func (s *Shop) assembled(ctx context.Context) (K3s, error) {
	files := map[string]string{}
	var keys []string
	for name, part := range map[string]program{bundle.Kubernetes: kubernetes, bundle.Kine: kine} {
		binary, err := s.build(ctx, part)
		if err != nil {
			return K3s{}, err
		}
		files[name] = binary
	}
	archives, err := s.node(ctx)
	if err != nil {
		return K3s{}, err
	}
	for name, archive := range archives {
		files[bundle.Images+name] = archive
	}
	front, err := s.build(ctx, launcher)
	if err != nil {
		return K3s{}, err
	}
	// Each path names the content in the cache that it leads to.
	for _, name := range slices.Sorted(maps.Keys(files)) {
		keys = append(keys, name, filepath.Base(filepath.Dir(files[name])))
	}
	key := cache.Key(append(keys, filepath.Base(filepath.Dir(front)))...)
	dir, err := s.Cache.Get("k3s", key, func(dir string) error {
		s.Say("k3s: assembling %s", K3sVersion)
		return bundle.Append(filepath.Join(dir, "k3s"), front, files)
	})
	return K3s{filepath.Join(dir, "k3s"), s.installScript()}, err
}

// downloaded fetches K3s's own binary of the same version, and its installer.
func (s *Shop) downloaded(ctx context.Context) (K3s, error) {
	architecture, err := s.architecture(ctx)
	if err != nil {
		return K3s{}, err
	}
	asset := map[string]string{"amd64": "k3s", "arm64": "k3s-arm64"}[architecture]
	if asset == "" {
		return K3s{}, fmt.Errorf("K3s is not published for %s", architecture)
	}
	dir, err := s.Cache.Get("k3s-release", cache.Key(K3sVersion, architecture), func(dir string) error {
		s.Say("k3s: downloading %s", K3sVersion)
		if err := download(ctx, releases+strings.ReplaceAll(K3sVersion, "+", "%2B")+"/"+asset, filepath.Join(dir, "k3s")); err != nil {
			return err
		}
		return download(ctx, installer, filepath.Join(dir, "install.sh"))
	})
	return K3s{filepath.Join(dir, "k3s"), filepath.Join(dir, "install.sh")}, err
}

func download(ctx context.Context, url, file string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("downloading %s: %s", url, response.Status)
	}
	out, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, response.Body); err != nil {
		out.Close()
		return fmt.Errorf("downloading %s: %w", url, err)
	}
	return out.Close()
}

// Kubectl returns a kubectl for this machine: the node's own, or, where that cannot run,
// the one in PATH.
func (s *Shop) Kubectl(ctx context.Context) (string, error) {
	architecture, err := s.architecture(ctx)
	if err != nil {
		return "", err
	}
	if runtime.GOOS == "linux" && runtime.GOARCH == architecture {
		return s.build(ctx, kubernetes)
	}
	path, err := exec.LookPath("kubectl")
	if err != nil {
		return "", fmt.Errorf("the lab's kubectl runs on linux/%s only, and there is none in PATH: %w", architecture, err)
	}
	return path, nil
}
