// Package parts makes what a lab consists of, from source, and keeps it in the cache: the upstream
// binaries, the images, the K3s-shaped binary and the host's image.
package parts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/hostimage"
)

// Shop makes parts. It is for one goroutine.
type Shop struct {
	Cache  cache.Cache
	Source string // the lab's source directory
	Say    func(format string, arguments ...any)

	version, arch string // answers of the toolchain and the engine, once asked
}

// HostImage returns the engine's reference of the host's image.
func (s *Shop) HostImage(ctx context.Context) (string, error) {
	reference, _, err := hostimage.Ensure(ctx, s.Cache, s.Say)
	return reference, err
}

// ControlPlane links the binaries of a control plane without a node into dir, kubernetes and
// kine, and openbao, for tests that need a real API server or a real OpenBao and no more.
func (s *Shop) ControlPlane(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the directory for the control plane's binaries: %w", err)
	}
	for _, part := range []program{kubernetes, kine, openbao} {
		binary, err := s.build(ctx, part)
		if err != nil {
			return err
		}
		link := filepath.Join(dir, part.name)
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("replacing a link to %s: %w", part.name, err)
		}
		if err := os.Symlink(binary, link); err != nil {
			return fmt.Errorf("linking %s: %w", part.name, err)
		}
	}
	return nil
}

// All makes every part of a lab with the assembled K3s.
func (s *Shop) All(ctx context.Context) error {
	for _, part := range []func(context.Context) (string, error){s.HostImage, s.Internet, s.App, s.OpenBao, s.Kubectl} {
		if _, err := part(ctx); err != nil {
			return err
		}
	}
	_, err := s.K3s(ctx, "assembled")
	return err
}
