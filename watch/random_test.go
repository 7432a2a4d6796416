package watch

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/state"
)

// store is a machine and a hub that hears of what it applies, as on a member.
type store struct {
	t       testing.TB
	machine *state.Machine
	hub     *Hub
}

func newStore(t testing.TB, o Options) *store {
	t.Helper()
	s := &store{t: t, machine: newMachine(t)}
	o.View = s.machine.View
	s.hub = New(o)
	return s
}

func newMachine(t testing.TB) *state.Machine {
	t.Helper()
	m, err := state.Open(state.Options{Memory: state.NewMemory()})
	want(t, err)
	t.Cleanup(func() { want(t, m.Close()) })
	want(t, m.Bootstrap(state.Genesis{Cluster: 1, Index: 1, Term: 1}))
	return m
}

func want(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func apply(t testing.TB, m *state.Machine, commands ...[]byte) []state.Outcome {
	t.Helper()
	index, _ := m.Applied()
	outcomes, err := m.Apply([]state.Entry{{Index: index + 1, Term: 1, Commands: commands}})
	want(t, err)
	return outcomes
}

// apply applies commands as one batch.
func (s *store) apply(commands ...[]byte) {
	s.t.Helper()
	outcomes := apply(s.t, s.machine, commands...)
	s.hub.Publish(outcomes, s.machine.View().Revision)
}

func command(kind state.Kind, request proto.Message) []byte {
	encoded, err := state.Command{Kind: kind, Request: request}.Append(nil)
	if err != nil {
		panic(err)
	}
	return encoded
}

func put(key, value string) []byte {
	return command(state.Put, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
}

func del(key, end string) []byte {
	return command(state.DeleteRange, &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
}

func grant(lease int64) []byte {
	return command(state.LeaseGrant, &pb.LeaseGrantRequest{ID: lease, TTL: 60})
}

func putOn(key string, lease int64) []byte {
	return command(state.Put, &pb.PutRequest{Key: []byte(key), Lease: lease})
}

func compact(at state.Revision) []byte {
	return command(state.Compact, &pb.CompactionRequest{Revision: int64(at)})
}

// record is one event as the model has it.
type record struct {
	state.Event
	previous []byte
}

// world is a member that follows another one, from which it hears entries and
// now and then a snapshot, and the history of both.
type world struct {
	*store
	leader *state.Machine

	mu struct {
		sync.Mutex
		changed sync.Cond
		history []record
		pairs   map[string][]byte
		ended   bool
	}
}

// remember adds the events of outcomes to the history. Listeners hear of them
// later.
func (w *world) remember(outcomes []state.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range outcomes {
		for _, e := range o.Events {
			w.mu.history = append(w.mu.history, record{e, w.mu.pairs[string(e.Key)]})
			w.mu.pairs[string(e.Key)] = e.Pair
			if e.Deleted {
				delete(w.mu.pairs, string(e.Key))
			}
		}
	}
	w.mu.changed.Broadcast()
}

// TestRandom lets many streams of many watchers listen to a random history
// while it happens, some of them too slowly, and holds all they were told
// against it.
func TestRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for i := range uint64(6) {
		t.Run(fmt.Sprint("seed=", seed+i), func(t *testing.T) {
			t.Parallel()
			testRandom(t, rand.New(rand.NewPCG(seed+i, 1)))
		})
	}
}

const lastFrom = 1500 // no watcher begins later

func testRandom(t *testing.T, r *rand.Rand) {
	s := newStore(t, Options{RecentBytes: 1 + r.Int64N(40_000), ProgressInterval: time.Duration(1+r.IntN(20)) * time.Millisecond})
	s.hub.limits = limits{
		queueEvents: 1 + r.IntN(60), queueBytes: 1 + r.Int64N(20_000), unread: 1 + r.IntN(4),
		messageBytes: 1 + r.IntN(500), pieceBytes: 1 + r.Int64N(5000), pieceRevisions: state.Revision(1 + r.IntN(200)),
	}
	w := &world{store: s, leader: newMachine(t)}
	w.mu.changed.L = &w.mu
	w.mu.pairs = map[string][]byte{}

	var listening sync.WaitGroup
	for range 1 + r.IntN(8) {
		l := &listener{world: w, stream: w.hub.Open(), watchers: map[int64]*watcher{}, by: rand.New(rand.NewPCG(r.Uint64(), 2))}
		asking := rand.New(rand.NewPCG(r.Uint64(), 3))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		listening.Go(func() { l.ask(ctx, asking) })
		listening.Go(func() {
			defer l.stream.Close()
			defer cancel()
			l.listen(ctx)
		})
	}

	key := func() string { return string(rune('a' + r.IntN(8))) }
	for w.leader.View().Revision < lastFrom+10 {
		var commands [][]byte
		for range 1 + r.IntN(20) {
			switch k := key(); r.IntN(8) {
			case 6:
				// Both end in one command, each at a revision of its own.
				commands = append(commands, grant(1), grant(2), putOn("l"+k, 1), putOn("m"+k, 1), putOn(k, 2),
					command(state.LeaseExpire, &pb.LeaseLeasesResponse{Leases: []*pb.LeaseStatus{{ID: 2}, {ID: 1}}}))
			case 0:
				commands = append(commands, del(k, ""))
			case 1:
				commands = append(commands, del(k, string(rune(k[0])+rune(r.IntN(4)))))
			case 2:
				commands = append(commands, command(state.Txn, &pb.TxnRequest{Success: []*pb.RequestOp{
					{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("x" + k), Value: []byte("1")}}},
					{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k), Value: []byte("2")}}},
					{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("y" + k), Value: []byte("3")}}},
				}}))
			default:
				commands = append(commands, put(k, string(make([]byte, r.IntN(100)))))
			}
		}
		if revision := w.leader.View().Revision; r.IntN(15) == 0 {
			commands = append(commands, compact(revision-state.Revision(r.IntN(100))))
		}
		w.remember(apply(t, w.leader, commands...))

		switch r.IntN(20) {
		case 0: // not heard
		case 1:
			w.snapshot()
		default:
			if mine, _ := w.machine.Applied(); mine+1 == w.leader.View().Index {
				w.apply(commands...)
			}
		}
		if r.IntN(5) == 0 {
			_, err := w.machine.Sweep(1 + r.IntN(100))
			want(t, err)
		}
	}
	w.snapshot()
	w.mu.Lock()
	w.mu.ended = true
	w.mu.changed.Broadcast()
	w.mu.Unlock()
	listening.Wait()

	if !w.hub.mu.index.empty() || len(w.hub.mu.streams) > 0 {
		t.Error("closed streams are still heard of")
	}
}

