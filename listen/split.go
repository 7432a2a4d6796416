package listen

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// Splitter parts the callers of one listener: those whose first request is
// gRPC, or who begin as members do, from those who speak HTTP of any version.
// Both kinds may come in clear text or under TLS. A connection belongs to one
// side for good.
type Splitter struct {
	// Immutable after Split.
	from    net.Listener
	timeout time.Duration
	first   byte // what members begin with; 0: those apart speak gRPC
	apart   *side
	http    *side
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	shut    func() error // closes the listener beneath

	sides   atomic.Int32 // that are open
	running sync.WaitGroup
}

// sniffTimeout is how long a caller may take to say what it speaks, and to
// finish each frame that it has begun.
const sniffTimeout = 10 * time.Second

// lingerTimeout is how long a caller who is turned away has to read why.
const lingerTimeout = 250 * time.Millisecond

// Split takes over l. Closing either side closes that side alone; once both are
// closed, so is l. Close closes all, and waits.
func Split(l net.Listener) *Splitter {
	s := &Splitter{from: l, timeout: sniffTimeout}
	s.start()
	return s
}

// SplitMembers takes over l, whose callers are members, which begin with the
// byte first, or else speak HTTP.
func SplitMembers(l net.Listener, first byte) *Splitter {
	s := &Splitter{from: l, timeout: sniffTimeout, first: first}
	s.start()
	return s
}

func (s *Splitter) start() {
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.shut = sync.OnceValue(func() error {
		s.cancel()
		return s.from.Close()
	})
	s.apart, s.http = newSide(s), newSide(s)
	s.sides.Store(2) // apart and http
	s.running.Go(s.accept)
}

// GRPC yields the callers that speak gRPC.
func (s *Splitter) GRPC() net.Listener { return s.apart }

// Members yields the callers that began as members do.
func (s *Splitter) Members() net.Listener { return s.apart }

// HTTP yields all others, those that speak nothing sensible included. Serve
// them with a server made by HTTPServer.
func (s *Splitter) HTTP() net.Listener { return s.http }

// Close closes the listener beneath and all callers that nobody has accepted,
// and waits for them to be gone. Accepted ones are not touched.
func (s *Splitter) Close() error {
	err := s.shut()
	s.running.Wait()
	return err
}

func (s *Splitter) accept() {
	for {
		c, err := s.from.Accept()
		if err != nil {
			s.cancel() // the listener rests and retries by itself; this is its end
			return
		}
		s.running.Go(func() { s.sort(c) })
	}
}

// sort finds out what c speaks and hands it to that side.
func (s *Splitter) sort(c net.Conn) {
	woken := make(chan struct{})
	stop := context.AfterFunc(s.ctx, func() {
		c.SetDeadline(time.Unix(1, 0)) // who waits for a silent caller
		close(woken)
	})
	sniff := s.sniff
	if s.first != 0 {
		sniff = s.sniffFirst
	}
	sorted, p, err := sniff(c)
	if !stop() {
		<-woken
		sorted.turnAway()
		return
	}
	if err != nil || c.SetDeadline(time.Time{}) != nil {
		c.Close()
		return
	}
	if p == grpcProtocol || p == memberProtocol {
		s.apart.deliver(sorted)
	} else {
		s.http.deliver(sorted)
	}
}

func (s *Splitter) sniff(c net.Conn) (*conn, protocol, error) {
	sn := newSniffer()
	deadline := time.Now().Add(s.timeout)
	for {
		// An idle caller may stay: clients connect ahead of need.
		if sn.idle() {
			deadline = time.Time{}
		} else if deadline.IsZero() {
			deadline = time.Now().Add(s.timeout)
		}
		if err := s.limit(c.SetReadDeadline, deadline); err != nil {
			return sn.conn(c), unknown, err
		}
		n, err := c.Read(sn.room())
		if err != nil {
			return sn.conn(c), unknown, err
		}
		sn.feed(n)
		p, answer := sn.next()
		if len(answer) > 0 {
			if err := s.limit(c.SetWriteDeadline, time.Now().Add(s.timeout)); err != nil {
				return sn.conn(c), unknown, err
			}
			if _, err := c.Write(answer); err != nil {
				return sn.conn(c), unknown, err
			}
		}
		if p != unknown {
			return sn.conn(c), p, nil
		}
	}
}

// limit sets a deadline, but not over that which a Splitter's end has set.
func (s *Splitter) limit(set func(time.Time) error, deadline time.Time) error {
	if err := set(deadline); err != nil {
		return err
	}
	return s.ctx.Err()
}

// sniffFirst tells members by their first byte.
func (s *Splitter) sniffFirst(c net.Conn) (*conn, protocol, error) {
	if err := s.limit(c.SetReadDeadline, time.Now().Add(s.timeout)); err != nil {
		return &conn{Conn: c}, unknown, err
	}
	b := make([]byte, 1)
	if _, err := c.Read(b); err != nil {
		return &conn{Conn: c}, unknown, err
	}
	p := httpProtocol
	if b[0] == s.first {
		p = memberProtocol
	}
	return &conn{Conn: c, head: b}, p, nil
}

