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
	"github.com/kvorum/kvorum/rpc"
	"github.com/kvorum/kvorum/state"
)

// Fast gives the methods of KV that nearly all calls ask for a way from bytes
// to bytes on r, without the messages in between. Their answers are those of the
// methods that they stand for. Gets of one key wait together for the round that
// makes them linear, and writes for what becomes of them.
func Fast(o Options, g *gate.Gate, calls *gate.Calls, b Backend, r interface{ Fast(path string, f rpc.Fast) }) {
	s := kv{server: &server{options: o, gate: g, backend: b}}
	around := func(name string, decode func([]byte) proto.Message) *gate.Around {
		return calls.Around(pb.KV_ServiceDesc.ServiceName, name, decode)
	}

	reads := &rpc.Together{New: func() rpc.Party { return newParty(s.server) }}
	get := &gets{kv: s, Around: around("Range", decoded[pb.RangeRequest])}
	r.Fast(pb.KV_Range_FullMethodName, rpc.Fast{Now: get.now, Together: reads, Handle: get.Handle(s.fastRange)})

	writes := &rpc.Together{New: func() rpc.Party { return newParty(s.server) }}
	put := &write[pb.PutRequest, *pb.PutRequest]{
		kv: s, Around: around("Put", decoded[pb.PutRequest]), kind: state.Put,
		decode: wire.Put, check: state.CheckPut,
	}
	r.Fast(pb.KV_Put_FullMethodName, rpc.Fast{Now: put.now, Together: writes, Handle: put.Handle(fast(wire.Put, s.Put, g))})
	del := &write[pb.DeleteRangeRequest, *pb.DeleteRangeRequest]{
		kv: s, Around: around("DeleteRange", decoded[pb.DeleteRangeRequest]), kind: state.DeleteRange,
		decode: wire.DeleteRange, check: state.CheckDeleteRange,
	}
	r.Fast(pb.KV_DeleteRange_FullMethodName, rpc.Fast{Now: del.now, Together: writes, Handle: del.Handle(fast(wire.DeleteRange, s.DeleteRange, g))})
	txn := &write[pb.TxnRequest, *pb.TxnRequest]{
		kv: s, Around: around("Txn", decoded[pb.TxnRequest]), kind: state.Txn,
		decode: wire.Txn, check: func(r *pb.TxnRequest) error { return state.CheckTxn(r, o.TxnOpsMax) },
		alone: func(r *pb.TxnRequest) bool {
			only, _ := readOnly(r)
			return only
		},
	}
	r.Fast(pb.KV_Txn_FullMethodName, rpc.Fast{Now: txn.now, Together: writes, Handle: txn.Handle(fast(wire.Txn, s.Txn, g))})
}

type message[T any] interface {
	*T
	proto.Message
	Reset()
}

