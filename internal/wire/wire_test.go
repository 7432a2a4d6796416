package wire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// decoders are told apart by the first byte of an input.
var decoders = []struct {
	empty  func() proto.Message
	decode func([]byte, proto.Message) bool
}{
	{func() proto.Message { return new(pb.RangeRequest) }, func(b []byte, m proto.Message) bool { return Range(b, m.(*pb.RangeRequest)) }},
	{func() proto.Message { return new(pb.PutRequest) }, func(b []byte, m proto.Message) bool { return Put(b, m.(*pb.PutRequest)) }},
	{func() proto.Message { return new(pb.DeleteRangeRequest) }, func(b []byte, m proto.Message) bool { return DeleteRange(b, m.(*pb.DeleteRangeRequest)) }},
	{func() proto.Message { return new(pb.TxnRequest) }, func(b []byte, m proto.Message) bool { return Txn(b, m.(*pb.TxnRequest)) }},
	{func() proto.Message { return new(pb.WatchRequest) }, func(b []byte, m proto.Message) bool { return Watch(b, m.(*pb.WatchRequest)) }},
	{func() proto.Message { return new(pb.LeaseKeepAliveRequest) }, func(b []byte, m proto.Message) bool { return KeepAlive(b, m.(*pb.LeaseKeepAliveRequest)) }},
}

// checkDecode compares what this package and package proto say about b.
func checkDecode(t *testing.T, which int, b []byte) {
	t.Helper()
	d := decoders[which%len(decoders)]
	got, want := d.empty(), d.empty()
	ok, err := d.decode(b, got), proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, want)
	if ok != (err == nil) {
		t.Fatalf("%T of %x: decoded %v, package proto says %v", got, b, ok, err)
	}
	if ok && !proto.Equal(got, want) {
		t.Fatalf("%T of %x: %v, want %v", got, b, got, want)
	}
}

func FuzzDecode(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 50 {
		m := randomRequest(r, i, 3)
		b, _ := proto.Marshal(m)
		f.Add(i%len(decoders), b)
	}
	f.Fuzz(func(t *testing.T, which int, b []byte) { checkDecode(t, max(0, which), b) })
}

func TestDecodeSaysWhatPackageProtoSays(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	for i := range 20000 {
		b, err := proto.Marshal(randomRequest(r, i, 3))
		if err != nil {
			t.Fatal(err)
		}
		checkDecode(t, i, b)
		switch { // and what nearly is one
		case len(b) == 0:
		case i%3 == 0:
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		case i%3 == 1:
			b = b[:r.IntN(len(b))]
		default:
			b = append(b, b[r.IntN(len(b)):]...)
		}
		checkDecode(t, i, b)
	}
}

func TestHowDeepTransactionsNest(t *testing.T) {
	nest := func(inner []byte, levels int) []byte {
		for range levels {
			op := protowire.AppendBytes([]byte{4<<3 | 2}, inner)
			inner = protowire.AppendBytes([]byte{2<<3 | 2}, op)
		}
		return inner
	}
	get := protowire.AppendBytes([]byte{2<<3 | 2}, protowire.AppendBytes([]byte{1<<3 | 2}, nil))
	condition := protowire.AppendBytes([]byte{1<<3 | 2}, nil)
	for _, levels := range []int{4998, 4999, 5000, 5001} {
		for _, inner := range [][]byte{nil, get, condition} {
			b := nest(inner, levels)
			ok, err := Txn(b, new(pb.TxnRequest)), proto.Unmarshal(b, new(pb.TxnRequest))
			if ok != (err == nil) {
				t.Errorf("%d levels around %x: %v, package proto says %v", levels, inner, ok, err)
			}
		}
	}
}

func TestEncodeSaysWhatPackageProtoSays(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 2))
	for i := range 20000 {
		m := randomResponse(r, i, 3)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Append([]byte("before"), m)
		if err != nil || !bytes.Equal(got, append([]byte("before"), want...)) {
			t.Fatalf("seed %d: %T %v:\n got %x (%v)\nwant %x", seed, m, m, got[6:], err, want)
		}
	}
}

