// Package metric holds counters, gauges and histograms as plain values. They
// are handed to those who count and read by whoever shows them: there is no
// registry and no global. All methods may be called from any goroutine, and
// all work on the nil pointer, so that a room can run without being measured.
package metric

import (
	"math"
	"sort"
	"sync/atomic"
)

// Counter only rises.
type Counter struct{ n atomic.Uint64 }

// Add adds n.
func (c *Counter) Add(n uint64) {
	if c != nil {
		c.n.Add(n)
	}
}

// Inc adds one.
func (c *Counter) Inc() { c.Add(1) }

// Value returns the sum so far.
func (c *Counter) Value() uint64 {
	if c == nil {
		return 0
	}
	return c.n.Load()
}

// Gauge rises and falls.
type Gauge struct{ n atomic.Int64 }

// Set replaces the value.
func (g *Gauge) Set(n int64) {
	if g != nil {
		g.n.Store(n)
	}
}

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) {
	if g != nil {
		g.n.Add(n)
	}
}

// Value returns the value last set.
func (g *Gauge) Value() int64 {
	if g == nil {
		return 0
	}
	return g.n.Load()
}

// Histogram counts observations in buckets with fixed upper bounds.
type Histogram struct {
	bounds []float64 // ascending upper bounds, inclusive
	counts []atomic.Uint64
	sum    atomic.Uint64 // bits of a float64
}

// NewHistogram returns a histogram of n buckets whose upper bounds start at
// first and grow by factor, and one more for all that is larger.
func NewHistogram(first, factor float64, n int) *Histogram {
	bounds := make([]float64, n)
	for i := range bounds {
		bounds[i] = first
		first *= factor
	}
	return NewHistogramOf(bounds...)
}

// NewHistogramOf returns a histogram of the given upper bounds, which rise.
func NewHistogramOf(bounds ...float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts v.
func (h *Histogram) Observe(v float64) {
	if h == nil {
		return
	}
	h.counts[sort.SearchFloat64s(h.bounds, v)].Add(1)
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Read returns the number of observations, their sum, and how many were at
// or below each upper bound.
func (h *Histogram) Read() (count uint64, sum float64, atMost map[float64]uint64) {
	if h == nil {
		return 0, 0, nil
	}
	atMost = make(map[float64]uint64, len(h.bounds))
	for i, bound := range h.bounds {
		count += h.counts[i].Load()
		atMost[bound] = count
	}
	return count + h.counts[len(h.bounds)].Load(), math.Float64frombits(h.sum.Load()), atMost
}
