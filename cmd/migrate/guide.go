package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

// errStopped ends a run where a person asked it to stop.
var errStopped = errors.New("stopped as asked")

// guide takes a person through a run: before each phase a screen that tells what
// is about to happen, and waits unless the cluster is down; and a pause whenever they
// ask for one.
type guide struct {
	m     *steps.Migration
	k     *keyboard
	out   io.Writer
	file  string // the plan's
	until string
	began time.Time // when this command did

	phase  string      // the one that was agreed to
	wanted atomic.Bool // a pause was asked for
}

// heard takes what is typed while the run goes on.
func (g *guide) heard(line string) {
	g.m.Progress.Typed()
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "p":
		g.wanted.Store(true)
		fmt.Fprintln(g.out, "   Pausing as soon as what is under way has ended.")
	case "":
	default:
		fmt.Fprintln(g.out, "   p and Enter pauses; Ctrl-C interrupts. Both can be continued.")
	}
}

// Wants is true at a phase's beginning, and where a pause was asked for.
func (g *guide) Wants(s runner.Step, a *runner.Action) bool {
	return a == nil && s.Phase != g.phase || g.wanted.Load()
}

// Pause shows where the run is, and waits for a person.
func (g *guide) Pause(ctx context.Context, s runner.Step, a *runner.Action) error {
	g.wanted.Store(false)
	state, err := g.m.State()
	if err != nil {
		return err
	}
	e := g.estimate(ctx, g.left(state))
	if s.Phase == g.phase {
		p := pausedScreen{Step: s, Number: g.number(s), Done: completed(state), Of: len(g.m.Sequence()), Pace: g.pace(e)}
		if a != nil {
			p.Next = a.Target.String() + ": " + a.Summary
		}
		p.Condition, _ = steps.Condition(state)
		fmt.Fprintf(g.out, "\n%s", p)
		return g.choose(ctx, "Enter: continue   s: stop here   ?: the actions of this phase", s.Phase)
	}
	p := g.phaseScreen(s, state, e)
	goOn := "begin"
	if p.Continues != "" {
		goOn = "continue"
	}
	fmt.Fprintf(g.out, "\n%s", p)
	if _, down := steps.Condition(state); down && g.phase != "" {
		// Who agreed to the downtime is not to be waited for in it.
		fmt.Fprintln(g.out, "It goes on by itself, as the cluster is down; p and Enter pauses.")
		g.phase = s.Phase
		return nil
	}
	if err := g.choose(ctx, "Enter: "+goOn+"   s: stop here   ?: the actions of this phase", s.Phase); err != nil {
		return err
	}
	if g.phase == "" {
		fmt.Fprintln(g.out, "p and Enter pauses, Ctrl-C interrupts; both can be continued.")
	}
	g.phase = s.Phase
	return nil
}

// choose waits for one of the menu's choices, and shows the actions of the phase.
func (g *guide) choose(ctx context.Context, menu, phase string) error {
	for {
		fmt.Fprintln(g.out, menu)
		switch answer, err := g.answer(ctx); {
		case err != nil:
			return err
		case answer == "":
			return nil
		case answer == "s":
			return errStopped
		case answer == "?":
			if err := g.page(ctx, g.actions(ctx, phase)); err != nil {
				return err
			}
		default:
			fmt.Fprintf(g.out, "%q is none of these.\n", answer)
		}
	}
}

// answer is a line typed behind a mark. When there is nobody left to type, the run
// stops: the same command continues it.
func (g *guide) answer(ctx context.Context) (string, error) {
	line, err := g.line(ctx)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(err, io.EOF):
		return "", errStopped
	case err != nil:
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	return strings.ToLower(strings.TrimSpace(line)), nil
}

// line is what is typed behind a mark. Who listens is silent before the mark is seen:
// nothing of what is typed behind it is theirs.
func (g *guide) line(ctx context.Context) (string, error) {
	defer g.k.alone()()
	defer g.m.Progress.Question("> ")()
	return g.k.line(ctx)
}

// page shows lines, a screen at a time.
func (g *guide) page(ctx context.Context, lines []string) error {
	for len(lines) > 0 {
		n := min(len(lines), screenRows-3)
		fmt.Fprintln(g.out, strings.Join(lines[:n], "\n"))
		if lines = lines[n:]; len(lines) == 0 {
			break
		}
		fmt.Fprintln(g.out, "Enter: more   b: back")
		answer, err := g.answer(ctx)
		if err != nil {
			return err
		}
		if answer == "b" {
			break
		}
	}
	fmt.Fprintln(g.out)
	return nil
}

// left are the steps up to where the run is to stop that are not complete.
func (g *guide) left(state runner.State) (left []runner.Step) {
	for _, s := range g.through() {
		if !state.StepState(s.Name).Complete {
			left = append(left, s)
		}
	}
	return left
}

// through are the steps up to where the run is to stop.
func (g *guide) through() []runner.Step {
	sequence := g.m.Sequence()
	for i, s := range sequence {
		if s.Name == g.until {
			return sequence[:i+1]
		}
	}
	return sequence
}

// estimate is nil as long as the facts were not taken from which it is computed. It is for
// information: what hinders it, the run comes upon by itself.
func (g *guide) estimate(ctx context.Context, of []runner.Step) *steps.Estimate {
	if g.m.Facts == nil {
		return nil
	}
	planned, err := runner.Preview(ctx, of)
	if err != nil {
		return nil
	}
	e, err := g.m.Estimate(ctx, planned)
	if err != nil {
		return nil
	}
	return &e
}

