package main

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// report is all that a run found, for people and, as JSON, for programs.
type report struct {
	Machine machine   `json:"machine"`
	Names   [2]string `json:"names"`
	Members int       `json:"members"`
	Floor   turn      `json:"floor"`
	Loads   []row     `json:"loads"`

	Sections []*section `json:"sections,omitempty"`

	Failures []string `json:"failures,omitempty"` // what could not be run to its end
}

// fail notes what stopped a load; the others go on without it.
func (r *report) fail(name string, err error) {
	text := fmt.Sprintf("%s: %v", name, err)
	r.Failures = append(r.Failures, text)
	progress("%s", text)
}

// failures is nil when every load was answered rightly by both.
func (r *report) failures() error {
	var all []error
	for _, row := range r.Loads {
		for i, text := range row.Failed {
			if text != "" {
				all = append(all, fmt.Errorf("%s of %s: %s", row.Name, r.Names[i], text))
			}
		}
	}
	for _, text := range r.Failures {
		all = append(all, errors.New(text))
	}
	return errors.Join(all...)
}

// others is the median share of the machine that was not the run's own.
func (r *report) others() float64 {
	var all []float64
	for _, row := range r.Loads {
		for _, turns := range row.Rounds {
			for _, t := range turns {
				all = append(all, t.Others)
			}
		}
	}
	return median(all)
}

// goal is what is hoped for of a figure.
type goal struct {
	Of      string  `json:"of"`
	AtLeast float64 `json:"at_least,omitempty"`
	AtMost  float64 `json:"at_most,omitempty"`
}

// What a goal may be of.
const (
	ofRate = "rate ×"
	ofTail = "p99 ×"
	ofBoth = "×" // the ratio of a figure
	ofOurs = ""  // the first server's figure, whatever the other's
)

// verdict is empty without a goal; show tells a value as the table does.
func (g *goal) verdict(value float64, show func(float64) string) string {
	if g == nil {
		return ""
	}
	sign, bound, met := "≥", g.AtLeast, value >= g.AtLeast
	if g.AtMost > 0 {
		sign, bound, met = "≤", g.AtMost, value > 0 && value <= g.AtMost
	}
	mark := "✗"
	if met {
		mark = "✓"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s", g.Of, sign, show(bound), mark))
}

func (r row) verdict() string {
	switch {
	case r.Goal == nil || r.Failed != [2]string{}:
		return ""
	case r.Goal.Of == ofTail:
		return r.Goal.verdict(r.P99Ratio, ratio)
	}
	return r.Goal.verdict(r.RateRatio, ratio)
}

// markdown is the report in tables that are Markdown and, being aligned, good
// to read as they are.
func (r *report) markdown() string {
	var b strings.Builder
	a, z := r.Names[0], r.Names[1]
	for line := range strings.Lines(r.Machine.String()) {
		fmt.Fprintf(&b, "    %s", line)
	}
	fmt.Fprintf(&b, "\n\nFloor, a responder that stores nothing: %.0f/s, client %.1f µs and responder %.1f µs of CPU a request.\n",
		r.Floor.Rate, r.Floor.ClientCPU, r.Floor.ServerCPU)

	if r.Members > 1 {
		fmt.Fprintf(&b, "Clusters of %d members on this machine, asked at the leader; CPU is that of all members.\n", r.Members)
	}
	if len(r.Loads) > 0 {
		rates := table{{"load", "callers", a, z, "rate ×", a + " p50", z + " p50", a + " p99", z + " p99", "p99 ×", a + " CPU", z + " CPU", "goal"}}
		for _, row := range r.Loads {
			x, y := row.Medians[0], row.Medians[1]
			rates = append(rates, []string{
				row.What, fmt.Sprintf("%d×%d", row.Conns, row.Streams),
				row.show(0, rate(x.Rate)), row.show(1, rate(y.Rate)), ratio(row.RateRatio),
				row.show(0, latency(x.P50)), row.show(1, latency(y.P50)),
				row.show(0, latency(x.P99)), row.show(1, latency(y.P99)), ratio(row.P99Ratio),
				row.show(0, duration(x.ServerCPU)), row.show(1, duration(y.ServerCPU)),
				row.verdict(),
			})
		}
		fmt.Fprintf(&b, "Neither client nor server, but the kernel's threads and other programs, had %.0f %% of the cores (median of the turns).\n", 100*r.others())
		fmt.Fprintf(&b, "\nRates are requests a second, CPU is the server's for one request; all are medians of the rounds.\n"+
			"× is %s divided by %s in the same round, median: for rates more is better, for p99 less.\n\n%s", a, z, rates)
	}
	for _, s := range r.Sections {
		figures := table{{s.What, a, z, a + " / " + z, "goal"}}
		for _, f := range s.Figures {
			figures = append(figures, []string{f.Name, f.show(0), f.show(1), f.ratio(), f.verdict()})
		}
		fmt.Fprintf(&b, "\n%s", figures)
	}
	return b.String()
}

func (r row) show(i int, text string) string {
	if r.Failed[i] != "" {
		return "failed"
	}
	return text
}

// duration tells microseconds in the unit that suits them.
func duration(micros float64) string {
	switch {
	case micros >= 1e6:
		return fmt.Sprintf("%.2f s", micros/1e6)
	case micros >= 1e3:
		return fmt.Sprintf("%.2f ms", micros/1e3)
	case micros >= 100:
		return fmt.Sprintf("%.0f µs", micros)
	}
	return fmt.Sprintf("%.1f µs", micros)
}

// latency is a duration that not every load measures.
func latency(micros float64) string {
	if micros == 0 {
		return "–"
	}
	return duration(micros)
}

func rate(perSecond float64) string { return fmt.Sprintf("%.0f", perSecond) }

func size(bytes float64) string { return fmt.Sprintf("%.0f MiB", bytes/(1<<20)) }

func ratio(r float64) string {
	if r == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", r)
}

// table is rows of cells, the first row the head.
type table [][]string

func (t table) String() string {
	width := make([]int, len(t[0]))
	for _, row := range t {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, row := range t {
		for i, cell := range row {
			space := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i == 0 { // names to the left, figures to the right
				fmt.Fprintf(&b, "| %s%s |", cell, space)
			} else {
				fmt.Fprintf(&b, " %s%s |", space, cell)
			}
		}
		b.WriteByte('\n')
		if n == 0 {
			for i := range row {
				if i == 0 {
					fmt.Fprintf(&b, "|%s|", strings.Repeat("-", width[i]+2))
				} else {
					fmt.Fprintf(&b, "%s:|", strings.Repeat("-", width[i]+1))
				}
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}
