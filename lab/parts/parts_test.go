package parts

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sunbeam.pt/k3s-dualstack/lab/cache"
)

func TestK3sFromAPath(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "k3s")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	shop := &Shop{Cache: cache.Cache{Dir: dir}, Source: "/lab"}
	k3s, err := shop.K3s(t.Context(), binary)
	if err != nil || k3s.Binary != binary || k3s.InstallScript != "/lab/k3s/install.sh" {
		t.Errorf("got %v, %v", k3s, err)
	}
	if err := os.Chmod(binary, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{binary: "not an executable", dir: "not an executable", filepath.Join(dir, "none"): "no such file"} {
		if _, err := shop.K3s(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func TestExtract(t *testing.T) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "rootfs.tar")
	file, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	entries := tar.NewWriter(file)
	for _, header := range []*tar.Header{
		{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "usr/bin"},
		{Typeflag: tar.TypeReg, Name: "./usr/bin/busybox", Size: 4, Mode: 0o755},
	} {
		if err := entries.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := entries.Write([]byte("\x7fELF")); err != nil {
		t.Fatal(err)
	}
	if err := entries.Close(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "busybox")
	if err := extract(archive, "bin/busybox", target); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(target); err != nil || string(data) != "\x7fELF" {
		t.Errorf("got %q, %v", data, err)
	}
	if err := extract(archive, "bin/none", target); err == nil {
		t.Error("found what is not there")
	}
}
