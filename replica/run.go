package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sync/errgroup"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/mutant"
)

// writingMax is how many appends may be under way when proposals are taken:
// one that the disk works on, one that is ready when it is done. What arrives
// meanwhile becomes one entry.
const writingMax = 2

// applyJob is work for the apply loop: entries, or a snapshot to restore.
type applyJob struct {
	message  *pb.Message
	snapshot *pb.Snapshot
}

// raftLoop is what the raft loop keeps between its rounds.
type raftLoop[R any] struct {
	in        inbox[R] // what is being worked on
	work      Work
	term      uint64       // of the newest entry applied
	backlog   []*waiter[R] // proposals that are in no log although they were proposed
	changes   []*waiter[R] // of the membership, not yet proposed
	changeAt  uint64       // tick before which none is proposed
	transfers []*waiter[R]
	rounds    []reading[R] // read rounds not yet answered, oldest first
	readers   []reading[R] // answered, but not yet applied that far
	commands  [][]byte
	ticked    time.Time

	hastened bool   // there is no first election to hasten any more
	quorumAt uint64 // tick since which a quorum can be reached, 0: none can

	appendedAt uint64 // tick of the last append
	unsettled  bool   // there was one since the log was settled
}

// reading is those who wait for a read round.
type reading[R any] struct {
	round, index uint64
	waiters      []*waiter[R]
}

// Run does the work of the member until the context ends, and returns nil
// then, or until the log or the machine fails. Every wait has ended when it
// returns, and the log is closed.
func (r *Replica[R]) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { r.raftLoop(ctx); return nil })
	g.Go(func() error { return r.appendLoop(ctx) }) // these two end when the
	g.Go(r.applyLoop)                               // raft loop closes their queues
	err := g.Wait()
	r.stop()
	return errors.Join(err, r.log.Close())
}

// stop ends every wait.
func (r *Replica[R]) stop() {
	r.mu.Lock()
	r.mu.closed = true
	in := r.mu.in
	r.mu.in = inbox[R]{}
	r.mu.Unlock()

	l := &r.loop
	end := func(waiters []*waiter[R], commands bool) {
		if commands {
			r.pending.account(waiters)
		}
		for _, w := range waiters {
			w.end(nil, fault.Stopped)
		}
	}
	end(in.proposals, true)
	end(l.backlog, true)
	end(in.changes, true)
	end(l.changes, true)
	end(in.barriers, false)
	end(in.transfers, false)
	end(l.transfers, false)
	for _, rounds := range [][]reading[R]{l.rounds, l.readers} {
		for _, reading := range rounds {
			end(reading.waiters, false)
		}
	}
	r.pending.failAll(fault.Stopped)
}

// The raft loop works on the core when time passes, and when others have found
// somebody at work on it. Nobody does who waits for a disk or a machine.
func (r *Replica[R]) raftLoop(ctx context.Context) {
	defer r.appends.close()
	defer r.applies.close()
	ticker := time.NewTicker(r.o.Tick)
	defer ticker.Stop()
	r.loop.ticked = time.Now()

	if r.core.alone() {
		r.core.Campaign()
	}
	for ticked := true; ; {
		r.round()
		r.publish(ticked)
		r.deciding.Unlock()
		select {
		case <-ctx.Done():
			r.deciding.Lock()
			return
		case <-r.wake:
			r.deciding.Lock()
			ticked = false
		case now := <-ticker.C:
			r.deciding.Lock()
			r.tick(now)
			ticked = true
		}
	}
}

func (r *Replica[R]) tick(now time.Time) {
	l := &r.loop
	if late := 2 * r.o.Tick * time.Duration(r.o.Core.HeartbeatTicks); now.Sub(l.ticked) > late && r.core.role == raft.StateLeader {
		r.o.Metrics.HeartbeatsLate.Inc()
	}
	l.ticked = now
	r.core.Tick()
	n := r.ticks.Add(1)
	if r.o.Hasten && !l.hastened {
		r.hasten(n)
	}
	r.sweep(n)
	if l.unsettled && n-l.appendedAt >= uint64(r.o.Core.ElectionTicks) {
		l.unsettled = false
		r.appends.put(settle)
	}
}

