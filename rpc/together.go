package rpc

import "sync/atomic"

// Together is for methods whose calls wait for something that serves many of
// them at once. Those of a connection are gathered while there is more to read,
// and then wait as one party. One goroutine answers them, one after the other,
// so that their answers leave in few writes.
type Together struct {
	New func() Party // which nobody has joined
}

// Party is calls that wait together. Fast.Now lets them join.
type Party interface {
	// Begin is called once, if anybody has joined, and returns at once. When the
	// party need not wait any longer, all has to be called, which has everybody
	// answered. Before, early has only the i-th answered; once it was called for
	// everybody, all must not be. One goroutine at a time calls them.
	Begin(early func(i int), all func())

	// Answer appends the message of the answer to the i-th who has joined. It
	// must not wait. It is called once for each, by several goroutines.
	Answer(i int, out []byte) (answer []byte, err error)

	// Free is called when everybody has been answered.
	Free()
}

// Then says what follows Fast.Now.
type Then int

const (
	Answered Then = iota
	Joined        // the party: it will answer
	Alone         // Handle is asked
)

// gathering is a party of calls of one connection.
type gathering struct {
	together *Together
	party    Party
	conn     *conn
	calls    []*stream // nil: it was answered early

	open  atomic.Int64 // calls not answered yet
	state atomic.Int32
}

// The reader begins a party. What this waits for may be there at once, and then
// the reader answers it itself.
const (
	beginning = iota
	waits
	ready
)

// party returns the gathering of calls which wait together that has not begun.
// Only the reader calls it.
func (c *conn) party(t *Together) *gathering {
	for _, g := range c.gathered {
		if g.together == t {
			return g
		}
	}
	g := &gathering{together: t, party: t.New(), conn: c}
	c.gathered = append(c.gathered, g)
	return g
}

// join adds a call. Its connection's mu is held.
func (g *gathering) join(s *stream) {
	s.handling = true
	g.calls = append(g.calls, s)
}

// beginParties lets those wait who have been gathered. Only the reader calls it.
func (c *conn) beginParties() {
	for i, g := range c.gathered {
		c.gathered[i] = nil
		if len(g.calls) == 0 {
			g.party.Free()
			continue
		}
		c.running.Add(1)
		g.open.Store(int64(len(g.calls)))
		g.party.Begin(g.early, g.all)
		if !g.state.CompareAndSwap(beginning, waits) {
			g.run(nil)
		}
	}
	c.gathered = c.gathered[:0]
}

// all has everybody answered who is left.
func (g *gathering) all() {
	if !g.state.CompareAndSwap(beginning, ready) {
		g.conn.server.workers.start(g)
	}
}

// early has one call answered before the others.
func (g *gathering) early(i int) {
	s := g.calls[i]
	g.calls[i] = nil
	g.conn.server.workers.start(&leaver{g, i, s})
}

// leaver is a call that leaves its party.
type leaver struct {
	g *gathering
	i int
	s *stream
}

func (l *leaver) run(*worker) {
	buf := newBuffer()
	defer buf.free()
	answers := []written{l.g.answer(l.i, l.s, buf)}
	l.g.send(buf, answers)
	l.g.close(1)
}

// written is an answer in a buffer that it shares with others.
type written struct {
	s        *stream
	from, to int
	err      error
}

// run answers all who are left.
func (g *gathering) run(*worker) {
	buf := newBuffer()
	defer buf.free()
	answers, n := make([]written, 0, len(g.calls)), 0
	for i, s := range g.calls {
		if s == nil {
			continue
		}
		answers = append(answers, g.answer(i, s, buf))
		n++
		if len(buf.b) >= bufferMax/2 {
			g.send(buf, answers)
			answers = answers[:0]
		}
	}
	g.send(buf, answers)
	g.close(n)
}

// answer writes an answer to buf.
func (g *gathering) answer(i int, s *stream, buf *buffer) written {
	w := written{s: s, from: len(buf.b)}
	out, err := g.party.Answer(i, append(buf.b, make([]byte, prefixBytes)...))
	if err == nil {
		err = s.prefix(out[w.from:])
	}
	if err != nil {
		w.err = err
		return w
	}
	buf.b, w.to = out, len(out)
	return w
}

// send sends the answers in buf, which is empty then.
func (g *gathering) send(buf *buffer, answers []written) {
	c := g.conn
	c.mu.Lock()
	for _, w := range answers {
		if w.err != nil {
			c.answer(w.s, nil, nil, w.err)
		} else {
			c.answer(w.s, buf.b[w.from:w.to], nil, nil)
		}
	}
	c.mu.Unlock()
	c.flush()
	if cap(buf.b) > bufferMax {
		buf.b = nil
	}
	buf.b = buf.b[:0]
}

// close ends the gathering when everybody has been answered.
func (g *gathering) close(n int) {
	if g.open.Add(-int64(n)) == 0 {
		g.party.Free()
		g.conn.running.Done()
	}
}
