// Package tree sees the keys as a hierarchy of files and directories, as the v2
// API does, and knows its rules. It changes nothing: it says what a request
// would change, what there is, and what has been changed.
//
// The file /a/b is the key /a/b. The directory /a is the key /a/, its marker,
// which has no value; it is there too while any key begins with /a/.
//
// T1: what is kept beside a node, its deadline and its created revision, is a
// note on the version of its key. Whoever writes the key without knowing of
// notes makes a new node without a deadline.
// T2: what a request did can be told from the first change of its revision,
// which carries a note, and from the keys before and after. It is told while
// these can be read.
// T3: where a key and its marker both exist, the directory hides the file.
// Where a key exists and has others below but no marker, the file hides them.
package tree

import (
	"fmt"

	"github.com/kvorum/kvorum/state/internal/mvcc"
)

// Node is a file or a directory. The root has no revisions.
type Node struct {
	Path     string
	Dir      bool
	Value    string
	Created  mvcc.Revision
	Modified mvcc.Revision
	Deadline int64 // in nanoseconds since 1970; 0 is never
	Nodes    []Node
}

// Change is what became of one node. That of a directory which goes stands for
// all below it.
type Change struct {
	Action   string // one of those below
	Refresh  bool   // nobody is to be told: only the deadline is another one
	Revision mvcc.Revision
	Node     *Node // without a value if it is gone
	Prev     *Node // nil if there was none; without the nodes below it
}

// What a change is called.
const (
	ActionSet              = "set"
	ActionCreate           = "create"
	ActionUpdate           = "update"
	ActionCompareAndSwap   = "compareAndSwap"
	ActionDelete           = "delete"
	ActionCompareAndDelete = "compareAndDelete"
	ActionExpire           = "expire"
)

// Codes of errors.
const (
	KeyNotFound   = 100
	CompareFailed = 101
	NotFile       = 102
	NotDirectory  = 104
	KeyExists     = 105
	RootReadOnly  = 107
	NotEmpty      = 108
	EventsCleared = 401
)

// Error is a refusal: what is wrong, with what, and at which revision.
type Error struct {
	Code  int
	Cause string
	Index mvcc.Revision
}

func (e *Error) Error() string {
	return fmt.Sprintf("tree: error %d (%s) at revision %d", e.Code, e.Cause, e.Index)
}

func must(ok bool, promise string) {
	if !ok {
		panic("tree: broken promise: " + promise)
	}
}
