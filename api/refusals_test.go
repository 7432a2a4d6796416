package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
)

func (m *member) kv() pb.KVClient                   { return pb.NewKVClient(m.conn) }
func (m *member) maintenance() pb.MaintenanceClient { return pb.NewMaintenanceClient(m.conn) }

func put(key, value string) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(key), Value: []byte(value)}
}

func get(key string) *pb.RangeRequest { return &pb.RangeRequest{Key: []byte(key)} }

func wantFault(t *testing.T, err error, want *fault.Fault) {
	t.Helper()
	if got := status.Convert(err); got.Code() != codes.Code(want.Code) || got.Message() != want.Text {
		t.Errorf("got %v %q, want %v %q", got.Code(), got.Message(), codes.Code(want.Code), want.Text)
	}
}

func TestEveryRefusalKeepsItsCodeAndText(t *testing.T) {
	m := newMember(t, Options{})
	for _, f := range fault.All {
		m.set(func(s *sequencer) {
			s.mu.propose = fmt.Errorf("replica: propose: %w", f)
			s.mu.barrier = fmt.Errorf("replica: barrier: %w", f)
		})
		_, err := m.kv().Put(t.Context(), put("a", "1"))
		wantFault(t, err, f)
		_, err = m.kv().Range(t.Context(), get("a"))
		wantFault(t, err, f)
	}
}

