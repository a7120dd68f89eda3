package steps

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(name, []byte(got), 0o644))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}

// facts is a host with two local-path volumes, an excluded one, one on NFS and
// one whose directory lies outside of K3s's.
func facts(t testing.TB) *survey.Facts {
	t.Helper()
	data, err := os.ReadFile("testdata/facts.json")
	require.NoError(t, err)
	f := &survey.Facts{}
	require.NoError(t, json.Unmarshal(data, f))
	return f
}

const minimal = `apiVersion: dualstack.sunbeam.pt/v1alpha1
kind: Migration
metadata: {name: shop}
spec:
  workDir: /home/ana/shop.migration
  hosts: [{name: dedi, address: 127.0.0.1, port: %d, sshConfig: none}]
  backup:
    encryption:
      recipients: [age1fg3vr6djck0qpreaqr6vnmvzy7y5lwg9vf9323uuy72zn92jlaaqsv3c7v]
      identities: [/home/ana/age.key]
    volumes: {exclude: [cache/scratch]}
  platform: {command: [/opt/shop/platform, up]}
`

// nobody is a port of this machine where a connection is a mistake.
func nobody(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Error("something connected to the host")
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).Port
}

// migration is one whose facts were taken, with a plan that edit has changed.
func migration(t testing.TB, edit func(*plans.Spec)) *Migration {
	t.Helper()
	plan, err := plans.Decode(fmt.Appendf(nil, minimal, nobody(t)), "/home/ana")
	require.NoError(t, err)
	if edit != nil {
		edit(&plan.Spec)
	}
	m := &Migration{Plan: plan, Facts: facts(t)}
	if plan.Spec.Backup.OpenBao != nil {
		m.Facts.OpenBao = &survey.OpenBao{Servers: []survey.OpenBaoServer{{Name: "openbao/openbao-0", Status: openbao.Status{Storage: "raft", Shares: 5, Threshold: 3}}}}
	}
	return m
}

func preview(t testing.TB, m *Migration) []runner.Planned {
	t.Helper()
	planned, err := runner.Preview(context.Background(), m.Sequence())
	require.NoError(t, err)
	return planned
}

// text is the plan with all that a run acts upon.
func text(planned []runner.Planned) string {
	var b strings.Builder
	for i, s := range planned {
		fmt.Fprintf(&b, "%d. %s (%s): %s", i+1, s.Name, s.Phase, s.Title)
		if s.Parallel > 1 {
			fmt.Fprintf(&b, ", %d at once", s.Parallel)
		}
		if s.ReadOnly {
			b.WriteString(", changes nothing")
		}
		if s.Checkpoint {
			b.WriteString(", checkpoint")
		}
		b.WriteString("\n")
		if s.Gate != nil {
			fmt.Fprintf(&b, "   ? %s [%s]\n", s.Gate.Question, s.Gate.Expect)
		}
		for _, a := range s.Actions {
			again := "repeats"
			if a.Done != nil {
				again = "asks"
			}
			fmt.Fprintf(&b, "   - %s [%s, %s] %s\n", a.Name, a.Target, again, a.Summary)
			if a.Command != "" {
				fmt.Fprintf(&b, "     $ %s\n", a.Command)
			}
		}
	}
	return b.String()
}

