// Package hostimage makes the image of the lab's host: Debian 12 with systemd, sshd and the
// packages that a Kubernetes node needs. Its base is debian:bookworm-slim where a
// registry answers, and debootstrap otherwise.
package hostimage

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/debian"
	"sunbeam.pt/k3s-dualstack/lab/engine"
)

const (
	base = "debian:" + debian.Suite + "-slim"
	// repository holds the image, tagged by the content it was made from.
	repository = "k3s-dualstack-lab/host"
)

//go:embed packages setup.sh all:root
var sources embed.FS

// Ensure makes the image known to the engine and returns its reference and the
// archive of its root file system.
func Ensure(ctx context.Context, c cache.Cache, say func(string, ...any)) (reference, rootfs string, err error) {
	key, err := contentKey()
	if err != nil {
		return "", "", err
	}
	dir, err := c.Get("host-image", key, func(dir string) error {
		archive := filepath.Join(dir, "rootfs.tar")
		if pullable(ctx) {
			say("host image: from %s", base)
			return fromBase(ctx, archive)
		}
		say("host image: no registry gives %s, so debootstrap makes it (about two minutes)", base)
		return fromDebootstrap(ctx, archive)
	})
	if err != nil {
		return "", "", err
	}
	rootfs = filepath.Join(dir, "rootfs.tar")
	reference = repository + ":" + key
	known, err := engine.Exists(ctx, "image", reference)
	if err != nil || known {
		return reference, rootfs, err
	}
	say("host image: importing it into the container engine")
	err = engine.Run(ctx, "import", "-c", `CMD ["/sbin/init"]`, "-c", "ENV container docker", rootfs, reference)
	return reference, rootfs, err
}

// contentKey covers all that goes into the image but the state of Debian's archive.
func contentKey() (string, error) {
	texts, err := cache.Texts(sources)
	return cache.Key(append([]string{debian.Suite}, texts...)...), err
}

func packages() ([]string, error) {
	data, err := sources.ReadFile("packages")
	return strings.Fields(string(data)), err
}

// pullable tells whether the base image is there or can be had. A registry that does
// not answer soon counts as none.
func pullable(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if known, err := engine.Exists(ctx, "image", base); err == nil && known {
		return true
	}
	return engine.Run(ctx, "pull", "--quiet", base) == nil
}

// fromBase builds with the engine and keeps the flat tree, so that the cached
// archive is the same thing whichever way it was made.
func fromBase(ctx context.Context, archive string) error {
	work, err := os.MkdirTemp("", "lab-host-image-")
	if err != nil {
		return fmt.Errorf("making a build directory: %w", err)
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, sources); err != nil {
		return fmt.Errorf("laying out the build directory: %w", err)
	}
	dockerfile := "FROM " + base + `
COPY packages setup.sh /
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(cat /packages)
COPY root /
RUN sh /setup.sh && rm /packages /setup.sh
`
	if err := os.WriteFile(filepath.Join(work, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return err
	}
	tag := fmt.Sprintf("%s:building-%d", repository, os.Getpid())
	if err := engine.Run(ctx, "build", "--quiet", "-t", tag, work); err != nil {
		return err
	}
	defer engine.Run(context.WithoutCancel(ctx), "rmi", "--force", tag)
	container, err := engine.Output(ctx, "create", tag, "/sbin/init")
	if err != nil {
		return err
	}
	defer engine.Run(context.WithoutCancel(ctx), "rm", "--force", container)
	return engine.Run(ctx, "export", "--output", archive, container)
}

func fromDebootstrap(ctx context.Context, archive string) error {
	names, err := packages()
	if err != nil {
		return err
	}
	root, err := fs.Sub(sources, "root")
	if err != nil {
		return err
	}
	script, err := sources.ReadFile("setup.sh")
	if err != nil {
		return err
	}
	err = debian.Tree(ctx, names, root, string(script), func(tree string) error {
		return debian.Run(ctx, "tar", "--numeric-owner", "--one-file-system", "--exclude=./proc/*", "--exclude=./sys/*", "--exclude=./dev/*", "-C", tree, "-cf", archive, ".")
	})
	if errors.Is(err, debian.ErrNotRoot) {
		return fmt.Errorf("%s cannot be pulled, and %w; run `sudo -E lab build` once, or give a registry that has it", base, err)
	}
	return err
}
