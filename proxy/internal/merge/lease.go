package merge

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
)

// KeepAliveOptions of KeepAlives. Upstream is required.
type KeepAliveOptions struct {
	Upstream grpc.ClientConnInterface // as in WatchOptions
	Metrics  KeepAliveMetrics
	Logger   *slog.Logger // default none
}

// KeepAliveMetrics count keep-alives; any of them may be nil.
type KeepAliveMetrics struct {
	Asked *metric.Counter // by clients
	Sent  *metric.Counter // to members
}

// KeepAlives renews leases for clients.
type KeepAlives struct {
	// Immutable after New.
	options KeepAliveOptions
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu struct {
		sync.Mutex
		renewers map[string]*renewer // by identity
	}
}

// NewKeepAlives returns KeepAlives. The caller closes them.
func NewKeepAlives(o KeepAliveOptions) *KeepAlives {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	k := &KeepAlives{options: o}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.mu.renewers = map[string]*renewer{}
	return k
}

// End tells all clients that the proxy stops.
func (k *KeepAlives) End() {
	k.cancel()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.mu.renewers {
		for l := range r.holders {
			l.out.end(refusal(fault.Stopped))
		}
	}
}

// Close ends all streams upstream and waits for them. No client may be left.
func (k *KeepAlives) Close() {
	k.cancel()
	k.running.Wait()
}

// renewer is a stream upstream and those whose keep-alives it carries. All is
// under KeepAlives.mu.
type renewer struct {
	of     *KeepAlives
	id     string
	ctx    context.Context // ends with the last holder
	cancel context.CancelFunc
	wake   chan struct{} // one token: there is something to send

	holders map[*holder]struct{}
	leases  map[int64]*renewal
	out     []int64
}

// renewal is a lease whose renewal was asked for.
type renewal struct {
	waiting []*holder // for the answer that is to come
	next    []*holder // came later, and want one of their own
}

// holder is one client's stream.
type holder struct {
	of  *renewer
	out *outbox[*pb.LeaseKeepAliveResponse]

	// Under KeepAlives.mu.
	open int  // answers that are to come
	last bool // the client asks nothing more
}

// endLast ends the stream of a client that has been answered all it asked.
func (h *holder) endLast() {
	if h.last && h.open == 0 {
		h.out.end(io.EOF)
	}
}

// keepAlivesMax is how many answers may wait for a client before it is asked
// nothing more of.
const keepAlivesMax = 10_000

// LeaseKeepAlive serves one client.
func (k *KeepAlives) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	h := k.enter(stream.Context())
	defer k.leave(h)
	// As that of a watch, it ends a moment after the call.
	asked := make(chan struct{}, keepAlivesMax)
	go func() {
		if err := k.listen(ctx, stream, h, asked); err != nil {
			cancel(err)
		}
	}()
	for {
		all, err := h.out.take(ctx)
		for _, m := range all {
			<-asked
			if err = stream.Send(m); err != nil {
				break
			}
		}
		if err == nil {
			continue
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, context.Canceled) {
			return refusal(fault.RequestCanceled)
		}
		return err
	}
}

// listen hears what a client asks for. One that has no more to ask waits for
// its answers.
func (k *KeepAlives) listen(ctx context.Context, stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], h *holder, asked chan struct{}) error {
	for {
		q, err := stream.Recv()
		if err == io.EOF {
			k.mu.Lock()
			defer k.mu.Unlock()
			h.last = true
			h.endLast()
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case asked <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		k.renew(h, q.ID)
	}
}

func (k *KeepAlives) enter(ctx context.Context) *holder {
	id, say := identity(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.mu.renewers[id]
	if r == nil {
		r = &renewer{of: k, id: id, wake: make(chan struct{}, 1), holders: map[*holder]struct{}{}, leases: map[int64]*renewal{}}
		r.ctx, r.cancel = context.WithCancel(metadata.NewOutgoingContext(k.ctx, say))
		k.mu.renewers[id] = r
		k.running.Go(r.run)
	}
	h := &holder{of: r, out: newOutbox[*pb.LeaseKeepAliveResponse]()}
	r.holders[h] = struct{}{}
	if k.ctx.Err() != nil {
		h.out.end(refusal(fault.Stopped))
	}
	return h
}

// leave forgets a client. What it waits for finds nobody.
func (k *KeepAlives) leave(h *holder) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := h.of
	if delete(r.holders, h); len(r.holders) == 0 {
		r.retire()
	}
}

func (r *renewer) retire() {
	r.cancel()
	if r.of.mu.renewers[r.id] == r {
		delete(r.of.mu.renewers, r.id)
	}
}

func (k *KeepAlives) renew(h *holder, lease int64) {
	k.options.Metrics.Asked.Inc()
	k.mu.Lock()
	defer k.mu.Unlock()
	r := h.of
	if _, there := r.holders[h]; !there {
		return
	}
	h.open++
	if l := r.leases[lease]; l != nil {
		l.next = append(l.next, h)
		return
	}
	r.leases[lease] = &renewal{waiting: []*holder{h}}
	r.send(lease)
}

func (r *renewer) send(lease int64) {
	r.out = append(r.out, lease)
	signal(r.wake)
}

// run keeps a stream upstream until nobody needs it any more.
func (r *renewer) run() {
	rest := restMin
	for {
		heard, err := r.serve()
		if r.ctx.Err() != nil {
			return
		}
		if final(err) {
			r.fail(err)
			return
		}
		r.of.options.Logger.Debug("the stream of keep-alives broke, and begins anew", "error", err)
		if heard {
			rest = restMin
		}
		select {
		case <-time.After(rest):
		case <-r.ctx.Done():
			return
		}
		rest = min(2*rest, restMax)
	}
}

// fail tells all clients that their keep-alives are not wanted.
func (r *renewer) fail(err error) {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	for h := range r.holders {
		h.out.end(err)
	}
	r.retire()
}

// serve carries one stream. It tells whether anything was heard.
func (r *renewer) serve() (heard bool, err error) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	stream, err := pb.NewLeaseClient(r.of.options.Upstream).LeaseKeepAlive(ctx)
	if err != nil {
		return false, err
	}
	// What the former stream has not answered is asked again: it does no harm
	// twice.
	r.of.mu.Lock()
	r.out = nil
	for lease := range r.leases {
		r.send(lease)
	}
	r.of.mu.Unlock()

	sent := make(chan struct{})
	go func() {
		defer close(sent)
		r.sendAll(ctx, stream)
	}()
	defer func() {
		cancel()
		<-sent
	}()
	for {
		m, err := stream.Recv()
		if err != nil {
			return heard, err
		}
		heard = true
		r.hear(m)
	}
}

func (r *renewer) sendAll(ctx context.Context, stream pb.Lease_LeaseKeepAliveClient) {
	for {
		r.of.mu.Lock()
		out := r.out
		r.out = nil
		r.of.mu.Unlock()
		for _, lease := range out {
			if stream.Send(&pb.LeaseKeepAliveRequest{ID: lease}) != nil {
				return // Recv tells why
			}
			r.of.options.Metrics.Sent.Inc()
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
	}
}

func (r *renewer) hear(m *pb.LeaseKeepAliveResponse) {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	l := r.leases[m.ID]
	if l == nil {
		return
	}
	for _, h := range l.waiting {
		h.out.put(m, controlBytes)
		h.open--
		h.endLast()
	}
	if l.waiting, l.next = l.next, nil; len(l.waiting) == 0 {
		delete(r.leases, m.ID)
		return
	}
	r.send(m.ID)
}
