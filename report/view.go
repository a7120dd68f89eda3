package report

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"sunbeam.pt/k3s-dualstack/probe"
	"sunbeam.pt/k3s-dualstack/verify"
)

// view is a report as both templates show it.
type view struct {
	*Report
	Zone    string
	Figures []figure
	Rows    []row
	Lanes   []lane
	Ticks   []tick
	Breaks  []breach
	Stops   []bar
	Checks  []verify.Line
}

// figure is a number that a reader looks for.
type figure struct{ Value, Name, Note string }

// bar is a time on the axis.
type bar struct {
	X, W  percent
	Class string // one word of the style sheet
	Says  string
}

// row is a step beside its bars.
type row struct {
	Step
	Bars  []bar
	Began time.Time // zero when it has not
	Took  time.Duration
}

// Troubled tells whether an attempt of it did not go well.
func (r row) Troubled() bool {
	for _, a := range r.Actions {
		for _, t := range a.Attempts {
			if t.Status == StatusFailed || t.Status == StatusCut {
				return true
			}
		}
	}
	return false
}

// lane is a target of the prober beside its bars.
type lane struct {
	probe.Availability
	Bars []bar
}

// Away is for how long it was, in words.
func (l lane) Away() string {
	switch {
	case l.Since.IsZero():
		return "never up"
	case l.Down == 0:
		return "never"
	}
	return atLeast(l.AtLeast) + took(l.Down)
}

// Longest is the longest outage, in words; "" when there was none.
func (l lane) LongestAway() string {
	if l.Down == 0 {
		return ""
	}
	return atLeast(l.AtLeast) + took(l.Availability.Longest)
}

func atLeast(yes bool) string {
	if yes {
		return "at least "
	}
	return ""
}

// tick is a time at the axis.
type tick struct {
	X     percent
	Time  string
	Class string
}

// breach is a time that the axis leaves out.
type breach struct {
	X, W     percent
	From, To time.Time
}

// Width of what is shown though it took no time, in percent.
const (
	leastStep = 0.6
	leastSpan = 0.3
)

func newView(r *Report) view {
	v := view{Report: r, Zone: zone(r.Began)}
	var busy []Window
	for _, s := range r.Steps {
		for _, a := range s.Actions {
			for _, t := range a.Attempts {
				busy = append(busy, Window{From: t.Began, To: t.Ended()})
			}
		}
	}
	if len(busy) == 0 {
		busy = []Window{{From: r.Began, To: r.Last}}
	}
	a := newAxis(busy)
	for _, p := range a.breaks() {
		v.Breaks = append(v.Breaks, breach{percent(p.x), percent(p.w), p.from, p.to})
	}
	working := length(merge(busy, 0))
	v.ticks(a, working)
	for _, w := range r.Stopped {
		x, width := a.span(w.From, w.To, leastSpan)
		v.Stops = append(v.Stops, bar{x, width, "stopped", "K3s stopped: " + window(w)})
	}
	for _, s := range r.Steps {
		v.Rows = append(v.Rows, newRow(s, a))
	}
	for _, t := range r.Availability {
		l := lane{Availability: t}
		for _, s := range t.Spans {
			x, width := a.span(s.From, s.To, leastSpan)
			is := string(s.State)
			if s.State == probe.Down && (t.Since.IsZero() || s.From.Before(t.Since)) {
				is = "early"
			}
			says := fmt.Sprintf("%s from %s, %s", s.State, clock(s.From), took(s.To.Sub(s.From)))
			if s.Why != "" {
				says += ": " + s.Why
			}
			l.Bars = append(l.Bars, bar{x, width, is, says})
		}
		v.Lanes = append(v.Lanes, l)
	}
	if r.Verification != nil {
		v.Checks = r.Verification.Lines()
	}
	v.figures(working)
	return v
}

func newRow(s Step, a axis) row {
	r := row{Step: s}
	var at []Window
	for _, act := range s.Actions {
		for _, t := range act.Attempts {
			at = append(at, Window{From: t.Began, To: t.Ended()})
			x, w := a.span(t.Began, t.Ended(), leastStep)
			says := fmt.Sprintf("%s: %s, from %s", act.Name, t.Status, clock(t.Began))
			if t.Took > 0 {
				says += ", " + took(t.Took)
			}
			r.Bars = append(r.Bars, bar{x, w, class(t.Status), says})
		}
	}
	if at = merge(at, 0); len(at) > 0 {
		r.Began, r.Took = at[0].From, length(at)
	}
	return r
}

