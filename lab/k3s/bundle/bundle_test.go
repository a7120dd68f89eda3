package bundle

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestAppendOpenUnpack(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	launcher := write("launcher", "\x7fELF and so on")
	files := map[string]string{Kine: write("kine", "kine"), Images + "pause.tar": write("pause", "layers")}
	k3s := filepath.Join(dir, "k3s")
	if err := Append(k3s, launcher, files); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(dir, "again")
	if err := Append(again, launcher, files); err != nil {
		t.Fatal(err)
	}
	first, _ := os.ReadFile(k3s)
	second, _ := os.ReadFile(again)
	if !bytes.Equal(first, second) {
		t.Error("the same inputs gave different binaries")
	}
	if !bytes.HasPrefix(first, []byte("\x7fELF and so on")) {
		t.Error("the launcher does not come first")
	}
	b, err := Open(k3s)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	root := filepath.Join(dir, "data")
	for range 2 { // the second finds the first's work
		out, err := b.Unpack(root)
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(root, b.Hash()); out != want {
			t.Errorf("unpacked to %s, want %s", out, want)
		}
		got, err := os.ReadFile(filepath.Join(out, Kine))
		if err != nil || string(got) != "kine" {
			t.Errorf("kine holds %q, %v", got, err)
		}
		info, err := os.Stat(filepath.Join(out, Kine))
		if err != nil || info.Mode().Perm()&0o100 == 0 {
			t.Errorf("kine cannot be run: %v, %v", info, err)
		}
	}
}

func TestOpenWithoutPayload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bare")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrNone) {
		t.Errorf("got %v, want ErrNone", err)
	}
}

func TestAppendRefusesPathsThatLeadOut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Append(filepath.Join(dir, "out"), path, map[string]string{"../f": path}); err == nil {
		t.Error("accepted ../f")
	}
}