// hasten stands for the first election, once enough voters can be reached to
// win it. They stand in turns, in the order of their ids, so that they do not
// split the votes, until an election timeout would have come anyway. A leader
// that there is already makes itself heard before, and the votes that are asked
// for beforehand protect it where it does not.
func (r *Replica[R]) hasten(now uint64) {
	l, status := &r.loop, r.Status()
	place, reached := -1, 0
	for _, id := range status.Voters {
		if id <= status.ID {
			place++
		}
		if id == status.ID || r.o.Connected(id) {
			reached++
		}
	}
	voters := len(status.Voters)
	switch {
	case status.Leader != 0 || !slices.Contains(status.Voters, status.ID):
		l.hastened = true
		return
	case reached <= voters/2:
		l.quorumAt = 0
		return
	case l.quorumAt == 0:
		l.quorumAt = now
	}
	heard := uint64(1) // ticks to hear of a leader
	if r.o.Core.NoPreVote {
		heard = 3
	}
	waited := now - l.quorumAt
	if waited > uint64(r.o.Core.ElectionTicks) {
		l.hastened = true
	} else if waited >= heard && (waited-heard)%uint64(2*voters) == uint64(2*place) {
		r.core.Campaign()
	}
}

// round takes everything that waits, and hands out everything that follows.
func (r *Replica[R]) round() {
	l := &r.loop
	r.swap()

	for _, m := range l.in.appended {
		r.core.AppendDone(m)
		if s := m.GetSnapshot(); !raft.IsEmptySnap(s) {
			r.pending.hide(s.GetMetadata().GetTerm())
			r.passed(s.GetMetadata().GetTerm())
		}
	}
	for _, a := range l.in.applied {
		r.core.ApplyDone(a.Message, a.Changes)
		r.log.Applied(a.At)
		r.passed(a.At.Term)
	}
	for _, m := range l.in.messages {
		r.core.Step(m)
	}
	for _, report := range l.in.reports {
		if report.snapshot {
			r.core.Snapshot(report.id, report.ok)
		} else {
			r.core.Unreachable(report.id)
		}
	}
	l.changes = append(l.changes, l.in.changes...)
	r.transfer()
	if len(l.in.barriers) > 0 {
		r.read(l.in.barriers)
	}

	// First without proposals: what just came may have made way for them.
	r.dispatch()
	if r.propose() {
		r.dispatch()
	}
	r.finishReads()
	r.finishTransfers()
}

// passed is told the term of what is applied. The batches of earlier terms are
// in no log then (C4) and are proposed again, but for those that a snapshot may
// hold: what became of these, nobody can tell any more.
func (r *Replica[R]) passed(term uint64) {
	l := &r.loop
	if term <= l.term {
		return
	}
	l.term = term
	for _, b := range r.pending.passed(term) {
		switch {
		case b.hidden:
			r.pending.account(b.waiters)
			for _, w := range b.waiters {
				w.expire(fault.TimeoutConnectionLost)
			}
		case b.waiters[0].change != nil:
			l.changes = append(l.changes, b.waiters...)
		default:
			l.backlog = append(l.backlog, b.waiters...)
		}
		r.pending.recycle(b)
	}
}

