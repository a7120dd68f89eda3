package parts

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/hostimage"
	"sunbeam.pt/k3s-dualstack/lab/images"
	"sunbeam.pt/k3s-dualstack/lab/k3s/bundle"
)

// The platform's images, which nodes pull from the lab's registry.
const (
	AppImage     = "registry.lab/sunbeam/app:1"
	OpenBaoImage = "registry.lab/sunbeam/openbao:1"
)

// image makes an archive of a program, under the program's name.
func (s *Shop) image(ctx context.Context, p program, reference, entry string) (string, error) {
	binary, err := s.build(ctx, p)
	if err != nil {
		return "", err
	}
	spec := images.Spec{Name: reference, Binaries: map[string]string{"/usr/local/bin/" + p.name: binary}}
	if entry != "" {
		spec.Entrypoint = []string{entry}
	}
	key, err := s.key(ctx, p)
	if err != nil {
		return "", err
	}
	return s.archive(ctx, p.name, key, spec)
}

func (s *Shop) archive(ctx context.Context, name, content string, spec images.Spec) (string, error) {
	own, err := cache.Sources(s.Source, "images", "go.mod")
	if err != nil {
		return "", err
	}
	if spec.Architecture, err = s.architecture(ctx); err != nil {
		return "", err
	}
	dir, err := s.Cache.Get("image-"+name, cache.Key(content, own, spec.Name, fmt.Sprint(spec.Entrypoint), fmt.Sprint(spec.Links)), func(dir string) error {
		return images.Write(filepath.Join(dir, name+".tar"), spec)
	})
	return filepath.Join(dir, name+".tar"), err
}

// App returns the archive of the image of the platform's programs.
func (s *Shop) App(ctx context.Context) (string, error) {
	return s.image(ctx, app, AppImage, "/usr/local/bin/app")
}

// OpenBao returns the archive of the stand-in's image.
func (s *Shop) OpenBao(ctx context.Context) (string, error) {
	return s.image(ctx, openbao, OpenBaoImage, "/usr/local/bin/openbao")
}

// Internet makes the image of the internet container known to the engine, and returns its
// reference.
func (s *Shop) Internet(ctx context.Context) (string, error) {
	key, err := s.key(ctx, internet)
	if err != nil {
		return "", err
	}
	reference := "k3s-dualstack-lab/internet:" + key
	archive, err := s.image(ctx, internet, reference, "/usr/local/bin/internet")
	if err != nil {
		return "", err
	}
	known, err := engine.Exists(ctx, "image", reference)
	if err != nil || known {
		return reference, err
	}
	return reference, engine.Run(ctx, "load", "--quiet", "--input", archive)
}

// node makes the archives that the assembled K3s carries, by file name.
func (s *Shop) node(ctx context.Context) (map[string]string, error) {
	archives := map[string]string{}
	for _, one := range []struct {
		program          program
		reference, entry string
	}{
		{coredns, bundle.CoreDNSImage, "/usr/local/bin/coredns"},
		{localPath, bundle.LocalPathImage, ""},
		{pause, bundle.PauseImage, "/usr/local/bin/pause"},
	} {
		archive, err := s.image(ctx, one.program, one.reference, one.entry)
		if err != nil {
			return nil, err
		}
		archives[one.program.name+".tar"] = archive
	}
	archive, err := s.busybox(ctx)
	archives["busybox.tar"] = archive
	return archives, err
}

// busybox makes the image of local-path's helper pods from Debian's static binary, which the
// host's image has.
func (s *Shop) busybox(ctx context.Context) (string, error) {
	_, rootfs, err := hostimage.Ensure(ctx, s.Cache, s.Say)
	if err != nil {
		return "", err
	}
	content := filepath.Base(filepath.Dir(rootfs))
	dir, err := s.Cache.Get("bin-busybox", cache.Key(content), func(dir string) error {
		return extract(rootfs, "bin/busybox", filepath.Join(dir, "busybox"))
	})
	if err != nil {
		return "", err
	}
	links := map[string]string{}
	for _, applet := range []string{"sh", "mkdir", "rm", "chmod", "ls", "cat", "du"} {
		links["/bin/"+applet] = "busybox"
	}
	return s.archive(ctx, "busybox", cache.Key(content), images.Spec{Name: bundle.BusyboxImage, Binaries: map[string]string{"/bin/busybox": filepath.Join(dir, "busybox")}, Links: links})
}

// extract takes one file out of an archive whose directories may be merged into /usr.
func extract(archive, name, target string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	entries := tar.NewReader(file)
	for {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s has no %s", archive, name)
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", archive, err)
		}
		path := strings.TrimPrefix(strings.TrimPrefix(header.Name, "./"), "usr/")
		if path != name || header.Typeflag != tar.TypeReg {
			continue
		}
		out, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, entries); err != nil {
			out.Close()
			return err
		}
		return out.Close()
	}
}
