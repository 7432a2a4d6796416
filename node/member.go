package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/leader"
	"github.com/kvorum/kvorum/peer"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/wal"
	"github.com/kvorum/kvorum/watch"
)

// member is what agrees and remembers: log, replica and state, without a
// socket. It runs on any file system, so that tests can cut its power.
type member struct {
	// Immutable after openMember.
	o                    memberOptions
	machine              *state.Machine
	replica              *replica.Replica[state.Outcome]
	applied              *applied
	office               leader.Office
	hub                  *watch.Hub
	leases               *leader.Leases
	deadlines            *leader.Deadlines
	renewals, remainders *gathering
	peers                *peer.Peers   // nil: there is nobody else
	evicted              chan struct{} // closed when another member says that this one was removed
	received             received
	swept                *news
	broken               failure

	traffic struct{ sent, received atomic.Uint64 } // messages with entries

	removed bool // after run: it ended since it is no member any more
}

type memberOptions struct {
	FS       vfs.FS
	LogDir   string
	TableDir string
	Cluster  uint64
	ID       uint64
	Fresh    bool          // never ran before: begins with Genesis
	Genesis  state.Genesis // of a founding member; of none who joins, who waits for a snapshot
	Peers    *peerOptions  // nil: there is nobody else
	Alone    bool          // drop all other members
	Claims   claims        // who it is started as; the data must not be another's

	Tick           time.Duration
	ElectionTicks  int
	NoPreVote      bool
	Limit          time.Duration // a request waits so long; default: until its context ends
	WaitingMax     int           // writes, and reads, that wait; default 65536
	WaitingBytes   int64         // of the writes; default 256 MiB
	Hasten         bool          // the first election
	NoSync         bool
	KeepEntries    int
	FlushEntries   uint64 // entries after which the table is made durable
	ValueCache     int64
	SweepBatch     int
	SweepRest      time.Duration
	SlowApply      time.Duration
	WatchProgress  time.Duration // a silent watch that asked for it is told how far it is so often
	LogSegmentSize int64

	CorruptCheck     time.Duration // between comparisons of all keys; 0: never
	CompactHashCheck time.Duration // between those of keys that a compaction left; 0: never
	CompactPeriod    time.Duration // of history kept; 0: any
	CompactRevisions int64         // kept, where the period is 0; 0: any number

	Metrics *api.Metrics
	Log     *slog.Logger
}

// flushBytes is how much may be applied before the table is made durable. It
// bounds the log that a restart replays and that the disk holds.
const flushBytes = 32 << 20

// A follower that is behind by less than keepBytes is sent entries, not the
// whole state. Small segments let go of the rest soon.
const (
	keepBytes     = 16 << 20
	segmentBytes  = 16 << 20
	memtableBytes = 16 << 20
	historyBytes  = 24 << 20
)

// openMember opens a member, which run has to close. If the table fails then
// or later, nothing waits for what needs it, and the process has to end.
func openMember(o memberOptions) (*member, error) {
	type opened struct {
		member *member
		err    error
	}
	broken := make(failure, 1)
	done := make(chan opened, 1)
	go func() {
		m, err := assemble(o, broken)
		done <- opened{m, err}
	}()
	select {
	case d := <-done:
		return d.member, d.err
	case err := <-broken:
		return nil, err
	}
}

