// Package gate is where requests are let in: what is too large, what there is
// no room for, what this member cannot answer, and how long one may wait. All
// of admission is in this file. Around it stand calls.go, which measures, and
// status.go, which turns errors into what the wire carries.
//
// It never looks at keys, and it changes nothing but by proposing.
package gate

import (
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
)

// Backend is what the gate asks of the member behind it.
type Backend interface {
	// Propose returns once command is committed and applied here. Its error
	// wraps a fault if the client may know it, and so it is when ctx ends, or
	// the time for which anybody may wait.
	Propose(ctx context.Context, command []byte) (state.Outcome, error)

	// ProposeAll does the same with the commands of a party, and does not wait.
	ProposeAll(p Party, commands [][]byte)

	// Configure does the same with a command that comes with a change of who
	// votes. If it is refused, nothing changes.
	Configure(ctx context.Context, command []byte, change Change) (state.Outcome, error)

	// Barrier returns once all that was committed before the call is applied
	// here. What holds of the errors of Propose holds of its errors.
	Barrier(ctx context.Context) error

	// BarrierAll does the same for a party of n, and does not wait.
	BarrierAll(p Party, n int)

	// View is the state as it is now. It never waits.
	View() *state.View

	// Status is what is known about agreement now. It never waits.
	Status() Status

	// Size returns the bytes that the state takes on disk, and how many of
	// them hold what can still be asked for.
	Size() (total, used int64)
}

// Party is those who wait for something together. It is told what has become of
// it by one goroutine at a time, and must not wait then, nor ask the Backend.
type Party interface {
	// Context is that of the i-th, who waits not much longer once it has ended.
	Context(i int) context.Context

	// Leave tells why the i-th waits no more. It is told nothing else.
	Leave(i int, err error)

	// End tells all others what became of their commands, if they had any. It
	// comes last, but not where all have left.
	End(outcomes []state.Outcome, err error)
}

// Change says what a member is from now on.
type Change struct {
	Member state.MemberID
	Vote   Vote
}

// Vote is a member's part in agreement.
type Vote uint8

const (
	NoMember Vote = iota
	Learner       // hears all and has no vote
	Voter
)

// Status is what a member knows about agreement at one moment.
type Status struct {
	Cluster state.ClusterID
	Member  state.MemberID
	Leader  state.MemberID // 0 if none is known
	Learner bool           // this member has no vote

	Term      state.Term
	Committed state.Index
	Applied   state.Index
}

// Options have no defaults: they come from the api's.
type Options struct {
	RequestBytesMax int
	QuotaBytes      int64 // below 0: none
	Timeout         time.Duration
	LeaderTimeout   time.Duration
	Metrics         Metrics
}

// Metrics measure what was let in.
type Metrics struct {
	Ranges         *metric.Counter
	RangeSeconds   *metric.Family[metric.Histogram] // success
	RequestSeconds *metric.Family[metric.Histogram] // type, success
}

// Gate admits requests to one member.
type Gate struct {
	// Immutable after New.
	options  Options
	backend  Backend
	requests [requests]timer
	ranges   timer

	leaderless *leaderless
}

// New returns a gate before backend.
func New(o Options, backend Backend) *Gate {
	g := &Gate{options: o, backend: backend, leaderless: newLeaderless(backend.Status, o.LeaderTimeout)}
	for r := range requests {
		g.requests[r] = newTimer(o.Metrics.RequestSeconds, r.String())
	}
	g.ranges = newTimer(o.Metrics.RangeSeconds)
	return g
}

// CommandBytes is what a command adds to its request, when nobody in particular
// asks.
const CommandBytes = 8

// EnterUnary tells whether this member may answer req at all.
func (g *Gate) EnterUnary(ctx context.Context, req any) error {
	return g.enter(ctx, learnerAnswers(req), fencedAnswers(req))
}

// Enter tells whether this member may answer a request for keys, which a
// learner may answer or not.
func (g *Gate) Enter(ctx context.Context, learner bool) error { return g.enter(ctx, learner, false) }

// enter is told who else may answer: a learner, one that is fenced.
func (g *Gate) enter(ctx context.Context, learner, fenced bool) error {
	s := g.backend.Status()
	if !fenced && g.backend.View().Corrupt(s.Member) {
		return fault.Corrupt
	}
	if s.Learner && !learner {
		return fault.LearnerUnsupported
	}
	return wantsLeader(ctx, s)
}

// EnterStream tells whether this member may answer the streaming method at all.
func (g *Gate) EnterStream(ctx context.Context, method string) error {
	s := g.backend.Status()
	if g.backend.View().Corrupt(s.Member) {
		return fault.Corrupt
	}
	if s.Learner && method != pb.Maintenance_Snapshot_FullMethodName {
		return fault.LearnerUnsupported
	}
	return wantsLeader(ctx, s)
}

