package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"
)

// DialContext opens a TCP connection from the host to address, through the SSH connection. It honours
// deadlines, as net/http needs. Closing it closes both directions.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("host %s: %s cannot be dialled through SSH, only tcp", h.Name(), network)
	}
	if _, port, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("host %s: dialling through SSH: %w", h.Name(), err)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, fmt.Errorf("host %s: dialling %s through SSH: the port is not a number", h.Name(), address)
	}
	for {
		c, err := h.connection(ctx)
		if err != nil {
			return nil, err
		}
		channel, err := c.dial(ctx, network, address)
		var refused *ssh.OpenChannelError
		switch {
		case err == nil:
			return withDeadlines(channel), nil
		case ctx.Err() == nil && !errors.As(err, &refused):
			// The connection ended, and nothing was sent through it: the next one is as good.
			c.cut()
			<-c.dead
			continue
		}
		return nil, fmt.Errorf("host %s: dialling %s through SSH: %w", h.Name(), address, err)
	}
}

// dial opens a channel, and does not wait on a connection that has ended (see session).
func (c *conn) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-c.dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	return c.Client.DialContext(ctx, network, address)
}

// closeGrace is how long a closed connection may take to send what was written before.
const closeGrace = 5 * time.Second

// withDeadlines puts an in-memory pipe before an SSH channel: the library's channels know no deadlines.
func withDeadlines(channel net.Conn) net.Conn {
	near, far := net.Pipe()
	t := &tunnel{Conn: near, channel: channel}
	go func() {
		_, _ = io.Copy(channel, far)
		channel.Close()
	}()
	go func() {
		_, _ = io.Copy(far, channel)
		far.Close()
	}()
	return t
}

type tunnel struct {
	net.Conn
	channel net.Conn
}

func (t *tunnel) LocalAddr() net.Addr  { return t.channel.LocalAddr() }
func (t *tunnel) RemoteAddr() net.Addr { return t.channel.RemoteAddr() }

func (t *tunnel) Close() error {
	err := t.Conn.Close()
	// A peer that reads nothing would hold what is still unsent, and with it the channel, for good.
	time.AfterFunc(closeGrace, func() { t.channel.Close() })
	return err
}
