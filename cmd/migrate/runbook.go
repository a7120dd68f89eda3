package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

func runbookCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "runbook",
		Short: "Print what a rollback has left to do, as a shell script for a person",
		Long: strings.TrimSpace(`
Print the remaining work of a rollback as a commented shell script: for the day on
which the host cannot be reached, or its disk is dead, and a person goes on by
hand, with the backup set alone. The host is not contacted.`),
		Example: `  migrate runbook -f plan.yaml > rollback.sh
  migrate runbook -f plan.yaml --to seal`,
		Args: cobra.NoArgs,
	}
	file := planFlag(c)
	to := c.Flags().String("to", "", "the `checkpoint` to return to")
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		u, err := m.Unwind(c.Context(), *to)
		if err != nil {
			return rollbackError(err)
		}
		return printRunbook(c.OutOrStdout(), m, u, *file)
	}
	return c
}

func printRunbook(w io.Writer, m *steps.Migration, u steps.Unwinding, file string) error {
	var b strings.Builder
	fmt.Fprintf(&b, `#!/bin/sh
# The remaining work of a rollback of plan %s to checkpoint %s, by hand.
# Host %s, K3s %s, machine-id %s.
# Backup set: %s
#
# Read it, and run it piece by piece: every command says what it is for, and the
# script stops at the first that fails: find out why before you go on behind it.
#
# On a new machine (the old disk is dead): install the same system with the same
# host name and addresses; K3s itself comes out of the backup set. Then all of it
# applies but what stops and sets aside.
set -eu

# on_host runs a command on the host; its standard input goes there.
on_host() { %s "$1"; }

# Is the backup set whole?
migrate backup verify -f %s
`, m.Plan.Metadata.Name, u.To, u.Host, m.Facts.K3s.Version, m.Facts.Host.MachineID, m.SetDir(), m.SSH(), remote.Quote(file))
	if len(u.Actions) == 0 {
		b.WriteString("\n# Nothing was changed since the checkpoint: there is nothing to do.\n")
	}
	for _, a := range u.Actions {
		fmt.Fprintf(&b, "\n# %s: %s\n", a.Step, a.Summary)
		a.Command = strings.ReplaceAll(a.Command, steps.StampUnknown, time.Now().UTC().Format(steps.StampFormat))
		switch {
		case a.Target.Kind == runner.Laptop, strings.Contains(a.Command, "on_host "):
			b.WriteString(a.Command + "\n")
		case a.Target.Kind == runner.Cluster:
			b.WriteString(m.OverSSH("k3s "+a.Command) + "\n")
		default:
			b.WriteString(m.OverSSH(a.Command) + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
