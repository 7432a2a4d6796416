package watch

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
)

// Options of a Hub.
type Options struct {
	View             func() *state.View // what is true now, never older than what was published; required
	RecentBytes      int64              // of events kept in memory for those slightly behind; default 8 MiB
	ProgressInterval time.Duration      // a silent watcher that asked for it is told its place so often; default 10 min
	Metrics          Metrics
}

// Metrics count watches; any of them may be nil.
type Metrics struct {
	Events   *metric.Counter // told
	Pending  *metric.Gauge   // in queues
	Watchers *metric.Gauge
	Slow     *metric.Gauge // watchers that are behind
	Streams  *metric.Gauge
}

const (
	defaultRecentBytes      = 8 << 20
	defaultProgressInterval = 10 * time.Minute
)

// Hub is where listeners and the apply loop meet. Publish and Restore are
// called by one goroutine, all else may be called by many.
type Hub struct {
	// Immutable after New.
	options Options
	limits  limits

	head atomic.Int64 // revision up to which all is in the queues of those concerned

	mu struct {
		sync.Mutex
		index   index
		recent  recent
		streams map[*Stream]struct{}
		touched []*Stream // by the batch that is being published
		found   []*group
		closed  bool
	}
}

// New returns a hub at the head of history.
func New(o Options) *Hub {
	if o.RecentBytes == 0 {
		o.RecentBytes = defaultRecentBytes
	}
	if o.ProgressInterval == 0 {
		o.ProgressInterval = defaultProgressInterval
	}
	h := &Hub{options: o, limits: usual}
	head := o.View().Revision
	h.head.Store(int64(head))
	h.mu.index = newIndex()
	h.mu.recent = recent{limit: o.RecentBytes, from: head + 1}
	h.mu.streams = map[*Stream]struct{}{}
	return h
}

// Head returns the revision up to which everything was published.
func (h *Hub) Head() state.Revision { return state.Revision(h.head.Load()) }

// Publish tells of the events of an apply, which led to the revision head. It
// is called after the view moved: who is told may read at once. It keeps the
// events and never waits for a listener.
func (h *Hub) Publish(outcomes []state.Outcome, head state.Revision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.index.empty() {
		h.mu.recent.restart(head + 1)
		h.head.Store(int64(head))
		return
	}
	for i := range outcomes {
		if events := outcomes[i].Events; len(events) > 0 {
			h.mu.recent.push(events)
			h.stage(events)
		}
	}
	for _, s := range h.mu.touched {
		s.push(head)
	}
	clear(h.mu.touched)
	h.mu.touched = h.mu.touched[:0]
	h.head.Store(int64(head))
}

// stage lays the events of one revision before the streams concerned, which
// see them when all of the batch is there. With h.mu held.
func (h *Hub) stage(events []state.Event) {
	for i := range events {
		h.mu.found = h.mu.index.find(h.mu.found[:0], events[i].Key)
		if len(h.mu.found) == 0 {
			continue
		}
		// A copy, since a queue must not hold on to all of the batch.
		shared := new(state.Event)
		*shared = events[i]
		for _, g := range h.mu.found {
			for _, sub := range g.subs {
				s := sub.stream
				if len(s.staged) == 0 {
					h.mu.touched = append(h.mu.touched, s)
				}
				s.staged = append(s.staged, delivery{sub, shared})
			}
		}
	}
}

// Restore tells that the state was replaced by a newer one, whose events nobody
// has seen: all cursors read on from history.
func (h *Hub) Restore(head state.Revision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	missed := h.Head() + 1
	h.mu.recent.restart(head + 1)
	for s := range h.mu.streams {
		s.loseAll(missed, head)
	}
	h.head.Store(int64(head))
}

// Close ends all streams: their next answer is that the server stopped.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.closed = true
	for s := range h.mu.streams {
		s.end(fault.Stopped)
	}
}

// recent holds the newest events, without a gap.
type recent struct {
	limit int64
	from  state.Revision  // all events from here on are held
	runs  [][]state.Event // each all events of one revision
	bytes int64
}

func (r *recent) restart(from state.Revision) {
	clear(r.runs)
	r.runs, r.bytes, r.from = r.runs[:0], 0, from
}

func (r *recent) push(run []state.Event) {
	r.runs = append(r.runs, run)
	r.bytes += runBytes(run)
	for r.bytes > r.limit {
		oldest := r.runs[0]
		r.bytes -= runBytes(oldest)
		r.from = oldest[0].Revision + 1
		r.runs[0] = nil
		r.runs = r.runs[1:] // append moves what is left when the room behind it ends
	}
}

// since appends the runs of the revisions [from, to] to dst, until they make max
// bytes, and tells whether these are all.
func (r *recent) since(dst [][]state.Event, from, to state.Revision, max int64) (_ [][]state.Event, all bool) {
	for i := r.at(from); i < len(r.runs) && r.runs[i][0].Revision <= to; i++ {
		if max <= 0 {
			return dst, false
		}
		dst = append(dst, r.runs[i])
		max -= runBytes(r.runs[i])
	}
	return dst, true
}

// at returns the place of the first run that is not before a revision.
func (r *recent) at(from state.Revision) int {
	low, high := 0, len(r.runs)
	for low < high {
		if mid := (low + high) / 2; r.runs[mid][0].Revision < from {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}

func runBytes(run []state.Event) (sum int64) {
	for i := range run {
		sum += eventBytes(&run[i])
	}
	return sum
}

// eventBytes is about what an event takes up in memory.
func eventBytes(e *state.Event) int64 {
	const itself = 112
	return itself + int64(len(e.Pair)+len(e.Previous))
}
