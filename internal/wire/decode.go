package wire

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Each of these decodes b into a message and tells whether it is one. The
// message should be empty: fields that are not in b stay as they are.

// Range decodes a RangeRequest.
func Range(b []byte, m *pb.RangeRequest) bool {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, block):
			m.Key = r.bytes()
		case field(2, block):
			m.RangeEnd = r.bytes()
		case field(3, varint):
			m.Limit = r.int()
		case field(4, varint):
			m.Revision = r.int()
		case field(5, varint):
			m.SortOrder = pb.RangeRequest_SortOrder(r.uint())
		case field(6, varint):
			m.SortTarget = pb.RangeRequest_SortTarget(r.uint())
		case field(7, varint):
			m.Serializable = r.bool()
		case field(8, varint):
			m.KeysOnly = r.bool()
		case field(9, varint):
			m.CountOnly = r.bool()
		case field(10, varint):
			m.MinModRevision = r.int()
		case field(11, varint):
			m.MaxModRevision = r.int()
		case field(12, varint):
			m.MinCreateRevision = r.int()
		case field(13, varint):
			m.MaxCreateRevision = r.int()
		default:
			r.skip()
		}
	}
	return r.ok()
}

// Put decodes a PutRequest.
func Put(b []byte, m *pb.PutRequest) bool {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, block):
			m.Key = r.bytes()
		case field(2, block):
			m.Value = r.bytes()
		case field(3, varint):
			m.Lease = r.int()
		case field(4, varint):
			m.PrevKv = r.bool()
		case field(5, varint):
			m.IgnoreValue = r.bool()
		case field(6, varint):
			m.IgnoreLease = r.bool()
		default:
			r.skip()
		}
	}
	return r.ok()
}

// DeleteRange decodes a DeleteRangeRequest.
func DeleteRange(b []byte, m *pb.DeleteRangeRequest) bool {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, block):
			m.Key = r.bytes()
		case field(2, block):
			m.RangeEnd = r.bytes()
		case field(3, varint):
			m.PrevKv = r.bool()
		default:
			r.skip()
		}
	}
	return r.ok()
}

// nestedMax is how deep package proto lets messages nest.
const nestedMax = 10000

// Txn decodes a TxnRequest.
func Txn(b []byte, m *pb.TxnRequest) bool { return txn(b, m, nestedMax) }

func txn(b []byte, m *pb.TxnRequest, depth int) bool {
	if depth--; depth < 0 {
		return false
	}
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, block):
			c := new(pb.Compare)
			r.nested(func(b []byte) bool { return depth > 0 && compare(b, c) })
			m.Compare = append(m.Compare, c)
		case field(2, block):
			op := new(pb.RequestOp)
			r.nested(func(b []byte) bool { return requestOp(b, op, depth) })
			m.Success = append(m.Success, op)
		case field(3, block):
			op := new(pb.RequestOp)
			r.nested(func(b []byte) bool { return requestOp(b, op, depth) })
			m.Failure = append(m.Failure, op)
		default:
			r.skip()
		}
	}
	return r.ok()
}

// nested has a field decoded that is a message itself.
func (r *reader) nested(decode func([]byte) bool) {
	if b := r.bytes(); !r.bad && !decode(b) {
		r.bad = true
	}
}

func compare(b []byte, m *pb.Compare) bool {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, varint):
			m.Result = pb.Compare_CompareResult(r.uint())
		case field(2, varint):
			m.Target = pb.Compare_CompareTarget(r.uint())
		case field(3, block):
			m.Key = r.bytes()
		case field(4, varint):
			m.TargetUnion = &pb.Compare_Version{Version: r.int()}
		case field(5, varint):
			m.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: r.int()}
		case field(6, varint):
			m.TargetUnion = &pb.Compare_ModRevision{ModRevision: r.int()}
		case field(7, block):
			m.TargetUnion = &pb.Compare_Value{Value: r.bytes()}
		case field(8, varint):
			m.TargetUnion = &pb.Compare_Lease{Lease: r.int()}
		case field(64, block):
			m.RangeEnd = r.bytes()
		default:
			r.skip()
		}
	}
	return r.ok()
}

