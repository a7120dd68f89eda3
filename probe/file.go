package probe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// record is a line of the file: a watch begins, a target changes, or, with neither, the watch
// goes on. What a watch saw holds until its last record.
type record struct {
	Time   time.Time `json:"time"`
	Begin  []key     `json:"begin,omitempty"` // the targets
	Target *key      `json:"target,omitempty"`
	State  State     `json:"state,omitempty"`
	Why    string    `json:"why,omitempty"`
}

type key struct {
	Name   string `json:"name"`
	Family string `json:"family"`
}

// write appends a record with one write. A line that could not be written ends
// the watch: what comes after it would be read without it.
func (w *Watcher) write(r record) {
	if w.failing {
		return
	}
	err := w.append(r)
	if err == nil {
		w.written = w.looked
		return
	}
	w.failing = true
	if !w.told {
		w.told = true
		w.notice(fmt.Sprintf("the availability is not recorded: %v; it is tried on, and the time until then is shown as not watched", err))
	}
}

func (w *Watcher) append(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if w.file == nil {
		if w.file, err = os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err != nil {
			w.file = nil
			return err
		}
	}
	if r.Begin != nil {
		line = append([]byte("\n"), line...) // the line before it may have been cut off
	}
	_, err = w.file.Write(append(line, '\n'))
	return err
}

// Span is a time in which a target's state was one.
type Span struct {
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	State State     `json:"state"`
	Why   string    `json:"why,omitempty"` // of the first check that found it, unless it is up
}

func (s Span) length() time.Duration { return s.To.Sub(s.From) }

// NotWatched is why a time between two watches is unknown.
const NotWatched = "not watched"

// Availability is what is known of a target over one family.
type Availability struct {
	Name   string `json:"name"`
	Family string `json:"family"`
	Spans  []Span `json:"spans"` // in order

	// Since is when it was first up, zero when it never was. What was down before that was no
	// outage: over IPv6 it may not have been offered yet.
	Since time.Time `json:"since,omitzero"`
	// First is when it was first down after that, zero when it never was; Down is for how long in all, and
	// Longest at a stretch.
	First   time.Time     `json:"first,omitzero"`
	Down    time.Duration `json:"downNanos"`
	Longest time.Duration `json:"longestNanos"`
	// Unknown is for how long nothing is known of it, and AtLeast tells that an outage bordered on such a time, so
	// that it may have been longer.
	Unknown time.Duration `json:"unknownNanos"`
	AtLeast bool          `json:"atLeast,omitempty"`
}

// Read reads what was watched, also while it is still going on; the targets are in the order in
// which they were first named. A file that does not exist holds nothing. What a crash left of a line, before another
// watch begins or at the end, is left out; of the time after any other line that cannot be read nothing is known, for
// each target until its next record.
func Read(path string) ([]Availability, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the availability: %w", err)
	}
	var t timeline
	damaged := false // since the record before
	for line := range bytes.Lines(data) {
		var r record
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		if json.Unmarshal(line, &r) != nil || !r.whole() {
			damaged = true
			continue
		}
		if damaged && r.Begin == nil {
			t.doubt()
		}
		damaged = false
		t.enter(r)
	}
	if damaged && len(t.all) == 0 {
		return nil, fmt.Errorf("reading the availability: no record in %s can be read", path)
	}
	t.end()
	for i := range t.all {
		t.all[i].sum()
	}
	return t.all, nil
}

// timeline puts the records together.
type timeline struct {
	all  []Availability
	open map[key]Span // of the watch that is read: what holds until the target's next record
	last time.Time    // of its records
}

func (t *timeline) enter(r record) {
	switch {
	case r.Begin != nil:
		t.end()
		t.open = map[key]Span{}
		for _, k := range r.Begin {
			if t.of(k) == nil {
				t.all = append(t.all, Availability{Name: k.Name, Family: k.Family, Spans: []Span{}})
			}
		}
	case r.Target != nil && t.of(*r.Target) != nil:
		if before, ok := t.open[*r.Target]; ok {
			before.To = r.Time
			t.add(*r.Target, before)
		}
		t.open[*r.Target] = Span{From: r.Time, State: r.State, Why: r.Why}
	}
	if t.last.Before(r.Time) || r.Begin != nil {
		t.last = r.Time
	}
}

// whole tells whether the record is one that a watch writes.
func (r record) whole() bool {
	return !r.Time.IsZero() && (r.Target == nil || slices.Contains([]State{Up, Down, Unknown, Absent}, r.State))
}

// doubt forgets how the targets are, from the last record on.
func (t *timeline) doubt() {
	for k, s := range t.open {
		s.To = t.last
		t.add(k, s)
		t.open[k] = Span{From: t.last, State: Unknown, Why: "a record is damaged"}
	}
}

// of is what is known of a target; nil before it was named.
func (t *timeline) of(k key) *Availability {
	for i, a := range t.all {
		if a.Name == k.Name && a.Family == k.Family {
			return &t.all[i]
		}
	}
	return nil
}

// end ends the watch that is read, at its last record.
func (t *timeline) end() {
	for k, s := range t.open {
		s.To = t.last
		t.add(k, s)
	}
	t.open = nil
}

// add adds a span to its target, and before it the time since the last one.
func (t *timeline) add(k key, s Span) {
	if !s.To.After(s.From) {
		return
	}
	spans := &t.of(k).Spans
	if n := len(*spans); n > 0 {
		last := &(*spans)[n-1]
		if last.To.Before(s.From) {
			*spans = append(*spans, Span{From: last.To, To: s.From, State: Unknown, Why: NotWatched})
			last = &(*spans)[n]
		}
		if last.State == s.State && (s.State != Unknown || last.Why == s.Why) && last.To.Equal(s.From) {
			last.To = s.To
			return
		}
	}
	*spans = append(*spans, s)
}

// sum draws the figures from the spans.
func (a *Availability) sum() {
	for i, s := range a.Spans {
		switch s.State {
		case Up:
			if a.Since.IsZero() {
				a.Since = s.From
			}
		case Unknown:
			a.Unknown += s.length()
		case Down:
			if a.Since.IsZero() {
				continue
			}
			if a.First.IsZero() {
				a.First = s.From
			}
			a.Down += s.length()
			a.Longest = max(a.Longest, s.length())
			unknown := func(i int) bool { return i < len(a.Spans) && a.Spans[i].State == Unknown }
			a.AtLeast = a.AtLeast || unknown(i-1) || unknown(i+1)
		}
	}
}
