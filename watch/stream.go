package watch

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
	"unsafe"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/state"
)

// Request asks for a watcher.
type Request struct {
	ID   int64 // by which it is called; 0 lets the stream choose
	Span state.Span
	From state.Revision // the first that is of interest; 0 is what comes next

	NoPut    bool // leave puts out
	NoDelete bool // leave deletions out
	Previous bool // tell with each event the pair that it replaced
	Progress bool // tell its place now and then when there is nothing else to tell
	Fragment bool // a revision may be told in several messages
}

// Message is what a client is told next.
type Message struct {
	ID       int64          // of the watcher; NoID where it is none or all
	Revision state.Revision // of the store when this was so; of progress, the place of the watcher

	Created   bool
	Canceled  bool
	Reason    string         // why it was refused
	Compacted state.Revision // it asked for what is gone: all before this

	Events   []Event // good until the next message is asked for
	Same     bool    // they are those of the message before that had any
	Fragment bool    // the events may be told in several answers
}

// Progress tells whether the message is that everything up to its revision was
// told.
func (m Message) Progress() bool { return !m.Created && !m.Canceled && len(m.Events) == 0 }

// Event is one change, and what it replaced if that was asked for.
type Event struct {
	*state.Event
	Previous []byte // encoded pair, or nil
}

// NoID stands for a watcher that was refused, or for all of a stream.
const NoID = -1

// Why a watcher is refused, as clients know it.
const (
	emptyRange  = "mvcc: watcher range is empty"
	duplicateID = "mvcc: duplicate watch ID provided on the WatchStream"
)

// limits bound what a stream holds (W4), but for a single revision.
type limits struct {
	// What waits for a client that does not read. Beyond, cursors are behind,
	// and have it read again when there is room.
	queueEvents int
	queueBytes  int64
	unread      int // answers to requests; then no more requests are taken

	messageBytes int // about how large a message becomes

	// What is read of history at once: between two pieces, those who are level
	// are told what is new.
	pieceBytes     int64
	pieceRevisions state.Revision
}

var usual = limits{
	queueEvents: 4096, queueBytes: 1 << 20, unread: 128,
	messageBytes: 1 << 20,
	pieceBytes:   256 << 10, pieceRevisions: 10_000,
}

// keptBytes is how large slices may be that are kept for the next time: most
// streams have nothing to do most of the time.
const keptBytes = 2048

// delivery is an event for those of a stream who listen to one span, or, where
// sub is nil, stands for the next notice.
type delivery struct {
	sub   *sub
	event *state.Event
}

// notice is an answer to a request, in its place among the events.
type notice struct {
	message Message
	cursor  *cursor // nil if there is none
}

// sub is what a stream has of one span.
type sub struct {
	stream    *Stream
	key, end  string // as in requests
	cursors   *cursor
	place     int32 // in its group
	lost      bool  // events were dropped since the queue was last taken
	listening bool  // owned by Next: among those that history is read for

	// Owned by Next: its deliveries among those taken, none if there are none.
	first, last int32
}

const none = -1

// cursor is the place of one watcher in history.
type cursor struct {
	sub        *sub
	next, prev *cursor // of the same sub
	id         int64

	noPut, noDelete, previous, progress, fragment bool

	// Owned by Next, once the cursor can be found.
	behind bool
	gone   bool           // canceled
	told   bool           // something, since it was last thought of telling its place
	floor  state.Revision // events before this are not for it
}

func (c *cursor) wants(e *state.Event) bool {
	return !(e.Deleted && c.noDelete) && !(!e.Deleted && c.noPut)
}

// Stream is what one client listens to. Watch, Cancel and Progress are for one
// goroutine, Next for one, which may be another.
type Stream struct {
	// Immutable.
	hub  *Hub
	wake chan struct{} // holds one: there is something to take
	room chan struct{} // holds one: notices were taken

	staged []delivery // owned by the caller of Publish

	mu struct {
		sync.Mutex
		ended   error
		cursors map[int64]*cursor // nil: canceled by compaction, and its id is still taken
		live    int
		nextID  int64
		future  map[int64]state.Revision // where those begin who wait for a later revision

		queue   []delivery
		bytes   int64 // of events in the queue
		notices []notice
		lost    []lost
		full    bool           // the queue takes no events until it is taken
		notify  func()         // nil, or called whenever wake is
		head    state.Revision // all of interest up to here is in the queue, was taken or lost
		asked   bool           // where all watchers are
	}

	// Owned by Next.
	head    state.Revision // what mu.head was when the queue was taken
	taken   []delivery
	links   []int32 // the next delivery of the same sub
	active  []*sub  // with deliveries among those taken
	notices []notice
	missed  []lost
	ready   []pending // what to tell of all that
	done    int       // of ready
	events  []Event
	story   story
	behind  []*cursor
	owed    bool // an answer to who asked where all watchers are
	reports []report
	now     time.Time
	timer   *time.Timer
	due     time.Time // when the timer fires
	every   time.Duration
	reading reading
}

