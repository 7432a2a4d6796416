package leader

import (
	"context"
	"time"

	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/state"
)

// Cluster is what a leader does its duties with.
type Cluster interface {
	// Propose returns once command is committed and applied here.
	Propose(ctx context.Context, command []byte) (state.Outcome, error)

	// Barrier returns once all that was committed before the call is applied
	// here. Who leads before and after it in one term has led meanwhile.
	Barrier(ctx context.Context) error

	View() *state.View
}

// decider has what a leader decides agreed on.
type decider struct {
	cluster Cluster
	time    Time
	rest    time.Duration // between two tries
}

// insist repeats what does not succeed, until the term is over.
func (d decider) insist(ctx context.Context, do func() error) error {
	for {
		err := do()
		if err == nil || ctx.Err() != nil {
			return err
		}
		d.time.Wait(ctx, d.rest, nil)
	}
}

// agree waits until a command is applied, or the term over. There is no other
// end: whether a lease was renewed in time must not hang on a proposal of
// which nothing is known.
func (d decider) agree(ctx context.Context, c state.Command) (out state.Outcome, err error) {
	if mutant.On("ends in any term") {
		c.Term = 0
	}
	command, err := c.Append(nil)
	if err != nil {
		return out, err
	}
	err = d.insist(ctx, func() (err error) {
		out, err = d.cluster.Propose(ctx, command)
		return err
	})
	if err == nil && out.Refusal != nil {
		// The term was over when it was appended. That is about to be known here.
		d.time.Wait(ctx, never, nil)
		err = ctx.Err()
	}
	return out, err
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is awake
	}
}
