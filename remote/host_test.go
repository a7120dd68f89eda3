package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if leaked := leftGoroutines(); code == 0 && leaked != "" {
		fmt.Fprintf(os.Stderr, "goroutines that did not end:\n%s\n", leaked)
		code = 1
	}
	os.Exit(code)
}

// leftGoroutines returns the stacks of goroutines that still stand in this package or in the SSH library
// after all connections were closed, giving them some seconds to end.
func leftGoroutines() string {
	var left []string
	for range 300 {
		left = nil
		buf := make([]byte, 4<<20)
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			// What x/crypto/ssh leaves waiting for good when a connection ends at the wrong
			// moment, and what would close it; see conn.session.
			if strings.Contains(stack, "ssh.(*mux).openChannel(") || strings.Contains(stack, "(*conn).session.func2.1(") {
				continue
			}
			if (strings.Contains(stack, "crypto/ssh.") || strings.Contains(stack, "k3s-dualstack/remote.")) && !strings.Contains(stack, "TestMain") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return ""
		}
		time.Sleep(100 * time.Millisecond)
	}
	return strings.Join(left, "\n\n")
}

func TestRun(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	h := s.dial(t)
	require.Equal(t, "node1", h.Name())
	require.Regexp(t, "^SHA256:", h.HostKey())

	out, err := h.Output(t.Context(), "echo hello; echo $LC_ALL; id -u; case $PATH in /usr/local/sbin:*) echo path;; esac")
	require.NoError(t, err)
	if os.Getuid() == 0 {
		require.Equal(t, "hello\nC\n0\npath", out)
	}

	var stderr bytes.Buffer
	err = h.Run(t.Context(), "echo broken >&2; printf unfinished >&2; exit 3", Stderr(&stderr))
	require.Equal(t, &ExitError{Code: 3, Stderr: "broken\nunfinished"}, err)
	require.Equal(t, "broken\nunfinished", stderr.String())

	err = h.Run(t.Context(), "kill -KILL $$")
	var exit *ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 137, exit.Code)

	// The tail is kept, not the beginning.
	err = h.Run(t.Context(), "i=0; while [ $i -lt 5000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1")
	require.ErrorAs(t, err, &exit)
	require.Len(t, exit.Stderr, stderrTail)
	require.True(t, strings.HasSuffix(exit.Stderr, "line 4999\n"))

	// Standard input and output stream at the same time; a script without input reads nothing.
	const size = 8 << 20
	sum := sha256.New()
	require.NoError(t, h.Run(t.Context(), "cat", Stdin(io.LimitReader(endless('x'), size)), Stdout(sum)))
	want := sha256.New()
	_, _ = io.CopyN(want, endless('x'), size)
	require.Equal(t, want.Sum(nil), sum.Sum(nil))
	out, err = h.Output(t.Context(), "cat; echo end")
	require.NoError(t, err)
	require.Equal(t, "end", out)

	// A command may leave its input unread.
	require.NoError(t, h.Run(t.Context(), "exec true", Stdin(endless('x'))))

	_, err = h.Output(t.Context(), "yes")
	require.ErrorContains(t, err, "more of it than expected")
	require.ErrorContains(t, h.Run(t.Context(), strings.Repeat("#", maxScript+1)), "send the data through standard input")

	// More commands at once than a server allows on one connection.
	var wg sync.WaitGroup
	errs := make([]error, 30)
	for i := range errs {
		wg.Go(func() { errs[i] = h.Run(t.Context(), "sleep 0.05") })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))

	require.NoError(t, h.Close())
	require.NoError(t, h.Close())
	require.ErrorIs(t, h.Run(t.Context(), "true"), ErrClosed)
}

