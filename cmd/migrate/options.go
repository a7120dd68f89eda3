package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/steps"
)

// planFlag adds -f to a command.
func planFlag(c *cobra.Command) *string {
	file := c.Flags().StringP("file", "f", "plan.yaml", "the plan `file`")
	_ = c.MarkFlagFilename("file", "yaml", "yml")
	return file
}

// formatFlag adds -o to a command, which may have more formats than text and json.
func formatFlag(c *cobra.Command, more ...string) *string {
	format := c.Flags().StringP("output", "o", "text", "`format` of the result: "+formats(more))
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(append([]string{"text", "json"}, more...), cobra.ShellCompDirectiveNoFileComp))
	return format
}

func checkFormat(format string, more ...string) error {
	if format != "text" && format != "json" && !slices.Contains(more, format) {
		return usageError{fmt.Errorf("--output %q: it is %s", format, formats(more))}
	}
	return nil
}

// formats are text, json and more, in words.
func formats(more []string) string {
	all := append([]string{"text", "json"}, more...)
	last := len(all) - 1
	return strings.Join(all[:last], ", ") + " or " + all[last]
}

// load reads the plan and prepares the migration, with progress on stderr.
func load(c *cobra.Command, file string) (*steps.Migration, error) {
	plan, err := plans.Load(file)
	var gone *fs.PathError
	if errors.As(err, &gone) {
		return nil, usageError{err}
	}
	if err != nil {
		return nil, err
	}
	p := progress.New(c.ErrOrStderr(), isTerminal(c.ErrOrStderr()))
	m, err := steps.New(plan, p, p.Writer())
	if err != nil {
		return nil, err
	}
	m.Ask = askPassphrase(c, p)
	m.AskSecret = askSecret(c, p)
	return m, nil
}

func isTerminal(w any) bool {
	if k, ok := w.(*keyboard); ok {
		w = k.in
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
