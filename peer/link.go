package peer

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/metric"
)

// writeBytes is how much is given to the socket under one deadline.
const writeBytes = 128 << 10

// link is one side of a connection after the hellos. One goroutine reads; any
// may write.
type link struct {
	// Immutable.
	p           *Peers
	conn        net.Conn
	lane        Lane
	id          uint64 // of the member at the other end
	incarnation uint64
	server      string // version of the other end
	received    *metric.Counter
	sent        *metric.Counter

	in *frameReader // owned by the reader

	mu struct {
		sync.Mutex
		out frameWriter
	}
}

// newLink makes a link of conn, whose other end is h. Nothing else may read
// from conn any more. A caller may be dismissed.
func (p *Peers) newLink(conn net.Conn, lane Lane, h *hello, dismissed *atomic.Pointer[Refused]) *link {
	l := &link{
		p: p, conn: conn, lane: lane, id: h.from, incarnation: h.incarnation, server: h.server,
		received: p.o.Metrics.ReceivedBytes.With(hex(h.from)),
		sent:     p.o.Metrics.SentBytes.With(hex(h.from)),
	}
	l.mu.out.lane = lane
	l.in = newFrameReader(&patient{link: l, dismissed: dismissed}, lane, p.o.MessageBytes)
	return l
}

// write adds frames and sends all there is.
func (l *link) write(add func(*frameWriter)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if add(&l.mu.out); len(l.mu.out.buf) == 0 {
		return nil
	}
	err := l.flush()
	l.mu.out.written()
	return err
}

// flush sends the buffer. Each piece has a deadline of its own, so that a slow
// other end is told apart from a dead one. A snapshot has none: the disk at the
// other end may stall, and that somebody is there is seen by what it says.
func (l *link) flush() error {
	for b := l.mu.out.buf; len(b) > 0; {
		piece := b[:min(len(b), writeBytes)]
		if l.lane != Snapshot {
			if err := l.conn.SetWriteDeadline(time.Now().Add(l.p.o.WriteTimeout)); err != nil {
				return err
			}
		}
		n, err := l.conn.Write(piece)
		l.sent.Add(uint64(n))
		if err != nil {
			return fmt.Errorf("peer: write: %w", err)
		}
		b = b[n:]
	}
	return nil
}

func (l *link) writeFrame(t frameType, payload []byte) error {
	return l.write(func(w *frameWriter) {
		w.open()
		w.buf = append(w.buf, payload...)
		w.close(t)
	})
}

// ping asks for a sign of life. Its time comes back.
func (l *link) ping(w *frameWriter, now time.Time) {
	w.open()
	w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(now.Sub(l.p.born)))
	w.close(framePing)
}

// pong answers a ping with its own payload, and with the wall clock.
func (l *link) pong(payload []byte) error {
	return l.write(func(w *frameWriter) {
		w.open()
		w.buf = append(w.buf, payload[:min(len(payload), 8)]...)
		w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(time.Now().UnixNano()))
		w.close(framePong)
	})
}

// bye tells the other end why the connection ends, if it still listens.
func (l *link) bye(r *Refused) {
	l.conn.SetWriteDeadline(time.Now().Add(time.Second)) // also wakes a writer that is stuck
	l.writeFrame(frameBye, append([]byte{uint8(r.Reason)}, r.Text[:min(len(r.Text), textBytesMax)]...))
	l.conn.Close()
}

// parseBye is the inverse of bye.
func parseBye(payload []byte) *Refused {
	if len(payload) == 0 {
		return &Refused{Reason: Malformed}
	}
	return &Refused{Reason: Reason(payload[0]), Text: string(payload[1:])}
}

// patient reads from a link's connection. It gives up when nothing at all
// arrives for the read timeout; a frame may take as long as it likes while it
// makes progress. A caller that sends such a frame gets no answer to pings
// meanwhile, so patient tells it now and then that it still listens.
type patient struct {
	link      *link
	dismissed *atomic.Pointer[Refused] // nil where this side has called
	deadline  time.Time
	told      time.Time
}

func (r *patient) Read(b []byte) (int, error) {
	l := r.link
	now := time.Now()
	timeout := l.p.o.ReadTimeout
	if r.deadline.Sub(now) < timeout-timeout/8 {
		r.deadline = now.Add(timeout)
		if err := l.conn.SetReadDeadline(r.deadline); err != nil {
			return 0, err
		}
	}
	// Whoever dismisses sets a deadline too, after this is set.
	if r.dismissed != nil {
		if why := r.dismissed.Load(); why != nil {
			return 0, why
		}
	}
	n, err := l.conn.Read(b)
	l.received.Add(uint64(n))
	if r.dismissed != nil && now.Sub(r.told) > timeout/4 && err == nil {
		if !r.told.IsZero() {
			err = l.writeFrame(frameAlive, nil)
		}
		r.told = now
	}
	return n, err
}
