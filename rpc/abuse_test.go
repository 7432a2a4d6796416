package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/kvorum/kvorum/rpc"
)

// TestRapidReset opens calls and takes them back at once. Handlers that do not
// notice are not multiplied without bound.
func TestRapidReset(t *testing.T) {
	const most = 5000 // calls that are open at once would be more
	s := &service{entered: make(chan string, 100_000), release: make(chan struct{})}
	addr := start(t, rpc.New(rpc.Options{ConcurrentStreamsMax: most}), testService(s))
	w := greeted(t, addr)
	refused := make(chan int)
	const asked = 4000
	go func() {
		n := 0
		for {
			f, err := w.next()
			if err != nil {
				t.Error(err)
				break
			}
			if r, ok := f.(*http2.RSTStreamFrame); ok && r.ErrCode == http2.ErrCodeRefusedStream {
				n++
			}
			if _, last := f.(*http2.PingFrame); last {
				break
			}
		}
		refused <- n
	}()
	for i := range uint32(asked) {
		w.ask(2*i+1, false, append(usual(emptyCall), "stubborn", "1")...)
		w.WriteData(2*i+1, true, nothing)
		w.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}
	w.WritePing(false, [8]byte{})
	n := await(t, refused)
	if running := len(s.entered); running+n > asked || asked-n > 1000 {
		t.Errorf("%d handlers run, %d calls were refused", running, n)
	}
	close(s.release)

	// Then all is well again.
	for i := uint32(asked); ; i++ {
		w.ask(2*i+1, false, usual(emptyCall)...)
		w.WriteData(2*i+1, true, nothing)
		if got := say(w.next()); strings.Contains(got, "status=200") {
			break
		}
	}
}

// TestZeroWindow gives the answers of some calls no window, for a while. The
// others do not mind.
func TestZeroWindow(t *testing.T) {
	addr := start(t, rpc.New(rpc.Options{PendingBytesMax: 1 << 20}), testService(&service{}))
	w := greeted(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	const large = 500_000
	big := message(&grpc_testing.SimpleRequest{ResponseSize: large})
	for _, id := range []uint32{1, 3, 5} {
		w.ask(id, false, usual(unaryCall)...)
		w.WriteData(id, true, big)
		w.wants(fmt.Sprint(id, " status=200"))
	}

	// A megabyte waits: that is enough.
	w.ask(7, false, usual(emptyCall)...)
	w.WriteData(7, true, nothing)
	w.wants("7 reset REFUSED_STREAM")

	// Errors need no window.
	w.WriteRSTStream(5, http2.ErrCodeCancel)
	w.ask(9, true, usual("/no.such/Call")...)
	w.wants("9 status=200 grpc-status=12 grpc-message=unknown service no.such")

	// They are read bit by bit, and take turns.
	got := map[uint32]int{}
	w.WriteWindowUpdate(1, 1)
	w.wants("1 data 1")
	w.WriteWindowUpdate(1, 1_000_000)
	w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1_000_000})
	w.WriteWindowUpdate(0, 10_000_000) // so far it was the connection's that was too small
	turns, last := 0, uint32(0)
	for ended := 0; ended < 2; {
		f, err := w.next()
		if err != nil {
			t.Fatal(err)
		}
		id := f.Header().StreamID
		switch f := f.(type) {
		case *http2.DataFrame:
			got[id] += len(f.Data())
			if id != last {
				turns, last = turns+1, id
			}
		case *http2.MetaHeadersFrame:
			ended++
		}
	}
	if got[1] < large || got[3] < large || turns < 5 {
		t.Errorf("got %v in %d turns", got, turns)
	}
}

// TestWhoDoesNotRead is not answered without end, whatever is asked.
func TestWhoDoesNotRead(t *testing.T) {
	for name, ask := range map[string]func(w *wire, i uint32) error{
		"pings": func(w *wire, _ uint32) error { return w.WritePing(false, [8]byte{}) },
		"settings": func(w *wire, i uint32) error {
			if i%1000 == 0 { // to be no nuisance otherwise
				w.ask(2*i+1, true, usual("/no.such/Call")...)
			}
			return w.WriteSettings()
		},
		"errors": func(w *wire, i uint32) error {
			return w.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: w.encoded(usual("/" + strings.Repeat("x", 5000))...), EndStream: true, EndHeaders: true})
		},
		"answers": func(w *wire, i uint32) error {
			w.ask(2*i+1, false, usual(unaryCall)...)
			return w.WriteData(2*i+1, true, message(&grpc_testing.SimpleRequest{ResponseSize: 10_000}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := rpc.New(rpc.Options{WriteTimeout: 200 * time.Millisecond, PingIntervalMin: time.Nanosecond, PingWithoutStream: true, PendingBytesMax: 1 << 20})
			w := greeted(t, start(t, s, testService(&service{})), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
			w.WriteWindowUpdate(0, 1<<30)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for i := uint32(0); ask(w, i) == nil; i++ {
				if i%256 == 0 {
					w.nc.SetDeadline(time.Now().Add(patience))
				}
			}
			runtime.GC()
			runtime.GC() // pools forget in two steps
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
				t.Errorf("%d bytes more than before", grown)
			}
			io.Copy(io.Discard, w.nc) // and is sent away
			if err := w.WritePing(false, [8]byte{}); err == nil {
				w.nc.SetDeadline(time.Now().Add(patience))
				if _, err := io.ReadAll(w.nc); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("it may stay")
				}
			}
		})
	}
}

