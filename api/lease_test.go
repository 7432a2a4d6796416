package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
)

func (m *member) lease() pb.LeaseClient { return pb.NewLeaseClient(m.conn) }

func (m *member) grant(t *testing.T, id, ttl int64) *pb.LeaseGrantResponse {
	t.Helper()
	r, err := m.lease().LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: id, TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLeasesAreGranted(t *testing.T) {
	m := newMember(t, Options{LeaseSecondsMin: 3})
	for _, c := range []struct{ ask, get int64 }{{10, 10}, {3, 3}, {2, 3}, {0, 3}, {-10, 3}, {9_000_000_000, 9_000_000_000}} {
		if r := m.grant(t, 0, c.ask); r.TTL != c.get || r.ID <= 0 {
			t.Errorf("asked for %d seconds: %v", c.ask, r)
		}
	}
	if r := m.grant(t, 7, 5); r.ID != 7 || r.Header.Revision != 1 || r.Header.MemberId != self {
		t.Errorf("got %v", r)
	}
	_, err := m.lease().LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 7, TTL: 5})
	wantFault(t, err, fault.LeaseExists)
	for _, ttl := range []int64{9_000_000_001, 1<<63 - 1} {
		_, err = m.lease().LeaseGrant(t.Context(), &pb.LeaseGrantRequest{TTL: ttl})
		wantFault(t, err, fault.LeaseTTLTooLarge)
	}
}

func TestKeysHangOnLeases(t *testing.T) {
	m := newMember(t, Options{})
	m.grant(t, 7, 60)
	hang := func(key string, lease int64) error {
		_, err := m.kv().Put(t.Context(), &pb.PutRequest{Key: []byte(key), Lease: lease})
		return err
	}
	if err := hang("b", 7); err != nil {
		t.Fatal(err)
	}
	if err := hang("a", 7); err != nil {
		t.Fatal(err)
	}
	wantFault(t, hang("c", 8), fault.LeaseNotFound)

	r, err := m.lease().LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true})
	if err != nil || r.TTL != 60 || r.GrantedTTL != 60 || !slices.EqualFunc(r.Keys, []string{"a", "b"}, func(k []byte, s string) bool { return string(k) == s }) {
		t.Errorf("%v, %v", r, err)
	}
	r, err = m.lease().LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 7})
	if err != nil || r.TTL != 60 || len(r.Keys) > 0 {
		t.Errorf("%v, %v", r, err)
	}

	revoked, err := m.lease().LeaseRevoke(t.Context(), &pb.LeaseRevokeRequest{ID: 7})
	if err != nil || revoked.Header.Revision != 4 {
		t.Errorf("%v, %v", revoked, err)
	}
	_, err = m.lease().LeaseRevoke(t.Context(), &pb.LeaseRevokeRequest{ID: 7})
	wantFault(t, err, fault.LeaseNotFound)
	wantFault(t, hang("a", 7), fault.LeaseNotFound)
	r, err = m.lease().LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true})
	want := &pb.LeaseTimeToLiveResponse{Header: revoked.Header, ID: 7, TTL: -1}
	if err != nil || !proto.Equal(r, want) {
		t.Errorf("%v, %v", r, err)
	}
	got, err := m.kv().Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil || got.Count != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestLeasesAreListed(t *testing.T) {
	m := newMember(t, Options{})
	for _, id := range []int64{5, -3, 9} {
		m.grant(t, id, 60)
	}
	r, err := m.lease().LeaseLeases(t.Context(), &pb.LeaseLeasesRequest{})
	var ids []int64
	for _, l := range r.GetLeases() {
		ids = append(ids, l.ID)
	}
	if err != nil || !slices.Equal(ids, []int64{-3, 5, 9}) {
		t.Errorf("%v, %v", r, err)
	}
}

