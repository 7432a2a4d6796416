package sim

import (
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
)

type kind int

const (
	opPut kind = iota
	opDelete
	opTxn
	opCompact
	opGrant
	opRevoke
	opExpire
	opKeepAlive
	opNode
	opRange
	opSerializable
	kinds                    // those of clients end here
	opCheckpoint kind = iota // of a leader
	opNodeExpire
	opAdd // of the members
	opRemove
	opUpdate
	opPromote
	opPublish
)

// commands says what the state calls what changes it.
var commands = map[kind]state.Kind{
	opPut: state.Put, opDelete: state.DeleteRange, opTxn: state.Txn, opCompact: state.Compact,
	opNode: state.Hierarchy, opGrant: state.LeaseGrant, opRevoke: state.LeaseRevoke, opExpire: state.LeaseExpire,
	opAdd: state.MemberAdd, opRemove: state.MemberRemove, opUpdate: state.MemberUpdate, opPromote: state.MemberPromote, opPublish: state.Publish,
}

// op is one operation of a client.
type op struct {
	w       *world
	id      uint64
	client  *client
	kind    kind
	request proto.Message
	m       *member
	wait    *replica.Wait[state.Outcome]
	from    run             // who answers
	floor   uint64          // index up to which all had been answered to somebody when it began
	then    func()          // called when it ends
	term    uint64          // it is good for this term only; 0: for any
	decided bool            // by a leader's clocks
	clock   time.Duration   // what that had for the time then
	clocks  []time.Duration // what everybody had when it was called, or decided
	life    *life           // of the lease that it is about, when it was called
	dead    bool            // that was over
	outcome state.Outcome

	// What the client saw.
	call, ret time.Duration
	done      bool
	unknown   bool // nothing came back
	left      bool // because the client gave up
	never     bool // refused before it was proposed: it never happens
	err       error
	answer    string
	seen      int64 // revision of the answer

	// What became of it, by the log; 0 if it is not there.
	index     uint64
	at        uint64 // term
	place     int    // among the commands of the log
	revision  int64
	changes   bool
	committed string
}

func (o *op) String() string {
	return fmt.Sprintf("operation %d of client %d at member %d, %T{%v}, from %v to %v", o.id, o.client.id, o.m.id, o.request, o.request, o.call, o.ret)
}

// run is a process of a member.
type run struct {
	member uint64
	number int
}

// client does one thing after the other.
type client struct {
	w       *world
	id      int
	home    *member // whom it speaks to
	stopped bool
}

// next begins the next operation after a while.
func (c *client) next() {
	w := c.w
	pause := time.Duration(w.users.ExpFloat64() * float64(w.think))
	w.after(pause, func() {
		if c.stopped {
			return
		}
		if c.home == nil || !c.home.up || w.users.IntN(20) == 0 {
			present := w.present()
			c.home = present[w.users.IntN(len(present))]
		}
		if !c.home.up || c.home.paused && w.users.IntN(2) == 0 {
			c.next()
			return
		}
		c.begin(c.choose()).then = c.next
	})
}

func (c *client) choose() kind {
	sum := 0
	for _, n := range c.w.mix {
		sum += n
	}
	n := c.w.users.IntN(sum)
	k := opPut
	for n -= c.w.mix[k]; n >= 0; n -= c.w.mix[k] {
		k++
	}
	return k
}

// begin begins an operation at the client's member.
func (c *client) begin(k kind) *op {
	w := c.w
	o := w.newOp(c, k, c.home)
	o.request = o.makeRequest()
	m := c.home
	w.note("call", uint64(c.id), uint64(k), m.id)
	// Between client and member.
	m.later(time.Duration(w.users.IntN(2000))*time.Microsecond, func() {
		if o.done {
			return
		}
		switch k {
		case opSerializable:
			o.read()
			return
		case opKeepAlive:
			o.keepAlive()
			return
		case opRange:
			o.wait = m.step.Barrier()
		default:
			o.wait = m.step.Propose(o.encode())
		}
		m.watch(o)
	})
	return o
}

// record makes an operation that takes as long as it takes.
func (w *world) record(c *client, k kind, m *member) *op {
	o := &op{w: w, id: uint64(len(w.history)), client: c, kind: k, m: m, from: run{m.id, m.run}, call: w.now, floor: w.floor}
	w.history = append(w.history, o)
	return o
}

// newOp makes one that its client does not wait for for ever.
func (w *world) newOp(c *client, k kind, m *member) *op {
	o := w.record(c, k, m)
	run := m.run
	w.after(w.timeout, func() {
		if o.done {
			return
		}
		if m.run == run && o.wait != nil {
			o.wait.Leave()
			if !o.poll() { // the answer may have come first
				o.left = true
				o.give(true, fault.Timeout)
			}
			return
		}
		o.lost()
	})
	return o
}