// swap takes what waits, except the proposals.
func (r *Replica[R]) swap() {
	in := &r.loop.in
	empty(&in.barriers)
	empty(&in.changes)
	empty(&in.transfers)
	empty(&in.messages)
	empty(&in.reports)
	empty(&in.appended)
	empty(&in.applied)
	r.mu.Lock()
	defer r.mu.Unlock()
	in.barriers, r.mu.in.barriers = r.mu.in.barriers, in.barriers
	in.changes, r.mu.in.changes = r.mu.in.changes, in.changes
	in.transfers, r.mu.in.transfers = r.mu.in.transfers, in.transfers
	in.messages, r.mu.in.messages = r.mu.in.messages, in.messages
	in.reports, r.mu.in.reports = r.mu.in.reports, in.reports
	in.appended, r.mu.in.appended = r.mu.in.appended, in.appended
	in.applied, r.mu.in.applied = r.mu.in.applied, in.applied
}

func empty[T any](s *[]T) {
	clear(*s)
	*s = (*s)[:0]
}

// dispatch hands out the core's work.
func (r *Replica[R]) dispatch() {
	l := &r.loop
	w := &l.work
	r.core.Work(w)
	if len(w.Messages) > 0 {
		r.o.Transport.Send(w.Messages)
	}
	if len(w.Appends) > 0 {
		l.appendedAt, l.unsettled = r.ticks.Load(), true
		r.appends.put(w.Appends...)
	}
	for _, m := range w.Applies {
		r.applies.put(applyJob{message: m})
	}
	for _, done := range w.Reads {
		must(len(l.rounds) > 0 && l.rounds[0].round == done.Round, "C1: rounds are answered in order")
		l.rounds[0].index = done.Index
		l.readers = append(l.readers, l.rounds[0])
		l.rounds = l.rounds[1:]
	}
	clear(w.Messages)
	clear(w.Appends)
	clear(w.Applies)
}

// propose turns everything that waits into entries, unless enough are under
// way or nobody would take them.
func (r *Replica[R]) propose() bool {
	l := &r.loop
	if !r.core.CanPropose() {
		return false
	}
	proposed := r.configure()
	if r.core.Writing() >= writingMax {
		return proposed
	}

	in := &l.in
	empty(&in.proposals)
	r.mu.Lock()
	in.proposals, r.mu.in.proposals = r.mu.in.proposals, in.proposals
	r.mu.Unlock()
	proposals := in.proposals
	if len(l.backlog) > 0 {
		proposals = append(l.backlog, proposals...)
		l.backlog = nil
	}
	for len(proposals) > 0 {
		b := r.pending.newBatch()
		l.commands = l.commands[:0]
		size, n := 0, 0
		for _, w := range proposals {
			if n > 0 && size+w.bytes > r.o.BatchBytes {
				break
			}
			n++
			if w.gone() {
				r.pending.account([]*waiter[R]{w})
				continue
			}
			size += w.bytes
			b.waiters = append(b.waiters, w)
			l.commands = append(l.commands, w.commands...)
		}
		if len(b.waiters) == 0 {
			proposals = proposals[n:]
			continue
		}
		name, term, err := r.core.Propose(l.commands)
		if err != nil {
			// In no log, so it may be proposed again: by a later round.
			l.backlog = append(append(l.backlog, b.waiters...), proposals[n:]...)
			r.pending.recycle(b)
			break
		}
		r.o.Metrics.BatchCommands.Observe(float64(len(l.commands)))
		b.name, b.term, b.tick = name, term, r.ticks.Load()
		r.pending.add(b)
		proposals = proposals[n:]
		proposed = true
	}
	clear(l.commands)
	return proposed
}

// configure proposes the changes of the membership that wait, one at a time:
// raft takes no other before the last is applied.
func (r *Replica[R]) configure() bool {
	l := &r.loop
	for len(l.changes) > 0 {
		w := l.changes[0]
		if w.gone() {
			r.pending.account(l.changes[:1])
			l.changes = l.changes[1:]
			continue
		}
		if r.core.Changing() || r.ticks.Load() < l.changeAt {
			return false
		}
		name, term, err := r.core.Configure(w.change)
		if err != nil {
			l.changeAt = r.ticks.Load() + 1 // it is in no log
			return false
		}
		l.changes = l.changes[1:]
		b := r.pending.newBatch()
		b.waiters = append(b.waiters, w)
		b.name, b.term, b.tick = name, term, r.ticks.Load()
		r.pending.add(b)
		return true
	}
	return false
}

