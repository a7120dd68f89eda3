package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// insideContainer tells whether the host is itself a container, as the lab's
// usual host is. Only then is anything below bent to its limits.
func insideContainer() bool {
	if exists("/run/systemd/container") || exists("/.dockerenv") {
		return true
	}
	data, err := os.ReadFile("/proc/1/environ")
	return err == nil && strings.Contains("\x00"+string(data), "\x00container=")
}

// ownCgroup gives the cgroup of the host container, of which PID 1 has the leaf
// init.scope. Pods go below it: hosts that share the cgroup tree would otherwise
// share /kubepods, and each kubelet would kill the other's pods.
func ownCgroup(procCgroup string) string {
	own := "/"
	for line := range strings.Lines(procCgroup) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		// Version 2's only line, or on version 1 a controller that kubelet uses.
		if f[1] == "memory" || f[0] == "0" && own == "/" {
			own = f[2]
		}
	}
	own = strings.TrimSuffix(own, "/init.scope")
	if own == "" {
		return "/"
	}
	return own
}

// completeCgroup makes the cgroup exist below every controller of version 1, as
// kubelet demands. The engine made it for those that were mounted when the
// container started; systemd in the container mounts the others, and mounts them
// for the machine.
func completeCgroup(own string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return fmt.Errorf("list the cgroup controllers: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup" {
			continue
		}
		if err := os.MkdirAll(filepath.Join(f[1], own), 0o755); err != nil {
			return fmt.Errorf("make the host container's cgroup: %w", err)
		}
	}
	return nil
}

// prepareHost sets what Kubernetes needs of the kernel: forwarding for the
// families in use, and bridged packets through iptables.
func prepareHost(want4, want6, contained bool) error {
	if contained {
		if err := syscall.Mount("", "/sys", "", syscall.MS_REMOUNT, ""); err != nil && !errors.Is(err, syscall.EINVAL) {
			logf("warning", "remount /sys for writing: %v", err)
		}
		if err := syscall.Mount("", "/", "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
			logf("warning", "make mounts propagate: %v", err)
		}
		if !exists("/dev/kmsg") {
			if err := os.Symlink("/dev/null", "/dev/kmsg"); err != nil {
				return fmt.Errorf("make /dev/kmsg, which kubelet reads: %w", err)
			}
		}
	}
	settings := []string{"net/bridge/bridge-nf-call-iptables"}
	if want4 {
		settings = append(settings, "net/ipv4/conf/all/forwarding")
	}
	if want6 {
		settings = append(settings, "net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-ip6tables")
	}
	for _, s := range settings {
		if err := os.WriteFile("/proc/sys/"+s, []byte("1"), 0); err != nil {
			logf("warning", "set %s to 1: %v", strings.ReplaceAll(s, "/", "."), err)
		}
	}
	return nil
}
