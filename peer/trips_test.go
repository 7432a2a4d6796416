package peer

import (
	"testing"
	"time"
)

func TestTrips(t *testing.T) {
	var trips Trips
	if trips.Mean() != 0 || trips.Deviation() != 0 {
		t.Errorf("of no trips, mean %v and deviation %v", trips.Mean(), trips.Deviation())
	}
	for _, ms := range []time.Duration{2, 4, 4, 4, 5, 5, 7, 9} {
		trips.add(ms * time.Millisecond)
	}
	near := func(a, b time.Duration) bool { return (a - b).Abs() < time.Microsecond }
	if trips.Count != 8 || trips.Min != 2*time.Millisecond || trips.Max != 9*time.Millisecond ||
		!near(trips.Mean(), 5*time.Millisecond) || !near(trips.Deviation(), 2*time.Millisecond) {
		t.Errorf("%+v: mean %v, deviation %v", trips, trips.Mean(), trips.Deviation())
	}
}
