package verify

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// width of the table in columns; narrow enough for any terminal and for a mail.
const width = 80

// Table writes the report for people: a line per kind of check with what passed per family, then what
// was seen outside, what was skipped and why, and last what failed and what to do. It is plain text of 80
// columns; only words that cannot be broken (addresses, URLs) run over.
func (r Report) Table(w io.Writer) error {
	b := bufio.NewWriter(w)
	r.summary(b)
	r.seen(b)
	r.skipped(b)
	r.failures(b)
	r.verdict(b)
	return b.Flush()
}

// Tally counts the outcomes of one kind of check for one family.
type Tally struct{ Pass, Fail, Skip int }

func (t Tally) String() string {
	switch n := t.Pass + t.Fail; {
	case n == 0 && t.Skip == 0:
		return "-"
	case n == 0:
		return "skipped"
	default:
		return fmt.Sprintf("%d of %d", t.Pass, n)
	}
}

// Line is what came of one kind of check.
type Line struct {
	Name       string
	IPv4, IPv6 Tally
	// Both counts what has no family.
	Both Tally
}

// Failed tells whether one of its checks did, Passed whether one passed.
func (l Line) Failed() bool { return l.IPv4.Fail+l.IPv6.Fail+l.Both.Fail > 0 }
func (l Line) Passed() bool { return l.IPv4.Pass+l.IPv6.Pass+l.Both.Pass > 0 }

// Lines is a line per kind of check, in the order of the table. Egress has an ID for each family and one line for both.
func (r Report) Lines() []Line {
	var lines []Line
	for _, c := range r.Checks {
		name := title(c.ID)
		i := slices.IndexFunc(lines, func(l Line) bool { return l.Name == name })
		if i < 0 {
			i = len(lines)
			lines = append(lines, Line{Name: name})
		}
		t := &lines[i].Both
		switch c.Family {
		case IPv4:
			t = &lines[i].IPv4
		case IPv6:
			t = &lines[i].IPv6
		}
		switch c.Status {
		case Pass:
			t.Pass++
		case Fail:
			t.Fail++
		case Skip:
			t.Skip++
		}
	}
	return lines
}

// summary writes the lines.
func (r Report) summary(b *bufio.Writer) {
	line := func(mark, name string, v4, v6, both any) {
		fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("%-5s %-36s %-12v %-12v %v", mark, name, v4, v6, both), " "))
	}
	lines := r.Lines()
	if len(lines) > 0 {
		line("", "CHECK", IPv4, IPv6, "")
	}
	for _, l := range lines {
		mark := "ok"
		switch {
		case l.Failed():
			mark = "FAIL"
		case !l.Passed():
			mark = "skip"
		}
		both := "" // what has no family; a lone skip among others is told below the table
		if l.Both.Pass+l.Both.Fail > 0 || mark == "skip" && l.Both.Skip > 0 {
			both = l.Both.String()
		}
		line(mark, l.Name, l.IPv4, l.IPv6, both)
	}
}

// seen writes what passing checks saw that a person wants to read: who a pod is outside.
func (r Report) seen(b *bufio.Writer) {
	first := true
	for _, c := range r.Checks {
		if c.Status != Pass || c.Detail == "" || (c.ID != EgressIPv4 && c.ID != EgressIPv6 && c.ID != HostnamesReachable) {
			continue
		}
		if first {
			fmt.Fprintf(b, "\nSEEN FROM PODS\n")
			first = false
		}
		wrap(b, "  ", "    ", fmt.Sprintf("%s %s: %s", c.Family, c.Target, c.Detail))
	}
}

// skipped writes the reasons of the skipped checks, each reason once with its targets.
func (r Report) skipped(b *bufio.Writer) {
	targets := map[[2]string][]string{}
	var order [][2]string
	for _, c := range r.Checks {
		if c.Status != Skip {
			continue
		}
		key := [2]string{c.ID, c.Detail}
		if _, known := targets[key]; !known {
			order = append(order, key)
		}
		t := c.Target
		if last := targets[key]; len(last) > 0 && last[len(last)-1] == t {
			continue // the other family of the same target
		}
		targets[key] = append(targets[key], t)
	}
	if len(order) == 0 {
		return
	}
	fmt.Fprintf(b, "\nSKIPPED\n")
	for _, key := range order {
		wrap(b, "  ", "    ", fmt.Sprintf("%s: %s: %s", title(key[0]), strings.Join(targets[key], ", "), key[1]))
	}
}

// alike is how many failures of the same check with the same remedy are told one by one; the rest is named only.
const alike = 3

// failures writes what failed, with what to do. A remedy that several failures in a row share is written after the last of them.
func (r Report) failures(b *bufio.Writer) {
	failed := r.Failed()
	if len(failed) == 0 {
		return
	}
	fmt.Fprintf(b, "\nFAILED\n")
	same := func(a, c Check) bool { return a.ID == c.ID && a.Family == c.Family && a.Remedy == c.Remedy }
	for i := 0; i < len(failed); {
		c := failed[i]
		end := i + 1
		for end < len(failed) && same(failed[end], c) {
			end++
		}
		what := c.ID
		if c.Family != "" && !strings.HasSuffix(c.ID, strings.ToLower(c.Family)) {
			what += " " + c.Family
		}
		told := end
		if end-i > alike+1 {
			told = i + alike
		}
		for _, f := range failed[i:told] {
			wrap(b, "  ", "    ", fmt.Sprintf("%s %s: %s", what, f.Target, f.Detail))
		}
		if told < end {
			var rest []string
			for _, f := range failed[told:end] {
				rest = append(rest, f.Target)
			}
			wrap(b, "  ", "    ", fmt.Sprintf("%s, likewise: %s", what, strings.Join(rest, ", ")))
		}
		if c.Remedy != "" && (end == len(failed) || failed[end].Remedy != c.Remedy) {
			wrap(b, "    -> ", "       ", c.Remedy)
		}
		i = end
	}
}

// verdict writes the last line.
func (r Report) verdict(b *bufio.Writer) {
	passed, failed, skipped := r.count(Pass), r.count(Fail), r.count(Skip)
	fmt.Fprintln(b)
	counts := fmt.Sprintf("%d checks passed, %d failed, %d skipped", passed, failed, skipped)
	switch {
	case len(r.Checks) == 0:
		fmt.Fprintln(b, "Nothing was checked.")
	case failed == 0:
		wrap(b, "", "  ", fmt.Sprintf("%s is dual-stack: %s.", r.Cluster, counts))
	case r.Want == SingleStack:
		wrap(b, "", "  ", fmt.Sprintf("%s is not dual-stack yet: %s.", r.Cluster, counts))
	default:
		wrap(b, "", "  ", fmt.Sprintf("%s falls short of dual-stack: %s.", r.Cluster, counts))
	}
}

// wrap writes the text in lines of at most the table's width; the first begins with lead, the others with indent.
func wrap(b *bufio.Writer, lead, indent, text string) {
	line, empty := lead, true
	for _, word := range strings.Fields(printable(text)) {
		switch {
		case empty:
			line += word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			fmt.Fprintln(b, line)
			line = indent + word
		default:
			line += " " + word
		}
		empty = false
	}
	fmt.Fprintln(b, strings.TrimRight(line, " "))
}

// printable replaces control characters, which a remote program may have written, so that a terminal is not commanded by them.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
}
