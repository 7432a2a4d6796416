package node

import (
	"context"
	"slices"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// The member is the api's backend.
var _ api.Backend = (*member)(nil)

func (m *member) Propose(ctx context.Context, command []byte) (state.Outcome, error) {
	return m.replica.Propose(ctx, command)
}

func (m *member) Barrier(ctx context.Context) error { return m.replica.Barrier(ctx) }

func (m *member) View() *state.View { return m.machine.View() }

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

func (m *member) Size() (total, used int64) { return m.machine.Size() }

func (m *member) WaitSwept(ctx context.Context, rev state.Revision) error {
	return m.waitSwept(ctx, rev)
}

func (m *member) Defragment(ctx context.Context) error { return m.machine.Defragment(ctx) }

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
