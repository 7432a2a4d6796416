package rpc_test

import (
	"net"
	"runtime"
	"testing"
	"time"

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
	const conns, mostBytes = 1000, 7_000
	server := rpc.New(rpc.Options{})
	server.RestAfter(50 * time.Millisecond)
	addr := start(t, server, testService(&service{}))
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
	each := 0
	for limit := time.Now().Add(5 * time.Second); time.Now().Before(limit); {
		if each = (inUse() - before) / conns; each <= mostBytes {
			t.Logf("%d bytes for each connection", each)
			return
		}
	}
	t.Errorf("an idle connection costs %d bytes, want at most %d", each, mostBytes)
}

// TestRest lets a client fall silent wherever it can, and go on.
func TestRest(t *testing.T) {
	for _, kind := range []string{"socket", "other"} {
		t.Run(kind, func(t *testing.T) {
			l := cutListener{local(t), kind == "socket", make(chan struct{}, 1)}
			s := rpc.New(rpc.Options{})
			s.RestAfter(time.Millisecond)
			serve(t, s, l, testService(&service{}))
			w := greeted(t, l.Addr().String())
			silent := func() { t.Helper(); await(t, l.cut) }

			silent()
			w.ask(1, false, usual(emptyCall)...)
			silent()
			w.WriteData(1, true, nothing)
			w.wants(answered(1)...)
			silent()

			// In the middle of headers and of a frame the reader cannot rest, and is
			// cut off again and again.
			block := w.encoded(usual(emptyCall)...)
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:2]})
			silent()
			silent()
			w.WriteContinuation(3, true, block[2:])
			frame := append([]byte{0, 0, byte(len(nothing)), byte(http2.FrameData), byte(http2.FlagDataEndStream), 0, 0, 0, 3}, nothing...)
			for _, b := range frame[:len(frame)-1] {
				w.nc.Write([]byte{b})
				silent()
				silent()
			}
			w.nc.Write(frame[len(frame)-1:])
			w.wants(answered(3)...)
			silent()

			go s.GracefulStop()
			w.wants("goaway NO_ERROR graceful_stop", "ping ack=false")
		})
	}
}

// cutListener tells when a reader has seen that it was cut off: what comes before
// that is read, and the next cut is this one.
type cutListener struct {
	net.Listener
	asSocket bool
	cut      chan struct{}
}

func (l cutListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := cutConn{nc, l.cut}
	if l.asSocket {
		return struct {
			cutConn
			prompt
		}{c, nc.(prompt)}, nil
	}
	return c, nil
}

type prompt interface {
	TryWrite(p []byte) (int, error)
	ReadLent(lend func() []byte, giveBack func()) (int, error)
	CloseWrite() error
}

type cutConn struct {
	net.Conn
	cut chan struct{}
}

func (c cutConn) SetReadDeadline(at time.Time) error {
	if at.IsZero() {
		select {
		case c.cut <- struct{}{}:
		default:
		}
	}
	return c.Conn.SetReadDeadline(at)
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
