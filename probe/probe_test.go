package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
)

// The test binary runs itself as a watch that is killed; the variable holds its file.
const victim = "PROBE_TEST_VICTIM"

func TestMain(m *testing.M) {
	path := os.Getenv(victim)
	if path == "" {
		os.Exit(m.Run())
	}
	asked := 0
	Watch(context.Background(), path, []Target{
		{Name: "site", Family: IPv4, Check: func(context.Context) error { return nil }},
		{Name: "moody", Family: IPv4, Check: func(context.Context) error {
			if asked++; asked%2 == 0 {
				return errors.New("off")
			}
			return nil
		}},
	}, func(text string) { fmt.Println(text) })
	select {}
}

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

// silent fails the test at a notice.
func silent(t *testing.T) func(string) {
	return func(text string) { t.Errorf("notice: %s", text) }
}

// spans are the spans in short.
func spans(a Availability) (out []string) {
	for _, s := range a.Spans {
		text := string(s.State) + " " + s.length().Round(time.Second).String()
		if s.Why != "" {
			text += ": " + s.Why
		}
		out = append(out, text)
	}
	return out
}

func read(t *testing.T, path string, targets int) []Availability {
	t.Helper()
	all, err := Read(path)
	require.NoError(t, err)
	require.Len(t, all, targets)
	return all
}

// ending is Close for a watch outside of synctest: the test's end ends it, too.
func ending(t *testing.T, w *Watcher) func() {
	end := sync.OnceFunc(w.Close)
	t.Cleanup(end)
	return end
}

// state is what the watch last found out about a target.
func (w *Watcher) state(i int) State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.states[i]
}

func await(t *testing.T, w *Watcher, i int, state State) {
	t.Helper()
	require.Eventually(t, func() bool { return w.state(i) == state }, time.Minute, 10*time.Millisecond, "target %d is %s", i, state)
}

// The bubble of synctest ends when every goroutine has: Close leaves none.
func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "availability.jsonl")
	refused, unready := errors.New("connection refused"), errors.New("HTTP 503")
	synctest.Test(t, func(t *testing.T) {
		var site, young, blind switched
		targets := []Target{site.target("site", IPv4), young.target("site", IPv6), blind.target("blind", IPv6)}
		blind.set(&UnknownError{Why: "no IPv6 here"})
		w := Watch(t.Context(), path, targets, silent(t))
		for _, phase := range []struct {
			site, young error
			lasts       time.Duration
		}{
			{nil, ErrAbsent, 30500 * time.Millisecond},
			{refused, ErrAbsent, 20 * time.Second},
			{unready, refused, 5 * time.Second}, // away still, though for another reason
			{nil, nil, 3 * time.Second},
			{unready, nil, 5 * time.Second},
			{nil, nil, 15 * time.Second},
		} {
			site.set(phase.site)
			young.set(phase.young)
			time.Sleep(phase.lasts)
		}
		w.Close()
	})
	all := read(t, path, 3)
	a := all[0]
	assert.Equal(t, []string{"up 31s", "down 25s: connection refused", "up 3s", "down 5s: HTTP 503", "up 15s"}, spans(a))
	assert.Equal(t, 30*time.Second, a.Down.Round(time.Second))
	assert.Equal(t, 25*time.Second, a.Longest.Round(time.Second))
	assert.Equal(t, a.Spans[1].From, a.First)
	assert.Equal(t, a.Spans[0].From, a.Since)
	assert.False(t, a.AtLeast)

	a = all[1]
	assert.Equal(t, []string{"absent 51s: no address", "down 5s: connection refused", "up 23s"}, spans(a))
	assert.Zero(t, a.Down, "it was not offered before")
	assert.Equal(t, a.Spans[2].From, a.Since)

	assert.Equal(t, []string{"unknown 1m19s: no IPv6 here"}, spans(all[2]))
	assert.Equal(t, 79*time.Second, all[2].Unknown.Round(time.Second))

	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestATargetThatDoesNotAnswerHoldsNoOtherUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "availability.jsonl")
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		w := Watch(t.Context(), path, []Target{
			{Name: "mute", Family: IPv4, Check: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
			{Name: "site", Family: IPv4, Check: func(context.Context) error { asked.Add(1); return nil }},
		}, silent(t))
		time.Sleep(20500 * time.Millisecond)
		w.Close()
		assert.EqualValues(t, 21, asked.Load())
	})
	all := read(t, path, 2)
	assert.Equal(t, []string{"down 21s: no answer within 2s"}, spans(all[0]))
	assert.Equal(t, []string{"up 21s"}, spans(all[1]))
}

func TestAnInterruptEndsTheWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "availability.jsonl")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := Watch(ctx, path, []Target{{Name: "site", Family: IPv4, Check: func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		}}}, silent(t))
		time.Sleep(5500 * time.Millisecond)
		cancel()
		w.Close()
	})
	assert.Equal(t, []string{"up 6s"}, spans(read(t, path, 1)[0]), "a check that was cut off says nothing")
}

func TestATimeInWhichTheMachineSleptIsUnknown(t *testing.T) {
	for name, test := range map[string]struct {
		jump time.Duration // of the clock of the day, while the running one stands
		want []string
	}{
		"asleep":             {time.Hour, []string{"down 20s: off", "unknown 1h0m1s: not watched", "down 30s: off"}},
		"the clock set":      {-time.Hour, []string{"down 20s: off", "down 30s: off"}},
		"the clock adjusted": {3 * time.Second, []string{"down 51s: off"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "availability.jsonl")
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var jump atomic.Int64
				var site switched
				site.set(errors.New("off"))
				w := watch(t.Context(), path, []Target{site.target("site", IPv4)}, silent(t), func() (time.Time, time.Duration) {
					now := time.Now()
					return now.Add(time.Duration(jump.Load())).Round(0), now.Sub(start)
				})
				time.Sleep(20500 * time.Millisecond)
				jump.Store(int64(test.jump))
				time.Sleep(30500 * time.Millisecond)
				w.Close()
			})
			a := read(t, path, 1)[0]
			assert.Equal(t, test.want, spans(a))
		})
	}
}

func TestATimeInWhichNobodyCouldLookIsUnknown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "availability.jsonl")
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var stood atomic.Int64 // for how long the process was stopped, by both clocks
		var site switched
		w := watch(t.Context(), path, []Target{site.target("site", IPv4)}, silent(t), func() (time.Time, time.Duration) {
			now := time.Now().Add(time.Duration(stood.Load()))
			return now.Round(0), now.Sub(start)
		})
		time.Sleep(10500 * time.Millisecond)
		stood.Store(int64(time.Minute))
		time.Sleep(10500 * time.Millisecond)
		w.Close()
	})
	assert.Equal(t, []string{"up 10s", "unknown 1m1s: not watched", "up 10s"}, spans(read(t, path, 1)[0]))
}

func TestAKilledWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "availability.jsonl")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), victim+"="+path)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	require.NoError(t, child.Start())
	t.Cleanup(func() { child.Process.Kill() })
	require.Eventually(t, func() bool {
		all, err := Read(path)
		return err == nil && len(all) == 2 && len(all[1].Spans) > 1
	}, time.Minute, 100*time.Millisecond, "it watches")
	require.NoError(t, child.Process.Kill())
	_ = child.Wait()
	before := read(t, path, 2)[0]
	require.Len(t, before.Spans, 1)

	// What a crash of the machine may leave besides.
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.WriteString(`{"time":"2026-01-01T00:00:`)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	assert.Equal(t, before, read(t, path, 2)[0])

	var site switched
	site.set(errors.New("off"))
	w := Watch(t.Context(), path, []Target{site.target("site", IPv4)}, silent(t))
	end := ending(t, w)
	await(t, w, 0, Down)
	end()
	a := read(t, path, 2)[0]
	require.Len(t, a.Spans, 3, "%v", a.Spans)
	assert.Equal(t, before.Spans[0], a.Spans[0])
	assert.Equal(t, Unknown, a.Spans[1].State)
	assert.Equal(t, NotWatched, a.Spans[1].Why)
	assert.Equal(t, Down, a.Spans[2].State)
	assert.True(t, a.AtLeast, "it may have been down before")
}

