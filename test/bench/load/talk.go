package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// A TalkLoad is a kind of work that is done in calls that go on.
type TalkLoad interface {
	// Talk makes the talk with the given number out of so many, which share
	// nothing.
	Talk(number, of int, random *rand.Rand) Talk
}

// A Talk is one such call: a stream on which many messages are said and heard.
type Talk interface {
	// Open says what comes first.
	Open(*Line) Method

	// Hear takes a message, which is valid only during the call. An error means
	// that the server was wrong.
	Hear(line *Line, message []byte) error
}

// Line is how a talk speaks. It is valid only during calls of the talk.
type Line struct {
	conn   *conn
	stream *stream
}

// Say has the message sent that fill appends.
func (l *Line) Say(fill func([]byte) []byte) {
	s := l.stream
	if len(s.rest) == 0 {
		s.buffer = s.buffer[:0]
	}
	sent, start := len(s.buffer)-len(s.rest), len(s.buffer)
	s.buffer = fill(append(s.buffer, 0, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(s.buffer[start+1:], uint32(len(s.buffer)-start-5))
	s.rest = s.buffer[sent:]
}

// Now is when the message came that is being heard.
func (l *Line) Now() time.Time { return l.conn.now }

// Ready tells, once for each talk, that it is ready for what shall be measured.
func (l *Line) Ready() {
	if l.conn.run.silent.Add(-1) == 0 {
		close(l.conn.run.ready)
	}
}

// Count adds to what was told.
func (l *Line) Count(n int) {
	l.conn.told.Add(int64(n))
	if l.conn.run.measuring.Load() {
		l.conn.done += int64(n)
	}
}

// Took adds to the latencies.
func (l *Line) Took(d time.Duration) {
	if l.conn.run.measuring.Load() {
		l.conn.latency.Add(d)
	}
}

// open begins the talk's call.
func (c *conn) open(s *stream) {
	line := Line{c, s}
	c.begin(s, s.talk.Open(&line))
	c.speak(s)
}

// speak sends what was said.
func (c *conn) speak(s *stream) {
	if !c.push(s) && !slices.Contains(c.blocked, s) {
		c.blocked = append(c.blocked, s)
	}
}

// hear gives the talk every message that is whole.
func (c *conn) hear(s *stream, data []byte) error {
	if len(s.message) > 0 {
		s.message = append(s.message, data...)
		data = s.message
	}
	line := Line{c, s}
	for len(data) >= 5 {
		n := int(binary.BigEndian.Uint32(data[1:]))
		if len(data)-5 < n {
			break
		}
		if data[0] != 0 {
			return errors.New("the answer is compressed, which was not asked for")
		}
		if err := s.talk.Hear(&line, data[5:5+n]); err != nil {
			return err
		}
		data = data[5+n:]
	}
	s.message = append(s.message[:0], data...)
	c.speak(s)
	return nil
}

func (r *run) talk(number int) Talk {
	return r.talks.Talk(number, r.options.Conns*r.options.Streams, r.random(number))
}

// Talking is talks under way.
type Talking struct {
	run   *run
	conns []*conn
	loops sync.WaitGroup
	took  Result
}

// Begin starts the talks and returns when all of them are ready. End has to be
// called.
func Begin(ctx context.Context, talks TalkLoad, o Options) (*Talking, error) {
	r := newRun(o)
	r.talks, r.ready = talks, make(chan struct{})
	r.silent.Store(int64(r.options.Conns * r.options.Streams))
	conns, err := r.dial()
	if err != nil {
		return nil, err
	}
	t := &Talking{run: r, conns: conns}
	broken := make(chan struct{}, len(conns))
	for _, c := range conns {
		t.loops.Go(func() {
			c.loop()
			broken <- struct{}{}
		})
	}
	limit, cancel := context.WithTimeoutCause(ctx, readyPatience, fmt.Errorf("load: not ready after %v", readyPatience))
	defer cancel()
	select {
	case <-r.ready:
		return t, nil
	case <-broken:
		err = errors.New("load: a connection ended before all was ready")
	case <-limit.Done():
		err = context.Cause(limit)
	}
	return nil, errors.Join(err, t.End().FirstError)
}

const readyPatience = 2 * time.Minute

// Told is how much all talks were told, from their beginning on.
func (t *Talking) Told() (sum int64) {
	for _, c := range t.conns {
		sum += c.told.Load()
	}
	return sum
}

// Measure counts what is told from now until d has passed, or ctx is over.
func (t *Talking) Measure(ctx context.Context, d time.Duration) error {
	server, errBefore := t.run.options.Meter()
	client, start := ownCPU(), time.Now()
	t.run.measuring.Store(true)
	pause(ctx, nil, d)
	t.run.measuring.Store(false)
	t.took.Elapsed, t.took.ClientCPU = time.Since(start), ownCPU()-client
	after, errAfter := t.run.options.Meter()
	t.took.ServerCPU = after - server
	return errors.Join(errBefore, errAfter)
}

// End hangs up, and returns what was measured.
func (t *Talking) End() *Result {
	t.run.ended.Store(true)
	closeAll(t.conns)
	t.loops.Wait()
	t.took.collect(t.conns)
	return &t.took
}

// Watch is talks that listen.
type Watch struct {
	Watchers int // of each talk, default 1

	// Span is what the watcher with the given number, counted over all talks,
	// listens to; with an empty end it is one key.
	Span func(watcher int) (key, end []byte)

	From  int64 // revision, default what comes next
	Timed bool  // each value tells when it was put
}

func (l Watch) Talk(number, _ int, _ *rand.Rand) Talk {
	l.Watchers = max(l.Watchers, 1)
	return &watcher{Watch: l, first: number * l.Watchers}
}

type watcher struct {
	Watch
	first   int
	created int
}

func (w *watcher) Open(line *Line) Method {
	for i := range w.Watchers {
		line.Say(func(b []byte) []byte {
			key, end := w.Span(w.first + i)
			return appendWatch(b, key, end, w.From)
		})
	}
	return WatchWatch
}

func (w *watcher) Hear(line *Line, message []byte) error {
	var each func([]byte) error
	if w.Timed {
		each = func(event []byte) error {
			p, err := readEvent(event)
			if err == nil {
				line.Took(line.Now().Sub(stamped(p.value)))
			}
			return err
		}
	}
	t, err := readTold(message, each)
	switch {
	case err != nil:
		return err
	case t.canceled:
		return fmt.Errorf("a watcher was canceled: %s", t.reason)
	case t.created:
		if w.created++; w.created == w.Watchers {
			line.Ready()
		}
	}
	line.Count(t.events)
	return nil
}

// KeepAlive is talks that renew leases, so many at a time, as a client does that
// holds many. The leases have the numbers from 1 on.
type KeepAlive struct {
	Leases  int // in all, as many as talks or more
	AtATime int // of each talk, default 1
}

func (l KeepAlive) Talk(number, of int, _ *rand.Rand) Talk {
	own := l.Leases / of
	return &renewer{
		first: int64(number*own) + 1,
		own:   int64(own),
		began: make([]time.Time, max(l.AtATime, 1)),
	}
}

type renewer struct {
	first, own int64
	said       int64
	heard      int64
	began      []time.Time // of those that were said and not heard, in their turn
}

func (r *renewer) id(n int64) int64 { return r.first + n%r.own }

func (r *renewer) say(line *Line) {
	r.began[r.said%int64(len(r.began))] = line.Now()
	line.Say(func(b []byte) []byte { return appendKeepAlive(b, r.id(r.said)) })
	r.said++
}

func (r *renewer) Open(line *Line) Method {
	for range r.began {
		r.say(line)
	}
	return LeaseKeepAlive
}

// Hear wants answers in the order of the requests.
func (r *renewer) Hear(line *Line, message []byte) error {
	g, err := readGranted(message)
	if err != nil {
		return err
	}
	if want := r.id(r.heard); g.id != want || g.seconds <= 0 {
		return fmt.Errorf("keep-alive of lease %d answered with lease %d for %d seconds", want, g.id, g.seconds)
	}
	line.Took(line.Now().Sub(r.began[r.heard%int64(len(r.began))]))
	line.Count(1)
	if r.heard++; r.heard == 1 {
		line.Ready()
	}
	r.say(line)
	return nil
}
