package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// Estimate is about how much a run moves and how long it takes: from what the journal has
// measured, else from sizes and the connection's rates, else from the lab.
type Estimate struct {
	Steps map[string]StepEstimate `json:"steps"` // by name
	// Bytes go over the connection.
	Bytes int64 `json:"bytes"`
	// Total is that of all steps; Left is that of what the journal does not know as done.
	Total time.Duration `json:"totalNanos"`
	Left  time.Duration `json:"leftNanos"`
	// APIDowntime is from K3s's stop until its API answers again, Downtime until the
	// platform's workloads do.
	APIDowntime time.Duration `json:"apiDowntimeNanos"`
	Downtime    time.Duration `json:"downtimeNanos"`
	// Rates are what was reckoned with; Assumed tells that they were not measured.
	Rates   survey.Rates `json:"rates"`
	Assumed bool         `json:"assumed,omitempty"`
}

// StepEstimate is a step's part.
type StepEstimate struct {
	Bytes    int64         `json:"bytes,omitempty"`
	Duration time.Duration `json:"durationNanos"`
	// Measured tells that all of it was measured in this run.
	Measured bool `json:"measured,omitempty"`
}

// assumed are the rates of a connection that was not measured: those of a line of 80 Mbit/s.
var assumed = survey.Rates{Down: 10 << 20, Up: 10 << 20}

// What was measured in the lab (bin/lab demo, two cores): a volume that holds many small
// files takes its time for the files, and one that is proven for its bytes.
const (
	perFile   = 400 * time.Microsecond // to read or write it, and its entry in the list
	proveRate = 100 << 20              // bytes a second: read, decrypt and open
	ownRate   = 100 << 20              // bytes a second that a stream reaches on any line: archive, compress, encrypt, sum
	otherwise = 300 * time.Millisecond // an action that is not listed
)

// fixed is what an action takes, by step and the first word of its name, apart from what it
// moves: as in the lab. The platform's command, and the images that the cluster pulls after it,
// can take any time.
var fixed = map[string]time.Duration{
	"survey/facts":        4 * time.Second,
	"protect/objects":     2 * time.Second,
	"protect/k3s-files":   time.Second,
	"quiesce/refresh":     4 * time.Second,
	"quiesce/stop":        6 * time.Second,
	"uninstall/look":      time.Second,
	"uninstall/uninstall": 3 * time.Second,
	"install/files":       time.Second,
	"install/install":     2 * time.Second,
	"start/start":         9 * time.Second,
	"start/node":          2 * time.Second,
	"platform/up":         5 * time.Second,
	"platform/workloads":  10 * time.Second,
	"services/patch":      time.Second,
	"verify/verify":       20 * time.Second,
}

// Estimate tells about how long the steps take, and how much they move.
func (m *Migration) Estimate(_ context.Context, planned []runner.Planned) (Estimate, error) {
	state, err := m.State()
	if err != nil {
		return Estimate{}, err
	}
	e := Estimate{Steps: map[string]StepEstimate{}}
	e.Rates, e.Assumed = m.rates()
	down, up := false, false // of the API, and of what runs on it
	for _, s := range planned {
		var one StepEstimate
		var spans []span
		for _, a := range s.Actions {
			down = down || s.Name == "quiesce" && a.Name == "stop"
			up = up || s.Name == "secrets"
			d := m.takes(e.Rates, state, s.Name, a)
			if was, _ := state.ActionState(s.Name, a.Name); was.Status == runner.Done {
				// Those that ran beside each other took the time of the longest.
				d = 0
				if took := was.Took; took > 0 {
					before := covered(spans)
					spans = append(spans, span{was.Time.Add(-took), was.Time})
					d = covered(spans) - before
				}
			} else {
				e.Left += d
			}
			one.Bytes += a.Bytes
			one.Duration += d
			if down && !up {
				e.APIDowntime += d
			}
			if down && !slices.Contains([]string{"services", "verify", "finish"}, s.Name) {
				e.Downtime += d
			}
		}
		one.Measured = state.StepState(s.Name).Complete
		e.Steps[s.Name] = one
		e.Bytes += one.Bytes
		e.Total += one.Duration
	}
	return e, nil
}

// rates are those that were measured, or else assumed.
func (m *Migration) rates() (_ survey.Rates, guessed bool) {
	if r := m.Facts.Rates; r.Down > 0 && r.Up > 0 {
		return r, false
	}
	return assumed, true
}

// takes is about how long an action that is not done takes.
func (m *Migration) takes(r survey.Rates, state runner.State, step string, a runner.Action) time.Duration {
	if like := state.Measured(a.Like); like > 0 {
		return like
	}
	kind, pv, _ := strings.Cut(a.Name, " ")
	d, listed := fixed[step+"/"+kind]
	if !listed {
		like, _, _ := strings.Cut(a.Like, " ")
		d, listed = fixed[like]
	}
	rate := r.Up
	if step == "protect" || step == "freeze" {
		rate = r.Down
	}
	if kind == "prove" {
		d += over(m.Facts.VolumeBytes()+m.Facts.K3s.BinarySize, proveRate)
	}
	d += over(a.Bytes, min(rate, ownRate))
	if kind == "volume" {
		for _, v := range m.Facts.Cluster.Volumes {
			if v.PV == strings.TrimPrefix(pv, "back ") {
				d += time.Duration(v.Files) * perFile
			}
		}
	}
	if !listed {
		d += otherwise
	}
	return d
}

func over(bytes, rate int64) time.Duration {
	return time.Duration(float64(bytes) / float64(rate) * float64(time.Second))
}

// span is from when to when an action ran.
type span struct{ from, to time.Time }

// covered is the time in which any of them ran.
func covered(spans []span) (d time.Duration) {
	spans = slices.SortedFunc(slices.Values(spans), func(a, b span) int { return a.from.Compare(b.from) })
	var end time.Time
	for _, s := range spans {
		if s.from.Before(end) {
			s.from = end
		}
		if s.to.After(s.from) {
			d, end = d+s.to.Sub(s.from), s.to
		}
	}
	return d
}

// About says a duration as exactly as an estimate is: "25 s", "3 min 30 s", "2 h 10 min".
func About(d time.Duration) string {
	unit := 5 * time.Second
	switch {
	case d >= time.Hour:
		unit = 5 * time.Minute
	case d >= 10*time.Minute:
		unit = time.Minute
	case d >= 2*time.Minute:
		unit = 30 * time.Second
	case d >= time.Minute:
		unit = 10 * time.Second
	}
	d = max(d.Round(unit), unit)
	var words []string
	for _, u := range []struct {
		name string
		of   time.Duration
	}{{"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}} {
		if n := d / u.of; n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, u.name))
			d -= n * u.of
		}
	}
	return strings.Join(words, " ")
}
