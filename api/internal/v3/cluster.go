package v3

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// cluster answers with revision 0 in its headers: members are not part of the
// history of keys.
type cluster struct {
	pb.UnimplementedClusterServer
	*server
}

func (s cluster) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	view, err := s.gate.View(ctx, r.Linearizable)
	if err != nil {
		return nil, err
	}
	return &pb.MemberListResponse{Header: s.header(0), Members: view.MemberMessages()}, nil
}

func (s cluster) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := peerURLs(r.PeerURLs)
	if err != nil {
		return nil, err
	}
	return s.add(ctx, urls, r.IsLearner)
}

func (s cluster) add(ctx context.Context, urls []string, learner bool) (*pb.MemberAddResponse, error) {
	view := s.backend.View()
	if learner && len(view.Members())-len(voters(view))+1 > s.options.LearnersMax {
		return nil, fault.TooManyLearners
	}
	if s.options.StrictReconfig {
		if err := s.health().mayAdd(learner); err != nil {
			return nil, err
		}
	}
	m, vote := &pb.Member{ID: newMemberID(), PeerURLs: urls, IsLearner: learner}, gate.Voter
	if learner {
		vote = gate.Learner
		state.LimitLearners(m, s.options.LearnersMax)
	}
	return configure[*pb.MemberAddResponse](ctx, s.server, state.MemberAdd, m, gate.Change{Member: state.MemberID(m.ID), Vote: vote})
}

func (s cluster) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	id := state.MemberID(r.ID)
	m, ok := s.backend.View().Member(id)
	if !ok {
		return nil, fault.MemberNotFound
	}
	if s.options.StrictReconfig && !m.Learner {
		if err := s.health().mayRemove(id); err != nil {
			return nil, err
		}
	}
	return configure[*pb.MemberRemoveResponse](ctx, s.server, state.MemberRemove, r, gate.Change{Member: id, Vote: gate.NoMember})
}

func (s cluster) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	urls, err := peerURLs(r.PeerURLs)
	if err != nil {
		return nil, err
	}
	return propose[*pb.MemberUpdateResponse](ctx, s.server, state.MemberUpdate, &pb.MemberUpdateRequest{ID: r.ID, PeerURLs: urls})
}

func (s cluster) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return s.promote(ctx, state.MemberID(r.ID))
}

func (s cluster) promote(ctx context.Context, id state.MemberID) (*pb.MemberPromoteResponse, error) {
	view, err := s.gate.View(ctx, true)
	if err != nil {
		return nil, err
	}
	switch m, ok := view.Member(id); {
	case !ok:
		return nil, fault.MemberNotFound
	case !m.Learner:
		return nil, fault.NotLearner
	}
	if err := s.backend.CaughtUp(ctx, id); err != nil {
		return nil, err
	}
	if s.options.StrictReconfig {
		if err := s.health().mayPromote(); err != nil {
			return nil, err
		}
	}
	return configure[*pb.MemberPromoteResponse](ctx, s.server, state.MemberPromote, &pb.MemberPromoteRequest{ID: uint64(id)}, gate.Change{Member: id, Vote: gate.Voter})
}

// configure has a change of the members made true, as propose does with others.
func configure[R interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}](ctx context.Context, s *server, kind state.Kind, req proto.Message, change gate.Change) (R, error) {
	var none R
	out, err := s.gate.Configure(ctx, kind, req, change)
	if err != nil {
		return none, err
	}
	resp := out.Response.(R)
	s.fill(resp.GetHeader())
	return resp, nil
}

// newMemberID is one that no member ever had: there are too many for that.
func newMemberID() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return max(1, binary.BigEndian.Uint64(b[:]))
}

// peerURLs returns addresses in order, if members can be found at such.
func peerURLs(texts []string) ([]string, error) {
	if len(texts) == 0 {
		return nil, fault.MemberURLs
	}
	var urls []string
	for _, text := range texts {
		text = strings.TrimSpace(text)
		u, err := url.Parse(text)
		if err != nil || u.Path != "" {
			return nil, fault.MemberURLs
		}
		switch u.Scheme {
		case "http", "https":
			if _, _, err := net.SplitHostPort(u.Host); err != nil {
				return nil, fault.MemberURLs
			}
		case "unix", "unixs":
		default:
			return nil, fault.MemberURLs
		}
		urls = append(urls, text)
	}
	slices.Sort(urls)
	return urls, nil
}

// settled is how long a connection must have held to be counted on.
const settled = 5 * time.Second

// voter is a voting member as this one sees it.
type voter struct {
	id      state.MemberID
	started bool // it has run and told its name
	reached bool // it can be reached now
	settled bool // and could be for a while
}

// quorumHealth is all voters. It judges whether a change of the members would
// leave a cluster that can agree on anything.
type quorumHealth []voter

func voters(view *state.View) []state.Member {
	return slices.DeleteFunc(slices.Clone(view.Members()), func(m state.Member) bool { return m.Learner })
}

func (s cluster) health() quorumHealth {
	var h quorumHealth
	own, now := s.backend.Status().Member, time.Now()
	for _, m := range voters(s.backend.View()) {
		v := voter{id: m.ID, started: m.Name != "", reached: true, settled: true}
		if m.ID != own {
			since := s.backend.ReachableSince(m.ID)
			v.reached = !since.IsZero()
			v.settled = v.reached && now.Sub(since) >= settled
		}
		h = append(h, v)
	}
	return h
}

func (h quorumHealth) count(is func(voter) bool) (n int) {
	for _, v := range h {
		if is(v) {
			n++
		}
	}
	return n
}

func isStarted(v voter) bool { return v.started }
func isSettled(v voter) bool { return v.settled }

func quorum(n int) int { return n/2 + 1 }

// mayAdd: the new member does not run yet, so those who do must be a quorum
// with it among the voters, where a learner will be some day. A cluster of one
// has to grow somehow.
func (h quorumHealth) mayAdd(learner bool) error {
	after := len(h) + 1
	switch {
	case len(h) == 1:
		return nil
	case !learner && h.count(isStarted) < quorum(after):
		return fault.NotEnoughStarted
	case h.count(isSettled) < quorum(after):
		return fault.Unhealthy
	}
	return nil
}

// mayRemove: those who are left must be a quorum of themselves. One who is down
// takes nothing away.
func (h quorumHealth) mayRemove(id state.MemberID) error {
	after := len(h) - 1
	gone := slices.IndexFunc(h, func(v voter) bool { return v.id == id })
	rest := h
	if gone >= 0 {
		rest = slices.Delete(slices.Clone(h), gone, gone+1)
	}
	switch {
	case rest.count(isStarted) < quorum(after):
		return fault.NotEnoughStarted
	case gone >= 0 && !h[gone].reached:
		return nil
	case h.count(isSettled)-1 < quorum(after):
		return fault.Unhealthy
	}
	return nil
}

// mayPromote: the learner runs, or it would not be in sync.
func (h quorumHealth) mayPromote() error {
	if h.count(isStarted)+1 < quorum(len(h)+1) {
		return fault.NotEnoughStarted
	}
	return nil
}
