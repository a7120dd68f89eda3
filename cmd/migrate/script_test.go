package main

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
)

var update = flag.Bool("update", false, "rewrite what the scripts compare with, and the journals")

// The scripts run this test's own binary as migrate.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"migrate": main})
}

// The journals of testdata are kept as files, so that a version that reads them
// otherwise than the one that wrote them is noticed; -update writes those that
// were removed.
func TestJournals(t *testing.T) {
	begin := []runner.Record{
		{Event: runner.Begin, Data: []byte(`{"plan":"of another day"}`)},
		{Event: runner.Intent, Step: "survey", Action: "facts"},
		{Event: runner.Done, Step: "survey", Action: "facts", Took: time.Second, Data: []byte(`{"facts":"aa"}`)},
		{Event: runner.StepComplete, Step: "survey"},
		{Event: runner.Intent, Step: "preflight", Action: "checks"},
		{Event: runner.Done, Step: "preflight", Action: "checks"},
		{Event: runner.StepComplete, Step: "preflight"},
	}
	journals := map[string][]runner.Record{
		"failed": append(begin[:len(begin):len(begin)], []runner.Record{
			{Event: runner.Intent, Step: "protect", Action: "objects"},
			{Event: runner.Intent, Step: "protect", Action: "volume pvc-1"},
			{Event: runner.Done, Step: "protect", Action: "objects", Took: 2 * time.Second},
			{Event: runner.Intent, Step: "protect", Action: "k3s-files"},
			{Event: runner.Failed, Step: "protect", Action: "k3s-files", Took: time.Second, Error: "no space left\non the laptop"},
		}...),
		"waived": append(begin[:4:4], []runner.Record{
			{Event: runner.Intent, Step: "preflight", Action: "checks"},
			{Event: runner.Done, Step: "preflight", Action: "checks", Data: []byte(`{"findings":[{"id":"host.space","severity":"inhibitor","detail":"host dedi has 1 MiB free","remedy":"free the space","waived":"the disk is grown tonight"},{"id":"volumes.stray","severity":"warning","detail":"old","remedy":"remove it"}]}`)},
			{Event: runner.StepComplete, Step: "preflight"},
			{Event: runner.Intent, Step: "protect", Action: "objects"},
		}...),
		"finished": append(begin[:len(begin):len(begin)], []runner.Record{
			{Event: runner.Confirmed, Step: "quiesce"},
			{Event: runner.StepCheckpoint, Step: "verify"},
			{Event: runner.StepComplete, Step: "finish"},
			{Event: runner.Finished},
		}...),
		"rolling-back": append(begin[:len(begin):len(begin)], []runner.Record{
			{Event: runner.StepCheckpoint, Step: "protect"},
			{Event: runner.Intent, Step: "quiesce", Action: "stop"},
			{Event: runner.Rollback, Step: "protect"},
			{Event: runner.Undoing, Step: "quiesce", Action: "start again"},
			{Event: runner.Undone, Step: "quiesce", Action: "start again", Took: time.Second},
			{Event: runner.Undoing, Step: "quiesce", Action: "node again"},
			{Event: runner.UndoFailed, Step: "quiesce", Action: "node again", Error: "it is\nnot Ready"},
		}...),
		"rolled-back": append(begin[:len(begin):len(begin)], []runner.Record{
			{Event: runner.StepCheckpoint, Step: "protect"},
			{Event: runner.Intent, Step: "quiesce", Action: "stop"},
			{Event: runner.Rollback, Step: "protect"},
			{Event: runner.Reverted, Step: "quiesce"},
			{Event: runner.RolledBack, Step: "protect"},
		}...),
	}
	for name, records := range journals {
		file := "testdata/" + name + ".jsonl"
		if _, err := os.Stat(file); *update && errors.Is(err, fs.ErrNotExist) {
			j, err := runner.OpenJournal(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range records {
				if err := j.Append(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
		j, err := runner.OpenJournal(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(j.Records()); n != len(records) {
			t.Errorf("%s: %d records are read, %d were written", file, n, len(records))
		}
		if notices := j.Notices(); len(notices) > 0 {
			t.Errorf("%s: %q", file, notices)
		}
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("SSH_AUTH_SOCK", "")
			facts, err := filepath.Abs("../../steps/testdata")
			if err != nil {
				return err
			}
			env.Setenv("FACTS", facts)
			journals, err := filepath.Glob("testdata/*.jsonl")
			if err != nil {
				return err
			}
			for _, name := range append(journals, "testdata/plan.yaml") {
				data, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(env.WorkDir, filepath.Base(name)), data, 0o600); err != nil {
					return err
				}
			}
			// Files that the plan names; none of them is used before the host answers.
			for _, name := range []string{"age.key", "known_hosts", "id"} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), nil, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"lock":    lock,
			"makeset": makeset,
			"plain":   plain,
			"reached": reached,
			"replace": replace,
		},
	})
}

// exits runs a command and asserts its exit status: exits 2 migrate plan.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND [ARG…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if out := ts.ReadFile("stdout") + ts.ReadFile("stderr"); got != want {
		ts.Fatalf("exit status %d instead of %d", got, want)
	} else if strings.Contains(out, "panic:") || strings.Contains(out, "DATA RACE") {
		ts.Fatalf("it panicked, or raced")
	}
}

// lock holds a lock file for the rest of the script, as another process than
// migrate's.
func lock(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: lock FILE")
	}
	l, err := runner.Acquire(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { l.Release() })
}

// plain asserts that the last command's output has no escape sequence, carriage
// return or other control character.
func plain(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: plain")
	}
	if control := regexp.MustCompile(`[\x00-\x08\x0b-\x1f\x7f]`).FindString(ts.ReadFile("stdout") + ts.ReadFile("stderr")); control != "" {
		ts.Fatalf("control character %q in the output", control)
	}
}

// reached makes a run's journal in which the steps up to one are complete, and then
// what else is told, as EVENT/STEP/ACTION, happened: reached DIR STEP [RECORD…]. Beside it are
// the facts of the run.
func reached(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: reached DIR STEP [EVENT/STEP/ACTION…]")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.RemoveAll(dir))
	j, err := runner.OpenJournal(filepath.Join(dir, "journal.jsonl"))
	ts.Check(err)
	defer j.Close()
	records := []runner.Record{{Event: runner.Begin, Data: []byte(`{"plan":"shop"}`)}}
	for _, name := range steps.Names() {
		event := runner.StepComplete
		if name == "protect" || name == "seal" || name == "verify" {
			event = runner.StepCheckpoint
		}
		records = append(records, runner.Record{Event: event, Step: name})
		if name == args[1] {
			break
		}
	}
	for _, more := range args[2:] {
		words := append(strings.SplitN(more, "/", 3), "", "")
		r := runner.Record{Event: runner.Event(words[0]), Step: words[1], Action: words[2], Took: 1500 * time.Millisecond}
		if r.Event == runner.Rollback && r.Action != "" { // by a detour, at that step
			r.Action, r.Data = "", []byte(`{"via":"snapshot","at":"`+words[2]+`"}`)
		}
		records = append(records, r)
	}
	for _, r := range records {
		ts.Check(j.Append(r))
	}
	facts, err := os.ReadFile(filepath.Join(ts.Getenv("FACTS"), "facts.json"))
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "facts.json"), facts, 0o600))
}

// replace changes all occurrences of a text in a file: replace FILE OLD NEW.
func replace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[1]) {
		ts.Fatalf("%s does not contain %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.ReplaceAll(text, args[1], args[2])), 0o600))
}
