package sim

import (
	"context"
	"encoding/binary"
	"iter"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/leader"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
)

// task is a call of the program that waits on its way. It is a coroutine: it
// runs until it waits, and goes on when it is resumed.
type task struct {
	next  func() (struct{}, bool)
	yield func(struct{}) bool
	ready func() bool // what it waits for is there; nil: it is about to go on
}

// call has the process begin something that may wait.
func (m *member) call(do func()) {
	t := &task{}
	t.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		do()
	})
	m.tasks = append(m.tasks, t)
	m.later(0, func() { m.proceed(t) })
}

func (m *member) proceed(t *task) {
	m.running = t
	if _, more := t.next(); !more {
		m.tasks = slices.DeleteFunc(m.tasks, func(o *task) bool { return o == t })
	}
	m.running = nil
}

// await has the task that runs wait until ready says so, or ctx has ended.
func (m *member) await(ctx context.Context, ready func() bool) {
	over := func() bool { return ctx.Err() != nil || ready() }
	if over() {
		return
	}
	t := m.running
	t.ready = over
	t.yield(struct{}{})
}

// attend has those go on who have waited long enough, a little later.
func (m *member) attend() {
	for _, t := range m.tasks {
		if t.ready != nil && t.ready() {
			t.ready = nil
			m.later(time.Duration(m.w.reigns.IntN(300))*time.Microsecond, func() { m.proceed(t) })
		}
	}
}

// abandon ends all calls of a process that ends.
func (m *member) abandon() {
	m.quit()
	for len(m.tasks) > 0 {
		m.proceed(m.tasks[0])
	}
}

// clock is what the member has for the time: it runs fast or slow, and jumps.
func (m *member) clock() time.Duration {
	return m.elapsed + (m.w.now-m.since)*100/time.Duration(m.rate)
}

// setRate makes the clock go at another rate, in percent of the time between
// its ticks.
func (m *member) setRate(rate int) {
	m.elapsed, m.since = m.clock(), m.w.now
	m.rate = rate
}

// clocks returns what everybody has for the time.
func (w *world) clocks() []time.Duration {
	all := make([]time.Duration, len(w.members))
	for i, m := range w.members {
		all[i] = m.clock()
	}
	return all
}

var _ interface {
	leader.Cluster
	leader.Time
} = hands{}

// hands are what a member has its leases kept with: it is a leader.Cluster, and
// a leader.Time.
type hands struct{ *member }

func (h hands) Now() time.Time { return time.Unix(0, 0).Add(h.clock()) }

func (h hands) Wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	end := h.clock() + d
	if end < d { // never
		end = d
	}
	h.alarm(end)
	h.await(ctx, func() bool {
		select {
		case <-wake:
			return true
		default:
			return h.clock() >= end
		}
	})
}

// alarm has the member look up when its clock shows a time, whatever becomes of
// the clock meanwhile.
func (m *member) alarm(at time.Duration) {
	const far = time.Hour
	if left := at - m.clock(); left < far {
		m.later(max(0, left)*time.Duration(m.rate)/100+1, func() {
			if m.attend(); m.clock() < at {
				m.alarm(at)
			}
		})
	}
}

func (h hands) View() *state.View { return h.state.View() }

func (h hands) Barrier(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	wait := h.step.Barrier()
	h.poke()
	h.await(ctx, func() bool {
		_, _, there := wait.Outcome()
		return there
	})
	if ctx.Err() != nil {
		wait.Leave()
		return ctx.Err()
	}
	_, err, _ := wait.Outcome()
	if err == nil && h.running == h.duty.task {
		h.w.oracle.reign(h.member)
	}
	return err
}

