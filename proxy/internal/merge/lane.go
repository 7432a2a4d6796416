package merge

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
)

const (
	tick          = time.Second      // a question that was not answered for so long is asked again
	progressEvery = 10 * time.Second // so old may be what is known of watchers that nothing happens to
	restMin       = 20 * time.Millisecond
	restMax       = time.Second
	leaderTimeout = 5 * time.Second // who wants a leader is told so soon that there is none
)

// lane is a stream upstream, made anew as often as it breaks; its cursors then
// go on from where they are. The main lane of a group is for those that are
// level with the store. Who reads history has a lane of its own, since a member
// tells of progress only what all watchers of a stream have come to.
type lane struct {
	// Immutable.
	group  *group
	ctx    context.Context // ends with the last cursor
	cancel context.CancelFunc
	wake   chan struct{} // one token: there is something to send

	// Under Watches.mu.
	cursors map[*cursor]struct{}
	asking  bool // for progress
	askedAt time.Time
	toldAt  time.Time // when progress was last told

	// Of the present stream.
	up       bool
	creating []*cursor // asked for, in the order in which they will be answered
	running  map[int64]*cursor
	out      []*pb.WatchRequest
}

func (g *group) mainLane() *lane {
	if g.main == nil {
		g.main = g.newLane()
	}
	return g.main
}

func (g *group) newLane() *lane {
	l := &lane{group: g, wake: make(chan struct{}, 1), cursors: map[*cursor]struct{}{}}
	l.ctx, l.cancel = context.WithCancel(metadata.NewOutgoingContext(g.of.ctx, g.say))
	g.of.running.Go(l.run)
	return l
}

func (l *lane) add(c *cursor) {
	l.cursors[c] = struct{}{}
	if l.up {
		l.create(c)
	}
}

func (l *lane) create(c *cursor) {
	l.creating = append(l.creating, c)
	r := &pb.WatchCreateRequest{
		Key: []byte(c.spec.key), RangeEnd: []byte(c.spec.end), StartRevision: c.next,
		PrevKv: c.spec.previous, ProgressNotify: true,
	}
	if c.spec.noPut {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_NOPUT)
	}
	if c.spec.noDelete {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_NODELETE)
	}
	l.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
}

func (l *lane) drop(c *cursor) {
	if c.running {
		c.running = false
		delete(l.running, c.id)
		l.send(cancelRequest(c.id))
	}
	if delete(l.cursors, c); len(l.cursors) == 0 {
		l.retire()
	}
}

// retire ends a lane that has no more to do.
func (l *lane) retire() {
	l.cancel()
	if l.group.main == l {
		l.group.main = nil
		for who := range l.group.answering { // an answer will not come
			delete(l.group.answering, who)
			l.group.asked[who] = struct{}{}
		}
	}
}

func cancelRequest(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

func (l *lane) send(r *pb.WatchRequest) {
	l.out = append(l.out, r)
	signal(l.wake)
}

// ask asks for progress.
func (l *lane) ask() {
	l.asking, l.askedAt = true, time.Now()
	if l.up {
		l.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	}
}

// run keeps a stream upstream until nobody needs it any more.
func (l *lane) run() {
	w := l.group.of
	rest := restMin
	for {
		heard, err := l.serve()
		if l.ctx.Err() != nil {
			return
		}
		if final(err) {
			w.fail(l, err)
			return
		}
		w.options.Logger.Debug("a stream of watches broke, and begins anew", "error", err)
		if heard {
			rest = restMin
		}
		select {
		case <-time.After(rest):
		case <-l.ctx.Done():
			return
		}
		rest = min(2*rest, restMax)
	}
}

// final tells whether an error is for the client: no other member would answer
// otherwise.
func final(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented:
		return true
	}
	return status.Convert(err).Message() == fault.NoLeader.Text
}

// fail tells all who depend on a lane that it has ended.
func (w *Watches) fail(l *lane, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range l.cursors {
		for x := range w.dissolve(c) {
			x.of.out.end(err)
		}
	}
	l.retire()
}

var errNoLeader = errors.New("no member has a leader")

