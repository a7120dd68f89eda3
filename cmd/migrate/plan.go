package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
	"sunbeam.pt/k3s-dualstack/survey"
)

// preview is what `plan` prints.
type preview struct {
	Name     string              `json:"name"`
	Host     string              `json:"host"`
	Address  string              `json:"address"`
	Version  string              `json:"k3sVersion"`
	Settings []k3s.Change        `json:"settings"`
	Findings []preflight.Finding `json:"findings"`
	Facts    *survey.Facts       `json:"facts"`
	Steps    []runner.Planned    `json:"steps"`
	// Fallbacks say for each step what a failure in it means.
	Fallbacks map[string]steps.Fallback `json:"fallbacks"`
	// Estimate is about how much it moves, and how long it takes.
	Estimate steps.Estimate `json:"estimate"`
	Begun    bool           `json:"begun"`

	state runner.State // of the run that has begun
}

func planCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "plan",
		Short: "Look at host and cluster and print every step; change nothing",
		Long: strings.TrimSpace(`
Read host and cluster, check whether the migration may run, and print every
step and action in order: its target and the command a person would type.
These are the actions that 'migrate run' performs. Nothing is changed. The exit
status is 3 when a finding forbids the run.

As markdown it is for a change request; as sh a script with the commands, to be read or
followed by hand. Estimates come from sizes and rates that are measured, and for what
has neither from the lab.`),
		Example: `  migrate plan -f plan.yaml
  migrate plan -f plan.yaml --out shop.saved && migrate run shop.saved
  migrate plan -f plan.yaml -o markdown > change-request.md
  migrate plan -f plan.yaml -o json | jq '.steps[].actions[].command'`,
		Args: cobra.NoArgs,
	}
	file, format := planFlag(c), formatFlag(c, "markdown", "sh")
	out := c.Flags().String("out", "", "save the plan in this `file`, for 'migrate run FILE': that does what was shown, or nothing")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format, "markdown", "sh"); err != nil {
			return err
		}
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		if *out != "" {
			if err := m.MaySave(*out); err != nil {
				return usageError{fmt.Errorf("--out: %w", err)}
			}
		}
		p := preview{Name: m.Plan.Metadata.Name}
		if p.Begun, err = m.Begun(); err != nil {
			return err
		}
		if p.Begun && *out != "" {
			return usageError{errors.New("--out: a run of this plan has begun, and goes on with what it began with; a saved plan is for one that has not")}
		}
		if !p.Begun {
			t := m.Progress.Wait("Reading host and cluster")
			m.Facts, err = m.SurveyAll(c.Context())
			t.Done()
			var inhibited *steps.InhibitedError
			if errors.As(err, &inhibited) {
				return findings(c, inhibited)
			}
			if err != nil {
				return err
			}
		}
		if p.Begun {
			if m.Waivers, err = m.Waived(); err != nil {
				return err
			}
			if p.state, err = m.State(); err != nil {
				return err
			}
		}
		checked := m.Check()
		var inhibited *steps.InhibitedError
		if checked != nil && !errors.As(checked, &inhibited) {
			return checked
		}
		if p.Begun {
			checked = nil // the run it belongs to has passed them
		}
		if _, p.Settings, err = m.Settings(c.Context()); err != nil {
			return err
		}
		p.Settings = steps.WithoutSecrets(p.Settings)
		if p.Steps, err = runner.Preview(c.Context(), m.Sequence()); err != nil {
			return err
		}
		if p.Fallbacks, err = m.Fallbacks(c.Context()); err != nil {
			return err
		}
		if p.Estimate, err = m.Estimate(c.Context(), p.Steps); err != nil {
			return err
		}
		s := m.Plan.Server()
		p.Address = s.Address
		p.Host, p.Version, p.Findings, p.Facts = s.Name, m.Facts.K3s.Version, m.Findings, m.Facts
		switch *format {
		case "json":
			err = writeJSON(c.OutOrStdout(), p)
		case "markdown":
			err = p.markdown(c.OutOrStdout(), *file)
		case "sh":
			err = p.script(c.OutOrStdout(), m)
		default:
			err = p.print(c.OutOrStdout(), *file)
		}
		if err != nil {
			return err
		}
		if checked != nil {
			return &shownError{checked} // and not saved: there is nothing to run
		}
		if *out == "" {
			return nil
		}
		if err := m.Save(*out); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.ErrOrStderr(), "\nSaved in %[1]s. To do just this, and nothing when anything has moved: migrate run %[1]s\n", remote.Quote(*out))
		return err
	}
	return c
}

// findings shows why a migration may not run.
func findings(c *cobra.Command, e *steps.InhibitedError) error {
	printFindings(c.ErrOrStderr(), e.Findings)
	return e
}

func printFindings(w io.Writer, found []preflight.Finding) {
	for _, f := range found {
		fmt.Fprintf(w, "  %-9s  %s\n             %s\n             → %s\n", f.Severity, f.ID, f.Detail, f.Remedy)
		if f.Waived != "" {
			fmt.Fprintf(w, "             waived: %s\n", f.Waived)
		}
	}
}
