package survey

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// What a command takes by itself is not taken for a slow line, and little is sent to find out.
func TestRate(t *testing.T) { synctest.Test(t, testRate) } // its clock goes by what is slept alone

func testRate(t *testing.T) {
	const perSecond, roundTrip = 1 << 20, 50 * time.Millisecond
	var sent int64
	got, err := rate(func(n int64) error {
		sent += n
		time.Sleep(roundTrip + time.Duration(float64(n)/perSecond*float64(time.Second)))
		return nil
	})
	if err != nil || got < perSecond*8/10 || got > perSecond*11/10 {
		t.Errorf("%d instead of %d, %v", got, perSecond, err)
	}
	if sent > 1<<20 {
		t.Errorf("%d bytes were sent", sent)
	}
	sent = 0
	if _, err := rate(func(n int64) error { sent += n; return nil }); err != nil || sent > 32<<20 {
		t.Errorf("%d bytes were sent over a fast line, %v", sent, err)
	}
	cut := errors.New("cut")
	if _, err := rate(func(n int64) error {
		if n > 0 {
			return cut
		}
		return nil
	}); !errors.Is(err, cut) {
		t.Error(err)
	}
}