// variants are plans for the same facts.
var variants = []struct {
	name string
	edit func(*plans.Spec)
}{
	{"default", nil},
	{"other-choices", func(s *plans.Spec) {
		s.K3s.Identity = plans.IdentityNew
		s.K3s.Version = "v1.35.1+k3s1"
		s.K3s.InstallScript = "/home/ana/install.sh"
		s.Services.Policy = plans.ServicesKeep
		s.Backup.Volumes.Concurrency = 1
		s.Snapshot = ownSnapshot()
	}},
	{"openbao", func(s *plans.Spec) {
		s.Backup.OpenBao = &plans.OpenBao{Namespace: "openbao", Service: "openbao", Port: 8200, Token: plans.Secret{Prompt: true},
			UnsealKeys: []plans.Secret{{Kubernetes: &plans.SecretKey{Namespace: "openbao", Name: "keys", Key: "unseal"}}}}
	}},
	{"source", func(s *plans.Spec) {
		s.Platform.Manifests = []string{"/home/ana/shop/base", "/home/ana/shop/my overlay"}
		s.Platform.Rehearse = []string{"/opt/shop/platform", "seed"}
	}},
	{"hooks", func(s *plans.Spec) {
		s.Hooks = []plans.Hook{
			{Name: "mail-back", After: "start", On: plans.OnHost, Command: []string{"systemctl", "start", "postfix"}},
			{Name: "tell", Before: "quiesce", On: plans.OnLaptop, Command: []string{"/home/ana/tell", "the shop is closed"}},
			{Name: "mail-away", Before: "quiesce", On: plans.OnHost, Command: []string{"systemctl", "stop", "postfix"}},
			{Name: "look", After: "gate", On: plans.OnLaptop, Command: []string{"kubectl", "get", "pods"}},
			{Name: "copy", After: "freeze", On: plans.OnLaptop, Command: []string{"rclone", "sync", "/home/ana/shop.migration", "away:shop"}},
		}
	}},
	{"require-dual-stack", func(s *plans.Spec) { s.Services.Policy = plans.ServicesRequireDualStack }},
}

func TestPlan(t *testing.T) {
	base := ""
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			m := migration(t, v.edit)
			got := text(preview(t, m))
			if m.host != nil || m.client != nil || m.set != nil {
				t.Error("a preview has opened something")
			}
			if base == "" {
				base = got
			} else {
				got = changed(base, got)
			}
			golden(t, "testdata/plan-"+v.name+".golden", got)
			for _, word := range []string{"scratch", "pvc-3"} {
				if strings.Contains(got, word) {
					t.Errorf("the excluded volume is in the plan (%s)", word)
				}
			}
		})
	}
}

// changed shows the lines in which two plans differ.
func changed(a, b string) string {
	var out strings.Builder
	have := strings.Split(b, "\n")
	for line := range strings.SplitSeq(a, "\n") {
		if !slices.Contains(have, line) {
			out.WriteString("- " + line + "\n")
		}
	}
	had := strings.Split(a, "\n")
	for _, line := range have {
		if !slices.Contains(had, line) {
			out.WriteString("+ " + line + "\n")
		}
	}
	return out.String()
}

// Without facts a plan that was never surveyed can still be listed.
func TestStepsWithoutFacts(t *testing.T) {
	names := Names()
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] {
			t.Errorf("two steps are called %s", n)
		}
		seen[n] = true
	}
	var sequence []string
	for _, s := range migration(t, nil).Sequence() {
		sequence = append(sequence, s.Name)
	}
	if d := cmp.Diff(sequence, names); d != "" {
		t.Error(d)
	}
}

func TestPlannedActions(t *testing.T) {
	for _, v := range variants {
		for _, s := range preview(t, migration(t, v.edit)) {
			seen := map[string]bool{}
			for _, a := range s.Actions {
				if seen[a.Name] {
					t.Errorf("%s: step %s has two actions %q", v.name, s.Name, a.Name)
				}
				seen[a.Name] = true
				if a.Summary == "" || a.Run == nil || a.Target.Kind == "" {
					t.Errorf("%s: step %s, %s lacks a summary, a target, or what to run", v.name, s.Name, a.Name)
				}
				if a.Command == "" && a.Target.Kind != runner.Laptop {
					t.Errorf("%s: step %s, %s does not say what a person would type", v.name, s.Name, a.Name)
				}
			}
		}
	}
}

