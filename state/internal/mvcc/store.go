package mvcc

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kvorum/kvorum/state/internal/table"
)

// Options of a Store.
type Options struct {
	ResidentBytes int64 // of pairs kept in memory; default 256 MiB
	HistoryBytes  int64 // of tree nodes kept for pages of older revisions; default 64 MiB
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
	}

	sweep sweep // owned by the caller of Sweep
}

// View returns what the writer sees. It is for the time before Apply, and for
// the writer itself.
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
	if !found || len(value) != rowHeadBytes+int(v.size) {
		if Revision(s.floor.Load()) > at {
			return nil, ErrOvertaken
		}
		return nil, fmt.Errorf("mvcc: read revision %d: %w", v.main, errRow)
	}
	pair := value[rowHeadBytes:]
	// A little beyond the budget: the writer's eviction then makes room.
	if s.resident.Load() <= s.options.ResidentBytes && v.pair.CompareAndSwap(nil, &pair[0]) {
		s.resident.Add(int64(v.size))
		// A sweep that cut v off has been here before, or finds the floor
		// above this view.
		if Revision(s.floor.Load()) > at {
			s.forget(v)
		}
	}
	return pair, nil
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
	cold    []*version // leave memory once the table has them
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

// Get returns what a key holds now.
func (w *Writer) Get(key []byte) Pair { return w.View().Get(key) }

// Put stores a value at a key, at the revision that Seal will end.
func (w *Writer) Put(key, value []byte, lease int64) {
	s := w.store
	main := s.writer.revision + 1
	v := &version{main: main, create: main, version: 1, lease: lease, sub: int32(len(w.pending))}

	r := s.index.find(key)
	var before *version
	if r != nil {
		if before = r.head.Load(); before.deleted() {
			before = nil
		}
	}
	if before != nil {
		v.create, v.version = before.create, before.version+1
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
}

// DeleteRange deletes the keys in a span and returns how many there were. It
// tells of each before it goes.
func (w *Writer) DeleteRange(span Span, each func(key []byte, p Pair) error) (int64, error) {
	s := w.store
	var gone []*record
	w.View().each(span, func(r *record, _ *version) bool {
		gone = append(gone, r)
		return true
	})
	main := s.writer.revision + 1
	for _, r := range gone {
		before := r.head.Load()
		if each != nil {
			if err := each([]byte(r.key), s.pair(before, main)); err != nil {
				return 0, err
			}
		}
		v := &version{main: main, sub: int32(len(w.pending))}
		v.lead = uint32(leadBytes(len(r.key), 0, int64(main), 0, 0))
		v.size = v.lead
		pair := appendLead(make([]byte, 0, v.size), r.key, 0, int64(main), 0, 0)
		w.push(r, v)
		s.writer.tree.set(r.key, false)
		w.treeChanged(main)
		w.add(pending{r, v, before, pair})
	}
	return int64(len(gone)), nil
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
	var keyBuf [rowKeyBytes]byte
	var headBuf [rowHeadBytes]byte
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
			e.Previous = p.before.resident()
			w.cold = append(w.cold, p.before)
		}
		// Memory is for what is read. What is replaced, or what nobody has
		// asked for yet, is with the table, once the batch is committed.
		if p.record.marks.Load()&markRead == 0 {
			w.cold = append(w.cold, v)
		}
		w.rows.Append(appendRowKey(keyBuf[:0], v.at()), appendRowHead(headBuf[:0], f, e.Before), p.pair)
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
	for _, v := range w.cold {
		s.forget(v)
	}
	s.evict()
	s.writer.Unlock()
	return view
}

// Abandon ends a batch whose rows could not be committed. The store is not to
// be written any more.
func (w *Writer) Abandon() { w.store.writer.Unlock() }

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
