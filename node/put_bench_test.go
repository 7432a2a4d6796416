package node

import (
	"context"
	"log/slog"
	"runtime"
	"testing"

	"github.com/kvorum/kvorum/config"
	callers "github.com/kvorum/kvorum/test/bench/load"
	"github.com/kvorum/kvorum/test/port"
)

// BenchmarkPut has a whole member on disk put for many callers at once. It counts
// what the client in the same process allocates, too: hardly anything.
func BenchmarkPut(b *testing.B) {
	clients, peers := port.Free(b), port.Free(b)
	s, _, err := config.Parse([]string{
		"--data-dir=" + b.TempDir(), "--listen-client-urls=http://" + clients, "--advertise-client-urls=http://" + clients,
		"--listen-peer-urls=http://" + peers, "--initial-advertise-peer-urls=http://" + peers, "--initial-cluster=default=http://" + peers,
	}, nil, "kvorum")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	serves, ended := make(chan struct{}), make(chan error)
	go func() {
		log := NewTerminalLogger(&awaited{text: "serving client traffic", then: func() { close(serves) }}, slog.LevelInfo)
		ended <- Run(ctx, s, log)
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}()
	select {
	case <-serves:
	case err := <-ended:
		b.Fatal(err)
	}
	put := func(n int64) {
		r, err := callers.Run(ctx, callers.Put{}, callers.Options{Addr: clients, Conns: 8, Streams: 32, Requests: n})
		if err == nil {
			err = r.Err()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	put(1000)
	runtime.GC()
	b.ReportAllocs()
	b.ResetTimer()
	put(int64(b.N))
	b.StopTimer()
}
