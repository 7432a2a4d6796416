package sim

import (
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/state"
)

// network carries messages, or loses them, in any order. It may carry one
// twice, but no proposal: that is what the transport promises to the replica.
type network struct {
	w    *world
	cut  map[link]bool
	slow map[link]time.Duration
	loss int // permille, besides what is usual

	arrived map[link]int // number of the newest message that has

	messages, lost, snapshots int
}

// link is one direction between two members.
type link struct{ from, to uint64 }

func (n *network) travel(l link) time.Duration {
	w := n.w
	d := w.delay + n.slow[l] + time.Duration(w.wire.Int64N(int64(w.jitter)))
	if w.wire.IntN(100) == 0 {
		d += 10 * w.jitter // a straggler
	}
	if !w.nemesis.over && w.wire.IntN(300) == 0 { // one that comes when others lead
		d += time.Duration(w.wire.Int64N(8 * int64(w.tick) * int64(w.electionTicks)))
	}
	return d
}

func (n *network) drops(l link) bool {
	if n.cut[l] && !n.cut[link{l.to, l.from}] {
		n.w.mark("message lost one way")
	}
	return n.cut[l] || n.w.wire.IntN(1000) < n.w.setup.loss+n.loss
}

func (n *network) send(m *member, msg *pb.Message) {
	w := n.w
	l := link{m.id, msg.GetTo()}
	n.messages++
	if n.drops(l) {
		n.lose(m, msg.GetTo())
		return
	}
	number := n.messages
	n.carry(m, l, msg, number)
	if msg.GetType() != pb.MsgProp && w.wire.IntN(1000) < w.twice {
		w.mark("message comes twice")
		n.carry(m, l, msg, number)
	}
}

func (n *network) carry(m *member, l link, msg *pb.Message, number int) {
	w := n.w
	w.after(n.travel(l), func() {
		to := w.member(l.to)
		if to == nil || !to.up || n.cut[l] || to.told.Removed(state.MemberID(m.id)) || m.up && m.told.Removed(state.MemberID(l.to)) {
			n.lose(m, l.to)
			return
		}
		if n.arrived[l] > number {
			w.mark("message overtaken")
		}
		n.arrived[l] = max(n.arrived[l], number)
		w.note("deliver "+msg.GetType().String(), l.from<<8|l.to, msg.GetTerm(), msg.GetIndex())
		to.receive(msg)
	})
}

// pass carries a call between members, or its answer.
func (n *network) pass(from, to *member, take func()) {
	l := link{from.id, to.id}
	if n.drops(l) {
		return
	}
	n.w.after(n.travel(l), func() {
		if to.up && !n.cut[l] {
			to.later(0, take)
		}
	})
}

// receive takes a message, now or when the pause ends.
func (m *member) receive(msg *pb.Message) {
	take := func() {
		if msg.GetType() == pb.MsgSnap {
			m.behind = max(m.behind, msg.GetSnapshot().GetMetadata().GetIndex())
		}
		m.r.Step(msg)
		m.poke()
	}
	if m.paused {
		m.later(0, take)
		return
	}
	take()
}

// lose loses a message; the sender may notice.
func (n *network) lose(from *member, to uint64) {
	n.lost++
	if from.up && n.w.wire.IntN(2) == 0 {
		from.later(n.w.delay, func() {
			from.r.ReportUnreachable(to)
			from.poke()
		})
	}
}

// sendSnapshot sends the state piece by piece. A transfer that is cut begins
// anew, with what the state is then, or is given up.
func (n *network) sendSnapshot(m *member, msg *pb.Message) {
	n.snapshots++
	attempts := n.w.wire.IntN(3)
	var begin func()
	begin = func() {
		full, data := m.snapshot(msg)
		n.w.note("snapshot", m.id<<8|msg.GetTo(), full.GetSnapshot().GetMetadata().GetIndex(), uint64(len(data)))
		n.transfer(m, full, data, len(data), func() {
			n.w.mark("snapshot transfer cut")
			if attempts == 0 {
				m.r.ReportSnapshot(msg.GetTo(), false)
				m.poke()
				return
			}
			attempts--
			n.w.mark("snapshot transfer repeated")
			m.later(n.w.tick, begin)
		})
	}
	// Not at once: Send must not wait.
	m.later(time.Duration(n.w.wire.IntN(20))*time.Millisecond, begin)
}

func (n *network) transfer(m *member, msg *pb.Message, data []byte, left int, fail func()) {
	const piece = 2000
	l := link{m.id, msg.GetTo()}
	m.later(n.travel(l), func() {
		to := n.w.member(l.to)
		switch {
		case to == nil || !to.up || to.paused || n.drops(l):
			fail()
		case left > piece:
			n.transfer(m, msg, data, left-piece, fail)
		default:
			to.staged[msg.GetSnapshot().GetMetadata().GetIndex()] = data
			to.receive(msg)
			m.r.ReportSnapshot(l.to, true)
			m.poke()
		}
	})
}
