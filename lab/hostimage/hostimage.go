// Package hostimage makes the image of the lab's host: Debian 12 with systemd, sshd and the
// packages that a Kubernetes node needs. Its base is debian:bookworm-slim where a
// registry answers, and debootstrap otherwise.
package hostimage

import (
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/engine"
)

const (
	suite = "bookworm"
	base  = "debian:bookworm-slim"
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
	texts := []string{suite}
	err := fs.WalkDir(sources, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := sources.ReadFile(path)
		texts = append(texts, path, string(data))
		return err
	})
	return cache.Key(texts...), err
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
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s cannot be pulled, and debootstrap needs root; run `sudo -E lab build` once, or give a registry that has it", base)
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		if err := engine.Install(ctx, "debootstrap", "debootstrap"); err != nil {
			return err
		}
	}
	names, err := packages()
	if err != nil {
		return err
	}
	tree, err := os.MkdirTemp("", "lab-host-tree-")
	if err != nil {
		return fmt.Errorf("making a directory for the tree: %w", err)
	}
	// debootstrap mounts /proc and /sys in the tree while it works, and leaves
	// them there when it is killed: they go before the tree does.
	defer func() {
		for _, mount := range []string{"proc", "sys"} {
			_ = exec.Command("umount", "--lazy", filepath.Join(tree, mount)).Run()
		}
		_ = exec.Command("rm", "-rf", "--one-file-system", tree).Run()
	}()
	arguments := []string{"--variant=minbase", "--include=" + strings.Join(names, ","), suite, tree}
	if mirror := mirror(ctx); mirror != "" {
		arguments = append(arguments, mirror)
	}
	if err := run(ctx, "debootstrap", arguments...); err != nil {
		return err
	}
	if err := copyRoot(tree); err != nil {
		return err
	}
	script, err := sources.ReadFile("setup.sh")
	if err != nil {
		return err
	}
	if err := run(ctx, "chroot", tree, "sh", "-c", string(script)); err != nil {
		return err
	}
	return run(ctx, "tar", "--numeric-owner", "--one-file-system", "--exclude=./proc/*", "--exclude=./sys/*", "--exclude=./dev/*", "-C", tree, "-cf", archive, ".")
}

// mirror is where this machine's own apt has the suite from; empty when it has it
// from nowhere, and debootstrap's default serves.
func mirror(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: "+suite).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

func copyRoot(tree string) error {
	root, err := fs.Sub(sources, "root")
	if err != nil {
		return err
	}
	return fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(tree, path)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		file, err := root.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		out, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, file); err != nil {
			out.Close()
			return err
		}
		return out.Close()
	})
}

// run executes a program of this machine; the error carries the end of what it said.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, engine.Tail(out))
	}
	return nil
}
