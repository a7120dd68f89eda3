package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/steps"
)

func driftCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "drift",
		Short: "Show how the cluster differs from its manifests; change nothing",
		Long: strings.TrimSpace(`
Render spec.platform.manifests on this machine and have the API server apply
them in a dry run: what it would change was changed in the cluster alone, and is
lost with it. Shown are the changed fields and who changed them, the objects
that only the cluster has and no controller made, and those that only the
manifests have. Values that may be secrets are not shown. Nothing is changed.`),
		Example: `  migrate drift -f plan.yaml
  migrate drift -f plan.yaml -o json | jq -r '.extra[] | .namespace + "/" + .name'`,
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
		d, err := m.Drift(c.Context())
		if err != nil {
			return err
		}
		if *format == "json" {
			return writeJSON(c.OutOrStdout(), d)
		}
		return printDrift(c.OutOrStdout(), d)
	}
	return c
}

func printDrift(w io.Writer, d *steps.Drift) error {
	var b strings.Builder
	if d.None() {
		fmt.Fprintf(&b, "The cluster is what its manifests say: %s compared.\n", count(d.Same, "object"))
	} else {
		fmt.Fprintf(&b, "The cluster differs from its manifests. Objects that are the same: %d\n", d.Same)
	}
	if len(d.Changed) > 0 {
		fmt.Fprintln(&b, "\nChanged in the cluster")
	}
	for _, o := range d.Changed {
		fmt.Fprintf(&b, "\n  %s\n", o.Object)
		for _, f := range o.Fields {
			fmt.Fprintf(&b, "    %s\n", f.Path)
			switch {
			case f.Manifests == "":
				fmt.Fprintf(&b, "      %s; the manifests do not say it\n", f.Cluster)
			case f.Cluster == "":
				fmt.Fprintf(&b, "      gone; the manifests: %s\n", f.Manifests)
			case f.Cluster == cluster.Hidden && f.Manifests == cluster.Hidden:
				fmt.Fprintln(&b, "      other than in the manifests (values not shown)")
			default:
				fmt.Fprintf(&b, "      %s; the manifests: %s\n", f.Cluster, f.Manifests)
			}
			if len(f.By) > 0 {
				fmt.Fprintf(&b, "      by %s\n", by(f.By))
			}
		}
	}
	if len(d.Extra) > 0 {
		fmt.Fprint(&b, "\nIn the cluster alone\n\n")
	}
	for _, o := range d.Extra {
		fmt.Fprintf(&b, "  %s\n", o.Object)
		if len(o.By) > 0 {
			fmt.Fprintf(&b, "      by %s\n", by(o.By))
		}
	}
	if len(d.Missing) > 0 {
		fmt.Fprint(&b, "\nIn the manifests alone\n\n")
	}
	for _, o := range d.Missing {
		fmt.Fprintf(&b, "  %s\n", o)
	}
	if len(d.Uncompared)+len(d.Unread)+len(d.Warnings) > 0 {
		fmt.Fprint(&b, "\nNot compared\n\n")
	}
	for _, o := range d.Uncompared {
		fmt.Fprintf(&b, "  %s\n", o.Object)
		wrap(&b, "      ", o.Why)
	}
	for _, l := range d.Unread {
		fmt.Fprintf(&b, "  %s\n", l.Path)
		wrap(&b, "      ", l.Why)
	}
	for _, warning := range d.Warnings {
		wrap(&b, "  ", warning)
	}
	if len(d.Left) > 0 {
		fmt.Fprint(&b, "\nIn the cluster alone, and nobody's to declare\n\n")
	}
	for _, why := range slices.Sorted(maps.Keys(d.Left)) {
		fmt.Fprintf(&b, "  %4d %s\n", d.Left[why], why)
	}
	if !d.None() {
		fmt.Fprint(&b, "\nWhat has to be there after the rebuild belongs into the manifests.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func by(authors []cluster.Author) string {
	var names []string
	for _, a := range authors {
		names = append(names, a.String())
	}
	return strings.Join(names, ", ")
}
