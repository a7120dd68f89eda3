package labs

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadTellsHowToMakeALabThatIsMissing(t *testing.T) {
	t.Setenv("LAB_STATE", t.TempDir())
	_, err := Load("demo")
	if !errors.Is(err, ErrNoLab) || !strings.Contains(err.Error(), "lab up --name demo") {
		t.Errorf("got %v", err)
	}
	if names, err := List(); err != nil || len(names) != 0 {
		t.Errorf("got %v, %v", names, err)
	}
}

func TestSaveAndLoad(t *testing.T) {
	t.Setenv("LAB_STATE", t.TempDir())
	dir, err := stateDir("demo")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lab := &Lab{Name: "demo", Address: "127.0.0.1", Port: 2222, User: "admin", IdentityFile: "/k", KnownHosts: "/h", StateDir: dir}
	if err := lab.save(); err != nil {
		t.Fatal(err)
	}
	again, err := Load("demo")
	if err != nil || again.Port != 2222 {
		t.Fatalf("got %v, %v", again, err)
	}
	line := strings.Join(again.SSH("true"), " ")
	for _, want := range []string{"-p 2222", "-i /k", "UserKnownHostsFile=/h", "StrictHostKeyChecking=yes", "admin@127.0.0.1 true"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q lacks %q", line, want)
		}
	}
	if names, err := List(); err != nil || len(names) != 1 || names[0] != "demo" {
		t.Errorf("got %v, %v", names, err)
	}
}

func TestSubnets(t *testing.T) {
	s := subnet(255)
	if s.v4(10) != "172.30.255.10" || s.v6(10) != "fd30:ff::10" {
		t.Errorf("got %s and %s", s.v4(10), s.v6(10))
	}
	v4, v6 := s.prefixes()
	for prefix, inside := range map[string]string{v4: s.v4(internetIndex), v6: s.v6(internetIndex)} {
		_, network, err := net.ParseCIDR(prefix)
		if err != nil || !network.Contains(net.ParseIP(inside)) {
			t.Errorf("%s does not hold %s: %v", prefix, inside, err)
		}
	}
}

func TestFilesAsAnArchive(t *testing.T) {
	source := filepath.Join(t.TempDir(), "k3s")
	if err := os.WriteFile(source, []byte("binary"), 0o600); err != nil {
		t.Fatal(err)
	}
	var put files
	put.directory("/root/.ssh", 0o700)
	put.add("/root/.ssh/authorized_keys", 0o600, []byte("key"))
	put.add("/etc/rancher/k3s/config.yaml", 0o600, nil)
	if err := put.addFile("/usr/local/bin/k3s", 0o755, source); err != nil {
		t.Fatal(err)
	}
	if err := put.addFile("/nothing", 0o755, source+"-missing"); err == nil {
		t.Error("accepted a file that is missing")
	}
	var archive bytes.Buffer
	if err := put.write(&archive); err != nil {
		t.Fatal(err)
	}
	want := []struct {
		name, data string
		mode       int64
	}{
		{"root/.ssh/", "", 0o700}, {"root/.ssh/authorized_keys", "key", 0o600},
		{"etc/rancher/", "", 0o755}, {"etc/rancher/k3s/", "", 0o755}, {"etc/rancher/k3s/config.yaml", "", 0o600}, {"usr/local/bin/k3s", "binary", 0o755},
	}
	entries := tar.NewReader(&archive)
	for _, w := range want {
		header, err := entries.Next()
		if err != nil {
			t.Fatalf("before %s: %v", w.name, err)
		}
		data, err := io.ReadAll(entries)
		if err != nil || header.Name != w.name || header.Mode != w.mode || string(data) != w.data {
			t.Errorf("got %s %o %q, %v; want %v", header.Name, header.Mode, data, err, w)
		}
	}
	if _, err := entries.Next(); err != io.EOF {
		t.Errorf("more than expected: %v", err)
	}
}

func TestCertificate(t *testing.T) {
	certificate, key, err := selfSigned(sunbeamName, "*."+sunbeamName)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{sunbeamName, "messages." + sunbeamName} {
		if err := leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

func TestControlGroupsThatAreLeft(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"cpu/docker/abc/kubepods/pod1", "unified/docker/abc/init.scope", "unified/docker/def"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeControlGroups(root, "abc"); err != nil {
		t.Fatal(err)
	}
	for dir, stays := range map[string]bool{"cpu/docker": true, "cpu/docker/abc": false, "unified/docker/abc": false, "unified/docker/def": true} {
		if _, err := os.Stat(filepath.Join(root, dir)); (err == nil) != stays {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := removeControlGroups(filepath.Join(root, "none"), "abc"); err != nil {
		t.Errorf("on a machine without control groups: %v", err)
	}
}

func TestPlatformChecked(t *testing.T) {
	for from, good := range map[string]bool{"demo": true, "none": true, t.TempDir(): true, "/does/not/exist": false, os.Args[0]: false} {
		p := Platform{From: from}
		if err := p.check(); (err == nil) != good {
			t.Errorf("%s: %v", from, err)
		}
	}
}
