package peer

import (
	"math"
	"time"
)

// Trips is what the round trips to a member have taken, all of this run.
type Trips struct {
	Count    uint64
	Min, Max time.Duration

	mean, squares float64 // of seconds: their mean, and the squared distances from it
}

func (t *Trips) add(d time.Duration) {
	if t.Count++; t.Count == 1 || d < t.Min {
		t.Min = d
	}
	t.Max = max(t.Max, d)
	// Welford's way: a sum of squares would lose the small differences.
	off := d.Seconds() - t.mean
	t.mean += off / float64(t.Count)
	t.squares += off * (d.Seconds() - t.mean)
}

// Mean returns the mean of the trips, 0 if there was none.
func (t Trips) Mean() time.Duration { return seconds(t.mean) }

// Deviation returns the standard deviation of the trips, 0 if there was none.
func (t Trips) Deviation() time.Duration {
	return seconds(math.Sqrt(t.squares / float64(max(1, t.Count))))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
