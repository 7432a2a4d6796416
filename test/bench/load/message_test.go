package load

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

func TestRequestsAreWhatTheGeneratedTypesRead(t *testing.T) {
	key, value := []byte("key"), bytes.Repeat([]byte("v"), 300)
	long := bytes.Repeat([]byte("k"), 20_000) // its length, and that of what holds it, takes three bytes

	for name, c := range map[string]struct {
		written []byte
		means   proto.Message
	}{
		"put":          {appendPut(nil, key, value), &etcdserverpb.PutRequest{Key: key, Value: value}},
		"put of empty": {appendPut(nil, key, nil), &etcdserverpb.PutRequest{Key: key}},
		"get":          {appendRange(nil, rangeRequest{key: key}), &etcdserverpb.RangeRequest{Key: key}},
		"page": {
			appendRange(nil, rangeRequest{key: key, end: value, limit: 1000, serializable: true}),
			&etcdserverpb.RangeRequest{Key: key, RangeEnd: value, Limit: 1000, Serializable: true},
		},
		"delete":         {appendDelete(nil, key), &etcdserverpb.DeleteRangeRequest{Key: key}},
		"compact":        {appendCompact(nil, 1<<40, true), &etcdserverpb.CompactionRequest{Revision: 1 << 40, Physical: true}},
		"put on a lease": {appendLeasedPut(nil, key, value, 1<<62), &etcdserverpb.PutRequest{Key: key, Value: value, Lease: 1 << 62}},
		"grant":          {appendGrant(nil, 7, 60), &etcdserverpb.LeaseGrantRequest{ID: 7, TTL: 60}},
		"keep-alive":     {appendKeepAlive(nil, 7), &etcdserverpb.LeaseKeepAliveRequest{ID: 7}},
		"watch": {
			appendWatch(nil, key, value, 300),
			&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{
				CreateRequest: &etcdserverpb.WatchCreateRequest{Key: key, RangeEnd: value, StartRevision: 300},
			}},
		},
		"txn of puts":        {appendPutIn(appendPutIn(nil, key, value), long, value), puts(key, value, long, value)},
		"txn":                {appendCompareAndPut(nil, key, value, 77), compareAndPut(key, value, 77)},
		"txn on missing key": {appendCompareAndPut(nil, key, value, 0), compareAndPut(key, value, 0)},
		"txn on long key":    {appendCompareAndPut(nil, long, value, 1<<60), compareAndPut(long, value, 1<<60)},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.means)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(c.written, want) {
				t.Errorf("wrote\n%x, want\n%x", c.written, want)
			}
			got := c.means.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(c.written, got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.means, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// puts is a transaction of puts of keys and values.
func puts(pairs ...[]byte) *etcdserverpb.TxnRequest {
	r := &etcdserverpb.TxnRequest{}
	for i := 0; i < len(pairs); i += 2 {
		put := &etcdserverpb.PutRequest{Key: pairs[i], Value: pairs[i+1]}
		r.Success = append(r.Success, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: put}})
	}
	return r
}

func compareAndPut(key, value []byte, modRevision int64) *etcdserverpb.TxnRequest {
	return &etcdserverpb.TxnRequest{
		Compare: []*etcdserverpb.Compare{{
			Target:      etcdserverpb.Compare_MOD,
			Key:         key,
			TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: modRevision},
		}},
		Success: []*etcdserverpb.RequestOp{{
			Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: key, Value: value}},
		}},
		Failure: []*etcdserverpb.RequestOp{{
			Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{Key: key}},
		}},
	}
}

