package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

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
	Version  string              `json:"k3sVersion"`
	Settings []k3s.Change        `json:"settings"`
	Findings []preflight.Finding `json:"findings"`
	Facts    *survey.Facts       `json:"facts"`
	Steps    []runner.Planned    `json:"steps"`
	// Fallbacks say for each step what a failure in it means.
	Fallbacks map[string]steps.Fallback `json:"fallbacks"`
	Begun     bool                      `json:"begun"`
}

func planCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "plan",
		Short: "Look at host and cluster and print every step; change nothing",
		Long: strings.TrimSpace(`
Read host and cluster, check whether the migration may run, and print every
step and action in order: its target and the command a person would type.
These are the actions that 'migrate run' performs. Nothing is changed. The exit
status is 3 when a finding forbids the run.`),
		Example: `  migrate plan -f plan.yaml
  migrate plan -f plan.yaml --out shop.saved && migrate run shop.saved
  migrate plan -f plan.yaml -o json | jq '.steps[].actions[].command'`,
		Args: cobra.NoArgs,
	}
	file, format := planFlag(c), formatFlag(c)
	out := c.Flags().String("out", "", "save the plan in this `file`, for 'migrate run FILE': that does what was shown, or nothing")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
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
		s := m.Plan.Server()
		p.Host, p.Version, p.Findings, p.Facts = s.Name, m.Facts.K3s.Version, m.Findings, m.Facts
		if *format == "json" {
			if err := writeJSON(c.OutOrStdout(), p); err != nil {
				return err
			}
		} else {
			p.print(c.OutOrStdout(), *file)
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

func (p preview) print(w io.Writer, file string) {
	f := p.Facts
	fmt.Fprintf(w, "Plan %s: host %s (%s), K3s %s, IPv4-only → dual-stack\n", p.Name, p.Host, f.Host.OS, p.Version)
	if p.Begun {
		fmt.Fprintf(w, "A run of this plan has begun; `migrate status -f %s` shows how far it is.\n", file)
	}

	fmt.Fprintln(w, "\nSettings of K3s")
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, c := range p.Settings {
		before := c.Before
		if before == "" {
			before = "(default)"
		}
		fmt.Fprintf(t, "  %s\t%s\t→ %s\tin %s\n", c.Key, before, c.After, c.Source)
	}
	t.Flush()

	fmt.Fprintln(w, "\nVolumes")
	t = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, v := range f.Cluster.Volumes {
		what := fmt.Sprintf("%d files, %.1f MiB", v.Files, float64(v.Bytes)/(1<<20))
		switch {
		case v.Excluded:
			what = "excluded by the plan"
		case !v.Copied():
			what = "object only; the data lies elsewhere (" + v.Driver + ")"
		}
		name := v.Namespace + "/" + v.Claim
		if v.Claim == "" {
			name = v.PV // nobody claims it
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", name, v.Kind, what, v.Path)
	}
	t.Flush()

	if f.OpenBao != nil && f.OpenBao.Problem == "" {
		printOpenBao(w, *f.OpenBao)
	}

	fmt.Fprintln(w, "\nServices")
	t = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, s := range f.Cluster.Services {
		what := "→ " + s.WantPolicy
		if s.Skip != "" {
			what = "stays: " + s.Skip
		}
		fmt.Fprintf(t, "  %s/%s\t%s\t%s\n", s.Namespace, s.Name, s.Type, what)
	}
	t.Flush()

	phase := ""
	for i, s := range p.Steps {
		if s.Phase != phase {
			phase = s.Phase
			fmt.Fprintf(w, "\n%s\n", strings.ToUpper(phase))
		}
		fmt.Fprintf(w, "%3d. %-10s %s\n", i+1, s.Name, s.Title)
		fmt.Fprintf(w, "     %-10s ↩ %s\n", "", onFailure(s, p.Fallbacks[s.Name]))
		if s.Gate != nil {
			fmt.Fprintf(w, "     %-10s ? asks before it begins; the host's name has to be typed\n", "")
		}
		for _, a := range s.Actions {
			fmt.Fprintf(w, "     - [%s] %s\n", a.Target, a.Summary)
			if a.Command != "" {
				fmt.Fprintf(w, "       $ %s\n", a.Command)
			}
		}
	}

	if len(p.Findings) > 0 {
		fmt.Fprintln(w, "\nFindings")
		printFindings(w, p.Findings)
	}
	fmt.Fprintf(w, "\nNothing was changed. ")
	if preflight.Inhibited(p.Findings) && !p.Begun {
		fmt.Fprintln(w, "The inhibitors above forbid the migration.")
		return
	}
	fmt.Fprintf(w, "To do it: migrate run -f %s\n", file)
}

// printOpenBao shows what the server has: all of it is in its snapshot or volume, the
// secrets of the KV mounts in the export, too.
func printOpenBao(w io.Writer, b survey.OpenBao) {
	fmt.Fprintln(w, "\nOpenBao")
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, s := range b.Servers {
		unseal := fmt.Sprintf("%d of %d keys", s.Threshold, s.Shares)
		if s.RecoverySeal {
			unseal = "unseals itself (" + s.Seal + ")"
		}
		fmt.Fprintf(t, "  server\t%s\t%s, %s storage, %s\n", s.Name, s.Version, s.Storage, unseal)
	}
	for _, m := range b.Mounts {
		kind := m.Type
		if m.KV > 0 {
			kind = fmt.Sprintf("%s, version %d", m.Type, m.KV)
		}
		fmt.Fprintf(t, "  mount\t%s\t%s\n", m.Path, kind)
	}
	for _, a := range b.Auths {
		fmt.Fprintf(t, "  auth\t%s\t%s\n", a.Path, a.Type)
	}
	t.Flush()
	fmt.Fprintf(w, "  policies: %s\n", strings.Join(b.Policies, ", "))
}

// onFailure says what a failure in a step means: running again continues in any
// case; this is what the way back takes.
func onFailure(s runner.Planned, f steps.Fallback) string {
	switch {
	case f.To == "" && s.Name == "finish":
		return "if it fails: the cluster is whole and dual-stack; run it again"
	case f.To == "":
		return "if it fails: the cluster runs as before; nothing to take back"
	}
	takes := fmt.Sprintf("%d actions", len(f.Actions))
	if f.Bytes > 0 {
		takes += ", at least " + mib(f.Bytes) + " to move"
	}
	return fmt.Sprintf("if it fails: rollback returns to %s: %s (%s)", f.To, f.What, takes)
}
