package gate

import (
	"context"
	"sync"
	"time"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/rpc"
)

// leaderless ends the streams of clients that want a leader, when this member
// has known none for a while. They find another member then.
type leaderless struct {
	// Immutable.
	status   func() Status
	patience time.Duration

	mu struct {
		sync.Mutex
		streams map[*context.CancelCauseFunc]struct{}
		stop    chan struct{} // of the lookout, which there is while there are streams
		gone    chan struct{}
	}
}

// looks is how often in its patience the lookout looks for a leader. It has to
// find none each time.
const looks = 3

func newLeaderless(status func() Status, patience time.Duration) *leaderless {
	l := &leaderless{status: status, patience: patience}
	l.mu.streams = map[*context.CancelCauseFunc]struct{}{}
	return l
}

// guard returns the context of a stream, which ends with fault.NoLeader if the
// client wants a leader and there is none. done has to be called when the
// stream has ended.
func (l *leaderless) guard(ctx context.Context) (_ context.Context, done func()) {
	if !requiresLeader(ctx) {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.streams[&cancel] = struct{}{}
	if len(l.mu.streams) == 1 {
		l.mu.stop, l.mu.gone = make(chan struct{}), make(chan struct{})
		go l.lookOut(l.mu.stop, l.mu.gone)
	}
	return ctx, func() {
		cancel(nil)
		l.leave(&cancel)
	}
}

func (l *leaderless) leave(cancel *context.CancelCauseFunc) {
	l.mu.Lock()
	delete(l.mu.streams, cancel)
	stop, gone := l.mu.stop, l.mu.gone
	last := len(l.mu.streams) == 0
	if last {
		close(stop)
	}
	l.mu.Unlock()
	if last {
		<-gone
	}
}

func (l *leaderless) lookOut(stop <-chan struct{}, gone chan<- struct{}) {
	defer close(gone)
	tick := time.NewTicker(l.patience / looks)
	defer tick.Stop()
	missed := 0
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if missed++; l.status().Leader != 0 {
			missed = 0
		}
		if missed >= looks {
			l.endAll()
		}
	}
}

func (l *leaderless) endAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for cancel := range l.mu.streams {
		(*cancel)(fault.NoLeader)
	}
}

// requiresLeader tells whether a client asks not to be answered by a member
// which is cut off.
func requiresLeader(ctx context.Context) bool {
	wish, _ := rpc.Header(ctx, "hasleader")
	return wish == "true"
}
