// Package cache keeps what the lab builds, by the content that it was built from, so
// that nothing is built twice and machines can share the directory.
package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// unused is how long an entry may lie untouched before a newer one of its kind
// pushes it out.
const unused = 14 * 24 * time.Hour

// Cache is a directory of entries KIND-KEY, each complete or absent.
type Cache struct{ Dir string }

// Default is the directory from LAB_CACHE, or the user's cache directory.
func Default() (Cache, error) {
	if dir := os.Getenv("LAB_CACHE"); dir != "" {
		abs, err := filepath.Abs(dir)
		return Cache{abs}, err
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return Cache{}, fmt.Errorf("finding a directory for what the lab builds (LAB_CACHE names one): %w", err)
	}
	return Cache{filepath.Join(dir, "k3s-dualstack-lab")}, nil
}

func (c Cache) path(kind, key string) string { return filepath.Join(c.Dir, kind+"-"+key) }

// Get returns the directory of an entry, and builds it first when it is absent. The
// build fills a temporary directory that is renamed when complete; a lock makes
// other processes that want the same entry wait for it.
func (c Cache) Get(kind, key string, build func(dir string) error) (string, error) {
	entry := c.path(kind, key)
	if c.touch(entry) {
		return entry, nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", fmt.Errorf("making the lab's cache: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(c.Dir, kind+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("locking the lab's cache: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking the lab's cache: %w", err)
	}
	if c.touch(entry) {
		return entry, nil
	}
	work, err := os.MkdirTemp(c.Dir, ".building-"+kind+"-")
	if err != nil {
		return "", fmt.Errorf("making room in the lab's cache: %w", err)
	}
	defer os.RemoveAll(work)
	if err := build(work); err != nil {
		return "", fmt.Errorf("building %s: %w", kind, err)
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", fmt.Errorf("keeping %s in the lab's cache: %w", kind, err)
	}
	if err := os.Rename(work, entry); err != nil {
		return "", fmt.Errorf("keeping %s in the lab's cache: %w", kind, err)
	}
	c.prune(kind, entry)
	return entry, nil
}

func (c Cache) touch(entry string) bool {
	now := time.Now()
	return os.Chtimes(entry, now, now) == nil
}

// prune removes long unused entries of a kind. What it fails to remove costs
// room only.
func (c Cache) prune(kind, keep string) {
	entries, _ := filepath.Glob(filepath.Join(c.Dir, kind+"-*"))
	for _, entry := range entries {
		if info, err := os.Stat(entry); err == nil && entry != keep && time.Since(info.ModTime()) > unused {
			_ = os.RemoveAll(entry)
		}
	}
}

// Key is the content hash of texts (flags, versions, other keys).
func Key(texts ...string) string {
	h := sha256.New()
	for _, text := range texts {
		fmt.Fprintf(h, "%d:%s\n", len(text), text)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Sources is the content hash of files and directory trees below root. Tests and their
// data do not count, since nothing that is built contains them.
func Sources(root string, names ...string) (string, error) {
	h := sha256.New()
	for _, name := range names {
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && entry.Name() == "testdata":
				return fs.SkipDir
			case entry.IsDir(), strings.HasSuffix(path, "_test.go"):
				return nil
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			sum := sha256.New()
			if _, err := io.Copy(sum, file); err != nil {
				return err
			}
			_, err = fmt.Fprintf(h, "%x %s\n", sum.Sum(nil), filepath.ToSlash(rel))
			return err
		})
		if err != nil {
			return "", fmt.Errorf("hashing the lab's sources: %w", err)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// Texts are the names and contents of all files of a file system, for [Key].
func Texts(files fs.FS) ([]string, error) {
	var texts []string
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, path)
		texts = append(texts, path, string(data))
		return err
	})
	return texts, err
}
