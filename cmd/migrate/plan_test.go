package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/steps"
	"sunbeam.pt/k3s-dualstack/survey"
)

// previewed is the plan of testdata for kept facts, which edit may have changed.
func previewed(t *testing.T, edit func(*plans.Plan, *survey.Facts)) (preview, *steps.Migration) {
	t.Helper()
	data, err := os.ReadFile("../../steps/testdata/facts.json")
	require.NoError(t, err)
	facts := &survey.Facts{}
	require.NoError(t, json.Unmarshal(data, facts))
	facts.Rates = survey.Rates{Down: 95 << 20, Up: 12 << 20}
	data, err = os.ReadFile("testdata/plan.yaml")
	require.NoError(t, err)
	plan, err := plans.Decode(data, "/home/ana")
	require.NoError(t, err)
	if edit != nil {
		edit(plan, facts)
	}
	m := &steps.Migration{Plan: plan, Facts: facts}
	p := preview{
		Name: plan.Metadata.Name, Host: "dedi", Address: plan.Server().Address, Version: facts.K3s.Version, Facts: facts,
		Settings: []k3s.Change{
			{Key: "cluster-cidr", After: "10.42.0.0/16,fd42::/48", Source: "/etc/rancher/k3s/config.yaml"},
			{Key: "disable", Before: "servicelb", After: "servicelb,traefik", Source: k3s.SourceFlag},
		},
	}
	p.Steps, err = runner.Preview(t.Context(), m.Sequence())
	require.NoError(t, err)
	p.Fallbacks, err = m.Fallbacks(t.Context())
	require.NoError(t, err)
	p.Estimate, err = m.Estimate(t.Context(), p.Steps)
	require.NoError(t, err)
	return p, m
}

var (
	warning   = preflight.Finding{ID: "volumes.stray", Severity: preflight.Warning, Detail: "something lies there", Remedy: "look at it"}
	inhibitor = preflight.Finding{ID: "k3s.stack", Severity: preflight.Inhibitor, Detail: "it is dual-stack", Remedy: "be glad"}
)

