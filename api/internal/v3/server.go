// Package v3 holds the gRPC services, a file for each. A handler checks the
// shape of a request, asks the gate, and puts the answer together. It decides
// nothing that depends on what is stored.
package v3

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/internal/electionpb"
	"github.com/kvorum/kvorum/internal/lockpb"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// Backend is what the services ask of the member, beside what the gate asks.
type Backend interface {
	gate.Backend

	// WaitSwept returns once nothing is left on disk of the history that the
	// compaction at rev ended.
	WaitSwept(ctx context.Context, rev state.Revision) error

	// Defragment returns once the disk holds as little beside live data as it
	// can be made to.
	Defragment(ctx context.Context) error

	// MoveLeader hands leadership to another voting member, and returns once
	// that one leads. It is asked of the leader, who may name itself.
	MoveLeader(ctx context.Context, to state.MemberID) error

	// ReachableSince returns since when another member can be reached from
	// here; the zero time if it cannot.
	ReachableSince(id state.MemberID) time.Time

	// CaughtUp refuses unless a learner has nearly all that the leader has. It
	// asks the leader.
	CaughtUp(ctx context.Context, learner state.MemberID) error

	// Hub is where those who watch keys listen.
	Hub() *watch.Hub

	// Renew has the leader give leases all their time again, and returns for
	// how many seconds they were granted, or 0 for those that do not exist. It
	// waits for a leader until ctx ends.
	Renew(ctx context.Context, ids []state.LeaseID) ([]int64, error)

	// Remaining has the leader say how many seconds are left of leases, -1 for
	// those that do not exist. It waits as Renew does.
	Remaining(ctx context.Context, ids []state.LeaseID) ([]int64, error)

	// SortByEnd puts leases in the order in which they end, if this member
	// leads; others cannot know.
	SortByEnd(ids []state.LeaseID)
}

// Options have no defaults: they come from the api's.
type Options struct {
	TxnOpsMax       int
	RequestBytesMax int
	AnswerBytesMax  int // of a watch that asked for fragments
	QuotaBytes      int64
	LearnersMax     int
	StrictReconfig  bool // refuse changes of the members that endanger the quorum
	LeaseSecondsMin int64
	Version         string
	StorageVersion  string
	Watch           WatchMetrics
}

type server struct {
	// Immutable after Register.
	options Options
	gate    *gate.Gate
	backend Backend
}

// Register puts all services on r.
func Register(o Options, g *gate.Gate, b Backend, r grpc.ServiceRegistrar) {
	s := &server{options: o, gate: g, backend: b}
	pb.RegisterKVServer(r, kv{server: s})
	pb.RegisterWatchServer(r, watches{server: s})
	pb.RegisterLeaseServer(r, lease{server: s})
	pb.RegisterClusterServer(r, cluster{server: s})
	pb.RegisterMaintenanceServer(r, maintenance{server: s})
	pb.RegisterAuthServer(r, auth{server: s})
	lockpb.RegisterLockServer(r, lock{server: s})
	electionpb.RegisterElectionServer(r, election{server: s})
	grpc_health_v1.RegisterHealthServer(r, health{})
}

// header is what every answer begins with.
func (s *server) header(rev state.Revision) *pb.ResponseHeader {
	h := &pb.ResponseHeader{Revision: int64(rev)}
	s.fill(h)
	return h
}

// fill adds to a header what the state does not know.
func (s *server) fill(h *pb.ResponseHeader) {
	status := s.backend.Status()
	h.ClusterId, h.MemberId, h.RaftTerm = uint64(status.Cluster), uint64(status.Member), uint64(status.Term)
}

// answered is an answer with a header.
type answered interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}

// propose has req made true and returns the state's answer with its header
// completed.
func propose[R answered](ctx context.Context, s *server, kind state.Kind, req proto.Message) (R, error) {
	var none R
	out, err := s.gate.Propose(ctx, kind, req)
	if err != nil {
		return none, err
	}
	resp := out.Response.(R)
	s.fill(resp.GetHeader())
	return resp, nil
}
