// Package debian makes Debian trees with debootstrap, for the lab's images.
package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sunbeam.pt/k3s-dualstack/lab/engine"
)

// Suite is the release.
const Suite = "bookworm"

// ErrNotRoot is returned to anybody but root.
var ErrNotRoot = errors.New("debootstrap needs root")

// Tree makes a tree of the packages, lays files over it, runs a shell script in it and hands it to use. It is
// gone afterwards.
func Tree(ctx context.Context, packages []string, files fs.FS, script string, use func(tree string) error) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		if err := engine.Install(ctx, "debootstrap", "debootstrap"); err != nil {
			return err
		}
	}
	tree, err := os.MkdirTemp("", "lab-debian-tree-")
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
	arguments := []string{"--variant=minbase", "--include=" + strings.Join(packages, ","), Suite, tree}
	if mirror := mirror(ctx); mirror != "" {
		arguments = append(arguments, mirror)
	}
	if err := Run(ctx, "debootstrap", arguments...); err != nil {
		return err
	}
	if err := lay(files, tree); err != nil {
		return fmt.Errorf("laying files over the tree: %w", err)
	}
	if err := Run(ctx, "chroot", tree, "sh", "-c", script); err != nil {
		return err
	}
	return use(tree)
}

// mirror is where this machine's own apt has the suite from; empty when it has it
// from nowhere, and debootstrap's default serves.
func mirror(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: "+Suite).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// lay copies files into the tree, all of them readable to everybody.
func lay(files fs.FS, tree string) error {
	return fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(tree, path)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		file, err := files.Open(path)
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

// Run executes a program of this machine; the error carries the end of what it said.
func Run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, engine.Tail(out))
	}
	return nil
}
