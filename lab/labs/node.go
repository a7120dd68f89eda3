package labs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/parts"
)

// Node says how K3s is installed on the host.
type Node struct {
	// K3s is where it comes from: assembled, download, or the path of a binary.
	K3s string
	// Arguments are INSTALL_K3S_EXEC. In them {ipv4} and {ipv6} stand for the host's
	// addresses, which are known only once the lab has its network.
	Arguments string
	// Environment is what the installer gets beside it, K3S_TOKEN and the like.
	Environment map[string]string
	// Config and ConfigDir are a config.yaml and a directory of drop-ins on this machine, laid down
	// before the install; empty for none.
	Config, ConfigDir string
	// Prepare is a shell script on this machine that makes the host what it is to be before
	// the install: disks, mounts, further files. Empty for none.
	Prepare string
	// Agent installs an agent's unit, enabled and not started: the lab has no server for it.
	Agent bool
}

const readyTimeout = 3 * time.Minute

// putNode adds what the installation starts from.
func (l *Lab) putNode(put *files, at subnet, node Node, k3s parts.K3s) error {
	l.K3s, l.InstallScript = k3s.Binary, k3s.InstallScript
	l.InstallArgs = strings.NewReplacer("{ipv4}", at.v4(hostIndex), "{ipv6}", at.v6(hostIndex)).Replace(node.Arguments)
	put.add("/etc/rancher/k3s/registries.yaml", 0o600, fmt.Appendf(nil, "mirrors:\n  %s:\n    endpoint:\n    - \"http://%s\"\n", registryName, l.Internet.Registry))
	if node.Config != "" {
		if err := put.addFile("/etc/rancher/k3s/config.yaml", 0o600, node.Config); err != nil {
			return err
		}
	}
	if node.ConfigDir != "" {
		if err := put.addDir("/etc/rancher/k3s/config.yaml.d", 0o600, node.ConfigDir); err != nil {
			return err
		}
	}
	return put.addFile("/usr/local/bin/k3s", 0o755, k3s.Binary)
}

// install runs the installer in the host, and waits for a Ready node.
func (l *Lab) install(ctx context.Context, node Node, shop *parts.Shop, say func(string, ...any)) error {
	if node.Prepare != "" {
		if err := l.prepare(ctx, node.Prepare); err != nil {
			return err
		}
	}
	script, err := os.Open(l.InstallScript)
	if err != nil {
		return fmt.Errorf("reading the installer: %w", err)
	}
	defer script.Close()
	environment := map[string]string{"INSTALL_K3S_SKIP_DOWNLOAD": "true", "INSTALL_K3S_EXEC": l.InstallArgs}
	if node.Agent {
		environment["INSTALL_K3S_SKIP_START"] = "true"
		environment["K3S_URL"] = "https://" + l.Internet.IPv4 + ":6443"
		environment["K3S_TOKEN"] = "lab"
	}
	maps.Copy(environment, node.Environment)
	args := []string{"exec", "-i"}
	for _, key := range slices.Sorted(maps.Keys(environment)) {
		args = append(args, "--env", key+"="+environment[key])
	}
	say("k3s: installing")
	var out bytes.Buffer
	if err := engine.Stream(ctx, script, &out, append(args, l.Container, "sh", "-s")...); err != nil {
		return fmt.Errorf("installing K3s: %w: %s\n%s", err, engine.Tail(out.Bytes()), l.journal(ctx))
	}
	if node.Agent || environment["INSTALL_K3S_SKIP_START"] == "true" {
		return nil
	}
	if err := l.kubeconfig(ctx, shop); err != nil {
		return err
	}
	if err := l.waitNode(ctx); err != nil {
		return fmt.Errorf("waiting for a Ready node: %w\n%s", err, l.journal(ctx))
	}
	say("k3s: the node is Ready")
	return nil
}

// prepare runs a script of this machine in the host.
func (l *Lab) prepare(ctx context.Context, file string) error {
	script, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("preparing the host: %w", err)
	}
	defer script.Close()
	var out bytes.Buffer
	if err := engine.Stream(ctx, script, &out, "exec", "-i", l.Container, "sh", "-s"); err != nil {
		return fmt.Errorf("preparing the host with %s: %w: %s", file, err, engine.Tail(out.Bytes()))
	}
	return nil
}

// kubeconfig keeps the administrator's, with the node's address on the lab's
// network, and a kubectl beside it.
func (l *Lab) kubeconfig(ctx context.Context, shop *parts.Shop) error {
	config, err := l.Exec(ctx, "cat /etc/rancher/k3s/k3s.yaml")
	if err != nil {
		return fmt.Errorf("reading the node's kubeconfig: %w\n%s", err, l.journal(ctx))
	}
	config = strings.ReplaceAll(config, "https://127.0.0.1:", "https://"+l.Host.IPv4+":")
	l.Kubeconfig = filepath.Join(l.StateDir, "kubeconfig")
	if err := os.WriteFile(l.Kubeconfig, []byte(config+"\n"), 0o600); err != nil {
		return fmt.Errorf("keeping the node's kubeconfig: %w", err)
	}
	binary, err := shop.Kubectl(ctx)
	if err != nil {
		return err
	}
	// The node's binary is what it is called by.
	l.Kubectl = filepath.Join(l.StateDir, "kubectl")
	if err := os.Symlink(binary, l.Kubectl); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("keeping a kubectl for the lab: %w", err)
	}
	return nil
}

func (l *Lab) waitNode(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		out, err := l.kubectl(ctx, nil, "get", "nodes", "--output", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err == nil && out == "True" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %q, %w", readyTimeout, out, err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// kubectl runs the lab's kubectl from this machine.
func (l *Lab) kubectl(ctx context.Context, in io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, l.Kubectl, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Kubeconfig)
	cmd.Stdin = in
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", args[0], err, engine.Tail(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// journal is what the node's unit said last: where the reason of a failed start stands.
func (l *Lab) journal(ctx context.Context) string {
	out, err := l.Exec(ctx, "journalctl --no-pager --output cat --unit 'k3s*' --lines 15")
	if err != nil {
		return ""
	}
	return out
}
