package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/test/linear"
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

	m := newModel(w.voters)
	var newestCall = int64(-1) // of the operations before
	var before *op
	for _, o := range writes {
		revision := m.revision
		answer := m.command(o, o.at)
		answered := o.done && !o.unknown
		if answered && answer != o.answer {
			w.fail("%v was answered with\n%s\nbut in its place of the log it is\n%s", o, o.answer, answer)
		}
		if m.revision != revision && m.revision != revision+1 && o.kind != opExpire && o.kind != opNodeExpire {
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

// judgeAgain gives a history of operations on single keys to judges that have
// nothing in common with the simulation.
func judgeAgain(w *world) {
	var all []linear.Operation
	for _, o := range w.history {
		if l, ok := o.plain(); ok {
			all = append(all, l)
		}
	}
	if err := linear.Order(all); err != nil {
		w.fail("%v", err)
	}
	switch err := linear.Check(all, 5*time.Second); {
	case err == nil:
		w.mark("history through porcupine")
	case strings.Contains(err.Error(), "could not be judged"):
		w.mark("history too hard for porcupine")
	default:
		w.fail("%v", err)
	}
}

// plain tells what the operation is to package linear, if it is anything.
func (o *op) plain() (linear.Operation, bool) {
	l := linear.Operation{Client: o.client.id, Call: o.call, Return: o.ret, Revision: o.revision}
	if o.kind != opRange {
		if o.index == 0 {
			return l, false // it never happened
		}
		if !o.done || o.unknown {
			l.Return = math.MaxInt64 // but its client does not know
		}
	}
	switch q := o.request.(type) {
	case *pb.PutRequest:
		l.Kind, l.Key, l.Value = linear.Put, string(q.Key), string(q.Value)
		return l, o.kind == opPut
	case *pb.DeleteRangeRequest:
		l.Kind, l.Key, l.Done = linear.Delete, string(q.Key), strings.HasPrefix(o.committed, "deleted 1")
		return l, true
	case *pb.TxnRequest:
		put := q.Success[0].GetRequestPut()
		l.Kind, l.Key, l.Value, l.Old = linear.Swap, string(put.Key), string(put.Value), string(q.Compare[0].GetValue())
		l.Done = strings.HasPrefix(o.committed, "txn true")
		return l, true
	case *pb.RangeRequest:
		l.Kind, l.Key, l.Revision = linear.Get, string(q.Key), o.seen
		if _, pair, found := strings.Cut(o.answer, "="); found {
			at := strings.LastIndex(pair, "(")
			l.Seen = pair[:at]
			var create int64
			if _, err := fmt.Sscanf(pair[at:], "(%d,%d,", &create, &l.SeenAt); err != nil {
				o.w.fail("%v: %v", o, err)
			}
		}
		return l, o.kind == opRange && o.done && o.err == nil
	}
	return l, false
}

// TestJudge falsifies the history of a good run, in one way after the other,
// and wants that to be noticed.
func TestJudge(t *testing.T) {
	find := func(w *world, which func(o *op) bool) *op {
		i := slices.IndexFunc(w.history, which)
		if i < 0 {
			t.Fatal("the run has no such operation")
		}
		return w.history[i]
	}
	answered := func(o *op) bool { return o.done && !o.unknown && o.err == nil }
	for name, falsify := range map[string]func(w *world){
		"nothing": func(*world) {},
		"a write is gone": func(w *world) {
			find(w, func(o *op) bool { return answered(o) && o.changes && o.revision > 10 }).index = 0
		},
		"a write came later than it says": func(w *world) {
			o := find(w, func(o *op) bool { return answered(o) && o.changes && o.revision > 10 })
			for _, later := range w.history {
				if answered(later) && later.changes && later.call > o.ret {
					o.place, later.place = later.place, o.place
					o.answer, later.answer = later.answer, o.answer
					o.request, later.request = later.request, o.request
					break
				}
			}
		},
		"another answer": func(w *world) {
			find(w, func(o *op) bool { return answered(o) && o.kind == opPut }).answer += "!"
		},
		"an old read": func(w *world) {
			o := find(w, func(o *op) bool { return answered(o) && o.kind == opRange && o.seen > 10 })
			o.seen -= 5
			o.answer = w.oracle.model.readAt(o.request.(*pb.RangeRequest), o.seen, o.answer)
		},
		"a read of the future": func(w *world) {
			o := find(w, func(o *op) bool { return answered(o) && o.kind == opRange && o.seen > 10 })
			o.seen += 20
			o.answer = w.oracle.model.readAt(o.request.(*pb.RangeRequest), o.seen, o.answer)
		},
		"a member that goes back": func(w *world) {
			o := find(w, func(o *op) bool { return answered(o) && o.kind == opSerializable && o.seen > 100 })
			o.seen = 2
			o.answer = w.oracle.model.readAt(o.request.(*pb.RangeRequest), o.seen, o.answer)
		},
	} {
		r := simulate(t, 1)
		if r.failure != "" {
			t.Fatal(r.failure)
		}
		falsify(r.world)
		noticed := func() (noticed bool) {
			defer func() { noticed = recover() != nil }()
			judge(r.world)
			return
		}()
		if noticed != (name != "nothing") {
			t.Errorf("%s: noticed: %v", name, noticed)
		}
	}
}
