package gate

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/electionpb"
	"github.com/kvorum/kvorum/internal/lockpb"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/rpc"
)

// CallMetrics count calls by service and method. The labels are those of
// grpc-prometheus, on which dashboards and alerts are built.
type CallMetrics struct {
	Started  *metric.Family[metric.Counter]   // grpc_method, grpc_service, grpc_type
	Received *metric.Family[metric.Counter]   // likewise: messages
	Sent     *metric.Family[metric.Counter]   // likewise: messages
	Handled  *metric.Family[metric.Counter]   // grpc_code and the same
	Seconds  *metric.Family[metric.Histogram] // likewise; nil when not wanted: it is large

	Clients *metric.Family[metric.Counter] // type, client_api_version
}

// Calls stands around every call of every service: it admits, measures, turns
// errors into statuses and reports calls that took long.
//
// It wraps the services' descriptions and not the server, so that no server
// needs to know interceptors, and none can be set up without them.
type Calls struct {
	// Immutable after NewCalls.
	gate    *Gate
	metrics CallMetrics
	slow    time.Duration
	log     *slog.Logger
	clients *clients
}

// NewCalls returns the surroundings of calls admitted by gate. Unary calls
// that take longer than slow are logged; none if slow is 0.
func NewCalls(gate *Gate, m CallMetrics, slow time.Duration, log *slog.Logger) *Calls {
	return &Calls{gate: gate, metrics: m, slow: slow, log: log, clients: newClients(m.Clients)}
}

// method is one method's share of the metrics, found once.
type method struct {
	name                    string // as on the wire: /service/method
	started, received, sent *metric.Counter
	handled                 [codes.Unauthenticated + 1]*metric.Counter
	seconds                 *metric.Histogram
	waits                   bool // as long as somebody else pleases: that is not slow
}

// newMethod also makes every series exist at zero: a rate over a series that
// appears with its first error is blind to that error.
func (c *Calls) newMethod(service, name, kind string) *method {
	m := &method{
		name:     "/" + service + "/" + name,
		started:  c.metrics.Started.With(name, service, kind),
		received: c.metrics.Received.With(name, service, kind),
		sent:     c.metrics.Sent.With(name, service, kind),
		seconds:  c.metrics.Seconds.With(name, service, kind),
	}
	m.waits = m.name == lockpb.Lock_Lock_FullMethodName || m.name == electionpb.Election_Campaign_FullMethodName
	for code := range m.handled {
		m.handled[code] = c.metrics.Handled.With(codes.Code(code).String(), name, service, kind)
	}
	return m
}

// Wrap returns desc with every method stood around.
func (c *Calls) Wrap(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	wrapped := *desc
	wrapped.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, d := range desc.Methods {
		around := c.unary(c.newMethod(desc.ServiceName, d.MethodName, "unary"))
		inner := d.Handler
		d.Handler = func(srv any, ctx context.Context, decode func(any) error, next grpc.UnaryServerInterceptor) (any, error) {
			if next == nil {
				return inner(srv, ctx, decode, around)
			}
			return inner(srv, ctx, decode, func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
				return around(ctx, req, info, func(ctx context.Context, req any) (any, error) { return next(ctx, req, info, h) })
			})
		}
		wrapped.Methods[i] = d
	}
	wrapped.Streams = make([]grpc.StreamDesc, len(desc.Streams))
	for i, d := range desc.Streams {
		kind := "bidi_stream"
		switch {
		case !d.ClientStreams:
			kind = "server_stream"
		case !d.ServerStreams:
			kind = "client_stream"
		}
		d.Handler = c.stream(c.newMethod(desc.ServiceName, d.StreamName, kind), d.Handler)
		wrapped.Streams[i] = d
	}
	return &wrapped
}

func (c *Calls) unary(m *method) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		start := time.Now()
		m.started.Inc()
		m.received.Inc()

		resp, err := c.admitted(ctx, req, handle)

		took := time.Since(start)
		c.finish(m, took, err)
		if err == nil {
			m.sent.Inc()
		}
		if c.slow > 0 && took > c.slow && !m.waits {
			c.report(ctx, m, start, took, req, resp)
		}
		return resp, err
	}
}

func (c *Calls) admitted(ctx context.Context, req any, handle grpc.UnaryHandler) (any, error) {
	if err := c.clients.count(ctx, false); err != nil {
		return nil, statusOf(err)
	}
	if err := c.gate.EnterUnary(ctx, req); err != nil {
		return nil, statusOf(err)
	}
	resp, err := handle(ctx, req)
	if err != nil {
		return nil, statusOf(err)
	}
	return resp, nil
}

