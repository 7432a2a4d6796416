package v3

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/internal/wire"
	"github.com/kvorum/kvorum/state"
)

// FastMethod is a method of KV from bytes to bytes: what nearly all traffic
// is, without the messages in between. Its answers are those of the method
// that it stands for.
type FastMethod struct {
	Service, Name string
	Decode        func(in []byte) proto.Message // for those who want to look at a request
	Handle        gate.Fast

	// Now tells whether a request is answered without waiting for anybody; nil
	// if none is.
	Now func(in []byte) bool

	// After, if there is one, handles the requests that Joins picks, which have
	// waited for Barrier together.
	Joins func(in []byte) bool
	After func(ctx context.Context, in, out []byte, waited error) ([]byte, error)
}

// Fast returns the methods that have a fast way.
func Fast(o Options, g *gate.Gate, b Backend) []FastMethod {
	s := kv{server: &server{options: o, gate: g, backend: b}}
	service := pb.KV_ServiceDesc.ServiceName
	return []FastMethod{
		{Service: service, Name: "Range", Decode: decoded[pb.RangeRequest], Handle: s.fastRange, Now: local, Joins: linear, After: s.rangeAfter},
		{Service: service, Name: "Put", Decode: decoded[pb.PutRequest], Handle: s.fastPut},
		{Service: service, Name: "DeleteRange", Decode: decoded[pb.DeleteRangeRequest], Handle: s.fastDelete},
		{Service: service, Name: "Txn", Decode: decoded[pb.TxnRequest], Handle: s.fastTxn},
	}
}

// decoded is for those who look rarely.
func decoded[T any, M interface {
	*T
	proto.Message
}](in []byte) proto.Message {
	m := M(new(T))
	_ = proto.Unmarshal(in, m) // as far as it goes
	return m
}

// unreadable is what a request is answered that is none.
func unreadable(in []byte, m proto.Message) error {
	err := proto.Unmarshal(in, m)
	return status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err)
}

// malformed is the same for a message of a stream.
func malformed(in []byte, m proto.Message) error {
	err := proto.Unmarshal(in, m)
	return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: %v", err)
}

// Requests are used again: no answer, and nobody who is asked, keeps one.
var (
	rangeRequests = sync.Pool{New: func() any { return new(pb.RangeRequest) }}
	putRequests   = sync.Pool{New: func() any { return new(pb.PutRequest) }}
)

// asks tells whether in is a request for a range, and such a one.
func asks(in []byte, such func(*pb.RangeRequest) bool) bool {
	r := rangeRequests.Get().(*pb.RangeRequest)
	ok := wire.Range(in, r) && such(r)
	r.Reset()
	rangeRequests.Put(r)
	return ok
}

// local tells whether in asks for one key as this member knows it.
func local(in []byte) bool {
	return asks(in, func(r *pb.RangeRequest) bool { return r.Serializable && len(r.RangeEnd) == 0 })
}

// linear tells whether in asks for one key as the cluster knows it. Larger
// ranges would hold up those who have waited with them.
func linear(in []byte) bool {
	return asks(in, func(r *pb.RangeRequest) bool { return !r.Serializable && len(r.RangeEnd) == 0 })
}

func (s kv) fastRange(ctx context.Context, in, out []byte) ([]byte, error) {
	return s.rangeFrom(ctx, in, out, func(linear bool) (*state.View, error) { return s.gate.View(ctx, linear) })
}

// rangeAfter answers a range that has waited for all that was committed before
// it came.
func (s kv) rangeAfter(ctx context.Context, in, out []byte, waited error) ([]byte, error) {
	return s.rangeFrom(ctx, in, out, func(bool) (*state.View, error) {
		if waited != nil && ctx.Err() != nil {
			waited = ctx.Err() // as View says it
		}
		return s.backend.View(), waited
	})
}

func (s kv) rangeFrom(ctx context.Context, in, out []byte, view func(linear bool) (*state.View, error)) ([]byte, error) {
	r := rangeRequests.Get().(*pb.RangeRequest)
	defer func() {
		r.Reset()
		rangeRequests.Put(r)
	}()
	if !wire.Range(in, r) {
		return out, unreadable(in, r)
	}
	if err := s.gate.Enter(ctx, r.Serializable); err != nil {
		return out, err
	}
	a, err := s.answer(r, view)
	if err != nil {
		return out, err
	}
	return state.AppendAnswer(s.appendHeader(out, a.Revision), a), nil
}

func (s *server) appendHeader(out []byte, rev state.Revision) []byte {
	h := headers.Get().(*pb.ResponseHeader)
	h.Revision = int64(rev)
	s.fill(h)
	out = wire.AppendHeader(out, h)
	headers.Put(h)
	return out
}

var headers = sync.Pool{New: func() any { return new(pb.ResponseHeader) }}

func (s kv) fastPut(ctx context.Context, in, out []byte) ([]byte, error) {
	r := putRequests.Get().(*pb.PutRequest)
	defer func() {
		r.Reset()
		putRequests.Put(r)
	}()
	if !wire.Put(in, r) {
		return out, unreadable(in, r)
	}
	if err := s.gate.Enter(ctx, false); err != nil {
		return out, err
	}
	if err := state.CheckPut(r); err != nil {
		return out, err
	}
	return fastPropose(ctx, s, state.Put, r, in, out)
}

func (s kv) fastDelete(ctx context.Context, in, out []byte) ([]byte, error) {
	r := new(pb.DeleteRangeRequest)
	if !wire.DeleteRange(in, r) {
		return out, unreadable(in, r)
	}
	if err := s.gate.Enter(ctx, false); err != nil {
		return out, err
	}
	if err := state.CheckDeleteRange(r); err != nil {
		return out, err
	}
	return fastPropose(ctx, s, state.DeleteRange, r, in, out)
}

func (s kv) fastTxn(ctx context.Context, in, out []byte) ([]byte, error) {
	r := new(pb.TxnRequest)
	if !wire.Txn(in, r) {
		return out, unreadable(in, r)
	}
	if err := s.gate.Enter(ctx, false); err != nil {
		return out, err
	}
	if err := state.CheckTxn(r, s.options.TxnOpsMax); err != nil {
		return out, err
	}
	if only, serializable := readOnly(r); only {
		start := time.Now()
		resp, err := s.look(ctx, r, !serializable)
		s.gate.Observe(gate.Txn, start, err)
		if err != nil {
			return out, err
		}
		return wire.Append(out, resp)
	}
	return fastPropose(ctx, s, state.Txn, r, in, out)
}

// fastPropose has the request r, encoded as in, made true.
func fastPropose(ctx context.Context, s kv, kind state.Kind, r proto.Message, in, out []byte) ([]byte, error) {
	resp, err := proposeEncoded[answered](ctx, s.server, kind, r, in)
	if err != nil {
		return out, err
	}
	return wire.Append(out, resp)
}
