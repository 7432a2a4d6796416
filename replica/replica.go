// Package replica is the ring that knows what is agreed: it puts commands in
// one order on all members of a cluster, gives them to a machine in that order
// and hands the results to those who wait. It knows raft, the log and quorum;
// it never knows what a command means.
//
//	core.go     decides: a step function around raft, without goroutine or clock
//	apply.go    feeds the machine
//	run.go      the three loops that carry the work out
//	alone.go    drops the others, where they are lost
//	replica.go  the door
//
// What it promises:
//
//	I4: a result is given only for a command that is in the log of a quorum,
//	    synced, and applied here. With one member that is this member.
//	I5: the log is cut only below what the machine holds durably.
//	I11: an error that says a command was not executed is true. Where nobody can
//	    know, the error says that time ran out.
//
// Beside these stand the promises of Core, Applier and package raftlog.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/replica/internal/raftlog"
)

// Transport carries messages to other members. Send must not wait and is
// called by several goroutines. It may lose messages and reorder them, but never
// deliver one twice: a proposal that arrives twice would be executed twice. It
// must not keep the slice; the messages never change.
//
// Of a MsgSnap the data is not part: the transport sends a snapshot of the
// machine that is at least as new as the message says, writes what it really
// is into the message's metadata, and tells Snapshot how it ended.
type Transport interface {
	Send(messages []*pb.Message)
}

// LogOptions say where the log lives.
type LogOptions = raftlog.Options

// Options of a replica. ID and Log.WAL.Dir have no default.
type Options[R any] struct {
	ID        uint64
	Log       LogOptions  // Applied and Configuration are the machine's
	Core      CoreOptions // ID, Incarnation, Storage and Applied are the replica's
	Transport Transport   // default: there is nobody else

	Tick time.Duration // default 100 ms

	// Accepted says of the result of a command that came with a change of the
	// membership whether the change holds. It must be a function of the
	// result, which must be a function of the log. Default: it always does.
	Accepted func(R) bool

	// Leading hears in which term this member leads, 0 for none, whenever that
	// changes. It must not wait. Default: nobody hears of it.
	Leading func(term uint64)

	// Alone has this member start as the only one, whatever the others would
	// say to that, with all that its log holds. It returns the command that
	// goes with a change of the membership. Default: the others count.
	Alone func(MemberChange) []byte

	// Hasten holds the first election as soon as a quorum can be reached,
	// instead of waiting for a leader that may never have been.
	Hasten bool

	// Connected says whether a member can be reached. It only chooses the
	// words of a timeout, and when to hasten. Default: all can.
	Connected func(id uint64) bool

	// LimitTicks is how long somebody waits for a result or for what a read
	// needs, and a little more; the words say why it was too long. Default:
	// until the context ends.
	LimitTicks uint64

	BatchBytes   int    // of commands in one entry; default 1 MiB; one larger command is an entry
	WaitingMax   int    // commands without result, and reads; default 65536 of each
	WaitingBytes int64  // of them; default 256 MiB
	UnappliedMax uint64 // entries committed but not applied, beyond which no command is taken; default 5000
	Metrics      Metrics
	Logger       *slog.Logger // default: nobody hears of it
}

// Metrics are where a replica counts. Each may be nil.
type Metrics struct {
	Committed      *metric.Gauge   // index
	Applied        *metric.Gauge   // index
	Pending        *metric.Gauge   // commands without result
	Failed         *metric.Counter // commands that ran out of time
	LeaderChanges  *metric.Counter
	HasLeader      *metric.Gauge
	IsLeader       *metric.Gauge
	IsLearner      *metric.Gauge
	SlowReads      *metric.Counter // attempts to have reads answered that were repeated
	FailedReads    *metric.Counter // reads that ran out of time
	HeartbeatsLate *metric.Counter // heartbeats that left late because this member was busy
	BatchCommands  *metric.Histogram
}

func (o Options[R]) withDefaults() Options[R] {
	if o.Tick == 0 {
		o.Tick = 100 * time.Millisecond
	}
	if o.Connected == nil {
		o.Connected = func(uint64) bool { return true }
	}
	if o.Leading == nil {
		o.Leading = func(uint64) {}
	}
	if o.BatchBytes == 0 {
		o.BatchBytes = 1 << 20
	}
	if o.WaitingMax == 0 {
		o.WaitingMax = 1 << 16
	}
	if o.WaitingBytes == 0 {
		o.WaitingBytes = 256 << 20
	}
	if o.UnappliedMax == 0 {
		o.UnappliedMax = 5000
	}
	if o.Transport == nil {
		o.Transport = nobody{}
	}
	o.Core = o.Core.withDefaults()
	if o.Core.Logger == nil {
		o.Core.Logger = o.Logger
	}
	return o
}