func (c *Calls) stream(m *method, inner grpc.StreamHandler) grpc.StreamHandler {
	return func(srv any, stream grpc.ServerStream) error {
		start := time.Now()
		m.started.Inc()

		err := func() error {
			if err := c.clients.count(stream.Context(), true); err != nil {
				return err
			}
			if err := c.gate.EnterStream(stream.Context(), m.name); err != nil {
				return err
			}
			ctx, done := c.gate.leaderless.guard(stream.Context())
			defer done()
			err := inner(srv, counted{stream, ctx, m})
			if cause := fault.Of(context.Cause(ctx)); err != nil && cause != nil {
				return cause
			}
			return err
		}()

		err = statusOf(err)
		c.finish(m, time.Since(start), err)
		return err
	}
}

// Fast is a unary method from bytes to bytes: it appends the answer to out.
type Fast func(ctx context.Context, in, out []byte) ([]byte, error)

// Around is for methods from bytes to bytes: the same that Wrap puts around
// others, in two halves, but that the method has to Enter the gate by itself,
// since only it can decode the request.
type Around struct {
	calls  *Calls
	method *method
	decode func(in []byte) proto.Message
}

// Around returns what is to be around a method. decode is for the log.
func (c *Calls) Around(service, name string, decode func(in []byte) proto.Message) *Around {
	return &Around{c, c.newMethod(service, name, "unary"), decode}
}

// Begin comes first. A call that it does not admit ends with its error.
func (a *Around) Begin(ctx context.Context) error {
	a.method.started.Inc()
	a.method.received.Inc()
	return a.calls.clients.count(ctx, false)
}

// End comes last. It is told when the call came, its request, how large its
// answer is and what went wrong, and returns how to say that.
func (a *Around) End(ctx context.Context, came time.Time, in []byte, answer int, err error) error {
	c, m := a.calls, a.method
	err = statusOf(err)
	took := time.Since(came)
	c.finish(m, took, err)
	if err == nil {
		m.sent.Inc()
	}
	if c.slow > 0 && took > c.slow {
		c.report(ctx, m, came, took, a.decode(in), sized(answer))
	}
	return err
}

// Handle puts it around a handler.
func (a *Around) Handle(handle Fast) Fast {
	return func(ctx context.Context, in, out []byte) ([]byte, error) {
		came, before := time.Now(), len(out)
		err := a.Begin(ctx)
		if err == nil {
			out, err = handle(ctx, in, out)
		}
		return out, a.End(ctx, came, in, len(out)-before, err)
	}
}

// sized stands for an encoded message of so many bytes.
type sized int

func (c *Calls) finish(m *method, took time.Duration, err error) {
	code := status.Code(err)
	if int(code) >= len(m.handled) {
		code = codes.Unknown
	}
	m.handled[code].Inc()
	m.seconds.Observe(took.Seconds())
}

// counted counts the messages of a stream.
type counted struct {
	grpc.ServerStream
	ctx context.Context
	m   *method
}

func (s counted) Context() context.Context { return s.ctx }

func (s counted) SendMsg(msg any) error {
	n := messages(msg)
	err := s.ServerStream.SendMsg(msg)
	if err == nil {
		s.m.sent.Add(n)
	}
	return err
}

func (s counted) RecvMsg(msg any) error {
	err := s.ServerStream.RecvMsg(msg)
	if err == nil {
		s.m.received.Add(messages(msg))
	}
	return err
}

func messages(msg any) uint64 {
	if many, ok := msg.(*rpc.Messages); ok {
		return uint64(many.Len())
	}
	return 1
}

// report logs one slow call. It says how large keys and values are, and never
// what a value is: values hold secrets.
func (c *Calls) report(ctx context.Context, m *method, start time.Time, took time.Duration, req, resp any) {
	from := ""
	if p, ok := peer.FromContext(ctx); ok {
		from = p.Addr.String()
	}
	c.log.LogAttrs(ctx, slog.LevelWarn, "request stats",
		slog.Time("start time", start),
		slog.Duration("time spent", took),
		slog.String("remote", from),
		slog.String("response type", m.name),
		slog.Int("request size", size(req)),
		slog.Int("response size", size(resp)),
		slog.String("request content", describe(req)),
	)
}

func size(msg any) int {
	if n, ok := msg.(sized); ok {
		return int(n)
	}
	if m, ok := msg.(proto.Message); ok && m.ProtoReflect().IsValid() {
		return proto.Size(m)
	}
	return 0
}
