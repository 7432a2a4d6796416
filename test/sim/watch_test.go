package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// change is one of a key, by the model.
type change struct {
	kv   *mvccpb.KeyValue // version 0: a deletion
	prev *mvccpb.KeyValue // what the key held before
}

// listener is a client that watches. It goes from one member to another, and
// what it is told has to continue what it was told before.
type listener struct {
	w        *world
	id       int
	home     *member
	run      int // of home
	stream   *watch.Stream
	watchers []*watcher
	begun    []*watcher // without answer, in the order in which they were asked for
	asked    bool       // where its watchers are
	stopped  bool
}

// watcher is one of its wishes.
type watcher struct {
	request watch.Request
	id      int64          // in the stream; -1: the answer has not come
	floor   state.Revision // nothing before this is for it; 0: it begins with what comes next
	next    int            // of the model's changes: those before were told, or are not for it
}

// ended is the context of those who do not wait.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func newListener(w *world, id int) *listener {
	l := &listener{w: w, id: id}
	for range 1 + w.ears.IntN(3) {
		l.watchers = append(l.watchers, l.wish())
	}
	return l
}

func (l *listener) wish() *watcher {
	r := l.w.ears
	q := watch.Request{NoPut: r.IntN(6) == 0, NoDelete: r.IntN(6) == 0, Previous: r.IntN(2) == 0, Fragment: r.IntN(6) == 0}
	q.Span.Key = fmt.Appendf(nil, "k%02d", r.IntN(l.w.keys))
	switch r.IntN(3) {
	case 0:
		q.Span.Key, q.Span.End = []byte("k"), []byte("l")
	case 1:
		q.Span.End = []byte{0}
	}
	c := &watcher{request: q}
	if r.IntN(2) == 0 { // some time in the past, or in the future
		c.floor = max(1, state.Revision(l.w.oracle.model.revision+20-r.Int64N(60)))
	}
	return c
}

// listen lets the listener look for news, again and again.
func (l *listener) listen() {
	r := l.w.ears
	pause := time.Duration(r.Int64N(int64(300 * time.Millisecond)))
	if r.IntN(30) == 0 {
		pause *= 50 // it is busy with something else
	}
	l.w.after(pause, func() {
		if l.stopped {
			return
		}
		l.act()
		l.listen()
	})
}

func (l *listener) act() {
	r := l.w.ears
	if l.home == nil || l.home.run != l.run || r.IntN(100) == 0 {
		l.move()
		return
	}
	if l.home.paused {
		return
	}
	switch r.IntN(20) {
	case 0:
		l.stream.Progress()
		l.asked = true
	case 1: // it has another wish
		i := r.IntN(len(l.watchers))
		if c := l.watchers[i]; c.id >= 0 {
			l.request(l.stream.Cancel(ended, c.id))
			l.watchers[i] = l.wish()
			l.begin(l.watchers[i])
		}
	}
	l.drain()
}

// move goes on at a member that is up.
func (l *listener) move() {
	l.leave()
	present := l.w.present()
	m := present[l.w.ears.IntN(len(present))]
	if !m.up || m.paused || m.state.View().Index == 0 {
		return
	}
	l.home, l.run, l.stream = m, m.run, m.hub.Open()
	for _, c := range l.watchers {
		l.begin(c)
	}
}

func (l *listener) leave() {
	if l.stream != nil {
		l.stream.Close()
	}
	l.home, l.stream, l.begun, l.asked = nil, nil, nil, false
}

func (l *listener) begin(c *watcher) {
	c.id = watch.NoID
	c.request.From = c.floor
	if c.floor > 0 {
		l.w.mark("watch from some revision")
		if c.floor > l.home.state.View().Revision+1 {
			l.w.mark("watch of the future")
		}
	}
	l.begun = append(l.begun, c)
	l.request(l.stream.Watch(ended, c.request))
}

func (l *listener) request(err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		l.w.fail("listener %d: %v", l.id, err)
	}
}

