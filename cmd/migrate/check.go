package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/steps"
)

// checked is what `check` prints.
type checked struct {
	Name       string              `json:"name"`
	Host       string              `json:"host"`
	OS         string              `json:"os,omitempty"`         // unknown when K3s does not run
	K3sVersion string              `json:"k3sVersion,omitempty"` // likewise
	Inhibited  bool                `json:"inhibited"`
	Findings   []preflight.Finding `json:"findings"`
}

func checkCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "check",
		Short: "Look at host and cluster and report what stands in the way; change nothing",
		Long: strings.TrimSpace(`
Read host and cluster, hold them against the plan, and report what was found:
inhibitors, which forbid the run, warnings and notes, each with what was seen,
why it matters and where that is written, and what to do about it. Nothing is
changed. The exit status is 3 when a finding forbids the run.

A finding that is acceptable here is waived by its name, with a reason, given
to 'migrate run' in the same way, which keeps it in the journal. Those with
which the run would lose data or could not work cannot be waived.`),
		Example: `  migrate check -f plan.yaml
  migrate check -f plan.yaml --waive host.space='the disk is grown tonight'
  migrate check -f plan.yaml -o json | jq '.findings[] | select(.severity == "inhibitor")'`,
		Args: cobra.NoArgs,
	}
	file, format, waive := planFlag(c), formatFlag(c), waiveFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		waivers, err := parseWaivers(*waive)
		if err != nil {
			return err
		}
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		m.Waivers = waivers
		report := checked{Name: m.Plan.Metadata.Name, Host: m.Plan.Server().Name, Findings: []preflight.Finding{}}
		t := m.Progress.Wait("Reading host and cluster")
		// As it is now, whatever a run has kept.
		m.Facts, err = m.SurveyAll(c.Context())
		t.Done()
		if err == nil {
			report.OS, report.K3sVersion = m.Facts.Host.OS, m.Facts.K3s.Version
			err = m.Check()
			var already *steps.InhibitedError
			if err == nil || errors.As(err, &already) {
				if drift := m.CheckDrift(c.Context()); drift != nil {
					err = drift
				} else if already != nil {
					already.Findings = m.Findings
				}
			}
			report.Findings = append(report.Findings, m.Findings...)
		}
		var inhibited *steps.InhibitedError
		if errors.As(err, &inhibited) {
			report.Inhibited, report.Findings = true, inhibited.Findings
		} else if err != nil {
			return err
		}
		if *format == "json" {
			err = writeJSON(c.OutOrStdout(), report)
		} else {
			err = report.print(c.OutOrStdout(), *file)
		}
		if err == nil && inhibited != nil {
			return &shownError{inhibited}
		}
		return err
	}
	return c
}

// waiveFlag adds --waive to a command.
func waiveFlag(c *cobra.Command) *[]string {
	waive := c.Flags().StringArray("waive", nil, "let the inhibitor `ID=REASON` not stop the run (repeatable)")
	_ = c.RegisterFlagCompletionFunc("waive", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, id := range preflight.Waivable() {
			out = append(out, id+"=")
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	})
	return waive
}

func parseWaivers(texts []string) (preflight.Waivers, error) {
	w, err := preflight.ParseWaivers(texts)
	if err != nil {
		return nil, usageError{fmt.Errorf("--waive: %w", err)}
	}
	return w, nil
}

// groups are the parts of the report.
var groups = []struct {
	title string
	holds func(preflight.Finding) bool
}{
	{"Inhibitors: the migration does not run while they stand", preflight.Finding.Inhibits},
	{"Waived", func(f preflight.Finding) bool { return f.Severity == preflight.Inhibitor && f.Waived != "" }},
	{"Warnings: to be read before the migration runs", func(f preflight.Finding) bool { return f.Severity == preflight.Warning }},
	{"Notes", func(f preflight.Finding) bool { return f.Severity == preflight.Note }},
}

func (r checked) print(w io.Writer, file string) error {
	var b strings.Builder
	head := r.Host
	if r.K3sVersion != "" {
		head += fmt.Sprintf(" (%s), K3s %s", cmp.Or(r.OS, "unknown system"), r.K3sVersion)
	}
	wrap(&b, "Check of plan "+r.Name+": host ", head)
	inhibitors, others := 0, 0
	for _, g := range groups {
		n := 0
		for _, f := range r.Findings {
			if !g.holds(f) {
				continue
			}
			if n++; n == 1 {
				fmt.Fprintf(&b, "\n%s\n", g.title)
			}
			printFinding(&b, n, f)
			if f.Inhibits() {
				inhibitors++
			} else {
				others++
			}
		}
	}
	switch {
	case inhibitors > 0:
		fmt.Fprintf(&b, "\n%s and %s. Nothing was changed.\nMend host or plan and look again: migrate check -f %s\n",
			count(inhibitors, "inhibitor"), count(others, "other finding"), file)
	case others > 0:
		fmt.Fprintf(&b, "\nNo inhibitor, and %s. Nothing was changed.\nThe steps: migrate plan -f %s\n", count(others, "other finding"), file)
	default:
		fmt.Fprintf(&b, "\nNothing stands in the way, and nothing was changed.\nThe steps: migrate plan -f %s\n", file)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printFinding(b *strings.Builder, n int, f preflight.Finding) {
	name := f.ID
	if f.Firm != "" {
		name += " (cannot be waived: " + f.Firm + ")"
	}
	fmt.Fprintf(b, "\n%3d. %s\n", n, name)
	for _, part := range []struct{ label, text string }{
		{"seen", f.Detail}, {"why", f.Why}, {"source", f.Source}, {"remedy", f.Remedy}, {"waived", f.Waived},
	} {
		if part.text != "" {
			wrap(b, fmt.Sprintf("     %-8s", part.label), part.text)
		}
	}
}

const columns = 80

// wrap writes text behind a label, its lines below each other. What is longer
// than a line stays whole, to be copied.
func wrap(b *strings.Builder, label, text string) {
	margin := utf8.RuneCountInString(label)
	indent := strings.Repeat(" ", margin)
	line, width := label, 0
	for _, word := range strings.Fields(text) {
		size := len([]rune(word))
		if width > 0 && margin+width+1+size > columns {
			b.WriteString(line + "\n")
			line, width = indent, 0
		}
		if width > 0 {
			line, width = line+" ", width+1
		}
		line, width = line+word, width+size
	}
	b.WriteString(line + "\n")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