// read lets those who came join one read round.
func (r *Replica[R]) read(waiters []*waiter[R]) {
	l := &r.loop
	round := r.core.Read()
	if n := len(l.rounds); n > 0 && l.rounds[n-1].round == round {
		l.rounds[n-1].waiters = append(l.rounds[n-1].waiters, waiters...)
		return
	}
	l.rounds = append(l.rounds, reading[R]{round: round, waiters: append([]*waiter[R](nil), waiters...)})
}

// finishReads ends the waits for rounds whose index is applied.
func (r *Replica[R]) finishReads() {
	l := &r.loop
	n := 0
	for _, reading := range l.readers {
		if reading.index > r.core.applied && !mutant.On("read before apply") {
			break // later rounds wait for no less
		}
		for _, w := range reading.waiters {
			w.end(nil, nil)
		}
		n++
	}
	if n > 0 {
		clear(l.readers[:n])
		l.readers = l.readers[n:]
	}
}

func (r *Replica[R]) transfer() {
	for _, w := range r.loop.in.transfers {
		switch status := r.Status(); {
		case status.Role != Leader:
			w.end(nil, fault.NotLeader)
		case !slices.Contains(status.Voters, w.to):
			w.end(nil, fault.BadTransferee)
		default:
			r.core.Transfer(w.to)
			r.loop.transfers = append(r.loop.transfers, w)
		}
	}
}

// finishTransfers ends the waits for a leader that is there, or will not be.
func (r *Replica[R]) finishTransfers() {
	l := &r.loop
	if len(l.transfers) == 0 {
		return
	}
	status := r.core.Status(true)
	rest := l.transfers[:0]
	for _, w := range l.transfers {
		switch {
		case status.Leader == w.to:
			w.end(nil, nil)
		case status.Leader == status.ID && status.Transferee != w.to:
			w.end(nil, fault.Timeout) // raft gave up after an election timeout
		case status.Leader != 0 && status.Leader != status.ID:
			w.end(nil, fault.LeaderChanged)
		case w.gone():
		default:
			rest = append(rest, w)
		}
	}
	clear(l.transfers[len(rest):])
	l.transfers = rest
}

