package v3

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
)

// auth answers for a store in which there are no users, which this version
// always is. Clients ask before they log in.
type auth struct {
	pb.UnimplementedAuthServer
	*server
}

// FirstAuthRevision is the revision of users and roles that never changed.
const FirstAuthRevision = 1

func (s auth) AuthStatus(ctx context.Context, _ *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	view, err := s.gate.View(ctx, true)
	if err != nil {
		return nil, err
	}
	return &pb.AuthStatusResponse{Header: s.header(view.Revision), AuthRevision: FirstAuthRevision}, nil
}

func (auth) Authenticate(context.Context, *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	return nil, fault.AuthNotEnabled
}

func (auth) AuthEnable(context.Context, *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return nil, status.Error(codes.Unimplemented, "kvorum: users and roles are not supported in this version")
}
