package cache

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func has(c Cache, key string) bool {
	_, err := os.Stat(c.path("thing", key))
	return err == nil
}

func TestGetBuildsOnce(t *testing.T) {
	c := Cache{filepath.Join(t.TempDir(), "cache")}
	var built atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			dir, err := c.Get("thing", "k", func(dir string) error {
				built.Add(1)
				return os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if built.Load() != 1 {
		t.Errorf("built %d times", built.Load())
	}
}

func TestAFailedBuildLeavesNothing(t *testing.T) {
	c := Cache{t.TempDir()}
	wrong := errors.New("wrong")
	if _, err := c.Get("thing", "k", func(dir string) error {
		_ = os.WriteFile(filepath.Join(dir, "half"), nil, 0o644)
		return wrong
	}); !errors.Is(err, wrong) {
		t.Fatalf("got %v", err)
	}
	if has(c, "k") {
		t.Error("a half-built entry counts as built")
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, ".building-*")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestPrune(t *testing.T) {
	c := Cache{t.TempDir()}
	build := func(string) error { return nil }
	for _, key := range []string{"old", "recent"} {
		if _, err := c.Get("thing", key, build); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * unused)
	if err := os.Chtimes(c.path("thing", "old"), long, long); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get("thing", "new", build); err != nil {
		t.Fatal(err)
	}
	if has(c, "old") || !has(c, "recent") || !has(c, "new") {
		t.Error("the wrong entries went")
	}
}

func TestSources(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sum := func() string {
		key, err := Sources(root, "a", "go.mod")
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	write("a/main.go", "package main")
	write("go.mod", "module x")
	write("b/other.go", "package b")
	first := sum()
	for name, changes := range map[string]bool{"a/main_test.go": false, "a/testdata/x": false, "b/other.go": false, "a/sub/new.go": true, "go.mod": true, "a/main.go": true} {
		before := sum()
		write(name, "changed")
		if (sum() != before) != changes {
			t.Errorf("%s: changes the key: %v", name, !changes)
		}
	}
	if sum() == first {
		t.Error("nothing changed the key")
	}
	if _, err := Sources(root, "missing"); err == nil {
		t.Error("accepted a source that is missing")
	}
}
