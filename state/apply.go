package state

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/internal/wire"
	"github.com/kvorum/kvorum/state/internal/alarm"
	"github.com/kvorum/kvorum/state/internal/mvcc"
	"github.com/kvorum/kvorum/state/internal/table"
)

// Apply applies entries that follow those applied before, and returns what
// became of each of their commands, in order. The changes of all of them are
// one batch of the table and show in one view.
//
// An error means that the disk or the log is damaged. The machine has to be
// closed then; it applies nothing more.
func (m *Machine) Apply(entries []Entry) ([]Outcome, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	outcomes, err := m.apply(entries)
	if err != nil {
		m.broken = err
		return nil, err
	}
	return outcomes, nil
}

func (m *Machine) apply(entries []Entry) ([]Outcome, error) {
	commands := 0
	for _, e := range entries {
		commands += len(e.Commands)
	}
	outcomes := make([]Outcome, 0, commands)
	b := m.begin()
	b.commands, b.events = commands, make([]Event, 0, commands)
	for i := range entries {
		var err error
		if outcomes, err = b.entry(&entries[i], outcomes); err != nil {
			b.abandon()
			return nil, fmt.Errorf("state: apply entry %d: %w", entries[i].Index, err)
		}
	}
	return outcomes, b.commit()
}

// batch is what a call of Apply makes of the view before it.
type batch struct {
	machine *Machine
	next    *View // becomes the view
	rows    rows
	keys    *mvcc.Writer
	events  []Event // of all commands, for outcomes to share
	wanted  bool

	commands int // in all
	answers  []putAnswer
}

func (m *Machine) begin() *batch {
	old := m.View()
	next := *old
	b := &batch{machine: m, next: &next}
	b.rows = rows{batch: old.core.table.Batch(), checksum: old.Checksum}
	b.keys = old.core.keys.Begin(&b.rows)
	return b
}

func (b *batch) abandon() {
	b.keys.Abandon()
	b.rows.batch.Close()
}

// commit writes the batch and shows its view.
func (b *batch) commit() error {
	v := b.next
	at := position{v.Index, v.Term, b.keys.Revision(), b.keys.Compacted(), b.rows.checksum}
	if mutant.On("index before data") {
		early := v.core.table.Batch()
		early.Set(positionKey, at.append(nil))
		_ = early.Commit()
	}
	if !mutant.On("index after data") && (len(b.events) > 0 || !mutant.On("what changes no key leaves the index")) {
		b.rows.batch.Set(positionKey, at.append(nil))
	}
	if err := b.rows.batch.Commit(); err != nil {
		b.abandon()
		return fmt.Errorf("state: apply up to entry %d: %w", v.Index, err)
	}
	b.rows.batch.Close()
	if mutant.On("index after data") {
		late := v.core.table.Batch()
		late.Set(positionKey, at.append(nil))
		_ = late.Commit()
	}
	v.Checksum = b.rows.checksum
	v.keys = b.keys.Publish()
	v.Revision, v.Compacted = v.keys.Revision, v.keys.Compacted
	b.machine.view.Store(v)
	return nil
}

// rows adds rows to a batch of the table, and to the checksum of all that was
// ever replicated. It does not matter to the sum how entries were batched.
type rows struct {
	batch    table.Batch
	checksum uint64
}

func (r *rows) mix(x uint64) {
	r.checksum = bits.RotateLeft64(r.checksum^x, 29) * 0x9e3779b97f4a7c15
}

// Append adds a row of history.
func (r *rows) Append(key, head, tail []byte) {
	k, v := r.batch.Reserve(len(key), len(head)+len(tail))
	copy(k, key)
	copy(v[copy(v, head):], tail)
	r.mix(xxhash.Sum64(k))
	r.mix(xxhash.Sum64(v))
}

func (r *rows) Set(key, value []byte) {
	r.batch.Set(key, value)
	r.mix(xxhash.Sum64(key))
	r.mix(xxhash.Sum64(value))
}

