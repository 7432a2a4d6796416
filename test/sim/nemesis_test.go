package sim

import (
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
)

// nemesis does harm.
type nemesis struct {
	w       *world
	count   map[string]int
	changes []*op // of the members
	ids     uint64
	over    bool // all is healed
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
	{"lost disk", func(n *nemesis) { n.destroy(n.any()) }},
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
	{"clock rate", func(n *nemesis) { n.any().setRate(40 + n.w.fate.IntN(160)) }},
	{"clock step", func(n *nemesis) {
		if m := n.any(); m.up && !m.paused {
			n.w.mark("clock stepped")
			ticks := 1 + n.w.fate.IntN(2*n.w.electionTicks)
			m.elapsed += time.Duration(ticks) * n.w.tick
			m.tick(ticks)
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
	election := n.w.election()
	return time.Duration(n.w.fate.Int64N(int64(election) * int64(most)))
}

func (n *nemesis) any() *member {
	present := n.w.present()
	return present[n.w.fate.IntN(len(present))]
}

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

// configure changes the members.
func (n *nemesis) configure() {
	w := n.w
	if n.under() > 1 {
		return
	}
	m := n.leader()
	if w.fate.IntN(4) == 0 {
		m = n.any()
	}
	if !m.up || m.paused || m.state.View().Index == 0 {
		return
	}
	members := w.oracle.model.members
	any := members[w.fate.IntN(len(members))].ID
	if removed := w.oracle.model.removed; len(removed) > 0 && w.fate.IntN(6) == 0 {
		any = removed[w.fate.IntN(len(removed))]
	}
	switch choice := w.fate.IntN(10); {
	case choice < 3 && len(members) < 7 && len(w.members) < 25:
		n.ids++
		q := &pb.Member{ID: n.ids, PeerURLs: []string{peerURL(n.ids)}, IsLearner: w.fate.IntN(3) > 0}
		switch w.fate.IntN(10) {
		case 0:
			q.ID = any
		case 1:
			q.PeerURLs = []string{peerURL(any)}
		}
		most := 1 + w.fate.IntN(3)
		state.LimitLearners(q, most)
		n.propose(m, opAdd, addition{q, most})
	case choice < 6:
		for _, one := range members {
			if one.IsLearner && (w.fate.IntN(4) == 0 || caughtUp(m, one.ID)) {
				any = one.ID
			}
		}
		n.propose(m, opPromote, &pb.MemberPromoteRequest{ID: any})
	case choice < 8:
		if lost := n.lost(); lost != nil {
			any = lost.id // to remove another might leave no quorum
		}
		n.propose(m, opRemove, &pb.MemberRemoveRequest{ID: any})
	case choice < 9:
		q := &pb.MemberUpdateRequest{ID: any, PeerURLs: []string{peerURL(uint64(w.fate.IntN(10)))}}
		n.propose(m, opUpdate, q)
	default:
		name := fmt.Sprint("m", w.fate.IntN(10))
		n.propose(m, opPublish, publication{&pb.Member{ID: any, Name: name, ClientURLs: []string{"http://" + name}}})
	}
}

func peerURL(n uint64) string { return fmt.Sprint("http://", n) }

// caughtUp tells whether a leader thinks that a learner can have a vote.
func caughtUp(leader *member, id uint64) bool {
	s := leader.r.Status()
	return slices.ContainsFunc(s.Progress, func(p replica.Progress) bool {
		return p.ID == id && p.Active && p.Match >= s.Commit-s.Commit/10
	})
}

// propose proposes a change of the members. Where it changes who votes it goes
// along with what consensus has to know.
func (n *nemesis) propose(m *member, k kind, q proto.Message) {
	w := n.w
	o := w.newOp(&client{w: w, id: 1000}, k, m)
	o.request = q
	n.changes = append(n.changes, o)
	n.count["change"]++
	var id uint64
	var vote raftpb.ConfChangeType
	switch q := q.(type) {
	case addition:
		id, vote = q.ID, raftpb.ConfChangeAddNode
		if q.IsLearner {
			vote = raftpb.ConfChangeAddLearnerNode
		}
	case *pb.MemberRemoveRequest:
		id, vote = q.ID, raftpb.ConfChangeRemoveNode
	case *pb.MemberPromoteRequest:
		id, vote = q.ID, raftpb.ConfChangeAddNode
	}
	w.note("change", m.id, uint64(k), id)
	if id == 0 {
		o.wait = m.step.Propose(o.encode())
		m.watch(o)
		return
	}
	change := &raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: vote.Enum(), NodeId: proto.Uint64(id)}},
		Context: o.encode(),
	}
	if w.joint && k != opRemove { // who is removed is cut off at once
		change.Transition = raftpb.ConfChangeTransitionJointImplicit.Enum()
	}
	o.wait = m.step.Configure(change)
	m.watch(o)
}

// under returns how many changes of the members are under way.
func (n *nemesis) under() int {
	under := 0
	for _, o := range n.changes {
		if !o.done {
			under++
		}
	}
	return under
}

// destroy takes the disk of a member away for good, if a quorum is left, also
// should a change of the members come true of which nobody has heard.
func (n *nemesis) destroy(m *member) {
	w := n.w
	if n.lost() != nil || len(w.oracle.voters.GetVotersOutgoing()) > 0 {
		return
	}
	voters := w.oracle.membersAt(w.oracle.last()).voters
	after := len(voters)
	if slices.ContainsFunc(n.changes, func(o *op) bool { return o.index == 0 && (!o.done || o.unknown) }) {
		after--
	}
	if !w.changing || !w.oracle.voter(m.id) || after-1 < after/2+1 || n.count["lost"] > 2 {
		return
	}
	w.note("lost disk", m.id, 0, 0)
	n.count["lost"]++
	if m.up {
		m.end(true)
	}
	m.disk, m.table = newDisk(m.disk.rng, w.tear, w.mark), state.NewMemory()
	if m.ran {
		if err := m.open(); err == nil {
			w.fail("%v starts although its log is gone", m)
		}
		w.mark("start without a log refused")
	}
	m.lost = true
}

// lost returns a member whose disk is.
func (n *nemesis) lost() *member {
	for _, m := range n.w.membership() {
		if m.lost {
			return m
		}
	}
	return nil
}

// replace removes the members whose disks are lost, when all else is well.
func (n *nemesis) replace() {
	w := n.w
	lost, leader := n.lost(), n.leader()
	if lost == nil {
		return
	}
	if n.under() == 0 && leader.up {
		n.propose(leader, opRemove, &pb.MemberRemoveRequest{ID: lost.id})
	}
	w.after(w.election(), n.replace)
}

// heal ends all faults.
func (n *nemesis) heal() {
	w := n.w
	w.note("heal", 0, 0, 0)
	n.over = true
	clear(w.network.cut)
	clear(w.network.slow)
	w.network.loss, w.setup.loss, w.setup.twice = 0, 0, 0
	for _, m := range w.members {
		m.disk.full, m.disk.failIn = false, 0
		m.writeExtra, m.failing = 0, false
		m.setRate(100)
		if m.paused {
			m.resume()
		}
		m.start()
	}
	w.oracle.calm()
}
