package manifests

import (
	"os"
	"syscall"
)

// keepOwner gives a new file the owner and group of the one whose place it takes.
func keepOwner(file *os.File, old os.FileInfo) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	was, ok := old.Sys().(*syscall.Stat_t)
	is, ok2 := info.Sys().(*syscall.Stat_t)
	if !ok || !ok2 || was.Uid == is.Uid && was.Gid == is.Gid {
		return nil
	}
	if err := file.Chown(int(was.Uid), int(was.Gid)); err != nil {
		return err
	}
	return file.Chmod(old.Mode().Perm()) // chown may take bits away
}
