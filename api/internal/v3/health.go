package v3

import (
	"context"

	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// health speaks for the server as a whole, whose name is empty. Who wants to
// know more asks the paths for operators.
type health struct{ pb.UnimplementedHealthServer }

func (health) Check(_ context.Context, r *pb.HealthCheckRequest) (*pb.HealthCheckResponse, error) {
	if r.Service != "" {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	return &pb.HealthCheckResponse{Status: pb.HealthCheckResponse_SERVING}, nil
}

func (health) List(context.Context, *pb.HealthListRequest) (*pb.HealthListResponse, error) {
	return &pb.HealthListResponse{Statuses: map[string]*pb.HealthCheckResponse{"": {Status: pb.HealthCheckResponse_SERVING}}}, nil
}

// Watch tells how it is and then waits: as long as this stream can be heard,
// nothing changes.
func (health) Watch(r *pb.HealthCheckRequest, stream pb.Health_WatchServer) error {
	now := pb.HealthCheckResponse_SERVING
	if r.Service != "" {
		now = pb.HealthCheckResponse_SERVICE_UNKNOWN
	}
	if err := stream.Send(&pb.HealthCheckResponse{Status: now}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}