func (r *rows) Delete(key []byte) {
	r.batch.Delete(key)
	r.mix(^xxhash.Sum64(key))
}

// entry applies the commands of one entry.
func (b *batch) entry(e *Entry, outcomes []Outcome) ([]Outcome, error) {
	must(e.Index == b.next.Index+1, "S2: entries follow each other")
	b.next.Index, b.next.Term = e.Index, e.Term
	b.rows.mix(uint64(e.Index))
	b.wanted = e.Wanted

	refused := false
	for _, encoded := range e.Commands {
		command, err := parseCommand(encoded)
		if err != nil {
			return nil, err
		}
		o, err := b.command(command)
		if err != nil {
			return nil, err
		}
		refused = refused || o.Refusal != nil
		o.Revision = b.keys.Revision()
		outcomes = append(outcomes, o)
	}
	if e.Configuration != nil && (!refused || mutant.On("refused change is stored")) {
		b.next.Configuration = slices.Clone(e.Configuration)
		b.rows.Set(configurationKey, e.Configuration)
	}
	b.next.marks.add(Mark{e.Index, b.rows.checksum})
	return outcomes, nil
}

var errKind = errors.New("unknown command, written by a newer version")

// command applies one command. Its error is a failure; a refusal is an outcome.
func (b *batch) command(c Command) (Outcome, error) {
	if c.Term != 0 && c.Term != b.next.Term && !mutant.On("a leader of the past counts") {
		return refuse(fault.LeaderChanged), nil
	}
	switch c.Kind {
	case Put:
		p, ok := parsePut(c.Encoded)
		if !ok {
			return refuse(fault.Malformed), nil
		}
		return b.put(p)
	case DeleteRange:
		return quickly(c.Encoded, new(pb.DeleteRangeRequest), wire.DeleteRange, b.deleteRange)
	case Txn:
		return quickly(c.Encoded, new(pb.TxnRequest), wire.Txn, b.txn)
	case Compact:
		return decoded(c.Encoded, new(pb.CompactionRequest), b.compact)
	case Alarm:
		return decoded(c.Encoded, new(pb.AlarmRequest), b.alarm)
	case Publish:
		return decoded(c.Encoded, new(pb.Member), b.publish)
	case MemberAdd:
		return decoded(c.Encoded, new(pb.Member), b.addMember)
	case MemberRemove:
		return decoded(c.Encoded, new(pb.MemberRemoveRequest), b.removeMember)
	case MemberUpdate:
		return decoded(c.Encoded, new(pb.MemberUpdateRequest), b.updateMember)
	case MemberPromote:
		return decoded(c.Encoded, new(pb.MemberPromoteRequest), b.promoteMember)
	case LeaseGrant:
		return decoded(c.Encoded, new(pb.LeaseGrantRequest), b.grantLease)
	case LeaseRevoke:
		return decoded(c.Encoded, new(pb.LeaseRevokeRequest), b.revokeLease)
	case LeaseExpire:
		return decoded(c.Encoded, new(pb.LeaseLeasesResponse), b.expireLeases)
	case Hierarchy:
		return b.hierarchy(c.Encoded)
	case LeaseCheckpoint:
		return decoded(c.Encoded, new(pb.LeaseCheckpointRequest), b.checkpointLeases)
	}
	return Outcome{}, fmt.Errorf("kind %d: %w", c.Kind, errKind)
}

// decoded applies a command to a request that can be decoded, and refuses it
// otherwise: every member refuses the same bytes.
func decoded[M proto.Message](encoded []byte, m M, apply func(M) (Outcome, error)) (Outcome, error) {
	if err := proto.Unmarshal(encoded, m); err != nil {
		return refuse(fault.Malformed), nil
	}
	return apply(m)
}

