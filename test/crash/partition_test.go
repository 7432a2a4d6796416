package crash

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ways returns those from some members to others.
func ways(from, to []*clusterMember) (all []way) {
	for _, a := range from {
		for _, b := range to {
			if a != b {
				all = append(all, way{a.id, b.id})
			}
		}
	}
	return all
}

// around returns the ways out of members to all others, and those back.
func (c *cluster) around(some ...*clusterMember) (out, in []way) {
	others := slices.DeleteFunc(slices.Clone(c.members), func(m *clusterMember) bool { return slices.Contains(some, m) })
	return ways(some, others), ways(others, some)
}

// keepOutput writes down what the members said, if the test has failed.
func (c *cluster) keepOutput() {
	if !c.t.Failed() {
		return
	}
	dir, err := os.MkdirTemp("", "kvorum-output-")
	if err != nil {
		c.t.Error(err)
		return
	}
	for _, m := range c.members {
		if err := os.WriteFile(filepath.Join(dir, m.name), []byte(m.output.String()), 0o600); err != nil {
			c.t.Error(err)
		}
	}
	c.t.Logf("what the members said: %s", dir)
}

// A nemesis does something to a cluster, and returns how it ends.
type nemesis struct {
	name string
	do   func(c *cluster, rng *rand.Rand) (undo func())
}

// troubled makes trouble on ways. Connections that outlive it go on where they
// were, or are cut: what was under way is late, or lost.
func (c *cluster) troubled(rng *rand.Rand, what trouble, on []way) (undo func()) {
	c.network.set(what, on...)
	return func() {
		c.network.set(trouble{}, on...)
		if rng.IntN(2) == 0 {
			c.network.cut(on...)
		}
	}
}

func (c *cluster) any(rng *rand.Rand) *clusterMember { return c.members[rng.IntN(len(c.members))] }

// killed kills members, whose ends are noticed by all at once.
func (c *cluster) killed(some ...*clusterMember) (undo func()) {
	for _, m := range some {
		c.kill(m)
	}
	return func() {
		for _, m := range some {
			if !m.running() {
				c.start(m, "new")
			}
		}
	}
}

func paused(m *clusterMember) (undo func()) {
	p := m.process
	_ = p.Process.Signal(syscall.SIGSTOP) // or it is dead
	return func() { _ = p.Process.Signal(syscall.SIGCONT) }
}

// whoLeads does something with the member that leads, if one does.
func (c *cluster) whoLeads(do func(*clusterMember)) {
	for _, m := range c.members {
		if m.leads(c.t.Context()) {
			do(m)
			return
		}
	}
}

var nemeses = []nemesis{
	{"kill one", func(c *cluster, rng *rand.Rand) func() { return c.killed(c.any(rng)) }},
	{"kill the leader", func(c *cluster, rng *rand.Rand) func() {
		undo := func() {}
		c.whoLeads(func(m *clusterMember) { undo = c.killed(m) })
		return undo
	}},
	{"kill all", func(c *cluster, rng *rand.Rand) func() { return c.killed(c.members...) }},
	{"pause one", func(c *cluster, rng *rand.Rand) func() { return paused(c.any(rng)) }},
	{"pause the leader", func(c *cluster, rng *rand.Rand) func() {
		undo := func() {}
		c.whoLeads(func(m *clusterMember) { undo = paused(m) })
		<-time.After(time.Second) // until another one leads
		return undo
	}},
	{"isolate", func(c *cluster, rng *rand.Rand) func() {
		out, in := c.around(c.any(rng))
		return c.troubled(rng, trouble{hold: true}, append(out, in...))
	}},
	{"refuse", func(c *cluster, rng *rand.Rand) func() {
		out, in := c.around(c.any(rng))
		return c.troubled(rng, trouble{refuse: true}, append(out, in...))
	}},
	{"mute", func(c *cluster, rng *rand.Rand) func() {
		out, _ := c.around(c.any(rng))
		return c.troubled(rng, trouble{hold: true}, out)
	}},
	{"deafen", func(c *cluster, rng *rand.Rand) func() {
		_, in := c.around(c.any(rng))
		return c.troubled(rng, trouble{hold: true}, in)
	}},
	{"part two", func(c *cluster, rng *rand.Rand) func() {
		a := rng.IntN(len(c.members))
		two := []*clusterMember{c.members[a], c.members[(a+1)%len(c.members)]}
		return c.troubled(rng, trouble{hold: true}, ways(two, two))
	}},
	{"split all", func(c *cluster, rng *rand.Rand) func() {
		return c.troubled(rng, trouble{hold: true}, ways(c.members, c.members))
	}},
	{"slow", func(c *cluster, rng *rand.Rand) func() {
		out, in := c.around(c.any(rng))
		return c.troubled(rng, trouble{delay: time.Duration(1+rng.IntN(40)) * time.Millisecond}, append(out, in...))
	}},
	{"cut", func(c *cluster, rng *rand.Rand) func() {
		c.network.cut(ways(c.members, c.members)...)
		return func() {}
	}},
}

// TestAClusterInTroubleLosesNothing has clients at all members of a cluster
// while members die, pause and cannot hear each other, one after the other and
// together, and judges afterwards what they saw. Then all members hold the same.
func TestAClusterInTroubleLosesNothing(t *testing.T) {
	t.Parallel()
	seed := setting(t, "KVORUM_CRASH_SEED", rand.Uint64N(1<<32))
	until := time.Now().Add(time.Duration(setting(t, "KVORUM_CRASH_SECONDS", 4)) * time.Second)
	rng := rand.New(rand.NewPCG(seed, 0))
	c := &cluster{t: t, flags: clusterFlags, network: newNetwork()}
	c.found(3)
	defer c.keepOutput()
	var clients []*clientv3.Client
	for _, m := range c.members {
		clients = append(clients, m.site.client(t), m.site.client(t), m.site.client(t))
	}
	seen := watch(t, seed, time.Second, clients...)

	did := map[string]int{}
	var slowest time.Duration
	for time.Now().Before(until) {
		var undo []func()
		for again := true; again; again = rng.IntN(3) == 0 && len(undo) < 3 {
			one := nemeses[rng.IntN(len(nemeses))]
			did[one.name]++
			undo = append(undo, one.do(c, rng))
			<-time.After(time.Duration(rng.IntN(800)) * time.Millisecond)
			seen.epoch.Add(1)
		}
		for _, end := range undo {
			end()
		}
		if rng.IntN(4) == 0 {
			continue // nobody has time to recover
		}
		before, from := seen.acks.Load(), time.Now()
		c.await("clients to be answered again", func() bool { return seen.acks.Load() > before+50 })
		slowest = max(slowest, time.Since(from))
	}

	for _, m := range c.members {
		m.ready(t, m.client)
	}
	seen.stop()
	c.wantEqual()
	seen.judge(c.c)
	t.Logf("%v; slowest recovery %v", did, slowest.Round(time.Millisecond))
}
