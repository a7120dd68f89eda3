package vm

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/debian"
	"sunbeam.pt/k3s-dualstack/lab/engine"
)

//go:embed packages setup.sh all:root
var sources embed.FS

const (
	emulator = "qemu-system-x86_64"
	// rootSize is the plain disk's, and that of the logical volumes which make-disks copies it to.
	rootSize = "900M"
	// diskSize is that of the disks which make-disks makes: enough for the volumes and a snapshot of each.
	diskSize = "3G"
	// made is what make-disks says last.
	made = "lab: the disks are made"
	// makeDeadline bounds the boot in which the disks are made; it took five minutes on a busy machine.
	makeDeadline = 10 * time.Minute
)

// image is the cache's directory with a kernel, its initrd and the disks of every layout.
type image string

func (i image) kernel() string { return filepath.Join(string(i), "vmlinuz") }
func (i image) initrd() string { return filepath.Join(string(i), "initrd") }

// disk is a layout's, never written to: a machine boots from an overlay. The format is qemu's word.
func (i image) disk(l Layout) (path, format string) {
	if l == Plain {
		return filepath.Join(string(i), "plain.img"), "raw"
	}
	return filepath.Join(string(i), string(l)+".qcow2"), "qcow2"
}

// Build makes the disks of every layout, unless the cache has them.
func Build(ctx context.Context, c cache.Cache, say func(string, ...any)) error {
	_, err := ensure(ctx, c, say)
	return err
}

func ensure(ctx context.Context, c cache.Cache, say func(string, ...any)) (image, error) {
	for program, pkg := range map[string]string{emulator: "qemu-system-x86", "qemu-img": "qemu-utils"} {
		if _, err := exec.LookPath(program); err != nil {
			if err := engine.Install(ctx, program, pkg); err != nil {
				return "", err
			}
		}
	}
	texts, err := cache.Texts(sources)
	if err != nil {
		return "", err
	}
	dir, err := c.Get("vm-image", cache.Key(append(texts, debian.Suite, rootSize, diskSize)...), func(dir string) error {
		if runtime.GOARCH != "amd64" {
			return fmt.Errorf("it is made with debootstrap for amd64, and this machine is %s; build the lab's cache on such a machine and share it (LAB_CACHE)", runtime.GOARCH)
		}
		say("virtual machine: debootstrap makes the system (about two minutes)")
		return build(ctx, image(dir), say)
	})
	return image(dir), err
}

func build(ctx context.Context, into image, say func(string, ...any)) error {
	names, err := sources.ReadFile("packages")
	if err != nil {
		return err
	}
	script, err := sources.ReadFile("setup.sh")
	if err != nil {
		return err
	}
	root, err := fs.Sub(sources, "root")
	if err != nil {
		return err
	}
	plain, _ := into.disk(Plain)
	err = debian.Tree(ctx, strings.Fields(string(names)), root, string(script), func(tree string) error {
		for pattern, to := range map[string]string{"vmlinuz-*": into.kernel(), "initrd.img-*": into.initrd()} {
			found, err := filepath.Glob(filepath.Join(tree, "boot", pattern))
			if err != nil {
				return err
			}
			if len(found) != 1 {
				return fmt.Errorf("the tree has %d files boot/%s, where one was expected", len(found), pattern)
			}
			if err := debian.Run(ctx, "cp", "--", found[0], to); err != nil {
				return err
			}
		}
		return debian.Run(ctx, "mkfs.ext4", "-q", "-d", tree, plain, rootSize)
	})
	if errors.Is(err, debian.ErrNotRoot) {
		return fmt.Errorf("%w; run `sudo -E lab vm build` once", err)
	}
	if err != nil {
		return err
	}
	say("virtual machine: a boot of it makes the disks of the other layouts")
	return makeDisks(ctx, into)
}

// makeDisks boots the plain disk once, with make-disks as its init.
func makeDisks(ctx context.Context, into image) error {
	plain, _ := into.disk(Plain)
	console := filepath.Join(string(into), "make-disks.log")
	arguments := append(hardware(), "-no-reboot", "-kernel", into.kernel(), "-initrd", into.initrd(),
		"-append", "root=/dev/vda ro init=/usr/local/lib/lab/make-disks console=ttyS0 panic=-1", "-serial", "file:"+console,
		"-drive", "if=virtio,format=raw,file="+plain)
	for _, layout := range []Layout{Thick, Thin, Btrfs} {
		disk, format := into.disk(layout)
		if err := debian.Run(ctx, "qemu-img", "create", "-q", "-f", format, disk, diskSize); err != nil {
			return err
		}
		arguments = append(arguments, "-drive", "if=virtio,cache=unsafe,format="+format+",file="+disk)
	}
	ctx, cancel := context.WithTimeout(ctx, makeDeadline)
	defer cancel()
	err := debian.Run(ctx, emulator, arguments...)
	said, readErr := os.ReadFile(console)
	switch {
	case err != nil:
		return fmt.Errorf("making the disks of the other layouts: %w; the console said: %s", err, engine.Tail(said))
	case readErr != nil:
		return fmt.Errorf("making the disks of the other layouts: %w", readErr)
	case !strings.Contains(string(said), made):
		return fmt.Errorf("making the disks of the other layouts failed; the console said: %s", engine.Tail(said))
	}
	return nil
}

// hardware is what every boot has in common. Emulation alone: it is the same on every machine, and a
// kernel that offers virtualisation inside another machine may hang with it.
func hardware() []string {
	return []string{"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-display", "none", "-nodefaults", "-no-user-config"}
}
