package web

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one connection.
type conn struct {
	server *Server
	net    net.Conn

	idle  atomic.Bool
	first [idleBytes]byte // read while idle

	wait atomic.Pointer[waiting] // what its client waits for, while it does
}

// serve answers requests until the client leaves, or a request is for others:
// then the connection is theirs, and it returns true.
func (c *conn) serve() (given bool) {
	for {
		n, err := c.awaitInput()
		if err != nil {
			c.hangUp()
			return false
		}
		if w := c.wait.Load(); w != nil {
			<-w.done // what it asks meanwhile has to wait as well
			if w.broken {
				return false
			}
		}
		b := buffers.Get().(*buffer)
		over, given := c.answer(b, copy(b.in[:], c.first[:n]))
		b.free()
		if over {
			return given
		}
		if c.server.stopping.Load() && c.wait.Load() == nil {
			return false
		}
	}
}

// awaitInput returns what the client sends first.
func (c *conn) awaitInput() (n int, err error) {
	c.idle.Store(true)
	defer c.idle.Store(false)
	if c.server.stopping.Load() && c.wait.Load() == nil {
		return 0, net.ErrClosed
	}
	for n == 0 && err == nil {
		n, err = c.net.Read(c.first[:])
	}
	if n > 0 {
		err = nil // it comes again
	}
	return n, err
}

// closeIdle closes a connection on which nothing is asked or waited for.
func (c *conn) closeIdle() {
	if c.idle.Load() && c.wait.Load() == nil {
		c.net.Close()
	}
}

// answer answers all requests of which something is in b. over: no more is to
// be read here, since the connection is given away, or broken.
func (c *conn) answer(b *buffer, filled int) (over, given bool) {
	var r Request
	for at := 0; at < filled; {
		v, size := parse(b.in[at:filled], &r, c.server.o.Handler.Takes)
		switch {
		case v == foreign, v == partial && (size > len(b.in) || filled-at == len(b.in)):
			c.server.o.Rest(c.net, append([]byte(nil), b.in[at:filled]...))
			return true, true
		case v == partial:
			filled = copy(b.in[:], b.in[at:filled])
			at = 0
			n, err := c.readMore(b.in[filled:])
			if filled += n; err != nil {
				return true, false
			}
			continue
		}
		at += size
		var wait Wait
		b.out, wait = c.server.o.Handler.Answer(c.server.ctx, &r, b.out[:0])
		if _, err := c.net.Write(b.out); err != nil {
			if wait != nil {
				wait.Close()
			}
			return true, false
		}
		if wait == nil {
			continue
		}
		w := c.begin(wait)
		if at == filled {
			return false, false
		}
		<-w.done
		if w.broken {
			return true, false
		}
	}
	return false, false
}

// readMore reads what belongs to a request that has begun.
func (c *conn) readMore(p []byte) (int, error) {
	if err := c.net.SetReadDeadline(time.Now().Add(headTimeout)); err != nil {
		return 0, err
	}
	n, err := c.net.Read(p)
	if err == nil {
		err = c.net.SetReadDeadline(time.Time{})
	}
	return n, err
}

// waiting is a client that waits for what happens.
type waiting struct {
	conn *conn
	done chan struct{} // closed when it waits no more
	news atomic.Int32  // see wake

	mu     sync.Mutex // held by who tells it something
	wait   Wait       // nil: it waits no more
	broken bool       // and nothing more can be said to it; read after done
}

const (
	silent  = iota
	telling // somebody looks what there is to tell
	again   // and has to look again
)

func (c *conn) begin(wait Wait) *waiting {
	w := &waiting{conn: c, done: make(chan struct{}), wait: wait}
	c.wait.Store(w)
	wait.Notify(w.wake)
	w.wake() // for what was there before
	return w
}

// wake has somebody look what there is to tell. It is called where nobody may
// be made to wait.
func (w *waiting) wake() {
	for {
		switch was := w.news.Load(); {
		case was == again:
			return
		case !w.news.CompareAndSwap(was, was+1):
		case was == silent:
			// The connection is among those who run, or hangs up.
			w.conn.server.running.Add(1)
			go w.tell()
			return
		default:
			return
		}
	}
}

func (w *waiting) tell() {
	defer w.conn.server.running.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.wait != nil {
		b := buffers.Get().(*buffer)
		var done bool
		b.out, done = w.wait.Next(b.out[:0])
		var err error
		if len(b.out) > 0 {
			_, err = w.conn.net.Write(b.out)
		}
		more := len(b.out) > 0 // there may be
		b.free()
		if done || err != nil {
			w.end(err != nil)
			return
		}
		if more {
			continue
		}
		if w.news.CompareAndSwap(telling, silent) {
			return
		}
		w.news.Store(telling)
	}
}

// end ends the wait. With w.mu held.
func (w *waiting) end(broken bool) {
	w.wait.Close()
	w.wait, w.broken = nil, broken
	w.conn.wait.Store(nil) // before the client may wait for something else
	close(w.done)
	if broken {
		w.conn.net.Close()
	} else if w.conn.server.stopping.Load() {
		w.conn.closeIdle()
	}
}

// hangUp forgets a client that has left.
func (c *conn) hangUp() {
	w := c.wait.Load()
	if w == nil {
		return
	}
	c.net.Close() // nobody is held up telling it something
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wait != nil {
		w.end(true)
	}
}
