package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/plans"
)

// version is set by the release build.
var version = "development"

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print the JSON schema of the plan file",
		Long:    "Print the JSON schema of the plan file, for editors and checks.",
		Example: "  migrate schema > plan.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			data, err := plans.Schema()
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(data)
			return err
		},
	}
}

func versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
	}
	format := formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		if *format == "json" {
			return writeJSON(c.OutOrStdout(), map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH, "planAPIVersion": plans.APIVersion})
		}
		_, err := fmt.Fprintf(c.OutOrStdout(), "migrate %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
	return c
}
