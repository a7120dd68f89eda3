package remote

import (
	"fmt"
	"strings"
)

// Quote joins args into words of a POSIX shell command line, each quoted so that the shell passes on
// exactly these bytes. It is the project's one quoting function: every value that goes into a script
// passes through it. A NUL byte cannot be passed to any program and is left out.
func Quote(args ...string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		quoted[i] = quote(arg)
	}
	return strings.Join(quoted, " ")
}

func quote(arg string) string {
	if arg != "" && strings.IndexFunc(arg, needsQuote) < 0 {
		return arg
	}
	arg = strings.ReplaceAll(arg, "\x00", "")
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// needsQuote is false only for characters without meaning to any shell in any place of a word;
// "=" and "~" have one at some places and are therefore quoted.
func needsQuote(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("_-./:,@%+", r)
}

// HasProgram is a shell condition: that a program, by its name or by a path, is there and can be run. Some shells call a
// file that nobody may execute a command.
func HasProgram(program string) string {
	if strings.Contains(program, "/") {
		return fmt.Sprintf("{ [ -x %[1]s ] && [ ! -d %[1]s ]; }", Quote(program))
	}
	return "command -v " + Quote(program) + " >/dev/null"
}
