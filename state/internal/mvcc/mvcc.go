// Package mvcc keeps keys and their history: on disk a log of rows ordered by
// revision, in memory every key that exists with the versions that compaction
// has not removed.
//
// There is one writer. Readers take a View, never wait, and see one revision
// whatever the writer, sweeps and eviction do meanwhile.
//
// K1: a view never changes. What is newer than it is skipped, what is older
// stays until a compaction was applied, and who asks for less than that is
// refused.
// K2: what is answered depends on revision and compacted revision alone, not on
// how far a sweep is, nor on which values are in memory.
// K3: a version is removed only when a newer one of its key is not above the
// compacted revision, or when it is a deletion below it.
// K4: a note is kept beside the version that it was written with, as long as
// that, and changes nothing else. What it says is the caller's business.
package mvcc

import (
	"cmp"
	"errors"
)

// Revision is a position in the history of the store; a fresh store is at 1.
type Revision int64

// Position is the place of one change: revisions of transactions hold many.
type Position struct {
	Main Revision
	Sub  int32
}

// NeverCompacted is the compacted revision of a store that was not.
const NeverCompacted Revision = -1

func (p Position) compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Main, q.Main), cmp.Compare(p.Sub, q.Sub))
}

// Event is one change of one key. Its bytes belong to the store and never
// change; they may be kept.
type Event struct {
	Revision Revision
	Sub      int32 // order within the revision
	Deleted  bool
	Key      []byte
	Pair     []byte // encoded mvccpb.KeyValue; of a deletion, key and mod_revision only

	// Before is the place of the pair that this change replaced, zero if there
	// was none, and Previous that pair where it was at hand.
	Before   Position
	Previous []byte
}

// ErrOvertaken says that a sweep removed what a view still showed, because
// a compaction was applied since. Who named the revision is told that it is
// compacted; who asked for the newest reads a newer view.
var ErrOvertaken = errors.New("mvcc: view overtaken by compaction")

func must(ok bool, promise string) {
	if !ok {
		panic("mvcc: broken promise: " + promise)
	}
}
