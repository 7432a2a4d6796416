package state

import (
	"bytes"
	"cmp"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/state/internal/mvcc"
)

// plan is a transaction whose comparisons are made: what is going to happen.
// All of them see the state before, also those of nested transactions.
type plan struct {
	succeeded bool
	ops       []*pb.RequestOp
	nested    []*plan // by place of the nested transactions in ops, nil for others
}

func makePlan(q *pb.TxnRequest, v mvcc.View) (*plan, error) {
	p := &plan{succeeded: true, ops: q.GetSuccess()}
	for _, c := range q.GetCompare() {
		ok, err := holds(c, v)
		if err != nil {
			return nil, err
		}
		if !ok {
			p.succeeded, p.ops = false, q.GetFailure()
			break
		}
	}
	for i, op := range p.ops {
		if t, ok := op.Request.(*pb.RequestOp_RequestTxn); ok {
			if p.nested == nil {
				p.nested = make([]*plan, len(p.ops))
			}
			var err error
			if p.nested[i], err = makePlan(t.RequestTxn, v); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// holds tells whether a comparison is true of every key in its range. A range
// without keys is compared as a key that does not exist: all zeros, but for its
// value, of which nothing is true.
func holds(c *pb.Compare, v mvcc.View) (bool, error) {
	if len(c.RangeEnd) == 0 {
		return holdsFor(c, v.Get(c.Key))
	}
	some := false
	for _, p := range v.Each(Span{Key: c.Key, End: c.RangeEnd}) {
		some = true
		if ok, err := holdsFor(c, p); !ok || err != nil {
			return false, err
		}
	}
	if !some {
		return holdsFor(c, mvcc.Pair{})
	}
	return true, nil
}

func holdsFor(c *pb.Compare, p mvcc.Pair) (bool, error) {
	order := 0
	switch c.Target {
	case pb.Compare_VERSION:
		order = cmp.Compare(p.Version, c.GetVersion())
	case pb.Compare_CREATE:
		order = cmp.Compare(int64(p.Create), c.GetCreateRevision())
	case pb.Compare_MOD:
		order = cmp.Compare(int64(p.Mod), c.GetModRevision())
	case pb.Compare_LEASE:
		order = cmp.Compare(p.Lease, c.GetLease())
	case pb.Compare_VALUE:
		if !p.Exists() {
			return false, nil
		}
		value, err := p.Value()
		if err != nil {
			return false, err
		}
		order = bytes.Compare(value, c.GetValue())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return order == 0, nil
	case pb.Compare_NOT_EQUAL:
		return order != 0, nil
	case pb.Compare_GREATER:
		return order > 0, nil
	case pb.Compare_LESS:
		return order < 0, nil
	}
	return true, nil
}

// each calls visit for the operations that are going to happen, but for those
// that only hold others.
func (p *plan) each(visit func(*pb.RequestOp) error) error {
	for i, op := range p.ops {
		var err error
		if p.nested != nil && p.nested[i] != nil {
			err = p.nested[i].each(visit)
		} else {
			err = visit(op)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// run makes the operations of a plan and returns the answer. What a range sees
// is up to the caller.
func (p *plan) run(do func(*pb.RequestOp) (*pb.ResponseOp, error)) (*pb.TxnResponse, error) {
	response := &pb.TxnResponse{
		Header:    new(pb.ResponseHeader),
		Succeeded: p.succeeded,
		Responses: make([]*pb.ResponseOp, len(p.ops)),
	}
	for i, op := range p.ops {
		if p.nested != nil && p.nested[i] != nil {
			inner, err := p.nested[i].run(do)
			if err != nil {
				return nil, err
			}
			response.Responses[i] = &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: inner}}
			continue
		}
		var err error
		if response.Responses[i], err = do(op); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// txn applies a transaction: whole, or not at all.
func (b *batch) txn(q *pb.TxnRequest) (Outcome, error) {
	if err := CheckTxn(q, 0); err != nil {
		return refused(err)
	}
	before := b.keys.View()
	p, err := makePlan(q, before)
	if err != nil {
		return Outcome{}, err
	}
	// A range that cannot be read refuses all of it, on every member alike:
	// whether anybody waits for the answer, and how far compacted versions are
	// removed already, makes no difference.
	err = p.each(func(op *pb.RequestOp) error {
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			return b.checkPut(putOf(op.RequestPut), before)
		case *pb.RequestOp_RequestRange:
			if f := before.Check(op.RequestRange.Revision); f != nil && (b.wanted || !mutant.On("ranges count where somebody waits")) {
				return f
			}
		}
		return nil
	})
	if err != nil {
		return refused(err)
	}

	response, err := p.run(b.do)
	if err != nil {
		return Outcome{}, err
	}

	o := Outcome{Events: b.seal()}
	if b.wanted {
		response.Header.Revision = int64(b.keys.Revision())
		o.Response = response
	}
	return o, nil
}

// do makes one operation of a transaction. Ranges see what was done before
// them.
func (b *batch) do(op *pb.RequestOp) (*pb.ResponseOp, error) {
	switch op := op.Request.(type) {
	case *pb.RequestOp_RequestPut:
		prev, err := b.doPut(putOf(op.RequestPut))
		if err != nil || !b.wanted {
			return nil, err
		}
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{
			Header: header(b.keys.View().Revision), PrevKv: prev,
		}}}, nil

	case *pb.RequestOp_RequestDeleteRange:
		response, err := b.doDelete(op.RequestDeleteRange)
		if err != nil || !b.wanted {
			return nil, err
		}
		response.Header = header(b.keys.View().Revision)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: response}}, nil

	case *pb.RequestOp_RequestRange:
		if !b.wanted {
			return nil, nil
		}
		if mutant.On("ranges see the state before") {
			return answerRange(op.RequestRange, b.machine.View().keys)
		}
		return answerRange(op.RequestRange, b.keys.View())
	}
	panic("state: operation was checked")
}

func answerRange(q *pb.RangeRequest, v mvcc.View) (*pb.ResponseOp, error) {
	answer, err := v.Range(q)
	if err != nil {
		return nil, err
	}
	response := Decode(answer)
	response.Header = header(v.Revision)
	return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: response}}, nil
}
