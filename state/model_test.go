package state_test

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// model is the rules of keys once more, as plainly as can be: a map for every
// revision. Where it and the machine differ, one of them is wrong.
type model struct {
	at        []map[string]*mvccpb.KeyValue // by revision
	notes     []map[string]note             // the same
	told      [][]state.NodeChange          // the same
	events    []change                      // of all revisions
	compacted int64
	leases    map[int64]state.Lease

	// What became of the last request about nodes.
	change    *state.NodeChange
	nodeError *state.HierarchyError
}

type change struct {
	revision int64
	deleted  bool
	pair     *mvccpb.KeyValue
}

func newModel() *model {
	none := map[string]*mvccpb.KeyValue{}
	return &model{
		at:    []map[string]*mvccpb.KeyValue{none, none},
		notes: []map[string]note{{}, {}},
		told:  [][]state.NodeChange{nil, nil}, compacted: -1, leases: map[int64]state.Lease{},
	}
}

func (m *model) revision() int64 { return int64(len(m.at) - 1) }

// try is what a command makes of the newest state.
type try struct {
	*model
	keys    map[string]*mvccpb.KeyValue
	notes   map[string]note
	changed bool
	events  []change
	told    *state.NodeChange // of a request about nodes
}

func (m *model) try() *try {
	return &try{model: m, keys: maps.Clone(m.at[m.revision()]), notes: maps.Clone(m.notes[m.revision()])}
}

func (t *try) revision() int64 {
	if t.changed {
		return t.model.revision() + 1
	}
	return t.model.revision()
}

func (t *try) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: t.revision()} }

func (t *try) commit() {
	if t.changed {
		if t.told != nil {
			t.model.told = append(t.model.told, []state.NodeChange{*t.told})
		} else {
			t.model.told = append(t.model.told, t.tell())
		}
		t.model.at = append(t.model.at, t.keys)
		t.model.notes = append(t.model.notes, t.notes)
		t.model.events = append(t.model.events, t.events...)
	}
}

func inRange(k string, key, end []byte) bool {
	switch {
	case len(end) == 0:
		return k == string(key)
	case string(end) == "\x00":
		return k >= string(key)
	}
	return k >= string(key) && k < string(end)
}

func within(keys map[string]*mvccpb.KeyValue, key, end []byte) (found []*mvccpb.KeyValue) {
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if inRange(k, key, end) {
			found = append(found, keys[k])
		}
	}
	return found
}

func (m *model) readable(revision int64) *fault.Fault {
	switch {
	case revision > m.revision():
		return fault.FutureRevision
	case revision > 0 && revision < m.compacted:
		return fault.Compacted
	}
	return nil
}

func (t *try) doRange(q *pb.RangeRequest) *pb.RangeResponse {
	keys := t.keys
	if q.Revision > 0 {
		keys = t.at[q.Revision]
	}
	all := within(keys, q.Key, q.RangeEnd)
	r := &pb.RangeResponse{Header: t.header(), Count: int64(len(all))}
	if q.CountOnly {
		return r
	}
	all = slices.DeleteFunc(all, func(kv *mvccpb.KeyValue) bool {
		return q.MinModRevision != 0 && kv.ModRevision < q.MinModRevision ||
			q.MaxModRevision != 0 && kv.ModRevision > q.MaxModRevision ||
			q.MinCreateRevision != 0 && kv.CreateRevision < q.MinCreateRevision ||
			q.MaxCreateRevision != 0 && kv.CreateRevision > q.MaxCreateRevision
	})
	compare := map[pb.RangeRequest_SortTarget]func(a, b *mvccpb.KeyValue) int{
		pb.RangeRequest_KEY:     func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) },
		pb.RangeRequest_VERSION: func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.Version, b.Version) },
		pb.RangeRequest_CREATE:  func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) },
		pb.RangeRequest_MOD:     func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) },
		pb.RangeRequest_VALUE:   func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Value, b.Value) },
	}[q.SortTarget]
	slices.SortStableFunc(all, func(a, b *mvccpb.KeyValue) int {
		if q.SortOrder == pb.RangeRequest_DESCEND {
			return -compare(a, b)
		}
		return compare(a, b)
	})
	if q.Limit > 0 && int64(len(all)) > q.Limit {
		all, r.More = all[:q.Limit], true
	}
	for _, kv := range all {
		kv = proto.Clone(kv).(*mvccpb.KeyValue)
		if q.KeysOnly {
			kv.Value = nil
		}
		r.Kvs = append(r.Kvs, kv)
	}
	return r
}

