// Command k3s is the node of the project's test lab: upstream Kubernetes, kine,
// containerd and a bridge network under the command line, the files and the
// scripts of K3s. It is a stand-in, not K3s and not built from its code: it was
// written from K3s's documented behaviour, so that a migration of it meets the
// refusals and the losses that a migration of a real K3s meets.
//
// It owns everything that runs on the lab's host. The rest of the lab only makes
// the host, appends the parts to this binary (package bundle) and runs
// install.sh. One node, a server, is all that it can be.
//
// server.go is the place to start reading: it starts the parts in order.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"sunbeam.pt/k3s-dualstack/lab/k3s/bundle"
)

// version is K3s's form of Kubernetes's version; the suffix in String says what
// this binary is.
const version = "v1.34.4+k3s1"

const usage = `NAME:
   k3s - the lab's stand-in for K3s: upstream Kubernetes under K3s's command line

USAGE:
   k3s [--version] COMMAND [arguments]

COMMANDS:
   server    run the node
   agent     refused: the lab's node is a server only
   kubectl   run kubectl against this node
   ctr       run ctr against this node's containerd
   crictl    run crictl, when the host has it

k3s server --help lists the server's flags.
`

func main() {
	args := os.Args[1:]
	switch name := filepath.Base(os.Args[0]); name {
	case "kubectl", "ctr", "crictl":
		args = append([]string{name}, args...)
	}
	if err := run(args); err != nil {
		logf("fatal", "%v", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		fmt.Print(usage)
		return nil
	}
	switch command, rest := args[0], args[1:]; command {
	case "help", "--help", "-h":
		fmt.Print(usage)
		return nil
	case "--version", "-v":
		fmt.Printf("k3s version %s (lab: assembled from upstream Kubernetes by the k3s-dualstack lab)\ngo version %s\n", version, runtime.Version())
		return nil
	case "server":
		cfg, err := loadConfig(rest, os.LookupEnv)
		if errors.Is(err, errHelp) {
			fmt.Print(serverUsage())
			return nil
		}
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return serve(ctx, cfg)
	case "agent":
		return errors.New("k3s agent: the lab's node is a server only; it cannot join another server")
	case "kubectl":
		return kubectl(rest)
	case "ctr":
		return become("ctr", rest, "CONTAINERD_ADDRESS="+containerdSocket, "CONTAINERD_NAMESPACE=k8s.io")
	case "crictl":
		return become("crictl", rest, "CONTAINER_RUNTIME_ENDPOINT=unix://"+containerdSocket)
	default:
		return fmt.Errorf("No help topic for '%s'", command)
	}
}

// kubectl runs the payload's kubectl, from where the server unpacked it when
// that can be read, with K3s's default kubeconfig.
func kubectl(args []string) error {
	var env []string
	if os.Getenv("KUBECONFIG") == "" {
		env = append(env, "KUBECONFIG="+defaultKubeconfig)
	}
	root := filepath.Join(dataDirOutsideServer(), "data")
	if os.Geteuid() != 0 {
		home, err := os.UserHomeDir()
		if err != nil {
			return fmt.Errorf("find a place to unpack kubectl: %w", err)
		}
		root = filepath.Join(home, ".rancher", "k3s", "data")
	}
	bin, err := unpack(root)
	if err != nil {
		return err
	}
	return become(filepath.Join(bin, "kubectl"), args, env...)
}

// dataDirOutsideServer finds the data directory for the commands that take no
// server flags, from the environment and the configuration files.
func dataDirOutsideServer() string {
	cfg, err := loadConfig(nil, os.LookupEnv)
	if err != nil {
		return defaultDataDir
	}
	return cfg.DataDir
}

// become replaces this process by a program, with env added.
func become(program string, args []string, env ...string) error {
	path, err := hostProgram(program)
	if err != nil {
		return fmt.Errorf("k3s %s: %w", filepath.Base(program), err)
	}
	argv := append([]string{filepath.Base(program)}, args...)
	if err := syscall.Exec(path, argv, append(os.Environ(), env...)); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// hostProgram finds a program of the host, passing over the installer's links of
// that name to this binary, which would run itself for ever.
func hostProgram(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this executable: %w", err)
	}
	own, err := os.Stat(self)
	if err != nil {
		return "", fmt.Errorf("find this executable: %w", err)
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && !os.SameFile(info, own) {
			return path, nil
		}
	}
	return "", fmt.Errorf("the host has no %s; the lab's host image must have it", name)
}

// components are the names under which the multi-call binary is linked.
var components = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}

// unpack writes the payload below root and returns its bin directory, in which
// every component has its name.
func unpack(root string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this executable: %w", err)
	}
	b, err := bundle.Open(self)
	if err != nil {
		return "", err
	}
	defer b.Close()
	dir, err := b.Unpack(root)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "bin")
	for _, name := range components {
		if err := os.Symlink("kubernetes", filepath.Join(bin, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("link %s in the unpacked payload: %w", name, err)
		}
	}
	return bin, nil
}

// copyShim puts the host's containerd shim into the payload's bin directory,
// where containerd looks first. From there a shim's command line tells, as with
// K3s, whose it is; containerd would resolve a link.
func copyShim(bin string) error {
	const name = "containerd-shim-runc-v2"
	to := filepath.Join(bin, name)
	if exists(to) {
		return nil
	}
	from, err := hostProgram(name)
	if err != nil {
		return fmt.Errorf("find containerd's shim: %w", err)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy containerd's shim: %w", err)
	}
	return write(to, data, 0o755)
}
