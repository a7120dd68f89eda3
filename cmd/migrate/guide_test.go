package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rivo/uniseg"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
	"sunbeam.pt/k3s-dualstack/survey"
)

// guided is a guide through a run whose journal holds records, with a person who
// types answers.
func guided(t *testing.T, answers string, records ...runner.Record) (*guide, *bytes.Buffer) {
	t.Helper()
	data, err := os.ReadFile("testdata/plan.yaml")
	require.NoError(t, err)
	plan, err := plans.Decode(data, t.TempDir())
	require.NoError(t, err)
	var out bytes.Buffer
	p := progress.New(&out, false)
	m := &steps.Migration{Plan: plan, Progress: p}
	if len(records) > 0 {
		data, err := os.ReadFile("../../steps/testdata/facts.json")
		require.NoError(t, err)
		m.Facts = &survey.Facts{}
		require.NoError(t, json.Unmarshal(data, m.Facts))
		journal, err := runner.OpenJournal(m.JournalPath())
		require.NoError(t, err)
		for _, r := range records {
			require.NoError(t, journal.Append(r))
		}
		require.NoError(t, journal.Close())
	}
	return &guide{m: m, k: typedAt(strings.NewReader(answers)), out: p.Writer(), file: "plan.yaml", began: time.Now()}, &out
}

// through are the records of a run that has completed the steps up to this one.
func through(step string) []runner.Record {
	records := []runner.Record{{Event: runner.Begin, Data: []byte(`{"plan":"shop"}`)}}
	for _, s := range (&steps.Migration{Plan: &plans.Plan{Spec: plans.Spec{Hosts: []plans.Host{{}}}}}).Sequence() {
		for _, a := range map[string][]string{"gate": {"prove"}, "quiesce": {"stop"}, "uninstall": {"uninstall"}, "start": {"start"}}[s.Name] {
			records = append(records,
				runner.Record{Event: runner.Intent, Step: s.Name, Action: a},
				runner.Record{Event: runner.Done, Step: s.Name, Action: a, Took: time.Second})
		}
		records = append(records, runner.Record{Event: runner.StepComplete, Step: s.Name})
		if s.Name == step {
			break
		}
	}
	return records
}

// step is a step of the sequence.
func step(t *testing.T, m *steps.Migration, name string) runner.Step {
	t.Helper()
	for _, s := range m.Sequence() {
		if s.Name == name {
			return s
		}
	}
	require.FailNow(t, "no step "+name)
	return runner.Step{}
}

var (
	dates   = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)
	times   = regexp.MustCompile(`\d\d:\d\d:\d\d`)
	elapsed = regexp.MustCompile(`elapsed \d+s`)
)

