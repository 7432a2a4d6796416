package sim

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/replica"
	"github.com/kvorum/kvorum/state"
)

// oracle knows what was committed: it writes down each entry when the first
// member applies it, has the model carry it out, and holds every member to
// that.
type oracle struct {
	w       *world
	genesis state.Genesis
	entries []entry // from index 2 on
	model   *model
	first   *membership   // before all entries
	voters  *pb.ConfState // as consensus has the members
	sums    map[state.Index]uint64
	places  map[uint64]uint64 // of an operation in the log
	lives   map[int64]*life   // of leases, the newest of each id
}

type entry struct {
	term          uint64
	commands      [][]byte
	configuration []byte
	answers       []string
	members       *membership
	revision      int64 // afterwards
	compacted     int64
}

// membership is who belongs to the cluster at an index.
type membership struct {
	text             string // of all there is to know of them
	voters, learners []uint64
	removed          []uint64
}

func newOracle(w *world) *oracle {
	o := &oracle{w: w, model: newModel(w.voters), sums: map[state.Index]uint64{}, places: map[uint64]uint64{}, lives: map[int64]*life{}, voters: &pb.ConfState{}}
	o.genesis = state.Genesis{Cluster: cluster, Index: 1, Term: 1}
	for _, one := range o.model.members {
		o.voters.Voters = append(o.voters.Voters, one.ID)
		o.genesis.Members = append(o.genesis.Members, state.Member{ID: state.MemberID(one.ID), PeerURLs: one.PeerURLs})
	}
	o.genesis.Configuration = encode(o.w, o.voters)
	o.first = o.membership()
	return o
}

// membership is who belongs to the cluster now.
func (o *oracle) membership() *membership {
	ms := &membership{text: membersText(o.model.members), removed: slices.Clone(o.model.removed)}
	for _, one := range o.model.members {
		if one.IsLearner {
			ms.learners = append(ms.learners, one.ID)
		} else {
			ms.voters = append(ms.voters, one.ID)
		}
	}
	return ms
}

// membersAt returns who belonged to the cluster at an index.
func (o *oracle) membersAt(index uint64) *membership {
	if index < 2 {
		return o.first
	}
	return o.entries[index-2].members
}

func encode(w *world, members *pb.ConfState) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(members)
	if err != nil {
		w.fail("encode membership: %v", err)
	}
	return b
}

func (o *oracle) last() uint64 { return uint64(len(o.entries)) + 1 }

func (o *oracle) voter(id uint64) bool   { return slices.Contains(o.membersAt(o.last()).voters, id) }
func (o *oracle) removed(id uint64) bool { return slices.Contains(o.model.removed, id) }
func (o *oracle) learner(id uint64) bool { return slices.Contains(o.membersAt(o.last()).learners, id) }

// number returns the operation that a command belongs to. It stands where the
// revision of users would: there are no users here.
func number(command []byte) uint64 {
	if command[0] == 255 { // a term comes first
		_, size := binary.Uvarint(command[1:])
		command = command[1+size:]
	}
	n, _ := binary.Uvarint(command[1:])
	return n
}

// applied checks what a member has applied.
func (o *oracle) applied(m *member, entries []replica.Entry, outcomes []state.Outcome) {
	w := o.w
	for _, e := range entries {
		mine := outcomes[:len(e.Commands)]
		outcomes = outcomes[len(e.Commands):]
		if e.Index > o.last() {
			o.commit(m, e)
		}
		known := &o.entries[e.Index-2]
		same := known.term == e.Term && bytes.Equal(known.configuration, e.Configuration) &&
			slices.EqualFunc(known.commands, e.Commands, bytes.Equal)
		if !same {
			w.fail("%v applies at %d an entry of term %d with %d commands; another applied one of term %d with %d",
				m, e.Index, e.Term, len(e.Commands), known.term, len(known.commands))
		}
		for i, out := range mine {
			want := known.answers[i]
			got := outcomeText(out)
			if out.Response == nil && out.Change == nil && out.Refusal == nil && !e.Wanted {
				// Nobody waits, so only the revision is there to be compared.
				got, want = got[strings.LastIndex(got, "@"):], want[strings.LastIndex(want, "@"):]
			}
			if got != want {
				w.fail("%v answers command %d of entry %d with\n%s\nexpected\n%s", m, i, e.Index, got, want)
			}
		}
	}
	o.view(m)
}

