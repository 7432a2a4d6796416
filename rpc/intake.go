package rpc

import (
	"sync"

	"golang.org/x/net/http2"
)

const (
	readBytes = 32 << 10 // taken from the socket at once

	// A connection waits with no more than this in hand, which is enough for
	// most requests.
	waitBytes = 1024
)

// intake is what it takes to read frames. Connections have one only while
// there is something to read: most of them are idle, and they are many.
type intake struct {
	c       *conn
	framer  *http2.Framer
	buf     [readBytes]byte
	at, end int    // buf[at:end] is unread
	scratch buffer // the answer that is made on the reader
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
		n, err := in.c.receive(in.buf[:])
		if in.at, in.end = 0, n; err != nil {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.at:in.end])
	in.at += n
	return n, nil
}

// awaitInput returns when there is something to read. It is called between
// frames.
func (c *conn) awaitInput() error {
	if c.in != nil && (c.in.at < c.in.end || c.block.open) {
		return nil
	}
	if c.in != nil {
		c.in.c = nil
		intakes.Put(c.in)
		c.in = nil
	}
	n, err := 0, error(nil)
	for n == 0 {
		if err != nil {
			return err
		}
		n, err = c.receive(c.first[:])
	}
	c.in = intakes.Get().(*intake)
	c.in.c, c.in.at, c.in.end = c, 0, copy(c.in.buf[:], c.first[:n])
	return nil
}

// dropInput ends reading.
func (c *conn) dropInput() {
	if c.in != nil {
		c.in.c = nil
		c.in.newFramer() // the other may wait for the end of a header block
		intakes.Put(c.in)
		c.in = nil
	}
}
