package node

import "sync"

// news wakes everybody who waits for something to have changed.
type news struct {
	mu struct {
		sync.Mutex
		changed chan struct{}
	}
}

func newNews() *news {
	n := &news{}
	n.mu.changed = make(chan struct{})
	return n
}

// wait returns a channel that is closed at the next change. Take it before
// looking at what may change.
func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.changed
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.mu.changed)
	n.mu.changed = make(chan struct{})
}
