package state

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for name, good := range map[string]bool{
		"demo": true, "e2e-2": true, "a": true, "": false, "-a": false, "a-": false, "Demo": false, "a_b": false, "../x": false, "a/b": false,
		strings.Repeat("x", 40): true, strings.Repeat("x", 41): false,
	} {
		if err := Check(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestOneCommandAtATime(t *testing.T) {
	t.Setenv("LAB_STATE", t.TempDir())
	release, err := Lock("demo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock("demo"); err == nil {
		t.Error("two commands hold one lab")
	}
	other, err := Lock("other")
	if err != nil {
		t.Fatal(err)
	}
	other()
	release()
	if release, err = Lock("demo"); err != nil {
		t.Fatal(err)
	}
	release()
}
