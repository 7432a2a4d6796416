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
	heapRoom     = 160 << 20
	heapShareMin = 40  // percent
	heapShareMax = 800 // percent
)

// Once a burst is over, what it took is given back.
const (
	quietBytes   = 4 << 20 // allocated in a second: nobody is served to speak of
	quietSeconds = 3
	idleBytes    = 32 << 20 // worth giving back
)

// tuneHeap keeps the collector's share right for the size of the heap, and
// the heap right for what is in it, until ctx ends. Whoever sets GOGC knows
// better.
func tuneHeap(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	share, quiet, before := 0, 0, uint64(0)
	for {
		h := readHeap()
		want := heapShare(h.live)
		if want < share*4/5 || want > share*5/4 { // each change stops the world for a moment
			share = want
			debug.SetGCPercent(share)
		}
		if quiet++; h.allocated-before > quietBytes {
			quiet = 0
		}
		before = h.allocated
		if quiet == quietSeconds && h.idle+h.objects-min(h.live, h.objects) > idleBytes {
			debug.FreeOSMemory()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

type heap struct {
	live      uint64 // as of the last collection
	objects   uint64 // live and dead
	idle      uint64 // held for later use
	allocated uint64 // ever
}

func readHeap() heap {
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(s)
	return heap{s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64(), s[3].Value.Uint64()}
}

func heapShare(live uint64) int {
	return int(min(max(heapRoom*100/max(live, 1), heapShareMin), heapShareMax))
}
