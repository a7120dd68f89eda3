package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/steps"
)

// readSaved reads the saved plan that a command line names, nil when it names none, and
// makes file the plan file that it is of.
func readSaved(c *cobra.Command, args []string, file *string) (*steps.Saved, error) {
	if len(args) == 0 {
		return nil, nil
	}
	s, err := steps.ReadSaved(args[0])
	var not *steps.NotSavedError
	var path *fs.PathError
	if errors.As(err, &not) || errors.As(err, &path) {
		return nil, usageError{err}
	}
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(s.PlanFile); errors.Is(err, fs.ErrNotExist) {
		now := "FILE"
		if c.Flags().Changed("file") {
			now = remote.Quote(*file)
		}
		return nil, usageError{fmt.Errorf("the saved plan %s is of %s, which is not there: put the plan back there, or save it anew from where it is now: migrate plan -f %s --out %s",
			args[0], s.PlanFile, now, remote.Quote(args[0]))}
	}
	if c.Flags().Changed("file") {
		named, err := filepath.Abs(*file)
		if err != nil {
			return nil, fmt.Errorf("--file: %w", err)
		}
		if named != s.PlanFile {
			return nil, usageError{fmt.Errorf("--file %s: the saved plan %s is of %s: leave --file out, or name the one that it is of", *file, args[0], s.PlanFile)}
		}
	}
	*file = s.PlanFile
	return s, nil
}

// holdTo refuses a run for which plan, host or cluster is no longer as it was saved.
func holdTo(c *cobra.Command, m *steps.Migration, s *steps.Saved, savedFile, file string) error {
	err := m.HoldTo(c.Context(), s)
	var (
		moved     *steps.MovedError
		other     *steps.NotFromError
		inhibited *steps.InhibitedError
	)
	switch {
	case errors.As(err, &moved):
		return fmt.Errorf("%w; to see what would be done now, and save that: migrate plan -f %s --out %s", err, remote.Quote(file), remote.Quote(savedFile))
	case errors.As(err, &other):
		return fmt.Errorf("%w; to continue it: migrate run -f %s", err, remote.Quote(file))
	case errors.As(err, &inhibited):
		return findings(c, inhibited)
	}
	return err
}
