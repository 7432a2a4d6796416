package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func everything(from state.Revision) Request {
	return Request{Span: state.Span{Key: []byte{0}, End: []byte{0}}, From: from}
}

// next returns a message that is there, or none.
func next(t *testing.T, s *Stream) (Message, bool) {
	t.Helper()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := s.Next(ended)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return m, err == nil
}

// The index finds those whose span holds a key, whatever came and went before.
func TestIndexAgainstEverySpan(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	word := func() string { return string([]byte{'a' + byte(r.IntN(6)), 'a' + byte(r.IntN(6))}[:1+r.IntN(2)]) }
	var streams [20]*Stream
	for i := range streams {
		streams[i] = new(Stream)
	}
	x := newIndex()
	in := map[*sub]bool{}
	for range 5000 {
		if r.IntN(3) > 0 {
			key, end := word(), ""
			switch r.IntN(4) {
			case 0:
				end = "\x00"
			case 1, 2:
				if end = word(); end <= key {
					end = ""
				}
			}
			in[x.add(streams[r.IntN(len(streams))], key, end)] = true
		} else {
			for gone := range in {
				x.remove(gone)
				delete(in, gone)
				break
			}
		}
		key := word()
		var want, got []string
		for sub := range in {
			if (state.Span{Key: []byte(sub.key), End: []byte(sub.end)}).Contains([]byte(key)) {
				want = append(want, fmt.Sprintf("%p", sub))
			}
		}
		for _, g := range x.find(nil, []byte(key)) {
			for _, sub := range g.subs {
				got = append(got, fmt.Sprintf("%p", sub))
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%d listen to %s, want %d of %d", len(got), key, len(want), len(in))
		}
	}
}

// What waits for a client that does not read is bounded, and what it missed is
// there when it reads, from memory or from the table.
func TestAQueueIsBounded(t *testing.T) {
	for _, recentBytes := range []int64{1, 64 << 20} {
		s := newStore(t, Options{RecentBytes: recentBytes})
		stream := s.hub.Open()
		want(t, stream.Watch(t.Context(), everything(0)))
		const puts, each = 20_000, 100
		for range puts / each {
			s.apply(slices.Repeat([][]byte{put("k", "v")}, each)...)
			if n := len(stream.mu.queue); n > usual.queueEvents || stream.mu.bytes > usual.queueBytes {
				t.Fatalf("%d events of %d bytes wait", n, stream.mu.bytes)
			}
		}
		heard := state.Revision(1)
		for m, ok := next(t, stream); ok; m, ok = next(t, stream) {
			for _, e := range m.Events {
				if heard++; e.Revision != heard {
					t.Fatalf("heard of %d, not of %d", e.Revision, heard)
				}
			}
		}
		if heard != puts+1 {
			t.Errorf("heard up to %d of %d", heard, puts+1)
		}
		stream.Close()
	}
}

// A watcher that waits for a later revision hears nothing before it, also when
// the state is replaced meanwhile.
func TestAStartIsAFloorForEver(t *testing.T) {
	s := newStore(t, Options{})
	stream := s.hub.Open()
	defer stream.Close()
	want(t, stream.Watch(t.Context(), everything(6)))
	next(t, stream)
	for i := range 10 {
		if i == 2 {
			s.hub.Restore(s.machine.View().Revision)
		}
		s.apply(put("k", "v"))
		m, ok := next(t, stream)
		if revision := s.machine.View().Revision; ok != (revision >= 6) || ok && m.Events[0].Revision != revision {
			t.Errorf("at %d: %v, %+v", revision, ok, m)
		}
	}
}

// Of those who listen to one key, all hear what one was laid out, but for those
// who want it in a way of their own.
func TestManyHearTheSame(t *testing.T) {
	s := newStore(t, Options{})
	stream := s.hub.Open()
	defer stream.Close()
	span := state.Span{Key: []byte("k")}
	for _, q := range []Request{
		{Span: span}, {Span: span}, {Span: span}, {Span: span, NoPut: true}, {Span: span}, {Span: span, From: 3},
		{Span: span}, {Span: span, Previous: true}, {Span: span}, {Span: state.Span{Key: []byte("other")}},
	} {
		want(t, stream.Watch(t.Context(), q))
	}
	for {
		if _, created := next(t, stream); !created {
			break
		}
	}
	s.apply(put("k", "1"), put("k", "2"), put("other", "1"))
	same := 0
	told := map[int64]int{}
	m, ok := next(t, stream)
	for ok {
		told[m.ID] = len(m.Events)
		if last := m.Events[len(m.Events)-1].Revision; m.Revision != last {
			t.Errorf("%d is said to be at %d, and hears of %d", m.ID, m.Revision, last)
		}
		if m.Same {
			same++
		}
		var err error
		m, ok, err = stream.More()
		want(t, err)
	}
	if want := map[int64]int{0: 2, 1: 2, 2: 2, 4: 2, 5: 1, 6: 2, 7: 2, 8: 2, 9: 1}; !maps.Equal(told, want) {
		t.Errorf("told so many events: %v, want %v", told, want)
	}
	if same != 2 { // where one of those who hear all stands behind another
		t.Errorf("%d hear the same", same)
	}
}

// Who reads old history leaves time to those who write, between two pieces.
func TestReadersOfOldHistoryRest(t *testing.T) {
	s := newStore(t, Options{Rest: 1e9})
	s.hub.limits.pieceRevisions = 2
	stream := s.hub.Open()
	defer stream.Close()
	for range 20 {
		s.apply(put("k", "v"))
	}
	want(t, stream.Watch(t.Context(), everything(2)))
	for told := 0; told < 10; {
		m, ok := next(t, stream)
		if !ok {
			t.Fatalf("it waits after %d events, and nobody wrote", told)
		}
		told += len(m.Events)
	}
	s.apply(put("k", "v"))
	if m, ok := next(t, stream); ok {
		t.Fatalf("it does not rest: %+v", m)
	}
	s.apply(put("k", "v"))
	m, err := stream.Next(t.Context())
	want(t, err)
	if m.Events[0].Revision != 12 {
		t.Errorf("after its rest it reads on at %d", m.Events[0].Revision)
	}
}

// A piece of history may hold events for those alone who begin later. They are
// not there any more when those are read for.
func TestHistoryThatConcernsNobody(t *testing.T) {
	pending := metric.NewGauge()
	s := newStore(t, Options{RecentBytes: 1, Metrics: Metrics{Pending: pending}})
	s.hub.limits.pieceRevisions = 2
	for range 9 {
		s.apply(put("k", "v"))
	}
	stream := s.hub.Open()
	defer stream.Close()
	want(t, stream.Watch(t.Context(), Request{Span: state.Span{Key: []byte("other")}, From: 2}))
	want(t, stream.Watch(t.Context(), Request{Span: state.Span{Key: []byte("k")}, From: 8}))
	var heard []state.Revision
	for m, ok := next(t, stream); ok; m, ok = next(t, stream) {
		for _, e := range m.Events {
			heard = append(heard, e.Revision)
		}
	}
	if !slices.Equal(heard, []state.Revision{8, 9, 10}) {
		t.Errorf("heard of %d", heard)
	}
	if n := pending.Value(); n != 0 {
		t.Errorf("%d events are waiting", n)
	}
}

// Progress is not told before what it would cover.
func TestProgressWaitsForThoseBehind(t *testing.T) {
	s := newStore(t, Options{})
	s.hub.limits.pieceRevisions = 2
	for range 10 {
		s.apply(put("k", "v"))
	}
	stream := s.hub.Open()
	defer stream.Close()
	want(t, stream.Watch(t.Context(), everything(0)))
	want(t, stream.Watch(t.Context(), everything(1)))
	stream.Progress()
	var last state.Revision
	for m, ok := next(t, stream); ok; m, ok = next(t, stream) {
		if m.ID == NoID {
			if m.Revision != 11 || last != 11 {
				t.Errorf("%d is said to be reached, and %d was told", m.Revision, last)
			}
			return
		}
		if len(m.Events) > 0 {
			last = m.Events[len(m.Events)-1].Revision
		}
	}
	t.Error("nothing was said of progress")
}

func TestFollow(t *testing.T) {
	s := newStore(t, Options{})
	s.apply(put("lock", "mine"))
	held := s.machine.View().Revision
	released := make(chan struct{})
	go func() {
		defer close(released)
		s.apply(put("lock/other", "x"))
		s.apply(put("lock", "again"))
		s.apply(del("lock", ""))
	}()
	for e, err := range s.hub.Follow(t.Context(), state.Span{Key: []byte("lock")}, held+1) {
		want(t, err)
		if e.Deleted {
			break
		}
	}
	<-released

	s.apply(compact(4))
	for _, err := range s.hub.Follow(t.Context(), state.Span{Key: []byte("lock")}, 2) {
		if !errors.Is(err, fault.Compacted) {
			t.Errorf("what is compacted ends with %v", err)
		}
	}
	s.hub.End(fault.Corrupt)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	for _, err := range s.hub.Follow(ctx, state.Span{Key: []byte("lock")}, 0) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a follower that came later ends with %v", err)
		}
	}
	s.hub.Close()
	for _, err := range s.hub.Follow(t.Context(), state.Span{Key: []byte("lock")}, 0) {
		if !errors.Is(err, fault.Stopped) {
			t.Errorf("after the end: %v", err)
		}
	}
}

func TestEnd(t *testing.T) {
	s := newStore(t, Options{})
	stream := s.hub.Open()
	defer stream.Close()
	want(t, stream.Watch(t.Context(), everything(0)))
	next(t, stream)
	s.hub.End(fault.Corrupt)
	if _, err := stream.Next(t.Context()); !errors.Is(err, fault.Corrupt) {
		t.Error(err)
	}
	if err := stream.Watch(t.Context(), everything(0)); !errors.Is(err, fault.Corrupt) {
		t.Error(err)
	}
}
