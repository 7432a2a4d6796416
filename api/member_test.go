package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/rpc"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// patience is longer than anything may take on the busiest machine.
const patience = time.Minute

// member is an api before a real machine, with a server for gRPC and one for
// HTTP as node would set them up. Its log is the order in which proposals
// arrive: with one member, that is what agreement comes down to.
type member struct {
	target
	*sequencer
	api     *API
	http    http.Handler
	options Options
	server  *rpc.Server
}

func newMember(t *testing.T, o Options) *member {
	t.Helper()
	m := &member{sequencer: newSequencer(t), options: o}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(false)
	}
	m.hub = watch.New(watch.Options{View: m.machine.View, Metrics: watch.Metrics{
		Events: o.Metrics.Events, Watchers: o.Metrics.Watchers, Slow: o.Metrics.SlowWatchers, Streams: o.Metrics.WatchStreams,
		Pending: o.Metrics.PendingEvents,
	}})
	m.set(func(s *sequencer) { s.mu.limit = o.RequestTimeout })
	m.api = New(o, m.sequencer)

	m.server = rpc.New(rpc.Options{ReceiveBytesMax: m.api.MessageBytesMax()})
	m.api.Register(m.server)
	m.api.RegisterFast(m.server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := m.server.Serve(listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		m.server.Stop()
		serving.Wait()
	})
	m.conn = dial(t, listener.Addr().String())

	handler, _, err := m.api.HTTP(m.conn)
	if err != nil {
		t.Fatal(err)
	}
	m.http = handler
	web := httptest.NewServer(handler)
	t.Cleanup(web.Close)
	m.url = web.URL
	return m
}

const self = 0xabc

// sequencer is a Backend without consensus: one proposal after the other.
type sequencer struct {
	machine *state.Machine
	hub     *watch.Hub

	mu struct {
		sync.Mutex
		status  Status
		propose error // instead of what would happen
		barrier error
		hold    chan struct{} // proposals and barriers wait until it is closed
		limit   time.Duration // or so long; 0: for ever
		size    int64         // of a machine that is larger than it is

		reachable map[state.MemberID]time.Time // since when
		behind    error                        // of learners
	}
}

func newSequencer(t testing.TB) *sequencer {
	t.Helper()
	machine, err := state.Open(state.Options{Memory: state.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := machine.Close(); err != nil {
			t.Error(err)
		}
	})
	err = machine.Bootstrap(state.Genesis{
		Cluster: 0xc1, Index: 1, Term: 1,
		Members: []state.Member{{ID: self, PeerURLs: []string{"http://127.0.0.1:2380"}, Name: "m", ClientURLs: []string{"http://127.0.0.1:2379"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &sequencer{machine: machine, hub: watch.New(watch.Options{View: machine.View})}
	s.mu.status = Status{Cluster: 0xc1, Member: self, Leader: self, Term: 2}
	return s
}

func (s *sequencer) Traffic() Traffic { return Traffic{LeaderSince: time.Now()} }

// set changes how the sequencer behaves.
func (s *sequencer) set(change func(*sequencer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *sequencer) wait(ctx context.Context) error {
	s.mu.Lock()
	hold, limit := s.mu.hold, s.mu.limit
	s.mu.Unlock()
	var late <-chan time.Time
	if limit > 0 {
		late = time.After(limit)
	}
	if hold == nil {
		return nil
	}
	select {
	case <-hold:
		return nil
	case <-late:
		return fault.Timeout
	case <-ctx.Done():
		if ctx.Err() == context.Canceled {
			return fault.RequestCanceled
		}
		return fault.Timeout
	}
}

// Configure changes the members; nobody votes here.
func (s *sequencer) Configure(ctx context.Context, command []byte, _ Change) (state.Outcome, error) {
	return s.Propose(ctx, command)
}

func (s *sequencer) ReachableSince(id state.MemberID) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.reachable[id]
}

func (s *sequencer) CaughtUp(context.Context, state.MemberID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.behind
}

func (s *sequencer) Propose(ctx context.Context, command []byte) (state.Outcome, error) {
	if err := s.wait(ctx); err != nil {
		return state.Outcome{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.propose != nil {
		return state.Outcome{}, s.mu.propose
	}
	applied, _ := s.machine.Applied()
	outcomes, err := s.machine.Apply([]state.Entry{{Index: applied + 1, Term: s.mu.status.Term, Commands: [][]byte{command}, Wanted: true}})
	if err != nil {
		return state.Outcome{}, fmt.Errorf("apply: %w", err)
	}
	s.hub.Publish(outcomes, s.machine.View().Revision)
	return outcomes[0], nil
}

func (s *sequencer) ProposeAll(p Party, commands [][]byte) {
	s.tell(p, len(commands), func(i int) (state.Outcome, error) { return s.Propose(p.Context(i), commands[i]) })
}

func (s *sequencer) BarrierAll(p Party, n int) {
	s.tell(p, n, func(i int) (state.Outcome, error) { return state.Outcome{}, s.Barrier(p.Context(i)) })
}

// tell tells a party of n what becomes of each.
func (s *sequencer) tell(p Party, n int, ask func(i int) (state.Outcome, error)) {
	go func() {
		outcomes, left := make([]state.Outcome, n), 0
		for i := range n {
			var err error
			if outcomes[i], err = ask(i); err != nil {
				left++
				p.Leave(i, err)
			}
		}
		if left < n {
			p.End(outcomes, nil)
		}
	}()
}

func (s *sequencer) Barrier(ctx context.Context) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.barrier
}

// Renew knows no clock: what was granted is left.
func (s *sequencer) Renew(ctx context.Context, ids []state.LeaseID) ([]int64, error) {
	left, err := s.Remaining(ctx, ids)
	for i := range left {
		left[i] = max(0, left[i])
	}
	return left, err
}

func (s *sequencer) Remaining(ctx context.Context, ids []state.LeaseID) ([]int64, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	left := make([]int64, len(ids))
	for i, id := range ids {
		left[i] = -1
		if l, ok := s.View().Lease(id); ok {
			left[i] = l.Granted
		}
	}
	return left, nil
}

func (s *sequencer) SortByEnd([]state.LeaseID) {}

func (s *sequencer) Hub() *watch.Hub { return s.hub }

func (s *sequencer) View() *state.View { return s.machine.View() }

func (s *sequencer) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.mu.status
	now.Applied, _ = s.machine.Applied()
	now.Committed = now.Applied
	return now
}

func (s *sequencer) Size() (total, used int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	total, used = s.machine.Size()
	return total + s.mu.size, used
}

func (s *sequencer) WaitSwept(_ context.Context, rev state.Revision) error {
	for s.machine.Swept() < rev {
		if _, err := s.machine.Sweep(1000); err != nil {
			return err
		}
	}
	return nil
}

func (s *sequencer) Defragment(ctx context.Context) error { return s.machine.Defragment(ctx) }

func (s *sequencer) MoveLeader(_ context.Context, to state.MemberID) error {
	if to != self {
		return fault.BadTransferee
	}
	return nil
}
