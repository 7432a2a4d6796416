package replica

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/cryptotest"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/fault"
)

var (
	simSeed = flag.Uint64("sim.seed", 0, "run this seed alone")
	simRuns = flag.Uint64("sim.runs", 40, "how many seeds to run")
)

// sim is a cluster with clients, driven by chance.
type sim struct {
	*cluster
	t       *testing.T
	ops     []*op
	next    int
	acked   map[int]string // by place
	refused map[string]bool
	answers int            // outcomes of barriers
	marks   map[string]int // what the run has met
	changes []string       // of the membership, still to be made
	spare   bool           // the member that joins exists
}

// op is a request under way.
type op struct {
	at      *member
	r       *Replica[int] // the run of the member that was asked
	command string        // empty: a barrier
	length  int           // of the list as acknowledged when it began
	wait    *Wait[int]
}

// TestChance runs small clusters under faults drawn from a seed: messages lost,
// late and out of order, links cut, members crashed with any part of what was
// not synced, disks that fail, a changing membership. Nothing that was
// acknowledged may be missing, doubled or moved, no barrier may be behind what
// was acknowledged before it, and what was refused may never be executed.
func TestChance(t *testing.T) {
	first, n := uint64(1), *simRuns
	if *simSeed != 0 {
		first, n = *simSeed, 1
	}
	var acked, barriers int
	seen := map[string]int{}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed)
			s := newSim(t, seed)
			defer func() {
				if p := recover(); p != nil {
					t.Logf("run again with -sim.seed=%d", seed)
					panic(p)
				}
				if t.Failed() {
					t.Logf("run again with -sim.seed=%d", seed)
				}
			}()
			for range 20000 {
				s.act()
			}
			s.heal()
			acked += len(s.acked)
			barriers += s.answers
			for name, count := range s.marks {
				seen[name] += count
			}
			seen["terms"] += len(s.leaders)
		})
	}
	t.Logf("%d commands and %d barriers answered; %v", acked, barriers, seen)
	for _, mark := range []string{"crash", "crash in a sync", "snapshot", "joint", "change", "change refused", "voter joined", "given up"} {
		if *simSeed == 0 && *simRuns >= 40 && seen[mark] == 0 {
			t.Errorf("no seed has met: %s", mark)
		}
	}
}

