// Package load keeps a number of callers asking, at a given pace or as fast as
// they are answered, and counts what they met. It does not know what they ask.
//
// D1: requests are numbered from 0 without a gap, and each number is asked
// once; what a request does may follow from its number alone, and is then the
// same in every run, whichever caller gets it.
package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/internal/histogram"
)

// Options say how much is asked, and how fast. Without Total and Duration a
// run goes on until its context ends.
type Options struct {
	Callers  int           // default 1
	Total    int64         // requests; 0: no bound
	Duration time.Duration // after which no request begins; 0: no bound
	Rate     float64       // requests per second, all callers together; 0: as fast as answers come

	// FromDue counts a paced request's latency from when it was due, and not
	// from when a caller was free to send it: a server that stalls is charged
	// for all who would have come meanwhile.
	FromDue bool

	Progress func(done int64, elapsed time.Duration) // called ten times a second, and at the end
}

// A Request is one call: its number, who makes it, and since when it is late.
type Request struct {
	Number int64
	Caller int
	Start  time.Time
}

// Ask makes one request and says of which kind it was. ctx ends early only
// when the whole run is given up.
type Ask func(ctx context.Context, r Request) (kind string, err error)

// Stats is what requests of one kind met. Only answers count for Latency.
type Stats struct {
	Latency histogram.Histogram
	Failed  int64
	Errors  map[string]int64 // by text
}

// Requests is how many were made, with whatever outcome.
func (s *Stats) Requests() int64 { return s.Latency.Count() + s.Failed }

// Result is what a run met.
type Result struct {
	Elapsed time.Duration // from the first request to the last answer
	Kinds   map[string]*Stats
}

// Run asks until the total or the duration is reached, or ctx ends, and waits
// for every answer. A request that ctx cut short counts as never made.
func Run(ctx context.Context, o Options, ask Ask) Result {
	r := &run{Options: o, ask: ask, start: time.Now()}
	r.mu.kinds = map[string]*Stats{}
	r.Callers = max(r.Callers, 1)

	var callers sync.WaitGroup
	for i := range r.Callers {
		callers.Go(func() { r.call(ctx, i) })
	}
	finished := make(chan struct{})
	var watcher sync.WaitGroup
	if o.Progress != nil {
		watcher.Go(func() { r.tell(finished) })
	}
	callers.Wait()
	elapsed := time.Since(r.start)
	close(finished)
	watcher.Wait()
	return Result{Elapsed: elapsed, Kinds: r.mu.kinds}
}

type run struct {
	Options
	ask   Ask
	start time.Time

	next atomic.Int64
	done atomic.Int64
	mu   struct {
		sync.Mutex
		kinds map[string]*Stats
	}
}

func (r *run) call(ctx context.Context, caller int) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		number := r.next.Add(1) - 1
		if r.Total > 0 && number >= r.Total {
			return
		}
		due := r.due(number)
		if r.Duration > 0 && due.Sub(r.start) >= r.Duration {
			return
		}
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		now := time.Now()
		if ctx.Err() != nil || r.Duration > 0 && now.Sub(r.start) >= r.Duration {
			return
		}
		request := Request{Number: number, Caller: caller, Start: now}
		if r.FromDue && r.Rate > 0 {
			request.Start = due
		}
		kind, err := r.ask(ctx, request)
		if err != nil && ctx.Err() != nil {
			return
		}
		r.count(kind, time.Since(request.Start), err)
	}
}

// due is when a request should begin.
func (r *run) due(number int64) time.Time {
	if r.Rate <= 0 {
		return r.start
	}
	return r.start.Add(time.Duration(float64(number) / r.Rate * float64(time.Second)))
}

func (r *run) count(kind string, took time.Duration, err error) {
	r.done.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.mu.kinds[kind]
	if s == nil {
		s = &Stats{Errors: map[string]int64{}}
		r.mu.kinds[kind] = s
	}
	if err != nil {
		s.Failed++
		s.Errors[err.Error()]++
		return
	}
	s.Latency.Add(took)
}

func (r *run) tell(finished <-chan struct{}) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.Progress(r.done.Load(), time.Since(r.start))
		case <-finished:
			r.Progress(r.done.Load(), time.Since(r.start))
			return
		}
	}
}
