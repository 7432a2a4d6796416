package replica

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/wal"
)

// A cluster runs members by hand in one goroutine, over a network and disks
// that lose what the test tells them to. Its machine is a list: each command
// is appended, and answered with its place. Whether anything was lost, doubled
// or read stale can be seen in the lists alone.
type cluster struct {
	rng     *rand.Rand
	members map[uint64]*member
	ids     []uint64
	voters  []uint64 // of the genesis

	wire []*pb.Message
	cut  map[[2]uint64]bool // from, to

	leaders map[uint64]uint64   // who led, by term
	entries map[uint64]string   // what was applied, by index: a term and its commands
	items   map[uint64][]string // what that did to the list, by index
	keep    int
	mark    func(what string) // told of what happens seldom
}

type member struct {
	c       *cluster
	id      uint64
	fs      *vfs.MemFS
	failing bool // the next sync fails, and nothing after it works
	machine *list
	down    bool
	started bool
	r       *Replica[int]
	step    *Stepper[int]
}

// list is the machine. disk is what of it survives a crash.
type list struct {
	m       *member
	now     listState
	disk    listState
	flushed listState            // what the next flush writes
	staged  map[uint64]listState // snapshots that have arrived
	lazy    bool
	refused int
	broken  bool // Restore fails
}

type listState struct {
	applied uint64
	items   []string
	members []byte
}

const refuse = "refuse"

func (l *list) Apply(entries []Entry) ([]int, error) {
	var results []int
	for _, e := range entries {
		if e.Index != l.now.applied+1 {
			panic(fmt.Sprintf("member %d: entry %d after %d", l.m.id, e.Index, l.now.applied))
		}
		accepted := true
		for _, c := range e.Commands {
			if bytes.HasPrefix(c, []byte(refuse)) {
				accepted = false
				l.refused++
				results = append(results, -1)
				continue
			}
			l.now.items = append(l.now.items, string(c))
			results = append(results, len(l.now.items))
		}
		switch {
		case e.Configuration == nil:
		case accepted:
			l.now.members = e.Configuration
			members, _ := decodeMembers(e.Configuration)
			l.m.c.mark("change")
			if len(members.VotersOutgoing) > 0 {
				l.m.c.mark("joint")
			}
			if slices.Contains(members.Voters, 9) && l.m.id == 9 {
				l.m.c.mark("voter joined")
			}
		default:
			l.m.c.mark("change refused")
		}
		l.now.applied = e.Index
		l.m.c.applied(l.m.id, e)
	}
	if !l.lazy {
		l.disk = l.now
	}
	return results, nil
}

// flush makes durable what was there at the last flush: the disk is behind.
func (l *list) flush() {
	if l.flushed.applied > l.disk.applied {
		l.disk = l.flushed
	}
	l.flushed = l.now
}

func (l *list) Applied() (uint64, uint64) { return l.now.applied, l.disk.applied }
func (l *list) Configuration() []byte     { return l.now.members }

func (l *list) Restore(m Mark) error {
	s, ok := l.staged[m.Index]
	if !ok || l.broken {
		return errors.New("no such snapshot")
	}
	l.now, l.disk = s, s
	l.m.c.mark("snapshot")
	return nil
}

// applied checks that all members apply the same.
func (c *cluster) applied(id uint64, e Entry) {
	what := fmt.Sprintf("%d %q %x", e.Term, e.Commands, e.Configuration)
	if old, ok := c.entries[e.Index]; ok && old != what {
		panic(fmt.Sprintf("member %d applies at %d %s, another %s", id, e.Index, what, old))
	}
	c.entries[e.Index] = what
	if _, ok := c.items[e.Index]; !ok {
		c.items[e.Index] = nil
		for _, command := range e.Commands {
			if !bytes.HasPrefix(command, []byte(refuse)) {
				c.items[e.Index] = append(c.items[e.Index], string(command))
			}
		}
	}
}

func newCluster(rng *rand.Rand, size int) *cluster {
	c := &cluster{
		rng: rng, members: map[uint64]*member{}, cut: map[[2]uint64]bool{},
		leaders: map[uint64]uint64{}, entries: map[uint64]string{}, items: map[uint64][]string{}, keep: 5000,
		mark: func(string) {},
	}
	for id := uint64(1); id <= uint64(size); id++ {
		c.voters = append(c.voters, id)
	}
	for _, id := range c.voters {
		c.add(id, listState{applied: 1, members: encodeMembers(&pb.ConfState{Voters: c.voters})})
	}
	return c
}

// add makes a member that has never run. One that joins later begins empty.
func (c *cluster) add(id uint64, s listState) *member {
	m := &member{c: c, id: id, fs: vfs.NewCrashableMem(), down: true}
	m.machine = &list{m: m, now: s, disk: s, staged: map[uint64]listState{}}
	c.members[id] = m
	c.ids = append(c.ids, id)
	slices.Sort(c.ids)
	return m
}

var errDisk = errors.New("disk failure")

