package labs

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/login"
	"sunbeam.pt/k3s-dualstack/lab/state"
)

// User is a further account on the host, which logs in with the same key as root.
type User struct {
	Name string
	Sudo bool // without a password
}

// createHost makes the host's container, stopped, with its SSH keys and the given files in
// it, and fills in how it is reached.
func (l *Lab) createHost(ctx context.Context, image, network string, at subnet, put *files) error {
	user, err := login.NewKey("lab " + l.Name)
	if err != nil {
		return err
	}
	host, err := login.NewKey(l.Hostname)
	if err != nil {
		return err
	}
	port, err := login.FreePort()
	if err != nil {
		return err
	}
	l.Address, l.Port, l.User = "127.0.0.1", port, "root"
	l.IdentityFile, l.KnownHosts = filepath.Join(l.StateDir, "id_ed25519"), filepath.Join(l.StateDir, "known_hosts")
	l.Host = Addresses{IPv4: at.v4(hostIndex), IPv6: at.v6(hostIndex), Gateway4: at.v4(gatewayIndex), Gateway6: at.v6(gatewayIndex)}
	for path, data := range map[string][]byte{
		l.IdentityFile:          user.Private,
		l.IdentityFile + ".pub": user.Authorized(),
		l.KnownHosts:            login.KnownHosts(host.Public, net.JoinHostPort(l.Address, strconv.Itoa(port)), l.Host.IPv4, l.Host.IPv6),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return fmt.Errorf("keeping the lab's SSH keys: %w", err)
		}
	}

	capabilities, err := engine.AllCapabilities()
	if err != nil {
		return err
	}
	args := append([]string{"create", "--name", l.Container, "--hostname", l.Hostname, "--label", label + "=" + l.Name,
		"--network", network, "--ip", l.Host.IPv4, "--ip6", l.Host.IPv6,
		"--publish", fmt.Sprintf("%s:%d:22", l.Address, port),
		"--stop-signal", "SIGRTMIN+3",
		"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--security-opt", "systempaths=unconfined",
		// systemd and the kubelet make cgroups of their own, on either version.
		"--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw",
		"--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec,mode=1777",
		"--sysctl", "net.ipv6.conf.all.disable_ipv6=0",
		// An overlay file system cannot lie on another: what containers are made of goes
		// to a volume, which lives as long as the container does; /srv is for a data
		// directory that is another than K3s's own.
		"--volume", "/var/lib/rancher", "--volume", "/srv"},
		capabilities...)
	// Loop devices, where the machine has them, stand for further disks.
	loops, err := filepath.Glob("/dev/loop*")
	if err != nil {
		return err
	}
	for _, device := range loops {
		args = append(args, "--device", device)
	}
	if err := engine.Run(ctx, append(args, image)...); err != nil {
		return fmt.Errorf("making the host's container: %w", err)
	}

	put.directory("/root/.ssh", 0o700)
	put.add("/root/.ssh/authorized_keys", 0o600, user.Authorized())
	put.add("/etc/ssh/ssh_host_ed25519_key", 0o600, host.Private)
	put.add("/etc/ssh/ssh_host_ed25519_key.pub", 0o644, host.Authorized())
	// Over IPv4 only: CoreDNS in a single-stack pod would try an IPv6 one in vain.
	put.add("/etc/lab/resolv.conf", 0o644, fmt.Appendf(nil, "nameserver %s\n", at.v4(internetIndex)))
	return put.put(ctx, l.Container)
}

// waitSSH waits until sshd greets.
func (l *Lab) waitSSH(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := login.Wait(ctx, l.Address, l.Port); err != nil {
		return fmt.Errorf("%w; `%s logs %s` and `%s exec %s journalctl` tell more", err, engine.Command, l.Container, engine.Command, l.Container)
	}
	return nil
}

// addUser makes a further account and makes it the one that a plan logs in with.
func (l *Lab) addUser(ctx context.Context, user User) error {
	if err := state.Check(user.Name); err != nil {
		return fmt.Errorf("an account: %w", err)
	}
	script := fmt.Sprintf(`set -eu
useradd --create-home --shell /bin/bash %[1]s
install -d -m 0700 -o %[1]s -g %[1]s /home/%[1]s/.ssh
install -m 0600 -o %[1]s -g %[1]s /root/.ssh/authorized_keys /home/%[1]s/.ssh/authorized_keys
`, user.Name)
	if user.Sudo {
		script += fmt.Sprintf("echo '%[1]s ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/%[1]s\n", user.Name)
	}
	if _, err := l.Exec(ctx, script); err != nil {
		return fmt.Errorf("making the account %s: %w", user.Name, err)
	}
	l.User = user.Name
	return nil
}
