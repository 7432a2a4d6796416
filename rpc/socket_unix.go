//go:build unix

package rpc

import (
	"errors"
	"net"
	"syscall"
)

// socket writes what the system takes at once, so that whoever has an answer
// can write it without being made to wait.
type socket struct {
	conn halfCloser
	raw  syscall.RawConn

	write func(fd uintptr) bool // made once
	b     []byte
	n     int
	err   error
}

type halfCloser interface {
	syscall.Conn
	CloseWrite() error
}

// newSocket returns the socket of c, or nil if c is not just one. What merely
// says that there is a socket beneath it may encrypt.
func newSocket(c net.Conn) *socket {
	var conn halfCloser
	switch c := c.(type) {
	case *net.TCPConn:
		conn = c
	case *net.UnixConn:
		conn = c
	default:
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	s := &socket{conn: conn, raw: raw}
	s.write = func(fd uintptr) bool {
		for s.n < len(s.b) {
			n, err := syscall.Write(int(fd), s.b[s.n:])
			switch {
			case err == nil:
				s.n += n
			case errors.Is(err, syscall.EAGAIN):
				return true
			case !errors.Is(err, syscall.EINTR):
				s.err = err
				return true
			}
		}
		return true
	}
	return s
}

// try writes of b what it can without waiting.
func (s *socket) try(b []byte) (int, error) {
	s.b, s.n, s.err = b, 0, nil
	if err := s.raw.Write(s.write); err != nil {
		return 0, err
	}
	s.b = nil
	return s.n, s.err
}

// end tells the other side that nothing more will be written.
func (s *socket) end() { _ = s.conn.CloseWrite() } // fails when there is nobody to tell
