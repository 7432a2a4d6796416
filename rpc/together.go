package rpc

import (
	"context"
	"sync"
	"time"
)

// Together is for a method whose calls wait for something that serves many of
// them at once. They are gathered, wait once, and are answered one after the
// other by one goroutine; meanwhile the next ones are gathered.
type Together struct {
	// Joins tells whether a call waits with others. It runs on the goroutine
	// that reads the connection, and must not wait.
	Joins func(in []byte) bool

	// Wait returns when those may be answered who had joined when it was called,
	// or when ctx ends, since the server stops.
	Wait func(ctx context.Context) error

	// Handle answers a call that has come at a time, given what Wait returned.
	// It must not wait.
	Handle func(ctx context.Context, in, out []byte, came time.Time, err error) (answer []byte, _ error)
}

// gathering is the calls of a method that wait together.
type gathering struct {
	Together
	server *Server

	mu struct {
		sync.Mutex
		joined []joined
		active bool // somebody waits, and will look for those who have joined since
	}
}

type joined struct {
	call *stream
	came time.Time
}

// join adds a call, which begins to wait when the reader of its connection has
// nothing more to read. Its connection's mu is held.
func (g *gathering) join(s *stream) {
	s.handling = true
	s.c.running.Add(1)
	s.c.joined = g
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.joined = append(g.mu.joined, joined{s, time.Now()})
}

// begin lets those wait who have joined.
func (g *gathering) begin() {
	g.mu.Lock()
	first := !g.mu.active && len(g.mu.joined) > 0
	g.mu.active = g.mu.active || first
	g.mu.Unlock()
	if first {
		g.server.workers.start(g)
	}
}

// run waits for those who have joined, lets somebody else wait for those who
// come meanwhile, and answers.
func (g *gathering) run(*worker) {
	g.mu.Lock()
	all := g.mu.joined
	g.mu.joined = make([]joined, 0, len(all))
	g.mu.Unlock()

	err := g.Wait(g.server.stopping)

	g.mu.Lock()
	g.mu.active = len(g.mu.joined) > 0
	more := g.mu.active
	g.mu.Unlock()
	if more {
		g.server.workers.start(g)
	}
	for i := range all {
		g.answer(&all[i], err)
		// What is answered together leaves together: the calls of a connection
		// mostly lie side by side.
		if c := all[i].call.c; i+1 == len(all) || all[i+1].call.c != c {
			c.flush()
		}
	}
	for i := range all {
		all[i].call.c.running.Done()
	}
}

func (g *gathering) answer(j *joined, err error) {
	s, c := j.call, j.call.c
	buf := newBuffer()
	buf.b = append(buf.b, make([]byte, prefixBytes)...)
	out, err := g.Handle(s, s.received.b[s.at+prefixBytes:], buf.b, j.came, err)
	if err == nil {
		buf.b = out
		err = s.seal(buf)
	}
	if err != nil {
		buf.free()
		buf = nil
	}
	s.dropReceived()
	c.mu.Lock()
	if buf != nil {
		c.answer(s, buf.b, buf, nil)
	} else {
		c.answer(s, nil, nil, err)
	}
	c.mu.Unlock()
}
