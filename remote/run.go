package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	stderrTail  = 8 << 10   // what ExitError keeps
	maxOutput   = 4 << 20   // what Output takes
	maxScript   = 100 << 10 // Linux takes 128 KiB in one argument, and quoting adds to the script
	killGrace   = 3 * time.Second
	maxSessions = 8 // commands at once on one connection; sshd's MaxSessions is 10 by default, one is for kill
)

// Option says where a command's streams go.
type Option func(*runOptions)

type runOptions struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	marked         bool // the command's first line on standard error is pidMark and its process id
}

// Stdin streams r to the command. When reading r fails, the command is killed and Run returns r's error. A
// command that ends early leaves the rest of r unread, and a Read that is under way then may still return
// later: close r's source after Run.
func Stdin(r io.Reader) Option { return func(o *runOptions) { o.stdin = r } }

// Stdout streams the command's standard output to w. When writing fails, the command is killed and Run
// returns w's error.
func Stdout(w io.Writer) Option { return func(o *runOptions) { o.stdout = w } }

// Stderr streams the command's standard error to w, beside the tail that ExitError keeps.
func Stderr(w io.Writer) Option { return func(o *runOptions) { o.stderr = w } }

// Run runs script with "sh -c" as root. PATH holds the system's directories and LC_ALL is C, so that scripts
// find what they need and output can be parsed whoever logs in. The error is an *ExitError when the script
// ran and failed, and ErrConnectionLost when it is not known whether it did. When ctx ends, the script and
// what it started get SIGTERM, and Run returns the context's error within some seconds whether they end or not.
//
// The script is visible in the host's process list: secrets go through Stdin.
func (h *Host) Run(ctx context.Context, script string, opts ...Option) error {
	o := runOptions{marked: true}
	for _, opt := range opts {
		opt(&o)
	}
	if len(script) > maxScript {
		return fmt.Errorf("host %s: the script has %d bytes, more than the %d that a command line takes; send the data through standard input", h.Name(), len(script), maxScript)
	}
	for {
		c, err := h.connection(ctx)
		if err != nil {
			return err
		}
		err = c.exec(ctx, c.rootCommand(script), o)
		if errors.Is(err, errNotStarted) {
			continue // the connection was dead before the command was sent
		}
		return err
	}
}

// Output runs script as Run does and returns its standard output without surrounding white space. More than
// 4 MiB is an error.
func (h *Host) Output(ctx context.Context, script string) (string, error) {
	out := &bounded{left: maxOutput}
	if err := h.Run(ctx, script, Stdout(out)); err != nil {
		return "", err
	}
	return strings.TrimSpace(out.String()), nil
}

type bounded struct {
	buf  bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > b.left {
		return 0, errors.New("there is more of it than expected")
	}
	b.left -= len(p)
	return b.buf.Write(p)
}

func (b *bounded) String() string { return b.buf.String() }

// environment stands before every script, on its first line so that line numbers in messages stay right.
const environment = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH LC_ALL=C; export PATH LC_ALL; "

// pidMark begins the line in which a command tells its process id. A signal through SSH would reach neither
// what sudo started nor, on older servers, anything at all.
const pidMark = "migrate-pid "

// rootCommand is what the user's login shell gets, whichever shell that is.
func (c *conn) rootCommand(script string) string {
	return c.asRoot("echo " + Quote(pidMark) + "$$ >&2; " + environment + script)
}

func (c *conn) asRoot(script string) string {
	command := Quote("sh", "-c", script)
	if c.sudo {
		return "sudo -n -- " + command
	}
	return command
}

// errNotStarted says that the connection was found dead before a command was sent.
var errNotStarted = fmt.Errorf("%w before the command was sent", ErrConnectionLost)

// exec runs a command line on the connection.
func (c *conn) exec(ctx context.Context, command string, o runOptions) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	session, err := c.session(ctx)
	if err != nil {
		return err
	}
	// Close writes to a connection that may be stuck, which must not hold the caller.
	defer func() { go session.Close() }()
	stdin, err := session.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := session.StdoutPipe()
	if err != nil {
		return err
	}
	stderr, err := session.StderrPipe()
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() { started <- session.Start(command) }()
	select {
	case err := <-started:
		if err != nil {
			return fmt.Errorf("%w: %w", ErrConnectionLost, err)
		}
	case <-ctx.Done():
		return ctx.Err()
	}

	// The first local failure ends the command: a stream that is no longer read would block it for good, and
	// input that broke off must not look complete.
	failed := make(chan error, 3)
	go func() {
		if err := copyIn(stdin, o.stdin); err != nil {
			failed <- err
		}
	}()
	var streams sync.WaitGroup
	streams.Go(func() {
		if err := copyOut(o.stdout, stdout); err != nil {
			failed <- fmt.Errorf("writing the command's output: %w", err)
		}
	})
	tail := &tailBuffer{limit: stderrTail}
	said := io.Writer(tail)
	if o.stderr != nil {
		said = io.MultiWriter(tail, o.stderr)
	}
	pid := &pidFilter{w: said, passing: !o.marked, known: make(chan struct{})}
	streams.Go(func() {
		err := copyOut(pid, stderr)
		if err == nil {
			err = pid.flush()
		}
		if err != nil {
			failed <- fmt.Errorf("writing the command's error output: %w", err)
		}
	})
	exited := make(chan error, 1)
	go func() {
		err := session.Wait() // ends with the connection, too
		streams.Wait()
		exited <- err
	}()

	select {
	case err := <-exited:
		select {
		case localErr := <-failed:
			return localErr
		default:
		}
		return c.result(err, tail.String())
	case err := <-failed:
		c.kill(session, pid, "KILL", exited)
		return err
	case <-ctx.Done():
		c.kill(session, pid, "TERM", exited)
		return ctx.Err()
	}
}

