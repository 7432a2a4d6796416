package main

import (
	"context"
	"fmt"
	"time"

	"github.com/kvorum/kvorum/test/bench/load"
)

// flat asks whether a server with a thousand times the keys is as fast as it was
// with few.
func flat(o options) *section {
	few, many := max(o.big/100, 1), 10*o.big
	var before pace
	return &section{Name: "flat", What: fmt.Sprintf("from %d keys to %d", few, many), alone: true, steps: []step{
		func(ctx context.Context, h *household) (measures []measure, err error) {
			before, measures, err = h.paceWith(ctx, few)
			return measures, err
		},
		func(ctx context.Context, h *household) ([]measure, error) {
			after, measures, err := h.paceWith(ctx, many)
			flatness := goal{AtLeast: 0.7}
			return append(measures,
				measure{name: "puts, with many / with few", unit: share, value: after.puts / before.puts}.aiming(flatness),
				measure{name: "gets, with many / with few", unit: share, value: after.gets / before.gets}.aiming(flatness),
				measure{name: "serializable gets, with many / with few", unit: share, value: after.locals / before.locals}.aiming(flatness),
			), err
		},
	}}
}

// pace is how many of each a server answers a second.
type pace struct{ puts, gets, locals float64 }

// paceWith fills so many keys, and then asks for random ones of them.
func (h *household) paceWith(ctx context.Context, count uint64) (p pace, _ []measure, err error) {
	keys := load.Keys{Count: count, Bytes: 24}
	fill := load.Fill{Keys: keys, Value: h.o.value}
	// A transaction is as much work as many puts: with as many callers, each would
	// wait for seconds.
	filled, err := h.run(ctx, fill, load.Options{Conns: h.o.conns, Streams: 2, Requests: fill.Requests()})
	if err != nil {
		return p, nil, err
	}
	resident, err := h.settled(ctx)
	if err != nil {
		return p, nil, err
	}
	with := func(what string) string { return fmt.Sprintf("%s, %d keys", what, count) }
	measures := []measure{
		{name: with("loaded"), unit: perSecond, value: filled.Rate() * float64(count) / float64(fill.Requests())},
		{name: with("memory"), unit: bytesOf, value: float64(resident)},
	}
	for _, kind := range []struct {
		name string
		load load.Load
		rate *float64
	}{
		{"puts", load.Put{Keys: keys, Value: h.o.value}, &p.puts},
		{"gets", load.Get{Keys: keys, Value: h.o.value}, &p.gets},
		{"serializable gets", load.Get{Keys: keys, Value: h.o.value, Serializable: true}, &p.locals},
	} {
		var rates, cpu []float64
		duration := time.Duration(h.o.seconds * float64(time.Second))
		for range h.o.rounds {
			if err := quiet(ctx, h.server); err != nil {
				return p, nil, err
			}
			result, err := h.run(ctx, kind.load, load.Options{
				Conns: h.o.conns, Streams: h.o.streams, Warmup: duration / 5, Duration: duration,
			})
			if err != nil {
				return p, nil, err
			}
			rates = append(rates, result.Rate())
			cpu = append(cpu, micros(result.PerRequest(result.ServerCPU)))
		}
		*kind.rate = median(rates)
		measures = append(measures,
			measure{name: with(kind.name), unit: perSecond, value: *kind.rate},
			measure{name: with("CPU for each of " + kind.name), unit: microseconds, value: median(cpu)})
	}
	return p, measures, nil
}
