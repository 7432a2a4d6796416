package leader

import (
	"context"
	"time"
)

// Time is what passes for Leases, and how it waits. Nothing else there waits by
// itself, but for a Cluster, so that whole reigns can be simulated.
type Time interface {
	Now() time.Time

	// Wait returns after d, or before that when wake has something, or ctx ends.
	Wait(ctx context.Context, d time.Duration, wake <-chan struct{})
}

type machineTime struct{}

func (machineTime) Now() time.Time { return time.Now() }

func (machineTime) Wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-timer.C:
	}
}
