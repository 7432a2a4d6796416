package replica

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/internal/mutant"
)

// CoreOptions say what a core starts from. ID, Incarnation and Storage have no
// default.
type CoreOptions struct {
	ID          uint64
	Incarnation uint64 // of this run; never used before by this member
	Storage     raft.Storage
	Applied     uint64 // by the machine, durably

	ElectionTicks  int // default 10
	HeartbeatTicks int // default 1
	RetryTicks     int // a read round without answer is asked anew; default 5

	MessageBytes  uint64 // entries in one message; default 1 MiB
	InflightBytes uint64 // entries on their way to one follower; default 64 MiB
	Inflight      int    // messages on their way to one follower; default 512
	ApplyBytes    uint64 // committed entries handed out but not yet applied; default 64 MiB
	PendingBytes  uint64 // of a leader's entries that are not yet committed; default 256 MiB

	NoPreVote bool         // elections without asking first whether they can be won
	Logger    *slog.Logger // default: nobody hears of it
}

// Core is the part of a member that decides, as a step function: inputs go in
// by its methods, and Work hands out what is to be done. It starts no
// goroutine, knows no clock but the ticks it is given and does no I/O, so that
// a whole cluster of cores can run in one goroutine. The only randomness is
// raft's own: it draws election timeouts from crypto/rand.Reader.
//
// What it promises:
//
//	C1: work of one kind is handed out in the order in which it is to be done.
//	C2: a read round is answered by an index that was committed somewhere
//	    between its Read and its answer, or later. Each attempt to have it
//	    answered carries an id of its own that no other attempt ever carries,
//	    and counts only in the term in which it was asked.
//	C3: a batch that Propose refused is in no log and never will be.
//	C4: a batch is appended only in the term in which it was proposed. So one
//	    that has not come when an entry of a later term is applied is in no
//	    log that counts, and may be proposed again.
type Core struct {
	// Immutable after NewCore.
	o CoreOptions

	node *raft.RawNode
	work Work // not yet handed out

	tick     uint64
	batches  uint64 // the number of the last batch
	frame    []byte // reused for batches while leading: raft copies them then
	members  *pb.ConfState
	role     raft.StateType // the four as of the last Work
	lead     uint64
	term     uint64
	commit   uint64
	applied  uint64
	changing uint64        // the newest change of the membership in the log
	snapshot uint64        // index of the newest snapshot that raft has taken
	ownTerm  uint64        // first entry of this member's leadership, 0 until it is known
	held     []*pb.Message // read requests of others, until an entry of this term commits
	waiting  []*pb.Message // proposals of others that raft does not take just now
	writing  []uint64      // ticks at which the appends in flight were handed out
	resigned uint64        // tick of the last attempt to hand over, 0: none

	reads struct {
		rounds  uint64 // number of the last round
		attempt uint64 // number of the last attempt
		asked   round  // is being answered
		next    round  // asked when that one is
		slow    uint64 // attempts given up so far
	}
}

// round is a set of reads that are answered together.
type round struct {
	number  uint64 // 0: nobody waits
	attempt uint64 // 0: not asked yet, or in vain
	term    uint64
	tick    uint64 // of the attempt
}

// ReadDone answers a read round: whoever has applied Index has seen all that
// was committed when the round was opened.
type ReadDone struct {
	Round, Index uint64
}

// Work is what a core wants done. Messages may leave at once. Appends must be
// carried out in order, with AppendDone after each; Applies likewise, with
// ApplyDone. The two may overtake each other.
type Work struct {
	Messages []*pb.Message
	Appends  []*pb.Message
	Applies  []*pb.Message
	Reads    []ReadDone
}

// Change is a membership that an applied entry has brought about.
type Change struct {
	Index  uint64
	Change *pb.ConfChangeV2
}

var (
	errDropped = errors.New("replica: no leader to propose to")
	errBusy    = errors.New("replica: another change of the membership is under way")
)

