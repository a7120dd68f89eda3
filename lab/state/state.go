// Package state is where the lab remembers what is up: the directory, the names that may be used, and the lock
// that keeps two commands from working on the same thing.
package state

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// name is a DNS label, short enough for the names of what belongs to it.
var name = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$`)

// Check tells whether something may have that name.
func Check(n string) error {
	if !name.MatchString(n) {
		return fmt.Errorf("nothing of the lab can be named %q: lower-case letters, digits and inner dashes, at most 40", n)
	}
	return nil
}

// Root is the directory of all that is up: LAB_STATE, or the XDG state directory.
func Root() (string, error) {
	if dir := os.Getenv("LAB_STATE"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "k3s-dualstack-lab"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding a directory for the lab's state (LAB_STATE names one): %w", err)
	}
	return filepath.Join(home, ".local", "state", "k3s-dualstack-lab"), nil
}

// Lock keeps other commands away from a lab or a virtual machine while one makes or removes it.
func Lock(name string) (release func(), err error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("making the lab's state directory: %w", err)
	}
	path := filepath.Join(root, "."+name+".lock")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("%s is being made or removed by another command; wait for it to end", name)
	}
	return func() {
		_ = os.Remove(path) // a lock file that stays is no harm
		file.Close()
	}, nil
}
