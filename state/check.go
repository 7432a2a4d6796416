package state

import (
	"bytes"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
)

// The checks below depend on the request alone. The api makes them before it
// proposes a command, and Apply makes them again, for commands come from a log.

// CheckRange says whether a range makes sense.
func CheckRange(q *pb.RangeRequest) error {
	if len(q.GetKey()) == 0 {
		return fault.EmptyKey
	}
	_, order := pb.RangeRequest_SortOrder_name[int32(q.SortOrder)]
	_, target := pb.RangeRequest_SortTarget_name[int32(q.SortTarget)]
	if !order || !target {
		return fault.InvalidSortOption
	}
	return nil
}

// CheckPut says whether a put makes sense.
func CheckPut(q *pb.PutRequest) error { return putOf(q).check() }

func (p put) check() error {
	switch {
	case len(p.key) == 0:
		return fault.EmptyKey
	case p.ignoreValue && len(p.value) != 0:
		return fault.ValueProvided
	case p.ignoreLease && p.lease != 0:
		return fault.LeaseProvided
	}
	return nil
}

// CheckDeleteRange says whether a deletion makes sense.
func CheckDeleteRange(q *pb.DeleteRangeRequest) error {
	if len(q.GetKey()) == 0 {
		return fault.EmptyKey
	}
	return nil
}

// CheckTxn says whether a transaction makes sense, and whether no more than
// maxOps operations follow each other in it; 0 is no limit.
func CheckTxn(q *pb.TxnRequest, maxOps int) error {
	if maxOps == 0 {
		maxOps = int(^uint(0) >> 1)
	}
	if err := checkTxnOps(q, maxOps); err != nil {
		return err
	}
	for _, branch := range [][]*pb.RequestOp{q.Success, q.Failure} {
		if single(branch) {
			continue // it is in nobody's way
		}
		if _, err := writesOf(branch); err != nil {
			return err
		}
	}
	return nil
}

// single tells whether a branch is one operation, and no transaction.
func single(ops []*pb.RequestOp) bool {
	if len(ops) != 1 {
		return false
	}
	_, nested := ops[0].Request.(*pb.RequestOp_RequestTxn)
	return !nested
}

func checkTxnOps(q *pb.TxnRequest, maxOps int) error {
	n := max(len(q.GetCompare()), len(q.GetSuccess()), len(q.GetFailure()))
	if n > maxOps {
		return fault.TooManyOps
	}
	for _, c := range q.GetCompare() {
		if len(c.GetKey()) == 0 {
			return fault.EmptyKey
		}
	}
	for _, branch := range [][]*pb.RequestOp{q.GetSuccess(), q.GetFailure()} {
		for _, op := range branch {
			if err := checkOp(op, maxOps-n); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, maxOps int) error {
	switch op := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return CheckRange(op.RequestRange)
	case *pb.RequestOp_RequestPut:
		if op.RequestPut == nil {
			return fault.EmptyKey
		}
		return CheckPut(op.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return CheckDeleteRange(op.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxnOps(op.RequestTxn, maxOps)
	}
	return fault.KeyNotFound
}

// writes is what the operations of a branch put and delete.
type writes struct {
	puts    map[string]struct{}
	deletes spans
}

// writesOf finds the keys that a branch changes, and refuses it if it puts a
// key twice, or puts what it deletes: one revision holds one state of a key.
// The two branches of a nested transaction may put the same key, as only one
// of them happens.
func writesOf(ops []*pb.RequestOp) (writes, error) {
	var w writes
	if len(ops) == 0 {
		return w, nil
	}
	if single(ops) {
		return w.add(ops[0])
	}
	for _, op := range ops {
		if d, ok := op.Request.(*pb.RequestOp_RequestDeleteRange); ok {
			w.deletes.add(d.RequestDeleteRange.Key, d.RequestDeleteRange.RangeEnd)
		}
	}
	for _, op := range ops {
		nested, ok := op.Request.(*pb.RequestOp_RequestTxn)
		if !ok {
			continue
		}
		then, err := writesOf(nested.RequestTxn.GetSuccess())
		if err != nil {
			return w, err
		}
		other, err := writesOf(nested.RequestTxn.GetFailure())
		if err != nil {
			return w, err
		}
		for key := range then.puts {
			if !w.put(key) {
				return w, fault.DuplicateKey
			}
		}
		for key := range other.puts {
			if _, both := then.puts[key]; !both && !w.put(key) {
				return w, fault.DuplicateKey
			}
		}
		w.deletes.join(then.deletes)
		w.deletes.join(other.deletes)
	}
	for _, op := range ops {
		if p, ok := op.Request.(*pb.RequestOp_RequestPut); ok && !w.put(string(p.RequestPut.Key)) {
			return w, fault.DuplicateKey
		}
	}
	return w, nil
}

// add notes an operation that is alone in its branch.
func (w writes) add(op *pb.RequestOp) (writes, error) {
	switch op := op.Request.(type) {
	case *pb.RequestOp_RequestPut:
		w.put(string(op.RequestPut.Key))
	case *pb.RequestOp_RequestDeleteRange:
		w.deletes.add(op.RequestDeleteRange.Key, op.RequestDeleteRange.RangeEnd)
	}
	return w, nil
}

func (w *writes) put(key string) bool {
	if _, twice := w.puts[key]; twice || w.deletes.has([]byte(key)) {
		return false
	}
	if w.puts == nil {
		w.puts = make(map[string]struct{})
	}
	w.puts[key] = struct{}{}
	return true
}

// spans is a set of keys: ranges in order that do not touch. An end of nil
// means that there is none.
type spans []span

type span struct{ from, to []byte }

func (s *spans) add(key, end []byte) {
	switch {
	case len(end) == 0:
		end = append(bytes.Clone(key), 0)
	case len(end) == 1 && end[0] == 0:
		end = nil
	case bytes.Compare(key, end) >= 0:
		return
	}
	s.join(spans{{key, end}})
}

func (s *spans) join(other spans) {
	for _, o := range other {
		// Those from i to j touch o, and become one with it.
		i, _ := slices.BinarySearchFunc(*s, o.from, func(a span, from []byte) int {
			if a.to != nil && bytes.Compare(a.to, from) < 0 {
				return -1
			}
			return 1
		})
		j := i
		for ; j < len(*s) && (o.to == nil || bytes.Compare((*s)[j].from, o.to) <= 0); j++ {
			a := (*s)[j]
			if bytes.Compare(a.from, o.from) < 0 {
				o.from = a.from
			}
			if o.to != nil && (a.to == nil || bytes.Compare(a.to, o.to) > 0) {
				o.to = a.to
			}
		}
		*s = slices.Replace(*s, i, j, o)
	}
}

func (s spans) has(key []byte) bool {
	i, found := slices.BinarySearchFunc(s, key, func(a span, key []byte) int { return bytes.Compare(a.from, key) })
	if found {
		return true
	}
	return i > 0 && (s[i-1].to == nil || bytes.Compare(key, s[i-1].to) < 0)
}
