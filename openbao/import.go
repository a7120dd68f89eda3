package openbao

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ImportOptions say how an export is brought into another server.
type ImportOptions struct {
	DryRun bool     // look, and change nothing
	Task   Detailer // nil: shows nothing
}

// ImportReport is what an import did, or would do.
type ImportReport struct {
	DryRun    bool             `json:"dryRun,omitempty"`
	Mounts    []ImportedMount  `json:"mounts,omitempty"`
	Written   int              `json:"written"`   // secrets, whole or the rest that was missing
	Unchanged int              `json:"unchanged"` // secrets that were there already
	Conflicts int              `json:"conflicts"` // secrets that were left alone
	Versions  int              `json:"versions"`  // written, place-holders included
	Secrets   []ImportedSecret `json:"secrets,omitempty"`
}

// ImportState is what became of a mount or a secret.
type ImportState string

// The states.
const (
	ImportWritten   ImportState = "written"   // was not there
	ImportContinued ImportState = "continued" // its first versions were there
	ImportUnchanged ImportState = "unchanged" // was there as it is to be
	ImportConflict  ImportState = "conflict"  // was there otherwise, and is left alone
)

// ImportedMount is what became of a KV mount.
type ImportedMount struct {
	Path     string      `json:"path"`
	State    ImportState `json:"state"`
	Conflict string      `json:"conflict,omitempty"`
}

// ImportedSecret is what became of one secret.
type ImportedSecret struct {
	Path     string      `json:"path"` // with its mount
	State    ImportState `json:"state"`
	Conflict string      `json:"conflict,omitempty"` // why it was left alone
	Versions int         `json:"versions,omitempty"` // written
	Lost     []string    `json:"lost,omitempty"`     // what cannot be reproduced
}

// Import replays an export into a server, usually another one. KV mounts that are
// missing are made; no mount changes its type, and its settings only from the
// defaults. Import may be repeated: what is there already stays, what is missing is
// added, and a secret that is there otherwise is left alone and reported.
//
// Whether the export is whole shows at its end: [ReadExport] tells before anything
// is changed.
func (s *Server) Import(ctx context.Context, export io.Reader, o ImportOptions) (ImportReport, error) {
	report := ImportReport{DryRun: o.DryRun}
	have, err := s.mounts(ctx)
	if err != nil {
		return report, err
	}
	var lock sync.Mutex // mounts become known while secrets of others are written
	mounts := map[string]*target{}
	err = inOrder(ctx,
		func(ctx context.Context, yield func(*Secret) error) error {
			_, err := ReadExport(export, func(r Record) error {
				switch {
				case r.Mount != nil && r.Mount.Exported:
					t, err := s.mount(ctx, have, *r.Mount, o.DryRun)
					if err != nil {
						return err
					}
					lock.Lock()
					mounts[t.want.Path] = t
					lock.Unlock()
				case r.Secret != nil:
					return yield(r.Secret)
				}
				return nil
			})
			return err
		},
		func(ctx context.Context, secret *Secret) (ImportedSecret, error) {
			lock.Lock()
			t := mounts[secret.Mount]
			lock.Unlock()
			if t == nil {
				return ImportedSecret{Path: secret.name(), State: ImportConflict, Conflict: "the export does not hold its mount"}, nil
			}
			return s.importSecret(ctx, t, secret, o.DryRun)
		},
		func(one ImportedSecret) error {
			report.Secrets = append(report.Secrets, one)
			report.Versions += one.Versions
			switch one.State {
			case ImportUnchanged:
				report.Unchanged++
			case ImportConflict:
				report.Conflicts++
			default:
				report.Written++
			}
			detail(o.Task, fmt.Sprintf("%d secrets", len(report.Secrets)))
			return nil
		})
	if err != nil {
		return report, err
	}
	for _, path := range slices.Sorted(maps.Keys(mounts)) {
		t := mounts[path]
		if err := s.configure(ctx, t, o.DryRun); err != nil {
			return report, err
		}
		report.Mounts = append(report.Mounts, t.imported)
	}
	return report, nil
}

// target is a mount of the server that takes secrets.
type target struct {
	want     MountRecord
	imported ImportedMount
	there    bool     // in the server: not with a dry run that would make it
	config   KVConfig // the server's
}

