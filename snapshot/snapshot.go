// Package snapshot owns snapshots of the host: what a host's storage allows, how a
// snapshot is taken before the rebuild, watched while it fills, returned to and removed.
//
// A [Method] is one way to do that: logical volumes, btrfs, ZFS, a provider's API, the user's own
// commands. It lists operations, each with the command that a person would type, and steps makes
// actions of them: what is printed is what is done. Nothing here knows of journals or of K3s
// beyond the paths that a rebuild touches.
//
// A return by snapshot brings back the whole of what it holds, so that it is offered only where
// everything that the rebuild touches lies on it. Then the root file system is among that, so that a return on
// the host's own disks ends with a restart, and one by a provider takes the host away meanwhile.
package snapshot

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Place is where an operation is performed.
type Place string

// The places.
const (
	OnHost   Place = "host"
	OnLaptop Place = "laptop"
)

// Operation is one thing that is done to take a snapshot, to return to it or to remove it.
type Operation struct {
	// Name identifies the operation among those of its list, over restarts.
	Name    string
	Place   Place
	Summary string
	// Command is what a person would type to do the same.
	Command string
	// Run performs it; it returns nil only when the work is complete and durable.
	Run func(ctx context.Context) error
	// Done asks reality whether it is done, after an attempt that was cut off; nil means that Run
	// can be repeated.
	Done func(ctx context.Context) (bool, error)
}

// Unused is the operation that sees, before a snapshot is taken, that none is there of another run, where the survey
// does not know.
const Unused = "unused"

// Method is a way to take snapshots of one host. [base] has what a method that lies on the host's own
// disks need not say.
type Method interface {
	// Problems are the reasons why it cannot be used with what the survey found.
	Problems() []Problem
	// Outside lists what the rebuild touches and the snapshot does not hold, as a person reads it:
	// a path, and in parentheses why where that is no matter of course. With any of it a return by
	// snapshot is not offered.
	Outside() []string
	// Ready looks whether what the survey does not know is there: programs, an API and what it knows of
	// the server. It changes nothing.
	Ready(ctx context.Context) error
	// Reach makes the host answer again where the operation named cut, of Take or Return, has taken it away
	// and was cut off: it ends that operation or takes it back. It uses no connection to the host.
	Reach(ctx context.Context, cut string) error
	// Take lists what makes the snapshot and proves that it can be opened.
	Take() []Operation
	// Fill tells how full the fullest part of the snapshot is; the zero value where none can
	// overflow. What is not there any more is not full.
	Fill(ctx context.Context) (Fill, error)
	// Return lists what brings the host back to the snapshot, up to the restart that it takes. The
	// first operation changes nothing: it looks whether all of the snapshot is there and whole. K3s is stopped
	// before, and started after it.
	Return() []Operation
	// Pending tells what of a return that was begun would still take place later, such as with the next
	// start of the host, and what to do about it; "" for nothing.
	Pending(ctx context.Context) (string, error)
	// Remove lists what removes the snapshot. One that is gone is no error.
	Remove() []Operation
}

// base is a method that asks nothing but the host, never takes it away, cannot overflow and leaves nothing pending.
type base struct{ Ask }

// Fill is how full a part of a snapshot is.
type Fill struct {
	Part    string  // "" for none
	Percent float64 // 100 for one that has overflown
	Remedy  string  // what to do about it, before or after the fact
}

func (base) Ready(context.Context) error             { return nil }
func (base) Reach(context.Context, string) error     { return nil }
func (base) Fill(context.Context) (Fill, error)      { return Fill{}, nil }
func (base) Pending(context.Context) (string, error) { return "", nil }

// Problem is a reason why a method cannot be used on a host.
type Problem struct {
	// Field of the plan, below spec.snapshot, "" for the method itself.
	Field string
	// Detail is what was seen, Remedy what to do about it.
	Detail, Remedy string
}

// Ask is what a method is made for.
type Ask struct {
	Host func(context.Context) (*remote.Host, error)
	// Job runs a script on the host that outlives the connection, under a name by which the next process finds it.
	Job func(ctx context.Context, name, label, script string) error
	// Here runs a program on the laptop.
	Here func(ctx context.Context, command []string) error
	// Output gets what the plan's own programs print.
	Output io.Writer
	// Plan is the plan's snapshot section, Name what the plan is called, which snapshots carry.
	Plan *plans.Snapshot
	Name string
	// Storage is what the survey found.
	Storage Storage
	// Proof is a path that must be found in the snapshot when it is opened.
	Proof string
	// DestroyNewer lets a return destroy snapshots that are newer than this one.
	DestroyNewer bool
	// Server is how the plan reaches the host.
	Server plans.Host
	// Encryption is the backup's, and Passphrase asks for those of its private keys: for images on the laptop.
	Encryption plans.Encryption
	Passphrase func(file string) ([]byte, error)
	Progress   *progress.Reporter
}