// Propose proposes what a leader has decided by its clocks.
func (h hands) Propose(ctx context.Context, command []byte) (state.Outcome, error) {
	if ctx.Err() != nil {
		return state.Outcome{}, ctx.Err()
	}
	w := h.w
	o := w.record(&client{w: w, id: 1001}, opExpire, h.member)
	o.decided, o.clock, o.clocks, o.term = true, h.clock(), w.clocks(), uint64(h.duty.term)
	o.request = new(pb.LeaseLeasesResponse)

	// Its number stands where the revision of users would.
	at := 0
	if command[0] == 255 {
		_, size := binary.Uvarint(command[1:])
		at = 1 + size
	}
	switch state.Kind(command[at]) {
	case state.LeaseCheckpoint:
		o.kind, o.request = opCheckpoint, new(pb.LeaseCheckpointRequest)
	case state.Hierarchy:
		q := parseExpiry(command[at+3:])
		o.kind, o.request = opNodeExpire, q
		for _, d := range q.Due {
			if d.At > int64(o.clock) {
				w.fail("%v removes %v at %v of its clock", h.member, d, o.clock)
			}
		}
	}
	if o.kind != opNodeExpire {
		if err := proto.Unmarshal(command[at+3:], o.request); err != nil {
			w.fail("%v: %v", o, err)
		}
	}
	numbered := binary.AppendUvarint(slices.Clone(command[:at+1]), o.id)
	o.wait = h.step.Propose(append(numbered, command[at+2:]...))
	h.watch(o)
	h.await(ctx, func() bool { return o.done })
	if !o.done {
		if o.wait.Leave(); !o.poll() {
			o.left = true
			o.give(true, fault.RequestCanceled)
		}
	}
	return o.outcome, o.err
}

// office is what leader.Office has a goroutine for: one duty at a time, while
// its term lasts.
type office struct {
	term state.Term // of the duty that is done
	task *task      // nil: none is
	end  context.CancelFunc
}

// leads hears in which term the member leads, 0 for none.
func (m *member) leads(term uint64) {
	m.hold.Hold(state.Term(term))
	m.holds = state.Term(term)
	if m.duty.task != nil && m.duty.term != m.holds {
		pause := m.w.election() / 100
		if m.w.reigns.IntN(4) == 0 {
			pause = m.w.election() // the processor has much to do
		}
		end := m.duty.end
		m.later(time.Duration(m.w.reigns.Int64N(int64(pause))), func() {
			end()
			m.attend()
		})
	}
	m.serve()
}

func (m *member) serve() {
	if m.duty.task != nil || m.holds == 0 || !m.w.leases && !m.w.nodes {
		return
	}
	term := m.holds
	ctx, end := context.WithCancel(m.life)
	m.call(func() {
		if err := m.ends.Serve(ctx, term); err != nil && ctx.Err() == nil {
			m.w.fail("%v: deadlines: %v", m, err)
		}
	})
	m.call(func() {
		if ctx.Err() == nil {
			if err := m.leases.Serve(ctx, term); err != nil && ctx.Err() == nil {
				m.w.fail("%v: leases: %v", m, err)
			}
		}
		m.duty.task = nil
		if m.life.Err() == nil {
			m.serve()
		}
	})
	m.duty = office{term, m.tasks[len(m.tasks)-1], end}
}

// keepAlive asks whoever leads, again and again until the client gives up.
func (o *op) keepAlive() {
	m, w := o.m, o.w
	if o.done {
		return
	}
	election := w.election()
	over := false
	again := func(pause time.Duration) {
		if !over {
			over = true
			m.later(pause, o.keepAlive)
		}
	}
	s := m.r.Status()
	to := w.member(s.Leader)
	if to == nil {
		again(w.tick)
		return
	}
	m.later(election, func() { again(0) })
	answered := func(ttl int64, err error) {
		switch {
		case over || o.done:
		case err != nil:
			again(w.tick)
		default:
			over = true
			o.renewed(ttl)
		}
	}
	if to == m {
		m.renew(o, election, answered)
		return
	}
	w.network.pass(m, to, func() {
		to.renew(o, election, func(ttl int64, err error) {
			w.network.pass(to, m, func() { answered(ttl, err) })
		})
	})
}

