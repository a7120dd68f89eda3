package vm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestLoadTellsHowToMakeAMachineThatIsMissing(t *testing.T) {
	t.Setenv("LAB_STATE", t.TempDir())
	_, err := Load("lvm")
	if !errors.Is(err, ErrNoMachine) || !strings.Contains(err.Error(), "lab vm up --name lvm") {
		t.Errorf("got %v", err)
	}
	if err := Down("lvm"); err != nil {
		t.Errorf("what is gone already is no error: %v", err)
	}
}

func TestSaveLoadAndList(t *testing.T) {
	t.Setenv("LAB_STATE", t.TempDir())
	dir, err := stateDir("lvm")
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{Name: "lvm", Layout: Thin, Address: "127.0.0.1", Port: 2222, User: "root", StateDir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	if again, err := Load("lvm"); err != nil || *again != *m {
		t.Errorf("got %+v, %v", again, err)
	}
	if names, err := List(); err != nil || len(names) != 1 || names[0] != "lvm" {
		t.Errorf("got %v, %v", names, err)
	}
}

// Down ends the process that the PID file names, unless the number is another's by now.
func TestDownEndsNoProcessButItsOwn(t *testing.T) {
	t.Setenv("LAB_STATE", t.TempDir())
	for name, own := range map[string]bool{"own": true, "other": false} {
		dir, err := stateDir(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, pidFile)
		named := file
		if !own {
			named = "/elsewhere"
		}
		cmd := exec.Command("sh", "-c", "read -r _", named)
		if _, err := cmd.StdinPipe(); err != nil { // on which it waits
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		if err := os.WriteFile(file, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Down(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		select {
		case <-ended:
			if !own {
				t.Error("another's process was ended")
			}
		case <-time.After(200 * time.Millisecond):
			if own {
				t.Error("the machine's process was left")
			}
			_ = cmd.Process.Kill()
			<-ended
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: its state is left: %v", name, err)
		}
	}
}

// Of a root on btrfs the kernel is told the name, which a snapshot can take over, and never the number.
func TestEveryLayoutHasARoot(t *testing.T) {
	for layout, want := range map[Layout]string{
		Plain: "root=/dev/vda",
		Thick: "root=/dev/mapper/thick-root",
		Thin:  "root=/dev/mapper/thin-root",
		Btrfs: "root=/dev/vda rootflags=subvol=@",
	} {
		if got := layout.root(); got != want {
			t.Errorf("%s: got %s, want %s", layout, got, want)
		}
	}
}
