package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const cluster = 0xc1

// patience is for what should take no time, on a machine that has other work.
const patience = time.Minute

// node is a member in a test.
type node struct {
	t        *testing.T
	p        *Peers
	url      string
	dir      string
	messages chan *pb.Message
	files    chan string
	sent     chan bool // snapshots, as they ended
	lost     chan uint64
	evicted  chan uint64
	stop     func()
	log      *lines
}

// lines is a log that a test can read.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func options() Options {
	return Options{
		Cluster: cluster, Incarnation: 1, Version: "3.7.3",
		DialTimeout: patience, ReadTimeout: patience, WriteTimeout: patience,
		PingInterval: 250 * time.Millisecond, DrainTime: patience,
		BackoffMin: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
	}
}

func start(t *testing.T, id uint64, change ...func(*Options)) *node {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return startOn(t, l, id, change...)
}

func startOn(t *testing.T, l net.Listener, id uint64, change ...func(*Options)) *node {
	t.Helper()
	n := &node{
		t: t, url: "http://" + l.Addr().String(), dir: t.TempDir(), log: &lines{},
		messages: make(chan *pb.Message, 1<<20), files: make(chan string, 100),
		sent: make(chan bool, 100), lost: make(chan uint64, 1<<20), evicted: make(chan uint64, 1),
	}
	o := options()
	o.ID, o.Dir = id, n.dir
	o.Deliver = func(m *pb.Message) { n.messages <- m }
	o.Lost = func(id uint64) {
		select {
		case n.lost <- id:
		default:
		}
	}
	o.SnapshotSent = func(_ uint64, ok bool) { n.sent <- ok }
	o.SnapshotReceived = func(m *pb.Message, file string) error {
		n.files <- file
		n.messages <- m
		return nil
	}
	o.Evicted = func(by uint64) { n.evicted <- by }
	o.Logger = slog.New(slog.NewTextHandler(n.log, nil))
	o.Metrics = metrics()
	for _, c := range change {
		c(&o)
	}
	var err error
	n.p, err = New(o)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.p.Run(ctx, l) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(patience):
			t.Errorf("member %d does not stop", id)
		}
	})
	t.Cleanup(n.stop)
	return n
}

func metrics() Metrics {
	counters := func(labels ...string) *metric.Family[metric.Counter] {
		return metric.NewFamily(metric.NewCounter, labels...)
	}
	gauges := func(labels ...string) *metric.Family[metric.Gauge] {
		return metric.NewFamily(metric.NewGauge, labels...)
	}
	seconds := func(labels ...string) *metric.Family[metric.Histogram] {
		return metric.NewFamily(func() *metric.Histogram { return metric.NewHistogram(0.0001, 2, 16) }, labels...)
	}
	return Metrics{
		SentBytes: counters("To"), ReceivedBytes: counters("From"),
		SentFailures: counters("To"), ReceivedFailures: counters("From"),
		RoundTrip: seconds("To"), Active: gauges("Local", "Remote"), Known: gauges("Local", "Remote"),
		Disconnected: counters("Local", "Remote"),
		SnapshotSent: counters("To"), SnapshotSendFailures: counters("To"), SnapshotSending: gauges("To"), SnapshotSendSeconds: seconds("To"),
		SnapshotReceived: counters("From"), SnapshotReceiveFailures: counters("From"), SnapshotReceiving: gauges("From"), SnapshotReceiveSeconds: seconds("From"),
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		pause()
	}
}

func pause() { <-time.After(time.Millisecond) }

func (n *node) id() uint64 { return n.p.o.ID }

// meet makes members known to each other.
func meet(nodes ...*node) {
	var all []Member
	for _, n := range nodes {
		all = append(all, Member{n.id(), []string{n.url}})
	}
	for _, n := range nodes {
		n.p.Observe(Membership{Index: 1, Members: all})
	}
}

func connected(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, a := range nodes {
		for _, b := range nodes {
			eventually(t, fmt.Sprintf("%d connected to %d: %v", a.id(), b.id(), a.p.Status()), func() bool {
				return a.p.Connected(b.id()) && a.p.logUp(b.id())
			})
		}
	}
}

// logUp tells whether the log lane has a connection.
func (p *Peers) logUp(id uint64) bool {
	m := (*p.members.Load())[id]
	if m == nil {
		return id == p.o.ID
	}
	return p.o.Metrics.SentBytes.With(hex(id)).Value() > 0 && !m.lanes[1].isDown()
}

