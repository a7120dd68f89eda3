package main

import (
	"fmt"
	"io"
	"strings"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

// script writes the plan as the commands of a person who does it by hand. It stops where
// there is none, so that nothing is uninstalled behind a backup that nobody made.
func (p preview) script(w io.Writer, m *steps.Migration) error {
	kubectl := remote.Quote(p.Facts.K3s.Binary, "kubectl")
	if m.Plan.Server().Sudo {
		kubectl = "sudo -n " + kubectl
	}
	var b strings.Builder
	fmt.Fprintf(&b, `#!/usr/bin/env bash
# Plan %s: %s, by hand.
`, comment(p.Name), becomes)
	for _, f := range p.head() {
		fmt.Fprintf(&b, "# %-14s%s\n", f.label, comment(f.text))
	}
	fmt.Fprintf(&b, `#
# This is for reading, and for following by hand: "migrate run" does the same, and more
# carefully: it encrypts what it keeps, proves it, can be continued and taken back. What is
# kept here lies in the current directory, and is not encrypted.
#
# It does nothing unless it is told to with BY_HAND=yes in its environment. Then it stops at the
# first command that fails, and where something has no command it asks whether it is done.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" # What comes out of a failed pipe is incomplete.
set -euo pipefail
if [ "${BY_HAND-}" != yes ]; then
	echo "$0: read it first; to follow it: BY_HAND=yes bash $0" >&2
	exit 1
fi
umask 077

%s
# kubectl is K3s's, on the host.
kubectl() { into_host "$(printf '%%q ' %s "$@")"; }

# by_hand stops until a person has done what no command here does.
by_hand() {
	printf 'By hand: %%s\nType yes when it is done: ' "$1" >&2
	read -r answer </dev/tty && [ "$answer" = yes ]
}
`, hostFunctions(m), kubectl)
	if len(p.Settings) > 0 {
		b.WriteString("\n# Settings of K3s afterwards:\n")
		for _, c := range p.Settings {
			fmt.Fprintf(&b, "#   %s: %s (in %s)\n", comment(c.Key), comment(c.After), comment(c.Source))
		}
	}
	phase := ""
	for i, s := range p.Steps {
		if s.Phase != phase {
			phase = s.Phase
			fmt.Fprintf(&b, "\n\n# %s\n", strings.ToUpper(comment(phase)))
		}
		fmt.Fprintf(&b, "\n# %d. %s: %s (%s)\n", i+1, comment(s.Name), comment(s.Title), p.takes(s.Name))
		if s.Gate != nil {
			fmt.Fprintf(&b, "by_hand %s || exit\n", remote.Quote("agree that the downtime begins: everything above is kept, and proven"))
		}
		for _, a := range s.Actions {
			fmt.Fprintf(&b, "\n# [%s] %s\n", comment(a.Target.String()), comment(a.Summary))
			command, whole := byHand(m, a)
			switch {
			case a.Command == "":
				b.WriteString("# There is no command for it.\n")
			case !whole:
				fmt.Fprintf(&b, "#   %s\nby_hand %s || exit\n", comment(a.Command), remote.Quote(comment(a.Summary)))
			default:
				// The shell goes on after a failure in a list, but not after the list's.
				fmt.Fprintf(&b, "{\n\t%s\n} </dev/null || exit\n", command)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// byHand is an action's command as the laptop runs it; whole is false for one that only
// outlines what is to be done.
func byHand(m *steps.Migration, a runner.Action) (command string, whole bool) {
	first, _, _ := strings.Cut(a.Command, " ")
	switch {
	case strings.Contains(a.Command, "…"), first == "bao", strings.HasPrefix(a.Command, "migrate backup "): // a set that a person has not made
		return "", false
	case a.Target.Kind == runner.Host && !ofLaptop(a.Command):
		return m.OverSSH(a.Command), true
	}
	return a.Command, true
}
