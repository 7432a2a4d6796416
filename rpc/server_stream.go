package rpc

import (
	"context"
	"io"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// run runs the handler.
func (s *stream) run(w *worker) {
	c := s.c
	defer c.running.Done()
	if s.method.unary == nil {
		err := s.runStream()
		c.mu.Lock()
		c.answer(s, nil, nil, err)
		s.dropReceived()
		c.mu.Unlock()
		c.flushSoon()
		return
	}

	buf, err := s.runUnary(w)
	c.handling.Add(-1)
	c.mu.Lock()
	if err == nil {
		c.answer(s, buf.b, buf, nil)
	} else {
		c.answer(s, nil, nil, err)
	}
	c.mu.Unlock()
	c.flushSoon()
}

func (s *stream) runUnary(w *worker) (*buffer, error) {
	// Nobody but this handler touches it any more.
	in := s.received.b[s.at:]
	defer s.dropReceived()

	if s.method.fast.Handle != nil && s.head.codec == nil {
		return s.runFast(in)
	}
	w.call, w.in = s, in
	reply, err := s.method.unary.Handler(s.method.impl, s, w.decode, s.c.options.UnaryInterceptor)
	w.call, w.in = nil, nil
	if err != nil {
		return nil, err
	}
	return s.encode(reply)
}

func (s *stream) runFast(in []byte) (*buffer, error) {
	in, err := s.plain(in)
	if err != nil {
		return nil, err
	}
	buf := newBuffer()
	buf.b = append(buf.b, make([]byte, prefixBytes)...)
	if out, err := s.method.fast.Handle(s, in, buf.b); err != nil {
		buf.free()
		return nil, err
	} else {
		buf.b = out
	}
	if err := s.seal(buf); err != nil {
		buf.free()
		return nil, err
	}
	return buf, nil
}

func (s *stream) runStream() error {
	ss := &serverStream{s: s}
	if intercept := s.c.options.StreamInterceptor; intercept != nil {
		return intercept(s.method.impl, ss, s.method.info, s.method.stream.Handler)
	}
	return s.method.stream.Handler(s.method.impl, ss)
}

// serverStream is a call as the handler of a streaming method sees it.
type serverStream struct {
	s   *stream
	any bool // a message was received
}

func (ss *serverStream) Context() context.Context { return ss.s }

func (ss *serverStream) SetHeader(md metadata.MD) error {
	if err := checkMetadata(md); err != nil {
		return err
	}
	return (*transportStream)(ss.s).SetHeader(md)
}

func (ss *serverStream) SendHeader(md metadata.MD) error {
	if err := checkMetadata(md); err != nil {
		return err
	}
	return (*transportStream)(ss.s).SendHeader(md)
}

func (ss *serverStream) SetTrailer(md metadata.MD) { _ = (*transportStream)(ss.s).SetTrailer(md) }

// SendMsg returns when the message, or all of Messages, is on its way: it waits
// for the client's windows and for those who came before.
func (ss *serverStream) SendMsg(m any) error {
	s, c := ss.s, ss.s.c
	var buf *buffer
	var err error
	if all, many := m.(*Messages); many {
		buf, err = s.sealAll(all)
	} else {
		buf, err = s.encode(m)
	}
	if err != nil {
		ss.fail(err)
		return err
	}
	if buf == nil {
		return nil
	}
	c.mu.Lock()
	if s.closed || s.answered || s.ending.over() {
		c.mu.Unlock()
		buf.free()
		return s.goneError()
	}
	c.send(s, buf.b, buf)
	c.mu.Unlock()
	c.flushSoon()

	c.mu.Lock()
	defer c.mu.Unlock()
	for len(s.sending) > 0 && !s.ending.over() {
		s.waiting.toSend.Wait()
	}
	if s.closed || len(s.sending) > 0 {
		return s.goneError()
	}
	return nil
}

// RecvMsg waits for the next message, and gives all that are there to Messages.
func (ss *serverStream) RecvMsg(m any) error {
	all, many := m.(*Messages)
	if many {
		all.drop()
	}
	b, err := ss.receive(many)
	ss.s.c.flush() // the client may send on
	switch {
	case err != nil:
	case many:
		err = ss.s.fill(all, b)
	default:
		err = ss.s.decode(b.b, m)
		b.free()
	}
	if err != nil && err != io.EOF {
		ss.fail(err)
	}
	return err
}

// fail ends the call because of a message that cannot be.
func (ss *serverStream) fail(err error) {
	s, c := ss.s, ss.s.c
	c.mu.Lock()
	if !s.closed && !s.answered {
		s.answered, s.status = true, status.Convert(err)
		if len(s.sending) == 0 {
			c.sendTrailer(s)
		}
	}
	c.mu.Unlock()
	c.flush()
}

// receive returns the next message, with its prefix, or all that are there.
func (ss *serverStream) receive(many bool) (*buffer, error) {
	s, c := ss.s, ss.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := ss.awaitMessage()
	if err != nil {
		return nil, err
	}
	if many {
		n = s.wholeMessages()
	}
	buf := s.taken(n)
	if s.granted > 0 {
		c.returnGrant(s)
	}
	c.refill(s)
	ss.any = true
	if ss.s.method.stream.ClientStreams {
		return buf, nil
	}

	// There must not be a second one.
	switch n, err := ss.awaitMessage(); {
	case err == io.EOF:
		return buf, nil
	case n > 0:
		err = errManyMessages
		fallthrough
	default:
		buf.free()
		return nil, err
	}
}

// awaitMessage waits for a whole message and returns its length with prefix,
// or io.EOF when there will be none. c.mu is held, but not while waiting.
func (ss *serverStream) awaitMessage() (int, error) {
	s, c := ss.s, ss.s.c
	for {
		if s.closed || s.ending.over() {
			return 0, s.goneError()
		}
		b := s.unread()
		if len(b) >= prefixBytes {
			n, err := s.checkPrefix(b)
			if err != nil {
				return 0, err
			}
			if len(b) >= prefixBytes+n {
				return prefixBytes + n, nil
			}
			if !s.receivedAll {
				c.wantWindow(s, prefixBytes+n-len(b))
			}
		}
		if s.receivedAll {
			switch {
			case len(b) > 0:
				return 0, errTruncated
			case !ss.any && !s.method.stream.ClientStreams:
				return 0, errNoMessage
			}
			return 0, io.EOF
		}
		if c.canWrite() && !c.out.writing {
			c.mu.Unlock()
			c.flush() // the client may wait for a wider window
			c.mu.Lock()
			continue
		}
		s.waiting.toReceive.Wait()
	}
}
