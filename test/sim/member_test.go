package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/leader"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/wal"
	"github.com/kvorum/kvorum/watch"
)

const cluster state.ClusterID = 0xc1

// member is a machine in a rack: a disk, and sometimes a process.
type member struct {
	w       *world
	id      uint64
	founder bool
	disk    *disk
	table   *state.Memory
	staged  map[uint64][]byte // snapshots that have arrived, by index
	ran     bool              // the process was up before
	lost    bool              // the disk is gone, and with it the member
	gone    bool              // it was removed, and knows

	rate       int           // percent of the time between ticks
	elapsed    time.Duration // by its clock, when that got this rate
	since      time.Duration // when it did
	writeExtra time.Duration // the disk is slow

	// Of the process.
	up      bool
	run     int // number of the process
	paused  bool
	frozen  []func() // what happens when it goes on
	state   *state.Machine
	hub     *watch.Hub
	leases  *leader.Leases
	ends    *leader.Deadlines
	hold    *leader.Office
	holds   state.Term // in which it leads
	duty    office
	life    context.Context // that of the process
	quit    context.CancelFunc
	tasks   []*task
	running *task
	r       *replica.Replica[state.Outcome]
	step    *replica.Stepper[state.Outcome]
	busy    struct{ deciding, appending, applying, flushing, sweeping bool }
	ops     []*op
	leader  uint64      // as seen last
	sent    uint64      // newest entry sent to others
	opened  state.Index // where the state was when the process started
	behind  uint64      // index of the newest snapshot that was sent here
	known   struct {    // the members, as it has them
		view    *state.View
		text    string
		removed []uint64
	}
	told  *state.View // what the network knows of the members
	stale int         // ticks since that is not the newest

	// What others were told, in any run.
	votes    map[uint64]uint64 // by term
	promised uint64            // term
	crashed  bool              // the last process ended in one
	failing  bool              // the next Restore fails
}

func (w *world) addMember(id uint64, founder bool) *member {
	m := &member{
		w: w, id: id, founder: founder, rate: 100,
		disk:   newDisk(rand.New(rand.NewPCG(w.seed, 1000+id)), w.tear, w.mark),
		table:  state.NewMemory(),
		staged: map[uint64][]byte{},
		votes:  map[uint64]uint64{},
	}
	w.members = append(w.members, m)
	return m
}

func (w *world) member(id uint64) *member {
	for _, m := range w.members {
		if m.id == id {
			return m
		}
	}
	return nil
}

// present returns the members that can have a process.
func (w *world) present() []*member {
	return slices.DeleteFunc(slices.Clone(w.members), func(m *member) bool { return m.lost || m.gone })
}

func (m *member) String() string { return fmt.Sprintf("member %d", m.id) }

func (m *member) describe() string {
	if !m.up {
		return fmt.Sprintf("%v is down", m)
	}
	v := m.state.View()
	return fmt.Sprintf("%v: %+v; state at index %d, revision %d", m, *m.r.Status(), v.Index, v.Revision)
}

// start starts the process. While the disk is full that may fail: then it is
// tried again.
func (m *member) start() {
	switch {
	case m.up || m.lost || m.gone:
		return
	case !m.ran && m.w.oracle.removed(m.id):
		m.gone = true // nobody lets it join
		return
	}
	if err := m.open(); err != nil {
		m.w.note("start fails", m.id, 0, 0)
		if m.disk.full || errors.Is(err, errDisk) {
			m.w.mark("start failed")
			m.end(false)
			m.w.after(time.Second, m.start)
			return
		}
		m.w.fail("%v does not start: %v", m, err)
	}
}