func (o CoreOptions) withDefaults() CoreOptions {
	set := func(v *uint64, to uint64) {
		if *v == 0 {
			*v = to
		}
	}
	setInt := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	setInt(&o.ElectionTicks, 10)
	setInt(&o.HeartbeatTicks, 1)
	setInt(&o.RetryTicks, 5)
	setInt(&o.Inflight, 512)
	set(&o.MessageBytes, 1<<20)
	set(&o.InflightBytes, 64<<20)
	set(&o.ApplyBytes, 64<<20)
	set(&o.PendingBytes, 256<<20)
	return o
}

// NewCore returns a core that continues where its storage ends.
func NewCore(o CoreOptions) (*Core, error) {
	o = o.withDefaults()
	_, members, err := o.Storage.InitialState()
	if err != nil {
		return nil, err
	}
	config := raft.Config{
		ID:                        o.ID,
		ElectionTick:              o.ElectionTicks,
		HeartbeatTick:             o.HeartbeatTicks,
		Storage:                   o.Storage,
		Applied:                   o.Applied,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             o.MessageBytes,
		MaxCommittedSizePerReady:  o.ApplyBytes,
		MaxUncommittedEntriesSize: o.PendingBytes,
		MaxInflightMsgs:           o.Inflight,
		MaxInflightBytes:          max(o.InflightBytes, o.MessageBytes),
		CheckQuorum:               true,
		PreVote:                   !o.NoPreVote,
		StepDownOnRemoval:         false, // see resign
		Logger:                    raftLogger{o.Logger},
	}
	if mutant.On("leader reads by its clock") {
		config.ReadOnlyOption = raft.ReadOnlyLeaseBased
	}
	node, err := raft.NewRawNode(&config)
	if err != nil {
		return nil, err
	}
	c := &Core{o: o, node: node, members: members, applied: o.Applied}
	status := node.BasicStatus()
	c.term, c.commit = status.GetTerm(), status.GetCommit()
	return c, nil
}

// Tick is one step of time.
func (c *Core) Tick() {
	c.tick++
	if c.alone() && c.role != raft.StateLeader {
		_ = c.node.Campaign() // nobody else could win: waiting for a timeout is in vain
	}
	c.node.Tick()
	if r := &c.reads.asked; r.number != 0 && c.tick-r.tick >= uint64(c.o.RetryTicks) {
		c.reads.slow++
		c.ask()
	}
	c.resign()
}

// alone says whether this member is the only one that votes.
func (c *Core) alone() bool {
	return len(c.members.GetVoters()) == 1 && c.members.Voters[0] == c.o.ID && len(c.members.GetVotersOutgoing()) == 0
}

// resign hands leadership to the best follower where this member should not
// have it: its disk has not finished a write for an election timeout, which
// nobody else would notice, as heartbeats go out regardless; or it has applied
// its own removal. It does not step down then without further ado: the others
// may not know yet that the removal is committed, may need its vote to find
// out, and not get it while its log is longer than theirs.
func (c *Core) resign() {
	patience := uint64(c.o.ElectionTicks)
	if c.role != raft.StateLeader || c.resigned != 0 && c.tick-c.resigned < patience {
		return
	}
	stalled := len(c.writing) > 0 && c.tick-c.writing[0] >= patience
	if !stalled && (c.votes() || mutant.On("removed leader stays")) {
		return
	}
	var best, match uint64
	c.node.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
		if id != c.o.ID && kind == raft.ProgressTypePeer && p.RecentActive && p.Match > match {
			best, match = id, p.Match
		}
	})
	if best != 0 {
		c.resigned = c.tick
		c.node.TransferLeader(best)
	}
}

// votes says whether this member is one of those that vote.
func (c *Core) votes() bool {
	return slices.Contains(c.members.GetVoters(), c.o.ID) || slices.Contains(c.members.GetVotersOutgoing(), c.o.ID)
}

// Campaign starts an election.
func (c *Core) Campaign() { _ = c.node.Campaign() }