// lost says since when events of a sub were dropped.
type lost struct {
	sub  *sub
	from state.Revision
}

// pending is something to tell: a notice, or the deliveries of a cursor.
type pending struct {
	notice *notice
	cursor *cursor
	at     int32          // the first that was not told
	floor  state.Revision // of the cursor, when they were laid out
	upto   state.Revision // with the last of them, the cursor is here; 0: at its last event
}

// story is what s.events were assembled of. Most cursors of a sub hear the same.
type story struct {
	at              int32 // the first delivery; none: it is no use to others
	began           state.Revision
	revision        state.Revision // of the last delivery
	noPut, noDelete bool
}

// suits tells whether p has just the same to hear.
func (t story) suits(p *pending) bool {
	c := p.cursor
	return p.at == t.at && p.floor <= t.began && c.noPut == t.noPut && c.noDelete == t.noDelete && !c.previous
}

// report says when the place of a cursor is told if nothing else is.
type report struct {
	cursor *cursor
	due    time.Time
}

// Open returns a stream without watchers, which has to be closed.
func (h *Hub) Open() *Stream {
	s := &Stream{hub: h, wake: make(chan struct{}, 1), room: make(chan struct{}, 1), story: story{at: none}}
	// Streams that were opened together need not speak together.
	s.every = h.options.ProgressInterval
	s.every += rand.N(s.every/10 + 1)
	s.mu.cursors = map[int64]*cursor{}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.closed {
		s.mu.ended = fault.Stopped
		return s
	}
	h.mu.streams[s] = struct{}{}
	h.options.Metrics.Streams.Add(1)
	return s
}

// Close ends the stream and all its watchers. Next must have returned.
func (s *Stream) Close() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := h.mu.streams[s]; !open {
		return
	}
	delete(h.mu.streams, s)
	for _, c := range s.mu.cursors {
		if c != nil {
			s.detach(c)
		}
	}
	s.mu.ended = fault.WatchCanceled
	h.options.Metrics.Streams.Add(-1)
	h.options.Metrics.Pending.Add(int64(len(s.mu.notices) - len(s.mu.queue)))
	h.options.Metrics.Slow.Add(-int64(len(s.behind)))
	if s.timer != nil {
		s.timer.Stop()
	}
	s.wakeUp()
}

// end makes Next return err, and nothing else be asked any more.
func (s *Stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ended = err
	s.wakeUp()
}

// wakeUp is called with the stream locked.
func (s *Stream) wakeUp() {
	poke(s.wake)
	if s.mu.notify != nil {
		s.mu.notify()
	}
}

// Notify has f called whenever there may be something for Try. f must not wait,
// nor ask anything of the stream.
func (s *Stream) Notify(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.notify = f
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // already known
	}
}

// Watch makes a watcher, or refuses it; which of the two is told by Next. It
// waits while the client leaves too many answers unread.
func (s *Stream) Watch(ctx context.Context, r Request) error {
	return s.request(ctx, func() notice {
		refuse := func(reason string) notice {
			return notice{message: Message{ID: NoID, Created: true, Canceled: true, Reason: reason}}
		}
		key, end := string(r.Span.Key), string(r.Span.End)
		_, taken := s.mu.cursors[r.ID]
		switch {
		case r.From < 0:
			return refuse(fault.Compacted.Text)
		case end != "" && end != "\x00" && key >= end:
			return refuse(emptyRange)
		case r.ID != 0 && taken:
			return refuse(duplicateID)
		case r.ID == 0:
			for taken := true; taken; s.mu.nextID++ {
				r.ID = s.mu.nextID
				_, taken = s.mu.cursors[r.ID]
			}
		}
		head := s.hub.Head()
		c := &cursor{
			id: r.ID, floor: r.From,
			noPut: r.NoPut, noDelete: r.NoDelete, previous: r.Previous, progress: r.Progress, fragment: r.Fragment,
		}
		if r.From == 0 {
			c.floor = head + 1
		}
		c.behind = c.floor <= head
		if c.floor > head+1 {
			if s.mu.future == nil {
				s.mu.future = map[int64]state.Revision{}
			}
			s.mu.future[c.id] = c.floor
		}
		s.attach(c, key, end)
		return notice{Message{ID: c.id, Created: true}, c}
	})
}

