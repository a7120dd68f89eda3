package credentials

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"

	"sunbeam.pt/k3s-dualstack/plans"
)

// maxSize bounds what one source gives, in bytes: far more than any token or list of keys, and
// little enough for a device or a log named by mistake.
const maxSize = 64 << 10

// Reader reads secret values and remembers them, so that nobody is asked twice and a
// password manager runs once. It reads one value at a time, in whatever goroutine:
// two questions never stand on the terminal at once.
type Reader struct {
	// Ask asks a person for a value without showing it; nil where nobody can be
	// asked. It is waited for even when the context ends: the terminal is its own.
	Ask func(question string) ([]byte, error)
	// Kubernetes reads a key of a Kubernetes Secret; nil where there is no cluster.
	Kubernetes func(ctx context.Context, key plans.SecretKey) ([]byte, error)
	// Stderr gets what commands say on standard error; nil shows nothing.
	Stderr io.Writer

	once sync.Once
	turn chan struct{}     // holds one token: who has it reads
	read map[string][]byte // by source; guarded by turn
}

// Read gets the one value that s points to, without the blanks around it. Errors begin
// with field, the value's name for a person.
func (r *Reader) Read(ctx context.Context, field string, s plans.Secret) (string, error) {
	data, err := r.value(ctx, field, s)
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	value := string(data)
	switch {
	case strings.ContainsAny(value, "\r\n"):
		return "", fmt.Errorf("%s: %s gives several lines, and one value is wanted; leave that one alone there", field, s)
	case strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c > '~' }):
		return "", fmt.Errorf("%s: %s gives a value with a blank or a character outside ASCII, which no token or key has; check how it was put there (a text file must not be UTF-16)", field, s)
	}
	return value, nil
}

// value gets what s points to, without the blanks around it and never empty.
func (r *Reader) value(ctx context.Context, field string, s plans.Secret) ([]byte, error) {
	r.once.Do(func() {
		r.turn, r.read = make(chan struct{}, 1), map[string][]byte{}
	})
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("reading %s: %w", s, err)
	}
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("reading %s: %w", s, context.Cause(ctx))
	}
	source, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("telling %s from other sources: %w", s, err)
	}
	name := string(source)
	if s.Prompt {
		name += field // each is a question of its own
	}
	if value, ok := r.read[name]; ok {
		return value, nil
	}
	data, err := r.get(ctx, field, s)
	if err != nil {
		return nil, err
	}
	value := bytes.TrimSpace(data)
	switch {
	case len(value) == 0:
		return nil, fmt.Errorf("%s gives an empty value; put the token or key there", s)
	case len(value) > maxSize:
		return nil, tooLarge(s)
	}
	r.read[name] = value
	return value, nil
}

func tooLarge(s plans.Secret) error {
	return fmt.Errorf("%s gives more than %d KiB, which no token or key is; point to the value alone", s, maxSize>>10)
}

// get reads what s points to. No error of it holds any of that.
func (r *Reader) get(ctx context.Context, field string, s plans.Secret) ([]byte, error) {
	switch {
	case s.Env != "":
		value, ok := os.LookupEnv(s.Env)
		if !ok {
			return nil, fmt.Errorf("%s is not set; export it and repeat the command", s)
		}
		return []byte(value), nil
	case s.File != "":
		return readFile(s)
	case s.Prompt:
		if r.Ask == nil {
			return nil, errors.New("nobody can be asked, as standard input is no terminal; repeat the command in one, or let the plan point to env, file, command or kubernetes")
		}
		answer, err := r.Ask(field + " (it is not shown)")
		if err != nil {
			return nil, fmt.Errorf("asking in the terminal: %w; repeat the command and answer", err)
		}
		return answer, nil
	case len(s.Command) > 0:
		return r.run(ctx, s)
	case s.Kubernetes != nil:
		if r.Kubernetes == nil {
			return nil, fmt.Errorf("%s cannot be read, as this command speaks to no cluster; point to env, file, prompt or command", s)
		}
		value, err := r.Kubernetes(ctx, *s.Kubernetes)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", s, err)
		}
		return value, nil
	}
	return nil, errors.New("nothing says where the value is found; write one of env, file, prompt, command and kubernetes")
}

// readFile reads a file that not every user of the machine can read. Its group may: files
// of root that a group of admins reads are deliberate, and mounted secrets come so.
func readFile(s plans.Secret) ([]byte, error) {
	f, err := os.OpenFile(s.File, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a named pipe must not hold the run up
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s; put it there, or correct the path", strings.TrimPrefix(s.String(), "the "))
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s, withoutPath(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s, withoutPath(err))
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("%s is not a regular file; name one that holds the value", s)
	case mode.Perm()&0o007 != 0:
		return nil, fmt.Errorf("%s is open to every user of this machine (mode %04o); close it with chmod 600, and take what it holds as exposed if others use the machine", s, mode.Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", s, withoutPath(err))
	case len(data) > maxSize:
		return nil, tooLarge(s)
	}
	return data, nil
}

// withoutPath is an error of the file system without the path, which stands in front of it
// already.
func withoutPath(err error) error {
	var located *fs.PathError
	if errors.As(err, &located) {
		return located.Err
	}
	return err
}
