package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/muesli/cancelreader"
)

// keyboard is where a person types: the one reader of a command's standard input, so
// that no question gets what was typed for another.
type keyboard struct {
	in io.Reader

	one   sync.Mutex        // who has it reads, or decides who reads
	rest  []byte            // typed and not read yet
	heard func(line string) // gets what is typed while nothing is asked; nil when nobody listens
	hush  func()            // ends the listening that is under way
}

// Read lets a keyboard stand in for standard input; it is not for beside the rest.
func (k *keyboard) Read(p []byte) (int, error) { return k.in.Read(p) }

// typedAt is the keyboard that a command has as its standard input.
func typedAt(in io.Reader) *keyboard {
	if k, ok := in.(*keyboard); ok {
		return k
	}
	return &keyboard{in: in}
}

// ask waits for a line.
func (k *keyboard) ask(ctx context.Context) (string, error) {
	defer k.alone()()
	return k.line(ctx)
}

// alone keeps everyone else from reading until done is called.
func (k *keyboard) alone() (done func()) {
	k.one.Lock()
	k.pause()
	return func() {
		k.resume()
		k.one.Unlock()
	}
}

// listen has heard called with each line that is typed while nothing is asked, until
// stop is called. heard must ask nothing.
func (k *keyboard) listen(heard func(line string)) (stop func()) {
	k.one.Lock()
	defer k.one.Unlock()
	k.heard = heard
	k.resume()
	return func() {
		k.one.Lock()
		defer k.one.Unlock()
		k.pause()
		k.heard = nil
	}
}

func (k *keyboard) pause() {
	if k.hush != nil {
		k.hush()
		k.hush = nil
	}
}

func (k *keyboard) resume() {
	if k.heard == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	// In the background, what is typed is meant for the shell: reading it must not
	// stop the process in the middle of a migration.
	signal.Ignore(syscall.SIGTTIN)
	go func() {
		defer close(ended)
		for {
			line, err := k.line(ctx)
			switch {
			case err == nil:
				k.heard(line)
			case ctx.Err() != nil || errors.Is(err, io.EOF):
				return
			default:
				// In the background a terminal cannot be read; later it may be again.
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		}
	}()
	k.hush = func() {
		cancel()
		<-ended
		signal.Reset(syscall.SIGTTIN)
	}
}

// line reads a line, without its end. What it does not return when ctx ends stays for
// the next; input that ends within a line ends it. Who calls it has k.one, or listens.
func (k *keyboard) line(ctx context.Context) (string, error) {
	r, err := cancelreader.NewReader(k.in)
	if err != nil {
		// A file, or /dev/null, which can be waited for in no other way: nor has it to be.
		if r, err = cancelreader.NewReader(struct{ io.Reader }{k.in}); err != nil {
			return "", fmt.Errorf("reading standard input: %w", err)
		}
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { r.Cancel() })()
	buf := make([]byte, 4096)
	for {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if line, rest, found := bytes.Cut(k.rest, []byte("\n")); found {
			k.rest = bytes.Clone(rest)
			return string(line), nil
		}
		n, err := r.Read(buf)
		k.rest = append(k.rest, buf[:n]...)
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case err != nil && len(k.rest) > 0:
			line := string(k.rest)
			k.rest = nil
			return line, nil
		case err != nil:
			return "", err
		}
	}
}
