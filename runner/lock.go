package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// Holder is who holds a lock. The lock on the host holds the same JSON.
type Holder struct {
	User    string    `json:"user"`
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"` // UTC, by the holder's clock
	Command string    `json:"command"`
}

// Self describes this process as a holder from now on.
func Self() Holder {
	h := Holder{PID: os.Getpid(), Since: time.Now().UTC().Round(0), Command: strings.Join(os.Args, " ")}
	if u, err := user.Current(); err == nil {
		h.User = u.Username
	}
	h.Host, _ = os.Hostname() // an unknown host is shown as such
	return h
}

// String is the holder for people.
func (h Holder) String() string {
	if h.PID == 0 {
		return "a run that has not said who it is"
	}
	return fmt.Sprintf("%s@%s (%q, process %d) since %s", orNone(h.User), orNone(h.Host), h.Command, h.PID, h.Since.UTC().Format(time.RFC3339))
}

// HeldError says that another run holds the lock.
type HeldError struct {
	Path   string
	Holder Holder // zero when it has not said who it is
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("lock %s: it is held by %v; nothing was done: wait until that run ends, or stop it (the lock goes with its process)", e.Path, e.Holder)
}

// Lock is held until Release, or until the process ends in whatever way.
type Lock struct {
	flock  *flock.Flock
	holder Holder
}

// Acquire takes the lock file at path without waiting; its directory is made.
// The error is a *HeldError when another run holds it. What an earlier holder left in the file
// means nothing: the lock is the kernel's, and the file only names its holder.
func Acquire(path string) (*Lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	f := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	ok, err := f.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if !ok {
		held := &HeldError{Path: path}
		if data, err := os.ReadFile(path); err == nil {
			// The holder may be writing its name just now.
			_ = json.Unmarshal(data, &held.Holder)
		}
		return nil, held
	}
	l := &Lock{flock: f, holder: Self()}
	data, err := json.Marshal(l.holder)
	if err == nil {
		err = os.WriteFile(path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: name its holder: %w", path, err), f.Unlock())
	}
	return l, nil
}

// Holder is this process.
func (l *Lock) Holder() Holder { return l.holder }

// Release gives the lock up. The file stays: removing it would let two runs
// lock two files of the same name.
func (l *Lock) Release() error {
	if err := l.flock.Unlock(); err != nil {
		return fmt.Errorf("unlock %s: %w", l.flock.Path(), err)
	}
	return nil
}
