package steps

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/runner"
)

// onSSH is a migration of this very machine, over a real OpenSSH server.
func onSSH(t testing.TB) *Migration {
	t.Helper()
	machineAlone(t)
	m := atHome(t)
	m.Plan.Spec.Hosts = []plans.Host{sshtest.Start(t)}
	m.Progress, m.Output = progress.New(t.Output(), false), t.Output()
	t.Cleanup(func() { m.Close() })
	id, err := os.ReadFile("/etc/machine-id")
	require.NoError(t, err)
	m.Facts.Host.MachineID = strings.TrimSpace(string(id))
	// K3s's names are of none that could be here.
	m.Facts.K3s.Unit = "/etc/systemd/system/k3s-of-no-test.service"
	return m
}

// Where the uninstall never began, nothing is put back, and no backup set is needed.
func TestUndoOfAnUninstallThatNeverBegan(t *testing.T) {
	m := onSSH(t)
	reached(t, m, "seal", intent("uninstall", "uninstall"), runner.Record{Event: runner.Failed, Step: "uninstall", Action: "uninstall", Error: "x"})
	u, err := m.Unwind(t.Context(), "")
	require.NoError(t, err)
	require.NoError(t, m.Written(t.Context(), &u))
	if len(u.Lost) > 0 {
		t.Errorf("nothing is lost: %q", u.Lost)
	}
	n := 0
	for _, a := range u.Actions {
		if a.Step != "uninstall" || a.Name == restored {
			continue
		}
		n++
		data, err := a.Run(t.Context())
		require.NoError(t, err, a.Name)
		if got, ok := data.(map[string]string); !ok || got["skipped"] == "" {
			t.Errorf("%s: %v", a.Name, data)
		}
	}
	if n != 11 || m.set != nil || m.hasSet() {
		t.Errorf("%d actions; a backup set was opened %t, begun %t", n, m.set != nil, m.hasSet())
	}
}

// A rollback that would stop the cluster that runs, and has no other to bring back,
// is refused; the set is named with what it lacks.
func TestUndoNeedsTheSet(t *testing.T) {
	m := onSSH(t)
	reached(t, m, "start", done("uninstall", "uninstall", `null`))
	u, err := m.Unwind(t.Context(), "")
	require.NoError(t, err)
	err = m.Written(t.Context(), &u)
	for _, want := range []string{m.SetDir(), k3sFiles, k3sDatabase, "volumes/pvc-1/full", "nothing was done"} {
		require.ErrorContains(t, err, want)
	}
	if m.hasSet() {
		t.Error("an empty set was begun")
	}
	m.KeepPresent = true
	err = m.Written(t.Context(), &u)
	require.ErrorContains(t, err, k3sState)
	require.NotContains(t, err.Error(), "volumes/")
	// Seen before anybody is asked.
	require.ErrorContains(t, m.Rollback(t.Context(), "", nil, nil), "the old cluster cannot be brought back")
	state, err := m.State()
	require.NoError(t, err)
	if state.Rollback != nil {
		t.Error("it was begun")
	}
}

func TestAnotherMachine(t *testing.T) {
	m := onSSH(t)
	require.NoError(t, m.sameMachine(t.Context()))
	is := m.Facts.Host.MachineID
	m.Facts.Host.MachineID = strings.Repeat("0", 32)
	err := m.sameMachine(t.Context())
	if d := cmp.Diff(&MachineError{Host: "host", Was: m.Facts.Host.MachineID, Is: is}, err); d != "" {
		t.Error(d)
	}
	// Of a run and of a rollback.
	require.NoError(t, m.keep(factsFile, m.Facts))
	h, err := m.Host(t.Context())
	require.NoError(t, err)
	bind, err := json.Marshal(m.bind(h.HostKey()))
	require.NoError(t, err)
	reached(t, m, "", runner.Record{Event: runner.Begin, Data: bind}, runner.Record{Event: runner.StepComplete, Step: "survey"},
		runner.Record{Event: runner.StepComplete, Step: "preflight"}, runner.Record{Event: runner.StepCheckpoint, Step: "protect"}, intent("quiesce", "stop"))
	before, err := os.ReadFile(m.JournalPath())
	require.NoError(t, err)
	require.ErrorAs(t, m.Run(t.Context(), "", nil, nil), new(*MachineError))
	require.ErrorAs(t, m.Rollback(t.Context(), "", nil, nil), new(*MachineError))
	after, err := os.ReadFile(m.JournalPath())
	require.NoError(t, err)
	if d := cmp.Diff(string(before), string(after)); d != "" {
		t.Error("something was recorded", d)
	}
}

