package rpc_test

import (
	"net"
	"runtime"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/kvorum/kvorum/rpc"
)

// TestIdleConnections counts what connections cost that have done something
// large once and now do nothing. Ten thousand of them may cost 100 MB.
func TestIdleConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector, which tests that are short on time run under, needs memory of its own")
	}
	const conns, mostBytes = 1000, 11_000
	addr := start(t, rpc.New(rpc.Options{}), testService(&service{}))
	block := greeted(t, addr).encoded(usual(unaryCall)...)
	request := message(&grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: make([]byte, 40_000)}})

	before := inUse()
	for range conns {
		// What this side costs is counted too: about 1 KB.
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		f := http2.NewFramer(nc, nc)
		nc.Write([]byte(http2.ClientPreface))
		f.WriteSettings()
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
		for rest := request; len(rest) > 0; {
			n := min(len(rest), 16<<10)
			f.WriteData(1, n == len(rest), rest[:n])
			rest = rest[n:]
		}
		for ended := false; !ended; {
			got, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			h, ok := got.(*http2.HeadersFrame)
			ended = ok && h.StreamEnded()
		}
	}
	each := (inUse() - before) / conns
	t.Logf("%d bytes for each connection", each)
	if each > mostBytes {
		t.Errorf("an idle connection costs %d bytes, want at most %d", each, mostBytes)
	}
}

// inUse is what the process holds of heap and stacks.
func inUse() int {
	var m runtime.MemStats
	for range 3 { // pools let go at the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}
