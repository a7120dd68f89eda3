package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
	"sunbeam.pt/k3s-dualstack/survey"
)

// print shows the plan as text for a terminal.
func (p preview) print(w io.Writer, file string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Plan %s: %s\n", p.Name, becomes)
	for _, l := range p.head() {
		wrap(&b, fmt.Sprintf("  %-14s", l.label), l.text)
	}
	if p.Begun {
		fmt.Fprintf(&b, "\nA run of this plan has begun; to see how far it is: migrate status -f %s\n", file)
	}
	section := func(title string, rows [][]string) {
		if len(rows) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n%s\n", title)
		t := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
		for _, r := range rows {
			fmt.Fprintln(t, "  "+strings.Join(r, "\t"))
		}
		t.Flush()
	}
	section("Settings of K3s", p.settings())
	section("Volumes", p.volumes())
	if bao := p.Facts.OpenBao; bao != nil && bao.Problem == "" {
		printOpenBao(&b, *bao)
	}
	section("Services", p.services())

	phase := ""
	for i, s := range p.Steps {
		if s.Phase != phase {
			phase = s.Phase
			fmt.Fprintf(&b, "\n%s\n", strings.ToUpper(phase))
		}
		wrap(&b, fmt.Sprintf("%3d. %-10s ", i+1, s.Name), s.Title+" ("+p.takes(s.Name)+")")
		if s.Gate != nil {
			fmt.Fprintf(&b, "     %-10s ? asks before it begins; the host's name has to be typed\n", "")
		}
		for _, a := range s.Actions {
			wrap(&b, "     - ", fmt.Sprintf("[%s] %s", a.Target, a.Summary))
			if a.Command != "" {
				fmt.Fprintf(&b, "       $ %s\n", p.typed(a.Command))
			}
		}
	}

	fmt.Fprintln(&b, "\nThe way back, from a failure or by choice")
	for _, r := range p.returns() {
		wrap(&b, fmt.Sprintf("  %-12s", r.steps), r.text)
	}
	if len(p.Findings) > 0 {
		fmt.Fprintln(&b, "\nFindings")
		printFindings(&b, p.Findings)
	}
	intro, command := p.next(file)
	fmt.Fprintln(&b, "\n"+strings.TrimSpace("Nothing was changed. "+intro+" "+command))
	_, err := io.WriteString(w, b.String())
	return err
}

// next is what is to be done with the plan as it is, and the command that does, if any.
func (p preview) next(file string) (intro, command string) {
	run, back := "migrate run -f "+remote.Quote(file), "migrate rollback -f "+remote.Quote(file)
	switch {
	case p.forbidden():
		return "The inhibitors above forbid the migration.", ""
	case p.state.Rollback != nil:
		return "A rollback is under way; to continue it:", back
	case p.state.Finished:
		return "The run is complete.", ""
	case p.Begun:
		return "To continue the run:", run
	}
	return "To do it:", run
}

const becomes = "an IPv4-only K3s becomes dual-stack"

// forbidden tells whether findings keep a run from beginning.
func (p preview) forbidden() bool { return preflight.Inhibited(p.Findings) && !p.Begun }

// fact is a line of the plan's head.
type fact struct{ label, text string }

// head is what matters most.
func (p preview) head() []fact {
	e := p.Estimate
	carried := 0
	for _, v := range p.Facts.Cluster.Volumes {
		if v.Copied() {
			carried++
		}
	}
	rates := fmt.Sprintf("measured at %s/s down, %s/s up", mib(e.Rates.Down), mib(e.Rates.Up))
	if e.Assumed {
		rates = "which was not measured: " + mib(e.Rates.Down) + "/s are assumed"
	}
	out := []fact{
		{"host", p.Host + ", " + p.Facts.Host.OS},
		{"K3s", p.Version + ", IPv4-only → dual-stack"},
		{"volumes", fmt.Sprintf("%s to carry over, %s", count(carried, "volume"), mib(p.Facts.VolumeBytes()))},
		{"to move", fmt.Sprintf("about %s over the connection, %s", mib(e.Bytes), rates)},
		{"time", "about " + steps.About(e.Total) + " in all, besides questions"},
		{"downtime", fmt.Sprintf("about %s without the API, %s without the workloads; sizes and rates are measured here, fixed parts in the lab. What the platform command and pulled images take beyond that comes on top",
			steps.About(e.APIDowntime), steps.About(e.Downtime))},
	}
	if p.Begun {
		out = append(out, fact{"left", "about " + steps.About(e.Left)})
	}
	for i, s := range p.Steps {
		if s.Gate != nil {
			out = append(out, fact{"gate", fmt.Sprintf("before step %d (%s), where the downtime begins: the host's name has to be typed", i+1, s.Name)})
		}
	}
	if i := slices.IndexFunc(p.Steps, func(s runner.Planned) bool { return s.Name == "uninstall" }); i >= 0 {
		out = append(out, fact{"irreversible", fmt.Sprintf("from step %d (uninstall): until then a rollback starts the old cluster again; from there on it is put back from the backup set", i+1)})
	}
	return out
}

