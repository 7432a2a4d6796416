package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/kvorum/kvorum/fault"
)

// model is the store as a few lines would have it: every version of every key.
type model struct {
	revision, compacted int64
	keys                []*versions // by name
	at                  int64       // revision of the command under way
	changed             bool
	changes             []change     // of keys, oldest first
	members             []*pb.Member // by id
	removed             []uint64
	leases              []*lease // by id
	beside              map[string]beside
}

// lease is one that lives.
type lease struct{ id, ttl, remaining int64 }

// addition is a member to be added, if there are not that many learners.
type addition struct {
	*pb.Member
	most int
}

// publication is what a member says of itself when it has started.
type publication struct{ *pb.Member }

type versions struct {
	name string
	all  []*mvccpb.KeyValue // oldest first; a deletion has version 0
}

func newModel(founders int) *model {
	m := &model{revision: 1, compacted: -1, beside: map[string]beside{}}
	for id := uint64(1); id <= uint64(founders); id++ {
		m.members = append(m.members, &pb.Member{ID: id, PeerURLs: []string{peerURL(id)}})
	}
	return m
}

func (m *model) find(name string) (int, bool) {
	return slices.BinarySearchFunc(m.keys, name, func(h *versions, name string) int { return cmp.Compare(h.name, name) })
}

// get returns what a key held at a revision, or nil.
func (m *model) get(name string, at int64) *mvccpb.KeyValue {
	i, ok := m.find(name)
	if !ok {
		return nil
	}
	for _, kv := range slices.Backward(m.keys[i].all) {
		if kv.ModRevision <= at {
			if kv.Version == 0 {
				return nil
			}
			return kv
		}
	}
	return nil
}

func (m *model) add(name string, kv *mvccpb.KeyValue) {
	i, ok := m.find(name)
	if !ok {
		m.keys = slices.Insert(m.keys, i, &versions{name: name})
	}
	m.changes = append(m.changes, change{kv: kv, prev: m.get(name, m.at)})
	m.keys[i].all = append(m.keys[i].all, kv)
	m.changed = true
	delete(m.beside, name)
}

// span calls visit for the keys in a range that lived at a revision.
func (m *model) span(key, end []byte, at int64, visit func(*mvccpb.KeyValue)) {
	i, _ := m.find(string(key))
	for ; i < len(m.keys); i++ {
		name := m.keys[i].name
		if len(end) == 0 && name != string(key) || len(end) > 0 && string(end) != "\x00" && name >= string(end) {
			return
		}
		if kv := m.get(name, at); kv != nil {
			visit(kv)
		}
	}
}

func (m *model) readable(at int64) *fault.Fault {
	switch {
	case at > m.revision:
		return fault.FutureRevision
	case at > 0 && at < m.compacted:
		return fault.Compacted
	}
	return nil
}

func (m *model) read(q *pb.RangeRequest, now int64) *pb.RangeResponse {
	at := q.Revision
	if at <= 0 {
		at = now
	}
	r := &pb.RangeResponse{}
	m.span(q.Key, q.RangeEnd, at, func(kv *mvccpb.KeyValue) {
		r.Count++
		if q.Limit > 0 && r.Count > q.Limit {
			r.More = true
			return
		}
		r.Kvs = append(r.Kvs, kv)
	})
	return r
}

func (m *model) put(q *pb.PutRequest) *pb.PutResponse {
	old := m.get(string(q.Key), m.at)
	kv := &mvccpb.KeyValue{Key: q.Key, Value: q.Value, CreateRevision: m.at, ModRevision: m.at, Version: 1, Lease: q.Lease}
	if old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		if q.IgnoreValue {
			kv.Value = old.Value
		}
	}
	m.add(string(q.Key), kv)
	if !q.PrevKv {
		old = nil
	}
	return &pb.PutResponse{PrevKv: old}
}

func (m *model) delete(q *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	r := &pb.DeleteRangeResponse{}
	var gone []*mvccpb.KeyValue
	m.span(q.Key, q.RangeEnd, m.at, func(kv *mvccpb.KeyValue) { gone = append(gone, kv) })
	for _, kv := range gone {
		r.Deleted++
		if q.PrevKv {
			r.PrevKvs = append(r.PrevKvs, kv)
		}
		m.add(string(kv.Key), &mvccpb.KeyValue{Key: kv.Key, ModRevision: m.at})
	}
	return r
}

func (m *model) holds(c *pb.Compare) bool {
	kv := m.get(string(c.Key), m.revision)
	if kv == nil {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		kv = &mvccpb.KeyValue{}
	}
	var order int
	switch c.Target {
	case pb.Compare_VERSION:
		order = cmp.Compare(kv.Version, c.GetVersion())
	case pb.Compare_CREATE:
		order = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		order = cmp.Compare(kv.ModRevision, c.GetModRevision())
	case pb.Compare_VALUE:
		order = cmp.Compare(string(kv.Value), string(c.GetValue()))
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_GREATER:
		return order > 0
	default:
		return order < 0
	}
}

