package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// Kind says what an artifact is, and so how [Set.Verify] opens it.
type Kind string

const (
	// KindTar is a GNU tar archive; it opens when its listing can be walked.
	KindTar Kind = "tar"
	// KindList is the list of a tar's members with their SHA-256 sums.
	KindList Kind = "list"
	// KindIndex is the list of a volume's entries with their metadata.
	KindIndex Kind = "index"
	// KindObjects is the export of the API: one JSON object per line, each
	// with apiVersion, kind and metadata.name.
	KindObjects Kind = "objects"
	// KindSecrets has the form of KindObjects and holds Secrets only.
	KindSecrets Kind = "secrets"
	// KindSQLite is an SQLite database; it opens when its integrity check passes.
	KindSQLite Kind = "sqlite"
	// KindSQLiteWAL is the write-ahead log of the SQLite artifact that has
	// the same name without "-wal"; it is opened together with it.
	KindSQLiteWAL Kind = "sqlite-wal"
	// KindRaftSnapshot is OpenBao's raft snapshot; it opens when it is complete
	// and its own sums are right.
	KindRaftSnapshot Kind = "raft-snapshot"
	// KindOpenBaoExport is the export of OpenBao's KV secrets; it opens when it can
	// be read to its end record, which has their number.
	KindOpenBaoExport Kind = "openbao-export"
	// KindFile is anything else; it opens when it decrypts.
	KindFile Kind = "file"
)

// Codec is the compression of an artifact inside its encryption.
type Codec string

const (
	None Codec = "none"
	Zstd Codec = "zstd"
	Gzip Codec = "gzip"
)

// Artifact is one entry of the manifest.
type Artifact struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// File is the path below the set's directory.
	File string `json:"file"`
	// Size in bytes and SHA256 (hex) are those of the file at rest, encrypted.
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// ContentSize and ContentSHA256 are those of what was encrypted, which
	// is compressed with Codec.
	ContentSize   int64             `json:"contentSize"`
	ContentSHA256 string            `json:"contentSHA256"`
	Codec         Codec             `json:"codec"`
	Created       time.Time         `json:"created"`
	Meta          map[string]string `json:"meta,omitempty"`
}

// Recipients are the public keys that the artifact is encrypted to, as
// [MetaRecipients] has them.
func (a Artifact) Recipients() []string {
	return strings.FieldsFunc(a.Meta[MetaRecipients], func(r rune) bool { return r == '\n' })
}

// ManifestError says that the manifest itself cannot be trusted.
type ManifestError struct {
	File string
	Err  error
}

func (e *ManifestError) Error() string {
	return fmt.Sprintf("manifest %s: %v; take the set from another copy, or start a new backup in an empty directory", e.File, e.Err)
}

func (e *ManifestError) Unwrap() error { return e.Err }

const (
	manifestFile    = "manifest.json"
	manifestVersion = 1
	// The checksum comes first and at a fixed place, so that it can be cut
	// out of the very bytes that it is about.
	manifestHead = "{\n  \"sha256\": \""
)

type manifest struct {
	SHA256    string     `json:"sha256"`
	Version   int        `json:"version"`
	Artifacts []Artifact `json:"artifacts"`
}

// encode renders the manifest with its own checksum: SHA-256 of the file with
// 64 zeros in the place of the sum.
func (m manifest) encode() ([]byte, error) {
	m.SHA256 = strings.Repeat("0", 64)
	m.Version = manifestVersion
	slices.SortFunc(m.Artifacts, func(a, b Artifact) int { return strings.Compare(a.Name, b.Name) })
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("rendering the manifest: %w", err)
	}
	data = append(data, '\n')
	sum := sha256.Sum256(data)
	hex.Encode(data[len(manifestHead):], sum[:])
	return data, nil
}

var (
	nameRule = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$`)
	hexSum   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func decodeManifest(data []byte) (manifest, error) {
	var m manifest
	end := len(manifestHead) + 64
	if len(data) < end || string(data[:len(manifestHead)]) != manifestHead {
		return m, errors.New("it does not begin with its SHA-256 sum")
	}
	said := string(data[len(manifestHead):end])
	zeroed := bytes.Clone(data)
	copy(zeroed[len(manifestHead):end], strings.Repeat("0", 64))
	if sum := sha256.Sum256(zeroed); hex.EncodeToString(sum[:]) != said {
		return m, fmt.Errorf("its SHA-256 is %x, but it says %q", sum, said)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return m, fmt.Errorf("decoding it: %w", err)
	}
	if m.Version != manifestVersion {
		return m, fmt.Errorf("it has version %d; this program reads version %d", m.Version, manifestVersion)
	}
	seen := map[string]bool{}
	for _, a := range m.Artifacts {
		switch {
		case !nameRule.MatchString(a.Name):
			return m, fmt.Errorf("artifact name %q is not allowed", a.Name)
		case !filepath.IsLocal(a.File):
			return m, fmt.Errorf("artifact %s: file %q lies outside the set", a.Name, a.File)
		case seen[a.Name]:
			return m, fmt.Errorf("artifact %s is listed twice", a.Name)
		case !hexSum.MatchString(a.SHA256) || !hexSum.MatchString(a.ContentSHA256) || a.Size < 0 || a.ContentSize < 0:
			return m, fmt.Errorf("artifact %s: sums or sizes are malformed", a.Name)
		}
		seen[a.Name] = true
	}
	return m, nil
}

func readManifest(dir string) (manifest, error) {
	file := filepath.Join(dir, manifestFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return manifest{}, &ManifestError{File: file, Err: fmt.Errorf("it is missing: %w", fs.ErrNotExist)}
	}
	if err != nil {
		return manifest{}, &ManifestError{File: file, Err: err}
	}
	m, err := decodeManifest(data)
	if err != nil {
		return manifest{}, &ManifestError{File: file, Err: err}
	}
	return m, nil
}

func writeManifest(dir string, m manifest) error {
	data, err := m.encode()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, manifestFile)
	if err := renameio.WriteFile(file, data, 0o600, renameio.WithStaticPermissions(0o600), renameio.WithTempDir(dir)); err != nil {
		return noSpace(dir, manifestFile, 0, fmt.Errorf("writing the manifest: %w", err))
	}
	return syncDir(dir)
}
