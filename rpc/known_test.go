package rpc_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/kvorum/kvorum/rpc"
)

// TestHeadersThatCameBefore sends the same headers again and again, while new
// ones move what the same bytes stand for.
func TestHeadersThatCameBefore(t *testing.T) {
	s := rpc.New(rpc.Options{})
	grpc_testing.RegisterTestServiceServer(s, &service{})
	echo := func(how string) rpc.Fast {
		return rpc.Fast{Now: func(ctx context.Context, _ rpc.Party, _, out []byte) ([]byte, rpc.Then, error) {
			name, _ := rpc.Header(ctx, "x-name")
			return append(append(out, how...), name...), rpc.Answered, nil
		}}
	}
	s.Fast(unaryCall, echo("unary "))
	s.Fast(emptyCall, echo("empty "))
	w := greeted(t, start(t, s))
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 3000 {
		id := uint32(2*i + 1)
		name := fmt.Sprint("usual ", r.IntN(3))
		switch r.IntN(40) {
		case 0:
			name = fmt.Sprint("new ", i)
		case 1: // begins to fill the table anew
			w.encoder = hpack.NewEncoder(&w.block)
		}
		path, want := unaryCall, "unary "
		if r.IntN(3) == 0 {
			path, want = emptyCall, "empty "
		}
		block := w.encoded(append(usual(path), "x-name", name)...)
		cut := len(block)
		if r.IntN(10) == 0 {
			cut = r.IntN(len(block))
		}
		w.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:cut], EndHeaders: cut == len(block)})
		if cut < len(block) {
			w.WriteContinuation(id, true, block[cut:])
		}
		w.WriteData(id, true, nothing)
		got := ""
		for ended := false; !ended; {
			f, err := w.next()
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			switch f := f.(type) {
			case *http2.DataFrame:
				got += string(f.Data()[5:])
			case *http2.MetaHeadersFrame:
				if ended = f.StreamEnded(); ended && got == "" {
					t.Fatalf("seed %d: request %d: %s", seed, i, say(f, nil))
				}
			}
		}
		if got != want+name {
			t.Fatalf("seed %d: request %d is taken for %q, not %q", seed, i, got, want+name)
		}
	}
}
