package state_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/state/internal/tree"
)

// note is what the model keeps beside a key.
type note struct{ created, deadline int64 }

type kind string

const (
	isNothing kind = "nothing"
	isFile    kind = "file"
	isDir     kind = "directory"
	isImplied kind = "implied directory"
)

func (k kind) dir() bool { return k == isDir || k == isImplied }

// nodes is the hierarchy once more, as plainly as can be: whatever is asked,
// all keys are looked at.
type nodes struct {
	keys  map[string]*mvccpb.KeyValue
	notes map[string]note
}

func (t *try) nodes() nodes { return nodes{t.keys, t.notes} }

func (m *model) nodesAt(rev int64) nodes { return nodes{m.at[rev], m.notes[rev]} }

func (n nodes) kind(path string) kind {
	switch {
	case path == "/" || n.keys[path+"/"] != nil:
		return isDir
	case n.keys[path] != nil:
		return isFile
	}
	for key := range n.keys {
		if strings.HasPrefix(key, path+"/") {
			return isImplied
		}
	}
	return isNothing
}

func clean(path string) bool {
	if path == "/" {
		return true
	}
	segments := strings.Split(path, "/")
	return segments[0] == "" && len(segments) > 1 && !slices.ContainsFunc(segments[1:], func(s string) bool {
		return s == "" || s == "." || s == ".."
	})
}

func above(path string) (all []string) {
	segments := strings.Split(path, "/")
	for i := 2; i < len(segments); i++ {
		all = append(all, strings.Join(segments[:i], "/"))
	}
	return all
}

// blocked returns the file that is above a path, or "".
func (n nodes) blocked(path string) string {
	for _, a := range above(path) {
		if n.kind(a) == isFile {
			return a
		}
	}
	return ""
}

// missing returns the first path on the way to one at which there is nothing,
// or "".
func (n nodes) missing(path string) string {
	for _, a := range append(above(path), path) {
		if n.kind(a) == isNothing {
			return a
		}
	}
	return ""
}

func (n nodes) node(path string) state.Node {
	switch n.kind(path) {
	case isImplied:
		var oldest int64
		for key, kv := range n.keys {
			if strings.HasPrefix(key, path+"/") && (oldest == 0 || kv.CreateRevision < oldest) {
				oldest = kv.CreateRevision
			}
		}
		return state.Node{Path: path, Dir: true, Created: state.Revision(oldest), Modified: state.Revision(oldest)}
	case isDir:
		d := state.Node{Path: path, Dir: true}
		if path != "/" {
			d.Created = state.Revision(n.keys[path+"/"].CreateRevision)
			d.Modified, d.Deadline = d.Created, n.notes[path+"/"].deadline
		}
		return d
	}
	kv := n.keys[path]
	return state.Node{
		Path: path, Value: string(kv.Value), Modified: state.Revision(kv.ModRevision),
		Created: state.Revision(cmp.Or(n.notes[path].created, kv.ModRevision)), Deadline: n.notes[path].deadline,
	}
}

func (n nodes) list(path string, recursive bool) state.Node {
	d := n.node(path)
	if !d.Dir {
		return d
	}
	prefix := strings.TrimSuffix(path, "/") + "/"
	names := map[string]bool{}
	for key := range n.keys {
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			name, _, _ := strings.Cut(rest, "/")
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		child := prefix + name
		switch {
		case name == "" || !clean(child):
		case recursive:
			d.Nodes = append(d.Nodes, n.list(child, true))
		default:
			d.Nodes = append(d.Nodes, n.node(child))
		}
	}
	return d
}

// tell says in the words of nodes what a revision has changed that was not made
// by a request about nodes.
func (t *try) tell() (told []state.NodeChange) {
	before, after := t.model.nodesAt(t.model.revision()), t.nodes()
	see := func(n nodes, path string) kind {
		if n.blocked(path) != "" {
			return isNothing
		}
		return n.kind(path)
	}
	for _, e := range t.events {
		path, marker := strings.CutSuffix(string(e.pair.Key), "/")
		if path == "" || path == "/" || !clean(path) {
			continue
		}
		was, is := see(before, path), see(after, path)
		c := state.NodeChange{Action: "set", Revision: state.Revision(t.revision())}
		var n state.Node
		switch {
		case marker && e.deleted && was.dir() && !is.dir(), !marker && e.deleted && was == isFile:
			c.Action = "delete"
			old := before.node(path)
			n = state.Node{Path: path, Dir: old.Dir, Created: old.Created, Modified: c.Revision}
		case e.deleted:
			continue
		case marker && was == isDir && is == isDir:
			c.Action = "update"
			n = after.node(path)
			n.Modified = c.Revision
		case marker && was != isImplied && is == isDir, !marker && is == isFile:
			n = after.node(path)
		default:
			continue
		}
		c.Node = &n
		if was != isNothing {
			prev := before.node(path)
			c.Prev = &prev
		}
		told = append(told, c)
	}
	return told
}

