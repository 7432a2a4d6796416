package proxy

import (
	"context"

	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/proxy/internal/upstream"
	"github.com/kvorum/kvorum/rpc"
)

// health says whether a call would find a member.
type health struct {
	pb.UnimplementedHealthServer
	up *upstream.Upstream
}

func registerHealth(s *rpc.Server, up *upstream.Upstream) {
	pb.RegisterHealthServer(s, health{up: up})
}

func (h health) now() *pb.HealthCheckResponse {
	if h.up.Health() != nil {
		return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_NOT_SERVING}
	}
	return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}
}

func (h health) Check(_ context.Context, r *pb.HealthCheckRequest) (*pb.HealthCheckResponse, error) {
	if r.Service != "" {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	return h.now(), nil
}
