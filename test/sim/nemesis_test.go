package sim

import (
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/replica"
)

// nemesis does harm.
type nemesis struct {
	w      *world
	count  map[string]int
	change *op // of the membership, under way
	ids    uint64
	over   bool // all is healed
}

// harm is one kind of fault.
type harm struct {
	name string
	do   func(n *nemesis)
}

// faults are all that can be done to a cluster.
var faults = []harm{
	{"kill", func(n *nemesis) { n.kill(n.any(), false) }},
	{"kill leader", func(n *nemesis) { n.kill(n.leader(), false) }},
	{"power", func(n *nemesis) { n.kill(n.any(), true) }},
	{"power of all", func(n *nemesis) {
		for _, m := range n.w.members {
			n.kill(m, true)
		}
	}},
	{"stop", func(n *nemesis) {
		if m := n.any(); m.up && !m.paused {
			m.stop()
			n.w.after(n.while(3), m.start)
		}
	}},
	{"pause", func(n *nemesis) { n.pause(n.any()) }},
	{"pause leader", func(n *nemesis) { n.pause(n.leader()) }},
	{"failing write", func(n *nemesis) {
		if d := n.any().disk; !d.dead {
			d.failIn = 1 + n.w.fate.IntN(8)
		}
	}},
	{"failing restore", func(n *nemesis) {
		for _, m := range n.w.members {
			m.failing = true // those that restore are few
		}
	}},
	{"full disk", func(n *nemesis) {
		m := n.any()
		m.disk.full = true
		n.w.after(n.while(5), func() { m.disk.full = false })
	}},
	{"slow disk", func(n *nemesis) {
		m := n.any()
		m.writeExtra = time.Duration(1+n.w.fate.IntN(200)) * n.w.tick / 20
		n.w.after(n.while(10), func() { m.writeExtra = 0 })
	}},
	{"partition", func(n *nemesis) {
		side := map[uint64]bool{}
		for _, m := range n.w.members {
			side[m.id] = n.w.fate.IntN(2) == 0
		}
		n.cut(func(l link) bool { return side[l.from] != side[l.to] })
	}},
	{"isolate leader", func(n *nemesis) {
		m := n.leader()
		n.cut(func(l link) bool { return l.from == m.id || l.to == m.id })
	}},
	{"one-way partition", func(n *nemesis) {
		m := n.any()
		in := n.w.fate.IntN(2) == 0
		n.cut(func(l link) bool { return in && l.to == m.id || !in && l.from == m.id })
	}},
	{"cut link", func(n *nemesis) {
		a, b := n.any(), n.any()
		n.cut(func(l link) bool { return l == link{a.id, b.id} })
	}},
	{"swizzle", func(n *nemesis) {
		// Links are clogged one by one, and opened one by one in another order.
		links := n.links()
		n.w.fate.Shuffle(len(links), func(i, j int) { links[i], links[j] = links[j], links[i] })
		links = links[:n.w.fate.IntN(len(links)+1)]
		at := time.Duration(0)
		for _, l := range links {
			at += n.while(1)
			n.w.after(at, func() {
				if !n.over {
					n.w.network.cut[l] = true
				}
			})
		}
		n.w.fate.Shuffle(len(links), func(i, j int) { links[i], links[j] = links[j], links[i] })
		for _, l := range links {
			at += n.while(1)
			n.w.after(at, func() { delete(n.w.network.cut, l) })
		}
	}},
	{"loss", func(n *nemesis) {
		n.w.network.loss = 50 + n.w.fate.IntN(400)
		n.w.after(n.while(5), func() { n.w.network.loss = 0 })
	}},
	{"slow link", func(n *nemesis) {
		for _, l := range n.links() {
			if n.w.fate.IntN(3) == 0 {
				n.w.network.slow[l] = time.Duration(n.w.fate.Int64N(int64(n.w.tick) * int64(n.w.electionTicks)))
			}
		}
		n.w.after(n.while(10), func() { clear(n.w.network.slow) })
	}},
	{"clock rate", func(n *nemesis) { n.any().rate = 40 + n.w.fate.IntN(160) }},
	{"clock step", func(n *nemesis) {
		if m := n.any(); m.up && !m.paused {
			m.tick(1 + n.w.fate.IntN(2*n.w.electionTicks))
		}
	}},
	{"transfer", func(n *nemesis) {
		if m := n.leader(); m.up && !m.paused {
			m.step.Transfer(n.any().id)
			m.poke()
		}
	}},
}

// next does something after a while, again and again.
func (n *nemesis) next() {
	w := n.w
	if n.count == nil {
		n.count = map[string]int{}
		n.ids = uint64(w.voters)
	}
	pause := time.Duration(w.fate.ExpFloat64() * float64(w.between))
	w.after(pause, func() {
		if w.now >= w.traffic {
			return
		}
		if len(w.faults) > 0 {
			name := w.faults[w.fate.IntN(len(w.faults))]
			n.count[name]++
			w.note(name, 0, 0, 0)
			i := slices.IndexFunc(faults, func(h harm) bool { return h.name == name })
			faults[i].do(n)
		}
		if w.changing && w.fate.IntN(2) == 0 {
			n.configure()
		}
		n.next()
	})
}

