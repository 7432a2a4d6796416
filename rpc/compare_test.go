package rpc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/rpc"
)

// told is everything that a client can see of a call's end.
func told(reply any, header, trailer metadata.MD, err error) string {
	var b strings.Builder
	st := status.Convert(err)
	fmt.Fprintf(&b, "%v %q", st.Code(), st.Message())
	for _, d := range st.Details() {
		fmt.Fprintf(&b, " %v", d)
	}
	fmt.Fprintf(&b, " header %v trailer %v reply %v", header, trailer, reply)
	return b.String()
}

// TestClientsCannotTell has grpc-go's client ask both servers the same, and
// wants the same to be seen.
func TestClientsCannotTell(t *testing.T) {
	const receiveMax, sendMax = 1 << 20, 2 << 20
	ours := rpc.New(rpc.Options{ReceiveBytesMax: receiveMax, SendBytesMax: sendMax})
	bytewise := rpc.New(rpc.Options{ReceiveBytesMax: receiveMax, SendBytesMax: sendMax})
	theirs := grpc.NewServer(grpc.MaxRecvMsgSize(receiveMax), grpc.MaxSendMsgSize(sendMax))
	conns := map[string]*grpc.ClientConn{}
	for name, s := range map[string]server{"rpc": ours, "rpc in bytes": bytewise, "grpc-go": theirs} {
		serve := testService(&service{})
		if s == bytewise {
			serve = func(r grpc.ServiceRegistrar) { grpc_testing.RegisterTestServiceServer(r, inBytes{&service{}}) }
		}
		conns[name] = dial(t, start(t, s, serve),
			grpc.WithUserAgent("test"), grpc.WithAuthority("same"),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	}

	payload := func(n int) *grpc_testing.Payload { return &grpc_testing.Payload{Body: bytes.Repeat([]byte{7}, n)} }
	empty := func(ctx context.Context, c *grpc.ClientConn, options ...grpc.CallOption) string {
		var header, trailer metadata.MD
		options = append(options, grpc.Header(&header), grpc.Trailer(&trailer))
		reply, err := grpc_testing.NewTestServiceClient(c).EmptyCall(ctx, &grpc_testing.Empty{}, options...)
		return told(reply, header, trailer, err)
	}
	unary := func(ctx context.Context, c *grpc.ClientConn, r *grpc_testing.SimpleRequest, options ...grpc.CallOption) string {
		var header, trailer metadata.MD
		options = append(options, grpc.Header(&header), grpc.Trailer(&trailer))
		reply, err := grpc_testing.NewTestServiceClient(c).UnaryCall(ctx, r, options...)
		return told(fmt.Sprint(len(reply.GetPayload().GetBody()), bytes.Count(reply.GetPayload().GetBody(), []byte{7})), header, trailer, err)
	}
	duplexWith := func(ctx context.Context, c *grpc.ClientConn, options []grpc.CallOption, sizes ...int) string {
		stream, err := grpc_testing.NewTestServiceClient(c).FullDuplexCall(ctx, options...)
		if err != nil {
			return err.Error()
		}
		var got []int
		for _, n := range sizes {
			if stream.Send(&grpc_testing.StreamingOutputCallRequest{Payload: payload(n)}) != nil {
				break // why is told to who receives
			}
			var m *grpc_testing.StreamingOutputCallResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			got = append(got, len(m.Payload.Body))
		}
		if err == nil {
			stream.CloseSend()
			_, err = stream.Recv()
		}
		if err == io.EOF {
			err = nil
		}
		header, _ := stream.Header()
		return told(got, header, stream.Trailer(), err)
	}

	duplex := func(ctx context.Context, c *grpc.ClientConn, sizes ...int) string {
		return duplexWith(ctx, c, nil, sizes...)
	}

	for name, ask := range map[string]func(context.Context, *grpc.ClientConn) string{
		"empty": func(ctx context.Context, c *grpc.ClientConn) string { return empty(ctx, c) },
		"metadata": func(ctx context.Context, c *grpc.ClientConn) string {
			return empty(wants(ctx, "echo", "1", "x-a", "1", "x-a", "two, three", "x-raw-bin", "\x00\xff,\n", "x-raw-bin", "", "x-long", strings.Repeat("long", 1000)), c)
		},
		"metadata too long for a frame": func(ctx context.Context, c *grpc.ClientConn) string {
			return empty(wants(ctx, "echo", "1", "x-a", strings.Repeat("long", 12000)), c)
		},
		"header sent early": func(ctx context.Context, c *grpc.ClientConn) string {
			return empty(wants(ctx, "echo", "1", "send-header", "1", "x-a", "1"), c)
		},
		"error after header": func(ctx context.Context, c *grpc.ClientConn) string {
			return empty(wants(ctx, "echo", "1", "fail", "text", "x-a", "1"), c)
		},
		"plain error": func(ctx context.Context, c *grpc.ClientConn) string { return empty(wants(ctx, "fail", "plain"), c) },
		"context's error": func(ctx context.Context, c *grpc.ClientConn) string {
			return empty(wants(ctx, "fail", "deadline"), c)
		},
		"text":    func(ctx context.Context, c *grpc.ClientConn) string { return empty(wants(ctx, "fail", "text"), c) },
		"details": func(ctx context.Context, c *grpc.ClientConn) string { return empty(wants(ctx, "fail", "details"), c) },
		"gzip": func(ctx context.Context, c *grpc.ClientConn) string {
			return unary(ctx, c, &grpc_testing.SimpleRequest{Payload: payload(100_000)}, grpc.UseCompressor(gzip.Name))
		},
		"gzip of nothing": func(ctx context.Context, c *grpc.ClientConn) string {
			return empty(ctx, c, grpc.UseCompressor(gzip.Name))
		},
		"gzip of too much": func(ctx context.Context, c *grpc.ClientConn) string {
			return unary(ctx, c, &grpc_testing.SimpleRequest{Payload: payload(receiveMax + 1)}, grpc.UseCompressor(gzip.Name))
		},
		"large": func(ctx context.Context, c *grpc.ClientConn) string {
			return unary(ctx, c, &grpc_testing.SimpleRequest{Payload: payload(receiveMax - 100)})
		},
		"too large": func(ctx context.Context, c *grpc.ClientConn) string {
			return unary(ctx, c, &grpc_testing.SimpleRequest{Payload: payload(receiveMax)})
		},
		"large answer": func(ctx context.Context, c *grpc.ClientConn) string {
			return unary(ctx, c, &grpc_testing.SimpleRequest{ResponseSize: sendMax - 100})
		},
		"too large answer": func(ctx context.Context, c *grpc.ClientConn) string {
			return unary(ctx, c, &grpc_testing.SimpleRequest{ResponseSize: sendMax})
		},
		"unknown service": func(ctx context.Context, c *grpc.ClientConn) string {
			return told(nil, nil, nil, c.Invoke(ctx, "/no.Such/Call", &grpc_testing.Empty{}, &grpc_testing.Empty{}))
		},
		"unknown method": func(ctx context.Context, c *grpc.ClientConn) string {
			return told(nil, nil, nil, c.Invoke(ctx, "/grpc.testing.TestService/Nothing", &grpc_testing.Empty{}, &grpc_testing.Empty{}))
		},
		"not implemented": func(ctx context.Context, c *grpc.ClientConn) string {
			_, err := grpc_testing.NewTestServiceClient(c).UnimplementedCall(ctx, &grpc_testing.Empty{})
			return told(nil, nil, nil, err)
		},
		"malformed method": func(ctx context.Context, c *grpc.ClientConn) string {
			return told(nil, nil, nil, c.Invoke(ctx, "/nothing", &grpc_testing.Empty{}, &grpc_testing.Empty{}))
		},
		"garbage": func(ctx context.Context, c *grpc.ClientConn) string {
			return told(nil, nil, nil, c.Invoke(ctx, grpc_testing.TestService_UnaryCall_FullMethodName, []byte("\xff\xff"), &grpc_testing.Empty{}, grpc.ForceCodec(raw{})))
		},
		"server stream": func(ctx context.Context, c *grpc.ClientConn) string {
			stream, err := grpc_testing.NewTestServiceClient(c).StreamingOutputCall(wants(ctx, "echo", "1", "x-a", "b"), &grpc_testing.StreamingOutputCallRequest{
				ResponseParameters: []*grpc_testing.ResponseParameters{{Size: 1}, {Size: 200_000}, {Size: 0}, {Size: 1_000_000}},
			})
			if err != nil {
				return err.Error()
			}
			var got []int
			for {
				m, err := stream.Recv()
				if err != nil {
					header, _ := stream.Header()
					return told(fmt.Sprint(got, err), header, stream.Trailer(), nil)
				}
				got = append(got, len(m.Payload.Body))
			}
		},
		"client stream": func(ctx context.Context, c *grpc.ClientConn) string {
			stream, err := grpc_testing.NewTestServiceClient(c).StreamingInputCall(ctx)
			if err != nil {
				return err.Error()
			}
			for _, n := range []int{1, 0, 200_000, 900_000, 3} {
				if err := stream.Send(&grpc_testing.StreamingInputCallRequest{Payload: payload(n)}); err != nil {
					return err.Error()
				}
			}
			reply, err := stream.CloseAndRecv()
			return told(reply, nil, stream.Trailer(), err)
		},
		"duplex":               func(ctx context.Context, c *grpc.ClientConn) string { return duplex(ctx, c, 1, 0, 300_000, 5) },
		"duplex without words": func(ctx context.Context, c *grpc.ClientConn) string { return duplex(ctx, c) },
		"duplex too large":     func(ctx context.Context, c *grpc.ClientConn) string { return duplex(ctx, c, 1, receiveMax+1) },
		"duplex compressed": func(ctx context.Context, c *grpc.ClientConn) string {
			return duplexWith(ctx, c, []grpc.CallOption{grpc.UseCompressor(gzip.Name)}, 1, 0, 300_000, 5)
		},
		"duplex that fails": func(ctx context.Context, c *grpc.ClientConn) string {
			return duplex(wants(ctx, "fail", "details", "echo", "1", "x-a", "b"), c, 1, 2)
		},
		"no deadline left": func(ctx context.Context, c *grpc.ClientConn) string {
			ctx, cancel := context.WithTimeout(ctx, time.Nanosecond)
			defer cancel()
			return empty(ctx, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := within(t, patience)
			want := ask(ctx, conns["grpc-go"])
			for _, name := range []string{"rpc", "rpc in bytes"} {
				if got := ask(ctx, conns[name]); got != want {
					t.Errorf("%s: %.2000s\ngrpc-go: %.2000s", name, got, want)
				}
			}
		})
	}
}

// raw sends bytes as they are, under the name of protobuf.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { return nil }
func (raw) Name() string                    { return "proto" }