// commit takes a new entry into the log.
func (o *oracle) commit(m *member, e replica.Entry) {
	w := o.w
	if e.Index != o.last()+1 {
		w.fail("%v applies entry %d, nobody the one before", m, e.Index)
	}
	if o.last() > 1 && len(o.entries) > 0 && e.Term < o.entries[len(o.entries)-1].term {
		w.fail("%v applies entry %d of term %d behind one of term %d", m, e.Index, e.Term, o.entries[len(o.entries)-1].term)
	}
	n := entry{term: e.Term, configuration: bytes.Clone(e.Configuration)}
	changed, refused := false, false
	for _, command := range e.Commands {
		op := w.history[number(command)]
		if at, twice := o.places[op.id]; twice {
			w.fail("%v is in the log at %d and at %d", op, at, e.Index)
		}
		o.places[op.id] = e.Index
		op.index, op.at, op.place = e.Index, e.Term, len(o.places)
		if op.never {
			w.fail("%v was answered with %v, but is executed", op, op.err)
		}
		if op.unknown {
			w.mark("unknown outcome, committed later")
		}
		if e.Index <= op.floor {
			w.fail("%v is at %d of the log, though %d was acknowledged before it began", op, e.Index, op.floor)
		}
		before := o.model.revision
		answer := o.model.command(op, e.Term)
		if op.term != 0 && op.term != e.Term {
			w.mark("end of a lease by a leader of the past")
		} else if o.model.revision > before && (op.kind == opExpire || op.kind == opRevoke) {
			w.mark("lease ends with its keys")
		} else if o.model.revision > before && op.kind == opNodeExpire {
			w.mark("node expired")
		}
		op.committed = answer
		if op.term == 0 || op.term == e.Term {
			o.leased(op, strings.HasPrefix(answer, fault.LeaseExists.Text) || strings.HasPrefix(answer, fault.LeaseNotFound.Text))
		}
		if o.model.revision > before+1 && op.kind != opExpire && op.kind != opNodeExpire {
			w.fail("the model is wrong")
		}
		op.revision = o.model.revision
		op.changes = o.model.revision > before
		if op.kind >= opAdd {
			changed = true
			refused = refused || !strings.HasPrefix(answer, "members")
		}
		n.commands = append(n.commands, bytes.Clone(command))
		n.answers = append(n.answers, answer)
	}
	if len(e.Commands) > 1 {
		w.mark("several commands in an entry")
	}
	n.revision, n.compacted = o.model.revision, o.model.compacted
	before := o.membersAt(o.last())
	n.members = before
	if changed {
		n.members = o.membership()
	}
	o.entries = append(o.entries, n)
	switch {
	case e.Configuration != nil && !refused:
		o.configured(e.Configuration)
	case refused:
		w.mark("change of the members refused")
	}
	if changed {
		o.changed(before, n.members)
	}
	same := slices.Equal(o.voters.GetVoters(), n.members.voters) &&
		slices.Equal(slices.Sorted(slices.Values(slices.Concat(o.voters.GetLearners(), o.voters.GetLearnersNext()))), n.members.learners)
	if !same {
		w.fail("at entry %d consensus has %v, the members are%s", e.Index, o.voters, n.members.text)
	}
	w.note("commit", e.Index, e.Term, uint64(o.model.revision))
}

// configured takes what consensus has come to.
func (o *oracle) configured(b []byte) {
	w := o.w
	o.voters = &pb.ConfState{}
	if err := proto.Unmarshal(b, o.voters); err != nil {
		w.fail("membership: %v", err)
	}
	slices.Sort(o.voters.Voters)
	if len(o.voters.GetVotersOutgoing()) > 0 {
		w.mark("joint membership")
		if len(w.network.cut) > 0 {
			w.mark("joint membership while links are cut")
		}
	}
	w.note("membership", uint64(len(o.voters.GetVoters())), uint64(len(o.voters.GetLearners())), uint64(len(o.voters.GetVotersOutgoing())))
}

// changed looks at what a change has made of the members, and has those who
// are new start.
func (o *oracle) changed(before, after *membership) {
	w := o.w
	for _, id := range before.voters {
		if slices.Contains(after.voters, id) {
			continue
		}
		w.mark("voter removed")
		leads := w.leaders[o.entries[len(o.entries)-1].term] == id
		if leads {
			w.mark("leader removed")
		}
		if len(before.voters) == 2 && leads {
			w.mark("leader removed from two voters")
		} else if len(before.voters) == 2 {
			w.mark("follower removed from two voters")
		}
		if w.member(id).lost {
			w.mark("member replaced")
		}
	}
	for _, id := range after.voters {
		if slices.Contains(before.learners, id) {
			w.mark("learner promoted")
		}
	}
	for _, id := range slices.Concat(after.voters, after.learners) {
		if w.member(id) == nil {
			m := w.addMember(id, false)
			w.after(time.Duration(w.fate.IntN(2000))*time.Millisecond, m.start)
		}
	}
}

