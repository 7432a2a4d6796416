package mvcc

import (
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state/internal/table"
)

// Options of a Store.
type Options struct {
	ResidentBytes int64 // of pairs kept in memory; default 256 MiB
	HistoryBytes  int64 // of tree nodes kept for pages of older revisions; default 64 MiB

	// Leased hears while the store opens of the keys that hang on a lease, in
	// their order.
	Leased func(key string, lease int64)

	// Noted hears the same of the notes of what keys hold.
	Noted func(key, note string)

	Removed *metric.Counter // versions that sweeps have removed; may be nil
}

// Store is the keys of one member.
type Store struct {
	// Immutable after Open.
	rows table.Table

	// Shared without locks.
	index    index
	past     past
	floor    atomic.Int64 // a sweep may have cut below this revision
	resident atomic.Int64 // bytes of pairs in memory
	bytes    atomic.Int64 // of rows kept
	swept    atomic.Int64 // the compacted revision that the last sweep was done for
	options  Options

	// writer belongs to whoever holds the lock: Apply for the time of a batch,
	// a sweep for a moment now and then.
	writer struct {
		sync.Mutex
		tree      tree
		exact     Revision // the root stands for this revision and those after it
		revision  Revision
		compacted Revision
		dirty     []*record // more than one version, or deleted
		hand      string    // where eviction goes on
		recent    recent
	}

	sweep sweep // owned by the caller of Sweep
}

// view returns what the writer has made so far.
func (s *Store) view() View {
	w := &s.writer
	return View{store: s, root: w.tree.root, exact: w.exact, Revision: w.revision, Compacted: w.compacted}
}

// Resident returns the bytes of pairs that are in memory.
func (s *Store) Resident() int64 { return s.resident.Load() }

// Size returns the bytes of all rows of history.
func (s *Store) Size() int64 { return s.bytes.Load() }

// Swept returns the compacted revision that has been swept up to.
func (s *Store) Swept() Revision { return Revision(s.swept.Load()) }

// load returns the pair of v, from memory or from the table.
func (s *Store) load(v *version, at Revision) ([]byte, error) {
	if pair := v.resident(); pair != nil {
		return pair, nil
	}
	var buf [rowKeyBytes]byte
	value, found, err := s.rows.Get(appendRowKey(buf[:0], v.at()))
	if err != nil {
		return nil, fmt.Errorf("mvcc: read revision %d: %w", v.main, err)
	}
	head := v.headBytes()
	if !found || len(value) != head+int(v.size) {
		if Revision(s.floor.Load()) > at {
			return nil, ErrOvertaken
		}
		return nil, fmt.Errorf("mvcc: read revision %d: %w", v.main, errRow)
	}
	pair := value[head:]
	// A sweep that cut v off has been here before, or finds the floor above
	// this view.
	if s.remember(v, pair) && Revision(s.floor.Load()) > at {
		s.forget(v)
	}
	return pair, nil
}

// remember keeps the pair of v in memory while there is room, and tells
// whether it did. It may go a little beyond: the writer's eviction makes room.
func (s *Store) remember(v *version, pair []byte) bool {
	if s.resident.Load() > s.options.ResidentBytes || !v.pair.CompareAndSwap(nil, &pair[0]) {
		return false
	}
	s.resident.Add(int64(v.size))
	return true
}

// warm brings the pairs of rows from that of v on to memory, if they are what
// their keys hold now. A range that misses once will miss again, and reading
// one row costs about as much as reading the block that it is in.
func (s *Store) warm(v *version) error {
	const most = 128
	if s.resident.Load() > s.options.ResidentBytes/2 {
		return nil // not at the expense of what was asked for
	}
	n := 0
	from := appendRowKey(nil, v.at())
	return s.rows.Scan(from, []byte{table.History + 1}, func(key, value []byte) bool {
		n++
		row, err := parseRow(key, value)
		if err != nil || row.deleted {
			return err == nil && n < most // whoever asks for a damaged row will be told
		}
		if f, err := parsePair(row.pair); err == nil {
			if r := s.index.find(f.key); r != nil {
				head := r.head.Load()
				if head.at() == row.at && head.resident() == nil &&
					s.remember(head, append(make([]byte, 0, len(row.pair)), row.pair...)) && r.head.Load() != head {
					s.forget(head) // whoever replaced it may have been here before
				}
			}
		}
		return n < most
	})
}

