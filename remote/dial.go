package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"sunbeam.pt/k3s-dualstack/plans"
)

// askTimeout is for the passphrase of a key; sshd's LoginGraceTime is no longer by default.
const askTimeout = 2 * time.Minute

// DialOption changes how Dial logs in.
type DialOption func(*settings)

// settings are what every connection to one host shares.
type settings struct {
	plan     plans.Host
	route    []endpoint
	keys     *keyring
	stateDir string

	connectTimeout time.Duration // for TCP, key exchange and login of one server
	keepalive      time.Duration // between two keepalives
	missed         int           // unanswered keepalive intervals after which the connection is dead
	redialFor      time.Duration // how long a call tries to connect anew before it fails
	backoff        time.Duration // first pause between attempts; doubles up to maxBackoff
	maxBackoff     time.Duration

	rescue *rescue // nil for every host but a rescue system

	mu     sync.Mutex
	pinned []ssh.PublicKey // host key of each server of the route, fixed by the first connection
}

func newSettings(h plans.Host, opts []DialOption) (*settings, error) {
	r, err := route(h)
	if err != nil {
		return nil, err
	}
	s := &settings{
		plan:           h,
		route:          r,
		keys:           &keyring{},
		stateDir:       StateDir,
		connectTimeout: 20 * time.Second,
		keepalive:      15 * time.Second,
		missed:         3,
		redialFor:      2 * time.Minute,
		backoff:        500 * time.Millisecond,
		maxBackoff:     15 * time.Second,
		pinned:         make([]ssh.PublicKey, len(r)),
	}
	for _, o := range opts {
		o(s)
	}
	return s, nil
}

// conn is one SSH connection to the host, through its jump hosts.
type conn struct {
	*ssh.Client
	sudo bool
	dead chan struct{} // closed once the connection has ended, for whatever reason
	done sync.WaitGroup
	hops []*ssh.Client // jump hosts, first hop first
	// slots are taken by running commands, so that none is refused for being one too many.
	slots chan struct{}
}

// connect builds the chain of connections, checks every host key, logs in and makes sure that commands can
// run as root. The error is one of the typed ones wherever the cause is known.
func (s *settings) connect(ctx context.Context) (*conn, error) {
	c := &conn{dead: make(chan struct{}), slots: make(chan struct{}, maxSessions)}
	for i := range s.route {
		client, err := s.login(ctx, c.Client, i)
		if c.Client != nil {
			c.hops = append(c.hops, c.Client)
		}
		if err != nil {
			c.closeHops()
			return nil, err
		}
		c.Client = client
	}
	c.done.Go(func() {
		_ = c.Wait()
		close(c.dead)
		c.closeHops()
	})
	c.done.Go(func() { c.keepAlive(s.keepalive, s.missed) })
	if err := s.becomeRoot(ctx, c); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// close ends the connection and waits for all that serves it.
func (c *conn) close() {
	c.cut()
	c.done.Wait()
}

// cut ends the connection, the first hop first: closing what goes through a hop sends a message, which a
// network that swallows everything would never take.
func (c *conn) cut() {
	c.closeHops()
	c.Client.Close()
}

func (c *conn) closeHops() {
	for _, hop := range c.hops {
		hop.Close()
	}
}

func (c *conn) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return true
	}
}

// login connects to the route's server i, through the client of the one before it when there is one.
func (s *settings) login(ctx context.Context, through *ssh.Client, i int) (*ssh.Client, error) {
	e, via := s.route[i], ""
	if i > 0 {
		via = s.route[i-1].String()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tooSlow := fmt.Errorf("no answer within %s", s.connectTimeout)
	timer := time.AfterFunc(s.connectTimeout, func() { cancel(tooSlow) })
	defer timer.Stop()
	unreachable := func(err error) error {
		switch cause := context.Cause(ctx); {
		case cause == tooSlow:
			err = tooSlow
		case cause != nil:
			return fmt.Errorf("host %s: connecting to %s: %w", s.plan.Name, joinHostPort(e.address, e.port), cause)
		}
		return &UnreachableError{Host: s.plan.Name, Address: e.address, Port: e.port, Via: via, Err: err}
	}

	keys, err := readHostKeys(e)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", s.plan.Name, err)
	}
	offer, err := s.keys.offer(e)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", s.plan.Name, err)
	}
	defer offer.close()

	address := joinHostPort(e.address, e.port)
	var raw net.Conn
	if through != nil {
		raw, err = through.DialContext(ctx, "tcp", address)
	} else {
		raw, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	if err != nil {
		return nil, unreachable(err)
	}
	// A connection through a jump host knows no deadlines: closing it is what ends the handshake in time.
	stop := context.AfterFunc(ctx, func() { raw.Close() })

	rescue := s.rescue
	if i < len(s.route)-1 {
		rescue = nil // the way there is checked as ever
	}
	var keyErr error
	cc, channels, requests, err := ssh.NewClientConn(raw, address, &ssh.ClientConfig{
		User:              e.user,
		Auth:              append(rescue.auth(offer), ssh.PublicKeysCallback(func() ([]ssh.Signer, error) { return offer.signers, nil })),
		HostKeyAlgorithms: keys.algorithms(),
		HostKeyCallback: func(hostname string, remote net.Addr, key ssh.PublicKey) error {
			if rescue == nil {
				keyErr = keys.explain(s.plan.Name, via, e, key, keys.check(hostname, remote, key))
			}
			if keyErr == nil {
				keyErr = s.pin(i, key)
			}
			if keyErr == nil && s.keys.ask != nil && ctx.Err() == nil {
				timer.Reset(s.connectTimeout + askTimeout) // a person may have to type a passphrase now
			}
			return keyErr
		},
	})
	inTime := stop()
	switch {
	case keyErr != nil:
		raw.Close()
		return nil, keyErr
	case err != nil:
		raw.Close()
		var locked *unlockError
		if errors.As(err, &locked) {
			return nil, fmt.Errorf("host %s: %w", s.plan.Name, locked)
		}
		if strings.Contains(err.Error(), "unable to authenticate") || strings.Contains(err.Error(), "Too many authentication failures") {
			return nil, &AuthError{Host: s.plan.Name, User: e.user, Address: e.address, Port: e.port, Tried: offer.tried, Unused: offer.unused, Err: err}
		}
		return nil, unreachable(err)
	case !inTime:
		cc.Close()
		return nil, unreachable(ctx.Err())
	}
	return ssh.NewClient(cc, channels, requests), nil
}

