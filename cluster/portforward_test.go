package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
)

// kubelet answers for pods as the API server and the kubelet behind it do, with
// Kubernetes' own server side of the protocol. A pod's port is the port of this
// machine. The e2e tests have a real one.
type kubelet struct {
	pods map[string]corev1.PodStatus
	hang chan struct{} // a port-forward to the pod "slow" waits for it
	mu   sync.Mutex
	open []httpstream.Connection
}

func (k *kubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/"), "/")
	answer := func(code int, object any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(object)
	}
	refuse := func(err *apierrors.StatusError) {
		status := err.ErrStatus
		status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		answer(int(status.Code), status)
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer secret-token":
		refuse(apierrors.NewUnauthorized("no token"))
		return
	case parts[0] != "data":
		refuse(apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, parts[0]))
		return
	case len(parts) == 1:
		answer(http.StatusOK, &corev1.Namespace{TypeMeta: metav1.TypeMeta{Kind: "Namespace", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "data"}})
		return
	}
	name := parts[2]
	status, ok := k.pods[name]
	switch {
	case !ok:
		refuse(apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name))
	case len(parts) == 3:
		answer(http.StatusOK, &corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "data", Name: name}, Status: status})
	case name == "forbidden":
		refuse(apierrors.NewForbidden(schema.GroupResource{Resource: "pods/portforward"}, name, fmt.Errorf("no role")))
	default:
		if name == "slow" {
			<-k.hang
		}
		k.forward(w, r, name == "mute")
	}
}

// forward serves one port-forward; mute: it answers no stream.
func (k *kubelet) forward(w http.ResponseWriter, r *http.Request, mute bool) {
	if _, err := httpstream.Handshake(r, w, []string{portForwardProtocol}); err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 2)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
		if mute {
			<-k.hang
		}
		streams <- s
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	k.mu.Lock()
	k.open = append(k.open, conn)
	k.mu.Unlock()
	var failed, data httpstream.Stream
	for range 2 {
		select {
		case s := <-streams:
			if s.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
				failed = s
			} else {
				data = s
			}
		case <-conn.CloseChan():
			return
		}
	}
	go func() {
		defer data.Close()
		defer failed.Close()
		port := data.Headers().Get(corev1.PortHeader)
		pod, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			fmt.Fprintf(failed, "error forwarding port %s to pod 0815: %v", port, err)
			return
		}
		defer pod.Close()
		go func() {
			io.Copy(pod, data)
			_ = pod.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(data, pod)
	}()
	<-conn.CloseChan()
}

// cutter is a dialer whose connections can be cut, as SSH's is.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (d *cutter) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.conns = append(d.conns, conn)
	}
	return conn, err
}

func (d *cutter) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, conn := range d.conns {
		conn.Close()
	}
}

// broken ends all connections in good order, as an API server that is stopped does.
func (k *kubelet) broken() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.open {
		c.Close()
	}
}

func forwarded(t *testing.T) (*kubelet, *Client) {
	t.Helper()
	running := corev1.PodStatus{Phase: corev1.PodRunning}
	k := &kubelet{hang: make(chan struct{}), pods: map[string]corev1.PodStatus{
		"db-0": running, "forbidden": running, "slow": running, "mute": running,
		"new-0": {Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{Name: "db", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "not found"}}}}},
		"done":  {Phase: corev1.PodSucceeded},
	}}
	c := served(t, k)
	t.Cleanup(func() { close(k.hang) }) // before the server waits for its handlers
	return k, c
}

// listening is a port of this machine, for the pod's.
func listening(t *testing.T, serve func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func echo(conn net.Conn) {
	defer conn.Close()
	io.Copy(conn, conn)
}

// goroutinesEnd asserts that no more goroutines are left than there were when it was called.
func goroutinesEnd(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		assert.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 /* Eventually's own */ }, 20*time.Second, 50*time.Millisecond, "goroutines are left")
	})
}

