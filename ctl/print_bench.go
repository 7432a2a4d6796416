package ctl

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kvorum/kvorum/ctl/internal/load"
)

// benchReport is what a benchmark found out, with what it takes to repeat it.
type benchReport struct {
	Workload     string      `json:"workload"`
	Seed         uint64      `json:"seed"`
	Clients      int         `json:"clients"`
	Conns        int         `json:"conns"`
	RateAsked    float64     `json:"rate_asked,omitempty"`
	Keys         int64       `json:"keys"`
	KeySize      int         `json:"key_size"`
	ValueSize    int         `json:"value_size"`
	Serializable bool        `json:"serializable,omitempty"`
	Seconds      float64     `json:"seconds"`
	Results      []benchKind `json:"results"`
}

// benchKind is what requests of one kind met. Latencies are of those that
// were answered.
type benchKind struct {
	Kind     string           `json:"kind"`
	Requests int64            `json:"requests"`
	Rate     float64          `json:"rate"` // answers per second
	Latency  benchLatency     `json:"latency_seconds"`
	Failed   int64            `json:"failed"`
	Errors   map[string]int64 `json:"errors"`
}

type benchLatency struct {
	Average float64 `json:"average"`
	P50     float64 `json:"p50"`
	P95     float64 `json:"p95"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

func newBenchReport(name string, o benchOptions, result load.Result) benchReport {
	r := benchReport{
		Workload: name, Seed: o.seed, Clients: o.clients, Conns: o.conns, RateAsked: o.rate,
		Keys: o.keys, KeySize: o.keySize, ValueSize: o.valueSize, Serializable: o.serializable,
		Seconds: result.Elapsed.Seconds(),
		Results: []benchKind{},
	}
	for _, kind := range slices.Sorted(maps.Keys(result.Kinds)) {
		s := result.Kinds[kind]
		quantile := func(q float64) float64 { return s.Latency.Quantile(q).Seconds() }
		r.Results = append(r.Results, benchKind{
			Kind: kind, Requests: s.Requests(), Failed: s.Failed, Errors: s.Errors,
			Rate: float64(s.Latency.Count()) / r.Seconds,
			Latency: benchLatency{
				Average: s.Latency.Mean().Seconds(),
				P50:     quantile(0.5), P95: quantile(0.95), P99: quantile(0.99),
				Max: s.Latency.Max().Seconds(),
			},
		})
	}
	return r
}

func (r benchReport) failed() (failed, all int64) {
	for _, k := range r.Results {
		failed, all = failed+k.Failed, all+k.Requests
	}
	return failed, all
}

func (r benchReport) answer() answer {
	return answer{json: r, simple: r.simple, table: r.table}
}

func (r benchReport) table() (header []string, rows [][]string) {
	for _, k := range r.Results {
		l := k.Latency
		row := []string{k.Kind, strconv.FormatInt(k.Requests, 10), strconv.FormatFloat(k.Rate, 'f', 0, 64)}
		for _, seconds := range []float64{l.Average, l.P50, l.P95, l.P99, l.Max} {
			row = append(row, milliseconds(seconds))
		}
		rows = append(rows, append(row, errorCounts(k)))
	}
	return []string{"request", "count", "per second", "average", "p50", "p95", "p99", "max", "errors"}, rows
}

func errorCounts(k benchKind) string {
	var all []string
	for _, text := range slices.Sorted(maps.Keys(k.Errors)) {
		all = append(all, fmt.Sprintf("%d: %s", k.Errors[text], text))
	}
	return strings.Join(all, "\n")
}

// simple is the table without its lines, and each error on a line below it.
func (r benchReport) simple(p *printer) {
	p.linef("%s: %d clients on %d connections for %v, seed %d",
		r.Workload, r.Clients, r.Conns, time.Duration(r.Seconds*float64(time.Second)).Round(10*time.Millisecond), r.Seed)
	columns := tabwriter.NewWriter(p, 0, 0, 2, ' ', tabwriter.AlignRight)
	header, rows := r.table()
	for _, row := range append([][]string{header}, rows...) {
		fmt.Fprintf(columns, "%s\t\n", strings.Join(row[:len(row)-1], "\t"))
	}
	columns.Flush() // into a buffer, whose own Flush tells what went wrong
	for _, k := range r.Results {
		for _, text := range slices.Sorted(maps.Keys(k.Errors)) {
			p.linef("%d %s failed: %s", k.Errors[text], k.Kind, text)
		}
	}
}

// milliseconds shows seconds with three or more digits that count.
func milliseconds(seconds float64) string {
	ms := seconds * 1000
	digits := 3
	switch {
	case ms >= 100:
		digits = 0
	case ms >= 10:
		digits = 1
	case ms >= 1:
		digits = 2
	}
	return strconv.FormatFloat(ms, 'f', digits, 64) + "ms"
}