// endless is a reader without end.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestLocalFailuresEndTheCommand(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	h := s.dial(t)
	broken := errors.New("the disk broke")

	file := filepath.Join(s.dir, "pid1")
	err := h.Run(t.Context(), "echo $$ >"+Quote(file)+"; cat >/dev/null; sleep 1000", Stdin(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken))))
	require.ErrorIs(t, err, broken)
	expectEnd(t, file)

	file = filepath.Join(s.dir, "pid2")
	err = h.Run(t.Context(), "echo $$ >"+Quote(file)+"; echo text; sleep 1000", Stdout(writerFunc(func([]byte) (int, error) { return 0, broken })))
	require.ErrorIs(t, err, broken)
	expectEnd(t, file)

	// The end of the context ends the command and what it started, though no stream tells them.
	file = filepath.Join(s.dir, "pid3")
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		result <- h.Run(ctx, "(sleep 1000 & echo $! >"+Quote(file)+"; wait) >/dev/null 2>&1")
	}()
	expectTrue(t, func() bool { b, _ := os.ReadFile(file); return len(b) > 0 }, "the command's start")
	cancel()
	require.ErrorIs(t, <-result, context.Canceled)
	expectEnd(t, file)
	require.NoError(t, h.Run(t.Context(), "true"), "the connection is still good")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestFiles(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	h := s.dial(t)
	all := make([]byte, 0, 256*300)
	for i := range 256 * 300 {
		all = append(all, byte(i*7+i/256))
	}
	name := s.dir + "/new dir/deep/fi'le\n"
	for _, data := range [][]byte{{}, []byte("no newline"), []byte("a\x00\r\n\xff"), all} {
		require.NoError(t, h.WriteFile(t.Context(), name, data, 0o640))
		got, err := h.ReadFile(t.Context(), name)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))
	}
	info, err := os.Stat(name)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), info.Mode())
	parent, err := os.Stat(filepath.Dir(name))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o755), parent.Mode().Perm())
	require.NoError(t, h.WriteFile(t.Context(), s.dir+"/setuid", nil, 0o755|fs.ModeSetuid))
	info, err = os.Stat(s.dir + "/setuid")
	require.NoError(t, err)
	require.Equal(t, 0o755|fs.ModeSetuid, info.Mode())
	require.NoError(t, h.WriteFile(t.Context(), s.dir+"/state/journal/lines", []byte("x"), 0o600))
	parent, err = os.Stat(s.dir + "/state")
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), parent.Mode().Perm())

	_, err = h.ReadFile(t.Context(), s.dir+"/none")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = h.ReadFile(t.Context(), s.dir)
	require.Error(t, err)
	require.NotErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, h.WriteFile(t.Context(), "relative", nil, 0o600), "not absolute")

	// A directory in the file's place stays; nothing is left beside it.
	require.NoError(t, os.Mkdir(s.dir+"/occupied", 0o755))
	require.Error(t, h.WriteFile(t.Context(), s.dir+"/occupied", []byte("x"), 0o600))
	left, err := filepath.Glob(s.dir + "/.migrate.*")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestDialContext(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	h := s.dial(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-r.Context().Done()
			return
		}
		_, _ = io.Copy(w, r.Body)
	}))
	defer web.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: h.DialContext}}
	defer client.CloseIdleConnections()

	body := strings.Repeat("body ", 1<<18)
	response, err := client.Post(web.URL, "text/plain", strings.NewReader(body))
	require.NoError(t, err)
	echoed, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, body, string(echoed))

	client.Timeout = 100 * time.Millisecond
	_, err = client.Get(web.URL + "/slow")
	require.ErrorContains(t, err, "deadline exceeded")

	c, err := h.DialContext(t.Context(), "tcp", strings.TrimPrefix(web.URL, "http://"))
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = c.Read(make([]byte, 1))
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
	require.NoError(t, c.Close())

	_, err = h.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", freePort(t)))
	require.ErrorContains(t, err, "host node1: dialling 127.0.0.1")
	require.NotErrorIs(t, err, ErrConnectionLost)
	_, err = h.DialContext(t.Context(), "udp", "127.0.0.1:1")
	require.ErrorContains(t, err, "only tcp")
	_, err = h.DialContext(t.Context(), "tcp", "nonsense")
	require.ErrorContains(t, err, "missing port")
	_, err = h.DialContext(t.Context(), "tcp", "127.0.0.1:https")
	require.ErrorContains(t, err, "the port is not a number")
}

// TestLostConnection cuts the network in both ways while commands run.
func TestLostConnection(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	for name, cut := range map[string]func(*network){
		"reset":     (*network).reset,
		"blackhole": func(n *network) { n.set(true, false) },
	} {
		t.Run(name, func(t *testing.T) {
			n := startNetwork(t, s.address())
			h := s.dialAs(t, s.through(t, n))
			count := filepath.Join(s.dir, "count-"+name)
			result := make(chan error, 1)
			go func() {
				result <- h.Run(t.Context(), "echo once >>"+Quote(count)+"; sleep 20", Stdin(endless('x')))
			}()
			expectTrue(t, func() bool { b, _ := os.ReadFile(count); return len(b) > 0 }, "the command's start")
			cut(n)
			select {
			case err := <-result:
				require.ErrorIs(t, err, ErrConnectionLost)
			case <-time.After(time.Minute):
				t.Fatal("the loss of the connection was not noticed")
			}
			n.set(false, false)
			out, err := h.Output(t.Context(), "cat "+Quote(count))
			require.NoError(t, err, "the next call connects anew")
			require.Equal(t, "once", out, "the command in flight was not repeated")
		})
	}
}

