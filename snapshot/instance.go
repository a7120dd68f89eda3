package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/scaleway/scaleway-sdk-go/api/block/v1"
	"github.com/scaleway/scaleway-sdk-go/api/instance/v1"
	"github.com/scaleway/scaleway-sdk-go/scw"
)

// scwInstance takes snapshots of all volumes of an Instance, while it runs: each is what a power cut would leave, and
// they are not of the very same moment. The return makes new volumes of them and puts these in the place of the
// present ones, which are kept.
//
// Snapshots and the volumes made of them carry tags that say whose they are; by these and their names they are found again.
type scwInstance struct{ scaleway }

const tagMark = "k3s-dualstack"

// tag is a value of ours among a resource's tags.
func tag(key, value string) string { return tagMark + "." + key + "=" + value }

func tagged(tags []string, key string) string {
	for _, t := range tags {
		if value, ok := strings.CutPrefix(t, tagMark+"."+key+"="); ok {
			return value
		}
	}
	return ""
}

// held is a volume that the Instance has.
type held struct {
	slot, id, name string
	kind           instance.VolumeServerVolumeType
	boot           bool
	iops           uint32 // of a block volume
}

func (v held) block() bool { return v.kind == instance.VolumeServerVolumeTypeSbsVolume }

func (i *scwInstance) get(ctx context.Context, c *scw.Client) (*instance.Server, error) {
	res, err := instance.NewAPI(c).GetServer(&instance.GetServerRequest{Zone: i.zone(), ServerID: i.at.ID}, scw.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if res == nil || res.Server == nil {
		return nil, final("the answer is not one of Scaleway's API: a proxy may have given it, or SCW_API_URL is wrong")
	}
	return res.Server, nil
}

// volumes are those of the Instance, in the order of their slots.
func (i *scwInstance) volumes(ctx context.Context, c *scw.Client, server *instance.Server) ([]held, error) {
	var out []held
	for _, slot := range slices.Sorted(maps.Keys(server.Volumes)) {
		v := server.Volumes[slot]
		h := held{slot: slot, id: v.ID, kind: v.VolumeType, boot: v.Boot}
		if v.Name != nil {
			h.name = *v.Name
		}
		switch v.VolumeType {
		case instance.VolumeServerVolumeTypeLSSD, instance.VolumeServerVolumeTypeBSSD:
		case instance.VolumeServerVolumeTypeSbsVolume:
			b, err := block.NewAPI(c).GetVolume(&block.GetVolumeRequest{Zone: i.zone(), VolumeID: v.ID}, scw.WithContext(ctx))
			if err != nil {
				return nil, err
			}
			h.name = b.Name
			if b.Specs != nil && b.Specs.PerfIops != nil {
				h.iops = *b.Specs.PerfIops
			}
		default:
			return nil, final("its volume %s (slot %s) is of the type %s, of which there are no snapshots: choose another spec.snapshot.method, or, where nothing is on it that matters, detach it", v.ID, slot, v.VolumeType)
		}
		if h.name == "" {
			h.name = v.ID
		}
		out = append(out, h)
	}
	if len(out) == 0 {
		return nil, final("it has no volumes")
	}
	return out, nil
}

// Ready looks for the Instance, at its volumes and whether snapshots may be seen.
func (i *scwInstance) Ready(ctx context.Context) error {
	if err := i.find(ctx); err != nil {
		return err
	}
	return i.ask(ctx, "looking at its volumes and at snapshots", func(c *scw.Client, _ scw.RequestOption) error {
		server, err := i.get(ctx, c)
		if err != nil {
			return err
		}
		if _, err := i.volumes(ctx, c, server); err != nil {
			return err
		}
		_, err = i.shots(ctx, c)
		return err
	})
}

// shot is a snapshot of one of its volumes.
type shot struct {
	id, name, volume string
	block            bool
	kind             instance.VolumeVolumeType // of what instance's API keeps
	project          string
	ready, broken    bool
	going            bool // being deleted
	state            string
	tags             []string
}

// shots are the snapshots that this plan had made of this Instance.
func (i *scwInstance) shots(ctx context.Context, c *scw.Client) ([]shot, error) {
	all, err := i.snapshots(ctx, c)
	return slices.DeleteFunc(all, func(s shot) bool {
		return tagged(s.tags, "plan") != i.Name || tagged(s.tags, "server") != i.at.ID
	}), err
}

// snapshots are all that the key sees in the zone, of both APIs that keep them.
func (i *scwInstance) snapshots(ctx context.Context, c *scw.Client) ([]shot, error) {
	var out []shot
	local, err := instance.NewAPI(c).ListSnapshots(&instance.ListSnapshotsRequest{Zone: i.zone()}, scw.WithAllPages(), scw.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	for _, s := range local.Snapshots {
		if s.VolumeType == instance.VolumeVolumeTypeSbsSnapshot || s.VolumeType == instance.VolumeVolumeTypeSbsVolume {
			continue // the other API's
		}
		x := shot{id: s.ID, name: s.Name, kind: s.VolumeType, project: s.Project, tags: s.Tags, state: string(s.State),
			ready:  s.State == instance.SnapshotStateAvailable,
			broken: s.State == instance.SnapshotStateError || s.State == instance.SnapshotStateInvalidData}
		if s.BaseVolume != nil {
			x.volume = s.BaseVolume.ID
		}
		out = append(out, x)
	}
	blocks, err := block.NewAPI(c).ListSnapshots(&block.ListSnapshotsRequest{Zone: i.zone()}, scw.WithAllPages(), scw.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	for _, s := range blocks.Snapshots {
		x := shot{id: s.ID, name: s.Name, block: true, project: s.ProjectID, tags: s.Tags, state: string(s.Status),
			ready:  s.Status == block.SnapshotStatusAvailable || s.Status == block.SnapshotStatusInUse,
			broken: s.Status == block.SnapshotStatusError || s.Status == block.SnapshotStatusLocked,
			going:  s.Status == block.SnapshotStatusDeleting || s.Status == block.SnapshotStatusDeleted}
		if s.ParentVolume != nil {
			x.volume = s.ParentVolume.ID
		}
		out = append(out, x)
	}
	return slices.DeleteFunc(out, func(s shot) bool { return s.state == string(block.SnapshotStatusDeleted) }), nil
}

func (i *scwInstance) shotName(volume string) string { return volume + "-before-" + i.Name }

func (i *scwInstance) Take() []Operation {
	return []Operation{
		{
			Name: Unused, Place: OnLaptop, Command: "scw instance snapshot list zone=" + i.at.Zone + "; scw block snapshot list zone=" + i.at.Zone,
			Summary: fmt.Sprintf("See that no snapshot of %s is there under the names that the new ones get", i.name()),
			Run:     i.unused,
		},
		{
			Name: "snapshot", Place: OnLaptop,
			Command: fmt.Sprintf("scw block snapshot create volume-id=VOLUME name=VOLUME-before-%[1]s zone=%[2]s", i.Name, i.at.Zone),
			Summary: fmt.Sprintf("Take a snapshot of every volume of %s (of a local one by `scw instance snapshot create`), and wait until all are available; costs their storage, per GB and month, until they are removed", i.name()),
			Run:     i.take,
		},
	}
}

// unused refuses to take what another run left for this one's.
func (i *scwInstance) unused(ctx context.Context) error {
	return i.ask(ctx, "looking at its snapshots", func(c *scw.Client, _ scw.RequestOption) error {
		server, err := i.get(ctx, c)
		if err != nil {
			return err
		}
		volumes, err := i.volumes(ctx, c, server)
		if err != nil {
			return err
		}
		all, err := i.snapshots(ctx, c)
		if err != nil {
			return err
		}
		for _, s := range all {
			mine := tagged(s.tags, "plan") == i.Name && tagged(s.tags, "server") == i.at.ID
			same := slices.ContainsFunc(volumes, func(v held) bool { return s.volume == v.id && s.name == i.shotName(v.name) })
			if mine || same {
				return final("there is a snapshot %s (%s) already, of an earlier run: delete it when it is not needed any more (`scw %s snapshot delete %s zone=%s`), or give the plan another metadata.name", s.name, s.id, s.product(), s.id, i.at.Zone)
			}
		}
		return nil
	})
}

// product is the part of Scaleway's CLI that knows the snapshot.
func (s shot) product() string {
	if s.block {
		return "block"
	}
	return "instance"
}

func (i *scwInstance) take(ctx context.Context) error {
	made := map[string]bool{}
	// Those of an attempt that has not made all are of another time than the others would be.
	looked, stale, ordered := false, false, orders{}
	next := "look at " + i.console() + ", where the Instance runs on unharmed, then repeat the command"
	return i.until(ctx, "Taking snapshots of its volumes", i.pace.shot, next, func(ctx context.Context, c *scw.Client) (bool, string, error) {
		server, err := i.get(ctx, c)
		if err != nil {
			return false, "", err
		}
		volumes, err := i.volumes(ctx, c, server)
		if err != nil {
			return false, "", err
		}
		shots, err := i.shots(ctx, c)
		if err != nil {
			return false, "", err
		}
		if !looked {
			looked, stale = true, slices.ContainsFunc(volumes, func(v held) bool {
				return !slices.ContainsFunc(shots, func(s shot) bool { return s.volume == v.id })
			})
		}
		if stale = stale && len(shots) > 0; stale {
			return false, "those of an attempt that did not make all are removed", i.discard(ctx, c, shots, ordered)
		}
		ready := 0
		for _, v := range volumes {
			at := slices.IndexFunc(shots, func(s shot) bool { return s.volume == v.id && s.name == i.shotName(v.name) && !s.going })
			switch {
			case at >= 0 && shots[at].broken:
				return false, "", final("the snapshot %s (%s) is in the state %s: delete it (`scw %s snapshot delete %s zone=%s`), then repeat the command", shots[at].name, shots[at].id, shots[at].state, shots[at].product(), shots[at].id, i.at.Zone)
			case at >= 0 && shots[at].ready:
				ready++
			case at < 0 && !made[v.id]:
				if err := i.create(ctx, c, server.Project, v, len(volumes)); err != nil {
					return false, "", err
				}
				made[v.id] = true // lists may take a moment to show it
			}
		}
		return ready == len(volumes), fmt.Sprintf("%d of %d are available", ready, len(volumes)), nil
	})
}

func (i *scwInstance) create(ctx context.Context, c *scw.Client, project string, v held, count int) error {
	tags := []string{tagMark, tag("plan", i.Name), tag("server", i.at.ID), tag("slot", v.slot), tag("volumes", fmt.Sprint(count))}
	if v.boot {
		tags = append(tags, tag("boot", "true"))
	}
	if v.block() {
		if v.iops > 0 {
			tags = append(tags, tag("iops", fmt.Sprint(v.iops)))
		}
		_, err := block.NewAPI(c).CreateSnapshot(&block.CreateSnapshotRequest{Zone: i.zone(), VolumeID: v.id, Name: i.shotName(v.name), ProjectID: project, Tags: tags}, scw.WithContext(ctx))
		return err
	}
	_, err := instance.NewAPI(c).CreateSnapshot(&instance.CreateSnapshotRequest{Zone: i.zone(), VolumeID: &v.id, Name: i.shotName(v.name), Project: &project, Tags: &tags}, scw.WithContext(ctx))
	return err
}

// whole are the snapshots to return to, all available, one for each slot.
func (i *scwInstance) whole(ctx context.Context, c *scw.Client) ([]shot, error) {
	shots, err := i.shots(ctx, c)
	if err != nil {
		return nil, err
	}
	shots = slices.DeleteFunc(shots, func(s shot) bool { return s.going })
	slices.SortFunc(shots, func(a, b shot) int { return strings.Compare(tagged(a.tags, "slot"), tagged(b.tags, "slot")) })
	// One whose answer was lost may have been made twice.
	shots = slices.CompactFunc(shots, func(a, b shot) bool { return tagged(a.tags, "slot") == tagged(b.tags, "slot") && a.volume == b.volume })
	slots := map[string]bool{}
	for _, s := range shots {
		if !s.ready {
			return nil, final("the snapshot %s (%s) is in the state %s: %s", s.name, s.id, s.state, otherwise)
		}
		if slots[tagged(s.tags, "slot")] {
			return nil, final("there are snapshots of two volumes of slot %s: %s", tagged(s.tags, "slot"), otherwise)
		}
		slots[tagged(s.tags, "slot")] = true
	}
	if len(shots) == 0 || fmt.Sprint(len(shots)) != tagged(shots[0].tags, "volumes") {
		want := "all"
		if len(shots) > 0 {
			want = tagged(shots[0].tags, "volumes")
		}
		return nil, final("%d snapshots are there of %s: %s", len(shots), want, otherwise)
	}
	return shots, nil
}

func (i *scwInstance) Return() []Operation {
	return []Operation{
		{
			Name: "look", Place: OnLaptop, Command: "scw instance snapshot list zone=" + i.at.Zone + "; scw block snapshot list zone=" + i.at.Zone,
			Summary: fmt.Sprintf("See that a snapshot of every volume of %s is there and available", i.name()),
			Run: func(ctx context.Context) error {
				return i.ask(ctx, "looking at its snapshots", func(c *scw.Client, _ scw.RequestOption) error {
					server, err := i.get(ctx, c)
					if err != nil {
						return err
					}
					if _, err := i.whole(ctx, c); err != nil {
						return err
					}
					begun, err := i.begun(ctx, c, server)
					if err == nil && begun {
						return final("%s runs on volumes made of its snapshots already, by an earlier return: what was done to them since, another would not take back", i.name())
					}
					return err
				})
			},
		},
		{
			Name: "return", Place: OnLaptop,
			Command: fmt.Sprintf("scw block volume create from-snapshot.snapshot-id=SNAPSHOT zone=%[2]s; scw instance server stop %[1]s zone=%[2]s; scw instance server detach-volume server-id=%[1]s volume-id=PRESENT; scw instance server attach-volume server-id=%[1]s volume-id=NEW; scw instance server start %[1]s zone=%[2]s", i.at.ID, i.at.Zone),
			Summary: fmt.Sprintf("Make a new volume of each snapshot, power %s off, which restarts the host, put them in the place of the present volumes, power it on and wait until it answers; costs the storage of the present volumes, which are kept, until you delete them; when that is cut off, the next run or rollback powers it on before all else, with the new volumes if they are in place", i.name()),
			Run:     i.back,
		},
	}
}

// fresh is a volume that was made of a snapshot.
type fresh struct {
	id            string
	ready, broken bool
	state         string
}

// made lists the volumes that were made of snapshots, by the snapshot's ID.
func (i *scwInstance) made(ctx context.Context, c *scw.Client) (map[string]fresh, error) {
	out := map[string]fresh{}
	local, err := instance.NewAPI(c).ListVolumes(&instance.ListVolumesRequest{Zone: i.zone()}, scw.WithAllPages(), scw.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	for _, v := range local.Volumes {
		if of := tagged(v.Tags, "snapshot"); of != "" && v.VolumeType != instance.VolumeVolumeTypeSbsVolume {
			out[of] = fresh{id: v.ID, ready: v.State == instance.VolumeStateAvailable, broken: v.State == instance.VolumeStateError, state: string(v.State)}
		}
	}
	blocks, err := block.NewAPI(c).ListVolumes(&block.ListVolumesRequest{Zone: i.zone()}, scw.WithAllPages(), scw.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	for _, v := range blocks.Volumes {
		if of := tagged(v.Tags, "snapshot"); of != "" && v.Status != block.VolumeStatusDeleted && v.Status != block.VolumeStatusDeleting {
			out[of] = fresh{id: v.ID, ready: v.Status == block.VolumeStatusAvailable || v.Status == block.VolumeStatusInUse,
				broken: v.Status == block.VolumeStatusError || v.Status == block.VolumeStatusLocked, state: string(v.Status)}
		}
	}
	return out, nil
}

func (i *scwInstance) produce(ctx context.Context, c *scw.Client, s shot) error {
	name := strings.TrimSuffix(s.name, "-before-"+i.Name) + "-as-before-" + i.Name
	tags := []string{tagMark, tag("plan", i.Name), tag("server", i.at.ID), tag("snapshot", s.id)}
	if s.block {
		req := &block.CreateVolumeRequest{Zone: i.zone(), Name: name, ProjectID: s.project, Tags: tags, FromSnapshot: &block.CreateVolumeRequestFromSnapshot{SnapshotID: s.id}}
		var iops uint32
		if _, err := fmt.Sscan(tagged(s.tags, "iops"), &iops); err == nil {
			req.PerfIops = &iops
		}
		_, err := block.NewAPI(c).CreateVolume(req, scw.WithContext(ctx))
		return err
	}
	_, err := instance.NewAPI(c).CreateVolume(&instance.CreateVolumeRequest{Zone: i.zone(), Name: name, Project: &s.project, Tags: tags, VolumeType: s.kind, BaseSnapshot: &s.id}, scw.WithContext(ctx))
	return err
}

// back leads the Instance to where it runs on volumes made of the snapshots, whatever of that is done already.
func (i *scwInstance) back(ctx context.Context) error {
	before := i.bootID(ctx)
	ordered := orders{}
	var shots []shot
	changed := false
	next := fmt.Sprintf("repeat the command, which goes on from there; by hand: put the volumes named …-as-before-%s in the place of the present ones, and %s; where none is in place yet, `migrate rollback --via backup` powers it on as it is", i.Name, i.onByHand())
	err := i.until(ctx, "Putting volumes as the snapshots have them in the place of the present ones", i.pace.shot, next, func(ctx context.Context, c *scw.Client) (bool, string, error) {
		var err error
		if shots, err = i.whole(ctx, c); err != nil {
			return false, "", err
		}
		server, err := i.get(ctx, c)
		if err != nil {
			return false, "", err
		}
		volumes, err := i.made(ctx, c)
		if err != nil {
			return false, "", err
		}
		missing, placed := 0, 0
		for _, s := range shots {
			v, there := volumes[s.id]
			present := server.Volumes[tagged(s.tags, "slot")]
			switch {
			case there && v.broken:
				return false, "", final("the volume %s, made of the snapshot %s, is in the state %s: delete it, then repeat the command", v.id, s.name, v.state)
			case there && present != nil && present.ID == v.id:
				placed++
			case there && v.ready:
			default:
				missing++
				if !there && ordered.due("volume "+s.id, i.pace.again) {
					if err := i.produce(ctx, c, s); err != nil {
						delete(ordered, "volume "+s.id)
						return false, "", err
					}
				}
			}
		}
		state := fmt.Sprintf("%s, %d of %d volumes in place", server.State, placed, len(shots))
		switch {
		case missing > 0:
			return false, fmt.Sprintf("%d of %d volumes are being made", missing, len(shots)), nil
		case server.State == instance.ServerStateLocked:
			return false, "", final("it is locked (%s): ask Scaleway's support", server.StateDetail)
		case placed == len(shots):
			if server.State == instance.ServerStateRunning {
				return true, state, nil
			}
			if server.State == instance.ServerStateStopped || server.State == instance.ServerStateStoppedInPlace {
				changed = true
				return false, state, i.order(ctx, c, ordered, instance.ServerActionPoweron)
			}
		case server.State == instance.ServerStateRunning || server.State == instance.ServerStateStoppedInPlace:
			changed = true
			return false, state, i.order(ctx, c, ordered, instance.ServerActionPoweroff)
		case server.State == instance.ServerStateStopped && ordered.due("volumes", i.pace.again):
			changed = true
			if err := i.place(ctx, c, server, shots, volumes); err != nil {
				delete(ordered, "volumes")
				return false, "", err
			}
		}
		return false, state, nil
	})
	if err != nil {
		return err
	}
	if !changed {
		before = "" // it was restarted by the attempt that was cut off
	}
	if err := i.answers(ctx, before, "look at its console at "+i.console()+", then repeat the command"); err != nil {
		return err
	}
	for _, s := range shots {
		if s.volume == "" {
			continue // deleted by now
		}
		fmt.Fprintf(i.Progress.Writer(), "   note: the volume %s (%s), which was replaced, is kept and costs; when nothing of it is needed any more: scw %s volume delete %s zone=%s\n", strings.TrimSuffix(s.name, "-before-"+i.Name), s.volume, s.product(), s.volume, i.at.Zone)
	}
	return nil
}

// order has the Instance powered on or off, once.
func (i *scwInstance) order(ctx context.Context, c *scw.Client, ordered orders, action instance.ServerAction) error {
	if !ordered.due(string(action), i.pace.again) {
		return nil
	}
	_, err := instance.NewAPI(c).ServerAction(&instance.ServerActionRequest{Zone: i.zone(), ServerID: i.at.ID, Action: action}, scw.WithContext(ctx))
	if err != nil {
		delete(ordered, string(action))
	}
	return err
}

// place gives the Instance all its volumes anew, in one request and each in its slot: those made of snapshots, and
// what else it has.
func (i *scwInstance) place(ctx context.Context, c *scw.Client, server *instance.Server, shots []shot, volumes map[string]fresh) error {
	all := map[string]*instance.VolumeServerTemplate{}
	put := func(slot, id, name string, sbs, boot bool) {
		t := &instance.VolumeServerTemplate{ID: &id}
		if sbs {
			t.VolumeType = instance.VolumeVolumeTypeSbsVolume
		} else {
			t.Name = &name // asked for, and not used
		}
		if boot {
			t.Boot = &boot
		}
		all[slot] = t
	}
	for slot, v := range server.Volumes {
		name := v.ID
		if v.Name != nil {
			name = *v.Name
		}
		put(slot, v.ID, name, v.VolumeType == instance.VolumeServerVolumeTypeSbsVolume, v.Boot)
	}
	for _, s := range shots {
		put(tagged(s.tags, "slot"), volumes[s.id].id, s.name, s.block, tagged(s.tags, "boot") != "")
	}
	_, err := instance.NewAPI(c).UpdateServer(&instance.UpdateServerRequest{Zone: i.zone(), ServerID: i.at.ID, Volumes: &all}, scw.WithContext(ctx))
	return err
}

// Reach powers the Instance on where a return that was cut off has left it off. The return itself it leads on only where
// volumes made of the snapshots are in place already: before that, going on is for a person to ask for, and what stopped the
// return, such as a quota, must not keep the other way back closed.
func (i *scwInstance) Reach(ctx context.Context, cut string) error {
	if cut != "return" {
		return nil
	}
	next := i.onByHand() + ", then repeat the command"
	ordered := orders{}
	begun := false
	err := i.until(ctx, "Seeing that it is powered on", i.pace.state, next, func(ctx context.Context, c *scw.Client) (bool, string, error) {
		server, err := i.get(ctx, c)
		if err != nil {
			return false, "", err
		}
		if begun, err = i.begun(ctx, c, server); err != nil {
			return false, "", err
		}
		state := string(server.State)
		switch {
		case begun || server.State == instance.ServerStateRunning:
			return true, state, nil
		case server.State == instance.ServerStateLocked:
			return false, "", final("it is locked (%s): ask Scaleway's support", server.StateDetail)
		case server.State == instance.ServerStateStopped || server.State == instance.ServerStateStoppedInPlace:
			return false, state, i.order(ctx, c, ordered, instance.ServerActionPoweron)
		}
		return false, state, nil
	})
	switch {
	case err == nil && begun:
		return i.back(ctx)
	case err == nil:
		return i.answers(ctx, "", next)
	case ctx.Err() == nil && i.bootID(ctx) != "":
		return nil // without the API nothing takes it away
	}
	return err
}

// begun tells whether a volume made of a snapshot is in its place.
func (i *scwInstance) begun(ctx context.Context, c *scw.Client, server *instance.Server) (bool, error) {
	shots, err := i.shots(ctx, c)
	if err != nil {
		return false, err
	}
	volumes, err := i.made(ctx, c)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(shots, func(s shot) bool {
		v, there := volumes[s.id]
		present := server.Volumes[tagged(s.tags, "slot")]
		return there && present != nil && present.ID == v.id
	}), nil
}

// onByHand is how a person powers it on.
func (i *scwInstance) onByHand() string {
	return fmt.Sprintf("power it on (`scw instance server start %s zone=%s`, or %s)", i.at.ID, i.at.Zone, i.console())
}

func (i *scwInstance) Remove() []Operation {
	return []Operation{{
		Name: "remove", Place: OnLaptop,
		Command: fmt.Sprintf("scw block snapshot delete SNAPSHOT zone=%s", i.at.Zone),
		Summary: fmt.Sprintf("Remove the snapshots of the volumes of %s (…-before-%s; a local one's by `scw instance snapshot delete`)", i.name(), i.Name),
		Run: func(ctx context.Context) error {
			ordered := orders{}
			return i.until(ctx, "Removing the snapshots", i.pace.state, "delete them at "+i.console(), func(ctx context.Context, c *scw.Client) (bool, string, error) {
				shots, err := i.shots(ctx, c)
				if err != nil {
					return false, "", err
				}
				return len(shots) == 0, fmt.Sprintf("%d are left", len(shots)), i.discard(ctx, c, shots, ordered)
			})
		},
	}}
}

// discard has snapshots deleted, which takes time.
func (i *scwInstance) discard(ctx context.Context, c *scw.Client, shots []shot, ordered orders) (all error) {
	for _, s := range shots {
		if s.going || !ordered.due(s.id, i.pace.again) {
			continue
		}
		var err error
		if s.block {
			err = block.NewAPI(c).DeleteSnapshot(&block.DeleteSnapshotRequest{Zone: i.zone(), SnapshotID: s.id}, scw.WithContext(ctx))
		} else {
			err = instance.NewAPI(c).DeleteSnapshot(&instance.DeleteSnapshotRequest{Zone: i.zone(), SnapshotID: s.id}, scw.WithContext(ctx))
		}
		if err != nil && status(err) != http.StatusNotFound {
			delete(ordered, s.id)
			all = errors.Join(all, err)
		}
	}
	return all
}
