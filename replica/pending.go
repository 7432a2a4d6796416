package replica

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/metric"
)

// Party is those who wait for something together. It is told from one goroutine
// at a time, and must not wait then, nor ask the replica for anything.
type Party[R any] interface {
	// Context is that of the i-th. When it has ended, the i-th waits for two
	// ticks at most.
	Context(i int) context.Context

	// Leave tells why the i-th waits no more. It is told nothing else.
	Leave(i int, err error)

	// End tells all others what they have waited for: of proposals the results,
	// each in its command's place, or why there are none. It comes last, but
	// not where all have left.
	End(results []R, err error)
}

// waiter is a party that waits. An outcome, the end of a context and the end of
// the time that anybody may wait can come at once: the first to come counts.
type waiter[R any] struct {
	// Immutable.
	party    Party[R]
	size     int              // how many they are
	began    uint64           // tick
	commands [][]byte         // of proposals: one for each who waits
	bytes    int              // of them
	change   *pb.ConfChangeV2 // the command comes with a change of the membership
	to       uint64           // leadership is to be handed to this member
	late     *metric.Counter  // of those whom no outcome reaches
	reads    *atomic.Int64    // they count here while they wait

	mu struct {
		sync.Mutex
		waiting int    // how many
		left    []bool // nil: nobody
	}
}

// gone tells whether nobody waits any more.
func (w *waiter[R]) gone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.waiting == 0
}

// leave takes n away from those who wait. w.mu is held.
func (w *waiter[R]) leave(n int) {
	w.mu.waiting -= n
	if w.reads != nil {
		w.reads.Add(-int64(n))
	}
}

// end gives the outcome to all who still wait for it.
func (w *waiter[R]) end(results []R, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.waiting > 0 {
		w.leave(w.mu.waiting)
		w.party.End(results, err)
	}
}

// expire ends the wait of all for whom there will be no outcome in time.
func (w *waiter[R]) expire(err error) {
	w.mu.Lock()
	n := w.mu.waiting
	w.mu.Unlock()
	w.late.Add(uint64(n))
	w.end(nil, err)
}

// look has those leave whose contexts have ended. why tells the reason in the
// words of this package.
func (w *waiter[R]) look(why func(error) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 0; i < w.size && w.mu.waiting > 0; i++ {
		if w.mu.left != nil && w.mu.left[i] {
			continue
		}
		if err := w.party.Context(i).Err(); err != nil {
			if w.mu.left == nil {
				w.mu.left = make([]bool, w.size)
			}
			w.mu.left[i] = true
			w.late.Inc()
			w.leave(1)
			w.party.Leave(i, why(err))
		}
	}
}

// solo is a party of one, who sits and waits.
type solo[R any] struct {
	ctx    context.Context
	done   chan struct{} // closed when the outcome is there
	result R
	err    error
}

func newSolo[R any](ctx context.Context) *solo[R] {
	return &solo[R]{ctx: ctx, done: make(chan struct{})}
}

func (s *solo[R]) Context(int) context.Context { return s.ctx }

func (s *solo[R]) Leave(_ int, err error) { s.End(nil, err) }

func (s *solo[R]) End(results []R, err error) {
	if len(results) > 0 {
		s.result = results[0]
	}
	s.err = err
	close(s.done)
}

func (s *solo[R]) wait() (R, error) {
	<-s.done
	return s.result, s.err
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

// finish gives those who wait their results.
func (b *batch[R]) finish(p *pending[R], results []R) {
	p.account(b.waiters)
	for _, w := range b.waiters {
		n := len(w.commands)
		must(n <= len(results), "A1: one result for each command")
		w.end(results[:n:n], nil)
		results = results[n:]
	}
	must(len(results) == 0, "A1: one result for each command")
	p.recycle(b)
}

func (b *batch[R]) fail(p *pending[R], err error) {
	p.account(b.waiters)
	for _, w := range b.waiters {
		w.end(nil, err)
	}
	p.recycle(b)
}

// admit takes commands into account, of which there are at most commandsMax of
// bytesMax then, but always room for one. It returns how many have found room.
func (p *pending[R]) admit(commands [][]byte, commandsMax, bytesMax int64) (n, size int) {
	n = len(commands)
	for _, c := range commands {
		size += len(c)
	}
	many, much := p.commands.Add(int64(n)), p.bytes.Add(int64(size))
	for n > 0 && (many > commandsMax || much > bytesMax && many > 1) {
		n--
		many, much, size = many-1, much-int64(len(commands[n])), size-len(commands[n])
		p.forget(1, len(commands[n]))
	}
	return n, size
}

func (p *pending[R]) forget(commands, size int) {
	p.bytes.Add(-int64(size))
	p.commands.Add(-int64(commands))
}

// account takes waiters out of what is pending. It comes before the end of
// their wait: who is answered finds room for what follows.
func (p *pending[R]) account(waiters []*waiter[R]) {
	commands, size := 0, 0
	for _, w := range waiters {
		commands, size = commands+len(w.commands), size+w.bytes
	}
	p.forget(commands, size)
}

func (p *pending[R]) recycle(b *batch[R]) {
	clear(b.waiters)
	*b = batch[R]{waiters: b.waiters[:0]}
	p.free.Put(b)
}