type nobody struct{}

func (nobody) Send([]*pb.Message) {}

// Replica is one member's part in a cluster. All methods may be called from
// any goroutine.
type Replica[R any] struct {
	// Immutable after Open.
	o       Options[R]
	log     *raftlog.Log
	machine Machine[R]
	pending *pending[R]
	wake    chan struct{} // holds one: there is something in the inbox
	appends *queue[*pb.Message]
	applies *queue[applyJob]

	status  atomic.Pointer[Status]
	ticks   atomic.Uint64
	elected atomic.Uint64 // tick at which the present leader was first heard of
	durable atomic.Uint64 // index that the machine holds durably
	reads   atomic.Int64  // that wait

	deciding sync.Mutex // held, but while Run runs, by nobody; then by who works on these two
	core     *Core
	loop     raftLoop[R]

	others   []*pb.Message // reused by the append loop
	released uint64        // index up to which the append loop has released files
	restored chan struct{} // to the append loop: a snapshot is restored

	applier  *Applier[R]   // the three owned by the apply loop
	messages []*pb.Message // reused
	done     []Applied     // reused

	mu struct {
		sync.Mutex
		in     inbox[R]
		closed bool
	}
}

// inbox is what waits for the raft loop.
type inbox[R any] struct {
	proposals []*waiter[R]
	barriers  []*waiter[R]
	changes   []*waiter[R]
	transfers []*waiter[R]
	messages  []*pb.Message
	reports   []report
	appended  []*pb.Message
	applied   []Applied
}

// report says how the sending of messages to a member went.
type report struct {
	id           uint64
	snapshot, ok bool
}

// messagesMax bounds the messages of others that wait. Raft repeats what is
// dropped.
const messagesMax = 8192

// Open opens the log beside a machine, and has the machine finish a snapshot
// that a crash interrupted. Run must follow: it closes what Open has opened.
func Open[R any](machine Machine[R], o Options[R]) (*Replica[R], error) {
	o = o.withDefaults()
	applied, durable := machine.Applied()
	if applied != durable {
		return nil, fmt.Errorf("replica: the state is at %d but durable only up to %d: it was not just opened", applied, durable)
	}
	members, err := decodeMembers(machine.Configuration())
	if err != nil {
		return nil, err
	}
	o.Log.Applied, o.Log.Configuration = applied, members
	log, err := raftlog.Open(o.Log)
	if err != nil {
		return nil, err
	}
	if o.Alone != nil {
		dropped, err := seize(log, o.ID, o.Alone)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("replica: drop the other members: %w", err), log.Close())
		}
		if o.Logger != nil && len(dropped) > 0 {
			o.Logger.Warn("the other members are dropped", "dropped", fmt.Sprintf("%x", dropped))
		}
	}
	r, err := open(machine, o, log, applied)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return r, nil
}

func open[R any](machine Machine[R], o Options[R], log *raftlog.Log, applied uint64) (*Replica[R], error) {
	snapshot, err := log.Snapshot()
	if err != nil {
		snapshot = &pb.Snapshot{} // a machine that waits for its first snapshot
	}
	meta := snapshot.GetMetadata()
	at := Mark{Index: meta.GetIndex(), Term: meta.GetTerm(), Configuration: meta.GetConfState()}
	if at.Configuration == nil {
		at.Configuration = &pb.ConfState{}
	}

	r := &Replica[R]{
		o: o, log: log, machine: machine,
		pending:  newPending[R](o.ID, log.Incarnation()),
		wake:     make(chan struct{}, 1),
		restored: make(chan struct{}, 1),
		appends:  newQueue[*pb.Message](),
		applies:  newQueue[applyJob](),
	}
	r.applier = newApplier(machine, o.Accepted, r.pending, at)
	if at.Index > applied && !mutant.On("interrupted restore forgotten") {
		if err := r.applier.Restore(snapshot); err != nil {
			return nil, err
		}
	}
	r.durable.Store(at.Index)
	r.deciding.Lock()

	o.Core.ID, o.Core.Incarnation = o.ID, log.Incarnation()
	o.Core.Storage, o.Core.Applied = log, at.Index
	if r.core, err = NewCore(o.Core); err != nil {
		return nil, fmt.Errorf("replica: start raft: %w", err)
	}
	r.publish(true)
	return r, nil
}

// Status returns what this member knows of the cluster.
func (r *Replica[R]) Status() *Status { return r.status.Load() }

// Reign returns for how many ticks the present leader has been known.
func (r *Replica[R]) Reign() uint64 { return r.ticks.Load() - r.elected.Load() }

// LogBytes returns what the log takes on disk.
func (r *Replica[R]) LogBytes() int64 { return r.log.Size() }