func (l *lane) isDown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.down
}

func message(t pb.MessageType, from, to *node, index uint64, entry []byte) *pb.Message {
	m := &pb.Message{Type: t.Enum(), From: proto.Uint64(from.id()), To: proto.Uint64(to.id()), Term: proto.Uint64(1), Index: &index}
	if entry != nil {
		m.Entries = []*pb.Entry{{Term: proto.Uint64(1), Index: &index, Data: entry}}
	}
	return m
}

func (n *node) next() *pb.Message {
	n.t.Helper()
	select {
	case m := <-n.messages:
		return m
	case <-time.After(patience):
		n.t.Fatalf("member %d gets nothing\n%s", n.id(), n.log)
		return nil
	}
}

func TestMessagesArriveInOrder(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	meet(a, b)
	connected(t, a, b)
	const count = 3000
	go func() {
		for i := range uint64(count) {
			a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, i, bytes.Repeat([]byte{byte(i)}, int(i%500)))})
			if i%2 == 0 {
				a.p.Send([]*pb.Message{message(pb.MsgHeartbeat, a, b, i, nil)})
			}
		}
	}()
	next := map[pb.MessageType]uint64{}
	for range count + count/2 {
		m := b.next()
		if m.GetIndex() != next[m.GetType()] {
			t.Fatalf("%s %d arrives, want %d", m.GetType(), m.GetIndex(), next[m.GetType()])
		}
		next[m.GetType()]++
		if m.GetType() == pb.MsgHeartbeat {
			next[m.GetType()]++
		} else if want := bytes.Repeat([]byte{byte(m.GetIndex())}, int(m.GetIndex()%500)); !bytes.Equal(m.Entries[0].Data, want) {
			t.Fatalf("entry %d is %x", m.GetIndex(), m.Entries[0].Data)
		}
	}
	eventually(t, "a round trip is known", func() bool { return a.p.Status()[0].RoundTrip > 0 })
	s := a.p.Status()[0]
	if s.ID != 2 || s.Version != "3.7.3" || s.Active.IsZero() || s.Err != nil || s.ClockAhead.Abs() > s.RoundTrip {
		t.Errorf("status: %+v", s)
	}
}

func TestCalls(t *testing.T) {
	a, b := start(t, 1, func(o *Options) { o.CallsMax = 4 }), start(t, 2)
	entered, release := make(chan struct{}, 10), make(chan struct{})
	left := make(chan time.Duration, 10) // until the deadline of a call
	a.p.Handle("echo", func(_ context.Context, from uint64, body []byte) ([]byte, error) {
		return fmt.Appendf(nil, "%d: %s", from, body), nil
	})
	a.p.Handle("refuse", func(context.Context, uint64, []byte) ([]byte, error) {
		return nil, fmt.Errorf("wrapped: %w", fault.LeaseNotFound)
	})
	a.p.Handle("newer", func(context.Context, uint64, []byte) ([]byte, error) {
		return nil, &fault.Fault{Code: fault.NotFound, Text: "of tomorrow"}
	})
	a.p.Handle("fail", func(context.Context, uint64, []byte) ([]byte, error) { return nil, errors.New("disk on fire") })
	a.p.Handle("patience", func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
		end, _ := ctx.Deadline()
		left <- time.Until(end)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	a.p.Handle("wait", func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
		entered <- struct{}{}
		select {
		case <-release:
			return nil, nil
		case <-ctx.Done():
			entered <- struct{}{}
			return nil, ctx.Err()
		}
	})
	meet(a, b)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	got, err := b.p.Call(ctx, 1, "echo", []byte("hi"))
	if err != nil || string(got) != "2: hi" {
		t.Errorf("echo: %q, %v", got, err)
	}
	if _, err = b.p.Call(ctx, 1, "refuse", nil); err != fault.LeaseNotFound {
		t.Errorf("a refusal: %v", err)
	}
	if _, err = b.p.Call(ctx, 1, "newer", nil); fault.Of(err) == nil || fault.Of(err).Code != fault.NotFound || err.Error() != "of tomorrow" {
		t.Errorf("a refusal of tomorrow: %v", err)
	}
	if _, err = b.p.Call(ctx, 1, "fail", nil); err == nil || fault.Of(err) != nil || errors.Is(err, errUnreachable) {
		t.Errorf("a failure: %v", err)
	}
	if _, err = b.p.Call(ctx, 1, "nonsense", nil); err == nil {
		t.Error("a method that is not there answers")
	}
	if _, err = b.p.Call(ctx, 9, "echo", nil); !errors.Is(err, errUnreachable) {
		t.Errorf("a call of nobody: %v", err)
	}

	// The caller's patience reaches the handler, by deadline and by cancel.
	for limit, arrived := 50*time.Millisecond, false; !arrived; limit *= 2 {
		short, cancelShort := context.WithTimeout(ctx, limit)
		if _, err = b.p.Call(short, 1, "patience", nil); err == nil {
			t.Error("a call outlives its deadline")
		}
		cancelShort()
		select {
		case rest := <-left:
			if arrived = true; rest > limit {
				t.Errorf("a call that ends in %v may take %v", limit, rest)
			}
		default: // it ended on its way
		}
	}
	quit, cancelQuit := context.WithCancel(context.Background()) // no deadline tells the other side
	go func() { <-entered; cancelQuit() }()
	if _, err = b.p.Call(quit, 1, "wait", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled call: %v", err)
	}
	select {
	case <-entered:
	case <-ctx.Done():
		t.Fatal("the handler of a canceled call goes on")
	}

	// No more than four at a time.
	errs := make(chan error, 10)
	for range 4 {
		go func() { _, err := b.p.Call(ctx, 1, "wait", nil); errs <- err }()
		<-entered
	}
	if _, err = b.p.Call(ctx, 1, "wait", nil); err != fault.TooManyRequests {
		t.Errorf("the fifth: %v", err)
	}
	close(release)
	for range 4 {
		must(t, <-errs)
	}

	// A call under way when the connection ends may have been executed.
	gone := make(chan struct{})
	a.p.Handle("leave", func(context.Context, uint64, []byte) ([]byte, error) {
		go a.stop()
		<-gone
		return nil, nil
	})
	if _, err = b.p.Call(ctx, 1, "leave", nil); !errors.Is(err, ErrLost) || errors.Is(err, errUnreachable) {
		t.Errorf("a call that was cut: %v", err)
	}
	close(gone)
	a.stop()
	eventually(t, "calls fail at once", func() bool {
		_, err := b.p.Call(ctx, 1, "echo", nil)
		return errors.Is(err, errUnreachable)
	})
}