func assemble(o memberOptions, broken failure) (_ *member, err error) {
	if !o.Fresh {
		// Said before anything is opened: what is opened may write.
		if files, err := o.FS.List(o.LogDir); errors.Is(err, os.ErrNotExist) || err == nil && len(files) == 0 {
			return nil, fmt.Errorf("there is nothing in %s: if it is on a disk that is not mounted, mount it; else this member has lost its log and must not vote under its identity; remove it from the cluster and add it again with an empty data directory", o.LogDir)
		}
	}
	machine, err := state.Open(state.Options{
		FS:                tableFS{o.FS, broken},
		Dir:               o.TableDir,
		ValueCacheBytes:   o.ValueCache,
		MemtableBytes:     memtableBytes,
		HistoryCacheBytes: historyBytes,
		Cluster:           state.ClusterID(o.Cluster),
		Member:            state.MemberID(o.ID),
		Removed:           o.Metrics.CompactedKeys,
		Log:               func(line string) { o.Log.Debug(line) },
		Broken:            func(err error) { broken.tell(damaged(o.TableDir, err)) },
	})
	if err != nil {
		return nil, damaged(o.TableDir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, machine.Close())
		}
	}()
	if index, _ := machine.Applied(); index == 0 && o.Fresh && o.Genesis.Cluster != 0 {
		if err := machine.Bootstrap(o.Genesis); err != nil {
			return nil, err
		}
	}

	if err := o.Claims.check(o.ID, machine.View()); err != nil {
		return nil, err
	}

	m := &member{o: o, machine: machine, evicted: make(chan struct{}), received: received{fs: o.FS}, swept: newNews(), broken: broken}
	if o.Peers != nil {
		m.received.dir = o.Peers.Dir
	}
	m.hub = watch.New(watch.Options{
		View:             machine.View,
		ProgressInterval: o.WatchProgress,
		Rest:             restOfReaders / float64(runtime.GOMAXPROCS(0)),
		Metrics: watch.Metrics{
			Events:   o.Metrics.Events,
			Pending:  o.Metrics.PendingEvents,
			Watchers: o.Metrics.Watchers,
			Slow:     o.Metrics.SlowWatchers,
			Streams:  o.Metrics.WatchStreams,
		},
	})
	m.openLeases()
	m.applied = &applied{
		machine: machine, self: state.MemberID(o.ID), hub: m.hub, leases: m.leases, deadlines: m.deadlines, received: m.received,
		changed: make(chan struct{}, 1),
		metrics: o.Metrics, slow: o.SlowApply, slowSeen: m.slowApply,
		compacted: make(chan struct{}, 1), flush: make(chan struct{}, 1),
		flushAt: flushBytes, flushLag: state.Index(o.FlushEntries),
	}
	var owner [16]byte
	binary.BigEndian.PutUint64(owner[:8], o.Cluster)
	binary.BigEndian.PutUint64(owner[8:], o.ID)
	m.replica, err = replica.Open(m.applied, replica.Options[state.Outcome]{
		ID: o.ID,
		Log: replica.LogOptions{
			WAL: wal.Options{
				FS: o.FS, Dir: o.LogDir, Identity: owner, UnsafeNoSync: o.NoSync, SegmentBytes: cmp.Or(o.LogSegmentSize, segmentBytes),
				Metrics: wal.Metrics{
					SyncSeconds:  o.Metrics.LogSyncSeconds,
					WriteSeconds: o.Metrics.LogWriteSeconds,
					WrittenBytes: o.Metrics.LogBytes,
				},
			},
			Fresh:       o.Fresh,
			KeepEntries: o.KeepEntries,
			KeepBytes:   keepBytes,
		},
		Transport:  postman{m},
		Alone:      forced(o.Alone),
		Hasten:     o.Hasten,
		Leading:    func(term uint64) { m.office.Hold(state.Term(term)) },
		Connected:  m.connected,
		Core:       replica.CoreOptions{ElectionTicks: o.ElectionTicks, NoPreVote: o.NoPreVote},
		Tick:       o.Tick,
		LimitTicks: uint64(o.Limit / o.Tick),
		WaitingMax: o.WaitingMax, WaitingBytes: o.WaitingBytes,
		Accepted: func(out state.Outcome) bool { return out.Refusal == nil },
		Metrics: replica.Metrics{
			Pending:        o.Metrics.ProposalsPending,
			Failed:         o.Metrics.ProposalsFailed,
			LeaderChanges:  o.Metrics.LeaderChanges,
			SlowReads:      o.Metrics.SlowReadIndexes,
			FailedReads:    o.Metrics.FailedReadIndexes,
			HeartbeatsLate: o.Metrics.HeartbeatSendFailures,
		},
		Logger: o.Log,
	})
	if err != nil {
		return nil, err
	}
	if err = m.received.drop(machine.View().Index); err == nil && o.Peers != nil {
		err = m.openPeers()
	}
	if err != nil {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		return nil, errors.Join(err, m.replica.Run(ended))
	}
	return m, nil
}

