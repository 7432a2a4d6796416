package replica

import (
	"context"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
)

// Stepper runs a member by hand, in place of Run: each call does what one of
// the three loops would do next, and nothing happens between calls. So a whole
// cluster runs in one goroutine, in an order that the caller chooses. After an
// error the member is dead: the caller drops it, and opens another on what its
// disk holds.
type Stepper[R any] struct {
	r    *Replica[R]
	jobs []*pb.Message
	todo []applyJob
}

// Stepper returns the means to run r by hand.
func (r *Replica[R]) Stepper() *Stepper[R] {
	if r.core.alone() {
		r.core.Campaign()
	}
	return &Stepper[R]{r: r}
}

// Tick lets one tick pass.
func (s *Stepper[R]) Tick() {
	s.r.tick(time.Time{})
	s.r.round()
	s.r.publish(true)
}

// Decide takes what waits in the inbox.
func (s *Stepper[R]) Decide() {
	select {
	case <-s.r.wake:
	default:
	}
	s.r.round()
	s.r.publish(false)
}

// Queued says whether there is anything for Append and for Apply to do.
func (s *Stepper[R]) Queued() (appends, applies bool) {
	return len(s.r.appends.items) > 0, len(s.r.applies.items) > 0
}

// Append writes what is queued for the log, and says whether there was any.
func (s *Stepper[R]) Append() (bool, error) {
	q := s.r.appends
	if len(q.items) == 0 {
		return false, nil
	}
	var err error
	s.jobs, _ = q.take(s.jobs)
	if s.jobs, err = s.r.settle(s.jobs); err != nil {
		return true, err
	}
	restores, err := s.r.write(s.jobs)
	if err != nil {
		return true, err
	}
	if restores {
		if _, err := s.Apply(); err != nil {
			return true, err
		}
		<-s.r.restored
	}
	return true, s.r.wrote(s.jobs)
}

// Apply applies what is queued for the machine, and says whether there was any.
func (s *Stepper[R]) Apply() (bool, error) {
	q := s.r.applies
	if len(q.items) == 0 {
		return false, nil
	}
	s.todo, _ = q.take(s.todo)
	return true, s.r.apply(s.todo)
}

// Stop ends every wait and closes the log.
func (s *Stepper[R]) Stop() error {
	s.r.appends.close()
	s.r.applies.close()
	s.r.stop()
	return s.r.log.Close()
}

// Wait is a request whose outcome may not be there yet.
type Wait[R any] struct {
	s     *solo[R]
	leave context.CancelFunc
	left  bool
}

// Outcome returns the outcome, if it is there.
func (w *Wait[R]) Outcome() (result R, err error, there bool) {
	select {
	case <-w.s.done:
		return w.s.result, w.s.err, !w.left
	default:
		return result, nil, false
	}
}

// Leave gives up waiting, as the end of a context does. There will be no outcome
// then.
func (w *Wait[R]) Leave() {
	w.left = true
	w.leave()
}

// Propose starts what Replica.Propose does.
func (s *Stepper[R]) Propose(command []byte) *Wait[R] {
	return begin(func(solo *solo[R]) { s.r.ProposeAll(solo, [][]byte{command}) })
}

// Configure starts what Replica.Configure does.
func (s *Stepper[R]) Configure(change *pb.ConfChangeV2) *Wait[R] {
	return begin(func(solo *solo[R]) { s.r.configureFor(solo, change) })
}

// Barrier starts what Replica.Barrier does.
func (s *Stepper[R]) Barrier() *Wait[R] {
	return begin(func(solo *solo[R]) { s.r.BarrierAll(solo, 1) })
}

// Transfer starts what Replica.Transfer does.
func (s *Stepper[R]) Transfer(to uint64) *Wait[R] {
	return begin(func(solo *solo[R]) { s.r.transferFor(solo, to) })
}

func begin[R any](ask func(*solo[R])) *Wait[R] {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Wait[R]{s: newSolo[R](ctx), leave: cancel}
	ask(w.s)
	return w
}
