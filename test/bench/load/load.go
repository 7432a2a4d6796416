// Package load drives a server of the etcd v3 API as hard as it can take while
// costing the machine as little as possible: about 2 µs of CPU a request, where
// a client of general use spends ten times that. It holds the loads, the
// messages and the HTTP/2 they need; it knows nothing of
// processes, of kvorum or of etcd.
//
// Each load is a closed loop: a fixed number of callers, each with one request
// under way, each asking again as soon as it is answered. So a slower server is
// asked less, and its latencies are those of a full house, not of an overrun one.
//
// Every answer is judged for what it says: a server that answers fast but
// wrongly shows as errors, never as speed.
package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kvorum/kvorum/internal/histogram"
)

// Options tell where, how hard and for how long a load runs.
type Options struct {
	Addr    string      // host:port
	Others  []string    // more of them; connections go to each in turn
	TLS     *tls.Config // nil: plain HTTP/2
	Conns   int         // default 1
	Streams int         // callers on each connection, default 1
	Seed    uint64      // of all that is random, default 0

	// A run ends with the first of these, or with its context.
	Requests int64         // default 0: any number
	Duration time.Duration // of the measured part; default 0: any time

	Warmup time.Duration // before the measured part, default 0

	// Meter reads the CPU time the server has used, at both ends of the
	// measured part. Default: not metered.
	Meter func() (time.Duration, error)
}

// Result is what the measured part of a run showed. Errors are counted from the
// warm-up on: a run that has any proves nothing about speed.
type Result struct {
	Requests   int64 // answered, and answered rightly
	Errors     int64
	FirstError error
	Elapsed    time.Duration
	Latency    histogram.Histogram
	ClientCPU  time.Duration // this process
	ServerCPU  time.Duration // as metered
}

// Rate is right answers a second.
func (r *Result) Rate() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// PerRequest spreads a CPU time over the right answers.
func (r *Result) PerRequest(cpu time.Duration) time.Duration {
	if r.Requests == 0 {
		return 0
	}
	return cpu / time.Duration(r.Requests)
}

// Err is nil when every answer was right, and there was one.
func (r *Result) Err() error {
	switch {
	case r.Errors > 0:
		return fmt.Errorf("load: %d requests failed, the first with: %w", r.Errors, r.FirstError)
	case r.Requests == 0:
		return errors.New("load: nothing was answered")
	}
	return nil
}

// run is what the connections of one Run share.
type run struct {
	options   Options
	load      Load
	talks     TalkLoad     // nil: there is a load
	silent    atomic.Int64 // talks that are not ready
	ready     chan struct{}
	measuring atomic.Bool
	ended     atomic.Bool
	turns     atomic.Int64
}

func (o Options) addr(number int) string {
	if number %= len(o.Others) + 1; number > 0 {
		return o.Others[number-1]
	}
	return o.Addr
}

// turn hands out the number of the next request; false when there shall be none.
func (r *run) turn() (uint64, bool) {
	if r.ended.Load() {
		return 0, false
	}
	turn := r.turns.Add(1) - 1
	return uint64(turn), r.options.Requests == 0 || turn < r.options.Requests
}

func (r *run) caller(number int) Caller {
	return r.load.Caller(number, r.options.Conns*r.options.Streams, r.random(number))
}

func (r *run) random(number int) *rand.Rand {
	return rand.New(rand.NewPCG(r.options.Seed, uint64(number)))
}

func newRun(o Options) *run {
	o.Conns, o.Streams = max(o.Conns, 1), max(o.Streams, 1)
	if o.Meter == nil {
		o.Meter = func() (time.Duration, error) { return 0, nil }
	}
	return &run{options: o}
}