// serve carries one stream. It tells whether anything was heard.
func (l *lane) serve() (heard bool, err error) {
	w := l.group.of
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(nil)
	var patience *time.Timer
	if _, wanted := l.group.say[leaderHeader]; wanted {
		patience = time.AfterFunc(leaderTimeout, func() { cancel(errNoLeader) })
	}
	stream, err := pb.NewWatchClient(w.options.Upstream).Watch(ctx)
	if patience != nil && !patience.Stop() {
		return false, refusal(fault.NoLeader)
	}
	if err != nil {
		return false, err
	}

	w.mu.Lock()
	l.begin()
	w.mu.Unlock()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		l.sendAll(ctx, stream)
	}()
	defer func() {
		cancel(nil)
		<-sent
		w.mu.Lock()
		l.interrupt()
		w.mu.Unlock()
	}()
	for {
		m, err := stream.Recv()
		if err != nil {
			return heard, err
		}
		heard = true
		w.mu.Lock()
		if l.ctx.Err() == nil {
			w.hear(l, m)
		}
		w.mu.Unlock()
	}
}

// begin asks a new stream for all that the former one was for.
func (l *lane) begin() {
	l.up = true
	l.toldAt = time.Now()
	l.creating, l.running, l.out = nil, map[int64]*cursor{}, nil
	for c := range l.cursors {
		l.create(c)
	}
	if l.asking {
		l.ask()
	}
}

func (l *lane) interrupt() {
	l.up = false
	for _, c := range l.running {
		c.running = false
	}
}

// sendAll sends what is to be sent.
func (l *lane) sendAll(ctx context.Context, stream pb.Watch_WatchClient) {
	w := l.group.of
	clock := time.NewTicker(tick)
	defer clock.Stop()
	for {
		w.mu.Lock()
		if l.group.main == l {
			w.askProgress(l.group)
		}
		now := time.Now()
		unanswered := l.asking && now.Sub(l.askedAt) >= tick
		if unanswered || !l.asking && now.Sub(l.toldAt) >= progressEvery {
			l.ask()
		}
		out := l.out
		l.out = nil
		w.mu.Unlock()
		for _, r := range out {
			if stream.Send(r) != nil {
				return // Recv tells why
			}
		}
		select {
		case <-l.wake:
		case <-clock.C:
		case <-ctx.Done():
			return
		}
	}
}

// hear takes what a member says.
func (w *Watches) hear(l *lane, m *pb.WatchResponse) {
	if h := m.Header; h != nil {
		w.See(h.ClusterId, h.Revision)
		l.group.header = h
	} else {
		m.Header = w.headerOf(l.group)
	}
	switch {
	case m.Created && len(l.creating) > 0:
		c := l.creating[0]
		l.creating = l.creating[1:]
		if m.Canceled {
			if !c.closed {
				w.refused(c, m)
			}
			return
		}
		if c.closed {
			l.send(cancelRequest(m.WatchId))
			return
		}
		c.id, c.running = m.WatchId, true
		l.running[c.id] = c
		w.created(c, m.Header.Revision)
	case m.Canceled:
		if c := l.running[m.WatchId]; c != nil {
			c.running = false
			delete(l.running, m.WatchId)
			w.canceled(c, m)
		}
	case len(m.Events) > 0:
		if c := l.running[m.WatchId]; c != nil {
			w.events(c, m)
		}
	case m.WatchId == noID:
		w.progress(l, m)
	default:
		if c := l.running[m.WatchId]; c != nil {
			w.progressed(c, m.Header)
			w.notify(c, m.Header)
		}
	}
}

// progress hears that all cursors of a lane have come to a revision.
func (w *Watches) progress(l *lane, m *pb.WatchResponse) {
	l.asking, l.toldAt = false, time.Now()
	level := true
	for _, c := range l.running {
		w.progressed(c, m.Header)
	}
	for _, c := range l.running {
		level = w.settle(c) && level
	}
	if l.group.main == l {
		w.tellProgress(l.group, m.Header)
	} else if !level {
		l.ask()
	}
}
