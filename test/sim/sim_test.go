package sim

import (
	"flag"
	"fmt"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"
)

var (
	seedFlag = flag.Uint64("seed", 1, "the first seed")
	runsFlag = flag.Uint64("runs", runsDefault, "how many seeds to run")
)

const runsDefault = 100

func TestMain(m *testing.M) {
	flag.Parse()
	// A run makes much garbage and keeps little, so it is collected between
	// runs. Only a large one has it done on the way: a goroutine that never
	// waits leaves the collector little room where there is one processor.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(512 << 20)
	m.Run()
}

// result is what is left of a run.
type result struct {
	setup   setup
	hash    uint64
	failure string
	world   *world
}

// simulate runs a seed.
func simulate(t *testing.T, seed uint64) result {
	return simulateWith(t, seed, func(*world) {})
}

func simulateWith(t *testing.T, seed uint64, change func(*world)) (r result) {
	runtime.GC()
	cryptotest.SetGlobalRandom(t, seed) // raft's election timeouts
	w := newWorld(seed)
	r.setup, r.world = w.setup, w
	change(w)
	defer func() {
		r.hash = w.trace.hash
		switch p := recover().(type) {
		case nil:
		case broken:
			r.failure = string(p)
		default:
			r.failure = fmt.Sprintf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	w.run()
	return r
}

// report prints what is needed to find the cause of a failure.
func (r result) report(t *testing.T, seed uint64) {
	t.Helper()
	t.Errorf("seed %d, after %v: %s\n\n%v\n%v\nto repeat: go test ./test/sim -run TestSeeds -seed %d -runs 1 -v",
		seed, r.world.now, r.failure, r.setup, &r.world.trace, seed)
}

// sum adds up runs.
type sum struct {
	seeds, violations       int
	simulated, took         time.Duration
	events, entries         int
	called, answered, reads int
	heard                   int
	messages, snapshots     int
	faults, marks           map[string]int
}

func newSum() *sum { return &sum{faults: map[string]int{}, marks: map[string]int{}} }

func (s *sum) add(w *world) {
	s.seeds++
	s.simulated += w.now
	s.events += w.events
	s.entries += len(w.oracle.entries)
	s.messages += w.network.messages
	s.snapshots += w.network.snapshots
	s.heard += w.heard
	for _, o := range w.history {
		s.called++
		if o.done && !o.unknown {
			s.answered++
			if o.kind == opRange || o.kind == opSerializable {
				s.reads++
			}
		}
	}
	for name, n := range w.nemesis.count {
		s.faults[name] += n
	}
	for name, n := range w.marks {
		s.marks[name] += n
	}
}

func (s *sum) String() string {
	var b strings.Builder
	seconds := s.took.Seconds()
	fmt.Fprintf(&b, "%d seeds in %v (%.1f a second), %.2f hours simulated (%.0f times as fast as real time), %d violations\n",
		s.seeds, s.took.Round(time.Millisecond), float64(s.seeds)/seconds, s.simulated.Hours(), s.simulated.Seconds()/seconds, s.violations)
	fmt.Fprintf(&b, "%d operations called, %d answered, %d of them reads; %d changes heard by watchers; %d entries; %d messages, %d snapshots sent; %d events\n",
		s.called, s.answered, s.reads, s.heard, s.entries, s.messages, s.snapshots, s.events)
	total := 0
	for _, n := range s.faults {
		total += n
	}
	fmt.Fprintf(&b, "%d faults, one in %.1f s:", total, s.simulated.Seconds()/float64(max(total, 1)))
	for _, name := range slices.Sorted(maps.Keys(s.faults)) {
		fmt.Fprintf(&b, " %s %d,", name, s.faults[name])
	}
	b.WriteString("\nseen:")
	for _, name := range slices.Sorted(maps.Keys(s.marks)) {
		fmt.Fprintf(&b, " %s %d,", name, s.marks[name])
	}
	return strings.TrimRight(b.String(), ",")
}

// sometimes are the places that runs must get to, so that passing means
// something.
var sometimes = []string{
	"change of the members refused",
	"clock stepped",
	"disk full",
	"end of a lease by a leader of the past",
	"follower removed from two voters",
	"history through porcupine",
	"joint membership",
	"joint membership while links are cut",
	"leader changed under a read",
	"leader ended between append and commit",
	"leader paused",
	"leader removed",
	"leader removed from two voters",
	"learner promoted",
	"lease ended by its clock",
	"lease ends with its keys",
	"lease renewed through another member",
	"member replaced",
	"message comes twice",
	"message lost one way",
	"message overtaken",
	"node expired",
	"power lost with operations under way",
	"power lost: sector garbled",
	"power lost: sector torn",
	"power lost: sector zeroed",
	"power lost: unsynced sector kept",
	"power lost: unsynced sector lost",
	"read of a compacted revision",
	"removed member left",
	"renewed lease ended by its clock",
	"restore failed",
	"serializable read of the past",
	"several commands in an entry",
	"snapshot for one that fell behind",
	"snapshot installed at the start",
	"snapshot transfer repeated",
	"start failed",
	"start without a log refused",
	"sync failed",
	"table fell back",
	"unknown outcome, committed later",
	"unknown outcome, never committed",
	"voter removed",
	"what is left of a lease written down",
	"what was left of a lease carried over",
	"what was left of a lease is all of it again",
	"watch from some revision",
	"watch of the future",
	"watch of what is compacted",
	"progress of a watch told",
	"write failed",
	"write slower than an election",
}

// TestSeeds runs clusters under faults, one for each seed.
func TestSeeds(t *testing.T) {
	s := newSum()
	began := time.Now()
	const violationsMax = 5
	for seed := *seedFlag; seed < *seedFlag+*runsFlag && s.violations < violationsMax; seed++ {
		r := simulate(t, seed)
		s.add(r.world)
		if r.failure != "" {
			s.violations++
			r.report(t, seed)
		}
	}
	s.took = time.Since(began)
	t.Log(s)
	if *runsFlag >= runsDefault {
		for _, name := range sometimes {
			if s.marks[name] == 0 {
				t.Errorf("no run got to: %s", name)
			}
		}
		for _, f := range faults {
			if s.faults[f.name] == 0 {
				t.Errorf("no run had: %s", f.name)
			}
		}
	}
}

// TestDeterminism runs seeds twice and wants the same to happen.
func TestDeterminism(t *testing.T) {
	for seed := *seedFlag; seed < *seedFlag+5; seed++ {
		if a, b := simulate(t, seed), simulate(t, seed); a.hash != b.hash {
			t.Errorf("seed %d: trace %x, and %x when repeated", seed, a.hash, b.hash)
		}
	}
}
