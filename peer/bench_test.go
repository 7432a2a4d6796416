package peer

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
)

// BenchmarkMessages sends appends of one entry of 300 bytes over a socket of
// this machine. The time of both sides' processors is counted.
func BenchmarkMessages(b *testing.B) {
	for _, together := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("together=%d", together), func(b *testing.B) {
			var arrived atomic.Int64
			all := make(chan struct{}, 1)
			total := int64(b.N)
			pair := func(id uint64, l net.Listener) *node {
				o := Options{Cluster: cluster, ID: id, Incarnation: 1, Deliver: func(*pb.Message) {
					if arrived.Add(1) == total {
						all <- struct{}{}
					}
				}, QueueMessages: 1 << 30, QueueBytes: 1 << 40}
				p, err := New(o)
				must(b, err)
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- p.Run(ctx, l) }()
				b.Cleanup(func() { cancel(); <-done })
				return &node{p: p, url: "http://" + l.Addr().String()}
			}
			var nodes []*node
			for id := range uint64(2) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				must(b, err)
				nodes = append(nodes, pair(id+1, l))
			}
			meet(nodes...)
			eventually(b, "connected", func() bool { return nodes[0].p.Connected(2) && nodes[1].p.Connected(1) })
			entry := make([]byte, 300)
			batch := make([]*pb.Message, together)
			for i := range batch {
				batch[i] = message(pb.MsgApp, nodes[0], nodes[1], 1<<40, entry)
			}
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			sent := int64(0)
			for sent < total {
				n := min(int64(together), total-sent)
				nodes[0].p.Send(batch[:n])
				sent += n
				for sent-arrived.Load() > 20000 {
					pause() // raft has a window too
				}
			}
			<-all
			b.ReportMetric(float64(cpu()-before)/float64(total)/1000, "cpu-µs/msg")
			b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
