package mvcc

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"

	"github.com/kvorum/kvorum/state/internal/table"
)

// Open rebuilds the keys from a table, whose revision and compacted revision
// the caller has read. Values come to memory when they are first read.
func Open(rows table.Table, revision, compacted Revision, o Options) (*Store, error) {
	if o.ResidentBytes == 0 {
		o.ResidentBytes = 256 << 20
	}
	if o.HistoryBytes == 0 {
		o.HistoryBytes = 64 << 20
	}
	s := &Store{rows: rows, options: o}
	s.writer.revision, s.writer.compacted, s.writer.exact = revision, compacted, revision
	s.floor.Store(int64(NeverCompacted))
	s.swept.Store(int64(NeverCompacted))
	if err := s.readSwept(); err != nil {
		return nil, err
	}

	l := loader{store: s}
	var failed error
	err := rows.Scan(appendRowKey(nil, Position{}), []byte{table.History + 1}, func(key, value []byte) bool {
		failed = l.add(key, value)
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, err
	}
	l.finish()
	return s, nil
}

func (s *Store) readSwept() error {
	value, found, err := s.rows.Get(sweptKey)
	switch {
	case err != nil:
		return err
	case !found:
		return nil
	case len(value) != 8:
		return fmt.Errorf("mvcc: damaged position of the sweep: %x", value)
	}
	swept := int64(binary.BigEndian.Uint64(value))
	s.swept.Store(swept)
	s.floor.Store(swept)
	return nil
}

type loader struct {
	store   *Store
	records []*record
}

func (l *loader) add(key, value []byte) error {
	s := l.store
	r, err := parseRow(key, value)
	if err != nil {
		return err
	}
	f, err := parsePair(r.pair)
	if err != nil {
		return fmt.Errorf("%w at revision %d", err, r.at.Main)
	}
	if r.at.Main > s.writer.revision || Revision(f.mod) != r.at.Main || r.deleted != (f.version == 0) {
		return fmt.Errorf("%w at revision %d of %d", errRow, r.at.Main, s.writer.revision)
	}
	v := newVersion(string(r.note))
	v.main, v.sub, v.alone = r.at.Main, r.at.Sub, r.alone
	v.create, v.version, v.lease = Revision(f.create), f.version, f.lease
	v.size, v.lead = uint32(len(r.pair)), uint32(f.lead)
	rec := s.index.find(f.key)
	if rec == nil {
		rec = newRecord(f.key)
		rec.head.Store(v)
		s.index.insert(rec)
		l.records = append(l.records, rec)
	} else {
		rec.push(v)
	}
	s.bytes.Add(v.bytes())
	return nil
}

func (l *loader) finish() {
	w := &l.store.writer
	sortRecords(l.records)
	w.tree.build(l.records)
	for _, r := range l.records {
		head := r.head.Load()
		if head.deleted() || head.prev.Load() != nil {
			r.marks.Or(markDirty)
			w.dirty = append(w.dirty, r)
		}
		if head.lease != 0 && l.store.options.Leased != nil {
			l.store.options.Leased(r.key, head.lease)
		}
		if head.noted && !head.deleted() && l.store.options.Noted != nil {
			l.store.options.Noted(r.key, head.note())
		}
	}
}

// View returns the view of a store that nobody writes to yet.
func (s *Store) View() View { return s.view() }

// sortRecords puts records in the order of their keys. It looks at seven bytes
// of each key at a time, kept beside the pointer: comparing strings instead
// would miss the cache at every comparison.
func sortRecords(records []*record) {
	if len(records) == 0 {
		return
	}
	shared := len(records[0].key)
	for _, r := range records {
		n := 0
		for n < min(shared, len(r.key)) && r.key[n] == records[0].key[n] {
			n++
		}
		shared = n
	}
	all := make([]sortable, len(records))
	for i, r := range records {
		all[i].record = r
	}
	sortFrom(all, shared)
	for i := range all {
		records[i] = all[i].record
	}
}

type sortable struct {
	chunk  uint64
	record *record
}

// sortFrom sorts records whose keys are equal up to depth.
func sortFrom(all []sortable, depth int) {
	for i := range all {
		all[i].chunk = chunk(all[i].record.key, depth)
	}
	slices.SortFunc(all, func(a, b sortable) int { return cmp.Compare(a.chunk, b.chunk) })
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].chunk == all[0].chunk {
			n++
		}
		if n > 1 {
			sortFrom(all[:n], depth+7)
		}
		all = all[n:]
	}
}

// chunk is the seven bytes of a key from depth on, and how many there were, so
// that a key comes before those that it begins.
func chunk(key string, depth int) uint64 {
	rest := key[depth:]
	var c uint64
	if len(rest) >= 8 {
		b := unsafe.Slice(unsafe.StringData(rest), 8)
		c = binary.BigEndian.Uint64(b) &^ 0xff
	} else {
		for i := range min(7, len(rest)) {
			c |= uint64(rest[i]) << (56 - 8*i)
		}
	}
	return c | uint64(min(len(rest), 8))
}
