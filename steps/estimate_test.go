package steps

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

func estimate(t *testing.T, m *Migration) Estimate {
	t.Helper()
	e, err := m.Estimate(t.Context(), preview(t, m))
	require.NoError(t, err)
	return e
}

// What is moved takes the time of its bytes, and is in the downtime when it is moved in it.
func TestEstimateFollowsTheRates(t *testing.T) {
	m := migration(t, nil)
	m.Plan.Spec.WorkDir = t.TempDir()
	fast := estimate(t, m)
	if !fast.Assumed || fast.Rates != assumed {
		t.Errorf("not measured, and reckoned with %+v", fast.Rates)
	}
	m.Facts.Rates = survey.Rates{Down: 1 << 20, Up: 2 << 20}
	slow := estimate(t, m)
	if slow.Assumed {
		t.Error("measured rates are said to be assumed")
	}
	data := m.Facts.VolumeBytes()
	for step, want := range map[string]time.Duration{"protect": 300 * time.Second, "volumes": 150 * time.Second} {
		s := slow.Steps[step]
		if s.Bytes < data || s.Duration < want || s.Duration > want*3/2 {
			t.Errorf("%s: %+v", step, s)
		}
	}
	if d := slow.Downtime - fast.Downtime; d < 100*time.Second || d > 200*time.Second {
		t.Errorf("the downtime grows by %s when the volumes come back %s more slowly", d, slow.Steps["volumes"].Duration-fast.Steps["volumes"].Duration)
	}
	if slow.Left != slow.Total || slow.APIDowntime >= slow.Downtime || slow.Downtime >= slow.Total {
		t.Errorf("%+v", slow)
	}
	var sum time.Duration
	var bytes int64
	for _, s := range slow.Steps {
		sum += s.Duration
		bytes += s.Bytes
	}
	if sum != slow.Total || bytes != slow.Bytes {
		t.Errorf("the steps take %s and move %d; in all it is %s and %d", sum, bytes, slow.Total, slow.Bytes)
	}
}

// What the journal has measured wins, and what is done is not left.
func TestEstimateOfARunThatHasBegun(t *testing.T) {
	m := migration(t, nil)
	m.Plan.Spec.WorkDir = t.TempDir()
	before := estimate(t, m)
	j, err := runner.OpenJournal(m.JournalPath())
	require.NoError(t, err)
	defer j.Close()
	for _, r := range []runner.Record{
		{Event: runner.Begin, Data: []byte(`{}`)},
		{Event: runner.Intent, Step: "gate", Action: "prove"},
		{Event: runner.Done, Step: "gate", Action: "prove", Took: time.Hour},
		{Event: runner.StepComplete, Step: "gate"},
		{Event: runner.Intent, Step: "quiesce", Action: "refresh"},
		{Event: runner.Done, Step: "quiesce", Action: "refresh", Found: true},
	} {
		require.NoError(t, j.Append(r))
	}
	e := estimate(t, m)
	if g := e.Steps["gate"]; g.Duration != time.Hour || !g.Measured {
		t.Errorf("gate: %+v", g)
	}
	if s := e.Steps["seal"]; s.Duration != time.Hour || s.Measured {
		t.Errorf("the second proof takes as long as the first: %+v", s)
	}
	if d := e.Downtime - before.Downtime; d < 50*time.Minute {
		t.Errorf("the proof in the downtime makes it longer by %s", d)
	}
	if e.Total-e.Left != time.Hour {
		t.Errorf("done: %s", e.Total-e.Left)
	}
}

func TestCovered(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	for _, tc := range []struct {
		spans []span
		want  time.Duration
	}{
		{nil, 0},
		{[]span{{at(0), at(10)}}, 10 * time.Second},
		{[]span{{at(5), at(10)}, {at(0), at(10)}}, 10 * time.Second},                 // beside each other
		{[]span{{at(0), at(10)}, {at(8), at(12)}}, 12 * time.Second},                 // overlapping
		{[]span{{at(0), at(1)}, {at(86400), at(86402)}}, 3 * time.Second},            // a day between them
		{[]span{{at(0), at(10)}, {at(2), at(3)}, {at(9), at(11)}}, 11 * time.Second}, // one within another
	} {
		if got := covered(tc.spans); got != tc.want {
			t.Errorf("%v: %s instead of %s", tc.spans, got, tc.want)
		}
	}
}

func TestAbout(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "5 s", time.Second: "5 s", 13 * time.Second: "15 s", 58 * time.Second: "1 min", 97 * time.Second: "1 min 40 s",
		3*time.Minute + 40*time.Second: "3 min 30 s", 12*time.Minute + 40*time.Second: "13 min", 59*time.Minute + 50*time.Second: "1 h",
		2*time.Hour + 11*time.Minute: "2 h 10 min", 26 * time.Hour: "26 h",
	} {
		if got := About(d); got != want {
			t.Errorf("%s: %q instead of %q", d, got, want)
		}
	}
}
