package report

import (
	"fmt"
	"slices"
	"time"
)

// axis places times between 0 and 100 percent. A run may rest for a night between two commands: such a time is drawn
// as a break of fixed width, so that what was done is to be seen.
type axis struct {
	pieces []piece
}

// piece is a part of the axis.
type piece struct {
	from, to time.Time
	x, w     float64 // percent
	gap      bool
}

// newAxis makes an axis of the times in which something happened. They need not be in order and may overlap.
func newAxis(busy []Window) axis {
	rest := max(time.Minute, length(merge(busy, 0))/4) // shorter ones are drawn as they are
	var a axis
	for _, w := range merge(busy, rest) {
		if n := len(a.pieces); n > 0 {
			a.pieces = append(a.pieces, piece{from: a.pieces[n-1].to, to: w.From, gap: true})
		}
		a.pieces = append(a.pieces, piece{from: w.From, to: w.To})
	}
	a.spread()
	return a
}

// merge makes one of the times that overlap, or have no more than rest between them; the result is in order.
func merge(times []Window, rest time.Duration) (out []Window) {
	times = slices.Clone(times)
	slices.SortStableFunc(times, func(a, b Window) int { return a.From.Compare(b.From) })
	for _, w := range times {
		w.To = later(w.From, w.To)
		if n := len(out); n > 0 && w.From.Sub(out[n-1].To) <= rest {
			out[n-1].To = later(out[n-1].To, w.To)
			continue
		}
		out = append(out, w)
	}
	return out
}

// length is that of all the times.
func length(times []Window) (d time.Duration) {
	for _, w := range times {
		d += w.To.Sub(w.From)
	}
	return d
}

// spread gives every piece its place.
func (a *axis) spread() {
	const all, most = 100.0, 30.0 // of it for breaks
	gaps, drawn := 0, time.Duration(0)
	for _, p := range a.pieces {
		if p.gap {
			gaps++
		} else {
			drawn += max(p.to.Sub(p.from), time.Millisecond)
		}
	}
	gap := min(4, most/float64(max(gaps, 1)))
	left, x := all-gap*float64(gaps), 0.0
	for i := range a.pieces {
		p := &a.pieces[i]
		p.x, p.w = x, gap
		if !p.gap {
			p.w = left * float64(max(p.to.Sub(p.from), time.Millisecond)) / float64(drawn)
		}
		x += p.w
	}
}

// at is the place of a time; one outside of the axis is at its nearer end.
func (a axis) at(t time.Time) float64 {
	for _, p := range a.pieces {
		if t.Before(p.from) {
			return p.x
		}
		if !t.After(p.to) {
			if length := p.to.Sub(p.from); length > 0 {
				return p.x + p.w*float64(t.Sub(p.from))/float64(length)
			}
			return p.x
		}
	}
	return 100
}

// span is the place and the width of a time between two others; wide enough to be seen, however short.
func (a axis) span(from, to time.Time, least float64) (x, w percent) {
	begin, end := a.at(from), a.at(later(from, to))
	width := max(end-begin, least)
	return percent(min(begin, 100-width)), percent(width)
}

// breaks are where the axis leaves time out.
func (a axis) breaks() (out []piece) {
	for _, p := range a.pieces {
		if p.gap {
			out = append(out, p)
		}
	}
	return out
}

// percent is a place on the axis, as a style sheet or a drawing has it.
type percent float64

func (p percent) String() string { return fmt.Sprintf("%.2f%%", float64(p)) }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