// Events whose pairs are encoded make the same answer as those that are not.
func TestEncodedEvents(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 3))
	encoded := func(m *mvccpb.KeyValue) []byte {
		if m == nil {
			return nil
		}
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for range 5000 {
		m := randomResponse(r, 5, 0).(*pb.WatchResponse)
		want, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		events := m.Events
		m.Events = nil
		got := AppendWatch(nil, m)
		for _, e := range events {
			pair, previous := encoded(e.Kv), encoded(e.PrevKv)
			before := len(got)
			got = AppendEvent(got, e.Type, pair, previous)
			if n := EventBytes(e.Type, pair, previous); n != len(got)-before {
				t.Fatalf("seed %d: %v takes %d bytes, not %d", seed, e, len(got)-before, n)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: %v:\n got %x\nwant %x", seed, m, got, want)
		}
	}
}

func random[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }

func number(r *rand.Rand) int64 { return random(r, 0, 1, -1, 127, 128, 1<<40, r.Int64()) }

func flag(r *rand.Rand) bool { return r.IntN(2) == 0 }

func text(r *rand.Rand) []byte {
	return bytes.Repeat([]byte{'x'}, random(r, 0, 1, 5, 100, 127, 128, 300, 20000))
}

func randomRequest(r *rand.Rand, kind, depth int) proto.Message {
	switch kind % len(decoders) {
	case 0:
		return randomRange(r)
	case 1:
		return randomPut(r)
	case 2:
		return randomDelete(r)
	case 3:
		return randomTxn(r, depth)
	case 4:
		return randomWatch(r)
	}
	return &pb.LeaseKeepAliveRequest{ID: number(r)}
}

func randomRange(r *rand.Rand) *pb.RangeRequest {
	return &pb.RangeRequest{
		Key: text(r), RangeEnd: text(r), Limit: number(r), Revision: number(r),
		SortOrder: pb.RangeRequest_SortOrder(number(r)), SortTarget: pb.RangeRequest_SortTarget(number(r)),
		Serializable: flag(r), KeysOnly: flag(r), CountOnly: flag(r),
		MinModRevision: number(r), MaxModRevision: number(r), MinCreateRevision: number(r), MaxCreateRevision: number(r),
	}
}

func randomPut(r *rand.Rand) *pb.PutRequest {
	return &pb.PutRequest{Key: text(r), Value: text(r), Lease: number(r), PrevKv: flag(r), IgnoreValue: flag(r), IgnoreLease: flag(r)}
}

func randomDelete(r *rand.Rand) *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: text(r), RangeEnd: text(r), PrevKv: flag(r)}
}

func randomTxn(r *rand.Rand, depth int) *pb.TxnRequest {
	m := new(pb.TxnRequest)
	for range r.IntN(3) {
		c := &pb.Compare{
			Result: pb.Compare_CompareResult(number(r)), Target: pb.Compare_CompareTarget(number(r)), Key: text(r), RangeEnd: text(r),
		}
		switch r.IntN(6) {
		case 0:
			c.TargetUnion = &pb.Compare_Version{Version: number(r)}
		case 1:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: number(r)}
		case 2:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: number(r)}
		case 3:
			c.TargetUnion = &pb.Compare_Value{Value: text(r)}
		case 4:
			c.TargetUnion = &pb.Compare_Lease{Lease: number(r)}
		}
		m.Compare = append(m.Compare, c)
	}
	for _, branch := range []*[]*pb.RequestOp{&m.Success, &m.Failure} {
		for range r.IntN(3) {
			op := new(pb.RequestOp)
			switch r.IntN(5) {
			case 0:
				op.Request = &pb.RequestOp_RequestRange{RequestRange: randomRange(r)}
			case 1:
				op.Request = &pb.RequestOp_RequestPut{RequestPut: randomPut(r)}
			case 2:
				op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: randomDelete(r)}
			case 3:
				if depth > 0 {
					op.Request = &pb.RequestOp_RequestTxn{RequestTxn: randomTxn(r, depth-1)}
				}
			}
			*branch = append(*branch, op)
		}
	}
	return m
}