// decoded is for those who look rarely.
func decoded[T any, M message[T]](in []byte) proto.Message {
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

// fast makes a method from messages to messages one from bytes to bytes.
func fast[T, R any, M message[T], A message[R]](decode func([]byte, M) bool, method func(context.Context, M) (A, error), g *gate.Gate) gate.Fast {
	return func(ctx context.Context, in, out []byte) ([]byte, error) {
		r := M(new(T))
		if !decode(in, r) {
			return out, unreadable(in, r)
		}
		if err := g.Enter(ctx, false); err != nil {
			return out, err
		}
		a, err := method(ctx, r)
		if err != nil {
			return out, err
		}
		return wire.Append(out, a)
	}
}

// Requests are used again: no answer, and nobody who is asked, keeps one.
var rangeRequests = sync.Pool{New: func() any { return new(pb.RangeRequest) }}

func freeRange(r *pb.RangeRequest) {
	r.Reset()
	rangeRequests.Put(r)
}

// gets is Range.
type gets struct {
	kv
	*gate.Around
}

// now answers a get of one key as this member knows it. One as the cluster
// knows it joins others; larger ranges would hold up those.
func (g *gets) now(ctx context.Context, p rpc.Party, in, out []byte) ([]byte, rpc.Then, error) {
	r := rangeRequests.Get().(*pb.RangeRequest)
	defer freeRange(r)
	readable := wire.Range(in, r)
	if readable && len(r.RangeEnd) > 0 {
		return out, rpc.Alone, nil
	}
	came, before := time.Now(), len(out)
	err := g.Begin(ctx)
	switch {
	case err != nil:
	case !readable:
		err = unreadable(in, r)
	case r.Serializable:
		out, err = g.appendRange(ctx, r, out, came, func(bool) (*state.View, error) { return g.backend.View(), nil })
	default:
		p.(*party).joinGet(ctx, g, in)
		return out, rpc.Joined, nil
	}
	return out, rpc.Answered, g.End(ctx, came, in, len(out)-before, err)
}

// conclude answers a get that has waited for all that was committed before it
// came.
func (g *gets) conclude(ctx context.Context, came time.Time, in, out []byte, _ *state.Outcome, waited error) ([]byte, error) {
	r := rangeRequests.Get().(*pb.RangeRequest)
	defer freeRange(r)
	if !wire.Range(in, r) {
		return out, unreadable(in, r)
	}
	return g.appendRange(ctx, r, out, came, func(bool) (*state.View, error) {
		if waited != nil && ctx.Err() != nil {
			waited = ctx.Err() // as View says it
		}
		return g.backend.View(), waited
	})
}

func (s kv) fastRange(ctx context.Context, in, out []byte) ([]byte, error) {
	r := rangeRequests.Get().(*pb.RangeRequest)
	defer freeRange(r)
	if !wire.Range(in, r) {
		return out, unreadable(in, r)
	}
	return s.appendRange(ctx, r, out, time.Now(), func(linear bool) (*state.View, error) { return s.gate.View(ctx, linear) })
}

func (s kv) appendRange(ctx context.Context, r *pb.RangeRequest, out []byte, came time.Time, view func(linear bool) (*state.View, error)) ([]byte, error) {
	if err := s.gate.Enter(ctx, r.Serializable); err != nil {
		return out, err
	}
	a, err := s.answer(r, came, view)
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

// write is a method that proposes.
type write[T any, M message[T]] struct {
	kv
	*gate.Around
	kind   state.Kind
	decode func([]byte, M) bool
	check  func(M) error
	alone  func(M) bool // tells what proposes nothing; nil: nothing does

	requests sync.Pool
}

// now has a call that is admitted join others whose commands are proposed
// together.
func (w *write[T, M]) now(ctx context.Context, p rpc.Party, in, out []byte) ([]byte, rpc.Then, error) {
	all := p.(*party)
	r, ok := w.requests.Get().(M)
	if !ok {
		r = new(T)
	}
	defer func() {
		r.Reset()
		w.requests.Put(r)
	}()
	readable := w.decode(in, r)
	if readable && w.alone != nil && w.alone(r) {
		return out, rpc.Alone, nil
	}
	err := w.gate.Enter(ctx, false)
	var command []byte
	switch {
	case !readable:
		err = unreadable(in, r)
	case err != nil:
	default:
		if err = w.check(r); err != nil {
			break
		}
		if command, ok, err = w.gate.AppendCommand(all.room(gate.CommandBytes+len(in)), w.kind, r, in); !ok {
			return out, rpc.Alone, nil
		}
	}
	if first := w.Begin(ctx); first != nil {
		err = first
	}
	if err != nil {
		return out, rpc.Answered, w.End(ctx, all.came, in, 0, err)
	}
	all.joinWrite(ctx, w, command, len(in))
	return out, rpc.Joined, nil
}

// conclude answers with what became of a proposal.
func (w *write[T, M]) conclude(_ context.Context, came time.Time, _, out []byte, o *state.Outcome, err error) ([]byte, error) {
	if err := w.gate.Conclude(w.kind, came, o, err); err != nil {
		return out, err
	}
	resp := o.Response.(answered)
	w.fill(resp.GetHeader())
	return wire.Append(out, resp)
}
