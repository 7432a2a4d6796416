package leader

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
)

// LeaseOptions work when empty.
type LeaseOptions struct {
	Grace      time.Duration // that leases get on top when leadership has changed; default 1 s
	Checkpoint time.Duration // what is left of a longer lease is written down so often; default 5 min
	Rest       time.Duration // between two proposals that are not full; default 100 ms
	Batch      int           // leases that end in one command, which holds up others; default 500
	Time       Time          // default the machine's

	Renewed, Expired *metric.Counter // default none
}

func (o LeaseOptions) withDefaults() LeaseOptions {
	if o.Grace == 0 {
		o.Grace = time.Second
	}
	if o.Checkpoint == 0 {
		o.Checkpoint = 5 * time.Minute
	}
	if o.Rest == 0 {
		o.Rest = 100 * time.Millisecond
	}
	if o.Batch == 0 {
		o.Batch = 500
	}
	if o.Time == nil {
		o.Time = machineTime{}
	}
	return o
}

// Leases is the clocks of leases. They stand still where this member does not
// lead: whoever is elected begins anew, with all the time that a lease was
// granted, or what was written down of it, and some grace.
//
// E1: a lease never ends before its time is over, counted from the last
// renewal that was answered.
// E2: who was answered that a lease is renewed was answered by the leader: one
// elected meanwhile counts from a later moment.
// E3: what the end of a lease needs is proposed in the term whose clock found
// it, and counts in no other. Once it is proposed, nothing renews the lease.
type Leases struct {
	// Immutable after NewLeases.
	o       LeaseOptions
	office  *Office
	cluster Cluster
	decider decider
	poke    chan struct{} // holds one: there is something to propose before its time

	mu struct {
		sync.Mutex
		term    state.Term // 0: the clocks stand still
		start   time.Time
		clocks  *clocks
		changed chan struct{} // closed when something has changed that somebody may wait for; nil if nobody does
	}
}

// NewLeases returns clocks that Serve has to run.
func NewLeases(o LeaseOptions, office *Office, cluster Cluster) *Leases {
	o = o.withDefaults()
	return &Leases{
		o: o, office: office, cluster: cluster,
		decider: decider{cluster, o.Time, o.Rest}, poke: make(chan struct{}, 1),
	}
}

// Observe hears what was applied. It is called after each apply and does not
// wait.
func (l *Leases) Observe(outcomes []state.Outcome) {
	for i := range outcomes {
		if len(outcomes[i].Leases) > 0 {
			l.observe(outcomes[i:])
			return
		}
	}
}

func (l *Leases) observe(outcomes []state.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.term == 0 {
		return
	}
	now := l.now()
	for i := range outcomes {
		for _, c := range outcomes[i].Leases {
			if c.Gone {
				l.mu.clocks.forget(c.ID)
			} else {
				l.mu.clocks.know(now, c.Lease, 0)
			}
		}
	}
	l.tell()
	poke(l.poke) // the first to end may be another one
}

// now counts from the beginning of the term. With l.mu held.
func (l *Leases) now() time.Duration { return l.o.Time.Now().Sub(l.mu.start) }

func (l *Leases) tell() {
	if l.mu.changed != nil {
		close(l.mu.changed)
		l.mu.changed = nil
	}
}

// Serve is the duty: it ends the leases whose time is over, unless nothing is
// to be written.
func (l *Leases) Serve(ctx context.Context, term state.Term) error {
	if err := l.start(ctx, term); err != nil {
		return err
	}
	defer l.stop()
	for ctx.Err() == nil {
		if l.cluster.View().Frozen() {
			l.o.Time.Wait(ctx, l.o.Rest, nil)
			continue
		}
		d, wait := l.take()
		if d.len() == 0 {
			l.o.Time.Wait(ctx, wait, l.poke)
			continue
		}
		if err := l.propose(ctx, term, d); err != nil {
			return err
		}
		if d.len() < l.o.Batch {
			l.o.Time.Wait(ctx, l.o.Rest, nil) // those that end meanwhile end together
		}
	}
	return ctx.Err()
}

// start sets the clocks going, once all is applied that was agreed on before
// this term.
func (l *Leases) start(ctx context.Context, term state.Term) error {
	if err := l.decider.insist(ctx, func() error { return l.cluster.Barrier(ctx) }); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := newClocks(l.o.Checkpoint)
	for one := range l.cluster.View().Leases() {
		c.know(0, one, l.o.Grace)
	}
	if mutant.On("clocks survive a deposition") && l.mu.clocks != nil {
		l.mu.term = term
		return nil
	}
	l.mu.term, l.mu.start, l.mu.clocks = term, l.o.Time.Now(), c
	l.tell()
	return nil
}

func (l *Leases) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.term = 0; !mutant.On("clocks survive a deposition") {
		l.mu.clocks = nil
	}
	l.tell()
}

// take returns what has to be proposed, and how long to wait if that is nothing.
func (l *Leases) take() (due, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	d, next := l.mu.clocks.take(now, l.o.Batch)
	return d, next - now
}

