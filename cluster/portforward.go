package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/httpstream/spdy"
	"k8s.io/client-go/rest"
)

// portForwardProtocol is the only one there is.
const portForwardProtocol = "portforward.k8s.io"

const (
	// forwardPing keeps a connection that waits from being taken for a dead one on its way.
	forwardPing = 5 * time.Second
	// forwardEnd bounds the wait for the reason of an end, and for a farewell.
	forwardEnd = 3 * time.Second
	// forwardReason bounds what is kept of a reason.
	forwardReason = 4 << 10
)

// DialPod connects to a TCP port of a pod, by a port-forward of the API server: the
// server in the pod sees a connection from localhost. ctx is for the dialling alone, as
// with a net.Dialer; closing the connection ends the forward.
//
// The API server accepts a port that nobody listens on. The first Read or Write then
// fails, with an error that names pod and port; so does one that the forward broke off
// under, where a stream that the pod ended reads as io.EOF.
func (c *Client) DialPod(ctx context.Context, namespace, pod string, port int) (net.Conn, error) {
	doing := fmt.Sprintf("forwarding to port %d of the pod %s/%s", port, namespace, pod)
	p, err := c.Kube.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%s: %s", doing, c.absent(ctx, namespace, "pod"))
	case err != nil:
		return nil, fmt.Errorf("%s: %w", doing, c.explain(err))
	case p.Status.Phase != corev1.PodRunning:
		return nil, fmt.Errorf("%s: the pod does not run: it is %s (%s)", doing, p.Status.Phase, podWaits(p))
	}

	link, session, err := c.forwardSession(ctx, namespace, pod)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, c.explain(err))
	}
	streams := make(chan *forwardStreams, 1)
	go func() { streams <- openForward(session, port) }() // it knows no context, only a long time
	select {
	case s := <-streams:
		if s.err != nil {
			link.Close()
			return nil, fmt.Errorf("%s: opening its streams: %w", doing, s.err)
		}
		return newPodConn(doing, port, link, session, s), nil
	case <-ctx.Done():
		link.Close()
		return nil, fmt.Errorf("%s: %w", doing, ctx.Err())
	}
}

// forwardSession asks the API server for a port-forward to a pod. link is the
// connection that the session is on.
func (c *Client) forwardSession(ctx context.Context, namespace, pod string) (link net.Conn, session httpstream.Connection, err error) {
	// client-go's own round tripper for SPDY ignores REST.Dial.
	tlsConfig, err := rest.TLSConfigFor(c.REST)
	if err != nil {
		return nil, nil, err
	}
	if tlsConfig == nil {
		tlsConfig = &tls.Config{} // without one, the upgrade would trust anybody
	}
	var dialled net.Conn
	watched := func() bool { return true }
	upgrade, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{
		PingPeriod: forwardPing,
		UpgradeTransport: &http.Transport{TLSClientConfig: tlsConfig, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := c.REST.Dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			// The upgrade does not look at ctx while it waits for an answer.
			dialled, watched = conn, context.AfterFunc(ctx, func() { conn.Close() })
			return conn, nil
		}},
	})
	if err != nil {
		return nil, nil, err
	}
	transport, err := rest.HTTPWrappersForConfig(c.REST, upgrade)
	if err != nil {
		return nil, nil, err
	}
	url := c.Kube.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(pod).SubResource("portforward").URL()
	session, err = upgraded(ctx, transport, upgrade, url.String())
	if !watched() { // ctx ended, and closed it
		err = ctx.Err()
	}
	if err != nil {
		if dialled != nil {
			dialled.Close()
		}
		return nil, nil, err
	}
	return dialled, session, nil
}

// upgraded makes a request and a session of its answer.
func upgraded(ctx context.Context, transport http.RoundTripper, upgrade *spdy.SpdyRoundTripper, url string) (httpstream.Connection, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, portForwardProtocol)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	session, err := upgrade.NewConnection(resp)
	if err != nil {
		return nil, err
	}
	if got := resp.Header.Get(httpstream.HeaderProtocolVersion); got != portForwardProtocol {
		return nil, fmt.Errorf("the API server speaks %q, not %q", got, portForwardProtocol)
	}
	return session, nil
}

// forwardStreams are the two streams of one forwarded connection.
type forwardStreams struct {
	data, reason httpstream.Stream
	err          error
}

func openForward(session httpstream.Connection, port int) *forwardStreams {
	s := &forwardStreams{}
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0") // one connection, one request
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	if s.reason, s.err = session.CreateStream(headers); s.err != nil {
		return s
	}
	s.reason.Close() // nothing is written to it
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	s.data, s.err = session.CreateStream(headers)
	return s
}

// podConn is a forwarded connection: one end of a pipe, which has the deadlines that
// streams lack. Its other end is copied to the streams and from them.
type podConn struct {
	net.Conn
	doing   string
	port    int
	link    net.Conn
	session httpstream.Connection
	close   sync.Once

	mu     sync.Mutex
	failed error // why the connection is no more; nil: it is, or the pod ended it
}

func newPodConn(doing string, port int, link net.Conn, session httpstream.Connection, s *forwardStreams) *podConn {
	near, far := net.Pipe()
	p := &podConn{Conn: near, doing: doing, port: port, link: link, session: session}
	reason := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(s.reason, forwardReason))
		reason <- strings.TrimSpace(string(text))
	}()
	go io.Copy(s.data, far)
	go func() {
		io.Copy(far, s.data)
		p.fail(p.end(s.data, reason))
		far.Close()
	}()
	return p
}

// end tells why nothing more comes from the pod, nil if the pod said so.
func (p *podConn) end(data httpstream.Stream, reason <-chan string) error {
	lost := false
	select {
	case <-p.session.CloseChan(): // before the streams are ended for it
		lost = true
	default:
	}
	var said string
	select {
	case said = <-reason:
	case <-time.After(forwardEnd):
	}
	// A stream that was reset reads like one that was ended, but takes no end from here.
	lost = data.Close() != nil || lost
	switch {
	case strings.Contains(said, "connection refused"):
		return fmt.Errorf("%s: nothing in the pod listens on port %d (%s)", p.doing, p.port, said)
	case said != "":
		return fmt.Errorf("%s: %s", p.doing, said)
	case lost:
		return fmt.Errorf("%s: the connection to the API server was lost: %w", p.doing, io.ErrUnexpectedEOF)
	}
	return nil
}

// fail keeps the first reason alone.
func (p *podConn) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil {
		p.failed = err
	}
}

func (p *podConn) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	return n, p.why(err)
}

func (p *podConn) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(b)
	return n, p.why(err)
}

// why puts the reason for the other end's closing in the place of the pipe's error.
func (p *podConn) why(err error) error {
	if err != io.EOF && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil {
		return p.failed
	}
	return err
}

// Close ends the forward. It does not wait for the API server.
func (p *podConn) Close() error {
	p.close.Do(func() {
		p.fail(net.ErrClosed)
		p.Conn.Close()
		force := time.AfterFunc(forwardEnd, func() { p.link.Close() }) // a dead link takes no farewell
		go func() {
			p.session.Close()
			<-p.session.CloseChan()
			force.Stop()
			p.link.Close()
		}()
	})
	return nil
}
