package runner

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLockAdmitsOneAndNamesIt(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "work", "lock")
	l, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Acquire(path)
	var held *HeldError
	if !errors.As(err, &held) {
		t.Fatalf("second lock: %v", err)
	}
	if held.Holder != l.Holder() || held.Holder.PID != os.Getpid() {
		t.Errorf("holder %+v, want %+v", held.Holder, l.Holder())
	}
	for name, left := range map[string]string{
		"lock-held.txt":           mustJSON(t, Holder{User: "anna", Host: "laptop", PID: 4711, Since: epoch, Command: "migrate run -f plan.yaml"}),
		"lock-held-nameless.txt":  "",
		"lock-held-half-told.txt": `{"user":"ann`,
	} {
		if err := os.WriteFile(path, []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Acquire(path)
		if err == nil {
			t.Fatal("second lock taken")
		}
		golden(t, name, strings.ReplaceAll(err.Error(), dir, "WORK"))
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	// What is left in the file does not matter.
	again, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Fatal(err)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
