package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kvorum/kvorum/test/bench/load"
)

// withV2 returns the products with the v2 API switched on, of etcd the one that
// has it.
func (o options) withV2(products [2]product) [2]product {
	products[1].binary = o.etcd34
	for i := range products {
		products[i].secure = nil
		products[i].flags = append(slices.Clone(products[i].flags), "--enable-v2")
	}
	return products
}

// formConns is how many connections ask, with one request under way each.
const formConns = 64

// form is a load over HTTP/1.1.
func form(o options, name, what string, l load.Form) comparison {
	l.Keys, l.Value = load.Keys{Count: o.keys}, o.value
	c := comparison{name: name, what: what, conns: formConns, streams: 1, v2: true}
	if l.Get {
		// What is read must be there, and put by v2: etcd keeps both apart.
		l.Keys.Count = min(o.keys, 10_000)
	} else {
		c.goal = &goal{Of: ofRate, AtLeast: 2}
	}
	c.measure = func(ctx context.Context, _ options, s *server, how load.Options) (*load.Result, error) {
		how = s.at(how)
		if l.Get {
			all := l
			all.Get = false
			filled, err := load.RunForm(ctx, all, load.Options{Addr: how.Addr, Conns: formConns, Requests: int64(l.Keys.Count)})
			if err == nil {
				err = filled.Err()
			}
			if err != nil {
				return nil, err
			}
		}
		result, err := load.RunForm(ctx, l, how)
		if err == nil {
			err = result.Err()
		}
		return result, err
	}
	return c
}

// longPolls is what requests cost that wait for something to happen.
func longPolls(o options) *section {
	polls := max(o.clients/10, 1)
	return &section{Name: "v2-polls", What: fmt.Sprintf("%d long polls", polls), v2: true, steps: []step{
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
			waiting, err := load.Poll(ctx, load.Keys{Prefix: "waited", Count: uint64(polls)}, h.at(load.Options{Conns: polls}))
			if err != nil {
				return nil, err
			}
			defer waiting.Close()
			took := time.Since(began)
			after, err := h.settled(ctx)
			if err != nil {
				return nil, err
			}
			with, err := h.steadyRate(ctx)
			if err == nil {
				err = waiting.Silent()
			}
			return []measure{
				{name: "polls begun", unit: perSecond, value: float64(polls) / took.Seconds()},
				{name: "memory for them", unit: bytesOf, value: float64(after - before)},
				measure{name: "memory in all", unit: bytesOf, value: float64(after)}.aiming(goal{Of: ofOurs, AtMost: 300 << 20}),
				{name: "puts without them", unit: perSecond, value: without},
				{name: "puts with them", unit: perSecond, value: with},
				measure{name: "with / without", unit: share, value: with / without}.aiming(goal{AtLeast: 0.9}),
			}, err
		},
	}}
}