func (t *try) checkPut(q *pb.PutRequest) *fault.Fault {
	switch {
	case len(q.Key) == 0:
		return fault.EmptyKey
	case q.IgnoreValue && len(q.Value) > 0:
		return fault.ValueProvided
	case q.IgnoreLease && q.Lease != 0:
		return fault.LeaseProvided
	}
	return nil
}

func (t *try) canPut(q *pb.PutRequest) *fault.Fault {
	if _, ok := t.leases[q.Lease]; q.Lease != 0 && !ok {
		return fault.LeaseNotFound
	}
	if (q.IgnoreValue || q.IgnoreLease) && t.keys[string(q.Key)] == nil {
		return fault.KeyNotFound
	}
	return nil
}

func (t *try) doPut(q *pb.PutRequest) *pb.PutResponse {
	t.changed = true
	kv := &mvccpb.KeyValue{Key: q.Key, Value: q.Value, CreateRevision: t.revision(), ModRevision: t.revision(), Version: 1, Lease: q.Lease}
	r := &pb.PutResponse{Header: t.header()}
	if before := t.keys[string(q.Key)]; before != nil {
		kv.CreateRevision, kv.Version = before.CreateRevision, before.Version+1
		if q.IgnoreValue {
			kv.Value = before.Value
		}
		if q.IgnoreLease {
			kv.Lease = before.Lease
		}
		if q.PrevKv {
			r.PrevKv = before
		}
	}
	t.keys[string(q.Key)] = kv
	delete(t.notes, string(q.Key))
	t.events = append(t.events, change{t.revision(), false, kv})
	return r
}

func (t *try) doDelete(q *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	r := new(pb.DeleteRangeResponse)
	for _, kv := range within(t.keys, q.Key, q.RangeEnd) {
		t.changed = true
		r.Deleted++
		if q.PrevKv {
			r.PrevKvs = append(r.PrevKvs, kv)
		}
		delete(t.keys, string(kv.Key))
		delete(t.notes, string(kv.Key))
		t.events = append(t.events, change{t.revision(), true, &mvccpb.KeyValue{Key: kv.Key, ModRevision: t.revision()}})
	}
	r.Header = t.header()
	return r
}

func (t *try) holds(c *pb.Compare) bool {
	found := within(t.at[t.model.revision()], c.Key, c.RangeEnd)
	if len(found) == 0 {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		found = []*mvccpb.KeyValue{{}}
	}
	for _, kv := range found {
		var order int
		switch c.Target {
		case pb.Compare_VERSION:
			order = cmp.Compare(kv.Version, c.GetVersion())
		case pb.Compare_CREATE:
			order = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
		case pb.Compare_MOD:
			order = cmp.Compare(kv.ModRevision, c.GetModRevision())
		case pb.Compare_LEASE:
			order = cmp.Compare(kv.Lease, c.GetLease())
		case pb.Compare_VALUE:
			order = bytes.Compare(kv.Value, c.GetValue())
		}
		if !map[pb.Compare_CompareResult]bool{
			pb.Compare_EQUAL: order == 0, pb.Compare_NOT_EQUAL: order != 0,
			pb.Compare_GREATER: order > 0, pb.Compare_LESS: order < 0,
		}[c.Result] {
			return false
		}
	}
	return true
}

// branch is the operations of a transaction that happen, seen from the state
// before it.
func (t *try) branch(q *pb.TxnRequest) (bool, []*pb.RequestOp) {
	for _, c := range q.Compare {
		if !t.holds(c) {
			return false, q.Failure
		}
	}
	return true, q.Success
}

func (t *try) canTxn(q *pb.TxnRequest) *fault.Fault {
	_, ops := t.branch(q)
	for _, op := range ops {
		var f *fault.Fault
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			f = t.readable(op.RequestRange.Revision)
		case *pb.RequestOp_RequestPut:
			f = t.canPut(op.RequestPut)
		case *pb.RequestOp_RequestTxn:
			f = t.canTxn(op.RequestTxn)
		}
		if f != nil {
			return f
		}
	}
	return nil
}

