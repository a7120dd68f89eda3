package runner

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
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
	Status   Event           `json:"status"`          // Intent (running, or cut off), Done or Failed; of an undo action Undoing, Undone or UndoFailed
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

// RollbackState is what the journal says of a rollback that has begun.
type RollbackState struct {
	To string `json:"to"` // the checkpoint
	// Via names the detour by which it goes, and At the step whose undo actions the
	// detour's are; "" for the steps' own undo actions.
	Via     string        `json:"via,omitempty"`
	At      string        `json:"at,omitempty"`
	Began   time.Time     `json:"began"`
	Actions []ActionState `json:"actions,omitempty"` // undo actions, in the order in which they began
}

// State is what the records of a journal amount to.
type State struct {
	Run        string        `json:"run,omitempty"` // empty: nothing has begun
	Bind       Bind          `json:"bind"`
	Began      time.Time     `json:"began,omitzero"`
	Last       time.Time     `json:"last,omitzero"` // of the last record
	Finished   bool          `json:"finished"`
	Checkpoint string        `json:"checkpoint,omitempty"` // the last that holds: at which a step ended, or to which the run was or is being rolled back
	Steps      []StepState   `json:"steps,omitempty"`      // in the order in which they began
	Actions    []ActionState `json:"actions,omitempty"`    // in the order in which they began

	// Rollback is nil unless a rollback has begun and is not complete.
	Rollback *RollbackState `json:"rollback,omitempty"`
	// RolledBack is the checkpoint at which the run is since it was rolled back
	// to it; "" when it was not, or something began since.
	RolledBack string `json:"rolledBack,omitempty"`
	// RolledBackVia names the detour by which it was.
	RolledBackVia string `json:"rolledBackVia,omitempty"`
}

// State derives the state of the run from the records so far.
func (j *Journal) State() State {
	return derive(j.Records())
}

func derive(records []Record) State {
	var s State
	for _, r := range records {
		s.Run, s.Last = r.Run, r.Time
		switch r.Event {
		case Begin:
			s.Began = r.Time
			// A begin record that does not hold a Bind was not written by
			// a Runner; the zero Bind it leaves matches no plan.
			_ = json.Unmarshal(r.Data, &s.Bind)
		case Confirmed:
			s.step(r.Step).Confirmed = true
		case Intent, Done, Failed:
			s.step(r.Step)
			enter(&s.Actions, r)
		case StepComplete:
			s.step(r.Step).Complete = true
		case StepCheckpoint:
			s.step(r.Step).Complete = true
			s.Checkpoint = r.Step
		case Finished:
			s.Finished, s.RolledBack = true, ""
		case Rollback:
			s.Finished, s.Checkpoint, s.RolledBack = false, r.Step, ""
			if s.Rollback == nil {
				s.Rollback = &RollbackState{Began: r.Time}
			}
			var d detoured
			if r.Data != nil {
				_ = json.Unmarshal(r.Data, &d) // written by a Runner
			}
			if s.Rollback.Via != d.Via {
				s.Rollback.Actions = nil // the other way's
			}
			s.Rollback.To, s.Rollback.Via, s.Rollback.At = r.Step, d.Via, d.At
		case Undoing, Undone, UndoFailed:
			if s.Rollback != nil {
				enter(&s.Rollback.Actions, r)
			}
		case Reverted:
			s.Steps = slices.DeleteFunc(s.Steps, func(x StepState) bool { return x.Step == r.Step })
			s.Actions = slices.DeleteFunc(s.Actions, func(x ActionState) bool { return x.Step == r.Step })
		case RolledBack:
			if s.Rollback != nil {
				s.RolledBackVia = s.Rollback.Via
			}
			s.Rollback, s.RolledBack = nil, r.Step
		}
	}
	return s
}

// step is the state of a step that has begun.
func (s *State) step(name string) *StepState {
	s.RolledBack = ""
	i := slices.IndexFunc(s.Steps, func(x StepState) bool { return x.Step == name })
	if i < 0 {
		i = len(s.Steps)
		s.Steps = append(s.Steps, StepState{Step: name})
	}
	return &s.Steps[i]
}

// enter notes a record of an action.
func enter(actions *[]ActionState, r Record) {
	i := slices.IndexFunc(*actions, func(x ActionState) bool { return x.Step == r.Step && x.Action == r.Action })
	if i < 0 {
		i = len(*actions)
		*actions = append(*actions, ActionState{Step: r.Step, Action: r.Action})
	}
	a := &(*actions)[i]
	a.Status, a.Time = r.Event, r.Time
	switch r.Event {
	case Intent, Undoing:
		a.Attempts++
	case Done, Undone:
		a.Found, a.Took, a.Data, a.Error = r.Found, r.Took, r.Data, ""
	case Failed, UndoFailed:
		a.Took, a.Error = r.Took, r.Error
	}
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
	return find(s.Actions, step, action)
}

func find(actions []ActionState, step, action string) (ActionState, bool) {
	for _, a := range actions {
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
	return a.data(into)
}

// UndoData is Data for an undo action of the rollback that is under way.
func (s State) UndoData(step, action string, into any) (bool, error) {
	if s.Rollback == nil {
		return false, nil
	}
	a, _ := find(s.Rollback.Actions, step, action)
	return a.data(into)
}

func (a ActionState) data(into any) (bool, error) {
	if (a.Status != Done && a.Status != Undone) || len(a.Data) == 0 {
		return false, nil
	}
	if err := json.Unmarshal(a.Data, into); err != nil {
		return false, fmt.Errorf("read what step %s, %s recorded: %w", a.Step, a.Action, err)
	}
	return true, nil
}

// Measured tells how long an action took when it last completed; like names it
// as [Action.Like] does. 0 when it never did.
func (s State) Measured(like string) time.Duration {
	step, action, _ := strings.Cut(like, "/")
	a, _ := s.ActionState(step, action)
	if a.Status != Done || a.Found {
		return 0
	}
	return a.Took
}
