// Package histogram counts durations in a fixed space, for quantiles.
package histogram

import (
	"math"
	"math/bits"
	"time"
)

// Buckets to each power of two: a quantile is off by less than one part in 64.
const (
	subBits    = 6
	subBuckets = 1 << subBits
	buckets    = (64 - subBits + 1) * subBuckets
)

// Histogram counts durations in buckets that widen with the value. Its size is
// fixed, adding costs a few nanoseconds, and the largest value is kept exactly,
// because the one worst stall is often the figure that is asked for. The zero
// value is ready to use.
type Histogram struct {
	count   [buckets]int64
	total   int64
	sum     time.Duration
	squares float64 // of seconds
	longest time.Duration
}

// Add counts d; a negative one counts as zero.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	h.count[bucket(uint64(d))]++
	h.total++
	h.sum += d
	h.squares += d.Seconds() * d.Seconds()
	h.longest = max(h.longest, d)
}

// Merge adds all that other counted.
func (h *Histogram) Merge(other *Histogram) {
	for i, n := range other.count {
		h.count[i] += n
	}
	h.total += other.total
	h.sum += other.sum
	h.squares += other.squares
	h.longest = max(h.longest, other.longest)
}

// Count is the number of durations added.
func (h *Histogram) Count() int64 { return h.total }

// Max is the longest duration added, exactly.
func (h *Histogram) Max() time.Duration { return h.longest }

// Mean is the average, exactly; 0 when nothing was added.
func (h *Histogram) Mean() time.Duration {
	if h.total == 0 {
		return 0
	}
	return h.sum / time.Duration(h.total)
}

// Deviation is the standard deviation; 0 when nothing was added.
func (h *Histogram) Deviation() time.Duration {
	if h.total == 0 {
		return 0
	}
	mean := h.sum.Seconds() / float64(h.total)
	variance := h.squares/float64(h.total) - mean*mean
	return time.Duration(math.Sqrt(max(variance, 0)) * float64(time.Second))
}

// Quantile is the duration that the share q (0 to 1) of all stayed at or below,
// rounded up to the end of its bucket, but never beyond Max.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := int64(q*float64(h.total) + 0.5)
	rank = min(max(rank, 1), h.total)
	var seen int64
	for i, n := range h.count {
		seen += n
		if seen >= rank {
			return min(time.Duration(bucketEnd(i)), h.longest)
		}
	}
	return h.longest
}

// bucket maps a value to its place: the values below subBuckets have one each,
// every later power of two is cut into subBuckets parts.
func bucket(v uint64) int {
	shift := max(bits.Len64(v)-subBits-1, 0)
	return shift<<subBits + int(v>>shift)
}

// bucketEnd is the largest value that bucket maps to i.
func bucketEnd(i int) uint64 {
	if i < 2*subBuckets {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return uint64(i-shift<<subBits+1)<<shift - 1
}
