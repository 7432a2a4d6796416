package mvcc

import (
	"encoding/binary"
	"iter"

	"github.com/cespare/xxhash/v2"

	"github.com/kvorum/kvorum/fault"
)

// History yields the changes of the keys in a span with revisions in
// [from, to], oldest first. An event's bytes are its own and may be kept. It
// never waits for the writer.
//
// It ends with an error if from is compacted, also if that happens on the way,
// or if the table cannot be read.
func (v View) History(span Span, from, to Revision) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if from < v.Compacted {
			yield(Event{}, fault.Compacted)
			return
		}
		var failed error
		stopped := false
		lower := appendRowKey(nil, Position{from, 0})
		upper := appendRowKey(nil, Position{min(to, v.Revision) + 1, 0})
		err := v.store.rows.Scan(lower, upper, func(key, value []byte) bool {
			if Revision(v.store.floor.Load()) > from {
				failed = fault.Compacted
				return false
			}
			var r row
			var f facts
			if r, failed = parseRow(key, value); failed != nil {
				return false
			}
			if f, failed = parsePair(r.pair); failed != nil {
				return false
			}
			if !span.Contains(f.key) {
				return true
			}
			pair := append(make([]byte, 0, len(r.pair)), r.pair...)
			e := Event{
				Revision: r.at.Main,
				Sub:      r.at.Sub,
				Deleted:  r.deleted,
				Key:      keyOf(pair, len(f.key)),
				Pair:     pair,
				Before:   r.before,
			}
			stopped = !yield(e, nil)
			return !stopped
		})
		if stopped {
			return
		}
		if err == nil {
			err = failed
		}
		if err == nil && Revision(v.store.floor.Load()) > from {
			err = fault.Compacted
		}
		if err != nil {
			yield(Event{}, err)
		}
	}
}

// Previous returns the pair that an event has replaced, or nil if there was
// none or it is compacted.
func (v View) Previous(e Event) ([]byte, error) {
	if e.Before == (Position{}) || e.Revision <= v.Compacted {
		return nil, nil
	}
	if e.Previous != nil {
		return e.Previous, nil
	}
	if r := v.store.index.find(e.Key); r != nil {
		if x := r.visible(e.Before.Main); x != nil && x.at() == e.Before {
			if pair := x.resident(); pair != nil {
				return pair, nil
			}
		}
	}
	key := appendRowKey(nil, e.Before)
	value, found, err := v.store.rows.Get(key)
	if err != nil || !found { // not found: compacted since the view was taken
		return nil, err
	}
	r, err := parseRow(key, value)
	return r.pair, err
}

// Revised calls visit for the changes of one revision, in order, until it
// returns false. It fails if the revision is not above the compacted one, also
// if that happens meanwhile. The bytes are valid until visit returns.
func (v View) Revised(at Revision, visit func(key []byte, deleted bool, note []byte) bool) error {
	if at <= v.Compacted {
		return fault.Compacted
	}
	var failed error
	err := v.store.rows.Scan(appendRowKey(nil, Position{at, 0}), appendRowKey(nil, Position{at + 1, 0}), func(key, value []byte) bool {
		var r row
		var f facts
		if r, failed = parseRow(key, value); failed != nil {
			return false
		}
		if f, failed = parsePair(r.pair); failed != nil {
			return false
		}
		return visit(f.key, r.deleted, r.note) && !r.alone
	})
	if err == nil {
		err = failed
	}
	if err == nil && Revision(v.store.floor.Load()) >= at {
		err = fault.Compacted
	}
	return err
}

// HashKV returns a hash of what can be read at the compacted revision and of
// all that happened since, up to a revision; 0 stands for the view's own. It
// reads the table, for that is what members compare.
func (v View) HashKV(revision int64) (hash uint32, at Revision, err error) {
	if f := v.Check(revision); f != nil {
		return 0, 0, f
	}
	at = v.Revision
	if revision > 0 {
		at = Revision(revision)
	}
	var failed error
	var digest = xxhash.New()
	var head [8 + 4 + 1]byte
	err = v.store.rows.Scan(appendRowKey(nil, Position{}), appendRowKey(nil, Position{at + 1, 0}), func(key, value []byte) bool {
		var r row
		if r, failed = parseRow(key, value); failed != nil {
			return false
		}
		if r.at.Main <= v.Compacted {
			var f facts
			if f, failed = parsePair(r.pair); failed != nil {
				return false
			}
			// Of what is compacted, only what can still be read counts: the
			// rest is there or not, as the sweep goes.
			rec := v.store.index.find(f.key)
			if rec == nil {
				return true
			}
			if x := rec.alive(v.Compacted); x == nil || x.at() != r.at {
				return true
			}
		}
		binary.BigEndian.PutUint64(head[:], uint64(r.at.Main))
		binary.BigEndian.PutUint32(head[8:], uint32(r.at.Sub))
		head[12] = 0
		if r.deleted {
			head[12] = 1
		}
		digest.Write(head[:])
		digest.Write(r.note)
		digest.Write(r.pair)
		return true
	})
	if err == nil {
		err = failed
	}
	if err == nil && Revision(v.store.floor.Load()) > v.Compacted {
		err = ErrOvertaken
	}
	sum := digest.Sum64()
	return uint32(sum ^ sum>>32), at, err
}
