//go:build unix

package listen

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// socket is a TCP or unix connection that can be asked for what needs no
// waiting.
type socket struct {
	counted
	raw syscall.RawConn

	// Owned by the one who reads.
	tryRead  func(fd uintptr) (done bool) // made once
	lend     func() []byte
	giveBack func()
	n        int
	err      error
}

// newSocket returns c as a socket, or as it is, if it is none.
func newSocket(c counted) net.Conn {
	beneath, ok := c.Conn.(syscall.Conn)
	if !ok {
		return &c
	}
	raw, err := beneath.SyscallConn()
	if err != nil {
		return &c
	}
	s := &socket{counted: c, raw: raw}
	s.tryRead = s.readOnce
	return s
}

// ReadLent reads into a buffer that it is lent when there may be something to
// read, and gives back before it waits: who is silent costs no buffer.
func (s *socket) ReadLent(lend func() []byte, giveBack func()) (int, error) {
	s.lend, s.giveBack, s.n, s.err = lend, giveBack, 0, nil
	err := s.raw.Read(s.tryRead)
	s.received.Add(uint64(s.n))
	if err == nil {
		err = s.err
	}
	return s.n, err
}

func (s *socket) readOnce(fd uintptr) bool {
	n, err := ignoreInterrupts(syscall.Read, fd, s.lend())
	switch {
	case errors.Is(err, syscall.EAGAIN):
		s.giveBack()
		return false
	case err != nil:
		s.err = err
	case n == 0:
		s.err = io.EOF
	default:
		s.n = n
	}
	return true
}

// TryWrite writes of p what the system takes at once, which may be nothing.
func (s *socket) TryWrite(p []byte) (int, error) {
	w := writes.Get().(*write)
	w.b, w.n, w.err = p, 0, nil
	err := s.raw.Write(w.try)
	if err == nil {
		err = w.err
	}
	n := w.n
	w.b, w.err = nil, nil
	writes.Put(w)
	s.sent.Add(uint64(n))
	return n, err
}

// write is one TryWrite.
type write struct {
	try func(fd uintptr) (done bool) // made once
	b   []byte
	n   int
	err error
}

var writes = sync.Pool{New: func() any {
	w := &write{}
	w.try = w.run
	return w
}}

func (w *write) run(fd uintptr) bool {
	for w.n < len(w.b) {
		n, err := ignoreInterrupts(syscall.Write, fd, w.b[w.n:])
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		if err != nil {
			w.err = err
			break
		}
		w.n += n
	}
	return true
}

func ignoreInterrupts(do func(int, []byte) (int, error), fd uintptr, b []byte) (int, error) {
	for {
		n, err := do(int(fd), b)
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// CloseWrite tells the other side that nothing more will be written.
func (s *socket) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
