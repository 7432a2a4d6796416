package state

import (
	"errors"
	"iter"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state/internal/mvcc"
	"github.com/kvorum/kvorum/state/internal/tree"
)

type (
	// HierarchyRequest changes keys as files and directories, as the v2 API has
	// them.
	HierarchyRequest = tree.Request
	// HierarchyOp is what such a request does.
	HierarchyOp = tree.Op
	// HierarchyError is why such a request was refused, or a node not found.
	HierarchyError = tree.Error
	// Node is a file or a directory.
	Node = tree.Node
	// NodeChange is what became of one node.
	NodeChange = tree.Change
	// Deadline is when a node is to go.
	Deadline = tree.Deadline
)

// What a HierarchyRequest does.
const (
	NodeSet              = tree.Set
	NodeCreate           = tree.Create
	NodeUpdate           = tree.Update
	NodeCompareAndSwap   = tree.CompareAndSwap
	NodeCreateInOrder    = tree.CreateInOrder
	NodeDelete           = tree.Delete
	NodeCompareAndDelete = tree.CompareAndDelete
	NodeExpire           = tree.Expire
)

// NodeRoot is the path of the directory that is always there.
const NodeRoot = tree.Root

// ChangesKept is with how many of the last revisions one may begin who wants to
// be told of changes, if they are not compacted.
const ChangesKept = 1000

// Node returns the node at a path, and the revision at which it was read, which
// is newer than the view if that was overtaken by a compaction. A directory
// comes with its children, or with all that is below it, in the order of their
// paths. Its error is a *HierarchyError, or a failure of the table.
func (v *View) Node(path string, recursive bool) (Node, Revision, error) {
	type answer struct {
		node Node
		at   Revision
	}
	a, err := newest(v, func(v *View) (answer, error) {
		n, err := tree.Get(v.keys, path, recursive)
		if v.keys.Overtaken() {
			err = mvcc.ErrOvertaken
		}
		return answer{n, v.Revision}, err
	})
	return a.node, a.at, err
}

// OldestChanges returns the first revision with which one may begin who wants to
// be told of changes. Who has begun is told, however far he falls behind.
func (v *View) OldestChanges() Revision {
	return max(v.Revision-ChangesKept+1, v.Compacted+1, 1)
}

// Changes returns what a revision has changed, as those are told who watch
// nodes: the change that a HierarchyRequest made, or those of all keys that were
// written without one; nothing of a revision to come. It refuses with a
// *HierarchyError what is compacted, also if that happens meanwhile.
func (v *View) Changes(at Revision) (changes []NodeChange, err error) {
	switch {
	case at > v.Revision:
		return nil, nil
	case at <= v.Compacted:
		err = mvcc.ErrOvertaken
	default:
		changes, err = tree.Told(v.keys, at)
	}
	if errors.Is(err, mvcc.ErrOvertaken) {
		return nil, &HierarchyError{Code: tree.EventsCleared, Index: v.Revision}
	}
	return changes, err
}

// Deadlines yields the deadlines of nodes, the earliest first.
func (v *View) Deadlines() iter.Seq[Deadline] { return v.deadlines.All() }

// SameDeadlines tells whether no deadline changed between two views.
func (v *View) SameDeadlines(other *View) bool { return v.deadlines == other.deadlines }

func (b *batch) hierarchy(encoded []byte) (Outcome, error) {
	q, ok := tree.Parse(encoded)
	if !ok {
		return refuse(fault.Malformed), nil
	}
	if q.Op == NodeExpire {
		return b.expireNodes(q.Due)
	}
	plan, err := tree.Decide(b.keys.View(), &q)
	if refused, ok := err.(*HierarchyError); ok {
		return Outcome{Refusal: fault.NodeRefused, NodeError: refused}, nil
	}
	if err != nil {
		return Outcome{}, err
	}

	if err := b.carryOut(plan); err != nil {
		return Outcome{}, err
	}

	o := Outcome{Events: b.seal()}
	if b.wanted {
		change, err := plan.Tell()
		if err != nil {
			return Outcome{}, err
		}
		o.Change = &change
	}
	return o, nil
}

// expireNodes removes the nodes whose deadlines are those, each at a revision of
// its own.
func (b *batch) expireNodes(due []Deadline) (Outcome, error) {
	from := len(b.events)
	expired := 0
	for _, d := range due {
		plan, ok := tree.Lapse(b.keys.View(), d)
		if !ok {
			continue
		}
		if err := b.carryOut(plan); err != nil {
			return Outcome{}, err
		}
		b.seal()
		expired++
	}
	return Outcome{Events: b.events[from:len(b.events):len(b.events)], Expired: expired}, nil
}

// carryOut makes a plan true.
func (b *batch) carryOut(p tree.Plan) error {
	b.keys.Note(p.Note)
	for i, w := range p.Writes {
		if w.Delete {
			if err := b.remove(Span{Key: []byte(w.Key), End: []byte(w.End)}); err != nil {
				return err
			}
			continue
		}
		key := b.store([]byte(w.Key), []byte(w.Value), 0)
		if i == 0 {
			b.next.deadlines = b.next.deadlines.With(key, p.Note)
		}
	}
	return nil
}

func (b *batch) remove(s Span) error {
	_, err := b.keys.DeleteRange(s, func(key string, p mvcc.Pair) error {
		b.release(key, p)
		return nil
	})
	return err
}