// A run goes on with what it began with alone; what differs is named.
func TestRunIsBound(t *testing.T) {
	m := onSSH(t)
	h, err := m.Host(t.Context())
	require.NoError(t, err)
	require.NoError(t, m.keep(factsFile, m.Facts))
	begun := m.bind(h.HostKey())
	for _, tc := range []struct {
		name   string
		change func(b *runner.Bind, s *plans.Spec)
		want   []string // parts of the message; none: it is not refused for that
	}{
		{"nothing", func(*runner.Bind, *plans.Spec) {}, nil},
		{"the host's key", func(b *runner.Bind, _ *plans.Spec) { b.Extra[hostKey] = "SHA256:another" }, []string{"the host key has changed", "was SHA256:another and is " + h.HostKey()}},
		{"the network", func(_ *runner.Bind, s *plans.Spec) {
			s.Network.ServiceCIDR = []string{"10.43.0.0/16", "fd99::/108"}
		}, []string{"spec.network", "fd99::/108"}},
		{"what is excluded", func(_ *runner.Bind, s *plans.Spec) { s.Backup.Volumes.Exclude = nil }, []string{"spec.backup.volumes.exclude", "cache/scratch"}},
		{"the identity", func(_ *runner.Bind, s *plans.Spec) { s.K3s.Identity = plans.IdentityNew }, []string{"spec.k3s.identity"}},
		{"two", func(_ *runner.Bind, s *plans.Spec) {
			s.K3s.Version = "v1.35.1+k3s1"
			s.Backup.Objects.ExcludeResources = []string{}
		}, []string{"spec.k3s.version", "v1.35.1+k3s1", "spec.backup.objects"}},
		{"a secret argument", func(_ *runner.Bind, s *plans.Spec) { s.K3s.ExtraArgs = []string{"--token=s3cret"} }, []string{"spec.k3s.extraArgs"}},
		{"what may be mended", func(_ *runner.Bind, s *plans.Spec) { s.Platform.Command = []string{"/bin/true"} }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := *m.Plan
			other := &Migration{Plan: &plan, Facts: m.Facts, Progress: m.Progress, Output: m.Output}
			defer other.Close()
			plan.Spec.WorkDir = filepath.Join(t.TempDir(), "work")
			require.NoError(t, other.keep(factsFile, m.Facts))
			b := runner.Bind{Plan: begun.Plan, Extra: map[string]string{}}
			for k, v := range begun.Extra {
				b.Extra[k] = v
			}
			tc.change(&b, &plan.Spec)
			data, err := json.Marshal(b)
			require.NoError(t, err)
			if strings.Contains(string(data), "s3cret") {
				t.Error("a secret is in the journal")
			}
			reached(t, other, "", runner.Record{Event: runner.Begin, Data: data}, runner.Record{Event: runner.StepComplete, Step: "survey"},
				runner.Record{Event: runner.StepComplete, Step: "preflight"}, runner.Record{Event: runner.StepComplete, Step: "protect"})
			err = other.Run(t.Context(), "preflight", nil, nil)
			if tc.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorAs(t, err, new(*runner.ChangedError))
			for _, want := range append(tc.want, "nothing was done") {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "s3cret")
		})
	}
}

// ssh reads its options as they are meant, through a shell.
func TestSSH(t *testing.T) {
	m := migration(t, nil)
	server := &m.Plan.Spec.Hosts[0]
	key := filepath.Join(t.TempDir(), "it's my $key")
	require.NoError(t, os.WriteFile(key, nil, 0o600)) // ssh leaves out one that is not there
	for _, tc := range []struct {
		name string
		edit func(*plans.Host)
		want []string // what ssh -G says of it
	}{
		{"least", func(h *plans.Host) { h.Port = 0 }, []string{"user root", "hostname 127.0.0.1", "port 22"}},
		{"all", func(h *plans.Host) {
			h.Port, h.User = 2222, "ana"
			h.IdentityFiles = []string{key}
			h.KnownHosts = []string{"/home/ana/known hosts", "/home/ana/it's"}
			h.JumpHost = "bea@jump.example.org:2200"
		}, []string{"user ana", "port 2222", "identityfile " + key, "userknownhostsfile /home/ana/known hosts /home/ana/it's", "proxyjump bea@jump.example.org:2200"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.edit(server)
			out, err := exec.Command("sh", "-c", strings.Replace(m.SSH(), "ssh ", "ssh -G ", 1)).CombinedOutput()
			require.NoError(t, err, "%s", out)
			for _, want := range tc.want {
				require.Contains(t, "\n"+string(out), "\n"+want+"\n")
			}
		})
	}
}

// What was noted is put back by shell that any text survives.
func TestNetworkIsPutBack(t *testing.T) {
	text := "# it's 100 %s\n$x = `id`\n"
	for name, tc := range map[string]struct {
		was  networkSettings
		file string // "" is gone
		set  string
	}{
		"nothing was there": {networkSettings{Values: []sysctlValue{{"net.ipv4.ip_forward", "0"}, {"net.ipv6.conf.eth0/100.accept_ra", "1"}}}, "", "-qe net.ipv4.ip_forward=0\n-qe net.ipv6.conf.eth0/100.accept_ra=1\n"},
		"a file of before":  {networkSettings{File: &text, Values: []sysctlValue{{"a", "b c"}}}, text, "-qe a=b c\n"},
		"an older journal":  {networkSettings{}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "sysctl.conf")
			require.NoError(t, os.WriteFile(file, []byte("ours"), 0o600))
			// A FAKE sysctl, which notes what it is given.
			require.NoError(t, os.WriteFile(filepath.Join(dir, "sysctl"), []byte("#!/bin/sh\necho \"$@\" >>"+dir+"/set\n"), 0o755))
			cmd := exec.Command("sh", "-c", strings.ReplaceAll(tc.was.command(), sysctlFile, file))
			cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			got, _ := os.ReadFile(file)
			set, _ := os.ReadFile(filepath.Join(dir, "set"))
			if string(got) != tc.file || string(set) != tc.set {
				t.Errorf("file %q, set %q", got, set)
			}
		})
	}
}

