package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/kvorum/kvorum/test/bench/load"
)

// household is one server with its many keys, on its way through the section.
type household struct {
	*server
	o    options
	keys load.Keys
	hot  load.Keys // the few that are written again and again
}

func newHousehold(o options, s *server) *household {
	keys := load.Keys{Count: o.big}
	hot := keys
	hot.Bytes, hot.Count = 24, max(o.big/100, 1)
	return &household{server: s, o: o, keys: keys, hot: hot}
}

func bigSection(o options) *section {
	return &section{Name: "big", What: fmt.Sprintf("%d keys", o.big), steps: []step{
		loadMany, memoryOfMany, pages, pages1, memoryAfterWork, restart, killed, supersede, compaction,
	}}
}

func loadMany(ctx context.Context, h *household) ([]measure, error) {
	fill := load.Put{Keys: h.keys, Value: h.o.value, Order: load.Scattered}
	result, err := fillUp(ctx, h.o, h.server, fill, h.keys.Count)
	if err != nil {
		return nil, err
	}
	return []measure{
		{name: "loading them", unit: perSecond, value: result.Rate()},
		ofTime("loading them, p99", result.Latency.Quantile(0.99)),
		ofTime("loading them, CPU for each", result.PerRequest(result.ServerCPU)),
	}, nil
}

func memoryOfMany(ctx context.Context, h *household) ([]measure, error) {
	resident, err := h.settled(ctx)
	if err != nil {
		return nil, err
	}
	disk, err := h.disk()
	return []measure{
		measure{name: "memory once loaded", unit: bytesOf, value: float64(resident)}.aiming(goal{Of: ofBoth, AtMost: 0.7}),
		measure{name: "disk once loaded", unit: bytesOf, value: float64(disk)}.aiming(goal{Of: ofBoth, AtMost: 0.6}),
	}, err
}

func pages(ctx context.Context, h *household) ([]measure, error) {
	result, err := h.page(ctx, 4)
	if err != nil {
		return nil, err
	}
	return []measure{
		{name: "page of 1000, 8 callers", unit: perSecond, value: result.Rate()},
		ofTime("page of 1000, 8 callers, p50", result.Latency.Quantile(0.50)),
		ofTime("page of 1000, 8 callers, p99", result.Latency.Quantile(0.99)),
		ofTime("page of 1000, 8 callers, CPU for each", result.PerRequest(result.ServerCPU)),
	}, nil
}

func pages1(ctx context.Context, h *household) ([]measure, error) {
	result, err := h.page(ctx, 0)
	if err != nil {
		return nil, err
	}
	return []measure{
		measure{name: "page of 1000, one caller", unit: perSecond, value: result.Rate()}.aiming(goal{Of: ofBoth, AtLeast: 30}),
		ofTime("page of 1000, one caller, p50", result.Latency.Quantile(0.50)),
		ofTime("page of 1000, one caller, p99", result.Latency.Quantile(0.99)),
	}, nil
}

// page reads pages with two connections of so many callers, or with one caller.
func (h *household) page(ctx context.Context, streams int) (*load.Result, error) {
	conns := 2
	if streams == 0 {
		conns = 1
	}
	// Three turns long: a page can take so long that one would see but a few.
	duration := 3 * time.Duration(h.o.seconds*float64(time.Second))
	return h.run(ctx, load.Page{Keys: h.keys, Value: h.o.value}, load.Options{
		Conns: conns, Streams: streams, Warmup: duration / 15, Duration: duration,
	})
}

func memoryAfterWork(ctx context.Context, h *household) ([]measure, error) {
	get := load.Get{Keys: h.keys, Value: h.o.value}
	duration := time.Duration(h.o.seconds * float64(time.Second))
	if _, err := h.run(ctx, get, load.Options{Conns: h.o.conns, Streams: h.o.streams, Duration: duration}); err != nil {
		return nil, err
	}
	resident, err := h.settled(ctx)
	return []measure{{name: "memory after pages and gets", unit: bytesOf, value: float64(resident)}}, err
}

// restart stops the server as an operator would and starts it again.
func restart(ctx context.Context, h *household) ([]measure, error) {
	stops, starts, disk, err := h.again(ctx, syscall.SIGTERM, func() error { return nil })
	if err != nil {
		return nil, err
	}
	resident, err := h.settled(ctx)
	return []measure{
		{name: "stopping at SIGTERM", unit: microseconds, value: stops},
		{name: "disk while stopped", unit: bytesOf, value: disk},
		measure{name: "start to first answered get", unit: microseconds, value: starts}.aiming(goal{Of: ofBoth, AtMost: 0.3}),
		{name: "memory once started", unit: bytesOf, value: float64(resident)},
	}, err
}

