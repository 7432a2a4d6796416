package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/kvorum/kvorum/watch"
)

// setup is what a seed makes of a run.
type setup struct {
	voters        int
	changing      bool // the members change
	joint         bool // by way of a joint membership
	tick          time.Duration
	electionTicks int
	keepEntries   int  // behind what is applied, in the log
	flushEntries  int  // applied before the table is made durable
	small         bool // messages, batches and windows are
	traffic       time.Duration

	clients     int
	listeners   int
	recentBytes int           // of events in memory, for those who are near
	think       time.Duration // of a client between two operations
	timeout     time.Duration // of an operation
	keys        int
	plain       bool // operations on single keys only, which porcupine can judge
	mix         [kinds]int
	leases      bool
	nodes       bool
	checkpoint  time.Duration // what is left of a longer lease is written down so often
	ends        int           // leases that end in one command

	delay, jitter time.Duration // of messages
	loss          int           // permille of messages, always
	twice         int           // permille of messages that come twice
	write         time.Duration // of the disk

	faults  []string
	between time.Duration // faults
	tear    tearing
}

func (s setup) String() string {
	return fmt.Sprintf("%d voters, tick %v, election %d ticks, keep %d, flush %d, small %v, %d clients, %d keys, plain %v, faults every %v: %s",
		s.voters, s.tick, s.electionTicks, s.keepEntries, s.flushEntries, s.small, s.clients, s.keys, s.plain, s.between, strings.Join(s.faults, ", "))
}

// election is the time without a leader after which others want to be one.
func (s setup) election() time.Duration { return s.tick * time.Duration(s.electionTicks) }

func newSetup(rng *rand.Rand) setup {
	between := func(lo, hi int) int { return lo + rng.IntN(hi-lo+1) }
	ms := func(lo, hi int) time.Duration { return time.Duration(between(lo, hi)) * time.Millisecond }
	s := setup{
		voters:        []int{1, 3, 3, 3, 5, 5}[rng.IntN(6)],
		changing:      rng.IntN(2) == 0,
		joint:         rng.IntN(4) == 0,
		tick:          []time.Duration{20, 50, 100, 100}[rng.IntN(4)] * time.Millisecond,
		electionTicks: between(5, 10),
		keepEntries:   []int{5, 20, 100, 5000}[rng.IntN(4)],
		flushEntries:  []int{1, 5, 50, 500}[rng.IntN(4)],
		small:         rng.IntN(3) == 0,
		traffic:       time.Duration(between(20, 90)) * time.Second,
		clients:       between(1, 10),
		think:         ms(5, 400),
		keys:          []int{2, 5, 10, 50}[rng.IntN(4)],
		plain:         rng.IntN(4) == 0,
		delay:         ms(0, 5),
		jitter:        ms(1, 20),
		loss:          []int{0, 0, 5, 50, 150}[rng.IntN(5)],
		twice:         []int{0, 0, 20, 200}[rng.IntN(4)],
		write:         []time.Duration{100 * time.Microsecond, time.Millisecond, 8 * time.Millisecond}[rng.IntN(3)],
		between:       ms(300, 8000),
		tear:          tearing{lose: rng.IntN(101), garble: rng.IntN(101)},
	}
	s.timeout = time.Duration(between(2, 6)) * s.tick * time.Duration(s.electionTicks)
	for kind := range s.mix {
		s.mix[kind] = rng.IntN(10)
	}
	s.mix[opPut] += 3
	s.mix[opRange] += 3
	s.mix[opCompact] = rng.IntN(3)
	if s.leases = !s.plain && rng.IntN(3) > 0; !s.leases {
		s.mix[opGrant], s.mix[opRevoke], s.mix[opExpire], s.mix[opKeepAlive] = 0, 0, 0, 0
	} else {
		s.mix[opGrant] += 2
		s.mix[opRevoke], s.mix[opExpire] = rng.IntN(3), rng.IntN(3)
	}
	if s.nodes = !s.plain && rng.IntN(2) > 0; !s.nodes {
		s.mix[opNode] = 0
	}
	for _, f := range faults {
		if rng.IntN(3) > 0 {
			s.faults = append(s.faults, f.name)
		}
	}
	s.listeners = rng.IntN(4)
	s.recentBytes = []int{1, 1000, 100_000}[rng.IntN(3)]
	s.checkpoint = time.Duration(between(1, 12)) * time.Second
	s.ends = between(1, 3)
	return s
}