// quickly does the same with what has a decoder of its own.
func quickly[M any](encoded []byte, m M, decode func([]byte, M) bool, apply func(M) (Outcome, error)) (Outcome, error) {
	if !decode(encoded, m) {
		return refuse(fault.Malformed), nil
	}
	return apply(m)
}

func refuse(f *fault.Fault) Outcome { return Outcome{Refusal: f} }

// refused tells refusals from failures.
func refused(err error) (Outcome, error) {
	if f := fault.Of(err); f != nil {
		return refuse(f), nil
	}
	return Outcome{}, err
}

// seal ends the revision of a command and returns its events.
func (b *batch) seal() []Event {
	from := len(b.events)
	b.events = b.keys.Seal(b.events)
	return b.events[from:len(b.events):len(b.events)]
}

func header(r Revision) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: int64(r)} }

func (b *batch) put(p put) (Outcome, error) {
	if err := p.check(); err != nil {
		return refused(err)
	}
	if err := b.checkPut(p, b.keys.View()); err != nil {
		return refused(err)
	}

	prev, err := b.doPut(p)
	if err != nil {
		return Outcome{}, err
	}

	o := Outcome{Events: b.seal()}
	if b.wanted {
		answer := b.putAnswer()
		answer.header.Revision = int64(b.keys.Revision())
		answer.response.Header = &answer.header
		answer.response.PrevKv = prev
		o.Response = &answer.response
	}
	return o, nil
}

type putAnswer struct {
	response pb.PutResponse
	header   pb.ResponseHeader
}

// putAnswer returns room for the answer to a put. Puts are answered most, and
// all of a batch share one allocation.
func (b *batch) putAnswer() *putAnswer {
	if len(b.answers) == 0 {
		b.answers = make([]putAnswer, max(1, b.commands))
	}
	first := &b.answers[0]
	b.answers = b.answers[1:]
	return first
}

// checkPut makes the checks of a put that depend on the state.
func (b *batch) checkPut(p put, at mvcc.View) error {
	if p.lease != 0 && !b.next.leases.Has(LeaseID(p.lease)) {
		return fault.LeaseNotFound
	}
	if (p.ignoreValue || p.ignoreLease) && !at.Get(p.key).Exists() {
		return fault.KeyNotFound
	}
	return nil
}

// doPut makes a put that was checked, and returns the pair before if it is
// asked for.
func (b *batch) doPut(p put) (prev *mvccpb.KeyValue, err error) {
	if p.prev || p.ignoreValue || p.ignoreLease {
		before := b.keys.Get(p.key)
		if p.ignoreLease {
			p.lease = before.Lease
		}
		if p.ignoreValue {
			if p.value, err = before.Value(); err != nil {
				return nil, err
			}
		}
		if p.prev && b.wanted && before.Exists() {
			if prev, err = messageOf(before); err != nil {
				return nil, err
			}
		}
	}
	b.store(p.key, p.value, p.lease)
	return prev, nil
}

// store puts a value at a key, and returns the key as the store keeps it. Its
// lease is this one from now on, and a deadline that it had is gone.
func (b *batch) store(key, value []byte, id int64) string {
	stored, was := b.keys.Put(key, value, id)
	if was.Lease != id {
		b.next.leases = b.next.leases.Move(stored, LeaseID(was.Lease), LeaseID(id))
	}
	if was.Note != "" {
		b.next.deadlines = b.next.deadlines.Without(stored, was.Note)
	}
	return stored
}

func messageOf(p mvcc.Pair) (*mvccpb.KeyValue, error) {
	encoded, err := p.Bytes()
	if err != nil {
		return nil, err
	}
	return DecodePair(encoded), nil
}

// DecodePair decodes a pair that a machine has encoded.
func DecodePair(encoded []byte) *mvccpb.KeyValue {
	kv := new(mvccpb.KeyValue)
	err := proto.Unmarshal(encoded, kv)
	must(err == nil, "pairs were encoded here")
	return kv
}

