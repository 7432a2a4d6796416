package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc/metadata"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/test/leak"
)

// idleWorkers wait for the next call.
var idleWorkers = goleak.IgnoreTopFunction("github.com/kvorum/kvorum/rpc.(*workers).work")

// watching opens a stream of watches that ends with the test.
func (m *member) watching(t *testing.T, meta ...string) pb.Watch_WatchClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), meta...), patience)
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
	nothingLeft := leak.Since(idleWorkers)
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
	nothingLeft(t)
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

// Over HTTP the answers of a stream are lines; a WebSocket can also ask on.
func TestWatchOverHTTP(t *testing.T) {
	m := newMember(t, Options{})
	if _, err := m.kv().Range(t.Context(), get("a")); err != nil { // the connection is up
		t.Fatal(err)
	}
	nothingLeft := leak.Since(idleWorkers)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url+"/v3/watch", strings.NewReader(`{"create_request":{"key":"YQ=="}}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)

	socket, _, err := websocket.Dial(ctx, m.url+"/v3/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(request string) {
		t.Helper()
		if err := socket.Write(ctx, websocket.MessageText, []byte(request)); err != nil {
			t.Fatal(err)
		}
	}
	next := map[string]func() string{
		"lines": func() string { lines.Scan(); return lines.Text() },
		"messages": func() string {
			_, message, err := socket.Read(ctx)
			if err != nil {
				t.Error(err)
			}
			return string(message)
		},
	}
	const head = `{"result":{"header":{"cluster_id":"193","member_id":"2748","revision":"%d","raft_term":"2"}`
	expect := func(how string, revision int, rest string) {
		t.Helper()
		if got, want := next[how](), fmt.Sprintf(head, revision)+rest; got != want {
			t.Errorf("%s:\n%s, want\n%s", how, got, want)
		}
	}
	ask(`{"create_request":{"key":"YQ=="}}`)
	for how := range next {
		expect(how, 1, `,"created":true}}`)
	}
	m.put(t, "a", "1")
	for how := range next {
		expect(how, 2, `,"events":[{"kv":{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1","value":"MQ=="}}]}}`)
	}
	ask(`{"progress_request":{}}`)
	expect("messages", 2, `,"watch_id":"-1"}}`)
	ask(`{"cancel_request":{"watch_id":"0"}}`)
	expect("messages", 2, `,"canceled":true}}`)

	m.hub.Close()
	for how, read := range next {
		const end = `{"error":{"code":14,"message":"etcdserver: server stopped"`
		if got := read(); !strings.HasPrefix(got, end) {
			t.Errorf("%s: at the end %s, want %s", how, got, end)
		}
	}
	if err := socket.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	nothingLeft(t)
}

// Browsers do not keep from a page what it receives over a WebSocket.
func TestAStrangersPageGetsNoWebSocket(t *testing.T) {
	m := newMember(t, Options{Origins: []string{"https://friend"}})
	for origin, let := range map[string]bool{"https://friend": true, "https://stranger": false, m.url: true, "": true} {
		header := http.Header{}
		if origin != "" {
			header.Set("Origin", origin)
		}
		socket, _, err := websocket.Dial(t.Context(), m.url+"/v3/watch", &websocket.DialOptions{HTTPHeader: header})
		if let != (err == nil) {
			t.Errorf("a page of %q: %v", origin, err)
		}
		if err == nil {
			socket.CloseNow()
		}
	}
}
