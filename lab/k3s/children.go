package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// children are the processes that K3s holds inside its own. They live no longer
// than this process, even when it is killed; the containers' shims are not among
// them and go on.
type children struct {
	bin     string
	start   chan func()
	mu      sync.Mutex
	running []*child
	// exited carries the first unexpected end.
	exited chan error
	// stopping is closed when ends are expected.
	stopping chan struct{}
}

type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

func newChildren(bin string) *children {
	c := &children{bin: bin, start: make(chan func()), exited: make(chan error, 1), stopping: make(chan struct{})}
	// The kernel sends Pdeathsig when the thread that forked ends, not the
	// process: all forks come from one thread that never ends.
	go func() {
		runtime.LockOSThread()
		for f := range c.start {
			f()
		}
		select {}
	}()
	return c
}

// run starts a program of the payload, or of the host, with its output to w.
func (c *children) run(w io.Writer, program string, args ...string) error {
	path := filepath.Join(c.bin, program)
	if _, err := os.Stat(path); err != nil {
		if path, err = hostProgram(program); err != nil {
			return fmt.Errorf("start %s: %w", program, err)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = w, w
	// Only the launcher speaks to systemd.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") })
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	c.start <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	ch := &child{program, cmd, make(chan struct{})}
	c.mu.Lock()
	c.running = append(c.running, ch)
	c.mu.Unlock()
	go func() {
		err := cmd.Wait()
		close(ch.done)
		select {
		case <-c.stopping:
			return
		default:
		}
		if err == nil {
			err = errors.New("ended without an error")
		}
		select {
		case c.exited <- fmt.Errorf("%s exited: %w", program, err):
		default:
		}
	}()
	return nil
}

// stop ends the children, last started first, and waits for each.
func (c *children) stop() {
	close(c.stopping)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.running) - 1; i >= 0; i-- {
		ch := c.running[i]
		_ = ch.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		select {
		case <-ch.done:
		case <-ctx.Done():
			_ = ch.cmd.Process.Kill()
			<-ch.done
		}
		cancel()
	}
}
