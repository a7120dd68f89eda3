// Package vm makes virtual machines for what a container cannot show: device mapper, a root on btrfs and a real reboot. A machine is
// Debian under qemu's software emulation, with sshd behind a port of this machine's loopback, root's key and a known host key; its
// disk is an overlay over one in the lab's cache, so that a machine is up in seconds on an idle computer and nothing that
// is done in it lasts.
//
// What it is made of: packages and setup.sh (the system), root/ (laid over it), and root/usr/local/lib/lab/make-disks, which
// makes the disks with a root on LVM or btrfs in a boot of its own.
package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/debian"
	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/login"
	"sunbeam.pt/k3s-dualstack/lab/state"
)

// Layout is what the root file system lies on. Those with a volume group call it as they are called, have
// /var/lib/rancher on a logical volume of its own, and room left in the group.
type Layout string

// The layouts.
const (
	Plain Layout = "plain" // the disk itself
	Thick Layout = "thick" // logical volumes
	Thin  Layout = "thin"  // thin logical volumes in one pool
	Btrfs Layout = "btrfs" // subvolumes of one file system, mounted by their names; one more is nested in the root's
)

// Layouts are all there are.
var Layouts = []Layout{Plain, Thick, Thin, Btrfs}

// root tells the kernel which file system that is.
func (l Layout) root() string {
	switch l {
	case Plain:
		return "root=/dev/vda"
	case Btrfs:
		return "root=/dev/vda rootflags=subvol=@"
	}
	return "root=/dev/mapper/" + string(l) + "-root"
}

// Machine describes one that is up: all that a test needs to log in.
type Machine struct {
	Name         string `json:"name"`
	Layout       Layout `json:"layout"`
	Address      string `json:"address"`
	Port         int    `json:"port"`
	User         string `json:"user"`
	IdentityFile string `json:"identityFile"`
	KnownHosts   string `json:"knownHosts"`
	// Console is a file with what the kernel and systemd say.
	Console  string `json:"console"`
	StateDir string `json:"stateDir"`
}

// ErrNoMachine is returned for a name that no machine has.
var ErrNoMachine = errors.New("no such virtual machine")

// bootDeadline bounds the wait for sshd: some 15 s on an idle computer, minutes on a busy one.
const bootDeadline = 10 * time.Minute

// root is the directory of all machines' states. No lab can have its name.
func root() (string, error) {
	dir, err := state.Root()
	return filepath.Join(dir, ".vm"), err
}

func stateDir(name string) (string, error) {
	dir, err := root()
	return filepath.Join(dir, name), err
}

// Up makes a machine and waits until it answers. When that fails nothing is left, and the error has the end of what its
// console said.
func Up(ctx context.Context, name string, layout Layout, c cache.Cache, say func(string, ...any)) (*Machine, error) {
	if err := state.Check(name); err != nil {
		return nil, err
	}
	if !slices.Contains(Layouts, layout) {
		return nil, fmt.Errorf("there is no layout %q: %v", layout, Layouts)
	}
	release, err := state.Lock("vm-" + name)
	if err != nil {
		return nil, err
	}
	defer release()
	if _, err := Load(name); !errors.Is(err, ErrNoMachine) {
		if err == nil {
			err = fmt.Errorf("the virtual machine %s is up already; `lab vm down --name %s` removes it", name, name)
		}
		return nil, err
	}
	// Leftovers of one whose making was cut off.
	if err := remove(name); err != nil {
		return nil, err
	}
	from, err := ensure(ctx, c, say)
	if err != nil {
		return nil, err
	}
	dir, err := stateDir(name)
	if err != nil {
		return nil, err
	}
	m := &Machine{Name: name, Layout: layout, Address: "127.0.0.1", User: "root", StateDir: dir,
		IdentityFile: filepath.Join(dir, "id_ed25519"), KnownHosts: filepath.Join(dir, "known_hosts"), Console: filepath.Join(dir, "console.log")}
	if err := m.boot(ctx, from); err != nil {
		console, _ := os.ReadFile(m.Console)
		err = fmt.Errorf("starting the virtual machine %s: %w; its console said: %s", name, err, engine.Tail(console))
		return nil, errors.Join(err, remove(name))
	}
	say("virtual machine: %s (%s) answers SSH on %s:%d", name, layout, m.Address, m.Port)
	return m, nil
}

func (m *Machine) disk() string { return filepath.Join(m.StateDir, "disk.qcow2") }
func (m *Machine) seed() string { return filepath.Join(m.StateDir, "seed.tar") }

// slowMerges has the kernel merge thick snapshots as slowly as it can until the module's parameter says 100, as if
// they were gigabytes. One of megabytes may end while the initial RAM disk runs: the process of LVM's that ends it
// then waits for a udev that is gone, and holds the group's lock, so that the machine never comes up.
const slowMerges = "dm_snapshot.snapshot_copy_throttle=0"

// pidFile names qemu's process.
const pidFile = "qemu.pid"

