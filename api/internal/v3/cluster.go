package v3

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type cluster struct {
	pb.UnimplementedClusterServer
	*server
}

// MemberList answers with revision 0 in its header, as everything about
// members does: they are not part of the history of keys.
func (s cluster) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	view, err := s.gate.View(ctx, r.Linearizable)
	if err != nil {
		return nil, err
	}
	return &pb.MemberListResponse{Header: s.header(0), Members: view.MemberMessages()}, nil
}

func (cluster) MemberAdd(context.Context, *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, noMembership
}

func (cluster) MemberRemove(context.Context, *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	return nil, noMembership
}

func (cluster) MemberUpdate(context.Context, *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, noMembership
}

func (cluster) MemberPromote(context.Context, *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return nil, noMembership
}

var noMembership = status.Error(codes.Unimplemented, "kvorum: members cannot be changed while running in this version")
