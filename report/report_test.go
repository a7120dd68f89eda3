package report_test

import (
	"bytes"
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/preflight"
	"sunbeam.pt/k3s-dualstack/probe"
	"sunbeam.pt/k3s-dualstack/report"
	"sunbeam.pt/k3s-dualstack/verify"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// zone is one that no machine has by chance.
var zone = time.FixedZone("WEST", 3600)

// at is a time on the day of the run.
func at(clock string) time.Time {
	t, err := time.ParseInLocation("2006-01-02 15:04:05", "2026-03-01 "+clock, zone)
	if err != nil {
		panic(err)
	}
	return t
}

func step(phase, name, title string, status report.Status, actions ...report.Action) report.Step {
	return report.Step{Name: name, Title: title, Phase: phase, Status: status, Actions: actions}
}

func done(name, began string, took time.Duration) report.Action {
	return report.Action{Name: name, Attempts: []report.Attempt{{Began: at(began), Took: took, Status: report.StatusDone}}}
}

// finished is a run in which all went well, but for a platform command that had to be repeated the next morning.
func finished() report.Report {
	up := func(from, to string) probe.Span { return probe.Span{From: at(from), To: at(to), State: probe.Up} }
	down := func(from, to, why string) probe.Span {
		return probe.Span{From: at(from), To: at(to), State: probe.Down, Why: why}
	}
	platform := done("up", "21:30:00", 55*time.Second)
	platform.Attempts = append([]report.Attempt{{Began: at("10:03:30"), Took: 4 * time.Second, Status: report.StatusFailed, Error: `spec.platform.command "sunbeam platform up": exit status 7`}}, platform.Attempts...)
	quiesce := step("Rebuild", "quiesce", "Stop K3s and its containers in good order", report.StatusDone, done("refresh", "10:02:10", 3*time.Second), done("stop", "10:02:13", 6*time.Second))
	quiesce.Agreed = []time.Time{at("10:02:10")}
	return report.Report{
		Name: "sunbeam", Host: "dedi", System: "Debian GNU/Linux 13 (trixie)", K3s: "v1.34.4+k3s1", Run: "ABCDEFGHIJKLMNOP", Version: "v0.5.0",
		Began: at("10:00:00"), Last: at("21:32:00"), Made: at("21:40:00"),
		Outcome: report.Outcome{
			Kind: report.Done, Sentence: "sunbeam is dual-stack.", Detail: "The migration is complete and verified.",
			Next: []report.Command{{What: "Look again, at any time", Line: "migrate verify -f plan.yaml"}},
		},
		Steps: []report.Step{
			step("Look", "survey", "Read host and cluster", report.StatusDone, done("facts", "10:00:00", 8*time.Second)),
			step("Look", "preflight", "Check that the migration may run", report.StatusDone, done("checks", "10:00:08", 40*time.Millisecond)),
			step("Protect", "protect", "Back up while the cluster runs", report.StatusDone, done("objects", "10:00:09", 7*time.Second), done("volume pvc-1", "10:00:09", 95*time.Second), done("hook announce", "10:01:45", 900*time.Millisecond)),
			step("Protect", "gate", "Prove the backup set", report.StatusDone, done("prove", "10:01:46", 21*time.Second)),
			quiesce,
			step("Rebuild", "uninstall", "Uninstall K3s", report.StatusDone, done("uninstall", "10:02:20", 9*time.Second)),
			step("Rebuild", "install", "Install K3s again with dual-stack settings", report.StatusDone, done("files", "10:02:30", 4*time.Second), done("install", "10:02:34", 12*time.Second)),
			step("Restore", "start", "Start K3s", report.StatusDone, done("start", "10:02:50", 22*time.Second)),
			step("Restore", "platform", "Redeploy the platform", report.StatusDone, platform),
			step("Prove", "verify", "Verify dual-stack, from inside and outside", report.StatusDone, done("verify", "21:31:00", 48*time.Second)),
			step("Prove", "finish", "Tidy up on the host", report.StatusDone, done("tidy", "21:31:50", 300*time.Millisecond)),
		},
		Stopped: []report.Window{{From: at("10:02:13"), To: at("10:03:12")}},
		Availability: []probe.Availability{
			{Name: "API", Family: probe.IPv4, Since: at("10:00:10"), First: at("10:02:14"), Down: 58 * time.Second, Longest: 58 * time.Second, Unknown: 11*time.Hour + 26*time.Minute,
				Spans: []probe.Span{up("10:00:10", "10:02:14"), down("10:02:14", "10:03:12", "connection refused"), up("10:03:12", "10:03:40"), {From: at("10:03:40"), To: at("21:30:00"), State: probe.Unknown, Why: probe.NotWatched}, up("21:30:00", "21:32:00")}},
			{Name: "https://sunbeam.pt/", Family: probe.IPv4, Since: at("10:00:10"), First: at("10:02:15"), Down: 85*time.Second + 30*time.Second, Longest: 85 * time.Second, Unknown: 11*time.Hour + 26*time.Minute, AtLeast: true,
				Spans: []probe.Span{up("10:00:10", "10:02:15"), down("10:02:15", "10:03:40", "502 Bad Gateway"), {From: at("10:03:40"), To: at("21:30:00"), State: probe.Unknown, Why: probe.NotWatched}, down("21:30:00", "21:30:30", "502 Bad Gateway"), up("21:30:30", "21:32:00")}},
			{Name: "https://sunbeam.pt/", Family: probe.IPv6, Since: at("21:30:31"), Unknown: 11*time.Hour + 26*time.Minute,
				Spans: []probe.Span{{From: at("10:00:10"), To: at("10:03:40"), State: probe.Absent, Why: "no address"}, {From: at("10:03:40"), To: at("21:30:00"), State: probe.Unknown, Why: probe.NotWatched}, down("21:30:00", "21:30:31", "no route"), up("21:30:31", "21:32:00")}},
		},
		Became: "After",
		Changes: []report.Comparison{
			{Title: "Addresses", Rows: []report.Change{{What: "Node dedi", Before: "192.0.2.10", After: "192.0.2.10, 2001:db8::10"}, {What: "Pods on dedi", Before: "10.42.0.0/24", After: "10.42.0.0/24, fd42::/64"}}},
			{Title: "Settings of K3s", Rows: []report.Change{{What: "cluster-cidr", Before: "(default)", After: "10.42.0.0/16,fd42::/48"}}},
			{Title: "Services", Rows: []report.Change{{What: "data/db", Before: "10.43.0.20 · SingleStack", After: "10.43.0.20, fd43::1f3 · PreferDualStack"}, {What: "default/kubernetes", Before: "10.43.0.1 · SingleStack", After: "stays: the API server owns it"}}},
		},
		Findings: []preflight.Finding{
			{ID: "volumes.stray", Severity: preflight.Warning, Detail: "/var/lib/rancher/k3s/storage/left over lies in the volumes' storage and belongs to no PersistentVolume", Why: "The uninstall deletes the storage directory.", Source: "K3s install script: k3s-uninstall.sh", Remedy: "remove it beforehand if nobody needs it"},
			{ID: "host.space", Severity: preflight.Inhibitor, Detail: "host dedi has 1 MiB free", Remedy: "free the space on the host", Waived: "the disk is grown tonight"},
		},
		Verification: &verify.Report{Want: verify.DualStack, Cluster: "sunbeam", Passed: true, Checks: []verify.Check{
			{ID: verify.PodAddresses, Name: "pods: addresses", Target: "data/db-0", Family: verify.IPv4, Status: verify.Pass, Detail: "10.42.0.7"},
			{ID: verify.PodAddresses, Name: "pods: addresses", Target: "data/db-0", Family: verify.IPv6, Status: verify.Pass, Detail: "fd42::7"},
			{ID: verify.VolumeContents, Name: "data: volumes", Target: "data/db-0", Status: verify.Pass, Detail: "12 entries"},
			{ID: verify.OpenBao, Name: "data: OpenBao", Target: "sunbeam", Status: verify.Skip, Detail: "the plan names none"},
		}},
		Backup: report.Backup{Dir: "/home/kai/sunbeam.migration/backup", Proven: at("10:02:19"), Artifacts: []backup.Artifact{
			{Name: "objects", Kind: backup.KindObjects, Size: 812345, SHA256: strings.Repeat("0123456789abcdef", 4)},
			{Name: "volumes/pvc-1/full", Kind: backup.KindTar, Size: 3 << 30, SHA256: strings.Repeat("fedcba9876543210", 4)},
		}},
		Remains: []report.Remains{
			{Where: "laptop", Path: "/home/kai/sunbeam.migration/backup", What: "the backup set: it holds the cluster's secrets, encrypted; remove it when you trust the new cluster"},
			{Where: "dedi", Path: "/var/lib/k3s-dualstack", What: "copies of journal and facts"},
		},
		WayBack: report.WayBack{
			Sentence: "A rollback to checkpoint protect brings the IPv4-only cluster back as it was when K3s was stopped.", Bytes: 3 << 30,
			Commands: []report.Command{{What: "Show every action and what does not stay; change nothing", Line: "migrate rollback -f plan.yaml --to protect --dry-run"}, {What: "Do it, after a question, and compare the result with what was", Line: "migrate rollback -f plan.yaml --to protect"}},
			Actions:  []string{"laptop: Prove what is to be put back, before anything is stopped or moved", "host dedi: Put back K3s's datastore: the cluster with all its objects"},
			Lost:     []string{"Objects that were created or changed in the dual-stack cluster since 2026-03-01 10:02:50"},
		},
	}
}

// rolledBack is a run that failed in the uninstall and was taken back; its attempts include one that was cut off.
func rolledBack() report.Report {
	r := finished()
	r.Outcome = report.Outcome{Kind: report.RolledBack, Sentence: "sunbeam was rolled back: it is the IPv4-only cluster that it was.", Next: []report.Command{{What: "Begin anew", Line: "migrate run -f plan.yaml"}}}
	r.Last, r.Made = at("10:08:00"), at("10:09:00")
	r.Steps = append(r.Steps[:5:5],
		step("Rebuild", "uninstall", "Uninstall K3s", report.StatusTakenBack, report.Action{Name: "uninstall", Attempts: []report.Attempt{
			{Began: at("10:02:20"), Status: report.StatusCut},
			{Began: at("10:04:00"), Took: 30 * time.Second, Status: report.StatusFailed, Error: "host dedi: running k3s-uninstall.sh: exit status 1"},
			{Began: at("10:05:00"), Status: report.StatusFound},
		}}),
		step("Rebuild", "install", "Install K3s again with dual-stack settings", report.StatusToDo),
		report.Step{Name: "uninstall", Title: "Take back: Uninstall K3s", Phase: "Rollback", Back: true, Status: report.StatusDone, Actions: []report.Action{done("prove again", "10:06:00", 20*time.Second), done("datastore back", "10:06:20", 3*time.Second)}},
		report.Step{Name: "quiesce", Title: "Take back: Stop K3s and its containers in good order", Phase: "Rollback", Back: true, Status: report.StatusDone, Actions: []report.Action{done("start again", "10:06:30", 25*time.Second)}},
	)
	r.Steps[4].Status = report.StatusTakenBack
	r.Stopped = []report.Window{{From: at("10:02:13"), To: at("10:06:55")}}
	r.Availability, r.Verification, r.Findings = nil, nil, nil
	r.Became = "Dual-stack, taken back"
	r.WayBack = report.WayBack{Sentence: "The run was rolled back: the old cluster runs, and there is nothing to take back."}
	r.Earlier = []report.Earlier{{Run: "QRSTUVWXYZ", Began: at("08:00:00"), Last: at("08:30:00"), Outcome: "rolled back to protect"}}
	r.Missing = []string{"the availability: line 3 is damaged"}
	return r
}

// hostile is a run whose every name would like to be something else.
func hostile() report.Report {
	const evil = "<script>alert(1)</script>|`x`|\"'><img src=x onerror=alert(1)>\x1b[31m\u202e[a](http://b)"
	r := finished()
	r.Name, r.Host, r.System = evil, evil, evil
	r.Outcome = report.Outcome{Kind: report.Failed, Sentence: evil, Detail: evil + "\n# not a heading", Next: []report.Command{{What: evil, Line: "migrate run -f '```\n" + evil + "'"}}}
	r.Steps = []report.Step{step("Look", evil, evil, report.StatusFailed, report.Action{Name: evil, Attempts: []report.Attempt{{Began: at("10:00:00"), Status: report.StatusFailed, Error: evil}}})}
	r.Availability = []probe.Availability{{Name: "https://user:hunter2@a.example/" + evil, Family: probe.IPv6, Spans: []probe.Span{{From: at("10:00:00"), To: at("10:00:01"), State: probe.Down, Why: evil}}}}
	r.Changes = []report.Comparison{{Title: evil, Rows: []report.Change{{What: evil, Before: evil, After: evil}}}}
	r.Findings = []preflight.Finding{{ID: evil, Severity: preflight.Warning, Detail: evil, Why: evil, Source: evil, Remedy: evil, Waived: evil}}
	r.Backup.Artifacts[0].Name = evil
	r.Remains = []report.Remains{{Where: evil, Path: evil, What: evil}}
	r.Missing = []string{evil}
	return r
}

var samples = map[string]func() report.Report{"finished": finished, "rolled-back": rolledBack, "hostile": hostile}

func render(t testing.TB, r report.Report) (html, markdown string) {
	t.Helper()
	var h, m bytes.Buffer
	require.NoError(t, r.HTML(&h))
	require.NoError(t, r.Markdown(&m))
	return h.String(), m.String()
}

func TestGolden(t *testing.T) {
	for name, sample := range samples {
		html, markdown := render(t, sample())
		for ext, got := range map[string]string{".html": html, ".md": markdown} {
			file := "testdata/" + name + ext
			if *update {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, string(want), got, "%s: go test ./report -update rewrites it", file)
		}
	}
}

// A document that is attached somewhere loads nothing from anywhere.
func TestSelfContained(t *testing.T) {
	html, _ := render(t, finished())
	assert.Contains(t, html, `content="default-src 'none'; style-src 'unsafe-inline'; img-src data:"`)
	assert.Empty(t, regexp.MustCompile(`(?i)<(script|link|iframe|object|embed|base|form|img)\b|\s(src|href|action|on\w+)=|@import|url\([^#]`).FindAllString(html, -1))
}

func TestDataStayData(t *testing.T) {
	html, markdown := render(t, hostile())
	assert.False(t, strings.Contains(html, "<script") || strings.Contains(html, "<img"))
	assert.Empty(t, regexp.MustCompile(`(^|[^\\])<(script|img)`).FindAllString(prose(markdown), -1))
	assert.NotRegexp(t, `(?m)^# not a heading`, markdown)
	var data bytes.Buffer
	r := hostile()
	require.NoError(t, r.JSON(&data))
	for kind, text := range map[string]string{"HTML": html, "Markdown": markdown, "JSON": data.String()} {
		for _, unwanted := range []string{"\x1b", "\u202e", "hunter2"} {
			assert.False(t, strings.Contains(text, unwanted), "%q in %s", unwanted, kind)
		}
	}
	// Every row of a table has as many cells as its head.
	cells := 0
	for line := range strings.Lines(markdown) {
		if !strings.HasPrefix(line, "|") {
			cells = 0
			continue
		}
		n := strings.Count(strings.NewReplacer(`\\`, "", `\|`, "").Replace(line), "|")
		if cells == 0 {
			cells = n
		}
		assert.Equal(t, cells, n, line)
	}
}

// prose is what of Markdown is not code.
func prose(markdown string) string {
	markdown = regexp.MustCompile("(?ms)^````*\\w*\n.*?^````*$").ReplaceAllString(markdown, "")
	return regexp.MustCompile("(?m)(^|[^`\\\\])``?[^`].*?[^`]``?").ReplaceAllString(markdown, "$1")
}

// Whatever characters a password in a URL has, none of it leaves.
func TestPasswordsInURLs(t *testing.T) {
	for _, url := range []string{"https://ana:hunter2@example.org/", "https://ana:p@hunter2@example.org/", "https://ana:p/hunter2@example.org/", "https://hunter2@example.org"} {
		r := report.Report{Name: "sunbeam", Began: at("10:00:00"), Last: at("10:00:00"), Missing: []string{"get " + url + " \"x@y\""}}
		html, markdown := render(t, r)
		var data bytes.Buffer
		require.NoError(t, r.JSON(&data))
		for kind, text := range map[string]string{"HTML": html, "Markdown": markdown, "JSON": data.String()} {
			assert.NotContains(t, text, "hunter2", kind)
			assert.Contains(t, text, "x@y", kind)
		}
	}
}

func TestNothingHappenedYet(t *testing.T) {
	r := report.Report{Name: "sunbeam", Began: at("10:00:00"), Last: at("10:00:00"), Steps: []report.Step{step("Look", "survey", "Read", report.StatusToDo)}}
	html, markdown := render(t, r)
	assert.Contains(t, html, "None was made.")
	assert.Contains(t, markdown, "Nothing was watched.")
}
