package watch

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/state"
)

// reading is what a stream reads a piece of history with.
type reading struct {
	group  []*cursor       // those it is read for
	keys   map[string]*sub // of the group, single keys
	ranges []*sub
	runs   []run

	took time.Duration  // to read the last piece from the table; 0: none, or it has rested since
	head state.Revision // when it was last asked to rest
}

// catchUp reads a piece of history for cursors that are behind, one piece for
// as many of them as can share it, and makes it ready to be told.
func (s *Stream) catchUp(ctx context.Context) error {
	if len(s.behind) == 0 {
		s.reading.took = 0
		return nil
	}
	h := s.hub
	view := h.options.View()
	s.cancelCompacted(view.Compacted)

	// Who is so near that memory has the rest does not wait for those who are
	// far: one that is far may take long.
	h.mu.Lock()
	near := h.mu.recent.from
	h.mu.Unlock()
	r := &s.reading
	r.group = r.group[:0]
	from := state.Revision(math.MaxInt64)
	for _, c := range s.behind {
		if c.floor >= near {
			r.group = append(r.group, c)
			from = min(from, c.floor)
		}
	}
	var to state.Revision
	var all bool
	var err error
	if len(r.group) > 0 {
		s.listen(r.group)
		to, all = s.readRecent(from)
	}
	if to == 0 { // nobody is near, or memory has moved on
		r.group = append(r.group[:0], s.behind...)
		for _, c := range r.group {
			from = min(from, c.floor)
		}
		if len(r.group) == 0 {
			return nil
		}
		if err := s.rest(ctx); err != nil {
			return err
		}
		s.listen(r.group)
		began := time.Now()
		to, all, err = s.readTable(view, from)
		r.took = time.Since(began)
	}
	if err != nil {
		s.unlink()
		s.taken, s.links = reused(s.taken), reused(s.links)
		// A newer view knows what is compacted, or stands on a table that has
		// replaced this one's.
		if h.options.View() != view || errors.Is(err, fault.Compacted) {
			return nil
		}
		return err
	}
	s.advance(to, all)
	return nil
}

// restMax is how long a stream rests at most, so that large events, which take
// long to read, are not slow to come.
const restMax = 8 * time.Millisecond

