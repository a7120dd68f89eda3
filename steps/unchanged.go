package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
	"sunbeam.pt/k3s-dualstack/verify"
)

// The checks of a rollback's result.
const (
	sameIdentity = "cluster.identity"
	sameSettings = "k3s.settings"
	sameObjects  = "cluster.objects"
)

// compareWithFacts holds the old cluster that runs again against what it was. The
// checks are kept in Unlike whatever their outcome. It changes nothing.
func (m *Migration) compareWithFacts(ctx context.Context) error {
	now, err := m.Survey(ctx)
	if err != nil {
		return err
	}
	c, err := m.rebuilt(ctx)
	if err != nil {
		return err
	}
	bao, err := m.compareBao(ctx)
	if err != nil {
		return err
	}
	patience := m.Plan.Spec.Verify.Timeout.Duration
	if len(bao) > 0 && bao[0].Status == verify.Fail {
		patience = 10 * time.Second // itself and what needs it would be waited for in vain
	}
	checks := append(identityChecks(m.Facts, now), m.workloadsCheck(ctx, c, patience))
	// Before the uninstall a rollback needs no backup set; what only that could
	// tell is then said to be unknown.
	began, err := m.uninstallBegan()
	if err != nil {
		return err
	}
	unknown := func(id, name string, err error) verify.Check {
		c := check(id, name, m.Plan.Metadata.Name, []string{"not compared: " + err.Error()}, "")
		if !began { // and with it nothing that could be lost
			c.Status = verify.Skip
			c.Detail = "not compared: the backup set is not complete, and nothing was uninstalled"
		}
		return c
	}
	objects, err := m.objectsCheck(ctx, c)
	if err != nil {
		objects = unknown(sameObjects, "the same objects and ClusterIPs", err)
	}
	checks = append(checks, objects)
	if !m.KeepPresent {
		volumes, err := m.compareVolumes(ctx)
		if err != nil {
			volumes = []verify.Check{unknown(verify.VolumeContents, "volume contents", err)}
		}
		checks = append(checks, volumes...)
	}
	checks = append(checks, bao...)
	if ctx.Err() != nil {
		return fmt.Errorf("comparing the cluster with what it was: %w", ctx.Err())
	}
	m.Unlike = checks
	failed := 0
	for _, c := range m.Unlike {
		if c.Status == verify.Fail {
			failed++
		}
	}
	if failed > 0 {
		return &UnverifiedError{Failed: failed}
	}
	return nil
}

// uninstallBegan tells whether the run has ever begun to uninstall.
func (m *Migration) uninstallBegan() (bool, error) {
	journal, err := runner.OpenJournal(m.JournalPath())
	if err != nil {
		return false, err
	}
	defer journal.Close()
	return slices.ContainsFunc(journal.Records(), func(r runner.Record) bool { return r.Step == "uninstall" && r.Event == runner.Intent }), nil
}

// returnedTo is when the snapshot was made to which the host was returned, by the host's clock; the zero time where another way
// was gone. The backup set was made after it: what the set has and the snapshot has not was made or changed between
// the two. What is older than the snapshot should be there, though, as far as the set knows how old it is: of objects it
// knows when they were created, of files when they were modified.
func (m *Migration) returnedTo() (time.Time, error) {
	if m.Via != ViaSnapshot {
		return time.Time{}, nil
	}
	at, err := m.snapshotTaken()
	if err != nil || at.IsZero() {
		return time.Time{}, err
	}
	return at.Add(time.Duration(m.Facts.Host.Skew) * time.Second), nil
}

func check(id, name, target string, differences []string, fine string) verify.Check {
	c := verify.Check{ID: id, Name: name, Target: target, Status: verify.Pass, Detail: fine}
	if len(differences) > 0 {
		c.Status = verify.Fail
		c.Detail = few(differences)
	}
	return c
}

// few joins the first differences and counts the rest.
func few(all []string) string {
	const shown = 10
	if len(all) > shown {
		all = append(slices.Clone(all[:shown]), fmt.Sprintf("and %d more", len(all)-shown))
	}
	return strings.Join(all, "; ")
}

