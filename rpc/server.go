package rpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"reflect"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// Options work when empty.
type Options struct {
	Credentials credentials.TransportCredentials // default none: clear text

	ReceiveBytesMax      int    // of one message, also after decompression; default 4 MiB
	SendBytesMax         int    // of one message; default 2 GiB - 1
	ConcurrentStreamsMax uint32 // calls of one connection at once; default 10,000; math.MaxUint32: no limit
	HeaderBytesMax       uint32 // of one request's headers, counted as HTTP/2 does; default 64 KiB

	// A client may send so much before the server has looked at it. A message
	// that is larger than the stream's window gets more, as soon as its length
	// is known, as long as GrantBytesMax allows.
	StreamWindowBytes     uint32 // default and least 65,535
	ConnectionWindowBytes uint32 // default 16 MiB
	GrantBytesMax         int    // of one connection; default 64 MiB, at least one message
	// New calls are refused while so many bytes of answers wait for the
	// windows of a connection.
	PendingBytesMax int // default 256 MiB

	// A client that pings more often, without any answer in between, is sent
	// away at the third time too many.
	PingIntervalMin   time.Duration // default 5 min, below 0 none
	PingWithoutStream bool          // let clients ping so often also without calls; default: every 2 h

	KeepaliveInterval time.Duration // a client that was silent so long is pinged; default 2 h, below 0 never
	KeepaliveTimeout  time.Duration // and has so long to show life; default 20 s, below 0 for ever

	ConnectionAgeMax   time.Duration // then the client is told to come anew; default none
	ConnectionAgeGrace time.Duration // and its calls have so long to end; default no limit
	ConnectionIdleMax  time.Duration // without calls; default none

	HandshakeTimeout time.Duration // of credentials and first frames; default 20 s
	WriteTimeout     time.Duration // a client has so long to take 64 KiB; default 20 s

	UnaryInterceptor  grpc.UnaryServerInterceptor  // default none
	StreamInterceptor grpc.StreamServerInterceptor // default none
}

const forever = time.Duration(math.MaxInt64)

func (o Options) withDefaults() Options {
	or(&o.ReceiveBytesMax, 4<<20)
	or(&o.SendBytesMax, math.MaxInt32)
	or(&o.ConcurrentStreamsMax, 10_000)
	or(&o.HeaderBytesMax, 64<<10)
	o.StreamWindowBytes = min(max(o.StreamWindowBytes, initialWindow), windowMax)
	or(&o.ConnectionWindowBytes, 16<<20)
	o.ConnectionWindowBytes = min(max(o.ConnectionWindowBytes, initialWindow), windowMax)
	or(&o.GrantBytesMax, 64<<20)
	o.GrantBytesMax = max(o.GrantBytesMax, min(o.ReceiveBytesMax, windowMax))
	or(&o.PendingBytesMax, 256<<20)
	or(&o.PingIntervalMin, 5*time.Minute)
	or(&o.KeepaliveInterval, 2*time.Hour)
	or(&o.KeepaliveTimeout, 20*time.Second)
	for _, d := range []*time.Duration{&o.KeepaliveInterval, &o.KeepaliveTimeout} {
		if *d < 0 {
			*d = forever
		}
	}
	or(&o.ConnectionAgeMax, forever)
	or(&o.ConnectionAgeGrace, forever)
	or(&o.ConnectionIdleMax, forever)
	or(&o.HandshakeTimeout, 20*time.Second)
	or(&o.WriteTimeout, 20*time.Second)
	return o
}

func or[T comparable](v *T, other T) {
	var zero T
	if *v == zero {
		*v = other
	}
}

// Fast answers a unary method from bytes to bytes. Its functions are given the
// request's message, which is theirs until they return, and append the answer's
// message to out. Interceptors do not see such calls.
type Fast struct {
	// Now runs on the goroutine that reads the connection, and must not wait. It
	// answers the call, or says how it goes on. It may be nil: all calls are
	// Handle's.
	Now func(ctx context.Context, party Party, in, out []byte) (answer []byte, then Then, err error)

	// Together makes the parties that Now is given; nil if it needs none. Methods
	// can share one.
	Together *Together

	// Handle runs on a goroutine of its own. When it is nil, the handler that
	// was registered for the method stands in.
	Handle func(ctx context.Context, in, out []byte) (answer []byte, err error)
}

// method is what answers one path.
type method struct {
	impl   any
	unary  *grpc.MethodDesc // nil: stream
	stream *grpc.StreamDesc
	info   *grpc.StreamServerInfo
	fast   Fast
}

// Server serves the services that were registered with it.
type Server struct {
	// Immutable after New.
	options Options
	workers *workers

	// Immutable once Serve was called.
	methods  map[string]*method // by path
	services map[string]grpc.ServiceInfo
	anything *method // set by tests: answers what is not gRPC too

	restAfter time.Duration // tests do not wait so long

	heads heads

	running sync.WaitGroup // connections, and those that accept them

	mu struct {
		sync.Mutex
		serving   bool
		draining  bool
		listeners map[net.Listener]struct{}
		conns     map[*conn]struct{}
	}
}

