package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/kvorum/kvorum/listen"
	"github.com/kvorum/kvorum/rpc"
)

// service does what a call's metadata tells it to.
type service struct {
	grpc_testing.UnimplementedTestServiceServer
	entered chan string   // hears of calls that wait, if not nil
	release chan struct{} // what they wait for
}

// wish returns what the client's metadata says of name.
func wish(ctx context.Context, name string) string {
	return strings.Join(metadata.ValueFromIncomingContext(ctx, name), ",")
}

func (s *service) obey(ctx context.Context) error {
	if wish(ctx, "echo") != "" {
		header, trailer := metadata.MD{}, metadata.MD{}
		md, _ := metadata.FromIncomingContext(ctx)
		for name, values := range md {
			if strings.HasPrefix(name, "x-") {
				header["h"+name], trailer["t"+name] = values, values
			}
		}
		header["method"] = []string{grpc.ServerTransportStreamFromContext(ctx).Method()}
		header["agent"] = []string{fmt.Sprint(len(md["user-agent"]), md[":authority"], md["content-type"])}
		if err := grpc.SetHeader(ctx, header); err != nil {
			return err
		}
		if err := grpc.SetTrailer(ctx, trailer); err != nil {
			return err
		}
	}
	if wish(ctx, "send-header") != "" {
		if err := grpc.SendHeader(ctx, metadata.Pairs("sent", "early")); err != nil {
			return err
		}
		if err := grpc.SendHeader(ctx, nil); status.Code(err) != codes.Internal {
			return fmt.Errorf("second header: %w", err)
		}
		if err := grpc.SetHeader(ctx, metadata.Pairs("too", "late")); status.Code(err) != codes.Internal {
			return fmt.Errorf("late header: %w", err)
		}
	}
	switch wish(ctx, "fail") {
	case "plain":
		return errors.New("no status")
	case "deadline":
		return fmt.Errorf("wrapped: %w", context.DeadlineExceeded)
	case "text":
		return status.Error(codes.FailedPrecondition, "100% \n of tëxt \x7f\xff")
	case "details":
		st, err := status.New(codes.DataLoss, "see there").WithDetails(wrapperspb.String("détail"), wrapperspb.Int64(7))
		if err != nil {
			return err
		}
		return st.Err()
	}
	if wish(ctx, "stubborn") != "" {
		s.entered <- wish(ctx, "stubborn")
		<-s.release
	}
	if wish(ctx, "wait") != "" {
		s.entered <- wish(ctx, "wait")
		select {
		case <-s.release:
		case <-ctx.Done():
			s.entered <- ctx.Err().Error()
			return ctx.Err()
		}
	}
	return nil
}

func (s *service) EmptyCall(ctx context.Context, _ *grpc_testing.Empty) (*grpc_testing.Empty, error) {
	if err := s.obey(ctx); err != nil {
		return nil, err
	}
	return &grpc_testing.Empty{}, nil
}

func (s *service) UnaryCall(ctx context.Context, r *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	if err := s.obey(ctx); err != nil {
		return nil, err
	}
	if p, ok := peer.FromContext(ctx); !ok || p.Addr == nil || p.LocalAddr == nil {
		return nil, status.Error(codes.Internal, "no peer")
	}
	body := r.GetPayload().GetBody()
	if n := int(r.GetResponseSize()); n > 0 {
		body = make([]byte, n)
	}
	return &grpc_testing.SimpleResponse{Payload: &grpc_testing.Payload{Body: body}}, nil
}

