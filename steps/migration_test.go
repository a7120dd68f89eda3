package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/runner"
)

// at home is a migration with a work directory and keys of its own.
func atHome(t testing.TB) *Migration {
	t.Helper()
	dir := t.TempDir()
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	key := filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(key, []byte(id.String()+"\n"), 0o600))
	return migration(t, func(s *plans.Spec) {
		s.WorkDir = filepath.Join(dir, "work")
		s.Backup.Encryption = plans.Encryption{Recipients: []string{id.Recipient().String()}, Identities: []string{key}}
	})
}

func TestLastLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []byte
		l := &lastLines{}
		for range rapid.IntRange(0, 6).Draw(t, "writes") {
			p := bytes.Repeat([]byte{byte(rapid.IntRange('a', 'z').Draw(t, "what"))}, rapid.IntRange(0, 2*lastLinesMax).Draw(t, "size"))
			all = append(all, p...)
			if n, err := l.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			if len(l.buf) > lastLinesMax {
				t.Fatalf("%d bytes are kept", len(l.buf))
			}
			clear(p) // a Writer must not keep what it is given
		}
		if want := string(all[max(0, len(all)-lastLinesMax):]); l.String() != want {
			t.Fatalf("kept %d bytes, wanted the last %d of %d", len(l.String()), len(want), len(all))
		}
	})
}

func TestEachKept(t *testing.T) {
	m := atHome(t)
	keep := func(text string) {
		require.NoError(t, m.create(namespaces, backup.KindFile, func(w io.Writer) error {
			_, err := w.Write([]byte(text))
			return err
		}))
	}
	walk := func(do func(corev1.Namespace) error) ([]string, error) {
		var names []string
		err := eachKept(m, namespaces, func(ns corev1.Namespace) error {
			names = append(names, ns.Name)
			if do != nil {
				return do(ns)
			}
			return nil
		})
		return names, err
	}

	if _, err := walk(nil); err == nil || !strings.Contains(err.Error(), namespaces) {
		t.Errorf("an artifact that was never made: %v", err)
	}
	for _, tc := range []struct {
		name, text string
		want       []string
		err        string
	}{
		{"empty", "", nil, ""},
		{"several", `{"metadata":{"name":"a"}}` + "\n" + `{"metadata":{"name":"b"}}` + "\n", []string{"a", "b"}, ""},
		{"cut off", `{"metadata":{"name":"a"}}` + "\n" + `{"metadata":{"na`, []string{"a"}, "reading artifact namespaces"},
		{"no object", `{"metadata":{"name":"a"}}` + "\n7\n", []string{"a"}, "reading artifact namespaces"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keep(tc.text)
			got, err := walk(nil)
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
			if (err != nil) != (tc.err != "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
				t.Error(err)
			}
		})
	}
	t.Run("an error ends the walk", func(t *testing.T) {
		keep(`{"metadata":{"name":"a"}}` + "\n" + `{"metadata":{"name":"b"}}` + "\n")
		enough := errors.New("enough")
		got, err := walk(func(corev1.Namespace) error { return enough })
		if !errors.Is(err, enough) || len(got) != 1 {
			t.Error(got, err)
		}
	})
}

