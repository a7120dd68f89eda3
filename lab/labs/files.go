package labs

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"sunbeam.pt/k3s-dualstack/lab/engine"
)

// files are put into a container before or while it runs, all owned by root.
type files struct {
	list []file
	made map[string]bool
}

type file struct {
	header tar.Header
	data   []byte
	source string // a file of this machine, streamed, instead of data
}

// add puts a small file; missing directories above it are made with 0755.
func (f *files) add(name string, mode fs.FileMode, data []byte) {
	f.parents(name)
	f.list = append(f.list, file{tar.Header{Typeflag: tar.TypeReg, Name: name[1:], Mode: int64(mode), Size: int64(len(data)), ModTime: time.Now()}, data, ""})
}

// addFile puts a file of this machine.
func (f *files) addFile(name string, mode fs.FileMode, source string) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("putting %s on the host: %w", name, err)
	}
	f.parents(name)
	f.list = append(f.list, file{tar.Header{Typeflag: tar.TypeReg, Name: name[1:], Mode: int64(mode), Size: info.Size(), ModTime: info.ModTime()}, nil, source})
	return nil
}

// addDir puts the regular files directly in a directory of this machine.
func (f *files) addDir(name string, mode fs.FileMode, source string) error {
	entries, err := os.ReadDir(source)
	if err != nil {
		return fmt.Errorf("putting %s on the host: %w", name, err)
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		if err := f.addFile(path.Join(name, entry.Name()), mode, filepath.Join(source, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// directory makes one with a mode of its own; it must come before what lies in it.
func (f *files) directory(name string, mode fs.FileMode) {
	f.parents(name)
	if f.made == nil {
		f.made = map[string]bool{}
	}
	f.made[name] = true
	f.list = append(f.list, file{tar.Header{Typeflag: tar.TypeDir, Name: name[1:] + "/", Mode: int64(mode), ModTime: time.Now()}, nil, ""})
}

// parents makes the directories that Debian's tree lacks. Those that it has keep
// their modes, so only names below these are listed.
func (f *files) parents(name string) {
	switch dir := path.Dir(name); dir {
	case "/", "/etc", "/etc/ssh", "/root", "/usr/local/bin", "/usr/local/lib/lab":
	default:
		if !f.made[dir] {
			f.directory(dir, 0o755)
		}
	}
}

// put streams the files into a container.
func (f *files) put(ctx context.Context, container string) error {
	if len(f.list) == 0 {
		return nil
	}
	read, write := io.Pipe()
	go func() { write.CloseWithError(f.write(write)) }()
	defer read.Close()
	return engine.Stream(ctx, read, io.Discard, "cp", "-", container+":/")
}

func (f *files) write(w io.Writer) error {
	archive := tar.NewWriter(w)
	for _, file := range f.list {
		if err := archive.WriteHeader(&file.header); err != nil {
			return err
		}
		var data io.Reader = bytes.NewReader(file.data)
		if file.source != "" {
			source, err := os.Open(file.source)
			if err != nil {
				return err
			}
			defer source.Close()
			data = source
		}
		if _, err := io.Copy(archive, data); err != nil {
			return err
		}
	}
	return archive.Close()
}
