// Package peer is how members talk to each other: raft messages, snapshots,
// and calls. It carries bytes between members it can name and never decides
// anything: what a message means is for those above.
//
//	peer.go      the door
//	hello.go     who talks to whom
//	frame.go     bytes on a connection; PROTOCOL.md describes them
//	link.go      a connection, with deadlines
//	lane.go      what goes out: queues and senders
//	accept.go    what comes in
//	snapshot.go  the state of a whole member, from here or to here
//	call.go      requests with an answer
//
// Whoever has something to say dials. For each member there are three
// connections that stay (urgent, log, calls) and one for each snapshot, so that
// a heartbeat never queues behind a gigabyte.
//
// What it promises:
//
//	P1: Send does not wait, and keeps nothing but the messages it was given.
//	P2: a message is delivered at most once, and in the order in which messages
//	    were sent on its lane. What was handed to a connection that then broke
//	    is lost, and reported.
//	P3: a message is delivered only to the member and cluster it was meant for,
//	    and comes from the member it names.
//	P4: a removed member is told so, by whomever it calls.
//	P5: a snapshot is announced only when all of it is durable here and its sums
//	    are right. It is never in memory.
//	P6: after Run returns, no goroutine is left.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/metric"
)

// Lane is a kind of connection between two members.
type Lane uint8

const (
	Urgent   Lane = 1 // heartbeats, votes, acknowledgements: small and never late
	Log      Lane = 2 // entries, on their way to followers or to the leader
	Calls    Lane = 3
	Snapshot Lane = 4
)

// Options of Peers. Cluster, ID, Incarnation and Deliver have no default.
type Options struct {
	Cluster     uint64
	ID          uint64
	Incarnation uint64 // of this run; higher than that of any run before
	Version     string // of the server; others see it in Status
	Dir         string // where snapshots that arrive are kept; without it none is taken

	// Dial connects to an address of a member. Default: plain TCP to the host
	// of an http URL.
	Dial func(ctx context.Context, url string) (net.Conn, error)

	// Deliver takes a message of another member. It must not wait.
	Deliver func(*pb.Message)

	// Lost hears that messages to a member were lost. It is called by Send
	// also, and must not wait.
	Lost func(id uint64)

	// SnapshotSent hears how the sending of a snapshot to a member ended. The
	// same holds for it.
	SnapshotSent func(id uint64, ok bool)

	// WriteSnapshot writes the state of this member as of some entry, and
	// returns which one, with the membership that holds there. It must be at
	// least as new as index. Default: there is nothing to send.
	WriteSnapshot func(ctx context.Context, index uint64, w io.Writer) (*pb.SnapshotMetadata, error)

	// SnapshotReceived takes a MsgSnap whose data is durable in file, which now
	// belongs to the callee. Default: Deliver, for which the file's name is
	// SnapshotFile of the message's metadata.
	SnapshotReceived func(m *pb.Message, file string) error

	// Evicted hears once that another member says that this one was removed.
	Evicted func(by uint64)

	MessageBytes   int           // the largest message or call; default 64 MiB
	QueueMessages  int           // that wait on one lane; default 4096
	QueueBytes     int           // that wait on one lane; default 128 MiB
	BatchBytes     int           // handed to a connection together; default 256 KiB
	SnapshotRate   int64         // bytes a second to one member; default 0: no limit
	CallsMax       int           // of one member that are answered at a time; default 64
	DialTimeout    time.Duration // with both hellos; default 5 s
	ReadTimeout    time.Duration // of a silent connection; default 5 s
	WriteTimeout   time.Duration // of a connection that takes nothing; default 5 s
	PingInterval   time.Duration // default 1 s, at most a quarter of ReadTimeout
	BackoffMin     time.Duration // between attempts to connect; default 50 ms
	BackoffMax     time.Duration // default 3 s
	DrainTime      time.Duration // at the end, for what waits; default 200 ms
	ConnectionsMax int           // of callers that have not said who they are; default 256

	Jitter  func() float64 // in [0,1); default math/rand
	Metrics Metrics
	Logger  *slog.Logger // default: nobody hears of it
}

// Metrics are where Peers count. Each may be nil. Labels are ids in
// hexadecimal: of the other member, or of this one and the other.
type Metrics struct {
	SentBytes        *metric.Family[metric.Counter]
	ReceivedBytes    *metric.Family[metric.Counter]
	SentFailures     *metric.Family[metric.Counter] // messages that could not be sent
	ReceivedFailures *metric.Family[metric.Counter] // connections that ended in the middle or in nonsense
	RoundTrip        *metric.Family[metric.Histogram]
	Active           *metric.Family[metric.Gauge] // this member, the other
	Known            *metric.Family[metric.Gauge]
	Disconnected     *metric.Family[metric.Counter]

	SnapshotSent            *metric.Family[metric.Counter]
	SnapshotSendFailures    *metric.Family[metric.Counter]
	SnapshotSending         *metric.Family[metric.Gauge]
	SnapshotSendSeconds     *metric.Family[metric.Histogram]
	SnapshotReceived        *metric.Family[metric.Counter]
	SnapshotReceiveFailures *metric.Family[metric.Counter]
	SnapshotReceiving       *metric.Family[metric.Gauge]
	SnapshotReceiveSeconds  *metric.Family[metric.Histogram]
}

