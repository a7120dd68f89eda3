package main

import (
	"fmt"
	"io"
	"strings"
)

// markdown writes the plan as a change request takes it.
func (p preview) markdown(w io.Writer, file string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Plan %s: %s\n\n", escape(p.Name), becomes)
	table := func(head []string, rows [][]string) {
		fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat(" --- |", len(head)))
		for _, r := range rows {
			for i := range head {
				cell := ""
				if i < len(r) {
					cell = escape(strings.TrimPrefix(r[i], "→ "))
				}
				b.WriteString("| " + cell + " ")
			}
			b.WriteString("|\n")
		}
	}
	section := func(title string, head []string, rows [][]string) {
		if len(rows) > 0 {
			fmt.Fprintf(&b, "\n## %s\n\n", title)
			table(head, rows)
		}
	}
	var head [][]string
	for _, f := range p.head() {
		head = append(head, []string{f.label, f.text})
	}
	table([]string{"what", "value"}, head)
	if p.Begun {
		b.WriteString("\nA run of this plan has begun.\n")
	}
	section("Settings of K3s", []string{"setting", "before", "after", "source"}, p.settings())
	section("Volumes", []string{"volume", "kind", "contents", "path"}, p.volumes())
	section("Services", []string{"Service", "type", "before", "after"}, p.services())

	b.WriteString("\n## Steps\n")
	phase := ""
	for i, s := range p.Steps {
		if s.Phase != phase {
			phase = s.Phase
			fmt.Fprintf(&b, "\n### %s\n", escape(phase))
		}
		fmt.Fprintf(&b, "\n#### %d. %s: %s (%s)\n", i+1, escape(s.Name), escape(s.Title), p.takes(s.Name))
		if s.Gate != nil {
			b.WriteString("\n**Asks before it begins: the host's name has to be typed.**\n")
		}
		b.WriteString("\n")
		for _, a := range s.Actions {
			fmt.Fprintf(&b, "- **%s**: %s\n", escape(a.Target.String()), escape(a.Summary))
			if a.Command != "" {
				fence(&b, "  ", p.typed(a.Command))
			}
		}
	}
	var back [][]string
	for _, r := range p.returns() {
		back = append(back, []string{r.steps, r.text})
	}
	section("The way back, from a failure or by choice", []string{"from", "what it takes"}, back)
	var found [][]string
	for _, f := range p.Findings {
		waived := "no"
		if f.Waived != "" {
			waived = f.Waived
		}
		found = append(found, []string{string(f.Severity), f.ID, f.Detail, f.Remedy, waived})
	}
	section("Findings", []string{"severity", "finding", "seen", "remedy", "waived"}, found)
	intro, command := p.next(file)
	b.WriteString("\n## What is next\n\n" + intro + "\n")
	if command != "" {
		fence(&b, "", command)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// escape is text that Markdown shows as it is, in a table, too.
func escape(text string) string {
	var b strings.Builder
	for _, r := range comment(text) {
		if strings.ContainsRune("\\`*_{}[]<>|#~&", r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// fence writes a command as a block of code, whatever is in it.
func fence(b *strings.Builder, indent, command string) {
	marks := "```"
	for strings.Contains(command, marks) {
		marks += "`"
	}
	fmt.Fprintf(b, "\n%[1]s%[2]ssh\n%[1]s%[3]s\n%[1]s%[2]s\n\n", indent, marks, strings.ReplaceAll(command, "\n", "\n"+indent))
}
