// Package report is the document that stays of a migration: what was done and when, what was away
// meanwhile, what changed, what is kept where, and the way back. It is written for whoever reads the change ticket,
// as one HTML file that needs nothing besides itself, and as Markdown.
//
// The package owns the document and how it looks. What it says is put together by steps, from what a run leaves
// on the laptop; the package knows neither host nor cluster, and the same [Report] always gives the same bytes.
//
// axis.go places times beside each other, view.go puts the report into the words that both templates show,
// html.go and markdown.go escape what data they hold.
package report

import (
	"time"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/probe"
	"sunbeam.pt/k3s-dualstack/verify"
)

// Report is all that the document tells. Its times are shown in the zone that they have.
type Report struct {
	Name    string    `json:"name"` // of the migration
	Host    string    `json:"host"`
	System  string    `json:"system,omitempty"` // the host's
	K3s     string    `json:"k3s,omitempty"`    // the version that was found
	Run     string    `json:"run"`
	Began   time.Time `json:"began"`
	Last    time.Time `json:"last"` // what the journal recorded last
	Made    time.Time `json:"made"` // the report
	Version string    `json:"version"`

	Outcome Outcome `json:"outcome"`
	// Missing says what could not be read, so that the report lacks it.
	Missing []string `json:"missing,omitempty"`

	// Steps are those of the sequence in their order, then those that were taken back.
	Steps []Step `json:"steps"`
	// Stopped is when K3s did not run.
	Stopped []Window `json:"stopped,omitempty"`
	// Availability is what the prober saw, as far as it is of this run.
	Availability []probe.Availability `json:"availability,omitempty"`

	// Changes are before and after. Became says what they came to: it heads their second column.
	Changes []Comparison `json:"changes,omitempty"`
	Became  string       `json:"became"`

	Findings []preflight.Finding `json:"findings,omitempty"`
	// Verification is nil as long as the run did not get there.
	Verification *verify.Report `json:"verification,omitempty"`

	Backup  Backup    `json:"backup"`
	Remains []Remains `json:"remains"`
	WayBack WayBack   `json:"wayBack"`
	Earlier []Earlier `json:"earlier,omitempty"`
}

// Kind is what a run came to.
type Kind string

// The kinds.
const (
	Done       Kind = "done"
	Running    Kind = "running"
	Open       Kind = "open" // it rests, and can be continued
	Failed     Kind = "failed"
	RolledBack Kind = "rolled back"
)

// Outcome says first what there is to know.
type Outcome struct {
	Kind     Kind   `json:"kind"`
	Sentence string `json:"sentence"`
	// Detail is how the cluster is, or what went wrong.
	Detail string `json:"detail,omitempty"`
	// Next are the commands to go on with.
	Next []Command `json:"next"`
}

// Command is a line to type, and what for.
type Command struct {
	What string `json:"what"`
	Line string `json:"line"`
}

// Status is how far a step, or one attempt of an action, is.
type Status string

// The statuses.
const (
	StatusDone      Status = "done"
	StatusFound     Status = "found done" // by asking reality, after an attempt that was cut off
	StatusFailed    Status = "failed"
	StatusCut       Status = "cut off" // the process ended without a word
	StatusRunning   Status = "running"
	StatusBegun     Status = "begun"
	StatusToDo      Status = "to do"
	StatusTakenBack Status = "taken back"
)

// Step is a step of the run, or the taking back of one.
type Step struct {
	Name    string      `json:"name"`
	Title   string      `json:"title"`
	Phase   string      `json:"phase,omitempty"`
	Back    bool        `json:"back,omitempty"` // this is its taking back
	Status  Status      `json:"status"`
	Agreed  []time.Time `json:"agreed,omitempty"` // when a person agreed at its gate
	Actions []Action    `json:"actions,omitempty"`
}

// Action is an action of a step with all its attempts.
type Action struct {
	Name     string    `json:"name"`
	Attempts []Attempt `json:"attempts"`
}

// Attempt is one time that an action was tried.
type Attempt struct {
	Began  time.Time     `json:"began"`
	Took   time.Duration `json:"tookNanos"` // 0 when nobody knows
	Status Status        `json:"status"`
	Error  string        `json:"error,omitempty"`
}

// Ended is when the attempt did, as far as that is known.
func (a Attempt) Ended() time.Time { return a.Began.Add(a.Took) }

// Window is a time from one moment to another; Open tells that it had not ended.
type Window struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	Open bool      `json:"open,omitempty"`
}

// Comparison is a table of what was and what is.
type Comparison struct {
	Title string   `json:"title"`
	Rows  []Change `json:"rows"`
}

// Change is a row of it.
type Change struct {
	What   string `json:"what"`
	Before string `json:"before"`
	After  string `json:"after"`
}

// Backup is the backup set.
type Backup struct {
	Dir       string            `json:"dir,omitempty"` // "" when there is none
	Artifacts []backup.Artifact `json:"artifacts,omitempty"`
	Proven    time.Time         `json:"proven,omitzero"` // when all of it was last proven
}

// Size is that of all artifacts, as they lie there.
func (b Backup) Size() (n int64) {
	for _, a := range b.Artifacts {
		n += a.Size
	}
	return n
}

// Remains is something that the run leaves in a place.
type Remains struct {
	Where string `json:"where"` // "laptop", or the host
	Path  string `json:"path"`
	What  string `json:"what"`
}

// WayBack is how the old cluster comes back.
type WayBack struct {
	// Sentence says whether there is something to take back.
	Sentence string    `json:"sentence"`
	Commands []Command `json:"commands,omitempty"`
	// Actions are what a rollback would do, in order, and Lost what does not stay.
	Actions []string `json:"actions,omitempty"`
	Bytes   int64    `json:"bytes,omitempty"` // to move, about
	Lost    []string `json:"lost,omitempty"`
}

// Earlier is a run of the plan before this one.
type Earlier struct {
	Run     string    `json:"run"`
	Began   time.Time `json:"began"`
	Last    time.Time `json:"last"`
	Outcome string    `json:"outcome"`
}
