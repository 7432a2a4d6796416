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
	measuring atomic.Bool
	ended     atomic.Bool
	turns     atomic.Int64
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
	random := rand.New(rand.NewPCG(r.options.Seed, uint64(number)))
	return r.load.Caller(number, r.options.Conns*r.options.Streams, random)
}

// Run drives the load and returns when every request is answered or given up.
// The error is for a run that could not begin or be measured; what went wrong
// with requests is in the Result.
func Run(ctx context.Context, load Load, o Options) (*Result, error) {
	o.Conns, o.Streams = max(o.Conns, 1), max(o.Streams, 1)
	if o.Meter == nil {
		o.Meter = func() (time.Duration, error) { return 0, nil }
	}
	r := &run{options: o, load: load}

	conns := make([]*conn, 0, o.Conns)
	defer func() {
		for _, c := range conns {
			c.net.Close()
		}
	}()
	for i := range o.Conns {
		c, err := dial(r, i)
		if err != nil {
			return nil, err
		}
		conns = append(conns, c)
	}

	var loops sync.WaitGroup
	over := make(chan struct{})
	begin := func() {
		for _, c := range conns {
			loops.Go(c.loop)
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
	server, errBefore := o.Meter()
	client, start := ownCPU(), time.Now()
	r.measuring.Store(true)
	if o.Warmup == 0 {
		begin()
	}
	pause(ctx, over, o.Duration)
	r.measuring.Store(false)
	result := &Result{Elapsed: time.Since(start), ClientCPU: ownCPU() - client}
	serverAfter, errAfter := o.Meter()
	result.ServerCPU = serverAfter - server

	r.ended.Store(true)
	<-over
	for _, c := range conns {
		result.Requests += c.done
		result.Errors += c.errors
		if result.FirstError == nil {
			result.FirstError = c.first
		}
		result.Latency.Merge(&c.latency)
	}
	return result, errors.Join(errBefore, errAfter)
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

func connect(o Options) (net.Conn, error) {
	nc, err := net.DialTimeout("tcp", o.Addr, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	if o.TLS == nil {
		return nc, nil
	}
	config := o.TLS.Clone()
	config.NextProtos = []string{http2Protocol}
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(o.Addr) // it was dialled, so it parses
	}
	secure := tls.Client(nc, config)
	if err := secure.SetDeadline(time.Now().Add(patience)); err != nil {
		nc.Close()
		return nil, fmt.Errorf("load: %w", err)
	}
	if err := secure.Handshake(); err != nil {
		nc.Close()
		return nil, fmt.Errorf("load: TLS with %s: %w", o.Addr, err)
	}
	if got := secure.ConnectionState().NegotiatedProtocol; got != http2Protocol {
		nc.Close()
		return nil, fmt.Errorf("load: %s speaks %q over TLS, not %q", o.Addr, got, http2Protocol)
	}
	return secure, nil
}

const http2Protocol = "h2"

// Head asks the server, linearizably, at which revision it stands.
func Head(ctx context.Context, o Options) (int64, error) {
	var h head
	o.Conns, o.Streams, o.Requests = 1, 1, 1
	result, err := Run(ctx, &h, o)
	if err == nil {
		err = result.Err()
	}
	return h.revision, err
}

type head struct{ revision int64 }

func (h *head) Caller(int, int, *rand.Rand) Caller { return h }

func (h *head) Ask(message []byte, _ uint64) (Method, []byte) {
	return KVRange, appendRange(message, rangeRequest{key: []byte{0}})
}

func (h *head) Judge(message []byte) error {
	a, err := readRange(message)
	if err == nil && a.revision == 0 {
		err = errors.New("a range answered without a revision")
	}
	h.revision = a.revision
	return err
}