func (m *model) txn(q *pb.TxnRequest) (*pb.TxnResponse, *fault.Fault) {
	r := &pb.TxnResponse{Succeeded: true}
	ops := q.Success
	for _, c := range q.Compare {
		if !m.holds(c) {
			r.Succeeded, ops = false, q.Failure
		}
	}
	for _, op := range ops {
		if put := op.GetRequestPut(); put != nil {
			if f := m.leased(put); f != nil {
				return nil, f
			}
		}
		if read := op.GetRequestRange(); read != nil {
			if f := m.readable(read.Revision); f != nil {
				return nil, f
			}
		}
	}
	for _, op := range ops {
		a := &pb.ResponseOp{}
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			a.Response = &pb.ResponseOp_ResponsePut{ResponsePut: m.put(op.RequestPut)}
		case *pb.RequestOp_RequestDeleteRange:
			a.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: m.delete(op.RequestDeleteRange)}
		case *pb.RequestOp_RequestRange:
			a.Response = &pb.ResponseOp_ResponseRange{ResponseRange: m.read(op.RequestRange, m.at)}
		}
		r.Responses = append(r.Responses, a)
	}
	return r, nil
}

// command carries out the command of an operation, in an entry of a term.
func (m *model) command(o *op, term uint64) string {
	if o.term != 0 && o.term != term {
		return text(nil, fault.LeaderChanged, m.revision)
	}
	return m.do(o.request)
}

// do carries out a request and returns the answer as text.
func (m *model) do(q any) string {
	m.at, m.changed = m.revision+1, false
	var response any
	var refusal *fault.Fault
	switch q := q.(type) {
	case nodeRequest:
		answer := m.node(&q.HierarchyRequest)
		if m.changed {
			m.revision = m.at
		}
		return answer
	case *pb.PutRequest:
		if refusal = m.leased(q); refusal != nil {
			break
		}
		if q.IgnoreValue && m.get(string(q.Key), m.revision) == nil {
			refusal = fault.KeyNotFound
			break
		}
		response = m.put(q)
	case *pb.DeleteRangeRequest:
		response = m.delete(q)
	case *pb.TxnRequest:
		response, refusal = m.txn(q)
	case *pb.CompactionRequest:
		switch {
		case q.Revision <= m.compacted:
			refusal = fault.Compacted
		case q.Revision > m.revision:
			refusal = fault.FutureRevision
		default:
			m.compacted = q.Revision
			response = &pb.CompactionResponse{}
		}
	case *pb.RangeRequest:
		if refusal = m.readable(q.Revision); refusal == nil {
			response = m.read(q, m.revision)
		}
	case *pb.LeaseGrantRequest:
		if m.lease(q.ID) != nil {
			refusal = fault.LeaseExists
			break
		}
		m.leases = append(m.leases, &lease{id: q.ID, ttl: q.TTL})
		slices.SortFunc(m.leases, func(a, b *lease) int { return cmp.Compare(a.id, b.id) })
		response = &pb.LeaseGrantResponse{ID: q.ID, TTL: q.TTL}
	case *pb.LeaseRevokeRequest:
		if !m.end(q.ID) {
			refusal = fault.LeaseNotFound
			break
		}
		response = &pb.LeaseRevokeResponse{}
	case *pb.LeaseLeasesResponse:
		// Each at a revision of its own.
		for _, one := range q.Leases {
			if m.changed {
				m.revision, m.changed = m.at, false
				m.at++
			}
			m.end(one.ID)
		}
	case *pb.LeaseCheckpointRequest:
		for _, one := range q.Checkpoints {
			if l := m.lease(one.ID); l != nil {
				l.remaining = one.Remaining_TTL
			}
		}
	default:
		response, refusal = m.change(q)
	}
	if m.changed {
		m.revision = m.at
	}
	return text(response, refusal, m.revision)
}

// leased refuses a put on a lease that there is not.
func (m *model) leased(q *pb.PutRequest) *fault.Fault {
	if q.Lease != 0 && m.lease(q.Lease) == nil {
		return fault.LeaseNotFound
	}
	return nil
}

func (m *model) lease(id int64) *lease {
	for _, l := range m.leases {
		if l.id == id {
			return l
		}
	}
	return nil
}

// end ends a lease and what hangs on it, and tells whether it was there.
func (m *model) end(id int64) bool {
	if m.lease(id) == nil {
		return false
	}
	m.leases = slices.DeleteFunc(m.leases, func(l *lease) bool { return l.id == id })
	var gone []*mvccpb.KeyValue
	m.span([]byte{0}, []byte{0}, m.revision, func(kv *mvccpb.KeyValue) {
		if kv.Lease == id {
			gone = append(gone, kv)
		}
	})
	for _, kv := range gone {
		m.add(string(kv.Key), &mvccpb.KeyValue{Key: kv.Key, ModRevision: m.at})
	}
	return true
}

func (m *model) member(id uint64) *pb.Member {
	for _, one := range m.members {
		if one.ID == id {
			return one
		}
	}
	return nil
}

