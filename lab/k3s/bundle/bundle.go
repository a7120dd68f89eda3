// Package bundle carries the node's parts inside the node's own binary, as K3s
// does: a zip archive appended to the executable. The lab's command appends, the
// launcher reads; the executable in front of the archive is not touched, so the
// result still runs.
package bundle

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Names that a payload's files bear.
const (
	// Kubernetes is the multi-call binary of lab/kubernetes.
	Kubernetes = "bin/kubernetes"
	// Kine is the datastore shim of lab/kine.
	Kine = "bin/kine"
	// Images is the directory of image archives (docker or OCI layout, *.tar)
	// that the node imports at its first start.
	Images = "images/"
)

// Images that the shipped manifests and the container runtime refer to. The
// archives below Images must hold them under these names. The names are the
// lab's own: what they hold is not what Rancher publishes.
const (
	CoreDNSImage   = "k3s.lab/coredns:1.14.7"                // entry point: coredns
	LocalPathImage = "k3s.lab/local-path-provisioner:0.0.30" // entry point empty; the binary is in PATH as local-path-provisioner
	BusyboxImage   = "k3s.lab/busybox:1.35"                  // sh, mkdir, rm in PATH
	PauseImage     = "k3s.lab/pause:3.10"                    // entry point: a process that waits for ever
)

// ErrNone says that an executable carries no payload.
var ErrNone = errors.New("no payload is appended to this executable")

// Append writes to dst the launcher followed by files, a map from name in the
// payload to path on disk. The same inputs give the same bytes.
func Append(dst, launcher string, files map[string]string) (err error) {
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("create %s: %w", dst, err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	in, err := os.Open(launcher)
	if err != nil {
		return fmt.Errorf("open the launcher: %w", err)
	}
	defer in.Close()
	size, err := io.Copy(out, in)
	if err != nil {
		return fmt.Errorf("copy the launcher to %s: %w", dst, err)
	}
	z := zip.NewWriter(out)
	z.SetOffset(size)
	z.RegisterCompressor(zstd.ZipMethodWinZip, zstd.ZipCompressor(zstd.WithEncoderConcurrency(1)))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := add(z, name, files[name]); err != nil {
			return fmt.Errorf("append %s to %s: %w", name, dst, err)
		}
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("finish the payload of %s: %w", dst, err)
	}
	return nil
}

func add(z *zip.Writer, name, path string) error {
	if !fs.ValidPath(name) {
		return fmt.Errorf("%q is not a relative path without dots", name)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := &zip.FileHeader{Name: name, Method: zstd.ZipMethodWinZip}
	h.SetMode(0o644)
	if strings.HasPrefix(name, "bin/") {
		h.SetMode(0o755)
	}
	w, err := z.CreateHeader(h)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// Bundle is the payload of an executable.
type Bundle struct {
	zip  *zip.ReadCloser
	hash string
}

// Open reads the payload's directory; ErrNone when there is none. Close it.
func Open(executable string) (*Bundle, error) {
	z, err := zip.OpenReader(executable)
	if errors.Is(err, zip.ErrFormat) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("read the payload of %s: %w", executable, err)
	}
	z.RegisterDecompressor(zstd.ZipMethodWinZip, zstd.ZipDecompressor(zstd.WithDecoderConcurrency(2)))
	h := sha256.New()
	for _, f := range z.File {
		fmt.Fprintf(h, "%s %d %08x\n", f.Name, f.UncompressedSize64, f.CRC32)
	}
	return &Bundle{zip: z, hash: hex.EncodeToString(h.Sum(nil))}, nil
}

// Hash names the payload's contents: names, sizes and check sums.
func (b *Bundle) Hash() string { return b.hash }

// Close releases the executable.
func (b *Bundle) Close() error { return b.zip.Close() }

// Unpack writes the payload below root/HASH and returns that directory. A
// directory that is there is complete, since it appears by a rename.
func (b *Bundle) Unpack(root string) (string, error) {
	dir := filepath.Join(root, b.hash)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("unpack the payload: %w", err)
	}
	tmp, err := os.MkdirTemp(root, "unpack-")
	if err != nil {
		return "", fmt.Errorf("unpack the payload: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("unpack the payload: %w", err)
	}
	for _, f := range b.zip.File {
		if err := extract(tmp, f); err != nil {
			return "", fmt.Errorf("unpack %s: %w", f.Name, err)
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("unpack the payload: %w", err)
	}
	return dir, nil
}

func extract(dir string, f *zip.File) error {
	if !fs.ValidPath(f.Name) {
		return fmt.Errorf("%q leads out of the directory", f.Name)
	}
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	path := filepath.Join(dir, f.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	w, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, f.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}
