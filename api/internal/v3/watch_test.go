package v3

import (
	"context"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// FuzzWatch sends requests as they come and holds the answers against what a
// client may rely on: a watcher is created before it is told anything, and told
// nothing once it is canceled.
func FuzzWatch(f *testing.F) {
	seed := func(all ...*pb.WatchRequest) {
		var b []byte
		for _, q := range all {
			encoded, err := proto.Marshal(q)
			if err != nil {
				f.Fatal(err)
			}
			b = protowire.AppendBytes(b, encoded)
		}
		f.Add(b)
	}
	create := func(r *pb.WatchCreateRequest) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
	}
	cancel := func(id int64) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
	}
	progress := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	seed(progress, create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1, PrevKv: true}), progress, cancel(0), cancel(0))
	seed(create(&pb.WatchCreateRequest{RangeEnd: []byte{0}, StartRevision: 1}), create(&pb.WatchCreateRequest{Key: []byte("b"), StartRevision: 50}), progress)
	seed(create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 7}), create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 7}), cancel(-1))
	seed(create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")}), create(&pb.WatchCreateRequest{StartRevision: -1}), &pb.WatchRequest{})
	seed(create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), StartRevision: 3, Filters: []pb.WatchCreateRequest_FilterType{0, 1, 9}, Fragment: true, ProgressNotify: true}))

	machine, err := state.Open(state.Options{Memory: state.NewMemory()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { machine.Close() })
	if err := machine.Bootstrap(state.Genesis{Cluster: 1, Index: 1, Term: 1}); err != nil {
		f.Fatal(err)
	}
	hub := watch.New(watch.Options{View: machine.View})
	apply := func(kind state.Kind, request proto.Message) {
		command, err := state.Command{Kind: kind, Request: request}.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		index, _ := machine.Applied()
		outcomes, err := machine.Apply([]state.Entry{{Index: index + 1, Term: 1, Commands: [][]byte{command}}})
		if err != nil {
			f.Fatal(err)
		}
		hub.Publish(outcomes, machine.View().Revision)
	}
	for _, key := range []string{"a", "b", "a", "c", "a"} {
		apply(state.Put, &pb.PutRequest{Key: []byte(key)})
	}
	apply(state.Compact, &pb.CompactionRequest{Revision: 3})

	f.Fuzz(func(t *testing.T, b []byte) {
		stream := hub.Open()
		defer stream.Close()
		// Nobody waits here: what is not there now does not come any more.
		impatient, cancel := context.WithCancel(t.Context())
		cancel()
		told := map[int64]bool{}
		drain := func() {
			for {
				m, err := stream.Next(impatient)
				if errors.Is(err, context.Canceled) {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				switch {
				case m.ID == watch.NoID && m.Created && m.Canceled, m.ID == watch.NoID && m.Progress():
				case m.Created:
					if told[m.ID] || m.Canceled {
						t.Fatalf("created again: %+v", m)
					}
					told[m.ID] = true
				case m.Canceled:
					delete(told, m.ID)
				case !told[m.ID]:
					t.Fatalf("not created: %+v", m)
				}
			}
		}
		for len(b) > 0 {
			encoded, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			b = b[n:]
			q := new(pb.WatchRequest)
			if proto.Unmarshal(encoded, q) != nil {
				continue
			}
			if err := request(impatient, q, stream); err != nil {
				t.Fatal(err)
			}
			drain()
		}
	})
}
