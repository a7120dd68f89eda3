package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/probe"
	"sunbeam.pt/k3s-dualstack/steps"
)

// availability is for how long API and URLs were away. Nothing depends on it: what
// cannot be read is left out, with a note.
func availability(c *cobra.Command, m *steps.Migration) []probe.Availability {
	all, err := m.Availability()
	if err != nil {
		fmt.Fprintf(c.ErrOrStderr(), "note: %v\n", err)
	}
	return all
}

// printAvailability shows for how long API and URLs were away, if anything was watched.
func printAvailability(c *cobra.Command, m *steps.Migration) {
	all := availability(c, m)
	if len(all) > 0 {
		fmt.Fprintln(c.OutOrStdout())
		_ = probe.Table(c.OutOrStdout(), all) // as for every other print
	}
}