func randomWatch(r *rand.Rand) *pb.WatchRequest {
	m := new(pb.WatchRequest)
	switch r.IntN(4) {
	case 0:
		m.RequestUnion = &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: number(r)}}
	case 1:
		m.RequestUnion = &pb.WatchRequest_ProgressRequest{ProgressRequest: new(pb.WatchProgressRequest)}
	case 2, 3:
		q := &pb.WatchCreateRequest{
			Key: text(r), RangeEnd: text(r), StartRevision: number(r), ProgressNotify: flag(r),
			PrevKv: flag(r), WatchId: number(r), Fragment: flag(r),
		}
		for range r.IntN(4) {
			q.Filters = append(q.Filters, pb.WatchCreateRequest_FilterType(number(r)))
		}
		m.RequestUnion = &pb.WatchRequest_CreateRequest{CreateRequest: q}
	}
	return m
}

func randomHeader(r *rand.Rand) *pb.ResponseHeader {
	if r.IntN(5) == 0 {
		return nil
	}
	return &pb.ResponseHeader{ClusterId: r.Uint64(), MemberId: uint64(number(r)), Revision: number(r), RaftTerm: uint64(number(r))}
}

func randomPair(r *rand.Rand) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: text(r), Value: text(r), CreateRevision: number(r), ModRevision: number(r), Version: number(r), Lease: number(r),
	}
}

func randomPairs(r *rand.Rand) (all []*mvccpb.KeyValue) {
	for range r.IntN(4) {
		all = append(all, randomPair(r))
	}
	return all
}

func randomResponse(r *rand.Rand, kind, depth int) proto.Message {
	switch kind % 7 {
	case 0:
		m := &pb.PutResponse{Header: randomHeader(r)}
		if flag(r) {
			m.PrevKv = randomPair(r)
		}
		return m
	case 1:
		return &pb.DeleteRangeResponse{Header: randomHeader(r), Deleted: number(r), PrevKvs: randomPairs(r)}
	case 2:
		return &pb.LeaseKeepAliveResponse{Header: randomHeader(r), ID: number(r), TTL: number(r)}
	case 3:
		return randomPut(r)
	case 4:
		m := &pb.RangeResponse{Header: randomHeader(r), Kvs: randomPairs(r), More: flag(r), Count: number(r)}
		if flag(r) {
			m.ProtoReflect().SetUnknown(protowire.AppendBytes([]byte{2<<3 | 2}, []byte("encoded before")))
		}
		return m
	case 5:
		m := &pb.WatchResponse{
			Header: randomHeader(r), WatchId: number(r), Created: flag(r), Canceled: flag(r),
			CompactRevision: number(r), CancelReason: string(text(r)), Fragment: flag(r),
		}
		for range r.IntN(4) {
			e := &mvccpb.Event{Type: mvccpb.Event_EventType(number(r)), Kv: randomPair(r)}
			if flag(r) {
				e.PrevKv = randomPair(r)
			}
			m.Events = append(m.Events, e)
		}
		return m
	}
	m := &pb.TxnResponse{Header: randomHeader(r), Succeeded: flag(r)}
	for range r.IntN(4) {
		op := new(pb.ResponseOp)
		switch r.IntN(5) {
		case 0:
			op.Response = &pb.ResponseOp_ResponseRange{ResponseRange: randomResponse(r, 4, 0).(*pb.RangeResponse)}
		case 1:
			op.Response = &pb.ResponseOp_ResponsePut{ResponsePut: randomResponse(r, 0, 0).(*pb.PutResponse)}
		case 2:
			op.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: randomResponse(r, 1, 0).(*pb.DeleteRangeResponse)}
		case 3:
			if depth > 0 {
				op.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: randomResponse(r, 6, depth-1).(*pb.TxnResponse)}
			}
		}
		m.Responses = append(m.Responses, op)
	}
	return m
}

func BenchmarkDecode(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	for i, d := range decoders {
		encoded, _ := proto.Marshal(randomRequest(r, i, 0))
		b.Run(fmt.Sprintf("%T", d.empty()), func(b *testing.B) {
			for b.Loop() {
				d.decode(encoded, d.empty())
			}
		})
		b.Run(fmt.Sprintf("%T/proto", d.empty()), func(b *testing.B) {
			for b.Loop() {
				proto.Unmarshal(encoded, d.empty())
			}
		})
	}
}