// watch waits for the answer.
func (m *member) watch(o *op) {
	if !o.poll() {
		m.ops = append(m.ops, o)
		m.poke()
	}
}

func (o *op) encode() []byte {
	c := state.Command{Kind: commands[o.kind], Term: state.Term(o.term), Principal: state.Principal{Revision: o.id}, Request: o.request}
	if q, ok := o.request.(nodeRequest); ok {
		c.Encoded = q.Append(nil)
	}
	b, err := c.Append(nil)
	if err != nil {
		o.w.fail("encode %v: %v", o, err)
	}
	return b
}

// poll looks whether the outcome is there, and tells whether it was or nobody
// waits any more.
func (o *op) poll() bool {
	if o.done {
		return true
	}
	outcome, err, there := o.wait.Outcome()
	if !there {
		return false
	}
	w := o.w
	switch {
	case err != nil:
		// What is no fault is raft's: the members cannot become that.
		o.never = errors.Is(err, fault.TooManyRequests) || fault.Of(err) == nil
		if o.never {
			w.mark("surely not executed")
		}
		o.give(!o.never, err)
	case o.kind == opRange:
		// The handler reads a little later.
		o.m.later(time.Duration(w.users.IntN(300))*time.Microsecond, func() {
			if !o.done {
				o.read()
			}
		})
	default:
		o.answer = outcomeText(outcome)
		o.seen, o.outcome = int64(outcome.Revision), outcome
		if o.index == 0 {
			w.fail("%v is answered, but in no log", o)
		}
		if o.answer != o.committed {
			w.fail("%v is answered with\n%s\nexpected\n%s", o, o.answer, o.committed)
		}
		if uint64(o.m.state.View().Index) < o.index {
			w.fail("%v is answered by a member that has not applied it", o)
		}
		o.give(false, nil)
		w.floor = max(w.floor, o.index)
	}
	return true
}

// read reads the view of the member.
func (o *op) read() {
	w, m := o.w, o.m
	v := m.state.View()
	if v.Index == 0 {
		o.lost() // it waits for its first snapshot
		return
	}
	o.answer = readView(m, o.request.(*pb.RangeRequest))
	o.seen = int64(v.Revision)
	if o.kind == opRange && uint64(v.Index) < o.floor {
		w.fail("%v reads at index %d, but %d was answered before", o, v.Index, o.floor)
	}
	if o.kind == opRange {
		w.floor = max(w.floor, uint64(v.Index))
	} else if uint64(v.Index) < w.floor {
		w.mark("serializable read of the past")
	}
	o.give(false, nil)
}

// readView has a member answer a range, as text.
func readView(m *member, q *pb.RangeRequest) string {
	v := m.state.View()
	a, err := v.Range(q)
	if err != nil {
		f := fault.Of(err)
		if f == nil {
			m.w.fail("%v: range: %v", m, err)
		}
		if errors.Is(err, fault.Compacted) {
			m.w.mark("read of a compacted revision")
		}
		return text(nil, f, int64(v.Revision))
	}
	return text(state.Decode(a), nil, int64(v.Revision))
}

// give ends the operation for the client.
func (o *op) give(unknown bool, err error) {
	o.done, o.unknown, o.err, o.ret = true, unknown, err, o.w.now
	o.w.note("return", uint64(o.client.id), uint64(o.kind), uint64(o.seen))
	if o.then != nil {
		o.then()
	}
}

// once checks, long after, that nobody was answered twice.
func (o *op) once() {
	if o.wait == nil {
		return
	}
	outcome, err, there := o.wait.Outcome()
	switch {
	case o.left && there:
		o.w.fail("%v was given up, but answered later", o)
	case !o.unknown && o.done && (!there || !errors.Is(err, o.err) || o.kind != opRange && int64(outcome.Revision) != o.seen && err == nil):
		o.w.fail("%v was answered twice: with %v, later with %v", o, o.err, err)
	}
}

// lost ends the operation: the member is gone.
func (o *op) lost() {
	if !o.done {
		o.give(true, fault.Stopped)
	}
}

func newRange(key, end []byte) *pb.RangeRequest { return &pb.RangeRequest{Key: key, RangeEnd: end} }

func (w *world) key() []byte { return fmt.Appendf(nil, "k%02d", w.users.IntN(w.setup.keys)) }