// world is one run.
type world struct {
	setup
	seed uint64

	// Chance, apart for each part, so that a change of one leaves the others.
	schedule, wire, disks, users, fate, ears, reigns *rand.Rand

	now    time.Duration
	queue  []event // a heap
	events int

	members   []*member // ever made, by id
	network   network
	oracle    *oracle
	nemesis   nemesis
	clients   []*client
	listeners []*listener
	heard     int                       // events, by listeners
	lie       func(*watch.Message) bool // what else they are told, if not nothing
	history   []*op
	leaders   map[uint64]uint64 // by term
	floor     uint64            // newest index that somebody has been told of

	marks map[string]int
	trace trace
}

// event is something that happens at a time. Those of one time happen in an
// order that chance decides.
type event struct {
	at  time.Duration
	tie uint64
	do  func()
}

func newWorld(seed uint64) *world {
	stream := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }
	w := &world{
		setup: newSetup(stream(0)), seed: seed,
		schedule: stream(1), wire: stream(2), disks: stream(3), users: stream(4), fate: stream(5), ears: stream(6), reigns: stream(7),
		leaders: map[uint64]uint64{}, marks: map[string]int{},
	}
	w.network = network{w: w, cut: map[link]bool{}, slow: map[link]time.Duration{}, arrived: map[link]int{}}
	w.oracle = newOracle(w)
	w.nemesis = nemesis{w: w}
	for id := uint64(1); id <= uint64(w.voters); id++ {
		w.addMember(id, true)
	}
	for i := range w.setup.clients {
		w.clients = append(w.clients, &client{w: w, id: i})
	}
	for i := range w.setup.listeners {
		w.listeners = append(w.listeners, newListener(w, i))
	}
	return w
}

// broken is what a run that failed panics with.
type broken string

// fail ends the run: a promise was not kept.
func (w *world) fail(format string, args ...any) { panic(broken(fmt.Sprintf(format, args...))) }

func (w *world) mark(name string) { w.marks[name]++ }

// after has something happen later.
func (w *world) after(d time.Duration, do func()) {
	e := event{w.now + d, w.schedule.Uint64(), do}
	w.queue = append(w.queue, e)
	for i := len(w.queue) - 1; i > 0; {
		parent := (i - 1) / 2
		if !w.queue[i].before(w.queue[parent]) {
			break
		}
		w.queue[i], w.queue[parent] = w.queue[parent], w.queue[i]
		i = parent
	}
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.tie < o.tie }

// step lets the next thing happen.
func (w *world) step() {
	e := w.queue[0]
	last := len(w.queue) - 1
	w.queue[0] = w.queue[last]
	w.queue[last] = event{}
	w.queue = w.queue[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if child+1 < last && w.queue[child+1].before(w.queue[child]) {
			child++
		}
		if !w.queue[child].before(w.queue[i]) {
			break
		}
		w.queue[i], w.queue[child] = w.queue[child], w.queue[i]
		i = child
	}
	w.now = e.at
	w.events++
	e.do()
}

// until runs the world up to a time, or until done says so, and tells whether
// it did.
func (w *world) until(at time.Duration, done func() bool) bool {
	for w.now < at {
		if done != nil && done() {
			return true
		}
		w.step()
	}
	return done != nil && done()
}

func (w *world) run() {
	for _, m := range w.members {
		m.start()
	}
	for _, c := range w.clients {
		c.next()
	}
	for _, l := range w.listeners {
		l.listen()
	}
	w.nemesis.next()
	w.until(w.traffic, nil)

	w.nemesis.heal()
	w.settle()
	w.expire()
	for _, l := range w.listeners {
		l.finish()
	}
	w.oracle.finish()
	judge(w)
	if w.plain {
		judgeAgain(w)
	}
}