// snapshot brings the follower up to the leader.
func (w *world) snapshot() {
	if mine, _ := w.machine.Applied(); mine == w.leader.View().Index {
		return
	}
	var b bytes.Buffer
	_, err := w.leader.WriteSnapshot(&b)
	want(w.t, err)
	want(w.t, w.machine.Restore(&b))
	w.hub.Restore(w.machine.View().Revision)
}

// listener is a client, which asks and listens at the same time.
type listener struct {
	*world
	stream   *Stream
	by       *rand.Rand
	watchers map[int64]*watcher // owned by listen
	events   []Event            // of the last message that had any

	mu struct {
		sync.Mutex
		requests []Request // that were not refused, in the order of their ids
	}
}

// watcher is what one watcher was told.
type watcher struct {
	Request
	floor    state.Revision
	heard    int // of what it should hear
	last     state.Revision
	canceled bool
}

const last = 1000 // the id of the watcher that is made at the end

func (l *listener) ask(ctx context.Context, r *rand.Rand) {
	ask := func(q Request) {
		l.mu.Lock()
		l.mu.requests = append(l.mu.requests, q)
		l.mu.Unlock()
		if err := l.stream.Watch(ctx, q); err != nil && ctx.Err() == nil {
			l.t.Error(err)
		}
	}
	var made []int64
	for id := int64(2); id < 40; id++ {
		if r.IntN(3) == 0 {
			l.pause(r)
		}
		switch r.IntN(8) {
		case 0:
			if len(made) > 0 {
				if err := l.stream.Cancel(ctx, made[r.IntN(len(made))]); err != nil && ctx.Err() == nil {
					l.t.Error(err)
				}
			}
		case 1:
			l.stream.Progress()
		default:
			q := Request{
				ID: id, NoPut: r.IntN(5) == 0, NoDelete: r.IntN(5) == 0,
				Previous: r.IntN(2) == 0, Progress: r.IntN(3) == 0,
			}
			key := byte('a' + r.IntN(8))
			q.Span.Key = []byte{key}
			switch r.IntN(4) {
			case 0:
				q.Span.End = []byte{key + 1 + byte(r.IntN(4))}
			case 1:
				q.Span.End = []byte{0}
			}
			if r.IntN(2) == 0 {
				q.From = state.Revision(1 + r.IntN(lastFrom))
			} else if r.IntN(2) == 0 {
				q.From = max(1, l.machine.View().Revision-state.Revision(r.IntN(50)))
			}
			made = append(made, id)
			ask(q)
		}
	}
	l.wait(func() bool { return false })
	ask(Request{ID: last, Span: state.Span{Key: []byte{0}, End: []byte{0}}})
	l.stream.Progress()
}

// pause waits until some more has happened.
func (l *listener) pause(r *rand.Rand) {
	more := r.IntN(150)
	from := -1
	l.wait(func() bool {
		if from < 0 {
			from = len(l.world.mu.history)
		}
		return len(l.world.mu.history) >= from+more
	})
}

// wait waits until something holds, or all has happened.
func (l *listener) wait(holds func() bool) {
	w := l.world
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.mu.ended && !holds() {
		w.mu.changed.Wait()
	}
}