// propose has agreed on what is due. One proposal follows the other, so that
// what is written down of a lease is what was last known.
func (l *Leases) propose(ctx context.Context, term state.Term, d due) error {
	if len(d.ended) > 0 {
		q := new(pb.LeaseLeasesResponse)
		for _, id := range d.ended {
			q.Leases = append(q.Leases, &pb.LeaseStatus{ID: int64(id)})
		}
		out, err := l.decider.agree(ctx, state.Command{Kind: state.LeaseExpire, Term: term, Request: q})
		if err != nil {
			return err
		}
		if l.o.Expired != nil {
			l.o.Expired.Add(uint64(len(out.Leases)))
		}
	}
	if len(d.written) > 0 {
		q := new(pb.LeaseCheckpointRequest)
		for _, r := range d.written {
			q.Checkpoints = append(q.Checkpoints, &pb.LeaseCheckpoint{ID: int64(r.id), Remaining_TTL: r.seconds})
		}
		_, err := l.decider.agree(ctx, state.Command{Kind: state.LeaseCheckpoint, Term: term, Request: q})
		return err
	}
	return nil
}

var errAgain = errors.New("leader: look again")

// Renew gives leases all their time again and returns for how many seconds
// they were granted, or 0 for those that do not exist. It refuses where this
// member does not lead.
func (l *Leases) Renew(ctx context.Context, ids []state.LeaseID) ([]int64, error) {
	ttls, err := l.ask(ctx, ids, func(now time.Duration, k *clock) (int64, bool) {
		holds := l.mu.clocks.renew(now, k)
		return int64(k.ttl / time.Second), holds
	})
	if err == nil && l.o.Renewed != nil {
		l.o.Renewed.Add(uint64(len(ids) - count(ttls, none)))
	}
	for i, ttl := range ttls {
		ttls[i] = max(0, ttl)
	}
	return ttls, err
}

func count(all []int64, what int64) (n int) {
	for _, x := range all {
		if x == what {
			n++
		}
	}
	return n
}

// Remaining returns how many seconds are left of leases, -1 for those that do
// not exist. It refuses where this member does not lead.
func (l *Leases) Remaining(ctx context.Context, ids []state.LeaseID) ([]int64, error) {
	return l.ask(ctx, ids, func(now time.Duration, k *clock) (int64, bool) {
		return int64(min(max(0, k.ends-now), k.ttl) / time.Second), true
	})
}

// none stands for a lease that does not exist.
const none = -1

// ask asks something of each lease. What is asked returns an answer, and
// whether it holds, or has to be asked again once something has changed.
func (l *Leases) ask(ctx context.Context, ids []state.LeaseID, of func(time.Duration, *clock) (int64, bool)) ([]int64, error) {
	answers := make([]int64, len(ids))
	for {
		term, changed, err := l.look(ids, answers, of)
		if err != nil {
			return nil, err
		}
		if changed != nil {
			if l.o.Time.Wait(ctx, never, changed); ctx.Err() != nil {
				return nil, ctx.Err()
			}
			continue
		}
		if mutant.On("renewed without a quorum") {
			return answers, nil
		}
		if err := l.cluster.Barrier(ctx); err != nil {
			return nil, err
		}
		if err := l.confirm(term, ids, answers); err != errAgain {
			return answers, err
		}
	}
}

// look gathers the answers as of now. If one of them does not hold, it returns
// what to wait for.
func (l *Leases) look(ids []state.LeaseID, answers []int64, of func(time.Duration, *clock) (int64, bool)) (term state.Term, changed <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.term == 0 {
		return 0, nil, fault.NotLeader
	}
	now := l.now()
	all := true
	for i, id := range ids {
		answers[i] = none
		if k := l.mu.clocks.leases[id]; k != nil {
			var holds bool
			answers[i], holds = of(now, k)
			all = all && holds
		}
	}
	if all {
		return l.mu.term, nil, nil
	}
	if len(l.mu.clocks.clear) > 0 {
		poke(l.poke)
	}
	if l.mu.changed == nil {
		l.mu.changed = make(chan struct{})
	}
	return l.mu.term, l.mu.changed, nil
}

// confirm makes sure, after a barrier, that the answers were those of a
// leader, and takes back those about leases that were revoked meanwhile. What
// had not been applied here when the answers were gathered has to be asked for
// again.
func (l *Leases) confirm(term state.Term, ids []state.LeaseID, answers []int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if held, _ := l.office.held(); held != term || l.mu.term != term {
		return fault.NotLeader
	}
	for i, id := range ids {
		switch exists := l.mu.clocks.leases[id] != nil; {
		case exists && answers[i] == none:
			return errAgain
		case !exists:
			answers[i] = none
		}
	}
	return nil
}

// SortByEnd puts leases in the order in which they end, if this member leads.
func (l *Leases) SortByEnd(ids []state.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.term == 0 {
		return
	}
	end := func(id state.LeaseID) time.Duration {
		if k := l.mu.clocks.leases[id]; k != nil {
			return k.ends
		}
		return 0
	}
	slices.SortStableFunc(ids, func(a, b state.LeaseID) int { return int(min(1, max(-1, end(a)-end(b)))) })
}