// applyNodes makes a request about nodes.
func (m *model) applyNodes(encoded []byte) *fault.Fault {
	q, ok := tree.Parse(encoded)
	if !ok {
		return fault.Malformed
	}
	if q.Op == state.NodeExpire {
		for _, d := range q.Due {
			m.expireNode(d)
		}
		return nil
	}
	t := m.try()
	code, cause := t.applyNode(&q)
	if code != 0 {
		m.nodeError = &state.HierarchyError{Code: code, Cause: cause, Index: state.Revision(m.revision())}
		return fault.NodeRefused
	}
	m.change = t.told
	t.commit()
	return nil
}

func (m *model) expireNode(d state.Deadline) {
	t := m.try()
	if d.At == 0 || t.notes[d.Key].deadline != d.At {
		return
	}
	path, marker := strings.CutSuffix(d.Key, "/")
	if marker || t.nodes().kind(path) == isFile {
		t.removeNode("expire", path, marker)
	} else {
		t.doDelete(&pb.DeleteRangeRequest{Key: []byte(d.Key)})
	}
	t.commit()
}

func (t *try) applyNode(q *state.HierarchyRequest) (code int, cause string) {
	n, path := t.nodes(), q.Path
	next := state.Revision(t.model.revision() + 1)
	if path == "/" && q.Op == state.NodeCompareAndDelete {
		return 102, ""
	}
	if path == "/" && q.Op != state.NodeCreateInOrder {
		return 107, "/"
	}
	if q.Op == state.NodeCreateInOrder {
		path = strings.TrimSuffix(path, "/") + fmt.Sprintf("/%020d", next)
	}
	// Set and create make what is missing; the others want all of it.
	missing, blocked := n.missing(path), n.blocked(path)
	makes := q.Op == state.NodeSet && !q.Refresh || q.Op == state.NodeCreate || q.Op == state.NodeCreateInOrder
	if blocked != "" {
		return 104, blocked
	}
	if missing != "" && !makes {
		return 100, missing
	}
	was := n.kind(path)
	old := note{}
	if was == isFile {
		old = t.notes[path]
		old.created = cmp.Or(old.created, t.keys[path].ModRevision)
	}
	value := q.Value
	if q.Refresh && was == isFile {
		value = string(t.keys[path].Value)
	}

	switch q.Op {
	case state.NodeSet:
		if was.dir() {
			return 102, path
		}
		t.putNode("set", path, q.Dir, value, note{int64(next), q.Deadline}, q.Refresh)
	case state.NodeCreate, state.NodeCreateInOrder:
		if was != isNothing {
			return 105, path
		}
		t.putNode("create", path, q.Dir, q.Value, note{int64(next), q.Deadline}, false)
	case state.NodeUpdate:
		if was.dir() && q.Value != "" && !q.Refresh {
			return 102, path
		}
		t.putNode("update", path, was.dir(), value, note{old.created, q.Deadline}, q.Refresh)
	case state.NodeCompareAndSwap, state.NodeCompareAndDelete:
		if was.dir() {
			return 102, path
		}
		var wrong []string
		kv := t.keys[path]
		if q.PrevValue != "" && q.PrevValue != string(kv.Value) {
			wrong = append(wrong, fmt.Sprintf("[%s != %s]", q.PrevValue, kv.Value))
		}
		if q.PrevIndex != 0 && q.PrevIndex != uint64(kv.ModRevision) {
			wrong = append(wrong, fmt.Sprintf("[%d != %d]", q.PrevIndex, kv.ModRevision))
		}
		if len(wrong) > 0 {
			return 101, strings.Join(wrong, " ")
		}
		if q.Op == state.NodeCompareAndSwap {
			t.putNode("compareAndSwap", path, false, value, note{old.created, q.Deadline}, q.Refresh)
		} else {
			t.removeNode("compareAndDelete", path, false)
		}
	case state.NodeDelete:
		if was.dir() && !q.Recursive {
			if !q.Dir {
				return 102, path
			}
			for key := range t.keys {
				if strings.HasPrefix(key, path+"/") && key != path+"/" {
					return 108, path
				}
			}
		}
		t.removeNode("delete", path, q.Recursive)
	}
	return 0, ""
}

