package v3

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/kvorum/kvorum/internal/wire"
	"github.com/kvorum/kvorum/rpc"
	"github.com/kvorum/kvorum/state"
)

type lease struct {
	pb.UnimplementedLeaseServer
	*server
}

// LeaseGrant chooses what the state cannot: an id that is unlike others, since
// clients make of it names that should not collide, and a time that a leader
// can keep to.
func (s lease) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := state.CheckLeaseGrant(r); err != nil {
		return nil, err
	}
	grant := &pb.LeaseGrantRequest{ID: r.ID, TTL: max(r.TTL, s.options.LeaseSecondsMin)}
	for grant.ID == 0 {
		grant.ID = rand.Int64()
	}
	return propose[*pb.LeaseGrantResponse](ctx, s.server, state.LeaseGrant, grant)
}

func (s lease) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return propose[*pb.LeaseRevokeResponse](ctx, s.server, state.LeaseRevoke, r)
}

// keepAlivesMax is how many leases of one stream are renewed together.
const keepAlivesMax = 1000

type keepAliveStream = grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]

// LeaseKeepAlive renews together whatever has come while others were being
// renewed: many clients keep all of their leases alive on one stream. Answers
// come in the order of the requests.
func (s lease) LeaseKeepAlive(stream keepAliveStream) error {
	var came rpc.Messages
	var ids []state.LeaseID
	for {
		if err := stream.RecvMsg(&came); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		ids = ids[:0]
		for b := range came.All() {
			var r pb.LeaseKeepAliveRequest
			if !wire.KeepAlive(b, &r) {
				return malformed(b, &r)
			}
			ids = append(ids, state.LeaseID(r.ID))
		}
		for some := range slices.Chunk(ids, keepAlivesMax) {
			if err := s.keepAlive(stream, some); err != nil {
				return err
			}
		}
	}
}

func (s lease) keepAlive(stream keepAliveStream, ids []state.LeaseID) error {
	// No answer tells of a revision that its lease may not have lived to see.
	revision := s.backend.View().Revision
	ttls, err := s.ask(stream.Context(), ids, s.backend.Renew)
	if err != nil {
		return err
	}
	var answers rpc.Messages
	answer := pb.LeaseKeepAliveResponse{Header: s.header(revision)}
	for i, id := range ids {
		answer.ID, answer.TTL = int64(id), ttls[i]
		answers.Add(func(out []byte) []byte { return wire.AppendKeepAlive(out, &answer) })
	}
	return stream.SendMsg(&answers)
}

func (s lease) ask(ctx context.Context, ids []state.LeaseID, what func(context.Context, []state.LeaseID) ([]int64, error)) ([]int64, error) {
	ctx, cancel := s.gate.Limited(ctx)
	defer cancel()
	return what(ctx, ids)
}

// LeaseTimeToLive has the leader say what is left, for only it knows, and finds
// the rest here.
func (s lease) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	id := state.LeaseID(r.ID)
	left, err := s.ask(ctx, []state.LeaseID{id}, s.backend.Remaining)
	if err != nil {
		return nil, err
	}
	view, err := s.gate.View(ctx, true)
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: s.header(view.Revision), ID: r.ID, TTL: -1}
	l, ok := view.Lease(id)
	if !ok || left[0] < 0 {
		return resp, nil
	}
	resp.TTL, resp.GrantedTTL = left[0], l.Granted
	if r.Keys {
		for key := range view.LeaseKeys(id) {
			resp.Keys = append(resp.Keys, []byte(key))
		}
	}
	return resp, nil
}

// LeaseLeases tells of the leases known here.
func (s lease) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	view := s.backend.View()
	var ids []state.LeaseID
	for l := range view.Leases() {
		ids = append(ids, l.ID)
	}
	s.backend.SortByEnd(ids)
	resp := &pb.LeaseLeasesResponse{Header: s.header(view.Revision), Leases: make([]*pb.LeaseStatus, len(ids))}
	for i, id := range ids {
		resp.Leases[i] = &pb.LeaseStatus{ID: int64(id)}
	}
	return resp, nil
}
