package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/report"
	"sunbeam.pt/k3s-dualstack/steps"
)

func reportCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "report",
		Short: "Write what a run did as a document: HTML and Markdown",
		Long: strings.TrimSpace(`
Write a document about the run, for the change ticket: how it ended, the
timeline of its steps, when API and URLs were away, what changed, findings,
verification, the backup set with its sums, and the way back.

It is made from the work directory alone, at any time during a run, a rollback
or after them; neither host nor cluster is contacted and no key is used. The HTML
file needs nothing besides itself. Of errors the first line is told: output of the
platform's commands stays in the journal.`),
		Example: `  migrate report -f plan.yaml                # NAME-report.html and NAME-report.md beside the plan
  migrate report -f plan.yaml --dir /tmp
  migrate report -f plan.yaml -o json | jq .outcome`,
		Args: cobra.NoArgs,
	}
	file := planFlag(c)
	dir := c.Flags().String("dir", "", "write the two files into this `directory` instead of the plan's")
	_ = c.MarkFlagDirname("dir")
	format := c.Flags().StringP("output", "o", "", "write to standard output instead, in this `format`: html, markdown or json")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"html", "markdown", "json"}, cobra.ShellCompDirectiveNoFileComp))
	c.RunE = func(c *cobra.Command, _ []string) error {
		switch *format {
		case "", "html", "markdown", "json":
		default:
			return usageError{fmt.Errorf("--output %q: it is html, markdown or json", *format)}
		}
		if *format != "" && *dir != "" {
			return usageError{errors.New("--dir is for the two files, and --output writes to standard output; give one of them")}
		}
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		r, err := m.Document(c.Context(), *file, time.Now())
		var nothing *steps.NothingToReportError
		if errors.As(err, &nothing) {
			return fmt.Errorf("%w; to do it: migrate run -f %s", err, remote.Quote(*file))
		}
		if err != nil {
			return err
		}
		r.Version = version
		out := c.OutOrStdout()
		switch *format {
		case "html":
			return r.HTML(out)
		case "markdown":
			return r.Markdown(out)
		case "json":
			return r.JSON(out)
		}
		if *dir == "" {
			*dir = filepath.Dir(m.Plan.Path())
		}
		return writeReport(out, *dir, r)
	}
	return c
}

// writeReport writes both documents into the directory, and their paths to out.
func writeReport(out io.Writer, dir string, r report.Report) error {
	for _, document := range []struct {
		extension string
		write     func(io.Writer) error
	}{{"html", r.HTML}, {"md", r.Markdown}} {
		var text bytes.Buffer
		if err := document.write(&text); err != nil {
			return err
		}
		path := filepath.Join(dir, r.Name+"-report."+document.extension)
		if err := renameio.WriteFile(path, text.Bytes(), 0o600, renameio.IgnoreUmask()); err != nil {
			return fmt.Errorf("laptop: writing the report: %w; --dir names another directory", err)
		}
		if _, err := fmt.Fprintln(out, path); err != nil {
			return err
		}
	}
	return nil
}
