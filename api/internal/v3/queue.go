package v3

import (
	"context"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// Who wants a lock, or to lead, stands in a queue: the keys below a name, in
// the order in which they were created. The first one has it. A key is named
// after the lease that it hangs on, so whose lease ends leaves the queue.
//
// The layout is that of the recipes of etcd's clients: they stand in the same
// queues.

// sessionSeconds is the lease of who brings none. Nobody keeps it alive.
const sessionSeconds = 60

// place is where somebody stands in a queue.
type place struct {
	queue   state.Span // keys of all who stand there
	key     []byte
	created int64 // revision: it orders the queue
	lease   int64
}

// queueOf returns the keys of the queue for a name.
func queueOf(name []byte) state.Span {
	from := append(slices.Clone(name), '/')
	to := slices.Clone(from)
	to[len(to)-1]++
	return state.Span{Key: from, End: to}
}

func createdIs(key []byte, revision int64) []*pb.Compare {
	return []*pb.Compare{{
		Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL, Key: key,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: revision},
	}}
}

func opRange(r *pb.RangeRequest) []*pb.RequestOp {
	return []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: r}}}
}

func opPut(r *pb.PutRequest) []*pb.RequestOp {
	return []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: r}}}
}

func opDelete(r *pb.DeleteRangeRequest) []*pb.RequestOp {
	return []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}}
}

// enter puts value at the end of the queue for a name. If the lease has a place
// there already, that is the place, and before is what it holds.
func (s *server) enter(ctx context.Context, name []byte, session int64, value []byte) (p place, before *mvccpb.KeyValue, err error) {
	if session == 0 {
		granted, err := lease{server: s}.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: sessionSeconds})
		if err != nil {
			return p, nil, err
		}
		session = granted.ID
	}
	p = place{queue: queueOf(name), lease: session}
	p.key = fmt.Appendf(slices.Clone(p.queue.Key), "%x", session)
	resp, err := kv{server: s}.Txn(ctx, &pb.TxnRequest{
		Compare: createdIs(p.key, 0),
		Success: opPut(&pb.PutRequest{Key: p.key, Value: value, Lease: session}),
		Failure: opRange(&pb.RangeRequest{Key: p.key}),
	})
	if err != nil {
		return p, nil, err
	}
	p.created = resp.Header.Revision
	if !resp.Succeeded {
		before = resp.Responses[0].GetResponseRange().Kvs[0]
		p.created = before.CreateRevision
	}
	return p, before, nil
}

// reach returns once a place is the first of its queue, with the header of the
// moment at which that was seen. That the key is there shows that its lease is
// alive, and both are judged in one view.
func (s *server) reach(ctx context.Context, p place) (*pb.ResponseHeader, error) {
	for {
		view, err := s.gate.View(ctx, true)
		if err != nil {
			return nil, err
		}
		own, err := s.first(view, &pb.RangeRequest{Key: p.key})
		if err != nil {
			return nil, err
		}
		if own == nil || own.CreateRevision != p.created {
			return nil, fault.SessionExpired
		}
		ahead, err := s.first(view, &pb.RangeRequest{
			Key: p.queue.Key, RangeEnd: p.queue.End, KeysOnly: true, MaxCreateRevision: p.created - 1,
			SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_DESCEND,
		})
		if err != nil {
			return nil, err
		}
		if ahead == nil {
			return s.header(view.Revision), nil
		}
		if err := s.awaitEnd(ctx, ahead.Key, view.Revision); err != nil {
			return nil, err
		}
	}
}

// first returns the first pair of what r asks for, or nil.
func (s *server) first(view *state.View, r *pb.RangeRequest) (*mvccpb.KeyValue, error) {
	r.Limit = 1
	a, err := s.gate.Range(view, r)
	if err != nil {
		return nil, err
	}
	if got := state.Decode(a).Kvs; len(got) > 0 {
		return got[0], nil
	}
	return nil, nil
}

// awaitEnd returns once a key that was there at a revision has been deleted, or
// when it cannot be told any more whether it was.
func (s *server) awaitEnd(ctx context.Context, key []byte, seen state.Revision) error {
	for e, err := range s.backend.Hub().Follow(ctx, state.Span{Key: key}, seen+1) {
		if err == fault.Compacted {
			return nil
		}
		if err != nil || e.Deleted {
			return err
		}
	}
	return nil
}

// leaveTimeout bounds what is done for a caller who has gone.
const leaveTimeout = 5 * time.Second

// leave gives a place up for somebody who has gone.
func (s *server) leave(ctx context.Context, p place) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	// If it fails, the place ends with the lease.
	_, _ = kv{server: s}.Txn(ctx, &pb.TxnRequest{
		Compare: createdIs(p.key, p.created),
		Success: opDelete(&pb.DeleteRangeRequest{Key: p.key}),
	})
}
