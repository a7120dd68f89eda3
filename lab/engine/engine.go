// Package engine talks to the container engine through its command line: the
// one interface that every version and distribution of it shares. It knows
// nothing of labs.
package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Command is the engine's program.
const Command = "docker"

// Run executes an engine command and discards its output.
func Run(ctx context.Context, args ...string) error {
	_, err := Output(ctx, args...)
	return err
}

// Output executes an engine command and returns its trimmed standard output.
// The error carries what the engine wrote to standard error.
func Output(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	if err := Stream(ctx, nil, &out, args...); err != nil {
		return "", err
	}
	return strings.TrimSpace(out.String()), nil
}

// Stream executes an engine command with its input and output connected.
func Stream(ctx context.Context, in io.Reader, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, Command, args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", Command, args[0], err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// Ensure makes sure that an engine answers. A missing one is installed where
// that needs no more than root on Debian.
func Ensure(ctx context.Context) error {
	if _, err := exec.LookPath(Command); err != nil {
		if err := Install(ctx, Command, "docker.io"); err != nil {
			return err
		}
	}
	if err := Run(ctx, "version"); err == nil {
		return nil
	} else if os.Geteuid() != 0 {
		return fmt.Errorf("the container engine does not answer; start it with `sudo systemctl start docker`, and let this user talk to it with `sudo adduser $USER docker`: %w", err)
	}
	// The error of the start itself says less than the engine's own.
	_ = exec.CommandContext(ctx, "service", "docker", "start").Run()
	if err := Run(ctx, "version"); err != nil {
		return fmt.Errorf("the container engine does not answer; start it with `systemctl start docker`: %w", err)
	}
	return nil
}

// Install installs the Debian packages that bring a program that is missing,
// or says which command would.
func Install(ctx context.Context, program string, packages ...string) error {
	command := "apt-get install -y --no-install-recommends " + strings.Join(packages, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("%s is missing; on Debian, `sudo %s` installs it", program, command)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s is missing; install it with `sudo %s`", program, command)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", "apt-get update -q && "+command)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("installing %s with `%s`: %w: %s", program, command, err, Tail(out))
	}
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("`%s` went well, but %s is still not found: %w", command, program, err)
	}
	return nil
}

// Tail keeps the end of a long output: the part where the reason stands.
func Tail(out []byte) string {
	const most = 2000
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return strings.TrimSpace(string(out))
}

// Exists tells whether the engine has an object (a container, image or network)
// of that name.
func Exists(ctx context.Context, kind, name string) (bool, error) {
	err := Run(ctx, kind, "inspect", "--format", "{{.Id}}", name)
	if err == nil {
		return true, nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && strings.Contains(strings.ToLower(err.Error()), "no such") || strings.Contains(err.Error(), "not found") {
		return false, nil
	}
	return false, err
}

// Architecture is the engine's, in Go's words: amd64, arm64.
func Architecture(ctx context.Context) (string, error) {
	return Output(ctx, "version", "--format", "{{.Server.Arch}}")
}
