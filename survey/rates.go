package survey

import (
	"context"
	"fmt"
	"io"
	"time"

	"sunbeam.pt/k3s-dualstack/remote"
)

// Rates are how many bytes a second a stream over the SSH connection carries; 0 when it
// was not measured.
type Rates struct {
	Down int64 `json:"down"` // from the host to the laptop
	Up   int64 `json:"up"`
}

// MeasureRates times a short stream each way, over a connection of its own as volumes
// have. Zeros are as good as any data: SSH encrypts and does not compress. Volumes are
// compressed before they travel, so that on a slow line they are faster than this.
func MeasureRates(ctx context.Context, h *remote.Host) (r Rates, err error) {
	h, err = h.Another(ctx)
	if err == nil {
		defer h.Close()
		r.Down, err = rate(func(n int64) error {
			return h.Run(ctx, fmt.Sprintf("head -c %d /dev/zero", n), remote.Stdout(io.Discard))
		})
	}
	if err == nil {
		r.Up, err = rate(func(n int64) error {
			return h.Run(ctx, "cat >/dev/null", remote.Stdin(io.LimitReader(zeros{}, n)))
		})
	}
	if err != nil {
		return Rates{}, fmt.Errorf("measuring the connection: %w", err)
	}
	return r, nil
}

const (
	firstStream = 64 << 10
	lastStream  = 16 << 20
	longEnough  = 250 * time.Millisecond // to tell the rate from what comes and goes
)

// rate streams ever more until it takes long enough to tell. What an empty stream takes, a
// command's round trips, is left out. At 64 KiB a second or more it is done within 2 s or so.
func rate(stream func(n int64) error) (int64, error) {
	took := func(n int64) (time.Duration, error) {
		began := time.Now()
		err := stream(n)
		return time.Since(began), err
	}
	empty, err := took(0)
	if err != nil {
		return 0, err
	}
	for n := int64(firstStream); ; n *= 4 {
		d, err := took(n)
		if err != nil {
			return 0, err
		}
		if d = max(d-empty, time.Millisecond); d >= longEnough || n >= lastStream {
			return int64(float64(n) / d.Seconds()), nil
		}
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
