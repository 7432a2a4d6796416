package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A section takes both servers, or one alone, through steps, and tells figures
// of each.
type section struct {
	Name    string   `json:"name"`
	What    string   `json:"what"`
	Figures []figure `json:"figures"`

	steps []step
	v2    bool // etcd is the one that still has the v2 API
	alone bool // only the first server goes through it
}

// step is done with one server at a time.
type step func(context.Context, *household) ([]measure, error)

// figure is one measure of both servers.
type figure struct {
	Name   string     `json:"name"`
	Unit   unit       `json:"unit"`
	Values [2]float64 `json:"values"`
	Goal   *goal      `json:"goal,omitempty"`
}

type unit string

const (
	perSecond    unit = "per second"
	microseconds unit = "microseconds"
	bytesOf      unit = "bytes"
	share        unit = "share"
)

func (f figure) show(i int) string { return f.Unit.show(f.Values[i]) }

func (u unit) show(value float64) string {
	if value == 0 {
		return "–" // not reached
	}
	switch u {
	case perSecond:
		return rate(value) + "/s"
	case bytesOf:
		return size(value)
	case share:
		return ratio(value)
	}
	return duration(value)
}

func (f figure) ratio() string { return ratio(f.quotient()) }

func (f figure) quotient() float64 {
	if f.Values[1] == 0 {
		return 0
	}
	return f.Values[0] / f.Values[1]
}

func (f figure) verdict() string {
	if f.Goal == nil || f.Values[0] == 0 && f.Goal.Of == ofOurs {
		return ""
	}
	if f.Goal.Of == ofOurs {
		return f.Goal.verdict(f.Values[0], f.Unit.show)
	}
	return f.Goal.verdict(f.quotient(), ratio)
}

// measure is a figure of one server.
type measure struct {
	name  string
	unit  unit
	value float64
	goal  *goal
}

func ofTime(name string, d time.Duration) measure {
	return measure{name: name, unit: microseconds, value: micros(d)}
}

// aiming gives the measure a goal.
func (m measure) aiming(g goal) measure {
	m.goal = &g
	return m
}

// compare takes both servers through the steps, step by step, so that what is
// told of one is told of the other a few seconds later. With an error it leaves
// what was found until then.
func (s *section) compare(ctx context.Context, o options, products [2]product, dir string) error {
	var houses []*household
	var servers []*server
	if s.v2 {
		products = o.withV2(products)
	}
	through := products[:]
	if s.alone {
		through = products[:1]
	}
	for _, p := range through {
		if !o.tls {
			p.secure = nil
		}
		own, err := newServer(ctx, p, dir, 1)
		if err != nil {
			return err
		}
		defer own.remove()
		houses, servers = append(houses, newHousehold(o, own)), append(servers, own)
	}
	for number, step := range s.steps {
		from := len(s.Figures)
		for place := range houses {
			i := (place + number) % len(houses)
			if err := quiet(ctx, servers...); err != nil {
				return err
			}
			measures, err := step(ctx, houses[i])
			if err != nil {
				return fmt.Errorf("%s of %s: %w", s.Name, houses[i].name, err)
			}
			for _, m := range measures {
				at := slices.IndexFunc(s.Figures[from:], func(f figure) bool { return f.Name == m.name })
				if at < 0 {
					at = len(s.Figures) - from
					s.Figures = append(s.Figures, figure{Name: m.name, Unit: m.unit, Goal: m.goal})
				}
				f := &s.Figures[from+at]
				f.Values[i] = m.value
				progress("%-15s %-7s %s: %s", s.Name, houses[i].name, f.Name, f.show(i))
			}
		}
	}
	return nil
}