func (t *try) doTxn(q *pb.TxnRequest, before *try) *pb.TxnResponse {
	ok, ops := before.branch(q)
	r := &pb.TxnResponse{Header: &pb.ResponseHeader{}, Succeeded: ok}
	for _, op := range ops {
		o := new(pb.ResponseOp)
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			o.Response = &pb.ResponseOp_ResponseRange{ResponseRange: t.doRange(op.RequestRange)}
		case *pb.RequestOp_RequestPut:
			o.Response = &pb.ResponseOp_ResponsePut{ResponsePut: t.doPut(op.RequestPut)}
		case *pb.RequestOp_RequestDeleteRange:
			o.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: t.doDelete(op.RequestDeleteRange)}
		case *pb.RequestOp_RequestTxn:
			o.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: t.doTxn(op.RequestTxn, before)}
		}
		r.Responses = append(r.Responses, o)
	}
	return r
}

// onLease returns the keys that hang on a lease, in order.
func (m *model) onLease(id int64) (keys []string) {
	for _, kv := range within(m.at[m.revision()], []byte{0}, []byte{0}) {
		if kv.Lease == id {
			keys = append(keys, string(kv.Key))
		}
	}
	return keys
}

// revoke deletes the keys of a lease, all of them at one revision.
func (m *model) revoke(id int64) {
	t := m.try()
	for _, key := range m.onLease(id) {
		t.doDelete(&pb.DeleteRangeRequest{Key: []byte(key)})
	}
	t.commit()
	delete(m.leases, id)
}

func (m *model) applyLease(request proto.Message) (proto.Message, *fault.Fault) {
	switch q := request.(type) {
	case *pb.LeaseGrantRequest:
		_, exists := m.leases[q.ID]
		switch {
		case q.ID == 0:
			return nil, fault.LeaseNotFound
		case q.TTL > 9e9:
			return nil, fault.LeaseTTLTooLarge
		case exists:
			return nil, fault.LeaseExists
		}
		m.leases[q.ID] = state.Lease{ID: state.LeaseID(q.ID), Granted: max(1, q.TTL)}
		return &pb.LeaseGrantResponse{Header: m.try().header(), ID: q.ID, TTL: max(1, q.TTL)}, nil
	case *pb.LeaseRevokeRequest:
		if _, exists := m.leases[q.ID]; !exists {
			return nil, fault.LeaseNotFound
		}
		m.revoke(q.ID)
		return &pb.LeaseRevokeResponse{Header: m.try().header()}, nil
	case *pb.LeaseLeasesResponse:
		for _, l := range q.Leases {
			if _, exists := m.leases[l.ID]; exists {
				m.revoke(l.ID)
			}
		}
	case *pb.LeaseCheckpointRequest:
		for _, c := range q.Checkpoints {
			if l, exists := m.leases[c.ID]; exists {
				l.Remaining = min(max(0, c.Remaining_TTL), l.Granted)
				m.leases[c.ID] = l
			}
		}
	default:
		panic("model: unknown command")
	}
	return nil, nil
}

// apply returns the answer to a command, or its refusal.
func (m *model) apply(c state.Command) (proto.Message, *fault.Fault) {
	m.change, m.nodeError = nil, nil
	if c.Kind == state.Hierarchy {
		return nil, m.applyNodes(c.Encoded)
	}
	t := m.try()
	defer t.commit()
	switch q := c.Request.(type) {
	case *pb.PutRequest:
		if f := cmp.Or(t.checkPut(q), t.canPut(q)); f != nil {
			return nil, f
		}
		return t.doPut(q), nil
	case *pb.DeleteRangeRequest:
		return t.doDelete(q), nil
	case *pb.CompactionRequest:
		switch {
		case q.Revision <= m.compacted:
			return nil, fault.Compacted
		case q.Revision > m.revision():
			return nil, fault.FutureRevision
		}
		m.compacted = q.Revision
		return &pb.CompactionResponse{Header: t.header()}, nil
	case *pb.TxnRequest:
		if err := state.CheckTxn(q, 0); err != nil {
			return nil, fault.Of(err)
		}
		if f := t.canTxn(q); f != nil {
			return nil, f
		}
		r := t.doTxn(q, m.try())
		r.Header.Revision = t.revision()
		return r, nil
	}
	return m.applyLease(c.Request)
}

// read answers a range at the newest revision.
func (m *model) read(q *pb.RangeRequest) (*pb.RangeResponse, *fault.Fault) {
	if f := m.readable(q.Revision); f != nil {
		return nil, f
	}
	r := m.try().doRange(q)
	r.Header = nil
	return r, nil
}
