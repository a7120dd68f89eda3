//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// availability is what `migrate status -o json` says of a target.
type availability struct {
	Name, Family            string
	Spans                   []struct{ State string }
	DownNanos, UnknownNanos time.Duration
}

// outages asks every URL several times a second, until stop tells for how long each was away.
func outages(t testing.TB, urls ...string) (stop func() map[string]time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var mu sync.Mutex
	away := map[string]time.Duration{}
	var asking sync.WaitGroup
	for _, url := range urls {
		client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}}
		asking.Go(func() {
			var since time.Time
			for ctx.Err() == nil {
				began := time.Now()
				answer, err := client.Get(url)
				up := err == nil && answer.StatusCode < 500
				if err == nil {
					answer.Body.Close()
				}
				switch {
				case !up && since.IsZero():
					since = began
				case up && !since.IsZero():
					mu.Lock()
					away[url] += time.Since(since)
					mu.Unlock()
					since = time.Time{}
				}
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	return func() map[string]time.Duration {
		cancel()
		asking.Wait()
		return away
	}
}

// sameOutage holds what migrate measured against what was seen from outside. The time between two
// runs, in which migrate does not watch, may belong to the outage or not; the tolerance is for a busy machine.
func sameOutage(t testing.TB, all []availability, name, family string, outside time.Duration) {
	t.Helper()
	const tolerance = 15 * time.Second
	for _, a := range all {
		if a.Name != name || a.Family != family {
			continue
		}
		t.Logf("%s over %s: migrate saw it away for %s and did not watch for %s, outside it was away for %s",
			name, family, a.DownNanos.Round(100*time.Millisecond), a.UnknownNanos.Round(100*time.Millisecond), outside.Round(100*time.Millisecond))
		require.NotEmpty(t, a.Spans)
		assert.Equal(t, "up", a.Spans[len(a.Spans)-1].State)
		assert.NotZero(t, a.DownNanos)
		assert.GreaterOrEqual(t, outside, a.DownNanos-tolerance)
		assert.LessOrEqual(t, outside, a.DownNanos+a.UnknownNanos+tolerance)
		return
	}
	assert.Fail(t, "not watched", "%s over %s in %v", name, family, all)
}
