package watch

import (
	"sort"
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
	Rest             float64            // of a stream that reads old history while others write, for each moment of reading; default none
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
		if h.Head() != head {
			h.mu.recent.restart(head + 1)
			h.head.Store(int64(head))
		}
		return
	}
	for i := range outcomes {
		events := outcomes[i].Events
		for len(events) > 0 {
			n := 1
			for n < len(events) && events[n].Revision == events[0].Revision {
				n++
			}
			h.mu.recent.push(events[:n:n])
			h.stage(events[:n])
			events = events[n:]
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

// End ends the streams that there are: all they still hear is err.
func (h *Hub) End(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.mu.streams {
		s.end(err)
	}
}

// Close ends all streams, also those to come, since the server stops.
func (h *Hub) Close() {
	h.mu.Lock()
	h.mu.closed = true
	h.mu.Unlock()
	h.End(fault.Stopped)
}

// recent holds the newest events, without a gap, in a ring.
type recent struct {
	limit int64
	from  state.Revision // all events from here on are held
	ring  []run          // as long as a power of two
	first uint           // place of the oldest, counted on and on
	next  uint           // place of the next to come
	bytes int64
}

// run is all events of one revision. What is looked at to let go of it stands
// here: the events themselves have left the processor's cache by then.
type run struct {
	revision state.Revision
	bytes    int64
	events   []state.Event
}

func (r *recent) at(i uint) *run { return &r.ring[i&uint(len(r.ring)-1)] }

func (r *recent) restart(from state.Revision) {
	r.ring, r.first, r.next, r.bytes, r.from = nil, 0, 0, 0, from
}

// push adds the events of one revision.
func (r *recent) push(events []state.Event) {
	if int(r.next-r.first) == len(r.ring) {
		longer := make([]run, max(64, 2*len(r.ring)))
		for i := r.first; i != r.next; i++ {
			longer[i&uint(len(longer)-1)] = *r.at(i)
		}
		r.ring = longer
	}
	one := run{revision: events[0].Revision, events: events}
	for i := range events {
		one.bytes += eventBytes(&events[i])
	}
	*r.at(r.next) = one
	r.next++
	r.bytes += one.bytes
	for r.bytes > r.limit {
		oldest := r.at(r.first)
		r.bytes -= oldest.bytes
		r.from = oldest.revision + 1
		*oldest = run{}
		r.first++
	}
}

// since appends the runs of the revisions [from, to] to dst, until they make max
// bytes, and tells whether these are all.
func (r *recent) since(dst []run, from, to state.Revision, max int64) (_ []run, all bool) {
	skip := sort.Search(int(r.next-r.first), func(i int) bool { return r.at(r.first+uint(i)).revision >= from })
	for i := r.first + uint(skip); i != r.next && r.at(i).revision <= to; i++ {
		if max <= 0 {
			return dst, false
		}
		dst = append(dst, *r.at(i))
		max -= r.at(i).bytes
	}
	return dst, true
}

// eventBytes is about what an event takes up in memory.
func eventBytes(e *state.Event) int64 {
	const itself = 112
	return itself + int64(len(e.Pair)+len(e.Previous))
}
