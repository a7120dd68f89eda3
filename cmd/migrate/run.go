package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

func runCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "run [FILE]",
		Short: "Perform the migration, or continue it",
		Long: strings.TrimSpace(`
Perform every step of the plan, or those that are left: a run that failed, was
interrupted or cut off is continued by the same command. It asks once, before
the downtime, when the backup set is complete and proven; --yes answers.

On a terminal, and without --yes, it takes you through: a screen before each phase
says what happens and why, and waits, but not in the downtime. Meanwhile p and Enter
pauses it when what is under way has ended. Stopped at a screen or in a pause it ends with status 0, as with --until.

With FILE, which 'migrate plan --out FILE' saved, it does what that plan showed: it
looks anew at first, and refuses, with the differences, when plan, host or cluster
are no longer the same. A run that began from FILE is continued with it, too.

With --take-over a run that another laptop began is continued here, from the
journal that the host keeps, after showing who has it. Copy the backup set here
first; the message says from where when it is missing. The other laptop's run stops
when it notices.`),
		Example: `  migrate run -f plan.yaml
  migrate run shop.saved                  # what was saved, or nothing
  migrate run -f plan.yaml --until gate   # back up and prove the set, no downtime
  migrate run -f plan.yaml --yes          # for scripts: no question
  migrate run -f plan.yaml --take-over    # continue what another laptop began
  migrate run -f plan.yaml --waive host.space='the disk is grown tonight'`,
		Args: cobra.MaximumNArgs(1),
	}
	file := planFlag(c)
	yes := c.Flags().BoolP("yes", "y", false, "agree at the gate without being asked")
	over, waive := takeOverFlag(c), waiveFlag(c)
	until := c.Flags().String("until", "", "stop after this `step`")
	_ = c.RegisterFlagCompletionFunc("until", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return steps.Names(), cobra.ShellCompDirectiveNoFileComp
	})
	c.RunE = func(c *cobra.Command, args []string) error {
		waivers, err := parseWaivers(*waive)
		if err != nil {
			return err
		}
		saved, err := readSaved(c, args, file)
		if err != nil {
			return err
		}
		m, err := load(c, *file)
		if err != nil {
			return err
		}
		defer m.Close()
		m.Waivers = waivers
		again := "migrate run -f " + remote.Quote(*file)
		if saved != nil {
			again = "migrate run " + remote.Quote(args[0])
		}
		out := m.Progress.Writer()
		if *over {
			if err := takeOver(c, m, false, *yes); err != nil {
				return err
			}
		}
		if saved != nil {
			if err := holdTo(c, m, saved, args[0], *file); err != nil {
				return err
			}
		}
		if begun, err := m.Begun(); err == nil && begun && len(waivers) > 0 {
			fmt.Fprintln(out, "note: the run has passed preflight before; --waive changes nothing any more")
		}
		g := &guide{m: m, k: typedAt(c.InOrStdin()), out: out, file: *file, until: *until, began: time.Now()}
		guided := !*yes && isTerminal(c.InOrStdin()) && isTerminal(c.ErrOrStderr())
		if guided {
			m.Pauser = g
			defer g.k.listen(g.heard)()
		}
		err = m.Run(c.Context(), *until, &paced{watcher: watcher{w: out}, g: g, ctx: c.Context(), fold: guided}, func(ctx context.Context, gate runner.Gate) (bool, error) {
			if *yes {
				return true, nil
			}
			return g.gate(ctx, gate)
		})
		var inhibited *steps.InhibitedError
		if errors.As(err, &inhibited) {
			printFindings(c.ErrOrStderr(), inhibited.Findings)
		}
		if m.Report != nil {
			if err := printReport(c, *m.Report, "text"); err != nil {
				return err
			}
		}
		var unknown *steps.UnknownStepError
		switch {
		case errors.As(err, &unknown):
			return usageError{fmt.Errorf("--until: %w", err)}
		case err == nil && *until != "":
			fmt.Fprintf(c.ErrOrStderr(), "\nStopped after %s, as asked. To go on: %s\n", *until, again)
		case err == nil:
			printAvailability(c, m)
			state, err := m.State()
			if err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "\n%s", g.summary(state))
		case errors.Is(err, errStopped):
			return g.stopped(c.ErrOrStderr(), err, again)
		case errors.Is(err, runner.ErrDeclined):
			fmt.Fprintf(c.ErrOrStderr(), "\n%s; the cluster runs as before and the backup set is kept. To be asked again: %s\n", notAgreed(err), again)
			return &shownError{err}
		case inhibited != nil:
		default:
			var back *runner.RollingBackError
			if errors.As(err, &back) {
				return fmt.Errorf("%w: migrate rollback -f %s", err, remote.Quote(*file))
			}
			var step *runner.StepError
			var unreachable *remote.UnreachableError
			begun, _ := m.Begun()
			cut := errors.Is(err, remote.ErrConnectionLost) || begun && errors.As(err, &unreachable)
			if !errors.As(err, &step) && !cut {
				return err // nothing was begun, or the way on is in the message
			}
			w := c.ErrOrStderr()
			if step != nil && errors.Is(err, context.Canceled) {
				fmt.Fprintf(w, "\nmigrate: interrupted in step %s\n", step.Step)
			} else {
				fmt.Fprintf(w, "\nmigrate: %v\n", err)
			}
			fmt.Fprintf(w, "To see where it is: migrate status -f %s\nTo continue: %s\n", remote.Quote(*file), again)
			if m.WayBack() != "" {
				fmt.Fprintf(w, "To have the old cluster back instead: migrate rollback -f %s\n", remote.Quote(*file))
			}
			return &shownError{err}
		}
		return err
	}
	return c
}