// dial makes all connections, or none.
func (r *run) dial() ([]*conn, error) {
	conns := make([]*conn, 0, r.options.Conns)
	for i := range r.options.Conns {
		c, err := dial(r, i)
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func closeAll(conns []*conn) {
	for _, c := range conns {
		c.net.Close()
	}
}

// collect adds up what the connections have counted. Their loops are over.
func (r *Result) collect(conns []*conn) {
	for _, c := range conns {
		r.Requests += c.done
		r.Errors += c.errors
		if r.FirstError == nil {
			r.FirstError = c.first
		}
		r.Latency.Merge(&c.latency)
	}
}

// Run drives the load and returns when every request is answered or given up.
// The error is for a run that could not begin or be measured; what went wrong
// with requests is in the Result.
func Run(ctx context.Context, load Load, o Options) (*Result, error) {
	r := newRun(o)
	r.load = load
	conns, err := r.dial()
	if err != nil {
		return nil, err
	}
	defer closeAll(conns)
	loops := make([]func(), len(conns))
	for i, c := range conns {
		loops[i] = c.loop
	}
	result, err := r.drive(ctx, loops)
	result.collect(conns)
	return result, err
}

// drive runs the loops, and measures them, until the run is over.
func (r *run) drive(ctx context.Context, each []func()) (*Result, error) {
	o := r.options
	var loops sync.WaitGroup
	over := make(chan struct{})
	begin := func() {
		for _, loop := range each {
			loops.Go(loop)
		}
		go func() {
			loops.Wait()
			close(over)
		}()
	}

	// With a warm-up the loops run before the measuring starts; without one, not
	// a single answer may be missed.
	if o.Warmup > 0 {
		begin()
		pause(ctx, over, o.Warmup)
	}
	server, errBefore := r.options.Meter()
	client, start := ownCPU(), time.Now()
	r.measuring.Store(true)
	if o.Warmup == 0 {
		begin()
	}
	pause(ctx, over, o.Duration)
	r.measuring.Store(false)
	result := &Result{Elapsed: time.Since(start), ClientCPU: ownCPU() - client}
	serverAfter, errAfter := r.options.Meter()
	result.ServerCPU = serverAfter - server

	r.ended.Store(true)
	<-over
	return result, errors.Join(errBefore, errAfter)
}

// Hold opens connections, has each caller ask once, and keeps them without
// asking anything more until release is called.
func Hold(ctx context.Context, load Load, o Options) (release func(), err error) {
	var conns []*conn
	release = func() { closeAll(conns) }
	for i := range o.Conns {
		r := newRun(o)
		r.load, r.options.Requests = load, int64(r.options.Streams)
		c, err := dial(r, i)
		if err == nil {
			conns = append(conns, c)
			c.loop()
			c.in, c.out = nil, nil
			err = errors.Join(c.first, ctx.Err())
		}
		if err != nil {
			release()
			return nil, err
		}
	}
	return release, nil
}

// pause returns after d (0: never), when the loops are over, or with ctx.
func pause(ctx context.Context, over <-chan struct{}, d time.Duration) {
	var timeout <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-timeout:
	case <-over:
	case <-ctx.Done():
	}
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // cannot fail with these arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func connect(addr string, trust *tls.Config) (net.Conn, error) {
	nc, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	if trust == nil {
		return nc, nil
	}
	config := trust.Clone()
	config.NextProtos = []string{http2Protocol}
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(addr) // it was dialled, so it parses
	}
	secure := tls.Client(nc, config)
	if err := secure.SetDeadline(time.Now().Add(patience)); err != nil {
		nc.Close()
		return nil, fmt.Errorf("load: %w", err)
	}
	if err := secure.Handshake(); err != nil {
		nc.Close()
		return nil, fmt.Errorf("load: TLS with %s: %w", addr, err)
	}
	if got := secure.ConnectionState().NegotiatedProtocol; got != http2Protocol {
		nc.Close()
		return nil, fmt.Errorf("load: %s speaks %q over TLS, not %q", addr, got, http2Protocol)
	}
	return secure, nil
}

const http2Protocol = "h2"

// Head asks the server, linearizably, at which revision it stands.
func Head(ctx context.Context, o Options) (int64, error) {
	a, err := ask(ctx, rangeRequest{key: []byte{0}}, o)
	if err == nil && a.revision == 0 {
		err = errors.New("a range answered without a revision")
	}
	return a.revision, err
}

// Count asks the server, linearizably, how many of the keys there are.
func Count(ctx context.Context, keys Keys, o Options) (int64, error) {
	keys = keys.filled()
	a, err := ask(ctx, rangeRequest{key: keys.append(nil, 0), end: keys.end(), limit: 1}, o)
	return a.number, err
}

func ask(ctx context.Context, r rangeRequest, o Options) (answer, error) {
	q := question{rangeRequest: r}
	o.Conns, o.Streams, o.Requests = 1, 1, 1
	result, err := Run(ctx, &q, o)
	if err == nil {
		err = result.Err()
	}
	return q.answer, err
}

// question is one range, asked once.
type question struct {
	rangeRequest
	answer answer
}

func (q *question) Caller(int, int, *rand.Rand) Caller { return q }

func (q *question) Ask(message []byte, _ uint64) (Method, []byte) {
	return KVRange, appendRange(message, q.rangeRequest)
}

// Judge keeps the answer, but for what lies in the message.
func (q *question) Judge(message []byte) error {
	a, err := readRange(message)
	q.answer = answer{revision: a.revision, number: a.number}
	return err
}
