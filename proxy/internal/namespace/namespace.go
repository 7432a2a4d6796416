// Package namespace puts keys below a prefix on their way to a member, and takes
// the prefix away from what comes back, so that who asks sees the namespace as
// if it were the whole store. It changes messages in place and knows no network.
//
// N1: no request leaves that reads or changes a key outside the namespace.
// N2: no answer passes that tells of such a key.
//
// Leases, members, users and roles have no keys of their own and belong to the
// whole cluster. A role's permissions are keys, and are rewritten.
package namespace

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/electionpb"
	"github.com/kvorum/kvorum/internal/lockpb"
)

// Prefix is what all keys of a namespace begin with. The empty one changes
// nothing.
type Prefix string

// SnapshotRefused tells that a namespace does not reach over the whole store.
var SnapshotRefused = &fault.Fault{Code: fault.PermissionDenied, Text: "kvorum: a snapshot holds all keys, not those of a namespace alone: ask a member"}

// In puts a key, or an interval of keys, into the namespace.
func (p Prefix) In(key, end []byte) (inKey, inEnd []byte) {
	return p.in(key), p.inEnd(end)
}

func (p Prefix) in(key []byte) []byte {
	return append(append(make([]byte, 0, len(p)+len(key)), p...), key...)
}

// fromKey is the end of an interval that has none.
var fromKey = []byte{0}

func (p Prefix) inEnd(end []byte) []byte {
	switch {
	case len(end) == 0:
		return end
	case bytes.Equal(end, fromKey):
		return p.end()
	}
	return p.in(end)
}

// end is the first key behind the namespace, or fromKey where there is none.
func (p Prefix) end() []byte {
	end := []byte(p)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return fromKey
}

// Out takes a key out of the namespace. It returns false for one that is not
// in it.
func (p Prefix) Out(key []byte) (_ []byte, ok bool) { return bytes.CutPrefix(key, []byte(p)) }

// Touches tells whether the messages of a type hold anything that Request or
// Answer would change or refuse.
func Touches(request proto.Message) bool {
	switch request.(type) {
	case *pb.RangeRequest, *pb.PutRequest, *pb.DeleteRangeRequest, *pb.TxnRequest, *pb.WatchRequest,
		*pb.LeaseTimeToLiveRequest, *pb.SnapshotRequest,
		*pb.AuthRoleGrantPermissionRequest, *pb.AuthRoleRevokePermissionRequest, *pb.AuthRoleGetRequest,
		*lockpb.LockRequest, *lockpb.UnlockRequest,
		*electionpb.CampaignRequest, *electionpb.ProclaimRequest, *electionpb.LeaderRequest, *electionpb.ResignRequest:
		return true
	}
	return false
}

// Request rewrites what a client asks, or refuses it.
func (p Prefix) Request(m proto.Message) error {
	if p == "" {
		return nil
	}
	switch r := m.(type) {
	case *pb.RangeRequest:
		return p.span(&r.Key, &r.RangeEnd)
	case *pb.PutRequest:
		return p.span(&r.Key, nil)
	case *pb.DeleteRangeRequest:
		return p.span(&r.Key, &r.RangeEnd)
	case *pb.TxnRequest:
		return p.txn(r, txnDepthMax)
	case *pb.SnapshotRequest:
		return SnapshotRefused
	case *pb.AuthRoleGrantPermissionRequest:
		if perm := r.Perm; perm != nil {
			perm.Key, perm.RangeEnd = p.In(perm.Key, perm.RangeEnd)
		}
	case *pb.AuthRoleRevokePermissionRequest:
		r.Key, r.RangeEnd = p.In(r.Key, r.RangeEnd)
	case *lockpb.LockRequest:
		r.Name = p.in(r.Name)
	case *lockpb.UnlockRequest:
		r.Key = p.in(r.Key)
	case *electionpb.CampaignRequest:
		r.Name = p.in(r.Name)
	case *electionpb.LeaderRequest:
		r.Name = p.in(r.Name)
	case *electionpb.ProclaimRequest:
		p.inLeader(r.Leader)
	case *electionpb.ResignRequest:
		p.inLeader(r.Leader)
	}
	return nil
}

// span rewrites an interval whose key must not be empty: in the namespace it
// would no longer be.
func (p Prefix) span(key, end *[]byte) error {
	if len(*key) == 0 {
		return fault.EmptyKey
	}
	*key = p.in(*key)
	if end != nil {
		*end = p.inEnd(*end)
	}
	return nil
}