// takeOverFlag adds --take-over to a command.
func takeOverFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("take-over", false, "take the run over from the laptop that has it, after showing which")
}

// takeOver makes the run this laptop's, or with back its rollback, once a person agreed.
func takeOver(c *cobra.Command, m *steps.Migration, back, yes bool) error {
	out := m.Progress.Writer()
	return m.TakeOver(c.Context(), back, func(ctx context.Context, claim steps.Claim) (bool, error) {
		printClaim(out, claim)
		if yes {
			return true, nil
		}
		return ask(ctx, c.InOrStdin(), out, runner.Gate{
			Question: "Two laptops must not go on with one run. Type the host's name to take it over", Expect: claim.Host,
		})
	})
}

// printClaim shows who has a run, and how far it is.
func printClaim(w io.Writer, c steps.Claim) {
	fmt.Fprintf(w, "Taking over the run on host %s\n", c.Host)
	if c.Holder == nil {
		fmt.Fprintln(w, "  lock     nobody holds it: the run ended, or was stopped")
	} else {
		fmt.Fprintf(w, "  lock     held by %s on %s for %s (process %d, work directory %s)\n", c.Holder.User, c.Holder.Host, c.LockAge, c.Holder.PID, c.WorkDir)
		if c.LockAge < time.Minute || c.RecordAge < time.Minute {
			fmt.Fprintln(w, "           it may be alive: it stops when it notices, which can take some seconds")
		}
	}
	if c.Last == "" {
		fmt.Fprintln(w, "  journal  none to continue: a run begins here")
		return
	}
	fmt.Fprintf(w, "  journal  %d records, the last %s ago: %s\n", c.Records, c.RecordAge, c.Last)
	if c.Anew {
		fmt.Fprintln(w, "  backup   not here; nothing was stopped yet, so that a new run begins, with a backup of its own")
	}
}

// ask puts the gate's question and takes the expected word alone for a yes.
func ask(ctx context.Context, in io.Reader, out io.Writer, g runner.Gate) (bool, error) {
	fmt.Fprintf(out, "\n%s (%s): \n", g.Question, g.Expect)
	answer, err := typedAt(in).ask(ctx)
	return agreed(ctx, answer, err, g)
}

// agreed judges what was answered to a gate's question.
func agreed(ctx context.Context, answer string, err error, g runner.Gate) (bool, error) {
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case err != nil:
		return false, fmt.Errorf("%w: %w", runner.ErrDeclined, errNobody)
	}
	return strings.TrimSpace(answer) == g.Expect, nil
}

var errNobody = errors.New("there is nobody to answer; --yes agrees beforehand")

// notAgreed says why a question ended a run.
func notAgreed(err error) string {
	if errors.Is(err, errNobody) {
		return "Not agreed: " + errNobody.Error()
	}
	return "Not agreed"
}

// watcher prints a run as it goes.
type watcher struct{ w io.Writer }

func (o *watcher) StepStarted(s runner.Step, n, of int) {
	fmt.Fprintf(o.w, "\n[%2d/%d] %s: %s\n", n, of, s.Name, s.Title)
}
func (o *watcher) ActionStarted(_ runner.Step, a runner.Action) {
	fmt.Fprintf(o.w, "   …  %s: %s\n", a.Target, a.Summary)
}
func (o *watcher) ActionDone(_ runner.Step, a runner.Action, took time.Duration) {
	fmt.Fprintf(o.w, "   ok %s (%s)\n", a.Name, took.Round(100*time.Millisecond))
}
func (o *watcher) ActionSkipped(_ runner.Step, a runner.Action, why string) {
	fmt.Fprintf(o.w, "   ok %s (%s)\n", a.Name, why)
}
func (o *watcher) ActionFailed(_ runner.Step, a runner.Action, err error) {
	if errors.Is(err, context.Canceled) {
		fmt.Fprintf(o.w, "   stopped %s\n", a.Name)
		return
	}
	fmt.Fprintf(o.w, "   FAILED %s\n", a.Name)
}
func (o *watcher) StepDone(runner.Step) {}
func (o *watcher) Notice(text string)   { fmt.Fprintf(o.w, "   note: %s\n", text) }

// paced tells with each step how long the run has taken, and about how long it
// still takes.
type paced struct {
	watcher
	g    *guide
	ctx  context.Context
	fold bool // lines are broken where the screen ends
}

func (o *paced) StepStarted(s runner.Step, n, of int) {
	o.watcher.StepStarted(s, n, of)
	state, err := o.g.m.State()
	if err != nil {
		return // the run comes upon it
	}
	fmt.Fprintf(o.w, "        %s\n", o.g.pace(o.g.estimate(o.ctx, o.g.left(state))))
}

// StepDone shows what preflight warns of, where it has passed.
func (o *paced) StepDone(s runner.Step) {
	if s.Name != "preflight" {
		return
	}
	var b strings.Builder
	for _, f := range o.g.m.Findings {
		if f.Severity != preflight.Warning {
			continue
		}
		if !o.fold {
			printFindings(&b, []preflight.Finding{f})
			continue
		}
		wrap(&b, "  "+string(f.Severity)+"  ", f.ID+": "+f.Detail)
		wrap(&b, "           → ", f.Remedy)
	}
	fmt.Fprint(o.w, b.String())
}

func (o *paced) ActionStarted(s runner.Step, a runner.Action) {
	if !o.fold {
		o.watcher.ActionStarted(s, a)
		return
	}
	var b strings.Builder
	wrap(&b, "   …  ", a.Target.String()+": "+a.Summary)
	fmt.Fprint(o.w, b.String())
}
