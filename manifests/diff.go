package manifests

import (
	"fmt"
	"strings"
)

// around is how many lines a diff shows around a change.
const around = 3

// diffLine is one line of a diff; sign is ' ', '-' or '+'.
type diffLine struct {
	sign byte
	text string
}

// unified is the difference that changes make, as patch and git read it. No change
// takes away a line break.
func unified(name string, data []byte, changes []Change) string {
	lines := diffLines(string(data), changes)
	var out strings.Builder
	from, to := 1, 1 // the line numbers at the start of the next hunk's search
	for i := 0; i < len(lines); {
		if lines[i].sign == ' ' {
			i, from, to = i+1, from+1, to+1
			continue
		}
		if out.Len() == 0 {
			fmt.Fprintf(&out, "--- a/%s\n+++ b/%s\n", name, name)
		}
		start := max(i-around, 0)
		last := i // of the hunk's changes: the next one joins when their contexts touch
		for j := i; j < len(lines) && j <= last+2*around+1; j++ {
			if lines[j].sign != ' ' {
				last = j
			}
		}
		end := min(last+around+1, len(lines))
		hunk := lines[start:end]
		from, to = from-(i-start), to-(i-start)
		removed, added := 0, 0
		for _, l := range hunk {
			if l.sign != '+' {
				removed++
			}
			if l.sign != '-' {
				added++
			}
		}
		fmt.Fprintf(&out, "@@ -%d,%d +%d,%d @@\n", from, removed, to, added)
		for _, l := range hunk {
			out.WriteByte(l.sign)
			out.WriteString(l.text)
			if !strings.HasSuffix(l.text, "\n") {
				out.WriteString("\n\\ No newline at end of file\n")
			}
		}
		i, from, to = end, from+removed, to+added
	}
	return out.String()
}

// diffLines are all lines of a file, before and after its changes.
func diffLines(data string, changes []Change) []diffLine {
	var lines []diffLine
	at := 0
	for line := range strings.Lines(data) {
		var here []Change
		for len(changes) > 0 && changes[0].Offset < at+len(line) {
			c := changes[0]
			c.Offset -= at
			here, changes = append(here, c), changes[1:]
		}
		at += len(line)
		var after []string
		for l := range strings.Lines(string(apply([]byte(line), here))) {
			after = append(after, l)
		}
		if n := len(after) - 1; after[n] == line { // whole lines were inserted before it
			for _, l := range after[:n] {
				lines = append(lines, diffLine{'+', l})
			}
			lines = append(lines, diffLine{' ', line})
			continue
		}
		lines = append(lines, diffLine{'-', line})
		for _, l := range after {
			lines = append(lines, diffLine{'+', l})
		}
	}
	return lines
}
