package probe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// switched is a target that a test switches between errors.
type switched struct{ err atomic.Pointer[error] }

func (s *switched) set(err error) { s.err.Store(&err) }

func (s *switched) target(name, family string) Target {
	return Target{Name: name, Family: family, Check: func(context.Context) error {
		if err := s.err.Load(); err != nil {
			return *err
		}
		return nil
	}}
}

func quiet(t *testing.T) func(string) {
	return func(text string) { t.Errorf("notice: %s", text) }
}

// states are the spans in short.
func states(a Availability) (out []string) {
	for _, s := range a.Spans {
		text := string(s.State) + " " + s.length().Round(time.Second).String()
		if s.Why != "" {
			text += ": " + s.Why
		}
		out = append(out, text)
	}
	return out
}

func read(t *testing.T, path string, n int) []Availability {
	t.Helper()
	all, err := Read(path)
	require.NoError(t, err)
	require.Len(t, all, n)
	return all
}

func TestOutage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "availability.jsonl")
	synctest.Test(t, func(t *testing.T) {
		var site switched
		w := Watch(t.Context(), path, []Target{site.target("site", IPv4)}, quiet(t))
		for _, step := range []struct {
			err  error
			for_ time.Duration
		}{{nil, 30500}, {errors.New("connection refused"), 20000}, {nil, 3000}, {errors.New("HTTP 503"), 5000}, {nil, 15000}} {
			site.set(step.err)
			time.Sleep(step.for_ * time.Millisecond)
		}
		w.Close()
	})
	a := read(t, path, 1)[0]
	assert.Equal(t, []string{"up 31s", "down 20s: connection refused", "up 3s", "down 5s: HTTP 503", "up 15s"}, states(a))
	assert.Equal(t, 25*time.Second, a.Down)
	assert.Equal(t, 20*time.Second, a.Longest)
	assert.Equal(t, a.Spans[1].From, a.First)
	assert.False(t, a.AtLeast)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}
