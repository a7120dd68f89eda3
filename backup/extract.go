package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/progress"
)

// Volumes lists the volumes of which the set has at least the full pass,
// sorted by name.
func (s *Set) Volumes() []VolumeRef {
	var out []VolumeRef
	for _, a := range s.Artifacts() {
		id, ok := strings.CutPrefix(a.Name, "volumes/")
		id, full := strings.CutSuffix(id, "/full")
		if ok && full && a.Kind == KindTar {
			out = append(out, VolumeRef{ID: id, Path: a.Meta[MetaPath], Claim: a.Meta[MetaClaim]})
		}
	}
	return out
}

// Name stands for the volume as a whole where names of artifacts are
// expected; no artifact has it.
func (v VolumeRef) Name() string { return "volumes/" + v.ID }

// VolumeNamed finds the volume that a [VolumeRef.Name] stands for.
func (s *Set) VolumeNamed(name string) (VolumeRef, bool) {
	for _, v := range s.Volumes() {
		if v.Name() == name {
			return v, true
		}
	}
	return VolumeRef{}, false
}

// Extract writes the content of an artifact to w, decrypted and decompressed;
// the name of a volume stands for what [Set.VolumeTar] writes. The sums are
// known at the end only: after an error, what was written must not be used.
func (s *Set) Extract(ctx context.Context, name string, w io.Writer, r *progress.Reporter) error {
	if vol, ok := s.VolumeNamed(name); ok {
		return s.VolumeTar(ctx, vol, w, r)
	}
	a, err := s.lookup(name)
	if err != nil {
		return err
	}
	task := r.Bytes("extracting "+name, a.Size)
	defer task.Done()
	plain, err := s.read(a, task)
	if err != nil {
		return err
	}
	defer plain.Close()
	if _, err := io.Copy(w, untilDone{ctx, plain}); err != nil {
		return fmt.Errorf("extracting %s: %w", name, err)
	}
	return nil
}

// ExtractFile is [Set.Extract] into a new file, which has mode 0600 and
// appears under its name only once it is complete and its sums are right. A
// file that is there already is left alone, and errors.Is(err, fs.ErrExist).
func (s *Set) ExtractFile(ctx context.Context, name, file string, r *progress.Reporter) error {
	fail := func(err error) error { return fmt.Errorf("extracting %s to %s: %w", name, file, err) }
	exists := fmt.Errorf("%w and is never overwritten; name another file", fs.ErrExist)
	if _, err := os.Lstat(file); err == nil {
		return fail(exists)
	}
	dir := filepath.Dir(file)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(file)+".*.tmp")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := s.Extract(ctx, name, tmp, r); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return fail(err)
	}
	if err := tmp.Close(); err != nil {
		return fail(err)
	}
	// Unlike a rename, a link replaces nothing.
	err = os.Link(tmp.Name(), file)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		// A memory stick's file system has no hard links.
		if _, err = os.Lstat(file); err == nil {
			return fail(exists)
		}
		err = os.Rename(tmp.Name(), file)
	}
	if errors.Is(err, fs.ErrExist) {
		err = exists
	}
	if err != nil {
		return fail(err)
	}
	return syncDir(dir)
}