func TestAFullDisk(t *testing.T) {
	sshtest.Root(t)
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"))
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, 0)) })
	path, filler := filepath.Join(dir, "availability.jsonl"), filepath.Join(dir, "filler")
	synctest.Test(t, func(t *testing.T) {
		notices := make(chan string, 10)
		var site switched
		w := Watch(t.Context(), path, []Target{site.target("site", IPv4)}, func(text string) { notices <- text })
		time.Sleep(10500 * time.Millisecond)
		// A page is left, and what is left of it: a line may be cut off anywhere.
		require.NoError(t, os.WriteFile(filler, make([]byte, 4096), 0o600))
		for i := 0; len(notices) == 0 && i < 1000; i++ {
			site.set([]error{nil, errors.New("off")}[i%2])
			time.Sleep(2 * time.Second)
		}
		require.Len(t, notices, 1)
		assert.Contains(t, <-notices, "no space left on device")
		time.Sleep(time.Minute)
		site.set(nil)
		require.NoError(t, os.Remove(filler))
		time.Sleep(30500 * time.Millisecond)
		w.Close()
		assert.Empty(t, notices, "it is said once")
	})
	s := spans(read(t, path, 1)[0])
	require.Greater(t, len(s), 2)
	assert.Regexp(t, "unknown 1m[0-9]+s: not watched", s[len(s)-2])
	assert.Regexp(t, "up (29|30)s", s[len(s)-1])
}

func TestAFileThatCannotBeWrittenHindersNothing(t *testing.T) {
	for name, path := range map[string]string{"full": "/dev/full", "gone": filepath.Join(t.TempDir(), "gone", "availability.jsonl")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var notices, asked atomic.Int32
				w := Watch(t.Context(), path, []Target{{Name: "site", Family: IPv4, Check: func(context.Context) error { asked.Add(1); return nil }}},
					func(string) { notices.Add(1) })
				time.Sleep(10500 * time.Millisecond)
				w.Close()
				assert.EqualValues(t, 1, notices.Load())
				assert.EqualValues(t, 11, asked.Load())
			})
		})
	}
}

func TestReadNothing(t *testing.T) {
	all, err := Read(filepath.Join(t.TempDir(), "none"))
	assert.NoError(t, err)
	assert.Empty(t, all)
	_, err = Read(t.TempDir())
	assert.ErrorContains(t, err, "reading the availability")
}

// A line that cannot be read leaves nothing known of what came after it, and is never taken for "up".
func TestReadDamaged(t *testing.T) {
	at := func(s int) string {
		return time.Date(2026, 3, 1, 9, 0, s, 0, time.UTC).Format(time.RFC3339)
	}
	const api = `"target":{"name":"API","family":"IPv4"}`
	path := filepath.Join(t.TempDir(), "availability.jsonl")
	read := func(lines ...string) ([]Availability, error) {
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
		return Read(path)
	}
	states := func(a []Availability) (out []string) {
		for _, s := range a[0].Spans {
			out = append(out, fmt.Sprintf("%s %ds", s.State, int(s.To.Sub(s.From).Seconds())))
		}
		return out
	}
	begin := `{"time":"` + at(0) + `","begin":[{"name":"API","family":"IPv4"}]}`
	up := `{"time":"` + at(1) + `",` + api + `,"state":"up"}`
	again := `{"time":"` + at(21) + `",` + api + `,"state":"up"}`
	for name, damaged := range map[string]string{
		"cut":              `{"time":"` + at(11) + `",` + api + `,"state":"do`,
		"an unknown state": `{"time":"` + at(11) + `",` + api + `,"state":"dawn"}`,
		"no time":          `{` + api + `,"state":"down"}`,
	} {
		a, err := read(begin, up, `{"time":"`+at(6)+`"}`, damaged, again, `{"time":"`+at(31)+`"}`)
		require.NoError(t, err, name)
		require.Equal(t, []string{"up 5s", "unknown 15s", "up 10s"}, states(a), name)
		a, err = read(begin, up, `{"time":"`+at(6)+`"}`, damaged)
		require.NoError(t, err, name)
		require.Equal(t, []string{"up 5s"}, states(a), name, "what a crash left")
	}
	_, err := read("nonsense", "{}")
	require.ErrorContains(t, err, "no record in "+path+" can be read")
}
