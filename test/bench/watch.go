package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvorum/kvorum/test/bench/load"
)

// single is the key that many watch.
var single = load.Keys{Prefix: "one", Count: 1}

// watchMany has many listen to one key that is put to as fast as it goes.
func watchMany(o options) comparison {
	const conns, each = 10, 100
	return comparison{
		name: "watch-many", what: "1000 watchers of one key, events", conns: conns, streams: each,
		goal: &goal{Of: ofRate, AtLeast: 4},
		measure: func(ctx context.Context, o options, s *server, l load.Options) (*load.Result, error) {
			key := single.Key(0)
			talks := load.Watch{Watchers: each, Span: func(int) ([]byte, []byte) { return key, nil }}
			listen := l
			listen.Streams = 1
			put := load.Put{Keys: single, Value: o.value}
			return whileListening(ctx, s, talks, listen, put, load.Options{Streams: 16, Seed: l.Seed}, conns*each)
		},
	}
}

// watchLatency tells how long it takes from a put to its event.
func watchLatency(o options) comparison {
	const watchers, rate, conns = 10, 5000, 64
	return comparison{
		name: "watch-latency", what: "event, at 5000 puts a second", conns: watchers, streams: 1,
		goal: &goal{Of: ofTail, AtMost: 0.5},
		measure: func(ctx context.Context, o options, s *server, l load.Options) (*load.Result, error) {
			keys := load.Keys{Count: max(o.keys/watchers, 1) * watchers}
			talks := load.Watch{Timed: true, Span: func(i int) ([]byte, []byte) {
				return keys.Part(i, watchers)
			}}
			put := load.Paced{Load: load.Put{Keys: keys, Value: o.value, Timed: true}, Rate: rate}
			return whileListening(ctx, s, talks, l, put, load.Options{Conns: conns, Seed: l.Seed}, 1)
		},
	}
}

// whileListening measures what is told while puts go on, and makes sure that all
// of it is told: each put so many times.
func whileListening(ctx context.Context, s *server, talks load.Watch, listen load.Options, put load.Load, puts load.Options, times int64) (*load.Result, error) {
	before, err := load.Head(ctx, s.at(load.Options{}))
	if err != nil {
		return nil, err
	}
	talking, err := load.Begin(ctx, talks, s.at(listen))
	if err != nil {
		return nil, err
	}
	h := household{server: s}
	_, err = h.meanwhile(ctx, put, puts, func() error {
		err := wait(ctx, listen.Warmup)
		return errors.Join(err, talking.Measure(ctx, listen.Duration))
	})
	if err == nil {
		err = told(ctx, s, talking, before, times)
	}
	result := talking.End()
	return result, errors.Join(err, result.Err())
}