// Propose returns the result of a command once it is committed and applied
// here. Without LimitTicks the context should have a deadline: a proposal that
// was lost on its way to a leader who stays is not noticed otherwise; one that
// a change of leaders has lost is proposed again. When Propose returns early, the
// command may still be executed, unless the error is TooManyRequests. The
// command must not change until then.
func (r *Replica[R]) Propose(ctx context.Context, command []byte) (R, error) {
	s := newSolo[R](ctx)
	r.ProposeAll(s, [][]byte{command})
	return s.wait()
}

// ProposeAll does the same for a party, and does not wait. The commands are
// proposed side by side, and must not change from now on.
func (r *Replica[R]) ProposeAll(p Party[R], commands [][]byte) {
	w := r.admit(p, commands)
	if w == nil {
		return
	}
	r.mu.Lock()
	if r.mu.closed {
		r.mu.Unlock()
		r.pending.account([]*waiter[R]{w})
		w.end(nil, fault.Stopped)
		return
	}
	r.mu.in.proposals = append(r.mu.in.proposals, w)
	first := len(r.mu.in.proposals) == 1
	r.mu.Unlock()
	if first {
		r.decide()
	}
}

// admit takes commands into account. It returns those who wait for them, nil if
// there are none: for whom there is no room has been told so.
func (r *Replica[R]) admit(p Party[R], commands [][]byte) *waiter[R] {
	n, size := 0, 0
	if status := r.status.Load(); status.Commit <= status.Applied+r.o.UnappliedMax {
		n, size = r.pending.admit(commands, int64(r.o.WaitingMax), r.o.WaitingBytes)
	}
	for i := n; i < len(commands); i++ {
		p.Leave(i, fault.TooManyRequests)
	}
	if n == 0 {
		return nil
	}
	w := r.waiter(p, n, r.o.Metrics.Failed)
	w.commands, w.bytes = commands[:n], size
	return w
}

// Configure proposes a change of the membership together with the command in
// its context, and returns the command's result once both are applied here.
// Where the result is not accepted, the membership has not changed. What holds
// of Propose holds of Configure.
func (r *Replica[R]) Configure(ctx context.Context, change *pb.ConfChangeV2) (R, error) {
	s := newSolo[R](ctx)
	r.configureFor(s, change)
	return s.wait()
}

func (r *Replica[R]) configureFor(s *solo[R], change *pb.ConfChangeV2) {
	w := r.admit(s, [][]byte{change.Context})
	if w == nil {
		return
	}
	w.change = change
	if !r.submit(func(in *inbox[R]) { in.changes = append(in.changes, w) }) {
		r.pending.account([]*waiter[R]{w})
		w.end(nil, fault.Stopped)
	}
}

// Barrier returns when all that was committed anywhere in the cluster before
// the call is applied here.
func (r *Replica[R]) Barrier(ctx context.Context) error {
	s := newSolo[R](ctx)
	r.BarrierAll(s, 1)
	_, err := s.wait()
	return err
}

// BarrierAll does the same for a party of n, and does not wait.
func (r *Replica[R]) BarrierAll(p Party[R], n int) {
	over := max(0, min(int64(n), r.reads.Add(int64(n))-int64(r.o.WaitingMax)))
	if over > 0 {
		r.reads.Add(-over)
		for ; over > 0; over-- {
			n--
			p.Leave(n, fault.TooManyRequests)
		}
	}
	if n == 0 {
		return
	}
	w := r.waiter(p, n, r.o.Metrics.FailedReads)
	w.reads = &r.reads
	r.mu.Lock()
	if r.mu.closed {
		r.mu.Unlock()
		w.end(nil, fault.Stopped)
		return
	}
	r.mu.in.barriers = append(r.mu.in.barriers, w)
	first := len(r.mu.in.barriers) == 1
	r.mu.Unlock()
	if first {
		r.decide()
	}
}

// Transfer hands leadership to a voting member and returns when that member
// leads. Only the leader can.
func (r *Replica[R]) Transfer(ctx context.Context, to uint64) error {
	s := newSolo[R](ctx)
	r.transferFor(s, to)
	_, err := s.wait()
	return err
}

func (r *Replica[R]) transferFor(s *solo[R], to uint64) {
	w := r.waiter(s, 1, nil)
	w.to = to
	if !r.submit(func(in *inbox[R]) { in.transfers = append(in.transfers, w) }) {
		w.end(nil, fault.Stopped)
	}
}

// Step takes a message of another member. It does not wait. Of a MsgSnap, the
// data must be durable here, ready for Machine.Restore.
func (r *Replica[R]) Step(m *pb.Message) {
	r.submit(func(in *inbox[R]) {
		if len(in.messages) < messagesMax {
			in.messages = append(in.messages, m)
		}
	})
}

