package merge

import (
	"context"
	"sync"
)

// outbox holds what waits to be sent to one client.
type outbox[M any] struct {
	mu struct {
		sync.Mutex
		waiting []M
		bytes   int
		ended   error
	}
	wake  chan struct{} // one token: there is something, or the end
	taken chan struct{} // one token: all was taken
}

func newOutbox[M any]() *outbox[M] {
	return &outbox[M]{wake: make(chan struct{}, 1), taken: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// put adds a message that takes so many bytes, and returns how many there are.
func (o *outbox[M]) put(m M, bytes int) int {
	o.mu.Lock()
	o.mu.waiting = append(o.mu.waiting, m)
	o.mu.bytes += bytes
	sum := o.mu.bytes
	o.mu.Unlock()
	signal(o.wake)
	return sum
}

// end makes take return err once nothing is left.
func (o *outbox[M]) end(err error) {
	o.mu.Lock()
	if o.mu.ended == nil {
		o.mu.ended = err
	}
	o.mu.Unlock()
	signal(o.wake)
}

func (o *outbox[M]) full(most int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.bytes >= most
}

// take waits for messages and returns all there are.
func (o *outbox[M]) take(ctx context.Context) ([]M, error) {
	for {
		o.mu.Lock()
		all, err := o.mu.waiting, o.mu.ended
		o.mu.waiting, o.mu.bytes = nil, 0
		o.mu.Unlock()
		if len(all) > 0 {
			signal(o.taken)
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-o.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// room waits until less than most bytes wait.
func (o *outbox[M]) room(ctx context.Context, most int) error {
	for o.full(most) {
		select {
		case <-o.taken:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