// kill signals the process group of a command, then closes its streams, and waits a little for its end, so
// that the caller's writers are most often at rest when Run returns.
func (c *conn) kill(session *ssh.Session, filter *pidFilter, signal string, exited <-chan error) {
	ctx, cancel := context.WithTimeout(context.Background(), killGrace)
	defer cancel()
	select {
	case <-filter.known:
	case <-exited:
		return
	case <-ctx.Done():
	}
	if pid := filter.pid(); pid != "" {
		script := fmt.Sprintf("group=$(sed 's/.*) //' /proc/%s/stat | cut -d' ' -f3) && kill -s %s -- -$group", Quote(pid), signal)
		if s, err := c.session(ctx); err == nil {
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = s.Run(c.asRoot(script)) // a command that has ended by now is as good
				s.Close()
			}()
			select {
			case <-done:
			case <-ctx.Done():
			}
		}
	}
	select {
	case <-exited:
		return
	case <-time.After(killGrace / 3):
	}
	go session.Close()
	select {
	case <-exited:
	case <-ctx.Done():
	}
}

// session opens a session channel. A connection that does not answer does not hold the caller past ctx, nor one
// that ends meanwhile: x/crypto/ssh leaves a channel waiting for good that is opened between its giving up the
// known ones and its closing the connection (mux.loop, as of v0.58). The goroutines of such a one stay, for some
// KiB a lost connection at most.
func (c *conn) session(ctx context.Context) (*ssh.Session, error) {
	type result struct {
		session *ssh.Session
		err     error
	}
	opened := make(chan result, 1)
	go func() {
		s, err := c.NewSession()
		opened <- result{s, err}
	}()
	abandon := func() {
		go func() {
			if r := <-opened; r.session != nil {
				r.session.Close()
			}
		}()
	}
	select {
	case r := <-opened:
		var refused *ssh.OpenChannelError
		switch {
		case errors.As(r.err, &refused):
			return nil, fmt.Errorf("the host opens no further session: %w", r.err)
		case r.err != nil:
			// The end is noticed here first; whoever looks next must find the connection dead.
			c.cut()
			<-c.dead
			return nil, fmt.Errorf("%w: %w", errNotStarted, r.err)
		}
		return r.session, nil
	case <-c.dead:
		abandon()
		return nil, errNotStarted
	case <-ctx.Done():
		abandon()
		return nil, ctx.Err()
	}
}

func (c *conn) result(err error, stderr string) error {
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		return &ExitError{Code: exit.ExitStatus(), Signal: exit.Signal(), Stderr: stderr}
	}
	// No exit status came: the connection ended, or the host's SSH session was killed.
	return ErrConnectionLost
}

// copyIn returns r's errors only: a command may end without reading all, and its status tells whether that is well.
func copyIn(w io.WriteCloser, r io.Reader) error {
	if r != nil {
		source := &readError{Reader: r}
		_, _ = io.Copy(w, source)
		if source.err != nil {
			return fmt.Errorf("reading the command's input: %w", source.err)
		}
	}
	_ = w.Close()
	return nil
}

// readError keeps a reader's own error apart from the error of the copy.
type readError struct {
	io.Reader
	err error
}

func (r *readError) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// copyOut returns w's errors only; the end of r is told by the command's exit.
func copyOut(w io.Writer, r io.Reader) error {
	if w == nil {
		w = io.Discard
	}
	buf := make([]byte, 64<<10)
	for {
		n, readErr := r.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if readErr != nil {
			return nil
		}
	}
}

// pidFilter takes the line with the process id out of a command's standard error, and what comes before it: that is
// said by the login shell's startup files, or by sudo, and not by the command. Where the line never comes, it
// is passed on, since it tells why.
type pidFilter struct {
	w       io.Writer
	passing bool // the line was found
	line    []byte
	before  []byte // whole lines, the first of them

	known chan struct{} // closed once found holds the process id
	found string
}

func (f *pidFilter) pid() string {
	select {
	case <-f.known:
		return f.found
	default:
		return ""
	}
}

func (f *pidFilter) Write(p []byte) (int, error) {
	all := len(p)
	for !f.passing {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			f.line = append(f.line, p...)
			return all, nil
		}
		line := append(f.line, p[:end+1]...)
		p, f.line = p[end+1:], nil
		if pid, ok := strings.CutPrefix(string(line), pidMark); ok {
			f.found = strings.TrimSpace(pid)
			close(f.known)
			f.passing, f.before = true, nil
			break
		}
		if len(f.before)+len(line) <= stderrTail {
			f.before = append(f.before, line...)
		}
	}
	if len(p) == 0 {
		return all, nil
	}
	if _, err := f.w.Write(p); err != nil {
		return 0, err
	}
	return all, nil
}

// flush passes on an unfinished line of a command that never told its process id.
func (f *pidFilter) flush() error {
	said := append(f.before, f.line...)
	f.before, f.line = nil, nil
	if len(said) == 0 {
		return nil
	}
	_, err := f.w.Write(said)
	return err
}

// tailBuffer keeps the last limit bytes written to it.
type tailBuffer struct {
	limit int
	data  []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if extra := len(t.data) - t.limit; extra > t.limit {
		t.data = append(t.data[:0], t.data[extra:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	return string(t.data[max(0, len(t.data)-t.limit):])
}