// renew renews a lease, if this member leads.
func (m *member) renew(o *op, patience time.Duration, answer func(ttl int64, err error)) {
	ctx, end := context.WithCancel(m.life)
	m.later(patience, func() {
		end()
		m.attend()
	})
	id := o.request.(*pb.LeaseKeepAliveRequest).ID
	m.call(func() {
		ttls, err := m.leases.Renew(ctx, []state.LeaseID{state.LeaseID(id)})
		m.w.oracle.wound(id)
		if m.life.Err() != nil {
			return
		}
		if err != nil {
			answer(0, err)
			return
		}
		answer(ttls[0], nil)
	})
}

// renewed takes the answer to a renewal: 0 if there is no such lease.
func (o *op) renewed(ttl int64) {
	w := o.w
	o.seen = ttl
	id := o.request.(*pb.LeaseKeepAliveRequest).ID
	l := w.oracle.lives[id]
	switch {
	case l == nil || l == o.life && o.dead:
		if ttl > 0 {
			w.fail("%v is answered with %d, but there is no such lease", o, ttl)
		}
	case l == o.life:
		if ttl == 0 && !l.gone {
			w.fail("%v is told that a lease is gone, which lives", o)
		}
		if ttl > 0 {
			if ttl != l.ttl {
				w.fail("%v is answered with %d of %d", o, ttl, l.ttl)
			}
			w.mark("lease renewed")
			if o.m.r.Status().Role != replica.Leader {
				w.mark("lease renewed through another member")
			}
			l.promises = append(l.promises, promise{o.call, o.clocks})
			w.oracle.early(l)
		}
	}
	// If it was granted anew meanwhile, the answer may be about either.
	o.give(false, nil)
}

// life is that of a lease: what it was promised, and what became of it.
type life struct {
	id, ttl  int64
	promises []promise
	longest  time.Duration // it has ended by then, if all is well
	carried  time.Duration // when a leader last went on with what another had left of it
	end      *op           // by the clock of a leader
	gone     bool
}

// promise is a moment from which on a lease has all of its time.
type promise struct {
	at     time.Duration
	clocks []time.Duration // of everybody
}

// early makes sure that a lease did not end before its time: not before the
// clock of the one who ended it had gone on for long enough since each promise.
// Clocks run fast and slow, but a term has one clock, and the clock of another
// term began after all promises of those before it. Where it began with what
// another clock had left, somebody's clock has to have gone on for so long.
func (o *oracle) early(l *life) {
	if l.end == nil {
		return
	}
	i := slices.Index(o.w.members, l.end.m)
	for _, p := range l.promises {
		if i >= len(p.clocks) {
			continue // a member that is younger than the promise
		}
		passed := l.end.clock - p.clocks[i]
		if p.at < l.carried {
			for j := range min(len(p.clocks), len(l.end.clocks)) {
				passed = max(passed, l.end.clocks[j]-p.clocks[j])
			}
		}
		if ttl := time.Duration(l.ttl) * time.Second; passed < ttl {
			o.w.fail("lease %d of %v ended %v after %v, when it was granted or renewed: %v", l.id, ttl, passed, p.at, l.end)
		}
	}
}

// leased follows the lives of leases through the log.
func (o *oracle) leased(x *op, refused bool) {
	w := o.w
	if refused {
		return
	}
	ended := func(id int64) {
		if l := o.lives[id]; l != nil && !l.gone {
			l.gone = true
			if x.decided {
				l.end = x
				w.mark("lease ended by its clock")
				if len(l.promises) > 1 {
					w.mark("renewed lease ended by its clock")
				}
				if x.index > 0 && x.at != o.entries[len(o.entries)-1].term {
					w.mark("lease ended by the first entry of a term")
				}
				o.early(l)
			}
		}
	}
	switch q := x.request.(type) {
	case *pb.LeaseGrantRequest:
		o.lives[q.ID] = &life{
			id: q.ID, ttl: q.TTL, promises: []promise{{w.now, w.clocks()}},
			longest: w.now + time.Duration(q.TTL)*time.Second,
		}
	case *pb.LeaseRevokeRequest:
		ended(q.ID)
	case *pb.LeaseLeasesResponse:
		for _, one := range q.Leases {
			ended(one.ID)
		}
	case *pb.LeaseCheckpointRequest:
		for _, one := range q.Checkpoints {
			if one.Remaining_TTL == 0 {
				w.mark("what was left of a lease is all of it again")
			} else {
				w.mark("what is left of a lease written down")
			}
		}
	}
}

