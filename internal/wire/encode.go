package wire

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Append appends a message as package proto encodes it. Those that this
// package does not know, and those with unknown fields, it leaves to that.
func Append(dst []byte, m proto.Message) ([]byte, error) {
	if len(m.ProtoReflect().GetUnknown()) == 0 {
		switch m := m.(type) {
		case *pb.PutRequest:
			return AppendPut(dst, m), nil
		case *pb.PutResponse:
			return putResponse(dst, m), nil
		case *pb.DeleteRangeResponse:
			return deleteRangeResponse(dst, m), nil
		case *pb.TxnResponse:
			return txnResponse(dst, m), nil
		case *pb.WatchResponse:
			return AppendWatch(dst, m), nil
		case *pb.LeaseKeepAliveResponse:
			return AppendKeepAlive(dst, m), nil
		}
	}
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
}

// AppendPut appends a PutRequest.
func AppendPut(dst []byte, m *pb.PutRequest) []byte {
	dst = appendBytes(dst, 1, m.Key)
	dst = appendBytes(dst, 2, m.Value)
	dst = appendInt(dst, 3, m.Lease)
	dst = appendBool(dst, 4, m.PrevKv)
	dst = appendBool(dst, 5, m.IgnoreValue)
	return appendBool(dst, 6, m.IgnoreLease)
}

// AppendHeader appends the header of an answer, which is its first field.
func AppendHeader(dst []byte, m *pb.ResponseHeader) []byte {
	if m == nil {
		return dst
	}
	dst, at := open(dst, 1)
	dst = appendUint(dst, 1, m.ClusterId)
	dst = appendUint(dst, 2, m.MemberId)
	dst = appendInt(dst, 3, m.Revision)
	dst = appendUint(dst, 4, m.RaftTerm)
	return seal(dst, at)
}

func appendPair(dst []byte, number tag, m *mvccpb.KeyValue) []byte {
	if m == nil {
		return dst
	}
	dst, at := open(dst, number)
	dst = appendBytes(dst, 1, m.Key)
	dst = appendInt(dst, 2, m.CreateRevision)
	dst = appendInt(dst, 3, m.ModRevision)
	dst = appendInt(dst, 4, m.Version)
	dst = appendBytes(dst, 5, m.Value)
	dst = appendInt(dst, 6, m.Lease)
	return seal(dst, at)
}

func putResponse(dst []byte, m *pb.PutResponse) []byte {
	return appendPair(AppendHeader(dst, m.Header), 2, m.PrevKv)
}

func rangeResponse(dst []byte, m *pb.RangeResponse) []byte {
	dst = AppendHeader(dst, m.Header)
	for _, kv := range m.Kvs {
		dst = appendPair(dst, 2, kv)
	}
	dst = appendBool(dst, 3, m.More)
	dst = appendInt(dst, 4, m.Count)
	return append(dst, m.ProtoReflect().GetUnknown()...) // pairs that came encoded
}

func deleteRangeResponse(dst []byte, m *pb.DeleteRangeResponse) []byte {
	dst = appendInt(AppendHeader(dst, m.Header), 2, m.Deleted)
	for _, kv := range m.PrevKvs {
		dst = appendPair(dst, 3, kv)
	}
	return dst
}

func txnResponse(dst []byte, m *pb.TxnResponse) []byte {
	dst = appendBool(AppendHeader(dst, m.Header), 2, m.Succeeded)
	for _, op := range m.Responses {
		var outer, inner int
		dst, outer = open(dst, 3)
		switch op := op.Response.(type) {
		case *pb.ResponseOp_ResponseRange:
			dst, inner = open(dst, 1)
			dst = seal(rangeResponse(dst, op.ResponseRange), inner)
		case *pb.ResponseOp_ResponsePut:
			dst, inner = open(dst, 2)
			dst = seal(putResponse(dst, op.ResponsePut), inner)
		case *pb.ResponseOp_ResponseDeleteRange:
			dst, inner = open(dst, 3)
			dst = seal(deleteRangeResponse(dst, op.ResponseDeleteRange), inner)
		case *pb.ResponseOp_ResponseTxn:
			dst, inner = open(dst, 4)
			dst = seal(txnResponse(dst, op.ResponseTxn), inner)
		}
		dst = seal(dst, outer)
	}
	return dst
}

// AppendWatch appends a WatchResponse. Its last field is the events: who has
// them encoded appends them.
func AppendWatch(dst []byte, m *pb.WatchResponse) []byte {
	dst = appendInt(AppendHeader(dst, m.Header), 2, m.WatchId)
	dst = appendBool(dst, 3, m.Created)
	dst = appendBool(dst, 4, m.Canceled)
	dst = appendInt(dst, 5, m.CompactRevision)
	if m.CancelReason != "" {
		dst = protowire.AppendString(appendTag(dst, field(6, block)), m.CancelReason)
	}
	dst = appendBool(dst, 7, m.Fragment)
	for _, e := range m.Events {
		var at int
		dst, at = open(dst, 11)
		dst = appendUint(dst, 1, uint64(e.Type))
		dst = appendPair(dst, 2, e.Kv)
		dst = seal(appendPair(dst, 3, e.PrevKv), at)
	}
	return dst
}

// AppendEvent appends an event to a WatchResponse. Its pairs are encoded
// already; previous is nil if there is none.
func AppendEvent(dst []byte, kind mvccpb.Event_EventType, pair, previous []byte) []byte {
	dst = appendTag(dst, field(11, block))
	dst = protowire.AppendVarint(dst, uint64(eventBody(kind, pair, previous)))
	dst = appendUint(dst, 1, uint64(kind))
	dst = protowire.AppendBytes(appendTag(dst, field(2, block)), pair)
	if previous != nil {
		dst = protowire.AppendBytes(appendTag(dst, field(3, block)), previous)
	}
	return dst
}

// EventBytes returns how many bytes AppendEvent appends.
func EventBytes(kind mvccpb.Event_EventType, pair, previous []byte) int {
	return tagBytes + protowire.SizeBytes(eventBody(kind, pair, previous))
}

const tagBytes = 1 // of the first 15 fields

func eventBody(kind mvccpb.Event_EventType, pair, previous []byte) int {
	n := tagBytes + protowire.SizeBytes(len(pair))
	if kind != 0 {
		n += tagBytes + protowire.SizeVarint(uint64(kind))
	}
	if previous != nil {
		n += tagBytes + protowire.SizeBytes(len(previous))
	}
	return n
}

// AppendKeepAlive appends a LeaseKeepAliveResponse.
func AppendKeepAlive(dst []byte, m *pb.LeaseKeepAliveResponse) []byte {
	dst = appendInt(AppendHeader(dst, m.Header), 2, m.ID)
	return appendInt(dst, 3, m.TTL)
}