// forget drops the pair of v from memory.
func (s *Store) forget(v *version) {
	if v.pair.Swap(nil) != nil {
		s.resident.Add(-int64(v.size))
	}
}

// past is a ring of the roots that later ones replaced, for those who page
// through an older revision. Readers search it while the writer moves on: each
// entry says itself what it is good for, so finding a wrong one does no harm.
type past struct {
	ring  [pastMax]atomic.Pointer[pastRoot]
	first atomic.Uint64 // number of the oldest kept
	next  atomic.Uint64

	bytes int64 // owned by the writer: of nodes that only the ring holds
}

const pastMax = 1 << 12

type pastRoot struct {
	root     node
	from, to Revision // exact for these
	bytes    int64
}

func (p *past) push(r *pastRoot, limit int64) {
	n := p.next.Load()
	p.bytes += r.bytes
	for first := p.first.Load(); first < n && (n-first == pastMax || p.bytes > limit); first++ {
		place := &p.ring[first%pastMax]
		p.bytes -= place.Load().bytes
		place.Store(nil)
		p.first.Store(first + 1)
	}
	p.ring[n%pastMax].Store(r)
	p.next.Store(n + 1)
}

// at returns the root that is exact at a revision, if it is kept.
func (p *past) at(rev Revision) (node, bool) {
	lo, hi := p.first.Load(), p.next.Load()
	for lo < hi {
		mid := lo + (hi-lo)/2
		r := p.ring[mid%pastMax].Load()
		switch {
		case r == nil || r.to < rev: // given up meanwhile, or too old
			lo = mid + 1
		case r.from > rev:
			hi = mid
		default:
			return r.root, true
		}
	}
	return nil, false
}

// Writer changes the store on behalf of one batch of entries. It holds the
// lock of the writer from Begin to Publish or Abandon.
type Writer struct {
	store *Store
	rows  Rows

	root    node // at Begin
	exact   Revision
	changed Revision // of the tree for the first time, 0 if it was not
	pending []pending
	note    string // of the next change

	keyBuf  [rowKeyBytes]byte // of the row that is being made
	headBuf [rowHeadBytes]byte
}

// Rows takes the rows of history that a batch adds, in order.
type Rows interface {
	// Append adds the row at key; its value is head and tail together.
	Append(key, head, tail []byte)
}

// pending is a change of the revision that is being made.
type pending struct {
	record  *record
	version *version
	before  *version // nil if the key did not exist
	pair    []byte
}

// Begin starts a batch. Its rows go to rows, which the caller commits before
// it publishes.
func (s *Store) Begin(rows Rows) *Writer {
	s.writer.Lock()
	s.writer.tree.begin()
	return &Writer{store: s, rows: rows, root: s.writer.tree.root, exact: s.writer.exact}
}

// Revision of the store after the last sealed change.
func (w *Writer) Revision() Revision { return w.store.writer.revision }

// Compacted revision of the store.
func (w *Writer) Compacted() Revision { return w.store.writer.compacted }

// View returns what the batch has made so far, including the changes that are
// not sealed. It is good until the next change.
func (w *Writer) View() View {
	v := w.store.view()
	if len(w.pending) > 0 {
		v.Revision++
	}
	return v
}

// Pair is what a key holds.
type Pair struct {
	Create, Mod Revision
	Version     int64
	Lease       int64

	store   *Store
	version *version
	at      Revision // that it is read at
}

// Exists tells a pair from the lack of one.
func (p Pair) Exists() bool { return p.version != nil }

// Bytes returns the encoded pair.
func (p Pair) Bytes() ([]byte, error) { return p.store.load(p.version, p.at) }

// Value returns the value alone.
func (p Pair) Value() ([]byte, error) {
	pair, err := p.Bytes()
	if err != nil {
		return nil, err
	}
	return valueOf(pair, int(p.version.lead)), nil
}

func (s *Store) pair(v *version, at Revision) Pair {
	if v == nil {
		return Pair{}
	}
	return Pair{Create: v.create, Mod: v.main, Version: v.version, Lease: v.lease, store: s, version: v, at: at}
}

// Note returns what was noted beside the pair, or "".
func (p Pair) Note() string {
	if p.version == nil {
		return ""
	}
	return p.version.note()
}

// Get returns what a key holds now.
func (w *Writer) Get(key []byte) Pair { return w.View().Get(key) }

