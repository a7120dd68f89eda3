package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fillSmall makes a tree of everything that a copy can get wrong, and many plain
// files beside it.
func fillSmall(root string, files int) error {
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for i := range files {
		name := filepath.Join(root, "plain", fmt.Sprintf("%02x", i%64), fmt.Sprintf("file-%05d", i))
		if i < 64 {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return err
			}
		}
		data := make([]byte, random.IntN(4096))
		for j := range data {
			data[j] = byte(random.Uint32())
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			return err
		}
	}
	for _, part := range []func(string) error{fillNames, fillLinks, fillModes, fillAttributes, fillSparse, fillTimes} {
		if err := part(root); err != nil {
			return err
		}
	}
	return nil
}

// fillNames: names that break scripts, and paths that break archives.
func fillNames(root string) error {
	dir := filepath.Join(root, "names")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{
		"with space", " leading", "trailing ", "quote'single", `quote"double`, "new\nline", "tab\there", `back\slash`,
		"ünïcödé-日本語-🌈", "e\u0301-decomposed", "\xff\xfe-not-utf-8", "-dash", "--help", "$(id)", "`id`", "*", "?[a-z]", ".hidden", "..dots", "a:b", "a,b;c|d&e", "%s%n", "#", "~", strings.Repeat("long", 63) + "end",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			return err
		}
	}
	for _, empty := range []string{"empty", "empty nested/a/b", "empty\nline"} {
		if err := os.MkdirAll(filepath.Join(dir, empty), 0o755); err != nil {
			return err
		}
	}
	// Longer than the fields of every tar header before pax.
	deep := filepath.Join(dir, strings.Repeat(strings.Repeat("d", 100)+"/", 12))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(deep, "bottom"), []byte("bottom\n"), 0o644)
}

func fillLinks(root string) error {
	dir := filepath.Join(root, "links")
	if err := os.MkdirAll(filepath.Join(dir, "elsewhere"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "hard-a"), []byte("one file, three names\n"), 0o640); err != nil {
		return err
	}
	for _, name := range []string{"hard-b", "elsewhere/hard-c"} {
		if err := os.Link(filepath.Join(dir, "hard-a"), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"relative": "hard-a", "up": "../names/with space", "absolute": "/etc/passwd", "dangling": "nowhere/at all", "directory": "elsewhere",
		"loop": "loop", "new\nline": "target\nline", "long": strings.Repeat("t/", 1000),
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.Lchown(filepath.Join(dir, "dangling"), 1000, 1001); err != nil {
		return err
	}
	return unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620)
}

func fillModes(root string) error {
	dir := filepath.Join(root, "modes")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, entry := range []struct {
		name     string
		mode     uint32
		uid, gid int
		dir      bool
	}{
		{"none", 0o000, 0, 0, false}, {"read-only", 0o400, 1000, 1000, false}, {"all", 0o777, 65534, 65534, false},
		{"setuid", 0o4755, 0, 0, false}, {"setgid", 0o2755, 0, 42, false}, {"setuid-other", 0o6711, 1234, 5678, false}, {"sticky-file", 0o1644, 0, 0, false},
		{"big-owner", 0o600, 2_000_000_000, 2_000_000_001, false},
		{"sticky", 0o1777, 0, 0, true}, {"setgid-dir", 0o2775, 1000, 2000, true}, {"closed-dir", 0o000, 999, 999, true}, {"read-only-dir", 0o555, 26, 26, true},
	} {
		path := filepath.Join(dir, entry.name)
		if entry.dir {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(path, "inside"), []byte(entry.name), 0o600); err != nil {
				return err
			}
		} else if err := os.WriteFile(path, []byte(entry.name), 0o600); err != nil {
			return err
		}
		// The mode last: a change of owner takes setuid away.
		if err := os.Chown(path, entry.uid, entry.gid); err != nil {
			return err
		}
		if err := unix.Chmod(path, entry.mode); err != nil {
			return err
		}
	}
	return nil
}

