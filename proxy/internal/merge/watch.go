package merge

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/proxy/internal/namespace"
)

// WatchOptions of Watches. Upstream is required.
type WatchOptions struct {
	// Upstream begins streams at a member that can answer for the cluster, and
	// ends them when it cannot any more.
	Upstream grpc.ClientConnInterface

	Namespace     namespace.Prefix
	QueueBytesMax int // that wait for a client; default 8 MiB
	AnswerMax     int // bytes of events in one answer, for who wants fragments; default 2 MiB
	Metrics       WatchMetrics
	Logger        *slog.Logger // default none
}

// WatchMetrics count watches; any of them may be nil.
type WatchMetrics struct {
	Watchers *metric.Gauge   // of clients
	Upstream *metric.Gauge   // of ours
	Merged   *metric.Gauge   // watchers that needed none of their own
	Spared   *metric.Counter // events that were told once more than they came
}

// Watches serves the watches of clients.
type Watches struct {
	pb.UnimplementedWatchServer

	// Immutable after New.
	options WatchOptions
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup

	seen atomic.Pointer[moment]

	mu struct {
		sync.Mutex
		groups map[string]*group // by identity
	}
}

// moment is how far the store of a cluster is known to have come.
type moment struct {
	cluster  uint64
	revision int64
}

// NewWatches returns Watches without any. The caller closes them.
func NewWatches(o WatchOptions) *Watches {
	if o.QueueBytesMax == 0 {
		o.QueueBytesMax = 8 << 20
	}
	if o.AnswerMax == 0 {
		o.AnswerMax = 2 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Watches{options: o}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.seen.Store(new(moment))
	w.mu.groups = map[string]*group{}
	return w
}

// End tells all clients that the proxy stops.
func (w *Watches) End() {
	w.cancel()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.mu.groups {
		for l := range g.listeners {
			l.out.end(refusal(fault.Stopped))
		}
	}
}

// Close ends all streams upstream and waits for them. No client may be left.
func (w *Watches) Close() {
	w.cancel()
	w.running.Wait()
}

func refusal(f *fault.Fault) error { return status.Error(codes.Code(f.Code), f.Text) }

// See learns that a client was answered with this revision. Who then asks to
// watch what comes next is not told of anything before.
func (w *Watches) See(cluster uint64, revision int64) {
	for {
		now := w.seen.Load()
		if now.cluster == cluster && now.revision >= revision {
			return
		}
		if w.seen.CompareAndSwap(now, &moment{cluster, revision}) {
			return
		}
	}
}

// group is all that one user watches.
type group struct {
	of *Watches
	id string
	// say is the metadata that tells who asks.
	say metadata.MD

	// All under Watches.mu.
	listeners map[*listener]struct{}
	cursors   map[spec][]*cursor
	main      *lane // of the watchers that are level; nil: there is none
	header    *pb.ResponseHeader
	asked     map[*listener]struct{} // want to be told of progress
	answering map[*listener]struct{} // of these, the ones whom the next answer serves
}

// listener is one client's stream.
type listener struct {
	group *group
	out   *outbox[*pb.WatchResponse]

	// Under Watches.mu.
	watchers map[int64]*watcher
	nextID   int64
	behind   map[*watcher]struct{} // wait until there is room

	slow atomic.Bool // somebody is behind
}

// spec is what is watched, but for where it begins.
type spec struct {
	key, end                  string
	previous, noPut, noDelete bool
}

// watcher is what a client asked for.
type watcher struct {
	// Immutable.
	of               *listener
	id               int64
	spec             spec
	notify, fragment bool
	now              bool // it begins with what comes next

	// Under Watches.mu.
	next   int64   // the first revision of interest that was not told; 0: what comes next, once that is known
	floor  int64   // of those that begin with what comes next: what was seen before
	told   bool    // that it was created
	cursor *cursor // nil: it is behind
}

// duplicateID is etcd's.
const (
	duplicateID = "mvcc: duplicate watch ID provided on the WatchStream"
	noID        = -1
)

type watchStream = grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]

// Watch serves one client.
func (w *Watches) Watch(stream watchStream) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	l := w.enter(stream.Context())
	defer w.leave(l)
	// It ends a moment after the call: only the end of the call interrupts who
	// waits for a request.
	go func() {
		if err := w.listen(ctx, stream, l); err != nil {
			cancel(err)
		}
	}()
	for {
		all, err := l.out.take(ctx)
		for _, m := range all {
			if err = stream.Send(m); err != nil {
				break
			}
		}
		if err == nil {
			w.resume(l)
			continue
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
			return refusal(fault.WatchCanceled)
		}
		return err
	}
}

