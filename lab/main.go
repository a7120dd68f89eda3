// Command lab makes and removes disposable K3s hosts for the demo and the tests of
// migrate. It is the command line only: flags in, one call into the packages, text
// or JSON out. Results go to standard output, what happens meanwhile to standard error.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/labs"
	"sunbeam.pt/k3s-dualstack/lab/parts"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	var inside statusError
	switch {
	case err == nil:
	case errors.As(err, &inside):
		os.Exit(int(inside))
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "lab",
		Short:         "Disposable K3s hosts for the demo and the tests of migrate",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	name := root.PersistentFlags().StringP("name", "n", "demo", "the lab's `name`; several can be up side by side")
	root.AddCommand(up(name), down(name), status(name), list(), plan(name), build(), ssh(name), execute(name), kubectl(name), unseal(name), secrets(name), machines(name))
	return root
}

func up(name *string) *cobra.Command {
	var options labs.Options
	var node labs.Node
	var user string
	var sudo, bare bool
	var format string
	c := &cobra.Command{
		Use:   "up",
		Short: "Make a lab and print what a plan needs to reach it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			write, err := writer(format)
			if err != nil {
				return err
			}
			shop, say, err := newShop()
			if err != nil {
				return err
			}
			options.Name = *name
			if user != "" {
				options.User = &labs.User{Name: user, Sudo: sudo}
			}
			if !bare {
				options.Node = &node
			}
			if err := engine.Ensure(c.Context()); err != nil {
				return err
			}
			lab, err := labs.Up(c.Context(), options, shop, say)
			if err != nil {
				return err
			}
			return write(c.OutOrStdout(), lab)
		},
	}
	flags := c.Flags()
	flags.StringVar(&options.Hostname, "hostname", "", "the host's own `name` (default: the lab's)")
	flags.BoolVar(&bare, "no-k3s", false, "a bare host, nothing installed")
	flags.StringVar(&node.K3s, "k3s", "assembled", "where K3s comes from: assembled (from upstream parts, by the lab), download, or the `path` of a binary")
	flags.StringVar(&node.Arguments, "install-args", "", "`arguments` for the installer (INSTALL_K3S_EXEC); {ipv4} and {ipv6} stand for the host's addresses")
	flags.StringToStringVar(&node.Environment, "env", nil, "`KEY=VALUE` for the installer; may be repeated")
	flags.StringVar(&node.Config, "config", "", "`file` to install as /etc/rancher/k3s/config.yaml")
	flags.StringVar(&node.ConfigDir, "config-dir", "", "`directory` to install as /etc/rancher/k3s/config.yaml.d")
	flags.StringVar(&node.Prepare, "prepare", "", "shell `script` to run as root on the host before the install")
	flags.BoolVar(&node.Agent, "agent", false, "install an agent instead of a server, and do not start it")
	flags.StringVar(&options.Platform.From, "platform", "demo", "what to deploy: demo, none, or a `directory` with a command named platform or manifests")
	flags.IntVar(&options.Platform.StoreMiB, "store-mib", 300, "`size` of the demo's large volume's contents, in MiB")
	flags.StringVar(&user, "user", "", "make this account too, and have the plan log in with it")
	flags.BoolVar(&sudo, "sudo", true, "the account of --user may use sudo without a password")
	flags.StringVarP(&format, "output", "o", "text", "how to print: text or json")
	return c
}

func down(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a lab and all it left",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return labs.Down(c.Context(), *name) },
	}
}

func status(name *string) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "status",
		Short: "Tell how a lab is and how to reach it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			lab, err := labs.Load(*name)
			if err != nil {
				return err
			}
			state := lab.Inspect(c.Context())
			switch format {
			case "json":
				return writeJSON(c.OutOrStdout(), state)
			case "text":
				fmt.Fprintf(c.OutOrStdout(), "host container: %s\ninternet container: %s\n", state.Host, state.Internet)
				if state.Nodes != "" {
					fmt.Fprintln(c.OutOrStdout(), state.Nodes)
				}
				if lab.OpenBao != nil {
					fmt.Fprintf(c.OutOrStdout(), "OpenBao: %s\n", cmp.Or(state.OpenBao, "no answer"))
				}
				return writeText(c.OutOrStdout(), lab)
			}
			return badFormat(format)
		},
	}
	c.Flags().StringVarP(&format, "output", "o", "text", "how to print: text or json")
	return c
}

func list() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Name the labs that are up",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			names, err := labs.List()
			for _, name := range names {
				fmt.Fprintln(c.OutOrStdout(), name)
			}
			return err
		},
	}
}

func build() *cobra.Command {
	var controlPlane string
	c := &cobra.Command{
		Use:   "build",
		Short: "Build all that labs consist of into the cache (LAB_CACHE), without making one",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			shop, _, err := newShop()
			if err != nil {
				return err
			}
			if err := engine.Ensure(c.Context()); err != nil {
				return err
			}
			if err := shop.All(c.Context()); err != nil || controlPlane == "" {
				return err
			}
			return shop.ControlPlane(c.Context(), controlPlane)
		},
	}
	c.Flags().StringVar(&controlPlane, "control-plane", "", "link the binaries kubernetes, kine and openbao into this `directory` as well")
	return c
}

