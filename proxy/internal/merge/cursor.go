package merge

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// cursor is a watcher upstream, and those of clients who are told by it. It
// stays in one lane for life. Everything here is under Watches.mu.
//
// A watcher may be told by any cursor of its spec that has not passed it: of
// events before its own next, it is not told (M1).
type cursor struct {
	lane     *lane
	spec     spec
	next     int64 // all events before it were told; 0: not known yet
	watchers map[*watcher]struct{}

	proven  bool  // a member has accepted it, here or in another lane
	running bool  // it runs in the present stream of its lane
	id      int64 // there
	closed  bool
}

// join finds a cursor for x, or makes one.
func (w *Watches) join(x *watcher) {
	g := x.of.group
	var best *cursor
	for _, c := range g.cursors[x.spec] {
		suits := c.next > 0 && c.next <= x.next
		if x.next == 0 { // what comes next is not told by who still reads history
			suits = c.lane == g.main
		}
		if suits && (best == nil || c.next > best.next) {
			best = c
		}
	}
	if best == nil && x.next == 0 {
		best = w.open(g.mainLane(), x.spec, 0)
	} else if best == nil {
		best = w.open(g.newLane(), x.spec, x.next)
	}
	w.attach(x, best)
}

func (w *Watches) attach(x *watcher, c *cursor) {
	x.cursor = c
	c.watchers[x] = struct{}{}
	if c.proven {
		w.establish(x)
	}
}

// establish begins to tell x, now that its cursor is known to be good.
func (w *Watches) establish(x *watcher) {
	if x.next == 0 {
		x.next = max(x.floor+1, x.cursor.next)
	}
	w.tellCreated(x)
	w.askProgress(x.of.group)
}

// part takes x from its cursor, and ends that if it was the last.
func (w *Watches) part(x *watcher) {
	c := x.cursor
	if c == nil {
		return
	}
	x.next = c.place(x)
	x.cursor = nil
	if delete(c.watchers, x); len(c.watchers) == 0 {
		w.close(c)
	}
}

// place is the first revision that x was not told, if there was anything in it.
func (c *cursor) place(x *watcher) int64 {
	if !x.told {
		return x.next
	}
	return max(x.next, c.next)
}

// open begins a cursor in a lane.
func (w *Watches) open(l *lane, s spec, next int64) *cursor {
	c := &cursor{lane: l, spec: s, next: next, watchers: map[*watcher]struct{}{}}
	l.group.cursors[s] = append(l.group.cursors[s], c)
	l.add(c)
	w.options.Metrics.Upstream.Add(1)
	w.options.Metrics.Merged.Add(-1)
	return c
}

// close ends a cursor.
func (w *Watches) close(c *cursor) {
	if c.closed {
		return
	}
	c.closed = true
	g := c.lane.group
	rest := slices.DeleteFunc(g.cursors[c.spec], func(other *cursor) bool { return other == c })
	if g.cursors[c.spec] = rest; len(rest) == 0 {
		delete(g.cursors, c.spec)
	}
	c.lane.drop(c)
	w.options.Metrics.Upstream.Add(-1)
	w.options.Metrics.Merged.Add(1)
}

// dissolve ends a cursor and returns those that it told.
func (w *Watches) dissolve(c *cursor) map[*watcher]struct{} {
	all := c.watchers
	c.watchers = nil
	for x := range all {
		x.next = c.place(x)
		x.cursor = nil
	}
	w.close(c)
	return all
}

// move has those that c tells be told by another one, which has not passed
// them, and ends c.
func (w *Watches) move(c, to *cursor) {
	for x := range w.dissolve(c) {
		w.attach(x, to)
	}
}