// Transfer asks to hand leadership to a voting member. Status tells what came
// of it.
func (c *Core) Transfer(to uint64) { c.node.TransferLeader(to) }

// Unreachable tells that messages to a member were lost.
func (c *Core) Unreachable(id uint64) { c.node.ReportUnreachable(id) }

// Snapshot tells how the sending of a snapshot to a member ended.
func (c *Core) Snapshot(id uint64, ok bool) {
	status := raft.SnapshotFinish
	if !ok {
		status = raft.SnapshotFailure
	}
	c.node.ReportSnapshot(id, status)
}

// Step takes a message of another member. Raft lives with lost messages, so a
// message that does not fit is as good as lost.
func (c *Core) Step(m *pb.Message) {
	if raft.IsLocalMsg(m.GetType()) || raft.IsLocalMsgTarget(m.GetFrom()) {
		return
	}
	if m.GetType() == pb.MsgReadIndex && len(m.Entries) != 1 {
		return
	}
	if m.GetType() == pb.MsgProp {
		if len(m.Entries) == 1 {
			c.stepProposal(m)
		}
		return
	}
	if m.GetType() == pb.MsgReadIndex && !c.mayAnswerReads() {
		const heldMax = 1024
		if len(c.held) < heldMax {
			c.held = append(c.held, m)
		}
		return
	}
	_ = c.node.Step(m)
	if m.GetType() == pb.MsgSnap {
		c.drain() // ApplyDone must know if it was taken
	}
}

// stepProposal takes a proposal of another member, if this one leads in the
// term that the proposal is meant for. What raft does not take just now, since
// it hands leadership over, has too much on its hands or changes the
// membership, waits until it does: whoever has sent it would never know.
func (c *Core) stepProposal(m *pb.Message) {
	changes := m.Entries[0].GetType() != pb.EntryNormal
	if changes {
		c.drain() // Changing must know of those that have come just before
	}
	status := c.node.BasicStatus()
	if status.RaftState != raft.StateLeader || status.GetTerm() != m.GetLogTerm() && !mutant.On("proposals of any term") {
		return
	}
	if changes && c.Changing() || c.node.Step(m) != nil {
		const waitingMax = 64
		if len(c.waiting) < waitingMax {
			c.waiting = append(c.waiting, m)
		}
	}
}

// retry looks again at the proposals that wait.
func (c *Core) retry() {
	waiting := c.waiting
	c.waiting = nil
	for _, m := range waiting {
		c.stepProposal(m)
	}
}

// mayAnswerReads is false for a leader that has committed nothing in its term:
// its commit index may lie behind what earlier leaders have acknowledged. And
// for one that was removed: where a single voter is left, raft answers without
// asking that one, who may lead already.
func (c *Core) mayAnswerReads() bool {
	status := c.node.BasicStatus()
	if status.RaftState != raft.StateLeader {
		return true // raft passes requests on, or drops them
	}
	return status.GetTerm() == c.term && c.ownTerm != 0 && status.GetCommit() >= c.ownTerm && (c.votes() || mutant.On("removed leader answers reads"))
}

// Propose names the commands a batch and proposes it, and tells in which term.
// It fails only if the batch is certainly lost, and may then be called again
// with the same commands.
func (c *Core) Propose(commands [][]byte) (name Name, term uint64, err error) {
	name = Name{c.o.ID, c.o.Incarnation, c.batches + 1}
	b := c.frame[:0]
	if c.role != raft.StateLeader {
		b = nil // it becomes part of a message
	}
	b = appendFrame(b, name, len(commands))
	for _, command := range commands {
		b = appendCommand(b, command)
	}
	if c.role == raft.StateLeader && cap(b) <= 4<<20 {
		c.frame = b
	}
	if _, term, err = c.propose(&pb.Entry{Data: b}); err != nil {
		return Name{}, 0, err
	}
	c.batches++
	return name, term, nil
}

