package openbao

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// format is the form of exports that is written and read.
const format = 1

// Record is one line of an export; exactly one field is given. A [Head] comes
// first and a [Summary] last.
type Record struct {
	Head   *Head         `json:"head,omitempty"`
	Mount  *MountRecord  `json:"mount,omitempty"`
	Auth   *Auth         `json:"auth,omitempty"`
	Policy *PolicyRecord `json:"policy,omitempty"`
	Secret *Secret       `json:"secret,omitempty"`
	End    *Summary      `json:"end,omitempty"`
}

// Head says what an export is and of which server.
type Head struct {
	Format int       `json:"format"` // 1
	Time   time.Time `json:"time"`
	Server Status    `json:"server"`
}

// MountRecord is a secrets engine in an export.
type MountRecord struct {
	Mount
	Exported    bool      `json:"exported,omitempty"`
	Description string    `json:"description,omitempty"`
	Config      *KVConfig `json:"config,omitempty"` // KV v2
}

// KVConfig is what a KV v2 mount prescribes its secrets.
type KVConfig struct {
	MaxVersions        int    `json:"max_versions"`
	CASRequired        bool   `json:"cas_required"`
	DeleteVersionAfter string `json:"delete_version_after"`
	// MetadataCASRequired is OpenBao's alone.
	MetadataCASRequired bool `json:"metadata_cas_required,omitempty"`
}

// PolicyRecord is a policy in an export.
type PolicyRecord struct {
	Name string `json:"name"`
}

// Secret is one secret of an export with all its versions. A KV v1 secret has a
// single version 0 and no metadata.
type Secret struct {
	Mount    string    `json:"mount"` // with the slash at its end
	Path     string    `json:"path"`  // in the mount
	Metadata *Metadata `json:"metadata,omitempty"`
	Versions []Version `json:"versions"`
}

// Metadata are a KV v2 secret's own.
type Metadata struct {
	KVConfig
	CustomMetadata map[string]string `json:"custom_metadata,omitempty"`
	CurrentVersion int               `json:"current_version"`
	OldestVersion  int               `json:"oldest_version"`
	CreatedTime    string            `json:"created_time"`
	UpdatedTime    string            `json:"updated_time"`
}

// Version is one version of a secret. Data are nil if it is deleted or destroyed.
type Version struct {
	Version      int             `json:"version"`
	CreatedTime  string          `json:"created_time,omitempty"`
	DeletionTime string          `json:"deletion_time,omitempty"`
	Deleted      bool            `json:"deleted,omitempty"`
	Destroyed    bool            `json:"destroyed,omitempty"`
	Data         json.RawMessage `json:"data,omitempty"`
}

// Summary counts what an export holds.
type Summary struct {
	Mounts    int `json:"mounts"` // exported ones
	Secrets   int `json:"secrets"`
	Versions  int `json:"versions"`
	Deleted   int `json:"deleted"`   // versions without data, as they were deleted
	Destroyed int `json:"destroyed"` // versions without data, as they were destroyed
}

// Export writes every secret of the server's KV mounts, or of those that are named,
// with all versions and metadata, one after the other by mount and path. It is
// complete unless an error is returned: what the server changes meanwhile is in it as
// it was or as it is, each secret in one state. A mount that is named and not KV is a
// *MountError.
func (s *Server) Export(ctx context.Context, mounts []string, w io.Writer, t Detailer) (Summary, error) {
	status, err := s.Status(ctx)
	if err != nil {
		return Summary{}, err
	}
	d, err := s.Describe(ctx)
	if err != nil {
		return Summary{}, err
	}
	all, err := s.mounts(ctx)
	if err != nil {
		return Summary{}, err
	}
	chosen, err := choose(all, mounts)
	if err != nil {
		return Summary{}, err
	}
	out := bufio.NewWriter(w)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	write := func(r Record) error {
		if err := lines.Encode(r); err != nil {
			return fmt.Errorf("writing the export of the KV secrets: %w", err)
		}
		return nil
	}
	records := []Record{{Head: &Head{Format: format, Time: time.Now().UTC(), Server: status}}}
	for _, m := range all {
		if slices.ContainsFunc(chosen, func(c MountRecord) bool { return c.Path == m.Path }) {
			m.Exported = true
			if m.Config, err = s.kvConfig(ctx, m.Mount); err != nil {
				return Summary{}, err
			}
		}
		records = append(records, Record{Mount: &m})
	}
	for _, a := range d.Auths {
		records = append(records, Record{Auth: &a})
	}
	for _, p := range d.Policies {
		records = append(records, Record{Policy: &PolicyRecord{Name: p}})
	}
	for _, r := range records {
		if err := write(r); err != nil {
			return Summary{}, err
		}
	}
	sum := Summary{Mounts: len(chosen)}
	err = inOrder(ctx,
		func(ctx context.Context, yield func(place) error) error {
			for _, m := range chosen {
				if err := s.walk(ctx, m.Mount, "", yield); err != nil {
					return err
				}
			}
			return nil
		},
		func(ctx context.Context, p place) (*Secret, error) { return s.secret(ctx, p.mount, p.path) },
		func(secret *Secret) error {
			if secret == nil { // deleted since it was listed
				return nil
			}
			sum.add(secret)
			detail(t, fmt.Sprintf("%d secrets", sum.Secrets))
			return write(Record{Secret: secret})
		})
	if err != nil {
		return Summary{}, err
	}
	if err := write(Record{End: &sum}); err != nil {
		return Summary{}, err
	}
	if err := out.Flush(); err != nil {
		return Summary{}, fmt.Errorf("writing the export of the KV secrets: %w", err)
	}
	return sum, nil
}

