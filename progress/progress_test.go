package progress

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files")

func TestSilentWithoutReporter(t *testing.T) {
	var r *Reporter
	for _, task := range []*Task{r.Bytes("x", 1), r.Wait("y")} {
		n, err := task.Write([]byte("abc"))
		require.NoError(t, err)
		require.Equal(t, 3, n)
		task.Add(1)
		task.Detail("d")
		task.Done()
	}
	_, err := io.WriteString(r.Writer(), "z\n")
	require.NoError(t, err)
}

func TestPlainLines(t *testing.T) {
	var b bytes.Buffer
	clock := time.Unix(0, 0)
	r := New(&b, false)
	r.now = func() time.Time { return clock }

	known := r.Bytes("volume data/pg", 1000<<20)
	for range 100 { // 10 MiB each quarter of a second: a line for every tenth part
		clock = clock.Add(250 * time.Millisecond)
		known.Add(10 << 20)
	}
	known.Done()
	known.Done()
	known.Add(1)

	unknown := r.Bytes("objects", -1)
	for range 25 {
		clock = clock.Add(time.Second)
		_, _ = unknown.Write(make([]byte, 700))
	}
	unknown.Done()

	wait := r.Wait("node")
	for i := range 30 {
		clock = clock.Add(time.Second)
		wait.Detail(fmt.Sprintf("%d of 2 podCIDRs", i/12))
	}
	fmt.Fprint(r.Writer(), "half a ")
	fmt.Fprint(r.Writer(), "line\nand")
	wait.Done()
	fmt.Fprint(r.Writer(), " the rest\n")
	empty := r.Bytes("nothing", 0)
	empty.Done()

	file := filepath.Join("testdata", "plain.txt")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, b.Bytes(), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

// screen is as much of a terminal as the reporter needs. Lines longer than its width would wrap and so
// break the count; it fails on them.
type screen struct {
	t     *testing.T
	mu    sync.Mutex
	width int
	lines []string
	row   int
	raw   bytes.Buffer
}

var sequence = regexp.MustCompile(`^\x1b\[(\d*)([A-Za-z])`)

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw.Write(p)
	for rest := string(p); rest != ""; {
		for len(s.lines) <= s.row {
			s.lines = append(s.lines, "")
		}
		if m := sequence.FindStringSubmatch(rest); m != nil {
			n, _ := strconv.Atoi(m[1])
			switch m[2] {
			case "A":
				s.row -= n
				if s.row < 0 {
					s.t.Error("the cursor left the screen")
					s.row = 0
				}
			case "K":
				s.lines[s.row] = ""
			default:
				s.t.Errorf("unexpected sequence %q", m[0])
			}
			rest = rest[len(m[0]):]
			continue
		}
		switch rest[0] {
		case '\r':
			rest = rest[1:]
			continue
		case '\n':
			s.row++
			rest = rest[1:]
			continue
		}
		end := strings.IndexAny(rest, "\r\n\x1b")
		if end < 0 {
			end = len(rest)
		}
		s.lines[s.row] += rest[:end]
		if len([]rune(s.lines[s.row])) >= s.width {
			s.t.Errorf("line wraps: %q", s.lines[s.row])
		}
		rest = rest[end:]
	}
	return len(p), nil
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimRight(strings.Join(s.lines, "\n"), "\n")
}

func TestBarsOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	s := &screen{t: t, width: 60}
	r := New(s, true)
	r.size = func() (int, int) { return 60, 24 }

	first := r.Bytes("volume data/pg", 100<<20)
	second := r.Bytes("objects", -1)
	third := r.Wait("workloads")
	third.Detail("ünsere Lage: " + strings.Repeat("far too long to fit ", 10))
	first.Add(50 << 20)
	second.Add(3 << 10)
	require.Eventually(t, func() bool {
		text := s.text()
		return strings.Contains(text, "volume data/pg 50%") && strings.Contains(text, "objects") && strings.Contains(text, "workloads (") && strings.Contains(text, "…")
	}, 5*time.Second, 10*time.Millisecond)

	out := r.Writer()
	fmt.Fprint(out, "a notice in ")
	require.NotContains(t, s.text(), "notice", "only whole lines")
	fmt.Fprint(out, "two writes\n")
	require.True(t, strings.HasPrefix(s.text(), "a notice in two writes\n"), s.text())

	second.Done()
	first.Add(60 << 20) // more than announced
	first.Done()
	third.Done()
	require.Regexp(t, `^a notice in two writes
objects: 3\.0 KiB in \S+, \S+ \S+/s
volume data/pg: 110\.0 MiB in \S+, \S+ \S+/s
workloads: took \S+$`, strings.TrimSpace(s.text()))
	require.NotRegexp(t, `\x1b\[[0-9;]*m`, s.raw.String(), "no colours, whatever NO_COLOR says")
	require.Nil(t, r.stop, "nothing goes on drawing")

	again := r.Wait("another")
	again.Done()
	require.Contains(t, s.text(), "another: took")
}

// A question stands alone until it is answered; nothing of what came meanwhile is lost.
func TestQuestion(t *testing.T) {
	t.Setenv("TERM", "xterm")
	s := &screen{t: t, width: 60}
	r := New(s, true)
	r.size = func() (int, int) { return 60, 24 }
	task, other := r.Wait("workloads"), r.Wait("objects")
	done := r.Question("token: ")
	require.Equal(t, "token: ", s.text(), "at once, without an end of line")
	fmt.Fprint(r.Writer(), "a notice\n")
	other.Done()
	time.Sleep(3 * redrawEvery)
	require.Equal(t, "token: ", s.text(), "nothing is drawn over it")
	done()
	require.Regexp(t, `^token: \na notice\nobjects: took \S+\n\S workloads`, s.text())
	task.Done()
}

// What a person types below the tasks goes when these are drawn anew, and takes nothing along.
func TestTyped(t *testing.T) {
	t.Setenv("TERM", "xterm")
	s := &screen{t: t, width: 60}
	r := New(s, true)
	r.size = func() (int, int) { return 60, 24 }
	r.Typed() // nothing is drawn: it stays
	fmt.Fprint(r.Writer(), "a notice\n")
	task := r.Wait("workloads")
	_, _ = s.Write([]byte("p\n")) // as the terminal echoes it
	r.Typed()
	fmt.Fprint(r.Writer(), "another\n")
	require.Regexp(t, `^a notice\nanother\n\S workloads`, s.text())
	require.NotContains(t, s.text(), "\np")
	task.Done()
}

func TestMoreTasksThanRows(t *testing.T) {
	t.Setenv("TERM", "xterm")
	s := &screen{t: t, width: 60}
	r := New(s, true)
	r.size = func() (int, int) { return 60, 4 }
	var tasks []*Task
	for i := range 10 {
		tasks = append(tasks, r.Wait(fmt.Sprint("task ", i)))
	}
	require.Equal(t, 3, r.drawn)
	for _, task := range tasks {
		task.Done()
	}
	require.Equal(t, 10, strings.Count(s.text(), "took"))
}

func TestDumbTerminal(t *testing.T) {
	t.Setenv("TERM", "dumb")
	var b bytes.Buffer
	New(&b, true).Bytes("x", 5).Done()
	require.NotContains(t, b.String(), "\x1b")
}

func TestParallelUse(t *testing.T) {
	t.Setenv("TERM", "xterm")
	for _, terminal := range []bool{true, false} {
		r := New(io.Discard, terminal)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				task := r.Bytes(fmt.Sprint(i), 1000)
				for range 1000 {
					task.Add(1)
				}
				fmt.Fprintln(r.Writer(), "said")
				task.Done()
			})
		}
		wg.Wait()
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 4 << 30: "4.0 GiB", 5 << 40: "5.0 TiB", 6 << 50: "6.0 PiB"} {
		require.Equal(t, want, size(n))
	}
}

func BenchmarkAdd(b *testing.B) {
	task := New(io.Discard, true).Bytes("x", -1)
	defer task.Done()
	for b.Loop() {
		task.Add(1)
	}
}
