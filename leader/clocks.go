package leader

import (
	"container/heap"
	"math"
	"time"

	"github.com/kvorum/kvorum/state"
)

// clocks says when the leases of one term run out. Moments are counted from
// the beginning of the term.
//
// Each lease stands in a queue at a moment that is not after the one at which
// something has to be done about it. Renewing a lease does not move it there:
// that its moment is a later one is found out when the earlier one has come.
type clocks struct {
	every  time.Duration // what is left of a long lease is written down so often
	leases map[state.LeaseID]*clock
	queue  queue
	clear  []state.LeaseID // renewed, but what is written down says less
}

type clock struct {
	id    state.LeaseID
	ttl   time.Duration
	ends  time.Duration
	write time.Duration // when to write down what is left
	at    time.Duration // place in the queue
	place int           // index in the queue, -1 outside

	ending   bool // its end is proposed: nothing can stop it any more
	written  bool // what is left was written down, or is about to be
	clearing bool // that is about to be undone
}

const never time.Duration = math.MaxInt64

// later returns the moment that is d after now, or never.
func later(now, d time.Duration) time.Duration {
	if d > never-now {
		return never
	}
	return now + d
}

// seconds is not too long for any lease that can be granted.
func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

func newClocks(every time.Duration) *clocks {
	return &clocks{every: every, leases: map[state.LeaseID]*clock{}}
}

// know takes up a lease, with more time than it says, or what has changed
// about one that is known.
func (c *clocks) know(now time.Duration, l state.Lease, more time.Duration) {
	if k := c.leases[l.ID]; k != nil {
		k.written = l.Remaining != 0
		k.clearing = k.clearing && k.written
		return
	}
	k := &clock{id: l.ID, ttl: seconds(l.Granted), place: -1}
	left := k.ttl
	if l.Remaining != 0 {
		left, k.written = seconds(l.Remaining), true
	}
	k.ends = later(later(now, left), more)
	k.write = c.nextWrite(now, k)
	k.at = min(k.ends, k.write)
	c.leases[l.ID] = k
	heap.Push(&c.queue, k)
}

func (c *clocks) nextWrite(now time.Duration, k *clock) time.Duration {
	if k.ttl <= c.every {
		return never
	}
	return later(now, c.every)
}

func (c *clocks) forget(id state.LeaseID) {
	if k := c.leases[id]; k != nil {
		delete(c.leases, id)
		if k.place >= 0 {
			heap.Remove(&c.queue, k.place)
		}
	}
}

// renew gives a lease its whole time again, and tells whether that holds. It
// does not while its end is being agreed on, nor while a leader to come would
// read that less is left.
func (c *clocks) renew(now time.Duration, k *clock) (holds bool) {
	if k.ending {
		return false
	}
	k.ends, k.write = max(k.ends, later(now, k.ttl)), c.nextWrite(now, k)
	if k.written && !k.clearing {
		k.clearing = true
		c.clear = append(c.clear, k.id)
	}
	return !k.written
}

// due is what has to be proposed.
type due struct {
	ended   []state.LeaseID
	written []remaining
}

type remaining struct {
	id      state.LeaseID
	seconds int64 // 0: all of its time
}

func (d *due) len() int { return len(d.ended) + len(d.written) }

// take returns what has to be done by now, about at most so many leases, and
// when to ask again.
func (c *clocks) take(now time.Duration, most int) (d due, next time.Duration) {
	n := min(most, len(c.clear))
	for _, id := range c.clear[:n] {
		d.written = append(d.written, remaining{id: id})
	}
	c.clear = c.clear[n:]
	for len(c.queue) > 0 {
		k := c.queue[0]
		if k.at > now || d.len() >= most {
			return d, k.at
		}
		if k.ends <= now {
			k.ending = true
			heap.Pop(&c.queue)
			d.ended = append(d.ended, k.id)
			continue
		}
		if k.write <= now {
			k.written, k.write = true, c.nextWrite(now, k)
			// Up to a second more than is left, never less.
			left := (min(k.ends-now, k.ttl) + time.Second - 1) / time.Second
			d.written = append(d.written, remaining{k.id, int64(left)})
		}
		k.at = min(k.ends, k.write)
		heap.Fix(&c.queue, 0)
	}
	return d, never
}

// queue is a heap of clocks by the moments at which to look at them.
type queue []*clock

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *queue) Push(x any) {
	k := x.(*clock)
	k.place = len(*q)
	*q = append(*q, k)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	k := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	k.place = -1
	return k
}
