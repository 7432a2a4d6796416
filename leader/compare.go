package leader

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/state"
)

// Place is a point at which all members must hold the same: an index of the
// log, or the keys up to a revision as of a compaction.
type Place struct {
	Index               state.Index // 0 if the place is of keys
	Revision, Compacted state.Revision
}

// Sums are checksums of what one member holds.
type Sums map[Place]uint64

// Comparison finds the members whose state is not that of the others, and
// raises an alarm that names them. Who that is, a majority of the voters
// decides. Where none agrees, the alarm names nobody.
type Comparison struct {
	Every   time.Duration // default 2 s
	Timeout time.Duration // of one round; default Every

	View func() *state.View

	// At returns the revision up to which keys are compared besides; 0 passes
	// a round over. Nil: checksums that members remember are enough.
	At   func() state.Revision
	Name string // of this, for the log

	// Ask returns the sums of a member. This one is asked, too.
	Ask func(ctx context.Context, id state.MemberID, at state.Revision) (Sums, error)

	Propose func(ctx context.Context, command state.Command) error

	Log *slog.Logger
}

// undecidedMax is how many rounds in a row may end without a majority while
// somebody who might decide has not answered.
const undecidedMax = 3

// Duty compares until ctx ends.
func (c Comparison) Duty(ctx context.Context, term state.Term) error {
	if c.Every == 0 {
		c.Every = 2 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = c.Every
	}
	ticker := time.NewTicker(c.Every)
	defer ticker.Stop()
	for undecided := 0; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		var at state.Revision
		if c.At != nil {
			if at = c.At(); at == 0 {
				continue
			}
		}
		wrong, split, all := c.round(ctx, at)
		if !split {
			undecided = 0
		} else if undecided++; all || undecided >= undecidedMax {
			wrong = append(wrong, 0)
		}
		for _, id := range wrong {
			c.raise(ctx, term, id)
		}
		if at != 0 {
			c.Log.Info("finished "+c.Name, "revision", at, "corrupt-members", len(wrong))
		}
	}
}

// round asks everybody once. It returns who is wrong, whether there is a
// difference that nobody can decide, and whether all have answered.
func (c Comparison) round(ctx context.Context, at state.Revision) (wrong []state.MemberID, split, all bool) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	view := c.View()
	told := map[state.MemberID]Sums{}
	var voters []state.MemberID
	var mu sync.Mutex // guards told
	var asked sync.WaitGroup
	all = true
	for _, m := range view.Members() {
		if !m.Learner {
			voters = append(voters, m.ID)
		}
		if view.Corrupt(m.ID) {
			continue
		}
		asked.Go(func() {
			sums, err := c.Ask(ctx, m.ID, at)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				c.Log.Debug("a member did not tell its checksums", "member-id", hex(m.ID), "error", err)
				all = false
				return
			}
			told[m.ID] = sums
		})
	}
	asked.Wait()
	wrong, split = Judge(voters, told)
	return wrong, split, all
}

// raise tells the cluster, unless it knows.
func (c Comparison) raise(ctx context.Context, term state.Term, id state.MemberID) {
	if c.View().Corrupt(id) {
		return
	}
	c.Log.Error("members hold different data at the same place", "corrupt-member-id", hex(id))
	err := c.Propose(ctx, state.Command{Kind: state.Alarm, Term: term, Request: &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: uint64(id), Alarm: pb.AlarmType_CORRUPT,
	}})
	if err != nil && ctx.Err() == nil {
		c.Log.Warn("could not raise the alarm", "error", err)
	}
}

// Judge compares what members have told. Wrong are those who differ from a
// majority of the voters, in the order of their ids. If nobody is, split tells
// whether there is a difference all the same.
func Judge(voters []state.MemberID, told map[state.MemberID]Sums) (wrong []state.MemberID, split bool) {
	places := map[Place]map[uint64][]state.MemberID{}
	for id, sums := range told {
		for place, sum := range sums {
			if places[place] == nil {
				places[place] = map[uint64][]state.MemberID{}
			}
			places[place][sum] = append(places[place][sum], id)
		}
	}
	for _, groups := range places {
		if len(groups) < 2 {
			continue
		}
		split = true
		for right, group := range groups {
			votes := 0
			for _, id := range group {
				if slices.Contains(voters, id) {
					votes++
				}
			}
			if votes <= len(voters)/2 {
				continue
			}
			for sum, others := range groups {
				if sum != right {
					wrong = append(wrong, others...)
				}
			}
		}
	}
	slices.Sort(wrong)
	wrong = slices.Compact(wrong)
	return wrong, split && len(wrong) == 0
}

func hex(id state.MemberID) string { return strconv.FormatUint(uint64(id), 16) }
