package proxy

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/kvorum/kvorum/fault"
	_ "github.com/kvorum/kvorum/internal/electionpb" // the services are found in the registry
	_ "github.com/kvorum/kvorum/internal/lockpb"
	"github.com/kvorum/kvorum/proxy/internal/merge"
	"github.com/kvorum/kvorum/proxy/internal/namespace"
	"github.com/kvorum/kvorum/proxy/internal/upstream"
	"github.com/kvorum/kvorum/rpc"
)

// services are forwarded, but for the two streams that are merged.
var services = []protoreflect.FullName{
	"etcdserverpb.KV", "etcdserverpb.Watch", "etcdserverpb.Lease", "etcdserverpb.Cluster",
	"etcdserverpb.Auth", "etcdserverpb.Maintenance", "v3lockpb.Lock", "v3electionpb.Election",
}

// forwarder passes calls on.
type forwarder struct {
	up         *upstream.Upstream
	namespace  namespace.Prefix
	watches    *merge.Watches
	keepAlives *merge.KeepAlives
	metrics    *metrics
}

// method is one that is forwarded.
type method struct {
	path    string
	request protoreflect.MessageType
	answer  protoreflect.MessageType
	rewrite bool // it holds keys, and there is a namespace
}

// register puts all services on s.
func (f *forwarder) register(s *rpc.Server) error {
	for _, name := range services {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			return err
		}
		service := d.(protoreflect.ServiceDescriptor)
		desc := &grpc.ServiceDesc{ServiceName: string(name)}
		fast := map[string]rpc.Fast{}
		for i := range service.Methods().Len() {
			m := service.Methods().Get(i)
			if err := f.registerMethod(desc, fast, m); err != nil {
				return err
			}
		}
		s.RegisterService(desc, nil)
		for path, way := range fast {
			s.Fast(path, way)
		}
	}
	return nil
}

func (f *forwarder) registerMethod(desc *grpc.ServiceDesc, fast map[string]rpc.Fast, d protoreflect.MethodDescriptor) error {
	request, err := protoregistry.GlobalTypes.FindMessageByName(d.Input().FullName())
	if err != nil {
		return err
	}
	answer, err := protoregistry.GlobalTypes.FindMessageByName(d.Output().FullName())
	if err != nil {
		return err
	}
	name := string(d.Name())
	m := &method{path: "/" + desc.ServiceName + "/" + name, request: request, answer: answer}
	m.rewrite = f.namespace != "" && namespace.Touches(request.New().Interface())
	switch {
	case desc.ServiceName == "etcdserverpb.Watch":
		desc.Streams = append(desc.Streams, f.stream(desc, d, func(_ any, stream grpc.ServerStream) error {
			return f.watches.Watch(&grpc.GenericServerStream[pb.WatchRequest, pb.WatchResponse]{ServerStream: stream})
		}))
	case name == "LeaseKeepAlive":
		desc.Streams = append(desc.Streams, f.stream(desc, d, func(_ any, stream grpc.ServerStream) error {
			return f.keepAlives.LeaseKeepAlive(&grpc.GenericServerStream[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]{ServerStream: stream})
		}))
	case d.IsStreamingServer():
		desc.Streams = append(desc.Streams, f.stream(desc, d, func(_ any, stream grpc.ServerStream) error {
			return f.forwardStream(m, stream)
		}))
	default:
		count := f.metrics.count(desc.ServiceName, name, "unary")
		handle := func(ctx context.Context, in, out []byte) ([]byte, error) {
			out, err := f.forward(ctx, m, in, out)
			err = refusal(err)
			count(err)
			return out, err
		}
		fast[m.path] = rpc.Fast{Handle: handle}
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name, Handler: otherCodec})
	}
	return nil
}

// otherCodec answers who does not speak protobuf: nobody else understands.
func otherCodec(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
	return nil, status.Error(codes.Unimplemented, "kvorum: the proxy forwards protobuf only")
}

func (f *forwarder) stream(desc *grpc.ServiceDesc, d protoreflect.MethodDescriptor, handle grpc.StreamHandler) grpc.StreamDesc {
	kind := "server_stream"
	if d.IsStreamingClient() {
		kind = "bidi_stream"
	}
	count := f.metrics.count(desc.ServiceName, string(d.Name()), kind)
	return grpc.StreamDesc{
		StreamName: string(d.Name()), ServerStreams: true, ClientStreams: d.IsStreamingClient(),
		Handler: func(srv any, stream grpc.ServerStream) error {
			err := refusal(handle(srv, stream))
			count(err)
			return err
		},
	}
}

// refusal gives a fault its code.
func refusal(err error) error {
	if f := fault.Of(err); f != nil {
		return status.Error(codes.Code(f.Code), f.Text)
	}
	return err
}

// asClient returns the context of a call to a member: it says what the client
// said.
func asClient(ctx context.Context) context.Context {
	came, _ := metadata.FromIncomingContext(ctx)
	said := metadata.MD{}
	for name, values := range came {
		switch {
		case strings.HasPrefix(name, ":"), strings.HasPrefix(name, "grpc-"), name == "content-type", name == "user-agent", name == "te":
			// Of this connection, and said anew of the next.
		default:
			said[name] = values
		}
	}
	return metadata.NewOutgoingContext(ctx, said)
}

