package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSecretOf(t *testing.T) {
	for token, want := range map[string]string{
		"bare":                      "bare",
		" bare\n":                   "bare",
		"K10abc::server:secret":     "secret",
		"K10abc::node:se:cret\n":    "se:cret",
		"K10abc::secret":            "secret",
		"K10 that is no full token": "K10 that is no full token",
		"":                          "",
	} {
		if got, err := secretOf(token); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", token, got, err, want)
		}
	}
	if _, err := secretOf("K10abc::server:"); err == nil {
		t.Error("accepted a token without a secret")
	}
}

func TestEncrypt(t *testing.T) {
	value, err := encrypt("right", []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decrypt("right", value); err != nil || string(got) != "text" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := decrypt("wrong", value); err == nil {
		t.Error("another token opened it")
	}
	if _, err := decrypt("right", value[:8]); err == nil {
		t.Error("a fragment was opened")
	}
}

func TestReconcile(t *testing.T) {
	stored := time.Now().Add(-time.Hour).Truncate(time.Second)
	data := &bootstrapData{Files: map[string]bootstrapFile{"tls/a.crt": {stored, []byte("of the datastore")}}}
	for _, tc := range []struct {
		name     string
		onDisk   string // empty: no file
		modified time.Time
		want     string
		wantErr  string
	}{
		{name: "absent", want: "of the datastore"},
		{name: "older", onDisk: "old", modified: stored.Add(-time.Hour), want: "of the datastore"},
		{name: "equal though newer", onDisk: "of the datastore", modified: stored.Add(time.Minute), want: "of the datastore"},
		{name: "newer", onDisk: "new", modified: stored.Add(time.Minute), want: "new", wantErr: "newer than datastore and could cause a cluster outage"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := t.TempDir()
			path := filepath.Join(server, "tls", "a.crt")
			if tc.onDisk != "" {
				if err := write(path, []byte(tc.onDisk), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(path, tc.modified, tc.modified); err != nil {
					t.Fatal(err)
				}
			}
			err := reconcile(server, data)
			if tc.wantErr == "" && err != nil || tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("got %v, want %q", err, tc.wantErr)
			}
			got, _ := os.ReadFile(path)
			if string(got) != tc.want {
				t.Errorf("the file holds %q, want %q", got, tc.want)
			}
		})
	}
}

func TestSameRanges(t *testing.T) {
	single := &bootstrapData{ClusterCIDR: []string{"10.42.0.0/16"}, ServiceCIDR: []string{"10.43.0.0/16"}}
	n := &network{Cluster: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, Service: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}}
	if err := sameRanges(single, n); err != nil {
		t.Error(err)
	}
	n.Service = append(n.Service, netip.MustParsePrefix("fd43::/112"))
	n.Cluster = append(n.Cluster, netip.MustParsePrefix("fd42::/56"))
	if err := sameRanges(single, n); err == nil || !strings.Contains(err.Error(), "cannot be made dual-stack in place") {
		t.Errorf("got %v", err)
	}
}

func TestAuthoritiesAreKept(t *testing.T) {
	tls := t.TempDir()
	now := time.Now()
	if err := ensureAuthorities(tls, now); err != nil {
		t.Fatal(err)
	}
	crt := filepath.Join(tls, "server-ca.crt")
	first, err := os.ReadFile(crt)
	if err != nil {
		t.Fatal(err)
	}
	if err := ensureAuthorities(tls, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(crt); !bytes.Equal(first, again) {
		t.Error("the CA was replaced")
	}
	ca, err := loadAuthority(crt, filepath.Join(tls, "server-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	l := leaf{base: filepath.Join(tls, "serving"), cn: "kube-apiserver", server: true, names: []string{"dedi"}}
	if err := ca.ensure(l, now); err != nil {
		t.Fatal(err)
	}
	served, _ := os.ReadFile(l.base + ".crt")
	for _, tc := range []struct {
		name  string
		leaf  leaf
		at    time.Time
		fresh bool
	}{
		{"nothing changed", l, now.Add(time.Hour), false},
		{"a further name", leaf{base: l.base, cn: l.cn, server: true, names: []string{"dedi", "other"}}, now, true},
		{"nearly expired", leaf{base: l.base, cn: l.cn, server: true, names: []string{"dedi", "other"}}, now.Add(leafLife - renewBefore + time.Hour), true},
	} {
		if err := ca.ensure(tc.leaf, tc.at); err != nil {
			t.Fatal(err)
		}
		got, _ := os.ReadFile(l.base + ".crt")
		if fresh := !bytes.Equal(served, got); fresh != tc.fresh {
			t.Errorf("%s: made anew %t, want %t", tc.name, fresh, tc.fresh)
		}
		served = got
	}
	if err := os.Remove(filepath.Join(tls, "client-ca.key")); err != nil {
		t.Fatal(err)
	}
	if err := ensureAuthorities(tls, now); err == nil || !strings.Contains(err.Error(), "only one of") {
		t.Errorf("half a CA: got %v", err)
	}
}