// conn returns c as if nothing had been read from it.
func (s *sniffer) conn(c net.Conn) *conn {
	*s.buffer = s.kept[:0]
	sorted := &conn{Conn: c, head: s.kept, buffer: s.buffer, greeted: s.toldSettings}
	if s.toldSettings && !s.ackSeen {
		// The acknowledgement may stand behind the request in what was read.
		sorted.filter = &ackFilter{skip: s.at}
		sorted.head = sorted.filter.pass(nil, s.kept)
	}
	return sorted
}

// conn is a connection that was sorted. Reading yields all that the caller
// sent for whoever serves it. It hides TLS, if any, because net/http speaks
// HTTP/2 on a connection that it has not shaken hands on itself only if it
// takes it for clear text.
type conn struct {
	net.Conn
	greeted bool // an HTTP/2 caller was told settings

	// Owned by the one who reads.
	head   []byte     // read while sorting
	buffer *[]byte    // holds what was read while sorting; nil: nothing was lent
	filter *ackFilter // nil: nothing to take out
}

func (c *conn) Read(p []byte) (int, error) {
	for {
		if len(c.head) > 0 {
			n := copy(p, c.head)
			if c.head = c.head[n:]; len(c.head) == 0 {
				c.letGo()
			}
			return n, nil
		}
		if c.filter == nil || c.filter.done || len(p) == 0 {
			return c.Conn.Read(p)
		}
		n, err := c.Conn.Read(p)
		c.head = c.filter.pass(nil, p[:n]) // may yield a few bytes more than n: those it held back
		if err != nil && len(c.head) == 0 {
			return 0, err
		}
	}
}

// letGo gives the buffer of what was read while sorting to others.
func (c *conn) letGo() {
	c.head = nil
	if c.buffer != nil && cap(*c.buffer) <= 4*readMin {
		keptBuffers.Put(c.buffer)
	}
	c.buffer = nil
}

func (c *conn) beneath() net.Conn { return c.Conn }

// prompter is a connection that can be asked for what needs no waiting, as a
// socket can.
type prompter interface {
	TryWrite(p []byte) (int, error)
	ReadLent(lend func() []byte, giveBack func()) (int, error)
	CloseWrite() error
}

// prompt returns c as one that can be asked for what needs no waiting, if there
// is a socket right beneath it.
func (c *conn) prompt() net.Conn {
	if p, ok := c.Conn.(prompter); ok {
		return &promptConn{conn: *c, prompter: p}
	}
	return c
}

// promptConn is a conn in clear text.
type promptConn struct {
	conn
	prompter
}

func (c *promptConn) ReadLent(lend func() []byte, giveBack func()) (int, error) {
	if len(c.head) > 0 {
		return c.Read(lend())
	}
	if c.filter == nil || c.filter.done {
		return c.prompter.ReadLent(lend, giveBack)
	}
	var b []byte
	n, err := c.prompter.ReadLent(func() []byte { b = lend(); return b }, giveBack)
	if c.head = c.filter.pass(nil, b[:n]); len(c.head) > 0 {
		return c.Read(b)
	}
	return 0, err
}

// turnAway closes a caller whom nobody serves. One that was greeted takes itself
// for connected, and may have asked for something meanwhile. That nothing was
// made of it the caller must be told, or it cannot know that it may ask another
// server.
func (c *conn) turnAway() {
	defer c.Close()
	if !c.greeted || c.SetDeadline(time.Now().Add(lingerTimeout)) != nil {
		return
	}
	if err := http2.NewFramer(c.Conn, nil).WriteGoAway(0, http2.ErrCodeNo, nil); err == nil {
		io.Copy(io.Discard, c.Conn) // until the caller leaves: what is unread would take the last words back
	}
}

// side is one of the two listeners of a Splitter.
type side struct {
	of     *Splitter
	ready  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newSide(of *Splitter) *side {
	return &side{of: of, ready: make(chan net.Conn), closed: make(chan struct{})}
}

func (s *side) deliver(c *conn) {
	select {
	case s.ready <- c.prompt():
	case <-s.closed:
		c.turnAway()
	case <-s.of.ctx.Done():
		c.turnAway()
	}
}

// Accept waits for the next caller of this side.
func (s *side) Accept() (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case <-s.closed:
	case <-s.of.ctx.Done():
	}
	return nil, net.ErrClosed
}

// Addr returns the address of the listener beneath.
func (s *side) Addr() net.Addr { return s.of.from.Addr() }

// Close turns away callers of this side.
func (s *side) Close() error {
	s.once.Do(func() {
		close(s.closed)
		if s.of.sides.Add(-1) == 0 {
			s.of.shut()
		}
	})
	return nil
}

// connKey finds the connection of a request.
type connKey struct{}

// HTTPServer returns a server for what a Listener or a Splitter's HTTP side
// yields: HTTP/1.1, and HTTP/2 without upgrade, in clear text or under TLS.
// Requests carry their TLS state as if net/http had shaken hands itself.
func HTTPServer(h http.Handler) *http.Server {
	server := &http.Server{
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: 10 * time.Second,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c, ok := r.Context().Value(connKey{}).(net.Conn); ok && r.TLS == nil {
				if state, ok := ConnectionState(c); ok {
					r.TLS = &state
				}
			}
			h.ServeHTTP(w, r)
		}),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	return server
}
