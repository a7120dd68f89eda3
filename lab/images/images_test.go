package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "busybox")
	if err := os.WriteFile(binary, []byte("\x7fELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Name: "k3s.lab/busybox:1", Architecture: "arm64", Binaries: map[string]string{"/bin/busybox": binary},
		Links: map[string]string{"/bin/sh": "busybox"}, Entrypoint: []string{"/bin/busybox"}}
	archive := filepath.Join(dir, "image.tar")
	again := filepath.Join(dir, "again.tar")
	for _, file := range []string{archive, again} {
		if err := Write(file, spec); err != nil {
			t.Fatal(err)
		}
	}
	first, _ := os.ReadFile(archive)
	second, _ := os.ReadFile(again)
	if !bytes.Equal(first, second) {
		t.Error("the same spec gave different images")
	}
	image, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Architecture != "arm64" || config.OS != "linux" || config.Config.Entrypoint[0] != "/bin/busybox" {
		t.Errorf("the configuration is %+v", config)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	found := map[string]*tar.Header{}
	for entries := tar.NewReader(content); ; {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[header.Name] = header
	}
	if h := found["bin/busybox"]; h == nil || h.Mode != 0o755 {
		t.Errorf("the binary is %+v", h)
	}
	if h := found["bin/sh"]; h == nil || h.Linkname != "busybox" {
		t.Errorf("the link is %+v", h)
	}
	if h := found["tmp/"]; h == nil || h.Mode != 0o1777 {
		t.Errorf("/tmp is %+v", h)
	}
}

func TestWriteNamesWhatIsWrong(t *testing.T) {
	for _, spec := range []Spec{{Name: "Not A Name"}, {Name: "x:1", Binaries: map[string]string{"/x": "/does/not/exist"}}} {
		if err := Write(filepath.Join(t.TempDir(), "x.tar"), spec); err == nil {
			t.Errorf("%v was accepted", spec)
		}
	}
}
