package main

import (
	"fmt"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

// screenRows are those of the terminal that every screen fits on, its menu and the
// line that is typed included; it has as many columns as wrap fills.
const screenRows = 24

// phaseScreen is shown before a phase begins or is continued.
type phaseScreen struct {
	Phase      steps.Phase
	Number, Of int
	Continues  string // where a run stands that another command began
	Steps      []stepLine
	Until      string // the step after which the run is to stop
	Pace       string
}

// stepLine is a step in a list; State is "done", "begun", about how long it takes, or "".
type stepLine struct {
	Number             int
	Name, Title, State string
}

func (p phaseScreen) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "PHASE %d of %d: %s\n\n", p.Number, p.Of, p.Phase.Name)
	for _, part := range []struct{ label, text string }{
		{"Continued", p.Continues},
		{"What", p.Phase.What},
		{"Why", p.Phase.Why},
		{"Meanwhile", p.Phase.Meanwhile},
		{"If it fails", p.Phase.Failure},
	} {
		if part.text == "" || part.label == "Why" && p.Continues != "" {
			continue // who continues has read why
		}
		wrap(&b, fmt.Sprintf("%-12s ", part.label), part.text)
	}
	b.WriteString("\n")
	for _, s := range p.Steps {
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %2d. %-9s %-52s %s", s.Number, s.Name, s.Title, s.State), " ") + "\n")
	}
	b.WriteString("\n" + p.Pace)
	if p.Until != "" {
		fmt.Fprintf(&b, "; it stops after %s", p.Until)
	}
	b.WriteString("\n\n")
	return b.String()
}

// pausedScreen is shown in a pause within a phase.
type pausedScreen struct {
	Step      runner.Step
	Number    int
	Next      string // what the action does that is next; "" before a step
	Done, Of  int
	Condition string
	Pace      string
}

func (p pausedScreen) String() string {
	var b strings.Builder
	where := "before"
	if p.Next != "" {
		where = "in"
	}
	wrap(&b, "PAUSED ", fmt.Sprintf("%s step %d, %s: %s", where, p.Number, p.Step.Name, p.Step.Title))
	b.WriteString("\n")
	if p.Next != "" {
		wrap(&b, fmt.Sprintf("%-12s ", "Next"), p.Next)
	}
	wrap(&b, fmt.Sprintf("%-12s ", "The cluster"), p.Condition)
	wrap(&b, fmt.Sprintf("%-12s ", "The run"), fmt.Sprintf("%d of %d steps are done; %s. It keeps its connection and its locks in the pause. Stopped here, it is continued by the same command.", p.Done, p.Of, p.Pace))
	b.WriteString("\n")
	return b.String()
}

// gateScreen is shown before the downtime, above the question for the host's name.
type gateScreen struct {
	Host, Dir      string
	Artifacts      int
	Bytes          int64
	Proven         time.Time
	API, Workloads time.Duration // about how long they are away; 0: not known
	Question       string
}

func (p gateScreen) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "GATE: the downtime of %s begins\n\n", p.Host)
	part := func(label, text string) { wrap(&b, fmt.Sprintf("%-12s ", label), text) }
	part("Kept", fmt.Sprintf("%s, %s at rest, encrypted, in %s", count(p.Artifacts, "artifact"), mib(p.Bytes), p.Dir))
	if !p.Proven.IsZero() {
		part("Proven", fmt.Sprintf("at %s: each was read again, summed, decrypted and opened", p.Proven.Local().Format(time.TimeOnly)))
	}
	if p.Workloads > 0 {
		part("Away", fmt.Sprintf("the API for about %s, workloads for about %s; longer where images are pulled from afar", steps.About(p.API), steps.About(p.Workloads)))
	}
	part("Way back", "migrate rollback starts the old cluster again; from the uninstall on it puts it back from the backup set first")
	b.WriteString("\n")
	for line := range strings.SplitSeq(p.Question, "\n") {
		wrap(&b, "", line)
	}
	return b.String()
}

// summaryScreen is shown when the run is complete.
type summaryScreen struct {
	File, Name, SetDir string
	Done, Of           int
	Began, Ended       time.Time
	Volumes            int
	Bytes              int64
	Services, Checks   int
}

func (p summaryScreen) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "The migration is complete: %s is dual-stack.\n\n", p.Name)
	part := func(label, text string) { wrap(&b, fmt.Sprintf("%-12s ", label), text) }
	part("Steps", fmt.Sprintf("%d of %d, from %s to %s (%s)", p.Done, p.Of, p.Began.Local().Format(time.DateTime), p.Ended.Local().Format(time.TimeOnly), p.Ended.Sub(p.Began).Round(time.Second)))
	part("Volumes", fmt.Sprintf("%d brought back, %s", p.Volumes, mib(p.Bytes)))
	part("Services", fmt.Sprintf("%d patched", p.Services))
	part("Verified", fmt.Sprintf("by %s", count(p.Checks, "check")))
	if p.SetDir != "" {
		part("Backup set", fmt.Sprintf("kept in %s: it holds the cluster's secrets, encrypted; remove it when you trust the new cluster", p.SetDir))
	}
	b.WriteString("\nNext\n")
	next := func(command, what string) {
		fmt.Fprintf(&b, "  %s\n", command)
		wrap(&b, "      ", what)
	}
	next("migrate verify -f "+p.File, "looks again, at any time")
	next("migrate report -f "+p.File, "writes what was done, as a document")
	next("migrate manifests DIR…", "sets ipFamilyPolicy at the source, too: a Service that is created anew from there has one family else")
	if p.SetDir != "" {
		next("migrate rollback -f "+p.File+" --to protect", "takes you back to the old cluster, as long as the backup set is there")
	}
	return b.String()
}
