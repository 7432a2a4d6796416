package v3

import (
	"bytes"
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/electionpb"
	"github.com/kvorum/kvorum/state"
)

type election struct {
	electionpb.UnimplementedElectionServer
	*server
}

func (s election) Campaign(ctx context.Context, r *electionpb.CampaignRequest) (*electionpb.CampaignResponse, error) {
	p, before, err := s.enter(ctx, r.Name, r.Lease, r.Value)
	if err != nil {
		return nil, err
	}
	leader := &electionpb.LeaderKey{Name: r.Name, Key: p.key, Rev: p.created, Lease: p.lease}
	header, err := func() (*pb.ResponseHeader, error) {
		if before != nil && !bytes.Equal(before.Value, r.Value) {
			if _, err := s.proclaim(ctx, leader, r.Value); err != nil {
				return nil, err
			}
		}
		return s.reach(ctx, p)
	}()
	if err != nil {
		if before == nil {
			s.leave(ctx, p)
		}
		return nil, err
	}
	return &electionpb.CampaignResponse{Header: header, Leader: leader}, nil
}

func (s election) Proclaim(ctx context.Context, r *electionpb.ProclaimRequest) (*electionpb.ProclaimResponse, error) {
	if r.Leader == nil {
		return nil, fault.LeaderMissing
	}
	header, err := s.proclaim(ctx, r.Leader, r.Value)
	if err != nil {
		return nil, err
	}
	return &electionpb.ProclaimResponse{Header: header}, nil
}

func (s election) proclaim(ctx context.Context, l *electionpb.LeaderKey, value []byte) (*pb.ResponseHeader, error) {
	resp, err := kv{server: s.server}.Txn(ctx, &pb.TxnRequest{
		Compare: createdIs(l.Key, l.Rev),
		Success: opPut(&pb.PutRequest{Key: l.Key, Value: value, Lease: l.Lease}),
	})
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, fault.NotElected
	}
	return resp.Header, nil
}

func (s election) Resign(ctx context.Context, r *electionpb.ResignRequest) (*electionpb.ResignResponse, error) {
	if r.Leader == nil {
		return nil, fault.LeaderMissing
	}
	resp, err := kv{server: s.server}.Txn(ctx, &pb.TxnRequest{
		Compare: createdIs(r.Leader.Key, r.Leader.Rev),
		Success: opDelete(&pb.DeleteRangeRequest{Key: r.Leader.Key}),
	})
	if err != nil {
		return nil, err
	}
	return &electionpb.ResignResponse{Header: resp.Header}, nil
}

func (s election) Leader(ctx context.Context, r *electionpb.LeaderRequest) (*electionpb.LeaderResponse, error) {
	header, leader, err := s.leader(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	if leader == nil {
		return nil, fault.NoElectionLeader
	}
	return &electionpb.LeaderResponse{Header: header, Kv: leader}, nil
}

// leader returns the key of who leads and what it says, or nil.
func (s election) leader(ctx context.Context, name []byte) (*pb.ResponseHeader, *mvccpb.KeyValue, error) {
	view, err := s.gate.View(ctx, true)
	if err != nil {
		return nil, nil, err
	}
	queue := queueOf(name)
	kv, err := s.first(view, &pb.RangeRequest{
		Key: queue.Key, RangeEnd: queue.End,
		SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND,
	})
	return s.header(view.Revision), kv, err
}

func (s election) Observe(r *electionpb.LeaderRequest, stream grpc.ServerStreamingServer[electionpb.LeaderResponse]) error {
	for {
		header, leader, err := s.leader(stream.Context(), r.Name)
		if err != nil {
			return err
		}
		span := queueOf(r.Name) // whoever enters an empty queue leads
		if leader != nil {
			span = state.Span{Key: leader.Key}
			if err := stream.Send(&electionpb.LeaderResponse{Header: header, Kv: leader}); err != nil {
				return err
			}
		}
		for e, err := range s.backend.Hub().Follow(stream.Context(), span, state.Revision(header.Revision)+1) {
			if err != nil && err != fault.Compacted {
				return err
			}
			if err != nil || e.Deleted || leader == nil {
				break // look again who leads
			}
			if err := stream.Send(&electionpb.LeaderResponse{Header: s.header(e.Revision), Kv: state.DecodePair(e.Pair)}); err != nil {
				return err
			}
		}
	}
}
