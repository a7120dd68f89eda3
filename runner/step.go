package runner

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// TargetKind says what sort of thing an action changes or reads.
type TargetKind string

// The kinds of target.
const (
	Host    TargetKind = "host"
	Cluster TargetKind = "cluster"
	Laptop  TargetKind = "laptop"
)

// Target is what an action works on.
type Target struct {
	Kind TargetKind `json:"kind"`
	Name string     `json:"name,omitempty"`
}

// String is the kind and name for people: "host k3s-1", "laptop".
func (t Target) String() string {
	if t.Name == "" {
		return string(t.Kind)
	}
	return string(t.Kind) + " " + t.Name
}

// Action is one thing that a step does to one target.
type Action struct {
	// Name identifies the action within its step, over restarts: derive it
	// from the thing worked on, never from a position.
	Name   string `json:"name"`
	Target Target `json:"target"`
	// Summary says in a sentence what the action does.
	Summary string `json:"summary,omitempty"`
	// Command is what a person would type to do the same.
	Command string `json:"command,omitempty"`
	// Bytes is about how much the action moves; 0 when that is little or unknown.
	Bytes int64 `json:"bytes,omitempty"`
	// Like names an action of the run, as step/action, that takes about as
	// long: where the journal has measured it, a preview can tell.
	Like string `json:"like,omitempty"`
	// Alone keeps the action from running beside others of its step, where
	// these run in parallel: it waits for those before it, and those after it
	// wait for it.
	Alone bool `json:"-"`

	// Run performs the action. It returns nil only when the work is complete
	// and durable. What it returns as data is journaled as JSON with done and
	// read back by State.Data; neither it nor the error, which is journaled
	// too, may hold a secret, but for what a [Discreet] error leaves out.
	Run func(ctx context.Context) (data any, err error) `json:"-"`

	// Done asks reality whether the action is done. It is called only when
	// an earlier attempt began and is not known to have completed: after a
	// crash, a cancelled context, or an error from Run (which may have lost
	// its connection when the work was done). nil means that the action is
	// repeatable and performed anew. An action found done has no data: where
	// later steps need it, leave Done nil or read it back in an action of
	// its own.
	Done func(ctx context.Context) (bool, error) `json:"-"`
}

// Discreet is an error that says more to a person than the journal may keep, such as what
// a program of the user's printed.
type Discreet interface {
	error
	// Recorded is what the journal keeps instead of Error.
	Recorded() string
}

// discreetly is an error's text for the journal.
func discreetly(err error) string {
	var d Discreet
	if !errors.As(err, &d) {
		return err.Error()
	}
	return strings.Replace(err.Error(), d.Error(), d.Recorded(), 1)
}

// Gate is a place where the run stops until a person agrees.
type Gate struct {
	Question string `json:"question"`
	Expect   string `json:"expect"` // the word to type
}

// Step is a named unit of the run.
type Step struct {
	Name  string `json:"name"` // unique in the run, stable over versions: journals hold it
	Title string `json:"title"`
	Phase string `json:"phase,omitempty"`

	ReadOnly   bool  `json:"readOnly,omitempty"`   // no action changes a target
	Checkpoint bool  `json:"checkpoint,omitempty"` // the target can be left as it is at the step's end
	Gate       *Gate `json:"gate,omitempty"`       // asked once, before the step's actions are computed; again when the step was rolled back

	// Parallel is how many actions run at once; 0 and 1 mean one after the
	// other, in order. When one of several fails, those that run already are
	// left to finish (their work is not thrown away) and no more are started.
	Parallel int `json:"parallel,omitempty"`

	// Actions computes the step's actions; nil means none. It changes nothing: it is called
	// for a preview, and again whenever the step is continued, when it may
	// leave out or add actions but must keep the names of those it repeats.
	Actions func(ctx context.Context) ([]Action, error) `json:"-"`

	// Undo computes the actions that take back what the step did; nil means
	// that there is nothing to take back. They are performed as Actions are, in
	// their order and as many at once; their names are apart from those of
	// Actions, and are kept as theirs are. Undo changes nothing. The step may
	// be complete, or have stopped anywhere: the actions start from whatever
	// they find. What later steps did is taken back by then, and what they
	// recorded is gone from the State.
	Undo func(ctx context.Context) ([]Action, error) `json:"-"`
}

// computed are a step's actions or undo actions, checked; nil computes none.
func computed(ctx context.Context, compute func(context.Context) ([]Action, error)) ([]Action, error) {
	if compute == nil {
		return nil, nil
	}
	actions, err := compute(ctx)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool, len(actions))
	for i, a := range actions {
		switch {
		case a.Name == "":
			return nil, fmt.Errorf("action %d has no name", i+1)
		case a.Run == nil:
			return nil, fmt.Errorf("action %q has nothing to run", a.Name)
		case seen[a.Name]:
			return nil, fmt.Errorf("two actions are named %q: the journal could not tell them apart", a.Name)
		}
		seen[a.Name] = true
	}
	return actions, nil
}

// Planned is a step with the actions that it would perform now.
type Planned struct {
	Step
	Actions []Action `json:"actions"`
}

// Preview computes the actions of all steps, in order, and runs none of them.
// The error is a *StepError naming the step whose actions cannot be computed.
func Preview(ctx context.Context, steps []Step) ([]Planned, error) {
	if err := checkSteps(steps); err != nil {
		return nil, err
	}
	planned := make([]Planned, 0, len(steps))
	for _, s := range steps {
		actions, err := computed(ctx, s.Actions)
		if err != nil {
			return nil, &StepError{Step: s.Name, Err: err}
		}
		planned = append(planned, Planned{Step: s, Actions: actions})
	}
	return planned, nil
}

func checkSteps(steps []Step) error {
	seen := make(map[string]bool, len(steps))
	for i, s := range steps {
		if s.Name == "" {
			return fmt.Errorf("step %d has no name", i+1)
		}
		if seen[s.Name] {
			return fmt.Errorf("two steps are named %q: the journal could not tell them apart", s.Name)
		}
		seen[s.Name] = true
	}
	return nil
}

// StepError says where a run stopped.
type StepError struct {
	Step   string
	Action string // empty when the step failed outside of its actions
	Err    error
}

func (e *StepError) Error() string {
	if e.Action == "" {
		return fmt.Sprintf("step %s: %v", e.Step, e.Err)
	}
	return fmt.Sprintf("step %s, %s: %v", e.Step, e.Action, e.Err)
}

func (e *StepError) Unwrap() error { return e.Err }

// ErrDeclined is returned when a gate was not agreed to. The run can be
// continued: the gate is asked again.
var ErrDeclined = errors.New("declined")
