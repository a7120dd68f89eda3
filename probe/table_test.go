package probe

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// of is a target's availability from spans that follow each other from noon on.
func of(name, family string, spans ...Span) Availability {
	a := Availability{Name: name, Family: family}
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, s := range spans {
		length := s.To.Sub(time.Time{})
		s.From, s.To = at, at.Add(length)
		at = s.To
		a.Spans = append(a.Spans, s)
	}
	a.sum()
	return a
}

// was is a state for some seconds.
func was(state State, seconds float64, why ...string) Span {
	return Span{To: time.Time{}.Add(time.Duration(seconds * float64(time.Second))), State: state, Why: strings.Join(why, "")}
}

func TestTable(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	const long = "https://grafana.a-name-that-is-rather-long.observability.example.org/api/health?of=everything"
	const refused, blind = "connection refused", "this machine has no way to it over IPv6"
	for name, all := range map[string][]Availability{
		"nothing": nil,
		"usual": {
			of("API", IPv4, was(Up, 300), was(Down, 25.3, "nothing listens there"), was(Up, 200)),
			of("API", IPv6, was(Up, 300), was(Down, 25.3, "nothing listens there"), was(Up, 200)),
			of("https://sunbeam.pt/", IPv4, was(Up, 301), was(Down, 40, refused), was(Up, 2), was(Down, 4, "HTTP 503"), was(Up, 100)),
			of("https://sunbeam.pt/", IPv6, was(Absent, 345, "no address"), was(Down, 3, refused), was(Up, 99)),
		},
		"everything else": {
			of("API", IPv4, was(Up, 60), was(Down, 10, refused), was(Unknown, 320, NotWatched), was(Down, 5, refused), was(Up, 60)),
			of("API", IPv6, was(Up, 60), was(Unknown, 30, "the SSH connection to the host did not answer"), was(Up, 30), was(Unknown, 320, NotWatched), was(Up, 65)),
			of(long, IPv4, was(Up, 455)),
			of(long, IPv6, was(Unknown, 455, blind)),
			of("https://gone.example.org/", IPv4, was(Down, 455, "no answer within 2s")),
			of("https://gone.example.org/", IPv6, was(Absent, 455, "no address")),
			of("https://late.example.org/", IPv4, was(Up, 60), was(Down, 0.4, "said \x1b[31mno\r\n"), was(Up, 1), was(Down, 400, "HTTP 503")),
			of("https://late.example.org/x", IPv6, was(Up, 10), was(Absent, 10, "no address")),
			of("https://never.example.org/", IPv4),
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			require.NoError(t, Table(&b, all))
			path := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".golden")
			if *update {
				require.NoError(t, os.WriteFile(path, b.Bytes(), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err, "write it with -update")
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("%s differs (-want +got):\n%s", path, diff)
			}
			for line := range strings.Lines(b.String()) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width && !strings.HasPrefix(line, long) {
					t.Errorf("%d columns: %s", n, line)
				}
			}
		})
	}
}
