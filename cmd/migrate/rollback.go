package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
	"sunbeam.pt/k3s-dualstack/verify"
)

func rollbackCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "rollback",
		Short: "Take the run back to a checkpoint: by default, to the old cluster",
		Long: strings.TrimSpace(`
Take back what the run did since a checkpoint, and compare the result with what
was there. Without --to it goes to the last state in which the cluster was
whole. First it shows every action, and what does not stay; then it asks.

Before the uninstall, K3s is started again as it was. After it, the old
installation is put back from the backup set, datastore and volumes included.
Nothing is lost: what is replaced is kept aside on the host.

With --via snapshot the host is returned to the snapshot that the run took of it
(spec.snapshot), which takes a reboot; whatever was written to its disks since is lost.

A rollback that failed or was cut off is continued by the same command. After it
'migrate run' begins anew.`),
		Example: `  migrate rollback -f plan.yaml --dry-run    # what would it do, what would be lost?
  migrate rollback -f plan.yaml
  migrate rollback -f plan.yaml --to seal    # the old installation, stopped, as before the uninstall
  migrate rollback -f plan.yaml --via snapshot      # the whole host as it was, by a reboot
  migrate rollback -f plan.yaml --volumes present   # keep what workloads wrote since`,
		Args: cobra.NoArgs,
	}
	file, format := planFlag(c), formatFlag(c)
	yes := c.Flags().BoolP("yes", "y", false, "agree without being asked")
	over := takeOverFlag(c)
	dry := c.Flags().Bool("dry-run", false, "show what would be done and change nothing")
	to := c.Flags().String("to", "", "the `checkpoint` to return to")
	volumes := c.Flags().String("volumes", "backup", "which `contents` of volumes win, backup or present; with backup, what is there is kept aside")
	via := c.Flags().String("via", "", "the `way` back, backup or snapshot (default backup, or that of the rollback under way)")
	destroy := c.Flags().Bool("destroy-newer", false, "with --via snapshot: destroy snapshots that were taken since, where the return needs it (zfs)")
	_ = c.RegisterFlagCompletionFunc("via", cobra.FixedCompletions([]string{steps.ViaBackup, steps.ViaSnapshot}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("volumes", cobra.FixedCompletions([]string{"backup", "present"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("to", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		m, err := load(c, *file)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer m.Close()
		names, err := m.Checkpoints()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		if *volumes != "backup" && *volumes != "present" {
			return usageError{fmt.Errorf("--volumes %q: it is backup or present", *volumes)}
		}
		if *via != "" && *via != steps.ViaBackup && *via != steps.ViaSnapshot {
			return usageError{fmt.Errorf("--via %q: it is backup or snapshot", *via)}
		}
		if *via == steps.ViaSnapshot && *volumes == "present" {
			return usageError{errors.New("--via snapshot --volumes present: the snapshot brings the volumes back with the rest of the host")}
		}
		if *destroy && *via != steps.ViaSnapshot {
			return usageError{errors.New("--destroy-newer: it is for --via snapshot")}
		}
		if *format == "json" && !*dry {
			return usageError{errors.New("--output json: it is for --dry-run")}
		}
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		m.KeepPresent, m.Via, m.DestroyNewer = *volumes == "present", *via, *destroy
		checkpoint := ""
		if *to != "" {
			checkpoint = " --to " + *to
		}
		again := "migrate rollback -f " + *file + checkpoint
		if m.KeepPresent {
			again += " --volumes present"
		}
		if *via != "" {
			again += " --via " + *via
			if *destroy {
				again += " --destroy-newer"
			}
		}
		if *over {
			if *dry {
				return usageError{errors.New("--take-over --dry-run: a dry run changes nothing, and a take-over does")}
			}
			if err := takeOver(c, m, true, *yes); err != nil {
				return err
			}
		}
		if *dry {
			u, err := m.Unwind(c.Context(), *to)
			if err == nil {
				err = m.Written(c.Context(), &u)
			}
			if err != nil {
				return rollbackError(err)
			}
			if *format == "json" {
				return writeJSON(c.OutOrStdout(), u)
			}
			printUnwinding(c.OutOrStdout(), u, true)
			if len(u.Actions) > 0 {
				fmt.Fprintf(c.OutOrStdout(), "\nNothing was changed. To do it: %s\n", again)
				state, err := m.State()
				if err != nil {
					return err
				}
				if u.Via != steps.ViaSnapshot && !steps.Returning(state) {
					fmt.Fprintf(c.OutOrStdout(), "The commands as a script: migrate runbook -f %s%s\n", *file, checkpoint)
				}
			}
			return nil
		}
		out := m.Progress.Writer()
		err = m.Rollback(c.Context(), *to, &undoWatcher{watcher: watcher{w: out}}, func(ctx context.Context, u steps.Unwinding) (bool, error) {
			printUnwinding(out, u, false)
			if *yes || len(u.Actions) == 0 {
				return true, nil
			}
			return ask(ctx, c.InOrStdin(), out, runner.Gate{
				Question: "The cluster on " + u.Host + " is down meanwhile. Type the host's name to go on", Expect: u.Host,
			})
		})
		printChecks(c.OutOrStdout(), m.Unlike)
		w := c.ErrOrStderr()
		var (
			step       *runner.StepError
			unverified *steps.UnverifiedError
			done       *steps.RolledBackError

			unreachable *remote.UnreachableError
		)
		switch {
		case errors.As(err, &done):
			fmt.Fprintf(w, "%v. %s", done, next(done.To, *file))
			return nil
		case err == nil:
			state, err := m.State()
			if err != nil {
				return err
			}
			printAvailability(c, m)
			fmt.Fprintf(w, "\nThe rollback is complete. %s", next(state.RolledBack, *file))
			if left := m.SnapshotLeft(); len(left) > 0 && state.RolledBack != "seal" {
				fmt.Fprintf(w, "The snapshot of the host is kept, and the next run wants its place. To remove it, once you trust the cluster%s: %s\n", map[bool]string{true: ", on the host", false: ", on the laptop"}[m.SnapshotOnHost()], strings.Join(left, "; "))
			}
			return nil
		case errors.As(err, &unverified):
			printAvailability(c, m)
			fmt.Fprintf(w, "\nThe rollback is complete, and the cluster is not as it was: %v, see above. The backup set has what it was: migrate backup list -f %s\n", err, *file)
			return &shownError{err}
		case errors.Is(err, runner.ErrDeclined):
			fmt.Fprintf(w, "\n%s; nothing was changed. To be asked again: %s\n", notAgreed(err), again)
			return &shownError{err}
		case errors.As(err, &step):
			if errors.Is(err, context.Canceled) {
				fmt.Fprintf(w, "\nmigrate: interrupted while taking back step %s\n", step.Step)
			} else {
				fmt.Fprintf(w, "\nmigrate: taking back %v\n", err)
			}
			fmt.Fprintf(w, "To continue: %s\n", again)
			if m.Via == steps.ViaSnapshot {
				fmt.Fprintf(w, "If it cannot finish, by way of the backup set: migrate rollback -f %s%s --via backup\n", *file, checkpoint)
			} else {
				fmt.Fprintf(w, "If it cannot finish, the rest by hand: migrate runbook -f %s%s\n", *file, checkpoint)
			}
			return &shownError{err}
		case errors.Is(err, context.Canceled):
			fmt.Fprintf(w, "\nmigrate: interrupted: %v\nTo continue: %s\n", err, again)
			return &shownError{err}
		case errors.As(err, &unreachable):
			if state, err := m.State(); err == nil && steps.Returning(state) {
				break
			}
			return fmt.Errorf("%w\nIf it stays away, what a rollback would do, by hand: migrate runbook -f %s%s", err, *file, checkpoint)
		}
		return rollbackError(err)
	}
	return c
}

// next is what to type after a rollback to a checkpoint.
func next(checkpoint, file string) string {
	if checkpoint == "seal" {
		return fmt.Sprintf("K3s is stopped, as before the uninstall.\nTo go on from here, with the uninstall: migrate run -f %[1]s\nTo start the old cluster: migrate rollback -f %[1]s\n", file)
	}
	return fmt.Sprintf("To go on from here: migrate run -f %s\n", file)
}

// rollbackError marks what is wrong with the command line.
func rollbackError(err error) error {
	var (
		unknown *steps.UnknownStepError
		reached *runner.CheckpointError
		whole   *steps.WholeError
	)
	if errors.As(err, &unknown) || errors.As(err, &reached) || errors.As(err, &whole) {
		return usageError{err}
	}
	return err
}

// printUnwinding shows what a rollback does, as `plan` shows a run; the commands
// that a person would type are for a dry run.
func printUnwinding(w io.Writer, u steps.Unwinding, commands bool) {
	fmt.Fprintf(w, "Rollback of host %s to checkpoint %s\n", u.Host, u.To)
	if len(u.Actions) == 0 {
		fmt.Fprintln(w, "\nNothing was changed on host or cluster since: there is nothing to take back.")
		return
	}
	step := ""
	var bytes int64
	for _, a := range u.Actions {
		if a.Step != step {
			step = a.Step
			if u.Via == steps.ViaSnapshot {
				fmt.Fprintln(w, "\n  by way of the snapshot")
			} else {
				fmt.Fprintf(w, "\n  taking back %s\n", step)
			}
		}
		fmt.Fprintf(w, "     - [%s] %s%s\n", a.Target, a.Summary, takes(a))
		if commands && a.Command != "" {
			fmt.Fprintf(w, "       $ %s\n", a.Command)
		}
		bytes += a.Bytes
	}
	fmt.Fprintln(w)
	if bytes > 0 {
		fmt.Fprintf(w, "To move: about %s. ", mib(bytes))
	}
	if len(u.Lost) == 0 {
		fmt.Fprintln(w, "Nothing is lost.")
		return
	}
	fmt.Fprintln(w, "What does not stay:")
	for _, l := range u.Lost {
		fmt.Fprintf(w, "  - %s\n", l)
	}
}

// takes is how long the run took for the same, or else how much there is to move.
func takes(a steps.UndoAction) string {
	switch {
	case a.Measured > 0:
		return fmt.Sprintf(" (the like took %s)", a.Measured.Round(100*time.Millisecond))
	case a.Bytes > 0:
		return " (" + mib(a.Bytes) + ")"
	}
	return ""
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// printChecks shows how a rollback's result compares with what was.
func printChecks(w io.Writer, checks []verify.Check) {
	if len(checks) > 0 {
		fmt.Fprintln(w)
	}
	for _, c := range checks {
		mark := "ok  "
		switch c.Status {
		case verify.Fail:
			mark = "FAIL"
		case verify.Skip:
			mark = "skip"
		}
		fmt.Fprintf(w, "%s %s (%s): %s\n", mark, c.Name, c.Target, c.Detail)
		if c.Status == verify.Fail && c.Remedy != "" {
			fmt.Fprintf(w, "     → %s\n", c.Remedy)
		}
	}
}

// undoWatcher prints a rollback as it goes: steps that have nothing to take back
// are passed over in silence.
type undoWatcher struct {
	watcher
	heading string
}

func (o *undoWatcher) StepStarted(s runner.Step, _, _ int) {
	o.heading = fmt.Sprintf("\ntaking back %s (%s)\n", s.Name, s.Title)
}

func (o *undoWatcher) head() {
	fmt.Fprint(o.w, o.heading)
	o.heading = ""
}

func (o *undoWatcher) ActionStarted(s runner.Step, a runner.Action) {
	o.head()
	o.watcher.ActionStarted(s, a)
}

func (o *undoWatcher) ActionSkipped(s runner.Step, a runner.Action, why string) {
	o.head()
	o.watcher.ActionSkipped(s, a, why)
}
