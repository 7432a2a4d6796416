package rpc_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/rpc"
)

// await returns what c yields, or fails.
func await[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestHandlersHearOfCancellation(t *testing.T) {
	client, s, _ := ready(t, rpc.Options{})
	ctx, cancel := context.WithCancel(wants(t.Context(), "wait", "here"))
	ended := make(chan error, 2)
	go func() {
		_, err := client.EmptyCall(ctx, &grpc_testing.Empty{})
		ended <- err
	}()
	await(t, s.entered)
	cancel()
	if got := await(t, s.entered); got != context.Canceled.Error() {
		t.Error("a unary handler was told", got)
	}
	if err := await(t, ended); status.Code(err) != codes.Canceled {
		t.Error(err)
	}

	// A handler that waits for its client is woken, too.
	ctx, cancel = context.WithCancel(t.Context())
	stream, err := client.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_testing.StreamingInputCallRequest{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
}

func TestDeadlines(t *testing.T) {
	s := &service{}
	var ended time.Time
	o := rpc.Options{StreamInterceptor: func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		err := handle(srv, stream)
		ended = time.Now()
		return err
	}}
	timed(t, o, s, func(t *testing.T, w *wire) {
		s.entered = make(chan string, 10)
		w.greet()

		// The client does not end the call itself: the server must.
		w.ask(1, false, append(usual(emptyCall), "grpc-timeout", "30m", "wait", "1")...)
		w.WriteData(1, true, nothing)
		w.wantsAfter(30*time.Millisecond, "1 status=200 grpc-status=4 grpc-message=context deadline exceeded")
		if <-s.entered; <-s.entered != context.DeadlineExceeded.Error() {
			t.Error("the handler was told something else")
		}
		w.ask(3, false, append(usual(duplexCall), "grpc-timeout", "30m")...)
		w.wantsAfter(30*time.Millisecond, "3 status=200 grpc-status=4 grpc-message=context deadline exceeded", "3 reset NO_ERROR")

		// One whose client does not read is not waited for either.
		w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		w.ask(5, false, append(usual(duplexCall), "grpc-timeout", "100m")...)
		w.WriteData(5, false, message(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: []byte("a")}}))
		w.wants("5 status=200")
		due := time.Now().Add(100 * time.Millisecond)
		time.Sleep(time.Second) // of the bubble: past the deadline
		synctest.Wait()
		if !ended.Equal(due) {
			t.Errorf("the handler ended at %v, want %v", ended, due)
		}
		w.WritePing(false, [8]byte{})
		w.wants("ping ack=true")
	})
}

// TestContext holds a call's context against what everybody expects of one.
func TestContext(t *testing.T) {
	type key struct{}
	checked := make(chan error, 1)
	check := func(ctx context.Context) error {
		if at, ok := ctx.Deadline(); !ok || time.Until(at) < 50*time.Minute || time.Until(at) > time.Hour {
			return fmt.Errorf("deadline %v %v", at, ok)
		}
		if ctx.Value(key{}) != nil || ctx.Err() != nil {
			return fmt.Errorf("value %v, err %v", ctx.Value(key{}), ctx.Err())
		}
		child, cancel := context.WithCancel(context.WithValue(ctx, key{}, 1))
		defer cancel()
		if p, ok := peer.FromContext(child); !ok || p.Addr == nil {
			return errors.New("a child does not know its peer")
		}
		late, cancelLate := context.WithTimeout(ctx, 2*time.Hour)
		defer cancelLate()
		if _, ok := late.Deadline(); !ok {
			return errors.New("a child's deadline is lost")
		}
		never := context.AfterFunc(ctx, func() { checked <- errors.New("called though stopped") })
		if !never() || never() {
			return errors.New("stop does not tell the truth")
		}
		context.AfterFunc(ctx, func() {
			select {
			case <-child.Done(): // eventually
			case <-time.After(patience):
				checked <- errors.New("a child outlives the call")
				return
			}
			<-ctx.Done()
			context.AfterFunc(ctx, func() { checked <- nil })
			if ctx.Err() != context.Canceled || context.Cause(ctx) != context.Canceled {
				checked <- fmt.Errorf("ended with %v", ctx.Err())
			}
		})
		return nil
	}
	o := rpc.Options{UnaryInterceptor: func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		if info.FullMethod != emptyCall {
			return nil, errors.New(info.FullMethod)
		}
		if err := check(ctx); err != nil {
			return nil, err
		}
		return handle(ctx, req)
	}}
	client, _, _ := ready(t, o)
	if _, err := client.EmptyCall(within(t, time.Hour), &grpc_testing.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := await(t, checked); err != nil {
		t.Error(err)
	}
}

func TestStreamInterceptor(t *testing.T) {
	refused := status.Error(codes.PermissionDenied, "not you")
	client, _, _ := ready(t, rpc.Options{StreamInterceptor: func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		if info.FullMethod == duplexCall && info.IsClientStream && info.IsServerStream {
			return refused
		}
		return handle(srv, stream)
	}})
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	if err := sum(t.Context(), client, 3, 4); err != nil {
		t.Error(err)
	}
}