func TestCheckUntil(t *testing.T) {
	m := migration(t, nil)
	for _, name := range append(Names(), "") {
		if err := m.checkUntil(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"Gate", "gate ", "no-such-step", "1"} {
		var unknown *UnknownStepError
		if err := m.checkUntil(name); !errors.As(err, &unknown) || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A run that cannot be, because a name is wrong, leaves no trace and connects
// to nobody.
func TestRunWithAnUnknownStep(t *testing.T) {
	m := atHome(t)
	var unknown *UnknownStepError
	if err := m.Run(context.Background(), "no-such-step", nil, nil); !errors.As(err, &unknown) {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.JournalPath()); !os.IsNotExist(err) {
		t.Error("a journal was begun")
	}
}

func TestWithoutSecrets(t *testing.T) {
	for _, tc := range []struct {
		name     string
		in, want []k3s.Change
	}{
		{"none", nil, nil},
		{"an open setting", []k3s.Change{{Key: "cluster-cidr", Before: "a", After: "b", Source: "f"}}, []k3s.Change{{Key: "cluster-cidr", Before: "a", After: "b", Source: "f"}}},
		{"a secret one", []k3s.Change{{Key: "token", Before: "a", After: "b", Source: "f"}}, []k3s.Change{{Key: "token", Before: "(secret)", After: "(secret)", Source: "f"}}},
		{"a flag with its value", []k3s.Change{{Key: "--vpn-auth=s3cret", After: "--vpn-auth=s3cret"}}, []k3s.Change{{Key: "vpn-auth", Before: "(secret)", After: "(secret)"}}},
	} {
		before := append([]k3s.Change(nil), tc.in...)
		if d := cmp.Diff(tc.want, WithoutSecrets(tc.in)); d != "" {
			t.Error(tc.name, d)
		}
		if d := cmp.Diff(before, tc.in); d != "" {
			t.Error(tc.name, "the settings themselves were changed", d)
		}
	}
	// Of whatever the plan's arguments are, no secret comes through.
	for _, extra := range [][]string{
		{"--datastore-endpoint", "postgres://u:s3cret@h/d"}, {"--datastore-endpoint=postgres://u:s3cret@h/d"},
		{"-t", "s3cret"}, {"--etcd-s3-secret-key", "s3cret", "--debug"}, {"--etcd-s3-session-token=s3cret"},
	} {
		_, changes := k3s.Config{}.WithArgs(extra)
		data, err := json.Marshal(WithoutSecrets(changes))
		if err != nil || len(changes) == 0 || strings.Contains(string(data), "s3cret") {
			t.Errorf("%q: %s, %v", extra, data, err)
		}
	}
}

func TestSysctls(t *testing.T) {
	golden(t, "testdata/sysctl-vlan.golden", sysctls("eth0.100"))
}

func TestFetch(t *testing.T) {
	for from, want := range map[string]string{
		"https://get.k3s.io":     "curl -sfL https://get.k3s.io -o install.sh",
		"https://x/?a=b&c":       "curl -sfL 'https://x/?a=b&c' -o install.sh",
		"/home/ana/my script.sh": "cp '/home/ana/my script.sh' install.sh",
	} {
		if got := fetch(from); got != want {
			t.Errorf("%s: %s", from, got)
		}
	}
}

func TestInhibitedErrorCounts(t *testing.T) {
	warning, inhibitor := preflight.Finding{Severity: preflight.Warning}, preflight.Finding{Severity: preflight.Inhibitor}
	for want, found := range map[string][]preflight.Finding{
		"1 finding forbids the migration; nothing was changed": {inhibitor, warning},
		"2 findings forbid the migration; nothing was changed": {inhibitor, inhibitor, warning},
	} {
		if got := (&InhibitedError{Findings: found}).Error(); got != want {
			t.Error(got)
		}
	}
}

func TestFactsAreReadAgain(t *testing.T) {
	m := atHome(t)
	require.NoError(t, m.keep(factsFile, m.Facts))
	st, err := os.Stat(m.file(factsFile))
	require.NoError(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	again, err := New(m.Plan, nil, nil)
	require.NoError(t, err)
	if again.Facts.Digest() != m.Facts.Digest() {
		t.Error("other facts came back")
	}
	require.NoError(t, os.WriteFile(m.file(factsFile), []byte("{"), 0o600))
	if _, err := New(m.Plan, nil, nil); err == nil || !strings.Contains(err.Error(), m.file(factsFile)) {
		t.Errorf("damaged facts: %v", err)
	}
}

func TestBegunAndHolder(t *testing.T) {
	m := atHome(t)
	begun := func() bool {
		t.Helper()
		b, err := m.Begun()
		require.NoError(t, err)
		return b
	}
	if begun() {
		t.Error("nothing has begun")
	}
	j, err := runner.OpenJournal(m.JournalPath())
	require.NoError(t, err)
	defer j.Close()
	require.NoError(t, j.Append(runner.Record{Event: runner.Begin, Data: []byte(`{"plan":"x"}`)}))
	for _, step := range []string{"survey", "preflight"} {
		require.NoError(t, j.Append(runner.Record{Event: runner.StepComplete, Step: step}))
	}
	if begun() {
		t.Error("looking is no beginning")
	}
	require.NoError(t, j.Append(runner.Record{Event: runner.Intent, Step: "protect", Action: "objects"}))
	if !begun() {
		t.Error("an action was begun")
	}

	if h, err := m.Holder(); h != nil || err != nil {
		t.Error(h, err)
	}
	lock, err := runner.Acquire(m.LockPath())
	require.NoError(t, err)
	if h, err := m.Holder(); err != nil || h == nil || h.PID != os.Getpid() {
		t.Error(h, err)
	}
	require.NoError(t, lock.Release())
	if h, err := m.Holder(); h != nil || err != nil {
		t.Error(h, err)
	}
}

// The script is fetched from a file as from a URL, and neither nonsense nor an
// error page is kept for one.
func TestKeepInstallScript(t *testing.T) {
	m := atHome(t)
	script := filepath.Join(t.TempDir(), "install.sh")
	m.Plan.Spec.K3s.InstallScript = script
	if _, err := m.keepInstallScript(context.Background()); err == nil || !strings.Contains(err.Error(), "spec.k3s.installScript") {
		t.Errorf("no such file: %v", err)
	}
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600))
	_, err := m.keepInstallScript(context.Background())
	require.NoError(t, err)
	set, err := m.Set()
	require.NoError(t, err)
	r, err := set.Reader(installScript)
	require.NoError(t, err)
	defer r.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(r)
	require.NoError(t, err)
	if b.String() != "#!/bin/sh\n" {
		t.Error(b.String())
	}
	require.NoError(t, os.Truncate(script, installScriptLimit+1))
	if _, err := m.keepInstallScript(context.Background()); err == nil || !strings.Contains(err.Error(), "no install script") {
		t.Errorf("too large: %v", err)
	}
}