// pin holds each server of the route to the key it showed first: a reconnection must reach the same machine.
func (s *settings) pin(i int, key ssh.PublicKey) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.pinned[i]
	if before == nil {
		s.pinned[i] = key
		return nil
	}
	if sameKey(before, key) {
		return nil
	}
	e := s.route[i]
	return &ChangedHostKeyError{Host: s.plan.Name, Address: e.address, Port: e.port, Key: key, Known: []knownhosts.KnownKey{{Key: before}}}
}

// keepAlive asks the host for a sign of life. A laptop that slept or a network that went away leaves
// connections that look open for hours; this one ends after missed intervals without an answer.
func (c *conn) keepAlive(every time.Duration, missed int) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	answered := make(chan struct{}, 1)
	waiting := 0
	for {
		select {
		case <-c.dead:
			return
		case <-answered:
			waiting = 0
		case <-tick.C:
			if waiting > 0 {
				if waiting++; waiting > missed {
					c.cut()
					return
				}
				continue
			}
			waiting = 1
			c.done.Go(func() {
				if _, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err == nil {
					answered <- struct{}{}
				}
			})
		}
	}
}

// becomeRoot finds out how commands become root: by being root, or by sudo without a password.
func (s *settings) becomeRoot(ctx context.Context, c *conn) error {
	e := s.route[len(s.route)-1]
	var out, stderr bytes.Buffer
	err := c.exec(ctx, "id -u", runOptions{stdout: &out, stderr: &stderr})
	if err != nil {
		return fmt.Errorf("host %s: asking for the user id: %w", s.plan.Name, err)
	}
	id := strings.TrimSpace(out.String())
	if _, err := strconv.ParseUint(id, 10, 32); err != nil {
		return fmt.Errorf("host %s: asking for the user id: the answer is %.200q; if the login shell of %s prints text for commands (.bashrc), end that, as it would stand in every file that is read", s.plan.Name, id, e.user)
	}
	if id == "0" {
		return nil
	}
	if !s.plan.Sudo {
		return &SudoError{Host: s.plan.Name, User: e.user, Reason: SudoOff}
	}
	stderr.Reset()
	err = c.exec(ctx, "env LC_ALL=C sudo -n -- true", runOptions{stderr: &stderr})
	var exit *ExitError
	switch {
	case err == nil:
		c.sudo = true
		return nil
	case errors.As(err, &exit) && sudoReason(exit) == SudoPassword && s.rescue != nil:
		return s.rescue.allowSudo(ctx, s, c)
	case errors.As(err, &exit):
		return &SudoError{Host: s.plan.Name, User: e.user, Reason: sudoReason(exit), Stderr: exit.Stderr}
	}
	return fmt.Errorf("host %s: trying sudo: %w", s.plan.Name, err)
}

func sudoReason(exit *ExitError) SudoReason {
	said := exit.Stderr
	switch {
	case exit.Code == 127 || strings.Contains(said, "No such file or directory"):
		return SudoMissing
	case strings.Contains(said, "must have a tty"):
		return SudoTerminal
	case strings.Contains(said, "password is required"), strings.Contains(said, "no tty present"):
		return SudoPassword
	case strings.Contains(said, "sudoers"), strings.Contains(said, "may not run sudo"), strings.Contains(said, "not allowed"):
		return SudoForbidden
	}
	return SudoFailed
}