// sum sends messages of these sizes and wants to be told how much it was.
func sum(ctx context.Context, client grpc_testing.TestServiceClient, sizes ...int) error {
	stream, err := client.StreamingInputCall(ctx)
	if err != nil {
		return err
	}
	var want int
	for _, n := range sizes {
		want += n
		if err := stream.Send(&grpc_testing.StreamingInputCallRequest{Payload: &grpc_testing.Payload{Body: make([]byte, n)}}); err != nil {
			break // the reason is in the answer
		}
	}
	r, err := stream.CloseAndRecv()
	if err == nil && int(r.AggregatedPayloadSize) != want {
		err = fmt.Errorf("%d bytes of %d", r.AggregatedPayloadSize, want)
	}
	return err
}

func TestFast(t *testing.T) {
	reply := func(r *grpc_testing.SimpleRequest, how string, out []byte) ([]byte, error) {
		body := append([]byte(how), r.GetPayload().GetBody()...)
		body = append(body, make([]byte, r.ResponseSize)...)
		return proto.MarshalOptions{}.MarshalAppend(out, &grpc_testing.SimpleResponse{Payload: &grpc_testing.Payload{Body: body}})
	}
	read := func(in []byte) *grpc_testing.SimpleRequest {
		r := &grpc_testing.SimpleRequest{}
		if err := proto.Unmarshal(in, r); err != nil {
			t.Error(err)
		}
		return r
	}
	now := func(ctx context.Context, _ rpc.Party, in, out []byte) ([]byte, rpc.Then, error) {
		r := read(in)
		if wish(ctx, "fail") != "" {
			return nil, rpc.Answered, status.Error(codes.OutOfRange, "now")
		}
		if r.FillUsername {
			return nil, rpc.Alone, nil
		}
		out, err := reply(r, "now ", out)
		return out, rpc.Answered, err
	}
	handle := func(ctx context.Context, in, out []byte) ([]byte, error) {
		if wish(ctx, "fail") != "" {
			return nil, status.Error(codes.OutOfRange, "handled")
		}
		return reply(read(in), "handled ", out)
	}

	for name, c := range map[string]struct {
		fast                     rpc.Fast
		now, later, zip, failure string
	}{
		"both":   {rpc.Fast{Now: now, Handle: handle}, "now x", "handled x", "handled x", "now"},
		"now":    {rpc.Fast{Now: now}, "now x", "x", "x", "now"},
		"handle": {rpc.Fast{Handle: handle}, "handled x", "handled x", "handled x", "handled"},
	} {
		t.Run(name, func(t *testing.T) {
			s := rpc.New(rpc.Options{})
			grpc_testing.RegisterTestServiceServer(s, &service{})
			s.Fast(unaryCall, c.fast)
			client := grpc_testing.NewTestServiceClient(dial(t, start(t, s), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20))))
			ask := func(later bool, size int32, options ...grpc.CallOption) string {
				t.Helper()
				r, err := client.UnaryCall(within(t, patience), &grpc_testing.SimpleRequest{
					Payload: &grpc_testing.Payload{Body: []byte("x")}, FillUsername: later, ResponseSize: size,
				}, options...)
				if err != nil {
					t.Fatal(err)
				}
				return string(bytes.TrimRight(r.Payload.Body, "\x00"))
			}
			if got := ask(false, 0); got != c.now {
				t.Errorf("got %q, want %q", got, c.now)
			}
			if got := ask(true, 0); got != c.later {
				t.Errorf("got %q, want %q", got, c.later)
			}
			if got := ask(false, 0, grpc.UseCompressor(gzip.Name)); got != c.zip {
				t.Errorf("compressed: got %q, want %q", got, c.zip)
			}
			for _, size := range []int32{20 << 20, 1} {
				if got := ask(false, size); size == 1 && got != c.now {
					t.Errorf("after a large one: %q", got)
				}
			}
			_, err := client.UnaryCall(wants(t.Context(), "fail", "yes"), &grpc_testing.SimpleRequest{})
			if status.Code(err) != codes.OutOfRange || status.Convert(err).Message() != c.failure {
				t.Error(err)
			}
		})
	}
}

