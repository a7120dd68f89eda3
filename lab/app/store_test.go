package main

import (
	"context"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newStore(t *testing.T) *store {
	if os.Geteuid() != 0 {
		t.Skip("the tree has files of many owners, which only root can make")
	}
	dir := t.TempDir()
	s := &store{small: filepath.Join(dir, "small"), large: filepath.Join(dir, "large"), files: 100, mib: 2}
	for _, volume := range []string{s.small, s.large} {
		if err := os.Mkdir(volume, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestStoreIsFilledOnce(t *testing.T) {
	s := newStore(t)
	first, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.open()
	if err != nil || again.ID != first.ID {
		t.Errorf("a second start found %v, %v; the first made %v", again, err, first)
	}
}

func TestStoreRefusesLoss(t *testing.T) {
	for name, lose := range map[string]func(s *store) error{
		"one volume came back empty": func(s *store) error { os.RemoveAll(s.large); return os.Mkdir(s.large, 0o777) },
		"a volume came back in part": func(s *store) error { return os.Remove(filepath.Join(s.small, markerFile)) },
		"a volume is another store's": func(s *store) error {
			return os.WriteFile(filepath.Join(s.large, markerFile), []byte(`{"id":"x"}`), 0o644)
		},
		"an identity that is not legible": func(s *store) error { return os.WriteFile(filepath.Join(s.large, markerFile), nil, 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			if _, err := s.open(); err != nil {
				t.Fatal(err)
			}
			if err := lose(s); err != nil {
				t.Fatal(err)
			}
			if who, err := s.open(); err == nil {
				t.Errorf("accepted as %v", who)
			}
		})
	}
}

func TestStoreResumesAFillThatWasCutOff(t *testing.T) {
	s := newStore(t)
	for _, volume := range []string{s.small, s.large} {
		if err := os.WriteFile(filepath.Join(volume, fillingFile), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.open(); err != nil {
		t.Error(err)
	}
}

func TestHeartbeatsGoOnWhereTheyEnded(t *testing.T) {
	s := newStore(t)
	log := filepath.Join(s.small, heartbeatFile)
	if err := os.WriteFile(log, []byte("1 then\n2 later\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.beat(ended); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(string(data), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[2], "3 ") {
		t.Errorf("the log is %q", data)
	}
}

func TestProxyForwards(t *testing.T) {
	behind := httptest.NewServer(web("behind"))
	defer behind.Close()
	target, err := url.Parse(behind.URL)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(proxy(target, behind.Client().Transport))
	defer front.Close()
	var out strings.Builder
	if err := get(t.Context(), client("4"), front.URL+"/anything", &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"service":"behind"`, `"forwarded":"127.0.0.1"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the answer %s lacks %s", out.String(), want)
		}
	}
}
