package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvorum/kvorum/test/bench/load"
)

// grants is how fast leases are made, all of which stay.
func grants(o options) comparison {
	return comparison{
		name: "lease-grant", what: fmt.Sprintf("grant of %d leases", o.clients), conns: o.conns, streams: o.streams,
		measure: func(ctx context.Context, o options, s *server, l load.Options) (*load.Result, error) {
			l.Warmup, l.Duration, l.Requests = 0, 0, int64(o.clients)
			return s.run(ctx, load.Grant{Seconds: 3600, First: int64(l.Seed)*int64(o.clients) + 1}, l)
		},
	}
}

// keepAlives renews leases on a stream for each connection, as many at a time as
// other loads have callers.
func keepAlives(o options) comparison {
	const leases = 10_000
	return comparison{
		name: "lease-keepalive", what: "keep-alive of 10000 leases", conns: o.conns, streams: o.streams,
		fill: load.Grant{Seconds: 3600, First: 1}, keys: leases,
		goal: &goal{Of: ofRate, AtLeast: 3},
		measure: func(ctx context.Context, o options, s *server, l load.Options) (*load.Result, error) {
			l.Streams = 1
			talking, err := load.Begin(ctx, load.KeepAlive{Leases: leases, AtATime: o.streams}, s.at(l))
			if err != nil {
				return nil, err
			}
			err = errors.Join(wait(ctx, l.Warmup), talking.Measure(ctx, l.Duration))
			result := talking.End()
			return result, errors.Join(err, result.Err())
		},
	}
}

// leaseExpiry lets very many leases, a key on each, run out in one second.
func leaseExpiry(o options) *section {
	leases := int64(o.clients)
	keys := load.Keys{Prefix: "leased", Count: uint64(2*leases) + 1}
	return &section{Name: "lease-expiry", What: fmt.Sprintf("%d leases that run out in one second", leases), steps: []step{
		func(ctx context.Context, h *household) ([]measure, error) {
			steady := load.Options{Conns: steadyConns, Streams: steadyStreams}
			put := load.Put{Keys: h.hot, Value: h.o.value}

			// A deadline far enough for all grants: from how long a few of them take.
			many := load.Options{Conns: h.o.conns, Streams: h.o.streams}
			trial := many
			trial.Requests = leases / 10
			few, err := h.run(ctx, load.Grant{Seconds: 3600, First: 4 * leases}, trial)
			if err != nil {
				return nil, err
			}
			deadline := time.Now().Add(10*time.Second + 40*few.Elapsed)
			many.Requests = 2 * leases
			if _, err := h.run(ctx, load.GrantAndPut{Keys: keys, Deadline: deadline}, many); err != nil {
				return nil, err
			}
			held, err := load.Count(ctx, keys, h.at(load.Options{}))
			if err != nil {
				return nil, err
			}
			if early := time.Until(deadline); early < 3*time.Second {
				return nil, fmt.Errorf("leases were granted until %v before they run out", early)
			}
			talking, err := load.Begin(ctx, load.Watch{Span: func(int) ([]byte, []byte) { return keys.Part(0, 1) }}, h.at(load.Options{}))
			if err != nil {
				return nil, err
			}
			defer talking.End()
			duration := time.Duration(h.o.seconds * float64(time.Second))
			alone := steady
			alone.Duration = min(duration, time.Until(deadline)-2*time.Second)
			before, err := h.run(ctx, put, alone)
			if err != nil {
				return nil, err
			}
			if err := wait(ctx, time.Until(deadline.Add(-time.Second))); err != nil {
				return nil, err
			}
			if told := talking.Told(); told > 0 {
				return nil, fmt.Errorf("%d leases ended early", told)
			}

			const goalTime, patience = 10 * time.Second, 30 * time.Second
			var took time.Duration
			var inTime int64
			during, err := h.meanwhile(ctx, put, steady, func() error {
				for talking.Told() < held && time.Since(deadline) < patience {
					if err := wait(ctx, 5*time.Millisecond); err != nil {
						return err
					}
					if time.Since(deadline) < goalTime {
						inTime = talking.Told()
					}
				}
				if talking.Told() >= held {
					took = max(time.Since(deadline), time.Millisecond)
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
			return []measure{
				measure{name: "gone within 10 s", unit: share, value: float64(inTime) / float64(held)}.aiming(goal{AtLeast: 1}),
				ofTime("all gone after", took),
				{name: "puts before", unit: perSecond, value: before.Rate()},
				{name: "puts meanwhile", unit: perSecond, value: during.Rate()},
				ofTime("puts meanwhile, p99", during.Latency.Quantile(0.99)),
				ofTime("puts meanwhile, longest", during.Latency.Max()),
			}, nil
		},
	}}
}

// idleConnections is what connections cost that have asked once.
func idleConnections(o options) *section {
	conns := max(o.clients/10, 1)
	return &section{Name: "idle", What: fmt.Sprintf("%d idle connections", conns), steps: []step{
		func(ctx context.Context, h *household) ([]measure, error) {
			before, err := h.settled(ctx)
			if err != nil {
				return nil, err
			}
			began := time.Now()
			release, err := load.Hold(ctx, load.Put{Keys: h.hot, Value: h.o.value}, h.at(load.Options{Conns: conns}))
			if err != nil {
				return nil, err
			}
			defer release()
			took := time.Since(began)
			after, err := h.settled(ctx)
			return []measure{
				{name: "connections made and asked", unit: perSecond, value: float64(conns) / took.Seconds()},
				measure{name: "memory for them", unit: bytesOf, value: float64(after - before)}.aiming(goal{Of: ofOurs, AtMost: 100e6}),
			}, err
		},
	}}
}
