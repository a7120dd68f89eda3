package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/steps"
	"sunbeam.pt/k3s-dualstack/verify"
)

func verifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify",
		Short: "Show whether dual-stack works, before or after the migration",
		Long: strings.TrimSpace(`
Hold the cluster that runs now against the plan: addresses of nodes, pods and
Services, answers on both families, DNS, egress from pods to the plan's URLs;
after a migration also volumes and TLS secrets against what was backed up.
Nothing is changed. The exit status is 4 when something falls short.`),
		Example: `  migrate verify -f plan.yaml
  migrate verify -f plan.yaml -o json | jq '.checks[] | select(.status == "fail")'`,
		Args: cobra.NoArgs,
	}
	file, format := planFlag(c), formatFlag(c)
	timeout := c.Flags().Duration("timeout", 30*time.Second, "how long a dual-stack cluster may take to settle")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		report, err := m.Verify(c.Context(), *timeout)
		if err != nil {
			return err
		}
		if err := printReport(c, report, *format); err != nil {
			return err
		}
		if !report.OK() {
			return &shownError{&steps.UnverifiedError{Failed: len(report.Failed())}}
		}
		return nil
	}
	return c
}

func printReport(c *cobra.Command, report verify.Report, format string) error {
	if format == "json" {
		return writeJSON(c.OutOrStdout(), report)
	}
	return report.Table(c.OutOrStdout())
}