// settle waits until the cluster does what a healthy one does.
func (w *world) settle() {
	election := 2 * w.election() // timeouts are drawn up to twice as long
	// Under load, one that is behind may stay behind: the log it needs is gone
	// before it has read the snapshot. So the load ends after a while.
	w.until(w.now+4*election+2*time.Second, nil) // and what the faults have set off happens
	for _, c := range w.clients {
		c.stopped = true
	}
	w.nemesis.replace()
	limit := w.now + 40*election + 5*time.Second
	if !w.until(limit, w.agreed) {
		for _, m := range w.members {
			w.note("left", m.id, 0, 0)
			w.trace.extra = append(w.trace.extra, m.describe())
		}
		w.fail("no agreement %v after the last fault", 40*election+5*time.Second)
	}

	// Everybody accepts writes and reads, at once.
	var probes []*op
	for _, m := range w.membership() {
		c := &client{w: w, id: len(w.clients) + len(probes), stopped: true, home: m}
		probes = append(probes, c.begin(opPut), c.begin(opRange))
	}
	answered := func() bool {
		return !slices.ContainsFunc(probes, func(o *op) bool { return !o.done })
	}
	if !w.until(w.now+20*election+2*w.timeout, answered) {
		w.fail("a healthy cluster does not answer")
	}
	for _, o := range probes {
		if o.err != nil {
			w.fail("a healthy cluster refuses: %v: %v", o, o.err)
		}
	}
	w.rest()
}

// rest waits until all are level.
func (w *world) rest() {
	if !w.until(w.now+20*2*w.election(), w.agreed) {
		w.fail("a healthy cluster does not come to rest")
	}
}

// membership returns the members that belong to the cluster.
func (w *world) membership() []*member {
	var in []*member
	for _, m := range w.members {
		if w.oracle.voter(m.id) || w.oracle.learner(m.id) {
			in = append(in, m)
		}
	}
	return in
}

// agreed tells whether all members of the cluster hold the same, under one
// leader.
func (w *world) agreed() bool {
	if len(w.oracle.entries) == 0 {
		return false
	}
	members := w.membership()
	last := w.oracle.entries[len(w.oracle.entries)-1]
	if len(w.oracle.voters.GetVotersOutgoing()) > 0 || w.nemesis.under() > 0 {
		return false // the members are about to change
	}
	if slices.ContainsFunc(w.present(), func(m *member) bool { return w.oracle.removed(m.id) }) {
		return false // who was removed has not noticed
	}
	var leader uint64
	for i, m := range members {
		if !m.up || m.paused {
			return false // if its disk is lost, somebody has to replace it
		}
		s := m.r.Status()
		if i == 0 {
			leader = s.Leader
		}
		if !w.oracle.voter(s.Leader) || s.Leader != leader || s.Transferee != 0 || s.Term != last.term || uint64(m.state.View().Index) != w.oracle.last() {
			return false
		}
	}
	sum := members[0].state.View().Checksum
	for _, m := range members {
		if m.state.View().Checksum != sum {
			w.fail("%v differs at index %d", m, w.oracle.last())
		}
	}
	return true
}

// trace remembers the last things that happened, and a hash of all.
type trace struct {
	hash  uint64
	lines []line
	next  int
	extra []string
}

type line struct {
	at      time.Duration
	what    string
	a, b, c uint64
}

const traceLines = 300

// note adds to the trace.
func (w *world) note(what string, a, b, c uint64) {
	t := &w.trace
	h := t.hash
	mix := func(x uint64) { h = (h ^ x) * 0x9e3779b97f4a7c15; h ^= h >> 29 }
	mix(uint64(w.now))
	mix(uint64(len(what))<<8 + uint64(what[0]))
	mix(a)
	mix(b)
	mix(c)
	t.hash = h
	l := line{w.now, what, a, b, c}
	if len(t.lines) < traceLines {
		t.lines = append(t.lines, l)
		return
	}
	t.lines[t.next] = l
	t.next = (t.next + 1) % traceLines
}

func (t *trace) String() string {
	var b strings.Builder
	for i := range t.lines {
		l := t.lines[(t.next+i)%len(t.lines)]
		fmt.Fprintf(&b, "%12v  %-24s %d %d %d\n", l.at, l.what, l.a, l.b, l.c)
	}
	for _, text := range t.extra {
		fmt.Fprintln(&b, text)
	}
	return b.String()
}