func (m *member) open() error {
	w := m.w
	var err error
	m.run++
	m.state, err = state.Open(state.Options{Memory: m.table, Cluster: cluster, Member: state.MemberID(m.id), ValueCacheBytes: 1 << 20})
	if err != nil {
		return err
	}
	if index, _ := m.state.Applied(); index == 0 && m.founder && !m.ran {
		if err := m.state.Bootstrap(w.oracle.genesis); err != nil {
			return err
		}
	}
	m.life, m.quit = context.WithCancel(context.Background())
	m.hold, m.holds, m.duty = &leader.Office{}, 0, office{}
	m.leases = leader.NewLeases(leader.LeaseOptions{
		Grace: w.election(), Checkpoint: w.checkpoint, Batch: w.ends, Time: hands{m},
	}, m.hold, hands{m})
	m.ends = leader.NewDeadlines(leader.DeadlineOptions{Batch: w.ends, Time: hands{m}}, hands{m})
	v := m.state.View()
	m.opened, m.told = v.Index, v
	m.stale = 0
	m.hub = watch.New(watch.Options{View: m.state.View, RecentBytes: int64(w.recentBytes)})
	o := replica.Options[state.Outcome]{
		ID: m.id,
		Log: replica.LogOptions{
			WAL: wal.Options{
				FS: m.disk, Dir: "/log", Identity: [16]byte{0: 1, 15: byte(m.id)}, SegmentBytes: 8 << 10,
				Salt: m.disk.rng.Uint64,
			},
			Fresh:       !m.ran,
			KeepEntries: w.keepEntries,
		},
		Core:      replica.CoreOptions{ElectionTicks: w.electionTicks},
		Tick:      w.tick,
		Transport: m,
		Accepted:  func(o state.Outcome) bool { return o.Refusal == nil },
		Leading:   m.leads,
		Connected: func(id uint64) bool { return !w.network.cut[link{m.id, id}] },
	}
	if w.small {
		o.Core.MessageBytes, o.Core.Inflight, o.Core.ApplyBytes = 256, 4, 512
		o.BatchBytes = 100
	}
	m.r, err = replica.Open(machine{m}, o)
	if err != nil {
		return err
	}
	m.step = m.r.Stepper()
	m.up, m.paused, m.frozen = true, false, nil
	m.busy = struct{ deciding, appending, applying, flushing, sweeping bool }{}
	m.leader, m.sent = 0, 0
	s := m.r.Status()
	w.note("start", m.id, s.Term, s.Applied)
	if s.Term < m.promised {
		w.fail("%v starts in term %d, but has promised something in term %d", m, s.Term, m.promised)
	}
	if m.crashed && m.ran {
		w.mark("restarted after a crash")
	}
	m.ran = true
	m.ticking()
	m.poke()
	m.sweep()
	return nil
}

// end is the end of a process, however it comes about. Of what the table has
// not flushed, the engine may have written a part by itself.
func (m *member) end(power bool) {
	w := m.w
	if m.up {
		if s := m.r.Status(); s.Role == replica.Leader && m.sent > s.Commit {
			w.mark("leader ended between append and commit")
		}
	}
	for _, o := range m.ops {
		o.lost()
	}
	m.ops = nil
	if m.quit != nil {
		m.abandon()
	}
	m.up, m.paused, m.frozen = false, false, nil
	m.run++
	m.r, m.step = nil, nil
	if m.state != nil {
		before := m.table.Unflushed()
		kept := 0
		if before > 0 && w.disks.IntN(2) == 0 {
			kept = w.disks.IntN(before + 1)
		}
		if kept < before {
			w.mark("table fell back")
		}
		m.table = m.table.Crash(kept)
		m.state = nil
	}
	if power {
		m.disk.lose()
	} else {
		m.disk.kill()
	}
	m.crashed, m.failing = true, false
}

// stop ends the process in an orderly way.
func (m *member) stop() {
	w := m.w
	w.note("stop", m.id, 0, 0)
	if err := m.step.Stop(); err != nil {
		if m.disk.full || errors.Is(err, errDisk) {
			m.end(false)
			return
		}
		w.fail("%v: stop: %v", m, err)
	}
	m.poll()
	m.end(false)
	m.crashed = false
}

// later has something happen to this process, if it is still there then; after
// the pause, if it is paused then.
func (m *member) later(d time.Duration, do func()) {
	run := m.run
	var fire func()
	fire = func() {
		switch {
		case m.run != run:
		case m.paused:
			m.frozen = append(m.frozen, fire)
		default:
			do()
		}
	}
	m.w.after(d, fire)
}

func (m *member) resume() {
	m.paused = false
	frozen := m.frozen
	m.frozen = nil
	for _, do := range frozen {
		m.w.after(time.Duration(m.w.schedule.IntN(1000))*time.Microsecond, do)
	}
}

func (m *member) ticking() {
	period := m.w.tick * time.Duration(m.rate) / 100
	m.later(period, func() {
		m.ticking()
		m.tick(1)
	})
}

func (m *member) tick(n int) {
	for range n {
		m.step.Tick()
	}
	m.moved()
	m.work()
	m.introduce()
	m.leave()
}

// introduce tells the network who the members are, as package node does: once
// that is durable, and not while a removed member leads, which has to hand over.
func (m *member) introduce() {
	v := m.state.View()
	if v.SameMembers(m.told) || m.busy.flushing {
		return
	}
	m.stale++
	const farewell = 5 // election timeouts
	if leader := m.r.Status().Leader; leader != 0 && v.Removed(state.MemberID(leader)) && m.stale <= farewell*m.w.electionTicks {
		return
	}
	m.busy.flushing = true
	m.later(m.w.write*4+m.writeExtra, func() {
		m.flushed()
		m.told, m.stale = v, 0
	})
}