// pace is how long the run has taken, and about how long it still takes.
func (g *guide) pace(e *steps.Estimate) string {
	text := "elapsed " + time.Since(g.began).Round(time.Second).String()
	if e != nil && e.Left > 0 {
		text += ", about " + steps.About(e.Left) + " left"
	}
	return text
}

// number is the step's place in the sequence, from 1.
func (g *guide) number(s runner.Step) int {
	for i, x := range g.m.Sequence() {
		if x.Name == s.Name {
			return i + 1
		}
	}
	return 0
}

func completed(state runner.State) (n int) {
	for _, s := range state.Steps {
		if s.Complete {
			n++
		}
	}
	return n
}

// actions lists what the phase does, a line or more for each.
func (g *guide) actions(ctx context.Context, phase string) []string {
	var in []runner.Step
	for _, s := range g.through() {
		if s.Phase == phase {
			in = append(in, s)
		}
	}
	planned, err := runner.Preview(ctx, in)
	if err != nil {
		return []string{"The actions cannot be computed yet: " + err.Error()}
	}
	var b strings.Builder
	for _, s := range planned {
		fmt.Fprintf(&b, "%s: %s\n", s.Name, s.Title)
		for _, a := range s.Actions {
			wrap(&b, "  - ", a.Target.String()+": "+a.Summary)
		}
	}
	wrap(&b, "", "Their commands: migrate plan -f "+remote.Quote(g.file))
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// phaseScreen tells of the phase that begins, or continues, with step s.
func (g *guide) phaseScreen(s runner.Step, state runner.State, e *steps.Estimate) phaseScreen {
	phases := steps.Phases()
	p := phaseScreen{Of: len(phases)}
	for i, x := range phases {
		if x.Name == s.Phase {
			p.Phase, p.Number = x, i+1
		}
	}
	if n := completed(state); g.phase == "" && n > 0 {
		condition, _ := steps.Condition(state)
		p.Continues = fmt.Sprintf("The run of %s, with %d of %d steps done. %s", state.Began.Local().Format(time.DateTime), n, len(g.m.Sequence()), condition)
	}
	begun := map[string]bool{}
	for _, x := range state.Steps {
		begun[x.Step] = true
	}
	through := g.through()
	if g.until != "" {
		p.Until = through[len(through)-1].Name
	}
	for i, x := range through {
		if x.Phase != s.Phase {
			continue
		}
		line := stepLine{Number: i + 1, Name: x.Name, Title: x.Title}
		switch {
		case state.StepState(x.Name).Complete:
			line.State = "done"
		case begun[x.Name]:
			line.State = "begun"
		case e != nil:
			line.State = "~" + steps.About(e.Steps[x.Name].Duration)
		}
		p.Steps = append(p.Steps, line)
	}
	p.Pace = g.pace(e)
	return p
}

// gate asks for the host's name, having shown what there is to go on. It is the
// same where nobody is guided.
func (g *guide) gate(ctx context.Context, gate runner.Gate) (bool, error) {
	set, err := g.m.Set()
	if err != nil {
		return false, err
	}
	l := listSet(set)
	p := gateScreen{Host: gate.Expect, Dir: l.Dir, Artifacts: len(l.Artifacts), Bytes: l.Size, Question: gate.Question + " (" + gate.Expect + "):"}
	state, err := g.m.State()
	if err != nil {
		return false, err
	}
	if proof, ok := state.ActionState("gate", "prove"); ok {
		p.Proven = proof.Time
	}
	if e := g.estimate(ctx, g.m.Sequence()); e != nil {
		p.API, p.Workloads = e.APIDowntime, e.Downtime
	}
	fmt.Fprintf(g.out, "\n%s", p)
	answer, err := g.line(ctx)
	return agreed(ctx, answer, err, gate)
}

// summary is what the run did, from its journal.
func (g *guide) summary(state runner.State) summaryScreen {
	p := summaryScreen{File: g.file, Name: g.m.Plan.Metadata.Name, SetDir: g.m.SetDir(), Done: completed(state), Of: len(g.m.Sequence()), Began: state.Began, Ended: state.Last}
	if _, err := os.Stat(p.SetDir); err != nil {
		p.SetDir = "" // it was removed since
	}
	for _, a := range state.Actions {
		if a.Status == runner.Done && a.Step == "volumes" && strings.HasPrefix(a.Action, "volume ") {
			p.Volumes++
		}
	}
	if g.m.Facts != nil {
		p.Bytes = g.m.Facts.VolumeBytes()
	}
	var patched struct{ Patched []string }
	if ok, err := state.Data("services", "patch", &patched); ok && err == nil {
		p.Services = len(patched.Patched)
	}
	var verified struct{ Checks int }
	if ok, err := state.Data("verify", "verify", &verified); ok && err == nil {
		p.Checks = verified.Checks
	}
	return p
}

// stopped tells where the run was stopped, and how to go on.
func (g *guide) stopped(w io.Writer, err error, again string) error {
	where := ""
	var step *runner.StepError
	if errors.As(err, &step) {
		where = " before step " + step.Step
		if step.Action != "" {
			where = fmt.Sprintf(" in step %s, before action %s", step.Step, step.Action)
		}
	}
	state, err := g.m.State()
	if err != nil {
		return err
	}
	condition, _ := steps.Condition(state)
	fmt.Fprintf(w, "\nStopped%s, as asked.\n%s\nTo go on: %s\n", where, condition, again)
	if g.m.WayBack() != "" {
		fmt.Fprintf(w, "To have the old cluster back instead: migrate rollback -f %s\n", remote.Quote(g.file))
	}
	return nil
}
