package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sunbeam.pt/k3s-dualstack/remote"
)

const (
	rebootDeadline = 15 * time.Minute // servers test their memory at length
	rebootStep     = 2 * time.Second
	rebootAsk      = 20 * time.Second // for one look, so that a line that hangs does not hold the wait
)

// restartMark notes on the host, until it is started anew, that it has to be: /run does not outlive a start.
const restartMark = "touch " + restartWanted

const restartWanted = "/run/k3s-dualstack-restart"

// restart is the operation that ends a return for which the host has to be started anew. Whatever makes
// that necessary runs [restartMark] before.
func (a Ask) restart(why string) Operation {
	return Operation{
		Name: "restart", Place: OnHost, Command: "systemctl reboot",
		Summary: "Restart the host and wait until it answers again; " + why,
		Run:     a.reboot,
		Done: func(ctx context.Context) (bool, error) {
			out, err := a.output(ctx, "looking whether it was restarted", "test -e "+restartWanted+" || echo restarted")
			return out == "restarted", err
		},
	}
}

// reboot restarts the host and waits until it answers with another boot id.
func (a Ask) reboot(ctx context.Context) error {
	h, err := a.Host(ctx)
	if err != nil {
		return err
	}
	before, err := h.Output(ctx, bootID)
	if err != nil {
		return failed(h, "reading its boot id", err)
	}
	// Detached, so that the answer comes before the line ends; a timer is a minute late unless told otherwise.
	err = h.Run(ctx, "sync; systemd-run --collect --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot")
	if err != nil && !errors.Is(err, remote.ErrConnectionLost) {
		return failed(h, "restarting it", err)
	}
	return answers(ctx, a, func(now string) bool { return now != before })
}

const bootID = "cat /proc/sys/kernel/random/boot_id"

// bootID is the host's, "" where it does not answer.
func (a Ask) bootID(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, rebootAsk)
	defer cancel()
	h, err := a.Host(ctx)
	if err != nil {
		return ""
	}
	id, _ := h.Output(ctx, bootID)
	return id
}

// answers waits until the host answers with a boot id that is the right one. It may be away from the beginning.
func answers(ctx context.Context, a Ask, right func(bootID string) bool) error {
	t := a.Progress.Wait("Waiting for the host to start and to answer")
	defer t.Done()
	deadline := time.Now().Add(rebootDeadline)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rebootStep):
		}
		look, cancel := context.WithTimeout(ctx, rebootAsk)
		now, err := a.output(look, "reading its boot id", bootID)
		cancel()
		switch {
		case err == nil && right(now):
			return nil
		case time.Now().Before(deadline):
			continue
		case err == nil:
			return fmt.Errorf("host %s: it was told to restart and has not done so for %s: restart it by hand, then repeat the command", a.Server.Name, rebootDeadline)
		default:
			return fmt.Errorf("host %s: it was restarted and does not answer after %s: look at its console, power it off and on where it hangs or has panicked, which loses nothing, then repeat the command: %w", a.Server.Name, rebootDeadline, err)
		}
	}
}
