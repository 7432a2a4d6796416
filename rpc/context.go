package rpc

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// A call is its own context. What grpc's packages look for in it they find
// under keys that they keep to themselves, so that each value would take a
// context of its own around the call. Asking them once under which key they
// look spares all of these.
var (
	streamKey   = keyOf(func(ctx context.Context) { grpc.ServerTransportStreamFromContext(ctx) })
	metadataKey = keyOf(func(ctx context.Context) { metadata.ValueFromIncomingContext(ctx, "") })
	peerKey     = keyOf(func(ctx context.Context) { peer.FromContext(ctx) })
)

// spy is a context that remembers what it was asked for.
type spy struct {
	context.Context
	asked any
}

func (s *spy) Value(key any) any {
	s.asked = key
	return nil
}

func keyOf(ask func(context.Context)) any {
	s := &spy{Context: context.Background()}
	ask(s)
	must(s.asked != nil, "values are looked for in contexts")
	return s.asked
}

// ending is the part of a call's context that changes. Most calls end without
// anybody having asked for their end, and then it costs nothing.
type ending struct {
	sync.Mutex
	err   error
	done  chan struct{} // nil: nobody asked
	timer *time.Timer   // nil: nobody waits for the deadline
	after map[*func()]struct{}
}

func (e *ending) over() bool {
	e.Lock()
	defer e.Unlock()
	return e.err != nil
}

var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Deadline is the client's.
func (s *stream) Deadline() (time.Time, bool) { return s.deadline, !s.deadline.IsZero() }

// Done is closed when the call has been answered, its client is no longer
// interested, or its deadline has passed.
func (s *stream) Done() <-chan struct{} {
	e := &s.ending
	e.Lock()
	defer e.Unlock()
	if e.done == nil {
		if e.err != nil {
			e.done = closedChannel
		} else {
			e.done = make(chan struct{})
			s.watchDeadline()
		}
	}
	return e.done
}

// Err tells why Done is closed.
func (s *stream) Err() error {
	e := &s.ending
	e.Lock()
	defer e.Unlock()
	if e.err == nil && !s.deadline.IsZero() && !time.Now().Before(s.deadline) {
		e.end(context.DeadlineExceeded) // the timer, if any, is late, and may still wake the handler
	}
	return e.err
}

// Value finds what grpc's packages look for.
func (s *stream) Value(key any) any {
	switch key {
	case streamKey:
		return (*transportStream)(s)
	case metadataKey:
		return s.head.md
	case peerKey:
		return &s.c.peer
	}
	return nil
}

// Header returns what a call's client said first in the header of that name,
// which is in lower case. Package metadata would copy it.
func Header(ctx context.Context, name string) (value string, said bool) {
	md, _ := ctx.Value(metadataKey).(metadata.MD)
	if values := md[name]; len(values) > 0 {
		return values[0], true
	}
	return "", false
}

// AfterFunc has f run on a goroutine of its own when the call ends. Package
// context uses it for contexts that are derived from this one.
func (s *stream) AfterFunc(f func()) (stop func() bool) {
	e := &s.ending
	e.Lock()
	defer e.Unlock()
	if e.err != nil {
		go f()
		return func() bool { return false }
	}
	if e.after == nil {
		e.after = map[*func()]struct{}{}
		s.watchDeadline()
	}
	key := &f
	e.after[key] = struct{}{}
	return func() bool {
		e.Lock()
		defer e.Unlock()
		_, waiting := e.after[key]
		delete(e.after, key)
		return waiting
	}
}

// watchDeadline is called with ending locked.
func (s *stream) watchDeadline() {
	if s.ending.timer == nil && !s.deadline.IsZero() {
		s.ending.timer = time.AfterFunc(time.Until(s.deadline), s.expire)
	}
}

func (s *stream) expire() {
	s.cancel(context.DeadlineExceeded)
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.wake()
}

// cancel ends the context. Only the first reason counts.
func (s *stream) cancel(err error) {
	e := &s.ending
	e.Lock()
	defer e.Unlock()
	if e.timer != nil {
		e.timer.Stop()
	}
	if e.err == nil {
		e.end(err)
	}
}

func (e *ending) end(err error) {
	e.err = err
	if e.done != nil {
		close(e.done)
	}
	for f := range e.after {
		go (*f)()
	}
	e.after = nil
}
