package leader

import (
	"context"
	"time"

	"github.com/kvorum/kvorum/state"
)

// DeadlineOptions work when empty.
type DeadlineOptions struct {
	Rest  time.Duration // between two proposals that are not full; default 100 ms
	Batch int           // nodes that go in one command, which holds up others; default 500
	Time  Time          // default the machine's
}

func (o DeadlineOptions) withDefaults() DeadlineOptions {
	if o.Rest == 0 {
		o.Rest = 100 * time.Millisecond
	}
	if o.Batch == 0 {
		o.Batch = 500
	}
	if o.Time == nil {
		o.Time = machineTime{}
	}
	return o
}

// lookEvery is how long to wait at most for a deadline to come: the time of day
// may be set meanwhile.
const lookEvery = 500 * time.Millisecond

// Deadlines is the duty to remove nodes whose deadline is past. Unlike a lease,
// a deadline is a time of day, which the state knows: whoever leads goes by its
// own clock, and has nothing to begin anew. The command names the deadline
// that was seen, and does nothing if the node has another one by then.
type Deadlines struct {
	// Immutable after NewDeadlines.
	o       DeadlineOptions
	decider decider
	poke    chan struct{} // holds one: there are other deadlines
}

// NewDeadlines returns what Serve has to be called of.
func NewDeadlines(o DeadlineOptions, cluster Cluster) *Deadlines {
	o = o.withDefaults()
	return &Deadlines{o: o, decider: decider{cluster, o.Time, o.Rest}, poke: make(chan struct{}, 1)}
}

// Observe hears of each apply, and what the state was before. It does not wait.
func (d *Deadlines) Observe(before, now *state.View) {
	if !now.SameDeadlines(before) {
		poke(d.poke)
	}
}

// Serve is the duty. It does nothing while nothing is to be written.
func (d *Deadlines) Serve(ctx context.Context, term state.Term) error {
	for ctx.Err() == nil {
		view := d.decider.cluster.View()
		if view.Frozen() {
			d.o.Time.Wait(ctx, d.o.Rest, nil)
			continue
		}
		due, wait := d.take(view)
		if len(due) == 0 {
			d.o.Time.Wait(ctx, wait, d.poke)
			continue
		}
		q := state.HierarchyRequest{Op: state.NodeExpire, Due: due}
		if _, err := d.decider.agree(ctx, state.Command{Kind: state.Hierarchy, Term: term, Encoded: q.Append(nil)}); err != nil {
			return err
		}
		if len(due) < d.o.Batch {
			d.o.Time.Wait(ctx, d.o.Rest, nil) // those that end meanwhile end together
		}
	}
	return ctx.Err()
}

// dueBytesMax bounds the command that removes nodes, whatever they are called.
const dueBytesMax = 256 << 10

// take returns the deadlines that are past, the earliest first, and how long to
// wait if there are none.
func (d *Deadlines) take(view *state.View) (due []state.Deadline, wait time.Duration) {
	now := d.o.Time.Now().UnixNano()
	wait = never
	size := 0
	for one := range view.Deadlines() {
		if one.At > now {
			return due, min(time.Duration(one.At-now), lookEvery)
		}
		due = append(due, one)
		if size += len(one.Key); len(due) == d.o.Batch || size > dueBytesMax {
			break
		}
	}
	return due, wait
}
