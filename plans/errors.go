package plans

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// position is a place in the plan file, both counted from 1.
type position struct{ line, column int }

// SyntaxError says that the file is not YAML, or not one YAML document.
type SyntaxError struct {
	// File is the name the plan was loaded by, empty for one decoded from memory.
	File string
	// Line and Column count from 1.
	Line, Column int
	// Message says what is wrong and what to do.
	Message string
	// Excerpt is the line in question with a caret below the column; it ends without a newline.
	Excerpt string
}

func (e *SyntaxError) Error() string {
	s := fmt.Sprintf("%s:%d:%d: %s", fileName(e.File), e.Line, e.Column, e.Message)
	if e.Excerpt != "" {
		s += "\n" + e.Excerpt
	}
	return s
}

// InvalidError holds everything that is wrong with a plan, each problem under the path of its field.
type InvalidError struct {
	// File is the name the plan was loaded by, empty for one decoded from memory.
	File string
	// Errors are in the order of the file; a missing field's stands where it should have been.
	Errors field.ErrorList

	at map[string]position // by field path
}

func (e *InvalidError) Error() string {
	var b strings.Builder
	problems := "1 problem"
	if len(e.Errors) != 1 {
		problems = fmt.Sprintf("%d problems", len(e.Errors))
	}
	fmt.Fprintf(&b, "%s is not valid (%s):", fileName(e.File), problems)
	for _, err := range e.Errors {
		fmt.Fprintf(&b, "\n  %s", fileName(e.File))
		if at, ok := e.position(err.Field); ok {
			fmt.Fprintf(&b, ":%d:%d", at.line, at.column)
		}
		fmt.Fprintf(&b, ": %s", err.Error())
	}
	return b.String()
}

// add appends errors of a later stage, except those of fields that have one already, and those that miss what has one in it: a
// value that could not be read is missing too, but that says nothing new.
func (e *InvalidError) add(errs field.ErrorList) {
	known := len(e.Errors)
	for _, err := range errs {
		if !slices.ContainsFunc(e.Errors[:known], func(k *field.Error) bool {
			return within(err.Field, k.Field) || err.Type == field.ErrorTypeRequired && within(k.Field, err.Field)
		}) {
			e.Errors = append(e.Errors, err)
		}
	}
}

// within tells whether path is the field at parent or lies in it.
func within(path, parent string) bool {
	rest, ok := strings.CutPrefix(path, parent)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// position finds where a field stands; for a missing one, where the closest field around it stands.
func (e *InvalidError) position(path string) (position, bool) {
	for path != "" {
		if at, ok := e.at[path]; ok {
			return at, true
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return position{}, false
}

func fileName(file string) string {
	if file == "" {
		return "plan"
	}
	return file
}

// maxExcerpt is the longest line, in bytes, that is shown.
const maxExcerpt = 240

// excerpt is one line of data and a caret below the column, or nothing where the line is
// blank, seems to hold a token or key, or no caret below it could be found.
func excerpt(data []byte, at position) string {
	lines := strings.Split(string(data), "\n")
	if at.line < 1 || at.line > len(lines) {
		return ""
	}
	line := strings.TrimRight(lines[at.line-1], "\r")
	if strings.TrimSpace(line) == "" || len(line) > maxExcerpt || hideSecrets(line) != line {
		return ""
	}
	var pad strings.Builder
	for i, r := range []rune(line) {
		if i+1 >= at.column {
			break
		}
		if r != '\t' {
			r = ' '
		}
		pad.WriteRune(r)
	}
	number := fmt.Sprintf("%5d | ", at.line)
	return number + line + "\n" + strings.Repeat(" ", len(number)-2) + "| " + pad.String() + "^"
}
