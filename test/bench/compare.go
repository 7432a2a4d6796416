package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/kvorum/kvorum/test/bench/load"
)

// comparison is one load that both servers get.
type comparison struct {
	name    string
	what    string
	load    load.Load
	conns   int
	streams int

	fill  load.Load // puts every key once, before all rounds, or before each
	keys  uint64    // how many keys that is; 0: the load starts on an empty store
	fresh bool      // fill before each round, and use each key once

	members int  // of the cluster; 0: as the options say
	spread  bool // connections go to all members in turn, not to the leader alone
	secure  bool // over TLS, whatever the options say
	v2      bool // etcd is the one that still has the v2 API
	goal    *goal

	// measure is how a turn goes that is more than driving the load. Default:
	// drive it.
	measure func(ctx context.Context, o options, s *server, l load.Options) (*load.Result, error)
}

func comparisons(o options) []comparison {
	keys := load.Keys{Count: o.keys}
	put := load.Put{Keys: keys, Value: o.value}
	get := load.Get{Keys: keys, Value: o.value}
	local := load.Get{Keys: keys, Value: o.value, Serializable: true}
	fill := load.Put{Keys: keys, Value: o.value, Order: load.Scattered}
	// What is deleted is put before, so the number is what the slower can do in a turn.
	doomed := load.Keys{Count: max(uint64(20_000*o.seconds), 1)}

	many := func(c comparison) comparison { c.conns, c.streams = o.conns, o.streams; return c }
	one := func(c comparison) comparison { c.conns, c.streams = 1, 1; return c }
	filled := func(c comparison) comparison { c.fill, c.keys = fill, o.keys; return c }
	atLeast := func(x float64) *goal { return &goal{Of: ofRate, AtLeast: x} }
	return []comparison{
		many(comparison{name: "put", what: "put to a random key", load: put, goal: atLeast(5)}),
		one(comparison{name: "put-1", what: "put, one caller", load: put, goal: atLeast(1.8)}),
		many(filled(comparison{name: "get", what: "linearizable get", load: get, goal: atLeast(6)})),
		one(filled(comparison{name: "get-1", what: "linearizable get, one caller", load: get})),
		many(filled(comparison{name: "get-local", what: "serializable get", load: local, goal: atLeast(8)})),
		filled(comparison{name: "page", what: "page of 1000 keys with count", conns: 2, streams: 4, load: load.Page{Keys: keys, Value: o.value}}),
		many(filled(comparison{name: "txn", what: "compare and put", load: load.CompareAndPut{Keys: keys, Value: o.value}, goal: atLeast(5)})),
		many(filled(comparison{name: "mixed", what: "nine gets to a put", load: load.Mix{Common: get, Rare: put}, goal: atLeast(6)})),
		many(comparison{name: "delete", what: "delete of a key that exists", load: load.Delete{Keys: doomed},
			fill: load.Put{Keys: doomed, Value: o.value, Order: load.Scattered}, keys: doomed.Count, fresh: true}),
		many(comparison{name: "put-tls", what: "put over TLS", load: put, secure: true, goal: atLeast(3)}),
		many(filled(comparison{name: "get-tls", what: "linearizable get over TLS", load: get, secure: true, goal: atLeast(3)})),
		many(comparison{name: "put-3", what: "three members, put at the leader", load: put, members: 3, goal: atLeast(4)}),
		many(comparison{name: "put-3-spread", what: "three members, put at all of them", load: put, members: 3, spread: true, goal: atLeast(4)}),
		watchMany(o),
		watchLatency(o),
		grants(o),
		keepAlives(o),
		form(o, "v2-put", "put of a form", load.Form{}),
		form(o, "v2-get", "get over HTTP", load.Form{Get: true}),
	}
}

// turn is what one server did with a load: in one round, or the medians of all.
type turn struct {
	Rate      float64 `json:"rate"` // requests a second
	P50       float64 `json:"p50_micros"`
	P90       float64 `json:"p90_micros"`
	P99       float64 `json:"p99_micros"`
	P999      float64 `json:"p999_micros"`
	Max       float64 `json:"max_micros"`
	ServerCPU float64 `json:"server_cpu_micros"` // for a request
	ClientCPU float64 `json:"client_cpu_micros"` // for a request

	// Others is the share of all cores, 0 to 1, that went to neither the client
	// nor the server: to the kernel's own threads, and to whoever disturbs.
	Others float64 `json:"others"`
}

