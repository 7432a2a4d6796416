package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// nodeRequest is a request about nodes among those that are messages.
type nodeRequest struct {
	*pb.Member // none; it makes this a message
	state.HierarchyRequest
}

func (q nodeRequest) String() string { return fmt.Sprintf("%+v", q.HierarchyRequest) }

// beside is what the model keeps beside a key that was written as a node.
type beside struct{ created, deadline int64 }

// nodeKey is the name of a node, of which there are few: files below the root.
func (w *world) nodeKey() string { return fmt.Sprint("/n", w.users.IntN(4)) }

func (o *op) makeNodeRequest() nodeRequest {
	w := o.w
	r := w.users
	q := nodeRequest{HierarchyRequest: state.HierarchyRequest{Path: w.nodeKey(), Value: fmt.Sprint("v", o.id)}}
	q.Op = []state.HierarchyOp{
		state.NodeSet, state.NodeSet, state.NodeCreate, state.NodeUpdate, state.NodeCompareAndSwap, state.NodeDelete,
	}[r.IntN(6)]
	if r.IntN(2) == 0 {
		q.Deadline = int64(o.m.clock() + time.Duration(r.Int64N(int64(10*time.Second))))
	}
	if q.Refresh = r.IntN(4) == 0; q.Refresh {
		q.Value = ""
	}
	if kv := w.oracle.model.get(q.Path, w.oracle.model.revision); q.Op == state.NodeCompareAndSwap {
		q.PrevIndex = uint64(max(1, kv.GetModRevision()))
	}
	return q
}

// parseExpiry reads what a leader has decided to remove.
func parseExpiry(encoded []byte) (q nodeRequest) {
	q.Op = state.NodeExpire
	for rest := encoded[2:]; len(rest) > 0; {
		at, n := binary.Varint(rest)
		length, m := binary.Uvarint(rest[n:])
		from := n + m
		q.Due = append(q.Due, state.Deadline{At: at, Key: string(rest[from : from+int(length)])})
		rest = rest[from+int(length):]
	}
	return q
}

// node carries out a request about nodes.
func (m *model) node(q *state.HierarchyRequest) string {
	if q.Op == state.NodeExpire {
		for _, d := range q.Due {
			if m.changed { // each at a revision of its own
				m.revision, m.changed = m.at, false
				m.at++
			}
			if b, ok := m.beside[d.Key]; ok && b.deadline == d.At {
				m.add(d.Key, &mvccpb.KeyValue{Key: []byte(d.Key), ModRevision: m.at})
			}
		}
		if m.changed {
			m.revision, m.changed = m.at, false
		}
		return text(nil, nil, m.revision)
	}
	was := m.get(q.Path, m.revision)
	refuse := func(code int, cause string) string {
		return nodeText(nil, &state.HierarchyError{Code: code, Cause: cause, Index: state.Revision(m.revision)}, m.revision)
	}
	makes := q.Op == state.NodeCreate || q.Op == state.NodeSet && !q.Refresh
	switch {
	case was == nil && !makes:
		return refuse(100, q.Path)
	case was != nil && q.Op == state.NodeCreate:
		return refuse(105, q.Path)
	case q.Op == state.NodeCompareAndSwap && q.PrevIndex != uint64(was.ModRevision):
		return refuse(101, fmt.Sprintf("[%d != %d]", q.PrevIndex, was.ModRevision))
	}

	c := state.NodeChange{Revision: state.Revision(m.at), Node: &state.Node{
		Path: q.Path, Value: q.Value, Created: state.Revision(m.at), Modified: state.Revision(m.at), Deadline: q.Deadline,
	}}
	if was != nil {
		b := m.beside[q.Path]
		c.Prev = &state.Node{
			Path: q.Path, Value: string(was.Value), Modified: state.Revision(was.ModRevision),
			Created: state.Revision(was.ModRevision), Deadline: b.deadline,
		}
		if b.created != 0 {
			c.Prev.Created = state.Revision(b.created)
		}
		if q.Refresh {
			c.Node.Value = string(was.Value)
		}
	}
	kv := &mvccpb.KeyValue{Key: []byte(q.Path), Value: []byte(c.Node.Value), CreateRevision: m.at, ModRevision: m.at, Version: 1}
	if was != nil {
		kv.CreateRevision, kv.Version = was.CreateRevision, was.Version+1
	}
	c.Refresh = q.Refresh
	switch q.Op {
	case state.NodeSet:
		c.Action = "set"
	case state.NodeCreate:
		c.Action = "create"
		if c.Refresh = false; q.Refresh {
			kv.Value = nil
		}
	case state.NodeUpdate:
		c.Action, c.Node.Created = "update", c.Prev.Created
	case state.NodeCompareAndSwap:
		c.Action, c.Node.Created = "compareAndSwap", c.Prev.Created
	case state.NodeDelete:
		c.Action, c.Refresh = "delete", false
		c.Node = &state.Node{Path: q.Path, Created: c.Prev.Created, Modified: c.Revision}
		kv = &mvccpb.KeyValue{Key: kv.Key, ModRevision: m.at}
	}
	m.add(q.Path, kv)
	if kv.Version > 0 {
		m.beside[q.Path] = beside{int64(c.Node.Created), q.Deadline}
	}
	return nodeText(&c, nil, m.at)
}

// outcomeText is what became of a command, as text.
func outcomeText(o state.Outcome) string {
	if o.Change != nil || o.NodeError != nil {
		return nodeText(o.Change, o.NodeError, int64(o.Revision))
	}
	return text(o.Response, o.Refusal, int64(o.Revision))
}

func nodeText(c *state.NodeChange, e *state.HierarchyError, revision int64) string {
	if e != nil {
		return fmt.Sprintf("%s: %d %s %d @%d", fault.NodeRefused.Text, e.Code, e.Cause, e.Index, revision)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v %+v", c.Action, c.Refresh, *c.Node)
	if c.Prev != nil {
		fmt.Fprintf(&b, " was %+v", *c.Prev)
	}
	fmt.Fprintf(&b, " @%d", revision)
	return b.String()
}

// deadlines compares the deadlines that a member knows with the model's.
func (o *oracle) deadlines(m *member) {
	var want []state.Deadline
	for key, b := range o.model.beside {
		if b.deadline != 0 {
			want = append(want, state.Deadline{At: b.deadline, Key: key})
		}
	}
	slices.SortFunc(want, state.Deadline.Compare)
	if got := slices.Collect(m.state.View().Deadlines()); !slices.Equal(got, want) {
		o.w.fail("%v knows the deadlines %v, expected %v", m, got, want)
	}
}
