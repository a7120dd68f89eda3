package engine

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// capabilities are the names that engines since 20.10 know, in the kernel's order.
// BPF, PERFMON and CHECKPOINT_RESTORE are newer; a Kubernetes node needs none of them,
// SYS_ADMIN covers what they allow.
var capabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
	"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
	"IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
	"SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
	"LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
	"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
}

// AllCapabilities are the flags that give a container every capability that this
// machine can give. They are named one by one, because --privileged asks for all and is
// refused on a machine whose bounding set lacks one (SYS_RESOURCE in many a
// sandbox). It also keeps the machine's devices out of the container.
func AllCapabilities() ([]string, error) {
	status, err := os.Open("/proc/self/status")
	if err != nil {
		// Not Linux: the engine runs in its own virtual machine, which lacks none.
		return capabilityFlags(^uint64(0)), nil
	}
	defer status.Close()
	lines := bufio.NewScanner(status)
	for lines.Scan() {
		if set, ok := strings.CutPrefix(lines.Text(), "CapBnd:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
			if err != nil {
				return nil, fmt.Errorf("reading this machine's capability bounding set: %w", err)
			}
			return capabilityFlags(bits), nil
		}
	}
	return nil, fmt.Errorf("reading this machine's capability bounding set: no CapBnd line in /proc/self/status")
}

func capabilityFlags(bounding uint64) []string {
	var flags []string
	for bit, name := range capabilities {
		if bounding&(1<<bit) != 0 {
			flags = append(flags, "--cap-add", name)
		}
	}
	return flags
}