// Note has a note kept beside the next change, for as long as its version is:
// bytes that mean something to the caller alone, and that no pair shows.
func (w *Writer) Note(note string) { w.note = note }

// version returns the version that the next change makes.
func (w *Writer) version() *version {
	v := newVersion(w.note)
	w.note = ""
	v.main, v.sub = w.store.writer.revision+1, int32(len(w.pending))
	return v
}

// Was is what a key held before a put beside its value.
type Was struct {
	Lease int64
	Note  string
}

// Put stores a value at a key, at the revision that Seal will end. It returns
// the key as the store keeps it, and what it hung on before.
func (w *Writer) Put(key, value []byte, lease int64) (stored string, was Was) {
	s := w.store
	v := w.version()
	main := v.main
	v.create, v.version, v.lease = main, 1, lease

	r := s.index.find(key)
	var before *version
	if r != nil {
		if before = r.head.Load(); before.deleted() {
			before = nil
		}
	}
	if before != nil {
		v.create, v.version = before.create, before.version+1
		was = Was{before.lease, before.note()}
	}
	v.lead = uint32(leadBytes(len(key), int64(v.create), int64(main), v.version, lease))
	v.size = v.lead + uint32(valueBytes(len(value)))
	pair := make([]byte, 0, v.size)
	pair = appendLead(pair, key, int64(v.create), int64(main), v.version, lease)
	pair = appendValue(pair, value)

	switch {
	case r == nil:
		r = newRecord(key)
		r.head.Store(v)
		s.index.insert(r)
		s.writer.tree.insert(r)
		w.treeChanged(main)
	case before == nil:
		w.push(r, v)
		s.writer.tree.set(r.key, true)
		w.treeChanged(main)
	default:
		w.push(r, v)
	}
	w.add(pending{r, v, before, pair})
	return r.key, was
}

// DeleteRange deletes the keys in a span and returns how many there were. It
// tells of each before it goes.
func (w *Writer) DeleteRange(span Span, each func(key string, p Pair) error) (int64, error) {
	var gone []*record
	w.View().each(span, func(r *record, _ *version) bool {
		gone = append(gone, r)
		return true
	})
	for _, r := range gone {
		if err := each(r.key, w.store.pair(r.head.Load(), w.store.writer.revision+1)); err != nil {
			return 0, err
		}
		w.delete(r)
	}
	return int64(len(gone)), nil
}

// Delete deletes a key that exists, and returns the note beside what it held.
func (w *Writer) Delete(key string) (note string) {
	r := w.store.index.find(unsafe.Slice(unsafe.StringData(key), len(key)))
	must(r != nil && !r.head.Load().deleted(), "what is deleted by name exists")
	note = r.head.Load().note()
	w.delete(r)
	return note
}

func (w *Writer) delete(r *record) {
	v := w.version()
	main := v.main
	v.lead = uint32(leadBytes(len(r.key), 0, int64(main), 0, 0))
	v.size = v.lead
	pair := appendLead(make([]byte, 0, v.size), r.key, 0, int64(main), 0, 0)
	before := r.head.Load()
	w.push(r, v)
	w.store.writer.tree.set(r.key, false)
	w.treeChanged(main)
	w.add(pending{r, v, before, pair})
}

func (w *Writer) push(r *record, v *version) {
	r.push(v)
	if r.marks.Load()&markDirty == 0 {
		r.marks.Or(markDirty)
		w.store.writer.dirty = append(w.store.writer.dirty, r)
	}
}

func (w *Writer) treeChanged(main Revision) {
	if w.changed == 0 {
		w.changed = main
	}
	w.store.writer.exact = main
}

func (w *Writer) add(p pending) {
	p.version.pair.Store(&p.pair[0])
	w.pending = append(w.pending, p)
}

