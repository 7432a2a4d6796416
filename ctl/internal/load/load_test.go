package load

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// D1: whatever the callers do, each number is asked once, and none is left out.
func TestNumbers(t *testing.T) {
	const total = 1000
	var asked [total]atomic.Int32
	var told atomic.Int64
	result := Run(t.Context(), Options{
		Callers:  7,
		Total:    total,
		Progress: func(done int64, _ time.Duration) { told.Store(done) },
	}, func(_ context.Context, r Request) (string, error) {
		asked[r.Number].Add(1)
		if r.Number%10 == 0 {
			return "odd", errors.New("refused")
		}
		return "even", nil
	})
	for i := range asked {
		if n := asked[i].Load(); n != 1 {
			t.Fatalf("request %d was made %d times", i, n)
		}
	}
	if odd := result.Kinds["odd"]; odd.Failed != 100 || odd.Requests() != 100 || odd.Errors["refused"] != 100 || odd.Latency.Count() != 0 {
		t.Errorf("failures counted as %+v", odd.Errors)
	}
	if even := result.Kinds["even"]; even.Failed != 0 || even.Requests() != 900 {
		t.Errorf("%d answers, want 900", even.Requests())
	}
	if told.Load() != total {
		t.Errorf("the last that was told is %d", told.Load())
	}
}

// A paced run begins request n at n/rate, and ends when nothing is due any more.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		result := Run(t.Context(), Options{Callers: 3, Duration: 2 * time.Second, Rate: 100},
			func(_ context.Context, r Request) (string, error) {
				if want := time.Duration(r.Number) * 10 * time.Millisecond; time.Since(start) != want {
					t.Errorf("request %d began after %v, not %v", r.Number, time.Since(start), want)
				}
				time.Sleep(5 * time.Millisecond)
				return "", nil
			})
		if n := result.Kinds[""].Requests(); n != 200 {
			t.Errorf("%d requests in 2 s at 100/s", n)
		}
		if longest := result.Kinds[""].Latency.Max(); longest != 5*time.Millisecond {
			t.Errorf("the longest took %v", longest)
		}
	})
}

// A server that stalls for a second at 100/s makes a hundred requests late.
// FromDue shows it; without, a single one seems slow.
func TestStall(t *testing.T) {
	for _, fromDue := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			result := Run(t.Context(), Options{Total: 1000, Rate: 100, FromDue: fromDue},
				func(_ context.Context, r Request) (string, error) {
					if r.Number == 100 {
						time.Sleep(time.Second)
					}
					return "", nil
				})
			median, high := result.Kinds[""].Latency.Quantile(0.5), result.Kinds[""].Latency.Quantile(0.95)
			if median != 0 || fromDue != (high > 400*time.Millisecond) {
				t.Errorf("from due %v: half took at most %v, 95 %% at most %v", fromDue, median, high)
			}
		})
	}
}

// Whoever ends a run does not see the requests it cut short as errors.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Add(5)
	go func() {
		asking.Wait()
		cancel()
	}()
	result := Run(ctx, Options{Callers: 5}, func(ctx context.Context, _ Request) (string, error) {
		asking.Done()
		<-ctx.Done()
		return "put", ctx.Err()
	})
	if len(result.Kinds) != 0 {
		t.Errorf("counted %+v", result.Kinds)
	}
}
