package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/fault"
)

// Handler answers the calls of one method. It must not keep body. Its context
// ends when the caller does not wait any more. A refusal reaches the caller as
// the refusal it is, any other error as text.
type Handler func(ctx context.Context, from uint64, body []byte) ([]byte, error)

// Why a call had no answer.
var (
	errUnreachable = errors.New("peer: member cannot be reached")

	// ErrLost says that the connection broke: the call may have been executed.
	ErrLost = errors.New("peer: connection lost during a call")

	errAnswer = errors.New("peer: malformed answer")
)

// Handle registers who answers calls of a method.
func (p *Peers) Handle(method string, h Handler) {
	if len(method) > textBytesMax {
		panic("peer: method name too long: " + method)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.handlers[method] = h
}

// call is a request of this member.
type call struct {
	id       uint64
	method   string
	body     []byte
	deadline time.Time // zero: none
	of       *call     // if set, this is not a call but the end of one
	done     chan struct{}
	once     sync.Once
	answer   []byte
	err      error
}

var callIDs atomic.Uint64

func (c *call) end(answer []byte, err error) {
	c.once.Do(func() {
		c.answer, c.err = answer, err
		close(c.done)
	})
}

// Call has a member answer a request. The body must not change until it
// returns.
func (p *Peers) Call(ctx context.Context, to uint64, method string, body []byte) ([]byte, error) {
	m := (*p.members.Load())[to]
	if m == nil {
		return nil, fmt.Errorf("%w: %s is not known", errUnreachable, hex(to))
	}
	if len(body)+len(method)+callHeadBytes > p.o.MessageBytes {
		return nil, fault.RequestTooLarge
	}
	l := m.lanes[Calls-Urgent]
	c := &call{id: callIDs.Add(1), method: method, body: body, done: make(chan struct{})}
	c.deadline, _ = ctx.Deadline()
	if !l.put(item{call: c, size: 64 + len(body)}) {
		return nil, errUnreachable
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		c.end(nil, ctx.Err())
		if l.forget(c) {
			l.put(item{call: &call{id: c.id, of: c, done: make(chan struct{})}, size: 64})
		}
	}
	return c.answer, c.err
}

// forget says whether the call was sent, and not answered yet.
func (l *lane) forget(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, sent := l.mu.pending[c.id]
	delete(l.mu.pending, c.id)
	return sent
}

const callHeadBytes = 8 + 4 + 1

// encodeCall writes a call, unless nobody waits for it any more.
func (l *lane) encodeCall(w *frameWriter, c *call) {
	if c.of != nil {
		w.open()
		w.buf = binary.BigEndian.AppendUint64(w.buf, c.id)
		w.close(frameCancel)
		return
	}
	l.mu.Lock()
	select {
	case <-c.done:
		l.mu.Unlock()
		return
	default:
		l.mu.pending[c.id] = c
	}
	l.mu.Unlock()
	var timeout uint32 // milliseconds
	if !c.deadline.IsZero() {
		timeout = uint32(max(1, min(time.Until(c.deadline).Milliseconds(), 1<<31)))
	}
	w.open()
	w.buf = binary.BigEndian.AppendUint64(w.buf, c.id)
	w.buf = binary.BigEndian.AppendUint32(w.buf, timeout)
	w.buf = appendText(w.buf, c.method)
	w.buf = append(w.buf, c.body...)
	w.close(frameCall)
}

// What an answer is.
const (
	answerDone    = 0
	answerRefused = 1
	answerFailed  = 2
)

// answered gives an answer to whoever waits for it.
func (l *lane) answered(payload []byte) error {
	if len(payload) < 8+1+4 {
		return errAnswer
	}
	id, kind, code, rest := binary.BigEndian.Uint64(payload), payload[8], binary.BigEndian.Uint32(payload[9:]), payload[13:]
	l.mu.Lock()
	c := l.mu.pending[id]
	delete(l.mu.pending, id)
	l.mu.Unlock()
	if c == nil {
		return nil // nobody waits any more
	}
	switch kind {
	case answerDone:
		c.end(append([]byte(nil), rest...), nil)
	case answerRefused:
		c.end(nil, refusal(fault.Code(code), string(rest)))
	default:
		c.end(nil, fmt.Errorf("peer: member %s: %s", hex(l.to.id), rest))
	}
	return nil
}

// refusal returns the row of a fault: rows are compared by identity.
func refusal(code fault.Code, text string) *fault.Fault {
	for _, f := range fault.All {
		if f.Code == code && f.Text == text {
			return f
		}
	}
	return &fault.Fault{Code: code, Text: text} // of a newer version
}

// hangUp ends the calls that a broken connection had taken.
func (l *lane) hangUp() {
	l.mu.Lock()
	pending := l.mu.pending
	l.mu.pending = map[uint64]*call{}
	l.mu.Unlock()
	for _, c := range pending {
		c.end(nil, ErrLost)
	}
}

// answerCalls answers the calls of a connection until it ends. Before it waits
// for the last of them it gives the connection's seat away.
func (p *Peers) answerCalls(ctx context.Context, k *link, leave func()) error {
	ctx, cancel := context.WithCancel(ctx)
	s := callServer{p: p, k: k, running: map[uint64]context.CancelFunc{}}
	err := s.read(ctx)
	cancel()
	leave()
	s.handlers.Wait()
	return err
}

type callServer struct {
	// Immutable.
	p *Peers
	k *link

	handlers sync.WaitGroup

	mu      sync.Mutex
	running map[uint64]context.CancelFunc // under mu
}

func (s *callServer) read(ctx context.Context) error {
	for {
		t, payload, err := s.k.in.next()
		if err != nil {
			return err
		}
		switch t {
		case framePing:
			err = s.k.pong(payload)
		case frameCall:
			err = s.begin(ctx, payload)
		case frameCancel:
			if len(payload) != 8 {
				return fmt.Errorf("peer: cancel of %d bytes: %w", len(payload), errFrame)
			}
			s.mu.Lock()
			cancel := s.running[binary.BigEndian.Uint64(payload)]
			s.mu.Unlock()
			if cancel != nil {
				cancel()
			}
		default:
			err = fmt.Errorf("peer: frame of type %d: %w", t, errFrame)
		}
		if err != nil {
			return err
		}
	}
}

// begin has a call answered.
func (s *callServer) begin(ctx context.Context, payload []byte) error {
	if len(payload) < callHeadBytes {
		return fmt.Errorf("peer: call of %d bytes: %w", len(payload), errFrame)
	}
	id, timeout := binary.BigEndian.Uint64(payload), binary.BigEndian.Uint32(payload[8:])
	method, body, ok := cutText(payload[12:])
	if !ok {
		return fmt.Errorf("peer: call of %d bytes: %w", len(payload), errFrame)
	}
	s.p.mu.Lock()
	handler := s.p.mu.handlers[method]
	s.p.mu.Unlock()
	if handler == nil {
		return s.answer(id, nil, fmt.Errorf("no method %q", method))
	}

	var cancel context.CancelFunc
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(timeout)*time.Millisecond)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	s.mu.Lock()
	_, twice := s.running[id]
	full := len(s.running) >= s.p.o.CallsMax
	if !full && !twice {
		s.running[id] = cancel
	}
	s.mu.Unlock()
	switch {
	case twice:
		cancel()
		return fmt.Errorf("peer: call %d twice: %w", id, errFrame)
	case full:
		cancel()
		return s.answer(id, nil, fault.TooManyRequests)
	}
	body = append([]byte(nil), body...)
	s.handlers.Go(func() {
		defer cancel()
		answer, err := handler(ctx, s.k.id, body)
		s.mu.Lock()
		delete(s.running, id)
		s.mu.Unlock()
		if s.answer(id, answer, err) != nil {
			s.k.conn.Close() // the reader hears of it
		}
	})
	return nil
}

func (s *callServer) answer(id uint64, answer []byte, err error) error {
	kind, code := uint8(answerDone), uint32(0)
	if err == nil && len(answer)+13 > s.p.o.MessageBytes {
		err = fmt.Errorf("the answer has %d bytes, at most %d can be sent", len(answer), s.p.o.MessageBytes-13)
	}
	if f := fault.Of(err); f != nil {
		kind, code, answer = answerRefused, uint32(f.Code), []byte(f.Text)
	} else if err != nil {
		kind, answer = answerFailed, []byte(err.Error())
	}
	return s.k.write(func(w *frameWriter) {
		w.open()
		w.buf = binary.BigEndian.AppendUint64(w.buf, id)
		w.buf = append(w.buf, kind)
		w.buf = binary.BigEndian.AppendUint32(w.buf, code)
		w.buf = append(w.buf, answer...)
		w.close(frameAnswer)
	})
}
