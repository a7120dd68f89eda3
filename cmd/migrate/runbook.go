package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

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
hand, with the backup set alone. The host is not contacted.

While a return by snapshot is under way the script is for a new machine alone, and
stops until its line that says so is removed: what of the return was begun may take
place with the host's next start, and undo what was done by hand.`),
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
		state, err := m.State()
		if err != nil {
			return err
		}
		m.RollbackBegins = time.Now()
		m.Via = steps.ViaBackup // a snapshot's way is a method's, and goes on by `rollback` alone
		u, err := m.Unwind(c.Context(), *to)
		if err != nil {
			return rollbackError(err)
		}
		return printRunbook(c.OutOrStdout(), m, u, steps.Returning(state))
	}
	return c
}

// returning stops the script where a return by snapshot may still take place.
const returning = `
# A return to the snapshot is under way on the host: what of it was begun may wait for the host's next start, which would
# then undo whatever was done by hand until then. On the host itself complete it (migrate rollback --via snapshot), or turn
# from it (migrate rollback --via backup, which sees that nothing waits).
echo 'a return to the snapshot is under way: see the comment here; on a new machine remove this line' >&2; exit 1
`

func printRunbook(w io.Writer, m *steps.Migration, u steps.Unwinding, underWay bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, `#!/usr/bin/env bash
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
[ -n "${BASH_VERSION-}" ] || exec bash "$0" # What comes out of a failed pipe is incomplete.
set -euo pipefail

%s`, comment(m.Plan.Metadata.Name), comment(u.To), comment(u.Host), comment(m.Facts.K3s.Version), comment(m.Facts.Host.MachineID), comment(m.SetDir()), hostFunctions(m))
	if underWay {
		b.WriteString(returning)
	}
	if len(u.Actions) == 0 {
		b.WriteString("\n# Nothing was changed since the checkpoint: there is nothing to do.\n")
	}
	for _, a := range u.Actions {
		fmt.Fprintf(&b, "\n# %s: %s\n", a.Step, comment(a.Summary))
		command := a.Command
		switch {
		case ofLaptop(command), a.Target.Kind == runner.Laptop:
		case a.Target.Kind == runner.Cluster:
			command = m.OverSSH(remote.Quote(m.Facts.K3s.Binary) + " " + command)
		default:
			command = m.OverSSH(command)
		}
		// The shell goes on after a failure in a list, but not after the list's.
		fmt.Fprintf(&b, "{ %s; } || exit\n", command)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// hostFunctions are what the commands of a script use.
func hostFunctions(m *steps.Migration) string {
	out := fmt.Sprintf(`# on_host runs a command on the host, into_host one that reads what is piped to it.
on_host() { into_host "$1" </dev/null; }
into_host() { %s "$1"; }
`, m.SSH())
	if h := m.Plan.Server(); h.User == "" && h.SSHConfig != "none" {
		out += "# Where your SSH configuration names no user, add -l root.\n"
	}
	return out
}

// ofLaptop tells whether a command reaches the host by itself, or has no need to.
func ofLaptop(command string) bool {
	first, _, _ := strings.Cut(command, " ")
	return first == "on_host" || first == "into_host" || first == "migrate"
}

// comment is text for a line of comment.
func comment(text string) string {
	return strings.Join(strings.FieldsFunc(text, unicode.IsControl), " ")
}
