package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// cluster is a machine that knows the members of a cluster, and what each of
// them says of itself.
type cluster struct {
	t       *testing.T
	machine *state.Machine
	term    state.Term // in which entries are applied
	sums    map[state.MemberID]Sums
}

// newCluster returns a cluster with so many voters, and a learner.
func newCluster(t *testing.T, voters int) *cluster {
	machine, err := state.Open(state.Options{Memory: state.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { machine.Close() })
	c := &cluster{t: t, machine: machine, term: 5, sums: map[state.MemberID]Sums{}}
	g := state.Genesis{Cluster: 1, Index: 1, Term: 1}
	for id := state.MemberID(1); id <= state.MemberID(voters+1); id++ {
		g.Members = append(g.Members, state.Member{ID: id, PeerURLs: []string{fmt.Sprint("http://", id)}, Learner: int(id) > voters})
		c.say(id, 7)
	}
	if err := machine.Bootstrap(g); err != nil {
		t.Fatal(err)
	}
	return c
}

// say has a member tell a checksum of one index, and others that it alone has.
func (c *cluster) say(id state.MemberID, sum uint64) {
	c.sums[id] = Sums{{Index: 100}: sum, {Index: state.Index(1000 + id)}: uint64(id)}
}

func (c *cluster) ask(ctx context.Context, id state.MemberID, _ state.Revision) (Sums, error) {
	sums, ok := c.sums[id]
	if !ok {
		<-ctx.Done() // it hangs
		return nil, ctx.Err()
	}
	return sums, nil
}

func (c *cluster) propose(_ context.Context, command state.Command) error {
	encoded, err := command.Append(nil)
	if err != nil {
		return err
	}
	applied, _ := c.machine.Applied()
	out, err := c.machine.Apply([]state.Entry{{Index: applied + 1, Term: c.term, Commands: [][]byte{encoded}}})
	if err != nil {
		return err
	}
	if out[0].Refusal != nil {
		return out[0].Refusal
	}
	return nil
}

func (c *cluster) want(ids ...uint64) {
	c.t.Helper()
	var got []uint64
	for _, a := range c.machine.View().Alarms(pb.AlarmType_CORRUPT) {
		got = append(got, a.MemberID)
	}
	if !slices.Equal(got, ids) {
		c.t.Errorf("alarms name %v, want %v", got, ids)
	}
}

// compare lets a leader of term 5 compare for so many rounds.
func (c *cluster) compare(rounds int) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Duration(rounds)*2*time.Second+time.Second)
	defer cancel()
	err := Comparison{
		View: c.machine.View, Ask: c.ask, Propose: c.propose, Log: slog.New(slog.DiscardHandler),
	}.Duty(ctx, 5)
	if !errors.Is(err, context.DeadlineExceeded) {
		c.t.Error(err)
	}
}

func TestTheMemberThatDiffersIsNamed(t *testing.T) {
	for _, test := range []struct {
		what   string
		voters int
		say    func(c *cluster)
		rounds int
		want   []uint64
	}{
		{"all agree", 3, func(*cluster) {}, 9, nil},
		{"one of three", 3, func(c *cluster) { c.say(2, 8) }, 1, []uint64{2}},
		{"the leader itself", 3, func(c *cluster) { c.say(1, 8) }, 1, []uint64{1}},
		{"a learner", 3, func(c *cluster) { c.say(4, 8) }, 1, []uint64{4}},
		{"two of five, each its own way", 5, func(c *cluster) { c.say(2, 8); c.say(5, 9) }, 1, []uint64{2, 5}},
		{"one of three, and one is silent", 3, func(c *cluster) { c.say(2, 8); delete(c.sums, 3) }, 2, nil},
		{"and stays silent", 3, func(c *cluster) { c.say(2, 8); delete(c.sums, 3) }, 3, []uint64{0}},
		{"one of five, and one is silent", 5, func(c *cluster) { c.say(2, 8); delete(c.sums, 3) }, 1, []uint64{2}},
		{"one of two", 2, func(c *cluster) { c.say(2, 8) }, 1, []uint64{0}},
		{"a learner decides nothing", 2, func(c *cluster) { c.say(1, 8) }, 1, []uint64{0}},
		{"they share no place", 3, func(c *cluster) { c.sums[2] = Sums{{Index: 99}: 8} }, 9, nil},
		{"who waits for a snapshot", 3, func(c *cluster) { c.sums[2] = Sums{} }, 9, nil},
		{"keys of different compactions", 3, func(c *cluster) {
			for id := range c.sums {
				c.sums[id] = Sums{{Revision: 9, Compacted: state.Revision(id)}: uint64(id)}
			}
		}, 9, nil},
		{"keys of one compaction", 3, func(c *cluster) {
			for id := range c.sums {
				c.sums[id] = Sums{{Revision: 9, Compacted: 4}: 7}
			}
			c.sums[3][Place{Revision: 9, Compacted: 4}]++
		}, 1, []uint64{3}},
		{"in a term that is over", 3, func(c *cluster) { c.say(2, 8); c.term = 6 }, 9, nil},
	} {
		t.Run(test.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, test.voters)
				test.say(c)
				c.compare(test.rounds)
				c.want(test.want...)
			})
		})
	}
}

// TestAnAlarmIsRaisedOnce: who is known to be corrupt is not asked, and decides
// nothing; once the alarm is ended it is.
func TestAnAlarmIsRaisedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.say(3, 8)
		c.compare(9)
		c.want(3)
		if applied, _ := c.machine.Applied(); applied != 2 {
			t.Errorf("%d entries, want 1", applied-1)
		}
		end := state.Command{Kind: state.Alarm, Request: &pb.AlarmRequest{
			Action: pb.AlarmRequest_DEACTIVATE, MemberID: 3, Alarm: pb.AlarmType_CORRUPT,
		}}
		if err := c.propose(t.Context(), end); err != nil {
			t.Fatal(err)
		}
		c.want()
		c.compare(1)
		c.want(3)

		// The alarm goes with the member.
		if err := c.propose(t.Context(), state.Command{Kind: state.MemberRemove, Request: &pb.MemberRemoveRequest{ID: 3}}); err != nil {
			t.Fatal(err)
		}
		c.want()
		c.compare(1)
		c.want()
	})
}

// TestWhoIsKnownIsPassedOver: an alarm that names nobody is raised once, too, and
// nobody waits for one that is known to be corrupt.
func TestWhoIsKnownIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.say(3, 8)
		c.compare(1)
		c.want(3)
		delete(c.sums, 3) // it would not answer
		c.say(2, 9)
		c.compare(1)
		c.want(0, 3)
		c.compare(9)
		if applied, _ := c.machine.Applied(); applied != 3 {
			t.Errorf("%d entries, want 2", applied-1)
		}
	})
}

func TestAFailureToRaiseIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.say(3, 8)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		tries := 0
		_ = Comparison{
			View: c.machine.View, Ask: c.ask, Log: slog.New(slog.DiscardHandler),
			Propose: func(ctx context.Context, command state.Command) error {
				if tries++; tries < 3 {
					return fault.NoLeader
				}
				return c.propose(ctx, command)
			},
		}.Duty(ctx, 5)
		c.want(3)
	})
}