func (s *service) StreamingOutputCall(r *grpc_testing.StreamingOutputCallRequest, stream grpc.ServerStreamingServer[grpc_testing.StreamingOutputCallResponse]) error {
	if err := s.obey(stream.Context()); err != nil {
		return err
	}
	for i, p := range r.ResponseParameters {
		body := slices.Repeat([]byte{byte(i)}, int(p.Size))
		if err := stream.Send(&grpc_testing.StreamingOutputCallResponse{Payload: &grpc_testing.Payload{Body: body}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) StreamingInputCall(stream grpc.ClientStreamingServer[grpc_testing.StreamingInputCallRequest, grpc_testing.StreamingInputCallResponse]) error {
	if err := s.obey(stream.Context()); err != nil {
		return err
	}
	var sum int32
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return stream.SendAndClose(&grpc_testing.StreamingInputCallResponse{AggregatedPayloadSize: sum})
		}
		if err != nil {
			return err
		}
		sum += int32(len(r.GetPayload().GetBody()))
	}
}

func (s *service) FullDuplexCall(stream grpc.BidiStreamingServer[grpc_testing.StreamingOutputCallRequest, grpc_testing.StreamingOutputCallResponse]) error {
	if err := s.obey(stream.Context()); err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&grpc_testing.StreamingOutputCallResponse{Payload: r.Payload}); err != nil {
			return err
		}
	}
}

// inBytes is a service whose duplex calls are answered from bytes to bytes.
type inBytes struct{ *service }

func (s inBytes) FullDuplexCall(stream grpc.BidiStreamingServer[grpc_testing.StreamingOutputCallRequest, grpc_testing.StreamingOutputCallResponse]) error {
	if err := s.obey(stream.Context()); err != nil {
		return err
	}
	var in, out rpc.Messages
	for {
		if err := stream.RecvMsg(&in); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		for b := range in.All() {
			var r grpc_testing.StreamingOutputCallRequest
			if err := proto.Unmarshal(b, &r); err != nil {
				return err
			}
			out.Add(func(b []byte) []byte {
				b, err := proto.MarshalOptions{}.MarshalAppend(b, &grpc_testing.StreamingOutputCallResponse{Payload: r.Payload})
				if err != nil {
					panic(err)
				}
				return b
			})
		}
		if out.Len() != in.Len() {
			return fmt.Errorf("%d answers to %d messages", out.Len(), in.Len())
		}
		if err := stream.SendMsg(&out); err != nil {
			return err
		}
		if out.Len() > 0 || out.Bytes() > 0 {
			return errors.New("there are messages left")
		}
	}
}

// server is what both kinds of servers are.
type server interface {
	grpc.ServiceRegistrar
	Serve(net.Listener) error
	GracefulStop()
	Stop()
}

// patience is longer than anything may take on the busiest machine.
const patience = 2 * time.Minute

// start serves s on a port of its own until the test ends, and returns where.
func start(t testing.TB, s server, services ...func(grpc.ServiceRegistrar)) string {
	t.Helper()
	l := local(t)
	serve(t, s, l, services...)
	return l.Addr().String()
}

// local listens as a member does for its clients.
func local(t testing.TB) net.Listener {
	t.Helper()
	l, err := listen.Listen(t.Context(), []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}, listen.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serve(t testing.TB, s server, l net.Listener, services ...func(grpc.ServiceRegistrar)) {
	t.Helper()
	for _, register := range services {
		register(s)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func testService(s *service) func(grpc.ServiceRegistrar) {
	return func(r grpc.ServiceRegistrar) { grpc_testing.RegisterTestServiceServer(r, s) }
}

// dial returns a client of grpc-go.
func dial(t testing.TB, addr string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	options = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)
	c, err := grpc.NewClient("passthrough:///"+addr, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ready serves a service with o and returns a client of it.
func ready(t testing.TB, o rpc.Options, options ...grpc.DialOption) (grpc_testing.TestServiceClient, *service, *rpc.Server) {
	t.Helper()
	s := &service{entered: make(chan string, 100), release: make(chan struct{})}
	server := rpc.New(o)
	c := dial(t, start(t, server, testService(s)), options...)
	return grpc_testing.NewTestServiceClient(c), s, server
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func wants(ctx context.Context, pairs ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}
