package merge

import (
	"context"
	"io"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/kvorum/kvorum/metric"
)

func TestKeepAlives(t *testing.T) {
	s := newStore()
	asked, sent := new(metric.Counter), new(metric.Counter)
	k := NewKeepAlives(KeepAliveOptions{
		Upstream: serve(t, func(server *grpc.Server) { pb.RegisterLeaseServer(server, leaseMember{store: s}) }),
		Metrics:  KeepAliveMetrics{Asked: asked, Sent: sent},
	})
	t.Cleanup(k.Close)
	conn := serve(t, func(server *grpc.Server) { pb.RegisterLeaseServer(server, leaseServer{k: k}) })

	// Many clients, of which some keep the same lease alive, while streams
	// upstream break: each is answered as often as it asks.
	const clients, each = 40, 50
	var all sync.WaitGroup
	for n := range int64(clients) {
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			id := n%10 + 1
			for i := range each {
				if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					continue // two at a time
				}
				for range 2 {
					if m, err := stream.Recv(); err != nil || m.ID != id || m.TTL != id {
						t.Errorf("answered %v, %v", m, err)
						return
					}
				}
				if n == 0 && i == each/2 {
					s.breakAll()
				}
			}
			// What was asked last is answered before the end.
			if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
				t.Error(err)
			}
			if err := stream.CloseSend(); err != nil {
				t.Error(err)
			}
			if m, err := stream.Recv(); err != nil || m.ID != id {
				t.Errorf("the last: %v, %v", m, err)
			}
			if _, err := stream.Recv(); err != io.EOF {
				t.Errorf("ended with %v", err)
			}
		})
	}
	all.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if asked.Value() != clients*(each+1) || sent.Value() >= asked.Value() {
		t.Errorf("%d asked, %d sent", asked.Value(), sent.Value())
	}
	t.Logf("%d keep-alives of clients, %d upstream, on %d streams", asked.Value(), sent.Value(), s.opened)
}

type leaseServer struct {
	pb.UnimplementedLeaseServer
	k *KeepAlives
}

func (s leaseServer) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	return s.k.LeaseKeepAlive(stream)
}
