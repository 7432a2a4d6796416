package node

import (
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/leader"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// applied stands between the log and the state: it has each committed entry
// applied, and tells those whom an apply concerns. Nothing else hears of one.
type applied struct {
	// Immutable.
	machine   *state.Machine
	self      state.MemberID
	leases    *leader.Leases
	deadlines *leader.Deadlines
	received  received
	hub       *watch.Hub
	changed   chan struct{} // holds one: the members are others
	metrics   *api.Metrics
	slow      time.Duration
	slowSeen  func(took time.Duration, entries int)

	// Owned by the apply loop.
	entries []state.Entry

	unflushed atomic.Int64  // bytes of commands applied and not yet durable
	compacted chan struct{} // holds one: there is something to sweep
	flush     chan struct{} // holds one: there is enough to make durable
	flushAt   int64         // bytes
	flushLag  state.Index   // entries
	last      state.Revision
}

// Apply applies entries and tells whom it concerns.
func (a *applied) Apply(entries []replica.Entry) ([]state.Outcome, error) {
	began := time.Now()
	a.entries = a.entries[:0]
	var size int64
	var txns uint64
	for _, e := range entries {
		a.entries = append(a.entries, state.Entry{
			Index: state.Index(e.Index), Term: state.Term(e.Term),
			Commands: e.Commands, Configuration: e.Configuration, Wanted: e.Wanted,
		})
		for _, command := range e.Commands {
			size += int64(len(command))
			if len(command) > 0 && state.Kind(command[0]) == state.Txn {
				txns++
			}
		}
	}
	before := a.machine.View()
	outcomes, err := a.machine.Apply(a.entries)
	if err != nil {
		return nil, err
	}

	// Everything that follows from an apply:
	a.hub.Publish(outcomes, a.machine.View().Revision)
	a.leases.Observe(outcomes)
	a.deadlines.Observe(before, a.machine.View())
	a.members(before)
	a.fence(before)
	a.count(outcomes, time.Since(began))
	a.metrics.Txns.Add(txns)
	if compacted := a.machine.View().Compacted; compacted != a.last {
		a.last = compacted
		poke(a.compacted)
	}
	index, durable := a.machine.Applied()
	if a.unflushed.Add(size) >= a.flushAt || index-durable >= a.flushLag {
		poke(a.flush)
	}
	if took := time.Since(began); took > a.slow {
		a.slowSeen(took, len(entries))
	}
	return outcomes, nil
}

// count tells the metrics what became of the commands that were applied
// together in took. What one of them took is known only as its share.
func (a *applied) count(outcomes []state.Outcome, took time.Duration) {
	var puts, deletes, bytes uint64
	failed := 0
	for i := range outcomes {
		if outcomes[i].Refusal != nil {
			failed++
		}
		a.metrics.NodesExpired.Add(uint64(outcomes[i].Expired))
		for _, l := range outcomes[i].Leases {
			a.countLease(l)
		}
		for _, e := range outcomes[i].Events {
			if e.Deleted {
				deletes++
			} else {
				puts++
				bytes += uint64(len(e.Pair))
			}
		}
	}
	a.metrics.Puts.Add(puts)
	a.metrics.Deletes.Add(deletes)
	a.metrics.PutBytes.Add(bytes)
	if len(outcomes) > 0 {
		success := "true"
		if failed == len(outcomes) {
			success = "false"
		}
		a.metrics.Apply.With("v3", "apply", success).Observe(took.Seconds() / float64(len(outcomes)))
	}
}

func (a *applied) countLease(l state.LeaseChange) {
	switch {
	case l.Gone:
		a.metrics.LeasesRevoked.Inc()
	case l.New:
		a.metrics.LeasesGranted.Inc()
		a.metrics.LeaseTTL.Observe(float64(l.Granted))
	}
}

// Applied returns how far the state is, and how far it would be after a power
// loss.
func (a *applied) Applied() (applied, durable uint64) {
	i, d := a.machine.Applied()
	return uint64(i), uint64(d)
}

// Configuration returns the membership of consensus as the state has it.
func (a *applied) Configuration() []byte { return a.machine.View().Configuration }

// Restore makes the state what the received snapshot holds.
func (a *applied) Restore(m replica.Mark) error {
	a.metrics.SnapshotApplying.Set(1)
	defer a.metrics.SnapshotApplying.Set(0)
	before := a.machine.View()
	if err := a.received.restore(a.machine, m); err != nil {
		return err
	}
	a.unflushed.Store(0)
	a.hub.Restore(a.machine.View().Revision)
	a.members(before)
	a.fence(before)
	poke(a.compacted)
	return nil
}

// members tells of a change of the members.
func (a *applied) members(before *state.View) {
	now := a.machine.View()
	if now.SameMembers(before) {
		return
	}
	poke(a.changed)
	for _, m := range before.Members() {
		if is, ok := now.Member(m.ID); ok && m.Learner && !is.Learner {
			a.metrics.LearnerPromotions.Inc()
		}
	}
}

// fence ends those who listen here once this member's state is known not to be
// that of the others.
func (a *applied) fence(before *state.View) {
	if a.machine.View().Corrupt(a.self) && !before.Corrupt(a.self) {
		a.hub.End(fault.Corrupt)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // already known
	}
}