func compare(t *testing.T, name, got string) {
	t.Helper()
	name = "testdata/" + name
	if *update {
		require.NoError(t, os.WriteFile(name, []byte(got), 0o644))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
}

// The plan as a person reads it, from kept facts.
func TestPrintPlan(t *testing.T) {
	p, _ := previewed(t, nil)
	for _, tc := range []struct {
		name  string
		found []preflight.Finding
		begun bool
	}{{"warned", []preflight.Finding{warning}, false}, {"inhibited", []preflight.Finding{inhibitor, warning}, false}, {"begun", nil, true}} {
		t.Run(tc.name, func(t *testing.T) {
			p := p
			p.Findings, p.Begun = tc.found, tc.begun
			var b bytes.Buffer
			require.NoError(t, p.print(&b, "plan.yaml"))
			got := b.String()
			for line := range strings.SplitSeq(got, "\n") {
				if n := len([]rune(line)); n > columns && !strings.HasPrefix(line, "       $ ") && !strings.HasPrefix(line, "  ") {
					t.Errorf("%d columns: %s", n, line)
				}
			}
			if tc.name != "warned" { // the rest is the same
				i, j := strings.Index(got, "\nSettings of K3s"), strings.Index(got, "\nThe way back")
				got = got[:i] + "\n…\n" + got[j:]
			}
			compare(t, "plan-"+tc.name+".golden", got)
		})
	}
	// For programs: every step with its actions, and no secret of the plan's.
	var b bytes.Buffer
	require.NoError(t, writeJSON(&b, p))
	var read struct {
		Steps []struct {
			Name    string
			Actions []struct{ Name, Command, Summary string }
		}
		Estimate struct{ TotalNanos, DowntimeNanos int64 }
	}
	require.NoError(t, json.Unmarshal(b.Bytes(), &read))
	if len(read.Steps) != len(steps.Names()) {
		t.Errorf("%d steps", len(read.Steps))
	}
	for _, s := range read.Steps {
		if len(s.Actions) == 0 {
			t.Errorf("step %s has no actions", s.Name)
		}
	}
	if read.Estimate.TotalNanos <= read.Estimate.DowntimeNanos || read.Estimate.DowntimeNanos == 0 {
		t.Errorf("%+v", read.Estimate)
	}
}

func TestWhatIsNext(t *testing.T) {
	for want, p := range map[string]preview{
		"To do it: migrate run -f 'my plan.yaml'":                                     {},
		"The inhibitors above forbid the migration. ":                                 {Findings: []preflight.Finding{inhibitor}},
		"To continue the run: migrate run -f 'my plan.yaml'":                          {Begun: true, Findings: []preflight.Finding{inhibitor}},
		"A rollback is under way; to continue it: migrate rollback -f 'my plan.yaml'": {Begun: true, state: runner.State{Rollback: &runner.RollbackState{}}},
		"The run is complete. ":                                                       {Begun: true, state: runner.State{Finished: true}},
	} {
		intro, command := p.next("my plan.yaml")
		require.Equal(t, want, intro+" "+command)
	}
}

// What was measured is told as it was.
func TestTakes(t *testing.T) {
	p := preview{Estimate: steps.Estimate{Steps: map[string]steps.StepEstimate{
		"gate": {Duration: 1234 * time.Millisecond, Measured: true}, "seal": {Duration: 1234 * time.Millisecond}}}}
	require.Equal(t, []string{"done in 1.2s", "about 5 s"}, []string{p.takes("gate"), p.takes("seal")})
}

func TestPlanAsMarkdown(t *testing.T) {
	p, _ := previewed(t, nil)
	waived := inhibitor
	waived.Waived = "the |disk| is\ngrown"
	p.Findings = []preflight.Finding{waived, warning}
	var b bytes.Buffer
	require.NoError(t, p.markdown(&b, "plan.yaml"))
	compare(t, "plan.md.golden", b.String())
}

func TestEscape(t *testing.T) {
	for text, want := range map[string]string{
		"a|b": `a\|b`, "`x`": "\\`x\\`", "a\nb": "a b", "<b>": `\<b\>`, `\`: `\\`, "*_#~&": `\*\_\#\~\&`, "[a](b)": `\[a\](b)`, "plain – text": "plain – text",
	} {
		if got := escape(text); got != want {
			t.Errorf("%q: %q instead of %q", text, got, want)
		}
	}
	var b strings.Builder
	fence(&b, "  ", "echo '```'\necho '````'")
	if want := "\n  `````sh\n  echo '```'\n  echo '````'\n  `````\n\n"; b.String() != want {
		t.Errorf("%q", b.String())
	}
}

// odd has paths that a shell could misread.
func odd(sudo bool) func(*plans.Plan, *survey.Facts) {
	return func(p *plans.Plan, f *survey.Facts) {
		p.Spec.Hosts[0].Sudo = sudo
		p.Spec.Hosts[0].IdentityFiles = []string{"/home/ana/my 'id'"}
		p.Spec.Platform.Command = []string{"/opt/shop's/up", "$(touch x)", "…"}
		f.K3s.DataDir = `/srv/it's "k3s" $(touch x)/on_host a`
		f.K3s.Binary = "/opt/k 3s/k3s"
		for i, v := range f.Cluster.Volumes {
			if v.PV == "outside" {
				f.Cluster.Volumes[i].Path = "/srv/`touch x`;TIME\\ \n*"
				f.Cluster.Volumes[i].Bytes = 1 << 30
			}
		}
	}
}

func scripted(t *testing.T, edit func(*plans.Plan, *survey.Facts)) string {
	t.Helper()
	p, m := previewed(t, edit)
	p.Settings = append(p.Settings, k3s.Change{Key: "odd", After: "a\nrm -rf b", Source: "c"})
	var b bytes.Buffer
	require.NoError(t, p.script(&b, m))
	return b.String()
}

func TestPlanAsScript(t *testing.T) {
	compare(t, "plan.sh.golden", scripted(t, nil))
	for name, script := range map[string]string{"plain": scripted(t, nil), "odd": scripted(t, odd(false)), "sudo": scripted(t, odd(true))} {
		for _, args := range [][]string{{"bash", "-n"}, {"shellcheck", "--severity", "warning", "-"}} {
			t.Run(name+" "+args[0], func(t *testing.T) {
				sshtest.Need(t, args[0], args[0])
				cmd := exec.Command(args[0], args[1:]...)
				cmd.Stdin = strings.NewReader(script)
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s\n%s", out, script)
			})
		}
	}
}

// Nothing is done by a script that nobody has read, and a failure stops it.
func TestPlanAsScriptStops(t *testing.T) {
	dir := t.TempDir()
	script := scripted(t, func(p *plans.Plan, f *survey.Facts) {
		odd(false)(p, f)
		p.Spec.K3s.InstallScript = "/dev/null"
	})
	file := filepath.Join(dir, "plan.sh")
	require.NoError(t, os.WriteFile(file, []byte(script), 0o600))
	cmd := exec.CommandContext(t.Context(), "sh", file)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "read it first; to follow it: BY_HAND=yes bash "+file) {
		t.Errorf("%v: %s", err, out)
	}
	t.Setenv("BY_HAND", "yes")
	code, notes := follow(t, dir, script, "listed-incremental")
	if code == 0 || !strings.Contains(notes, "systemctl cat k3s") || !strings.Contains(notes, "listed-incremental") || strings.Contains(notes, "verify") {
		t.Errorf("exit status %d\n%s", code, notes)
	}
}
