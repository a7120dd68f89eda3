package propose

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// width of the plan's comments.
const width = 100

// maxRows bounds a table of what was found: a plan is read by people, and has a
// largest size.
const maxRows = 40

// text is a plan while it is written.
type text struct {
	b strings.Builder
	// problems are what the plan's own validation says, by field: such a place is
	// marked.
	problems field.ErrorList
}

// line writes YAML.
func (t *text) line(indent int, format string, args ...any) {
	fmt.Fprintf(&t.b, "%s%s\n", strings.Repeat(" ", indent), strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

// note writes a comment, wrapped.
func (t *text) note(indent int, format string, args ...any) {
	for _, line := range Wrap(visible(fmt.Sprintf(format, args...)), width-indent-2) {
		t.line(indent, "# %s", line)
	}
}

// mark names a place to be filled in.
func (t *text) mark(indent int, format string, args ...any) {
	t.note(indent, Mark+": "+format, args...)
}

// unknown marks what could not be found out, where nothing has to be written. What
// follows is another comment.
func (t *text) unknown(indent int, format string, args ...any) {
	t.mark(indent, format, args...)
	t.line(indent, "#")
}

// field begins a field and marks what validation has against it.
func (t *text) field(indent int, path string) {
	for _, p := range t.problems {
		if rest, ok := strings.CutPrefix(p.Field, path); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			t.mark(indent, "%s", strings.TrimSuffix(p.ErrorBody(), "."))
		}
	}
}

// list writes a list of strings.
func (t *text) list(indent int, values []string) {
	for _, v := range values {
		t.line(indent, "- %s", scalar(v))
	}
}

// table writes rows as comments, their columns aligned as far as that is not too
// wide.
func (t *text) table(indent int, rows [][]string) {
	const widest = 44
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if n := len([]rune(cell)); n <= widest {
				widths[i] = max(widths[i], n)
			}
		}
	}
	for n, row := range rows {
		if n == maxRows {
			t.note(indent, "  … and %d more", len(rows)-n)
			return
		}
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(short(visible(cell), 160))
			if i+1 < len(row) {
				b.WriteString(strings.Repeat(" ", max(0, widths[i]-len([]rune(cell)))+2))
			}
		}
		t.line(indent, "#   %s", b.String())
	}
}

// Wrap breaks a text into lines of at most so many characters, words longer than
// that excepted.
func Wrap(s string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case len([]rune(line))+1+len([]rune(word)) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// short cuts a text that is longer than n characters.
func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// visible is a text on one line, without characters that a terminal or a parser
// acts on.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '·'
		}
		return r
	}, strings.ToValidUTF8(s, "·"))
}

// plain strings mean themselves in YAML: they begin with a letter, or with ~/ or /,
// and hold nothing that has a meaning there.
var plain = regexp.MustCompile(`^(~/|/|[A-Za-z])[A-Za-z0-9._/@+-]*( [A-Za-z0-9._/@+=-]+)*$`)

// words are what YAML readers take for something else than strings.
var words = regexp.MustCompile(`(?i)^(true|false|yes|no|on|off|null|y|n)$`)

// scalar writes a string as YAML.
func scalar(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if plain.MatchString(s) && !words.MatchString(s) {
		return s
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return r == '\'' || !unicode.IsPrint(r) }) {
		return "'" + s + "'"
	}
	quoted, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string: cannot fail
	}
	return string(quoted)
}

// flow writes strings as a list on one line.
func flow(values []string) string {
	items := make([]string, len(values))
	for i, v := range values {
		items[i] = scalar(v)
		if strings.ContainsAny(v, " ") {
			items[i] = "'" + strings.ReplaceAll(v, "'", "''") + "'"
		}
	}
	return "[" + strings.Join(items, ", ") + "]"
}
