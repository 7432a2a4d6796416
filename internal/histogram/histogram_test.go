package histogram

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBucketsFollowEachOther(t *testing.T) {
	for i := range buckets - 1 {
		end := bucketEnd(i)
		if bucket(end) != i || bucket(end+1) != i+1 {
			t.Fatalf("bucket %d ends at %d, but %d is in %d and %d in %d", i, end, end, bucket(end), end+1, bucket(end+1))
		}
	}
	if last := bucket(1<<64 - 1); last != buckets-1 {
		t.Fatalf("the largest value is in bucket %d of %d", last, buckets)
	}
}

func TestQuantilesAreNearTheTruth(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	var whole, left, right Histogram
	values := make([]time.Duration, 10_000)
	for i := range values {
		values[i] = time.Duration(random.ExpFloat64() * float64(time.Millisecond))
		whole.Add(values[i])
		if i%3 == 0 {
			left.Add(values[i])
		} else {
			right.Add(values[i])
		}
	}
	slices.Sort(values)
	left.Merge(&right)
	// The squares are summed in another order.
	if math.Abs(left.squares-whole.squares) > 1e-9*whole.squares {
		t.Errorf("merged, the squares are %v, not %v", left.squares, whole.squares)
	}
	left.squares = whole.squares
	if left != whole {
		t.Error("two merged histograms differ from one")
	}
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
		truth := values[max(int(q*float64(len(values))+0.5)-1, 0)]
		if got := whole.Quantile(q); got < truth || got > truth+truth/subBuckets+1 {
			t.Errorf("quantile %v is %v, in truth %v", q, got, truth)
		}
	}
	if whole.Max() != values[len(values)-1] || whole.Count() != int64(len(values)) {
		t.Errorf("max %v, count %d", whole.Max(), whole.Count())
	}
	var squares float64
	for _, v := range values {
		squares += math.Pow((v - whole.Mean()).Seconds(), 2)
	}
	truth := math.Sqrt(squares / float64(len(values)))
	if got := whole.Deviation().Seconds(); math.Abs(got-truth) > 1e-6 {
		t.Errorf("the standard deviation is %v, in truth %v", got, truth)
	}
}

func TestEmptyHistogram(t *testing.T) {
	var h Histogram
	if h.Quantile(0.99) != 0 || h.Mean() != 0 || h.Max() != 0 || h.Deviation() != 0 {
		t.Error("an empty histogram should tell zeros")
	}
}
