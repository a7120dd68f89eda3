package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Detailer shows a person what a wait still waits for. A *progress.Task is one,
// the nil one included; a nil Detailer shows nothing.
type Detailer interface{ Detail(string) }

// lookTime bounds one look at the cluster, so that a connection that hangs costs
// a wait one look and not all its time. diagnoseTime is what is allowed for
// finding out why, once the time is up.
const (
	lookTime     = 15 * time.Second
	diagnoseTime = 15 * time.Second
)

// WaitError says that the time for a wait was up, what was missing then, and why.
type WaitError struct {
	For     string   // what was waited for
	Missing []string // one thing each, with the reason as far as the cluster tells it
	Outage  error    // the API gave no answer at the last look; nil if it did
	Err     error    // the context's error
}

func (e *WaitError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "waiting for %s: ", e.For)
	if errors.Is(e.Err, context.DeadlineExceeded) {
		s.WriteString("time is up")
	} else {
		s.WriteString(e.Err.Error())
	}
	if e.Outage != nil {
		fmt.Fprintf(&s, ": %v", e.Outage)
	}
	if len(e.Missing) == 1 {
		fmt.Fprintf(&s, ": %s", e.Missing[0])
	} else {
		for _, m := range e.Missing {
			fmt.Fprintf(&s, "\n  - %s", m)
		}
	}
	return s.String()
}

func (e *WaitError) Unwrap() []error {
	if e.Outage != nil {
		return []error{e.Err, e.Outage}
	}
	return []error{e.Err}
}

// wait looks every second until nothing is missing. look returns what is missing
// in short; an error of the API's absence is waited out, any other ends the wait.
// When ctx's deadline passes, why (if not nil) is asked once for the long
// reasons, with a context that still has time.
func (c *Client) wait(ctx context.Context, what string, t Detailer, look func(context.Context) ([]string, error), why func(context.Context) []string) error {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	var missing []string
	var outage error
	for {
		once, cancel := context.WithTimeout(ctx, lookTime)
		now, err := look(once)
		cancel()
		switch {
		case err != nil && late(ctx):
			// The look was cut off by the deadline itself, or not begun for it: what the
			// one before saw stands.
		case err == nil && len(now) == 0:
			return nil
		case err == nil:
			missing, outage = now, nil
		case away(err):
			outage = c.explain(err)
		default:
			return fmt.Errorf("waiting for %s: %w", what, c.explain(err))
		}
		if t != nil {
			switch {
			case outage != nil:
				t.Detail("the API does not answer")
			case len(missing) > 0:
				t.Detail(summary(missing))
			}
		}
		select {
		case <-ctx.Done():
			e := &WaitError{For: what, Missing: missing, Outage: outage, Err: ctx.Err()}
			if why != nil && outage == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				late, cancel := context.WithTimeout(context.WithoutCancel(ctx), diagnoseTime)
				defer cancel()
				if long := why(late); len(long) > 0 {
					e.Missing = long
				}
			}
			return e
		case <-tick.C:
		}
	}
}

// late tells whether ctx has no time left for a look that could still succeed.
func late(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(end) < 100*time.Millisecond
}

func summary(missing []string) string {
	if len(missing) == 1 {
		return missing[0]
	}
	return fmt.Sprintf("%s and %d more", missing[0], len(missing)-1)
}

// away tells whether an error means that the API is not there now, as during a
// restart: refused connections, an ended stream, 5xx and 429. A 401 counts too:
// K3s answers so until its authenticator is up. A certificate that is not trusted
// does not become so by waiting.
func away(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return apierrors.IsUnauthorized(err) || apierrors.IsTooManyRequests(err) || status.Status().Code >= 500
	}
	return !untrusted(err)
}

// failedChecks lists the failed lines of a verbose /readyz.
func failedChecks(body []byte) []string {
	var failed []string
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "[-]"); ok {
			failed = append(failed, "readyz check "+rest)
		}
	}
	return failed
}