// machine writes a snapshot of n bytes.
func machine(index uint64, n int) func(*Options) {
	return func(o *Options) {
		o.WriteSnapshot = func(_ context.Context, _ uint64, w io.Writer) (*pb.SnapshotMetadata, error) {
			if _, err := w.Write(pattern(n)); err != nil {
				return nil, err
			}
			return metadata(index), nil
		}
	}
}

func metadata(index uint64) *pb.SnapshotMetadata {
	return &pb.SnapshotMetadata{Index: &index, Term: proto.Uint64(3), ConfState: &pb.ConfState{Voters: []uint64{1, 2}}}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 7)
	}
	return b
}

func snapshot(from, to *node, term, index uint64) *pb.Message {
	m := message(pb.MsgSnap, from, to, 0, nil)
	m.Term = &term
	m.Snapshot = &pb.Snapshot{Metadata: metadata(index)}
	return m
}

func (n *node) snapshotEnd() bool {
	n.t.Helper()
	select {
	case ok := <-n.sent:
		return ok
	case <-time.After(patience):
		n.t.Fatalf("the snapshot never ends\n%s", n.log)
		return false
	}
}

func TestSnapshot(t *testing.T) {
	const size = 1<<20 + 17
	a, b := start(t, 1, machine(70, size)), start(t, 2)
	meet(a, b)
	a.p.Send([]*pb.Message{snapshot(a, b, 5, 60)})
	m := b.next()
	file := <-b.files
	if !a.snapshotEnd() {
		t.Fatal(a.log)
	}
	if meta := m.GetSnapshot().GetMetadata(); m.GetTerm() != 5 || meta.GetIndex() != 70 || meta.GetTerm() != 3 || len(meta.GetConfState().GetVoters()) != 2 {
		t.Errorf("the message says %v", m)
	} else if file != filepath.Join(b.dir, SnapshotFile(meta)) {
		t.Errorf("the file is %s", file)
	}
	got, err := os.ReadFile(file)
	must(t, err)
	if !bytes.Equal(got, pattern(size)) {
		t.Error("the data differs")
	}
	wantFiles(t, b.dir, filepath.Base(file))
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, f := range files {
		got = append(got, f.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("files %v, want %v", got, want)
	}
}