// while is how long a fault lasts.
func (n *nemesis) while(most int) time.Duration {
	election := n.w.tick * time.Duration(n.w.electionTicks)
	return time.Duration(n.w.fate.Int64N(int64(election) * int64(most)))
}

func (n *nemesis) any() *member { return n.w.members[n.w.fate.IntN(len(n.w.members))] }

// leader returns who leads in the highest term, or anybody.
func (n *nemesis) leader() *member {
	var best *member
	var term uint64
	for _, m := range n.w.members {
		if m.up {
			if s := m.r.Status(); s.Role == replica.Leader && s.Term > term {
				best, term = m, s.Term
			}
		}
	}
	if best == nil {
		return n.any()
	}
	return best
}

func (n *nemesis) kill(m *member, power bool) {
	if !m.up {
		return
	}
	if power && len(m.ops) > 0 {
		n.w.mark("power lost with operations under way")
	}
	n.w.note("kill", m.id, 0, 0)
	m.end(power)
	n.w.after(n.while(4), m.start)
}

func (n *nemesis) pause(m *member) {
	if !m.up || m.paused {
		return
	}
	if m.r.Status().Role == replica.Leader {
		n.w.mark("leader paused")
	}
	m.paused = true
	run := m.run
	n.w.after(n.while(5), func() {
		if m.run == run && m.paused {
			m.resume()
		}
	})
}

func (n *nemesis) links() []link {
	var all []link
	for _, a := range n.w.members {
		for _, b := range n.w.members {
			if a != b {
				all = append(all, link{a.id, b.id})
			}
		}
	}
	return all
}

// cut cuts links for a while.
func (n *nemesis) cut(which func(link) bool) {
	for _, l := range n.links() {
		if which(l) {
			n.w.network.cut[l] = true
			n.w.after(n.while(6), func() { delete(n.w.network.cut, l) })
		}
	}
}

// configure changes the membership, one step at a time.
func (n *nemesis) configure() {
	w := n.w
	leader := n.leader()
	if !leader.up || leader.paused || n.change != nil && !n.change.done {
		return
	}
	members := w.oracle.members
	if len(members.GetVotersOutgoing()) > 0 {
		return
	}
	voters, learners := members.GetVoters(), members.GetLearners()
	single := func(t raftpb.ConfChangeType, id uint64) *raftpb.ConfChangeSingle {
		return &raftpb.ConfChangeSingle{Type: t.Enum(), NodeId: proto.Uint64(id)}
	}
	var changes []*raftpb.ConfChangeSingle
	pick := func(ids []uint64) uint64 { return ids[w.fate.IntN(len(ids))] }
	switch choice := w.fate.IntN(5); {
	case choice == 0 && len(learners) < 2 && len(w.members) < 9:
		n.ids++
		changes = append(changes, single(raftpb.ConfChangeAddLearnerNode, n.ids))
	case choice == 1 && len(learners) > 0:
		changes = append(changes, single(raftpb.ConfChangeAddNode, pick(learners)))
	case choice == 2 && len(voters) > 2:
		changes = append(changes, single(raftpb.ConfChangeRemoveNode, pick(voters)))
	case choice == 3 && len(learners) > 0 && len(voters) > 1: // one replaces the other
		changes = append(changes, single(raftpb.ConfChangeAddNode, pick(learners)), single(raftpb.ConfChangeRemoveNode, pick(voters)))
	case choice == 4 && len(learners) > 0:
		changes = append(changes, single(raftpb.ConfChangeRemoveNode, pick(learners)))
	default:
		return
	}
	c := &client{w: w, id: 1000}
	o := w.newOp(c, opChange, leader)
	q := &pb.PutRequest{Key: []byte("~members"), Value: []byte("changed")}
	if w.fate.IntN(5) == 0 {
		q = &pb.PutRequest{Key: []byte("~nobody"), IgnoreValue: true} // refused
	}
	o.request = q
	change := &raftpb.ConfChangeV2{Changes: changes, Context: o.encode()}
	if w.fate.IntN(2) == 0 {
		change.Transition = raftpb.ConfChangeTransitionJointImplicit.Enum()
	}
	n.change = o
	n.count["change"]++
	w.note("configure", leader.id, uint64(changes[0].GetType()), changes[0].GetNodeId())
	o.wait = leader.step.Configure(change)
	leader.watch(o)
}

// heal ends all faults.
func (n *nemesis) heal() {
	w := n.w
	w.note("heal", 0, 0, 0)
	n.over = true
	clear(w.network.cut)
	clear(w.network.slow)
	w.network.loss, w.setup.loss = 0, 0
	for _, m := range w.members {
		m.disk.full, m.disk.failIn = false, 0
		m.writeExtra, m.rate, m.failing = 0, 100, false
		if m.paused {
			m.resume()
		}
		m.start()
	}
}