// change changes the members.
func (m *model) change(q any) (response any, refusal *fault.Fault) {
	taken := func(urls []string, but uint64) bool {
		return slices.ContainsFunc(m.members, func(one *pb.Member) bool { return one.ID != but && one.PeerURLs[0] == urls[0] })
	}
	switch q := q.(type) {
	case addition:
		learners := 0
		for _, one := range m.members {
			if one.IsLearner {
				learners++
			}
		}
		switch {
		case slices.Contains(m.removed, q.ID):
			return nil, fault.MemberNotFound
		case m.member(q.ID) != nil:
			return nil, fault.MemberExists
		case taken(q.PeerURLs, 0):
			return nil, fault.PeerURLExists
		case q.IsLearner && learners >= q.most:
			return nil, fault.TooManyLearners
		}
		m.members = append(m.members, &pb.Member{ID: q.ID, PeerURLs: q.PeerURLs, IsLearner: q.IsLearner})
		slices.SortFunc(m.members, func(a, b *pb.Member) int { return cmp.Compare(a.ID, b.ID) })
		return &pb.MemberAddResponse{Members: m.members}, nil
	case *pb.MemberRemoveRequest:
		if m.member(q.ID) == nil {
			return nil, fault.MemberNotFound
		}
		m.members = slices.DeleteFunc(m.members, func(one *pb.Member) bool { return one.ID == q.ID })
		m.removed = append(m.removed, q.ID)
		slices.Sort(m.removed)
		return &pb.MemberRemoveResponse{Members: m.members}, nil
	case *pb.MemberUpdateRequest:
		one := m.member(q.ID)
		switch {
		case one == nil:
			return nil, fault.MemberNotFound
		case taken(q.PeerURLs, q.ID):
			return nil, fault.PeerURLExists
		}
		one.PeerURLs = q.PeerURLs
		return &pb.MemberUpdateResponse{Members: m.members}, nil
	case *pb.MemberPromoteRequest:
		one := m.member(q.ID)
		switch {
		case one == nil:
			return nil, fault.MemberNotFound
		case !one.IsLearner:
			return nil, fault.NotLearner
		}
		one.IsLearner = false
		return &pb.MemberPromoteResponse{Members: m.members}, nil
	case publication:
		one := m.member(q.ID)
		if one == nil {
			return nil, fault.MemberNotFound
		}
		one.Name, one.ClientURLs = q.Name, q.ClientURLs
		return &pb.MemberUpdateResponse{Members: m.members}, nil
	}
	panic(fmt.Sprintf("the model knows no %T", q))
}

// membersText tells of members as the checkers compare them.
func membersText(members []*pb.Member) string {
	var b strings.Builder
	for _, one := range members {
		fmt.Fprintf(&b, " %d %q %v %v %v", one.ID, one.Name, one.PeerURLs, one.ClientURLs, one.IsLearner)
	}
	return b.String()
}

// readAt returns the answer to a range when the store was at a revision. What
// was compacted then is for the answer to say, within what can be.
func (m *model) readAt(q *pb.RangeRequest, now int64, answer string) string {
	switch {
	case q.Revision > now:
		return text(nil, fault.FutureRevision, now)
	case q.Revision > 0 && q.Revision < m.compacted && strings.HasPrefix(answer, fault.Compacted.Text):
		return text(nil, fault.Compacted, now)
	}
	return text(m.read(q, now), nil, now)
}

// text is an answer as the checkers compare it: all but the headers, and the
// revision.
func text(response any, refusal *fault.Fault, revision int64) string {
	var b strings.Builder
	if refusal != nil {
		b.WriteString(refusal.Text)
	} else {
		write(&b, response)
	}
	fmt.Fprintf(&b, " @%d", revision)
	return b.String()
}

func write(b *strings.Builder, response any) {
	pairs := func(kvs ...*mvccpb.KeyValue) {
		for _, kv := range kvs {
			if kv != nil {
				fmt.Fprintf(b, " %s=%s(%d,%d,%d,%d)", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
			}
		}
	}
	switch r := response.(type) {
	case *pb.PutResponse:
		b.WriteString("put")
		pairs(r.PrevKv)
	case *pb.DeleteRangeResponse:
		fmt.Fprintf(b, "deleted %d", r.Deleted)
		pairs(r.PrevKvs...)
	case *pb.RangeResponse:
		fmt.Fprintf(b, "range %d %v", r.Count, r.More)
		pairs(r.Kvs...)
	case *pb.CompactionResponse:
		b.WriteString("compacted")
	case *pb.LeaseGrantResponse:
		fmt.Fprintf(b, "granted %d for %d", r.ID, r.TTL)
	case *pb.TxnResponse:
		fmt.Fprintf(b, "txn %v", r.Succeeded)
		for _, op := range r.Responses {
			b.WriteString("; ")
			switch op := op.Response.(type) {
			case *pb.ResponseOp_ResponsePut:
				write(b, op.ResponsePut)
			case *pb.ResponseOp_ResponseDeleteRange:
				write(b, op.ResponseDeleteRange)
			case *pb.ResponseOp_ResponseRange:
				write(b, op.ResponseRange)
			}
		}
	case interface{ GetMembers() []*pb.Member }:
		b.WriteString("members" + membersText(r.GetMembers()))
	default:
		fmt.Fprintf(b, "%T", response)
	}
}
