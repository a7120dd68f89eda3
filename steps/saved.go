package steps

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/survey"
)

// savedFormat is the version of the file's format.
const savedFormat = 1

// Saved is a plan that a person looked at and kept: what it says and what was found, as far
// as the run depends on it. It holds no secret.
type Saved struct {
	Format   int       `json:"format"`
	Name     string    `json:"name"`     // of the plan
	PlanFile string    `json:"planFile"` // its path
	Taken    time.Time `json:"taken"`    // when host and cluster were surveyed
	Plan     Contents  `json:"plan"`
	Facts    Contents  `json:"facts"`
}

// Contents are what a saved plan holds of one side, by what a person calls it.
type Contents struct {
	SHA256 string            `json:"sha256"` // over the values
	Values map[string]string `json:"values"`
}

func summed(values map[string]string) Contents {
	return Contents{SHA256: digestOf(values), Values: values}
}

func digestOf(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data: cannot fail
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Digest identifies it in a run's journal.
func (s *Saved) Digest() string { return digestOf([]string{s.Plan.SHA256, s.Facts.SHA256}) }

// MaySave refuses a file that is there and is no saved plan: above all the plan itself.
func (m *Migration) MaySave(file string) error {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("saving the plan: %w", err)
	}
	refuse := func(what string) error {
		return fmt.Errorf("saving the plan as %s: that is %s, which would be lost: name another file", file, what)
	}
	if plan, err := os.Stat(m.Plan.Path()); err == nil && os.SameFile(plan, info) {
		return refuse("the plan file itself")
	}
	if !info.Mode().IsRegular() {
		return refuse("no regular file")
	}
	if _, err := ReadSaved(file); err != nil {
		return refuse("there already, and no saved plan")
	}
	return nil
}

// Save keeps the plan with the facts that were taken. A saved plan that is there is replaced
// whole, any other file refused as by [Migration.MaySave].
func (m *Migration) Save(file string) error {
	if err := m.MaySave(file); err != nil {
		return err
	}
	data, err := json.MarshalIndent(m.saved(), "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(file, append(data, '\n'), 0o600, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("saving the plan: %w", err)
	}
	return nil
}

func (m *Migration) saved() *Saved {
	return &Saved{
		Format: savedFormat, Name: m.Plan.Metadata.Name, PlanFile: m.Plan.Path(), Taken: m.Facts.Taken,
		Plan: summed(planValues(m.Plan)), Facts: summed(factValues(m.Facts)),
	}
}

// NotSavedError says that a file is no saved plan that this version can run.
type NotSavedError struct {
	File string
	Why  string
}

func (e *NotSavedError) Error() string {
	return fmt.Sprintf("reading the saved plan %s: %s", e.File, e.Why)
}

// savedLimit is far more than any cluster's facts take.
const savedLimit = 64 << 20

// ReadSaved reads what [Migration.Save] wrote. The error is a *NotSavedError unless the
// file cannot be read.
func ReadSaved(file string) (*Saved, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the saved plan: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, savedLimit+1))
	if err != nil {
		return nil, fmt.Errorf("reading the saved plan: %w", err)
	}
	refuse := func(why string) (*Saved, error) { return nil, &NotSavedError{File: file, Why: why} }
	const again = "; save the plan anew, under another name, with `migrate plan --out`"
	if len(data) > savedLimit {
		return refuse("it is larger than any is" + again)
	}
	if plan, err := plans.Decode(data, filepath.Dir(file)); err == nil && plan.Kind == plans.Kind {
		return refuse(fmt.Sprintf("it is a plan file, and not one that `migrate plan --out` saved: migrate run -f %s", remote.Quote(file)))
	}
	s := &Saved{}
	if err := json.Unmarshal(data, s); err != nil {
		return refuse(fmt.Sprintf("it is damaged, or something else (%v)%s", err, again))
	}
	switch {
	case s.Format == 0:
		return refuse("it is something else" + again)
	case s.Format != savedFormat:
		return refuse(fmt.Sprintf("its format is %d, of another version of migrate, and this one reads %d%s", s.Format, savedFormat, again))
	case s.PlanFile == "" || s.Plan.SHA256 != digestOf(s.Plan.Values) || s.Facts.SHA256 != digestOf(s.Facts.Values):
		return refuse("it is damaged, or was edited: what it holds and its sums differ" + again)
	}
	return s, nil
}