// identityChecks compare what makes the cluster the one it was.
func identityChecks(was, now *survey.Facts) []verify.Check {
	moved := was.Moved(now)
	nodes := map[string]survey.Node{}
	for _, n := range now.Cluster.Nodes {
		nodes[n.Name] = n
	}
	for _, n := range was.Cluster.Nodes {
		is, ok := nodes[n.Name]
		switch {
		case !ok:
			moved = append(moved, "node "+n.Name+" is gone")
		case is.UID != n.UID:
			moved = append(moved, fmt.Sprintf("UID of node %s: was %s, is %s", n.Name, n.UID, is.UID))
		case !slices.Equal(is.PodCIDRs, n.PodCIDRs):
			moved = append(moved, fmt.Sprintf("podCIDRs of node %s: were %v, are %v", n.Name, n.PodCIDRs, is.PodCIDRs))
		}
	}
	// What a rollback sets aside in the storage belongs to no volume, nor do the
	// directories that local-path made for the dual-stack cluster.
	moved = slices.DeleteFunc(moved, func(s string) bool {
		dir, stray := strings.CutSuffix(s, " in the volumes' storage is new")
		return stray && (strings.Contains(dir, ".replaced-") || strings.HasPrefix(path.Base(dir), "pvc-"))
	})
	var settings []string
	for _, key := range slices.Sorted(maps.Keys(was.K3s.Settings)) {
		if w, n := was.K3s.Setting(key), now.K3s.Setting(key); !slices.Equal(w, n) {
			settings = append(settings, fmt.Sprintf("%s was %v, is %v", key, w, n))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(now.K3s.Settings)) {
		if _, ok := was.K3s.Settings[key]; !ok {
			settings = append(settings, fmt.Sprintf("%s is set to %v and was not", key, now.K3s.Setting(key)))
		}
	}
	return []verify.Check{
		check(sameIdentity, "the same cluster", was.Host.Name, moved, "kube-system "+was.Cluster.KubeSystemUID+", K3s "+was.K3s.Version),
		check(sameSettings, "the same settings of K3s", was.Host.Name, settings, fmt.Sprintf("%d settings", len(was.K3s.Settings))),
	}
}

func (m *Migration) workloadsCheck(ctx context.Context, c *cluster.Client, patience time.Duration) verify.Check {
	t := m.Progress.Wait("Waiting for workloads")
	defer t.Done()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var short []string
	if err := c.WaitWorkloads(ctx, t); err != nil {
		short = []string{err.Error()}
	}
	return check(verify.Workloads, "workloads run", m.Plan.Metadata.Name, short, "all have their replicas")
}

// kept is what the comparison needs of an object.
type kept struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Namespace       string            `json:"namespace"`
		Name            string            `json:"name"`
		UID             string            `json:"uid"`
		Created         time.Time         `json:"creationTimestamp"`
		OwnerReferences []json.RawMessage `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		ClusterIPs []string `json:"clusterIPs"`
	} `json:"spec"`
}

func (k kept) name() string {
	return strings.TrimPrefix(k.Kind+" "+k.Metadata.Namespace+"/"+k.Metadata.Name, "/")
}

// fleeting objects come and go in a cluster that nobody touches.
func (k kept) fleeting() bool {
	group, _, named := strings.Cut(k.APIVersion, "/")
	if !named {
		group = ""
	}
	switch (schema.GroupKind{Group: group, Kind: k.Kind}).String() {
	case "Pod", "Event", "Endpoints", "Event.events.k8s.io", "Lease.coordination.k8s.io", "EndpointSlice.discovery.k8s.io":
		return true
	}
	return len(k.Metadata.OwnerReferences) > 0
}

// objectsCheck compares the objects that the cluster has with those that were
// exported right before it was stopped: each is there, is the same one, and
// Services have their addresses.
func (m *Migration) objectsCheck(ctx context.Context, c *cluster.Client) (verify.Check, error) {
	type is struct {
		uid string
		ips string
	}
	have := map[string]is{}
	t := m.Progress.Wait("Comparing objects")
	defer t.Done()
	lines := &eachLine{do: func(line []byte) error {
		var o kept
		if err := json.Unmarshal(line, &o); err != nil {
			return err
		}
		if !o.fleeting() {
			have[o.APIVersion+" "+o.name()] = is{o.Metadata.UID, strings.Join(o.Spec.ClusterIPs, ",")}
		}
		return nil
	}}
	if _, err := c.Export(ctx, m.Plan.Spec.Backup.Objects.ExcludeResources, lines); err != nil {
		return verify.Check{}, err
	}
	n := 0
	var differ, between []string
	at, err := m.returnedTo()
	if err != nil {
		return verify.Check{}, err
	}
	err = eachKept(m, objects, func(o kept) error {
		if o.fleeting() {
			return nil
		}
		n++
		now, ok := have[o.APIVersion+" "+o.name()]
		// Of an object that is there, nothing tells when its addresses were given.
		into := &differ
		if younger := !o.Metadata.Created.Before(at.Truncate(time.Second)); !at.IsZero() && (younger || ok && now.uid == o.Metadata.UID) {
			into = &between
		}
		switch ips := strings.Join(o.Spec.ClusterIPs, ","); {
		case !ok:
			*into = append(*into, o.name()+" is gone")
		case now.uid != o.Metadata.UID:
			*into = append(*into, o.name()+" is another one of that name")
		case now.ips != ips:
			*into = append(*into, fmt.Sprintf("%s has the addresses %s instead of %s", o.name(), now.ips, ips))
		}
		return nil
	})
	out := check(sameObjects, "the same objects and ClusterIPs", m.Plan.Metadata.Name, differ, fmt.Sprintf("%d objects", n))
	if out.Status == verify.Pass && len(between) > 0 {
		out.Status, out.Detail = verify.Skip, "not as in the backup set, and made or changed after the snapshot: "+few(between)
	}
	return out, err
}

// eachLine calls do for every line that is written to it.
type eachLine struct {
	do  func(line []byte) error
	buf []byte
}

func (e *eachLine) Write(p []byte) (int, error) {
	e.buf = append(e.buf, p...)
	for {
		line, rest, found := bytes.Cut(e.buf, []byte("\n"))
		if !found {
			return len(p), nil
		}
		if err := e.do(line); err != nil {
			return 0, err
		}
		e.buf = rest
	}
}
