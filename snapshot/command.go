package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// command takes snapshots with the user's own programs, of which the exit status alone is understood.
type command struct{ Ask }

func (c command) place() Place {
	if c.Plan.Command.On == plans.OnLaptop {
		return OnLaptop
	}
	return OnHost
}

// run performs one of the commands. Its output is the error's, where it fails.
func (c command) perform(ctx context.Context, field string, argv []string) error {
	if c.place() == OnHost {
		return c.Ask.run(ctx, fmt.Sprintf("spec.snapshot.command.%s %q", field, strings.Join(argv, " ")), remote.Quote(argv...))
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = os.Environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("laptop: spec.snapshot.command.%s %q: %w; its output:\n%s", field, strings.Join(argv, " "), err, out)
	}
	return nil
}

// there asks the status command: it succeeds while the snapshot is there.
func (c command) there(ctx context.Context) (bool, error) {
	err := c.perform(ctx, "status", c.Plan.Command.Status)
	var local *exec.ExitError
	var there *remote.ExitError
	if errors.As(err, &local) || errors.As(err, &there) {
		return false, nil
	}
	return err == nil, err
}

func (c command) Take() []Operation {
	p := c.Plan.Command
	return []Operation{{
		Name: "create", Place: c.place(), Command: remote.Quote(p.Create...),
		Summary: "Take the snapshot with the plan's own command",
		Run:     func(ctx context.Context) error { return c.perform(ctx, "create", p.Create) },
		Done:    c.there,
	}, {
		Name: "status", Place: c.place(), Command: remote.Quote(p.Status...),
		Summary: "Ask the plan's own command whether the snapshot is there",
		Run:     func(ctx context.Context) error { return c.perform(ctx, "status", p.Status) },
	}}
}

func (command) Fill(context.Context) (string, float64, error) { return "", 0, nil }

func (c command) Return() []Operation {
	p := c.Plan.Command
	return []Operation{{
		Name: "restore", Place: c.place(), Command: remote.Quote(p.Restore...),
		Summary: "Return to the snapshot with the plan's own command, and wait until the host answers",
		Run: func(ctx context.Context) error {
			if err := c.perform(ctx, "restore", p.Restore); err != nil && !errors.Is(err, remote.ErrConnectionLost) {
				return err
			}
			return answers(ctx, c.Ask, func(string) bool { return true })
		},
	}}
}

func (c command) Remove() []Operation {
	p := c.Plan.Command
	return []Operation{{
		Name: "delete", Place: c.place(), Command: remote.Quote(p.Delete...),
		Summary: "Remove the snapshot with the plan's own command",
		Run: func(ctx context.Context) error {
			if there, err := c.there(ctx); err != nil || !there {
				return err
			}
			return c.perform(ctx, "delete", p.Delete)
		},
	}}
}
