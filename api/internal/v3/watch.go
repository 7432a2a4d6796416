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

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/wire"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/rpc"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/watch"
)

// WatchMetrics are the times in seconds that it takes to send what watchers
// are told, as much as is sent together.
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
	t := teller{server: s.server, stream: stream}
	for {
		m, err := told.Next(ctx)
		if err == nil {
			err = t.tell(m, told.More)
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
	var came rpc.Messages
	for {
		if err := stream.RecvMsg(&came); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		for b := range came.All() {
			q := new(pb.WatchRequest)
			if !wire.Watch(b, q) {
				return malformed(b, q)
			}
			if err := request(ctx, q, told); err != nil {
				return err
			}
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

// teller sends what one client is told.
type teller struct {
	*server
	stream  watchStream
	answers rpc.Messages
	answer  pb.WatchResponse // but for its events, and used again
	header  pb.ResponseHeader
	events  []byte // of the last message that was told whole, encoded; they lie in answers
	since   time.Time
	told    int // events among the answers
	control bool
	place   bool
}

// togetherBytes is how many bytes of answers are sent together: enough that
// sending costs little beside them.
const togetherBytes = 32 << 10

// tell sends a message, and with it what is at hand beside it.
func (t *teller) tell(m watch.Message, more func() (watch.Message, bool, error)) (err error) {
	t.since = time.Now()
	t.fill(&t.header)
	for ok := true; ok; m, ok, err = more() {
		t.add(m)
		if t.answers.Bytes() >= togetherBytes {
			if err := t.send(); err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	return t.send()
}

// add puts a message among the answers, in as many as its watcher wants.
func (t *teller) add(m watch.Message) {
	t.header.Revision = int64(m.Revision)
	t.answer.Header, t.answer.WatchId = &t.header, m.ID
	t.answer.Created, t.answer.Canceled, t.answer.CancelReason = m.Created, m.Canceled, m.Reason
	t.answer.CompactRevision, t.answer.Fragment = int64(m.Compacted), false
	t.told += len(m.Events)
	if m.Progress() {
		t.place = true
	} else if len(m.Events) == 0 {
		t.control = true
	}
	switch {
	case m.Same && t.events != nil:
		t.answers.Add(func(out []byte) []byte { return append(wire.AppendWatch(out, &t.answer), t.events...) })
		return
	case !m.Fragment:
		t.addEvents(m.Events)
		return
	}
	left := m.Events
	for {
		n := fragment(left, t.options.AnswerBytesMax)
		t.answer.Fragment = n < len(left)
		t.addEvents(left[:n])
		t.events = nil // not all of them
		if left = left[n:]; len(left) == 0 {
			return
		}
	}
}

func (t *teller) addEvents(events []watch.Event) {
	t.answers.Add(func(out []byte) []byte {
		out = wire.AppendWatch(out, &t.answer)
		before := len(out)
		for i := range events {
			out = wire.AppendEvent(out, kind(&events[i]), events[i].Pair, events[i].Previous)
		}
		if len(events) > 0 {
			t.events = out[before:]
		}
		return out
	})
}

// send sends the answers that there are.
func (t *teller) send() error {
	t.events = nil
	if err := t.stream.SendMsg(&t.answers); err != nil {
		return err
	}
	took, metrics := time.Since(t.since).Seconds(), &t.options.Watch
	if t.told > 0 {
		metrics.Events.Observe(took)
		metrics.Event.Observe(took / float64(t.told))
	}
	if t.control {
		metrics.Control.Observe(took)
	}
	if t.place {
		metrics.Progress.Observe(took)
	}
	t.since, t.told, t.control, t.place = time.Now(), 0, false, false
	return nil
}

// fragment returns how many events stay below a size together; it is one at
// least, if there is one.
func fragment(events []watch.Event, bytesMax int) int {
	size := 0
	for i := range events {
		if size += wire.EventBytes(kind(&events[i]), events[i].Pair, events[i].Previous); size >= bytesMax && i > 0 {
			return i
		}
	}
	return len(events)
}

func kind(e *watch.Event) mvccpb.Event_EventType {
	if e.Deleted {
		return mvccpb.Event_DELETE
	}
	return mvccpb.Event_PUT
}
