package rpc_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kvorum/kvorum/rpc"
	"github.com/kvorum/kvorum/test/bench/load"
)

// benchServer names the variable that makes a process of the tests a server
// and nothing else, so that its CPU time can be told from its client's.
const benchServer = "RPC_BENCH_SERVER"

// counter answers every put with nothing but the number of puts.
type counter struct {
	etcdserverpb.UnimplementedKVServer
	puts atomic.Int64
}

func (c *counter) Put(context.Context, *etcdserverpb.PutRequest) (*etcdserverpb.PutResponse, error) {
	return &etcdserverpb.PutResponse{Header: &etcdserverpb.ResponseHeader{Revision: c.puts.Add(1)}}, nil
}

// now does the same from bytes to bytes.
func (c *counter) now(_ context.Context, _ rpc.Party, in, out []byte) ([]byte, rpc.Then, error) {
	out = protowire.AppendTag(out, 1, protowire.BytesType)
	rev := uint64(c.puts.Add(1))
	out = protowire.AppendVarint(out, uint64(protowire.SizeTag(3)+protowire.SizeVarint(rev)))
	out = protowire.AppendTag(out, 3, protowire.VarintType)
	return protowire.AppendVarint(out, rev), rpc.Answered, nil
}

// serveBench serves the kind of server that is asked for until it is killed.
func serveBench(kind string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	kv := &counter{}
	if kind == "grpc-go" {
		s := grpc.NewServer(grpc.NumStreamWorkers(512))
		etcdserverpb.RegisterKVServer(s, kv)
		return s.Serve(l)
	}
	s := rpc.New(rpc.Options{})
	etcdserverpb.RegisterKVServer(s, kv)
	if kind == "rpc-now" {
		s.Fast(etcdserverpb.KV_Put_FullMethodName, rpc.Fast{Now: kv.now})
	}
	return s.Serve(l)
}

// BenchmarkCall measures what a call costs a server that has one core, in CPU
// time of its process.
func BenchmarkCall(b *testing.B) {
	for _, kind := range []string{"grpc-go", "rpc", "rpc-now"} {
		for _, of := range []struct{ conns, streams int }{{1, 1}, {8, 32}} {
			b.Run(fmt.Sprintf("%s/%dx%d", kind, of.conns, of.streams), func(b *testing.B) {
				addr, cpu := startBench(b, kind)
				warm := load.Options{Addr: addr, Conns: of.conns, Streams: of.streams, Requests: 2000}
				if _, err := load.Run(b.Context(), load.Put{}, warm); err != nil {
					b.Fatal(err)
				}
				b.ResetTimer()
				r, err := load.Run(b.Context(), load.Put{}, load.Options{
					Addr: addr, Conns: of.conns, Streams: of.streams, Requests: int64(b.N), Meter: cpu,
				})
				if err != nil {
					b.Fatal(err)
				}
				if err := r.Err(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(r.PerRequest(r.ServerCPU))/1e3, "server-µs/call")
				b.ReportMetric(float64(r.Latency.Quantile(0.5))/1e3, "p50-µs")
				b.ReportMetric(float64(r.Latency.Quantile(0.99))/1e3, "p99-µs")
			})
		}
	}
}

func startBench(b *testing.B, kind string) (addr string, cpu func() (time.Duration, error)) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	server := exec.Command(self)
	server.Env = append(os.Environ(), "GOMAXPROCS=1", benchServer+"="+kind)
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line), func() (time.Duration, error) { return processCPU(server.Process.Pid) }
}

// processCPU reads the scheduler's count of nanoseconds of all threads, which
// is finer than the clock ticks of a process's times.
func processCPU(pid int) (time.Duration, error) {
	var total time.Duration
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, thread := range threads {
		text, err := os.ReadFile(dir + "/" + thread.Name() + "/schedstat")
		if err != nil {
			return 0, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}