// forced returns the commands that go with the membership of a member which
// drops all others.
func forced(alone bool) func(replica.MemberChange) []byte {
	if !alone {
		return nil
	}
	return func(c replica.MemberChange) []byte {
		command := state.Command{Kind: state.MemberPromote, Request: &pb.MemberPromoteRequest{ID: c.Member}}
		if c.Remove {
			command = state.Command{Kind: state.MemberRemove, Request: &pb.MemberRemoveRequest{ID: c.Member}}
		}
		encoded, err := command.Append(nil)
		if err != nil {
			panic(fmt.Sprintf("node: encode a change of the members: %v", err)) // it holds a number
		}
		return encoded
	}
}

// restOfReaders is how long a watcher that reads old history rests for each
// moment of reading, times the processors. Sending takes as long as reading:
// with two processors, it has a tenth of one.
const restOfReaders = 40

// damaged says what to do about a table that cannot be read.
func damaged(dir string, err error) error {
	return fmt.Errorf("read the table in %s: %w: put the right files back, or remove this member from the cluster and add it again with an empty data directory", dir, err)
}

func (m *member) slowApply(took time.Duration, entries int) {
	m.o.Metrics.SlowApplies.Inc()
	m.o.Log.Warn("apply request took too long", "took", took, "expected-duration", m.o.SlowApply, "entries", entries)
}

// run runs the member until ctx ends or something fails. It closes what
// openMember opened.
func (m *member) run(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- m.work(ctx) }()
	select {
	case err := <-ended:
		return err
	case err := <-m.broken:
		return err
	}
}

func (m *member) work(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.replica.Run(ctx) })
	g.Go(func() error { return m.sweep(ctx) })
	g.Go(func() error { return m.flush(ctx) })
	g.Go(func() error { return m.leave(ctx) })
	g.Go(func() error { return m.office.Run(ctx, m.duties()...) })
	g.Go(func() error { m.renewals.run(ctx); return nil })
	g.Go(func() error { m.remainders.run(ctx); return nil })
	if m.peers != nil {
		g.Go(func() error { return m.introduce(ctx) })
		g.Go(func() error { return m.peers.Run(ctx, m.o.Peers.Listener) })
	}
	err := g.Wait()
	if errors.Is(err, errRemoved) {
		m.removed, err = true, nil
	}
	if err == nil {
		err = m.machine.Flush() // the next start has nothing to replay
	}
	return errors.Join(err, m.machine.Close())
}

var errRemoved = errors.New("this member was removed from the cluster")

// leave ends the member once another one says that it is none any more. To
// have applied that is not enough: while nobody else knows for sure that the
// removal is committed, the others may need this member's vote to find out.
func (m *member) leave(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.evicted:
		return errRemoved
	}
}

// election is the time after which a leader that is not heard of is replaced.
func (m *member) election() time.Duration {
	return m.o.Tick * time.Duration(cmp.Or(m.o.ElectionTicks, 10))
}

// farewell is how many election timeouts a removed leader has to see another
// one lead.
const farewell = 5