// due returns the next change that the watcher has to be told, if there is one.
func (c *watcher) due(m *model) (change, bool) {
	for ; c.next < len(m.changes); c.next++ {
		x := m.changes[c.next]
		if x.kv.ModRevision < int64(c.floor) {
			continue
		}
		deleted := x.kv.Version == 0
		key, end := string(c.request.Span.Key), string(c.request.Span.End)
		if name := string(x.kv.Key); end == "" && name != key || end != "" && (name < key || end != "\x00" && name >= end) {
			continue
		}
		if deleted && c.request.NoDelete || !deleted && c.request.NoPut {
			continue
		}
		return x, true
	}
	return change{}, false
}

// drain takes all that there is to be told, and checks it.
func (l *listener) drain() {
	for {
		m, err := l.stream.Next(ended)
		if errors.Is(err, context.Canceled) {
			break
		}
		if err != nil {
			l.w.fail("listener %d at %v: %v", l.id, l.home, err)
		}
		if w := l.w; w.lie == nil || w.lie(&m) {
			l.told(m)
		}
	}
	for i, c := range l.watchers {
		l.w.note("watched", uint64(l.id)<<8|uint64(i), uint64(c.next), uint64(c.floor))
	}
}

func (l *listener) told(m watch.Message) {
	w := l.w
	if m.Revision > l.home.state.View().Revision {
		w.fail("listener %d is told of revision %d by %v, which is at %d", l.id, m.Revision, l.home, l.home.state.View().Revision)
	}
	if m.ID == watch.NoID {
		if m.Created || m.Canceled || !l.asked {
			w.fail("listener %d is told %+v", l.id, m)
		}
		l.asked = false
		w.mark("progress of a watch told")
		for _, c := range l.watchers {
			if c.id >= 0 {
				l.reached(c, m.Revision)
			}
		}
		return
	}
	if m.Created {
		if m.Canceled || len(l.begun) == 0 {
			w.fail("listener %d is told %+v", l.id, m)
		}
		c := l.begun[0]
		l.begun = l.begun[1:]
		if c.id = m.ID; c.floor == 0 {
			c.floor = m.Revision + 1
		}
		return
	}
	i := slices.IndexFunc(l.watchers, func(c *watcher) bool { return c.id == m.ID })
	if i < 0 {
		return // it was canceled
	}
	c := l.watchers[i]
	switch {
	case m.Canceled && m.Compacted > 0:
		if m.Compacted <= c.floor || int64(m.Compacted) > w.oracle.model.compacted {
			w.fail("listener %d wants revision %d, and is told that %d is compacted, of %d", l.id, c.floor, m.Compacted, w.oracle.model.compacted)
		}
		w.mark("watch of what is compacted")
		c.floor = m.Compacted
		l.begin(c)
	case m.Canceled:
		w.fail("listener %d is told %+v", l.id, m)
	case len(m.Events) == 0:
		l.reached(c, m.Revision)
	default:
		l.heard(c, m)
	}
}

// heard checks events: they are the next ones, and all of their last revision.
func (l *listener) heard(c *watcher, m watch.Message) {
	w := l.w
	for _, e := range m.Events {
		want, there := c.due(w.oracle.model)
		pair := state.Decode(state.Answer{Pairs: [][]byte{e.Pair}}).Kvs[0]
		same := there && bytes.Equal(pair.Key, want.kv.Key) && bytes.Equal(pair.Value, want.kv.Value) &&
			pair.ModRevision == want.kv.ModRevision && pair.CreateRevision == want.kv.CreateRevision && pair.Version == want.kv.Version && pair.Lease == want.kv.Lease &&
			int64(e.Revision) == want.kv.ModRevision && e.Deleted == (want.kv.Version == 0)
		if !same {
			w.fail("listener %d at %v is told %v deleted %v, expected %v", l.id, l.home, pair, e.Deleted, want.kv)
		}
		l.previous(c, e, want)
		c.next++
		c.floor = max(c.floor, e.Revision) // a revision may be told in parts
		w.heard++
	}
	last := m.Events[len(m.Events)-1].Revision
	if want, there := c.due(w.oracle.model); there && want.kv.ModRevision == int64(last) {
		if !m.Fragment {
			w.fail("listener %d is told a part of revision %d", l.id, last)
		}
		return
	}
	c.floor = max(c.floor, last+1)
}

