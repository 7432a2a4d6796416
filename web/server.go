package web

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A connection that is idle waits with no more than this in hand, which is
	// enough for most requests.
	idleBytes = 1024

	// requestBytesMax bounds what is read here; what is larger is for others.
	requestBytesMax = 16 << 10

	// headTimeout is how long a client may take to finish a request.
	headTimeout = 10 * time.Second
)

// Server serves connections. It is made by New.
type Server struct {
	// Immutable after New.
	o      Options
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	stopping atomic.Bool
	running  sync.WaitGroup // connections, and those who tell their clients something

	mu struct {
		sync.Mutex
		conns     map[*conn]struct{}
		listeners []net.Listener
	}
}

// New returns a server.
func New(o Options) *Server {
	s := &Server{o: o}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.mu.conns = map[*conn]struct{}{}
	return s
}

// Serve serves the connections of l, which it takes over, until the server is
// shut down or closed. Otherwise it returns what is wrong with l.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.mu.listeners = append(s.mu.listeners, l)
	if s.stopping.Load() {
		l.Close()
	}
	s.mu.Unlock()
	for {
		n, err := l.Accept()
		if s.stopping.Load() {
			if err == nil {
				n.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		c := &conn{server: s, net: n}
		if !s.add(c) {
			n.Close()
			continue
		}
		go func() {
			defer s.running.Done()
			if !c.serve() {
				n.Close()
			}
			s.drop(c)
		}()
	}
}

func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping.Load() {
		return false
	}
	s.mu.conns[c] = struct{}{}
	s.running.Add(1)
	return true
}

func (s *Server) drop(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.conns, c)
}

// Shutdown closes idle connections and waits for the others to be answered, or
// for ctx. Who serves them should have the waits end.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.stop()
	for c := range s.mu.conns {
		c.closeIdle()
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		s.Close()
		<-ended
	}
}

// Close cuts all connections.
func (s *Server) Close() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	for c := range s.mu.conns {
		c.net.Close()
	}
}

// stop has no more connections be served. With s.mu held.
func (s *Server) stop() {
	s.stopping.Store(true)
	for _, l := range s.mu.listeners {
		l.Close()
	}
}

// buffers hold requests and answers while there are any.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

type buffer struct {
	in  [requestBytesMax]byte
	out []byte
}

// keptBytes is how large an answer's space may be to be used again.
const keptBytes = 64 << 10

func (b *buffer) free() {
	if cap(b.out) > keptBytes {
		b.out = nil
	}
	buffers.Put(b)
}