func TestDialPod(t *testing.T) {
	_, c := forwarded(t)
	port := listening(t, echo)
	conn, err := c.DialPod(t.Context(), "data", "db-0", port)
	require.NoError(t, err)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { conn.Write(sent) }()
	got := make([]byte, len(sent))
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	assert.Equal(t, sha256.Sum256(sent), sha256.Sum256(got))

	require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = conn.Read(got)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
	require.NoError(t, conn.SetReadDeadline(time.Time{}))
	_, err = conn.Write([]byte("again"))
	require.NoError(t, err, "a deadline that passed harms nothing that comes after it")
	_, err = io.ReadFull(conn, got[:5])
	require.NoError(t, err)

	require.NoError(t, conn.Close())
	require.NoError(t, conn.Close())
	_, err = conn.Read(got)
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = conn.Write(got)
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestDialPodEnds(t *testing.T) {
	k, c := forwarded(t)
	links := &cutter{}
	c.REST.Dial = links.DialContext
	t.Run("by the pod", func(t *testing.T) {
		port := listening(t, func(conn net.Conn) {
			io.WriteString(conn, "bye")
			conn.Close()
		})
		conn, err := c.DialPod(t.Context(), "data", "db-0", port)
		require.NoError(t, err)
		defer conn.Close()
		got, err := io.ReadAll(conn)
		require.NoError(t, err)
		assert.Equal(t, "bye", string(got))
	})
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		conn, err := c.DialPod(t.Context(), "data", "db-0", port)
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
		want := fmt.Sprintf("forwarding to port %d of the pod data/db-0: nothing in the pod listens on port %d", port, port)
		require.ErrorContains(t, err, want)
		_, err = conn.Write([]byte("x"))
		require.ErrorContains(t, err, want)

		_, err = through(c, "db-0", port).Get("http://db-0/")
		require.ErrorContains(t, err, want)
	})
	for how, breakOff := range map[string]func(){"by the API server": k.broken, "with the link": links.cut} {
		t.Run(how, func(t *testing.T) {
			conn, err := c.DialPod(t.Context(), "data", "db-0", listening(t, echo))
			require.NoError(t, err)
			defer conn.Close()
			_, err = conn.Write([]byte("x"))
			require.NoError(t, err)
			got := make([]byte, 1)
			_, err = io.ReadFull(conn, got)
			require.NoError(t, err)
			breakOff()
			_, err = conn.Read(got)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF, "that is no end of what the pod has to say")
			require.ErrorContains(t, err, "the connection to the API server was lost")
		})
	}
}

func TestDialPodRefuses(t *testing.T) {
	_, c := forwarded(t)
	for _, tc := range []struct{ namespace, pod, want string }{
		{"none", "db-0", "forwarding to port 8200 of the pod none/db-0: there is no namespace none"},
		{"data", "db-1", "forwarding to port 8200 of the pod data/db-1: there is no such pod"},
		{"data", "new-0", "the pod does not run: it is Pending (db: ErrImagePull (not found))"},
		{"data", "done", "the pod does not run: it is Succeeded"},
		{"data", "a/b", "forwarding to port 8200 of the pod data/a/b"},
		{"data", "forbidden", "no role"},
	} {
		_, err := c.DialPod(t.Context(), tc.namespace, tc.pod, 8200)
		require.ErrorContains(t, err, tc.want)
		require.NotContains(t, err.Error(), "secret-token")
	}
	var refused *UnauthorisedError
	_, err := c.DialPod(t.Context(), "data", "forbidden", 8200)
	require.ErrorAs(t, err, &refused)
}

// Both the answer to the request and the answer to the streams may not come.
func TestDialPodHonoursItsContext(t *testing.T) {
	_, c := forwarded(t)
	for _, pod := range []string{"slow", "mute"} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := c.DialPod(ctx, "data", pod, 8200)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded, pod)
		require.ErrorContains(t, err, "data/"+pod)
	}
}

// through is an HTTP client of a pod's port.
func through(c *Client, pod string, port int) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.DialPod(ctx, "data", pod, port)
	}}}
}

func TestDialPodCarriesHTTP(t *testing.T) {
	goroutinesEnd(t)
	k, c := forwarded(t)
	const size = 1 << 20
	stalled := make(chan struct{})
	pod := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stall":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			close(stalled)
			<-r.Context().Done()
		default:
			w.Write(bytes.Repeat([]byte(r.URL.Path[1:]), size))
		}
	}))
	t.Cleanup(pod.Close)
	client := through(c, "db-0", pod.Listener.Addr().(*net.TCPAddr).Port)
	t.Cleanup(client.CloseIdleConnections)

	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			want := string(rune('a' + i))
			resp, err := client.Get("http://db-0/" + want)
			if !assert.NoError(t, err) {
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			assert.NoError(t, err)
			assert.Equal(t, size, bytes.Count(got, []byte(want)))
		})
	}
	all.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://db-0/stall", nil)
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	<-stalled
	cancel()
	_, err = io.ReadAll(resp.Body)
	require.ErrorIs(t, err, context.Canceled)
	resp.Body.Close()
	client.CloseIdleConnections()
	require.Eventually(t, func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, conn := range k.open {
			select {
			case <-conn.CloseChan():
			default:
				return false
			}
		}
		return true
	}, 20*time.Second, 10*time.Millisecond, "the API server keeps connections")
}