func TestReconnecting(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{hostKeyTypes: []string{"ed25519", "ecdsa"}})
	n := startNetwork(t, s.address())
	h := s.dialAs(t, s.through(t, n))

	// While the host is away: bounded, and the context is honoured.
	h.settings.redialFor = 300 * time.Millisecond
	n.set(false, true)
	n.reset()
	var unreachable *UnreachableError
	expectTrue(t, func() bool { return errors.As(h.Run(t.Context(), "true"), &unreachable) }, "the error")
	h.settings.redialFor = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, h.Run(ctx, "true"), context.DeadlineExceeded)

	// It comes back while calls wait; one connection serves them all.
	var wg sync.WaitGroup
	errs := make([]error, 5)
	for i := range errs {
		wg.Go(func() { errs[i] = h.Run(t.Context(), "true") })
	}
	n.set(false, false)
	wg.Wait()
	require.NoError(t, errors.Join(errs...))

	// A connection found dead only when a command is to be sent: the command was not sent, so it is not lost.
	n.reset()
	require.NoError(t, h.Run(t.Context(), "true"))

	// Another key, though known_hosts now lists it too, is not the machine that this run began with.
	key := h.HostKey()
	n.reset()
	s.trust(t, s.hostKeys[1])
	n.rename(t, s)
	err := h.Run(t.Context(), "true")
	var changed *ChangedHostKeyError
	require.ErrorAs(t, err, &changed)
	require.ErrorContains(t, err, "earlier in this run")
	require.Equal(t, key, h.HostKey())

	// Close does not wait for a host that does not come back.
	n.set(false, true)
	n.reset()
	result := make(chan error, 1)
	go func() { result <- h.Run(t.Context(), "true") }()
	expectTrue(t, func() bool { return len(h.turn) == 1 }, "the attempt to connect anew")
	require.NoError(t, h.Close())
	require.ErrorIs(t, <-result, ErrClosed)
}

func TestParallelStreams(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	h := s.dial(t)
	const size = 16 << 20
	want := sha256.New()
	_, _ = io.CopyN(want, endless('y'), size)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			other, err := h.Another(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer other.Close()
			got := sha256.New()
			if err := other.Run(t.Context(), fmt.Sprintf("head -c %d /dev/zero | tr '\\0' y", size), Stdout(got)); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
				t.Error("a stream differs")
			}
		})
	}
	wg.Wait()
}

// BenchmarkStream moves bytes from the host through one connection; b.N counts MiB.
func BenchmarkStream(b *testing.B) {
	s := startServer(b, serverOptions{})
	h := s.dial(b)
	b.SetBytes(1 << 20)
	b.ResetTimer()
	if err := h.Run(b.Context(), fmt.Sprintf("head -c %dM /dev/zero", b.N), Stdout(io.Discard)); err != nil {
		b.Fatal(err)
	}
}

// TestAnswers asks over a line that is good, mute, and gone; what is gone is left so.
func TestAnswers(t *testing.T) {
	t.Parallel()
	s := startServer(t, serverOptions{})
	n := startNetwork(t, s.address())
	h := s.dialAs(t, s.through(t, n))
	const patient, brief = 30 * time.Second, 300 * time.Millisecond // brief where nothing is to come
	answers := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		return h.Answers(ctx)
	}
	require.NoError(t, answers(patient))
	n.set(true, false)
	require.ErrorIs(t, answers(brief), ErrConnectionLost)
	n.set(false, false)
	n.reset()
	expectTrue(t, func() bool { return !h.current.alive() }, "the connection's end")
	require.ErrorIs(t, answers(patient), ErrConnectionLost)
	require.ErrorIs(t, answers(patient), ErrConnectionLost, "it does not connect anew")
	require.NoError(t, h.Run(t.Context(), "true"))
	require.NoError(t, answers(patient))

	h.turn <- struct{}{} // another call is connecting
	require.ErrorIs(t, answers(brief), ErrConnectionLost)
	<-h.turn
	require.NoError(t, h.Close())
	require.ErrorIs(t, answers(patient), ErrConnectionLost)
}
