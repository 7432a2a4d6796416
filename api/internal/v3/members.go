package v3

import (
	"context"
	"slices"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// Members is how a member changes the cluster by itself: it joins, and asks for
// its vote. No user stands behind it: whoever reaches the members' port with
// their credentials is trusted with all data. What endangers the quorum is
// refused to members as it is to clients.
type Members struct{ cluster cluster }

// NewMembers returns what members may ask.
func NewMembers(o Options, g *gate.Gate, b Backend) Members {
	return Members{cluster{server: &server{options: o, gate: g, backend: b}}}
}

// Welcome adds a learner at the addresses. One that was added at just these and
// has never started is the same one, asking again.
func (m Members) Welcome(ctx context.Context, addresses []string) (state.Member, error) {
	urls, err := peerURLs(addresses)
	if err != nil {
		return state.Member{}, err
	}
	if known, ok, err := m.unstarted(ctx, urls); ok || err != nil {
		return known, err
	}
	added, err := m.cluster.add(ctx, urls, true)
	if fault.Of(err) == fault.PeerURLExists {
		// Or it asks twice at the same time.
		if known, ok, err := m.unstarted(ctx, urls); ok || err != nil {
			return known, err
		}
	}
	if err != nil {
		return state.Member{}, err
	}
	return state.Member{ID: state.MemberID(added.Member.ID), PeerURLs: urls, Learner: true}, nil
}

func (m Members) unstarted(ctx context.Context, urls []string) (found state.Member, ok bool, err error) {
	view, err := m.cluster.gate.View(ctx, true)
	if err != nil {
		return found, false, err
	}
	for _, one := range view.Members() {
		if one.Name == "" && slices.Equal(slices.Sorted(slices.Values(one.PeerURLs)), urls) {
			return one, true, nil
		}
	}
	return found, false, nil
}

// Promote gives a learner its vote, if it is in sync with the leader.
func (m Members) Promote(ctx context.Context, id state.MemberID) error {
	_, err := m.cluster.promote(ctx, id)
	return err
}