func (o Options) withDefaults() Options {
	set := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	last := func(v *time.Duration, to time.Duration) {
		if *v == 0 {
			*v = to
		}
	}
	set(&o.MessageBytes, 64<<20)
	set(&o.QueueMessages, 4096)
	set(&o.QueueBytes, 128<<20)
	set(&o.BatchBytes, 256<<10)
	set(&o.CallsMax, 64)
	set(&o.ConnectionsMax, 256)
	last(&o.DialTimeout, 5*time.Second)
	last(&o.ReadTimeout, 5*time.Second)
	last(&o.WriteTimeout, 5*time.Second)
	last(&o.PingInterval, time.Second)
	last(&o.BackoffMin, 50*time.Millisecond)
	last(&o.BackoffMax, 3*time.Second)
	// Raft makes up for what does not leave, so it is for a round trip, and not
	// for a member that is stuck.
	last(&o.DrainTime, 200*time.Millisecond)
	o.PingInterval = min(o.PingInterval, o.ReadTimeout/4)
	o.MessageBytes = max(o.MessageBytes, chunkBytes)
	if o.Dial == nil {
		o.Dial = dialPlain
	}
	if o.Lost == nil {
		o.Lost = func(uint64) {}
	}
	if o.SnapshotSent == nil {
		o.SnapshotSent = func(uint64, bool) {}
	}
	if o.SnapshotReceived == nil {
		o.SnapshotReceived = func(m *pb.Message, _ string) error { o.Deliver(m); return nil }
	}
	if o.Evicted == nil {
		o.Evicted = func(uint64) {}
	}
	if o.Jitter == nil {
		o.Jitter = rand.Float64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Member is another member, and where it can be found.
type Member struct {
	ID   uint64
	URLs []string
}

// Membership is who belongs to the cluster, as of an index of the log.
type Membership struct {
	Index   uint64
	Members []Member // this one may be among them
	Removed []uint64 // all that ever were
}

// Status is what is known of another member.
type Status struct {
	ID          uint64
	URLs        []string
	Active      time.Time     // since when it can be reached; zero: it cannot
	RoundTrip   time.Duration // the last one
	Trips       Trips         // all of them
	Lost        uint64        // messages that will not arrive
	ClockAhead  time.Duration // how far its wall clock is ahead, within half a round trip
	Version     string        // of its server, as it said last
	Err         error         // of the last attempt to connect; nil when active
	QueuedBytes int           // on all lanes
}

// Peers are the other members. All methods may be called from any goroutine.
type Peers struct {
	// Immutable after New.
	o    Options
	born time.Time

	attempts atomic.Uint64
	members  atomic.Pointer[map[uint64]*member] // for Send; changed under mu
	changed  chan struct{}                      // holds one: there are members to start
	evicted  sync.Once
	inbox    inbox

	mu struct {
		sync.Mutex
		membership Membership
		removed    map[uint64]bool
		handlers   map[string]Handler
		started    []*member // to be run
	}
}

// New returns peers that know nobody. It removes what is left of snapshots
// that a former run was receiving.
func New(o Options) (*Peers, error) {
	o = o.withDefaults()
	if o.ID == 0 || o.Deliver == nil {
		return nil, errors.New("peer: ID and Deliver must be given")
	}
	if err := sweep(o.Dir); err != nil {
		return nil, err
	}
	p := &Peers{o: o, born: time.Now(), changed: make(chan struct{}, 1)}
	p.members.Store(&map[uint64]*member{})
	p.inbox.init(o)
	p.mu.removed = map[uint64]bool{}
	p.mu.handlers = map[string]Handler{}
	return p, nil
}

// Run talks to the members observed and to those who call, until ctx ends;
// then it sends what waits, for a moment at most, and ends all connections. It
// closes the listener.
func (p *Peers) Run(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	var failed error
	running.Go(func() {
		failed = p.accept(ctx, listener)
		cancel()
	})
	for ctx.Err() == nil {
		p.mu.Lock()
		started := p.mu.started
		p.mu.started = nil
		p.mu.Unlock()
		for _, m := range started {
			running.Go(func() { m.run(ctx) })
		}
		select {
		case <-p.changed:
		case <-ctx.Done():
		}
	}
	cancel()
	closed := listener.Close()
	running.Wait()
	if errors.Is(closed, net.ErrClosed) {
		closed = nil
	}
	return errors.Join(failed, closed)
}

// Observe tells who the members are from now on. A membership as of an older
// index than one observed before is ignored.
func (p *Peers) Observe(ms Membership) {
	p.mu.Lock()
	if ms.Index < p.mu.membership.Index {
		p.mu.Unlock()
		return
	}
	for _, before := range p.mu.membership.Members {
		if !slices.ContainsFunc(ms.Members, func(m Member) bool { return m.ID == before.ID }) {
			p.mu.removed[before.ID] = true
		}
	}
	for _, id := range ms.Removed {
		p.mu.removed[id] = true
	}
	p.mu.membership = ms

	old := *p.members.Load()
	now := make(map[uint64]*member, len(ms.Members))
	for _, m := range ms.Members {
		if m.ID == p.o.ID || p.mu.removed[m.ID] {
			continue
		}
		to := old[m.ID]
		if to == nil {
			to = p.start(m.ID)
		}
		to.observe(m.URLs, 0)
		now[m.ID] = to
	}
	for id, m := range old {
		switch {
		case now[id] != nil:
		case m.guestAsOf() > ms.Index && !p.mu.removed[id]:
			now[id] = m // it still knows better
		default:
			m.leave()
		}
	}
	p.members.Store(&now)
	p.mu.Unlock()
	p.inbox.review(p)
}

// start makes a member that Run will run. The caller holds mu.
func (p *Peers) start(id uint64) *member {
	m := newMember(p, id)
	p.mu.started = append(p.mu.started, m)
	select {
	case p.changed <- struct{}{}:
	default: // Run knows already
	}
	return m
}

// admit says whether a caller may come in. One that is no member here may when
// it knows the membership of a later index than this member does: this member
// has been away, and those it would hear that from may all be new to it. It
// then is a guest until the membership is known here too.
func (p *Peers) admit(h *hello) *Refused {
	p.mu.Lock()
	defer p.mu.Unlock()
	members := *p.members.Load()
	switch known := members[h.from]; {
	case p.mu.removed[h.from]:
		return &Refused{Reason: Removed}
	case known != nil:
		if known.guestAsOf() > 0 {
			known.observe(h.addresses, h.membership)
		}
		return nil
	case h.from == p.o.ID || h.membership <= p.mu.membership.Index || len(members) >= guestsMax+len(p.mu.membership.Members):
		return &Refused{Reason: Unknown, Text: hex(h.from)}
	}
	guest := p.start(h.from)
	guest.observe(h.addresses, h.membership)
	next := make(map[uint64]*member, len(members)+1)
	for id, m := range members {
		next[id] = m
	}
	next[h.from] = guest
	p.members.Store(&next)
	p.o.Logger.Info("a member that is not known here yet has called", "remote-peer-id", hex(h.from), "membership-index", h.membership)
	return nil
}

const guestsMax = 16

// hello returns how this member begins a connection.
func (p *Peers) hello(lane Lane, to uint64) hello {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := hello{
		min: versionMin, max: versionMax, lane: lane,
		cluster: p.o.Cluster, from: p.o.ID, to: to, incarnation: p.o.Incarnation,
		membership: p.mu.membership.Index, server: p.o.Version,
	}
	for _, m := range p.mu.membership.Members {
		if m.ID == p.o.ID {
			h.addresses = m.URLs
		}
	}
	return h
}

// Send sends messages to those they are for. It keeps replica.Transport's
// contract.
func (p *Peers) Send(messages []*pb.Message) {
	members := *p.members.Load()
	for _, m := range messages {
		to := members[m.GetTo()]
		snapshot := m.GetType() == pb.MsgSnap
		switch {
		case to == nil:
			p.o.Lost(m.GetTo())
			if snapshot {
				p.o.SnapshotSent(m.GetTo(), false)
			}
		case snapshot:
			to.snapshots.put(m)
		default:
			to.send(m)
		}
	}
}

// laneOf says how a message travels. Acknowledgements are urgent: they are
// small, a leader waits for them, and behind forwarded proposals they would be
// late.
func laneOf(t pb.MessageType) Lane {
	switch t {
	case pb.MsgApp, pb.MsgProp:
		return Log
	}
	return Urgent
}

// foreign tells whether a message may come from another member at all: some
// kinds are for a member to say to itself.
func foreign(m *pb.Message) bool {
	return !raft.IsLocalMsg(m.GetType()) && m.GetType() != pb.MsgSnap
}

// Connected tells whether a member can be reached. This one always can.
func (p *Peers) Connected(id uint64) bool {
	if id == p.o.ID {
		return true
	}
	m := (*p.members.Load())[id]
	return m != nil && !m.status().Active.IsZero()
}

// Status returns what is known of the other members, ordered by id.
func (p *Peers) Status() []Status {
	var all []Status
	for _, m := range *p.members.Load() {
		all = append(all, m.status())
	}
	slices.SortFunc(all, func(a, b Status) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return all
}

// hex writes ids as etcd does.
func hex(id uint64) string { return strconv.FormatUint(id, 16) }

func failure(step string, err error) error { return fmt.Errorf("peer: %s: %w", step, err) }
