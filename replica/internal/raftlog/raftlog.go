// Package raftlog keeps what raft must not forget: its entries, its term and
// vote, and the mark where a snapshot took the place of older entries. On disk
// it is a wal.Log; in memory it is the newest part of it, from which raft is
// served. It never interprets an entry.
//
// What it promises:
//
//	RL1: what Append wrote is durable when Append returns, where raft waits for
//	     an answer to it. A commit index alone is not worth a sync: it is
//	     written along with what comes next.
//	RL2: an entry leaves the disk only when the machine holds it durably, and
//	     memory only when raft has been told that it is applied.
//	RL3: a log that ends before what the machine has applied, or before what was
//	     committed, does not open: this member acknowledged more than it has.
package raftlog

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/wal"
)

// Options say where a log lives, and what the machine beside it holds.
type Options struct {
	WAL wal.Options // its Head belongs to this package

	// Fresh says that this member has never run before. Only then may the log
	// be empty, and only if the machine is, too.
	Fresh bool

	Applied       uint64        // the machine holds all entries up to this one, durably
	Configuration *pb.ConfState // as of Applied; default: nobody votes

	// A follower that has fallen behind by no more than this is sent entries;
	// behind them, the whole state. Memory holds at most twice as much.
	KeepEntries int   // default 5000
	KeepBytes   int64 // default 64 MiB
}

// GenesisIndex is where the log of a cluster begins: the index of the agreed
// first state, which no member has ever proposed.
const GenesisIndex = 1

// Errors of Open that call for a human. Each is wrapped with what was found.
var (
	ErrLost     = errors.New("this member has lost its log and must not vote under its identity; remove it from the cluster and add it again with an empty data directory")
	ErrTooShort = errors.New("the log ends before what this member has acknowledged; remove the member and add it again with an empty data directory, or restore the directory from before the loss")
	ErrCorrupt  = errors.New("the log contradicts itself; remove the member and add it again with an empty data directory")
)

// Mark is a place in the log with the membership that held there.
type Mark struct {
	Index, Term   uint64
	Configuration *pb.ConfState
}

type entryID struct{ index, term uint64 }

type hardState struct{ term, vote, commit uint64 }

// state is what a log amounts to, but for its entries.
type state struct {
	hard        hardState
	mark        Mark // the newest snapshot, or the genesis
	incarnation uint64
	last        entryID // the newest entry
}

// place says at which position the entry of an index was written.
type place struct {
	index    uint64
	position wal.Position
}

// Log is an open log. It is a raft.Storage: its methods for raft and Trim may
// be called from any goroutine; Append, Release and Close belong to one.
type Log struct {
	// Immutable after Open.
	keepEntries int
	keepBytes   int64
	restored    hardState
	initial     *pb.ConfState

	// Owned by the goroutine that appends.
	wal      *wal.Log
	state            // with what is being appended
	written  state   // without it
	stale    bool    // the commit index is newer than the one on disk
	places   []place // ascending in both
	unsynced bool    // something raft waits for was written since the last sync
	records  []wal.Record
	scratch  []byte
	ends     []int // ends of the records in scratch

	mu struct {
		sync.Mutex
		before  entryID     // the entry in front of the first that is held
		entries []*pb.Entry // shared with those who read: only ever appended to
		bytes   int64
		applied Mark // what a snapshot taken now would hold
	}
}

var _ raft.Storage = (*Log)(nil)

