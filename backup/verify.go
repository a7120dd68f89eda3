package backup

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/go-multierror"

	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/progress"
)

// Verify proves that the set can be restored from: every artifact of the
// manifest and of required is there, has the size and SHA-256 at rest that the manifest
// says, decrypts, has the content's SHA-256, and opens by its kind; every
// entry that a volume had on the host is in one of its archives. The manifest
// is read anew from the disk. All failures are returned together, each naming its artifact.
func (s *Set) Verify(ctx context.Context, required []string, r *progress.Reporter) error {
	m, err := readManifest(s.dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	now, err := s.manifest.encode()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	disk, err := m.encode()
	if err != nil {
		return err
	}
	if string(disk) != string(now) {
		return &ManifestError{File: s.dir + "/" + manifestFile, Err: errors.New("it was changed by another program since the set was opened")}
	}
	var all *multierror.Error
	for _, name := range required {
		if _, ok := s.Artifact(name); !ok {
			all = multierror.Append(all, &NotFoundError{Dir: s.dir, Name: name})
		}
	}
	checked, err := s.Check(ctx, s.Artifacts(), r)
	if err != nil {
		return err
	}
	for _, c := range checked {
		if c.Err != nil {
			all = multierror.Append(all, c.Err)
		}
	}
	return all.ErrorOrNil()
}

// Checked is what [Set.Check] found out about an artifact.
type Checked struct {
	Artifact Artifact
	// Err names the artifact and says what is wrong; nil when it is sound.
	Err error
}

// Check does for some artifacts what [Set.Verify] does for all of them. It
// finds out about each whatever the others are like; its own error is that the context ended.
func (s *Set) Check(ctx context.Context, artifacts []Artifact, r *progress.Reporter) ([]Checked, error) {
	var total int64
	for _, a := range artifacts {
		total += a.Size
	}
	task := r.Bytes("verifying the backup", total)
	defer task.Done()
	out := make([]Checked, len(artifacts))
	broken := map[string]bool{}
	for i, a := range artifacts {
		task.Detail(a.Name)
		out[i] = Checked{Artifact: a, Err: s.verify(ctx, a, task)}
		broken[a.Name] = out[i].Err != nil
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	// What belongs together is only looked at where each part is sound.
	for i, a := range artifacts {
		if a.Kind == KindSQLite && !broken[a.Name] && !broken[WALName(a.Name)] {
			_, out[i].Err = s.CheckDatabase(ctx, a.Name)
		}
		vol, ok := volumeOf(a)
		if !ok || broken[vol.Index()] || broken[ListName(vol.Full())] || broken[ListName(vol.Delta())] {
			continue
		}
		if err := s.verifyVolume(ctx, vol, a); err != nil {
			out[i].Err = fmt.Errorf("artifact %s: %w", a.Name, err)
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return out, nil
}

// Strays lists files below the set's directory that the manifest does not
// name, by their path in it: what an interrupted backup left, or is being written now.
func (s *Set) Strays() ([]string, error) {
	named := map[string]bool{manifestFile: true}
	for _, a := range s.Artifacts() {
		named[a.File] = true
	}
	var out []string
	err := s.walk(func(file string) error {
		if !named[file] {
			out = append(out, file)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking through the backup set's directory: %w", err)
	}
	return out, nil
}

func volumeOf(a Artifact) (VolumeRef, bool) {
	id, ok := strings.CutPrefix(a.Name, "volumes/")
	id, isIndex := strings.CutSuffix(id, "/index")
	return VolumeRef{ID: id, Path: a.Meta[MetaPath]}, ok && isIndex && a.Kind == KindIndex
}

func (s *Set) verifyVolume(ctx context.Context, vol VolumeRef, idx Artifact) error {
	var n int64
	for _, err := range s.Volume(vol) {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n++
	}
	if fmt.Sprint(n) != idx.Meta[MetaEntries] {
		return fmt.Errorf("it lists %d entries, the manifest says %s", n, idx.Meta[MetaEntries])
	}
	return nil
}

// untilDone ends a long read when the context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// verify reads one artifact to its end and opens it by its kind.
func (s *Set) verify(ctx context.Context, a Artifact, task *progress.Task) error {
	plain, err := s.read(a, task)
	if err != nil {
		return err
	}
	defer plain.Close()
	r := untilDone{ctx, plain}
	openErr := s.openKind(a, r)
	// The sums have the last word: a file that does not open because it is
	// damaged at rest is said to be that.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	var damaged *DamagedError
	if openErr != nil && !errors.As(openErr, &damaged) {
		openErr = &DamagedError{Name: a.Name, File: a.File, Err: openErr}
	}
	return openErr
}

func (s *Set) openKind(a Artifact, r io.Reader) error {
	switch a.Kind {
	case KindTar:
		return s.openTar(a, r)
	case KindList:
		return openList(r, func(rec index.Record) error {
			_, err := index.ParseMember(rec)
			return err
		})
	case KindIndex:
		return openList(r, func(rec index.Record) error {
			_, err := index.ParseLasting(rec)
			return err
		})
	case KindObjects:
		return openObjects(r, "")
	case KindSecrets:
		return openObjects(r, "Secret")
	case KindRaftSnapshot:
		_, err := openbao.ReadSnapshot(r)
		return err
	case KindOpenBaoExport:
		_, err := openbao.ReadExport(r, func(openbao.Record) error { return nil })
		return err
	case KindSQLite, KindSQLiteWAL, KindFile:
		return nil // a database is opened with its log, once both are known to be sound
	default:
		return fmt.Errorf("its kind %q is not known to this program", a.Kind)
	}
}

// openTar walks the archive beside the list that was made while it was taken.
func (s *Set) openTar(a Artifact, r io.Reader) error {
	l, err := s.Reader(ListName(a.Name))
	if err != nil {
		return err
	}
	defer l.Close()
	list := index.NewReader(l)
	err = walkTar(r, func(m index.Member, _ *tar.Header, _ io.Reader) error {
		want, err := list.Next()
		if err != nil && err != io.EOF {
			return err
		}
		if got := m.Record(); err == io.EOF || got != want {
			return fmt.Errorf("member %q is not as its list has it", m.Path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if more, err := list.Next(); err != io.EOF {
		if err != nil {
			return err
		}
		return fmt.Errorf("member %q of its list is missing", more.Path)
	}
	return nil
}

func openList(r io.Reader, parse func(index.Record) error) error {
	list := index.NewReader(r)
	for {
		rec, err := list.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := parse(rec); err != nil {
			return err
		}
	}
}

// openObjects parses JSON objects, one after the other.
func openObjects(r io.Reader, kind string) error {
	dec := json.NewDecoder(bufio.NewReaderSize(r, 64<<10))
	for n := 1; ; n++ {
		var o struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Metadata   struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		err := dec.Decode(&o)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("object %d: %w", n, err)
		}
		if o.APIVersion == "" || o.Kind == "" || o.Metadata.Name == "" {
			return fmt.Errorf("object %d has no apiVersion, kind or name", n)
		}
		if kind != "" && o.Kind != kind {
			return fmt.Errorf("object %d (%s) is a %s, not a %s", n, o.Metadata.Name, o.Kind, kind)
		}
	}
}
