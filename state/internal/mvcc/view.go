package mvcc

import (
	"bytes"
	"cmp"
	"iter"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
)

// View is the store at one revision. It is a value, costs nothing to keep, and
// may be used by many at once.
type View struct {
	store *Store
	root  node
	exact Revision // the root stands for this revision and those up to Revision

	Revision  Revision
	Compacted Revision
}

// Span is a range of keys as requests write it: a key alone, [key, end), or
// with an end of one zero byte everything from key on.
type Span struct{ Key, End []byte }

func (s Span) one() bool  { return len(s.End) == 0 }
func (s Span) open() bool { return len(s.End) == 1 && s.End[0] == 0 }

// Contains tells whether a key is in the span.
func (s Span) Contains(key []byte) bool {
	if s.one() {
		return bytes.Equal(key, s.Key)
	}
	return bytes.Compare(key, s.Key) >= 0 && (s.open() || bytes.Compare(key, s.End) < 0)
}

// Answer is what a range holds. Its pairs belong to the store and never change.
type Answer struct {
	Pairs    [][]byte // encoded; without their values if only keys were asked for
	Count    int64    // of all keys in the range, whatever limit and filters left out
	More     bool
	Revision Revision // of the view
}

// Get returns what a key holds.
func (v View) Get(key []byte) Pair {
	if r := v.store.index.find(key); r != nil {
		return v.store.pair(r.alive(v.Revision), v.Revision)
	}
	return Pair{}
}

// At returns the view as of an older revision, which is not below the compacted
// one. Overtaken tells afterwards whether all that was read from it was there.
func (v View) At(at Revision) View {
	v.Revision = at
	return v
}

// Overtaken tells whether a sweep may have removed what the view shows.
func (v View) Overtaken() bool { return Revision(v.store.floor.Load()) > v.Revision }

// Ascend yields the keys in [from, to) and what they hold, in order. It looks
// no further than it is asked to, and finds its beginning in O(log n).
func (v View) Ascend(from, to string) iter.Seq2[string, Pair] {
	return func(yield func(string, Pair) bool) {
		visit := func(r *record) bool {
			if r.key >= to {
				return false
			}
			x := r.alive(v.Revision)
			return x == nil || yield(r.key, v.store.pair(x, v.Revision))
		}
		if root, ok := v.rootAt(v.Revision); ok {
			if root != nil {
				existing(root, rank(root, from), visit)
			}
		} else if v.root != nil {
			ascend(v.root, from, visit)
		}
	}
}

// Each yields what the keys in a span hold, in order. The keys are copies.
func (v View) Each(span Span) iter.Seq2[[]byte, Pair] {
	return func(yield func([]byte, Pair) bool) {
		v.each(span, func(r *record, x *version) bool {
			return yield([]byte(r.key), v.store.pair(x, v.Revision))
		})
	}
}

// Check says whether a revision can be read; 0 and less stand for the view's own.
func (v View) Check(revision int64) *fault.Fault {
	switch at := Revision(revision); {
	case at <= 0:
		return nil
	case at > v.Revision:
		return fault.FutureRevision
	case at < v.Compacted:
		return fault.Compacted
	}
	return nil
}

// Range answers a request that was checked. Its error is a fault, ErrOvertaken
// where no revision was named, or a failure of the table.
func (v View) Range(q *pb.RangeRequest) (Answer, error) {
	if f := v.Check(q.Revision); f != nil {
		return Answer{}, f
	}
	at := v.Revision
	if q.Revision > 0 {
		at = Revision(q.Revision)
	}
	answer := Answer{Revision: v.Revision}
	err := v.collect(q, at, &answer)
	if err == nil && Revision(v.store.floor.Load()) > at {
		err = ErrOvertaken
	}
	if err != nil {
		if err == ErrOvertaken && q.Revision > 0 {
			err = fault.Compacted
		}
		return Answer{}, err
	}
	return answer, nil
}

func (v View) collect(q *pb.RangeRequest, at Revision, answer *Answer) error {
	span := Span{q.Key, q.RangeEnd}
	if q.CountOnly {
		answer.Count = int64(v.count(span, at))
		return nil
	}
	if span.one() && !filtered(q) { // nothing to sort or to leave out
		r := v.store.index.find(q.Key)
		if r == nil {
			return nil
		}
		x := r.alive(at)
		if x == nil {
			return nil
		}
		pair, err := v.answer(hit{r, x}, at, q.KeysOnly)
		answer.Pairs, answer.Count = [][]byte{pair}, 1
		return err
	}
	target, order := q.SortTarget, q.SortOrder
	if target != pb.RangeRequest_KEY && order == pb.RangeRequest_NONE {
		order = pb.RangeRequest_ASCEND
	}
	backwards := target == pb.RangeRequest_KEY && order == pb.RangeRequest_DESCEND
	filters := filtered(q)

	// Where order and number are those of the keys, only what is answered is
	// touched. Otherwise all of the range has to be looked at.
	limit := int(max(q.Limit, 0))
	fetch := limit
	if filters || target != pb.RangeRequest_KEY {
		fetch = 0
	}
	hits, count := v.window(span, at, fetch, backwards)
	answer.Count = int64(count)
	answer.More = len(hits) < count
	if filters {
		hits = slices.DeleteFunc(hits, func(h hit) bool { return !passes(q, h.version) })
		answer.More = false
	}
	if target != pb.RangeRequest_KEY {
		if err := v.sort(hits, at, target, order); err != nil {
			return err
		}
	}
	if limit > 0 && len(hits) > limit {
		hits = hits[:limit]
		answer.More = true
	}

	answer.Pairs = make([][]byte, len(hits))
	for i, h := range hits {
		if len(hits) > 1 && !q.KeysOnly && h.version.resident() == nil && h.record.head.Load() == h.version {
			if err := v.store.warm(h.version); err != nil {
				return err
			}
		}
		var err error
		if answer.Pairs[i], err = v.answer(h, at, q.KeysOnly); err != nil {
			return err
		}
	}
	return nil
}

