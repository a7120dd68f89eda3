package report

import (
	"bytes"
	_ "embed"
	"io"
	"maps"
	"strings"
	"text/template"
)

//go:embed report.md.tmpl
var markdownText string

var markdownTemplate = template.Must(template.New("report").Funcs(words).Funcs(markdownWords()).Parse(markdownText))

func markdownWords() map[string]any {
	m := map[string]any{"text": text, "code": code, "fence": fence, "drawing": drawing, "pad": pad, "width": width}
	maps.Copy(m, words)
	return m
}

// Markdown writes the report for whoever keeps it beside the plan, or pastes it into a ticket.
func (r *Report) Markdown(w io.Writer) error {
	var b bytes.Buffer
	if err := markdownTemplate.Execute(&b, newView(r)); err != nil {
		return err
	}
	_, err := io.WriteString(w, clean(b.String()))
	return err
}

// special is what Markdown, with tables, links and raw HTML, could take for its own anywhere in a line.
var special = strings.NewReplacer(
	`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "<", `\<`, ">", `\>`, "|", `\|`, "~", `\~`, "&", `\&`, "$", `\$`, "#", `\#`,
)

// text is data as a part of a line that means nothing to Markdown.
func text(v any) string {
	return special.Replace(oneLine(v))
}

// code is data as code within a line, also in a table, where a pipe has to be escaped nevertheless.
func code(v any) string {
	s := oneLine(v)
	ticks := strings.Repeat("`", run(s)+1)
	if strings.HasPrefix(s, "`") || strings.HasSuffix(s, "`") {
		s = " " + s + " "
	}
	return ticks + strings.ReplaceAll(s, "|", `\|`) + ticks
}

// fence is data as a block of code.
func fence(s string) string {
	ticks := strings.Repeat("`", max(3, run(s)+1))
	return ticks + "sh\n" + s + "\n" + ticks
}

// run is the longest row of backticks.
func run(s string) int {
	longest, n := 0, 0
	for _, r := range s {
		if r != '`' {
			n = 0
			continue
		}
		n++
		longest = max(longest, n)
	}
	return longest
}

// columns of a drawing.
const columns = 48

// drawing is a row of bars in characters: where two meet, the later and the more serious one is seen.
func drawing(ground, bars []bar) string {
	cells := make([]rune, columns)
	weight := make([]int, columns)
	for i := range cells {
		cells[i] = ' '
	}
	draw := func(b bar) {
		sign := signs[b.Class]
		from := min(int(float64(b.X)*columns/100), columns-1)
		to := max(from+1, min(columns, int(float64(b.X+b.W)*columns/100+.5)))
		for i := from; i < to; i++ {
			if sign.weight >= weight[i] {
				cells[i], weight[i] = sign.char, sign.weight
			}
		}
	}
	for _, b := range ground {
		draw(b)
	}
	for _, b := range bars {
		draw(b)
	}
	return string(cells)
}

// signs are the characters of drawings, the more serious with more weight.
var signs = map[string]struct {
	char   rune
	weight int
}{
	"stopped": {'·', 1},
	"done":    {'█', 2}, "found-done": {'█', 2}, "running": {'▒', 3}, "cut-off": {'?', 4}, "failed": {'✕', 5},
	"unknown": {' ', 1}, "absent": {'.', 2}, "early": {':', 2}, "up": {'─', 3}, "down": {'█', 5},
}

// width is that of the longest of the names.
func width(rows any) int {
	n := 0
	switch rows := rows.(type) {
	case []row:
		for _, r := range rows {
			n = max(n, len([]rune(r.Label())))
		}
	case []lane:
		for _, l := range rows {
			n = max(n, len([]rune(l.Label())))
		}
	}
	return n
}

// pad makes data as wide as its column in a block of code.
func pad(s string, n int) string {
	s = strings.ReplaceAll(oneLine(s), "`", "'") // which could end the block
	return s + strings.Repeat(" ", max(0, n-len([]rune(s))))
}
