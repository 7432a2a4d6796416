package merge

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/kvorum/kvorum/metric"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var seed = flag.Uint64("seed", 0, "of the random test; 0: a new one")

// front is a proxy of watches before a store.
type front struct {
	t       testing.TB
	s       *store
	watches *Watches
	conn    *grpc.ClientConn
}

func newFront(t testing.TB, o WatchOptions) *front {
	t.Helper()
	f := &front{t: t, s: newStore()}
	o.Upstream = serve(t, func(s *grpc.Server) { pb.RegisterWatchServer(s, watchMember{store: f.s}) })
	o.Metrics = WatchMetrics{Watchers: new(metric.Gauge), Upstream: new(metric.Gauge), Merged: new(metric.Gauge), Spared: new(metric.Counter)}
	f.watches = NewWatches(o)
	t.Cleanup(f.watches.Close) // when the clients have gone
	f.conn = serve(t, func(s *grpc.Server) { pb.RegisterWatchServer(s, f.watches) })
	return f
}

// client is one stream.
type client struct {
	t      testing.TB
	stream pb.Watch_WatchClient
	cancel context.CancelFunc
}

func (f *front) open(headers ...string) *client {
	f.t.Helper()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), headers...))
	stream, err := pb.NewWatchClient(f.conn).Watch(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(cancel)
	return &client{f.t, stream, cancel}
}

func (c *client) ask(r *pb.WatchCreateRequest) {
	c.t.Helper()
	if err := c.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) next() *pb.WatchResponse {
	c.t.Helper()
	m, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// watch asks for a watcher and returns its id when it is there.
func (c *client) watch(r *pb.WatchCreateRequest) int64 {
	c.t.Helper()
	c.ask(r)
	m := c.next()
	if !m.Created || m.Canceled {
		c.t.Fatalf("wanted a watcher, was told %v", m)
	}
	return m.WatchId
}

func (c *client) progress() {
	c.t.Helper()
	if err := c.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) wantEvent(key string, rev int64) {
	c.t.Helper()
	m := c.next()
	if len(m.Events) != 1 || string(m.Events[0].Kv.Key) != key || m.Events[0].Kv.ModRevision != rev {
		c.t.Fatalf("wanted %s at %d, was told %v", key, rev, m)
	}
}

func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !is(); <-tick.C {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Logf("%s", buf[:runtime.Stack(buf, true)])
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// wantUpstream waits until the member has so many watchers, on so many streams.
func (f *front) wantUpstream(watchers, streams int) {
	f.t.Helper()
	await(f.t, fmt.Sprintf("%d watchers on %d streams", watchers, streams), func() bool {
		w, s := f.s.watchers()
		return w == watchers && s == streams
	})
}

func TestManyWatchersAreOne(t *testing.T) {
	f := newFront(t, WatchOptions{})
	var clients []*client
	for range 50 {
		c := f.open()
		c.watch(&pb.WatchCreateRequest{Key: []byte("a")})
		clients = append(clients, c)
	}
	f.wantUpstream(1, 1)
	rev := f.s.put("a")
	for _, c := range clients {
		c.wantEvent("a", rev)
	}
	if n := f.watches.options.Metrics.Spared.Value(); n != 49 {
		t.Errorf("%d events spared", n)
	}
	// Other keys on the same stream, another user on another.
	clients[0].watch(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("b")})
	f.wantUpstream(2, 1)
	other := f.open("token", "t")
	other.watch(&pb.WatchCreateRequest{Key: []byte("a")})
	f.wantUpstream(3, 2)
	other.cancel()
	f.wantUpstream(2, 1)
	for _, c := range clients {
		c.cancel()
	}
	f.wantUpstream(0, 0)
	for name, g := range map[string]*metric.Gauge{
		"watchers": f.watches.options.Metrics.Watchers, "upstream": f.watches.options.Metrics.Upstream, "merged": f.watches.options.Metrics.Merged,
	} {
		if g.Value() != 0 {
			t.Errorf("%s: %d left", name, g.Value())
		}
	}
}

func TestHistoryJoinsThePresent(t *testing.T) {
	f := newFront(t, WatchOptions{})
	for range 100 {
		f.s.put("a")
	}
	now := f.open()
	now.watch(&pb.WatchCreateRequest{Key: []byte("a")})
	past := f.open()
	past.watch(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 50})
	future := f.open()
	future.watch(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 103})
	for want := int64(50); want <= 101; {
		for _, e := range past.next().Events {
			if e.Kv.ModRevision != want {
				t.Fatalf("told of %d, wanted %d", e.Kv.ModRevision, want)
			}
			want++
		}
	}
	f.wantUpstream(1, 1)
	for range 2 {
		rev := f.s.put("a")
		now.wantEvent("a", rev)
		past.wantEvent("a", rev)
		if rev == 103 {
			future.wantEvent("a", rev)
		}
	}
}