// sweep ends the waits that have lasted too long, and forgets those who have
// left, where nothing else would.
func (r *Replica[R]) sweep(tick uint64) {
	l := &r.loop
	look := func(w *waiter[R]) {
		switch {
		case r.o.LimitTicks > 0 && tick > w.began+r.o.LimitTicks:
			w.expire(r.timedOut(w.began))
		case tick > w.began+1: // most will not have waited that long
			w.look(func(err error) error {
				if errors.Is(err, context.Canceled) {
					return fault.RequestCanceled
				}
				return r.timedOut(w.began)
			})
		}
	}
	r.pending.sweep(tick, look)
	stay := func(waiters []*waiter[R], commands bool) []*waiter[R] {
		rest := waiters[:0]
		for _, w := range waiters {
			look(w)
			if !w.gone() {
				rest = append(rest, w)
			} else if commands {
				r.pending.account([]*waiter[R]{w})
			}
		}
		clear(waiters[len(rest):])
		return rest
	}
	l.backlog = stay(l.backlog, true)
	l.changes = stay(l.changes, true)
	l.transfers = stay(l.transfers, false)
	for i := range l.rounds {
		l.rounds[i].waiters = stay(l.rounds[i].waiters, false)
	}
	for i := range l.readers {
		l.readers[i].waiters = stay(l.readers[i].waiters, false)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.in.proposals = stay(r.mu.in.proposals, true)
}

// settle stands in the queue of appends where the log has been idle for a
// while.
var settle = new(pb.Message)

// settle takes the marks to settle out of jobs. If nothing else waits, it has
// the log write down that all of it was synced, so that damage to its very end
// will not look like a torn write.
func (r *Replica[R]) settle(jobs []*pb.Message) ([]*pb.Message, error) {
	rest := slices.DeleteFunc(jobs, func(m *pb.Message) bool { return m == settle })
	if len(rest) > 0 {
		return rest, nil
	}
	if err := r.log.Settle(); err != nil {
		return nil, fmt.Errorf("replica: %w", err)
	}
	return rest, nil
}

// The append loop owns the log's files: whatever is queued becomes one write
// and one sync.
func (r *Replica[R]) appendLoop(ctx context.Context) error {
	var jobs []*pb.Message
	for {
		var ok bool
		if jobs, ok = r.appends.take(jobs); !ok {
			return nil
		}
		var err error
		if jobs, err = r.settle(jobs); err != nil {
			return err
		}
		restores, err := r.write(jobs)
		if err != nil {
			return err
		}
		if restores {
			select {
			case <-r.restored:
			case <-ctx.Done():
				return nil // the next Open restores it
			}
		}
		if err := r.wrote(jobs); err != nil {
			return err
		}
	}
}

// write makes the jobs durable. If there is a snapshot among them, its mark is
// in the log then, and the apply loop restores it behind all that is queued
// there; of several only the newest still matters.
func (r *Replica[R]) write(jobs []*pb.Message) (restores bool, err error) {
	if len(jobs) == 0 {
		return false, nil
	}
	if err := r.log.Append(jobs); err != nil {
		return false, fmt.Errorf("replica: %w", err)
	}
	for _, m := range slices.Backward(jobs) {
		if s := m.GetSnapshot(); !raft.IsEmptySnap(s) {
			return r.applies.put(applyJob{snapshot: s}), nil
		}
	}
	return false, nil
}

// wrote lets everybody know of jobs that are done, and gives up files.
func (r *Replica[R]) wrote(jobs []*pb.Message) error {
	others := r.others[:0]
	for _, m := range jobs {
		for _, response := range m.Responses {
			if response.GetTo() != r.o.ID {
				others = append(others, response)
			}
		}
	}
	if len(others) > 0 {
		r.o.Transport.Send(others)
		clear(others)
	}
	r.others = others
	if r.leave(func(in *inbox[R]) { in.appended = append(in.appended, jobs...) }) {
		r.decide()
	}

	if durable := r.durable.Load(); durable != r.released {
		r.released = durable
		if err := r.log.Release(durable); err != nil {
			return fmt.Errorf("replica: %w", err)
		}
	}
	return nil
}

// The apply loop owns the machine.
func (r *Replica[R]) applyLoop() error {
	var jobs []applyJob
	for {
		var ok bool
		if jobs, ok = r.applies.take(jobs); !ok {
			return nil
		}
		if err := r.apply(jobs); err != nil {
			return err
		}
	}
}

// apply carries out the jobs, entries of several together.
func (r *Replica[R]) apply(jobs []applyJob) error {
	for len(jobs) > 0 {
		if s := jobs[0].snapshot; s != nil {
			if err := r.applier.Restore(s); err != nil {
				return err
			}
			r.durable.Store(r.applier.at.Index)
			r.restored <- struct{}{}
			jobs = jobs[1:]
			continue
		}
		messages := r.messages[:0]
		for len(jobs) > 0 && jobs[0].message != nil {
			messages = append(messages, jobs[0].message)
			jobs = jobs[1:]
		}
		done, err := r.applier.Apply(messages, r.done[:0])
		if err != nil {
			return err
		}
		applied, durable := r.machine.Applied()
		if mutant.On("log cut at applied") {
			durable = applied
		}
		r.durable.Store(durable)
		r.submit(func(in *inbox[R]) { in.applied = append(in.applied, done...) })
		clear(done)
		clear(messages)
		r.done, r.messages = done, messages
	}
	return nil
}
