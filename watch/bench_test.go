package watch

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/kvorum/kvorum/state"
)

// BenchmarkPublish is what a batch of 64 puts costs the apply loop, beside
// watchers on as many keys and ranges, spread over 100 streams that read.
func BenchmarkPublish(b *testing.B) {
	for _, c := range []struct {
		name              string
		watchers, ranges  int
		listening, shared bool // to the keys that are put; all to one of them
	}{
		{"nobody", 0, 0, false, false},
		{"one", 1, 0, true, false},
		{"1000", 1000, 0, true, false},
		{"100000-idle", 100_000, 0, false, false},
		{"100000-idle-5000-ranges", 100_000, 5000, false, false},
		{"100000-on-one-key", 100_000, 0, true, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newStore(b, Options{})
			listen(b, s, c.watchers, func(i int) Request {
				key := fmt.Sprintf("idle/%06d", i)
				switch {
				case c.shared:
					key = "key/000000"
				case c.listening:
					key = fmt.Sprintf("key/%06d", i)
				}
				return Request{Span: state.Span{Key: []byte(key)}}
			})
			listen(b, s, c.ranges, func(i int) Request {
				key := fmt.Sprintf("idle/%06d", i)
				return Request{Span: state.Span{Key: []byte(key), End: []byte(key + "0")}}
			})
			const batch = 64
			var outcomes []state.Outcome
			for i := range batch {
				outcomes = append(outcomes, apply(b, s.machine, put(fmt.Sprintf("key/%06d", i), "value"))...)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.hub.Publish(outcomes, s.machine.View().Revision)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/event")
		})
	}
}

// listen makes watchers on streams that are read.
func listen(b *testing.B, s *store, watchers int, request func(int) Request) {
	const streams = 100
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	for i := range min(streams, watchers) {
		stream := s.hub.Open()
		created := make(chan struct{})
		mine := (watchers - i + streams - 1) / streams
		go func() {
			for {
				m, err := stream.Next(ctx)
				if err != nil {
					stream.Close()
					ended <- struct{}{}
					return
				}
				if m.Created {
					if mine--; mine == 0 {
						close(created)
					}
				}
			}
		}()
		for w := i; w < watchers; w += streams {
			want(b, stream.Watch(ctx, request(w)))
		}
		<-created
	}
	b.Cleanup(func() {
		cancel()
		for range min(streams, watchers) {
			<-ended
		}
	})
}

// BenchmarkIdle is the memory of a watcher to which nothing happens.
func BenchmarkIdle(b *testing.B) {
	const watchers = 100_000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		s := newStore(b, Options{})
		before := heap()
		listen(b, s, watchers, func(i int) Request {
			return Request{Span: state.Span{Key: fmt.Appendf(nil, "registry/pods/%06d", i)}, Progress: i%2 == 0}
		})
		b.ReportMetric(float64(heap()-before)/watchers, "B/watcher")
		runtime.KeepAlive(s)
	}
}