func newSim(t *testing.T, seed uint64) *sim {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := &sim{cluster: newCluster(rng, []int{1, 3, 3, 5}[rng.IntN(4)]), t: t, acked: map[int]string{}, refused: map[string]bool{}, marks: map[string]int{}}
	s.mark = func(what string) { s.marks[what]++ }
	if rng.IntN(2) == 0 {
		s.keep = 10 + rng.IntN(20) // snapshots all the time
	}
	if rng.IntN(2) == 0 {
		s.changes = []string{"l9", "v9", fmt.Sprint("r", 1+rng.IntN(len(s.voters))), "l9"}
	}
	for _, id := range s.ids {
		m := s.members[id]
		m.machine.lazy = rng.IntN(2) == 0
		if err := m.start(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *sim) any() *member { return s.members[s.ids[s.rng.IntN(len(s.ids))]] }

// act lets one thing happen.
func (s *sim) act() {
	m := s.any()
	chance := s.rng.IntN(1000)
	switch {
	case chance < 400:
		if len(s.wire) > 0 {
			s.deliver(s.rng.IntN(min(len(s.wire), 20)), s.rng.IntN(50) == 0)
		}
	case m.down:
		if chance > 985 && (m.started || m.id <= uint64(len(s.voters)) || s.spare) {
			if err := m.start(); err != nil {
				s.t.Fatalf("%v: %v", m, err)
			}
		}
	case chance < 560:
		m.step.Decide()
	case chance < 690:
		s.disk(m)
	case chance < 790:
		if _, err := m.step.Apply(); err != nil {
			s.t.Fatal(err)
		}
	case chance < 840:
		m.step.Tick()
	case chance < 900:
		s.propose(m)
	case chance < 960:
		s.begin(m, "", m.step.Barrier())
	case chance < 970:
		m.machine.flush()
	case chance < 975:
		to := s.any()
		s.cut[[2]uint64{m.id, to.id}] = true
	case chance < 985:
		clear(s.cut)
	case chance < 988:
		m.failing = true // in the middle of the next append
	case chance < 991:
		s.mark("crash")
		m.crash(s.rng.IntN(101))
	case chance < 993:
		m.step.Transfer(s.any().id)
	case chance < 996:
		s.configure(m)
	default:
		if len(s.ops) > 0 {
			i := s.rng.IntN(len(s.ops))
			s.ops[i].wait.Leave()
			s.mark("given up")
			s.ops = slices.Delete(s.ops, i, i+1)
		}
	}
	s.check()
	s.outcomes()
}

func (s *sim) disk(m *member) {
	_, err := m.step.Append()
	switch {
	case err == nil:
	case errors.Is(err, errDisk):
		s.mark("crash in a sync")
		m.crash(s.rng.IntN(101))
	default:
		s.t.Fatalf("%v: %v", m, err)
	}
}

func (s *sim) propose(m *member) {
	s.next++
	command := fmt.Sprint("c", s.next)
	if s.rng.IntN(10) == 0 {
		command += "-" + string(make([]byte, 100)) // larger than a batch
	}
	s.begin(m, command, m.step.Propose([]byte(command)))
}

func (s *sim) begin(m *member, command string, wait *Wait[int]) {
	s.ops = append(s.ops, &op{at: m, r: m.r, command: command, length: s.length(), wait: wait})
}

// length is that of the shortest list that holds all that was acknowledged.
func (s *sim) length() int {
	n := 0
	for place := range s.acked {
		n = max(n, place)
	}
	return n
}

func (s *sim) configure(m *member) {
	if len(s.changes) == 0 || m.r.Status().Role != Leader {
		return
	}
	what := s.changes[0]
	if what[0] == 'r' && len(m.r.Status().Voters) < 3 {
		return // with two, one that dies can take the other along: raft says so
	}
	s.changes = s.changes[1:]
	if what == "l9" && !s.spare {
		s.spare = true
		s.add(9, listState{})
	}
	singles, err := pb.ConfChangesFromString(what)
	if err != nil {
		s.t.Fatal(err)
	}
	s.next++
	command := fmt.Sprint("c", s.next)
	if s.rng.IntN(3) == 0 {
		command = fmt.Sprint(refuse, s.next)
	}
	change := &pb.ConfChangeV2{Changes: singles, Context: []byte(command)}
	if s.rng.IntN(2) == 0 {
		change.Transition = pb.ConfChangeTransitionJointImplicit.Enum()
	}
	s.begin(m, command, m.step.Configure(change))
}

// outcomes checks the answers that have come.
func (s *sim) outcomes() {
	s.ops = slices.DeleteFunc(s.ops, func(o *op) bool {
		if o.at.r != o.r {
			return true // crashed: nobody knows
		}
		place, err, there := o.wait.Outcome()
		if !there {
			return false
		}
		items := o.at.machine.now.items
		switch {
		case err != nil:
			s.mark(err.Error())
			if o.command != "" && !errors.Is(err, fault.TimeoutConnectionLost) {
				s.refused[o.command] = true
			}
		case o.command == "":
			s.answers++
			if len(items) < o.length {
				s.t.Fatalf("%v: a barrier shows %d items, of %d acknowledged before", o.at, len(items), o.length)
			}
		case place < 0: // the machine refused it
		default:
			if len(items) < place || items[place-1] != o.command {
				s.t.Fatalf("%v: %q is answered with place %d, which it does not have", o.at, o.command, place)
			}
			if other, ok := s.acked[place]; ok {
				s.t.Fatalf("%q and %q are both acknowledged at place %d", o.command, other, place)
			}
			s.acked[place] = o.command
		}
		return true
	})
}

// heal ends all faults, waits until the cluster works and looks at what it holds.
func (s *sim) heal() {
	clear(s.cut)
	var live []*member
	for range 400 {
		for _, id := range s.ids {
			m := s.members[id]
			m.failing = false
			if m.down && (m.started || m.id != 9) {
				if err := m.start(); err != nil {
					s.t.Fatalf("%v: %v", m, err)
				}
			}
			if !m.down {
				m.step.Tick()
			}
		}
		if err := s.settle(); err != nil {
			s.t.Fatal(err)
		}
		s.outcomes()
		live = s.live()
	}
	if len(live) == 0 {
		for _, id := range s.ids {
			m := s.members[id]
			if m.down {
				s.t.Logf("%v is down", m)
				continue
			}
			s.t.Logf("%+v", *m.r.Status())
		}
		s.t.Fatal("no leader in 400 ticks")
	}

	for _, m := range live {
		s.propose(m)
		s.begin(m, "", m.step.Barrier())
	}
	want := len(s.acked) + len(live)
	for range 40 {
		for _, m := range live {
			m.step.Tick()
		}
		if err := s.settle(); err != nil {
			s.t.Fatal(err)
		}
		s.outcomes()
	}
	if len(s.acked) < want {
		s.t.Fatalf("%d of %d commands were acknowledged by a healthy cluster", len(s.acked), want)
	}

	items := live[0].machine.now.items
	for _, m := range live {
		if !slices.Equal(m.machine.now.items, items) {
			s.t.Fatalf("%v differs from %v", m, live[0])
		}
	}
	for place, command := range s.acked {
		if items[place-1] != command {
			s.t.Fatalf("%q was acknowledged at place %d, where %q stands", command, place, items[place-1])
		}
	}
	seen := map[string]bool{}
	for _, item := range items {
		if seen[item] || s.refused[item] {
			s.t.Fatalf("%q is there twice, or was refused", item)
		}
		seen[item] = true
	}
}

// live returns the members of the membership that the leader knows.
func (s *sim) live() []*member {
	leader := s.leader()
	if leader == nil {
		return nil
	}
	status := leader.r.Status()
	var live []*member
	for _, id := range s.ids {
		m := s.members[id]
		if slices.Contains(status.Voters, id) || slices.Contains(status.Learners, id) {
			if m.down {
				_ = m.start()
			}
			live = append(live, m)
		}
	}
	return live
}