func (b *batch) deleteRange(q *pb.DeleteRangeRequest) (Outcome, error) {
	if err := CheckDeleteRange(q); err != nil {
		return refused(err)
	}

	response, err := b.doDelete(q)
	if err != nil {
		return Outcome{}, err
	}

	o := Outcome{Events: b.seal()}
	if b.wanted {
		response.Header = header(b.keys.Revision())
		o.Response = response
	}
	return o, nil
}

func (b *batch) doDelete(q *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	response := new(pb.DeleteRangeResponse)
	var err error
	response.Deleted, err = b.keys.DeleteRange(Span{Key: q.Key, End: q.RangeEnd}, func(key string, p mvcc.Pair) error {
		b.release(key, p)
		if !q.PrevKv || !b.wanted {
			return nil
		}
		kv, err := messageOf(p)
		response.PrevKvs = append(response.PrevKvs, kv)
		return err
	})
	return response, err
}

// release takes a key that is about to go from its lease, and its deadline
// from it.
func (b *batch) release(key string, p mvcc.Pair) {
	if !mutant.On("a deleted key stays on its lease") {
		b.next.leases = b.next.leases.Move(key, LeaseID(p.Lease), 0)
	}
	if note := p.Note(); note != "" {
		b.next.deadlines = b.next.deadlines.Without(key, note)
	}
}

func (b *batch) compact(q *pb.CompactionRequest) (Outcome, error) {
	at := Revision(q.Revision)
	if at <= b.keys.Compacted() {
		return refuse(fault.Compacted), nil
	}
	if at > b.keys.Revision() {
		return refuse(fault.FutureRevision), nil
	}

	b.keys.Compact(at)

	return Outcome{Response: &pb.CompactionResponse{Header: header(b.keys.Revision())}}, nil
}

func (b *batch) alarm(q *pb.AlarmRequest) (Outcome, error) {
	var told []alarm.Alarm
	a := alarm.Alarm{Type: q.Alarm, Member: q.MemberID}
	switch q.Action {
	case pb.AlarmRequest_GET:
		told = b.next.alarms.All(q.Alarm)
	case pb.AlarmRequest_ACTIVATE:
		if q.Alarm != pb.AlarmType_NONE {
			b.next.alarms = b.next.alarms.Raise(&b.rows, a)
			told = []alarm.Alarm{a}
		}
	case pb.AlarmRequest_DEACTIVATE:
		var ended bool
		if b.next.alarms, ended = b.next.alarms.End(&b.rows, a); ended {
			told = []alarm.Alarm{a}
		}
	}
	return Outcome{Response: &pb.AlarmResponse{Header: header(b.keys.Revision()), Alarms: alarm.Messages(told)}}, nil
}

// Genesis is how a cluster begins. All members begin with the same.
type Genesis struct {
	Cluster       ClusterID
	Members       []Member
	Configuration []byte
	Index         Index // of the log that stands for this; the first entry is the one after
	Term          Term
}

// Bootstrap makes the first state of a fresh machine, durable when it returns.
func (m *Machine) Bootstrap(g Genesis) error {
	if m.broken != nil {
		return m.broken
	}
	if old := m.View(); old.Index != 0 || old.Cluster != 0 {
		return fmt.Errorf("state: bootstrap: there is a state of cluster %x at index %d", old.Cluster, old.Index)
	}
	b := m.begin()
	b.next.Index, b.next.Term = g.Index, g.Term
	b.rows.mix(uint64(g.Index))
	b.next.Cluster = g.Cluster
	b.rows.Set(identityKey, identity{Format, g.Cluster}.append(nil))
	b.next.Configuration = slices.Clone(g.Configuration)
	b.rows.Set(configurationKey, g.Configuration)
	for _, one := range g.Members {
		b.next.members = b.next.members.Put(&b.rows, one)
	}
	if err := b.commit(); err != nil {
		m.broken = err
		return err
	}
	return m.Flush()
}
