package replica

import "sync"

// queue passes work from one loop to another: whoever takes gets all there is,
// so that what has piled up is done together.
type queue[T any] struct {
	mu     sync.Mutex
	some   sync.Cond
	items  []T
	closed bool
}

func newQueue[T any]() *queue[T] {
	q := &queue[T]{}
	q.some.L = &q.mu
	return q
}

// put adds items, unless the queue is closed. The slice is copied.
func (q *queue[T]) put(items ...T) bool {
	if len(items) == 0 {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.items = append(q.items, items...)
	q.some.Signal()
	return true
}

// take waits for items and returns all of them. used is an array to fill next;
// its items are gone. It returns false once the queue is closed and empty.
func (q *queue[T]) take(used []T) ([]T, bool) {
	clear(used)
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.closed {
		q.some.Wait()
	}
	items := q.items
	q.items = used[:0]
	return items, len(items) > 0
}

func (q *queue[T]) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.some.Broadcast()
}
