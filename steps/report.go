package steps

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/report"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/verify"
)

// NothingToReportError says that no run has begun.
type NothingToReportError struct{ Plan string }

func (e *NothingToReportError) Error() string {
	return "nothing to report: no run of plan " + e.Plan + " has begun"
}

// Document tells of the run in the work directory, from what lies there alone: neither host nor cluster is
// contacted, and no key is read. file is the plan file as commands name it, made the present time. What cannot be read
// is said in the document, but for the journal, without which there is none.
func (m *Migration) Document(ctx context.Context, file string, made time.Time) (report.Report, error) {
	journal, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return report.Report{}, err
	}
	defer journal.Close()
	state := journal.State()
	if state.Run == "" {
		return report.Report{}, &NothingToReportError{Plan: m.Plan.Metadata.Name}
	}
	holder, err := m.Holder()
	if err != nil {
		return report.Report{}, err
	}
	d := document{m: m, records: journal.Records(), state: state, running: holder != nil, plan: "-f " + remote.Quote(file)}
	d.r = report.Report{
		Name: m.Plan.Metadata.Name, Host: m.Plan.Server().Name,
		Run: state.Run, Began: state.Began.Local(), Last: state.Last.Local(), Made: made.Local(),
		Missing: journal.Notices(),
	}
	if m.Facts == nil {
		d.missing("the facts of the run, %s: what was before, findings and the way back are not told", m.file(factsFile))
	} else {
		d.r.System, d.r.K3s = m.Facts.Host.OS, m.Facts.K3s.Version
	}
	d.steps()
	d.stopped()
	d.availability()
	d.verification()
	d.changes()
	d.findings()
	d.backup()
	d.remains()
	d.wayBack(ctx)
	d.earlier()
	d.outcome()
	return d.r, nil
}

// document is a report in the making.
type document struct {
	m       *Migration
	records []runner.Record
	state   runner.State
	running bool   // by a process that lives
	plan    string // the flag that names it
	r       report.Report
}

func (d *document) missing(format string, args ...any) {
	d.r.Missing = append(d.r.Missing, fmt.Sprintf(format, args...))
}

// steps are all of the sequence, and those of rollbacks, with every attempt that the journal has.
func (d *document) steps() {
	forward, back := map[string]*report.Step{}, []*report.Step{}
	var order []*report.Step
	for _, s := range d.m.Sequence() {
		step := &report.Step{Name: s.Name, Title: s.Title, Phase: s.Phase, Status: report.StatusToDo}
		forward[s.Name] = step
		order = append(order, step)
	}
	taken := func(name string) *report.Step { // the taking back of a step
		if i := slices.IndexFunc(back, func(s *report.Step) bool { return s.Name == name }); i >= 0 {
			return back[i]
		}
		step := &report.Step{Name: name, Title: "Take back " + name, Phase: "Rollback", Back: true}
		if f := forward[name]; f != nil {
			step.Title = "Take back: " + f.Title
		}
		back = append(back, step)
		return step
	}
	for _, r := range d.records {
		step := forward[r.Step]
		switch r.Event {
		case runner.Undoing, runner.Undone, runner.UndoFailed, runner.Reverted:
			step = taken(r.Step)
		}
		if step == nil {
			continue // of the run as a whole, or of a version that had other steps
		}
		switch r.Event {
		case runner.Confirmed:
			step.Agreed = append(step.Agreed, r.Time.Local())
		case runner.Intent, runner.Undoing:
			step.Status = report.StatusBegun
			a := action(step, r.Action)
			a.Attempts = append(a.Attempts, report.Attempt{Began: r.Time.Local(), Status: report.StatusCut})
		case runner.Done, runner.Undone:
			end(step, r, report.StatusDone)
		case runner.Failed, runner.UndoFailed:
			end(step, r, report.StatusFailed)
			step.Status = report.StatusFailed
		case runner.StepComplete, runner.StepCheckpoint:
			step.Status = report.StatusDone
		case runner.Reverted:
			step.Status = report.StatusDone
			if f := forward[r.Step]; f != nil {
				f.Status = report.StatusTakenBack
			}
		}
	}
	for _, s := range append(order, back...) {
		if d.running && s.Back == (d.state.Rollback != nil) {
			d.stillRunning(s)
		}
		if !s.Back || len(s.Actions) > 0 {
			d.r.Steps = append(d.r.Steps, *s)
		}
	}
}

