package runner

import (
	"encoding/json"
	"fmt"
	"time"
)

// Bind is what a run began with and is continued with only.
type Bind struct {
	Plan  string            `json:"plan"`            // digest of the plan
	Extra map[string]string `json:"extra,omitempty"` // further identities: name to value
}

// ActionState is what the journal says of an action that was begun.
type ActionState struct {
	Step     string          `json:"step"`
	Action   string          `json:"action"`
	Status   Event           `json:"status"`          // Intent (running, or cut off), Done or Failed
	Found    bool            `json:"found,omitempty"` // done, as found by asking reality
	Attempts int             `json:"attempts"`
	Time     time.Time       `json:"time"` // of the last record
	Took     time.Duration   `json:"tookNanos,omitempty"`
	Error    string          `json:"error,omitempty"` // of the last failed attempt
	Data     json.RawMessage `json:"data,omitempty"`
}

// StepState is what the journal says of a step that was begun.
type StepState struct {
	Step      string `json:"step"`
	Confirmed bool   `json:"confirmed,omitempty"`
	Complete  bool   `json:"complete"`
}

// State is what the records of a journal amount to.
type State struct {
	Run        string        `json:"run,omitempty"` // empty: nothing has begun
	Bind       Bind          `json:"bind"`
	Began      time.Time     `json:"began,omitzero"`
	Last       time.Time     `json:"last,omitzero"` // of the last record
	Finished   bool          `json:"finished"`
	Checkpoint string        `json:"checkpoint,omitempty"` // the last step that ended as one
	Steps      []StepState   `json:"steps,omitempty"`      // in the order in which they began
	Actions    []ActionState `json:"actions,omitempty"`    // in the order in which they began
}

// State derives the state of the run from the records so far.
func (j *Journal) State() State {
	return derive(j.Records())
}

func derive(records []Record) State {
	var s State
	steps := make(map[string]int)
	step := func(name string) *StepState {
		i, ok := steps[name]
		if !ok {
			i, steps[name] = len(s.Steps), len(s.Steps)
			s.Steps = append(s.Steps, StepState{Step: name})
		}
		return &s.Steps[i]
	}
	actions := make(map[[2]string]int)
	action := func(r Record) *ActionState {
		step(r.Step)
		key := [2]string{r.Step, r.Action}
		i, ok := actions[key]
		if !ok {
			i, actions[key] = len(s.Actions), len(s.Actions)
			s.Actions = append(s.Actions, ActionState{Step: r.Step, Action: r.Action})
		}
		a := &s.Actions[i]
		a.Status, a.Time = r.Event, r.Time
		return a
	}
	for _, r := range records {
		s.Run, s.Last = r.Run, r.Time
		switch r.Event {
		case Begin:
			s.Began = r.Time
			// A begin record that does not hold a Bind was not written by
			// a Runner; the zero Bind it leaves matches no plan.
			_ = json.Unmarshal(r.Data, &s.Bind)
		case Confirmed:
			step(r.Step).Confirmed = true
		case Intent:
			action(r).Attempts++
		case Done:
			a := action(r)
			a.Found, a.Took, a.Data, a.Error = r.Found, r.Took, r.Data, ""
		case Failed:
			a := action(r)
			a.Took, a.Error = r.Took, r.Error
		case StepComplete:
			step(r.Step).Complete = true
		case StepCheckpoint:
			step(r.Step).Complete = true
			s.Checkpoint = r.Step
		case Finished:
			s.Finished = true
		}
	}
	return s
}

// StepState returns what is known of a step; the zero StepState when it has not begun.
func (s State) StepState(step string) StepState {
	for _, st := range s.Steps {
		if st.Step == step {
			return st
		}
	}
	return StepState{Step: step}
}

// ActionState returns what is known of an action, and whether it was begun.
func (s State) ActionState(step, action string) (ActionState, bool) {
	for _, a := range s.Actions {
		if a.Step == step && a.Action == action {
			return a, true
		}
	}
	return ActionState{}, false
}

// Data decodes what a done action recorded. It is false, and into untouched,
// when the action is not done or recorded nothing.
func (s State) Data(step, action string, into any) (bool, error) {
	a, _ := s.ActionState(step, action)
	if a.Status != Done || len(a.Data) == 0 {
		return false, nil
	}
	if err := json.Unmarshal(a.Data, into); err != nil {
		return false, fmt.Errorf("read what step %s, %s recorded: %w", step, action, err)
	}
	return true, nil
}