// screen holds what was shown against a golden file, and each screen of it against the
// terminal that it has to fit on.
func screen(t *testing.T, name, got, workDir string) {
	t.Helper()
	got = strings.ReplaceAll(got, filepath.Dir(workDir), "/home/ana")
	got = times.ReplaceAllString(dates.ReplaceAllString(got, "2026-03-01 09:00:00"), "09:00:00")
	got = elapsed.ReplaceAllString(got, "elapsed 0s")
	got = strings.ReplaceAll(got, "\n> \n", "\n> \f\n")
	file := filepath.Join("testdata", "screens", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(got, "\f", "")), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	if d := cmp.Diff(string(want), strings.ReplaceAll(got, "\f", "")); d != "" {
		t.Error(d)
	}
	for page := range strings.SplitSeq(got, "\f") {
		lines := strings.Split(strings.Trim(page, "\n"), "\n")
		if len(lines) > 24 {
			t.Errorf("%d lines:\n%s", len(lines), page)
		}
		for _, line := range lines {
			if n := uniseg.StringWidth(line); n > 80 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

func TestScreens(t *testing.T) {
	for _, tc := range []struct {
		name    string
		before  string // the last step that is complete; "" for none
		next    string // the step that is next
		action  string // the action of it that is next, in a pause
		until   string
		answers string
		fresh   bool // this very command did what is done
		err     error
	}{
		{"1-look", "", "survey", "", "", "?\n\n", true, nil},
		{"2-protect", "preflight", "protect", "", "", "?\nwhat\n\n", true, nil},
		{"2-protect-until", "preflight", "protect", "", "gate", "\n", true, nil},
		{"3-rebuild", "gate", "quiesce", "", "", "?\n\n\n\n\n", true, nil},
		{"3-rebuild-resumed", "gate", "quiesce", "", "", "\n", false, nil},
		{"3-rebuild-amid", "uninstall", "install", "", "", "\n", false, nil},
		{"4-restore", "install", "volumes", "", "", "", true, nil},
		{"4-restore-resumed", "start", "secrets", "", "", "s\n", false, errStopped},
		{"5-dual-stack", "platform", "services", "", "", "S \n", true, errStopped},
		{"6-prove", "services", "verify", "", "", "", true, errStopped},
		{"paused", "network", "uninstall", "uninstall", "", "?\nb\n\n", true, nil},
		{"paused-before-a-step", "protect", "gate", "", "", "s\n", true, errStopped},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var records []runner.Record
			if tc.before != "" {
				records = through(tc.before)
			}
			g, out := guided(t, tc.answers, records...)
			g.until = tc.until
			s := step(t, g.m, tc.next)
			if tc.fresh && tc.before != "" {
				g.phase = step(t, g.m, tc.before).Phase
			}
			var a *runner.Action
			if tc.action != "" {
				g.phase, a = s.Phase, &runner.Action{Name: tc.action, Target: runner.Target{Kind: runner.Host, Name: "dedi"}, Summary: "Run K3s's uninstall script: it deletes binary, configuration, datastore and local-path volumes"}
				require.False(t, g.Wants(s, a))
			}
			if strings.HasPrefix(tc.name, "paused") {
				g.heard("P ")
			}
			require.True(t, g.Wants(s, a))
			require.ErrorIs(t, g.Pause(t.Context(), s, a), tc.err)
			require.Equal(t, tc.err != nil && !strings.HasPrefix(tc.name, "paused"), g.Wants(s, a), "once is enough")
			screen(t, tc.name, out.String(), g.m.Plan.Spec.WorkDir)
		})
	}
}

// An answer that is typed the moment its mark is seen is nobody else's.
func TestAnswerTypedAtOnce(t *testing.T) {
	g, _ := guided(t, "")
	k, person := typist(t)
	g.k = k
	g.m.Progress = progress.New(writerFunc(func(p []byte) {
		if strings.Contains(string(p), "> ") {
			_, _ = person.WriteString("Dedi\n")
			time.Sleep(50 * time.Millisecond) // for who listens, to take it
		}
	}), false)
	defer k.listen(func(line string) { t.Errorf("%q was heard", line) })()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	answer, err := g.answer(ctx)
	require.NoError(t, err)
	require.Equal(t, "dedi", answer)
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// An interrupt ends a pause.
func TestInterruptedPause(t *testing.T) {
	g, _ := guided(t, "")
	g.k, _ = typist(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	require.ErrorIs(t, g.Pause(ctx, step(t, g.m, "survey"), nil), context.Canceled)
}

// What preflight warns of is shown where it has passed, in words that fit.
func TestWarnings(t *testing.T) {
	g, out := guided(t, "")
	g.m.Findings = []preflight.Finding{
		{ID: "host.kernel", Severity: preflight.Note, Detail: "it is old", Remedy: "leave it"},
		{ID: "volumes.stray", Severity: preflight.Warning, Detail: "/var/lib/rancher/k3s/storage/left over belongs to no volume, and is not carried over", Remedy: "copy it when you need it"},
	}
	for _, fold := range []bool{true, false} {
		o := &paced{watcher: watcher{w: g.out}, g: g, ctx: t.Context(), fold: fold}
		o.StepDone(step(t, g.m, "survey"))
		o.StepDone(step(t, g.m, "preflight"))
	}
	want := `  warning  volumes.stray: /var/lib/rancher/k3s/storage/left over belongs to no
           volume, and is not carried over
           → copy it when you need it
  warning    volumes.stray
             /var/lib/rancher/k3s/storage/left over belongs to no volume, and is not carried over
             → copy it when you need it
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

func TestSummaryScreen(t *testing.T) {
	records := append(through("finish"), runner.Record{Event: runner.Finished})
	for _, r := range []runner.Record{
		{Step: "volumes", Action: "volume pv-1"}, {Step: "volumes", Action: "volume pv-2"},
		{Step: "services", Action: "patch", Data: []byte(`{"patched":["data/store","shop/web","shop/api"]}`)},
		{Step: "verify", Action: "verify", Data: []byte(`{"checks":119}`)},
	} {
		r.Event = runner.Done
		records = append(records[:len(records)-1], r, records[len(records)-1])
	}
	g, _ := guided(t, "", records...)
	state, err := g.m.State()
	require.NoError(t, err)
	gone := g.summary(state)
	require.NoError(t, os.MkdirAll(g.m.SetDir(), 0o700))
	s := g.summary(state)
	s.Began, s.Ended = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC), time.Date(2026, 3, 1, 9, 12, 29, 0, time.UTC)
	screen(t, "summary", s.String(), g.m.Plan.Spec.WorkDir)
	require.NotContains(t, gone.String(), "backup", "a set that is not there any more is not spoken of")
}

func TestGateScreen(t *testing.T) {
	g, _ := guided(t, "")
	q := step(t, g.m, "quiesce").Gate
	screen(t, "gate", gateScreen{
		Host: "dedi", Dir: "/home/ana/work/backup", Artifacts: 12, Bytes: 250 << 20, Proven: time.Now(),
		API: 27 * time.Second, Workloads: 43 * time.Second, Question: q.Question + " (" + q.Expect + "):",
	}.String(), "/home/ana/work")
	screen(t, "gate-nothing-known", gateScreen{Host: "dedi", Dir: "/home/ana/work/backup", Artifacts: 1, Question: q.Question}.String(), "/home/ana/work")
}

func TestStopped(t *testing.T) {
	for name, tc := range map[string]struct {
		before string
		err    error
	}{
		"stopped-looking":   {"", &runner.StepError{Step: "survey", Err: errStopped}},
		"stopped-at-phase":  {"preflight", &runner.StepError{Step: "protect", Err: errStopped}},
		"stopped-in-action": {"uninstall", &runner.StepError{Step: "install", Action: "files", Err: errStopped}},
	} {
		var records []runner.Record
		if tc.before != "" {
			records = through(tc.before)
		}
		g, _ := guided(t, "", records...)
		var out bytes.Buffer
		require.NoError(t, g.stopped(&out, tc.err, "migrate run -f plan.yaml"))
		screen(t, name, out.String(), g.m.Plan.Spec.WorkDir)
	}
}
