package node

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/leader"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
)

// What is asked of the leader about leases: their ids, 8 bytes each, big
// endian. The answer holds a number of seconds for each.
const (
	askRenew     = "lease-renew"
	askRemaining = "lease-remaining"
)

// Renew gives leases all their time again.
func (m *member) Renew(ctx context.Context, ids []state.LeaseID) ([]int64, error) {
	return m.renewals.ask(ctx, ids)
}

// Remaining returns what is left of the time of leases.
func (m *member) Remaining(ctx context.Context, ids []state.LeaseID) ([]int64, error) {
	return m.remainders.ask(ctx, ids)
}

// SortByEnd puts leases in the order in which they end, if this member leads.
func (m *member) SortByEnd(ids []state.LeaseID) { m.leases.SortByEnd(ids) }

// openLeases makes the clocks of leases, and the ways to those of the leader;
// and what removes nodes at their time.
func (m *member) openLeases() {
	m.deadlines = leader.NewDeadlines(leader.DeadlineOptions{}, m)
	m.leases = leader.NewLeases(leader.LeaseOptions{
		Grace:   m.election(),
		Renewed: m.o.Metrics.LeasesRenewed,
		Expired: m.o.Metrics.LeasesExpired,
	}, &m.office, m)
	m.renewals = newGathering(m, askRenew, m.leases.Renew)
	m.remainders = newGathering(m, askRemaining, m.leases.Remaining)
}

// gathering puts together what many ask the leader about leases, so that it is
// asked one thing at a time, however many ask. It does not pass through the
// log, and does not wait for what does.
type gathering struct {
	// Immutable.
	member *member
	method string
	here   leaseAsk // where this member leads
	wake   chan struct{}

	mu struct {
		sync.Mutex
		asked  []*leaseQuestion
		closed bool
	}
}

type leaseAsk func(context.Context, []state.LeaseID) ([]int64, error)

// leaseQuestion is what one asks. It is answered once, unless ctx ends before.
type leaseQuestion struct {
	ctx     context.Context
	ids     []state.LeaseID
	answers chan []int64 // holds one; closed if there will be none
}

func newGathering(m *member, method string, here leaseAsk) *gathering {
	return &gathering{member: m, method: method, here: here, wake: make(chan struct{}, 1)}
}

func (g *gathering) ask(ctx context.Context, ids []state.LeaseID) ([]int64, error) {
	q := &leaseQuestion{ctx, ids, make(chan []int64, 1)}
	g.mu.Lock()
	closed := g.mu.closed
	if !closed {
		g.mu.asked = append(g.mu.asked, q)
	}
	g.mu.Unlock()
	if closed {
		return nil, fault.Stopped
	}
	poke(g.wake)
	select {
	case answers, ok := <-q.answers:
		if !ok {
			return nil, fault.Stopped
		}
		return answers, nil
	case <-ctx.Done():
		switch {
		case ctx.Err() == context.Canceled:
			return nil, fault.RequestCanceled
		case g.member.replica.Status().Leader == 0:
			return nil, fault.NoLeader
		}
		return nil, fault.Timeout
	}
}

// run answers until ctx ends. What fails is asked again: the leader may be
// another one by then.
func (g *gathering) run(ctx context.Context) {
	var open []*leaseQuestion
	var ids []state.LeaseID
	again := time.NewTimer(0)
	defer again.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-g.wake:
		case <-again.C:
		}
		g.mu.Lock()
		open = append(open, g.mu.asked...)
		g.mu.asked = nil
		g.mu.Unlock()

		ids = ids[:0]
		left := open[:0]
		for _, q := range open {
			if q.ctx.Err() == nil {
				left = append(left, q)
				ids = append(ids, q.ids...)
			}
		}
		clear(open[len(left):])
		open = left
		if len(open) == 0 {
			continue
		}
		answers, err := g.askLeader(ctx, ids)
		if err != nil {
			again.Reset(g.member.o.Tick)
			continue
		}
		for _, q := range open {
			q.answers <- answers[:len(q.ids):len(q.ids)]
			answers = answers[len(q.ids):]
		}
		clear(open)
		open = open[:0]
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.closed = true
	for _, q := range append(open, g.mu.asked...) {
		close(q.answers)
	}
}

// askLeader asks whoever leads now, and not for long: if that one is gone,
// there will be another.
func (g *gathering) askLeader(ctx context.Context, ids []state.LeaseID) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, g.member.election())
	defer cancel()
	s := g.member.replica.Status()
	switch {
	case s.Leader == 0:
		return nil, fault.NoLeader
	case s.Role == replica.Leader:
		return g.here(ctx, ids)
	case g.member.peers == nil:
		return nil, fault.NotLeader
	}
	body := make([]byte, 0, 8*len(ids))
	for _, id := range ids {
		body = binary.BigEndian.AppendUint64(body, uint64(id))
	}
	answer, err := g.member.peers.Call(ctx, s.Leader, g.method, body)
	if err != nil {
		return nil, err
	}
	if len(answer) != len(body) {
		return nil, fault.Malformed
	}
	answers := make([]int64, len(ids))
	for i := range answers {
		answers[i] = int64(binary.BigEndian.Uint64(answer[8*i:]))
	}
	return answers, nil
}

// answer answers what another member has gathered.
func (g *gathering) answer(ctx context.Context, _ uint64, body []byte) ([]byte, error) {
	if len(body)%8 != 0 {
		return nil, fault.Malformed
	}
	ids := make([]state.LeaseID, len(body)/8)
	for i := range ids {
		ids[i] = state.LeaseID(binary.BigEndian.Uint64(body[8*i:]))
	}
	answers, err := g.here(ctx, ids)
	answer := make([]byte, 0, len(body))
	for _, n := range answers {
		answer = binary.BigEndian.AppendUint64(answer, uint64(n))
	}
	return answer, err
}