// rest leaves the processors to writers for a while, in proportion to what it
// took to read the last piece from the table: who is a million events behind
// would have one of them to itself. Where nobody wrote meanwhile there is nobody
// to feel it.
func (s *Stream) rest(ctx context.Context) error {
	r := &s.reading
	pause := min(restMax, time.Duration(s.hub.options.Rest*float64(r.took)))
	head := s.hub.Head()
	wrote := head != r.head
	r.head, r.took = head, 0
	if pause <= 0 || !wrote {
		return nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cancelCompacted ends the cursors whose place is gone from history.
func (s *Stream) cancelCompacted(at state.Revision) {
	kept := s.behind[:0]
	for _, c := range s.behind {
		switch {
		case c.gone:
		case c.floor >= at:
			kept = append(kept, c)
			continue
		case s.drop(c):
			c.gone = true
			s.ready = append(s.ready, pending{notice: &notice{message: Message{ID: c.id, Canceled: true, Compacted: at}}})
		}
		s.hub.options.Metrics.Slow.Add(-1)
	}
	clear(s.behind[len(kept):])
	s.behind = kept
}

// drop ends a cursor but for its id, unless the client has just done that.
func (s *Stream) drop(c *cursor) bool {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.cursors[c.id] != c {
		// Nothing is said of progress before the answer to that.
		s.owed, s.mu.asked = false, s.owed || s.mu.asked
		return false
	}
	s.detach(c)
	s.mu.cursors[c.id] = nil
	return true
}

// listen prepares to find the subs of a group by key.
func (s *Stream) listen(group []*cursor) {
	r := &s.reading
	if r.keys == nil {
		r.keys = map[string]*sub{}
	}
	clear(r.keys)
	r.ranges = r.ranges[:0]
	for _, c := range group {
		if c.sub.end == "" {
			r.keys[c.sub.key] = c.sub
		} else if !c.sub.listening {
			c.sub.listening = true
			r.ranges = append(r.ranges, c.sub)
		}
	}
	for _, sub := range r.ranges {
		sub.listening = false
	}
}

// hear lays an event before those of the group whom it concerns.
func (s *Stream) hear(e *state.Event) {
	r := &s.reading
	if sub := r.keys[string(e.Key)]; sub != nil {
		s.hand(sub, e)
	}
	for _, sub := range r.ranges {
		if string(e.Key) >= sub.key && (sub.end == "\x00" || string(e.Key) < sub.end) {
			s.hand(sub, e)
		}
	}
}

func (s *Stream) hand(sub *sub, e *state.Event) {
	s.taken = append(s.taken, delivery{sub, e})
	s.link(sub, int32(len(s.taken)-1))
}

// readRecent reads from memory. It returns how far, 0 if memory does not have
// it any more, and whether that is all up to the stream's head: what is newer
// may be in the queue.
func (s *Stream) readRecent(from state.Revision) (to state.Revision, all bool) {
	h, r := s.hub, &s.reading
	h.mu.Lock()
	if from < h.mu.recent.from {
		h.mu.Unlock()
		return 0, false
	}
	r.runs, all = h.mu.recent.since(r.runs[:0], from, s.head, h.limits.pieceBytes)
	h.mu.Unlock()
	if to = s.head; !all {
		to = r.runs[len(r.runs)-1].revision
	}
	for _, run := range r.runs {
		for i := range run.events {
			s.hear(&run.events[i])
		}
	}
	r.runs = reused(r.runs)
	return max(to, from-1), all
}

// readTable does the same from a view.
func (s *Stream) readTable(view *state.View, from state.Revision) (to state.Revision, all bool, err error) {
	to = s.head
	if to-from >= s.hub.limits.pieceRevisions {
		to = from + s.hub.limits.pieceRevisions - 1
	}
	var bytes int64
	last := from
	for e, err := range view.History(s.reading.hull(), from, to) {
		if err != nil {
			return 0, false, err
		}
		if bytes >= s.hub.limits.pieceBytes && e.Revision != last {
			return last, false, nil
		}
		last = e.Revision
		bytes += eventBytes(&e)
		s.hear(&e)
	}
	return max(to, from-1), to >= s.head, nil
}

// hull returns a span that holds those of the group.
func (r *reading) hull() state.Span {
	var low, high string
	first, open := true, false
	extend := func(key, end string) {
		if first || key < low {
			low = key
		}
		if first || end > high {
			high = end
		}
		first = false
	}
	for key := range r.keys {
		extend(key, key+"\x00")
	}
	for _, sub := range r.ranges {
		extend(sub.key, sub.end)
		open = open || sub.end == "\x00"
	}
	if open {
		high = "\x00"
	}
	return state.Span{Key: []byte(low), End: []byte(high)}
}

// advance makes what was read ready to be told, and moves the group to where
// reading ended. Who is where the queue was taken is level.
func (s *Stream) advance(to state.Revision, all bool) {
	for _, c := range s.reading.group {
		if c.floor <= to {
			if c.sub.first != none && s.taken[c.sub.last].event.Revision >= c.floor {
				s.ready = append(s.ready, pending{cursor: c, at: c.sub.first, floor: c.floor, upto: to})
			}
			if c.floor = to + 1; mutant.On("who is behind skips a revision") {
				c.floor++
			}
		}
		c.behind = !all
	}
	s.unlink()
	r := &s.reading
	if r.group = reused(r.group); len(r.keys) > 64 {
		r.keys = nil
	}

	kept := s.behind[:0]
	for _, c := range s.behind {
		if c.behind {
			kept = append(kept, c)
		}
	}
	s.hub.options.Metrics.Slow.Add(int64(len(kept) - len(s.behind)))
	clear(s.behind[len(kept):])
	s.behind = kept
}

// previous returns the pair that an event replaced, nil if there was none or it
// is compacted.
func (h *Hub) previous(e *state.Event) ([]byte, error) {
	for {
		view := h.options.View()
		pair, err := view.Previous(*e)
		if err == nil || h.options.View() == view {
			return pair, err
		}
		// The table of an older view may have been replaced.
	}
}
