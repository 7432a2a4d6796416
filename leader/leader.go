// Package leader holds what only a leader does: expiry of leases and of nodes
// with a deadline, automatic compaction, promotion of learners, comparison of
// checksums. It is the only room with lease clocks, and all it can do is propose commands that carry
// the term it was elected in.
//
//	Office     knows whether this member leads
//	Duty       is done while it does
//	Leases     the clocks of leases, and the duty to end them
//	Deadlines  the duty to remove nodes whose time is past
package leader

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kvorum/kvorum/state"
)

// Duty is one of the things that a leader does besides leading. Its context
// ends with the term; what it proposes carries that term, for it may be over
// before the proposal arrives. What it returns before is a failure of the
// member.
type Duty func(ctx context.Context, term state.Term) error

// Office knows whether this member leads. It works when empty: nobody does.
type Office struct {
	mu struct {
		sync.Mutex
		term    state.Term // 0: this member does not lead
		changed chan struct{}
	}
}

// Hold says in which term this member leads, 0 for none. It never waits.
func (o *Office) Hold(term state.Term) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if term == o.mu.term {
		return
	}
	o.mu.term = term
	if o.mu.changed != nil {
		close(o.mu.changed)
		o.mu.changed = nil
	}
}

// held returns the term in which this member leads, and a channel that is
// closed once that is no longer so.
func (o *Office) held() (state.Term, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.changed == nil {
		o.mu.changed = make(chan struct{})
	}
	return o.mu.term, o.mu.changed
}

// Run has the duties done in each term in which this member leads. It returns
// nil when ctx ends, or the error of a duty, when all of them have ended.
func (o *Office) Run(ctx context.Context, duties ...Duty) error {
	for ctx.Err() == nil {
		term, changed := o.held()
		if term == 0 {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		if err := serve(ctx, term, changed, duties); err != nil {
			return err
		}
	}
	return nil
}

// serve does the duties of one term.
func serve(ctx context.Context, term state.Term, over <-chan struct{}, duties []Duty) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, duty := range duties {
		g.Go(func() error {
			if err := duty(ctx, term); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	select {
	case <-ctx.Done():
	case <-over:
	}
	cancel()
	return g.Wait()
}