func TestAnswersOfTheGeneratedTypesAreRead(t *testing.T) {
	header := &etcdserverpb.ResponseHeader{ClusterId: 1 << 63, MemberId: 2, Revision: 1 << 40, RaftTerm: 4}
	first := &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("first"), CreateRevision: 3, ModRevision: 5, Version: 2, Lease: 9}
	last := &mvccpb.KeyValue{Key: []byte("c"), Value: []byte("last"), CreateRevision: 4, ModRevision: 4, Version: 1}
	ranged := &etcdserverpb.RangeResponse{Header: header, Kvs: []*mvccpb.KeyValue{first, {}, last}, More: true, Count: 1 << 33}

	t.Run("put", func(t *testing.T) {
		got, err := readPut(marshal(t, &etcdserverpb.PutResponse{Header: header, PrevKv: first}))
		if err != nil || got.revision != 1<<40 {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("delete", func(t *testing.T) {
		got, err := readDelete(marshal(t, &etcdserverpb.DeleteRangeResponse{Header: header, Deleted: 7}))
		if err != nil || got.revision != 1<<40 || got.number != 7 {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("range", func(t *testing.T) {
		got, err := readRange(marshal(t, ranged))
		if err != nil || got.revision != 1<<40 || got.pairs != 3 || got.number != 1<<33 || !got.more {
			t.Fatalf("%+v, %v", got, err)
		}
		wantPair(t, got.first, first)
		wantPair(t, got.last, last)
	})
	t.Run("txn", func(t *testing.T) {
		got, err := readTxn(marshal(t, &etcdserverpb.TxnResponse{Header: header, Succeeded: true, Responses: []*etcdserverpb.ResponseOp{
			{Response: &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: ranged}},
			{Response: &etcdserverpb.ResponseOp_ResponsePut{ResponsePut: &etcdserverpb.PutResponse{}}},
		}}))
		if err != nil || got.revision != 1<<40 || !got.succeeded || got.responses != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
		inner, err := readRangeOp(got.firstResponse)
		if err != nil || inner.pairs != 3 {
			t.Fatalf("%+v, %v", inner, err)
		}
		wantPair(t, inner.first, first)
	})
}

func TestLeasesAndEventsAreRead(t *testing.T) {
	header := &etcdserverpb.ResponseHeader{Revision: 1 << 40}
	g, err := readGranted(marshal(t, &etcdserverpb.LeaseGrantResponse{Header: header, ID: 1 << 62, TTL: 60, Error: "no"}))
	if err != nil || g.id != 1<<62 || g.seconds != 60 || string(g.refusal) != "no" {
		t.Errorf("%+v, %v", g, err)
	}
	g, err = readGranted(marshal(t, &etcdserverpb.LeaseKeepAliveResponse{Header: header, ID: 5, TTL: 9}))
	if err != nil || g.id != 5 || g.seconds != 9 {
		t.Errorf("%+v, %v", g, err)
	}

	want := &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("v"), ModRevision: 5}
	message := marshal(t, &etcdserverpb.WatchResponse{Header: header, WatchId: 3, Created: true, Canceled: true, CancelReason: "why", Events: []*mvccpb.Event{
		{Kv: want, PrevKv: &mvccpb.KeyValue{Key: []byte("b")}}, {Type: mvccpb.Event_DELETE, Kv: want},
	}})
	seen := 0
	w, err := readTold(message, func(event []byte) error {
		p, err := readEvent(event)
		if seen++; err != nil || string(p.key) != "a" || string(p.value) != "v" || p.modRevision != 5 {
			t.Errorf("%+v, %v", p, err)
		}
		return nil
	})
	if err != nil || seen != 2 || w.events != 2 || !w.created || !w.canceled || string(w.reason) != "why" {
		t.Errorf("%+v, %d seen, %v", w, seen, err)
	}
}

func TestBrokenAnswersAreErrors(t *testing.T) {
	whole := marshal(t, &etcdserverpb.RangeResponse{
		Header: &etcdserverpb.ResponseHeader{Revision: 300},
		Kvs:    []*mvccpb.KeyValue{{Key: []byte("a"), Value: []byte("b")}},
	})
	// Cut between two fields it is a message still; cut elsewhere it is none.
	header := len(marshal(t, &etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{Revision: 300}}))
	for cut := 1; cut < len(whole); cut++ {
		if _, err := readRange(whole[:cut]); (err == nil) != (cut == header) {
			t.Errorf("cut at %d of %d: %v", cut, len(whole), err)
		}
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantPair(t *testing.T, encoded []byte, want *mvccpb.KeyValue) {
	t.Helper()
	p, err := readPair(encoded)
	if err != nil || !bytes.Equal(p.key, want.Key) || !bytes.Equal(p.value, want.Value) || p.modRevision != want.ModRevision {
		t.Errorf("pair %+v, %v; want %v", p, err, want)
	}
}
