package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// typist is a keyboard that reads what is written to person.
func typist(t *testing.T) (k *keyboard, person *os.File) {
	t.Helper()
	in, person, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { in.Close(); person.Close() })
	return &keyboard{in: in}, person
}

// Every line reaches who it is typed for: nobody who stopped waiting takes one away.
func TestLinesReachTheirQuestion(t *testing.T) {
	k, person := typist(t)
	heard := make(chan string, 10)
	stop := k.listen(func(line string) { heard <- line })
	for i := range 50 {
		fmt.Fprintln(person, "p")
		require.Equal(t, "p", <-heard)

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := k.ask(ctx)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)

		done := k.alone()
		fmt.Fprintf(person, "answer %d\n", i)
		line, err := k.line(t.Context())
		done()
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint("answer ", i), line)
	}
	stop()
	fmt.Fprint(person, "one\ntwo\nlast")
	person.Close()
	for _, want := range []string{"one", "two", "last"} {
		line, err := k.ask(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, line)
	}
	_, err := k.ask(t.Context())
	require.ErrorIs(t, err, io.EOF)
	require.Empty(t, heard)
}

// A listener on input that ends is no hindrance to who asks.
func TestInputThatEnds(t *testing.T) {
	for name, in := range map[string]func(t *testing.T) io.Reader{
		"null":   func(t *testing.T) io.Reader { return file(t, os.DevNull) },
		"file":   func(t *testing.T) io.Reader { return file(t, filepath.Join(t.TempDir(), "empty")) },
		"reader": func(*testing.T) io.Reader { return strings.NewReader("") },
	} {
		t.Run(name, func(t *testing.T) {
			k := typedAt(in(t))
			stop := k.listen(func(line string) { t.Error(line) })
			_, err := k.ask(t.Context())
			require.ErrorIs(t, err, io.EOF)
			stop()
		})
	}
}

// A terminal that cannot be read for a while, as from the background, is listened to again.
func TestReadThatFails(t *testing.T) {
	heard := make(chan string)
	stop := typedAt(&failsOnce{Reader: strings.NewReader("p\n")}).listen(func(line string) { heard <- line })
	require.Equal(t, "p", <-heard)
	stop()
}

type failsOnce struct {
	io.Reader
	failed bool
}

func (f *failsOnce) Read(p []byte) (int, error) {
	if !f.failed {
		f.failed = true
		return 0, syscall.EIO
	}
	return f.Reader.Read(p)
}

func file(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDONLY|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}
