package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
	"sunbeam.pt/k3s-dualstack/plans"
)

// Host is a machine reached over SSH, commands running as root. It is safe for concurrent use. When its
// connection is lost, calls under way fail with ErrConnectionLost and the next call connects anew.
type Host struct {
	settings *settings
	turn     chan struct{} // held while connecting, so that one caller connects for all
	current  *conn         // guarded by turn
	life     context.Context
	end      context.CancelFunc // ends life: Close was called
}

// Dial connects to the host as the plan says, checks every host key on the way against known_hosts (but see Rescue), and
// proves that commands can run as root. It tries once: its error is an *UnknownHostKeyError, a
// *ChangedHostKeyError, an *AuthError, an *UnreachableError or a *SudoError wherever one of these is the cause.
func Dial(ctx context.Context, h plans.Host, opts ...DialOption) (*Host, error) {
	s, err := newSettings(h, opts)
	if err != nil {
		return nil, err
	}
	return dial(ctx, s)
}

func dial(ctx context.Context, s *settings) (*Host, error) {
	c, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	return &Host{settings: s, turn: make(chan struct{}, 1), current: c, life: life, end: end}, nil
}

// Another opens a further connection of its own with the same settings, keys and pinned host key, for streams
// in parallel: one connection carries at most 2 MiB per round trip and stream.
func (h *Host) Another(ctx context.Context) (*Host, error) { return dial(ctx, h.settings) }

// Name is the plan's name of the host.
func (h *Host) Name() string { return h.settings.plan.Name }

// HostKey is the SHA256 fingerprint of the host key, as ssh-keygen prints it.
func (h *Host) HostKey() string {
	h.settings.mu.Lock()
	defer h.settings.mu.Unlock()
	return ssh.FingerprintSHA256(h.settings.pinned[len(h.settings.pinned)-1])
}

// Close ends the connection; commands under way fail. Jobs go on. It may be called more than once.
func (h *Host) Close() error {
	h.end() // also of a call that is connecting anew and holds the turn
	h.turn <- struct{}{}
	defer func() { <-h.turn }()
	if h.current != nil {
		h.current.close()
		h.current = nil
	}
	return nil
}

// connection returns the live connection, made anew when it was lost: at growing intervals and for a
// bounded time, since a host that reboots needs a minute or two.
func (h *Host) connection(ctx context.Context) (*conn, error) {
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.turn }()
	if h.life.Err() != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name(), ErrClosed)
	}
	if h.current != nil && h.current.alive() {
		return h.current, nil
	}
	if h.current != nil {
		h.current.close()
		h.current = nil
	}
	c, err := h.redial(ctx)
	if err != nil {
		return nil, err
	}
	h.current = c
	return c, nil
}

// Answers asks the host for a sign of life over the connection that there is; the error is ErrConnectionLost.
// Unlike every other call it does not connect anew, and so can be made as often as one likes.
func (h *Host) Answers(ctx context.Context) error {
	lost := fmt.Errorf("host %s: %w", h.Name(), ErrConnectionLost)
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return lost // another call is connecting
	}
	c := h.current
	<-h.turn
	if c == nil || !c.alive() {
		return lost
	}
	answered := make(chan error, 1)
	go func() { // ends with the connection when nothing is answered
		_, _, err := c.SendRequest("keepalive@openssh.com", true, nil)
		answered <- err
	}()
	select {
	case err := <-answered:
		if err == nil {
			return nil
		}
	case <-ctx.Done():
	}
	return lost
}

// refusals is how often a login may be refused while connecting anew: a host that is still booting lets
// nobody but root in, and one that counts failures must not be provoked.
const refusals = 3

func (h *Host) redial(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.life, func() { cancel(ErrClosed) })()
	s := h.settings
	deadline := time.Now().Add(s.redialFor)
	pause := s.backoff
	refused := 0
	for {
		c, err := s.connect(ctx)
		if err == nil {
			return c, nil
		}
		var unreachable *UnreachableError
		var auth *AuthError
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("host %s: connecting anew: %w", h.Name(), context.Cause(ctx))
		case errors.As(err, &unreachable), errors.Is(err, ErrConnectionLost):
		case errors.As(err, &auth) && refused < refusals-1:
			refused++
			pause = max(pause, s.maxBackoff/3)
		default:
			return nil, err
		}
		if time.Now().Add(pause).After(deadline) {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("host %s: connecting anew: %w (last try: %w)", h.Name(), context.Cause(ctx), err)
		}
		pause = min(2*pause, s.maxBackoff)
	}
}
