package snapshot

import (
	"context"
	"errors"
	"fmt"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// command takes snapshots with the user's own programs, of which the exit status alone is understood. Their output may
// hold anything: it is shown where the run shows it, and is in no error.
type command struct{ base }

func (command) Problems() []Problem { return nil }

// Outside is the user's to know.
func (command) Outside() []string { return nil }

func (c command) place() Place {
	if c.Plan.Command.On == plans.OnLaptop {
		return OnLaptop
	}
	return OnHost
}

// program is one of the plan's four.
type program struct {
	name string
	argv []string
}

func (c command) programs() []program {
	p := c.Plan.Command
	return []program{{"create", p.Create}, {"status", p.Status}, {"restore", p.Restore}, {"delete", p.Delete}}
}

// Ready looks for the host's programs; those of the laptop are looked for when the plan is read.
func (c command) Ready(ctx context.Context) error {
	if c.place() == OnLaptop {
		return nil
	}
	h, err := c.Host(ctx)
	if err != nil {
		return err
	}
	var missing []error
	for _, p := range c.programs() {
		err := h.Run(ctx, "cd / && "+remote.HasProgram(p.argv[0]))
		var exit *remote.ExitError
		switch {
		case errors.As(err, &exit):
			missing = append(missing, fmt.Errorf("spec.snapshot.command.%s[0]: host %s has no program %q; install it there, or write its path", p.name, h.Name(), p.argv[0]))
		case err != nil:
			return failed(h, "looking for the programs of spec.snapshot.command", err)
		}
	}
	return errors.Join(missing...)
}

// perform runs one of the programs.
func (c command) perform(ctx context.Context, p program) error {
	var err error
	if c.place() == OnLaptop {
		if err = c.Here(ctx, p.argv); err != nil {
			err = fmt.Errorf("laptop: %w", err)
		}
	} else {
		err = c.Job(ctx, "snapshot-"+p.name, "Running spec.snapshot.command."+p.name, "exec "+remote.Quote(p.argv...)+"\n")
	}
	if err != nil {
		return fmt.Errorf("spec.snapshot.command.%s: %w", p.name, err)
	}
	return nil
}

// status asks the status command, anew each time: a job's answer might be an earlier one.
func (c command) status(ctx context.Context) error {
	argv := c.Plan.Command.Status
	if c.place() == OnLaptop {
		if err := c.perform(ctx, program{"status", argv}); err != nil {
			return fmt.Errorf("%w: it does not say that the snapshot is there", err)
		}
		return nil
	}
	h, err := c.Host(ctx)
	if err != nil {
		return err
	}
	said := remote.NewGate(c.Output)
	err = h.Run(ctx, "cd / && exec "+remote.Quote(argv...), remote.Stdout(said), remote.Stderr(said))
	said.Close()
	var exit *remote.ExitError
	if errors.As(err, &exit) { // without what it printed
		err = &remote.ExitError{Code: exit.Code, Signal: exit.Signal}
	}
	if err != nil {
		return fmt.Errorf("spec.snapshot.command.status: %w: it does not say that the snapshot is there", failed(h, "asking for it", err))
	}
	return nil
}

// unused refuses to take a snapshot in the place of an earlier run's.
func (c command) unused(ctx context.Context) error {
	err := c.status(ctx)
	switch {
	case err == nil:
		return errors.New("spec.snapshot.command.status: it says that a snapshot is there already, of an earlier run: remove it with the program of spec.snapshot.command.delete when it is not needed any more, then repeat the command")
	case ctx.Err() != nil || errors.Is(err, remote.ErrConnectionLost):
		return err
	}
	return nil
}

func (c command) look() Operation {
	argv := c.Plan.Command.Status
	return Operation{
		Name: "status", Place: c.place(), Command: remote.Quote(argv...),
		Summary: "Ask the plan's own command whether the snapshot is there", Run: c.status,
	}
}

// operation runs one of the programs.
func (c command) operation(name string, argv []string, summary string) Operation {
	return Operation{
		Name: name, Place: c.place(), Command: remote.Quote(argv...), Summary: summary,
		Run: func(ctx context.Context) error { return c.perform(ctx, program{name, argv}) },
	}
}

func (c command) Take() []Operation {
	p := c.Plan.Command
	// What status says of a snapshot that is being made is not known: an attempt that was cut off is followed to its end,
	// or made again.
	unused := c.look()
	unused.Name, unused.Summary, unused.Run = Unused, "Ask the plan's own command whether a snapshot is there already: one of an earlier run is not taken for this one's", c.unused
	return []Operation{unused, c.operation("create", p.Create, "Take the snapshot with the plan's own command"+c.again()), c.look()}
}

func (c command) Return() []Operation {
	p := c.Plan.Command
	restore := c.operation("restore", p.Restore, "Return to the snapshot with the plan's own command, and wait until the host answers"+c.again())
	restore.Run = func(ctx context.Context) error {
		before := c.bootID(ctx)
		err := c.perform(ctx, program{"restore", p.Restore})
		if errors.Is(err, remote.ErrJobLost) || errors.Is(err, remote.ErrNoJob) || errors.Is(err, remote.ErrConnectionLost) {
			// The restart that the command brings about ends it, too. Nothing else may.
			return answers(ctx, c.Ask, func(now string) bool { return now != before })
		}
		if err != nil {
			return err
		}
		return answers(ctx, c.Ask, func(string) bool { return true })
	}
	return []Operation{c.look(), restore}
}

func (c command) Remove() []Operation {
	return []Operation{c.operation("delete", c.Plan.Command.Delete, "Remove the snapshot with the plan's own command")}
}

// again says in the plan what Reach does.
func (c command) again() string {
	if c.place() != OnLaptop {
		return ""
	}
	return "; when that is cut off and the host does not answer, the next run or rollback runs it again before all else"
}

// Reach runs the program again that was cut off while it had the host away, which only one on the laptop can have.
func (c command) Reach(ctx context.Context, cut string) error {
	p := program{"create", c.Plan.Command.Create}
	switch {
	case c.place() != OnLaptop || c.bootID(ctx) != "":
		return nil
	case cut == "restore":
		p = program{"restore", c.Plan.Command.Restore}
	case cut != "create":
		return nil
	}
	fmt.Fprintf(c.Progress.Writer(), "   note: host %s does not answer, and spec.snapshot.command.%s was cut off: it is run again\n", c.Server.Name, p.name)
	if err := c.perform(ctx, p); err != nil {
		return err
	}
	return answers(ctx, c.Ask, func(string) bool { return true })
}
