package api

import (
	"context"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/rpc"
)

// direct takes what is registered with it, to be called without a wire.
type direct map[string]func(context.Context, []byte) ([]byte, error)

func (s direct) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, m := range desc.Methods {
		s["/"+desc.ServiceName+"/"+m.MethodName] = func(ctx context.Context, in []byte) ([]byte, error) {
			answer, err := m.Handler(impl, ctx, func(q any) error { return proto.Unmarshal(in, q.(proto.Message)) }, nil)
			if err != nil {
				return nil, err
			}
			return proto.MarshalOptions{Deterministic: true}.Marshal(answer.(proto.Message))
		}
	}
}

func (s direct) Fast(path string, f rpc.Fast) {
	s[path] = func(ctx context.Context, in []byte) ([]byte, error) {
		party := f.Together.New()
		defer party.Free()
		switch out, then, err := f.Now(ctx, party, in, nil); then {
		case rpc.Answered:
			return out, err
		case rpc.Joined:
			done := make(chan struct{})
			party.Begin(func(int) { close(done) }, func() { close(done) })
			<-done
			return party.Answer(0, nil)
		}
		return f.Handle(ctx, in, nil)
	}
}

// TestFastMethodsAnswerAsTheOthers asks two members the same, one through the
// methods from bytes to bytes.
func TestFastMethodsAnswerAsTheOthers(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	options := Options{TxnOpsMax: 3, RequestBytesMax: 300}
	plain, fast := direct{}, direct{}
	a, b := newSequencer(t), newSequencer(t)
	New(options, a).Register(plain)
	hurried := New(options, b)
	hurried.Register(fast)
	hurried.RegisterFast(fast)

	key := func() []byte {
		if r.IntN(30) == 0 {
			return nil
		}
		return []byte{'a' + byte(r.IntN(4))}
	}
	flag := func() bool { return r.IntN(3) == 0 }
	number := func() int64 { return []int64{0, 0, 0, 1, 2, 5, 1 << 40, -1}[r.IntN(8)] }
	get := func() *pb.RangeRequest {
		q := &pb.RangeRequest{Key: key(), Limit: number(), Revision: number(), Serializable: flag(), KeysOnly: flag(), CountOnly: flag(),
			SortOrder: pb.RangeRequest_SortOrder(r.IntN(4)), SortTarget: pb.RangeRequest_SortTarget(r.IntN(5)), MinModRevision: number()}
		if flag() {
			q.RangeEnd = []byte{0}
		}
		return q
	}
	put := func() *pb.PutRequest {
		return &pb.PutRequest{Key: key(), Value: make([]byte, r.IntN(150)), PrevKv: flag(), IgnoreValue: r.IntN(20) == 0, Lease: number() % 2}
	}
	del := func() *pb.DeleteRangeRequest {
		return &pb.DeleteRangeRequest{Key: key(), RangeEnd: key(), PrevKv: flag()}
	}
	ops := func() (all []*pb.RequestOp) {
		for range r.IntN(4) {
			switch r.IntN(3) {
			case 0:
				all = append(all, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: get()}})
			case 1:
				all = append(all, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put()}})
			case 2:
				all = append(all, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: del()}})
			}
		}
		return all
	}
	refused, answered := 0, 0
	for range 3000 {
		var path string
		var q proto.Message
		switch r.IntN(6) {
		case 0, 1:
			path, q = pb.KV_Range_FullMethodName, get()
		case 2, 3:
			path, q = pb.KV_Put_FullMethodName, put()
		case 4:
			path, q = pb.KV_DeleteRange_FullMethodName, del()
		case 5:
			compare := &pb.Compare{Key: key(), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: number()}}
			path, q = pb.KV_Txn_FullMethodName, &pb.TxnRequest{Compare: []*pb.Compare{compare}, Success: ops(), Failure: ops()}
		}
		in, err := proto.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		want, wantErr := plain[path](t.Context(), in)
		got, gotErr := fast[path](t.Context(), in)
		if status.Code(gotErr) != status.Code(wantErr) || status.Convert(gotErr).Message() != status.Convert(wantErr).Message() {
			t.Fatalf("seed %d: %s %v: %v, want %v", seed, path, q, gotErr, wantErr)
		}
		if wantErr != nil {
			refused++
			continue
		}
		answered++
		answer := answerOf(path)
		other := answerOf(path)
		if err := proto.Unmarshal(want, answer); err != nil {
			t.Fatal(err)
		}
		if err := proto.Unmarshal(got, other); err != nil || !proto.Equal(answer, other) {
			t.Fatalf("seed %d: %s %v: %v (%v), want %v", seed, path, q, other, err, answer)
		}
	}
	if refused < 100 || answered < 1000 {
		t.Errorf("seed %d: %d refused, %d answered", seed, refused, answered)
	}
}

func answerOf(path string) proto.Message {
	switch path {
	case pb.KV_Range_FullMethodName:
		return new(pb.RangeResponse)
	case pb.KV_Put_FullMethodName:
		return new(pb.PutResponse)
	case pb.KV_DeleteRange_FullMethodName:
		return new(pb.DeleteRangeResponse)
	}
	return new(pb.TxnResponse)
}

// TestFastMethodsRefuseWhatIsNoMessage in the words of grpc.
func TestFastMethodsRefuseWhatIsNoMessage(t *testing.T) {
	methods := direct{}
	New(Options{}, newSequencer(t)).RegisterFast(methods)
	if len(methods) != 4 {
		t.Errorf("%d methods", len(methods))
	}
	for path, call := range methods {
		_, err := call(t.Context(), []byte{0x0a})
		if got := status.Convert(err).Message(); got != "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data" &&
			got != "grpc: error unmarshalling request: proto:\u00a0cannot parse invalid wire-format data" {
			t.Errorf("%s: %v", path, err)
		}
	}
}
