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

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
)

// listen serves at an address.
func listen(t *testing.T, address string, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
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
			if address == "[::1]:0" {
				sshtest.IPv6(t)
			}
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
				within := 30 * time.Second
				if path == "/mute" {
					within = time.Second
				}
				ctx, cancel := context.WithTimeout(t.Context(), within)
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
	sshtest.IPv6(t)
	var unready atomic.Bool
	var refused atomic.Int32
	handler := func(w http.ResponseWriter, _ *http.Request) {
		if unready.Load() {
			refused.Add(1)
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
	end := ending(t, w)
	await(t, w, 0, Up)
	await(t, w, 1, Down)
	four.Close()
	await(t, w, 0, Down)
	unready.Store(true)
	four = listen(t, four.Listener.Addr().String(), handler)
	four.Start()
	// What the first answer meant is noted before the second is asked for.
	require.Eventually(t, func() bool { return refused.Load() > 1 }, time.Minute, 10*time.Millisecond)
	assert.NotEqual(t, Up, w.state(0))
	unready.Store(false)
	await(t, w, 0, Up)
	listen(t, fmt.Sprintf("[::1]:%d", port), handler).Start()
	await(t, w, 1, Up)
	end()

	all := read(t, path, 2)
	assert.Equal(t, []State{Up, Down, Up}, order(all[0]), "%v", all[0].Spans)
	assert.Equal(t, []State{Down, Up}, order(all[1]), "%v", all[1].Spans)
	assert.Zero(t, all[1].Down, "it was not offered before")
}

// order are the states one after the other, but for what a machine makes of it that is too busy to look or to answer.
func order(a Availability) (out []State) {
	_, mute := judge(context.DeadlineExceeded)
	for _, s := range a.Spans {
		slow := s.State == Unknown || s.Why == mute
		if !slow && (len(out) == 0 || out[len(out)-1] != s.State) {
			out = append(out, s.State)
		}
	}
	return out
}
