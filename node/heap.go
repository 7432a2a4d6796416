package node

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Garbage may grow to a share of what is live before it is collected. A small
// heap gets room in bytes, lest a busy server with few keys collect all the
// time; a large one a share well below Go's own of 100 percent, since most of
// what lives here lives long.
const (
	heapRoom     = 64 << 20
	heapShareMin = 40  // percent
	heapShareMax = 800 // percent
)

// tuneHeap keeps the collector's share right for the size of the heap, until
// ctx ends. Whoever sets GOGC knows better.
func tuneHeap(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	share := 0
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		metrics.Read(live)
		want := heapShare(live[0].Value.Uint64())
		if want < share*4/5 || want > share*5/4 { // each change stops the world for a moment
			share = want
			debug.SetGCPercent(share)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func heapShare(live uint64) int {
	return int(min(max(heapRoom*100/max(live, 1), heapShareMin), heapShareMax))
}