func turnOf(r *load.Result) turn {
	return turn{
		Rate:      r.Rate(),
		P50:       micros(r.Latency.Quantile(0.50)),
		P90:       micros(r.Latency.Quantile(0.90)),
		P99:       micros(r.Latency.Quantile(0.99)),
		P999:      micros(r.Latency.Quantile(0.999)),
		Max:       micros(r.Latency.Max()),
		ServerCPU: micros(r.PerRequest(r.ServerCPU)),
		ClientCPU: micros(r.PerRequest(r.ClientCPU)),
	}
}

// medians takes the median of each figure, but the largest of the largest.
func medians(turns []turn) turn {
	of := func(figure func(turn) float64) float64 {
		values := make([]float64, len(turns))
		for i, t := range turns {
			values[i] = figure(t)
		}
		return median(values)
	}
	m := turn{
		Rate:      of(func(t turn) float64 { return t.Rate }),
		P50:       of(func(t turn) float64 { return t.P50 }),
		P90:       of(func(t turn) float64 { return t.P90 }),
		P99:       of(func(t turn) float64 { return t.P99 }),
		P999:      of(func(t turn) float64 { return t.P999 }),
		ServerCPU: of(func(t turn) float64 { return t.ServerCPU }),
		ClientCPU: of(func(t turn) float64 { return t.ClientCPU }),
		Others:    of(func(t turn) float64 { return t.Others }),
	}
	for _, t := range turns {
		m.Max = max(m.Max, t.Max)
	}
	return m
}

// row is a load with what both servers did, in the order of the report's names.
type row struct {
	Name    string    `json:"name"`
	What    string    `json:"what"`
	Conns   int       `json:"conns"`
	Streams int       `json:"streams"`
	Medians [2]turn   `json:"medians"`
	Rounds  [2][]turn `json:"rounds"`

	// The median over the rounds of the first server's figure divided by the
	// second's in the same round.
	RateRatio float64 `json:"rate_ratio"`
	P99Ratio  float64 `json:"p99_ratio"`
	Goal      *goal   `json:"goal,omitempty"`

	Failed [2]string `json:"failed"` // empty: every answer was right
}

// compare gives both servers the load, round after round, each on a store of
// its own that no other load has touched.
func compare(ctx context.Context, o options, c comparison, products [2]product, dir string) (row, error) {
	r := row{Name: c.name, What: c.what, Conns: c.conns, Streams: c.streams, Goal: c.goal}
	members := o.members
	if c.members > 0 {
		members = c.members
	}
	var servers [2]*server
	if c.v2 {
		products = o.withV2(products)
	}
	for i, p := range products {
		if !o.tls && !c.secure {
			p.secure = nil
		}
		s, err := newServer(ctx, p, dir, members)
		if err != nil {
			return r, err
		}
		defer s.remove()
		servers[i] = s
		if c.fill != nil && !c.fresh {
			if _, err := fillUp(ctx, o, s, c.fill, c.keys); err != nil {
				return r, fmt.Errorf("fill %s: %w", p.name, err)
			}
		}
	}

	for round := range o.rounds {
		for place := range servers {
			// Whoever goes first in one round goes second in the next.
			i := (place + round) % 2
			if r.Failed[i] != "" {
				continue
			}
			if err := quiet(ctx, servers[:]...); err != nil {
				return r, err
			}
			result, others, err := take(ctx, o, c, servers[i], uint64(round))
			if ctx.Err() != nil {
				return r, context.Cause(ctx)
			}
			if err != nil {
				r.Failed[i] = err.Error()
				progress("%-15s %-7s %v", c.name, products[i].name, err)
				continue
			}
			t := turnOf(result)
			t.Others = others
			r.Rounds[i] = append(r.Rounds[i], t)
			progress("%-15s %-7s %8.0f/s  p50 %s  p99 %s  server %.1f µs  others %.0f%%", c.name, products[i].name, t.Rate, duration(t.P50), duration(t.P99), t.ServerCPU, 100*t.Others)
		}
	}

	var rates, tails []float64
	for i := range min(len(r.Rounds[0]), len(r.Rounds[1])) {
		a, b := r.Rounds[0][i], r.Rounds[1][i]
		rates = append(rates, a.Rate/b.Rate)
		if b.P99 > 0 {
			tails = append(tails, a.P99/b.P99)
		}
	}
	r.RateRatio, r.P99Ratio = median(rates), median(tails)
	r.Medians = [2]turn{medians(r.Rounds[0]), medians(r.Rounds[1])}
	return r, nil
}