// listen hears what the client asks for. One that has no more to ask may go on
// listening.
func (w *Watches) listen(ctx context.Context, stream watchStream, l *listener) error {
	for {
		q, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = l.out.room(ctx, w.options.QueueBytesMax)
		}
		if err != nil {
			return err
		}
		switch q := q.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if q.CreateRequest != nil {
				w.create(l, q.CreateRequest)
			}
		case *pb.WatchRequest_CancelRequest:
			if q.CancelRequest != nil {
				w.stop(l, q.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			w.wantProgress(l)
		}
	}
}

func (w *Watches) enter(ctx context.Context) *listener {
	id, say := identity(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.mu.groups[id]
	if g == nil {
		g = &group{
			of: w, id: id, say: say,
			listeners: map[*listener]struct{}{}, cursors: map[spec][]*cursor{},
			asked: map[*listener]struct{}{}, answering: map[*listener]struct{}{},
		}
		w.mu.groups[id] = g
	}
	l := &listener{group: g, out: newOutbox[*pb.WatchResponse](), watchers: map[int64]*watcher{}, behind: map[*watcher]struct{}{}}
	g.listeners[l] = struct{}{}
	if w.ctx.Err() != nil {
		l.out.end(refusal(fault.Stopped))
	}
	return l
}

func (w *Watches) leave(l *listener) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range l.watchers {
		w.remove(x)
	}
	g := l.group
	delete(g.asked, l)
	delete(g.answering, l)
	if delete(g.listeners, l); len(g.listeners) == 0 {
		delete(w.mu.groups, g.id)
	}
}

func (w *Watches) create(l *listener, r *pb.WatchCreateRequest) {
	w.options.Namespace.Watch(r)
	if len(r.Key) == 0 {
		r.Key = []byte{0} // the smallest key there is
	}
	x := &watcher{
		of: l, id: r.WatchId, next: r.StartRevision,
		spec:   spec{key: string(r.Key), end: string(r.RangeEnd), previous: r.PrevKv},
		notify: r.ProgressNotify, fragment: r.Fragment, now: r.StartRevision == 0,
	}
	for _, filter := range r.Filters {
		switch filter {
		case pb.WatchCreateRequest_NOPUT:
			x.spec.noPut = true
		case pb.WatchCreateRequest_NODELETE:
			x.spec.noDelete = true
		}
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return
	}
	if _, taken := l.watchers[x.id]; taken && x.id != 0 {
		l.put(&pb.WatchResponse{Header: w.headerOf(l.group), WatchId: noID, Created: true, Canceled: true, CancelReason: duplicateID})
		return
	}
	if x.id == 0 {
		for taken := true; taken; l.nextID++ {
			x.id = l.nextID
			_, taken = l.watchers[x.id]
		}
	}
	l.watchers[x.id] = x
	w.options.Metrics.Watchers.Add(1)
	w.options.Metrics.Merged.Add(1)
	x.floor = w.seen.Load().revision
	w.join(x)
}

// stop ends a watcher because its client says so.
func (w *Watches) stop(l *listener, id int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := l.watchers[id]
	if x == nil {
		return
	}
	w.tellCreated(x) // one thing after the other
	w.remove(x)
	l.put(&pb.WatchResponse{Header: w.headerOf(l.group), WatchId: id, Canceled: true})
}

// remove forgets a watcher.
func (w *Watches) remove(x *watcher) {
	delete(x.of.watchers, x.id)
	delete(x.of.behind, x)
	w.part(x)
	w.options.Metrics.Watchers.Add(-1)
	w.options.Metrics.Merged.Add(-1)
}

// headerOf returns a header for answers that are our own.
func (w *Watches) headerOf(g *group) *pb.ResponseHeader {
	seen := w.seen.Load()
	if g.header == nil {
		return &pb.ResponseHeader{ClusterId: seen.cluster, Revision: seen.revision}
	}
	return &pb.ResponseHeader{
		ClusterId: g.header.ClusterId, MemberId: g.header.MemberId, RaftTerm: g.header.RaftTerm,
		Revision: max(seen.revision, g.header.Revision),
	}
}

// controlBytes is what an answer without events counts for.
const controlBytes = 128

