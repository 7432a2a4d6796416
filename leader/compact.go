package leader

import (
	"context"
	"errors"
	"log/slog"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// Compaction lets go of history that is older than is wished for: by time, or
// by the number of revisions. A new leader knows nothing of when revisions were
// made before its term, so after an election history is kept for longer.
type Compaction struct {
	Period    time.Duration // history kept
	Revisions int64         // history kept, where Period is 0

	View    func() *state.View
	Propose func(ctx context.Context, command state.Command) error
	Log     *slog.Logger
}

const (
	revisionsEvery = 5 * time.Minute // between compactions that count revisions
	periodEveryMax = time.Hour       // between those that count time, at most
	periodSamples  = 10              // of the revision, in that time
)

// Duty compacts until ctx ends.
func (c Compaction) Duty(ctx context.Context, term state.Term) error {
	if c.Period > 0 {
		return c.byTime(ctx, term)
	}
	return c.byRevisions(ctx, term)
}

func (c Compaction) byRevisions(ctx context.Context, term state.Term) error {
	ticker := time.NewTicker(revisionsEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		c.compact(ctx, term, c.View().Revision-state.Revision(c.Revisions))
	}
}

func (c Compaction) byTime(ctx context.Context, term state.Term) error {
	every := min(c.Period, periodEveryMax)
	sample := max(every/periodSamples, 1)
	ticker := time.NewTicker(sample)
	defer ticker.Stop()

	window := []state.Revision{c.View().Revision} // oldest first, one sample apart
	full := int(c.Period/sample) + 1
	for due := 0; ; due-- { // in samples
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		window = append(window, c.View().Revision)
		if len(window) < full {
			continue
		}
		window = window[len(window)-full:]
		if due <= 0 && c.compact(ctx, term, window[0]) {
			due = periodSamples
		}
	}
}

// compact tells whether there is nothing left to do at a revision.
func (c Compaction) compact(ctx context.Context, term state.Term, at state.Revision) bool {
	if at <= max(c.View().Compacted, 1) {
		return true
	}
	err := c.Propose(ctx, state.Command{Kind: state.Compact, Term: term, Request: &pb.CompactionRequest{Revision: int64(at)}})
	if err != nil && !errors.Is(err, fault.Compacted) {
		if ctx.Err() == nil {
			c.Log.Warn("failed auto compaction", "revision", at, "error", err)
		}
		return false
	}
	c.Log.Info("completed auto compaction", "revision", at)
	return true
}
