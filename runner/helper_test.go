package runner

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		os.Exit(victim(dir))
	}
	flag.Parse()
	os.Exit(m.Run())
}

// golden compares what a person reads with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	got += "\n"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n got %s\nwant %s", name, got, want)
	}
}

func open(t testing.TB, path string) *Journal {
	t.Helper()
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

var epoch = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// writeSample writes a journal with every kind of record of a run, with fixed times
// and run, and returns its bytes.
func writeSample(t testing.TB, path string) []byte {
	t.Helper()
	records := []Record{
		{Event: Begin, Data: []byte(`{"plan":"sha256:aa","extra":{"host key":"SHA256:x"}}`)},
		{Event: Intent, Step: "survey", Action: "read the host"},
		{Event: Done, Step: "survey", Action: "read the host", Took: time.Second, Data: []byte(`{"node":"k3s-1"}`)},
		{Event: StepComplete, Step: "survey"},
		{Event: Intent, Step: "back up", Action: "volume data/db"},
		{Event: Failed, Step: "back up", Action: "volume data/db", Took: time.Minute, Error: "no space left: “ / ”"},
		{Event: Done, Step: "back up", Action: "volume data/db", Found: true},
		{Event: StepCheckpoint, Step: "back up"},
		{Event: Confirmed, Step: "rebuild"},
		{Event: Finished},
	}
	var data []byte
	previous := ""
	for i, r := range records {
		r.Seq, r.Run, r.Time = i+1, "RUN", epoch.Add(time.Duration(i)*time.Second)
		line, err := seal(&r, previous)
		if err != nil {
			t.Fatal(err)
		}
		previous = r.Sum
		data = append(data, line...)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return data
}

// log is an Observer that writes down what it is told.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(format string, args ...any) {
	if !l.mu.TryLock() {
		panic("calls of the observer overlap")
	}
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *log) StepStarted(s Step, n, of int)                { l.add("step %d/%d %s", n, of, s.Name) }
func (l *log) ActionStarted(_ Step, a Action)               { l.add("start %s", a.Name) }
func (l *log) ActionDone(_ Step, a Action, _ time.Duration) { l.add("done %s", a.Name) }
func (l *log) ActionSkipped(_ Step, a Action, why string)   { l.add("skip %s: %s", a.Name, why) }
func (l *log) ActionFailed(_ Step, a Action, err error)     { l.add("fail %s: %v", a.Name, err) }
func (l *log) StepDone(s Step)                              { l.add("end %s", s.Name) }
func (l *log) Notice(text string)                           { l.add("notice %s", text) }

// act is a repeatable action that does nothing.
func act(name string) Action {
	return Action{Name: name, Run: func(context.Context) (any, error) { return nil, nil }}
}

func list(actions ...Action) func(context.Context) ([]Action, error) {
	return func(context.Context) ([]Action, error) { return actions, nil }
}