// TestEverythingAtOnce lets many clients do all kinds of calls together.
func TestEverythingAtOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	s := rpc.New(rpc.Options{GrantBytesMax: 8 << 20})
	addr := start(t, s, testService(&service{}))
	ctx := within(t, patience)
	calls := 30
	if testing.Short() {
		calls = 10
	}
	var running sync.WaitGroup
	for range 3 {
		client := grpc_testing.NewTestServiceClient(dial(t, addr, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20))))
		for range 20 {
			seed++
			random := rand.New(rand.NewPCG(seed, 0))
			running.Go(func() {
				for range calls {
					size := random.IntN(1 << random.IntN(21))
					if err := anyCall(ctx, client, random.IntN(5), size); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	running.Wait()
	s.GracefulStop()
}

func anyCall(ctx context.Context, client grpc_testing.TestServiceClient, kind, size int) error {
	body := bytes.Repeat([]byte{byte(size)}, size)
	same := func(got []byte) error {
		if !bytes.Equal(got, body) {
			return fmt.Errorf("%d bytes of %d came back, or others", len(got), len(body))
		}
		return nil
	}
	switch kind {
	case 0:
		r, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: body}})
		if err != nil {
			return fmt.Errorf("unary: %w", err)
		}
		return same(r.Payload.Body)
	case 1:
		return sum(ctx, client, size, 0, size/2, 1)
	case 2:
		stream, err := client.StreamingOutputCall(ctx, &grpc_testing.StreamingOutputCallRequest{
			ResponseParameters: []*grpc_testing.ResponseParameters{{Size: int32(size)}, {Size: 1}, {Size: int32(size)}},
		})
		if err != nil {
			return err
		}
		total := 0
		for {
			r, err := stream.Recv()
			if err == io.EOF && total == 2*size+1 {
				return nil
			}
			if err != nil {
				return fmt.Errorf("server stream after %d: %w", total, err)
			}
			total += len(r.Payload.Body)
		}
	case 3:
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			return err
		}
		for range 3 {
			if err := stream.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: body}}); err != nil {
				return fmt.Errorf("duplex: %w", err)
			}
			r, err := stream.Recv()
			if err != nil {
				return fmt.Errorf("duplex: %w", err)
			}
			if err := same(r.Payload.Body); err != nil {
				return err
			}
		}
		return stream.CloseSend()
	default: // and some change their mind
		ctx, cancel := context.WithCancel(ctx)
		stream, err := client.FullDuplexCall(ctx)
		if err == nil {
			err = stream.Send(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: body}})
		}
		cancel()
		return err
	}
}

// TestTLS also shows that handlers see who their client is.
func TestTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil) // has a certificate
	web.EnableHTTP2 = true
	web.StartTLS()
	defer web.Close()
	seen := make(chan credentials.AuthInfo, 1)
	s := rpc.New(rpc.Options{
		Credentials: credentials.NewServerTLSFromCert(&web.TLS.Certificates[0]),
		UnaryInterceptor: func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			p, _ := peer.FromContext(ctx)
			seen <- p.AuthInfo
			return handle(ctx, req)
		},
	})
	addr := start(t, s, testService(&service{}))
	trusted := x509.NewCertPool()
	trusted.AddCert(web.Certificate())
	client := grpc_testing.NewTestServiceClient(dial(t, addr,
		grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(trusted, "example.com"))))
	ctx := within(t, patience)
	if _, err := client.EmptyCall(ctx, &grpc_testing.Empty{}); err != nil {
		t.Fatal(err)
	}
	if info, ok := (<-seen).(credentials.TLSInfo); !ok || !info.State.HandshakeComplete {
		t.Error("the handler saw no TLS")
	}
	for kind := 1; kind < 4; kind++ {
		if err := anyCall(ctx, client, kind, 300_000); err != nil {
			t.Error(err)
		}
	}

	// Who does not shake hands is not kept.
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, http2.ClientPreface)
	nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(nc); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// TestPipe serves what is no socket.
func TestPipe(t *testing.T) {
	l := bufconn.Listen(64 << 10)
	s := rpc.New(rpc.Options{})
	testService(&service{})(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	client := grpc_testing.NewTestServiceClient(dial(t, "pipe", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })))
	ctx := within(t, patience)
	var running sync.WaitGroup
	for kind := range 4 {
		running.Go(func() {
			for i := range 20 {
				if err := anyCall(ctx, client, kind, 10_000*i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	s.Stop()
	if err := await(t, done); err != nil {
		t.Error(err)
	}
}

func TestReflection(t *testing.T) {
	s := rpc.New(rpc.Options{})
	client := grpc_reflection_v1.NewServerReflectionClient(dial(t, start(t, s, testService(&service{}), func(grpc.ServiceRegistrar) { reflection.Register(s) })))
	stream, err := client.ServerReflectionInfo(within(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if got := len(r.GetListServicesResponse().GetService()); got != 3 { // two versions of itself
		t.Errorf("%d services: %v", got, r)
	}
}

func TestMistakesOfAuthors(t *testing.T) {
	for name, mistake := range map[string]func(s *rpc.Server){
		"twice":    func(s *rpc.Server) { testService(&service{})(s); testService(&service{})(s) },
		"others":   func(s *rpc.Server) { s.RegisterService(&grpc_testing.TestService_ServiceDesc, "impl") },
		"too late": func(s *rpc.Server) { s.Stop(); testService(&service{})(s) },
		"unknown":  func(s *rpc.Server) { s.Fast(emptyCall, rpc.Fast{}) },
		"stream":   func(s *rpc.Server) { testService(&service{})(s); s.Fast(duplexCall, rpc.Fast{}) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("nothing happened")
				}
			}()
			mistake(rpc.New(rpc.Options{}))
		})
	}
}