func action(s *report.Step, name string) *report.Action {
	i := slices.IndexFunc(s.Actions, func(a report.Action) bool { return a.Name == name })
	if i < 0 {
		i = len(s.Actions)
		s.Actions = append(s.Actions, report.Action{Name: name})
	}
	return &s.Actions[i]
}

// end enters what became of the last attempt.
func end(s *report.Step, r runner.Record, status report.Status) {
	a := action(s, r.Action)
	if r.Found {
		// The attempt that was cut off had done it; when it ended, nobody saw.
		a.Attempts = append(a.Attempts, report.Attempt{Began: r.Time.Local(), Status: report.StatusFound})
		return
	}
	if len(a.Attempts) == 0 {
		a.Attempts = append(a.Attempts, report.Attempt{Began: r.Time.Add(-r.Took).Local()})
	}
	last := &a.Attempts[len(a.Attempts)-1]
	last.Status, last.Took = status, r.Took
	last.Error = firstLine(r.Error)
}

// firstLine is what of an error may leave the work directory. What follows may be the
// output of commands that are not ours, and hold anything.
func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return strings.TrimSuffix(line, "; the end of its output:")
}

// stillRunning marks the attempts that a living process is at.
func (d *document) stillRunning(s *report.Step) {
	for i := range s.Actions {
		last := &s.Actions[i].Attempts[len(s.Actions[i].Attempts)-1]
		if last.Status == report.StatusCut {
			last.Status, last.Took = report.StatusRunning, max(0, d.r.Made.Sub(last.Began))
			s.Status = report.StatusRunning
		}
	}
}

// stopped is when K3s did not run, by the actions that stop and start it.
func (d *document) stopped() {
	var open *report.Window
	for _, r := range d.records {
		name := r.Step + "/" + r.Action
		switch {
		case open == nil && (name == "quiesce/stop" && r.Event == runner.Intent || r.Action == "stop again" && r.Event == runner.Undoing && d.wasStarted(r)):
			open = &report.Window{From: r.Time.Local()}
		case open != nil && (name == "start/start" && r.Event == runner.Done || r.Action == "start again" && r.Event == runner.Undone):
			open.To = r.Time.Local()
			d.r.Stopped = append(d.r.Stopped, *open)
			open = nil
		}
	}
	if open != nil {
		open.To, open.Open = d.r.Last, true
		if d.running {
			open.To = d.r.Made
		}
		d.r.Stopped = append(d.r.Stopped, *open)
	}
}

// wasStarted tells whether K3s may have been running when the record was written.
func (d *document) wasStarted(at runner.Record) bool {
	for _, r := range slices.Backward(d.records[:at.Seq-1]) {
		switch {
		case r.Step == "start" && r.Action == "start", r.Action == "start again":
			return true
		case r.Step == "quiesce" && r.Action == "stop":
			return false
		}
	}
	return false
}

// availability is what of the prober's file is of this run.
func (d *document) availability() {
	all, err := d.m.Availability()
	if err != nil {
		d.missing("the availability: %v", err)
	}
	d.r.Availability = all
	for i := range all {
		for j := range all[i].Spans {
			s := &all[i].Spans[j]
			s.From, s.To = s.From.Local(), s.To.Local()
		}
	}
}