// VolumeTar writes a volume as one tar archive: as it was when its delta was
// taken, or the full pass alone as long as [Set.Whole] says no. After an error, what
// was written must not be used; the archive's end is not written then.
//
// Full pass, delta and index have the same order and are merged as they are
// read. Members pass byte for byte, and with them whatever GNU tar has written
// of owners, times, attributes, links and holes. In memory are one member's
// headers and 8 bytes for each file of the full pass that has changed since,
// however many entries there are.
func (s *Set) VolumeTar(ctx context.Context, vol VolumeRef, w io.Writer, r *progress.Reporter) error {
	if !s.Whole(vol) {
		return s.Extract(ctx, vol.Full(), w, r)
	}
	fail := func(err error) error { return fmt.Errorf("extracting volume %s: %w", vol.ID, err) }
	var open []io.Reader
	var total int64
	for _, name := range []string{vol.Index(), vol.Full(), vol.Delta()} {
		a, _ := s.Artifact(name)
		total += a.Size
	}
	task := r.Bytes("extracting "+vol.Label(), total)
	defer task.Done()
	for _, name := range []string{vol.Index(), vol.Full(), vol.Delta()} {
		a, err := s.lookup(name)
		if err != nil {
			return err
		}
		plain, err := s.read(a, task)
		if err != nil {
			return fail(err)
		}
		defer plain.Close()
		open = append(open, untilDone{ctx, plain})
	}
	full, delta := newMembers(open[1]), newMembers(open[2])
	seed := maphash.MakeSeed()
	changed := map[uint64]struct{}{} // files of the full pass that are not written from there
	err := index.Merge(func(p string, recs []*index.Record) error {
		if inFull := recs[1]; inFull != nil && (recs[0] == nil || recs[2] != nil) && full.hdr.Typeflag != tar.TypeDir {
			changed[maphash.String(seed, p)] = struct{}{}
		}
		if recs[0] == nil {
			return nil // was removed after the full pass
		}
		if _, _, err := held(vol, p, recs); err != nil {
			return err
		}
		if recs[2] != nil {
			return delta.copyTo(w)
		}
		if full.hdr.Typeflag == tar.TypeLink {
			first := memberPath(full.hdr.Linkname)
			if _, ok := changed[maphash.String(seed, first)]; ok {
				return fmt.Errorf("%q is a hard link to %q in the full pass, which changed later while the link did not; extract %s, then %s over it", p, first, vol.Full(), vol.Delta())
			}
		}
		return full.copyTo(w)
	}, index.NewReader(open[0]), full, delta)
	if err != nil {
		return fail(err)
	}
	// The sums have the last word.
	for _, r := range open {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return fail(err)
		}
	}
	if _, err := w.Write(make([]byte, 2*tarBlock)); err != nil {
		return fail(err)
	}
	return nil
}

const tarBlock = 512

// members reads a tar archive member by member and keeps the very bytes. It is
// one of [index.Lists], whose records say what a member is without its sum.
type members struct {
	r    io.Reader
	tar  *tar.Reader // reads through members, which so sees all that is read
	sink io.Writer   // takes what is read
	n    int64       // bytes read
	err  error       // of sink

	hdr  *tar.Header
	head []byte // what stands before the content: headers, and the map of a sparse file
}

func newMembers(r io.Reader) *members {
	m := &members{r: r, sink: io.Discard}
	m.tar = tar.NewReader(m)
	return m
}

func (m *members) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.err == nil {
		_, m.err = m.sink.Write(p[:n])
	}
	if m.err != nil {
		return n, m.err
	}
	return n, err
}

// padding is how far the next block is: content ends anywhere.
func (m *members) padding() int { return int(-m.n & (tarBlock - 1)) }

// Next goes to the next member.
func (m *members) Next() (index.Record, error) {
	if err := m.content(io.Discard); err != nil {
		return index.Record{}, err
	}
	var head strings.Builder
	skip := m.padding()
	m.sink = &head
	hdr, err := m.tar.Next()
	m.sink = io.Discard
	if err == io.EOF {
		return index.Record{}, err
	}
	if err != nil {
		return index.Record{}, fmt.Errorf("reading the archive: %w", err)
	}
	m.hdr, m.head = hdr, []byte(head.String()[skip:])
	kind := tarTypes[hdr.Typeflag]
	if kind == 0 {
		return index.Record{}, fmt.Errorf("reading the archive: member %q has the unknown type %q", hdr.Name, hdr.Typeflag)
	}
	return index.Member{Path: memberPath(hdr.Name), Type: kind, Size: hdr.Size, Sum: "-"}.Record(), nil
}

// content passes what the archive has of the present member's content to w.
func (m *members) content(w io.Writer) error {
	m.sink = w
	_, err := io.Copy(io.Discard, m.tar)
	m.sink = io.Discard
	return err
}

// copyTo writes the present member to w.
func (m *members) copyTo(w io.Writer) error {
	if _, err := w.Write(m.head); err != nil {
		return err
	}
	if err := m.content(w); err != nil {
		return err
	}
	_, err := w.Write(make([]byte, m.padding()))
	return err
}