// killed ends the server right behind an acknowledged put and starts it again.
// All that was acknowledged must be there.
func killed(ctx context.Context, h *household) ([]measure, error) {
	last := load.Keys{Prefix: "last", Count: 1000}
	burst := func() error {
		_, err := h.run(ctx, load.Put{Keys: last, Value: h.o.value, Order: load.InTurn}, load.Options{Streams: 8, Requests: int64(last.Count)})
		return err
	}
	_, starts, _, err := h.again(ctx, syscall.SIGKILL, burst)
	if err != nil {
		return nil, err
	}
	if _, err := h.run(ctx, load.Get{Keys: last, Value: h.o.value}, load.Options{Streams: 8, Requests: 10 * int64(last.Count)}); err != nil {
		return nil, fmt.Errorf("what was acknowledged before the kill: %w", err)
	}
	return []measure{{name: "start after kill -9", unit: microseconds, value: starts}}, nil
}

// again stops and starts the server once a round, prepared each time, and
// returns the medians in microseconds, and the bytes on disk in between.
func (h *household) again(ctx context.Context, signal syscall.Signal, prepare func() error) (stops, starts, disk float64, err error) {
	var stopped, started, held []float64
	for range min(h.o.rounds, 3) {
		if err := prepare(); err != nil {
			return 0, 0, 0, err
		}
		took, err := h.stop(signal)
		if err != nil {
			return 0, 0, 0, err
		}
		bytes, err := h.disk()
		if err != nil {
			return 0, 0, 0, err
		}
		began := time.Now()
		if err := h.start(); err != nil {
			return 0, 0, 0, err
		}
		limit, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err = h.poll(limit, time.Millisecond, func() error {
			_, err := h.run(limit, load.Get{Keys: h.keys, Value: h.o.value}, load.Options{Requests: 1})
			return err
		})
		cancel()
		if err != nil {
			return 0, 0, 0, err
		}
		stopped, started, held = append(stopped, micros(took)), append(started, micros(time.Since(began))), append(held, float64(bytes))
	}
	return median(stopped), median(started), median(held), nil
}

// supersede writes half as many revisions as there are keys onto few of them,
// and a moment of the same steady load that the compaction will meet.
func supersede(ctx context.Context, h *household) ([]measure, error) {
	put := load.Put{Keys: h.hot, Value: h.o.value}
	if _, err := fillUp(ctx, h.o, h.server, put, h.keys.Count/2); err != nil {
		return nil, err
	}
	if err := quiet(ctx, h.server); err != nil {
		return nil, err
	}
	duration := time.Duration(h.o.seconds * float64(time.Second))
	before, err := h.run(ctx, put, load.Options{Conns: steadyConns, Streams: steadyStreams, Warmup: duration / 5, Duration: duration})
	if err != nil {
		return nil, err
	}
	return []measure{
		{name: "steady puts", unit: perSecond, value: before.Rate()},
		ofTime("steady puts, p99", before.Latency.Quantile(0.99)),
		ofTime("steady puts, longest", before.Latency.Max()),
	}, nil
}

// The steady load keeps a server busy without filling it, so that a long wait is
// a stall and not a queue.
const steadyConns, steadyStreams = 2, 4

// compaction drops all history at the head while puts go on, and for a while
// after, and tells how long the unluckiest of them waited.
func compaction(ctx context.Context, h *household) ([]measure, error) {
	head, err := load.Head(ctx, h.at(load.Options{}))
	if err != nil {
		return nil, err
	}
	took := time.Duration(0)
	during, err := h.meanwhile(ctx, load.Put{Keys: h.hot, Value: h.o.value}, load.Options{Conns: steadyConns, Streams: steadyStreams}, func() error {
		err := wait(ctx, 200*time.Millisecond) // let the puts begin
		if err == nil {
			began := time.Now()
			_, err = h.run(ctx, load.Compact{Revision: head}, load.Options{Requests: 1})
			took = time.Since(began)
		}
		if err == nil {
			err = wait(ctx, 2*time.Second)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("compaction at %d: %w", head, err)
	}
	resident, err := h.settled(ctx)
	if err != nil {
		return nil, err
	}
	disk, err := h.disk()
	return []measure{
		ofTime("compaction", took),
		{name: "puts meanwhile", unit: perSecond, value: during.Rate()},
		ofTime("puts meanwhile, p99", during.Latency.Quantile(0.99)),
		ofTime("puts meanwhile, longest", during.Latency.Max()).aiming(goal{AtMost: 50_000}),
		{name: "memory once compacted", unit: bytesOf, value: float64(resident)},
		{name: "disk once compacted", unit: bytesOf, value: float64(disk)},
	}, err
}

// meanwhile drives the load while do runs.
func (h *household) meanwhile(ctx context.Context, l load.Load, o load.Options, do func() error) (*load.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		result *load.Result
		err    error
	}
	driven := make(chan outcome, 1)
	go func() {
		result, err := h.run(ctx, l, o)
		driven <- outcome{result, err}
	}()
	err := do()
	cancel()
	last := <-driven
	return last.result, errors.Join(err, last.err)
}