// boot starts the machine and waits until its sshd greets.
func (m *Machine) boot(ctx context.Context, from image) error {
	if err := os.MkdirAll(m.StateDir, 0o700); err != nil {
		return fmt.Errorf("making its state directory: %w", err)
	}
	var err error
	if m.Port, err = login.FreePort(); err != nil {
		return err
	}
	if err := m.keys(); err != nil {
		return err
	}
	base, format := from.disk(m.Layout)
	if err := debian.Run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", format, m.disk()); err != nil {
		return err
	}
	// Debian's initial RAM disk is emptied while LVM may still write in it what it merged, which ends in a panic now and
	// then; the machine starts again then, as one whose administrator looks after it does.
	arguments := append(hardware(), "-name", "lab-vm-"+m.Name, "-daemonize", "-pidfile", filepath.Join(m.StateDir, pidFile),
		"-kernel", from.kernel(), "-initrd", from.initrd(), "-append", m.Layout.root()+" rw console=ttyS0 net.ifnames=0 panic=5 "+slowMerges,
		"-serial", "file:"+m.Console, "-device", "virtio-rng-pci",
		// The disk before the seed: the first is /dev/vda.
		"-drive", "if=none,id=disk,cache=unsafe,format=qcow2,file="+m.disk(), "-device", "virtio-blk-pci,drive=disk,serial=disk",
		"-drive", "if=none,id=seed,format=raw,read-only=on,file="+m.seed(), "-device", "virtio-blk-pci,drive=seed,serial=seed",
		"-netdev", fmt.Sprintf("user,id=net,hostfwd=tcp:%s:%d-:22", m.Address, m.Port), "-device", "virtio-net-pci,netdev=net")
	if err := debian.Run(ctx, emulator, arguments...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	if err := login.Wait(ctx, m.Address, m.Port); err != nil {
		return err
	}
	return m.save()
}

// keys makes root's key and the host's, and the seed disk that brings them into the machine: a tar archive,
// which the machine unpacks whenever it starts.
func (m *Machine) keys() error {
	user, err := login.NewKey("lab vm " + m.Name)
	if err != nil {
		return err
	}
	host, err := login.NewKey("lab")
	if err != nil {
		return err
	}
	var seed bytes.Buffer
	archive := tar.NewWriter(&seed)
	for _, file := range []struct {
		name string
		mode int64
		data []byte
	}{
		{"root/.ssh/", 0o700, nil},
		{"root/.ssh/authorized_keys", 0o600, user.Authorized()},
		{"etc/ssh/ssh_host_ed25519_key", 0o600, host.Private},
		{"etc/ssh/ssh_host_ed25519_key.pub", 0o644, host.Authorized()},
	} {
		header := tar.Header{Typeflag: tar.TypeReg, Name: file.name, Mode: file.mode, Size: int64(len(file.data)), ModTime: time.Now()}
		if file.data == nil {
			header.Typeflag = tar.TypeDir
		}
		if err := archive.WriteHeader(&header); err != nil {
			return err
		}
		if _, err := archive.Write(file.data); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	for path, data := range map[string][]byte{
		m.seed():       seed.Bytes(),
		m.IdentityFile: user.Private,
		m.KnownHosts:   login.KnownHosts(host.Public, net.JoinHostPort(m.Address, strconv.Itoa(m.Port))),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return fmt.Errorf("keeping its SSH keys: %w", err)
		}
	}
	return nil
}

// SSH is the command line that logs in.
func (m *Machine) SSH(command ...string) []string {
	return append([]string{"ssh", "-F", "none", "-i", m.IdentityFile, "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=" + m.KnownHosts,
		"-o", "StrictHostKeyChecking=yes", "-p", strconv.Itoa(m.Port), m.User + "@" + m.Address}, command...)
}

const description = "vm.json"

func (m *Machine) save() error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.StateDir, description), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping what the virtual machine %s is: %w", m.Name, err)
	}
	return nil
}

// Load reads the description of a machine; the error is ErrNoMachine when there is none.
func Load(name string) (*Machine, error) {
	if err := state.Check(name); err != nil {
		return nil, err
	}
	dir, err := stateDir(name)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, description))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s; `lab vm up --name %s` makes it", ErrNoMachine, name, name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what the virtual machine %s is: %w", name, err)
	}
	var m Machine
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("reading what the virtual machine %s is: %w; `lab vm down --name %s` removes it", name, err, name)
	}
	return &m, nil
}

// List names the machines that have a state, in name order.
func List() ([]string, error) {
	dir, err := root()
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", description))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, path := range found {
		names = append(names, filepath.Base(filepath.Dir(path)))
	}
	sort.Strings(names)
	return names, nil
}

// Down ends a machine, as by pulling the plug, and removes what is left of it. What is gone already is no error.
func Down(name string) error {
	if err := state.Check(name); err != nil {
		return err
	}
	release, err := state.Lock("vm-" + name)
	if err != nil {
		return err
	}
	defer release()
	return remove(name)
}

// endDeadline is how long qemu may take to end before it is killed.
const endDeadline = 10 * time.Second

// remove does it for who holds the lock.
func remove(name string) error {
	dir, err := stateDir(name)
	if err != nil {
		return err
	}
	if pid, ok := process(dir); ok {
		if err := end(pid, dir); err != nil {
			return fmt.Errorf("ending the virtual machine %s (process %d): %w", name, pid, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the state of the virtual machine %s: %w", name, err)
	}
	return nil
}

// process finds the machine's, whose command line names its PID file: another one may have got the number since.
func process(dir string) (pid int, ok bool) {
	file := filepath.Join(dir, pidFile)
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(data))); err != nil || pid <= 0 {
		return 0, false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return pid, err == nil && slices.Contains(strings.Split(string(line), "\x00"), file)
}

func end(pid int, dir string) error {
	signal := syscall.SIGTERM
	for begun := time.Now(); ; {
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
		if _, ok := process(dir); !ok {
			return nil
		}
		switch waited := time.Since(begun); {
		case waited > 2*endDeadline:
			return errors.New("it does not end")
		case waited > endDeadline:
			signal = syscall.SIGKILL
		}
	}
}