// forward asks a member and appends the answer to out.
func (f *forwarder) forward(ctx context.Context, m *method, in, out []byte) ([]byte, error) {
	ctx = asClient(ctx)
	if m.rewrite {
		return f.rewritten(ctx, m, in, out)
	}
	begin := len(out)
	// The transport may hold on to the request when the call has ended.
	asked := bytes.Clone(in)
	answer := raw(out)
	err := f.up.Invoke(ctx, m.path, raw(asked), &answer, grpc.ForceCodecV2(codec{}))
	if m.path == pb.Maintenance_MoveLeader_FullMethodName && status.Convert(err).Message() == fault.NotLeader.Text {
		err = f.askLeader(ctx, m, asked, &answer)
	}
	if err != nil {
		return nil, err
	}
	if m.path == pb.Maintenance_Status_FullMethodName {
		answer = f.statusOfLeader(ctx, asked, answer, begin)
	}
	f.see(answer[begin:])
	return answer, nil
}

// statusOfLeader has the leader answer instead of the member that did, if it can.
// Who moves leadership looks for an endpoint whose status is the leader's.
func (f *forwarder) statusOfLeader(ctx context.Context, asked []byte, answer raw, begin int) raw {
	var s pb.StatusResponse
	if proto.Unmarshal(answer[begin:], &s) != nil || s.Header.GetMemberId() == s.Leader {
		return answer
	}
	ctx, known := f.up.To(ctx, s.Leader)
	better := slices.Clone(answer[:begin])
	if !known || f.up.Invoke(ctx, pb.Maintenance_Status_FullMethodName, raw(asked), &better, grpc.ForceCodecV2(codec{})) != nil {
		return answer
	}
	return better
}

// askLeader asks one member after the other, of which only the leader does what
// is asked.
func (f *forwarder) askLeader(ctx context.Context, m *method, in []byte, answer *raw) (err error) {
	err = refusal(fault.NotLeader)
	f.up.Each(ctx, func(ctx context.Context) bool {
		err = f.up.Invoke(ctx, m.path, raw(in), answer, grpc.ForceCodecV2(codec{}))
		return status.Convert(err).Message() == fault.NotLeader.Text
	})
	return err
}

// rewritten asks a member for what lies in the namespace.
func (f *forwarder) rewritten(ctx context.Context, m *method, in, out []byte) ([]byte, error) {
	request, answer := m.request.New().Interface(), m.answer.New().Interface()
	if err := proto.Unmarshal(in, request); err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
	}
	if err := f.namespace.Request(request); err != nil {
		return nil, err
	}
	if err := f.up.Invoke(ctx, m.path, request, answer); err != nil {
		return nil, err
	}
	f.namespace.Answer(answer)
	begin := len(out)
	out, err := proto.MarshalOptions{}.MarshalAppend(out, answer)
	if err == nil {
		f.see(out[begin:])
	}
	return out, err
}

// forwardStream passes on the answers to one request as they come.
func (f *forwarder) forwardStream(m *method, stream grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(asClient(stream.Context()))
	defer cancel()
	// What need not be read is kept as a message without fields.
	request, answer := proto.Message(new(emptypb.Empty)), proto.Message(new(emptypb.Empty))
	if m.rewrite {
		request, answer = m.request.New().Interface(), m.answer.New().Interface()
	}
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	if m.rewrite {
		if err := f.namespace.Request(request); err != nil {
			return err
		}
	}
	asked, err := f.up.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, m.path)
	if err != nil {
		return err
	}
	if err := asked.SendMsg(request); err != nil && err != io.EOF { // io.EOF: RecvMsg tells why
		return err
	}
	if err := asked.CloseSend(); err != nil {
		return err
	}
	for {
		proto.Reset(answer)
		if err := asked.RecvMsg(answer); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if m.rewrite {
			f.namespace.Answer(answer)
		}
		if err := stream.SendMsg(answer); err != nil {
			return err
		}
	}
}

// see notes the revision in the header that nearly every answer begins with.
func (f *forwarder) see(answer []byte) {
	num, kind, n := protowire.ConsumeTag(answer)
	if num != 1 || kind != protowire.BytesType {
		return
	}
	header, n := protowire.ConsumeBytes(answer[n:])
	var cluster, revision uint64
	for ; n >= 0 && len(header) > 0; header = header[max(n, 0):] {
		num, kind, size := protowire.ConsumeTag(header)
		if size < 0 || kind != protowire.VarintType {
			return
		}
		value, more := protowire.ConsumeVarint(header[size:])
		if more < 0 {
			return
		}
		switch n = size + more; num {
		case 1:
			cluster = value
		case 3:
			revision = value
		}
	}
	if cluster != 0 && revision != 0 {
		f.watches.See(cluster, int64(revision))
	}
}

// raw is a message as the bytes that it came in.
type raw []byte

// codec passes raw messages through.
type codec struct{}

func (codec) Name() string { return grpcproto.Name }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.(raw))}, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	out := v.(*raw)
	for _, part := range data {
		*out = append(*out, part.ReadOnlyData()...)
	}
	return nil
}

var _ encoding.CodecV2 = codec{}