func (s *Summary) add(secret *Secret) {
	s.Secrets++
	s.Versions += len(secret.Versions)
	for _, v := range secret.Versions {
		switch {
		case v.Destroyed:
			s.Destroyed++
		case v.Deleted:
			s.Deleted++
		}
	}
}

// choose picks the KV mounts of that name, or all.
func choose(all []MountRecord, names []string) ([]MountRecord, error) {
	var kv []MountRecord
	var have []string
	for _, m := range all {
		if m.KV > 0 {
			kv = append(kv, m)
			have = append(have, m.Path)
		}
	}
	if len(names) == 0 {
		return kv, nil
	}
	wanted := map[string]bool{}
	for i, name := range names {
		path := strings.Trim(name, "/") + "/"
		at := slices.IndexFunc(all, func(m MountRecord) bool { return m.Path == path })
		switch {
		case at < 0:
			return nil, &MountError{Index: i, Path: name, KV: have}
		case all[at].KV == 0:
			return nil, &MountError{Index: i, Path: name, Type: all[at].Type, KV: have}
		}
		wanted[path] = true
	}
	return slices.DeleteFunc(kv, func(m MountRecord) bool { return !wanted[m.Path] }), nil
}

// place is where a secret lies.
type place struct {
	mount Mount
	path  string
}

