package remote

import (
	"io"
	"sync"
)

// Gate passes on what is written until it is closed. A command that is abandoned, such as with its context, may write once more
// when [Host.Run] has returned: a writer that must not be written to then is put behind a Gate.
type Gate struct {
	mu     sync.Mutex
	w      io.Writer
	closed bool
}

// NewGate is an open Gate before w.
func NewGate(w io.Writer) *Gate { return &Gate{w: w} }

// Write passes p on, or returns [io.ErrClosedPipe] once the Gate is closed.
func (g *Gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, io.ErrClosedPipe
	}
	return g.w.Write(p)
}

// Close waits for a Write under way. None comes after it.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}