// requestOp decodes one of several kinds. Of two of the same kind the second
// adds to the first, of two kinds the last counts.
func requestOp(b []byte, m *pb.RequestOp, depth int) bool {
	if depth--; depth < 0 {
		return false
	}
	leaf := depth > 0 // there is room for a message in this one
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, block):
			op, ok := m.Request.(*pb.RequestOp_RequestRange)
			if !ok {
				op = &pb.RequestOp_RequestRange{RequestRange: new(pb.RangeRequest)}
				m.Request = op
			}
			r.nested(func(b []byte) bool { return leaf && Range(b, op.RequestRange) })
		case field(2, block):
			op, ok := m.Request.(*pb.RequestOp_RequestPut)
			if !ok {
				op = &pb.RequestOp_RequestPut{RequestPut: new(pb.PutRequest)}
				m.Request = op
			}
			r.nested(func(b []byte) bool { return leaf && Put(b, op.RequestPut) })
		case field(3, block):
			op, ok := m.Request.(*pb.RequestOp_RequestDeleteRange)
			if !ok {
				op = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: new(pb.DeleteRangeRequest)}
				m.Request = op
			}
			r.nested(func(b []byte) bool { return leaf && DeleteRange(b, op.RequestDeleteRange) })
		case field(4, block):
			op, ok := m.Request.(*pb.RequestOp_RequestTxn)
			if !ok {
				op = &pb.RequestOp_RequestTxn{RequestTxn: new(pb.TxnRequest)}
				m.Request = op
			}
			r.nested(func(b []byte) bool { return txn(b, op.RequestTxn, depth) })
		default:
			r.skip()
		}
	}
	return r.ok()
}

// KeepAlive decodes a LeaseKeepAliveRequest.
func KeepAlive(b []byte, m *pb.LeaseKeepAliveRequest) bool {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, varint):
			m.ID = r.int()
		default:
			r.skip()
		}
	}
	return r.ok()
}

// Watch decodes a WatchRequest. Of two requests in one the last counts; of the
// same kind, the second adds to the first.
func Watch(b []byte, m *pb.WatchRequest) bool {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, block):
			q, ok := m.RequestUnion.(*pb.WatchRequest_CreateRequest)
			if !ok {
				q = &pb.WatchRequest_CreateRequest{CreateRequest: new(pb.WatchCreateRequest)}
				m.RequestUnion = q
			}
			r.nested(func(b []byte) bool { return watchCreate(b, q.CreateRequest) })
		case field(2, block):
			q, ok := m.RequestUnion.(*pb.WatchRequest_CancelRequest)
			if !ok {
				q = &pb.WatchRequest_CancelRequest{CancelRequest: new(pb.WatchCancelRequest)}
				m.RequestUnion = q
			}
			r.nested(func(b []byte) bool { return watchCancel(b, q.CancelRequest) })
		case field(3, block):
			if _, ok := m.RequestUnion.(*pb.WatchRequest_ProgressRequest); !ok {
				m.RequestUnion = &pb.WatchRequest_ProgressRequest{ProgressRequest: new(pb.WatchProgressRequest)}
			}
			r.nested(nothing)
		default:
			r.skip()
		}
	}
	return r.ok()
}

func watchCreate(b []byte, m *pb.WatchCreateRequest) bool {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, block):
			m.Key = r.bytes()
		case field(2, block):
			m.RangeEnd = r.bytes()
		case field(3, varint):
			m.StartRevision = r.int()
		case field(4, varint):
			m.ProgressNotify = r.bool()
		case field(5, varint):
			m.Filters = append(m.Filters, pb.WatchCreateRequest_FilterType(r.uint()))
		case field(5, block): // several of them
			all := reader{b: r.bytes()}
			for len(all.b) > 0 && !all.bad {
				m.Filters = append(m.Filters, pb.WatchCreateRequest_FilterType(all.uint()))
			}
			r.bad = r.bad || all.bad
		case field(6, varint):
			m.PrevKv = r.bool()
		case field(7, varint):
			m.WatchId = r.int()
		case field(8, varint):
			m.Fragment = r.bool()
		default:
			r.skip()
		}
	}
	return r.ok()
}

func watchCancel(b []byte, m *pb.WatchCancelRequest) bool {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case field(1, varint):
			m.WatchId = r.int()
		default:
			r.skip()
		}
	}
	return r.ok()
}

// nothing decodes a message without fields.
func nothing(b []byte) bool {
	r := reader{b: b}
	for r.next() {
		r.skip()
	}
	return r.ok()
}
