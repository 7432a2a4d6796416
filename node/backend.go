package node

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// The member is the api's backend.
var _ api.Backend = (*member)(nil)

func (m *member) Propose(ctx context.Context, command []byte) (state.Outcome, error) {
	return m.replica.Propose(ctx, command)
}

func (m *member) ProposeAll(p api.Party, commands [][]byte) { m.replica.ProposeAll(p, commands) }

func (m *member) Configure(ctx context.Context, command []byte, change api.Change) (state.Outcome, error) {
	kind := map[api.Vote]raftpb.ConfChangeType{
		api.NoMember: raftpb.ConfChangeRemoveNode,
		api.Learner:  raftpb.ConfChangeAddLearnerNode,
		api.Voter:    raftpb.ConfChangeAddNode,
	}[change.Vote]
	return m.replica.Configure(ctx, &raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: proto.Uint64(uint64(change.Member))}},
		Context: command,
	})
}

func (m *member) Barrier(ctx context.Context) error { return m.replica.Barrier(ctx) }

func (m *member) BarrierAll(p api.Party, n int) { m.replica.BarrierAll(p, n) }

func (m *member) View() *state.View { return m.machine.View() }

func (m *member) Hub() *watch.Hub { return m.hub }

func (m *member) Status() api.Status {
	s := m.replica.Status()
	return api.Status{
		Cluster:   state.ClusterID(m.o.Cluster),
		Member:    state.MemberID(s.ID),
		Leader:    state.MemberID(s.Leader),
		Learner:   slices.Contains(s.Learners, s.ID),
		Term:      state.Term(s.Term),
		Committed: state.Index(s.Commit),
		Applied:   state.Index(s.Applied),
	}
}

func (m *member) Traffic() api.Traffic {
	t := api.Traffic{Sent: m.traffic.sent.Load(), Received: m.traffic.received.Load()}
	if m.replica.Status().Leader != 0 {
		t.LeaderSince = time.Now().Add(-time.Duration(m.replica.Reign()) * m.o.Tick)
	}
	if m.peers != nil {
		for _, s := range m.peers.Status() {
			t.Peers = append(t.Peers, api.PeerTraffic{
				ID:   state.MemberID(s.ID),
				Last: s.RoundTrip, Mean: s.Trips.Mean(), Deviation: s.Trips.Deviation(), Min: s.Trips.Min, Max: s.Trips.Max,
				Answered: s.Trips.Count, Lost: s.Lost,
			})
		}
	}
	return t
}

func (m *member) Size() (total, used int64) { return m.machine.Size() }

func (m *member) Defragment(ctx context.Context) error {
	began := time.Now()
	m.o.Metrics.Defragmenting.Add(1)
	defer m.o.Metrics.Defragmenting.Add(-1)
	err := m.machine.Defragment(ctx)
	m.o.Metrics.DefragSeconds.Observe(time.Since(began).Seconds())
	return err
}

// giveBack gives the file system what the table does not need, if that is worth
// it.
func (m *member) giveBack(ctx context.Context, threshold int64) error {
	total, _ := m.machine.Size()
	free := m.machine.DiskBytes() - total
	if free < threshold {
		m.o.Log.Info("Skipping defragmentation", "free-bytes", free, "threshold-bytes", threshold)
		return nil
	}
	m.o.Log.Info("defragmenting", "free-bytes", free, "threshold-bytes", threshold)
	return m.Defragment(ctx)
}

func (m *member) MoveLeader(ctx context.Context, to state.MemberID) error {
	s := m.replica.Status()
	switch {
	case s.Leader != s.ID:
		return fault.NotLeader
	case uint64(to) == s.ID:
		return nil
	case !slices.Contains(s.Voters, uint64(to)):
		return fault.BadTransferee
	}
	return m.replica.Transfer(ctx, uint64(to))
}

func (m *member) ReachableSince(id state.MemberID) time.Time {
	if m.peers != nil {
		for _, s := range m.peers.Status() {
			if s.ID == uint64(id) {
				return s.Active
			}
		}
	}
	return time.Time{}
}

// askCaughtUp is a call to the leader: the id of a learner, 8 bytes, big
// endian. The answer is empty or a refusal.
const askCaughtUp = "caught-up"

// askTries is how often a leader is looked for: the one that was asked may not
// be it any more.
const askTries = 3

func (m *member) CaughtUp(ctx context.Context, learner state.MemberID) error {
	var err error
	for range askTries {
		s := m.replica.Status()
		switch s.Leader {
		case 0:
			return fault.NoLeader
		case s.ID:
			return m.caughtUp(learner)
		}
		_, err = m.peers.Call(ctx, s.Leader, askCaughtUp, binary.BigEndian.AppendUint64(nil, uint64(learner)))
		if fault.Of(err) != fault.NotLeader {
			break
		}
	}
	return err
}

func (m *member) answerCaughtUp(_ context.Context, _ uint64, body []byte) ([]byte, error) {
	if len(body) != 8 {
		return nil, fault.Malformed
	}
	return nil, m.caughtUp(state.MemberID(binary.BigEndian.Uint64(body)))
}

// caughtUp tells whether a learner has nine tenths of the log that this leader
// has, and was heard from lately. Of one that has just been added nothing is
// known yet.
func (m *member) caughtUp(learner state.MemberID) error {
	s := m.replica.Status()
	if s.Role != replica.Leader {
		return fault.NotLeader
	}
	for _, p := range s.Progress {
		if p.ID == uint64(learner) {
			if p.Active && p.Match >= s.Commit-s.Commit/10 {
				return nil
			}
		}
	}
	return fault.LearnerNotReady
}
