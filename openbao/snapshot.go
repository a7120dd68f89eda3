package openbao

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// The members of a raft snapshot, a tar compressed with gzip, in the order in
// which Vault 1.14 and OpenBao 2.0 to 2.6 write them. SHA256SUMS.sealed is SHA256SUMS,
// its lines in any order, encrypted like the root key.
const (
	metaMember   = "meta.json"
	stateMember  = "state.bin"
	sumsMember   = "SHA256SUMS"
	sealedMember = "SHA256SUMS.sealed"
)

const (
	// The server reads no more of the small members.
	maxSmallMember = 8 << 10
	// bbolt, which the server keeps its data in, has no longer keys.
	maxKey = 32 << 10
	// No entry of the seal comes near it: a keyring takes some 200 bytes a rotation.
	maxSealEntry = 1 << 20
)

// Snapshot is a raft snapshot that was read to its end and found whole.
type Snapshot struct {
	// ID, Index and Term are what raft calls the state that it holds.
	ID          string
	Index, Term uint64
	// Entries is how many entries of the storage it holds, Size how many bytes
	// they take before compression.
	Entries int
	Size    int64
	// Namespaces is how many namespaces have a seal of their own, with
	// unseal keys that [Snapshot.Prove] knows nothing of.
	Namespaces int
	// Seal is how a server is unsealed after the snapshot was restored.
	Seal *Seal

	sums   map[string]string
	sealed []byte
}

// DamagedSnapshot says that a raft snapshot is cut off, changed, or none.
type DamagedSnapshot struct{ Err error }

func (e *DamagedSnapshot) Error() string {
	return fmt.Sprintf("the raft snapshot is damaged: %v; take it again", e.Err)
}

func (e *DamagedSnapshot) Unwrap() error { return e.Err }

// ReadSnapshot reads a raft snapshot to its end and checks all of it, without
// keeping more than the few entries of its seal. It is a [*DamagedSnapshot] unless r
// itself fails.
func ReadSnapshot(r io.Reader) (*Snapshot, error) {
	in := &source{r: r}
	snapshot, err := readSnapshot(in)
	switch {
	case in.err != nil:
		return nil, fmt.Errorf("reading the raft snapshot: %w", in.err)
	case err != nil:
		return nil, &DamagedSnapshot{Err: err}
	}
	return snapshot, nil
}

// Prove tells whether the keys unseal a server that the snapshot was restored
// to, as [Seal.Prove] does.
func (s *Snapshot) Prove(keys []string) error {
	key, err := s.Seal.open(keys)
	if err != nil {
		return err
	}
	data, err := blob(s.sealed)
	if err == nil {
		data, err = decrypt(key, data, nil)
	}
	if err != nil {
		return &DamagedSnapshot{Err: fmt.Errorf("the unseal keys are right, but %s does not open: %w", sealedMember, err)}
	}
	if err := s.checkSums(data); err != nil {
		return &DamagedSnapshot{Err: fmt.Errorf("%s: %w", sealedMember, err)}
	}
	return nil
}

// source remembers why reading failed, which says nothing against the snapshot.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func readSnapshot(r io.Reader) (*Snapshot, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	unpacked, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("its compression: %w", noEOF(err))
	}
	unpacked.Multistream(false)
	snapshot, err := readMembers(tar.NewReader(unpacked))
	if err != nil {
		return nil, err
	}
	// The gzip's own sum is checked at its end only.
	rest, err := io.Copy(io.Discard, unpacked)
	if err != nil {
		return nil, fmt.Errorf("its compression: %w", noEOF(err))
	}
	if rest > 0 {
		return nil, fmt.Errorf("%d bytes follow the last member", rest)
	}
	switch _, err := in.ReadByte(); err {
	case io.EOF:
		return snapshot, nil
	case nil:
		return nil, errors.New("there is more after its end")
	default:
		return nil, err
	}
}

func readMembers(archive *tar.Reader) (*Snapshot, error) {
	snapshot := &Snapshot{sums: map[string]string{}}
	var size int64
	for _, name := range []string{metaMember, stateMember, sumsMember, sealedMember} {
		header, err := archive.Next()
		if err == io.EOF {
			return nil, fmt.Errorf("%s is missing", name)
		}
		if err != nil {
			return nil, fmt.Errorf("where %s should be: %w", name, noEOF(err))
		}
		if header.Name != name || header.Typeflag != tar.TypeReg {
			return nil, fmt.Errorf("it holds %q where %s should be", header.Name, name)
		}
		sum := sha256.New()
		member := io.TeeReader(archive, sum)
		if name == stateMember {
			if header.Size != size {
				return nil, fmt.Errorf("%s has %d bytes, and %s says %d", name, header.Size, metaMember, size)
			}
			err = snapshot.readState(member)
		} else {
			var data []byte
			if data, err = io.ReadAll(io.LimitReader(member, maxSmallMember)); err == nil && len(data) == maxSmallMember {
				err = fmt.Errorf("it has %d bytes, more than a server reads", header.Size)
			}
			switch {
			case err != nil:
			case name == metaMember:
				size, err = snapshot.readMeta(data)
			case name == sumsMember:
				err = snapshot.checkSums(data)
			case name == sealedMember:
				snapshot.sealed = data
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, noEOF(err))
		}
		snapshot.sums[name] = hex.EncodeToString(sum.Sum(nil))
	}
	switch header, err := archive.Next(); {
	case err == nil:
		return nil, fmt.Errorf("it holds %q after its last member", header.Name)
	case err != io.EOF:
		return nil, fmt.Errorf("after its last member: %w", noEOF(err))
	}
	return snapshot, nil
}

