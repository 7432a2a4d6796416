package v3

import (
	"context"
	"errors"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// WatchMetrics are the times in seconds that it takes to send what watchers
// are told.
type WatchMetrics struct {
	Events   *metric.Histogram
	Event    *metric.Histogram // its share of the answer it came with
	Control  *metric.Histogram // answers to requests
	Progress *metric.Histogram
}

type watches struct {
	pb.UnimplementedWatchServer
	*server
}

type watchStream = grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]

func (s watches) Watch(stream watchStream) error {
	told := s.backend.Hub().Open()
	defer told.Close()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	// It ends a moment after the call: only the end of the call interrupts who
	// waits for a request. By then it can ask for nothing any more.
	go func() {
		if err := listen(ctx, stream, told); err != nil {
			cancel(err)
		}
	}()
	for {
		m, err := told.Next(ctx)
		if err == nil {
			err = s.tell(stream, m)
		}
		if err == nil {
			continue
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
			return fault.WatchCanceled
		}
		return err
	}
}

// listen hears what the client asks for. A client that has no more to ask may
// go on listening.
func listen(ctx context.Context, stream watchStream, told *watch.Stream) error {
	for {
		q, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = request(ctx, q, told)
		}
		if err != nil {
			return err
		}
	}
}

// request does what q asks for, and nothing if that is not known.
func request(ctx context.Context, q *pb.WatchRequest, told *watch.Stream) error {
	switch q := q.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		if r := q.CreateRequest; r != nil {
			return told.Watch(ctx, watcher(r))
		}
	case *pb.WatchRequest_CancelRequest:
		if r := q.CancelRequest; r != nil {
			return told.Cancel(ctx, r.WatchId)
		}
	case *pb.WatchRequest_ProgressRequest:
		if q.ProgressRequest != nil {
			told.Progress()
		}
	}
	return nil
}

func watcher(r *pb.WatchCreateRequest) watch.Request {
	w := watch.Request{
		ID:       r.WatchId,
		Span:     state.Span{Key: r.Key, End: r.RangeEnd},
		From:     state.Revision(r.StartRevision),
		Previous: r.PrevKv,
		Progress: r.ProgressNotify,
		Fragment: r.Fragment,
	}
	if len(w.Span.Key) == 0 {
		w.Span.Key = []byte{0} // the smallest key there is
	}
	for _, filter := range r.Filters {
		switch filter {
		case pb.WatchCreateRequest_NOPUT:
			w.NoPut = true
		case pb.WatchCreateRequest_NODELETE:
			w.NoDelete = true
		}
	}
	return w
}

// tell sends a message, in as many answers as its watcher wants.
func (s watches) tell(stream watchStream, m watch.Message) error {
	start := time.Now()
	resp := &pb.WatchResponse{
		Header:          s.header(m.Revision),
		WatchId:         m.ID,
		Created:         m.Created,
		Canceled:        m.Canceled,
		CancelReason:    m.Reason,
		CompactRevision: int64(m.Compacted),
	}
	if len(m.Events) == 0 {
		err := stream.Send(resp)
		took := s.options.Watch.Control
		if m.Progress() {
			took = s.options.Watch.Progress
		}
		took.Observe(time.Since(start).Seconds())
		return err
	}
	left := m.Events
	for len(left) > 0 {
		n := len(left)
		if m.Fragment {
			n = fragment(left, s.options.AnswerBytesMax)
		}
		resp.Fragment = n < len(left)
		setEvents(resp, left[:n])
		if err := stream.Send(resp); err != nil {
			return err
		}
		left = left[n:]
	}
	took := time.Since(start).Seconds()
	s.options.Watch.Events.Observe(took)
	s.options.Watch.Event.Observe(took / float64(len(m.Events)))
	return nil
}

// fragment returns how many events stay below a size together; it is one at
// least.
func fragment(events []watch.Event, bytesMax int) int {
	size := 0
	for i := range events {
		if size += eventBytes(&events[i]); size >= bytesMax && i > 0 {
			return i
		}
	}
	return len(events)
}

// setEvents gives resp events whose pairs are encoded already, as setPairs does
// for ranges.
func setEvents(resp *pb.WatchResponse, events []watch.Event) {
	size := 0
	for i := range events {
		size += eventBytes(&events[i])
	}
	raw := make([]byte, 0, size)
	for i := range events {
		raw = appendEvent(raw, &events[i])
	}
	resp.ProtoReflect().SetUnknown(raw)
}

// The fields of mvccpb.Event, and its own in WatchResponse.
const (
	eventField         = 11
	eventTypeField     = 1
	eventPairField     = 2
	eventPreviousField = 3
	eventTagBytes      = 1 // of each of them
)

func eventBytes(e *watch.Event) int {
	return eventTagBytes + protowire.SizeBytes(bodyBytes(e))
}

func bodyBytes(e *watch.Event) int {
	n := eventTagBytes + protowire.SizeBytes(len(e.Pair))
	if e.Deleted {
		n += eventTagBytes + 1
	}
	if e.Previous != nil {
		n += eventTagBytes + protowire.SizeBytes(len(e.Previous))
	}
	return n
}

func appendEvent(dst []byte, e *watch.Event) []byte {
	dst = protowire.AppendTag(dst, eventField, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(bodyBytes(e)))
	if e.Deleted {
		dst = protowire.AppendTag(dst, eventTypeField, protowire.VarintType)
		dst = protowire.AppendVarint(dst, uint64(mvccpb.Event_DELETE))
	}
	dst = protowire.AppendTag(dst, eventPairField, protowire.BytesType)
	dst = protowire.AppendBytes(dst, e.Pair)
	if e.Previous != nil {
		dst = protowire.AppendTag(dst, eventPreviousField, protowire.BytesType)
		dst = protowire.AppendBytes(dst, e.Previous)
	}
	return dst
}
