package main

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/kvorum/kvorum/test/bench/load"
)

const bigName = "big"

// big is what both servers showed with many keys.
type big struct {
	Keys    uint64   `json:"keys"`
	Figures []figure `json:"figures"`
}

// figure is one measure of both servers.
type figure struct {
	Name   string     `json:"name"`
	Unit   unit       `json:"unit"`
	Values [2]float64 `json:"values"`
}

type unit string

const (
	perSecond    unit = "per second"
	microseconds unit = "microseconds"
	bytesOf      unit = "bytes"
)

func (f figure) show(i int) string {
	if f.Values[i] == 0 {
		return "–" // not reached
	}
	switch f.Unit {
	case perSecond:
		return rate(f.Values[i]) + "/s"
	case bytesOf:
		return size(f.Values[i])
	}
	return duration(f.Values[i])
}

func (f figure) ratio() string {
	if f.Values[1] == 0 {
		return ratio(0)
	}
	return ratio(f.Values[0] / f.Values[1])
}

// measure is a figure of one server.
type measure struct {
	name  string
	unit  unit
	value float64
}

func ofTime(name string, d time.Duration) measure { return measure{name, microseconds, micros(d)} }

// household is one server with its many keys, on its way through the section.
type household struct {
	*server
	o    options
	keys load.Keys
	hot  load.Keys // the few that are written again and again
}

// compareBig takes both servers through the same steps, step by step, so that
// what is told of one is told of the other a few seconds later. With an error it
// returns what was found until then.
func compareBig(ctx context.Context, o options, products [2]product, dir string) (*big, error) {
	var houses [2]*household
	var servers [2]*server
	for i, p := range products {
		s, err := newServer(ctx, p, dir, 1)
		if err != nil {
			return nil, err
		}
		defer s.remove()
		keys := load.Keys{Count: o.big}
		hot := keys
		hot.Bytes, hot.Count = 24, max(o.big/100, 1)
		houses[i], servers[i] = &household{server: s, o: o, keys: keys, hot: hot}, s
	}

	result := &big{Keys: o.big}
	for number, step := range []func(*household, context.Context) ([]measure, error){
		(*household).load,
		(*household).memory,
		(*household).pages,
		(*household).pages1,
		(*household).memoryAfterWork,
		(*household).restart,
		(*household).killed,
		(*household).supersede,
		(*household).compaction,
	} {
		from := len(result.Figures)
		for place := range houses {
			i := (place + number) % 2
			if err := quiet(ctx, servers[:]...); err != nil {
				return result, err
			}
			measures, err := step(houses[i], ctx)
			if err != nil {
				return result, fmt.Errorf("%s with %d keys: %w", houses[i].name, o.big, err)
			}
			for _, m := range measures {
				at := slices.IndexFunc(result.Figures[from:], func(f figure) bool { return f.Name == m.name })
				if at < 0 {
					at = len(result.Figures) - from
					result.Figures = append(result.Figures, figure{Name: m.name, Unit: m.unit})
				}
				f := &result.Figures[from+at]
				f.Values[i] = m.value
				progress("%-10s %-7s %s: %s", bigName, houses[i].name, f.Name, f.show(i))
			}
		}
	}
	return result, nil
}

func (h *household) load(ctx context.Context) ([]measure, error) {
	fill := load.Put{Keys: h.keys, Value: h.o.value, Order: load.Scattered}
	result, err := fillUp(ctx, h.o, h.server, fill, h.keys.Count)
	if err != nil {
		return nil, err
	}
	return []measure{
		{"loading them", perSecond, result.Rate()},
		ofTime("loading them, p99", result.Latency.Quantile(0.99)),
		ofTime("loading them, CPU for each", result.PerRequest(result.ServerCPU)),
	}, nil
}

func (h *household) memory(ctx context.Context) ([]measure, error) {
	resident, err := h.settled(ctx)
	if err != nil {
		return nil, err
	}
	disk, err := h.disk()
	return []measure{
		{"memory once loaded", bytesOf, float64(resident)},
		{"disk once loaded", bytesOf, float64(disk)},
	}, err
}

