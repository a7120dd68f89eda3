//go:build e2e

// Package e2e migrates real clusters on the lab's disposable hosts and asserts
// the outcome from outside the product: with kubectl, curl, sha256sum, getfattr
// and docker, never with its own packages. It needs bin/migrate and bin/lab.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// bin is where the Makefile puts the programs.
func bin(name string) string {
	p, err := filepath.Abs(filepath.Join("..", "bin", name))
	if err != nil {
		panic(err)
	}
	return p
}

// result is how a program ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit status %d\nstdout:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
}

// execute runs a program to its end.
func execute(t testing.TB, env []string, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err, "%s %s", name, strings.Join(args, " "))
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func migrate(t testing.TB, args ...string) result {
	t.Helper()
	t.Logf("migrate %s", strings.Join(args, " "))
	return execute(t, nil, bin("migrate"), args...)
}

// lab is a host of the lab, as `lab up -o json` describes it.
type lab struct {
	Name, Hostname, Address, User string
	Port                          int
	IdentityFile, KnownHosts      string
	Host                          struct{ IPv4, IPv6 string }
	Internet                      struct {
		IPv4, IPv6, Log string
		URLs            []string
	}
	Kubectl, Kubeconfig string
	Container           string
	InternetContainer   string
}

// up makes a lab that goes away with the test.
func up(t testing.TB, name string, args ...string) *lab {
	t.Helper()
	t.Cleanup(func() {
		if os.Getenv("KEEP") == "" {
			r := execute(t, nil, bin("lab"), "down", "--name", name)
			require.Zero(t, r.code, "%s", r)
		}
	})
	start := time.Now()
	r := execute(t, nil, bin("lab"), append([]string{"up", "--name", name, "-o", "json"}, args...)...)
	require.Zero(t, r.code, "%s", r)
	t.Logf("lab %s is up after %s", name, time.Since(start).Round(time.Second))
	l := &lab{}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), l), r.stdout)
	return l
}

// on runs a script as root on the host, past SSH, and returns its output.
func (l *lab) on(t testing.TB, script string) string {
	t.Helper()
	r := execute(t, nil, "docker", "exec", l.Container, "bash", "-c", script)
	require.Zero(t, r.code, "%s\n%s", script, r)
	return strings.TrimSpace(r.stdout)
}

// kubectl runs kubectl against the lab's API with the kubeconfig that the lab
// had before any migration.
func (l *lab) kubectl(t testing.TB, args ...string) string {
	t.Helper()
	r := execute(t, []string{"KUBECONFIG=" + l.Kubeconfig}, l.Kubectl, args...)
	require.Zero(t, r.code, "kubectl %s\n%s", strings.Join(args, " "), r)
	return strings.TrimSpace(r.stdout)
}

// object is a mapping of a plan.
type object = map[string]any

// plan writes the lab's plan with edits to a directory of the test and returns
// its path.
func (l *lab) plan(t testing.TB, edit func(spec object)) string {
	t.Helper()
	r := execute(t, nil, bin("lab"), "plan", "--name", l.Name)
	require.Zero(t, r.code, "%s", r)
	var p object
	require.NoError(t, yaml.Unmarshal([]byte(r.stdout), &p))
	dir := t.TempDir()
	spec := p["spec"].(object)
	spec["workDir"] = filepath.Join(dir, "work")
	if edit != nil {
		edit(spec)
	}
	text, err := yaml.Marshal(p)
	require.NoError(t, err)
	file := filepath.Join(dir, "plan.yaml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	return file
}

// firstHost is the plan's host.
func firstHost(spec object) object { return spec["hosts"].([]any)[0].(object) }