// Open replays the log, or begins a new one, and starts a new incarnation of
// the member: a number that no earlier run has used, on disk before Open
// returns.
func Open(o Options) (*Log, error) {
	if o.KeepEntries == 0 {
		o.KeepEntries = 5000
	}
	if o.KeepBytes == 0 {
		o.KeepBytes = 64 << 20
	}
	if o.Configuration == nil {
		o.Configuration = &pb.ConfState{}
	}
	l := &Log{keepEntries: o.KeepEntries, keepBytes: o.KeepBytes, initial: o.Configuration}

	p := replay{log: l, applied: o.Applied}
	w := o.WAL
	w.Head = l.head
	var err error
	if l.wal, err = wal.Open(w, p.record); err != nil {
		return nil, fmt.Errorf("raftlog: open %s: %w", o.WAL.Dir, err)
	}
	if err := l.begin(o, p); err != nil {
		return nil, errors.Join(fmt.Errorf("raftlog: open %s: %w", o.WAL.Dir, err), l.wal.Close())
	}
	return l, nil
}

// begin checks what was replayed against the machine and starts the
// incarnation.
func (l *Log) begin(o Options, p replay) error {
	if !p.began {
		if !o.Fresh || o.Applied > GenesisIndex {
			return fmt.Errorf("no record in the log, but the state has applied index %d: %w", o.Applied, ErrLost)
		}
		l.mark = Mark{Index: o.Applied, Term: min(o.Applied, 1), Configuration: o.Configuration}
		l.last = entryID{l.mark.Index, l.mark.Term}
		l.mu.before = l.last
		l.hard = hardState{term: l.mark.Term, commit: l.mark.Index}
	}

	switch {
	case l.last.index < o.Applied:
		return fmt.Errorf("last index %d, applied index %d: %w", l.last.index, o.Applied, ErrTooShort)
	case l.last.index < l.hard.commit:
		return fmt.Errorf("last index %d, commit index %d: %w", l.last.index, l.hard.commit, ErrTooShort)
	case l.mu.before.index > max(o.Applied, l.mark.Index):
		return fmt.Errorf("first index %d, applied index %d: %w", l.mu.before.index+1, o.Applied, ErrTooShort)
	}

	l.mu.applied = l.mark
	if o.Applied > l.mark.Index {
		term, err := l.Term(o.Applied)
		if err != nil {
			return fmt.Errorf("term of the applied index %d: %w", o.Applied, err)
		}
		l.mu.applied = Mark{Index: o.Applied, Term: term, Configuration: o.Configuration}
	}
	// What is applied was committed, though the note of it may not have been
	// written before the crash.
	l.hard.commit = max(l.hard.commit, l.mu.applied.Index)
	l.restored = l.hard
	l.initial = l.mu.applied.Configuration

	if !mutant.On("runs share a number") {
		l.incarnation++
	}
	l.reset()
	if !p.began {
		l.addMark()
		l.addHard()
	}
	l.addIncarnation()
	if err := l.write(); err != nil {
		return err
	}
	return l.wal.Sync()
}

// Incarnation numbers the runs of this member, this one included, from 1.
func (l *Log) Incarnation() uint64 { return l.incarnation }

// Mark returns the newest snapshot mark of the log. If the machine has applied
// less, it was stopped while it restored that snapshot, and must do so again.
func (l *Log) Mark() Mark { return l.mark }

// Size returns the bytes that the log takes on disk.
func (l *Log) Size() int64 { return l.wal.Size() }

// Append carries out raft's storage messages, all with one write and, where
// any of them is waited for, one sync. Only then are their responses true.
//
// The data of a snapshot must be durable before: its mark is written here, and
// what it replaces is gone.
func (l *Log) Append(messages []*pb.Message) error {
	l.reset()
	wanted, promised := false, false
	for _, m := range messages {
		wanted = wanted || len(m.Responses) > 0
		if snapshot := m.GetSnapshot(); !raft.IsEmptySnap(snapshot) {
			meta := snapshot.GetMetadata()
			l.mark = Mark{meta.GetIndex(), meta.GetTerm(), meta.GetConfState()}
			l.last = entryID{l.mark.Index, l.mark.Term}
			l.addMark()
			l.unsynced = true
		}
		if m.Term != nil {
			next := hardState{m.GetTerm(), m.GetVote(), m.GetCommit()}
			promised = promised || next.term != l.hard.term || next.vote != l.hard.vote
			l.stale = l.stale || next != l.hard
			l.hard = next
		}
		for _, e := range m.Entries {
			l.addEntry(e)
			l.unsynced = true
		}
	}
	// Behind the entries, so that a commit index never comes before its entry.
	if l.stale && (promised || len(l.ends) > 0) {
		l.addHard()
		l.unsynced = l.unsynced || promised && !mutant.On("vote before sync")
	}
	if err := l.write(); err != nil {
		return err
	}
	if wanted && l.unsynced && !mutant.On("answer before sync") {
		if err := l.wal.Sync(); err != nil {
			return err
		}
		l.unsynced = false
	}
	l.remember(messages)
	return nil
}