// verification is the last one of this run: one of an earlier run may lie there still.
func (d *document) verification() {
	i := slices.IndexFunc(d.records, func(r runner.Record) bool { return r.Step == "verify" && r.Event == runner.Intent })
	if i < 0 {
		return
	}
	path := d.m.file(reportFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().Before(d.records[i].Time.Truncate(time.Second)) {
		return // it was not made
	}
	var v verify.Report
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	if err != nil {
		d.missing("the verification's report: reading %s: %v", path, err)
		return
	}
	d.r.Verification = &v
}

// changes are before and after: from the facts, and from what the verification saw or, before that, from what the plan wants.
func (d *document) changes() {
	facts, v := d.m.Facts, d.r.Verification
	if facts == nil {
		return
	}
	seen := v != nil
	switch {
	case d.state.RolledBack == whole || d.state.Rollback != nil:
		d.r.Became = "Dual-stack, taken back"
	case seen:
		d.r.Became = "After"
	default:
		d.r.Became = "Planned"
	}
	after := func(id, target, planned string) string {
		if !seen {
			return planned
		}
		var out []string
		for _, c := range v.Checks {
			if c.ID == id && (target == "" || c.Target == target) {
				out = append(out, cmp.Or(map[verify.Status]string{verify.Pass: c.Detail}[c.Status], "—"))
			}
		}
		return strings.Join(slices.Compact(out), ", ")
	}
	spec := d.m.Plan.Spec

	addresses := report.Comparison{Title: "Addresses"}
	add := func(c *report.Comparison, what, before, after string) {
		c.Rows = append(c.Rows, report.Change{What: what, Before: before, After: after})
	}
	for _, n := range facts.Cluster.Nodes {
		add(&addresses, "Node "+n.Name, strings.Join(n.InternalIPs, ", "), after(verify.NodeAddresses, "node "+n.Name, strings.Join(d.nodeIPs(), ", ")))
		add(&addresses, "Pods on "+n.Name, strings.Join(n.PodCIDRs, ", "), after(verify.NodePodCIDRs, "node "+n.Name, "of "+strings.Join(spec.Network.ClusterCIDR, ", ")))
	}
	ranges := after(verify.ServiceCIDRs, "", strings.Join(spec.Network.ServiceCIDR, ", "))
	if ranges == "" || ranges == "—" {
		ranges = strings.Join(spec.Network.ServiceCIDR, ", ")
	}
	add(&addresses, "Services", strings.Join(facts.Cluster.ServiceCIDRs, ", "), ranges)

	settings := report.Comparison{Title: "Settings of K3s"}
	for _, c := range d.settings() {
		add(&settings, c.Key, cmp.Or(c.Before, "(default)"), c.After)
	}

	services := report.Comparison{Title: "Services"}
	patched := d.patched()
	policy := string(d.m.Plan.Spec.Services.Policy) // the run's, which may have been mended since the facts
	for _, s := range facts.Cluster.Services {
		before := strings.Join(s.ClusterIPs, ", ")
		if s.Type == "Headless" || s.Type == "ExternalName" || before == "" {
			before = s.Type
		}
		if s.Policy != "" {
			before += " · " + s.Policy
		}
		is := "→ " + policy
		switch {
		case s.Skip != "":
			is = "stays: " + s.Skip
		case seen:
			is = cmp.Or(after(verify.ServiceClusterIPs, s.String(), ""), after(verify.ServiceEndpoints, s.String(), ""), "not there")
			if slices.Contains(patched, s.String()) {
				is += " · " + policy
			}
		}
		add(&services, s.String(), before, is)
	}
	for _, c := range []report.Comparison{addresses, settings, services} {
		if len(c.Rows) > 0 {
			d.r.Changes = append(d.r.Changes, c)
		}
	}
}

func (d *document) nodeIPs() []string {
	if ips := d.m.Plan.Spec.Network.NodeIP; len(ips) > 0 {
		return ips
	}
	return d.m.Facts.NodeIPs()
}

// settings are those that the installation changed, or is to change.
func (d *document) settings() []k3s.Change {
	var made struct {
		Changes []k3s.Change `json:"changes"`
	}
	for _, r := range slices.Backward(d.records) {
		if r.Step == "install" && r.Action == "files" && r.Event == runner.Done && json.Unmarshal(r.Data, &made) == nil && len(made.Changes) > 0 {
			return made.Changes
		}
	}
	spec := d.m.Plan.Spec
	for _, w := range k3s.Wants(spec.Network, d.nodeIPs(), spec.K3s.Disable) {
		made.Changes = append(made.Changes, k3s.Change{
			Key: w.Key, Before: strings.Join(d.m.Facts.K3s.Setting(w.Key), ","), After: strings.Join(w.Values, ","),
		})
	}
	return WithoutSecrets(made.Changes)
}

// patched are the Services that the run patched.
func (d *document) patched() []string {
	var done struct {
		Patched []string `json:"patched"`
	}
	for _, r := range slices.Backward(d.records) {
		if r.Step == "services" && r.Event == runner.Done && json.Unmarshal(r.Data, &done) == nil {
			return done.Patched
		}
	}
	return nil
}

// findings are those with which the run passed preflight, or those that kept it from passing.
func (d *document) findings() {
	found, err := Findings(d.state)
	if err != nil {
		d.missing("the findings: %v", err)
	}
	if _, checked := d.state.ActionState("preflight", checks); err == nil && len(found) == 0 && checked && !d.state.StepState("preflight").Complete && d.m.Facts != nil {
		var inhibited *InhibitedError
		if err := d.m.Check(); err != nil && !errors.As(err, &inhibited) {
			d.missing("the findings: %v", err)
		}
		found = d.m.Findings
	}
	d.r.Findings = found
}

// backup is the set's manifest. What it lists was proven when the journal says so.
func (d *document) backup() {
	if !d.m.hasSet() {
		return
	}
	d.r.Backup.Dir = d.m.SetDir()
	set, err := backup.Open(d.m.SetDir(), nil, nil)
	if err != nil {
		d.missing("the backup set: %v", err)
		return
	}
	d.r.Backup.Artifacts = set.Artifacts()
	for _, r := range d.records {
		if r.Step == "seal" && r.Action == "prove" && r.Event == runner.Done {
			d.r.Backup.Proven = r.Time.Local()
		}
	}
}

// remains is what the run leaves behind, as far as it got.
func (d *document) remains() {
	add := func(where, path, what string) {
		d.r.Remains = append(d.r.Remains, report.Remains{Where: where, Path: path, What: what})
	}
	add("laptop", d.m.Plan.Spec.WorkDir, "journal, facts and reports of the run")
	if d.m.hasSet() {
		add("laptop", d.m.SetDir(), "the backup set: it holds the cluster's secrets, encrypted; remove it when you trust the new cluster")
	}
	if !begun(d.state) {
		return
	}
	host := d.m.Plan.Server().Name
	add(host, remote.StateDir, "copies of journal and facts, outside of all that K3s's uninstall removes")
	if _, set := d.state.ActionState("network", "sysctl"); set {
		add(host, sysctlFile, "IPv6 forwarding, and router advertisements accepted meanwhile")
	}
	if left := d.m.SnapshotLeft(); len(left) > 0 {
		where := "laptop"
		if d.m.SnapshotOnHost() {
			where = host
		}
		add(where, strings.Join(left, "; "), "removes what is left of the snapshot that was taken first")
	}
	for _, r := range d.records {
		if r.Event != runner.Undone {
			continue
		}
		var one struct {
			Aside string `json:"aside"`
		}
		var many struct {
			Aside []string `json:"aside"`
		}
		if json.Unmarshal(r.Data, &one) == nil && one.Aside != "" {
			add(host, one.Aside, "what a rollback replaced of K3s's files and datastore")
		}
		if json.Unmarshal(r.Data, &many) == nil {
			for _, path := range many.Aside {
				add(host, path, "what a rollback replaced of a volume")
			}
		}
	}
}

// wayBack is how the old cluster comes back from here.
func (d *document) wayBack(ctx context.Context) {
	w := &d.r.WayBack
	to := ""
	switch {
	case d.state.RolledBack == whole:
		w.Sentence = "The run was rolled back: the old cluster runs, and there is nothing to take back."
		return
	case d.state.Finished, d.state.Checkpoint == "verify" && d.state.Rollback == nil:
		to = whole // without a name a rollback goes to the last state in which the cluster was whole, and that is this
	}
	if d.m.Facts == nil {
		w.Sentence = "Without the facts of the run it cannot be told what a rollback would do."
		return
	}
	u, err := d.m.Unwind(ctx, to)
	var unbegun *UnbegunError
	switch {
	case errors.As(err, &unbegun), err == nil && len(u.Actions) == 0 && d.state.Rollback == nil:
		w.Sentence = "Nothing was changed on host or cluster that would have to be taken back."
		return
	case err != nil:
		w.Sentence = fmt.Sprintf("What a rollback would do could not be found out: %v", err)
		return
	}
	w.Sentence = fmt.Sprintf("A rollback to checkpoint %s brings the IPv4-only cluster back as it was when K3s was stopped.", u.To)
	if d.state.Rollback != nil {
		w.Sentence = fmt.Sprintf("A rollback to checkpoint %s is under way and not complete; the same command continues it.", u.To)
	}
	if u.To == "seal" {
		w.Sentence = "The rollback goes to checkpoint seal: the old installation, stopped, as before the uninstall."
	}
	name := ""
	if to != "" {
		name = " --to " + to
	}
	w.Commands = []report.Command{
		{What: "Show every action and what does not stay; change nothing", Line: "migrate rollback " + d.plan + name + " --dry-run"},
		{What: "Do it, after a question, and compare the result with what was", Line: "migrate rollback " + d.plan + name},
	}
	if !Returning(d.state) {
		w.Commands = append(w.Commands, report.Command{What: "The same as a commented shell script, for a day on which that cannot finish", Line: "migrate runbook " + d.plan + name + " > by-hand.sh"})
	}
	if d.m.hasSet() {
		w.Commands = append(w.Commands, report.Command{What: "Prove the backup set on which it rests", Line: "migrate backup verify " + d.plan})
	}
	for _, a := range u.Actions {
		w.Actions = append(w.Actions, fmt.Sprintf("%s: %s", a.Target, a.Summary))
		w.Bytes += a.Bytes
	}
	w.Lost = u.Lost
}

// earlier are the runs whose journals were put aside, the first first.
func (d *document) earlier() {
	files, err := filepath.Glob(filepath.Join(d.m.Plan.Spec.WorkDir, "journal.*.jsonl"))
	if err != nil {
		return // only a pattern that is none
	}
	for _, file := range files {
		j, err := runner.OpenJournal(file)
		if err != nil {
			d.missing("an earlier run: %v", err)
			continue
		}
		s := j.State()
		_ = j.Close() // it was only read
		e := report.Earlier{Run: s.Run, Began: s.Began.Local(), Last: s.Last.Local(), Outcome: "went on on another laptop"}
		if s.RolledBack != "" {
			e.Outcome = "rolled back to " + s.RolledBack
		}
		d.r.Earlier = append(d.r.Earlier, e)
	}
	slices.SortStableFunc(d.r.Earlier, func(a, b report.Earlier) int { return a.Began.Compare(b.Began) })
}

// outcome is the first that a reader sees; all else is known by now.
func (d *document) outcome() {
	o := &d.r.Outcome
	next := func(what, command string) {
		o.Next = append(o.Next, report.Command{What: what, Line: "migrate " + command + " " + d.plan})
	}
	name := d.r.Name
	condition, _ := Condition(d.state)
	o.Detail = condition
	switch s := d.state; {
	case s.Finished:
		o.Kind, o.Sentence = report.Done, name+" is dual-stack."
		o.Detail = "The migration is complete and verified."
		next("Look again, at any time", "verify")
	case d.running:
		o.Kind, o.Sentence = report.Running, "The migration of "+name+" is being run."
		if s.Rollback != nil {
			o.Sentence = name + " is being rolled back."
		}
		next("See how far it is", "status")
	case s.Rollback != nil:
		o.Kind, o.Sentence = report.Failed, fmt.Sprintf("A rollback of %s to %s has begun and is not complete.", name, s.Rollback.To)
		o.Detail = d.failure()
		next("Continue the rollback", "rollback")
		if Returning(s) {
			next("By way of the backup set, if it cannot finish", "rollback --via backup")
		} else {
			next("The rest by hand, if it cannot finish", "runbook")
		}
	case s.RolledBack == whole:
		o.Kind, o.Sentence = report.RolledBack, name+" was rolled back: it is the IPv4-only cluster that it was."
		o.Detail = "The rollback was complete on " + d.r.Last.Format("2 January 2006 at 15:04:05") + "."
		next("Begin anew", "run")
	case s.RolledBack != "":
		o.Kind, o.Sentence = report.RolledBack, fmt.Sprintf("%s was rolled back to checkpoint %s.", name, s.RolledBack)
		next("Go on from there", "run")
		next("Start the old cluster", "rollback")
	default:
		o.Kind, o.Sentence = report.Open, fmt.Sprintf("The migration of %s has stopped before its end.", name)
		if failed := d.failure(); failed != "" {
			o.Kind, o.Detail = report.Failed, failed+" "+condition
		}
		next("Continue", "run")
		if len(d.r.WayBack.Actions) > 0 {
			next("Have the old cluster back instead", "rollback")
		}
	}
}

// failure says where the run, or its rollback, failed last; "" when it did not.
func (d *document) failure() string {
	for _, r := range slices.Backward(d.records) {
		switch r.Event {
		case runner.Failed, runner.UndoFailed:
			back := ""
			if r.Event == runner.UndoFailed {
				back = "taking back "
			}
			return fmt.Sprintf("Failed in %s%s, %s: %s.", back, r.Step, r.Action, strings.TrimSuffix(firstLine(r.Error), "."))
		case runner.StepComplete, runner.StepCheckpoint, runner.Reverted:
			return ""
		}
	}
	return ""
}
