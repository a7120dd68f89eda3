// Package progress shows what a long action does: a bar or a line with changing detail for each task on a
// terminal, plain lines with a bounded rate elsewhere. It owns the terminal's last lines while tasks are under way.
package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rivo/uniseg"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

const (
	redrawEvery = 150 * time.Millisecond
	plainEvery  = 10 * time.Second // between two plain lines of a task,
	plainPart   = 10               // or when this many per cent were added and plainLeast has passed,
	plainLeast  = time.Second
	plainDetail = 5 * time.Second // or when the detail changed and this has passed
)

// Reporter shows tasks. A nil Reporter is valid and silent. It is safe for concurrent use.
type Reporter struct {
	w        io.Writer
	terminal bool
	size     func() (columns, rows int)
	now      func() time.Time

	mu      sync.Mutex
	tasks   []*Task
	drawn   int           // lines that now stand on the terminal below all other output
	partial []byte        // the unfinished line written to Writer
	asking  bool          // a question stands on the terminal: all else waits
	stop    chan struct{} // ends the redrawing, nil when no task is under way
}

// New returns a Reporter that writes to w, most often standard error. terminal tells whether w is one; on a
// terminal that cannot move its cursor (TERM=dumb) plain lines are written. No colour is used at all.
func New(w io.Writer, terminal bool) *Reporter {
	r := &Reporter{w: w, terminal: terminal && os.Getenv("TERM") != "dumb", size: func() (int, int) { return 80, 24 }, now: time.Now}
	if f, ok := w.(*os.File); ok {
		r.size = func() (int, int) {
			if columns, rows, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 && rows > 0 {
				return columns, rows
			}
			return 80, 24
		}
	}
	return r
}

// Task is one action under way. A nil Task is valid and silent. It is safe for concurrent use.
type Task struct {
	r       *Reporter
	label   string
	bytes   bool
	total   int64 // negative when not known
	n       int64
	detail  string
	started time.Time
	ended   bool

	bar       *progressbar.ProgressBar // on a terminal, for bytes
	saidAt    time.Time                // last plain line
	saidPart  int64
	saidWhat  string
	spinner   int
	lastShown int64
}

// Bytes begins a task that moves bytes; total below zero stands for not known.
func (r *Reporter) Bytes(label string, total int64) *Task {
	return r.begin(&Task{label: label, bytes: true, total: total})
}

// Wait begins a task of unknown length that tells how it stands by Detail.
func (r *Reporter) Wait(label string) *Task {
	return r.begin(&Task{label: label, total: -1})
}

func (r *Reporter) begin(t *Task) *Task {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t.r, t.started = r, r.now()
	t.saidAt = t.started
	if !r.terminal {
		line := t.label
		if t.bytes && t.total >= 0 {
			line += ": " + size(t.total)
		}
		fmt.Fprintln(r.w, line+" …")
		return t
	}
	if t.bytes {
		columns, _ := r.size()
		t.bar = progressbar.NewOptions64(t.total,
			progressbar.OptionSetWriter(io.Discard),
			progressbar.OptionShowBytes(true),
			progressbar.OptionShowCount(),
			progressbar.OptionShowTotalBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetWidth(min(24, columns/8)),
			progressbar.OptionSetElapsedTime(true),
			progressbar.OptionSetPredictTime(t.total >= 0),
			progressbar.OptionSetTheme(progressbar.ThemeASCII),
			progressbar.OptionSetSpinnerChangeInterval(0), // it would draw by itself, beside String
		)
	}
	r.tasks = append(r.tasks, t)
	r.redraw()
	if r.stop == nil {
		r.stop = make(chan struct{})
		go r.keepDrawing(r.stop)
	}
	return t
}

func (r *Reporter) keepDrawing(stop chan struct{}) {
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			r.mu.Lock()
			if r.stop == stop {
				r.redraw()
			}
			r.mu.Unlock()
		}
	}
}

// redraw replaces the tasks' lines by their present state; r.mu is held.
func (r *Reporter) redraw() {
	if r.asking {
		return
	}
	var b bytes.Buffer
	r.erase(&b)
	columns, rows := r.size()
	// What has scrolled off the terminal could not be erased any more.
	for _, t := range r.tasks[:min(len(r.tasks), max(1, rows-1))] {
		b.WriteString(fit(t.line(), columns-1))
		b.WriteByte('\n')
		r.drawn++
	}
	_, _ = r.w.Write(b.Bytes())
}

// erase empties the drawn lines and moves to the first of them. It works line by line: clearing the rest of
// the screen at once makes some terminals keep what was cleared in their history.
func (r *Reporter) erase(b *bytes.Buffer) {
	if r.drawn == 0 {
		return
	}
	up := fmt.Sprintf("\r\x1b[%dA", r.drawn)
	b.WriteString(up + strings.Repeat("\x1b[2K\n", r.drawn) + up)
	r.drawn = 0
}

