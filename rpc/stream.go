package rpc

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// stream is one call. It is also the context of its handler.
type stream struct {
	// Immutable.
	c        *conn
	id       uint32
	path     string
	method   *method
	head     *head
	deadline time.Time // zero: none

	ending ending

	// Guarded by c.mu.
	closed    bool // nothing can be sent or received any more
	abandoned bool // it was closed before its handler was done
	handling  bool // a handler runs, or will

	received      *buffer // messages that nobody has taken yet; nil: none
	at            int     // received.b[at:] was not taken
	receivedAll   bool    // the client has sent its last
	receivedBytes int64   // by the client
	receiveWindow int     // the client may send so much
	granted       int     // by which that is more than usual, for the sake of one message
	wanted        int     // and by which it should be, when there is room

	header, trailer metadata.MD
	headerSent      bool
	sending         []byte  // is left of a message that waits for windows and its turn
	sendingOf       *buffer // holds it
	sendWindow      int     // so much may be sent
	queued          bool    // it stands in the line of those who have something to send
	next            *stream // behind it in that line
	answered        bool    // status will be sent when all messages are
	status          *status.Status

	waiting *waiting // of streaming methods
}

// waiting are the places where a handler waits for its client.
type waiting struct {
	toReceive, toSend sync.Cond // with c.mu
}

// wake lets the handler look again. c.mu is held.
func (s *stream) wake() {
	if s.waiting != nil {
		s.waiting.toReceive.Broadcast()
		s.waiting.toSend.Broadcast()
	}
}

// lengthKept tells whether the client sends as much as its headers promised,
// as far as can be known yet. c.mu is held.
func (s *stream) lengthKept() bool {
	promised := s.head.contentLength
	return promised < 0 || s.receivedBytes == promised || s.receivedBytes < promised && !s.receivedAll
}

// gone are the streams that were closed last. What comes on a stream that the
// client itself had ended is its mistake; on others it may have been under way.
type gone struct {
	ids  []uint32 // streams are odd: the lowest bit tells that the client had not ended it
	next int      // to be overwritten, once there are goneMax
}

const goneMax = 64

func (g *gone) add(id uint32, early bool) {
	id &^= 1
	if early {
		id |= 1
	}
	if len(g.ids) < goneMax {
		g.ids = append(g.ids, id)
		return
	}
	g.ids[g.next] = id
	g.next = (g.next + 1) % goneMax
}

func (g *gone) find(id uint32) (early, known bool) {
	for _, other := range g.ids {
		if other|1 == id {
			return other == id, true
		}
	}
	return false, false
}

// unread is what was received and nobody has taken. c.mu is held.
func (s *stream) unread() []byte {
	if s.received == nil {
		return nil
	}
	return s.received.b[s.at:]
}

// taken steps over n bytes of what was received, and returns them. c.mu is held.
func (s *stream) taken(n int) *buffer {
	if whole := s.received; s.at == 0 && n == len(whole.b) {
		s.received = nil
		return whole
	}
	buf := newBuffer()
	buf.b = append(buf.b, s.unread()[:n]...)
	if s.at += n; s.at == len(s.received.b) {
		s.dropReceived()
	}
	return buf
}

// dropReceived forgets what nobody will take.
func (s *stream) dropReceived() {
	s.received.free()
	s.received, s.at = nil, 0
}

// keep adds to what was received. c.mu is held.
func (s *stream) keep(b []byte) {
	if s.received == nil {
		s.received = newBuffer()
	}
	if s.at > 0 && len(s.received.b)+len(b) > cap(s.received.b) {
		s.received.b = s.received.b[:copy(s.received.b, s.received.b[s.at:])]
		s.at = 0
	}
	s.received.b = append(s.received.b, b...)
}

// transportStream is a stream as grpc.SetHeader and its like see it.
type transportStream stream

func (t *transportStream) Method() string { return t.path }

var (
	errHeaderLate  = status.Error(codes.Internal, "transport: the stream is done or WriteHeader was already called")
	errHeaderTwice = status.Error(codes.Internal, "transport: SendHeader called multiple times")
)

func (t *transportStream) SetHeader(md metadata.MD) error {
	if md.Len() == 0 {
		return nil
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.headerSent || t.closed {
		return errHeaderLate
	}
	t.header = metadata.Join(t.header, md)
	return nil
}

func (t *transportStream) SendHeader(md metadata.MD) error {
	s := (*stream)(t)
	t.c.mu.Lock()
	if t.closed {
		t.c.mu.Unlock()
		return s.goneError()
	}
	if t.headerSent {
		t.c.mu.Unlock()
		return errHeaderTwice
	}
	if md.Len() > 0 {
		t.header = metadata.Join(t.header, md)
	}
	sent := t.c.sendHeader(s)
	t.c.mu.Unlock()
	t.c.flush()
	if !sent {
		return errHeaderSize
	}
	return nil
}

func (t *transportStream) SetTrailer(md metadata.MD) error {
	if md.Len() == 0 {
		return nil
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.trailer = metadata.Join(t.trailer, md)
	return nil
}

// goneError is what a handler is told that sends to nobody.
func (s *stream) goneError() error {
	err := s.Err()
	if err == nil {
		return status.Error(codes.Canceled, "context canceled")
	}
	return status.FromContextError(err).Err()
}