// settle brings a cursor of a lane of its own to the main one, at a revision
// that it has come to. It returns false where the main one is ahead.
func (w *Watches) settle(c *cursor) bool {
	g := c.lane.group
	if c.lane == g.main || c.closed {
		return true
	}
	main := g.mainCursor(c.spec)
	switch {
	case main == nil:
		main = w.open(g.mainLane(), c.spec, c.next)
		main.proven = true
	case main.next == 0 || main.next > c.next:
		return false
	}
	w.move(c, main)
	return true
}

// mainCursor returns the one that is, or is about to be, in the main lane.
func (g *group) mainCursor(s spec) *cursor {
	for _, c := range g.cursors[s] {
		if c.lane == g.main {
			return c
		}
	}
	return nil
}

// created hears that a member has accepted c, at its revision.
func (w *Watches) created(c *cursor, revision int64) {
	if c.next == 0 {
		c.next = revision + 1
	}
	c.proven = true
	for x := range c.watchers {
		w.establish(x)
	}
	l := c.lane
	if l == l.group.main {
		w.askProgress(l.group)
		return
	}
	if c.next > revision+1 {
		// It waits for what is still to come, and would keep the member from
		// telling of progress: whoever is in the main lane waits as well.
		main := l.group.mainCursor(c.spec)
		if main == nil || main.next == 0 || main.next > c.next {
			main = w.open(l.group.mainLane(), c.spec, revision+1)
			main.proven = true
		}
		w.move(c, main)
		return
	}
	l.ask() // until it is level
}

// refused hears that a member will not watch what c is for.
func (w *Watches) refused(c *cursor, m *pb.WatchResponse) {
	for x := range w.dissolve(c) {
		w.remove(x)
		answer := &pb.WatchResponse{
			Header: m.Header, WatchId: x.id, Canceled: true,
			CancelReason: m.CancelReason, CompactRevision: m.CompactRevision,
		}
		if !x.told {
			answer.WatchId, answer.Created = noID, true
		}
		x.of.put(answer)
	}
}

// canceled hears that a member has ended c. Of those that it told, some may
// still want nothing of what is gone.
func (w *Watches) canceled(c *cursor, m *pb.WatchResponse) {
	for x := range w.dissolve(c) {
		if m.CompactRevision > 0 && x.next >= m.CompactRevision {
			w.join(x)
			continue
		}
		w.remove(x)
		x.of.put(&pb.WatchResponse{
			Header: m.Header, WatchId: x.id, Canceled: true,
			CancelReason: m.CancelReason, CompactRevision: m.CompactRevision,
		})
	}
}

// events hears of events.
func (w *Watches) events(c *cursor, m *pb.WatchResponse) {
	events := m.Events
	for len(events) > 0 && events[0].Kv.ModRevision < c.next {
		events = events[1:]
	}
	if len(events) == 0 {
		return
	}
	w.options.Namespace.Events(events)
	first, last := events[0].Kv.ModRevision, events[len(events)-1].Kv.ModRevision
	body := encode(events)
	told := 0
	for x := range c.watchers {
		if x.next > last {
			continue
		}
		rest, part := events, body
		if x.next > first {
			at, _ := slices.BinarySearchFunc(events, x.next, func(e *mvccpb.Event, next int64) int {
				return int(min(1, max(-1, e.Kv.ModRevision-next)))
			})
			rest = events[at:]
			part = encode(rest)
		}
		x.next = last + 1
		w.tellEvents(x, m.Header, rest, part)
		told += len(rest)
	}
	c.next = last + 1
	w.options.Metrics.Spared.Add(uint64(max(0, told-len(events))))
	w.settle(c)
}

// progressed hears that all events of c up to a revision were told.
func (w *Watches) progressed(c *cursor, header *pb.ResponseHeader) {
	c.next = max(c.next, header.Revision+1)
}

// notify tells of progress those who want to hear of it now and then.
func (w *Watches) notify(c *cursor, header *pb.ResponseHeader) {
	for x := range c.watchers {
		if x.notify && x.told && x.next <= header.Revision+1 {
			x.of.put(&pb.WatchResponse{Header: header, WatchId: x.id})
		}
	}
}