// walk shows all secrets below a folder, sorted. A folder is "" or ends in a slash.
func (s *Server) walk(ctx context.Context, m Mount, folder string, yield func(place) error) error {
	names, _, err := s.list(ctx, "the secrets of "+m.Path+folder, m.listPath(folder), m.grant("metadata"))
	if err != nil {
		return err
	}
	// With the slash at a folder's end this is the order of the whole paths too.
	for _, name := range names {
		path := folder + name
		if strings.HasSuffix(name, "/") {
			err = s.walk(ctx, m, path, yield)
		} else {
			err = yield(place{m, path})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// in is the API's path of something in the mount: KV v2 has data, metadata and so
// on beside each other.
func (m Mount) in(kind, path string) string {
	if m.KV == 1 {
		return m.Path + path
	}
	return m.Path + kind + "/" + path
}

func (m Mount) listPath(folder string) string { return m.in("metadata", folder) }

// grant is how a policy names all that lies there.
func (m Mount) grant(kind string) string { return m.in(kind, "*") }

// kvConfig reads what a KV v2 mount prescribes; nil for v1.
func (s *Server) kvConfig(ctx context.Context, m Mount) (*KVConfig, error) {
	if m.KV != 2 {
		return nil, nil
	}
	var answer struct{ Data KVConfig }
	if _, err := s.call(ctx, reading("the settings of "+m.Path, m.Path+"config"), &answer); err != nil {
		return nil, err
	}
	return &answer.Data, nil
}

// secret reads a secret in one state; nil if there is none.
func (s *Server) secret(ctx context.Context, m Mount, path string) (*Secret, error) {
	if m.KV == 1 {
		return s.secretV1(ctx, m, path)
	}
	before, err := s.metadata(ctx, m, path)
	// Enough for a secret that is written to now and then; one that changes all the
	// time is told apart from an outage.
	for range 20 {
		if err != nil || before == nil {
			return nil, err
		}
		secret, changed, err := s.versions(ctx, m, path, before)
		if err != nil {
			return nil, err
		}
		after, err := s.metadata(ctx, m, path)
		if err != nil {
			return nil, err
		}
		if !changed && after != nil && before.equal(after) {
			return secret, nil
		}
		before = after
	}
	return nil, fmt.Errorf("reading the secret %s: it changes all the time; stop what writes to it, and try again", m.Path+path)
}

func (s *Server) secretV1(ctx context.Context, m Mount, path string) (*Secret, error) {
	var answer struct{ Data json.RawMessage }
	q := reading("the secret "+m.Path+path, m.Path+path)
	q.grant = m.grant("")
	found, err := s.call(ctx, q, &answer)
	if err != nil || !found {
		return nil, err
	}
	return &Secret{Mount: m.Path, Path: path, Versions: []Version{{Data: answer.Data}}}, nil
}

// metadataAnswer is what KV v2 tells of a secret.
type metadataAnswer struct {
	Metadata
	Versions map[string]Version `json:"versions"`
}

func (a *metadataAnswer) equal(b *metadataAnswer) bool {
	return a.KVConfig == b.KVConfig && maps.Equal(a.CustomMetadata, b.CustomMetadata) && a.CurrentVersion == b.CurrentVersion &&
		a.OldestVersion == b.OldestVersion && a.CreatedTime == b.CreatedTime && a.UpdatedTime == b.UpdatedTime &&
		maps.EqualFunc(a.Versions, b.Versions, Version.sameState)
}

// sameState is whether two versions agree but for their data.
func (v Version) sameState(w Version) bool {
	return v.CreatedTime == w.CreatedTime && v.DeletionTime == w.DeletionTime && v.Destroyed == w.Destroyed
}

func (s *Server) metadata(ctx context.Context, m Mount, path string) (*metadataAnswer, error) {
	var answer struct{ Data metadataAnswer }
	q := reading("the metadata of "+m.Path+path, m.in("metadata", path))
	q.grant = m.grant("metadata")
	found, err := s.call(ctx, q, &answer)
	if err != nil || !found {
		return nil, err
	}
	return &answer.Data, nil
}

// versions reads the versions that the metadata name; changed is whether one is not
// as they say.
func (s *Server) versions(ctx context.Context, m Mount, path string, meta *metadataAnswer) (_ *Secret, changed bool, err error) {
	secret := &Secret{Mount: m.Path, Path: path, Metadata: &meta.Metadata, Versions: []Version{}}
	for number, v := range meta.Versions {
		if v.Version, err = strconv.Atoi(number); err != nil {
			return nil, false, &ForeignError{Address: s.address, Problem: "the secret " + m.Path + path + " has a version that is no number"}
		}
		secret.Versions = append(secret.Versions, v)
	}
	slices.SortFunc(secret.Versions, func(a, b Version) int { return cmp.Compare(a.Version, b.Version) })
	for i := range secret.Versions {
		v := &secret.Versions[i]
		if v.Destroyed {
			continue
		}
		data, found, err := s.data(ctx, m, path, v.Version)
		if err != nil {
			return nil, false, err
		}
		v.Data = data
		if !found {
			// Whether the time of deletion has come is for the server's clock to say.
			if v.Deleted = v.DeletionTime != ""; !v.Deleted {
				return nil, true, nil
			}
		}
	}
	return secret, false, nil
}

// data reads one version's data; false if it has none.
func (s *Server) data(ctx context.Context, m Mount, path string, version int) (json.RawMessage, bool, error) {
	var answer struct {
		Data struct{ Data json.RawMessage }
	}
	q := reading(fmt.Sprintf("version %d of the secret %s", version, m.Path+path), m.in("data", path))
	q.query = url.Values{"version": {strconv.Itoa(version)}}
	q.grant = m.grant("data")
	found, err := s.call(ctx, q, &answer)
	if err != nil || !found {
		return nil, false, err
	}
	return answer.Data.Data, true, nil
}

// inOrder does work on what produce yields, several at a time, and consumes the
// results one by one in the order of production. No more are held than are worked on.
func inOrder[T, R any](ctx context.Context, produce func(ctx context.Context, yield func(T) error) error, work func(context.Context, T) (R, error), consume func(R) error) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan chan R, parallel)
	g.Go(func() error {
		defer close(queue)
		return produce(ctx, func(item T) error {
			result := make(chan R, 1)
			select {
			case queue <- result:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			g.Go(func() error {
				r, err := work(ctx, item)
				if err == nil {
					result <- r
				}
				return err
			})
			return nil
		})
	})
	g.Go(func() error {
		for result := range queue {
			select {
			case r := <-result:
				if err := consume(r); err != nil {
					return err
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return g.Wait()
}

// ReadExport reads an export to its end and shows each record to visit. One that
// is cut off or not an export is a *DamagedExport.
func ReadExport(r io.Reader, visit func(Record) error) (Summary, error) {
	lines := bufio.NewReader(r)
	var counted Summary
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		switch {
		case err == io.EOF && len(line) == 0:
			return Summary{}, &DamagedExport{Line: n, Problem: "it ends before its end is told"}
		case err == io.EOF:
			return Summary{}, &DamagedExport{Line: n, Problem: "it is cut off in the midst of a line"}
		case err != nil:
			return Summary{}, fmt.Errorf("reading the export of the KV secrets: %w", err)
		}
		var record Record
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		if decoder.Decode(&record) != nil { // its words may quote a secret
			return Summary{}, &DamagedExport{Line: n, Problem: "it is no line of an export"}
		}
		if problem := record.problem(n == 1); problem != "" {
			return Summary{}, &DamagedExport{Line: n, Problem: problem}
		}
		switch {
		case record.Mount != nil && record.Mount.Exported:
			counted.Mounts++
		case record.Secret != nil:
			counted.add(record.Secret)
		case record.End != nil && *record.End != counted:
			return Summary{}, &DamagedExport{Line: n, Problem: "it does not hold as much as its end tells"}
		}
		if err := visit(record); err != nil {
			return Summary{}, err
		}
		if record.End == nil {
			continue
		}
		if _, err := lines.ReadByte(); err != io.EOF {
			if err != nil {
				return Summary{}, fmt.Errorf("reading the export of the KV secrets: %w", err)
			}
			return Summary{}, &DamagedExport{Line: n + 1, Problem: "something follows its end"}
		}
		return counted, nil
	}
}

// problem is what is wrong with a record by itself.
func (r *Record) problem(first bool) string {
	given := 0
	for _, is := range []bool{r.Head != nil, r.Mount != nil, r.Auth != nil, r.Policy != nil, r.Secret != nil, r.End != nil} {
		if is {
			given++
		}
	}
	switch {
	case first && r.Head == nil:
		return "it does not begin as an export"
	case first && r.Head.Format != format:
		return fmt.Sprintf("it is of form %d, and this release knows form %d", r.Head.Format, format)
	case !first && r.Head != nil:
		return "a second export begins"
	case given != 1:
		return "it is no line of an export"
	case r.Secret == nil:
		return ""
	case !strings.HasSuffix(r.Secret.Mount, "/") || r.Secret.Path == "":
		return "a secret has no place"
	case r.Secret.Metadata == nil && len(r.Secret.Versions) != 1:
		return "a KV v1 secret has not one version"
	}
	last := -1
	for _, v := range r.Secret.Versions {
		if v.Version <= last || (v.Data == nil) != (v.Deleted || v.Destroyed) {
			return "a secret's versions are not in order"
		}
		last = v.Version
	}
	return ""
}

// FindSecret finds a secret in an export by mount and path, as `bao kv get` takes
// it; *NotExportedError if it is not there. The export is read to its end.
func FindSecret(r io.Reader, path string) (*Secret, error) {
	var found *Secret
	wanted := strings.TrimPrefix(path, "/")
	_, err := ReadExport(r, func(record Record) error {
		if record.Secret != nil && record.Secret.name() == wanted {
			found = record.Secret
		}
		return nil
	})
	if err == nil && found == nil {
		err = &NotExportedError{Path: path}
	}
	return found, err
}

// name is mount and path.
func (s *Secret) name() string { return s.Mount + s.Path }

// at names a version for a person.
func (s *Secret) at(v Version) string {
	if s.Metadata == nil {
		return s.name()
	}
	return fmt.Sprintf("%s@%d", s.name(), v.Version)
}

// kv is the secret's mount as the server has to have it.
func (s *Secret) kv() Mount {
	m := Mount{Path: s.Mount, Type: "kv", KV: 2}
	if s.Metadata == nil {
		m.KV = 1
	}
	return m
}

// Latest is the newest version of a secret; false if it never had any.
func (s *Secret) Latest() (Version, bool) {
	if len(s.Versions) == 0 {
		return Version{}, false
	}
	return s.Versions[len(s.Versions)-1], true
}

// sameData is whether two versions hold the same data: numbers digit by digit,
// objects whatever their order.
func sameData(a, b json.RawMessage) bool {
	x, err1 := canonical(a)
	y, err2 := canonical(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func canonical(data json.RawMessage) ([]byte, error) {
	if data == nil {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var value any
	if d.Decode(&value) != nil {
		return nil, errors.New("data that are not JSON")
	}
	return json.Marshal(value)
}