func fillAttributes(root string) error {
	dir := filepath.Join(root, "attributes")
	if err := os.MkdirAll(filepath.Join(dir, "default-acl"), 0o755); err != nil {
		return err
	}
	for _, name := range []string{"attributes", "acl", "capability"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			return err
		}
	}
	for _, attribute := range []struct {
		file, name string
		value      []byte
	}{
		{"attributes", "user.comment", []byte("kept ünd well")},
		{"attributes", "user.empty", nil},
		{"attributes", "user.binary", []byte{0, 1, '\n', '"', '\\', 0xff, 0}},
		{"attributes", "user.large", bytes.Repeat([]byte("x"), 2000)},
		{"default-acl", "user.on-directory", []byte("yes")},
		{"acl", "system.posix_acl_access", acl(0o6, 1000, 0o5, 0o4)},
		{"default-acl", "system.posix_acl_access", acl(0o7, 1000, 0o7, 0o5)},
		{"default-acl", "system.posix_acl_default", acl(0o7, 1001, 0o5, 0o0)},
		{"capability", "security.capability", capability(1 << unix.CAP_NET_RAW)},
	} {
		if err := unix.Lsetxattr(filepath.Join(dir, attribute.file), attribute.name, attribute.value, 0); err != nil {
			return fmt.Errorf("setting %s of %s: %w", attribute.name, attribute.file, err)
		}
	}
	return nil
}

// acl is a POSIX ACL in the kernel's form (version 2): owner, one further user, group
// r, mask rwx, others.
func acl(owner uint16, user uint32, access, others uint16) []byte {
	const unset = ^uint32(0)
	data := binary.LittleEndian.AppendUint32(nil, 2)
	for _, entry := range []struct {
		tag, access uint16
		id          uint32
	}{{0x01, owner, unset}, {0x02, access, user}, {0x04, 0o4, unset}, {0x10, 0o7, unset}, {0x20, others, unset}} {
		data = binary.LittleEndian.AppendUint16(data, entry.tag)
		data = binary.LittleEndian.AppendUint16(data, entry.access)
		data = binary.LittleEndian.AppendUint32(data, entry.id)
	}
	return data
}

// capability is a file capability in the kernel's form (VFS_CAP_REVISION_2, effective).
func capability(permitted uint32) []byte {
	data := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	for _, word := range []uint32{permitted, 0, 0, 0} {
		data = binary.LittleEndian.AppendUint32(data, word)
	}
	return data
}

// fillSparse: data between holes, a hole at the end, and a file that is nothing else.
func fillSparse(root string) error {
	dir := filepath.Join(root, "sparse")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(dir, "islands"))
	if err != nil {
		return err
	}
	defer file.Close()
	for _, offset := range []int64{0, 8 << 20, 48 << 20} {
		if _, err := file.WriteAt(bytes.Repeat([]byte("island "), 1000), offset); err != nil {
			return err
		}
	}
	if err := file.Truncate(64 << 20); err != nil {
		return err
	}
	hole, err := os.Create(filepath.Join(dir, "hole"))
	if err != nil {
		return err
	}
	defer hole.Close()
	return hole.Truncate(16 << 20)
}

func fillTimes(root string) error {
	dir := filepath.Join(root, "times")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, at := range map[string]time.Time{
		"old": time.Date(1999, 12, 31, 23, 59, 59, 123456789, time.UTC), "epoch": time.Unix(0, 1), "future": time.Date(2100, 1, 2, 3, 4, 5, 6, time.UTC),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			return err
		}
		if err := os.Chtimes(path, at, at); err != nil {
			return err
		}
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	return os.Chtimes(dir, old, old)
}

// fillLarge writes half of what does not compress and half of what does, as media
// and databases are.
func fillLarge(root string, mib int) error {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(time.Now().UnixNano()))
	random := rand.NewChaCha8(seed)
	block := make([]byte, 1<<20)
	text := bytes.Repeat([]byte("2026-03-25 the one where nobody could call anyone; "), 1<<20/51+1)[:1<<20]
	const most = 64 // MiB in a file
	for written := 0; written < mib; {
		file, err := os.Create(filepath.Join(root, fmt.Sprintf("segment-%04d", written/most)))
		if err != nil {
			return err
		}
		for range min(most, mib-written) {
			data := text
			if written%2 == 0 {
				if _, err := random.Read(block); err != nil {
					return err
				}
				data = block
			}
			if _, err := file.Write(data); err != nil {
				return err
			}
			written++
		}
		if err := file.Sync(); err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
	}
	return nil
}