// TestGrants sends more large messages at once than there is room for.
func TestGrants(t *testing.T) {
	const size = 3 << 20
	client, _, _ := ready(t, rpc.Options{GrantBytesMax: 5 << 20})
	ctx := within(t, patience)
	var running sync.WaitGroup
	for i := range 12 {
		running.Go(func() {
			body := bytes.Repeat([]byte{byte(i)}, size)
			if i%4 == 0 {
				if err := sum(ctx, client, size, size, 1); err != nil {
					t.Error(err)
				}
				return
			}
			ctx := ctx
			if i%4 == 1 { // room is made by giving up, too
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 5*time.Millisecond)
				defer cancel()
			}
			r, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: body[:size-int(i)]}})
			if i%4 == 1 && status.Code(err) == codes.DeadlineExceeded {
				return
			}
			if err != nil || len(r.Payload.Body) != size-i {
				t.Error(err)
			}
		})
	}
	running.Wait()
}

// TestGrantsAreReturned stops in the middle of a message that takes all the
// room, while others want some, and gives up.
func TestGrantsAreReturned(t *testing.T) {
	const most = 1 << 20
	w := greeted(t, start(t, rpc.New(rpc.Options{ReceiveBytesMax: most, GrantBytesMax: 1}), testService(&service{})))
	claim := message(&grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: make([]byte, most-100)}})[:100]
	widened := func() (id uint32, by uint32) {
		t.Helper()
		for {
			f, err := w.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if u, ok := f.(*http2.WindowUpdateFrame); ok && u.StreamID > 0 {
				return u.StreamID, u.Increment
			}
		}
	}
	for _, id := range []uint32{1, 3, 5} {
		w.ask(id, false, usual(unaryCall)...)
		w.WriteData(id, false, claim)
	}
	if id, by := widened(); id != 1 || by < most-100_000 || by > most {
		t.Errorf("stream %d by %d", id, by)
	}
	w.WriteDataPadded(1, false, []byte{1}, make([]byte, 100)) // its window is made up for the padding
	if id, by := widened(); id != 1 || by != 101 {
		t.Errorf("stream %d by %d", id, by)
	}
	w.WriteRSTStream(3, http2.ErrCodeCancel)
	w.WriteRSTStream(1, http2.ErrCodeCancel)
	if id, _ := widened(); id != 5 {
		t.Errorf("stream %d", id)
	}
}

// FuzzFrames reads whatever comes as frames: it must neither panic nor stay.
func FuzzFrames(f *testing.F) {
	record := func(talk func(w *wire)) {
		var b bytes.Buffer
		w := &wire{Framer: http2.NewFramer(&b, nil)}
		w.encoder = hpack.NewEncoder(&w.block)
		w.WriteSettings()
		talk(w)
		f.Add(b.Bytes())
	}
	record(func(w *wire) {
		w.ask(1, false, usual(emptyCall)...)
		w.WriteData(1, true, nothing)
		w.WriteRSTStream(1, http2.ErrCodeCancel)
	})
	record(func(w *wire) {
		w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		w.ask(1, false, append(usual(duplexCall), "grpc-timeout", "1S", "x-bin", "AAA")...)
		w.WriteData(1, false, message(&grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: []byte("abc")}}))
		w.WriteWindowUpdate(1, 100)
		w.WriteWindowUpdate(0, 100)
		w.ask(1, true, "a", "b")
		w.WritePing(false, [8]byte{})
		w.WriteGoAway(1, 0, nil)
	})
	record(func(w *wire) {
		block := w.encoded(append(usual(unaryCall), "grpc-encoding", "gzip")...)
		w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:5]})
		w.WriteContinuation(1, true, block[5:])
		w.WriteDataPadded(1, false, []byte{1, 0, 0, 0, 3}, []byte{0, 0})
		w.WriteData(1, true, []byte{1, 2, 3})
	})

	l := bufconn.Listen(1 << 16)
	s := rpc.New(rpc.Options{HeaderBytesMax: 4 << 10, KeepaliveInterval: time.Hour})
	testService(&service{entered: make(chan string, 1), release: closed()})(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	f.Cleanup(func() {
		s.Stop()
		<-done
	})
	f.Fuzz(func(t *testing.T, frames []byte) {
		nc, err := l.DialContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		go func() {
			// What no frame can begin with makes the server end the connection.
			fmt.Fprintf(nc, "%s%s%s", http2.ClientPreface, frames, strings.Repeat("\xff", 32<<10))
		}()
		for r := http2.NewFramer(nil, nc); ; {
			f, err := r.ReadFrame()
			var late net.Error
			if errors.As(err, &late) && late.Timeout() {
				t.Fatal("the server keeps the connection")
			}
			if g, ok := f.(*http2.GoAwayFrame); err != nil || ok && g.ErrCode != http2.ErrCodeNo {
				return
			}
		}
	})
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