// previous checks the pair that an event replaced. Where that is compacted it
// may be left out.
func (l *listener) previous(c *watcher, e watch.Event, want change) {
	if !c.request.Previous {
		if e.Previous != nil {
			l.w.fail("listener %d is told a previous pair that it did not ask for", l.id)
		}
		return
	}
	if e.Previous == nil {
		if want.prev != nil && int64(e.Revision) > l.w.oracle.model.compacted {
			l.w.fail("listener %d misses the pair before %v", l.id, want.kv)
		}
		return
	}
	pair := state.Decode(state.Answer{Pairs: [][]byte{e.Previous}}).Kvs[0]
	if want.prev == nil || pair.ModRevision != want.prev.ModRevision || !bytes.Equal(pair.Value, want.prev.Value) || pair.Version != want.prev.Version {
		l.w.fail("listener %d is told that %v replaced %v, which was %v", l.id, want.kv, pair, want.prev)
	}
}

// reached checks that all up to a revision was told.
func (l *listener) reached(c *watcher, at state.Revision) {
	if want, there := c.due(l.w.oracle.model); there && want.kv.ModRevision <= int64(at) {
		l.w.fail("listener %d is told that it is at revision %d, but not of %v", l.id, at, want.kv)
	}
}

// finish lets everybody hear the rest.
func (l *listener) finish() {
	l.stopped = true
	if l.home == nil || l.home.run != l.run {
		for l.move(); l.home == nil; l.move() {
		}
	}
	for range 3 { // who is compacted begins again
		l.drain()
	}
	for _, c := range l.watchers {
		if want, there := c.due(l.w.oracle.model); there && c.id >= 0 {
			l.w.fail("listener %d at %v was never told of %v", l.id, l.home, want.kv)
		}
	}
	l.leave()
}

// TestListeners falsifies what listeners are told, in one way after the other,
// and wants that to be noticed.
func TestListeners(t *testing.T) {
	const seed = 5
	events := func(m *watch.Message) bool { return len(m.Events) > 0 }
	for name, lie := range map[string]func(m *watch.Message) bool{
		"nothing":        func(*watch.Message) bool { return true },
		"a message lost": func(m *watch.Message) bool { return !events(m) },
		"an event lost":  func(m *watch.Message) bool { m.Events = m.Events[:max(0, len(m.Events)-1)]; return true },
		"an event twice": func(m *watch.Message) bool { m.Events = append(m.Events, m.Events...); return true },
		"another order":  func(m *watch.Message) bool { slices.Reverse(m.Events); return true },
		"progress too far": func(m *watch.Message) bool {
			if m.Progress() {
				m.Revision++
			}
			return true
		},
		"more compacted than is": func(m *watch.Message) bool {
			if m.Compacted > 0 {
				m.Compacted += 1000
			}
			return true
		},
		"another pair": func(m *watch.Message) bool {
			for i := range m.Events {
				e := *m.Events[i].Event
				e.Pair = state.Event{}.Pair
				m.Events[i].Event = &e
			}
			return true
		},
		"another pair before": func(m *watch.Message) bool {
			for i := range m.Events {
				if m.Events[i].Previous != nil {
					m.Events[i].Previous = m.Events[i].Pair
				}
			}
			return true
		},
	} {
		r := simulateWith(t, seed, func(w *world) { w.lie = lie })
		if noticed := r.failure != ""; noticed != (name != "nothing") {
			t.Errorf("%s: noticed: %v %s", name, noticed, r.failure)
		}
	}
}