// Seize ends the log with entries that nobody else has a say in, and takes all
// of it for committed. The term is durable before them: were it not, this
// member could vote for another leader of it. It must be called before raft
// starts.
func (l *Log) Seize(term, self uint64, entries []*pb.Entry) error {
	commit := entries[len(entries)-1].GetIndex()
	message := func(commit uint64, entries []*pb.Entry) []*pb.Message {
		return []*pb.Message{{
			Type: pb.MsgStorageAppend.Enum(),
			Term: proto.Uint64(term), Vote: proto.Uint64(self), Commit: proto.Uint64(commit),
			Entries:   entries,
			Responses: []*pb.Message{{}}, // somebody waits for it
		}}
	}
	if err := l.Append(message(l.hard.commit, nil)); err != nil {
		return err
	}
	if err := l.Append(message(commit, entries)); err != nil {
		return err
	}
	l.restored = l.hard
	return nil
}

// remember makes the entries of the messages readable.
func (l *Log) remember(messages []*pb.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range messages {
		if snapshot := m.GetSnapshot(); !raft.IsEmptySnap(snapshot) {
			meta := snapshot.GetMetadata()
			l.mu.before = entryID{meta.GetIndex(), meta.GetTerm()}
			l.mu.entries, l.mu.bytes = nil, 0
			l.mu.applied = Mark{meta.GetIndex(), meta.GetTerm(), meta.GetConfState()}
		}
		if len(m.Entries) == 0 {
			continue
		}
		l.cut(m.Entries[0].GetIndex())
		for _, e := range m.Entries {
			l.mu.entries = append(l.mu.entries, e)
			l.mu.bytes += entryBytes(e)
		}
	}
}

// cut forgets the entries from index on. The caller holds the lock.
func (l *Log) cut(index uint64) {
	must(index > l.mu.before.index && index <= l.mu.before.index+uint64(len(l.mu.entries))+1,
		"RL: entries follow each other")
	keep := index - l.mu.before.index - 1
	if keep == uint64(len(l.mu.entries)) {
		return
	}
	for _, e := range l.mu.entries[keep:] {
		l.mu.bytes -= entryBytes(e)
	}
	// A new array: those who were given the old one still read it.
	l.mu.entries = slices.Clone(l.mu.entries[:keep])
}

// Applied tells the log that raft knows at.Index to be applied. Older entries
// may leave memory, and a snapshot taken now would be at.
func (l *Log) Applied(at Mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.Index <= l.mu.applied.Index {
		return
	}
	l.mu.applied = at
	l.trim(false)
}

// trim drops applied entries beyond what is kept, half of them at a time, so
// that the copy is paid for by as many appends; exactly, if asked to.
func (l *Log) trim(exactly bool) {
	n, size := len(l.mu.entries), l.mu.bytes
	if !exactly && n <= 2*l.keepEntries && size <= 2*l.keepBytes {
		return
	}
	drop := 0
	for drop < len(l.mu.entries) && (n > l.keepEntries || size > l.keepBytes) && l.mu.entries[drop].GetIndex() <= l.mu.applied.Index {
		size -= entryBytes(l.mu.entries[drop])
		drop, n = drop+1, n-1
	}
	if drop == 0 {
		return
	}
	e := l.mu.entries[drop-1]
	l.mu.before = entryID{e.GetIndex(), e.GetTerm()}
	l.mu.entries = slices.Clone(l.mu.entries[drop:])
	l.mu.bytes = size
}

