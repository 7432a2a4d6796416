package metric

import (
	"strings"
	"sync"
	"testing"
)

func TestNilMetricsAreSilent(t *testing.T) {
	var c *Counter
	var g *Gauge
	var h *Histogram
	var f *Family[Counter]
	c.Inc()
	g.Set(7)
	h.Observe(1)
	f.With("a").Inc()
	f.Drop("a")
	f.Each(func([]string, *Counter) { t.Error("a nil family has no members") })
	if n, sum, _ := h.Read(); c.Value() != 0 || g.Value() != 0 || n != 0 || sum != 0 {
		t.Error("a nil metric has a value")
	}
}

func TestHistogramCountsUpToEachBound(t *testing.T) {
	h := NewHistogram(1, 2, 3) // 1, 2, 4
	for _, v := range []float64{0.5, 1, 1.5, 4, 9} {
		h.Observe(v)
	}
	n, sum, atMost := h.Read()
	if n != 5 || sum != 16 {
		t.Errorf("count %d, sum %v; want 5, 16", n, sum)
	}
	for bound, want := range map[float64]uint64{1: 2, 2: 3, 4: 4} {
		if atMost[bound] != want {
			t.Errorf("at most %v: %d, want %d", bound, atMost[bound], want)
		}
	}
}

func TestFamilyMakesEachMemberOnce(t *testing.T) {
	f := NewFamily(NewCounter, "method", "code")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				f.With("Put", "OK").Inc()
				f.With("Get", "OK").Inc()
			}
		})
	}
	all.Wait()

	var got []string
	f.Each(func(values []string, c *Counter) {
		if c.Value() != 8000 {
			t.Errorf("%v: %d, want 8000", values, c.Value())
		}
		got = append(got, strings.Join(values, "/"))
	})
	if s := strings.Join(got, " "); s != "Get/OK Put/OK" {
		t.Errorf("members %q are not in order", s)
	}
	f.Drop("Put", "OK")
	if f.With("Put", "OK").Value() != 0 {
		t.Error("a dropped member is remembered")
	}
}
