// Package snapshot owns snapshots of the host: what a host's storage allows, how a
// snapshot is taken before the rebuild, watched while it fills, returned to and removed.
//
// A [Method] is one way to do that: logical volumes, btrfs, ZFS, a provider's API, the user's own
// commands. It lists operations, each with the command that a person would type, and steps makes
// actions of them: what is printed is what is done. Nothing here knows of journals or of K3s
// beyond the paths that a rebuild touches.
//
// A return by snapshot brings back the whole of what it holds, so that it is offered only where
// everything that the rebuild touches lies on it; then it lies on the root file system, too, and the
// return ends with a reboot.
package snapshot

import (
	"context"
	"fmt"
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

// Method is a way to take snapshots of one host.
type Method interface {
	// Take lists what makes the snapshot and proves that it can be opened.
	Take() []Operation
	// Fill tells how full the fullest part of the snapshot is, in per cent, and what that is;
	// "" where none can overflow.
	Fill(ctx context.Context) (part string, percent float64, err error)
	// Return lists what brings the host back to the snapshot, up to the reboot that it takes. The
	// host's services are as they were when it is through.
	Return() []Operation
	// Remove lists what removes the snapshot. One that is gone is no error.
	Remove() []Operation
}

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
	// Plan is the plan's snapshot section, Name what the plan is called, which snapshots carry.
	Plan *plans.Snapshot
	Name string
	// Storage is what the survey found.
	Storage Storage
	// Proof is a path that must be found in the snapshot when it is opened.
	Proof    string
	Progress *progress.Reporter
}

// New is the plan's method, nil where it takes no snapshot.
func New(a Ask) Method {
	switch a.Plan.Method {
	case plans.SnapshotLVM:
		return lvm{a}
	case plans.SnapshotCommand:
		return command{a}
	}
	return nil
}

// Outside lists the paths of the storage that a snapshot by this method does not hold. A
// command's is the user's to know.
func Outside(s Storage, method plans.SnapshotMethod) []string {
	var out []string
	for _, fs := range s.FileSystems {
		if !held(s, fs, method) {
			out = append(out, fs.Paths...)
		}
	}
	slices.Sort(out)
	return out
}

func held(s Storage, fs FileSystem, method plans.SnapshotMethod) bool {
	switch method {
	case plans.SnapshotLVM:
		return s.logicalVolume(fs) != nil
	case plans.SnapshotCommand:
		return true
	}
	return false
}

// Problems are the reasons why the plan's method cannot be used with what the host has.
func Problems(p *plans.Snapshot, name string, s Storage) []Problem {
	switch p.Method {
	case plans.SnapshotLVM:
		return lvm{Ask{Plan: p, Name: name, Storage: s}}.problems()
	}
	return nil
}

// Proposed is the method that a host's storage allows, [plans.SnapshotNone] when none of
// those that need nothing from outside does.
func Proposed(s Storage) plans.SnapshotMethod {
	for _, method := range []plans.SnapshotMethod{plans.SnapshotLVM} {
		if len(s.FileSystems) > 0 && len(Outside(s, method)) == 0 && len(Problems(&plans.Snapshot{Method: method}, "proposed", s)) == 0 {
			return method
		}
	}
	return plans.SnapshotNone
}

// otherwise is what is left when a snapshot cannot be returned to.
const otherwise = "`migrate rollback --via backup` brings the old cluster back from the backup set"

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