// leave ends the process of one that is no member any more. That it knows so
// itself is not enough: the others may need its vote to find out.
func (m *member) leave() {
	if m.evicted() {
		m.w.mark("removed member left")
		m.stop()
		m.gone = true
	}
}

// evicted tells whether another member that can be reached says that this one
// was removed.
func (m *member) evicted() bool {
	return slices.ContainsFunc(m.w.members, func(o *member) bool {
		return o != m && o.up && !o.paused && o.told.Removed(state.MemberID(m.id)) &&
			!m.w.network.cut[link{m.id, o.id}] && !m.w.network.cut[link{o.id, m.id}]
	})
}

// poke has the raft loop look at its inbox soon.
func (m *member) poke() {
	if m.busy.deciding {
		return
	}
	m.busy.deciding = true
	m.later(time.Duration(m.w.schedule.IntN(200))*time.Microsecond, func() {
		m.busy.deciding = false
		m.step.Decide()
		m.moved()
		m.work()
	})
}

// moved looks at what the raft loop has made of its input.
func (m *member) moved() {
	w := m.w
	s := m.r.Status()
	w.oracle.consents(m, s)
	if s.Role == replica.Leader {
		if other, known := w.leaders[s.Term]; known && other != m.id {
			w.fail("members %d and %d both lead in term %d", other, m.id, s.Term)
		} else if !known {
			w.leaders[s.Term] = m.id
			w.note("leads", m.id, s.Term, s.Commit)
		}
	}
	if s.Leader != m.leader {
		if m.leader != 0 || s.Leader != 0 {
			for _, o := range m.ops {
				if o.kind == opRange {
					w.mark("leader changed under a read")
					break
				}
			}
		}
		m.leader = s.Leader
	}
	m.poll()
}

// work starts the other two loops if there is something to do.
func (m *member) work() {
	w := m.w
	appends, applies := m.step.Queued()
	if appends && !m.busy.appending {
		m.busy.appending = true
		took := w.write/2 + time.Duration(w.disks.Int64N(int64(w.write))) + m.writeExtra
		m.later(took, func() {
			if took > w.tick*time.Duration(w.electionTicks) {
				w.mark("write slower than an election")
			}
			m.busy.appending = false
			m.did(m.step.Append())
		})
	}
	if applies && !m.busy.applying {
		m.busy.applying = true
		m.later(time.Duration(w.schedule.IntN(500))*time.Microsecond, func() {
			m.busy.applying = false
			m.did(m.step.Apply())
		})
	}
}

// did follows up on what one of the two has done.
func (m *member) did(_ bool, err error) {
	if err != nil {
		m.failed(err)
		return
	}
	m.poll()
	m.poke()
}

// failed is the end of a process whose disk failed it.
func (m *member) failed(err error) {
	w := m.w
	if !m.disk.dead && !m.failing {
		w.fail("%v: %v", m, err)
	}
	w.note("disk fails", m.id, 0, 0)
	if m.disk.unsynced {
		w.mark("sync failed")
	} else if m.failing {
		w.mark("restore failed")
	} else if m.disk.full {
		w.mark("disk full")
	} else {
		w.mark("write failed")
	}
	m.end(w.disks.IntN(2) == 0)
	w.after(time.Duration(w.disks.IntN(3000))*time.Millisecond, m.start)
}

// poll looks for answers.
func (m *member) poll() {
	n := 0
	for _, o := range m.ops {
		if !o.poll() {
			m.ops[n] = o
			n++
		}
	}
	clear(m.ops[n:])
	m.ops = m.ops[:n]
	m.attend()
}

// Send implements replica.Transport.
func (m *member) Send(messages []*pb.Message) {
	w := m.w
	for _, msg := range messages {
		switch msg.GetType() {
		case pb.MsgVoteResp:
			if !msg.GetReject() {
				if other, known := m.votes[msg.GetTerm()]; known && other != msg.GetTo() {
					w.fail("%v votes for %d and %d in term %d", m, other, msg.GetTo(), msg.GetTerm())
				}
				m.votes[msg.GetTerm()] = msg.GetTo()
			}
			m.promised = max(m.promised, msg.GetTerm())
		case pb.MsgAppResp:
			m.promised = max(m.promised, msg.GetTerm())
		case pb.MsgApp:
			if n := len(msg.Entries); n > 0 {
				m.sent = max(m.sent, msg.Entries[n-1].GetIndex())
			}
		case pb.MsgSnap:
			w.network.sendSnapshot(m, msg)
			continue
		}
		w.network.send(m, msg)
	}
}

