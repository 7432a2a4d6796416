package replica

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// bereaved returns the disk of member 1, to which member 2 sent entries before
// it was lost: the first of them is known to be committed. A positive entry
// adds its number, a negative one removes the member of that number.
func bereaved(t *testing.T, machine *sum, entries ...int) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewMem()
	r, stop := start(t, machine, fs, "log", nil)
	app := &pb.Message{
		Type: pb.MsgApp.Enum(), From: proto.Uint64(2), To: proto.Uint64(1), Term: proto.Uint64(5),
		Index: proto.Uint64(1), LogTerm: proto.Uint64(1), Commit: proto.Uint64(2),
	}
	for i, n := range entries {
		e := &pb.Entry{Index: proto.Uint64(uint64(i + 2)), Term: proto.Uint64(5), Type: pb.EntryNormal.Enum()}
		frame := appendFrame(nil, Name{2, 1, uint64(i)}, 1)
		if n > 0 {
			e.Data = appendCommand(frame, number(uint64(n)))
		} else {
			change := &pb.ConfChangeV2{Context: appendCommand(frame, number(0)), Changes: []*pb.ConfChangeSingle{
				{Type: pb.ConfChangeRemoveNode.Enum(), NodeId: proto.Uint64(uint64(-n))},
			}}
			var err error
			if e.Data, err = proto.Marshal(change); err != nil {
				t.Fatal(err)
			}
			e.Type = pb.EntryConfChangeV2.Enum()
		}
		app.Entries = append(app.Entries, e)
	}
	r.Step(app)
	synctest.Wait()
	if machine.now.applied != 2 {
		t.Fatalf("applied up to %d", machine.now.applied)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return fs
}

func alone(o *Options[uint64]) { o.Alone = func(MemberChange) []byte { return number(0) } }

func TestTheLastMemberGoesOnWithAllItHas(t *testing.T) {
	for _, tt := range []struct {
		story   string
		members *pb.ConfState
		entries []int
		total   uint64
	}{
		{"a voter", &pb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{4}}, []int{1, 2, 3}, 6},
		{"a learner", &pb.ConfState{Voters: []uint64{2, 3}, Learners: []uint64{1, 4}}, []int{1, 2, 3}, 6},
		{"others were leaving", &pb.ConfState{Voters: []uint64{1, 2, 3}}, []int{1, -3, 3}, 4},
		{"it was leaving itself", &pb.ConfState{Voters: []uint64{1, 2, 3}}, []int{1, 2, -1, 4}, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			machine := newSum()
			machine.now.members = encodeMembers(tt.members)
			machine.durable = machine.now
			fs := bereaved(t, machine, tt.entries...)
			for range 2 { // the second time there is nobody to drop
				r, stop := start(t, machine, fs, "log", alone)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				got, err := r.Propose(ctx, number(10))
				cancel()
				tt.total += 10
				if err != nil || got != tt.total {
					t.Fatalf("%s: total %d, %v, want %d", tt.story, got, err, tt.total)
				}
				s := r.Status()
				if !slices.Equal(s.Voters, []uint64{1}) || len(s.Learners)+len(s.Outgoing) > 0 || s.Term <= 5 {
					t.Fatalf("%s: %+v", tt.story, s)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestARemovedMemberDoesNotGoOnAlone(t *testing.T) {
	for _, members := range [][]uint64{{1, 2, 3}, {2, 3}} {
		synctest.Test(t, func(t *testing.T) {
			machine := newSum(members...)
			fs := bereaved(t, machine, -1)
			machine.now = newSum(members...).now // not flushed: the removal is applied anew
			machine.durable = machine.now
			o := Options[uint64]{ID: 1}
			o.Log.WAL.FS, o.Log.WAL.Dir = fs, "log"
			alone(&o)
			if _, err := Open(machine, o); !errors.Is(err, errNoMember) {
				t.Errorf("one of %v whose removal is committed: %v", members, err)
			}
		})
	}
}

// However far it came, dropping the others can be begun again.
func TestDroppingTheOthersMayBeInterrupted(t *testing.T) {
	fails := errors.New("the disk fails")
	for n := int64(1); ; n++ {
		interrupted := false
		synctest.Test(t, func(t *testing.T) {
			machine := newSum(1, 2, 3)
			fs := bereaved(t, machine, 1, 2, 3)
			var left atomic.Int64
			left.Store(n)
			failing := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && left.Add(-1) <= 0 {
					return fails
				}
				return nil
			}))
			o := Options[uint64]{ID: 1}
			o.Log.WAL.FS, o.Log.WAL.Dir = failing, "log"
			alone(&o)
			r, err := Open(machine, o)
			if err == nil {
				left.Store(1 << 30)
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if err := r.Run(ctx); err != nil {
					t.Fatal(err)
				}
				return
			}
			interrupted = true
			if !errors.Is(err, fails) {
				t.Fatalf("failing at write %d: %v", n, err)
			}
			r, stop := start(t, machine, fs, "log", alone)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if got, err := r.Propose(ctx, number(10)); err != nil || got != 16 {
				t.Fatalf("after failing at write %d: total %d, %v", n, got, err)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
		if !interrupted {
			if n < 5 {
				t.Fatalf("only writes up to %d were interrupted", n)
			}
			return
		}
	}
}
