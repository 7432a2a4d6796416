package mvcc

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/state/internal/table"
)

// sweep removes what a compaction has made superfluous. It visits the records
// that have something to lose, which the writer has listed, cuts their chains,
// and then deletes the rows of what was cut. All of it runs beside the writer,
// whose lock it takes only to hand records back and to unlink keys that are
// gone, a few at a time.
//
// Rows are deleted in their order, so a key's older versions go before the
// deletion that hides them: no crash on the way brings a key back to life.
type sweep struct {
	target  Revision   // what it is done for; 0 between sweeps
	work    []*record  // still to visit
	visited []visited  // to be settled with the writer
	cut     []*version // newest of chains whose rows are still to be noted
	rows    []sweptRow // to be deleted once all are noted
	sorted  bool       // they are all noted, and in order
}

type visited struct {
	record *record
	grave  *version // a deletion below the target, which nobody needs any more
}

type sweptRow struct {
	at    Position
	bytes uint32
	alone bool
}

// settleAt bounds how long a writer may have to wait for a sweep.
const settleAt = 32

var sweptKey = []byte{table.Local, 's'}

// Sweep goes on removing what compacted made superfluous, for about as many
// records and rows as budget says, and tells whether there is more to do. Its
// caller sees to it that the compaction is committed.
func (s *Store) Sweep(compacted Revision, budget int) (more bool, err error) {
	sw := &s.sweep
	if sw.target == 0 {
		if compacted <= s.Swept() {
			s.writer.Lock()
			s.evict()
			s.writer.Unlock()
			return false, nil
		}
		sw.target = compacted
		// Readers look at the floor after they have read: whatever they may
		// have missed was cut after it rose.
		s.floor.Store(int64(compacted))
		s.writer.Lock()
		sw.work, s.writer.dirty = s.writer.dirty, nil
		s.writer.Unlock()
	}

	for budget > 0 && !sw.sorted {
		switch {
		case len(sw.cut) > 0:
			budget -= s.note(budget)
		case len(sw.visited) >= settleAt || len(sw.work) == 0 && len(sw.visited) > 0:
			s.settle()
		case len(sw.work) > 0:
			last := len(sw.work) - 1
			r := sw.work[last]
			sw.work[last] = nil
			sw.work = sw.work[:last]
			s.visit(r)
			budget--
		default:
			slices.SortFunc(sw.rows, func(a, b sweptRow) int { return a.at.compare(b.at) })
			sw.sorted = true
		}
	}
	if !sw.sorted {
		return true, nil
	}
	if err := s.deleteRows(budget); err != nil {
		return false, fmt.Errorf("mvcc: sweep: %w", err)
	}
	return s.Swept() < compacted, nil // compaction may have gone on meanwhile
}

// visit cuts a chain behind what is still needed.
func (s *Store) visit(r *record) {
	sw := &s.sweep
	v := r.visible(sw.target)
	if mutant.On("compacted beyond its revision") {
		v = r.visible(sw.target + 1)
	}
	seen := visited{record: r}
	switch {
	case v == nil:
	case v.deleted() && (v.main < sw.target || mutant.On("deletion at the compacted revision")):
		seen.grave = v // the writer may be putting the key again
	default:
		// A watch may begin at the compacted revision itself.
		for p := v.prev.Load(); p != nil && p.main == sw.target; p = v.prev.Load() {
			v = p
		}
		if rest := v.prev.Swap(nil); rest != nil {
			v.jump.Store(nil)
			sw.cut = append(sw.cut, rest)
		}
	}
	sw.visited = append(sw.visited, seen)
}

// settle unlinks the keys that are gone and hands back those that will have
// something to lose again.
func (s *Store) settle() {
	sw := &s.sweep
	w := &s.writer
	w.Lock()
	defer w.Unlock()
	w.tree.begin()
	for _, seen := range sw.visited {
		r := seen.record
		if seen.grave != nil {
			sw.cut = append(sw.cut, seen.grave)
			next := r.oldestAbove(seen.grave.main)
			if next == nil {
				s.index.remove(r)
				w.tree.remove(r.key)
				continue
			}
			next.prev.Store(nil)
			next.jump.Store(nil)
		}
		if head := r.head.Load(); head.deleted() || head.prev.Load() != nil {
			w.dirty = append(w.dirty, r)
		} else {
			r.marks.And(^uint32(markDirty))
		}
	}
	clear(sw.visited)
	sw.visited = sw.visited[:0]
}

// oldestAbove returns the oldest version of r that is newer than a revision,
// or nil.
func (r *record) oldestAbove(at Revision) *version {
	v := r.head.Load()
	if v.main <= at {
		return nil
	}
	for {
		if j := v.jump.Load(); j != nil && j.main > at {
			v = j
			continue
		}
		p := v.prev.Load()
		if p == nil || p.main <= at {
			return v
		}
		v = p
	}
}

// note takes versions off a chain that was cut and notes their rows.
func (s *Store) note(budget int) int {
	sw := &s.sweep
	last := len(sw.cut) - 1
	v := sw.cut[last]
	n := 0
	for ; v != nil && n < budget; n++ {
		sw.rows = append(sw.rows, sweptRow{v.at(), uint32(v.bytes()), v.alone})
		s.forget(v)
		// What was kept may jump to here, and must not hold on to the rest.
		v.jump.Store(nil)
		v = v.prev.Swap(nil)
	}
	sw.cut[last] = v
	if v == nil {
		sw.cut = sw.cut[:last]
	}
	return n
}

// deleteRows deletes rows that were noted, about as many as budget says. Rows
// that follow each other are deleted by one range, if they are many: each
// range costs those who read.
func (s *Store) deleteRows(budget int) error {
	const many = 64
	sw := &s.sweep
	batch := s.rows.Batch()
	defer batch.Close()

	var bytes int64
	before := len(sw.rows)
	var from, to [rowKeyBytes]byte
	for budget > 0 && len(sw.rows) > 0 {
		n := 1
		for n < len(sw.rows) && follows(sw.rows[n-1], sw.rows[n]) {
			n++
		}
		if n >= many {
			end := sw.rows[n-1].at
			end.Sub++
			batch.DeleteRange(appendRowKey(from[:0], sw.rows[0].at), appendRowKey(to[:0], end))
		}
		for _, r := range sw.rows[:n] {
			if n < many {
				batch.Delete(appendRowKey(from[:0], r.at))
				budget--
			}
			bytes += int64(r.bytes)
		}
		budget--
		sw.rows = sw.rows[n:]
	}
	done := len(sw.rows) == 0
	if done {
		batch.Set(sweptKey, binary.BigEndian.AppendUint64(nil, uint64(sw.target)))
	}
	if err := batch.Commit(); err != nil {
		return err
	}
	s.bytes.Add(-bytes)
	s.options.Removed.Add(uint64(before - len(sw.rows)))
	if done {
		s.swept.Store(int64(sw.target))
		*sw = sweep{}
	}
	return nil
}

// follows tells whether no row can lie between two.
func follows(a, b sweptRow) bool {
	return a.alone && b.alone && a.at.Main+1 == b.at.Main
}
