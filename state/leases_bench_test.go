package state_test

import (
	"encoding/binary"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/state"
)

// leased is a machine that holds a hundred thousand leases.
func leased(b *testing.B) (m *bed, do func(n int, command func(i int) state.Command)) {
	m = newBed(b, false)
	b.Cleanup(func() { m.Close() })
	do = func(n int, command func(i int) state.Command) {
		for i := 0; i < n; i += benchBatch {
			var commands []state.Command
			for j := i; j < min(n, i+benchBatch); j++ {
				commands = append(commands, command(j))
			}
			m.apply(b, commands...)
		}
	}
	const n = 100_000
	before := heap()
	do(n, func(i int) state.Command {
		return state.Command{Kind: state.LeaseGrant, Request: &pb.LeaseGrantRequest{ID: scattered(i), TTL: 60}}
	})
	b.Logf("%d bytes of heap a lease, its row in memory included", (heap()-before)/n)
	b.ReportAllocs()
	b.ResetTimer()
	return m, do
}

func scattered(i int) int64 { return int64(uint64(i+1)*0x9e3779b97f4a7c15>>1) | 1 }

func BenchmarkLeaseGrant(b *testing.B) {
	_, do := leased(b)
	do(b.N, func(i int) state.Command {
		return state.Command{Kind: state.LeaseGrant, Request: &pb.LeaseGrantRequest{ID: -scattered(i), TTL: 60}}
	})
}

// BenchmarkPutLeased puts new keys, on leases and without one.
func BenchmarkPutLeased(b *testing.B) {
	for name, lease := range map[string]func(int) int64{
		"plain":      func(int) int64 { return 0 },
		"one lease":  func(int) int64 { return scattered(0) },
		"all leases": func(i int) int64 { return scattered(i % 100_000) },
	} {
		b.Run(name, func(b *testing.B) {
			_, do := leased(b)
			do(b.N, func(i int) state.Command {
				key := binary.BigEndian.AppendUint64([]byte("key/"), uint64(scattered(i)))
				return state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: key, Value: []byte("v"), Lease: lease(i)}}
			})
		})
	}
}

// BenchmarkLeaseExpire ends leases with one key each, 500 in a command.
func BenchmarkLeaseExpire(b *testing.B) {
	m, do := leased(b)
	grant := func(i int) state.Command {
		return state.Command{Kind: state.LeaseGrant, Request: &pb.LeaseGrantRequest{ID: -scattered(i), TTL: 60}}
	}
	do(b.N, grant)
	do(b.N, func(i int) state.Command {
		key := binary.BigEndian.AppendUint64([]byte("key/"), uint64(scattered(i)))
		return state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: key, Value: []byte("v"), Lease: -scattered(i)}}
	})
	b.ResetTimer()
	for i := 0; i < b.N; i += 500 {
		q := new(pb.LeaseLeasesResponse)
		for j := i; j < min(b.N, i+500); j++ {
			q.Leases = append(q.Leases, &pb.LeaseStatus{ID: -scattered(j)})
		}
		m.apply(b, state.Command{Kind: state.LeaseExpire, Request: q})
	}
}
