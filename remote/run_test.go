package remote

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

func TestPidFilter(t *testing.T) {
	for name, c := range map[string]struct{ in, pid, out string }{
		"first":                           {"migrate-pid 42\ntext\nmore", "42", "text\nmore"},
		"after warnings":                  {"sudo: unable to resolve host\nmigrate-pid 7\n", "7", ""},
		"after the shell's startup files": {"pyenv: cannot rehash\n\nmotd\nmigrate-pid 7\ntar: x\n", "7", "tar: x\n"},
		"never, after warnings":           {"sudo: unable to resolve host\nsudo: a password is required", "", "sudo: unable to resolve host\nsudo: a password is required"},
		"never":                           {"sudo: a password is required", "", "sudo: a password is required"},
		"only once":                       {"migrate-pid 1\nmigrate-pid 2\n", "1", "migrate-pid 2\n"},
		"empty":                           {"", "", ""},
	} {
		for step := 1; step <= len(c.in)+1; step++ {
			var out bytes.Buffer
			f := &pidFilter{w: &out, known: make(chan struct{})}
			for rest := []byte(c.in); len(rest) > 0; {
				n := min(step, len(rest))
				written, err := f.Write(rest[:n])
				require.NoError(t, err)
				require.Equal(t, n, written)
				rest = rest[n:]
			}
			require.NoError(t, f.flush())
			require.Equal(t, c.pid, f.pid(), name)
			require.Equal(t, c.out, out.String(), name)
		}
	}
}

func TestTailBuffer(t *testing.T) {
	b := &tailBuffer{limit: 4}
	for _, s := range []string{"a", "bc", "", "defghijklmnop", "q"} {
		_, err := b.Write([]byte(s))
		require.NoError(t, err)
	}
	require.Equal(t, "nopq", b.String())
}

// mutedConn stands for a connection that x/crypto/ssh gave up between dropping its channels and closing: a
// channel opened then is never answered, and no error comes either.
type mutedConn struct {
	ssh.Conn
	muted chan struct{}
}

func (m mutedConn) OpenChannel(string, []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	<-m.muted
	return nil, nil, io.EOF
}
func (m mutedConn) Wait() error          { return nil }
func (m mutedConn) Close() error         { return nil }
func (m mutedConn) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (m mutedConn) RemoteAddr() net.Addr { return &net.TCPAddr{} }

func TestEndedConnectionHoldsNobody(t *testing.T) {
	muted := make(chan struct{})
	t.Cleanup(func() { close(muted) })
	channels, requests := make(chan ssh.NewChannel), make(chan *ssh.Request)
	close(channels)
	close(requests)
	c := &conn{
		Client: ssh.NewClient(mutedConn{muted: muted}, channels, requests),
		dead:   make(chan struct{}),
		slots:  make(chan struct{}, 1),
	}
	close(c.dead)
	require.ErrorIs(t, c.exec(t.Context(), "true", runOptions{}), errNotStarted)
	_, err := c.dial(t.Context(), "tcp", "127.0.0.1:1")
	require.ErrorIs(t, err, context.Canceled)
}
