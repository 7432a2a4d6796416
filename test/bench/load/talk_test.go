package load

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// talker answers the calls that go on, as its test wants.
type talker struct {
	etcdserverpb.UnimplementedWatchServer
	etcdserverpb.UnimplementedLeaseServer
	watch func(etcdserverpb.Watch_WatchServer) error
	keep  func(etcdserverpb.Lease_LeaseKeepAliveServer) error
}

func (s *talker) Watch(stream etcdserverpb.Watch_WatchServer) error { return s.watch(stream) }

func (s *talker) LeaseKeepAlive(stream etcdserverpb.Lease_LeaseKeepAliveServer) error {
	return s.keep(stream)
}

func (s *talker) serve(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterWatchServer(server, s)
	etcdserverpb.RegisterLeaseServer(server, s)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func TestWatchersAreReadyAndCountWhatTheyAreTold(t *testing.T) {
	const watchers, messages, each = 3, 50, 20
	spans := make(chan string, 100)
	value := make([]byte, 700) // so that messages span frames
	server := &talker{watch: func(stream etcdserverpb.Watch_WatchServer) error {
		for range watchers {
			q, err := stream.Recv()
			if err != nil {
				return err
			}
			r := q.GetCreateRequest()
			spans <- fmt.Sprintf("%s-%s", r.Key, r.RangeEnd)
			if err := stream.Send(&etcdserverpb.WatchResponse{Created: true}); err != nil {
				return err
			}
		}
		event := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("a"), Value: value}}
		for range messages {
			m := &etcdserverpb.WatchResponse{}
			for range each {
				m.Events = append(m.Events, event)
			}
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		<-stream.Context().Done()
		return nil
	}}
	keys := Keys{Count: 60}
	talking, err := Begin(t.Context(), Watch{Watchers: watchers, Span: func(i int) ([]byte, []byte) { return keys.Part(i, 6) }}, Options{Addr: server.serve(t), Conns: 2})
	if err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return talking.Told() >= 2*messages*each })
	if result := talking.End(); result.Errors > 0 || talking.Told() != 2*messages*each {
		t.Errorf("%d told, %v", talking.Told(), result.FirstError)
	}
	seen := map[string]bool{}
	for range 2 * watchers {
		seen[<-spans] = true
	}
	if len(seen) != 2*watchers {
		t.Errorf("spans %v", seen)
	}
}

// await waits for what only a count tells.
func await(t *testing.T, done func() bool) {
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("it does not come")
			return
		}
	}
}

func TestCanceledWatcherIsAnError(t *testing.T) {
	server := &talker{watch: func(stream etcdserverpb.Watch_WatchServer) error {
		if err := stream.Send(&etcdserverpb.WatchResponse{Created: true, Canceled: true, CancelReason: "not today"}); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}}
	_, err := Begin(t.Context(), Watch{Span: func(int) ([]byte, []byte) { return []byte("a"), nil }}, Options{Addr: server.serve(t)})
	if err == nil || !strings.Contains(err.Error(), "not today") {
		t.Error(err)
	}
}

func TestKeepAlivesAreAnsweredInTurn(t *testing.T) {
	for name, spoil := range map[string]int64{"right": 0, "another lease": 1} {
		t.Run(name, func(t *testing.T) {
			var wrong atomic.Int64
			server := &talker{keep: func(stream etcdserverpb.Lease_LeaseKeepAliveServer) error {
				for {
					q, err := stream.Recv()
					if err != nil {
						return err
					}
					a := &etcdserverpb.LeaseKeepAliveResponse{ID: q.ID + wrong.Load(), TTL: 5}
					if err := stream.Send(a); err != nil {
						return err
					}
				}
			}}
			talking, err := Begin(t.Context(), KeepAlive{Leases: 50, AtATime: 7}, Options{Addr: server.serve(t), Conns: 3})
			if err != nil {
				t.Fatal(err)
			}
			limit, enough := context.WithCancel(t.Context())
			go func() {
				defer enough()
				await(t, talking.run.measuring.Load)
				if wrong.Store(spoil); spoil != 0 {
					talking.loops.Wait() // each hangs up
					return
				}
				before := talking.Told()
				await(t, func() bool { return talking.Told() > before+1000 })
			}()
			if err := talking.Measure(limit, time.Minute); err != nil {
				t.Fatal(err)
			}
			result := talking.End()
			if wrong := result.Errors > 0; wrong != (spoil != 0) {
				t.Errorf("%d wrong: %v", result.Errors, result.FirstError)
			}
			if spoil == 0 && (result.Requests == 0 || result.Latency.Count() != result.Requests) {
				t.Errorf("%d answered, %d timed", result.Requests, result.Latency.Count())
			}
		})
	}
}

func TestPartsHoldEveryKeyOnce(t *testing.T) {
	keys := Keys{Count: 103}
	_, last := keys.Part(0, 1)
	for parts := 1; parts < 20; parts++ {
		next := string(keys.Key(0))
		for i := range parts {
			from, end := keys.Part(i, parts)
			if string(from) != next {
				t.Fatalf("part %d of %d begins at %s, the one before ends at %s", i, parts, from, next)
			}
			next = string(end)
		}
		if next != string(last) {
			t.Errorf("%d parts end at %s", parts, next)
		}
	}
}

func TestStampedValueTellsWhenItWasMade(t *testing.T) {
	before := time.Now()
	value := stampedValue(nil, 256, (&run{}).random(1))
	if made := stamped(value); len(value) != 256 || made.Before(before) || made.After(time.Now()) {
		t.Errorf("%d bytes made at %v, between %v and now", len(value), made, before)
	}
}
