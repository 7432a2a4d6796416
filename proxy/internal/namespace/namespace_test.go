package namespace

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/electionpb"
	"github.com/kvorum/kvorum/internal/lockpb"
)

func TestIntervals(t *testing.T) {
	for _, c := range []struct{ prefix, key, end, inKey, inEnd string }{
		{"p/", "a", "", "p/a", ""},
		{"p/", "a", "b", "p/a", "p/b"},
		{"p/", "a", "\x00", "p/a", "p0"},
		{"p/", "\x00", "\x00", "p/\x00", "p0"},
		{"p\xff", "a", "\x00", "p\xffa", "q"},
		{"\xff\xff", "a", "\x00", "\xff\xffa", "\x00"},
	} {
		key, end := Prefix(c.prefix).In([]byte(c.key), []byte(c.end))
		if string(key) != c.inKey || string(end) != c.inEnd {
			t.Errorf("%q: [%q, %q) became [%q, %q), want [%q, %q)", c.prefix, c.key, c.end, key, end, c.inKey, c.inEnd)
		}
	}
}

func put(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func get(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func remove(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func txn(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

// nested is a transaction of all that there is, with keys below a prefix.
func nested(p, open string) *pb.TxnRequest {
	inner := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte(p + "c"), RangeEnd: []byte(open)}},
		Success: []*pb.RequestOp{put(p + "a"), get(p+"a", p+"b")},
		Failure: []*pb.RequestOp{remove(p+"a", open)},
	}
	return &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(p + "d")}}, Success: []*pb.RequestOp{txn(inner)}, Failure: []*pb.RequestOp{get(p+"\x00", open)}}
}

func TestRequests(t *testing.T) {
	for _, c := range []struct{ asked, want proto.Message }{
		{&pb.RangeRequest{Key: []byte("a"), Limit: 3}, &pb.RangeRequest{Key: []byte("n/a"), Limit: 3}},
		{&pb.PutRequest{Key: []byte("a"), Value: []byte("v")}, &pb.PutRequest{Key: []byte("n/a"), Value: []byte("v")}},
		{nested("", "\x00"), nested("n/", "n0")},
		{&pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{RangeEnd: []byte{0}}},
			&pb.AuthRoleGrantPermissionRequest{Name: "r", Perm: &authpb.Permission{Key: []byte("n/"), RangeEnd: []byte("n0")}}},
		{&lockpb.LockRequest{Name: []byte("l")}, &lockpb.LockRequest{Name: []byte("n/l")}},
		{&electionpb.ResignRequest{Leader: &electionpb.LeaderKey{Name: []byte("e"), Key: []byte("e/1")}},
			&electionpb.ResignRequest{Leader: &electionpb.LeaderKey{Name: []byte("n/e"), Key: []byte("n/e/1")}}},
	} {
		if !Touches(c.asked) {
			t.Errorf("%T is not touched", c.asked)
		}
		got := proto.Clone(c.asked)
		if err := Prefix("n/").Request(got); err != nil {
			t.Errorf("%v: %v", c.asked, err)
		}
		if diff := cmp.Diff(c.want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%T (-want +got):\n%s", c.asked, diff)
		}
		unchanged := proto.Clone(c.asked)
		if err := Prefix("").Request(unchanged); err != nil || !proto.Equal(unchanged, c.asked) {
			t.Errorf("without a namespace %v became %v, %v", c.asked, unchanged, err)
		}
	}
	// Without a key, the prefix would become one.
	for _, r := range []proto.Message{
		&pb.RangeRequest{}, &pb.PutRequest{}, &pb.DeleteRangeRequest{RangeEnd: []byte{0}},
		&pb.TxnRequest{Compare: []*pb.Compare{{}}},
		&pb.TxnRequest{Success: []*pb.RequestOp{txn(&pb.TxnRequest{Failure: []*pb.RequestOp{put("")}})}},
	} {
		if err := Prefix("n/").Request(r); !errors.Is(err, fault.EmptyKey) {
			t.Errorf("%v: %v", r, err)
		}
	}
	if err := Prefix("n/").Request(&pb.SnapshotRequest{}); err != SnapshotRefused {
		t.Errorf("a snapshot: %v", err)
	}
	w := &pb.WatchCreateRequest{RangeEnd: []byte{0}}
	if Prefix("n/").Watch(w); string(w.Key) != "n/\x00" || string(w.RangeEnd) != "n0" {
		t.Errorf("all keys: [%q, %q)", w.Key, w.RangeEnd)
	}
}

func TestAnswersTellOfTheNamespaceAlone(t *testing.T) {
	n := Prefix("n/")
	l := &pb.LeaseTimeToLiveResponse{Keys: [][]byte{[]byte("n/a"), []byte("other/a"), []byte("n/b")}}
	n.Answer(l)
	if string(bytes.Join(l.Keys, []byte(" "))) != "a b" {
		t.Errorf("keys %q", l.Keys)
	}
	r := &pb.AuthRoleGetResponse{Perm: []*authpb.Permission{
		{Key: []byte("n/a")}, {Key: []byte("a")}, {Key: []byte("n/a"), RangeEnd: []byte("n/c")},
		{Key: []byte("n/"), RangeEnd: []byte("n0")}, {Key: []byte("n/"), RangeEnd: []byte("z")},
	}}
	n.Answer(r)
	want := []*authpb.Permission{{Key: []byte("a")}, {Key: []byte("a"), RangeEnd: []byte("c")}, {Key: []byte{}, RangeEnd: []byte{0}}}
	if diff := cmp.Diff(want, r.Perm, protocmp.Transform()); diff != "" {
		t.Errorf("permissions (-want +got):\n%s", diff)
	}
}

// FuzzNamespace has two stores answer, one that holds the namespace alone and
// one in which it is a part: nobody can tell them apart, and nothing outside is
// reached.
func FuzzNamespace(f *testing.F) {
	f.Add("p/", []byte("a"), []byte("b"), []byte("ab"))
	f.Add("\xff", []byte("a"), []byte{0}, []byte{0xff, 0xff})
	f.Add("p\xff\xff", []byte{0}, []byte{0}, []byte("p\xff\xffx"))
	f.Add("p", []byte("b"), []byte("a"), []byte("c"))
	f.Fuzz(func(t *testing.T, prefix string, key, end, probe []byte) {
		p := Prefix(prefix)
		if prefix == "" || len(key) == 0 {
			return
		}
		r := &pb.DeleteRangeRequest{Key: bytes.Clone(key), RangeEnd: bytes.Clone(end)}
		if err := p.Request(r); err != nil {
			t.Fatal(err)
		}
		inside := append([]byte(prefix), probe...)
		if has(key, end, probe) != has(r.Key, r.RangeEnd, inside) {
			t.Errorf("%q: [%q, %q) and %q are not as [%q, %q) and %q", prefix, key, end, probe, r.Key, r.RangeEnd, inside)
		}
		if has(r.Key, r.RangeEnd, probe) && !bytes.HasPrefix(probe, []byte(prefix)) {
			t.Errorf("%q: [%q, %q) reaches %q", prefix, r.Key, r.RangeEnd, probe)
		}
		answer := &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{{Key: inside}}}
		if p.Answer(answer); !bytes.Equal(answer.Kvs[0].Key, probe) {
			t.Errorf("%q came back as %q", probe, answer.Kvs[0].Key)
		}
	})
}

// has tells whether an interval holds a key.
func has(key, end, probe []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(key, probe)
	case bytes.Equal(end, []byte{0}):
		return bytes.Compare(probe, key) >= 0
	}
	return bytes.Compare(probe, key) >= 0 && bytes.Compare(probe, end) < 0
}