// readMeta returns how many bytes the state has.
func (s *Snapshot) readMeta(data []byte) (int64, error) {
	var meta struct {
		Version     int
		ID          string
		Index, Term uint64
		Size        int64
	}
	if err := json.Unmarshal(data, &meta); err != nil {
		return 0, err
	}
	if meta.Version != 1 {
		return 0, fmt.Errorf("its version is %d, and only 1 is known", meta.Version)
	}
	if meta.Index == 0 || meta.Term == 0 {
		return 0, errors.New("it says that the server never wrote anything")
	}
	s.ID, s.Index, s.Term, s.Size = meta.ID, meta.Index, meta.Term, meta.Size
	return meta.Size, nil
}

// checkSums compares the members that were read with a list of their sums.
func (s *Snapshot) checkSums(list []byte) error {
	listed := map[string]string{}
	for line := range strings.Lines(string(list)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if _, twice := listed[name]; !ok || twice {
			return errors.New("it is no list of two sums")
		}
		listed[name] = sum
	}
	for _, name := range []string{metaMember, stateMember} {
		if listed[name] != s.sums[name] {
			return fmt.Errorf("the sum of %s is another one", name)
		}
	}
	if len(listed) != 2 {
		return errors.New("it is no list of two sums")
	}
	return nil
}

// readState reads the entries of the storage: each a StorageEntry of
// OpenBao's plugin/pb (key 1, value 2) after its length.
func (s *Snapshot) readState(r io.Reader) error {
	in := bufio.NewReaderSize(r, 64<<10)
	kept := map[string][]byte{}
	for {
		length, err := binary.ReadUvarint(in)
		if err == io.EOF {
			break
		}
		if err == nil && length > math.MaxInt32 {
			err = fmt.Errorf("it cannot be %d bytes long", length)
		}
		if err == nil {
			err = s.readEntry(&message{in: in, left: int(length)}, kept)
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", s.Entries+1, noEOF(err))
		}
		s.Entries++
	}
	var err error
	s.Seal, err = newSeal(kept)
	return err
}

func (s *Snapshot) readEntry(entry *message, kept map[string][]byte) error {
	var key string
	for entry.left > 0 {
		tag, err := binary.ReadUvarint(entry)
		if err != nil {
			return err
		}
		field, kind := protowire.DecodeTag(tag)
		switch {
		case !field.IsValid():
			return errors.New("it has a field without a number")
		case field == 1 && kind == protowire.BytesType && key == "":
			data, err := entry.bytes(maxKey)
			if err != nil {
				return err
			}
			key = string(data)
		case field == 2 && kind == protowire.BytesType && ofSeal(key):
			if kept[key], err = entry.bytes(maxSealEntry); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		default:
			if err := entry.skip(kind); err != nil {
				return err
			}
		}
	}
	if key == "" || !utf8.ValidString(key) {
		return errors.New("it has no key")
	}
	if strings.HasPrefix(key, "namespaces/") && strings.HasSuffix(key, "/"+rootKeyEntry) {
		s.Namespaces++
	}
	return nil
}

func ofSeal(key string) bool {
	return key == sealConfigEntry || key == rootKeyEntry || key == keyringEntry
}

// message reads a protobuf message of known length that may not fit into memory.
type message struct {
	in   *bufio.Reader
	left int
}

func (m *message) ReadByte() (byte, error) {
	if m.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	m.left--
	return m.in.ReadByte()
}

// bytes reads a field of bytes.
func (m *message) bytes(most int) ([]byte, error) {
	length, err := m.length()
	if err != nil {
		return nil, err
	}
	if length > most {
		return nil, fmt.Errorf("a field of %d bytes, which no server writes", length)
	}
	data := make([]byte, length)
	_, err = io.ReadFull(m.in, data)
	m.left -= length
	return data, err
}

// length reads that of a field of bytes.
func (m *message) length() (int, error) {
	length, err := binary.ReadUvarint(m)
	if err == nil && length > uint64(m.left) {
		err = fmt.Errorf("a field of %d bytes where %d are left", length, m.left)
	}
	return int(length), err
}

// skip passes over a field.
func (m *message) skip(kind protowire.Type) error {
	var length int
	var err error
	switch kind {
	case protowire.VarintType:
		_, err = binary.ReadUvarint(m)
	case protowire.Fixed32Type:
		length = 4
	case protowire.Fixed64Type:
		length = 8
	case protowire.BytesType:
		length, err = m.length()
	default:
		err = fmt.Errorf("a field of the unknown kind %d", kind)
	}
	if err == nil && length > m.left {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	m.left -= length
	_, err = m.in.Discard(length)
	return err
}

// noEOF makes an end in the middle an error that says so.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it is cut off")
	}
	return err
}
