package login

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// FreePort finds a TCP port of this machine for sshd. It is chosen here rather than by
// the engine, which would choose anew whenever the container restarts.
func FreePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("finding a free port for sshd: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Wait waits until sshd greets at an address and port, as long as the context lives.
func Wait(ctx context.Context, address string, port int) error {
	at := net.JoinHostPort(address, strconv.Itoa(port))
	for {
		err := greeting(ctx, at)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the host's sshd: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func greeting(ctx context.Context, address string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		// A container engine's or an emulator's port forwarding accepts before sshd does.
		return fmt.Errorf("no greeting: %w", err)
	}
	if !strings.HasPrefix(line, "SSH-2.0-") {
		return fmt.Errorf("an unexpected greeting %q", line)
	}
	return nil
}