// HoldTo binds the run to a saved plan: it refuses, before anything is written, a plan, a
// host or a cluster that is another now, with a *MovedError. A run that has begun is
// continued when it began from that very saved plan, and is a *NotFromError otherwise.
func (m *Migration) HoldTo(ctx context.Context, s *Saved) error {
	moved := &MovedError{Saved: s, Plan: differences(s.Plan.Values, planValues(m.Plan))}
	begun, err := m.Begun()
	if err != nil {
		return err
	}
	if begun {
		var noted takenFacts
		state, err := m.State()
		if err == nil {
			_, err = state.Data("survey", "facts", &noted)
		}
		switch {
		case err != nil:
			return err
		case noted.Saved != s.Digest():
			return &NotFromError{Name: s.Name}
		case len(moved.Plan) > 0:
			return moved
		}
		return nil
	}
	if len(moved.Plan) > 0 && s.Name != m.Plan.Metadata.Name {
		return moved // it may lead to another host
	}
	// A run that another laptop has most often stopped the API that the survey would ask.
	found, err := m.look(ctx)
	if err == nil {
		err = m.notElsewhere(found, nil)
	}
	if err != nil {
		return err
	}
	t := m.Progress.Wait("Comparing host and cluster with the saved plan")
	facts, err := m.SurveyAll(ctx)
	t.Done()
	if err != nil {
		return err
	}
	moved.Facts = differences(s.Facts.Values, factValues(facts))
	if len(moved.Plan) > 0 || len(moved.Facts) > 0 {
		return moved
	}
	m.taken, m.savedAs = facts, s.Digest()
	return nil
}

// MovedError says that plan or facts are no longer those that were saved.
type MovedError struct {
	Saved       *Saved
	Plan, Facts []string // the differences
}

func (e *MovedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plan %s is no longer as it was saved, with what was found at %s:", e.Saved.Name, e.Saved.Taken.Local().Format(time.DateTime))
	for _, part := range []struct {
		title string
		lines []string
	}{{"the plan, " + e.Saved.PlanFile, e.Plan}, {"host and cluster", e.Facts}} {
		if len(part.lines) > 0 {
			fmt.Fprintf(&b, "\n  %s\n    %s", part.title, strings.Join(part.lines, "\n    "))
		}
	}
	b.WriteString("\nnothing was done")
	return b.String()
}

// NotFromError says that the run which has begun did not begin from the saved plan.
type NotFromError struct{ Name string }

func (e *NotFromError) Error() string {
	return fmt.Sprintf("a run of plan %s has begun, and not from this saved plan; nothing was done", e.Name)
}

// differences says in words what is another now, in order.
func differences(was, is map[string]string) (out []string) {
	keys := maps.Clone(was)
	maps.Copy(keys, is)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		w, before := was[key]
		i, now := is[key]
		switch {
		case !before:
			out = append(out, fmt.Sprintf("%s is new: %s", key, i))
		case !now:
			out = append(out, fmt.Sprintf("%s is gone; it was %s", key, w))
		case w != i:
			out = append(out, fmt.Sprintf("%s: was %s, is %s", key, w, i))
		}
	}
	return out
}

// planValues is what a plan says, by field path, its defaults filled in. What a person may have
// written a secret into is there as its digest.
func planValues(p *plans.Plan) map[string]string {
	data, err := json.Marshal(p)
	if err != nil {
		panic(err) // plain data: cannot fail
	}
	var all any
	if err := json.Unmarshal(data, &all); err != nil {
		panic(err)
	}
	out := map[string]string{}
	flatten(out, "", all)
	return out
}

// opaque are the parts of field paths below which secrets may stand: K3s's arguments, and
// commands with what they are given.
var opaque = []string{"Args", "command", "rehearse", "environment"}