func TestAMemberWithoutLeader(t *testing.T) {
	m := newMember(t, Options{})
	m.set(func(s *sequencer) { s.mu.status.Leader = 0 })

	// Only who asks for a leader is refused.
	local := &pb.RangeRequest{Key: []byte("a"), Serializable: true}
	if _, err := m.kv().Range(t.Context(), local); err != nil {
		t.Error(err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "hasleader", "true")
	_, err := m.kv().Range(ctx, local)
	wantFault(t, err, fault.NoLeader)
	stream, err := m.kv().RangeStream(ctx, local)
	if err == nil {
		_, err = stream.Recv()
	}
	wantFault(t, err, fault.NoLeader)

	resp, err := m.maintenance().Status(t.Context(), &pb.StatusRequest{})
	if err != nil || len(resp.Errors) != 1 || resp.Errors[0] != fault.NoLeader.Text {
		t.Errorf("%v %v", resp, err)
	}
	_, err = m.maintenance().MoveLeader(t.Context(), &pb.MoveLeaderRequest{TargetID: self})
	wantFault(t, err, fault.NotLeader)
	wantHTTP(t, m.url+"/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}`+"\n")
	wantHTTP(t, m.url+"/health?serializable=true", 200, `{"health":"true","reason":""}`)
}

func TestALearner(t *testing.T) {
	m := newMember(t, Options{})
	m.set(func(s *sequencer) { s.mu.status.Learner = true })

	if _, err := m.kv().Range(t.Context(), &pb.RangeRequest{Key: []byte("a"), Serializable: true}); err != nil {
		t.Error(err)
	}
	if _, err := m.maintenance().Status(t.Context(), &pb.StatusRequest{}); err != nil {
		t.Error(err)
	}
	_, err := m.kv().Range(t.Context(), get("a"))
	wantFault(t, err, fault.LearnerUnsupported)
	_, err = m.kv().Put(t.Context(), put("a", "1"))
	wantFault(t, err, fault.LearnerUnsupported)
	stream, err := m.kv().RangeStream(t.Context(), get("a"))
	if err == nil {
		_, err = stream.Recv()
	}
	wantFault(t, err, fault.LearnerUnsupported)
	wantHTTP(t, m.url+"/readyz/non_learner", 503, "[-]non_learner failed: not supported for learner\n\n")
}

func TestTimeRunsOut(t *testing.T) {
	m := newMember(t, Options{RequestTimeout: 20 * time.Millisecond})
	hold := make(chan struct{})
	m.set(func(s *sequencer) { s.mu.hold = hold })

	_, err := m.kv().Put(t.Context(), put("a", "1"))
	wantFault(t, err, fault.Timeout)
	_, err = m.kv().Range(t.Context(), get("a"))
	wantFault(t, err, fault.Timeout)
	if _, err := m.kv().Range(t.Context(), &pb.RangeRequest{Key: []byte("a"), Serializable: true}); err != nil {
		t.Errorf("a read that needs nobody else: %v", err)
	}
	wantHTTP(t, m.url+"/readyz", 503, "[+]data_corruption ok\n[+]serializable_read ok\n"+
		"[-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n")
	wantHTTP(t, m.url+"/health", 503, `{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}`+"\n")

	close(hold)
	m.set(func(s *sequencer) { s.mu.hold = nil })
	if _, err := m.kv().Put(t.Context(), put("a", "1")); err != nil {
		t.Error(err)
	}
}

func TestAClientGivesUp(t *testing.T) {
	m := newMember(t, Options{})
	m.set(func(s *sequencer) { s.mu.hold = make(chan struct{}) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.kv().Range(ctx, get("a")); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := m.kv().Put(ctx, put("a", "1")); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
}

func TestWhatIsTooLarge(t *testing.T) {
	m := newMember(t, Options{RequestBytesMax: 1000, TxnOpsMax: 3})
	_, err := m.kv().Put(t.Context(), put("a", strings.Repeat("x", 1000)))
	wantFault(t, err, fault.RequestTooLarge)
	if _, err := m.kv().Put(t.Context(), put("a", strings.Repeat("x", 900))); err != nil {
		t.Error(err)
	}

	_, err = m.kv().Put(t.Context(), put("a", strings.Repeat("x", 600<<10)))
	if s := status.Convert(err); s.Code() != codes.ResourceExhausted || !strings.Contains(s.Message(), "received message larger than max (") {
		t.Errorf("beyond the largest message: %v", err)
	}

	op := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: get("a")}}
	_, err = m.kv().Txn(t.Context(), &pb.TxnRequest{Success: []*pb.RequestOp{op, op, op, op}})
	wantFault(t, err, fault.TooManyOps)

	// Not over a connection: it would be closed with some of this unread, which
	// may take the answer back.
	w := httptest.NewRecorder()
	m.http.ServeHTTP(w, httptest.NewRequest("POST", "/v3/kv/put", strings.NewReader(`{"key":"`+strings.Repeat("YQ==", 1<<20)+`"}`)))
	const want = `{"error":"etcdserver: request is too large","code":3,"message":"etcdserver: request is too large"}`
	if w.Code != 400 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestAFullDisk(t *testing.T) {
	m := newMember(t, Options{QuotaBytes: 1 << 20})
	if _, err := m.kv().Put(t.Context(), put("a", "1")); err != nil {
		t.Fatal(err)
	}
	m.set(func(s *sequencer) { s.mu.size = 1 << 20 })
	_, err := m.kv().Put(t.Context(), put("b", "1"))
	wantFault(t, err, fault.NoSpace)

	// The alarm is everybody's, and stays when there is room again.
	alarms, err := m.maintenance().Alarm(t.Context(), &pb.AlarmRequest{})
	if err != nil || len(alarms.Alarms) != 1 || alarms.Alarms[0].MemberID != self || alarms.Alarms[0].Alarm != pb.AlarmType_NOSPACE {
		t.Fatalf("%v %v", alarms, err)
	}
	m.set(func(s *sequencer) { s.mu.size = 0 })
	_, err = m.kv().Put(t.Context(), put("b", "1"))
	wantFault(t, err, fault.NoSpace)
	_, err = m.kv().Txn(t.Context(), &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put("b", "1")}}}})
	wantFault(t, err, fault.NoSpace)

	// The way out.
	if _, err := m.kv().DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
		t.Error(err)
	}
	if _, err := m.kv().Compact(t.Context(), &pb.CompactionRequest{Revision: 3, Physical: true}); err != nil {
		t.Error(err)
	}
	if _, err := m.maintenance().Defragment(t.Context(), &pb.DefragmentRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := m.maintenance().Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: self, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		t.Error(err)
	}
	if _, err := m.kv().Put(t.Context(), put("b", "1")); err != nil {
		t.Error(err)
	}
}

func TestNoQuota(t *testing.T) {
	m := newMember(t, Options{QuotaBytes: -1})
	m.set(func(s *sequencer) { s.mu.size = 1 << 50 })
	if _, err := m.kv().Put(t.Context(), put("a", "1")); err != nil {
		t.Error(err)
	}
}

