package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// listen serves at an address; the test ends where it has no such family.
func listen(t *testing.T, address string, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip(err)
	}
	s := httptest.NewUnstartedServer(handler)
	s.Listener.Close()
	s.Listener = l
	t.Cleanup(s.Close)
	return s
}

func TestURLFamilies(t *testing.T) {
	for text, want := range map[string][]string{
		"https://sunbeam.pt/":         {IPv4, IPv6},
		"http://192.0.2.1:8080/x?y":   {IPv4},
		"https://[2001:db8::1]/":      {IPv6},
		"https://[::ffff:192.0.2.1]/": {IPv4},
	} {
		targets, err := URL(text)
		require.NoError(t, err)
		var got []string
		for _, target := range targets {
			assert.Equal(t, text, target.Name)
			got = append(got, target.Family)
		}
		assert.Equal(t, want, got, text)
	}
	_, err := URL("http://[::1")
	assert.ErrorContains(t, err, "watching http://[::1")
}

func TestURLAnswers(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			s := listen(t, address, func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/moved":
					http.Redirect(w, r, "http://nowhere.invalid/", http.StatusMovedPermanently)
				case "/secret":
					w.WriteHeader(http.StatusUnauthorized)
				case "/broken":
					w.WriteHeader(http.StatusBadGateway)
				case "/mute":
					<-r.Context().Done()
				case "/cut":
					conn, _, _ := http.NewResponseController(w).Hijack()
					conn.Close()
				}
			})
			s.StartTLS() // with a certificate that nobody vouches for
			check := func(path string) error {
				targets, err := URL(s.URL + path)
				require.NoError(t, err)
				require.Len(t, targets, 1)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				return targets[0].Check(ctx)
			}
			for _, path := range []string{"/", "/moved", "/secret"} {
				assert.NoError(t, check(path), path)
			}
			assert.EqualError(t, check("/broken"), "HTTP 502")
			assert.ErrorIs(t, check("/mute"), context.DeadlineExceeded)
			assert.EqualError(t, check("/cut"), "EOF")
			s.Close()
			assert.EqualError(t, check("/"), "connection refused")
		})
	}
}

func TestExplain(t *testing.T) {
	wrapped := func(err error) error {
		return &url.Error{Op: "Get", URL: "https://sunbeam.pt/", Err: &net.OpError{Op: "dial", Net: "tcp6", Err: err}}
	}
	for name, test := range map[string]struct {
		err   error
		state State
		why   string
	}{
		"no such name":         {wrapped(&net.DNSError{Err: "no such host", IsNotFound: true}), Absent, "no address"},
		"of the other family":  {wrapped(&net.AddrError{Err: "no suitable address found"}), Absent, "no address"},
		"DNS is away":          {wrapped(&net.DNSError{Err: "i/o timeout", IsTimeout: true}), Unknown, "DNS did not answer"},
		"no route":             {wrapped(os.NewSyscallError("connect", syscall.ENETUNREACH)), Unknown, "this machine has no way to it over IPv6"},
		"the host is off":      {wrapped(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), Down, "no route to host"},
		"nothing listens":      {wrapped(os.NewSyscallError("connect", syscall.ECONNREFUSED)), Down, "connection refused"},
		"nothing is answered":  {wrapped(context.DeadlineExceeded), Down, "no answer within 2s"},
		"something else":       {&url.Error{Op: "Get", URL: "https://sunbeam.pt/", Err: errors.New("malformed HTTP response")}, Down, "malformed HTTP response"},
		"something else again": {errors.New("odd"), Down, "odd"},
	} {
		t.Run(name, func(t *testing.T) {
			state, why := judge(explain(test.err, IPv6))
			assert.Equal(t, test.state, state)
			assert.Equal(t, test.why, why)
		})
	}
}

// Servers of both families stop and start again while they are watched; one is not there at first, as a
// site's IPv6 before the migration.
func TestWatchURLs(t *testing.T) {
	var unready atomic.Bool
	handler := func(w http.ResponseWriter, _ *http.Request) {
		if unready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	four := listen(t, "127.0.0.1:0", handler)
	four.Start()
	port := four.Listener.Addr().(*net.TCPAddr).Port
	var targets []Target
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		more, err := URL(fmt.Sprintf("http://%s:%d/", host, port))
		require.NoError(t, err)
		targets = append(targets, more...)
	}
	path := filepath.Join(t.TempDir(), "availability.jsonl")
	w := Watch(t.Context(), path, targets, silent(t))
	time.Sleep(1500 * time.Millisecond)
	away := time.Now()
	four.Close()
	time.Sleep(2 * time.Second)
	unready.Store(true)
	four = listen(t, four.Listener.Addr().String(), handler)
	four.Start()
	time.Sleep(2 * time.Second)
	unready.Store(false)
	lasted := time.Since(away)
	listen(t, fmt.Sprintf("[::1]:%d", port), handler).Start()
	time.Sleep(2500 * time.Millisecond)
	w.Close()

	all := read(t, path, 2)
	var got []State
	for _, s := range all[0].Spans {
		got = append(got, s.State)
	}
	assert.Equal(t, []State{Up, Down, Up}, got, "%v", all[0].Spans)
	assert.InDelta(t, lasted.Seconds(), all[0].Down.Seconds(), 1.5)
	assert.WithinDuration(t, away, all[0].First, 1500*time.Millisecond)
	require.Len(t, all[1].Spans, 2, "%v", all[1].Spans)
	assert.Equal(t, Down, all[1].Spans[0].State)
	assert.Zero(t, all[1].Down)
	assert.WithinDuration(t, away.Add(lasted), all[1].Since, 1500*time.Millisecond)
}
