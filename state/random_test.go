package state_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// chance makes requests that are likely to meet.
type chance struct{ *rand.Rand }

func (r chance) key() []byte {
	if r.IntN(2) == 0 {
		return r.nodeKey()
	}
	return []byte(fmt.Sprintf("%c%d", "abc"[r.IntN(3)], r.IntN(6)))
}

func (r chance) end() []byte {
	switch r.IntN(6) {
	case 0, 1:
		return nil
	case 2:
		return []byte{0}
	}
	return r.key()
}

func (r chance) put() *pb.PutRequest {
	q := &pb.PutRequest{Key: r.key(), PrevKv: r.IntN(4) == 0}
	if r.IntN(10) > 0 {
		q.Value = []byte(fmt.Sprint("v", r.IntN(10)))
	}
	switch r.IntN(20) {
	case 0, 1:
		q.IgnoreValue = true
		if r.IntN(4) > 0 {
			q.Value = nil
		}
	case 2:
		q.IgnoreLease = true
	case 3, 4, 5, 6:
		q.Lease = r.lease()
	case 7:
		q.Key = nil
	}
	return q
}

// lease is an id of which some exist.
func (r chance) lease() int64 { return []int64{-1 << 63, -5, 1, 2, 3, 1<<63 - 1}[r.IntN(6)] }

func (r chance) leaseCommand() state.Command {
	id := r.lease()
	switch n := r.IntN(20); {
	case n < 11:
		return state.Command{Kind: state.LeaseGrant, Request: &pb.LeaseGrantRequest{
			ID: id * int64(min(1, r.IntN(20))), TTL: []int64{-1, 0, 1, 60, 9e9, 9e9 + 1}[r.IntN(6)],
		}}
	case n < 14:
		return state.Command{Kind: state.LeaseRevoke, Request: &pb.LeaseRevokeRequest{ID: id}}
	case n < 17:
		return state.Command{Kind: state.LeaseExpire, Request: &pb.LeaseLeasesResponse{
			Leases: []*pb.LeaseStatus{{ID: id}, {ID: r.lease()}, {ID: r.lease()}},
		}}
	}
	return state.Command{Kind: state.LeaseCheckpoint, Request: &pb.LeaseCheckpointRequest{
		Checkpoints: []*pb.LeaseCheckpoint{{ID: id, Remaining_TTL: r.Int64N(100) - 1}, {ID: r.lease()}},
	}}
}

func (r chance) delete() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: r.key(), RangeEnd: r.end(), PrevKv: r.IntN(3) == 0}
}

func (r chance) read(revision int64) *pb.RangeRequest {
	q := &pb.RangeRequest{Key: r.key(), RangeEnd: r.end()}
	if r.IntN(8) == 0 {
		q.Key, q.RangeEnd = []byte{0}, []byte{0}
	}
	if r.IntN(2) == 0 {
		q.Limit = r.Int64N(6) - 1
	}
	if r.IntN(2) == 0 {
		q.Revision = max(-1, revision+2-r.Int64N(40))
	}
	if r.IntN(3) == 0 {
		q.SortOrder = pb.RangeRequest_SortOrder(r.IntN(3))
		q.SortTarget = pb.RangeRequest_SortTarget(r.IntN(5))
	}
	q.KeysOnly = r.IntN(4) == 0
	q.CountOnly = r.IntN(8) == 0
	bound := func(p *int64) {
		if r.IntN(12) == 0 {
			*p = max(0, revision-r.Int64N(20))
		}
	}
	bound(&q.MinModRevision)
	bound(&q.MaxModRevision)
	bound(&q.MinCreateRevision)
	bound(&q.MaxCreateRevision)
	return q
}

func (r chance) compare(revision int64) *pb.Compare {
	c := &pb.Compare{
		Key:    r.key(),
		Result: pb.Compare_CompareResult(r.IntN(4)),
		Target: pb.Compare_CompareTarget(r.IntN(5)),
	}
	if r.IntN(3) == 0 {
		c.RangeEnd = r.end()
	}
	near := max(0, revision-r.Int64N(10))
	switch c.Target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: r.Int64N(4)}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: near}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: near}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: []byte(fmt.Sprint("v", r.IntN(10)))}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: r.lease() * r.Int64N(2)}
	}
	return c
}

func (r chance) txn(revision int64, depth int) *pb.TxnRequest {
	q := new(pb.TxnRequest)
	for range r.IntN(3) {
		q.Compare = append(q.Compare, r.compare(revision))
	}
	ops := func() (ops []*pb.RequestOp) {
		for range r.IntN(4) {
			op := new(pb.RequestOp)
			switch n := r.IntN(10); {
			case n < 3:
				op.Request = &pb.RequestOp_RequestPut{RequestPut: r.put()}
			case n < 5:
				op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r.delete()}
			case n < 9 || depth == 0:
				op.Request = &pb.RequestOp_RequestRange{RequestRange: r.read(revision)}
			default:
				op.Request = &pb.RequestOp_RequestTxn{RequestTxn: r.txn(revision, depth-1)}
			}
			ops = append(ops, op)
		}
		return ops
	}
	q.Success, q.Failure = ops(), ops()
	return q
}