func (l *listener) listen(ctx context.Context) {
	for {
		if l.by.IntN(20) == 0 {
			l.pause(l.by)
		}
		m, err := l.stream.Next(ctx)
		for more := true; more && err == nil; {
			l.check(m)
			if l.watchers[last] != nil && m.ID == NoID {
				if end := l.machine.View().Revision; m.Revision != end {
					l.t.Errorf("at the end %d is said to be reached, not %d", m.Revision, end)
				}
				return
			}
			if more = l.by.IntN(4) > 0; more {
				m, more, err = l.stream.More()
			}
		}
		if err != nil {
			l.t.Error(err)
			return
		}
	}
}

func (l *listener) check(m Message) {
	switch w := l.watchers[m.ID]; {
	case m.ID == NoID && m.Created:
		l.t.Errorf("refused: %+v", m)
	case m.ID == NoID:
		for _, w := range l.watchers {
			l.reached(w, m.Revision)
		}
	case m.Created:
		if w != nil {
			l.t.Errorf("watcher %d is made again", m.ID)
		}
		l.mu.Lock()
		i := slices.IndexFunc(l.mu.requests, func(q Request) bool { return q.ID == m.ID })
		w = &watcher{Request: l.mu.requests[i]}
		l.mu.Unlock()
		if w.floor = w.From; w.From == 0 {
			w.floor = m.Revision + 1
		}
		l.watchers[m.ID] = w
	case w == nil || w.canceled && m.Compacted != 0 || w.canceled && !m.Canceled:
		l.t.Errorf("nobody is called %d: %+v", m.ID, m)
	case m.Canceled:
		w.canceled = true
		if m.Compacted != 0 && m.Compacted <= w.floor {
			l.t.Errorf("watcher %d from %d is canceled by a compaction at %d", m.ID, w.floor, m.Compacted)
		}
	case m.Progress():
		l.reached(w, m.Revision)
	default:
		l.hear(w, m)
	}
}

// due returns what a watcher has to hear.
func (l *listener) due(w *watcher) (due []record) {
	l.world.mu.Lock()
	defer l.world.mu.Unlock()
	for _, e := range l.world.mu.history {
		filtered := e.Deleted && w.NoDelete || !e.Deleted && w.NoPut
		if e.Revision >= w.floor && w.Span.Contains(e.Key) && !filtered {
			due = append(due, e)
		}
	}
	return due
}

func (l *listener) hear(w *watcher, m Message) {
	if m.Same {
		if !slices.EqualFunc(m.Events, l.events, func(a, b Event) bool { return a.Event == b.Event && a.Previous == nil && b.Previous == nil }) {
			l.t.Errorf("watcher %d is told that it hears the same, and hears something else", w.ID)
		}
	}
	l.events = append(l.events[:0], m.Events...)
	due := l.due(w)
	if w.heard+len(m.Events) > len(due) {
		l.t.Fatalf("watcher %d hears more than there is: %d events behind %d of %d", w.ID, len(m.Events), w.heard, len(due))
	}
	if m.Events[0].Revision <= w.last {
		l.t.Errorf("watcher %d hears of revision %d twice", w.ID, w.last)
	}
	for i, e := range m.Events {
		must := due[w.heard+i]
		if e.Revision != must.Revision || e.Sub != must.Sub || e.Deleted != must.Deleted || !bytes.Equal(e.Pair, must.Pair) {
			l.t.Fatalf("watcher %d %+v hears of %d/%d %s, not of %d/%d %s", w.ID, w.Request, e.Revision, e.Sub, e.Key, must.Revision, must.Sub, must.Key)
		}
		gone := must.Revision <= l.machine.View().Compacted
		if !w.Previous && e.Previous != nil || w.Previous && !bytes.Equal(e.Previous, must.previous) && !(gone && e.Previous == nil) {
			l.t.Errorf("watcher %d hears that revision %d replaced %q, not %q", w.ID, e.Revision, e.Previous, must.previous)
		}
	}
	w.heard += len(m.Events)
	w.last = m.Events[len(m.Events)-1].Revision
	if m.Revision < w.last || w.heard < len(due) && due[w.heard].Revision <= m.Revision {
		l.t.Errorf("watcher %d is told that it is at %d, and was told up to %d", w.ID, m.Revision, w.last)
	}
}

// reached expects that a watcher has heard all up to a revision.
func (l *listener) reached(w *watcher, at state.Revision) {
	if w.canceled {
		return
	}
	if due := l.due(w); w.heard < len(due) && due[w.heard].Revision <= at {
		l.t.Errorf("watcher %d %+v has not heard of revision %d, and %d is said to be reached", w.ID, w.Request, due[w.heard].Revision, at)
	}
	if at < w.floor-1 || at < w.last {
		l.t.Errorf("watcher %d from %d that was told of %d is sent back to %d", w.ID, w.floor, w.last, at)
	}
}
