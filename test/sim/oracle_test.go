package sim

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

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
	members *pb.ConfState
	sums    map[state.Index]uint64
	places  map[uint64]uint64 // of an operation in the log
}

type entry struct {
	term          uint64
	commands      [][]byte
	configuration []byte
	answers       []string
	revision      int64 // afterwards
	compacted     int64
}

func newOracle(w *world) *oracle {
	o := &oracle{w: w, model: newModel(), sums: map[state.Index]uint64{}, places: map[uint64]uint64{}, members: &pb.ConfState{}}
	o.genesis = state.Genesis{Cluster: cluster, Index: 1, Term: 1}
	for id := uint64(1); id <= uint64(w.voters); id++ {
		o.members.Voters = append(o.members.Voters, id)
		o.genesis.Members = append(o.genesis.Members, state.Member{ID: state.MemberID(id), PeerURLs: []string{"http://localhost"}})
	}
	o.genesis.Configuration = encode(o.w, o.members)
	return o
}

func encode(w *world, members *pb.ConfState) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(members)
	if err != nil {
		w.fail("encode membership: %v", err)
	}
	return b
}

func (o *oracle) last() uint64 { return uint64(len(o.entries)) + 1 }

func (o *oracle) voter(id uint64) bool   { return slices.Contains(o.members.GetVoters(), id) }
func (o *oracle) learner(id uint64) bool { return slices.Contains(o.members.GetLearners(), id) }

// number returns the operation that a command belongs to. It stands where the
// revision of users would: there are no users here.
func number(command []byte) uint64 {
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
			got := text(out.Response, out.Refusal, int64(out.Revision))
			if out.Response == nil && out.Refusal == nil && !e.Wanted {
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
	refused := false
	for _, command := range e.Commands {
		op := w.history[number(command)]
		if at, twice := o.places[op.id]; twice {
			w.fail("%v is in the log at %d and at %d", op, at, e.Index)
		}
		o.places[op.id] = e.Index
		op.index, op.place = e.Index, len(o.places)
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
		answer := o.model.do(op.request)
		op.committed = answer
		if o.model.revision > before+1 {
			w.fail("the model is wrong")
		}
		op.revision = o.model.revision
		op.changes = o.model.revision > before
		refused = refused || !strings.HasPrefix(answer, "put") && op.kind == opChange
		n.commands = append(n.commands, bytes.Clone(command))
		n.answers = append(n.answers, answer)
	}
	if len(e.Commands) > 1 {
		w.mark("several commands in an entry")
	}
	n.revision, n.compacted = o.model.revision, o.model.compacted
	o.entries = append(o.entries, n)
	if e.Configuration != nil {
		if refused {
			w.mark("change of the membership refused")
		} else {
			o.configured(e.Configuration)
		}
	}
	w.note("commit", e.Index, e.Term, uint64(o.model.revision))
}

func (o *oracle) configured(b []byte) {
	w := o.w
	before := o.members
	o.members = &pb.ConfState{}
	if err := proto.Unmarshal(b, o.members); err != nil {
		w.fail("membership: %v", err)
	}
	for _, id := range before.GetVoters() {
		if !o.voter(id) && w.leaders[o.entries[len(o.entries)-1].term] == id {
			w.mark("leader removed")
		}
		if !o.voter(id) {
			w.mark("voter removed")
		}
	}
	for _, id := range o.members.GetVoters() {
		if slices.Contains(before.GetLearners(), id) {
			w.mark("learner promoted")
		}
	}
	if len(o.members.GetVotersOutgoing()) > 0 {
		w.mark("joint membership")
		if len(w.network.cut) > 0 {
			w.mark("joint membership while links are cut")
		}
	}
	w.note("membership", uint64(len(o.members.GetVoters())), uint64(len(o.members.GetLearners())), uint64(len(o.members.GetVotersOutgoing())))
	for _, id := range slices.Concat(o.members.GetVoters(), o.members.GetLearners()) {
		if w.member(id) == nil {
			m := w.addMember(id, false)
			w.after(time.Duration(w.fate.IntN(2000))*time.Millisecond, m.start)
		}
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
	}
	for _, op := range w.history {
		op.once()
		if op.unknown && op.index == 0 && op.kind != opRange && op.kind != opSerializable {
			w.mark("unknown outcome, never committed")
		}
	}
}
