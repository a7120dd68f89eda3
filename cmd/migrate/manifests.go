package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/manifests"
	"sunbeam.pt/k3s-dualstack/plans"
)

func manifestsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "manifests PATH…",
		Short: "Set ipFamilyPolicy on the Services of a repository's YAML",
		Long: strings.TrimSpace(`
Look at every YAML and JSON file below the directories, and set spec.ipFamilyPolicy on
each Service that is to be dual-stack, so that the next apply does not take
back what the migration did. Nothing else in a file changes, to the byte.

Without a flag it says what it would do. What it cannot edit safely (Helm templates, generated
and encrypted files, patches) it lists with the value to set. A Service whose
manifest says SingleStack is somebody's choice and stays, unless --replace is given.

With --check the exit status is 1 when a Service is to be set, by this command or by hand. A file
that cannot be read makes it 1 in any case. A Service counts as set, too, when every
kustomization that applies its file includes the component that --kustomize-component wrote.`),
		Example: `  migrate manifests deploy/                  # what would be set
  migrate manifests --diff deploy/           # the same as a patch
  migrate manifests --write deploy/          # do it
  migrate manifests --check deploy/          # for CI
  migrate manifests --check -o json deploy/ | jq '.services[] | select(.want)'
  migrate manifests --kustomize-component deploy/dual-stack deploy/`,
		Args: cobra.MinimumNArgs(1),
	}
	format := formatFlag(c)
	flags := c.Flags()
	policy := flags.String("policy", string(plans.ServicesPreferDualStack), "the `value`: PreferDualStack or RequireDualStack")
	_ = c.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions([]string{string(plans.ServicesPreferDualStack), string(plans.ServicesRequireDualStack)}, cobra.ShellCompDirectiveNoFileComp))
	exclude := flags.StringSlice("exclude", nil, "`namespace/name` of a Service that stays as it is; may be repeated")
	overwrite := flags.Bool("replace", false, "replace SingleStack too, where a manifest says it")
	check := flags.Bool("check", false, "change nothing; fail when a Service is to be set")
	diff := flags.Bool("diff", false, "print the changes as a unified diff, instead of a list")
	write := flags.Bool("write", false, "change the files")
	component := flags.String("kustomize-component", "", "write a kustomize component into `dir` that sets it, and leave the files")
	_ = c.MarkFlagDirname("kustomize-component")
	c.RunE = func(c *cobra.Command, paths []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		if *check && *write || *component != "" && (*check || *write || *diff) {
			return usageError{errors.New("--check and --write exclude each other; --kustomize-component goes with neither, nor with --diff")}
		}
		if *diff && *format == "json" {
			return usageError{errors.New("--diff is text: it does not go with -o json")}
		}
		if *policy != string(plans.ServicesPreferDualStack) && *policy != string(plans.ServicesRequireDualStack) {
			return usageError{fmt.Errorf("--policy %q: it is PreferDualStack or RequireDualStack", *policy)}
		}
		report, err := manifests.Scan(c.Context(), paths, manifests.Options{Policy: plans.ServicePolicy(*policy), Replace: *overwrite, Exclude: *exclude})
		if errors.Is(err, fs.ErrNotExist) {
			return usageError{err}
		}
		if err != nil {
			return err
		}
		did := "to be set"
		var failed error
		switch {
		case *write:
			did = "set"
			failed = report.Write(c.Context())
		case *component != "":
			did = "set by the component"
			failed = report.Component(*component)
		}
		if failed != nil {
			did = "to be set"
			for _, name := range report.Written {
				fmt.Fprintf(c.ErrOrStderr(), "written: %s\n", name)
			}
		}
		switch {
		case *format == "json":
			err = writeJSON(c.OutOrStdout(), report)
		case *diff:
			_, err = io.WriteString(c.OutOrStdout(), report.Diff())
		default:
			err = printManifests(c.OutOrStdout(), report, did)
		}
		if err != nil || failed != nil {
			return errors.Join(failed, err)
		}
		set, byHand := report.Count(manifests.ToSet), report.Count(manifests.ByHand)
		if *diff { // which has no place for them
			for _, p := range report.Problems {
				fmt.Fprintf(c.ErrOrStderr(), "%s: %s\n", p.File, p.Reason)
			}
			if byHand > 0 {
				fmt.Fprintf(c.ErrOrStderr(), "%d Services are to be set by hand: without --diff they are listed\n", byHand)
			}
		}
		if n := len(report.Problems); n > 0 {
			return fmt.Errorf("%d files could not be read: make them readable, or name the other paths alone", n)
		}
		if *check && set+byHand > 0 {
			return fmt.Errorf("ipFamilyPolicy is to be set on %d Services with --write, on %d by hand", set, byHand)
		}
		return nil
	}
	return c
}

// printManifests lists what is to be done in sections; what needs nothing is counted.
func printManifests(w io.Writer, r *manifests.Report, did string) error {
	var b strings.Builder
	section := func(state manifests.State, title string) {
		n := r.Count(state)
		if n == 0 {
			return
		}
		fmt.Fprintf(&b, "%s (%d)\n", title, n)
		for _, s := range r.Services {
			if s.State != state {
				continue
			}
			place, name := fmt.Sprintf("  %s:%d", s.File, s.Line), "Service "+s.String()
			if len(place)+len(name) > 78 {
				place += "\n    "
			}
			fmt.Fprintf(&b, "%s  %s\n", place, name)
			if s.Reason != "" {
				b.WriteString(indented(s.Reason, 6))
			}
		}
		b.WriteByte('\n')
	}
	field := "spec.ipFamilyPolicy: " + r.Policy
	section(manifests.ToSet, field+", "+did)
	section(manifests.ByHand, field+", to be set by hand")
	section(manifests.Chosen, "SingleStack on purpose? Else "+field)
	section(manifests.Exempt, "Left as they are")
	if len(r.Problems) > 0 {
		fmt.Fprintf(&b, "Not read (%d)\n", len(r.Problems))
		for _, p := range r.Problems {
			fmt.Fprintf(&b, "  %s\n%s", p.File, indented(p.Reason, 6))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d Services: %d %s, %d by hand, %d single-stack, %d set before, %d left\n", len(r.Services),
		r.Count(manifests.ToSet), did, r.Count(manifests.ByHand), r.Count(manifests.Chosen), r.Count(manifests.Present), r.Count(manifests.Exempt))
	_, err := io.WriteString(w, b.String())
	return err
}

// indented is a text in lines of at most 80 columns, indented.
func indented(text string, by int) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		switch {
		case column == 0:
			b.WriteString(strings.Repeat(" ", by))
			column = by
		case column+1+len(word) > 80:
			b.WriteString("\n" + strings.Repeat(" ", by))
			column = by
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len([]rune(word))
	}
	return b.String() + "\n"
}