// introduce tells the peers who the members are, until ctx ends. While a
// removed member leads they are not told yet: they would cut it off from the
// others before it has handed over. And not before a power loss cannot undo
// what is known of them here: who was removed goes then, for good.
func (m *member) introduce(ctx context.Context) error {
	election := m.election()
	tick := time.NewTicker(m.o.Tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.applied.changed:
		}
		for end := time.Now().Add(farewell * election); time.Now().Before(end); {
			if leader := m.replica.Status().Leader; leader == 0 || !m.machine.View().Removed(state.MemberID(leader)) {
				break
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
		view := m.machine.View()
		if err := m.machine.Flush(); err != nil {
			return fmt.Errorf("flush the members: %w", err)
		}
		m.peers.Observe(membershipOf(view))
	}
}

// handOver gives leadership, if this member has it and anybody else can have it,
// to the voter whose log is most complete.
func (m *member) handOver(ctx context.Context) error {
	tick := time.NewTicker(m.o.Tick)
	defer tick.Stop()
	for {
		s := m.replica.Status()
		able := func(id uint64) bool {
			return id != m.o.ID && m.connected(id) && !m.View().Corrupt(state.MemberID(id))
		}
		if s.Role != replica.Leader || !slices.ContainsFunc(s.Voters, able) {
			return nil
		}
		var best replica.Progress
		for _, p := range s.Progress {
			if !p.Learner && p.Active && p.Match > best.Match && able(p.ID) {
				best = p
			}
		}
		if best.ID != 0 {
			err := m.replica.Transfer(ctx, best.ID)
			if err == nil {
				m.o.Log.Info("handed leadership over", "to", fmt.Sprintf("%x", best.ID))
			}
			return err
		}
		// One that has just come to lead has not heard from the others yet.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// sweep removes superseded versions behind each compaction, in small steps.
func (m *member) sweep(ctx context.Context) error {
	began, last := time.Now(), m.machine.Swept()
	for {
		step := time.Now()
		more, err := m.machine.Sweep(m.o.SweepBatch)
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		m.o.Metrics.CompactionPause.Observe(milliseconds(step))
		if more {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(m.o.SweepRest):
			}
			continue
		}
		m.swept.tell()
		if swept := m.machine.Swept(); swept != last {
			last = swept
			m.o.Metrics.CompactionTime.Observe(milliseconds(began))
			m.o.Metrics.CompactionLast.Set(time.Now().Unix())
			m.o.Log.Info("finished scheduled compaction", "compact-revision", swept, "took", time.Since(began))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.applied.compacted:
		}
		began = time.Now()
	}
}

func milliseconds(since time.Time) float64 {
	return float64(time.Since(since)) / float64(time.Millisecond)
}

// WaitSwept returns once nothing is left of what a compaction superseded.
func (m *member) WaitSwept(ctx context.Context, rev state.Revision) error {
	for {
		changed := m.swept.wait()
		if m.machine.Swept() >= rev {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// flush makes the table durable, now and then: the log is cut below it.
func (m *member) flush(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.applied.flush:
		}
		m.applied.unflushed.Store(0)
		began := time.Now()
		if err := m.machine.Flush(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		m.o.Metrics.CommitSeconds.Observe(time.Since(began).Seconds())
	}
}

// genesis is the first state of the cluster that members found.
func genesis(cluster uint64, members []state.Member) state.Genesis {
	var voters []uint64
	for _, m := range members {
		voters = append(voters, uint64(m.ID))
	}
	configuration, err := proto.MarshalOptions{Deterministic: true}.Marshal(&raftpb.ConfState{Voters: voters})
	if err != nil {
		panic(fmt.Sprintf("node: encode the first membership: %v", err))
	}
	return state.Genesis{Cluster: state.ClusterID(cluster), Members: members, Configuration: configuration, Index: 1, Term: 1}
}

// memoryBytes is what the machine has, or what this process's group of
// processes may use of it.
func memoryBytes() int64 {
	total := int64(8 << 30)
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kilobytes int64
		if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kilobytes); err == nil && kilobytes > 0 {
			total = kilobytes << 10
		}
	}
	if text, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		var limit int64
		if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &limit); err == nil && limit > 0 {
			total = min(total, limit)
		}
	}
	return total
}

// close closes a member that never ran.
func (m *member) close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return m.run(ctx)
}