func ssh(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "ssh [-- COMMAND…]",
		Short: "Log in to the host as a plan would, or run a command there",
		RunE: func(c *cobra.Command, args []string) error {
			lab, err := labs.Load(*name)
			if err != nil {
				return err
			}
			return attached(c.Context(), nil, lab.SSH(args...))
		},
	}
}

func execute(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "exec -- COMMAND…",
		Short: "Run a command in the host as root, past SSH",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			lab, err := labs.Load(*name)
			if err != nil {
				return err
			}
			return attached(c.Context(), nil, append([]string{engine.Command, "exec", "-i", lab.Container}, args...))
		},
	}
}

func kubectl(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl -- ARGUMENTS…",
		Short: "Run kubectl on this machine against the lab's node",
		RunE: func(c *cobra.Command, args []string) error {
			lab, err := labs.Load(*name)
			if err != nil {
				return err
			}
			if lab.Kubectl == "" {
				return fmt.Errorf("lab %s is a bare host; no API runs there", lab.Name)
			}
			return attached(c.Context(), []string{"KUBECONFIG=" + lab.Kubeconfig}, append([]string{lab.Kubectl}, args...))
		},
	}
}

func unseal(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "unseal",
		Short: "Unseal the lab's OpenBao, as its administrator does after every start",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			lab, err := labs.Load(*name)
			if err != nil {
				return err
			}
			return lab.Unseal(c.Context())
		},
	}
}

func secrets(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "secrets",
		Short: "Print all that the lab's OpenBao holds, every version, as JSON lines to compare",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			lab, err := labs.Load(*name)
			if err != nil {
				return err
			}
			return lab.Secrets(c.Context(), c.OutOrStdout())
		},
	}
}

// statusError is how a program ended that ran with this one's terminal; it has said
// why itself.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// attached runs a program with this one's terminal.
func attached(ctx context.Context, environment, line []string) error {
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return statusError(exit.ExitCode())
	}
	return err
}

func newShop() (*parts.Shop, func(string, ...any), error) {
	kept, err := cache.Default()
	if err != nil {
		return nil, nil, err
	}
	source, err := sourceDir()
	if err != nil {
		return nil, nil, err
	}
	start := time.Now()
	say := func(format string, arguments ...any) {
		fmt.Fprintf(os.Stderr, "%5.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, arguments...))
	}
	return &parts.Shop{Cache: kept, Source: source, Say: say}, say, nil
}

// sourceDir is where the lab's sources lie, from which it builds its parts: LAB_SOURCE, or
// a directory lab/ at or above the working directory or this program.
func sourceDir() (string, error) {
	if dir := os.Getenv("LAB_SOURCE"); dir != "" {
		return filepath.Abs(dir)
	}
	var starts []string
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if program, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(program))
	}
	for _, dir := range starts {
		for {
			for _, candidate := range []string{dir, filepath.Join(dir, "lab")} {
				data, err := os.ReadFile(filepath.Join(candidate, "go.mod"))
				if err == nil && strings.HasPrefix(string(data), "module sunbeam.pt/k3s-dualstack/lab\n") {
					return candidate, nil
				}
			}
			if dir == filepath.Dir(dir) {
				break
			}
			dir = filepath.Dir(dir)
		}
	}
	return "", errors.New("the lab's sources are not found at or above the working directory; LAB_SOURCE names their directory (lab/ of the repository)")
}

func writer(format string) (func(io.Writer, *labs.Lab) error, error) {
	switch format {
	case "text":
		return writeText, nil
	case "json":
		return func(w io.Writer, lab *labs.Lab) error { return writeJSON(w, lab) }, nil
	}
	return nil, badFormat(format)
}

func badFormat(format string) error {
	return fmt.Errorf("cannot print as %q; -o takes text or json", format)
}

func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func writeText(w io.Writer, lab *labs.Lab) error {
	rows := [][2]string{
		{"name", lab.Name},
		{"address", lab.Address},
		{"port", fmt.Sprint(lab.Port)},
		{"user", lab.User},
		{"identity file", lab.IdentityFile},
		{"known hosts", lab.KnownHosts},
		{"host", lab.Hostname + " " + lab.Host.IPv4 + " " + lab.Host.IPv6},
		{"internet", strings.Join(lab.Internet.URLs, " ")},
		{"requests seen there", lab.Internet.Log},
		{"install script", lab.InstallScript},
		{"install arguments", lab.InstallArgs},
		{"k3s", lab.K3s},
		{"kubectl", lab.Kubectl},
		{"kubeconfig", lab.Kubeconfig},
		{"platform", strings.Join(lab.Platform, " ")},
		{"platform environment", environment(lab.PlatformEnvironment)},
	}
	if bao := lab.OpenBao; bao != nil {
		rows = append(rows, [2]string{"openbao token", bao.Token}, [2]string{"openbao unseal keys", bao.Keys})
	}
	return writeRows(w, rows)
}

// writeRows prints a table of what there is, without what is empty.
func writeRows(w io.Writer, rows [][2]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if row[1] != "" {
			fmt.Fprintf(table, "%s\t%s\n", row[0], row[1])
		}
	}
	return table.Flush()
}

func environment(variables map[string]string) string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(variables)) {
		pairs = append(pairs, key+"="+variables[key])
	}
	return strings.Join(pairs, " ")
}