func TestWhatAClientHasSeenIsPast(t *testing.T) {
	f := newFront(t, WatchOptions{})
	c := f.open()
	c.watch(&pb.WatchCreateRequest{Key: []byte("a")})
	// Another member has answered that revision 3 is there; the one that tells
	// this stream has not come so far.
	f.watches.See(7, 3)
	d := f.open()
	d.ask(&pb.WatchCreateRequest{Key: []byte("a")})
	if m := d.next(); m.Header.Revision != 3 {
		t.Fatalf("created at %d", m.Header.Revision)
	}
	for rev := int64(2); rev <= 4; rev++ {
		f.s.put("a")
		c.wantEvent("a", rev)
	}
	d.wantEvent("a", 4)
}

func TestRefusals(t *testing.T) {
	f := newFront(t, WatchOptions{})
	c := f.open()
	c.ask(&pb.WatchCreateRequest{Key: []byte("refused")})
	if m := c.next(); !m.Created || !m.Canceled || m.WatchId != -1 || m.CancelReason != "refused" {
		t.Errorf("told %v", m)
	}
	id := c.watch(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 5})
	c.ask(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 5})
	if m := c.next(); m.CancelReason != duplicateID || m.WatchId != -1 {
		t.Errorf("told %v", m)
	}
	if err := c.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}); err != nil {
		t.Fatal(err)
	}
	if m := c.next(); !m.Canceled || m.WatchId != id {
		t.Errorf("told %v", m)
	}
	f.wantUpstream(0, 0)

	for range 10 {
		f.s.put("a")
	}
	f.s.mu.Lock()
	f.s.compacted = 8
	f.s.mu.Unlock()
	c.watch(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3})
	if m := c.next(); !m.Canceled || m.CompactRevision != 8 {
		t.Errorf("told %v", m)
	}
	c.watch(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 8})
	if m := c.next(); len(m.Events) == 0 || m.Events[0].Kv.ModRevision != 8 {
		t.Errorf("told %v", m)
	}

	bad := f.open("token", "bad")
	bad.ask(&pb.WatchCreateRequest{Key: []byte("a")})
	if _, err := bad.stream.Recv(); err == nil || err.Error() != "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token" {
		t.Errorf("a bad token: %v", err)
	}
}

func TestProgressIsNeverAhead(t *testing.T) {
	f := newFront(t, WatchOptions{})
	c := f.open()
	a := c.watch(&pb.WatchCreateRequest{Key: []byte("a")})
	b := c.watch(&pb.WatchCreateRequest{Key: []byte("b")})
	at := map[int64]int64{}
	for n := range 200 {
		rev := f.s.put([]string{"a", "b", "c"}[n%3])
		c.progress()
		for told := int64(0); told < rev; {
			m := c.next()
			for _, e := range m.Events {
				at[m.WatchId] = e.Kv.ModRevision
			}
			if m.WatchId == -1 {
				told = m.Header.Revision
			}
		}
		want := map[int]int64{0: a, 1: b}
		if id, some := want[n%3]; some && at[id] != rev {
			t.Fatalf("told that all up to %d was told, but watcher %d stands at %d", rev, id, at[id])
		}
	}
}

// A client that does not read is left behind, and misses nothing.
func TestASlowClientDelaysNobody(t *testing.T) {
	f := newFront(t, WatchOptions{QueueBytesMax: 64 << 10})
	slow, fast := f.open(), f.open()
	slow.watch(&pb.WatchCreateRequest{Key: []byte("a")})
	fast.watch(&pb.WatchCreateRequest{Key: []byte("a")})
	const events = 4000
	told := make(chan struct{})
	go func() {
		defer close(told)
		for want := int64(2); want < events+2; {
			for _, e := range fast.next().Events {
				if e.Kv.ModRevision != want {
					t.Errorf("told of %d, wanted %d", e.Kv.ModRevision, want)
					return
				}
				want++
			}
		}
	}()
	for range events {
		f.s.put("a")
	}
	<-told
	for want := int64(2); want < events+2; {
		for _, e := range slow.next().Events {
			if e.Kv.ModRevision != want {
				t.Fatalf("told of %d, wanted %d", e.Kv.ModRevision, want)
			}
			want++
		}
	}
	f.wantUpstream(1, 1)
}

