package listen

import (
	"net"
	"sync"
)

// Rest is a listener of connections that somebody else has begun to read, and
// leaves to who serves it.
type Rest struct {
	// Immutable.
	addr   net.Addr
	ready  chan net.Conn
	closed chan struct{}
	close  func()
}

// NewRest returns a Rest of what came in at an address.
func NewRest(addr net.Addr) *Rest {
	r := &Rest{addr: addr, ready: make(chan net.Conn), closed: make(chan struct{})}
	r.close = sync.OnceFunc(func() { close(r.closed) })
	return r
}

// Give has a connection served as if nothing had been read of it.
func (r *Rest) Give(c net.Conn, read []byte) {
	c = &replay{Conn: c, head: read}
	select {
	case r.ready <- c:
	case <-r.closed:
		c.Close()
	}
}

// Accept waits for the next connection that is given.
func (r *Rest) Accept() (net.Conn, error) {
	select {
	case c := <-r.ready:
		return c, nil
	case <-r.closed:
		return nil, net.ErrClosed
	}
}

// Addr returns where the connections came in.
func (r *Rest) Addr() net.Addr { return r.addr }

// Close closes all that is given from now on.
func (r *Rest) Close() error {
	r.close()
	return nil
}