// belongs checks whom a member takes for the members.
func (o *oracle) belongs(m *member) {
	w := o.w
	v := m.state.View()
	if m.known.view == nil || !m.known.view.SameMembers(v) {
		m.known.text, m.known.removed = membersText(v.MemberMessages()), nil
		for _, id := range v.RemovedMembers() {
			m.known.removed = append(m.known.removed, uint64(id))
		}
	}
	m.known.view = v
	want := o.membersAt(uint64(v.Index))
	if m.known.text != want.text || !slices.Equal(m.known.removed, want.removed) {
		w.fail("%v at index %d takes for members%s, removed %v; they are%s, removed %v", m, v.Index, m.known.text, m.known.removed, want.text, want.removed)
	}
}

// consents checks whom raft takes for the voters.
func (o *oracle) consents(m *member, s *replica.Status) {
	if s.Applied < 2 || s.Applied < m.behind {
		return // raft knows the membership of a snapshot before it is restored
	}
	want := o.membersAt(s.Applied)
	if !slices.Equal(s.Voters, want.voters) || len(s.Outgoing) == 0 && !slices.Equal(s.Learners, want.learners) {
		o.w.fail("%v at index %d: raft has voters %v, learners %v; the members are%s", m, s.Applied, s.Voters, s.Learners, want.text)
	}
}

// view checks where a member stands: members at one index are equal.
func (o *oracle) view(m *member) {
	w := o.w
	v := m.state.View()
	// Among them sums of indexes at which this one has not stopped: members
	// compare them with each other, and a difference is an alarm.
	for _, mark := range v.Marks() {
		if sum, known := o.sums[mark.Index]; known && sum != mark.Checksum {
			w.fail("%v has checksum %x at index %d, another had %x", m, mark.Checksum, mark.Index, sum)
		}
		o.sums[mark.Index] = mark.Checksum
	}
	o.belongs(m)
	w.note("applied", m.id, uint64(v.Index), v.Checksum)
	if v.Index == 1 {
		return
	}
	if uint64(v.Index) > o.last() {
		w.fail("%v is at index %d, committed is %d", m, v.Index, o.last())
	}
	e := o.entries[v.Index-2]
	if int64(v.Revision) != e.revision || int64(v.Compacted) != e.compacted {
		w.fail("%v is at revision %d, compacted %d, at index %d; expected %d and %d", m, v.Revision, v.Compacted, v.Index, e.revision, e.compacted)
	}
}

// finish compares everything that the members hold with the model.
func (o *oracle) finish() {
	w := o.w
	everything := newRange([]byte{0}, []byte{0})
	want := o.model.do(everything)
	for _, m := range w.membership() {
		got := readView(m, everything)
		if got != want {
			w.fail("%v holds\n%s\nexpected\n%s", m, got, want)
		}
		o.leases(m)
		o.deadlines(m)
	}
	for _, op := range w.history {
		op.once()
		if op.unknown && op.index == 0 && op.kind != opRange && op.kind != opSerializable && op.kind != opKeepAlive {
			w.mark("unknown outcome, never committed")
		}
	}
}

// leases compares the leases that a member holds with the model's, and the keys
// on them with what the keys themselves say.
func (o *oracle) leases(m *member) {
	v := m.state.View()
	var held []lease
	for one := range v.Leases() {
		held = append(held, lease{int64(one.ID), one.Granted, one.Remaining})
		keys := slices.Collect(v.LeaseKeys(one.ID))
		var want []string
		o.model.span([]byte{0}, []byte{0}, o.model.revision, func(kv *mvccpb.KeyValue) {
			if kv.Lease == int64(one.ID) {
				want = append(want, string(kv.Key))
			}
		})
		if !slices.Equal(keys, want) {
			o.w.fail("%v has keys %v on lease %d, expected %v", m, keys, one.ID, want)
		}
	}
	if want := o.model.leases; !slices.EqualFunc(held, want, func(a lease, b *lease) bool { return a == *b }) {
		o.w.fail("%v has %d leases %v, expected %d", m, len(held), held, len(want))
	}
}