// ticks puts the times at the axis, no two too near each other.
func (v *view) ticks(a axis, working time.Duration) {
	const apart = 16
	layout := "15:04"
	if working < 10*time.Minute {
		layout = time.TimeOnly
	}
	v.Ticks = []tick{{0, a.pieces[0].from.Format(layout), "first"}}
	at := 0.0
	add := func(x float64, t time.Time) {
		if label := t.Format(layout); x-at >= apart && x <= 100-apart && label != v.Ticks[len(v.Ticks)-1].Time {
			v.Ticks = append(v.Ticks, tick{percent(x), label, "mid"})
			at = x
		}
	}
	for _, p := range a.pieces {
		if p.gap {
			continue
		}
		for i := range 4 {
			part := float64(i) / 4
			add(p.x+p.w*part, p.from.Add(time.Duration(part*float64(p.to.Sub(p.from)))))
		}
	}
	v.Ticks = append(v.Ticks, tick{100, a.pieces[len(a.pieces)-1].to.Format(layout), "last"})
}

func (v *view) figures(working time.Duration) {
	add := func(value, name, note string) { v.Figures = append(v.Figures, figure{value, name, note}) }
	note := clock(v.Began) + " to " + clock(v.Last)
	if len(v.Breaks) > 0 {
		note = fmt.Sprintf("%s in all, with %s", took(v.Last.Sub(v.Began)), count(len(v.Breaks), "pause"))
	}
	add(took(working), "at work", note)
	if len(v.Stopped) > 0 {
		note := "from its stop until it was started"
		if v.Stopped[len(v.Stopped)-1].Open {
			note = "and not started since"
		}
		add(took(length(v.Stopped)), "K3s stopped", note)
	}
	const most = 3 // targets; the table has all
	var names []string
	for _, l := range v.Lanes {
		if !l.Since.IsZero() && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
		}
	}
	for _, name := range names[:min(most, len(names))] {
		var notes []string
		var worst *lane
		for i := range v.Lanes {
			l := &v.Lanes[i]
			if l.Name != name {
				continue
			}
			notes = append(notes, l.Family+" "+l.Away())
			if worst == nil || l.Down > worst.Down {
				worst = l
			}
		}
		value := "0 s"
		if worst.Down > 0 {
			value = took(worst.Down)
			if worst.AtLeast {
				value = "≥ " + value
			}
		}
		add(value, short(name)+" away", strings.Join(notes, " · "))
	}
	if n := len(v.Backup.Artifacts); n > 0 {
		note := count(n, "artifact") + ", encrypted"
		if !v.Backup.Proven.IsZero() {
			note = count(n, "artifact") + ", encrypted and proven"
		}
		add(size(v.Backup.Size()), "backed up", note)
	}
	if r := v.Verification; r != nil {
		pass, fail, skip := 0, 0, 0
		for _, c := range r.Checks {
			switch c.Status {
			case verify.Pass:
				pass++
			case verify.Fail:
				fail++
			case verify.Skip:
				skip++
			}
		}
		what := "checks passed"
		if v.Outcome.Kind == RolledBack {
			what += " before it was taken back"
		}
		add(fmt.Sprintf("%d of %d", pass, pass+fail), what, fmt.Sprintf("%d skipped", skip))
	}
}

// class is a status as one word of the style sheet.
func class(s any) string { return strings.ReplaceAll(fmt.Sprint(s), " ", "-") }

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// took is a length of time, as exact as a person wants it.
func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Round(time.Second).Seconds()))
	case d < time.Hour:
		d = d.Round(time.Second)
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	d = d.Round(time.Minute)
	return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
}

func size(n int64) string {
	v, units := float64(n), []string{"KiB", "MiB", "GiB", "TiB"}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	unit := -1
	for v >= 1024 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %s", v, units[unit])
}

func clock(t time.Time) string { return t.Format(time.TimeOnly) }

func moment(t time.Time) string { return t.Format("2 January 2006, 15:04:05") }

func window(w Window) string {
	until := clock(w.To)
	if w.Open {
		until = "now"
	}
	return fmt.Sprintf("%s to %s, %s", clock(w.From), until, took(w.To.Sub(w.From)))
}

// zone names the zone that all times are in.
func zone(t time.Time) string {
	name, offset := t.Zone()
	if offset == 0 {
		return "UTC"
	}
	at := t.Format("UTC-07:00")
	if name == "" || strings.ContainsAny(name[:1], "+-") {
		return at
	}
	return at + " (" + name + ")"
}

// printable takes out what would command a terminal or turn the direction of the text:
// some of it was said by other machines.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, s)
}

// oneLine is data without line breaks.
func oneLine(v any) string { return strings.Join(strings.Fields(fmt.Sprint(v)), " ") }

// Label is what a drawing calls the row.
func (r row) Label() string {
	if r.Back {
		return "↶ " + r.Name
	}
	return r.Name
}

// Label is what a drawing calls the lane.
func (l lane) Label() string { return l.Name + " " + l.Family }

// short is a URL as one speaks of it.
func short(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(clean(name), "https://"), "http://")
	return strings.TrimSuffix(name, "/")
}