func (r chance) command(revision, compacted int64) state.Command {
	switch n := r.IntN(100); {
	case n < 20:
		return r.nodeCommand(revision)
	case n < 40:
		return state.Command{Kind: state.Put, Request: r.put()}
	case n < 50:
		return r.leaseCommand()
	case n < 60:
		return state.Command{Kind: state.DeleteRange, Request: r.delete()}
	case n < 95:
		return state.Command{Kind: state.Txn, Request: r.txn(revision, 2)}
	}
	return state.Command{Kind: state.Compact, Request: &pb.CompactionRequest{
		Revision: compacted + r.Int64N(max(1, revision-compacted+2)),
	}}
}

// bed is a machine that can be hurt.
type bed struct {
	*state.Machine
	options state.Options
	fs      *vfs.MemFS // nil for a machine in memory
	applied state.Index
}

func newBed(t testing.TB, disk bool) *bed {
	b := &bed{options: state.Options{ValueCacheBytes: 400, Dir: "data", MemtableBytes: 1 << 20}}
	if disk {
		b.fs = vfs.NewCrashableMem()
		b.options.FS = b.fs
	} else {
		b.options.Memory = state.NewMemory()
	}
	b.open(t)
	err := b.Bootstrap(state.Genesis{
		Cluster: 1, Index: 1, Term: 1, Configuration: []byte("one"),
		Members: []state.Member{{ID: 1, PeerURLs: []string{"http://a"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.applied = 1
	return b
}

func (b *bed) open(t testing.TB) {
	t.Helper()
	m, err := state.Open(b.options)
	if err != nil {
		t.Fatal(err)
	}
	b.Machine = m
}

// crash loses some of what is not flushed, and opens what is left.
func (b *bed) crash(t testing.TB, kept int) {
	t.Helper()
	if b.fs != nil {
		b.fs = b.fs.CrashClone(vfs.CrashCloneCfg{})
		b.options.FS = b.fs
	} else {
		b.options.Memory = b.options.Memory.Crash(kept)
	}
	b.Close()
	b.open(t)
}

func encode(t testing.TB, c state.Command) []byte {
	t.Helper()
	encoded, err := c.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

func (b *bed) apply(t testing.TB, commands ...state.Command) []state.Outcome {
	t.Helper()
	e := state.Entry{Index: b.applied + 1, Term: 1, Wanted: true}
	for _, c := range commands {
		e.Commands = append(e.Commands, encode(t, c))
	}
	outcomes, err := b.Apply([]state.Entry{e})
	if err != nil {
		t.Fatal(err)
	}
	b.applied++
	return outcomes
}

// diff is empty for equal messages.
func diff(want, got proto.Message) string {
	if proto.Equal(want, got) {
		return ""
	}
	return cmp.Diff(want, got, protocmp.Transform())
}

// TestRandomCommands wants of the machine what the model says, whatever is
// swept, dropped from memory, restarted or restored meanwhile.
func TestRandomCommands(t *testing.T) {
	runs := 60
	if testing.Short() {
		runs = 5
	}
	for run := range runs {
		seed := rand.Uint64()
		r := chance{rand.New(rand.NewPCG(seed, 0))}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			b := newBed(t, run%6 == 0)
			defer func() { b.Close() }()
			m := newModel()
			for range 250 {
				var commands []state.Command
				var want []proto.Message
				var refusals []*fault.Fault
				var changes []*state.NodeChange
				var nodeErrors []*state.HierarchyError
				events := len(m.events)
				for range r.IntN(4) {
					c := r.command(m.revision(), m.compacted)
					commands = append(commands, c)
					answer, refusal := m.apply(c)
					want, refusals = append(want, answer), append(refusals, refusal)
					changes, nodeErrors = append(changes, m.change), append(nodeErrors, m.nodeError)
				}
				for i, o := range b.apply(t, commands...) {
					if o.Refusal != refusals[i] {
						t.Fatalf("%v: refusal %v, want %v", commands[i], o.Refusal, refusals[i])
					}
					if d := cmp.Diff(nodeErrors[i], o.NodeError); d != "" {
						t.Fatalf("%v: %s", commands[i], d)
					}
					if o.Refusal != nil {
						continue
					}
					if d := cmp.Diff(changes[i], o.Change); d != "" {
						t.Fatalf("%v: %s", commands[i], d)
					}
					if d := diff(want[i], o.Response); d != "" {
						t.Fatalf("%v: %s", commands[i], d)
					}
					for _, e := range o.Events {
						wantEvent(t, m.events[events], e)
						events++
					}
				}
				if events != len(m.events) {
					t.Fatalf("%d events, want %d", events, len(m.events))
				}
				for range 4 {
					compareReads(t, b.View(), m, r)
				}
				compareHistory(t, b.View(), m, r)
				compareLeases(t, b.View(), m)

				switch r.IntN(20) {
				case 0, 1, 2, 3:
					if _, err := b.Sweep(1 + r.IntN(8)); err != nil {
						t.Fatal(err)
					}
				case 4:
					if err := b.Flush(); err != nil {
						t.Fatal(err)
					}
					b.crash(t, 0)
				case 5:
					restoreElsewhere(t, b)
				}
				compareLeases(t, b.View(), m)
				compareNodes(t, b.View(), m, r)
			}
		})
	}
}

func compareReads(t *testing.T, v *state.View, m *model, r chance) {
	t.Helper()
	q := r.read(m.revision())
	want, refusal := m.read(q)
	got, err := v.Range(q)
	if fault.Of(err) != refusal || err != nil && refusal == nil {
		t.Fatalf("%v: %v, want %v", q, err, refusal)
	}
	if err != nil {
		return
	}
	if d := diff(want, state.Decode(got)); d != "" {
		t.Fatalf("%v (compacted %d): %s", q, m.compacted, d)
	}
	var wire pb.RangeResponse
	if err := proto.Unmarshal(state.AppendAnswer(nil, got), &wire); err != nil {
		t.Fatal(err)
	}
	if d := diff(want, &wire); d != "" {
		t.Fatalf("%v on the wire: %s", q, d)
	}
}

func compareLeases(t *testing.T, v *state.View, m *model) {
	t.Helper()
	n, last := 0, int64(-1<<63)
	for l := range v.Leases() {
		if n++; l != m.leases[int64(l.ID)] || int64(l.ID) < last {
			t.Fatalf("lease %v, want %v", l, m.leases[int64(l.ID)])
		}
		last = int64(l.ID)
		if want, got := m.onLease(int64(l.ID)), slices.Collect(v.LeaseKeys(l.ID)); !slices.Equal(want, got) {
			t.Fatalf("keys of lease %d: %q, want %q", l.ID, got, want)
		}
	}
	if n != len(m.leases) {
		t.Fatalf("%d leases, want %v", n, m.leases)
	}
}

func compareHistory(t *testing.T, v *state.View, m *model, r chance) {
	t.Helper()
	from := max(m.compacted, 1) + r.Int64N(max(1, m.revision()-m.compacted))
	var want []change
	for _, e := range m.events {
		if e.revision >= from {
			want = append(want, e)
		}
	}
	for e, err := range v.History(state.Span{Key: []byte{0}, End: []byte{0}}, state.Revision(from), v.Revision) {
		if err != nil {
			t.Fatal(err)
		}
		if len(want) == 0 {
			t.Fatalf("event %v too many", e)
		}
		wantEvent(t, want[0], e)
		previous, err := v.Previous(e)
		if err != nil {
			t.Fatal(err)
		}
		wantPrevious(t, m, e, previous)
		want = want[1:]
	}
	if len(want) > 0 {
		t.Fatalf("history from %d of %d, compacted %d, lacks %v", from, m.revision(), m.compacted, want)
	}
}

// wantPrevious expects what a key held before an event, unless that is
// compacted or the event's revision changed the key twice.
func wantPrevious(t *testing.T, m *model, e state.Event, previous []byte) {
	t.Helper()
	before := m.at[e.Revision-1][string(e.Key)]
	if e.Before.Main == e.Revision {
		return
	}
	if int64(e.Revision) <= m.compacted || before == nil {
		if previous != nil {
			t.Fatalf("event %v, compacted %d: previous pair %x", e, m.compacted, previous)
		}
		return
	}
	got := state.Decode(state.Answer{Pairs: [][]byte{previous}}).Kvs[0]
	if d := diff(before, got); d != "" {
		t.Fatalf("event %v: previous pair %s", e, d)
	}
}

func wantEvent(t *testing.T, want change, got state.Event) {
	t.Helper()
	pair := state.Decode(state.Answer{Pairs: [][]byte{got.Pair}}).Kvs[0]
	if d := diff(want.pair, pair); d != "" || int64(got.Revision) != want.revision || got.Deleted != want.deleted || string(got.Key) != string(want.pair.Key) {
		t.Fatalf("event %v, want %v: %s", got, want, d)
	}
}

// restoreElsewhere moves the bed to another machine by way of a snapshot.
func restoreElsewhere(t *testing.T, b *bed) {
	t.Helper()
	other := *b
	if b.fs != nil {
		other.fs = vfs.NewCrashableMem()
		other.options.FS = other.fs
	} else {
		other.options.Memory = state.NewMemory()
	}
	other.open(t)
	restore(t, other.Machine, snapshot(t, b.Machine))
	if a, b := hashes(t, b.Machine), hashes(t, other.Machine); a != b {
		t.Fatalf("restored %s, want %s", b, a)
	}
	b.Close()
	*b = other
}