// What is done to the network is what the journal says was changed.
func TestUndoNetworkGoesByTheJournal(t *testing.T) {
	note := done("network", noted, `{"values":[{"Name":"net.ipv4.ip_forward","Value":"0"}],"file":null}`)
	for name, tc := range map[string]struct {
		journal []runner.Record
		command string
		asks    bool // whether the host is asked for anything
	}{
		"never begun":                     {nil, "rm -f " + sysctlFile, false},
		"noted, not changed":              {[]runner.Record{note}, "net.ipv4.ip_forward", false},
		"noted and changed":               {[]runner.Record{note, intent("network", "sysctl")}, "net.ipv4.ip_forward", true},
		"of a version that noted nothing": {[]runner.Record{intent("network", "sysctl")}, "rm -f " + sysctlFile, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := atHome(t)
			if tc.asks {
				m.Plan.Spec.Hosts[0].Port = 1 // where nobody answers
			}
			reached(t, m, "uninstall", tc.journal...)
			actions, err := m.undoNetwork(t.Context())
			require.NoError(t, err)
			require.Len(t, actions, 1)
			require.Contains(t, actions[0].Command, tc.command)
			if _, err := actions[0].Run(t.Context()); (err != nil) != tc.asks {
				t.Errorf("the host was asked: %v", err)
			}
		})
	}
}

// What cannot be put back is told before anything is stopped or moved.
func TestProveAgain(t *testing.T) {
	m := atHome(t)
	m.Facts.Host.Strays = nil
	m.KeepPresent = true // volumes are left as they are, and their artifacts not asked for
	set, err := m.Set()
	require.NoError(t, err)
	_, err = m.proveAgain(t.Context(), nil, set)
	for _, want := range []string{k3sFiles, k3sState, k3sDatabase, "left as they are"} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "volumes/")
	for _, name := range []string{k3sFiles, k3sState, k3sDatabase} {
		require.NoError(t, m.create(name, backup.KindFile, func(w io.Writer) error {
			_, err := io.WriteString(w, "contents of "+name)
			return err
		}))
	}
	_, err = m.proveAgain(t.Context(), nil, set)
	require.NoError(t, err)
	a, _ := set.Artifact(k3sState)
	file := filepath.Join(m.SetDir(), a.File)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.WriteFile(file, data, 0o600))
	_, err = m.proveAgain(t.Context(), nil, set)
	require.ErrorContains(t, err, "artifact k3s-state")
	m.KeepPresent = false
	_, err = m.proveAgain(t.Context(), nil, set)
	require.ErrorContains(t, err, "volumes/pvc-1/full")
}

// An older set of the same cluster has artifacts of the same names: only the one that
// was proven right before the uninstall is restored from.
func TestSameSet(t *testing.T) {
	m := onSSH(t)
	h, err := m.Host(t.Context())
	require.NoError(t, err)
	keep := func(text string) {
		require.NoError(t, m.create(k3sState, backup.KindFile, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		}))
	}
	keep("proven")
	set, err := m.Set()
	require.NoError(t, err)
	note := func(text string) { require.NoError(t, h.WriteFile(t.Context(), uninstalling, []byte(text), 0o600)) }
	t.Cleanup(func() { os.Remove(uninstalling) })

	require.NoError(t, m.sameSet(t.Context()), "nothing was uninstalled")
	note(m.Facts.Digest())
	require.NoError(t, m.sameSet(t.Context()), "as earlier versions noted it")
	note(m.Facts.Digest() + "\n" + m.setDigest(set))
	require.NoError(t, m.sameSet(t.Context()))
	keep("another")
	var wrong *WrongSetError
	require.ErrorAs(t, m.sameSet(t.Context()), &wrong)
	require.ErrorContains(t, wrong, m.SetDir())
	require.NoError(t, os.RemoveAll(m.SetDir()))
	require.ErrorAs(t, m.sameSet(t.Context()), &wrong, "no set at all")
	note("other facts\n" + m.setDigest(set))
	require.NoError(t, m.sameSet(t.Context()), "another run's uninstall")
}

// A run that stopped at the last look has uninstalled nothing, and the preview of
// its rollback says so.
func TestUndoAfterTheLastLook(t *testing.T) {
	m := atHome(t)
	reached(t, m, "seal", intent("uninstall", "look"))
	actions, err := m.undoUninstall(t.Context())
	require.NoError(t, err)
	require.Empty(t, actions)
	reached(t, m, "", intent("uninstall", "uninstall"))
	actions, err = m.undoUninstall(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, actions)
}