// Seal ends the revision that is being made and appends its events to events.
// Without a change there is no revision to end.
func (w *Writer) Seal(events []Event) []Event {
	if len(w.pending) == 0 {
		return events
	}
	s := w.store
	var flags byte
	if len(w.pending) == 1 {
		flags = rowAlone
		w.pending[0].version.alone = true
	}
	var bytes, resident int64
	for _, p := range w.pending {
		v := p.version
		e := Event{Revision: v.main, Sub: v.sub, Deleted: v.deleted(), Pair: p.pair}
		e.Key = keyOf(p.pair, len(p.record.key))
		f := flags
		if e.Deleted {
			f |= rowDeleted
		}
		if p.before != nil {
			e.Before = p.before.at()
			if e.Previous = p.before.resident(); e.Previous != nil {
				s.writer.recent.push(recentWrite{p.record, p.before})
			}
		}
		s.writer.recent.push(recentWrite{p.record, v})
		w.rows.Append(appendRowKey(w.keyBuf[:0], v.at()), appendRowHead(w.headBuf[:0], f, e.Before, v.note()), p.pair)
		bytes += v.bytes()
		resident += int64(v.size)
		events = append(events, e)
	}
	s.bytes.Add(bytes)
	s.resident.Add(resident)
	s.writer.revision++
	clear(w.pending)
	w.pending = w.pending[:0]
	return events
}

// keyOf returns the key in a pair, which comes first.
func keyOf(pair []byte, n int) []byte {
	from := 1 + varintBytes(uint64(n))
	return pair[from : from+n : from+n]
}

// Compact moves the compacted revision, which the caller has checked.
func (w *Writer) Compact(at Revision) { w.store.writer.compacted = at }

// Publish ends the batch, whose rows are committed by now, and returns the
// view of its revision.
func (w *Writer) Publish() View {
	must(len(w.pending) == 0, "changes are sealed before they are published")
	s := w.store
	if to := w.changed - 1; w.changed != 0 && w.exact <= to {
		s.past.push(&pastRoot{root: w.root, from: w.exact, to: to, bytes: s.writer.tree.cost}, s.options.HistoryBytes)
	}
	view := s.view()
	if invariants {
		s.check()
	}
	s.forgetUnread()
	s.evict()
	s.writer.Unlock()
	return view
}

// Abandon ends a batch whose rows could not be committed. The store is not to
// be written any more.
func (w *Writer) Abandon() { w.store.writer.Unlock() }

// recentBytes is how much of what was written stays in memory for its first
// reader, who most often comes soon or never.
const recentBytes = 32 << 20

// recent is a queue of what was written or replaced. Its room is used again and again.
type recent struct {
	ring  []recentWrite // its length is a power of two
	first int           // number of the oldest
	next  int
	bytes int64
}

type recentWrite struct {
	record  *record
	version *version
}

func (q *recent) push(x recentWrite) {
	if q.next-q.first == len(q.ring) {
		ring := make([]recentWrite, max(64, 2*len(q.ring)))
		for i := q.first; i < q.next; i++ {
			ring[i&(len(ring)-1)] = q.ring[i&(len(q.ring)-1)]
		}
		q.ring = ring
	}
	q.ring[q.next&(len(q.ring)-1)] = x
	q.next++
	q.bytes += int64(x.version.size)
}

func (q *recent) pop() recentWrite {
	place := &q.ring[q.first&(len(q.ring)-1)]
	x := *place
	*place = recentWrite{}
	q.first++
	q.bytes -= int64(x.version.size)
	return x
}

// forgetUnread drops from memory what was written a while ago and was replaced
// since, or read by nobody: memory is for what is read. All that is in the
// queue is committed, so the table has it.
func (s *Store) forgetUnread() {
	q := &s.writer.recent
	for q.bytes > min(recentBytes, s.options.ResidentBytes/4) {
		x := q.pop()
		if x.record.head.Load() != x.version || x.record.marks.Load()&markRead == 0 {
			s.forget(x.version)
		}
	}
}

// evict drops pairs from memory while there are too many, going round the keys
// and sparing once those that were read since it came by last. The work is
// bounded; the next call goes on.
func (s *Store) evict() {
	const steps = 512
	low := s.options.ResidentBytes - s.options.ResidentBytes/16
	if s.resident.Load() <= s.options.ResidentBytes || s.writer.tree.root == nil {
		return
	}
	n := 0
	whole := ascend(s.writer.tree.root, s.writer.hand, func(r *record) bool {
		if n == steps || s.resident.Load() <= low {
			s.writer.hand = r.key
			return false
		}
		n++
		head := r.head.Load()
		if r.marks.Load()&markRead != 0 {
			r.marks.And(^uint32(markRead))
		} else {
			s.forget(head)
		}
		for v := head.prev.Load(); v != nil && v.pair.Load() != nil && n < steps; v = v.prev.Load() {
			s.forget(v)
			n++
		}
		return true
	})
	if whole {
		s.writer.hand = ""
	}
}
