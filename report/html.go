package report

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"html/template"
	"io"
	"regexp"
	"time"
)

//go:embed report.html.tmpl
var htmlText string

var htmlTemplate = template.Must(template.New("report").Funcs(words).Parse(htmlText))

// words are the functions of both templates.
var words = map[string]any{
	"class":  class,
	"clock":  clock,
	"count":  count,
	"moment": moment,
	"size":   size,
	"took":   took,
	"window": window,
	"gap":    func(b breach) string { return took(b.To.Sub(b.From)) },
	"day":    func(t time.Time) string { return t.Format("2 January 2006") },
	"minute": func(t time.Time) string { return t.Format("2006-01-02 15:04") },
	"marks":  func(s any) string { return marks[class(s)] },
}

// marks tell statuses apart without colours.
var marks = map[string]string{
	"done": "✓", "found-done": "✓", "failed": "✕", "cut-off": "⌁", "running": "▸", "begun": "▸", "to-do": "·", "taken-back": "↶",
	"open": "▸", "rolled-back": "↶", "pass": "✓", "fail": "✕", "skip": "–",
}

// HTML writes the report as one file that needs nothing besides itself.
func (r *Report) HTML(w io.Writer) error {
	var b bytes.Buffer
	if err := htmlTemplate.Execute(&b, newView(r)); err != nil {
		return err
	}
	_, err := io.WriteString(w, clean(b.String())+"\n")
	return err
}

// JSON writes the report for programs.
func (r *Report) JSON(w io.Writer) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return err
	}
	_, err := io.WriteString(w, clean(b.String()))
	return err
}

var userinfo = regexp.MustCompile(`://[^\s"'<>|]+@`)

// clean is what all that is written goes through: a password in a URL stays at home.
func clean(text string) string {
	return printable(userinfo.ReplaceAllString(text, "://…@"))
}