// MaybeError implements errorfs.Injector.
func (m *member) MaybeError(op errorfs.Op) error {
	if m.failing && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileWrite && m.down) {
		m.down = true
		return errDisk
	}
	return nil
}

func (m *member) String() string { return fmt.Sprintf("member %d", m.id) }

// start opens the member on what its disk holds.
func (m *member) start() error {
	salt := uint64(m.id)
	o := Options[int]{
		ID: m.id,
		Log: LogOptions{
			WAL:         wal.Options{FS: errorfs.Wrap(m.fs, m), Dir: "log", SegmentBytes: 8 << 10, Salt: func() uint64 { salt++; return salt }},
			Fresh:       !m.started,
			KeepEntries: m.c.keep,
		},
		Transport: m,
		Accepted:  func(n int) bool { return n >= 0 },
		// Small, so that the bounds are met.
		Core: CoreOptions{MessageBytes: 256, Inflight: 8, ApplyBytes: 512},
	}
	o.BatchBytes = 64
	r, err := Open(m.machine, o)
	if err != nil {
		return err
	}
	m.down, m.started, m.r, m.step = false, true, r, r.Stepper()
	return nil
}

// Send implements Transport.
func (m *member) Send(messages []*pb.Message) {
	for _, msg := range messages {
		if msg.GetType() == pb.MsgSnap {
			// The data is of this moment, and so the message has to be.
			at := m.r.applier.at
			msg = proto.Clone(msg).(*pb.Message)
			msg.Snapshot = &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
				Index: proto.Uint64(at.Index), Term: proto.Uint64(at.Term), ConfState: at.Configuration,
			}}
		}
		m.c.wire = append(m.c.wire, msg)
	}
}

// deliver hands over the i-th message under way, or loses it.
func (c *cluster) deliver(i int, lose bool) {
	msg := c.wire[i]
	c.wire = slices.Delete(c.wire, i, i+1)
	from, to := c.members[msg.GetFrom()], c.members[msg.GetTo()]
	lost := lose || to == nil || to.down || c.cut[[2]uint64{msg.GetFrom(), msg.GetTo()}]
	if msg.GetType() == pb.MsgSnap && from != nil && !from.down {
		from.r.ReportSnapshot(msg.GetTo(), !lost)
	}
	if lost {
		return
	}
	if msg.GetType() == pb.MsgSnap {
		// Of the sender's list, which only grows, the snapshot is the part that
		// it had then.
		to.machine.staged[msg.Snapshot.Metadata.GetIndex()] = c.stateAt(msg.Snapshot.Metadata)
	}
	to.r.Step(msg)
}

// stateAt rebuilds the list as of an index from what was applied.
func (c *cluster) stateAt(meta *pb.SnapshotMetadata) listState {
	return listState{applied: meta.GetIndex(), items: c.listAt(meta.GetIndex()), members: encodeMembers(meta.GetConfState())}
}

// crash stops the member as a power loss does: of what was not synced, a part
// is left.
func (m *member) crash(unsyncedPercent int) {
	m.fs = m.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsyncedPercent, RNG: m.c.rng})
	s := m.machine.disk
	s.items = slices.Clone(s.items)
	m.machine = &list{m: m, now: s, disk: s, staged: m.machine.staged, lazy: m.machine.lazy}
	m.down, m.failing = true, false
	m.r, m.step = nil, nil
}

// check looks for two leaders in one term.
func (c *cluster) check() {
	for _, id := range c.ids {
		m := c.members[id]
		if m.down {
			continue
		}
		if s := m.r.Status(); s.Role == Leader {
			if other, ok := c.leaders[s.Term]; ok && other != id {
				panic(fmt.Sprintf("members %d and %d both lead in term %d", other, id, s.Term))
			}
			c.leaders[s.Term] = id
		}
	}
}

// settle lets everything happen that can without time passing.
func (c *cluster) settle() error {
	for range 10000 {
		busy := false
		for _, id := range c.ids {
			m := c.members[id]
			if m.down {
				continue
			}
			m.step.Decide()
			a, err := m.step.Append()
			if err != nil {
				return err
			}
			b, err := m.step.Apply()
			if err != nil {
				return err
			}
			m.step.Decide()
			busy = busy || a || b
		}
		c.check()
		for len(c.wire) > 0 {
			busy = true
			c.deliver(0, false)
		}
		if !busy {
			return nil
		}
	}
	return errors.New("the cluster does not come to rest")
}

// leader returns the member that leads in the highest term, or nil.
func (c *cluster) leader() *member {
	var best *member
	term := uint64(0)
	for _, id := range c.ids {
		if m := c.members[id]; !m.down {
			if s := m.r.Status(); s.Role == Leader && s.Term > term {
				best, term = m, s.Term
			}
		}
	}
	return best
}

// listAt returns the list as it is at an index, from what was applied anywhere.
func (c *cluster) listAt(index uint64) []string {
	var items []string
	for i := uint64(2); i <= index; i++ {
		items = append(items, c.items[i]...)
	}
	return items
}
