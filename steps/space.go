package steps

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
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