// repeatable are the actions from the uninstall on that ask nothing after a
// crash, with the reason why doing them again does no harm. A new action is put
// here with its reason, or gets a Done.
var repeatable = map[string]string{
	"install/files":      "writes the same files",
	"install/identity":   "writes the same files, before the first start",
	"install/install":    "the install script is made to be repeated; a job that runs is attached to",
	"volumes/strays":     "writes the same files",
	"start/hook":         "the plan's hooks are to be repeatable; a job that runs is attached to",
	"start/start":        "starting what runs does nothing",
	"start/node":         "waits",
	"secrets/apply":      "objects that are equal are left alone",
	"claims/reserve":     "objects that are there already are left alone",
	"platform/manifests": "writes the same files",
	"platform/up":        "the plan's command deploys declaratively, and is repeated when it fails, too",
	"platform/openbao":   "a server that is unsealed and has its data is left alone; one that was begun to be restored is restored",
	"platform/workloads": "waits",
	"platform/synced":    "waits",
	"platform/release":   "sets the same policy",
	"services/patch":     "Services that are dual-stack are left alone",
	"verify/verify":      "reads",
	"finish/tidy":        "removes what may be gone",
	"finish/delete":      "a command of the plan that can be run more than once",
}

func TestActionsAfterTheUninstallCanBeContinued(t *testing.T) {
	unused := maps.Clone(repeatable)
	for _, v := range variants {
		after := false
		for _, s := range preview(t, migration(t, v.edit)) {
			after = after || s.Name == "uninstall"
			if !after {
				continue
			}
			for _, a := range s.Actions {
				kind, _, _ := strings.Cut(a.Name, " ") // "reserve pvc-1"
				name := s.Name + "/" + kind
				_, listed := repeatable[name]
				if listed == (a.Done != nil) {
					t.Errorf("%s, %s: listed as repeatable %t, has a Done %t", s.Name, a.Name, listed, a.Done != nil)
				}
				delete(unused, name)
			}
		}
	}
	for name := range unused {
		t.Errorf("%s is no action any longer", name)
	}
}

// The order is the product: what destroys comes behind what keeps, what proves
// and who agrees; data comes back before the server starts.
func TestOrder(t *testing.T) {
	names := Names()
	order := []string{"survey", "preflight", "protect", "gate", "quiesce", "freeze", "seal", "network", "uninstall", "install", "volumes", "start", "secrets", "claims", "platform", "services", "verify", "finish"}
	at := -1
	for _, n := range order {
		i := slices.Index(names, n)
		if i <= at {
			t.Errorf("%s is at %d, what comes before it at %d", n, i, at)
		}
		at = i
	}
	for _, s := range migration(t, nil).Sequence() {
		if (s.Gate != nil) != (s.Name == "quiesce") {
			t.Errorf("step %s: gate %v", s.Name, s.Gate)
		}
	}
}

// Every artifact that the uninstall destroys is asked for by the seal.
func TestArtifacts(t *testing.T) {
	m := migration(t, nil)
	hot, all := m.hotArtifacts(), m.artifacts()
	for _, a := range hot {
		if !slices.Contains(all, a) {
			t.Errorf("the gate proves %s, the seal does not", a)
		}
	}
	for _, want := range []string{
		installScript, objects, namespaces, tlsSecrets, k3sFiles, k3sState, k3sDatabase, strays,
		"volumes/pvc-1/full", "volumes/pvc-1/delta", "volumes/pvc-2/full", "volumes/pvc-2/delta", "volumes/outside/full", "volumes/outside/delta",
	} {
		if !slices.Contains(all, want) {
			t.Errorf("%s is not proven before the uninstall", want)
		}
	}
	for _, a := range all {
		if strings.Contains(a, "pvc-3") || strings.Contains(a, "nas") {
			t.Errorf("%s is never made", a)
		}
	}
	m.Facts.Host.Strays = nil
	if slices.Contains(m.artifacts(), strays) {
		t.Error("strays are asked for where there are none")
	}
}