func (h *household) pages(ctx context.Context) ([]measure, error) {
	result, err := h.page(ctx, 4)
	if err != nil {
		return nil, err
	}
	return []measure{
		{"page of 1000, 8 callers", perSecond, result.Rate()},
		ofTime("page of 1000, 8 callers, p50", result.Latency.Quantile(0.50)),
		ofTime("page of 1000, 8 callers, p99", result.Latency.Quantile(0.99)),
		ofTime("page of 1000, 8 callers, CPU for each", result.PerRequest(result.ServerCPU)),
	}, nil
}

func (h *household) pages1(ctx context.Context) ([]measure, error) {
	result, err := h.page(ctx, 0)
	if err != nil {
		return nil, err
	}
	return []measure{
		{"page of 1000, one caller", perSecond, result.Rate()},
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

func (h *household) memoryAfterWork(ctx context.Context) ([]measure, error) {
	get := load.Get{Keys: h.keys, Value: h.o.value}
	duration := time.Duration(h.o.seconds * float64(time.Second))
	if _, err := h.run(ctx, get, load.Options{Conns: h.o.conns, Streams: h.o.streams, Duration: duration}); err != nil {
		return nil, err
	}
	resident, err := h.settled(ctx)
	return []measure{{"memory after pages and gets", bytesOf, float64(resident)}}, err
}

// restart stops the server as an operator would and starts it again.
func (h *household) restart(ctx context.Context) ([]measure, error) {
	stops, starts, disk, err := h.again(ctx, syscall.SIGTERM, func() error { return nil })
	if err != nil {
		return nil, err
	}
	resident, err := h.settled(ctx)
	return []measure{
		{"stopping at SIGTERM", microseconds, stops},
		{"disk while stopped", bytesOf, disk},
		{"start to first answered get", microseconds, starts},
		{"memory once started", bytesOf, float64(resident)},
	}, err
}

// killed ends the server right behind an acknowledged put and starts it again.
// All that was acknowledged must be there.
func (h *household) killed(ctx context.Context) ([]measure, error) {
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
	return []measure{{"start after kill -9", microseconds, starts}}, nil
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
func (h *household) supersede(ctx context.Context) ([]measure, error) {
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
		{"steady puts", perSecond, before.Rate()},
		ofTime("steady puts, p99", before.Latency.Quantile(0.99)),
		ofTime("steady puts, longest", before.Latency.Max()),
	}, nil
}

// The steady load keeps a server busy without filling it, so that a long wait is
// a stall and not a queue.
const steadyConns, steadyStreams = 2, 4

// compaction drops all history at the head while puts go on, and for a while
// after, and tells how long the unluckiest of them waited.
func (h *household) compaction(ctx context.Context) ([]measure, error) {
	head, err := load.Head(ctx, load.Options{Addr: h.client, TLS: h.trust()})
	if err != nil {
		return nil, err
	}
	steady, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		result *load.Result
		err    error
	}
	puts := make(chan outcome, 1)
	go func() {
		result, err := h.run(steady, load.Put{Keys: h.hot, Value: h.o.value}, load.Options{Conns: steadyConns, Streams: steadyStreams})
		puts <- outcome{result, err}
	}()

	took := time.Duration(0)
	err = wait(ctx, 200*time.Millisecond) // let the puts begin
	if err == nil {
		began := time.Now()
		_, err = h.run(ctx, load.Compact{Revision: head}, load.Options{Requests: 1})
		took = time.Since(began)
	}
	if err == nil {
		err = wait(ctx, 2*time.Second)
	}
	cancel()
	during := <-puts
	if err == nil {
		err = during.err
	}
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
		{"puts meanwhile", perSecond, during.result.Rate()},
		ofTime("puts meanwhile, p99", during.result.Latency.Quantile(0.99)),
		ofTime("puts meanwhile, longest", during.result.Latency.Max()),
		{"memory once compacted", bytesOf, float64(resident)},
		{"disk once compacted", bytesOf, float64(disk)},
	}, err
}