// take is one turn of one server, and the share of the machine that others had.
func take(ctx context.Context, o options, c comparison, s *server, round uint64) (*load.Result, float64, error) {
	how := load.Options{
		Conns:   c.conns,
		Streams: c.streams,
		Seed:    round,
	}
	if c.fresh {
		if _, err := fillUp(ctx, o, s, c.fill, c.keys); err != nil {
			return nil, 0, err
		}
		if err := quiet(ctx, s); err != nil {
			return nil, 0, err
		}
		how.Requests = int64(c.keys)
	} else {
		how.Duration = time.Duration(o.seconds * float64(time.Second))
		how.Warmup = how.Duration / 5
	}

	var machine []time.Duration // busy before and after what is measured
	how.Meter = func() (time.Duration, error) {
		all, err := busy()
		if err != nil {
			return 0, err
		}
		machine = append(machine, all)
		return s.cpu()
	}
	if c.spread {
		for _, other := range s.others {
			how.Others = append(how.Others, other.client)
		}
	}
	measure := c.measure
	if measure == nil {
		measure = func(ctx context.Context, _ options, s *server, l load.Options) (*load.Result, error) {
			return s.run(ctx, c.load, l)
		}
	}
	result, err := measure(ctx, o, s, how)
	if err != nil {
		return nil, 0, err
	}
	others := machine[1] - machine[0] - result.ClientCPU - result.ServerCPU
	return result, max(others.Seconds(), 0) / (result.Elapsed.Seconds() * float64(runtime.NumCPU())), nil
}

// fillUp puts every key once, as fast as many callers can.
func fillUp(ctx context.Context, o options, s *server, fill load.Load, keys uint64) (*load.Result, error) {
	result, err := s.run(ctx, fill, load.Options{Conns: o.conns, Streams: o.streams, Requests: int64(keys)})
	if err == nil && result.Requests < int64(keys) {
		err = context.Cause(ctx)
	}
	return result, err
}

// measureFloor drives the responder that does nothing for its answers, in a
// process of its own: what client and wire cost before any store does a thing.
func measureFloor(ctx context.Context, o options) (turn, error) {
	self, err := os.Executable()
	if err != nil {
		return turn{}, err
	}
	process := exec.Command(self, floorCommand)
	process.Stderr = os.Stderr
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := process.StdoutPipe()
	if err != nil {
		return turn{}, err
	}
	if err := process.Start(); err != nil {
		return turn{}, err
	}
	defer process.Wait() // it is killed: there is no more to learn from it
	defer process.Process.Kill()
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return turn{}, fmt.Errorf("floor: %w", err)
	}
	var turns []turn
	for range o.rounds {
		result, err := load.Run(ctx, load.Put{Keys: load.Keys{Count: o.keys}, Value: o.value}, load.Options{
			Addr:     strings.TrimSpace(addr),
			Conns:    o.conns,
			Streams:  o.streams,
			Warmup:   100 * time.Millisecond,
			Duration: min(time.Second, time.Duration(o.seconds*float64(time.Second))),
			Meter:    func() (time.Duration, error) { return processCPU(process.Process.Pid) },
		})
		if err == nil {
			err = result.Err()
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return turn{}, fmt.Errorf("floor: %w", err)
		}
		turns = append(turns, turnOf(result))
	}
	m := medians(turns)
	progress("%-15s %16.0f/s  p50 %s  client %.2f µs  responder %.2f µs", "floor", m.Rate, duration(m.P50), m.ClientCPU, m.ServerCPU)
	return m, nil
}
