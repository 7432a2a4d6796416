package v3

import (
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

type kv struct {
	pb.UnimplementedKVServer
	*server
}

func (s kv) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	a, err := s.answer(r, time.Now(), func(linear bool) (*state.View, error) { return s.gate.View(ctx, linear) })
	if err != nil {
		return nil, err
	}
	resp := &pb.RangeResponse{Header: s.header(a.Revision), More: a.More, Count: a.Count}
	setPairs(resp, a.Pairs)
	return resp, nil
}

// answer returns what r, which came at a time, asks for, of a view that is linear
// or not.
func (s kv) answer(r *pb.RangeRequest, came time.Time, view func(linear bool) (*state.View, error)) (a state.Answer, err error) {
	if err := state.CheckRange(r); err != nil {
		return a, err
	}
	defer func() { s.gate.Observe(gate.Range, came, err) }()
	v, err := view(!r.Serializable)
	if err != nil {
		return a, err
	}
	return s.gate.Range(v, r)
}

// setPairs gives resp pairs that are encoded already. They become unknown
// fields whose bytes are those of field kvs: who receives the message finds
// the pairs, and nothing here is decoded to be encoded again. Whatever looks
// at the message before it was on a wire, JSON for one, does not see them.
func setPairs(resp *pb.RangeResponse, pairs [][]byte) {
	if len(pairs) == 0 {
		return
	}
	size := 0
	for _, pair := range pairs {
		size += pairTagBytes + protowire.SizeBytes(len(pair))
	}
	raw := make([]byte, 0, size)
	for _, pair := range pairs {
		raw = state.AppendPair(raw, pair)
	}
	resp.ProtoReflect().SetUnknown(raw)
}

const pairTagBytes = 1 // of an element of kvs

func (s kv) RangeStream(r *pb.RangeRequest, stream grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	if err := state.CheckRange(r); err != nil {
		return err
	}
	switch {
	case r.SortOrder == pb.RangeRequest_DESCEND,
		r.SortOrder != pb.RangeRequest_NONE && r.SortTarget != pb.RangeRequest_KEY:
		return fault.StreamSort
	case r.MinModRevision != 0, r.MaxModRevision != 0, r.MinCreateRevision != 0, r.MaxCreateRevision != 0:
		return fault.StreamRevisions
	}
	view, err := s.gate.View(stream.Context(), !r.Serializable)
	if err != nil {
		return err
	}
	return s.stream(view, r, stream.Send)
}

// pieceKeys is how many keys the first piece of a stream holds: few, because
// it is not known how large they are.
const pieceKeys = 10

// stream sends what r asks for in pieces of about the size of the largest
// request. All of them are read from one view, and together they are the
// answer that Range would give.
func (s kv) stream(view *state.View, r *pb.RangeRequest, send func(*pb.RangeStreamResponse) error) error {
	ask := &pb.RangeRequest{
		Key: r.Key, RangeEnd: r.RangeEnd, Revision: r.Revision,
		KeysOnly: r.KeysOnly, CountOnly: r.CountOnly,
	}
	if ask.Revision <= 0 {
		ask.Revision = int64(view.Revision) // also if a compaction overtakes the stream
	}
	left := r.Limit // of the client's limit; 0: none
	keys := int64(pieceKeys)
	for first, total := true, int64(0); ; first = false {
		ask.Limit = keys
		if left > 0 {
			ask.Limit = min(keys, left)
		}
		a, err := s.gate.Range(view, ask)
		if err != nil {
			return err
		}
		if first {
			total = a.Count
		}
		got := int64(len(a.Pairs))
		last := !a.More || left > 0 && got == left
		resp := &pb.RangeResponse{}
		if last {
			resp.Header, resp.More, resp.Count = s.header(a.Revision), a.More, total
		}
		setPairs(resp, a.Pairs)
		if err := send(&pb.RangeStreamResponse{RangeResponse: resp}); err != nil || last {
			return err
		}

		if left > 0 {
			left -= got
		}
		ask.Key = append(keyOf(a.Pairs[got-1]), 0)
		keys = nextPiece(got, int64(len(resp.ProtoReflect().GetUnknown())), int64(s.options.RequestBytesMax))
	}
}

// nextPiece returns how many keys of the size seen make a piece of size want,
// growing no faster than twofold: the next ones may be larger.
func nextPiece(keys, size, want int64) int64 {
	return max(1, min(2*keys, keys*want/max(1, size)))
}

// keyOf returns a copy of the key in an encoded pair, whose first field it is.
func keyOf(pair []byte) []byte {
	key, _ := protowire.ConsumeBytes(pair[1:])
	return slices.Clone(key)
}

func (s kv) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := state.CheckPut(r); err != nil {
		return nil, err
	}
	return propose[*pb.PutResponse](ctx, s.server, state.Put, r)
}

func (s kv) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := state.CheckDeleteRange(r); err != nil {
		return nil, err
	}
	return propose[*pb.DeleteRangeResponse](ctx, s.server, state.DeleteRange, r)
}

func (s kv) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := state.CheckTxn(r, s.options.TxnOpsMax); err != nil {
		return nil, err
	}
	only, serializable := readOnly(r)
	if !only {
		return propose[*pb.TxnResponse](ctx, s.server, state.Txn, r)
	}

	// Nothing changes, so nothing has to be agreed on.
	start := time.Now()
	resp, err := s.look(ctx, r, !serializable)
	s.gate.Observe(gate.Txn, start, err)
	return resp, err
}

// readOnly tells whether r asks for nothing but ranges, and whether all of
// them are content with what this member knows.
func readOnly(r *pb.TxnRequest) (only, serializable bool) {
	serializable = true
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			read := op.GetRequestRange()
			if read == nil {
				return false, false
			}
			serializable = serializable && read.Serializable
		}
	}
	return true, serializable
}

func (s kv) look(ctx context.Context, r *pb.TxnRequest, linear bool) (*pb.TxnResponse, error) {
	view, err := s.gate.View(ctx, linear)
	if err != nil {
		return nil, err
	}
	resp, err := view.Txn(r)
	if err != nil {
		return nil, err
	}
	s.fill(resp.Header)
	return resp, nil
}

func (s kv) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	resp, err := propose[*pb.CompactionResponse](ctx, s.server, state.Compact, r)
	if err != nil || !r.Physical {
		return resp, err
	}
	// Agreed is that history ends; that its bytes are gone takes longer.
	return resp, s.backend.WaitSwept(ctx, state.Revision(r.Revision))
}
