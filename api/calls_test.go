package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// TestPiecesMakeTheWhole streams more than fits one piece, while another
// writes and compacts: the pieces are of one revision, and together they are
// what Range answers.
func TestPiecesMakeTheWhole(t *testing.T) {
	m := newMember(t, Options{RequestBytesMax: 4096})
	for i := range 300 {
		if _, err := m.kv().Put(t.Context(), put(fmt.Sprintf("k%03d", i), strings.Repeat("v", i))); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []*pb.RangeRequest{
		{Key: []byte("k"), RangeEnd: []byte("l")},
		{Key: []byte{0}, RangeEnd: []byte{0}, KeysOnly: true},
		{Key: []byte("k1"), RangeEnd: []byte("l"), Limit: 57},
		{Key: []byte("k"), RangeEnd: []byte("l"), Revision: 100},
		{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 10},
		{Key: []byte("k299")},
	} {
		want, err := m.kv().Range(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := m.kv().RangeStream(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		got := &pb.RangeResponse{}
		var sizes []int
		for {
			piece, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, len(piece.RangeResponse.Kvs))
			if size := proto.Size(piece); size > 3*m.options.RequestBytesMax {
				t.Errorf("a piece of %d bytes", size)
			}
			if got.Header != nil {
				t.Error("a header before the last piece")
			}
			proto.Merge(got, piece.RangeResponse)
			if got.Header == nil {
				if _, err := m.kv().Put(t.Context(), put("k000x", "new")); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !proto.Equal(got, want) {
			t.Errorf("%v: %d pairs in pieces %v, want %d", r, len(got.Kvs), sizes, len(want.Kvs))
		}
		if len(want.Kvs) > 20 && (sizes[0] != 10 || len(sizes) < 3) {
			t.Errorf("%v: pieces %v", r, sizes)
		}
	}
}

func TestCallsAreCounted(t *testing.T) {
	m := newMember(t, Options{Metrics: NewMetrics(true)})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "client-api-version", "3.7.3")
	for range 3 {
		if _, err := m.kv().Put(ctx, put("a", "1")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.kv().Put(ctx, &pb.PutRequest{}); err == nil {
		t.Fatal("a put without key was taken")
	}
	if _, err := m.kv().Range(ctx, get("a")); err != nil {
		t.Fatal(err)
	}
	stream, err := m.kv().RangeStream(ctx, get("a"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}

	// A client may hear the end of a stream before the server has counted it.
	text := waitFor(t, m.url+"/metrics", `grpc_server_handled_total{grpc_code="OK",grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 1`)
	lines := strings.Split(text, "\n")
	for _, want := range []string{
		`grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 4`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 3`,
		`grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
		`grpc_server_msg_received_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 4`,
		`grpc_server_msg_sent_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 3`,
		`grpc_server_handled_total{grpc_code="Unavailable",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 0`,
		`grpc_server_started_total{grpc_method="Watch",grpc_service="grpc.health.v1.Health",grpc_type="server_stream"} 0`,
		`grpc_server_msg_received_total{grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 1`,
		`grpc_server_msg_sent_total{grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"} 1`,
		`grpc_server_handling_seconds_count{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 4`,
		`etcd_server_client_requests_total{client_api_version="3.7.3",type="unary"} 5`,
		`etcd_server_client_requests_total{client_api_version="3.7.3",type="stream"} 1`,
		`etcd_server_request_duration_seconds_count{success="true",type="Put"} 3`,
		`etcd_server_range_duration_seconds_count{success="true"} 2`,
		`etcd_debugging_mvcc_keys_total 1`,
		`etcd_debugging_mvcc_current_revision 4`,
		`etcd_server_has_leader 1`,
		`etcd_server_quota_backend_bytes 2.147483648e+09`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("missing: %s", want)
		}
	}
}

// waitFor returns the page once it has the line.
func waitFor(t *testing.T, url, line string) string {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(body), line+"\n") {
			return string(body)
		}
		if time.Now().After(deadline) {
			t.Fatalf("no line %s", line)
		}
	}
}

func TestMonitoringHasItsOwnPort(t *testing.T) {
	m := newMember(t, Options{})
	monitoring := m.api.Monitoring()
	for path, want := range map[string]int{
		"/metrics": 200, "/health": 200, "/livez": 200, "/readyz": 200, "/readyz/non_learner": 200,
		"/version": 404, "/v3/kv/range": 404, "/debug/vars": 404,
	} {
		if got := ask(monitoring, path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	all, _, err := New(Options{Pprof: true, NoGateway: true}, m.sequencer).HTTP(m.conn)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/debug/pprof/": 200, "/debug/vars": 200, "/v3/kv/range": 404} {
		if got := ask(all, path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

func TestSlowCallsAreLogged(t *testing.T) {
	var log lockedBuffer
	m := newMember(t, Options{SlowRequest: time.Nanosecond, Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	if _, err := m.kv().Put(t.Context(), put("a", "secret")); err != nil {
		t.Fatal(err)
	}
	line := log.String()
	for _, want := range []string{`"msg":"request stats"`, `"response type":"/etcdserverpb.KV/Put"`, `"request size":`, `value_size:6`, `"remote":"127.0.0.1:`} {
		if !strings.Contains(line, want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
	if strings.Contains(line, "secret") {
		t.Errorf("a value was logged: %s", line)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func ask(h http.Handler, path string) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code
}