// Release lets go of the files that hold nothing but entries which are both
// durable in the machine and out of memory. The last such entry stays: it tells
// the term that those behind it follow.
func (l *Log) Release(durable uint64) error {
	l.mu.Lock()
	needed := min(durable, l.mu.before.index)
	l.mu.Unlock()

	i, found := slices.BinarySearchFunc(l.places, needed, func(p place, index uint64) int {
		return cmp.Compare(p.index, index)
	})
	if !found {
		i--
	}
	if i < 0 {
		return nil
	}
	l.places = slices.Delete(l.places, 0, i)
	return l.wal.Release(l.places[0].position)
}

// Settle has the log say of itself that all of it is synced. It is for the
// caller of Append, when nothing is left to append.
func (l *Log) Settle() error { return l.wal.Settle() }

// Close writes down the last commit index and closes the files.
func (l *Log) Close() error {
	l.reset()
	if l.stale {
		l.addHard()
	}
	err := l.write()
	if err == nil {
		err = l.wal.Sync()
	}
	return errors.Join(err, l.wal.Close())
}

// InitialState returns what raft starts from: the membership is the machine's.
func (l *Log) InitialState() (*pb.HardState, *pb.ConfState, error) {
	hs := &pb.HardState{
		Term:   proto.Uint64(l.restored.term),
		Vote:   proto.Uint64(l.restored.vote),
		Commit: proto.Uint64(l.restored.commit),
	}
	return hs, l.initial, nil
}

// Entries returns the entries in [lo, hi) as far as they fit in maxSize bytes,
// and at least one.
func (l *Log) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lo <= l.mu.before.index {
		return nil, raft.ErrCompacted
	}
	first := l.mu.before.index + 1
	if hi > first+uint64(len(l.mu.entries)) || lo >= hi {
		return nil, raft.ErrUnavailable
	}
	entries := l.mu.entries[lo-first : hi-first]
	size := uint64(0)
	for i, e := range entries {
		size += uint64(entryBytes(e))
		if i > 0 && size > maxSize {
			entries = entries[:i]
			break
		}
	}
	return entries[:len(entries):len(entries)], nil
}

// Term returns the term of the entry at index.
func (l *Log) Term(index uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case index < l.mu.before.index:
		return 0, raft.ErrCompacted
	case index == l.mu.before.index:
		return l.mu.before.term, nil
	case index > l.mu.before.index+uint64(len(l.mu.entries)):
		return 0, raft.ErrUnavailable
	}
	return l.mu.entries[index-l.mu.before.index-1].GetTerm(), nil
}

// LastIndex returns the index of the newest entry.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.before.index + uint64(len(l.mu.entries)), nil
}

// FirstIndex returns the index of the oldest entry that raft can be given.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.before.index + 1, nil
}

// Snapshot returns the place of a snapshot that would be taken now. It carries
// no data: those who send it read the machine.
func (l *Log) Snapshot() (*pb.Snapshot, error) {
	l.mu.Lock()
	at := l.mu.applied
	l.mu.Unlock()
	if at.Index == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &pb.Snapshot{Metadata: &pb.SnapshotMetadata{
		Index:     proto.Uint64(at.Index),
		Term:      proto.Uint64(at.Term),
		ConfState: proto.Clone(at.Configuration).(*pb.ConfState),
	}}, nil
}

// entryBytes is what an entry counts for: its data, and about what surrounds
// it in a message.
func entryBytes(e *pb.Entry) int64 { return int64(len(e.Data)) + 24 }

func must(ok bool, promise string) {
	if !ok {
		panic("replica: broken promise: " + promise)
	}
}
