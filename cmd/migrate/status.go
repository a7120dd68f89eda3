package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/probe"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

func statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how far a run is, from its journal",
		Long: strings.TrimSpace(`
Show which steps of the run are complete, what was begun and what failed. The
journal on the laptop is read, and what the watch over API and URLs saw; host and
cluster are not contacted.`),
		Example: `  migrate status -f plan.yaml
  migrate status -f plan.yaml -o json | jq .checkpoint`,
		Args: cobra.NoArgs,
	}
	file, format := planFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		journal, err := runner.OpenJournal(m.JournalPath())
		if err != nil {
			return err
		}
		defer journal.Close()
		state := journal.State()
		if *format == "json" {
			return writeJSON(c.OutOrStdout(), struct {
				runner.State
				Availability []probe.Availability `json:"availability,omitempty"`
			}{state, availability(c, m)})
		}
		w := c.OutOrStdout()
		if state.Run == "" {
			_, err := fmt.Fprintf(w, "No run of plan %s has begun.\nTo look at it: migrate plan -f %[2]s\nTo do it: migrate run -f %[2]s\n", m.Plan.Metadata.Name, *file)
			return err
		}
		fmt.Fprintf(w, "Plan %s, run %s, begun %s\n\n", m.Plan.Metadata.Name, state.Run, state.Began.Local().Format(time.DateTime))
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		done := map[string]bool{}
		begun := map[string]bool{}
		for _, s := range state.Steps {
			begun[s.Step], done[s.Step] = true, s.Complete
		}
		for _, s := range m.Sequence() {
			mark := "to do"
			switch {
			case done[s.Name]:
				mark = "done"
			case begun[s.Name]:
				mark = "begun"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\n", mark, s.Name, s.Title)
			for _, a := range state.Actions {
				if a.Step == s.Name && a.Status != runner.Done && !done[s.Name] {
					text := "begun"
					if a.Status == runner.Failed {
						text = "failed: " + a.Error
					}
					fmt.Fprintf(t, "\t\t- %s: %s\n", a.Action, strings.ReplaceAll(text, "\n", " "))
				}
			}
		}
		t.Flush()
		found, err := steps.Findings(state)
		if err != nil {
			return err
		}
		printWaived(w, found)
		printAvailability(c, m)
		if back := state.Rollback; back != nil {
			fmt.Fprintf(w, "\nA rollback to %s began %s and is not complete.\n", back.To, back.Began.Local().Format(time.DateTime))
			for _, a := range back.Actions {
				fmt.Fprintf(w, "  - %s, %s: %s\n", a.Step, a.Action, strings.ReplaceAll(undoText(a), "\n", " "))
			}
		}
		for _, notice := range journal.Notices() {
			fmt.Fprintf(w, "\nNote: %s\n", notice)
		}
		if state.Finished {
			_, err = fmt.Fprintf(w, "\nThe migration is complete. To look again: migrate verify -f %s\n", *file)
			return err
		}
		holder, err := m.Holder()
		if err != nil {
			return err
		}
		switch {
		case holder != nil:
			_, err = fmt.Fprintf(w, "\nIt is being run by %s.\n", holder)
		case state.Rollback != nil:
			_, err = fmt.Fprintf(w, "\nTo continue: migrate rollback -f %s\n%s\n", *file, otherwise(state, *file, ""))
		case state.RolledBack != "":
			_, err = fmt.Fprintf(w, "\nThe run was rolled back to %s. To go on from there: migrate run -f %s\n", state.RolledBack, *file)
		default:
			_, err = fmt.Fprintf(w, "\nTo continue: migrate run -f %s\n", *file)
			if m.WayBack() != "" && err == nil {
				_, err = fmt.Fprintf(w, "To have the old cluster back instead: migrate rollback -f %s\n", *file)
			}
		}
		return err
	}
	return c
}

// otherwise says what to do where the rollback under way cannot finish.
func otherwise(state runner.State, file, checkpoint string) string {
	if steps.Returning(state) {
		return fmt.Sprintf("If it cannot finish, by way of the backup set: migrate rollback -f %s%s --via backup", file, checkpoint)
	}
	return fmt.Sprintf("If it cannot finish, the rest by hand: migrate runbook -f %s%s", file, checkpoint)
}

// printWaived tells what the run goes on in spite of.
func printWaived(w io.Writer, found []preflight.Finding) {
	for _, f := range found {
		if f.Waived != "" {
			fmt.Fprintf(w, "\nWaived: %s (%s)\n  %s\n", f.ID, f.Waived, f.Detail)
		}
	}
}

// undoText is how far an undo action is.
func undoText(a runner.ActionState) string {
	switch a.Status {
	case runner.Undone:
		return "done"
	case runner.UndoFailed:
		return "failed: " + a.Error
	}
	return "begun"
}
