package rpc_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/rpc"
)

// A handler of bytes hears everything in order, however it was cut and
// gathered on its way, and so does its client.
func TestManyMessagesAtOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	server := rpc.New(rpc.Options{})
	grpc_testing.RegisterTestServiceServer(server, inBytes{&service{}})
	client := grpc_testing.NewTestServiceClient(dial(t, start(t, server)))
	for name, options := range map[string][]grpc.CallOption{"plain": nil, "gzip": {grpc.UseCompressor(gzip.Name)}} {
		t.Run(name, func(t *testing.T) {
			const messages = 3000
			r := rand.New(rand.NewPCG(seed, 1))
			stream, err := client.FullDuplexCall(within(t, patience), options...)
			if err != nil {
				t.Fatal(err)
			}
			sizes := make([]int, messages)
			for i := range sizes {
				if sizes[i] = r.IntN(50); r.IntN(300) == 0 {
					sizes[i] = r.IntN(200_000)
				}
			}
			body := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, sizes[i]) }
			sent := make(chan error, 1)
			go func() {
				for i := range messages {
					if err := stream.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: body(i)}}); err != nil {
						sent <- fmt.Errorf("send %d: %w", i, err)
						return
					}
				}
				sent <- stream.CloseSend()
			}()
			for i := range messages {
				m, err := stream.Recv()
				if err != nil {
					t.Fatalf("receive %d: %v", i, err)
				}
				if !bytes.Equal(m.Payload.Body, body(i)) {
					t.Fatalf("message %d is another", i)
				}
			}
			if _, err := stream.Recv(); err != io.EOF {
				t.Error(err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

// other is protobuf under another name.
type other struct{ encoding.CodecV2 }

func (other) Name() string { return "other" }

// What is not protobuf is not for handlers of bytes.
func TestBytesAreProtobuf(t *testing.T) {
	codec := other{encoding.GetCodecV2("proto")}
	encoding.RegisterCodecV2(codec)
	server := rpc.New(rpc.Options{})
	grpc_testing.RegisterTestServiceServer(server, inBytes{&service{}})
	client := grpc_testing.NewTestServiceClient(dial(t, start(t, server)))
	stream, err := client.FullDuplexCall(within(t, patience), grpc.ForceCodecV2(codec))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_testing.StreamingOutputCallRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Internal {
		t.Error(err)
	}
}