func TestFragments(t *testing.T) {
	f := newFront(t, WatchOptions{AnswerMax: 60})
	c := f.open()
	c.watch(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("b"), Fragment: true})
	whole := f.open()
	whole.watch(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("b")})
	var keys []string
	for n := range 10 {
		keys = append(keys, fmt.Sprintf("a%d", n))
	}
	f.s.put(keys...)
	var got []string
	pieces := 0
	for more := true; more; pieces++ {
		m := c.next()
		more = m.Fragment
		for _, e := range m.Events {
			got = append(got, string(e.Kv.Key))
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(keys) || pieces < 3 {
		t.Errorf("%d pieces: %v", pieces, got)
	}
	if m := whole.next(); len(m.Events) != 10 || m.Fragment {
		t.Errorf("told %v", m)
	}
}

// Watchers of all kinds come and go while streams break: each is told each
// event of its keys once, in order (M1), and progress is never ahead (M2).
func TestRandom(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	rnd := rand.New(rand.NewPCG(*seed, 0))
	f := newFront(t, WatchOptions{QueueBytesMax: 16 << 10})
	keys := []string{"a", "b", "c", "d"}
	const revisions = 3000
	var clients sync.WaitGroup
	begin := func(n uint64) {
		clients.Go(func() {
			rnd := rand.New(rand.NewPCG(*seed, n))
			c := f.open("token", fmt.Sprint(n%2))
			defer c.cancel()
			r := &pb.WatchCreateRequest{Key: []byte(keys[rnd.IntN(4)]), ProgressNotify: rnd.IntN(2) == 0, PrevKv: rnd.IntN(4) == 0}
			if rnd.IntN(2) == 0 {
				r.RangeEnd = []byte("e")
			}
			if rnd.IntN(2) == 0 {
				r.StartRevision = rnd.Int64N(revisions)
			}
			c.ask(r)
			m := c.next()
			next := r.StartRevision
			if next == 0 {
				next = m.Header.Revision + 1
			}
			until := revisions + 1 - int64(rnd.IntN(2)*rnd.IntN(revisions))
			for next <= until {
				if rnd.IntN(20) == 0 {
					c.progress()
				}
				m := c.next()
				if m.Canceled {
					t.Errorf("canceled: %v", m)
					return
				}
				from := next
				if n := len(m.Events); n > 0 {
					next = m.Events[n-1].Kv.ModRevision + 1
				} else {
					next = max(next, m.Header.Revision+1) // of progress
				}
				if n := f.happened(r, from, next); n != len(m.Events) {
					t.Errorf("%s %s: told %d events of [%d, %d), there were %d", r.Key, r.RangeEnd, len(m.Events), from, next, n)
				}
				if n := len(m.Events); n > 0 && m.Events[0].Kv.ModRevision < from {
					t.Errorf("%s %s: told of revision %d, wanted %d", r.Key, r.RangeEnd, m.Events[0].Kv.ModRevision, from)
				}
			}
		})
	}
	for n := range revisions {
		switch rnd.IntN(40) {
		case 0, 1:
			begin(uint64(n))
		case 2:
			if n%4 == 0 {
				f.s.breakAll()
			}
		}
		from := rnd.IntN(3)
		f.s.put(keys[from : from+1+rnd.IntN(2)]...)
		if rnd.IntN(10) == 0 {
			runtime.Gosched()
		}
	}
	// Progress brings those to the end whose keys were quiet.
	done := make(chan struct{})
	go func() {
		defer close(done)
		clients.Wait()
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; {
		select {
		case <-done:
			f.wantUpstream(0, 0)
			return
		case <-tick.C:
			f.s.put(keys...)
			if time.Now().After(end) {
				buf := make([]byte, 1<<20)
				t.Fatalf("clients were not told all:\n%s", buf[:runtime.Stack(buf, true)])
			}
		}
	}
}

// happened returns how many events of r there were in [from, to).
func (f *front) happened(r *pb.WatchCreateRequest, from, to int64) (n int) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	at, _ := slices.BinarySearchFunc(f.s.events, from, func(e *mvccpb.Event, from int64) int { return int(e.Kv.ModRevision - from) })
	for _, e := range f.s.events[at:] {
		if e.Kv.ModRevision >= to {
			break
		}
		if within(r, e.Kv.Key) {
			n++
		}
	}
	return n
}