// Watch rewrites the interval of a watcher. No key at all is the smallest.
func (p Prefix) Watch(r *pb.WatchCreateRequest) {
	if p == "" {
		return
	}
	if len(r.Key) == 0 {
		r.Key = []byte{0}
	}
	r.Key, r.RangeEnd = p.In(r.Key, r.RangeEnd)
}

// txnDepthMax is deeper than protobuf decodes.
const txnDepthMax = 10_000

func (p Prefix) txn(r *pb.TxnRequest, depth int) error {
	if depth == 0 {
		return fault.Malformed
	}
	for _, c := range r.Compare {
		if c == nil {
			continue
		}
		if err := p.span(&c.Key, &c.RangeEnd); err != nil {
			return err
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if err := p.op(op, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p Prefix) op(op *pb.RequestOp, depth int) error {
	if r := op.GetRequestRange(); r != nil {
		return p.span(&r.Key, &r.RangeEnd)
	}
	if r := op.GetRequestPut(); r != nil {
		return p.span(&r.Key, nil)
	}
	if r := op.GetRequestDeleteRange(); r != nil {
		return p.span(&r.Key, &r.RangeEnd)
	}
	if r := op.GetRequestTxn(); r != nil {
		return p.txn(r, depth-1)
	}
	return nil
}

func (p Prefix) inLeader(l *electionpb.LeaderKey) {
	if l != nil {
		l.Name, l.Key = p.in(l.Name), p.in(l.Key)
	}
}

// Answer rewrites what a member answers.
func (p Prefix) Answer(m proto.Message) {
	if p == "" {
		return
	}
	switch r := m.(type) {
	case *pb.RangeResponse:
		p.outPairs(r.Kvs)
	case *pb.RangeStreamResponse:
		p.outPairs(r.GetRangeResponse().GetKvs())
	case *pb.PutResponse:
		p.outPair(r.PrevKv)
	case *pb.DeleteRangeResponse:
		p.outPairs(r.PrevKvs)
	case *pb.TxnResponse:
		p.outTxn(r)
	case *pb.LeaseTimeToLiveResponse:
		keys := r.Keys[:0]
		for _, key := range r.Keys {
			if key, ok := p.Out(key); ok {
				keys = append(keys, key)
			}
		}
		r.Keys = keys
	case *pb.AuthRoleGetResponse:
		p.outPermissions(r)
	case *lockpb.LockResponse:
		p.outKey(&r.Key)
	case *electionpb.CampaignResponse:
		if l := r.Leader; l != nil {
			p.outKey(&l.Name)
			p.outKey(&l.Key)
		}
	case *electionpb.LeaderResponse:
		p.outPair(r.Kv)
	}
}

func (p Prefix) outKey(key *[]byte) {
	if out, ok := p.Out(*key); ok {
		*key = out
	}
}

func (p Prefix) outPair(kv *mvccpb.KeyValue) {
	if kv != nil {
		p.outKey(&kv.Key)
	}
}

func (p Prefix) outPairs(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		p.outPair(kv)
	}
}

func (p Prefix) outTxn(r *pb.TxnResponse) {
	for _, op := range r.GetResponses() {
		p.outPairs(op.GetResponseRange().GetKvs())
		p.outPair(op.GetResponsePut().GetPrevKv())
		p.outPairs(op.GetResponseDeleteRange().GetPrevKvs())
		p.outTxn(op.GetResponseTxn())
	}
}

// outPermissions leaves those that lie in the namespace.
func (p Prefix) outPermissions(r *pb.AuthRoleGetResponse) {
	var inside []*authpb.Permission
	for _, perm := range r.Perm {
		key, ok := p.Out(perm.Key)
		if !ok {
			continue
		}
		perm.Key = key
		if end, ok := p.Out(perm.RangeEnd); ok {
			perm.RangeEnd = end
		} else if bytes.Equal(perm.RangeEnd, p.end()) {
			perm.RangeEnd = fromKey
		} else if len(perm.RangeEnd) > 0 {
			continue
		}
		inside = append(inside, perm)
	}
	r.Perm = inside
}

// Events rewrites what a watcher is told.
func (p Prefix) Events(events []*mvccpb.Event) {
	if p == "" {
		return
	}
	for _, e := range events {
		p.outPair(e.Kv)
		p.outPair(e.PrevKv)
	}
}