// told waits until each revision since one has been told so many times, and no
// more than that.
func told(ctx context.Context, s *server, talking *load.Talking, since, times int64) error {
	head, err := load.Head(ctx, s.at(load.Options{}))
	if err != nil {
		return err
	}
	want := (head - since) * times
	const patience = time.Minute
	for until := time.Now().Add(patience); talking.Told() < want; {
		if time.Now().After(until) {
			return fmt.Errorf("%d events of %d were told after %v", talking.Told(), want, patience)
		}
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	if got := talking.Told(); got != want {
		return fmt.Errorf("%d events were told of %d", got, want)
	}
	return nil
}

// watchIdle is what watchers cost that have nothing to hear.
func watchIdle(o options) *section {
	conns := min(100, o.clients)
	each := o.clients / conns
	watched := load.Keys{Prefix: "watched", Count: uint64(conns * each)}
	return &section{Name: "watch-idle", What: fmt.Sprintf("%d idle watchers on %d connections", conns*each, conns), steps: []step{
		func(ctx context.Context, h *household) ([]measure, error) {
			without, err := h.steadyRate(ctx)
			if err != nil {
				return nil, err
			}
			before, err := h.settled(ctx)
			if err != nil {
				return nil, err
			}
			began := time.Now()
			talking, err := load.Begin(ctx, load.Watch{Watchers: each, Span: func(i int) ([]byte, []byte) {
				return watched.Key(uint64(i)), nil
			}}, h.at(load.Options{Conns: conns}))
			if err != nil {
				return nil, err
			}
			defer talking.End()
			took := time.Since(began)
			after, err := h.settled(ctx)
			if err != nil {
				return nil, err
			}
			with, err := h.steadyRate(ctx)
			if err == nil && talking.Told() > 0 {
				err = errors.New("idle watchers were told of something")
			}
			return []measure{
				{name: "watchers made", unit: perSecond, value: float64(conns*each) / took.Seconds()},
				measure{name: "memory for them", unit: bytesOf, value: float64(after - before)}.aiming(goal{Of: ofBoth, AtMost: 0.5}),
				{name: "puts without them", unit: perSecond, value: without},
				{name: "puts with them", unit: perSecond, value: with},
				measure{name: "with / without", unit: share, value: with / without}.aiming(goal{AtLeast: 0.9}),
			}, err
		},
	}}
}

// steadyRate is the median rate, over the rounds, of puts by many callers.
func (h *household) steadyRate(ctx context.Context) (float64, error) {
	var rates []float64
	duration := time.Duration(h.o.seconds * float64(time.Second))
	for range h.o.rounds {
		result, err := h.run(ctx, load.Put{Keys: h.hot, Value: h.o.value}, load.Options{
			Conns: h.o.conns, Streams: h.o.streams, Warmup: duration / 5, Duration: duration,
		})
		if err != nil {
			return 0, err
		}
		rates = append(rates, result.Rate())
	}
	return median(rates), nil
}

// watchBehind has one watcher read all history while puts go on.
func watchBehind(o options) *section {
	return &section{Name: "watch-behind", What: fmt.Sprintf("a watcher %d events behind", o.big), steps: []step{
		func(ctx context.Context, h *household) ([]measure, error) {
			if _, err := fillUp(ctx, h.o, h.server, load.Put{Keys: h.hot, Value: h.o.value}, h.keys.Count); err != nil {
				return nil, err
			}
			return nil, quiet(ctx, h.server)
		},
		func(ctx context.Context, h *household) ([]measure, error) {
			put := load.Put{Keys: h.hot, Value: h.o.value}
			steady := load.Options{Conns: steadyConns, Streams: steadyStreams}
			duration := time.Duration(h.o.seconds * float64(time.Second))
			alone := steady
			alone.Warmup, alone.Duration = duration/5, duration
			before, err := h.run(ctx, put, alone)
			if err != nil {
				return nil, err
			}
			head, err := load.Head(ctx, h.at(load.Options{}))
			if err != nil {
				return nil, err
			}

			var talking *load.Talking
			var took time.Duration
			during, err := h.meanwhile(ctx, put, steady, func() (err error) {
				if err := wait(ctx, 200*time.Millisecond); err != nil { // let the puts begin
					return err
				}
				began := time.Now()
				talking, err = load.Begin(ctx, load.Watch{From: 2, Span: func(int) ([]byte, []byte) { return h.hot.Part(0, 1) }}, h.at(load.Options{}))
				for err == nil && talking.Told() < head-1 {
					took = time.Since(began)
					if took > 2*time.Minute {
						return fmt.Errorf("%d events of %d were told after %v", talking.Told(), head-1, took)
					}
					err = wait(ctx, time.Millisecond)
				}
				return err
			})
			if talking != nil {
				defer talking.End()
			}
			if err != nil {
				return nil, err
			}
			return []measure{
				{name: "puts before", unit: perSecond, value: before.Rate()},
				{name: "puts while it catches up", unit: perSecond, value: during.Rate()},
				measure{name: "while / before", unit: share, value: during.Rate() / before.Rate()}.aiming(goal{AtLeast: 0.9}),
				ofTime("puts while it catches up, p99", during.Latency.Quantile(0.99)),
				ofTime("catching up", took),
				{name: "events meanwhile", unit: perSecond, value: float64(head-1) / took.Seconds()},
			}, told(ctx, h.server, talking, 1, 1)
		},
	}}
}