// learnerAnswers: a learner may lag without knowing, so it answers only who
// says that this is all right, and who asks how it is.
func learnerAnswers(req any) bool {
	switch r := req.(type) {
	case *pb.StatusRequest:
		return true
	case *pb.RangeRequest:
		return r.Serializable
	}
	return false
}

// fencedAnswers: a member whose state is not that of the others says how it is,
// and can be told that it is well again.
func fencedAnswers(req any) bool {
	switch req.(type) {
	case *pb.StatusRequest, *pb.AlarmRequest, *pb.HashRequest, *pb.HashKVRequest, *pb.MoveLeaderRequest:
		return true
	}
	return false
}

// wantsLeader refuses a client that wants a leader where there is none.
func wantsLeader(ctx context.Context, s Status) error {
	if s.Leader == 0 && requiresLeader(ctx) {
		return fault.NoLeader
	}
	return nil
}

// Limited returns ctx with an end, for requests that wait on others than the
// Backend, which has a limit of its own.
func (g *Gate) Limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < g.options.Timeout {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, g.options.Timeout)
}

// View returns the state to read from: as it is here, or, if linear, with all
// that was committed before the call.
func (g *Gate) View(ctx context.Context, linear bool) (*state.View, error) {
	if linear {
		if err := g.backend.Barrier(ctx); err != nil {
			// A read that its client gave up is told as it is. Nothing hangs on
			// why, as it does with a write that may yet happen.
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, err
		}
	}
	return g.backend.View(), nil
}

// Range answers r from view.
func (g *Gate) Range(view *state.View, r *pb.RangeRequest) (state.Answer, error) {
	start := time.Now()
	answer, err := view.Range(r)
	g.options.Metrics.Ranges.Inc()
	g.ranges.observe(start, err)
	return answer, err
}

// Read is the least that a member which works can do.
func (g *Gate) Read(ctx context.Context, linear bool) error {
	view, err := g.View(ctx, linear)
	if err == nil {
		_, err = g.Range(view, &pb.RangeRequest{Key: []byte{0}, Limit: 1})
	}
	return err
}

// Alarms are those that are on and concern this member, as known here. That
// another one is corrupt does not: that one is fenced. Where it is not known
// who is, all are concerned.
func (g *Gate) Alarms() []*pb.AlarmMember {
	view, self := g.backend.View(), g.backend.Status().Member
	return slices.DeleteFunc(view.Alarms(pb.AlarmType_NONE), func(a *pb.AlarmMember) bool {
		id := state.MemberID(a.MemberID)
		_, member := view.Member(id)
		return a.Alarm == pb.AlarmType_CORRUPT && member && id != self
	})
}

func (g *Gate) corrupt() bool {
	return slices.ContainsFunc(g.Alarms(), func(a *pb.AlarmMember) bool { return a.Alarm == pb.AlarmType_CORRUPT })
}

// Status is what is known about agreement now.
func (g *Gate) Status() Status { return g.backend.Status() }

// Propose has the request made true: it returns what became of it, once it is
// committed and applied here. A refusal by the state is an error.
func (g *Gate) Propose(ctx context.Context, kind state.Kind, req proto.Message) (state.Outcome, error) {
	start := time.Now()
	out, err := g.propose(ctx, kind, req)
	return out, g.Conclude(kind, start, &out, err)
}

// Conclude counts a proposal that was begun at start, and makes an error of a
// refusal. out is not looked at if there is an error.
func (g *Gate) Conclude(kind state.Kind, start time.Time, out *state.Outcome, err error) error {
	if err == nil && out.Refusal != nil {
		err = out.Refusal
	}
	g.Observe(requestOf(kind), start, err)
	return err
}

func (g *Gate) propose(ctx context.Context, kind state.Kind, req proto.Message) (state.Outcome, error) {
	return g.admit(ctx, state.Command{Kind: kind, Request: req}, proto.Size(req), cost(req))
}

// ProposeNode has a change of the hierarchy made true. What the state refuses
// is a *state.HierarchyError.
func (g *Gate) ProposeNode(ctx context.Context, q *state.HierarchyRequest) (state.Outcome, error) {
	if !q.Valid() { // nor may it be counted what it would take: that fills any disk
		return state.Outcome{}, fault.Malformed
	}
	const besideTexts = 40
	start := time.Now()
	encoded := q.Append(make([]byte, 0, besideTexts+len(q.Path)+len(q.Value)+len(q.PrevValue)))
	out, err := g.admit(ctx, state.Command{Kind: state.Hierarchy, Encoded: encoded}, len(encoded), nodeCost(q))
	err = g.Conclude(state.Hierarchy, start, &out, err)
	if out.NodeError != nil {
		err = out.NodeError
	}
	return out, err
}

