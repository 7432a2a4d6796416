package api

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc/metadata"

	"github.com/kvorum/kvorum/fault"
)

// watching opens a stream of watches that ends with the test.
func (m *member) watching(t *testing.T, meta ...string) pb.Watch_WatchClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), meta...), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := pb.NewWatchClient(m.conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// create makes a watcher of everything from a revision on.
func create(t *testing.T, stream pb.Watch_WatchClient, from int64) {
	t.Helper()
	err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: from,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if r := receive(t, stream); !r.Created || r.Canceled {
		t.Fatalf("asked for a watcher, got %v", r)
	}
}

func receive(t *testing.T, stream pb.Watch_WatchClient) *pb.WatchResponse {
	t.Helper()
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (m *member) put(t *testing.T, key, value string) {
	t.Helper()
	if _, err := m.kv().Put(t.Context(), put(key, value)); err != nil {
		t.Fatal(err)
	}
}

func TestAWatchEndsWithoutALeader(t *testing.T) {
	m := newMember(t, Options{LeaderTimeout: 30 * time.Millisecond})
	wants, endures := m.watching(t, "hasleader", "true"), m.watching(t)
	create(t, wants, 0)
	create(t, endures, 0)
	m.set(func(s *sequencer) { s.mu.status.Leader = 0 })

	_, err := wants.Recv()
	wantFault(t, err, fault.NoLeader)
	m.put(t, "a", "1")
	if r := receive(t, endures); len(r.Events) != 1 {
		t.Errorf("who does not care for a leader hears %v", r)
	}
	_, err = m.watching(t, "hasleader", "true").Recv()
	wantFault(t, err, fault.NoLeader)
}

func TestAWatchEndsWithTheServer(t *testing.T) {
	m := newMember(t, Options{})
	stream := m.watching(t)
	create(t, stream, 0)
	m.hub.Close()
	_, err := stream.Recv()
	wantFault(t, err, fault.Stopped)
	_, err = m.watching(t).Recv()
	wantFault(t, err, fault.Stopped)
}

// A client that goes leaves nothing behind, however it goes.
func TestAClosedWatchLeavesNothing(t *testing.T) {
	m := newMember(t, Options{})
	m.put(t, "warm", "up")
	before := goleak.IgnoreCurrent()
	for range 20 {
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "hasleader", "true"))
		stream, err := pb.NewWatchClient(m.conn).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		create(t, stream, 1)
		receive(t, stream)
		cancel()
		if _, err := stream.Recv(); err == nil {
			t.Error("a canceled stream goes on")
		}
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
	for _, line := range []string{
		"etcd_debugging_mvcc_watch_stream_total 0", "etcd_debugging_mvcc_watcher_total 0", "etcd_debugging_mvcc_slow_watcher_total 0",
		"etcd_debugging_mvcc_pending_events_total 0", "etcd_debugging_mvcc_events_total 20",
	} {
		waitFor(t, m.url+"/metrics", line)
	}
	waitFor(t, m.url+"/metrics", `grpc_server_handled_total{grpc_code="Canceled",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 20`)
}

// A client that does not read makes nobody else wait, and finds everything when
// it reads at last.
func TestAWatchThatIsNotRead(t *testing.T) {
	m := newMember(t, Options{})
	slow, quick := m.watching(t), m.watching(t)
	create(t, slow, 0)
	create(t, quick, 0)
	const puts = 300
	value := string(bytes.Repeat([]byte("v"), 50_000))
	for i := range puts {
		m.put(t, fmt.Sprint("k", i%7), value)
		if r := receive(t, quick); len(r.Events) != 1 || r.Header.Revision != int64(i+2) {
			t.Fatalf("the quick one hears %d events at %d of put %d", len(r.Events), r.Header.Revision, i)
		}
	}
	next := int64(2)
	for next < puts+2 {
		for _, e := range receive(t, slow).Events {
			if e.Kv.ModRevision != next || len(e.Kv.Value) != len(value) {
				t.Fatalf("the slow one hears of %d, not of %d", e.Kv.ModRevision, next)
			}
			next++
		}
	}
}

// What is sent is encoded by hand; a client decodes it as etcd's messages.
func TestEventsAreThoseOfTheAPI(t *testing.T) {
	m := newMember(t, Options{RequestBytesMax: 20_000})
	ctx := t.Context()
	for i := range 100 {
		m.put(t, fmt.Sprintf("k%02d", i), string(bytes.Repeat([]byte{byte(i)}, 10_000)))
	}
	if _, err := m.kv().DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}); err != nil {
		t.Fatal(err)
	}
	before, err := m.kv().Range(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Revision: 101})
	if err != nil {
		t.Fatal(err)
	}
	for _, fragments := range []bool{true, false} {
		stream := m.watching(t)
		err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 102, PrevKv: true, Fragment: fragments,
		}}})
		if err != nil {
			t.Fatal(err)
		}
		receive(t, stream)
		var got []string
		answers := 0
		for more := true; more; answers++ {
			r := receive(t, stream)
			more = r.Fragment
			for _, e := range r.Events {
				if e.Type != mvccpb.Event_DELETE || len(e.Kv.Value) > 0 || e.Kv.ModRevision != 102 {
					t.Fatal(e)
				}
				got = append(got, e.PrevKv.String())
			}
		}
		var want []string
		for _, kv := range before.Kvs {
			want = append(want, kv.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("fragments %v: %d deletions, want %d of what was there before", fragments, len(got), len(want))
		}
		if fragments != (answers > 1) {
			t.Errorf("fragments %v: %d answers", fragments, answers)
		}
	}
}