// Whatever is sent, the answer is an error and the member goes on.
func TestBadInput(t *testing.T) {
	m := newMember(t, Options{})

	claim := metadata.AppendToOutgoingContext(t.Context(), "client-api-version", "3.7\xff")
	if _, err := m.kv().Range(claim, get("a")); err == nil {
		t.Error("a version that is not text was taken")
	}
	for _, c := range []struct {
		method string
		bytes  []byte
		want   codes.Code
	}{
		{"/etcdserverpb.KV/Nope", nil, codes.Unimplemented},
		{"/nope.Nope/Nope", nil, codes.Unimplemented},
		{"/etcdserverpb.KV/Put", []byte{0x0a, 0xff}, codes.Internal},
		{"/etcdserverpb.KV/Put", []byte{0xff}, codes.Internal},
		{"/etcdserverpb.KV/Put", nil, codes.InvalidArgument},
		{"/etcdserverpb.KV/Txn", []byte{0x12, 0x00}, codes.InvalidArgument},                                                     // an operation without anything in it
		{"/etcdserverpb.KV/Txn", []byte{0x12, 0x02, 0x12, 0x00}, codes.InvalidArgument},                                         // a put without key
		{"/etcdserverpb.KV/Txn", []byte{0x0a, 0x00}, codes.InvalidArgument},                                                     // a compare without key
		{"/etcdserverpb.Maintenance/Alarm", []byte{0x08, 0x07}, codes.InvalidArgument},                                          // action 7
		{"/etcdserverpb.Maintenance/Alarm", []byte{0x08, 0x01, 0x18, 0x63}, codes.OK},                                           // alarm 99
		{"/etcdserverpb.KV/Range", []byte{0x0a, 0x01, 0x61, 0x28, 0x7f}, codes.InvalidArgument},                                 // order 127
		{"/etcdserverpb.KV/Range", append([]byte{0x0a, 0x01, 0x61}, bytes.Repeat([]byte{0xfa, 0x07, 0x00}, 1000)...), codes.OK}, // unknown fields
	} {
		var out raw
		err := m.conn.Invoke(t.Context(), c.method, raw(c.bytes), &out, grpc.ForceCodec(rawCodec{}))
		if status.Code(err) != c.want {
			t.Errorf("%s %x: %v, want %v", c.method, c.bytes, err, c.want)
		}
	}
	if _, err := m.kv().Put(t.Context(), put("a", "1")); err != nil {
		t.Error(err)
	}
}

// raw is a message that is sent and received as bytes.
type raw []byte

type rawCodec struct{}

func (rawCodec) Name() string                  { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error) { return v.(raw), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*raw) = bytes.Clone(data)
	return nil
}

func TestWhatIsNotThereSaysSo(t *testing.T) {
	m := newMember(t, Options{})
	_, downgrade := m.maintenance().Downgrade(t.Context(), &pb.DowngradeRequest{})
	_, enable := pb.NewAuthClient(m.conn).AuthEnable(t.Context(), &pb.AuthEnableRequest{})
	stream, snapshot := m.maintenance().Snapshot(t.Context(), &pb.SnapshotRequest{})
	if snapshot == nil {
		_, snapshot = stream.Recv()
	}
	for name, err := range map[string]error{"downgrade": downgrade, "enable": enable, "snapshot": snapshot} {
		if s := status.Convert(err); s.Code() != codes.Unimplemented || !strings.HasPrefix(s.Message(), "kvorum: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A stream's error has a shape of its own in JSON.
	resp, err := http.Post(m.url+"/v3/maintenance/snapshot", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	const want = `{"error":{"code":12,"message":"kvorum: snapshots cannot be downloaded in this version"}}` + "\n"
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 501 || string(body) != want {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestHealthService(t *testing.T) {
	m := newMember(t, Options{})
	health := grpc_health_v1.NewHealthClient(m.conn)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := health.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	now, err := stream.Recv()
	if err != nil || now.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%v %v", now, err)
	}
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
}

func wantHTTP(t *testing.T, url string, code int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != code || string(got) != body {
		t.Errorf("%s: %d %q %v, want %d %q", url, resp.StatusCode, got, err, code, body)
	}
}