// line is the task's present state on a terminal.
func (t *Task) line() string {
	elapsed := t.r.now().Sub(t.started)
	if t.bar == nil {
		t.spinner++
		line := fmt.Sprintf("%c %s (%s)", `|/-\`[t.spinner%4], t.label, round(elapsed))
		if t.detail != "" {
			line += ": " + t.detail
		}
		return line
	}
	_ = t.bar.Add64(t.n - t.lastShown) // more bytes than announced leave the bar full
	t.lastShown = t.n
	line := t.label + " " + strings.TrimSpace(strings.ReplaceAll(t.bar.String(), "\r", ""))
	if t.detail != "" {
		line += " " + t.detail
	}
	return line
}

// fit cuts a line to the terminal's width, so that no line wraps and the count of drawn lines stays right.
func fit(line string, width int) string {
	line = strings.NewReplacer("\n", " ", "\t", " ").Replace(line)
	if uniseg.StringWidth(line) <= width {
		return line
	}
	var b strings.Builder
	used := 0
	g := uniseg.NewGraphemes(line)
	for g.Next() {
		if used += g.Width(); used > width-1 {
			break
		}
		b.WriteString(g.Str())
	}
	return b.String() + "…"
}

// Write counts len(p) bytes, so that a task can stand in an io.MultiWriter or io.TeeReader.
func (t *Task) Write(p []byte) (int, error) {
	t.Add(int64(len(p)))
	return len(p), nil
}

// Add counts n bytes.
func (t *Task) Add(n int64) {
	if t == nil {
		return
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.n += n
	t.plain()
}

// Detail tells in a few words how the task stands.
func (t *Task) Detail(s string) {
	if t == nil {
		return
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.detail = s
	t.plain()
}

// plain writes a line where there is no terminal, seldom enough for a log; r.mu is held.
func (t *Task) plain() {
	if t.r.terminal || t.ended {
		return
	}
	now := t.r.now()
	since := now.Sub(t.saidAt)
	part := int64(0)
	if t.bytes && t.total > 0 {
		part = min(t.n, t.total) * 100 / t.total
	}
	changed := t.detail != t.saidWhat
	switch {
	case since >= plainEvery:
	case since >= plainLeast && part-t.saidPart >= plainPart:
	case since >= plainDetail && changed:
	default:
		return
	}
	t.saidAt, t.saidPart, t.saidWhat = now, part, t.detail
	elapsed := now.Sub(t.started)
	line := t.label + ":"
	if t.bytes {
		line += " " + size(t.n)
		if t.total > 0 {
			line += fmt.Sprintf(" of %s (%d %%)", size(t.total), part)
		}
		line += ", " + rate(t.n, elapsed)
	}
	if t.detail != "" {
		line += " " + t.detail
	}
	fmt.Fprintf(t.r.w, "%s, %s\n", strings.TrimSuffix(line, ","), round(elapsed))
}

// Done ends the task, whatever became of it, and leaves one line that says what it moved and how long that took. Further calls
// do nothing.
func (t *Task) Done() {
	if t == nil {
		return
	}
	r := t.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.ended {
		return
	}
	t.ended = true
	elapsed := r.now().Sub(t.started)
	line := fmt.Sprintf("%s: took %s", t.label, round(elapsed))
	if t.bytes {
		line = fmt.Sprintf("%s: %s in %s, %s", t.label, size(t.n), round(elapsed), rate(t.n, elapsed))
	}
	if !r.terminal {
		fmt.Fprintln(r.w, line)
		return
	}
	if r.asking {
		r.partial = append(r.partial, line+"\n"...)
	} else {
		var b bytes.Buffer
		r.erase(&b)
		b.WriteString(line + "\n")
		_, _ = r.w.Write(b.Bytes())
	}
	for i, other := range r.tasks {
		if other == t {
			r.tasks = append(r.tasks[:i], r.tasks[i+1:]...)
			break
		}
	}
	r.redraw()
	if len(r.tasks) == 0 && r.stop != nil {
		close(r.stop)
		r.stop = nil
	}
}

// Writer returns a writer for all other output to the same place: it passes on whole lines, above the tasks'.
func (r *Reporter) Writer() io.Writer {
	if r == nil {
		return io.Discard
	}
	return lines{r}
}

type lines struct{ r *Reporter }

func (l lines) Write(p []byte) (int, error) {
	r := l.r
	r.mu.Lock()
	defer r.mu.Unlock()
	r.partial = append(r.partial, p...)
	if err := r.flush(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush passes on the whole lines of what was written; r.mu is held.
func (r *Reporter) flush() error {
	end := bytes.LastIndexByte(r.partial, '\n') + 1
	if end == 0 || r.asking {
		return nil
	}
	var b bytes.Buffer
	r.erase(&b)
	b.Write(r.partial[:end])
	r.partial = append(r.partial[:0], r.partial[end:]...)
	if _, err := r.w.Write(b.Bytes()); err != nil {
		return err
	}
	if len(r.tasks) > 0 {
		r.redraw()
	}
	return nil
}

// Question puts text at the beginning of a line, where the cursor stays for the answer. Until done is called
// nothing else is shown; what was written meanwhile comes then.
func (r *Reporter) Question(text string) (done func()) {
	if r == nil {
		return func() {}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	r.erase(&b)
	b.WriteString(text)
	_, _ = r.w.Write(b.Bytes())
	r.asking = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asking = false
		_, _ = io.WriteString(r.w, "\n")
		_ = r.flush()
		if len(r.tasks) > 0 {
			r.redraw()
		}
	}
}

// Typed tells that a person has ended a line on the terminal: the cursor stands a line further down than
// it was left.
func (r *Reporter) Typed() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.drawn > 0 {
		r.drawn++
	}
}

func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/unit, 0
	for value >= unit && i < 4 {
		value /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[i])
}

func rate(n int64, d time.Duration) string {
	if d < time.Millisecond {
		d = time.Millisecond
	}
	return size(int64(float64(n)/d.Seconds())) + "/s"
}

func round(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}
