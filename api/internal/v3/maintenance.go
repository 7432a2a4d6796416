package v3

import (
	"context"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

type maintenance struct {
	pb.UnimplementedMaintenanceServer
	*server
}

// Status tells how this member is, from here alone: it must answer when
// nothing else does.
func (s maintenance) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	view := s.backend.View()
	now := s.backend.Status()
	total, used := s.backend.Size()
	resp := &pb.StatusResponse{
		Header:           s.header(view.Revision),
		Version:          s.options.Version,
		StorageVersion:   s.options.StorageVersion,
		DbSize:           total,
		DbSizeInUse:      used,
		DbSizeQuota:      max(0, s.options.QuotaBytes),
		Leader:           uint64(now.Leader),
		RaftIndex:        uint64(now.Committed),
		RaftTerm:         uint64(now.Term),
		RaftAppliedIndex: uint64(now.Applied),
		IsLearner:        now.Learner,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}
	if now.Leader == 0 {
		resp.Errors = append(resp.Errors, fault.NoLeader.Text)
	}
	for _, a := range view.Alarms(pb.AlarmType_NONE) {
		resp.Errors = append(resp.Errors, describeAlarm(a))
	}
	return resp, nil
}

// describeAlarm writes an alarm as protobuf's text form, which operators grep.
func describeAlarm(a *pb.AlarmMember) string {
	var parts []string
	if a.MemberID != 0 {
		parts = append(parts, fmt.Sprintf("memberID:%d", a.MemberID))
	}
	if a.Alarm != pb.AlarmType_NONE {
		parts = append(parts, "alarm:"+a.Alarm.String())
	}
	return strings.Join(parts, " ")
}

func (s maintenance) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	switch r.Action {
	case pb.AlarmRequest_GET:
		view, err := s.gate.View(ctx, true)
		if err != nil {
			return nil, err
		}
		return &pb.AlarmResponse{Header: s.header(view.Revision), Alarms: view.Alarms(r.Alarm)}, nil
	case pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE:
		return propose[*pb.AlarmResponse](ctx, s.server, state.Alarm, r)
	}
	return nil, status.Errorf(codes.InvalidArgument, "kvorum: alarm action %d is unknown", r.Action)
}

// Hash is a checksum over everything that members agree on: two whose
// checksums differ at one applied index have diverged.
func (s maintenance) Hash(context.Context, *pb.HashRequest) (*pb.HashResponse, error) {
	view := s.backend.View()
	return &pb.HashResponse{Header: s.header(view.Revision), Hash: uint32(view.Checksum ^ view.Checksum>>32)}, nil
}

func (s maintenance) HashKV(_ context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	resp, err := s.backend.View().HashKV(r.Revision)
	if err != nil {
		return nil, err
	}
	s.fill(resp.Header)
	return resp, nil
}

// Defragment answers without a header: clients of every age get it so.
func (s maintenance) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := s.backend.Defragment(ctx); err != nil {
		return nil, err
	}
	return &pb.DefragmentResponse{}, nil
}

func (maintenance) Snapshot(*pb.SnapshotRequest, grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	return status.Error(codes.Unimplemented, "kvorum: snapshots cannot be downloaded in this version")
}

// MoveLeader answers without a header, as Defragment does.
func (s maintenance) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	now := s.backend.Status()
	if now.Leader != now.Member {
		return nil, fault.NotLeader
	}
	if err := s.backend.MoveLeader(ctx, state.MemberID(r.TargetID)); err != nil {
		return nil, err
	}
	return &pb.MoveLeaderResponse{}, nil
}

func (maintenance) Downgrade(context.Context, *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	return nil, status.Error(codes.Unimplemented, "kvorum: there is no version to downgrade to")
}