// Cancel ends a watcher. An id that there is not is ignored.
func (s *Stream) Cancel(ctx context.Context, id int64) error {
	return s.request(ctx, func() notice {
		c, known := s.mu.cursors[id]
		if !known {
			return notice{}
		}
		if c != nil {
			s.detach(c)
		}
		delete(s.mu.cursors, id)
		return notice{Message{ID: id, Canceled: true}, c}
	})
}

// request makes a change with the hub and the stream locked, and queues the
// answer if it has one.
func (s *Stream) request(ctx context.Context, change func() notice) error {
	for {
		s.mu.Lock()
		crowded := len(s.mu.notices) >= s.hub.limits.unread
		s.mu.Unlock()
		if !crowded {
			break
		}
		select {
		case <-s.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.ended != nil {
		return s.mu.ended
	}
	if n := change(); n.message.Created || n.message.Canceled {
		n.message.Revision = s.hub.Head()
		s.mu.notices = append(s.mu.notices, n)
		s.mu.queue = append(s.mu.queue, delivery{})
		s.wakeUp()
	}
	return nil
}

// Progress asks where the watchers are. It is told when all of them are at one
// place; who asks again before that is answered once. It is not told where
// there is no watcher, or one that waits for a later revision.
func (s *Stream) Progress() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reached(s.hub.Head()) {
		s.mu.asked = true
		s.wakeUp()
	}
}

// attach lets a cursor be found. With the hub and the stream locked.
func (s *Stream) attach(c *cursor, key, end string) {
	sub := s.hub.mu.index.add(s, key, end)
	c.sub, c.next = sub, sub.cursors
	if c.next != nil {
		c.next.prev = c
	}
	sub.cursors = c
	s.mu.cursors[c.id] = c
	s.mu.live++
	s.hub.options.Metrics.Watchers.Add(1)
}

// detach undoes attach, but for the id.
func (s *Stream) detach(c *cursor) {
	if c.next != nil {
		c.next.prev = c.prev
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else if c.sub.cursors = c.next; c.next == nil {
		s.hub.mu.index.remove(c.sub)
	}
	c.next, c.prev = nil, nil
	delete(s.mu.future, c.id)
	s.mu.live--
	s.hub.options.Metrics.Watchers.Add(-1)
}

// push queues what was staged, all of it or nothing. With the hub locked.
func (s *Stream) push(head state.Revision) {
	var bytes int64
	for _, d := range s.staged {
		bytes += eventBytes(d.event)
	}
	s.mu.Lock()
	if s.mu.full || len(s.mu.queue)+len(s.staged) > s.hub.limits.queueEvents || s.mu.bytes+bytes > s.hub.limits.queueBytes {
		s.mu.full = true // what comes next must not be told before what is lost
		for _, d := range s.staged {
			s.lose(d.sub, d.event.Revision)
		}
	} else {
		s.mu.queue = append(s.mu.queue, s.staged...)
		s.mu.bytes += bytes
		s.hub.options.Metrics.Pending.Add(int64(len(s.staged)))
	}
	s.mu.head = head
	s.wakeUp()
	s.mu.Unlock()
	s.staged = reused(s.staged)
}

// lose marks that events of a sub since a revision are not in the queue. With
// the stream locked.
func (s *Stream) lose(sub *sub, from state.Revision) {
	if !sub.lost {
		sub.lost = true
		s.mu.lost = append(s.mu.lost, lost{sub, from})
	}
}

// loseAll marks that nobody was told of any event between two revisions.
func (s *Stream) loseAll(from, head state.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.mu.cursors {
		if c != nil {
			s.lose(c.sub, from)
		}
	}
	s.mu.full = true
	s.mu.head = head
	s.wakeUp()
}

// Next returns what to tell next, and waits until there is something. Its
// error is that of ctx if it would have to wait, a fault if the stream was
// ended, or a failure of the table.
func (s *Stream) Next(ctx context.Context) (Message, error) {
	for {
		if m, ok, err := s.Try(ctx); ok || err != nil {
			return m, err
		}
		var timer <-chan time.Time
		if s.timer != nil {
			timer = s.timer.C
		}
		select {
		case <-s.wake:
		case <-timer:
			s.due = time.Time{}
		case <-ctx.Done():
			return Message{}, ctx.Err()
		}
	}
}

// Try returns what Next would, if there is something. It may rest while it reads
// old history, and waits for nothing else.
func (s *Stream) Try(ctx context.Context) (m Message, ok bool, err error) {
	for {
		if m, ok, err := s.More(); ok || err != nil {
			return m, ok, err
		}
		if m, ok := s.report(); ok {
			return m, true, nil
		}
		if err := s.catchUp(ctx); err != nil {
			return Message{}, false, err
		}
		if len(s.ready) > 0 {
			continue
		}
		s.forget() // history that was read, and concerns nobody
		switch news, err := s.take(); {
		case err != nil:
			return Message{}, false, err
		case !news && len(s.behind) == 0:
			return Message{}, false, nil
		}
	}
}

// take takes the queue and lays out what to tell of it. It tells whether there
// was anything new.
func (s *Stream) take() (news bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.ended != nil {
		return false, s.mu.ended
	}
	// While this stream is locked no publisher is between its queue and the
	// head, so that all up to the head is in the queue.
	s.head = max(s.mu.head, s.hub.Head())
	s.mu.head = s.head
	s.owed, s.mu.asked = (s.owed || s.mu.asked) && s.reached(s.head), false
	s.taken, s.mu.queue = s.mu.queue, s.taken
	s.notices, s.mu.notices = s.mu.notices, s.notices
	s.missed, s.mu.lost = s.mu.lost, s.missed
	s.mu.bytes, s.mu.full = 0, false
	news = len(s.taken) > 0 || len(s.missed) > 0 || s.owed

	s.layOut()
	for _, l := range s.missed {
		l.sub.lost = false
		for c := l.sub.cursors; c != nil; c = c.next {
			if !c.behind {
				c.floor = max(c.floor, l.from)
				s.fallBehind(c)
			}
		}
	}
	s.missed = reused(s.missed)
	if len(s.notices) > 0 {
		poke(s.room)
	}
	return s.clock() || news, nil
}

func (s *Stream) fallBehind(c *cursor) {
	c.behind = true
	s.behind = append(s.behind, c)
	s.hub.options.Metrics.Slow.Add(1)
}

// layOut makes of what was taken what to tell: the events of a cursor together,
// notices in their place among them. With the stream locked.
func (s *Stream) layOut() {
	notices := 0
	for i, d := range s.taken {
		if d.sub != nil {
			s.link(d.sub, int32(i))
			continue
		}
		s.flush()
		n := &s.notices[notices]
		notices++
		s.ready = append(s.ready, pending{notice: n})
		switch c := n.cursor; {
		case c == nil:
		case n.message.Canceled:
			c.gone = true
		default:
			if c.behind {
				s.fallBehind(c)
			}
			if c.progress {
				s.reports = append(s.reports, report{cursor: c}) // due when the clock was read
			}
		}
	}
	s.flush()
	s.hub.options.Metrics.Pending.Add(int64(notices - len(s.taken)))
}

// link adds a delivery to those of its sub.
func (s *Stream) link(sub *sub, i int32) {
	for int(i) >= len(s.links) {
		s.links = append(s.links, none)
	}
	if sub.first == none {
		sub.first = i
		s.active = append(s.active, sub)
	} else {
		s.links[sub.last] = i
	}
	sub.last = i
}

// flush makes what was linked ready for all level cursors.
func (s *Stream) flush() {
	for _, sub := range s.active {
		newest := s.taken[sub.last].event.Revision
		for c := sub.cursors; c != nil; c = c.next {
			if !c.behind && c.floor <= newest {
				s.ready = append(s.ready, pending{cursor: c, at: sub.first, floor: c.floor})
			}
		}
	}
	s.unlink()
}

// More returns what Next would if that is at hand already: who sends many
// messages together asks for more until there are none.
func (s *Stream) More() (m Message, ok bool, err error) {
	for s.done < len(s.ready) {
		p := &s.ready[s.done]
		if p.notice != nil {
			s.done++
			return p.notice.message, true, nil
		}
		m, err := s.assemble(p)
		if p.at == none {
			s.done++
		}
		if len(m.Events) > 0 || err != nil {
			p.cursor.told = true
			s.hub.options.Metrics.Events.Add(uint64(len(m.Events)))
			return m, true, err
		}
	}
	s.forget()
	return Message{}, false, nil
}

// forget lets go of all that was told.
func (s *Stream) forget() {
	s.done, s.story.at = 0, none
	s.ready, s.notices, s.events = reused(s.ready), reused(s.notices), reused(s.events)
	s.taken, s.links = reused(s.taken), reused(s.links)
}

// unlink forgets which deliveries belong to which sub.
func (s *Stream) unlink() {
	for _, sub := range s.active {
		sub.first = none
	}
	s.active = reused(s.active)
}

// reused empties a slice, and keeps its memory if it is not large.
func reused[E any](s []E) []E {
	var e E
	if cap(s)*int(unsafe.Sizeof(e)) > keptBytes {
		return nil
	}
	clear(s)
	return s[:0]
}

// assemble makes the next message of a cursor's deliveries, which ends with a
// revision.
func (s *Stream) assemble(p *pending) (Message, error) {
	c := p.cursor
	m := Message{ID: c.id, Fragment: c.fragment}
	if s.story.suits(p) {
		p.at = none
		m.Events, m.Same = s.events, true
		m.Revision = max(s.story.revision, p.upto)
		return m, nil
	}
	t := story{at: p.at, began: s.taken[p.at].event.Revision, noPut: c.noPut, noDelete: c.noDelete}
	s.story.at = none
	s.events = s.events[:0]
	size := 0
	for p.at != none {
		e := s.taken[p.at].event
		if size >= s.hub.limits.messageBytes && e.Revision != m.Revision {
			m.Events = s.events
			return m, nil
		}
		p.at = s.links[p.at]
		m.Revision = e.Revision
		if e.Revision < p.floor || !c.wants(e) {
			continue
		}
		told := Event{Event: e}
		if c.previous {
			var err error
			if told.Previous, err = s.hub.previous(e); err != nil {
				return Message{}, err
			}
		}
		s.events = append(s.events, told)
		size += len(e.Pair) + len(told.Previous)
	}
	if m.Events = s.events; !c.previous && p.floor <= t.began {
		t.revision = m.Revision
		s.story = t
	}
	m.Revision = max(m.Revision, p.upto)
	return m, nil
}

// report returns what is to be said of progress. All that was taken together
// with s.head has been told, so that level cursors are there (W3).
func (s *Stream) report() (Message, bool) {
	if s.owed && (len(s.behind) == 0 || mutant.On("progress over those who are behind")) {
		s.owed = false
		return Message{ID: NoID, Revision: s.head}, true
	}
	for len(s.reports) > 0 && !s.reports[0].due.After(s.now) {
		c := s.reports[0].cursor
		s.reports = append(s.reports[1:], report{c, s.now.Add(s.every)})
		if c.gone {
			s.reports = s.reports[:len(s.reports)-1]
			continue
		}
		told := c.told
		c.told = false
		if !told && !c.behind && c.floor <= s.head+1 {
			return Message{ID: c.id, Revision: s.head}, true
		}
	}
	return Message{}, false
}

// reached tells whether there are watchers and none of them waits for a revision
// behind the head: one that does must not be told to go on before it. With the
// stream locked.
func (s *Stream) reached(head state.Revision) bool {
	for id, from := range s.mu.future {
		if from > head+1 {
			return false
		}
		delete(s.mu.future, id)
	}
	return s.mu.live > 0
}

// clock reads the clock if a report may be due, sets it to ring for the first,
// and tells whether one is due. Reports are in the order in which they are due.
func (s *Stream) clock() (due bool) {
	if len(s.reports) == 0 {
		return false
	}
	s.now = time.Now()
	for i := len(s.reports) - 1; i >= 0 && s.reports[i].due.IsZero(); i-- {
		s.reports[i].due = s.now.Add(s.every)
	}
	first := s.reports[0].due
	if !first.After(s.now) {
		return true
	}
	if !s.due.Equal(first) {
		s.due = first
		if s.timer == nil {
			s.timer = time.NewTimer(first.Sub(s.now))
		} else {
			s.timer.Reset(first.Sub(s.now))
		}
	}
	return false
}