// propose gives an entry to raft, which may put another in its place, and
// tells for which term.
func (c *Core) propose(e *pb.Entry) (taken *pb.Entry, term uint64, err error) {
	term = c.node.BasicStatus().GetTerm()
	// Raft has no use for LogTerm here, and passes the message on as it is.
	m := &pb.Message{Type: pb.MsgProp.Enum(), From: &c.o.ID, LogTerm: &term, Entries: []*pb.Entry{e}}
	if err := c.node.Step(m); err != nil {
		return nil, 0, errDropped
	}
	return m.Entries[0], term, nil
}

// Configure proposes a change of the membership together with the command in
// its context, as Propose does.
func (c *Core) Configure(change *pb.ConfChangeV2) (name Name, term uint64, err error) {
	name = Name{c.o.ID, c.o.Incarnation, c.batches + 1}
	change = proto.Clone(change).(*pb.ConfChangeV2)
	change.Context = appendCommand(appendFrame(nil, name, 1), change.Context)
	data, err := proto.Marshal(change)
	if err != nil {
		return Name{}, 0, err
	}
	taken, term, err := c.propose(&pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Data: data})
	if err != nil {
		return Name{}, 0, err
	}
	if taken.GetType() == pb.EntryNormal {
		return Name{}, 0, errBusy // raft put an empty entry in its place
	}
	c.batches++
	return name, term, nil
}

// Read opens a read round, or joins the one that is not asked yet, and returns
// its number. A round stays open until it is answered.
func (c *Core) Read() uint64 {
	r := &c.reads
	if r.next.number == 0 {
		r.rounds++
		r.next = round{number: r.rounds}
	}
	number := r.next.number
	if r.asked.number == 0 {
		c.askNext()
	}
	return number
}

func (c *Core) askNext() {
	r := &c.reads
	r.asked, r.next = r.next, round{}
	if r.asked.number != 0 {
		c.ask()
	}
}

// ask starts a new attempt to have the round answered; what an earlier one
// brings is not listened to any more.
func (c *Core) ask() {
	asked := &c.reads.asked
	asked.attempt, asked.tick = 0, c.tick
	status := c.node.BasicStatus()
	if status.Lead == raft.None || !c.mayAnswerReads() {
		return // Work asks when there is a leader that can answer
	}
	c.reads.attempt++
	asked.attempt, asked.term = c.reads.attempt, status.GetTerm()
	c.node.ReadIndex(c.readID(asked.attempt))
}

func (c *Core) readID(attempt uint64) []byte {
	if mutant.On("reads share a number") {
		attempt = 0
	}
	b := make([]byte, 0, 24)
	b = binary.LittleEndian.AppendUint64(b, c.o.ID)
	b = binary.LittleEndian.AppendUint64(b, c.o.Incarnation)
	return binary.LittleEndian.AppendUint64(b, attempt)
}

// answered takes an answer to a read request, if it is the one waited for.
func (c *Core) answered(s raft.ReadState) {
	asked := &c.reads.asked
	if asked.number == 0 || asked.attempt == 0 || asked.term != c.term || string(s.RequestCtx) != string(c.readID(asked.attempt)) {
		return
	}
	c.work.Reads = append(c.work.Reads, ReadDone{asked.number, s.Index})
	c.askNext()
}

// AppendDone tells that the oldest append is durable, and a snapshot in it
// restored. Its responses to other members may leave, before or after.
func (c *Core) AppendDone(m *pb.Message) {
	if len(m.Entries) > 0 {
		c.writing = c.writing[1:]
	}
	for _, response := range m.Responses {
		if response.GetTo() == c.o.ID {
			_ = c.node.Step(response)
		}
	}
	if s := m.GetSnapshot(); !raft.IsEmptySnap(s) {
		c.applied = max(c.applied, s.GetMetadata().GetIndex())
	}
}

