// Package images writes container images without a container engine: a static binary or
// a few, a user, an entry point.
package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec describes an image: one layer over nothing.
type Spec struct {
	// Name is its reference, with a tag.
	Name         string
	Architecture string
	// Binaries maps a path in the image to a static binary of this machine.
	Binaries map[string]string
	// Links maps a path in the image to the symbolic link's target.
	Links      map[string]string
	Entrypoint []string
}

// Write writes the image as an archive that `docker load`, `ctr images import` and K3s's
// agent/images read. The same spec and binaries give the same bytes.
func Write(file string, spec Spec) error {
	tag, err := name.NewTag(spec.Name)
	if err != nil {
		return fmt.Errorf("naming the image %s: %w", spec.Name, err)
	}
	image, err := build(spec)
	if err != nil {
		return fmt.Errorf("building the image %s: %w", spec.Name, err)
	}
	if err := tarball.WriteToFile(file, tag, image); err != nil {
		return fmt.Errorf("writing the image %s: %w", spec.Name, err)
	}
	return nil
}

func build(spec Spec) (v1.Image, error) {
	data, err := layer(spec)
	if err != nil {
		return nil, err
	}
	// gzip at its fastest: the archives are read more often from memory than they
	// travel.
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithCompressionLevel(1))
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", spec.Architecture
	config.Config.Entrypoint = spec.Entrypoint
	config.Config.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin"}
	return mutate.ConfigFile(image, config)
}

// layer is a tar of the binaries and links, with /tmp and the accounts file that
// programs look for.
func layer(spec Spec) ([]byte, error) {
	var buffer bytes.Buffer
	archive := tar.NewWriter(&buffer)
	made := map[string]bool{"/": true, ".": true}
	var directory func(dir string, mode int64) error
	directory = func(dir string, mode int64) error {
		if made[dir] {
			return nil
		}
		made[dir] = true
		if err := directory(path.Dir(dir), 0o755); err != nil {
			return err
		}
		return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: mode})
	}
	if err := directory("/tmp", 0o1777); err != nil {
		return nil, err
	}
	regular := func(name string, mode int64, data []byte) error {
		if err := directory(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err := archive.Write(data)
		return err
	}
	if err := regular("/etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\n")); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Binaries)) {
		data, err := os.ReadFile(spec.Binaries[name])
		if err != nil {
			return nil, err
		}
		if err := regular(name, 0o755, data); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Links)) {
		if err := directory(path.Dir(name), 0o755); err != nil {
			return nil, err
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: strings.TrimPrefix(name, "/"), Linkname: spec.Links[name], Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}
