package replica

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/raft/v3/raftpb"
)

// waiter is somebody who waits for a result. Two may want to end the wait, a
// loop with an outcome and the caller whose context has ended: whoever moves
// the state away from waiting has the right to.
//
// Asking a context for its end costs more than most waits. So who waits looks
// only for the result, until the raft loop, a tick or two later, tells it to
// look at the context too.
type waiter[R any] struct {
	state atomic.Uint32
	done  chan struct{} // holds two: told to look up, told that result and err are there

	began   uint64 // tick
	command []byte
	change  *pb.ConfChangeV2 // the command comes with a change of the membership
	to      uint64           // leadership is to be handed to this member

	result R
	err    error
}

// A waiter waits, is answered or has left; the lowest bit says that it was told
// to look up.
const (
	waiting  uint32 = 0
	lookedUp uint32 = 1
	answered uint32 = 2
	left     uint32 = 4
)

// leave moves the state away from waiting.
func (w *waiter[R]) leave(to uint32) bool {
	return w.state.CompareAndSwap(waiting, to) || w.state.CompareAndSwap(lookedUp, to|lookedUp)
}

// answered tells whether there is an outcome.
func (w *waiter[R]) answered() bool { return w.state.Load()&^lookedUp == answered }

// gone tells whether nobody waits for an outcome any more.
func (w *waiter[R]) gone() bool { return w.state.Load() >= left }

// end gives the outcome, unless nobody waits any more.
func (w *waiter[R]) end(result R, err error) bool {
	if !w.leave(answered) {
		return false
	}
	w.result, w.err = result, err
	w.done <- struct{}{}
	return true
}

// expire ends the wait of somebody for whom there will be no outcome in time. A
// batch may still know the waiter, which is not used again.
func (w *waiter[R]) expire(err error) {
	if w.leave(left) {
		w.err = err
		w.done <- struct{}{}
	}
}

// lookUp has somebody who waits look at the context.
func (w *waiter[R]) lookUp() {
	if w.state.CompareAndSwap(waiting, lookedUp) {
		w.done <- struct{}{}
	}
}

// batch is those who wait for the commands of one entry.
type batch[R any] struct {
	name    Name
	waiters []*waiter[R]
	tick    uint64 // when it was proposed
	term    uint64 // in which it was proposed, and in no other can it be appended
	hidden  bool   // it may be in a snapshot that was restored since
}

// pending holds the batches that may still commit. In the term in which it was
// proposed, a batch that was lost on its way is indistinguishable from one that
// is late, so it stays until nobody waits for it.
type pending[R any] struct {
	origin, incarnation uint64

	commands atomic.Int64 // proposed or about to be, and not yet answered
	bytes    atomic.Int64

	mu struct {
		sync.Mutex
		batches map[uint64]*batch[R] // by number
	}
	free sync.Pool
}

func newPending[R any](origin, incarnation uint64) *pending[R] {
	p := &pending[R]{origin: origin, incarnation: incarnation}
	p.mu.batches = map[uint64]*batch[R]{}
	return p
}

func (p *pending[R]) newBatch() *batch[R] {
	if b, ok := p.free.Get().(*batch[R]); ok {
		return b
	}
	return &batch[R]{}
}

func (p *pending[R]) add(b *batch[R]) {
	p.mu.Lock()
	p.mu.batches[b.name.Number] = b
	p.mu.Unlock()
}

// take removes and returns the batch of that name, nil if nobody here waits.
func (p *pending[R]) take(name Name) *batch[R] {
	if name.Origin != p.origin || name.Incarnation != p.incarnation {
		return nil
	}
	p.mu.Lock()
	b := p.mu.batches[name.Number]
	delete(p.mu.batches, name.Number)
	p.mu.Unlock()
	return b
}

// passed removes and returns the batches of earlier terms, oldest first.
func (p *pending[R]) passed(term uint64) []*batch[R] {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*batch[R]
	for number, b := range p.mu.batches {
		if b.term < term {
			delete(p.mu.batches, number)
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b *batch[R]) int { return cmp.Compare(a.name.Number, b.name.Number) })
	return all
}

// hide tells that entries up to some of a term were skipped here.
func (p *pending[R]) hide(term uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.mu.batches {
		b.hidden = b.hidden || b.term <= term
	}
}

// sweep looks at everybody who waits, and forgets the batches proposed before a
// tick that everybody has left.
func (p *pending[R]) sweep(before uint64, look func(*waiter[R])) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for number, b := range p.mu.batches {
		abandoned := b.tick < before
		for _, w := range b.waiters {
			look(w)
			abandoned = abandoned && w.gone()
		}
		if abandoned {
			delete(p.mu.batches, number)
			p.account(b.waiters)
			p.recycle(b)
		}
	}
}

// failAll ends every wait.
func (p *pending[R]) failAll(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for number, b := range p.mu.batches {
		delete(p.mu.batches, number)
		b.fail(p, err)
	}
}

// finish gives each waiter its result.
func (b *batch[R]) finish(p *pending[R], results []R) {
	must(len(results) == len(b.waiters), "A1: one result for each command")
	p.account(b.waiters)
	for i, w := range b.waiters {
		w.end(results[i], nil)
	}
	p.recycle(b)
}

func (b *batch[R]) fail(p *pending[R], err error) {
	p.account(b.waiters)
	for _, w := range b.waiters {
		var none R
		w.end(none, err)
	}
	p.recycle(b)
}

// account takes waiters out of what is pending. It comes before the end of
// their wait: then they belong to somebody else.
func (p *pending[R]) account(waiters []*waiter[R]) {
	size := 0
	for _, w := range waiters {
		size += len(w.command)
	}
	p.bytes.Add(-int64(size))
	p.commands.Add(-int64(len(waiters)))
}

func (p *pending[R]) recycle(b *batch[R]) {
	clear(b.waiters)
	*b = batch[R]{waiters: b.waiters[:0]}
	p.free.Put(b)
}