func (o *op) makeRequest() proto.Message {
	w := o.w
	r := w.users
	span := func() (key, end []byte) {
		if key = w.key(); w.plain {
			return key, nil
		}
		switch r.IntN(4) {
		case 0:
			end = w.key()
			if string(end) <= string(key) {
				end = []byte{0}
			}
		case 1:
			key, end = []byte("k"), []byte("l")
		}
		return key, end
	}
	lease := func() int64 { return 1 + r.Int64N(6) }
	put := func(key []byte) *pb.PutRequest {
		q := &pb.PutRequest{Key: key, Value: fmt.Appendf(nil, "v%d", o.id), PrevKv: r.IntN(4) == 0}
		if w.leases && r.IntN(3) == 0 {
			q.Lease = lease()
		}
		return q
	}
	read := func() *pb.RangeRequest {
		q := &pb.RangeRequest{}
		q.Key, q.RangeEnd = span()
		if !w.plain && r.IntN(4) == 0 {
			q.Limit = 1 + r.Int64N(4)
		}
		if !w.plain && r.IntN(4) == 0 {
			q.Revision = max(0, w.oracle.model.revision-r.Int64N(30)+2)
		}
		return q
	}
	switch o.kind {
	case opPut:
		q := put(w.key())
		if w.nodes && r.IntN(6) == 0 {
			q.Key = []byte(w.nodeKey())
		}
		if r.IntN(20) == 0 {
			q.Value = append(q.Value, make([]byte, 200+r.IntN(3000))...) // larger than a batch, or a sector
		}
		if !w.plain && r.IntN(20) == 0 {
			q.Value, q.IgnoreValue = nil, true
		}
		return q
	case opDelete:
		q := &pb.DeleteRangeRequest{PrevKv: r.IntN(3) == 0}
		q.Key, q.RangeEnd = span()
		if r.IntN(2) == 0 {
			q.RangeEnd = nil
		}
		return q
	case opTxn:
		key := w.key()
		c := &pb.Compare{Key: key, Result: pb.Compare_CompareResult(r.IntN(4))}
		current := w.oracle.model.get(string(key), w.oracle.model.revision)
		switch {
		case w.plain && current == nil:
			c.Target, c.Result = pb.Compare_CREATE, pb.Compare_EQUAL
			c.TargetUnion = &pb.Compare_CreateRevision{}
		case w.plain:
			c.Target, c.Result = pb.Compare_VALUE, pb.Compare_EQUAL
			c.TargetUnion = &pb.Compare_Value{Value: current.Value}
		case r.IntN(2) == 0:
			c.Target, c.Result = pb.Compare_MOD, pb.Compare_EQUAL
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: current.GetModRevision()}
		case r.IntN(2) == 0:
			c.Target = pb.Compare_VALUE
			c.TargetUnion = &pb.Compare_Value{Value: current.GetValue()}
		case r.IntN(2) == 0:
			c.Target = pb.Compare_VERSION
			c.TargetUnion = &pb.Compare_Version{Version: r.Int64N(4)}
		default:
			c.Target = pb.Compare_CREATE
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: current.GetCreateRevision()}
		}
		q := &pb.TxnRequest{Compare: []*pb.Compare{c}}
		q.Success = append(q.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put(key)}})
		if w.plain {
			return q
		}
		for range r.IntN(3) {
			q.Success = append(q.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: read()}})
		}
		if other := w.key(); string(other) != string(key) {
			if r.IntN(2) == 0 {
				q.Success = append(q.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put(other)}})
			} else {
				q.Success = append(q.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: other, PrevKv: true}}})
			}
		}
		if r.IntN(2) == 0 {
			q.Failure = append(q.Failure, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: read()}})
		} else {
			q.Failure = append(q.Failure, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: w.key()}}})
		}
		return q
	case opNode:
		return o.makeNodeRequest()
	case opGrant:
		q := &pb.LeaseGrantRequest{ID: lease(), TTL: 1 + r.Int64N(10)}
		if r.IntN(6) == 0 {
			q.TTL *= 1000
		}
		return q
	case opKeepAlive:
		q := &pb.LeaseKeepAliveRequest{ID: lease()}
		if q.ID > 3 && r.IntN(20) > 0 {
			q.ID -= 3 // the others end
		}
		o.clocks, o.life = w.clocks(), w.oracle.lives[q.ID]
		o.dead = o.life != nil && o.life.gone
		return q
	case opRevoke:
		return &pb.LeaseRevokeRequest{ID: lease()}
	case opExpire:
		// As a leader does it whose term may be over.
		o.term = max(1, o.m.r.Status().Term-r.Uint64N(2))
		return &pb.LeaseLeasesResponse{Leases: []*pb.LeaseStatus{{ID: lease()}, {ID: lease()}}}
	case opCompact:
		return &pb.CompactionRequest{Revision: max(0, w.oracle.model.revision-r.Int64N(20)+1)}
	}
	return read()
}