// TestKeepAlives renews many leases on one stream without waiting for answers.
func TestKeepAlives(t *testing.T) {
	m := newMember(t, Options{})
	for id := range int64(2500) {
		m.grant(t, id+1, 10+id)
	}
	stream, err := m.lease().LeaseKeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const n = 2502 // the last two do not exist
	for id := range int64(n) {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id + 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for id := range int64(n) {
		want := 10 + id
		if id >= 2500 {
			want = 0
		}
		r, err := stream.Recv()
		if err != nil || r.ID != id+1 || r.TTL != want || r.Header.Revision != 1 {
			t.Fatalf("lease %d: %v, %v", id+1, r, err)
		}
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestKeepAlivesEnd(t *testing.T) {
	m := newMember(t, Options{RequestTimeout: 50 * time.Millisecond})
	m.grant(t, 7, 60)
	begin := func(ctx context.Context) pb.Lease_LeaseKeepAliveClient {
		stream, err := m.lease().LeaseKeepAlive(ctx)
		if err == nil {
			err = stream.Send(&pb.LeaseKeepAliveRequest{ID: 7})
		}
		if err != nil && err != io.EOF { // then the stream has ended already, and Recv knows why
			t.Fatal(err)
		}
		return stream
	}

	// Without an answer of the leader the stream fails.
	m.set(func(s *sequencer) { s.mu.hold = make(chan struct{}) })
	_, err := begin(t.Context()).Recv()
	wantFault(t, err, fault.Timeout)
	_, err = m.lease().LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 7})
	wantFault(t, err, fault.Timeout)
	m.set(func(s *sequencer) { s.mu.hold = nil })

	// One that its client leaves ends too, or the server would not stop.
	ctx, cancel := context.WithCancel(t.Context())
	stream := begin(ctx)
	if _, err := stream.Recv(); err != nil {
		t.Error(err)
	}
	cancel()
	if _, err := stream.Recv(); err == nil {
		t.Error("an answer that nobody asked for")
	}

	m.set(func(s *sequencer) { s.mu.status.Learner = true })
	_, err = begin(t.Context()).Recv()
	wantFault(t, err, fault.LearnerUnsupported)
}

// TestLeasesTakeSpace fills the disk with leases.
func TestLeasesTakeSpace(t *testing.T) {
	m := newMember(t, Options{QuotaBytes: 20 << 10})
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		_, err = m.lease().LeaseGrant(t.Context(), &pb.LeaseGrantRequest{TTL: 60})
	}
	wantFault(t, err, fault.NoSpace)
	if n < 10 {
		t.Errorf("%d leases fill 4 KiB", n)
	}
	list, err := m.lease().LeaseLeases(t.Context(), &pb.LeaseLeasesRequest{})
	if err != nil || len(list.Leases) != n-1 {
		t.Fatalf("%d leases of %d, %v", len(list.GetLeases()), n-1, err)
	}
	if _, err := m.lease().LeaseRevoke(t.Context(), &pb.LeaseRevokeRequest{ID: list.Leases[0].ID}); err != nil {
		t.Error("the way out is barred:", err)
	}
}

// TestLeasesOverJSON asks by all the paths that clients of any age know.
func TestLeasesOverJSON(t *testing.T) {
	m := newMember(t, Options{})
	header := fmt.Sprintf(`"header":{"cluster_id":"193","member_id":"%d","revision":"1","raft_term":"2"}`, self)
	for _, c := range []struct{ path, ask, want string }{
		{"/v3/lease/grant", `{"ID":"7","TTL":"60"}`, `{` + header + `,"ID":"7","TTL":"60"}`},
		{"/v3/lease/keepalive", `{"ID":"7"}{"ID":"8"}`, `{"result":{` + header + `,"ID":"7","TTL":"60"}}` + "\n" + `{"result":{` + header + `,"ID":"8"}}` + "\n"},
		{"/v3/lease/timetolive", `{"ID":"7","keys":true}`, `{` + header + `,"ID":"7","TTL":"60","grantedTTL":"60"}`},
		{"/v3/kv/lease/timetolive", `{"ID":7}`, `{` + header + `,"ID":"7","TTL":"60","grantedTTL":"60"}`},
		{"/v3/lease/leases", `{}`, `{` + header + `,"leases":[{"ID":"7"}]}`},
		{"/v3/kv/lease/leases", ``, `{` + header + `,"leases":[{"ID":"7"}]}`},
		{"/v3/kv/lease/revoke", `{"ID":"7"}`, `{` + header + `}`},
		{"/v3/lease/revoke", `{"ID":"7"}`, `{"error":"etcdserver: requested lease not found","code":5,"message":"etcdserver: requested lease not found"}`},
	} {
		if got := post(t, m.url+c.path, c.ask); got != c.want {
			t.Errorf("%s %s:\ngot  %s\nwant %s", c.path, c.ask, got, c.want)
		}
	}
}

func post(t *testing.T, url, body string) string {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}