// admit proposes a command whose request takes so many bytes, and adds so many to
// the disk, if there is room.
func (g *Gate) admit(ctx context.Context, c state.Command, size int, adds int64) (state.Outcome, error) {
	full, err := g.room(c.Kind, adds)
	if full {
		err = g.tellFull(ctx)
	}
	if err != nil {
		return state.Outcome{}, err
	}
	command, err := g.appendCommand(make([]byte, 0, CommandBytes+size), c)
	if err != nil {
		return state.Outcome{}, err
	}
	return g.backend.Propose(ctx, command)
}

// AppendCommand appends the command of a request whose encoded form is at hand,
// for who proposes it without waiting. It returns false if that has to be left
// to Propose.
func (g *Gate) AppendCommand(dst []byte, kind state.Kind, req proto.Message, encoded []byte) (command []byte, ok bool, err error) {
	full, err := g.room(kind, cost(req))
	if full || err != nil {
		return dst, !full, err
	}
	dst, err = g.appendCommand(dst, state.Command{Kind: kind, Request: req, Encoded: encoded})
	return dst, true, err
}

func (g *Gate) appendCommand(dst []byte, c state.Command) ([]byte, error) {
	before := len(dst)
	dst, err := c.Append(dst)
	if err == nil && len(dst)-before > g.options.RequestBytesMax {
		err = fault.RequestTooLarge
	}
	return dst, err
}

// Configure has a change of the members made true, as Propose does with other
// requests. No alarm of the cluster stands in its way: it may be the way out.
func (g *Gate) Configure(ctx context.Context, kind state.Kind, req proto.Message, change Change) (state.Outcome, error) {
	start := time.Now()
	command, err := state.Command{Kind: kind, Request: req}.Append(nil)
	if err != nil {
		return state.Outcome{}, err
	}
	out, err := g.backend.Configure(ctx, command, change)
	if err == nil && out.Refusal != nil {
		err = out.Refusal
	}
	g.Observe(Other, start, err)
	return out, err
}

// putCost is what a put takes on disk beside its key and value, counted
// generously.
const putCost = 256

// leaseCost is the same of a lease.
const leaseCost = 64

// cost is what req would add to the disk at most: of a transaction, the dearer
// branch.
func cost(req any) int64 {
	switch r := req.(type) {
	case *pb.PutRequest:
		return putCost + int64(len(r.Key)+len(r.Value))
	case *pb.LeaseGrantRequest:
		return leaseCost
	case *pb.TxnRequest:
		branch := func(ops []*pb.RequestOp) (sum int64) {
			for _, op := range ops {
				switch r := op.GetRequest().(type) {
				case *pb.RequestOp_RequestPut:
					sum += cost(r.RequestPut)
				case *pb.RequestOp_RequestTxn:
					sum += cost(r.RequestTxn)
				}
			}
			return sum
		}
		return max(branch(r.Success), branch(r.Failure))
	}
	return 0
}

// nodeCost is the same of a change of the hierarchy, which may have to make all
// directories above its node. Where it removes something it costs nothing.
func nodeCost(q *state.HierarchyRequest) (sum int64) {
	switch q.Op {
	case state.NodeDelete, state.NodeCompareAndDelete, state.NodeExpire:
		return 0
	}
	for i := range len(q.Path) {
		if q.Path[i] == '/' {
			sum += putCost + int64(i)
		}
	}
	return sum + putCost + int64(len(q.Path)+len(q.Value))
}

// room refuses what the cluster's alarms forbid, and tells whether so many bytes
// would fill the disk. Reads, deletions and compaction go on, for they are the way out.
func (g *Gate) room(kind state.Kind, adds int64) (full bool, err error) {
	if kind == state.Alarm || kind == state.MemberUpdate {
		return false, nil
	}
	view := g.backend.View()
	if view.Alarmed(pb.AlarmType_CORRUPT) && g.corrupt() {
		return false, fault.Corrupt
	}
	if adds == 0 {
		return false, nil
	}
	if view.Alarmed(pb.AlarmType_NOSPACE) {
		return false, fault.NoSpace
	}
	if g.options.QuotaBytes < 0 {
		return false, nil
	}
	total, _ := g.backend.Size()
	return total+adds >= g.options.QuotaBytes, nil
}

// tellFull has the whole cluster know that the disk is full here, and refuses
// who has found out: members do not fill up at the same moment, and one that
// falls out of step would have to be rebuilt.
func (g *Gate) tellFull(ctx context.Context) error {
	_, err := g.Propose(ctx, state.Alarm, &pb.AlarmRequest{
		Action:   pb.AlarmRequest_ACTIVATE,
		MemberID: uint64(g.backend.Status().Member),
		Alarm:    pb.AlarmType_NOSPACE,
	})
	if err != nil {
		return err
	}
	return fault.NoSpace
}
