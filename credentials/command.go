package credentials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/term"

	"sunbeam.pt/k3s-dualstack/plans"
)

// patience is what a command gets to end in good order once it is told to.
const patience = 5 * time.Second

// run gets what a command prints. It is asked nothing by a pipe into this process, and
// may ask its own questions on the terminal.
func (r *Reader) run(ctx context.Context, s plans.Secret) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.Command[0], s.Command[1:]...)
	out := &limitedBuffer{}
	cmd.Stdout, cmd.Stderr = out, r.Stderr
	if term.IsTerminal(int(os.Stdin.Fd())) {
		cmd.Stdin = os.Stdin
	}
	// A group of its own ends as a whole. On a terminal it would be one in the
	// background, which is stopped when it asks there; an interrupt from the keyboard
	// reaches everything in this process's group anyway.
	group := !hasTerminal()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: group}
	signal := func(sig syscall.Signal) error {
		if group {
			return syscall.Kill(-cmd.Process.Pid, sig)
		}
		return cmd.Process.Signal(sig)
	}
	cmd.Cancel = func() error { return signal(syscall.SIGTERM) }
	cmd.WaitDelay = patience
	err := cmd.Run()
	if err != nil && cmd.Process != nil {
		_ = signal(syscall.SIGKILL) // what it left behind
	}
	switch {
	case out.full:
		return nil, tooLarge(s)
	case err == nil:
		return out.data.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("waiting for %s: %w", s, context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("there is no program of that name in PATH for %s; install it, or write its path", s)
	case errors.Is(err, exec.ErrWaitDelay):
		return nil, fmt.Errorf("%s ended, but something it started keeps its standard output open; point to a command that ends with all it prints", s)
	}
	return nil, fmt.Errorf("running %s: %w; repeat it by hand until it prints the value", s, err)
}

// hasTerminal tells whether this process has a terminal that it controls.
func hasTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// limitedBuffer takes no more than a value can have, so that what prints without end is
// stopped.
type limitedBuffer struct {
	data bytes.Buffer
	full bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.data.Len()+len(p) > maxSize {
		b.full = true
		return 0, errors.New("more than a value can have")
	}
	return b.data.Write(p)
}
