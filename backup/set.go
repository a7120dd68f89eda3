package backup

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"sunbeam.pt/k3s-dualstack/progress"
)

// Set is a backup set on the laptop. It is safe for concurrent use by one
// process; that only one process writes is for the run's lock to see to.
type Set struct {
	dir        string
	recipients []age.Recipient
	identities []age.Identity
	readers    string // MetaRecipients of new artifacts

	mu       sync.Mutex
	manifest manifest
	writing  map[string]bool // names between Create and Commit or Abort
}

// ErrReadOnly is returned by Create on a set that was opened without recipients.
var ErrReadOnly = errors.New("the backup set was opened for reading only: no recipients are given")

// NotFoundError says that the set has no such artifact.
type NotFoundError struct{ Dir, Name string }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("backup set %s has no artifact %s", e.Dir, e.Name)
}

// Is makes errors.Is(err, fs.ErrNotExist) true.
func (e *NotFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// DamagedError says that an artifact is not what the manifest says it is.
type DamagedError struct {
	Name, File string
	Err        error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("artifact %s (%s) is damaged: %v", e.Name, e.File, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// MetaRecipients is the key of Artifact.Meta with the public keys that the
// artifact is encrypted to, one a line: age1…, or of an SSH key its type and fingerprint.
const MetaRecipients = "recipients"

// NoIdentityError says that no private key at hand opens an artifact.
type NoIdentityError struct {
	Name string
	// Recipients are the public keys that it is encrypted to; none when that
	// is not known.
	Recipients []string
	// Tried tells that there were private keys at all.
	Tried bool
}

func (e *NoIdentityError) Error() string {
	what := "no identity is given"
	if e.Tried {
		what = "none of the identities opens it"
	}
	if len(e.Recipients) > 0 {
		what += "; it is encrypted to " + strings.Join(e.Recipients, ", ")
	}
	return fmt.Sprintf("artifact %s: %s; name the file of a private key that belongs to it in spec.backup.encryption.identities or with --identity", e.Name, what)
}

// DiskFullError says that the laptop's disk could not take an artifact.
type DiskFullError struct {
	Dir, Name string
	// Written is how far the artifact came; Expected is its estimated size, 0
	// when unknown; Free is what the disk has left once the part was removed. Bytes.
	Written, Expected, Free int64
	Err                     error
}

func (e *DiskFullError) Error() string {
	need := fmt.Sprintf("more than %d bytes", e.Written)
	if e.Expected > e.Written {
		need = fmt.Sprintf("up to %d bytes", e.Expected)
	}
	return fmt.Sprintf("disk full: writing %s into %s needs %s, and %d bytes are free there; "+
		"free some space or give spec.workDir a larger disk, then run again: %v", e.Name, e.Dir, need, e.Free, e.Err)
}

func (e *DiskFullError) Unwrap() error { return e.Err }

// Open opens the set in dir, or begins it when dir is empty or missing.
//
// recipients are public keys to which new artifacts are encrypted; without any
// the set is read-only, must exist, and nothing in dir is touched. With
// recipients, what interrupted writes left behind is removed. identities are
// files of private keys; without them nothing can be read back.
func Open(dir string, recipients, identities []string) (*Set, error) {
	return OpenAsking(dir, recipients, identities, nil)
}

// OpenAsking is Open for a terminal, where ask gets the passphrases of
// protected SSH keys.
func OpenAsking(dir string, recipients, identities []string, ask Passphrase) (*Set, error) {
	rs, err := ParseRecipients(recipients)
	if err != nil {
		return nil, err
	}
	ids, err := ParseIdentities(identities, ask)
	if err != nil {
		return nil, err
	}
	s := &Set{dir: dir, recipients: rs, identities: ids, readers: describe(recipients), writing: map[string]bool{}}
	if len(rs) > 0 {
		if err := s.begin(); err != nil {
			return nil, err
		}
	}
	if s.manifest, err = readManifest(dir); err != nil {
		return nil, err
	}
	if len(rs) > 0 {
		if err := s.sweep(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// begin makes the directory and an empty manifest when there is no set yet.
func (s *Set) begin() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("making the backup set's directory: %w", err)
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return fmt.Errorf("closing the backup set's directory to others: %w", err)
	}
	_, err := os.Lstat(filepath.Join(s.dir, manifestFile))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Artifacts without a manifest are a loss to be told, not an empty set.
	err = s.walk(func(file string) error {
		if strings.HasSuffix(file, artifactSuffix) {
			return &ManifestError{File: filepath.Join(s.dir, manifestFile), Err: fmt.Errorf("it is missing, but %s is there", file)}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return writeManifest(s.dir, manifest{})
}

const (
	artifactSuffix = ".age"
	tempSuffix     = ".age.tmp"
)

func (s *Set) walk(visit func(file string) error) error {
	return filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		rel, err := filepath.Rel(s.dir, path)
		if err != nil {
			return err
		}
		return visit(rel)
	})
}

// sweep removes temporary files, and artifacts that a crash kept out of the
// manifest or that a newer one replaced.
func (s *Set) sweep() error {
	listed := map[string]bool{}
	for _, a := range s.manifest.Artifacts {
		listed[a.File] = true
	}
	return s.walk(func(file string) error {
		if strings.HasPrefix(file, "."+manifestFile) || strings.HasSuffix(file, tempSuffix) || (strings.HasSuffix(file, artifactSuffix) && !listed[file]) {
			if err := os.Remove(filepath.Join(s.dir, file)); err != nil {
				return fmt.Errorf("removing what an interrupted backup left: %w", err)
			}
		}
		return nil
	})
}

// Dir is the set's directory.
func (s *Set) Dir() string { return s.dir }

// CanRead tells whether private keys were given with which artifacts can be opened.
func (s *Set) CanRead() bool { return len(s.identities) > 0 }

// Artifacts lists what the manifest has, sorted by name.
func (s *Set) Artifacts() []Artifact {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.manifest.Artifacts)
}

// Artifact finds one entry of the manifest.
func (s *Set) Artifact(name string) (Artifact, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.manifest.Artifacts {
		if a.Name == name {
			return a, true
		}
	}
	return Artifact{}, false
}

func (s *Set) lookup(name string) (Artifact, error) {
	a, ok := s.Artifact(name)
	if !ok {
		return a, &NotFoundError{Dir: s.dir, Name: name}
	}
	return a, nil
}

type createOptions struct {
	codec    Codec
	compress bool
	expected int64
}

// CreateOption says how an artifact is written.
type CreateOption func(*createOptions)

// Compressed compresses with zstd on the laptop.
func Compressed() CreateOption {
	return func(o *createOptions) { o.codec, o.compress = Zstd, true }
}

// Encoded says that what will be written is already compressed with codec.
func Encoded(codec Codec) CreateOption {
	return func(o *createOptions) { o.codec, o.compress = codec, false }
}

// Expect gives the estimated size in bytes, for the message of a full disk.
func Expect(bytes int64) CreateOption { return func(o *createOptions) { o.expected = bytes } }

// Writer streams one artifact into the set. Commit makes it part of the set;
// until then nothing of it shows. Abort after Commit does nothing, so that it
// can be deferred.
type Writer struct {
	set      *Set
	artifact Artifact
	opts     createOptions

	file    *os.File
	rest    *tally // of the file at rest
	content *tally // of what is encrypted
	sealed  io.WriteCloser
	zip     *zstd.Encoder
	err     error
	over    bool
}

// tally counts and hashes what passes to w.
type tally struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (t *tally) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.sum.Write(p[:n])
	t.n += int64(n)
	return n, err
}

func (t *tally) hex() string { return hex.EncodeToString(t.sum.Sum(nil)) }

// Create begins an artifact. One of the same name is replaced on Commit and
// stays until then.
func (s *Set) Create(name string, kind Kind, options ...CreateOption) (*Writer, error) {
	if len(s.recipients) == 0 {
		return nil, ErrReadOnly
	}
	if !nameRule.MatchString(name) {
		return nil, fmt.Errorf("artifact name %q is not allowed: letters, digits, '.', '_', '-' and '/' only", name)
	}
	w := &Writer{set: s, opts: createOptions{codec: None}}
	for _, o := range options {
		o(&w.opts)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing[name] {
		return nil, fmt.Errorf("artifact %s is being written already", name)
	}
	w.artifact = Artifact{Name: name, Kind: kind, Codec: w.opts.codec}
	w.artifact.File = s.freshFile(name)
	path := filepath.Join(s.dir, w.artifact.File)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, noSpace(s.dir, name, w.opts.expected, fmt.Errorf("making a directory for artifact %s: %w", name, err))
	}
	file, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, noSpace(s.dir, name, w.opts.expected, fmt.Errorf("creating artifact %s: %w", name, err))
	}
	w.file = file
	w.rest = &tally{w: file, sum: sha256.New()}
	if err := w.open(); err != nil {
		w.discard()
		return nil, noSpace(s.dir, name, w.opts.expected, fmt.Errorf("creating artifact %s: %w", name, err))
	}
	s.writing[name] = true
	return w, nil
}

// freshFile picks a file name that no artifact has, so that replacing an
// artifact never breaks the one that the manifest still points to.
func (s *Set) freshFile(name string) string {
	for n := 0; ; n++ {
		file := filepath.FromSlash(name) + artifactSuffix
		if n > 0 {
			file = fmt.Sprintf("%s.%d%s", filepath.FromSlash(name), n, artifactSuffix)
		}
		used := slices.ContainsFunc(s.manifest.Artifacts, func(a Artifact) bool { return a.File == file })
		if _, err := os.Lstat(filepath.Join(s.dir, file+".tmp")); !used && errors.Is(err, fs.ErrNotExist) {
			return file
		}
	}
}

func (w *Writer) open() error {
	var err error
	if w.sealed, err = age.Encrypt(w.rest, w.set.recipients...); err != nil {
		return err
	}
	w.content = &tally{w: w.sealed, sum: sha256.New()}
	if w.opts.compress {
		// A small window and one goroutine: several volumes are written at
		// once, and memory is bounded for all of them together.
		w.zip, err = zstd.NewWriter(w.content, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	}
	return err
}

// Write appends to the artifact.
func (w *Writer) Write(p []byte) (int, error) {
	if w.over {
		return 0, fmt.Errorf("artifact %s is closed", w.artifact.Name)
	}
	if w.err != nil {
		return 0, w.err
	}
	var n int
	var err error
	if w.zip != nil {
		n, err = w.zip.Write(p)
	} else {
		n, err = w.content.Write(p)
	}
	if err != nil {
		w.err = w.failed(err)
	}
	return n, w.err
}

// failed gives back the space of the part before it looks how much is free.
func (w *Writer) failed(err error) error {
	err = fmt.Errorf("writing artifact %s: %w", w.artifact.Name, err)
	if !isNoSpace(err) {
		return err
	}
	w.discard()
	full := noSpace(w.set.dir, w.artifact.Name, w.opts.expected, err)
	var e *DiskFullError
	if errors.As(full, &e) {
		e.Written = w.rest.n
	}
	return full
}

// Commit makes the artifact durable and enters it into the manifest with meta.
// After an error the artifact is not in the set.
func (w *Writer) Commit(meta map[string]string) (Artifact, error) {
	if w.over {
		return Artifact{}, fmt.Errorf("artifact %s is closed", w.artifact.Name)
	}
	defer w.Abort()
	if w.err != nil {
		return Artifact{}, w.err
	}
	path := filepath.Join(w.set.dir, w.artifact.File)
	steps := []func() error{
		func() error {
			if w.zip == nil {
				return nil
			}
			return w.zip.Close()
		},
		w.sealed.Close,
		w.file.Sync,
		w.file.Close,
		func() error { return os.Rename(path+".tmp", path) },
		func() error { return syncDir(filepath.Dir(path)) },
		func() error { return syncParents(w.set.dir, filepath.Dir(path)) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return Artifact{}, w.failed(err)
		}
	}
	w.artifact.Size, w.artifact.SHA256 = w.rest.n, w.rest.hex()
	w.artifact.ContentSize, w.artifact.ContentSHA256 = w.content.n, w.content.hex()
	w.artifact.Created = time.Now().UTC().Truncate(time.Second)
	w.artifact.Meta = map[string]string{MetaRecipients: w.set.readers}
	maps.Copy(w.artifact.Meta, meta)
	if err := w.set.enter(w.artifact); err != nil {
		os.Remove(path)
		return Artifact{}, err
	}
	return w.artifact, nil
}

// enter replaces or adds an entry of the manifest, then removes the file that
// it replaced.
func (s *Set) enter(a Artifact) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := manifest{}
	var replaced string
	for _, old := range s.manifest.Artifacts {
		if old.Name == a.Name {
			replaced = old.File
			continue
		}
		next.Artifacts = append(next.Artifacts, old)
	}
	next.Artifacts = append(next.Artifacts, a)
	slices.SortFunc(next.Artifacts, func(a, b Artifact) int { return strings.Compare(a.Name, b.Name) })
	if err := writeManifest(s.dir, next); err != nil {
		return err
	}
	s.manifest = next
	if replaced != "" {
		if err := os.Remove(filepath.Join(s.dir, replaced)); err != nil {
			return fmt.Errorf("removing the replaced artifact: %w", err)
		}
	}
	return nil
}

// Remove takes an artifact out of the set; one that is not there is no error.
func (s *Set) Remove(name string) error {
	if len(s.recipients) == 0 {
		return ErrReadOnly
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.manifest.Artifacts, func(a Artifact) bool { return a.Name == name })
	if i < 0 {
		return nil
	}
	file := s.manifest.Artifacts[i].File
	next := manifest{Artifacts: slices.Delete(slices.Clone(s.manifest.Artifacts), i, i+1)}
	if err := writeManifest(s.dir, next); err != nil {
		return err
	}
	s.manifest = next
	if err := os.Remove(filepath.Join(s.dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing artifact %s: %w", name, err)
	}
	return nil
}

// Abort drops what was written. After Commit it does nothing.
func (w *Writer) Abort() {
	if w.over {
		return
	}
	w.over = true
	if w.zip != nil {
		w.zip.Reset(nil) // ends its goroutines without writing a trailer
	}
	w.discard()
	w.set.mu.Lock()
	delete(w.set.writing, w.artifact.Name)
	w.set.mu.Unlock()
}

func (w *Writer) discard() {
	w.file.Close()
	os.Remove(filepath.Join(w.set.dir, w.artifact.File) + ".tmp")
}

func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// noSpace turns a full disk into a DiskFullError and leaves other errors alone.
func noSpace(dir, name string, expected int64, err error) error {
	if !isNoSpace(err) {
		return err
	}
	free, freeErr := Free(dir)
	if freeErr != nil {
		free = 0
	}
	return &DiskFullError{Dir: dir, Name: name, Expected: expected, Free: free, Err: err}
}

// Free tells how many bytes the file system of dir can still take.
func Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("reading the free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("making directory %s durable: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("making directory %s durable: %w", dir, err)
	}
	return nil
}

// syncParents makes newly made directories between dir and top durable.
func syncParents(top, dir string) error {
	for dir != top && len(dir) > len(top) {
		dir = filepath.Dir(dir)
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// openFile opens the file of an artifact, which a set that was copied in part
// may not have.
func (s *Set) openFile(a Artifact) (*os.File, error) {
	if !s.CanRead() {
		return nil, s.noIdentity(a)
	}
	file, err := os.Open(filepath.Join(s.dir, a.File))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("its file is missing: %w", err)
	}
	if err != nil {
		return nil, &DamagedError{Name: a.Name, File: a.File, Err: err}
	}
	return file, nil
}

func (s *Set) noIdentity(a Artifact) error {
	return &NoIdentityError{Name: a.Name, Recipients: a.Recipients(), Tried: s.CanRead()}
}

// sealed is what kept a sound artifact from being decrypted: the lack of a key
// is no damage.
func (s *Set) sealed(a Artifact, err error) error {
	var none *age.NoIdentityMatchError
	var locked *EncryptedKeyError
	switch {
	case errors.As(err, &none):
		return s.noIdentity(a)
	case errors.As(err, &locked):
		return fmt.Errorf("artifact %s: decrypting it: %w", a.Name, err)
	}
	return &DamagedError{Name: a.Name, File: a.File, Err: fmt.Errorf("decrypting it: %w", err)}
}

// content opens the file of an artifact and decrypts it, still compressed. The
// returned stream hashes the file as it goes and ends with a *DamagedError in
// the place of io.EOF when the file is not the one that the manifest knows.
// task counts the bytes at rest.
func (s *Set) content(a Artifact, task *progress.Task) (io.ReadCloser, error) {
	file, err := s.openFile(a)
	if err != nil {
		return nil, err
	}
	r := &contentReader{artifact: a, file: file, sum: sha256.New(), inner: sha256.New()}
	if st, err := file.Stat(); err != nil || st.Size() != a.Size {
		file.Close()
		if err == nil {
			err = fmt.Errorf("it has %d bytes, the manifest says %d", st.Size(), a.Size)
		}
		return nil, &DamagedError{Name: a.Name, File: a.File, Err: err}
	}
	// age reads ahead, therefore the sum is taken below it.
	r.plain, err = age.Decrypt(io.TeeReader(file, io.MultiWriter(r.sum, task)), s.identities...)
	if err != nil {
		if r.intact() {
			err = s.sealed(a, err)
		} else {
			err = r.damaged(err)
		}
		file.Close()
		return nil, err
	}
	return r, nil
}

type contentReader struct {
	artifact   Artifact
	file       *os.File
	sum, inner hash.Hash
	plain      io.Reader
	n          int64
	err        error
}

func (r *contentReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.plain.Read(p)
	r.inner.Write(p[:n])
	r.n += int64(n)
	switch {
	case err == io.EOF:
		r.err = r.check()
	case err != nil:
		r.err = r.damaged(err)
	}
	return n, r.err
}

// check compares all sums at the end of the stream.
func (r *contentReader) check() error {
	if _, err := io.Copy(r.sum, r.file); err != nil {
		return &DamagedError{Name: r.artifact.Name, File: r.artifact.File, Err: err}
	}
	a := r.artifact
	switch {
	case hex.EncodeToString(r.sum.Sum(nil)) != a.SHA256:
		return &DamagedError{Name: a.Name, File: a.File, Err: errSum}
	case r.n != a.ContentSize || hex.EncodeToString(r.inner.Sum(nil)) != a.ContentSHA256:
		return &DamagedError{Name: a.Name, File: a.File, Err: errors.New("its decrypted content has not the SHA-256 that the manifest says")}
	}
	return io.EOF
}

var errSum = errors.New("its SHA-256 is not the one in the manifest")

// intact reads the file to its end and tells whether it is the one that the
// manifest knows.
func (r *contentReader) intact() bool {
	_, err := io.Copy(r.sum, r.file)
	return err == nil && hex.EncodeToString(r.sum.Sum(nil)) == r.artifact.SHA256
}

// damaged finds out whether the file at rest is to blame for err, which is
// then the clearer thing to say.
func (r *contentReader) damaged(err error) error {
	err = fmt.Errorf("decrypting it: %w", err)
	if !r.intact() {
		err = fmt.Errorf("%w (%v)", errSum, err)
	}
	return &DamagedError{Name: r.artifact.Name, File: r.artifact.File, Err: err}
}

func (r *contentReader) Close() error { return r.file.Close() }

// Content opens an artifact decrypted but still compressed with its codec, and
// so fit to be sent to a host. It ends with a *DamagedError in the place of
// io.EOF when the artifact is not the one that the manifest knows.
func (s *Set) Content(name string) (io.ReadCloser, Artifact, error) {
	a, err := s.lookup(name)
	if err != nil {
		return nil, a, err
	}
	r, err := s.content(a, nil)
	return r, a, err
}

// Reader opens an artifact decrypted and decompressed. The end of the stream
// is io.EOF only when the file at rest and the content have the sums that the
// manifest says; otherwise it is a *DamagedError.
func (s *Set) Reader(name string) (io.ReadCloser, error) {
	a, err := s.lookup(name)
	if err != nil {
		return nil, err
	}
	return s.read(a, nil)
}

// read is Reader; task counts the bytes at rest.
func (s *Set) read(a Artifact, task *progress.Task) (io.ReadCloser, error) {
	r, err := s.content(a, task)
	if err != nil {
		return nil, err
	}
	return decompress(r, a)
}

func decompress(r io.ReadCloser, a Artifact) (io.ReadCloser, error) {
	plain, stop, err := decoder(r, a.Codec)
	if err != nil {
		r.Close()
		var damaged *DamagedError
		if errors.As(err, &damaged) {
			return nil, err
		}
		return nil, &DamagedError{Name: a.Name, File: a.File, Err: err}
	}
	return &plainReader{r: plain, below: r, stop: stop, artifact: a}, nil
}

// decoder decompresses r; stop frees what it holds.
func decoder(r io.Reader, codec Codec) (io.Reader, func(), error) {
	switch codec {
	case None:
		return r, func() {}, nil
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(64<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case Gzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, err
		}
		return z, func() {}, nil
	default:
		return nil, nil, fmt.Errorf("codec %q is not known to this program", codec)
	}
}

type plainReader struct {
	r        io.Reader
	below    io.ReadCloser
	stop     func()
	artifact Artifact
	err      error
}

func (r *plainReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.r.Read(p)
	if err == nil {
		return n, nil
	}
	// Whatever ended the stream, the sums have the last word.
	_, drain := io.Copy(io.Discard, r.below)
	var damaged *DamagedError
	switch {
	case drain != nil:
		r.err = drain
	case err == io.EOF || errors.As(err, &damaged):
		r.err = err
	default:
		r.err = &DamagedError{Name: r.artifact.Name, File: r.artifact.File, Err: fmt.Errorf("decompressing it: %w", err)}
	}
	return n, r.err
}

func (r *plainReader) Close() error {
	r.stop()
	return r.below.Close()
}

// ReaderAt opens an uncompressed artifact for reading anywhere in it, with the
// size of the plain content. What it reads is authenticated by age piece by
// piece; the sums of the manifest are not looked at.
func (s *Set) ReaderAt(name string) (io.ReaderAt, int64, io.Closer, error) {
	a, err := s.lookup(name)
	if err != nil {
		return nil, 0, nil, err
	}
	if a.Codec != None {
		return nil, 0, nil, fmt.Errorf("artifact %s is compressed with %s and can only be read from its beginning", name, a.Codec)
	}
	file, err := s.openFile(a)
	if err != nil {
		return nil, 0, nil, err
	}
	r, n, err := age.DecryptReaderAt(file, a.Size, s.identities...)
	if err != nil {
		file.Close()
		return nil, 0, nil, s.sealed(a, err)
	}
	return r, n, file, nil
}