// mount finds or makes a KV mount.
func (s *Server) mount(ctx context.Context, have []MountRecord, want MountRecord, dry bool) (*target, error) {
	t := &target{want: want, imported: ImportedMount{Path: want.Path, State: ImportUnchanged}, there: true}
	at := slices.IndexFunc(have, func(m MountRecord) bool { return m.Path == want.Path })
	switch {
	case at >= 0 && have[at].KV != want.KV:
		t.imported.State, t.imported.Conflict = ImportConflict, mountDifferences(have, want.Mount)[0]
		return t, nil
	case at < 0:
		t.imported.State = ImportWritten
		if dry {
			t.there = false
			return t, nil
		}
		path := "sys/mounts/" + strings.TrimSuffix(want.Path, "/")
		body := map[string]any{"type": "kv", "description": want.Description, "options": map[string]string{"version": strconv.Itoa(want.KV)}}
		if err := s.write(ctx, "making the mount "+want.Path, path, path, body); err != nil {
			return nil, err
		}
	}
	if want.KV != 2 {
		return t, nil
	}
	for {
		config, err := s.kvConfig(ctx, want.Mount)
		var refused *RefusedError
		if errors.As(err, &refused) && strings.Contains(refused.Says, "pgrading") {
			// A new mount prepares itself for a moment.
			if err := pause(ctx); err != nil {
				return nil, fmt.Errorf("waiting for the new mount %s: %w", want.Path, err)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		t.config = *config
		return t, nil
	}
}

// configure gives a mount at its defaults the export's settings. Only then: earlier
// they would shape the versions that are written.
func (s *Server) configure(ctx context.Context, t *target, dry bool) error {
	want := t.want.Config
	if want == nil || t.imported.Conflict != "" || t.config == *want || *want == (KVConfig{DeleteVersionAfter: "0s"}) {
		return nil
	}
	if t.there && t.config != (KVConfig{DeleteVersionAfter: "0s"}) {
		t.imported.Conflict = "its settings differ from the export's, and are left alone"
		return nil
	}
	if dry {
		return nil
	}
	return s.write(ctx, "writing the settings of "+t.want.Path, t.want.Path+"config", t.want.Path+"config", want)
}

// write posts to a path.
func (s *Server) write(ctx context.Context, doing, path, grant string, body any) error {
	_, err := s.call(ctx, request{doing: doing, method: http.MethodPost, path: path, body: body, grant: grant, needs: []string{"create", "update"}}, nil)
	return err
}

// importSecret brings one secret into the server.
func (s *Server) importSecret(ctx context.Context, t *target, want *Secret, dry bool) (ImportedSecret, error) {
	r := ImportedSecret{Path: want.name(), State: ImportWritten}
	if t.imported.State == ImportConflict {
		r.State, r.Conflict = ImportConflict, t.imported.Conflict
		return r, nil
	}
	if want.kv().KV != t.want.KV {
		r.State, r.Conflict = ImportConflict, "the export's mount is of another KV version"
		return r, nil
	}
	var have *Secret
	var err error
	if t.there {
		if have, err = s.secret(ctx, t.want.Mount, want.Path); err != nil {
			return r, err
		}
	}
	if want.Metadata == nil {
		return s.importV1(ctx, want, have, r, dry)
	}
	want = want.lapsed()
	if have != nil {
		if r.Conflict = conflict(have, want); r.Conflict != "" {
			r.State = ImportConflict
			return r, nil
		}
		r.State = ImportContinued
		if complete(have, want) {
			r.State = ImportUnchanged
			return r, nil
		}
	}
	p := plan(want, have)
	r.Versions, r.Lost = len(p.write), lost(t, want)
	if dry {
		return r, nil
	}
	return r, s.replay(ctx, want, p)
}

func (s *Server) importV1(ctx context.Context, want, have *Secret, r ImportedSecret, dry bool) (ImportedSecret, error) {
	data := want.Versions[0].Data
	switch {
	case have == nil:
		r.Versions = 1
		if dry {
			return r, nil
		}
		m := want.kv()
		return r, s.write(ctx, "writing the secret "+r.Path, m.in("", want.Path), m.grant(""), data)
	case sameData(have.Versions[0].Data, data):
		r.State = ImportUnchanged
	default:
		r.State, r.Conflict = ImportConflict, "its data differ"
	}
	return r, nil
}

// lapsed is the secret with the versions that expired since the export as deleted
// ones, so that they do not come back.
func (s *Secret) lapsed() *Secret {
	now := *s
	now.Versions = slices.Clone(s.Versions)
	for i := range now.Versions {
		if v := &now.Versions[i]; v.Data != nil && expired(*v) {
			v.Data, v.Deleted = nil, true
		}
	}
	return &now
}

// placeholder stands for what has no data, so that later versions get their numbers.
var placeholder = json.RawMessage("{}")

// conflict tells why what is there is not what an import that was cut off would have
// left; "" if it is.
func conflict(have, want *Secret) string {
	if have.Metadata.CurrentVersion > want.Metadata.CurrentVersion {
		return "it has newer versions than the export"
	}
	if len(have.Metadata.CustomMetadata) > 0 && !maps.Equal(have.Metadata.CustomMetadata, want.Metadata.CustomMetadata) {
		return "its custom metadata differ"
	}
	settings := have.Metadata.KVConfig
	if settings != want.Metadata.KVConfig && (settings.CASRequired || settings.MaxVersions != 0 && settings.MaxVersions != want.kept()) {
		return "its settings differ"
	}
	wanted := want.byNumber()
	for _, h := range have.Versions {
		w := wanted[h.Version] // none: pruned, and as good as destroyed
		switch {
		case w.Data != nil && (h.Data == nil || !sameData(h.Data, w.Data)):
			return fmt.Sprintf("version %d differs", h.Version)
		case w.Data == nil && h.Data != nil && !sameData(h.Data, placeholder):
			return fmt.Sprintf("version %d holds data that the export has not", h.Version)
		case w.Deleted && h.Destroyed:
			return fmt.Sprintf("version %d is destroyed, and was only deleted", h.Version)
		}
	}
	there := have.byNumber()
	for _, w := range want.Versions {
		if _, ok := there[w.Version]; !ok && w.Version <= have.Metadata.CurrentVersion {
			return fmt.Sprintf("version %d is gone", w.Version)
		}
	}
	return ""
}

// complete is whether nothing remains to be done.
func complete(have, want *Secret) bool {
	if have.Metadata.KVConfig != want.Metadata.KVConfig || !maps.Equal(have.Metadata.CustomMetadata, want.Metadata.CustomMetadata) ||
		have.Metadata.CurrentVersion != want.Metadata.CurrentVersion {
		return false
	}
	wanted := want.byNumber()
	return !slices.ContainsFunc(have.Versions, func(h Version) bool {
		w, ok := wanted[h.Version]
		return !ok && !h.Destroyed || ok && state(h) != state(w)
	})
}

// replayed is what remains to be done for a secret.
type replayed struct {
	keep             int // max_versions while it is written
	write            []Version
	deleted, destroy []int
}

// kept is the max_versions with which writing all versions leaves the exported ones.
// The server prunes as it writes, and starts to when as many are there, so that it
// takes one more to keep those of a secret that was never pruned.
func (s *Secret) kept() int {
	if oldest := s.Metadata.OldestVersion; oldest > 0 {
		return s.Metadata.CurrentVersion - oldest + 1
	}
	return s.Metadata.CurrentVersion + 1
}

// plan lists the versions that have lacks of want, place-holders included.
func plan(want, have *Secret) replayed {
	p := replayed{keep: want.kept()}
	wanted := want.byNumber()
	first := 1
	if have != nil {
		first = have.Metadata.CurrentVersion + 1
	}
	for number := 1; number <= want.Metadata.CurrentVersion; number++ {
		v, ok := wanted[number]
		switch {
		case v.Deleted:
			p.deleted = append(p.deleted, number)
		case v.Destroyed || !ok:
			p.destroy = append(p.destroy, number)
		}
		if number < first {
			continue
		}
		if v.Version = number; v.Data == nil {
			v.Data, v.DeletionTime = placeholder, ""
		}
		p.write = append(p.write, v)
	}
	return p
}

// lost lists what the server will not have of the secret.
func lost(t *target, want *Secret) []string {
	all := []string{"its times"}
	var deleted []string
	for _, v := range want.Versions {
		if v.Deleted {
			deleted = append(deleted, strconv.Itoa(v.Version))
		}
	}
	if len(deleted) > 0 {
		all = append(all, "the data of deleted versions, which cannot be undeleted: "+strings.Join(deleted, ", "))
	}
	if after, err := time.ParseDuration(t.config.DeleteVersionAfter); err == nil && after > 0 {
		all = append(all, "versions without an expiry, as the mount gives them one")
	}
	return all
}

// replay writes what remains of a secret. It may be cut off anywhere and planned
// anew.
func (s *Server) replay(ctx context.Context, want *Secret, p replayed) error {
	m := want.kv()
	name := want.name()
	metadata := func(body any) error {
		return s.write(ctx, "writing the metadata of "+name, m.in("metadata", want.Path), m.grant("metadata"), body)
	}
	if len(p.write) > 0 {
		if err := metadata(map[string]any{"max_versions": p.keep, "cas_required": false, "delete_version_after": "0s"}); err != nil {
			return err
		}
	}
	expiring := false
	for _, v := range p.write {
		after := "0s"
		if at, err := time.Parse(time.RFC3339Nano, v.DeletionTime); err == nil {
			// Only a span can be given, counted from the writing.
			after = max(time.Until(at).Round(time.Second), time.Second).String()
		}
		if expiring || after != "0s" {
			if err := metadata(map[string]any{"delete_version_after": after}); err != nil {
				return err
			}
			expiring = after != "0s"
		}
		// With cas nobody else's version comes between.
		body := map[string]any{"data": v.Data, "options": map[string]int{"cas": v.Version - 1}}
		if err := s.write(ctx, fmt.Sprintf("writing version %d of the secret %s", v.Version, name), m.in("data", want.Path), m.grant("data"), body); err != nil {
			return err
		}
	}
	for kind, versions := range map[string][]int{"destroy": p.destroy, "delete": p.deleted} {
		if len(versions) == 0 {
			continue
		}
		if err := s.write(ctx, "marking versions of the secret "+name, m.in(kind, want.Path), m.grant(kind), map[string]any{"versions": versions}); err != nil {
			return err
		}
	}
	final := map[string]any{
		"max_versions": want.Metadata.MaxVersions, "cas_required": want.Metadata.CASRequired,
		"delete_version_after": want.Metadata.DeleteVersionAfter, "custom_metadata": want.Metadata.CustomMetadata,
	}
	if want.Metadata.CustomMetadata == nil {
		final["custom_metadata"] = map[string]string{}
	}
	if want.Metadata.MetadataCASRequired {
		final["metadata_cas_required"] = true
	}
	return metadata(final)
}
