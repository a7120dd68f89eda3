package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
	"sunbeam.pt/k3s-dualstack/survey"
)

// oddBook writes the runbook of a run that was stopped in the uninstall, whose every
// path a shell could misread, and returns it with the plan file that it names.
func oddBook(t *testing.T, dir string, sudo, present bool) (book string) {
	t.Helper()
	data, err := os.ReadFile("../../steps/testdata/facts.json")
	require.NoError(t, err)
	facts := &survey.Facts{}
	require.NoError(t, json.Unmarshal(data, facts))
	facts.K3s.DataDir = `/srv/it's "k3s" $(touch x)/on_host a`
	facts.K3s.Binary = "/opt/k 3s/k3s"
	for i, v := range facts.Cluster.Volumes {
		if v.PV == "outside" {
			facts.Cluster.Volumes[i].Path = "/srv/`touch x`;TIME\\ \n*"
		}
	}
	data, err = os.ReadFile("testdata/plan.yaml")
	require.NoError(t, err)
	plan, err := plans.Decode(data, dir)
	require.NoError(t, err)
	plan.Spec.WorkDir = filepath.Join(dir, "it's my \"work\"\ntouch x")
	host := &plan.Spec.Hosts[0]
	host.Sudo, host.IdentityFiles, host.KnownHosts = sudo, []string{"/home/ana/my 'id'"}, []string{"/home/ana/known hosts", "/b"}
	m := &steps.Migration{Plan: plan, Facts: facts, KeepPresent: present, RollbackBegins: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)}
	j, err := runner.OpenJournal(m.JournalPath())
	require.NoError(t, err)
	defer j.Close()
	for _, r := range []runner.Record{{Event: runner.Begin, Data: []byte(`{}`)}, {Event: runner.StepCheckpoint, Step: "protect"}, {Event: runner.StepComplete, Step: "quiesce"}, {Event: runner.StepCheckpoint, Step: "seal"}, {Event: runner.Intent, Step: "uninstall", Action: "uninstall"}} {
		require.NoError(t, j.Append(r))
	}
	u, err := m.Unwind(t.Context(), "")
	require.NoError(t, err)
	var b bytes.Buffer
	require.NoError(t, printRunbook(&b, m, u, false))
	return b.String()
}

// follow runs a runbook with FAKES of ssh and migrate, which note what they are given, and of
// sudo. A command that holds fails fails.
func follow(t *testing.T, dir, book, fails string) (code int, notes string) {
	t.Helper()
	bin := filepath.Join(dir, "fakes")
	require.NoError(t, os.MkdirAll(bin, 0o755))
	fail := fmt.Sprintf("case \"$*\" in *%s*) exit 9 ;; esac\n", fails)
	if fails == "" {
		fail = ""
	}
	for name, script := range map[string]string{
		"ssh": `for last; do :; done
case "$last" in "sudo "*) eval "$last"; exit ;; esac
input=$(sed 's/^/\n  input: /')
printf '%s\n' "host: $last$input" >>notes
` + fail,
		"sudo": `input=$(sed 's/^/\n  input: /')
printf '%s\n' "host: $4$input" >>notes
[ "$1 $2 $3" = "-n sh -c" ] || echo "called as $*" >>notes
` + fail,
		"migrate": `for a; do printf '<%s>' "$a"; done | sed 's/^/migrate: /; s/$/\n/' >>notes
` + fail + `[ "$2" != extract ] || echo "what $3 holds"`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n# FAKE\n"+script+"\n"), 0o755))
	}
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "notes")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "book"), []byte(book), 0o600))
	cmd := exec.CommandContext(t.Context(), "sh", "book")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.Stdin = strings.NewReader("what a person has pasted\n")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if len(out) > 0 {
		t.Errorf("it says %s", out)
	}
	if _, err := os.Lstat(filepath.Join(dir, "x")); err == nil {
		t.Error("something in a path was run")
	}
	data, err := os.ReadFile(filepath.Join(dir, "notes"))
	require.NoError(t, err)
	return cmd.ProcessState.ExitCode(), string(data)
}

func TestRunbookIsFollowed(t *testing.T) {
	dir := t.TempDir()
	for name, present := range map[string]bool{"backup": false, "present": true} {
		code, notes := follow(t, dir, oddBook(t, t.TempDir(), false, present), "")
		if code != 0 {
			t.Fatalf("exit status %d\n%s", code, notes)
		}
		golden := "testdata/runbook-" + name + ".golden"
		if *update {
			require.NoError(t, os.WriteFile(golden, []byte(notes), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), notes)
		// sudo passes on the very same.
		code, sudoed := follow(t, dir, oddBook(t, t.TempDir(), true, present), "")
		require.Zero(t, code)
		require.Equal(t, notes, sudoed)
		if strings.Contains(notes, "pasted") {
			t.Error("a command has read what is for the shell")
		}
	}
}

// It stops at whatever fails, on either side of a pipe and in a list.
func TestRunbookStopsAtAFailure(t *testing.T) {
	dir := t.TempDir()
	book := oddBook(t, t.TempDir(), false, false)
	for _, fails := range []string{"verify", "systemctl\\ disable", "extract\\ k3s-files", "extract\\ k3s-database", "state.db", "extract\\ volumes/pvc-1", "mv\\ -T", "daemon-reload", "kubectl\\ wait"} {
		code, notes := follow(t, dir, book, fails)
		failed := strings.ReplaceAll(fails, "\\", "")
		if code == 0 || strings.Contains(notes, "kubectl get pods") {
			t.Errorf("%s fails: exit status %d\n%s", failed, code, notes)
		}
	}
}

func TestRunbookIsShell(t *testing.T) {
	book := oddBook(t, t.TempDir(), true, true)
	for _, args := range [][]string{{"sh", "-n"}, {"bash", "-n"}, {"shellcheck", "--severity", "warning", "-"}} {
		t.Run(args[0], func(t *testing.T) {
			sshtest.Need(t, args[0], args[0])
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdin = strings.NewReader(book)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s\n%s", out, book)
		})
	}
}
