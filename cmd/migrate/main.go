// Command migrate takes a K3s cluster that was installed IPv4-only through the
// rebuild that makes it dual-stack, from an admin's laptop, over SSH.
//
// This package is the command line alone: flags in, one call into the packages,
// text out. Results go to stdout, progress and questions to stderr.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

// The exit statuses.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInhibited   = 3
	exitUnverified  = 4
	exitDeclined    = 5
	exitInterrupted = 130
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is main without the process: it returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := interruptible(stderr)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(&keyboard{in: stdin})
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	status := exitStatus(err)
	var shown *shownError
	if !errors.As(err, &shown) {
		fmt.Fprintf(stderr, "migrate: %v\n", err)
	}
	if status == exitUsage && isUsage(err) {
		fmt.Fprintf(stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return status
}

// interruptible ends the context at the first interrupt, so that what runs can
// stop in good order, and the process at the second.
func interruptible(stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
			return
		case <-signals:
			fmt.Fprintln(stderr, "\nmigrate: stopping; interrupt once more to stop at once (both can be continued)")
			cancel()
		}
		select {
		case <-done:
		case <-signals:
			os.Exit(exitInterrupted)
		}
	}()
	return ctx, func() { signal.Stop(signals); close(done); cancel() }
}

// usageError marks what cobra says of flags and arguments.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func isUsage(err error) bool {
	var u usageError
	return errors.As(err, &u)
}

// shownError marks an error whose text a person has seen already.
type shownError struct{ error }

func (e *shownError) Unwrap() error { return e.error }

func exitStatus(err error) int {
	var (
		inhibited  *steps.InhibitedError
		unverified *steps.UnverifiedError
		invalid    *plans.InvalidError
		syntax     *plans.SyntaxError
	)
	switch {
	case isUsage(err), errors.As(err, &invalid), errors.As(err, &syntax):
		return exitUsage
	case errors.As(err, &inhibited):
		return exitInhibited
	case errors.As(err, &unverified):
		return exitUnverified
	case errors.Is(err, runner.ErrDeclined):
		return exitDeclined
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "migrate",
		Short: "Make an IPv4-only K3s cluster dual-stack",
		Long: strings.TrimSpace(`
migrate takes a K3s cluster that was installed IPv4-only through the rebuild
that makes it dual-stack, and brings everything back: volumes, TLS secrets, OpenBao, the
platform. It runs on your laptop and reaches the host over SSH.

Nothing is destroyed before every artifact it endangers is on the laptop, read
again, checksummed, decrypted and opened. A run can be stopped or cut off
anywhere; the same command continues it.`),
		Example: `  migrate init --host root@HOST   # look at the host, write plan.yaml
  migrate check -f plan.yaml      # does anything stand in the way?
  migrate plan -f plan.yaml       # look at the host, print every step, change nothing
  migrate run -f plan.yaml        # do it, or continue it
  migrate status -f plan.yaml     # where is it?
  migrate rollback -f plan.yaml   # back to the old cluster
  migrate verify -f plan.yaml     # does dual-stack work?
  migrate report -f plan.yaml     # what was done, as a document`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(initCommand(), checkCommand(), driftCommand(), planCommand(), runCommand(), rollbackCommand(), runbookCommand(), statusCommand(), backupCommand(), openBaoCommand(), manifestsCommand(), verifyCommand(), reportCommand(), schemaCommand(), versionCommand())
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"})
	completion.RunE = root.RunE // without it, any argument would be taken
	for _, c := range append(append(root.Commands(), completion.Commands()...), root) {
		args := c.Args
		if args == nil {
			continue // help's own
		}
		c.Args = func(c *cobra.Command, a []string) error {
			if err := args(c, a); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	return root
}
