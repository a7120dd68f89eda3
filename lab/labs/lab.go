// Package labs makes, describes and removes disposable hosts. A lab is a network with two
// containers: the host, on which systemd, sshd and a K3s-shaped node run, and the
// internet, an HTTP server, registry and name server that sees who calls.
package labs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/state"
)

// label marks all that belongs to a lab on the engine, with the lab's name as value.
const label = "k3s-dualstack-lab"

// Lab describes one lab: all that a migration plan and a test need to know of it.
type Lab struct {
	Name     string `json:"name"`
	Hostname string `json:"hostname"`

	// How the host is reached over SSH.
	Address      string `json:"address"`
	Port         int    `json:"port"`
	User         string `json:"user"`
	IdentityFile string `json:"identityFile"`
	KnownHosts   string `json:"knownHosts"`

	// The host on the lab's network, where hostPorts and NodePorts are reached too.
	Host Addresses `json:"host"`
	// The internet that the lab's pods may reach, and what answers there.
	Internet Internet `json:"internet"`

	// InstallScript is the installer of the node's K3s, a file on this machine; K3s is the
	// binary that goes with it. Both are empty for a bare host.
	InstallScript string `json:"installScript,omitempty"`
	K3s           string `json:"k3s,omitempty"`
	InstallArgs   string `json:"installArgs,omitempty"`

	// Kubectl and Kubeconfig reach the node's API from this machine over the lab's network.
	Kubectl    string `json:"kubectl,omitempty"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Platform is the command that deploys the platform; it finds the cluster by KUBECONFIG.
	// PlatformEnvironment is what it needs beside KUBECONFIG.
	Platform            []string          `json:"platform,omitempty"`
	PlatformEnvironment map[string]string `json:"platformEnvironment,omitempty"`
	// OpenBao is the server of the demo's platform, nil where another or none is deployed.
	OpenBao *OpenBao `json:"openBao,omitempty"`

	Container         string `json:"container"`
	InternetContainer string `json:"internetContainer"`
	StateDir          string `json:"stateDir"`
}

// Addresses are one container's, and its default gateways.
type Addresses struct {
	IPv4     string `json:"ipv4"`
	IPv6     string `json:"ipv6"`
	Gateway4 string `json:"gateway4"`
	Gateway6 string `json:"gateway6"`
}

// Internet is the container that plays it.
type Internet struct {
	IPv4 string `json:"ipv4"`
	IPv6 string `json:"ipv6"`
	// URLs answer with the address that the request came from: one URL per family, then one
	// by a name that has both.
	URLs []string `json:"urls"`
	// Log lists every request as a JSON line.
	Log      string   `json:"log"`
	Names    []string `json:"names"`
	Registry string   `json:"registry"`
}

// ErrNoLab is returned for a name that no lab has.
var ErrNoLab = errors.New("no such lab")

func stateDir(name string) (string, error) {
	root, err := state.Root()
	return filepath.Join(root, name), err
}

// Load reads the description of a lab; the error is ErrNoLab when there is none.
func Load(name string) (*Lab, error) {
	if err := state.Check(name); err != nil {
		return nil, err
	}
	dir, err := stateDir(name)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s; `lab up --name %s` makes it", ErrNoLab, name, name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what lab %s is: %w", name, err)
	}
	var lab Lab
	if err := json.Unmarshal(data, &lab); err != nil {
		return nil, fmt.Errorf("reading what lab %s is: %w; `lab down --name %s` removes it", name, err, name)
	}
	return &lab, nil
}

// List names the labs that have a state, in name order.
func List() ([]string, error) {
	root, err := state.Root()
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(root, "*", "lab.json"))
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

func (l *Lab) save() error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.StateDir, "lab.json"), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping what lab %s is: %w", l.Name, err)
	}
	return nil
}

// SSH is the command line that logs in to the host.
func (l *Lab) SSH(command ...string) []string {
	args := []string{"ssh", "-F", "none", "-i", l.IdentityFile, "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=" + l.KnownHosts,
		"-o", "StrictHostKeyChecking=yes", "-p", fmt.Sprint(l.Port), l.User + "@" + l.Address}
	return append(args, command...)
}

// Exec runs a shell script as root in the host, without SSH, and returns its output.
func (l *Lab) Exec(ctx context.Context, script string) (string, error) {
	return engine.Output(ctx, "exec", l.Container, "sh", "-c", script)
}

// State is what of a lab runs now.
type State struct {
	Lab *Lab `json:"lab"`
	// Host and Internet are the engine's words for their containers: running, exited, or
	// missing.
	Host     string `json:"host"`
	Internet string `json:"internet"`
	// Nodes is kubectl's view of the node, empty when no API answers.
	Nodes string `json:"nodes,omitempty"`
	// OpenBao is sealed, unsealed or not initialised, empty when none answers.
	OpenBao string `json:"openBao,omitempty"`
}

// Inspect asks the engine and the node how the lab is.
func (l *Lab) Inspect(ctx context.Context) State {
	state := State{Lab: l, Host: containerState(ctx, l.Container), Internet: containerState(ctx, l.InternetContainer)}
	if l.K3s != "" && state.Host == "running" {
		// No API is an answer too: the lab may be in the middle of a migration.
		state.Nodes, _ = l.Exec(ctx, "k3s kubectl --request-timeout=5s get nodes -o wide")
	}
	if l.OpenBao != nil && state.Host == "running" {
		state.OpenBao = l.openBaoState(ctx)
	}
	return state
}

func containerState(ctx context.Context, container string) string {
	state, err := engine.Output(ctx, "container", "inspect", "--format", "{{.State.Status}}", container)
	if err != nil {
		return "missing"
	}
	return state
}