// ErrStopped tells that a server is at its end.
var ErrStopped = errors.New("rpc: the server has been stopped")

// New returns a server without services.
func New(o Options) *Server {
	s := &Server{
		options:  o.withDefaults(),
		workers:  newWorkers(),
		methods:  map[string]*method{},
		services: map[string]grpc.ServiceInfo{},

		restAfter: restAfter,
	}
	s.mu.listeners = map[net.Listener]struct{}{}
	s.mu.conns = map[*conn]struct{}{}
	return s
}

// RegisterService makes s answer the methods of desc by impl. It panics when
// impl does not implement them, when somebody does already, and after Serve.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	must(!s.serving(), "services are registered before Serve")
	_, known := s.services[desc.ServiceName]
	must(!known, "service %s is registered once", desc.ServiceName)
	if impl != nil && desc.HandlerType != nil {
		want := reflect.TypeOf(desc.HandlerType).Elem()
		must(reflect.TypeOf(impl).Implements(want), "%T implements %v", impl, want)
	}

	info := grpc.ServiceInfo{Metadata: desc.Metadata}
	for i := range desc.Methods {
		d := &desc.Methods[i]
		s.methods["/"+desc.ServiceName+"/"+d.MethodName] = &method{impl: impl, unary: d}
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: d.MethodName})
	}
	for i := range desc.Streams {
		d := &desc.Streams[i]
		path := "/" + desc.ServiceName + "/" + d.StreamName
		s.methods[path] = &method{impl: impl, stream: d, info: &grpc.StreamServerInfo{
			FullMethod: path, IsClientStream: d.ClientStreams, IsServerStream: d.ServerStreams,
		}}
		info.Methods = append(info.Methods, grpc.MethodInfo{
			Name: d.StreamName, IsClientStream: d.ClientStreams, IsServerStream: d.ServerStreams,
		})
	}
	s.services[desc.ServiceName] = info
}

// Fast gives the unary method at path, which must be registered, a way from
// bytes to bytes. Requests that are not encoded as protobuf do not take it.
func (s *Server) Fast(path string, f Fast) {
	must(!s.serving(), "methods are registered before Serve")
	m := s.methods[path]
	must(m != nil && m.unary != nil, "%s is a registered unary method", path)
	m.fast = f
}

// GetServiceInfo tells what is registered. Reflection asks for it.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo {
	all := make(map[string]grpc.ServiceInfo, len(s.services))
	for name, info := range s.services {
		all[name] = info
	}
	return all
}

func (s *Server) serving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.serving
}

// lookup returns who answers path, or why nobody does.
func (s *Server) lookup(path string) (*method, *status.Status) {
	if m := s.methods[path]; m != nil {
		return m, nil
	}
	if s.anything != nil {
		return s.anything, nil
	}
	name, found := strings.CutPrefix(path, "/")
	slash := strings.LastIndexByte(name, '/')
	if !found || slash < 0 {
		return nil, status.Newf(codes.Unimplemented, "malformed method name: %q", path)
	}
	service, unknown := name[:slash], name[slash+1:]
	if _, ok := s.services[service]; !ok {
		return nil, status.Newf(codes.Unimplemented, "unknown service %v", service)
	}
	return nil, status.Newf(codes.Unimplemented, "unknown method %v for service %v", unknown, service)
}

// Serve answers the clients that l yields until l fails, or until the server
// is stopped, which closes l and makes Serve return nil. It may be called for
// several listeners at once.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.mu.serving = true
	if s.mu.draining {
		s.mu.Unlock()
		l.Close()
		return ErrStopped
	}
	s.mu.listeners[l] = struct{}{}
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()

	for {
		nc, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.mu.listeners, l)
			if s.mu.draining {
				return nil
			}
			l.Close()
			return fmt.Errorf("rpc: accept: %w", err)
		}
		c := newConn(s, nc)
		if !s.add(c) {
			nc.Close()
			continue
		}
		go c.serve()
	}
}

func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.draining {
		return false
	}
	s.mu.conns[c] = struct{}{}
	s.running.Add(1)
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.conns, c)
}

// GracefulStop lets nobody in, tells the clients to go, and returns when their
// last call has ended. Stop may be called meanwhile.
func (s *Server) GracefulStop() { s.stop(func(c *conn) { c.leave("graceful_stop") }) }

// Stop ends all connections and calls, and returns when all handlers have.
func (s *Server) Stop() { s.stop(func(c *conn) { c.abort() }) }

func (s *Server) stop(end func(*conn)) {
	s.mu.Lock()
	s.mu.serving, s.mu.draining = true, true
	for l := range s.mu.listeners {
		l.Close()
	}
	for c := range s.mu.conns {
		end(c)
	}
	s.mu.Unlock()
	s.running.Wait()
	s.workers.close()
}

// must keeps a promise of the program to itself, or of its author.
func must(kept bool, promise string, args ...any) {
	if !kept {
		panic("rpc: " + fmt.Sprintf(promise, args...))
	}
}
