package rpc

import (
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// readBytes are taken from the socket at once.
const readBytes = 32 << 10

// intake is what it takes to read frames. Connections have one only while
// there is something to read: most of them are idle, and they are many.
type intake struct {
	c        *conn
	framer   *http2.Framer
	block    block // of headers
	recalled block // of headers that came before
	buf      [readBytes]byte
	at, end  int    // buf[at:end] is unread
	scratch  buffer // the answer that is made on the reader
}

var intakes = sync.Pool{New: func() any {
	in := &intake{}
	in.newFramer()
	return in
}}

func (in *intake) newFramer() {
	in.framer = http2.NewFramer(nil, in)
	in.framer.SetMaxReadFrameSize(frameBytesMax)
	in.framer.SetReuseFrames()
}

// Read is how the framer reads.
func (in *intake) Read(p []byte) (int, error) {
	if in.at == in.end {
		in.c.turn()
		n, err := in.c.nc.Read(in.buf[:])
		for in.c.mayRest(err) { // but not here, amid a frame
			in.c.wake()
			n, err = in.c.nc.Read(in.buf[:])
		}
		in.c.heard()
		if in.at, in.end = 0, n; err != nil {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.at:in.end])
	in.at += n
	return n, nil
}

// awaitInput returns when there is something to read, or with errSilent when
// the reader shall rest. It is called between frames.
func (c *conn) awaitInput() error {
	if c.in != nil && (c.in.at < c.in.end || c.in.block.open) {
		return nil
	}
	c.turn()
	n, err := 0, error(nil)
	for n == 0 && err == nil {
		n, err = c.readIdle()
	}
	switch {
	case c.mayRest(err):
		c.returnIntake()
		return errSilent
	case err != nil:
		return err
	case c.rests:
		c.wake()
	}
	c.heard()
	c.in.at, c.in.end = 0, n
	return nil
}

// readIdle reads something, with nothing in hand while it waits.
func (c *conn) readIdle() (int, error) {
	if c.prompt != nil && !c.rests {
		return c.prompt.ReadLent(c.lend, c.giveBack)
	}
	c.returnIntake()
	n, err := c.nc.Read(c.first[:])
	if n == 0 {
		return 0, err
	}
	return copy(c.borrowIntake(), c.first[:n]), nil
}

// turn is between reading and waiting for more. It sees to it that no answer
// waits for the next request, and that a client which does not read its answers
// sends no more.
func (c *conn) turn() {
	c.beginParties()
	c.flush()
	c.mu.Lock()
	for len(c.out.ready) > unreadMax && !c.out.failed {
		c.room.Wait()
	}
	c.mu.Unlock()
}

func (c *conn) heard() { c.lastRead.Store(int64(time.Since(c.born))) }

func (c *conn) borrowIntake() []byte {
	if c.in == nil {
		c.in = intakes.Get().(*intake)
		c.in.c = c
	}
	return c.in.buf[:]
}

func (c *conn) returnIntake() {
	if c.in != nil {
		c.in.c = nil
		intakes.Put(c.in)
		c.in = nil
	}
}

// dropInput ends reading.
func (c *conn) dropInput() {
	if c.in != nil {
		// Both may wait for the end of a header block.
		c.in.newFramer()
		c.in.block = block{}
		c.returnIntake()
	}
}