// reign hears that a leader begins to count: from what it knows, with a grace.
func (o *oracle) reign(m *member) {
	w := o.w
	for one := range m.state.View().Leases() {
		left := one.Granted
		l := o.lives[int64(one.ID)]
		if one.Remaining != 0 {
			left = one.Remaining
			w.mark("what was left of a lease carried over")
			if l != nil {
				l.carried = w.now
			}
		}
		if l != nil {
			l.longest = w.now + time.Duration(left)*time.Second + w.election()
		}
	}
}

// wound hears that a lease may have been given all of its time again.
func (o *oracle) wound(id int64) {
	if l := o.lives[id]; l != nil {
		l.longest = max(l.longest, o.w.now+time.Duration(l.ttl)*time.Second)
	}
}

// calm hears that all clocks are right from now on.
func (o *oracle) calm() {
	for _, l := range o.lives {
		l.longest = o.w.now + time.Duration(l.ttl)*time.Second + o.w.election()
	}
}

// expire waits until the leases have ended whose time is soon over, and wants
// none of them to live longer.
func (w *world) expire() {
	const soon = 15 * time.Second
	limit := w.now + soon
	margin := 4*w.election() + 2*time.Second // a rest, a commit, an election
	w.until(limit+margin, func() bool {
		waiting := false
		for _, l := range w.oracle.model.leases {
			life := w.oracle.lives[l.id]
			if w.now > life.longest+margin {
				w.fail("lease %d of %d s lives on at %v, should have ended by %v", l.id, l.ttl, w.now, life.longest)
			}
			waiting = waiting || life.longest < limit
		}
		return !waiting
	})
	w.rest()
}

// TestLeaseJudge falsifies what became of a lease, in one way after the other,
// and wants that to be noticed.
func TestLeaseJudge(t *testing.T) {
	w := newWorld(1)
	m := w.members[0]
	second := func(n int64) time.Duration { return time.Duration(n) * time.Second }
	for name, c := range map[string]struct {
		fast                     int // percent of the time
		renewed, answered, ended int64
		noticed                  bool
	}{
		"in time":                    {100, 4, 5, 14, false},
		"at once":                    {100, 0, 0, 10, false},
		"early":                      {100, 4, 5, 13, true},
		"ended before the answer":    {100, 4, 14, 13, true},
		"early, on a slow clock":     {50, 4, 5, 14, true},
		"in time, on a fast clock":   {200, 4, 5, 9, false},
		"renewed after it has ended": {100, 12, 13, 11, true},
	} {
		clocks := func(at int64) []time.Duration { return []time.Duration{second(at) * time.Duration(c.fast) / 100} }
		l := &life{id: 1, ttl: 10, promises: []promise{{0, clocks(0)}}}
		end := func() { l.end = &op{m: m, w: w, client: &client{}, clock: clocks(c.ended)[0]} }
		noticed := func() (noticed bool) {
			defer func() { noticed = recover() != nil }()
			if c.ended < c.answered {
				end()
				w.oracle.early(l)
			}
			l.promises = append(l.promises, promise{second(c.renewed), clocks(c.renewed)})
			w.oracle.early(l)
			end()
			w.oracle.early(l)
			return
		}()
		if noticed != c.noticed {
			t.Errorf("%s: noticed: %v", name, noticed)
		}
	}
}
