// Package state is the ring that knows what is true: keys and their history,
// leases, users, members and alarms, kept in a table of bytes and mirrored in
// memory. It has no clock, no randomness, no goroutine, and knows neither
// network nor raft: it is a function of the entries it is given.
//
//	Machine.Apply   is the only way in which truth changes (I1, I2)
//	Machine.View    is the only way in which it is read: one atomic load
package state

import (
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
)

type (
	Revision  int64  // position in the history of the store; a fresh store is at 1
	Index     uint64 // position in the replicated log
	Term      uint64 // raft's term
	LeaseID   int64
	MemberID  uint64
	ClusterID uint64
)

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
	Events   []Event       // in the order of their revisions
}

// Event is one change of one key. Its bytes belong to the machine and never
// change; they may be kept.
type Event struct {
	Revision Revision
	Sub      int32 // order within the revision
	Deleted  bool
	Key      []byte
	Pair     []byte // encoded mvccpb.KeyValue; of a deletion, key and mod_revision only
}