// New is the plan's method, nil where it takes no snapshot.
func New(a Ask) Method {
	a.Proof = a.Storage.real(a.Proof)
	switch a.Plan.Method {
	case plans.SnapshotLVM:
		return lvm{base{a}}
	case plans.SnapshotBtrfs:
		return btrfs{base{a}}
	case plans.SnapshotZFS:
		return zfs{base{a}}
	case plans.SnapshotScaleway:
		return newScaleway(a, usualPace)
	case plans.SnapshotCommand:
		return command{base{a}}
	}
	return nil
}

// Proposal is what a host's storage allows.
type Proposal struct {
	// Method is [plans.SnapshotNone] when none of those that need nothing from outside can be used.
	Method plans.SnapshotMethod
	// Size is spec.snapshot.size, "" where the method needs none.
	Size string
	// Why says what stands in the way of each method, where there is none.
	Why []string
}

// Proposed is the method that a host's storage allows.
func Proposed(s Storage) Proposal {
	p := Proposal{Method: plans.SnapshotNone}
	if len(s.FileSystems) == 0 {
		p.Why = []string{"its file systems could not be read"}
		return p
	}
	var paths, on []string
	for _, fs := range s.FileSystems {
		paths = append(paths, fs.Paths...)
		on = append(on, fmt.Sprintf("%s on %s", fs.Type, fs.Source))
	}
	for _, method := range []plans.SnapshotMethod{plans.SnapshotLVM, plans.SnapshotBtrfs, plans.SnapshotZFS} {
		m := New(Ask{Plan: &plans.Snapshot{Method: method}, Name: "proposed", Storage: s})
		problems, outside := m.Problems(), m.Outside()
		switch {
		case !slices.ContainsFunc(paths, func(p string) bool { return !slices.Contains(outside, p) }): // nothing lies on what it takes snapshots of
		case len(outside) > 0:
			p.Why = append(p.Why, fmt.Sprintf("%s would not hold %s", method, strings.Join(outside, ", ")))
		case len(problems) > 0:
			for _, problem := range problems {
				p.Why = append(p.Why, fmt.Sprintf("%s: %s", method, problem.Detail))
			}
		default:
			p.Method, p.Why = method, nil
			if l, ok := m.(lvm); ok {
				p.Size = l.size()
			}
			return p
		}
	}
	if len(p.Why) == 0 {
		p.Why = []string{"its storage has none (" + strings.Join(on, ", ") + ")"}
	}
	return p
}

// otherwise is what is left when a snapshot cannot be returned to and nothing was begun.
const otherwise = "nothing was changed: `migrate rollback --via backup` brings the old cluster back from the backup set"

// nothing is why a return is refused of which not even the parts are known, as when the host's storage could not be read.
func nothing(method plans.SnapshotMethod) error {
	return fmt.Errorf("nothing is known of what lies on %s on the host: %s", method, otherwise)
}

// outside lists the paths on file systems that are not held.
func outside(s Storage, held func(FileSystem) bool) []string {
	var out []string
	for _, fs := range s.FileSystems {
		if !held(fs) {
			out = append(out, fs.Paths...)
		}
	}
	slices.Sort(out)
	return out
}

// below tells whether a path is another or lies below it.
func below(p, dir string) bool {
	return path.Clean(p) == path.Clean(dir) || strings.HasPrefix(path.Clean(p)+"/", strings.TrimSuffix(path.Clean(dir), "/")+"/")
}

func failed(h *remote.Host, what string, err error) error {
	return fmt.Errorf("host %s: %s: %w", h.Name(), what, err)
}

// output runs a script on the host that tells something; what is for the error.
func (a Ask) output(ctx context.Context, what, script string) (string, error) {
	h, err := a.Host(ctx)
	if err != nil {
		return "", err
	}
	out, err := h.Output(ctx, script)
	if err != nil {
		return "", failed(h, what, err)
	}
	return out, nil
}

// run runs a script on the host.
func (a Ask) run(ctx context.Context, what, script string) error {
	_, err := a.output(ctx, what, script)
	return err
}