// answer returns the pair of a hit as it is answered.
func (v View) answer(h hit, at Revision, keysOnly bool) ([]byte, error) {
	if keysOnly {
		return h.lead(), nil
	}
	h.record.mark(markRead)
	return v.store.load(h.version, at)
}

func filtered(q *pb.RangeRequest) bool {
	return q.MinModRevision != 0 || q.MaxModRevision != 0 || q.MinCreateRevision != 0 || q.MaxCreateRevision != 0
}

// hit is a key in a range and what it holds.
type hit struct {
	record  *record
	version *version
}

// lead returns the pair without its value, from memory in any case.
func (h hit) lead() []byte {
	x := h.version
	if pair := x.resident(); pair != nil {
		return pair[:x.lead:x.lead]
	}
	return appendLead(make([]byte, 0, x.lead), h.record.key, int64(x.create), int64(x.main), x.version, x.lease)
}

func passes(q *pb.RangeRequest, x *version) bool {
	mod, create := int64(x.main), int64(x.create)
	return !(q.MaxModRevision != 0 && mod > q.MaxModRevision ||
		q.MinModRevision != 0 && mod < q.MinModRevision ||
		q.MaxCreateRevision != 0 && create > q.MaxCreateRevision ||
		q.MinCreateRevision != 0 && create < q.MinCreateRevision)
}

// sort puts hits in an order that is not that of their keys. Equal ones stay
// in the order of their keys.
func (v View) sort(hits []hit, at Revision, target pb.RangeRequest_SortTarget, order pb.RangeRequest_SortOrder) error {
	type ranked struct {
		hit
		number int64
		value  []byte
	}
	all := make([]ranked, len(hits))
	for i, h := range hits {
		all[i].hit = h
		switch target {
		case pb.RangeRequest_VERSION:
			all[i].number = h.version.version
		case pb.RangeRequest_CREATE:
			all[i].number = int64(h.version.create)
		case pb.RangeRequest_MOD:
			all[i].number = int64(h.version.main)
		case pb.RangeRequest_VALUE:
			pair, err := v.store.load(h.version, at)
			if err != nil {
				return err
			}
			all[i].value = valueOf(pair, int(h.version.lead))
		}
	}
	slices.SortStableFunc(all, func(a, b ranked) int {
		c := cmp.Compare(a.number, b.number)
		if c == 0 {
			c = bytes.Compare(a.value, b.value)
		}
		if order == pb.RangeRequest_DESCEND {
			c = -c
		}
		return c
	})
	for i := range all {
		hits[i] = all[i].hit
	}
	return nil
}

// rootAt returns the root that knows which keys existed at a revision, if
// there still is one.
func (v View) rootAt(at Revision) (node, bool) {
	if at >= v.exact {
		return v.root, true
	}
	return v.store.past.at(at)
}

// bounds returns the first rank and the number of keys of a span under a root.
func bounds(root node, span Span) (first, n int) {
	if root == nil {
		return 0, 0
	}
	first = rank(root, string(span.Key))
	if span.open() {
		return first, root.live() - first
	}
	return first, max(0, rank(root, string(span.End))-first)
}

func (v View) count(span Span, at Revision) int {
	if root, ok := v.rootAt(at); ok && !span.one() {
		_, n := bounds(root, span)
		return n
	}
	n := 0
	v.walk(span, at, func(*record, *version) bool { n++; return true })
	return n
}

// window returns the first keys of a span that existed at a revision, or the
// last of them in falling order, at most limit of them unless that is 0, and
// the number of all.
func (v View) window(span Span, at Revision, limit int, last bool) (hits []hit, count int) {
	root, ok := v.rootAt(at)
	if ok && !span.one() {
		first, n := bounds(root, span)
		take := n
		if limit > 0 && limit < n {
			take = limit
		}
		if last {
			first += n - take
		}
		if take == 0 {
			return nil, n
		}
		hits = make([]hit, 0, take)
		existing(root, first, func(r *record) bool {
			x := r.alive(at)
			if x == nil { // cut off by a sweep; the caller will see the floor
				must(Revision(v.store.floor.Load()) > at, "K1: a root knows what exists")
				return false
			}
			hits = append(hits, hit{r, x})
			return len(hits) < take
		})
		count = n
	} else {
		v.walk(span, at, func(r *record, x *version) bool {
			if limit == 0 || last || count < limit {
				hits = append(hits, hit{r, x})
			}
			count++
			return true
		})
		if last && limit > 0 && count > limit {
			hits = hits[count-limit:]
		}
	}
	if last {
		slices.Reverse(hits)
	}
	return hits, count
}

// each calls visit for the keys that exist at the revision of the view.
func (v View) each(span Span, visit func(*record, *version) bool) {
	hits, _ := v.window(span, v.Revision, 0, false)
	for _, h := range hits {
		if !visit(h.record, h.version) {
			return
		}
	}
}

// walk looks at every key of a span, dead or alive, and calls visit for those
// that existed at a revision.
func (v View) walk(span Span, at Revision, visit func(*record, *version) bool) {
	if span.one() {
		if r := v.store.index.find(span.Key); r != nil {
			if x := r.alive(at); x != nil {
				visit(r, x)
			}
		}
		return
	}
	if v.root == nil {
		return
	}
	end, open := string(span.End), span.open()
	ascend(v.root, string(span.Key), func(r *record) bool {
		if !open && r.key >= end {
			return false
		}
		x := r.alive(at)
		return x == nil || visit(r, x)
	})
}