func (t *try) putNode(action, path string, dir bool, value string, with note, refresh bool) {
	before := t.model.nodesAt(t.model.revision())
	key := path
	if dir {
		key, value, with.created = path+"/", "", 0
	}
	t.doPut(&pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	t.notes[key] = with
	if dir && before.kind(path) == isFile {
		t.doDelete(&pb.DeleteRangeRequest{Key: []byte(path)})
	}
	for _, a := range above(path) {
		if t.keys[a+"/"] == nil {
			t.doPut(&pb.PutRequest{Key: []byte(a + "/")})
		}
	}
	n := t.nodes().node(path)
	n.Modified = state.Revision(t.revision())
	t.told = &state.NodeChange{Action: action, Refresh: refresh, Revision: n.Modified, Node: &n}
	if before.kind(path) != isNothing {
		prev := before.node(path)
		t.told.Prev = &prev
	}
}

func (t *try) removeNode(action, path string, all bool) {
	prev := t.nodes().node(path)
	switch was := t.nodes().kind(path); {
	case was.dir() && all:
		t.doDelete(&pb.DeleteRangeRequest{Key: []byte(path + "/"), RangeEnd: []byte(path + "0")})
		t.doDelete(&pb.DeleteRangeRequest{Key: []byte(path)})
	case was.dir():
		t.doDelete(&pb.DeleteRangeRequest{Key: []byte(path + "/")})
	default:
		t.doDelete(&pb.DeleteRangeRequest{Key: []byte(path)})
		if all {
			t.doDelete(&pb.DeleteRangeRequest{Key: []byte(path + "/"), RangeEnd: []byte(path + "0")})
		}
	}
	at := state.Revision(t.revision())
	t.told = &state.NodeChange{
		Action: action, Revision: at, Prev: &prev,
		Node: &state.Node{Path: path, Dir: prev.Dir, Created: prev.Created, Modified: at},
	}
}

// TestChangesAreKept wants changes to be told of all revisions, also after a
// restart, and only of some once the history is compacted. One may begin with the
// last 1,000 exactly.
func TestChangesAreKept(t *testing.T) {
	b := newBed(t, false)
	told := func(at state.Revision) bool {
		t.Helper()
		changes, err := b.View().Changes(at)
		var refused *state.HierarchyError
		if err != nil && (!errors.As(err, &refused) || refused.Code != 401) {
			t.Fatal(err)
		}
		return len(changes) == 1 && changes[0].Action == "set" && changes[0].Node.Value == fmt.Sprint(at)
	}
	last := state.Revision(1)
	for range 1200 {
		last++
		q := state.HierarchyRequest{Op: state.NodeSet, Path: "/a", Value: fmt.Sprint(last)}
		b.apply(t, state.Command{Kind: state.Hierarchy, Encoded: q.Append(nil)})
		if oldest := b.View().OldestChanges(); oldest != max(1, last-999) {
			t.Fatalf("at %d, one may begin with %d", last, oldest)
		}
		if !told(2) || !told(last) || told(1) || told(last+1) {
			t.Fatalf("at %d, changes are not told", last)
		}
	}
	b.Flush()
	b.crash(t, 0)
	if !told(2) || !told(last) || b.View().OldestChanges() != last-999 {
		t.Fatal("after a restart others are told of")
	}
	b.apply(t, state.Command{Kind: state.Compact, Request: &pb.CompactionRequest{Revision: int64(last - 10)}})
	for more := true; more; {
		more, _ = b.Sweep(100)
	}
	if !told(last-9) || told(last-10) || b.View().OldestChanges() != last-9 {
		t.Fatal("compacted changes are told of")
	}
}

// TestTooDeep has a key that is deeper than any path: nobody is to walk there.
func TestTooDeep(t *testing.T) {
	b := newBed(t, false)
	deep := strings.Repeat("/a", 500_000)
	b.apply(t, state.Command{Kind: state.Put, Request: &pb.PutRequest{Key: []byte(deep)}})
	q := state.HierarchyRequest{Op: state.NodeSet, Path: deep}
	if o := b.apply(t, state.Command{Kind: state.Hierarchy, Encoded: q.Append(nil)})[0]; o.Refusal != fault.Malformed {
		t.Fatal(o.Refusal)
	}
	if _, _, err := b.View().Node(deep, false); err == nil {
		t.Fatal("found")
	}
	if told, err := b.View().Changes(2); len(told) != 0 || err != nil {
		t.Fatal(told, err)
	}
	n, _, err := b.View().Node("/", true)
	levels := 0
	for ; len(n.Nodes) > 0; n = n.Nodes[0] {
		levels++
	}
	if err != nil || levels < 2000 || levels > 4000 {
		t.Fatalf("%d levels, %v", levels, err)
	}
}

// TestNotesCount wants members to differ in their hashes if they differ in
// what is kept beside a pair alone.
func TestNotesCount(t *testing.T) {
	sums := map[string]bool{}
	for _, c := range []state.Command{
		{Kind: state.Put, Request: &pb.PutRequest{Key: []byte("/a")}},
		{Kind: state.Hierarchy, Encoded: (&state.HierarchyRequest{Op: state.NodeSet, Path: "/a"}).Append(nil)},
		{Kind: state.Hierarchy, Encoded: (&state.HierarchyRequest{Op: state.NodeSet, Path: "/a", Deadline: 1}).Append(nil)},
	} {
		b := newBed(t, false)
		b.apply(t, c)
		r, err := b.View().HashKV(0)
		if err != nil {
			t.Fatal(err)
		}
		sums[fmt.Sprint(r.Hash)], sums[fmt.Sprint("checksum ", b.View().Checksum)] = true, true
	}
	if len(sums) != 6 {
		t.Fatal(sums)
	}
}

func (r chance) path() string {
	return []string{"/a", "/a", "/b", "/a/b", "/a/b", "/a/c", "/a/b/c", "/a-b", "/_h/x", "/a/b/c/d/e"}[r.IntN(10)]
}

// nodeKey is a key that has to do with nodes, or looks as if it had.
func (r chance) nodeKey() []byte {
	switch r.IntN(8) {
	case 0, 1:
		return []byte(r.path() + "/")
	case 2:
		return []byte([]string{"/", "//", "//a", "/a//b", "/a/./b", "/a/../b", "a/b", "/a/b//", "/a0", "0"}[r.IntN(10)])
	}
	return []byte(r.path())
}

func (r chance) nodeCommand(revision int64) state.Command {
	q := state.HierarchyRequest{Op: state.HierarchyOp(1 + r.IntN(8)), Path: r.path()}
	if r.IntN(30) == 0 {
		q.Path = []string{"/", "/", "", "a", "//", "/a/", "/a/.."}[r.IntN(7)]
	}
	if r.IntN(3) > 0 {
		q.Value = fmt.Sprint("v", r.IntN(10))
	}
	if r.IntN(3) == 0 {
		q.Deadline = r.Int64N(5)
	}
	q.Dir, q.Recursive, q.Refresh = r.IntN(4) == 0, r.IntN(4) == 0, r.IntN(6) == 0
	if r.IntN(2) == 0 {
		q.PrevValue = fmt.Sprint("v", r.IntN(3))
	}
	if r.IntN(3) == 0 {
		q.PrevIndex = uint64(max(0, revision-r.Int64N(4)))
	}
	if q.Op == state.NodeExpire {
		for range 1 + r.IntN(8) {
			q.Due = append(q.Due, state.Deadline{At: r.Int64N(5), Key: string(r.nodeKey())})
		}
	}
	return state.Command{Kind: state.Hierarchy, Encoded: q.Append(nil)}
}

func compareNodes(t *testing.T, v *state.View, m *model, r chance) {
	t.Helper()
	n := m.nodesAt(m.revision())
	for range 3 {
		path, recursive := r.path(), r.IntN(2) == 0
		if r.IntN(4) == 0 {
			path = "/"
		}
		got, at, err := v.Node(path, recursive)
		var refused *state.HierarchyError
		if err != nil && !errors.As(err, &refused) {
			t.Fatal(err)
		}
		wantError := &state.HierarchyError{Index: state.Revision(m.revision())}
		switch missing, blocked := n.missing(path), n.blocked(path); {
		case blocked != "":
			wantError.Code, wantError.Cause = 104, blocked
		case missing != "":
			wantError.Code, wantError.Cause = 100, missing
		default:
			if d := gocmp.Diff(n.list(path, recursive), got); d != "" || at != v.Revision || err != nil {
				t.Fatalf("%s at %d of %d, %v: %s\n%v", path, at, v.Revision, err, d, slices.Sorted(maps.Keys(n.keys)))
			}
			continue
		}
		if d := gocmp.Diff(wantError, refused); d != "" {
			t.Fatalf("%s: %s", path, d)
		}
	}

	at := 1 + r.Int64N(m.revision())
	told, err := v.Changes(state.Revision(at))
	if at <= m.compacted {
		var refused *state.HierarchyError
		if !errors.As(err, &refused) || refused.Code != 401 || refused.Index != v.Revision {
			t.Fatalf("changes at %d of %d, compacted %d: %v, %v", at, v.Revision, m.compacted, told, err)
		}
	} else if d := gocmp.Diff(m.told[at], told); d != "" || err != nil {
		t.Fatalf("changes at %d of %d, %v: %s", at, v.Revision, err, d)
	}

	var due []state.Deadline
	for key, beside := range n.notes {
		if beside.deadline != 0 {
			due = append(due, state.Deadline{At: beside.deadline, Key: key})
		}
	}
	slices.SortFunc(due, state.Deadline.Compare)
	if d := gocmp.Diff(due, slices.Collect(v.Deadlines())); d != "" {
		t.Fatal(d)
	}
}
