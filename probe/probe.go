// Package probe owns the watch over what people reach while it is being changed: each target
// is asked about once a second, what changes goes to a file, and the file tells
// afterwards when which target was up, down, or not watched.
//
// A watch never fails what it watches: it has goroutines and connections of its own, and
// where it cannot write it says so once and goes on. What nobody saw is unknown, never up or down: the
// time between two watches, or while the machine slept. What the targets are is the
// caller's to say; of its own the package knows URLs.
//
// probe.go watches, file.go owns the file, url.go asks URLs, table.go shows the result to people.
package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// State is what is known of a target.
type State string

// The states.
const (
	Up      State = "up"
	Down    State = "down"
	Absent  State = "absent"  // it has no address of the family: nobody misses it yet
	Unknown State = "unknown" // nobody asked, or nobody could
)

// The families of targets.
const (
	IPv4 = "IPv4"
	IPv6 = "IPv6"
)

// Target is one thing to watch over one family; the two tell it from others.
type Target struct {
	Name, Family string
	// Check asks once; nil says that the target is up. An error says that it is down, unless it is
	// ErrAbsent or an *UnknownError. Its context ends with the time that an answer may take.
	Check func(ctx context.Context) error
}

// ErrAbsent says that a target has no address of the family.
var ErrAbsent = errors.New("no address")

// UnknownError says that a target could not be asked, so that nothing is known of it.
type UnknownError struct{ Why string }

func (e *UnknownError) Error() string { return e.Why }

const (
	every  = time.Second      // between the beginnings of two checks of a target
	answer = 2 * time.Second  // how long one may take
	beat   = 10 * time.Second // between two records at most: what a killed watch saw is known until its last
	// lapse is for how long nobody can have looked before the watch is taken to have been
	// interrupted. A machine that sleeps shows by its clocks: that of the day goes on.
	lapse = 5 * time.Second
)

// Watcher watches until it is closed, or its context ends.
type Watcher struct {
	path    string
	targets []Target
	notice  func(string)
	clock   func() (wall time.Time, running time.Duration)
	cancel  context.CancelFunc
	done    sync.WaitGroup

	mu      sync.Mutex
	file    *os.File
	failing bool // the last record could not be written
	told    bool
	// began is when the watch that is in the file began, and ran what the running clock showed then: times within a
	// watch are told by the running clock alone, so that setting the other does not stretch them.
	began   time.Time
	ran     time.Duration
	watch   int           // counts the watches
	looked  time.Duration // the running clock when it was last read, and
	day     time.Time     // the clock of the day then
	written time.Duration // the running clock at the last record
	states  []State       // recorded in this watch; "" where there is none yet
}

// Watch begins to watch the targets and appends what it sees to the file at path, whose directory
// exists. notice gets what a person should know, at most once: that the file cannot be written.
func Watch(ctx context.Context, path string, targets []Target, notice func(string)) *Watcher {
	start := time.Now()
	return watch(ctx, path, targets, notice, func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0).UTC(), now.Sub(start)
	})
}

func watch(ctx context.Context, path string, targets []Target, notice func(string), clock func() (time.Time, time.Duration)) *Watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &Watcher{path: path, targets: targets, notice: notice, clock: clock, cancel: cancel, states: make([]State, len(targets))}
	w.mu.Lock()
	w.day, w.looked = clock()
	w.begin()
	w.mu.Unlock()
	w.done.Go(func() { w.keep(ctx) })
	for i := range targets {
		w.done.Go(func() { w.ask(ctx, i) })
	}
	return w
}

// Close ends the watch; what it saw is in the file then.
func (w *Watcher) Close() {
	w.cancel()
	w.done.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	now, _ := w.look()
	w.write(record{Time: now})
	if w.file != nil {
		_ = w.file.Close() // what could not be written was said
	}
}

// keep shows in the file that the watch goes on.
func (w *Watcher) keep(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.mu.Lock()
		now, _ := w.look()
		switch {
		case w.failing:
			w.begin()
		case w.looked-w.written >= beat:
			w.write(record{Time: now})
		}
		w.mu.Unlock()
	}
}

// ask checks one target again and again.
func (w *Watcher) ask(ctx context.Context, i int) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		next.Reset(every)
		began, watch := w.time()
		limited, cancel := context.WithTimeout(ctx, answer)
		err := w.targets[i].Check(limited)
		cancel()
		if ctx.Err() != nil {
			return // an answer that was not waited for says nothing
		}
		w.note(i, err, began, watch)
	}
}

// time is the time of the watch, and which watch it is.
func (w *Watcher) time() (time.Time, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.look()
}

// look reads the clocks, and begins a new watch when the old one was interrupted.
func (w *Watcher) look() (time.Time, int) {
	day, running := w.clock()
	passed := running - w.looked
	if drift := day.Sub(w.day) - passed; passed > lapse || drift > lapse || drift < -lapse {
		w.write(record{Time: w.began.Add(w.looked - w.ran)}) // until here it went on
		w.day, w.looked = day, running
		w.begin()
	}
	w.day, w.looked = day, running
	return w.began.Add(running - w.ran), w.watch
}

// note records what a check found out, if that is a change. A target is down from when the check began that it did
// not answer, and up from when it answered.
func (w *Watcher) note(i int, err error, began time.Time, watch int) {
	state, why := judge(err)
	w.mu.Lock()
	defer w.mu.Unlock()
	now, current := w.look()
	if watch != current || w.failing || w.states[i] == state {
		return
	}
	if state != Up || w.states[i] == "" {
		now = began
	}
	w.states[i] = state
	w.write(record{Time: now, Target: &key{w.targets[i].Name, w.targets[i].Family}, State: state, Why: why})
}

func judge(err error) (State, string) {
	var unknown *UnknownError
	switch {
	case err == nil:
		return Up, ""
	case errors.Is(err, ErrAbsent):
		return Absent, ErrAbsent.Error()
	case errors.As(err, &unknown):
		return Unknown, unknown.Why
	case errors.Is(err, context.DeadlineExceeded):
		return Down, fmt.Sprintf("no answer within %s", answer)
	}
	return Down, err.Error()
}

// begin begins a watch in the file, of whose targets nothing is known yet.
func (w *Watcher) begin() {
	w.watch++
	w.began, w.ran = w.day, w.looked
	clear(w.states)
	r := record{Time: w.began, Begin: []key{}}
	for _, t := range w.targets {
		r.Begin = append(r.Begin, key{t.Name, t.Family})
	}
	w.failing = false
	w.write(r)
}
