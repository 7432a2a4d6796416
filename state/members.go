package state

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/mutant"
)

// What is checked here depends on the state alone. Whether a change is wise
// just now, since members are down or behind, is asked before it is proposed.

// publish stores what a member says of itself once it has started.
func (b *batch) publish(q *pb.Member) (Outcome, error) {
	m, ok := b.next.members.Find(MemberID(q.ID))
	if !ok {
		return refuse(fault.MemberNotFound), nil
	}

	m.Name, m.ClientURLs = q.Name, q.ClientURLs
	b.next.members = b.next.members.Put(&b.rows, m)

	return Outcome{Response: &pb.MemberUpdateResponse{Header: header(0), Members: b.next.MemberMessages()}}, nil
}

// addMember adds a member that nobody has heard of yet.
func (b *batch) addMember(q *pb.Member) (Outcome, error) {
	id := MemberID(q.ID)
	if b.next.members.WasRemoved(id) && !mutant.On("ids are used twice") {
		return refuse(fault.MemberNotFound), nil // an id is never used twice
	}
	if _, ok := b.next.members.Find(id); ok || id == 0 {
		return refuse(fault.MemberExists), nil
	}
	if len(q.PeerURLs) == 0 {
		return refuse(fault.MemberURLs), nil
	}
	if _, taken := b.next.members.At(q.PeerURLs, id); taken {
		return refuse(fault.PeerURLExists), nil
	}
	if most, limited := learnersMax(q); q.IsLearner && limited && b.next.learners() >= most {
		return refuse(fault.TooManyLearners), nil
	}

	m := Member{ID: id, PeerURLs: q.PeerURLs, Learner: q.IsLearner}
	b.next.members = b.next.members.Put(&b.rows, m)

	return Outcome{Response: &pb.MemberAddResponse{Header: header(0), Member: m.Message(), Members: b.next.MemberMessages()}}, nil
}

// learnersField is a field of the message of MemberAdd that clients know
// nothing of. Its number is in logs.
const learnersField = 1000

// LimitLearners has an addition refused where there are that many learners by
// the time it is applied: what the one who proposes it counts may be out of
// date then.
func LimitLearners(m *pb.Member, most int) {
	b := protowire.AppendTag(nil, learnersField, protowire.VarintType)
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(b, uint64(most)))
}

func learnersMax(m *pb.Member) (most uint64, limited bool) {
	for b := m.ProtoReflect().GetUnknown(); len(b) > 0; {
		field, kind, n := protowire.ConsumeField(b)
		if n < 0 {
			return 0, false
		}
		if field == learnersField && kind == protowire.VarintType {
			_, _, tag := protowire.ConsumeTag(b)
			most, _ = protowire.ConsumeVarint(b[tag:])
			limited = true
		}
		b = b[n:]
	}
	return most, limited
}

// learners returns how many members have no vote.
func (v *View) learners() (n uint64) {
	for _, m := range v.Members() {
		if m.Learner {
			n++
		}
	}
	return n
}

func (b *batch) removeMember(q *pb.MemberRemoveRequest) (Outcome, error) {
	id := MemberID(q.ID)
	if _, ok := b.next.members.Find(id); !ok {
		return refuse(fault.MemberNotFound), nil
	}

	b.next.members = b.next.members.Remove(&b.rows, id)
	b.next.alarms = b.next.alarms.Drop(&b.rows, q.ID) // nobody is left to end them

	return Outcome{Response: &pb.MemberRemoveResponse{Header: header(0), Members: b.next.MemberMessages()}}, nil
}

// updateMember changes where a member is found, and nothing else of it.
func (b *batch) updateMember(q *pb.MemberUpdateRequest) (Outcome, error) {
	m, ok := b.next.members.Find(MemberID(q.ID))
	if !ok {
		return refuse(fault.MemberNotFound), nil
	}
	if len(q.PeerURLs) == 0 {
		return refuse(fault.MemberURLs), nil
	}
	if _, taken := b.next.members.At(q.PeerURLs, m.ID); taken {
		return refuse(fault.PeerURLExists), nil
	}

	m.PeerURLs = q.PeerURLs
	m.Learner = m.Learner && !mutant.On("an update promotes")
	b.next.members = b.next.members.Put(&b.rows, m)

	return Outcome{Response: &pb.MemberUpdateResponse{Header: header(0), Members: b.next.MemberMessages()}}, nil
}

// promoteMember gives a learner its vote.
func (b *batch) promoteMember(q *pb.MemberPromoteRequest) (Outcome, error) {
	m, ok := b.next.members.Find(MemberID(q.ID))
	if !ok {
		return refuse(fault.MemberNotFound), nil
	}
	if !m.Learner {
		return refuse(fault.NotLearner), nil
	}

	m.Learner = mutant.On("promoted in consensus only")
	b.next.members = b.next.members.Put(&b.rows, m)

	return Outcome{Response: &pb.MemberPromoteResponse{Header: header(0), Members: b.next.MemberMessages()}}, nil
}
