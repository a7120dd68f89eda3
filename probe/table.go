package probe

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// width of the table in columns.
const width = 80

// Table writes for people for how long each target was away: plain text of 80 columns, which only a
// long URL runs over. Nothing is written of nothing.
func Table(w io.Writer, all []Availability) error {
	b := bufio.NewWriter(w)
	if len(all) > 0 {
		line(b, "ASKED ONCE A SECOND", "AWAY", "LONGEST", "FIRST AWAY")
	}
	name := ""
	for _, a := range all {
		if a.Name != name {
			name = a.Name
			fmt.Fprintln(b, printable(name))
		}
		if a.Since.IsZero() {
			wrap(b, fmt.Sprintf("  %-20s ", a.Family), a.never())
			continue
		}
		away, longest, first := "never", "", ""
		if a.Down > 0 {
			away, longest, first = seconds(a.Down), seconds(a.Longest), moment(a.First)
			if a.AtLeast {
				away, longest = "≥ "+away, "≥ "+longest
			}
		}
		line(b, "  "+a.Family, away, longest, first)
		for _, r := range a.remarks() {
			wrap(b, strings.Repeat(" ", 23), r)
		}
	}
	for _, s := range unwatched(all) {
		wrap(b, "", fmt.Sprintf("Not watched for %s from %s on.", seconds(s.length()), moment(s.From)))
	}
	return b.Flush()
}

func line(b *bufio.Writer, target, away, longest, first string) {
	fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("%-22s %-12s %-12s %s", target, away, longest, first), " "))
}

// never tells of a target that was not seen up.
func (a Availability) never() string {
	for _, state := range []State{Down, Absent} {
		for _, s := range slices.Backward(a.Spans) {
			if s.State == state && state == Absent {
				return "no address"
			} else if s.State == state {
				return "not up at any time: " + s.Why
			}
		}
	}
	for _, s := range a.Spans {
		if s.Why != NotWatched {
			return "not known: " + s.Why
		}
	}
	return "not known"
}

// remarks tell what the figures do not.
func (a Availability) remarks() (out []string) {
	for _, s := range a.Spans[:slices.IndexFunc(a.Spans, func(s Span) bool { return s.State == Up })] {
		if s.State == Down || s.State == Absent {
			out = append(out, fmt.Sprintf("up since %s, before that: %s", moment(a.Since), s.Why))
			break
		}
	}
	lost := map[string]time.Duration{}
	var reasons []string
	for _, s := range a.Spans {
		if s.State != Unknown || s.Why == NotWatched {
			continue
		}
		if lost[s.Why] == 0 {
			reasons = append(reasons, s.Why)
		}
		lost[s.Why] += s.length()
	}
	for _, why := range reasons {
		out = append(out, fmt.Sprintf("not known for %s: %s", seconds(lost[why]), why))
	}
	switch last := a.Spans[len(a.Spans)-1]; last.State {
	case Down:
		out = append(out, "still away: "+last.Why)
	case Absent:
		out = append(out, "no address any more since "+moment(last.From))
	}
	return out
}

// unwatched are the times in which nobody watched, of all targets together: they differ by how long
// each took to answer.
func unwatched(all []Availability) (out []Span) {
	var times []Span
	for _, a := range all {
		for _, s := range a.Spans {
			if s.State == Unknown && s.Why == NotWatched {
				times = append(times, s)
			}
		}
	}
	slices.SortFunc(times, func(a, b Span) int { return a.From.Compare(b.From) })
	for _, s := range times {
		if n := len(out); n > 0 && !s.From.After(out[n-1].To) {
			if s.To.After(out[n-1].To) {
				out[n-1].To = s.To
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// seconds is a length of time as exact as one check a second makes it.
func seconds(d time.Duration) string { return max(d.Round(time.Second), time.Second).String() }

func moment(t time.Time) string { return t.Local().Format(time.DateTime) }

// wrap writes text after lead in lines of at most the table's width, aligned.
func wrap(b *bufio.Writer, lead, text string) {
	indent := strings.Repeat(" ", max(2, utf8.RuneCountInString(lead)))
	line := lead
	for i, word := range strings.Fields(printable(text)) {
		switch {
		case i == 0:
			line += word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			fmt.Fprintln(b, line)
			line = indent + word
		default:
			line += " " + word
		}
	}
	fmt.Fprintln(b, line)
}

// printable takes out control characters, which what a server said could bring to a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
