//go:build e2e

package e2e

import (
	"io"
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// person sits at a terminal of 80 columns and 24 rows, on which a program runs.
type person struct {
	*process
	terminal *os.File
	read     int // how much of what was printed was looked at
}

// sit starts a program on a terminal of its own. It does not outlive the test.
func sit(t testing.TB, name string, args ...string) *person {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "TERM=xterm")
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	require.NoError(t, err)
	p := &person{process: &process{Process: cmd.Process, ended: make(chan struct{})}, terminal: terminal}
	go func() {
		_, _ = io.Copy(&p.printed, terminal) // ends with an error when nobody has the other end
		_ = cmd.Wait()
		p.state = cmd.ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.Kill()
		<-p.ended
		terminal.Close()
	})
	return p
}

// sees waits until something is printed that the regular expression fits, behind
// what was seen before.
func (p *person) sees(t testing.TB, expression string) {
	t.Helper()
	fits := regexp.MustCompile(expression)
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		over := p.over()
		text := p.printed.String()
		if at := fits.FindStringIndex(text[p.read:]); at != nil {
			p.read += at[1]
			return
		}
		require.False(t, over || time.Now().After(end), "never saw %s behind this:\n%s\nbut this:\n%s", expression, text[:p.read], text[p.read:])
	}
}

// types types a line.
func (p *person) types(t testing.TB, line string) {
	t.Helper()
	_, err := io.WriteString(p.terminal, line+"\n")
	require.NoError(t, err)
}
