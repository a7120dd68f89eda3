package steps

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sunbeam.pt/k3s-dualstack/backup"
)

// free is the space in bytes that an ordinary user may still write on the file
// system that dir lies on, or will lie on once it is made.
func free(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			continue
		}
		return int64(st.Bavail) * int64(st.Bsize), err
	}
}

// tellFullDisk makes of an error by which the laptop's disk is full one that tells so with numbers, wherever in a run or
// a rollback it showed: the journal's next record may be what finds no room.
func (m *Migration) tellFullDisk(err *error) {
	var told *backup.DiskFullError
	if !errors.Is(*err, unix.ENOSPC) || errors.As(*err, &told) {
		return
	}
	left, measured := free(m.Plan.Spec.WorkDir)
	if measured != nil {
		left = 0
	}
	*err = &backup.DiskFullError{Dir: m.Plan.Spec.WorkDir, Name: "what the run keeps of itself", Expected: recordRoom, Free: left, Err: *err}
}

// recordRoom is what a record of the journal takes at most but for its data, in bytes.
const recordRoom = 4096
