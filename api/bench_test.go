package api

import (
	"context"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// services collects what Register puts on a server, so that a benchmark can
// call a method without any transport.
type services map[string]func(ctx context.Context, request []byte) (proto.Message, error)

func (s services) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, method := range desc.Methods {
		s["/"+desc.ServiceName+"/"+method.MethodName] = func(ctx context.Context, request []byte) (proto.Message, error) {
			resp, err := method.Handler(impl, ctx, func(into any) error { return proto.Unmarshal(request, into.(proto.Message)) }, nil)
			if err != nil {
				return nil, err
			}
			return resp.(proto.Message), nil
		}
	}
}

// BenchmarkCall is what a call costs between its bytes and the bytes of its
// answer, with nothing to wait for.
func BenchmarkCall(b *testing.B) {
	sequencer := newSequencer(b)
	s := services{}
	New(Options{}, sequencer).Register(s)
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("client-api-version", "3.7.3", "hasleader", "true"))
	encode := func(m proto.Message) []byte {
		raw, err := proto.Marshal(m)
		if err != nil {
			b.Fatal(err)
		}
		return raw
	}
	for i := range 1000 {
		if _, err := s[pb.KV_Put_FullMethodName](ctx, encode(put(fmt.Sprintf("key%03d", i), string(make([]byte, 256))))); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, method string
		request      proto.Message
	}{
		{"put", pb.KV_Put_FullMethodName, put("key500", string(make([]byte, 256)))},
		{"get", pb.KV_Range_FullMethodName, get("key500")},
		{"get serializable", pb.KV_Range_FullMethodName, &pb.RangeRequest{Key: []byte("key500"), Serializable: true}},
		{"range of 1000", pb.KV_Range_FullMethodName, &pb.RangeRequest{Key: []byte("key"), RangeEnd: []byte("kez")}},
	} {
		b.Run(c.name, func(b *testing.B) {
			request := encode(c.request)
			b.ReportAllocs()
			var out []byte
			for b.Loop() {
				resp, err := s[c.method](ctx, request)
				if err == nil {
					out, err = proto.MarshalOptions{}.MarshalAppend(out[:0], resp)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