func flatten(out map[string]string, path string, v any) {
	if name := path[strings.LastIndex(path, ".")+1:]; slices.ContainsFunc(opaque, func(o string) bool { return strings.HasSuffix(name, o) }) {
		out[path] = "what has the SHA-256 " + digestOf(v)[:16] + "…"
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			flatten(out, strings.TrimPrefix(path+"."+key, "."), value)
		}
	case []any:
		for i, value := range v {
			flatten(out, path+"["+strconv.Itoa(i)+"]", value)
		}
	default:
		out[path] = fmt.Sprint(v)
	}
}

// factValues are the facts that a run depends on: what it destroys, brings back and
// changes. Sizes, free space, times, pods, leases of addresses and routes, and the contents of TLS
// secrets, which are renewed, may differ; whether a run may begin with them is preflight's to say.
func factValues(f *survey.Facts) map[string]string {
	out := map[string]string{
		"machine-id of the host":       f.Host.MachineID,
		"host name":                    f.Host.Hostname,
		"IPv6 uplink":                  cmp.Or(f.Host.Uplink, "none"),
		"addresses of the node":        strings.Join(f.NodeIPs(), ", "),
		"UID of namespace kube-system": f.Cluster.KubeSystemUID,
		"Service ranges":               strings.Join(f.Cluster.ServiceCIDRs, ", "),
		"K3s":                          f.K3s.Version + ", SHA-256 " + f.K3s.BinarySHA256,
		"data directory":               f.K3s.DataDir,
		"datastore":                    string(f.K3s.Datastore),
		"unit":                         f.K3s.Unit,
		"uninstall script":             f.K3s.Uninstall,
	}
	for key, s := range f.K3s.Settings {
		out["setting "+key] = s.String() + " in " + s.Source
	}
	for kind, names := range map[string][]string{
		"unit drop-in": f.K3s.DropIns, "env file": f.K3s.EnvFiles, "variable": f.K3s.EnvNames, "configuration file": f.K3s.Config,
		"agent file": f.K3s.AgentFiles, "manifest": f.K3s.Manifests, "namespace": f.Cluster.Namespaces, "TLS secret": f.Secrets(),
		"entry of the volumes' storage": f.Host.Strays,
	} {
		for _, name := range names {
			out[kind+" "+name] = "there"
		}
	}
	for _, mount := range f.K3s.Mounts {
		out["mount "+mount.Path] = mount.Identity()
	}
	for _, on := range f.Host.Storage.FileSystems {
		out["file system "+on.Target] = on.Type + " " + cmp.Or(on.UUID, on.Source)
	}
	for _, n := range f.Cluster.Nodes {
		out["node "+n.Name] = fmt.Sprintf("%s, %s (%s)", strings.Join(n.InternalIPs, ", "), strings.Join(n.PodCIDRs, ", "), n.UID)
	}
	for _, v := range f.Cluster.Volumes {
		text := string(v.Kind) + " " + cmp.Or(v.Ref().Claim, "that nobody claims") + ", " + cmp.Or(v.Path, v.Driver) + ", " + v.ReclaimPolicy
		switch {
		case v.Excluded:
			text += ", excluded by the plan"
		case v.Missing:
			text += ", its directory is gone"
		}
		out["volume "+v.PV] = text
	}
	for _, s := range f.Cluster.Services {
		text := s.Type
		for _, family := range s.Families {
			text += " " + string(family)
		}
		for _, more := range []string{s.Policy, strings.Join(s.ClusterIPs, ", "), s.Skip} {
			if more != "" {
				text += ", " + more
			}
		}
		if s.WantPolicy != "" {
			text += " → " + s.WantPolicy
		}
		out["Service "+s.String()] = text
	}
	if f.OpenBao != nil {
		for _, s := range f.OpenBao.Servers {
			out["OpenBao "+s.Name] = fmt.Sprintf("%s, %s storage, seal %s, %d of %d keys", s.Version, s.Storage, s.Seal, s.Threshold, s.Shares)
		}
		for _, mount := range f.OpenBao.Mounts {
			out["OpenBao's mount "+mount.Path] = mount.Type
		}
	}
	return out
}
