// Package state is the ring that knows what is true: keys and their history,
// leases, users, members and alarms, kept in a table of bytes and mirrored in
// memory. It has no clock, no randomness, no goroutine, and knows neither
// network nor raft: it is a function of the entries it is given.
//
//	Machine.Apply   is the only way in which truth changes (I1, I2)
//	Machine.View    is the only way in which it is read: one atomic load
//
// S1: what a batch of entries changes, and that it was applied, is one batch of
// the table (I3). After a crash the table stands at some entry, and the log
// has the rest.
// S2: an entry is applied whole or refused whole, and moves the applied index
// either way.
// S3: what is refused or answered depends on the entries alone: not on how
// they were cut into batches, on restarts, sweeps, or what is in memory.
package state

import (
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state/internal/lease"
	"github.com/kvorum/kvorum/state/internal/member"
	"github.com/kvorum/kvorum/state/internal/mvcc"
	"github.com/kvorum/kvorum/state/internal/table"
)

type (
	// Revision is a position in the history of the store; a fresh store is at 1.
	Revision = mvcc.Revision
	// Position is the place of one change within history.
	Position = mvcc.Position
	// Event is one change of one key.
	Event = mvcc.Event
	// Answer is what a range holds.
	Answer = mvcc.Answer
	// Span is a range of keys as requests write it.
	Span = mvcc.Span
	// Member is one member of the cluster.
	Member = member.Member
	// MemberID names a member for ever.
	MemberID = member.ID
	// Lease is what everybody agrees on about a lease.
	Lease = lease.Lease
	// LeaseID names a lease; 0 is none.
	LeaseID = lease.ID
	// FS is the file system a machine lives on.
	FS = table.FS
	// Memory is a machine's table where it has no disk; for tests and simulation.
	Memory = table.Memory
	// Canceler is a context.Context; state knows no clocks.
	Canceler = table.Canceler

	Index     uint64 // position in the replicated log
	Term      uint64 // raft's term
	ClusterID uint64
)

// NewMemory returns an empty table without a disk.
func NewMemory() *Memory { return table.NewMemory() }

// Entry is one committed entry of the log. Commands were encoded by
// Command.Append; an entry without commands only moves the applied index.
// The machine keeps no reference to the bytes after Apply has returned.
type Entry struct {
	Index    Index
	Term     Term
	Commands [][]byte

	// Configuration is the encoded membership of consensus that holds once
	// this entry is applied, or nil where it stays as it was. It is stored
	// unless the entry's command is refused, and is opaque here.
	Configuration []byte

	// Wanted says that somebody on this member waits for the outcomes. Where
	// nobody does, responses may be left out; what changes is the same (I2).
	Wanted bool
}

// Outcome is what became of one command. A refused command has changed
// nothing but the applied index.
type Outcome struct {
	Response proto.Message // the answer, its header holding the revision only; nil if refused or not wanted
	Refusal  *fault.Fault  // nil if accepted
	Revision Revision      // of the store, after the command
	Events   []Event       // in the order of their revisions, of which there may be several
	Leases   []LeaseChange // in the order in which they came

	// Of a HierarchyRequest.
	Change    *NodeChange     // nil if refused or not wanted
	NodeError *HierarchyError // details of a refusal by fault.NodeRefused
	Expired   int             // nodes that went at their deadlines
}

// LeaseChange says what is known of a lease from now on: that it is new, that
// it is gone, or else what was written down of its time.
type LeaseChange struct {
	Lease
	New, Gone bool
}

func must(ok bool, promise string) {
	if !ok {
		panic("state: broken promise: " + promise)
	}
}
