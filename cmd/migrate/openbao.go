package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/credentials"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/steps"
)

func openBaoCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "openbao",
		Short: "Unseal the cluster's OpenBao; bring its exported secrets into another one",
		Long: strings.TrimSpace(`
What a run does with OpenBao by itself, for the days on which a person does it: unseal the
servers of the plan with the plan's keys, and import the KV secrets that a run exported
into another server.`),
		Example: `  migrate openbao unseal -f plan.yaml
  migrate openbao import -f plan.yaml --address https://bao.example.com:8200`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(openBaoUnsealCommand(), openBaoImportCommand())
	return c
}

func openBaoUnsealCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "unseal",
		Short: "Unseal OpenBao with the plan's keys",
		Long: strings.TrimSpace(`
Unseal every server that spec.backup.openBao names, with the keys that it points to, through the SSH
connection: after a rollback, or whenever the host was restarted. Servers that are
unsealed already are left alone. The sentinel is compared where there is one.`),
		Example: `  migrate openbao unseal -f plan.yaml`,
		Args:    usage(cobra.NoArgs),
	}
	file := planFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		unsealed, err := m.UnsealBao(c.Context())
		for _, name := range unsealed {
			fmt.Fprintf(c.OutOrStdout(), "unsealed %s\n", name)
		}
		if err == nil && len(unsealed) == 0 {
			fmt.Fprintln(c.OutOrStdout(), "OpenBao is unsealed already")
		}
		return err
	}
	return c
}

func openBaoImportCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "import",
		Short: "Replay the exported KV secrets into another OpenBao",
		Long: strings.TrimSpace(`
Write the KV secrets of a backup set's export into another server, version after version, so that
they have the same numbers, data, marks and metadata there. KV mounts that are missing are made. A
secret that is there already and is not the beginning of the same is left alone and
reported as a conflict. An import that was cut off can be repeated: it goes on.

What no server lets one write is reported: the times at which versions were made, and the data of
versions that were deleted (they are in the raft snapshot, openbao/snapshot, alone).

The token is taken from --token-file, else from BAO_TOKEN, else asked for. It must be able
to read, create and update what is imported, and to mount.`),
		Example: `  migrate openbao import -f plan.yaml --address https://bao.example.com:8200 --dry-run
  BAO_TOKEN=… migrate openbao import -f plan.yaml --address http://127.0.0.1:8200
  migrate openbao import --dir /mnt/copy --identity ~/.ssh/id_ed25519 --address https://bao.example.com:8200 -o json`,
		Args: usage(cobra.NoArgs),
	}
	from, format := setFlags(c), formatFlag(c)
	address := c.Flags().String("address", "", "`URL` of the server to import into")
	ca := c.Flags().String("ca-file", "", "`file` with the CA certificates of the server; default: this machine's")
	tokenFile := c.Flags().String("token-file", "", "`file` that holds the token")
	dryRun := c.Flags().Bool("dry-run", false, "tell what would be done, and write nothing")
	_ = c.MarkFlagFilename("ca-file")
	_ = c.MarkFlagFilename("token-file")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		if *address == "" {
			return usageError{errors.New("--address: name the server to import into")}
		}
		set, p, err := from.open(c, true)
		if err != nil {
			return err
		}
		token := plans.Secret{File: *tokenFile}
		if *tokenFile == "" {
			token = plans.Secret{Env: "BAO_TOKEN", Prompt: os.Getenv("BAO_TOKEN") == ""}
			if token.Prompt {
				token.Env = ""
			}
		}
		reader := &credentials.Reader{Ask: askSecret(c, p), Stderr: p.Writer()}
		secret, err := reader.Read(c.Context(), "the token of "+*address, token)
		if err != nil {
			return err
		}
		o := openbao.Options{Address: *address, Token: secret}
		if *ca != "" {
			if o.CA, err = os.ReadFile(*ca); err != nil {
				return fmt.Errorf("--ca-file: %w", err)
			}
		}
		server, err := openbao.New(o)
		if err != nil {
			return usageError{fmt.Errorf("--address: %w", err)}
		}
		defer server.Close()
		// Nothing is written before the export is known to be whole.
		checked, err := from.pick(set, []string{steps.OpenBaoExport})
		if err != nil {
			return err
		}
		found, err := set.Check(c.Context(), checked, p)
		if err != nil {
			return err
		}
		if found[0].Err != nil {
			return found[0].Err
		}
		export, err := set.Reader(steps.OpenBaoExport)
		if err != nil {
			return err
		}
		defer export.Close()
		t := p.Wait("Importing secrets")
		report, err := server.Import(c.Context(), export, openbao.ImportOptions{DryRun: *dryRun, Task: t})
		t.Done()
		if err != nil {
			return fmt.Errorf("importing into %s: %w", *address, err)
		}
		if *format == "json" {
			err = writeJSON(c.OutOrStdout(), report)
		} else {
			err = printImport(c.OutOrStdout(), report)
		}
		if n := conflicts(report); err == nil && n > 0 {
			err = fmt.Errorf("importing into %s: %d mounts or secrets are there already and are something else; they were left alone: remove them or move them away there, and import again", *address, n)
		}
		return err
	}
	return c
}

// conflicts counts the mounts and secrets that were left alone.
func conflicts(r openbao.ImportReport) int {
	n := r.Conflicts
	for _, m := range r.Mounts {
		if m.State == openbao.ImportConflict {
			n++
		}
	}
	return n
}

func printImport(w io.Writer, r openbao.ImportReport) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, m := range r.Mounts {
		fmt.Fprintf(t, "%s\t%s\t%s\n", m.State, m.Path, m.Conflict)
	}
	for _, s := range r.Secrets {
		fmt.Fprintf(t, "%s\t%s\t%s\n", s.State, s.Path, cmp.Or(s.Conflict, strings.Join(s.Lost, "; ")))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if r.DryRun {
		fmt.Fprintln(w, "\nNothing was written: this is what would be done.")
	}
	_, err := fmt.Fprintf(w, "\n%d secrets written (%d versions), %d there already, %d conflicts\n", r.Written, r.Versions, r.Unchanged, conflicts(r))
	return err
}
