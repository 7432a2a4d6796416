package sim

import (
	"cmp"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// judge decides whether what the clients saw is strictly serializable: there
// is one order of all operations, which explains every answer, and in which
// none comes before another that had ended when it began. A write tells its
// own revision, so the order is known and the check takes linear time. Of
// operations without answer the log tells whether they happened.
//
// Nothing but the answers counts here, and the log for what has none; the
// oracle has its own view of each member.
func judge(w *world) {
	var writes, reads []*op
	for _, o := range w.history {
		switch {
		case o.kind == opSerializable || o.kind == opRange:
			if o.done && o.err == nil {
				reads = append(reads, o)
			}
		case o.index > 0:
			writes = append(writes, o)
		}
	}
	slices.SortFunc(writes, func(a, b *op) int { return cmp.Compare(a.place, b.place) })

	m := newModel()
	var newestCall = int64(-1) // of the operations before
	var before *op
	for _, o := range writes {
		revision := m.revision
		answer := m.do(o.request)
		answered := o.done && !o.unknown
		if answered && answer != o.answer {
			w.fail("%v was answered with\n%s\nbut in its place of the log it is\n%s", o, o.answer, answer)
		}
		if m.revision != revision && m.revision != revision+1 {
			w.fail("%v takes revision %d after %d", o, m.revision, revision)
		}
		if answered && int64(o.ret) < newestCall {
			w.fail("%v had ended when %v began, but comes after it in the log", o, before)
		}
		if int64(o.call) > newestCall {
			newestCall, before = int64(o.call), o
		}
	}

	// Reads stand between two revisions. A read must not be older than what
	// had ended before it, nor newer than what had begun.
	type moment struct {
		o    *op
		seen int64
	}
	var order []moment
	for _, o := range writes {
		if o.changes {
			order = append(order, moment{o, 2 * o.revision})
		}
	}
	slices.SortStableFunc(reads, func(a, b *op) int { return cmp.Compare(a.ret, b.ret) })
	last := map[run]*op{} // read of each process
	for _, o := range reads {
		answer := m.readAt(o.request.(*pb.RangeRequest), o.seen, o.answer)
		if answer != o.answer {
			w.fail("%v was answered with\n%s\nbut at that revision there was\n%s", o, o.answer, answer)
		}
		if o.kind == opRange {
			order = append(order, moment{o, 2*o.seen + 1})
		}
		if l := last[o.from]; l != nil && l.seen > o.seen {
			w.fail("%v saw revision %d, but at the same member %v saw %d before", o, o.seen, l, l.seen)
		}
		last[o.from] = o
	}
	slices.SortStableFunc(order, func(a, b moment) int { return cmp.Compare(a.seen, b.seen) })
	newestCall = -1
	for i := 0; i < len(order); {
		j := i
		for ; j < len(order) && order[j].seen == order[i].seen; j++ {
			o := order[j].o
			if o.done && !o.unknown && int64(o.ret) < newestCall {
				w.fail("%v had ended when %v began, but saw more", o, before)
			}
		}
		for ; i < j; i++ {
			if o := order[i].o; int64(o.call) > newestCall {
				newestCall, before = int64(o.call), o
			}
		}
	}
}
