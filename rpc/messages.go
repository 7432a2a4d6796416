package rpc

import (
	"iter"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Messages are messages of a streaming method as protobuf encodes them, many at
// once: a handler that knows the encoding itself gives them to RecvMsg and
// SendMsg in place of a message. They work when empty.
//
// RecvMsg fills them with all that have come, and waits for one at least.
// SendMsg sends all of them, as if one after the other, and leaves none.
type Messages struct {
	buf   *buffer // each behind its prefix; nil: none
	count int
}

// Len returns how many there are.
func (m *Messages) Len() int { return m.count }

// Bytes returns how many bytes they take.
func (m *Messages) Bytes() int {
	if m.buf == nil {
		return 0
	}
	return len(m.buf.b)
}

// All yields the messages, each good until the next is received.
func (m *Messages) All() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if m.buf == nil {
			return
		}
		for framed := range framed(m.buf.b) {
			if !yield(framed[prefixBytes:]) {
				return
			}
		}
	}
}

// Add adds what encode appends.
func (m *Messages) Add(encode func(out []byte) []byte) {
	if m.buf == nil {
		m.buf = newBuffer()
	}
	at := len(m.buf.b)
	m.buf.b = encode(append(m.buf.b, make([]byte, prefixBytes)...))
	putLength(m.buf.b[at:], len(m.buf.b)-at-prefixBytes)
	m.count++
}

// drop leaves none.
func (m *Messages) drop() {
	m.buf.free()
	m.buf, m.count = nil, 0
}

// framed yields the whole messages that b begins with, each with its prefix.
func framed(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(b) >= prefixBytes {
			n := prefixBytes + messageLength(b)
			if n > len(b) || !yield(b[:n:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// wholeMessages returns how many bytes the messages take that can be received
// now, one of which there is. c.mu is held.
func (s *stream) wholeMessages() (n int) {
	for one := range framed(s.unread()) {
		if _, err := s.checkPrefix(one); err != nil && n > 0 {
			break // it ends the call once the others are received
		}
		n += len(one)
	}
	return n
}

var errOtherEncoding = status.Error(codes.Internal, "grpc: the messages of this method are protobuf")

// fill makes m the messages in buf, decompressed.
func (s *stream) fill(m *Messages, buf *buffer) error {
	m.drop()
	if s.head.codec != nil {
		buf.free()
		return errOtherEncoding
	}
	plain := true
	for one := range framed(buf.b) {
		m.count++
		plain = plain && one[0] == 0
	}
	if m.buf = buf; plain {
		return nil
	}
	m.buf, m.count = nil, 0
	defer buf.free()
	for one := range framed(buf.b) {
		body, err := s.plain(one)
		if err != nil {
			return err
		}
		m.Add(func(out []byte) []byte { return append(out, body...) })
	}
	return nil
}

// sealAll seals all of m, which has none then. There is no buffer if there was none.
func (s *stream) sealAll(m *Messages) (*buffer, error) {
	buf := m.buf
	m.buf, m.count = nil, 0
	if buf == nil {
		return nil, nil
	}
	if s.head.codec != nil {
		buf.free()
		return nil, errOtherEncoding
	}
	all := buf
	if s.head.compressor != nil {
		all = newBuffer()
		defer buf.free()
	}
	for one := range framed(buf.b) {
		sealed := buffer{one}
		if err := s.seal(&sealed); err != nil {
			all.free()
			return nil, err
		}
		if all != buf {
			all.b = append(all.b, sealed.b...)
		}
	}
	return all, nil
}