// ApplyDone tells that the oldest entries to apply are applied, and which
// changes of the membership they brought.
func (c *Core) ApplyDone(m *pb.Message, changes []Change) {
	// Before raft hears that the entries are applied: it then takes the
	// membership for the one they left behind.
	for _, change := range changes {
		if change.Index <= c.snapshot {
			continue // raft has the membership of a later snapshot already
		}
		c.members = c.node.ApplyConfChange(change.Change)
	}
	for _, response := range m.Responses {
		_ = c.node.Step(response)
	}
	c.applied = m.Entries[len(m.Entries)-1].GetIndex()
}

// Writing returns how many appends of entries are under way.
func (c *Core) Writing() int { return len(c.writing) }

// Transferee returns to whom leadership is being handed, or 0.
func (c *Core) Transferee() uint64 { return c.node.BasicStatus().LeadTransferee }

// Changing says whether a change of the membership proposed now would come to
// nothing, because raft takes no two at once: it holds one in the log for under
// way until it is applied, and so it does whatever a new leader has found.
func (c *Core) Changing() bool {
	return c.changing > c.applied || len(c.members.GetVotersOutgoing()) > 0 ||
		c.role == raft.StateLeader && (c.ownTerm == 0 || c.applied+1 < c.ownTerm)
}

// CanPropose says whether a batch proposed now has somewhere to go.
func (c *Core) CanPropose() bool { return c.lead != raft.None }

// Work returns what is to be done, and what became of the reads. The slices of
// w are reused for the next time.
func (c *Core) Work(w *Work) {
	if len(c.waiting) > 0 {
		c.retry()
	}
	c.drain()
	*w, c.work = c.work, Work{w.Messages[:0], w.Appends[:0], w.Applies[:0], w.Reads[:0]}
}

func (c *Core) drain() {
	for c.node.HasReady() {
		c.take(&c.work, c.node.Ready())
	}
}

func (c *Core) take(w *Work, ready raft.Ready) {
	moved := false // leadership, or what its holder may say
	if ready.HardState != nil {
		if ready.GetTerm() != c.term {
			c.term, c.ownTerm, moved = ready.GetTerm(), 0, true
		}
		c.commit = ready.GetCommit()
	}
	if ready.SoftState != nil {
		moved = moved || ready.Lead != c.lead
		c.lead, c.role = ready.Lead, ready.RaftState
	}
	for _, m := range ready.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			c.toAppend(m)
			w.Appends = append(w.Appends, m)
		case raft.LocalApplyThread:
			w.Applies = append(w.Applies, m)
		default:
			w.Messages = append(w.Messages, m)
		}
	}
	for _, s := range ready.ReadStates {
		c.answered(s)
	}
	c.moveReads(moved)
}

func (c *Core) toAppend(m *pb.Message) {
	if s := m.GetSnapshot(); !raft.IsEmptySnap(s) {
		c.members, c.snapshot = s.GetMetadata().GetConfState(), s.GetMetadata().GetIndex()
	}
	if len(m.Entries) == 0 {
		return
	}
	c.writing = append(c.writing, c.tick)
	for _, e := range m.Entries {
		if e.GetType() != pb.EntryNormal {
			c.changing = e.GetIndex()
		}
	}
	if c.ownTerm == 0 && c.role == raft.StateLeader {
		// A leader's first entry is its own, and all of this term are a leader's.
		i := slices.IndexFunc(m.Entries, func(e *pb.Entry) bool { return e.GetTerm() == c.term })
		if i >= 0 {
			c.ownTerm = m.Entries[i].GetIndex()
		}
	}
}

// moveReads asks anew what a change of leadership has made void, and what had
// to wait for a leader that can answer.
func (c *Core) moveReads(moved bool) {
	if moved {
		c.reads.asked.attempt = 0
	}
	if c.reads.asked.number != 0 && c.reads.asked.attempt == 0 {
		c.ask()
	}
	if len(c.held) == 0 {
		return
	}
	if c.role != raft.StateLeader {
		c.held = nil // those who asked will ask again
		return
	}
	if c.mayAnswerReads() {
		held := c.held
		c.held = nil
		for _, m := range held {
			_ = c.node.Step(m)
		}
	}
}
