package state

import (
	"errors"
	"iter"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state/internal/alarm"
	"github.com/kvorum/kvorum/state/internal/lease"
	"github.com/kvorum/kvorum/state/internal/member"
	"github.com/kvorum/kvorum/state/internal/mvcc"
	"github.com/kvorum/kvorum/state/internal/tree"
)

// View is the state as of one entry: keys, leases, members and alarms of one
// moment.
// It never changes and costs nothing to keep for a while; kept for long it
// holds on to memory.
type View struct {
	Index         Index // applied
	Term          Term  // of the entry at Index
	Revision      Revision
	Compacted     Revision // -1 before the first compaction
	Cluster       ClusterID
	Configuration []byte // of consensus, as it was stored last; not to be changed

	// Checksum is of everything replicated up to Index. Members whose sums
	// differ at one index have diverged.
	Checksum uint64
	marks    marks

	machine *Machine
	core    *core
	keys    mvcc.View
	members *member.Set
	alarms  *alarm.Set
	leases  *lease.Set

	deadlines *tree.Deadlines
}

// newest calls read with the view, and again with newer ones while a sweep has
// removed what an older one needs. That can only happen to a view that is kept
// while a newer compaction is applied.
func newest[T any](v *View, read func(*View) (T, error)) (T, error) {
	for {
		answer, err := read(v)
		if !errors.Is(err, mvcc.ErrOvertaken) {
			return answer, err
		}
		next := v.machine.View()
		must(next != v, "K1: only a newer compaction overtakes a view")
		v = next
	}
}

// Range answers a request that was checked by CheckRange. Its error is a
// *fault.Fault, or a failure of the table.
//
// Where no revision is named and the view was overtaken by a compaction, the
// answer is that of a newer view; the answer says which.
func (v *View) Range(q *pb.RangeRequest) (Answer, error) {
	return newest(v, func(v *View) (Answer, error) { return v.keys.Range(q) })
}

// Txn answers a transaction that was checked by CheckTxn and writes nothing.
func (v *View) Txn(q *pb.TxnRequest) (*pb.TxnResponse, error) {
	return newest(v, func(v *View) (*pb.TxnResponse, error) {
		p, err := makePlan(q, v.keys)
		if err != nil {
			return nil, err
		}
		err = p.each(func(op *pb.RequestOp) error {
			if f := v.keys.Check(op.GetRequestRange().GetRevision()); f != nil {
				return f
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		response, err := p.run(func(op *pb.RequestOp) (*pb.ResponseOp, error) {
			must(op.GetRequestRange() != nil, "a transaction that writes is a command")
			return answerRange(op.GetRequestRange(), v.keys)
		})
		if err != nil {
			return nil, err
		}
		response.Header.Revision = int64(v.Revision)
		return response, nil
	})
}

// HashKV returns a hash of the keys' history from the compacted revision up to
// a given one, 0 for the newest. It is equal on all members, whatever they have
// swept, as long as their compacted revisions are.
func (v *View) HashKV(revision int64) (*pb.HashKVResponse, error) {
	return newest(v, func(v *View) (*pb.HashKVResponse, error) {
		hash, at, err := v.keys.HashKV(revision)
		if err != nil {
			return nil, err
		}
		return &pb.HashKVResponse{
			Header:          header(v.Revision),
			Hash:            hash,
			CompactRevision: int64(v.Compacted),
			HashRevision:    int64(at),
		}, nil
	})
}

// History yields the changes of the keys in a span with revisions in
// [from, to], oldest first, from the compacted revision on. An event's bytes
// may be kept. It never waits for Apply. It ends with an error if from is
// compacted, also if that happens on the way, or if the table cannot be read.
func (v *View) History(s Span, from, to Revision) iter.Seq2[Event, error] {
	return v.keys.History(s, from, to)
}

// Previous returns the encoded pair that an event replaced, or nil if there
// was none or it is compacted.
func (v *View) Previous(e Event) ([]byte, error) { return v.keys.Previous(e) }

// Check says whether a revision can be read, as Range would.
func (v *View) Check(revision int64) *fault.Fault { return v.keys.Check(revision) }

// Members returns the members in the order of their ids; not to be changed.
func (v *View) Members() []Member { return v.members.All() }

// Member returns the member with an id.
func (v *View) Member(id MemberID) (Member, bool) { return v.members.Find(id) }

// RemovedMembers returns the ids of former members; not to be changed.
func (v *View) RemovedMembers() []MemberID { return v.members.Removed() }

// Removed tells whether an id is that of a former member.
func (v *View) Removed(id MemberID) bool { return v.members.WasRemoved(id) }

// SameMembers tells whether nothing about members changed between two views.
func (v *View) SameMembers(other *View) bool { return v.members == other.members }

// MemberMessages returns the members as clients are told of them.
func (v *View) MemberMessages() []*pb.Member {
	var out []*pb.Member
	for _, m := range v.members.All() {
		out = append(out, m.Message())
	}
	return out
}

// Lease returns the lease with an id.
func (v *View) Lease(id LeaseID) (Lease, bool) { return v.leases.Find(id) }

// Leases yields all leases in the order of their ids.
func (v *View) Leases() iter.Seq[Lease] { return v.leases.All() }

// LeaseKeys yields the keys that hang on a lease, in order.
func (v *View) LeaseKeys(id LeaseID) iter.Seq[string] { return v.leases.Keys(id) }

// Alarms returns the alarms of a type, or all if it is NONE.
func (v *View) Alarms(t pb.AlarmType) []*pb.AlarmMember { return alarm.Messages(v.alarms.All(t)) }

// Corrupt tells whether an alarm says that the state of a member is not that of
// the others. 0 stands for one that is not known.
func (v *View) Corrupt(id MemberID) bool {
	return v.alarms.Has(alarm.Alarm{Type: pb.AlarmType_CORRUPT, Member: uint64(id)})
}

// Frozen tells whether an alarm says that somebody's state is wrong, but not
// whose: nothing is to be written then.
func (v *View) Frozen() bool {
	return slices.ContainsFunc(v.Alarms(pb.AlarmType_CORRUPT), func(a *pb.AlarmMember) bool {
		_, ok := v.Member(MemberID(a.MemberID))
		return !ok
	})
}

// Alarmed tells whether any member has raised an alarm of a type.
func (v *View) Alarmed(t pb.AlarmType) bool { return len(v.alarms.All(t)) > 0 }

// Decode returns an answer as a message, its header left out.
func Decode(a Answer) *pb.RangeResponse {
	r := &pb.RangeResponse{Count: a.Count, More: a.More}
	if len(a.Pairs) > 0 {
		r.Kvs = make([]*mvccpb.KeyValue, len(a.Pairs))
		for i, pair := range a.Pairs {
			r.Kvs[i] = DecodePair(pair)
		}
	}
	return r
}

// AppendPair appends a pair as an element of RangeResponse.kvs.
func AppendPair(dst, pair []byte) []byte {
	dst = protowire.AppendTag(dst, 2, protowire.BytesType)
	return protowire.AppendBytes(dst, pair)
}

// AppendAnswer appends a RangeResponse in wire form, its header left out: a
// header appended before or after belongs to the same message.
func AppendAnswer(dst []byte, a Answer) []byte {
	for _, pair := range a.Pairs {
		dst = AppendPair(dst, pair)
	}
	if a.More {
		dst = protowire.AppendTag(dst, 3, protowire.VarintType)
		dst = append(dst, 1)
	}
	if a.Count != 0 {
		dst = protowire.AppendTag(dst, 4, protowire.VarintType)
		dst = protowire.AppendVarint(dst, uint64(a.Count))
	}
	return dst
}