// ReportUnreachable tells that messages to a member were lost.
func (r *Replica[R]) ReportUnreachable(id uint64) {
	r.submit(func(in *inbox[R]) { in.reports = append(in.reports, report{id: id}) })
}

// ReportSnapshot tells how the sending of a snapshot to a member ended.
func (r *Replica[R]) ReportSnapshot(id uint64, ok bool) {
	r.submit(func(in *inbox[R]) { in.reports = append(in.reports, report{id: id, snapshot: true, ok: ok}) })
}

// submit changes the inbox and wakes the raft loop, unless the replica has
// stopped.
func (r *Replica[R]) submit(change func(*inbox[R])) bool {
	there := r.leave(change)
	if there {
		r.notify()
	}
	return there
}

// leave changes the inbox, unless the replica has stopped.
func (r *Replica[R]) leave(change func(*inbox[R])) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.mu.closed {
		change(&r.mu.in)
	}
	return !r.mu.closed
}

func (r *Replica[R]) notify() {
	select {
	case r.wake <- struct{}{}:
	default: // it is awake
	}
}

// decide looks at what waits in the inbox, or wakes the raft loop if somebody
// works on the core already, who may have looked before. Waking takes longer than
// most rounds do, and a put takes three of them.
func (r *Replica[R]) decide() {
	if !r.deciding.TryLock() {
		r.notify()
		return
	}
	r.round()
	r.publish(false)
	r.deciding.Unlock()
}

func (r *Replica[R]) waiter(p Party[R], size int, late *metric.Counter) *waiter[R] {
	w := &waiter[R]{party: p, size: size, late: late, began: r.ticks.Load()}
	w.mu.waiting = size
	return w
}

// timedOut chooses the words for a wait that ended without outcome. All of
// them leave open whether the command is executed.
func (r *Replica[R]) timedOut(began uint64) error {
	// A leader elected since, or shortly before: the one before may have taken
	// the command with it.
	elected, election := r.elected.Load(), uint64(r.o.Core.ElectionTicks)
	if elected > began && elected < began+2*election {
		return fault.TimeoutLeaderFail
	}
	status := r.status.Load()
	switch status.Leader {
	case 0:
		return fault.Timeout
	case status.ID:
		reached := 0
		for _, id := range status.Voters {
			if id == status.ID || r.o.Connected(id) {
				reached++
			}
		}
		if reached <= len(status.Voters)/2 {
			return fault.TimeoutConnectionLost
		}
	default:
		if !r.o.Connected(status.Leader) {
			return fault.TimeoutConnectionLost
		}
	}
	return fault.Timeout
}

// publish makes the core's status everybody's, and counts what changed.
func (r *Replica[R]) publish(all bool) {
	next := r.core.Status(all)
	prev := r.status.Load()
	if prev != nil {
		if !all && next.Role == Leader && prev.Role == Leader && prev.Term == next.Term {
			next.Progress, next.Transferee = prev.Progress, prev.Transferee
		}
		if next.Term == prev.Term && next.Leader == prev.Leader && next.Role == prev.Role &&
			next.Commit == prev.Commit && next.Applied == prev.Applied && !all && next.SlowReads == prev.SlowReads &&
			slices.Equal(next.Voters, prev.Voters) && slices.Equal(next.Learners, prev.Learners) && slices.Equal(next.Outgoing, prev.Outgoing) {
			return
		}
	}
	r.status.Store(&next)
	if prev == nil || prev.Role != next.Role || prev.Term != next.Term {
		r.o.Leading(next.leads())
	}

	m := &r.o.Metrics
	m.Committed.Set(int64(next.Commit))
	m.Applied.Set(int64(next.Applied))
	m.Pending.Set(r.pending.commands.Load())
	if prev == nil && next.Leader != 0 || prev != nil && prev.Leader != next.Leader {
		switch {
		case r.o.Logger == nil:
		case next.Leader == 0:
			r.o.Logger.Info("nobody leads", "term", next.Term)
		default:
			r.o.Logger.Info("leader changed", "leader", fmt.Sprintf("%x", next.Leader), "term", next.Term)
		}
		if next.Leader != 0 {
			r.elected.Store(r.ticks.Load())
			m.LeaderChanges.Inc()
		}
	}
	if prev != nil {
		m.SlowReads.Add(next.SlowReads - prev.SlowReads)
	}
	m.HasLeader.Set(oneIf(next.Leader != 0))
	m.IsLeader.Set(oneIf(next.Role == Leader))
	m.IsLearner.Set(oneIf(slices.Contains(next.Learners, next.ID)))
}

func oneIf(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// leads returns the term in which this member leads, or 0.
func (s *Status) leads() uint64 {
	if s.Role == Leader {
		return s.Term
	}
	return 0
}