// flush makes the table durable, when enough is not.
func (m *member) flush() {
	index, durable := m.state.Applied()
	if m.busy.flushing || index-durable < state.Index(m.w.flushEntries) {
		return
	}
	m.busy.flushing = true
	m.later(m.w.write*4+m.writeExtra, func() {
		m.flushed()
		m.poke()
	})
}

func (m *member) flushed() {
	m.busy.flushing = false
	if err := m.state.Flush(); err != nil {
		m.w.fail("%v: %v", m, err)
	}
}

// sweep removes what compactions have made superfluous, in small steps.
func (m *member) sweep() {
	if m.busy.sweeping {
		return
	}
	m.busy.sweeping = true
	var next func()
	next = func() {
		more, err := m.state.Sweep(3)
		if err != nil {
			m.w.fail("%v: sweep: %v", m, err)
		}
		if more {
			m.later(time.Duration(1+m.w.schedule.IntN(50))*time.Millisecond, next)
			return
		}
		m.busy.sweeping = false
	}
	m.later(time.Duration(m.w.schedule.IntN(100))*time.Millisecond, next)
}

// machine stands between the log and the state of a member.
type machine struct{ m *member }

func (a machine) Apply(entries []replica.Entry) ([]state.Outcome, error) {
	m := a.m
	before := m.state.View()
	var batch []state.Entry
	for _, e := range entries {
		batch = append(batch, state.Entry{
			Index: state.Index(e.Index), Term: state.Term(e.Term),
			Commands: e.Commands, Configuration: e.Configuration, Wanted: e.Wanted,
		})
	}
	outcomes, err := m.state.Apply(batch)
	if err != nil {
		return nil, err
	}
	v := m.state.View()
	if v.Index != before.Index+state.Index(len(entries)) || v.Revision < before.Revision || v.Compacted < before.Compacted {
		m.w.fail("%v: the view moved from index %d, revision %d, to %d, %d", m, before.Index, before.Revision, v.Index, v.Revision)
	}
	m.hub.Publish(outcomes, v.Revision)
	m.leases.Observe(outcomes)
	m.ends.Observe(before, v)
	m.w.oracle.applied(m, entries, outcomes)
	m.flush()
	if v.Compacted != before.Compacted {
		m.sweep()
	}
	return outcomes, nil
}

func (a machine) Applied() (applied, durable uint64) {
	i, d := a.m.state.Applied()
	return uint64(i), uint64(d)
}

func (a machine) Configuration() []byte { return a.m.state.View().Configuration }

func (a machine) Restore(at replica.Mark) error {
	m := a.m
	m.w.note("restore", m.id, at.Index, at.Term)
	if m.failing {
		return errDisk
	}
	data, ok := m.staged[at.Index]
	if !ok {
		return fmt.Errorf("no snapshot at %d has arrived", at.Index)
	}
	if err := m.state.Restore(bytes.NewReader(data)); err != nil {
		return err
	}
	for index := range m.staged {
		if index <= at.Index {
			delete(m.staged, index)
		}
	}
	m.hub.Restore(m.state.View().Revision)
	m.w.oracle.view(m)
	m.w.mark("snapshot installed")
	if m.opened > 1 {
		m.w.mark("snapshot for one that fell behind")
	}
	if !m.up {
		m.w.mark("snapshot installed at the start")
	}
	m.sweep()
	return nil
}

// snapshot returns the state as it is now, for a message that asks for one.
func (m *member) snapshot(msg *pb.Message) (*pb.Message, []byte) {
	var b bytes.Buffer
	v := m.state.View()
	index, err := m.state.WriteSnapshot(&b)
	if err != nil || index != v.Index {
		m.w.fail("%v: snapshot of index %d at %d: %v", m, index, v.Index, err)
	}
	members := &pb.ConfState{}
	if err := proto.Unmarshal(v.Configuration, members); err != nil {
		m.w.fail("%v: membership: %v", m, err)
	}
	if uint64(index) < msg.GetSnapshot().GetMetadata().GetIndex() {
		m.w.fail("%v: the state is at %d, but raft wants to send %d", m, index, msg.GetSnapshot().GetMetadata().GetIndex())
	}
	msg = proto.Clone(msg).(*pb.Message)
	msg.Snapshot = &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
		Index: proto.Uint64(uint64(index)), Term: proto.Uint64(uint64(v.Term)), ConfState: members,
	}}
	return msg, b.Bytes()
}
