//go:build e2e

// Package e2e migrates real clusters on the lab's disposable hosts and asserts
// the outcome from outside the product: with kubectl, curl, sha256sum, getfattr
// and docker, never with its own packages. It needs bin/migrate, bin/lab, and strace.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// bin is where the Makefile puts the programs.
func bin(name string) string {
	p, err := filepath.Abs(filepath.Join("..", "bin", name))
	if err != nil {
		panic(err)
	}
	return p
}

// result is how a program ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit status %d\nstdout:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
}

// execute runs a program to its end.
func execute(t testing.TB, env []string, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err, "%s %s", name, strings.Join(args, " "))
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func migrate(t testing.TB, args ...string) result {
	t.Helper()
	t.Logf("migrate %s", strings.Join(args, " "))
	return execute(t, nil, bin("migrate"), args...)
}

// process is a program that a test disturbs while it runs.
type process struct {
	*os.Process
	printed transcript    // on stdout and stderr
	ended   chan struct{} // closed when it has
	state   *os.ProcessState
}

// start starts a program; stdin may be nil. It does not outlive the test.
func start(t testing.TB, stdin io.Reader, name string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(name, args...)
	p := &process{ended: make(chan struct{})}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &p.printed, &p.printed
	require.NoError(t, cmd.Start())
	p.Process = cmd.Process
	go func() {
		_ = cmd.Wait() // the state tells more
		p.state = cmd.ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.Kill()
		<-p.ended
	})
	return p
}

// over tells whether the program has ended.
func (p *process) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// wait waits for the program's end and returns its exit status.
func (p *process) wait(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		require.FailNow(t, "it still runs after "+within.String(), "%s", &p.printed)
	}
	return p.state.ExitCode()
}

// transcript is output that can be read while it is written.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *transcript) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *transcript) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// record is a line of the journal.
type record struct {
	Seq                 int
	Step, Action, Event string
}

func (r record) String() string { return r.Step + "/" + r.Action + "/" + r.Event }

// journal is read while a run writes it.
type journal struct {
	path    string
	read    os.FileInfo // as the file was when it was read
	records []record
}

// journalOf is the journal of the plan's run.
func journalOf(file string) *journal {
	return &journal{path: filepath.Join(workDir(file), "journal.jsonl")}
}

// workDir is where the plan's run keeps what it needs.
func workDir(file string) string { return filepath.Join(filepath.Dir(file), "work") }

// now returns the whole records that are in the file.
func (j *journal) now(t testing.TB) []record {
	t.Helper()
	info, err := os.Stat(j.path)
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(t, err)
	if j.read != nil && os.SameFile(info, j.read) && info.Size() == j.read.Size() && info.ModTime().Equal(j.read.ModTime()) {
		return j.records
	}
	data, err := os.ReadFile(j.path)
	if os.IsNotExist(err) {
		return nil // a run that only looked is begun anew
	}
	require.NoError(t, err)
	j.read, j.records = info, nil
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		var r record
		if json.Unmarshal(line, &r) == nil {
			j.records = append(j.records, r)
		}
	}
	return j.records
}

// await waits until the run writes a record that the regular expression fits, after
// those that were there before.
func (j *journal) await(t testing.TB, run *process, before int, expression string) {
	t.Helper()
	fits := regexp.MustCompile("^" + expression + "$")
	for {
		records := j.now(t)
		for _, r := range records[min(before, len(records)):] {
			if fits.MatchString(r.String()) {
				return
			}
		}
		require.False(t, run.over(), "it ended without %s: %s", expression, &run.printed)
		time.Sleep(time.Millisecond)
	}
}

// lab is a host of the lab, as `lab up -o json` describes it.
type lab struct {
	Name, Hostname, Address, User string
	Port                          int
	IdentityFile, KnownHosts      string
	Host                          struct{ IPv4, IPv6 string }
	Internet                      struct {
		IPv4, IPv6, Log string
		URLs            []string
	}
	Kubectl, Kubeconfig string
	InstallScript       string
	// Platform is the command that deploys the platform.
	Platform            []string
	PlatformEnvironment map[string]string
	// OpenBao names the files that hold its token and its unseal keys.
	OpenBao           struct{ Token, Keys string }
	Container         string
	InternetContainer string
}

// up makes a lab that goes away with the test.
func up(t testing.TB, name string, args ...string) *lab {
	t.Helper()
	// A test that was killed has left a lab of that name.
	r := execute(t, nil, bin("lab"), "down", "--name", name)
	require.Zero(t, r.code, "%s", r)
	t.Cleanup(func() {
		if os.Getenv("KEEP") == "" {
			r := execute(t, nil, bin("lab"), "down", "--name", name)
			require.Zero(t, r.code, "%s", r)
		}
	})
	start := time.Now()
	r = execute(t, nil, bin("lab"), append([]string{"up", "--name", name, "-o", "json"}, args...)...)
	require.Zero(t, r.code, "%s", r)
	t.Logf("lab %s is up after %s", name, time.Since(start).Round(time.Second))
	l := &lab{}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), l), r.stdout)
	return l
}

// on runs a script as root on the host, past SSH, and returns its output.
func (l *lab) on(t testing.TB, script string) string {
	t.Helper()
	r := execute(t, nil, "docker", "exec", l.Container, "bash", "-c", script)
	require.Zero(t, r.code, "%s\n%s", script, r)
	return strings.TrimSpace(r.stdout)
}

// kubectl runs kubectl against the lab's API with the kubeconfig that the lab
// had before any migration.
func (l *lab) kubectl(t testing.TB, args ...string) string {
	t.Helper()
	r := execute(t, []string{"KUBECONFIG=" + l.Kubeconfig}, l.Kubectl, args...)
	require.Zero(t, r.code, "kubectl %s\n%s", strings.Join(args, " "), r)
	return strings.TrimSpace(r.stdout)
}

// object is a mapping of a plan.
type object = map[string]any

// plan writes the lab's plan with edits to a directory of the test and returns
// its path.
func (l *lab) plan(t testing.TB, edit func(spec object)) string {
	t.Helper()
	r := execute(t, nil, bin("lab"), "plan", "--name", l.Name)
	require.Zero(t, r.code, "%s", r)
	var p object
	require.NoError(t, yaml.Unmarshal([]byte(r.stdout), &p))
	dir := t.TempDir()
	spec := p["spec"].(object)
	spec["workDir"] = filepath.Join(dir, "work")
	if edit != nil {
		edit(spec)
	}
	text, err := yaml.Marshal(p)
	require.NoError(t, err)
	file := filepath.Join(dir, "plan.yaml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	return file
}

// firstHost is the plan's host.
func firstHost(spec object) object { return spec["hosts"].([]any)[0].(object) }