func (p preview) settings() (rows [][]string) {
	for _, c := range p.Settings {
		rows = append(rows, []string{c.Key, cmp.Or(c.Before, "(default)"), "→ " + c.After, "in " + c.Source})
	}
	return rows
}

func (p preview) volumes() (rows [][]string) {
	for _, v := range p.Facts.Cluster.Volumes {
		what := fmt.Sprintf("%d files, %s", v.Files, mib(v.Bytes))
		switch {
		case v.Excluded:
			what = "excluded by the plan"
		case !v.Copied():
			what = "object only; the data lies elsewhere (" + v.Driver + ")"
		}
		name := v.Namespace + "/" + v.Claim
		if v.Claim == "" {
			name = v.PV // nobody claims it
		}
		rows = append(rows, []string{name, string(v.Kind), what, v.Path})
	}
	return rows
}

// services are what becomes of each Service, in policy and families. Which addresses they get is
// the new cluster's to say.
func (p preview) services() (rows [][]string) {
	for _, s := range p.Facts.Cluster.Services {
		row := []string{s.String(), s.Type, families(s)}
		if s.Skip != "" {
			row = append(row, "stays: "+s.Skip)
		} else {
			row = append(row, "→ "+s.WantPolicy+", IPv4+IPv6")
		}
		rows = append(rows, row)
	}
	return rows
}

func families(s cluster.ServiceChange) string {
	var names []string
	for _, f := range s.Families {
		names = append(names, string(f))
	}
	return strings.TrimPrefix(s.Policy+", "+strings.Join(names, "+"), ", ")
}

// takes is about how long a step takes, or how long it took, and what it moves.
func (p preview) takes(step string) string {
	e := p.Estimate.Steps[step]
	text := "about " + steps.About(e.Duration)
	if e.Measured {
		text = "done in " + e.Duration.Round(100*time.Millisecond).String()
	}
	if e.Bytes > 0 {
		text += ", " + mib(e.Bytes)
	}
	return text
}

// typed is a command as a person types it on the laptop.
func (p preview) typed(command string) string {
	return strings.NewReplacer("on_host ", "ssh "+p.Address+" ", "into_host ", "ssh "+p.Address+" ").Replace(command)
}

// wayBack is the same for some steps.
type wayBack struct{ steps, text string }

// returns says what a rollback takes from each step on.
func (p preview) returns() []wayBack {
	var out []wayBack
	for first := 0; first < len(p.Steps); {
		text := back(p.Steps[first], p.Fallbacks[p.Steps[first].Name])
		last := first
		for last+1 < len(p.Steps) && back(p.Steps[last+1], p.Fallbacks[p.Steps[last+1].Name]) == text {
			last++
		}
		name := fmt.Sprintf("steps %d-%d", first+1, last+1)
		if first == last {
			name = fmt.Sprintf("step %d", first+1)
		}
		out = append(out, wayBack{name, text})
		first = last + 1
	}
	return out
}

// back says what the way back from a step takes: running again continues in any case.
func back(s runner.Planned, f steps.Fallback) string {
	switch {
	case f.To == "" && s.Name == "finish":
		return "the cluster is whole and dual-stack; run it again"
	case f.To == "":
		return "the cluster runs as before; nothing to take back"
	}
	takes := count(len(f.Actions), "action") + ", about " + steps.About(f.Duration)
	if f.Bytes > 0 {
		takes += ", at least " + mib(f.Bytes) + " to move"
	}
	return fmt.Sprintf("rollback to %s: %s (%s)", f.To, f.What, takes)
}

// printOpenBao shows what the server has: all of it is in its snapshot or volume, the
// secrets of the KV mounts in the export, too.
func printOpenBao(w io.Writer, b survey.OpenBao) {
	fmt.Fprintln(w, "\nOpenBao")
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, s := range b.Servers {
		unseal := fmt.Sprintf("%d of %d keys", s.Threshold, s.Shares)
		if s.RecoverySeal {
			unseal = "unseals itself (" + s.Seal + ")"
		}
		fmt.Fprintf(t, "  server\t%s\t%s, %s storage, %s\n", s.Name, s.Version, s.Storage, unseal)
	}
	for _, m := range b.Mounts {
		kind := m.Type
		if m.KV > 0 {
			kind = fmt.Sprintf("%s, version %d", m.Type, m.KV)
		}
		fmt.Fprintf(t, "  mount\t%s\t%s\n", m.Path, kind)
	}
	for _, a := range b.Auths {
		fmt.Fprintf(t, "  auth\t%s\t%s\n", a.Path, a.Type)
	}
	t.Flush()
	fmt.Fprintf(w, "  policies: %s\n", strings.Join(b.Policies, ", "))
}