func (l *listener) put(m *pb.WatchResponse) { l.out.put(m, controlBytes) }

func (w *Watches) tellCreated(x *watcher) {
	if x.told {
		return
	}
	x.told = true
	header := w.headerOf(x.of.group)
	if x.now && x.next > 0 {
		header.Revision = x.next - 1 // clients go on from here
	}
	x.of.put(&pb.WatchResponse{Header: header, WatchId: x.id, Created: true})
}

// tellEvents tells x of events, which body holds encoded.
func (w *Watches) tellEvents(x *watcher, header *pb.ResponseHeader, events []*mvccpb.Event, body []byte) {
	l := x.of
	waiting := 0
	for len(events) > 0 {
		n := len(events)
		if x.fragment && len(body) > w.options.AnswerMax {
			n = fragment(events, w.options.AnswerMax)
		}
		part := body
		if n < len(events) {
			part = encode(events[:n])
		}
		m := &pb.WatchResponse{Header: header, WatchId: x.id, Fragment: n < len(events)}
		m.ProtoReflect().SetUnknown(part)
		waiting = l.out.put(m, controlBytes+len(part))
		if events = events[n:]; len(events) > 0 {
			body = encode(events)
		}
	}
	if waiting > w.options.QueueBytesMax {
		w.leaveBehind(x)
	}
}

// fragment returns how many events stay below a size together; it is one at
// least.
func fragment(events []*mvccpb.Event, bytesMax int) int {
	size := 0
	for i, e := range events {
		if size += proto.Size(e) + 8; size >= bytesMax && i > 0 {
			return i
		}
	}
	return len(events)
}

// eventsField is that of WatchResponse.
const eventsField = 11

// encode encodes events as they stand in an answer, so that many answers can
// share them.
func encode(events []*mvccpb.Event) (b []byte) {
	for _, e := range events {
		b = protowire.AppendTag(b, eventsField, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(proto.Size(e)))
		b, _ = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, e) // it was decoded a moment ago
	}
	return b
}

// leaveBehind parts a watcher from the others because its client does not
// read. It will read on from where it stands (M3).
func (w *Watches) leaveBehind(x *watcher) {
	w.part(x)
	x.of.behind[x] = struct{}{}
	x.of.slow.Store(true)
}

// resume lets those watchers of l go on that were left behind.
func (w *Watches) resume(l *listener) {
	if !l.slow.Load() || l.out.full(1) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l.slow.Store(false)
	behind := l.behind
	l.behind = map[*watcher]struct{}{}
	for x := range behind {
		w.join(x)
	}
}

// wantProgress notes that a client wants to be told how far all of its watchers
// have come.
func (w *Watches) wantProgress(l *listener) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(l.watchers) > 0 {
		l.group.asked[l] = struct{}{}
		w.askProgress(l.group)
	}
}

// askProgress asks on behalf of those whom an answer would serve, unless the
// answer to an earlier question is still to come: that may be older than theirs.
func (w *Watches) askProgress(g *group) {
	if g.main == nil || g.main.asking {
		return
	}
	for l := range g.asked {
		if l.level() {
			delete(g.asked, l)
			g.answering[l] = struct{}{}
		}
	}
	if len(g.answering) > 0 {
		g.main.ask()
	}
}

// level tells whether all watchers of l are told by the same stream upstream.
func (l *listener) level() bool {
	for _, x := range l.watchers {
		if !x.told || x.cursor == nil || x.cursor.lane != l.group.main || !x.cursor.running {
			return false
		}
	}
	return true
}

// tellProgress answers those who asked, now that all that runs in the main lane
// has come to a revision.
func (w *Watches) tellProgress(g *group, header *pb.ResponseHeader) {
	var later []*listener
	for l := range g.answering {
		delete(g.answering, l)
		switch {
		case !l.level():
			g.asked[l] = struct{}{}
		case l.waits(header.Revision):
			later = append(later, l) // the lane asks again, but not at once
		default:
			l.put(&pb.WatchResponse{Header: header, WatchId: noID})
		}
	}
	w.askProgress(g)
	for _, l := range later {
		g.asked[l] = struct{}{}
	}
}

// waits tells whether a watcher of l is for what comes after a revision, of
// which a client could not be told anything but that it has been passed.
func (l *listener) waits(revision int64) bool {
	for _, x := range l.watchers {
		if x.next > revision+1 {
			return true
		}
	}
	return false
}
