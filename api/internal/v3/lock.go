package v3

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/internal/lockpb"
)

type lock struct {
	lockpb.UnimplementedLockServer
	*server
}

func (s lock) Lock(ctx context.Context, r *lockpb.LockRequest) (*lockpb.LockResponse, error) {
	p, before, err := s.enter(ctx, r.Name, r.Lease, nil)
	if err != nil {
		return nil, err
	}
	header, err := s.reach(ctx, p)
	if err != nil {
		if before == nil {
			s.leave(ctx, p)
		}
		return nil, err
	}
	return &lockpb.LockResponse{Header: header, Key: p.key}, nil
}

func (s lock) Unlock(ctx context.Context, r *lockpb.UnlockRequest) (*lockpb.UnlockResponse, error) {
	resp, err := kv{server: s.server}.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: r.Key})
	if err != nil {
		return nil, err
	}
	return &lockpb.UnlockResponse{Header: resp.Header}, nil
}
