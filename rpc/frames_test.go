package rpc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/rpc"
)

// wire is a client that says what it likes, frame by frame.
type wire struct {
	t  *testing.T
	nc net.Conn
	*http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
}

// rawDial connects without a word.
func rawDial(t *testing.T, addr string) *wire {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	return newWire(t, nc)
}

func newWire(t *testing.T, nc net.Conn) *wire {
	t.Cleanup(func() { nc.Close() })
	w := &wire{t: t, nc: nc, Framer: http2.NewFramer(nc, nc)}
	w.encoder = hpack.NewEncoder(&w.block)
	w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.AllowIllegalWrites = true
	return w
}

// greeted connects and greets as a client should.
func greeted(t *testing.T, addr string, settings ...http2.Setting) *wire {
	t.Helper()
	w := rawDial(t, addr)
	w.greet(settings...)
	return w
}

func (w *wire) greet(settings ...http2.Setting) {
	io.WriteString(w.nc, http2.ClientPreface)
	w.WriteSettings(settings...)
	w.WriteSettingsAck()
}

// timed lets talk have a conversation in which time only passes while both
// sides wait, so that it can be told to the millisecond what happens when.
func timed(t *testing.T, o rpc.Options, s *service, talk func(t *testing.T, w *wire)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := bufconn.Listen(64 << 10)
		serve(t, rpc.New(o), l, testService(s))
		nc, err := l.DialContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		talk(t, newWire(t, nc))
	})
}

// wantsAfter wants silence for so long, and then what follows.
func (w *wire) wantsAfter(d time.Duration, all ...string) {
	w.t.Helper()
	began := time.Now()
	w.wants(all[0])
	if took := time.Since(began); took != d {
		w.t.Errorf("%q came after %v, want %v", all[0], took, d)
	}
	w.wants(all[1:]...)
}

const (
	emptyCall  = grpc_testing.TestService_EmptyCall_FullMethodName
	unaryCall  = grpc_testing.TestService_UnaryCall_FullMethodName
	duplexCall = grpc_testing.TestService_FullDuplexCall_FullMethodName
)

func usual(path string) []string {
	return []string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "here", "content-type", "application/grpc", "te", "trailers"}
}

func (w *wire) encoded(pairs ...string) []byte {
	w.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		w.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(w.block.Bytes())
}

// ask opens a stream.
func (w *wire) ask(id uint32, end bool, pairs ...string) {
	w.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: w.encoded(pairs...), EndStream: end, EndHeaders: true})
}

// message is m with its prefix.
func message(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

var nothing = message(&grpc_testing.Empty{})

// next returns the next frame that is not about settings or windows.
func (w *wire) next() (http2.Frame, error) {
	for {
		f, err := w.ReadFrame()
		if err != nil {
			return nil, err
		}
		switch f.(type) {
		case *http2.SettingsFrame, *http2.WindowUpdateFrame:
		default:
			return f, nil
		}
	}
}

// say tells a frame in few words.
func say(f http2.Frame, err error) string {
	if err != nil {
		var late net.Error
		switch {
		case errors.Is(err, io.EOF):
			return "closed"
		case errors.As(err, &late) && late.Timeout():
			return "silence"
		}
		return "broken"
	}
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		var b strings.Builder
		for _, field := range f.Fields {
			if field.Name != "content-type" {
				fmt.Fprintf(&b, " %s=%s", strings.TrimPrefix(field.Name, ":"), field.Value)
			}
		}
		return fmt.Sprintf("%d%s", id, b.String())
	case *http2.DataFrame:
		return fmt.Sprintf("%d data %d", id, len(f.Data()))
	case *http2.RSTStreamFrame:
		return fmt.Sprintf("%d reset %v", id, f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Sprintf("goaway %v %s", f.ErrCode, f.DebugData())
	case *http2.PingFrame:
		return fmt.Sprintf("ping ack=%v", f.IsAck())
	}
	return f.Header().Type.String()
}

// wants compares what comes next.
func (w *wire) wants(all ...string) {
	w.t.Helper()
	for _, want := range all {
		if got := say(w.next()); got != want {
			w.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

// answered is how an empty call on stream id ends well.
func answered(id int) []string {
	return []string{fmt.Sprint(id, " status=200"), fmt.Sprint(id, " data 5"), fmt.Sprint(id, " grpc-status=0")}
}

// TestFrames tells what becomes of those who keep the rules, and of those who
// do not.
func TestFrames(t *testing.T) {
	addr := start(t, rpc.New(rpc.Options{ConcurrentStreamsMax: 3, HeaderBytesMax: 8 << 10}), testService(&service{entered: make(chan string, 10)}))

	for name, talk := range map[string]func(w *wire){
		"a call": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteData(1, true, nothing)
			w.wants(answered(1)...)
			w.ask(3, false, usual(emptyCall)...)
			w.WriteData(3, true, nothing)
			w.wants(answered(3)...)
		},
		"a message byte by byte, with padding": func(w *wire) {
			w.ask(1, false, usual(unaryCall)...)
			for _, c := range message(&grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: []byte("abc")}}) {
				w.WriteDataPadded(1, false, []byte{c}, make([]byte, 10))
			}
			w.WriteData(1, true, nil)
			w.wants("1 status=200", "1 data 12", "1 grpc-status=0")
		},
		"headers byte by byte": func(w *wire) {
			block := w.encoded(usual(emptyCall)...)
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:1]})
			for i := 1; i < len(block); i++ {
				w.WriteContinuation(1, i == len(block)-1, block[i:i+1])
			}
			w.WriteData(1, true, nothing)
			w.wants(answered(1)...)
		},
		"no message": func(w *wire) {
			w.ask(1, true, usual(emptyCall)...)
			w.wants("1 status=200 grpc-status=13 grpc-message=cardinality violation: received no request message from non-client-streaming RPC")
		},
		"half a message": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteData(1, true, []byte{0, 0, 0, 0, 9, 1})
			w.wants("1 status=200 grpc-status=13 grpc-message=unexpected EOF")
		},
		"two messages": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteData(1, true, append(bytes.Clone(nothing), nothing...))
			w.wants("1 status=200 grpc-status=13 grpc-message=cardinality violation: received multiple request messages for non-client-streaming RPC")
		},
		"a message too large by its own account": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteData(1, false, []byte{0, 0xff, 0xff, 0xff, 0xff})
			w.wants("1 status=200 grpc-status=8 grpc-message=grpc: received message larger than max (4294967295 vs. 4194304)", "1 reset NO_ERROR")
		},
		"an unknown flag": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteData(1, true, []byte{7, 0, 0, 0, 0})
			w.wants("1 status=200 grpc-status=13 grpc-message=grpc: received unexpected payload format 7")
		},
		"compressed as nothing": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteData(1, true, []byte{1, 0, 0, 0, 0})
			w.wants("1 status=200 grpc-status=13 grpc-message=grpc: compressed flag set with identity or empty encoding")
		},
		"an unknown compression": func(w *wire) {
			w.ask(1, true, append(usual(emptyCall), "grpc-encoding", "zip")...)
			w.wants(`1 status=200 grpc-status=12 grpc-message=grpc: Decompressor is not installed for grpc-encoding "zip"`)
		},
		"a path without slash": func(w *wire) {
			w.ask(1, true, usual("grpc.testing.TestService/EmptyCall")...)
			w.wants(`1 status=200 grpc-status=12 grpc-message=malformed method name: "grpc.testing.TestService/EmptyCall"`)
		},
		"not gRPC": func(w *wire) {
			w.ask(1, true, ":method", "POST", ":scheme", "http", ":path", emptyCall, ":authority", "here", "content-type", "application/json")
			w.wants(`1 status=415 grpc-status=3 grpc-message=invalid gRPC request content-type "application/json"`)
		},
		"not a POST": func(w *wire) {
			w.ask(1, false, ":method", "GET", ":scheme", "http", ":path", emptyCall, ":authority", "here", "content-type", "application/grpc")
			w.wants(`1 status=405 grpc-status=13 grpc-message=Received a HEADERS frame with :method "GET" which should be POST`, "1 reset NO_ERROR")
		},
		"no authority": func(w *wire) {
			w.ask(1, true, ":method", "POST", ":scheme", "http", ":path", emptyCall, "content-type", "application/grpc")
			w.wants("1 status=400 grpc-status=13 grpc-message=no host or :authority header present")
		},
		"a broken timeout": func(w *wire) {
			w.ask(1, true, append(usual(emptyCall), "grpc-timeout", "1x")...)
			w.wants(`1 status=400 grpc-status=13 grpc-message=malformed grpc-timeout: transport: timeout unit is not recognized: "1x"`)
		},
		"no time": func(w *wire) {
			w.ask(1, true, append(usual(emptyCall), "grpc-timeout", "0S")...)
			w.wants("1 status=200 grpc-status=4 grpc-message=context deadline exceeded")
		},
		"a broken binary": func(w *wire) {
			w.ask(1, true, append(usual(emptyCall), "x-bin", "!")...)
			w.wants(`1 status=400 grpc-status=13 grpc-message=malformed binary metadata "!" in header "x-bin": illegal base64 data at input byte 0`)
		},
		"malformed requests": func(w *wire) {
			for i, pairs := range [][]string{
				append(usual(emptyCall), "connection", "close"),
				append(usual(emptyCall), "Upper", "1"),
				append(usual(emptyCall), ":method", "POST"),
				append([]string{":method", "POST"}, usual(emptyCall)...),
				append([]string{":path", "/"}, usual(emptyCall)...),
				append([]string{":odd", "1"}, usual(emptyCall)...),
				append(usual(emptyCall), "te", "gzip"),
				append(usual(emptyCall), "x", "a\nb"),
				{":method", "POST", ":scheme", "http", "content-type", "application/grpc"},
				{":method", "POST", ":path", emptyCall, ":authority", "here", "content-type", "application/grpc"},
				{":scheme", "http", ":path", emptyCall, ":authority", "here", "content-type", "application/grpc"},
				usual(""),
				append(usual(emptyCall), "content-length", "1"),
				append(usual(emptyCall), "content-length", "-1"),
				append(usual(emptyCall), "content-length", "1", "content-length", "2"),
			} {
				id := 2*i + 1
				w.ask(uint32(id), true, pairs...)
				w.wants(fmt.Sprint(id, " reset PROTOCOL_ERROR"))
			}
			w.ask(101, false, usual(emptyCall)...)
			w.WriteData(101, true, nothing)
			w.wants(answered(101)...)
		},
		"too many calls": func(w *wire) {
			for _, id := range []uint32{1, 3, 5, 7} {
				w.ask(id, false, usual(emptyCall)...)
			}
			w.wants("7 reset REFUSED_STREAM")
			w.WriteData(3, true, nothing)
			w.wants(answered(3)...)
			w.ask(9, false, usual(emptyCall)...)
			w.WriteData(9, true, nothing)
			w.wants(answered(9)...)
		},
		"too large headers": func(w *wire) {
			w.ask(1, true, append(usual(emptyCall), "x", strings.Repeat("a", 5<<10), "y", strings.Repeat("b", 5<<10))...)
			w.wants("1 status=431 grpc-status=8 grpc-message=grpc: received headers larger than max (8192)")
			w.ask(3, false, usual(emptyCall)...)
			w.WriteData(3, true, nothing)
			w.wants(answered(3)...)
		},
		"an endless header": func(w *wire) {
			w.ask(1, true, append(usual(emptyCall), "x", strings.Repeat("~", 10<<10))...)
			w.wants("goaway ENHANCE_YOUR_CALM headers are too large", "closed")
		},
		"endless headers": func(w *wire) {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.encoded("x", "y")})
			for w.WriteContinuation(1, false, bytes.Repeat(w.encoded("x", "y"), 1000)) == nil {
			}
			w.wants("goaway ENHANCE_YOUR_CALM headers are too large")
		},
		"endless empty continuations": func(w *wire) {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.encoded("x", "y")})
			for w.WriteContinuation(1, false, nil) == nil {
			}
			w.wants("goaway ENHANCE_YOUR_CALM too many frames for nothing")
		},
		"endless settings": func(w *wire) {
			go io.Copy(io.Discard, w.nc)
			for w.WriteSettings() == nil {
			}
		},
		"endless priorities": func(w *wire) {
			for w.WritePriority(1, http2.PriorityParam{StreamDep: 3}) == nil {
			}
			w.wants("goaway ENHANCE_YOUR_CALM too many frames for nothing")
		},
		"endless empty data": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			for w.WriteData(1, false, nil) == nil {
			}
			w.wants("goaway ENHANCE_YOUR_CALM too many frames for nothing")
		},
		"too many pings": func(w *wire) {
			for range 4 {
				w.WritePing(false, [8]byte{1})
			}
			w.wants("ping ack=true", "ping ack=true", "ping ack=true", "ping ack=true", "goaway ENHANCE_YOUR_CALM too_many_pings", "closed")
		},
		"trailers": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteData(1, false, nothing)
			w.ask(1, true, "x", "y")
			w.wants(answered(1)...)
		},
		"malformed trailers": func(w *wire) {
			for i, pairs := range [][]string{{":path", "/"}, {":method", "POST"}, {"Upper", "1"}, {"te", "gzip"}, {"x", "a\nb"}} {
				id := 2*i + 1
				w.ask(uint32(id), false, usual(emptyCall)...)
				w.WriteData(uint32(id), false, nothing)
				w.ask(uint32(id), true, pairs...)
				w.wants(fmt.Sprint(id, " reset PROTOCOL_ERROR"))
			}
		},
		"trailers that do not end": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.ask(1, false, usual(emptyCall)...)
			w.wants("1 reset PROTOCOL_ERROR")
		},
		"data after the end": func(w *wire) {
			w.ask(1, true, usual(duplexCall)...)
			w.wants("1 status=200 grpc-status=0")
			w.WriteData(1, true, nothing)
			w.wants("1 reset STREAM_CLOSED")
		},
		"headers of a closed stream": func(w *wire) {
			w.ask(1, true, usual(duplexCall)...)
			w.wants("1 status=200 grpc-status=0")
			w.ask(1, true, usual(duplexCall)...)
			w.wants("goaway STREAM_CLOSED headers on a closed stream", "closed")
		},
		"headers after a reset": func(w *wire) {
			w.ask(1, false, usual(duplexCall)...)
			w.WriteRSTStream(1, http2.ErrCodeCancel)
			w.ask(1, true, "x", "y")
			w.wants("goaway STREAM_CLOSED headers on a closed stream", "closed")
		},
		"more of a call that was refused": func(w *wire) {
			w.ask(1, false, usual("/nobody/knows")...)
			w.wants("1 status=200 grpc-status=12 grpc-message=unknown service nobody", "1 reset NO_ERROR")
			w.ask(3, false, append(usual(emptyCall), "Upper", "1")...)
			w.wants("3 reset PROTOCOL_ERROR")
			for _, id := range []uint32{1, 3} { // all this may have been under way
				w.WriteData(id, false, nothing)
				w.ask(id, true, "x", "y")
			}
			w.WritePing(false, [8]byte{})
			w.wants("ping ack=true")
		},
		"a stream that was passed over": func(w *wire) {
			w.ask(5, false, usual(emptyCall)...)
			w.ask(3, false, usual(emptyCall)...)
			w.wants("goaway PROTOCOL_ERROR streams are opened in order", "closed")
		},
		"a stream that depends on itself": func(w *wire) {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.encoded(usual(emptyCall)...), EndHeaders: true, Priority: http2.PriorityParam{StreamDep: 1}})
			w.wants("1 reset PROTOCOL_ERROR")
			w.WritePriority(3, http2.PriorityParam{StreamDep: 3})
			w.wants("goaway PROTOCOL_ERROR a stream depends on itself", "closed")
		},
		"as much as was promised": func(w *wire) {
			w.ask(1, false, append(usual(emptyCall), "content-length", "5")...)
			w.WriteData(1, false, nothing)
			w.WriteData(1, true, nil)
			w.wants(answered(1)...)
		},
		"more than was promised": func(w *wire) {
			w.ask(1, false, append(usual(duplexCall), "content-length", "4")...)
			w.WriteData(1, false, nothing)
			w.wants("1 reset PROTOCOL_ERROR")
		},
		"less than was promised": func(w *wire) {
			w.ask(1, false, append(usual(emptyCall), "content-length", "6")...)
			w.WriteData(1, true, nothing)
			w.ask(3, false, append(usual(emptyCall), "content-length", "6")...)
			w.WriteData(3, false, nothing)
			w.ask(3, true, "x", "y")
			w.wants("1 reset PROTOCOL_ERROR", "3 reset PROTOCOL_ERROR")
		},
		"an even stream": func(w *wire) {
			w.ask(2, true, usual(emptyCall)...)
			w.wants("goaway PROTOCOL_ERROR clients' streams are odd", "closed")
		},
		"data on an idle stream": func(w *wire) {
			w.WriteData(5, true, nothing)
			w.wants("goaway PROTOCOL_ERROR data on a stream that was not opened", "closed")
		},
		"reset of an idle stream": func(w *wire) {
			w.WriteRSTStream(5, http2.ErrCodeCancel)
			w.wants("goaway PROTOCOL_ERROR reset of a stream that was not opened", "closed")
		},
		"window of an idle stream": func(w *wire) {
			w.WriteWindowUpdate(5, 1)
			w.wants("goaway PROTOCOL_ERROR window of a stream that was not opened", "closed")
		},
		"a window that grows by nothing": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteWindowUpdate(1, 0)
			w.wants("1 reset PROTOCOL_ERROR")
			w.WriteWindowUpdate(1, 0)
			w.wants("1 reset PROTOCOL_ERROR")
			w.WriteWindowUpdate(0, 0)
			w.wants("goaway PROTOCOL_ERROR broken frame", "closed")
		},
		"a stream's window overflows": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteWindowUpdate(1, 1<<31-1)
			w.wants("1 reset FLOW_CONTROL_ERROR")
		},
		"the connection's window overflows": func(w *wire) {
			w.WriteWindowUpdate(0, 1<<31-1)
			w.wants("goaway FLOW_CONTROL_ERROR the connection's window overflows", "closed")
		},
		"a window overflows by settings": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteWindowUpdate(1, 1<<30)
			w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
			w.wants("goaway FLOW_CONTROL_ERROR a stream's window overflows", "closed")
		},
		"impossible settings": func(w *wire) {
			w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
			w.wants("goaway FLOW_CONTROL_ERROR broken frame", "closed")
		},
		"a stream's window is exceeded": func(w *wire) {
			w.ask(1, false, append(usual(duplexCall), "wait", "1")...)
			for range 5 {
				w.WriteData(1, false, make([]byte, 16<<10))
			}
			w.wants("1 reset FLOW_CONTROL_ERROR")
		},
		"a frame too large": func(w *wire) {
			w.ask(1, false, usual(emptyCall)...)
			w.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 16<<10+1))
			w.wants("goaway FRAME_SIZE_ERROR frame too large", "closed")
		},
		"a broken ping": func(w *wire) {
			w.WriteRawFrame(http2.FramePing, 0, 0, []byte{1})
			w.wants("goaway FRAME_SIZE_ERROR broken frame", "closed")
		},
		"broken compression": func(w *wire) {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff}, EndHeaders: true})
			if got := say(w.next()); !strings.HasPrefix(got, "goaway COMPRESSION_ERROR") {
				w.t.Fatal(got)
			}
		},
		"headers that break off": func(w *wire) {
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.encoded("x", "y")})
			w.WriteData(1, true, nothing)
			w.wants("goaway PROTOCOL_ERROR broken frame", "closed")
		},
		"broken headers": func(w *wire) {
			w.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 1, []byte{200, 1})
			w.wants("goaway PROTOCOL_ERROR broken headers", "closed")
		},
		"a push": func(w *wire) {
			w.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
			w.wants("goaway PROTOCOL_ERROR clients do not push", "closed")
		},
		"an unknown frame": func(w *wire) {
			w.WriteRawFrame(0x77, 0xff, 99, []byte("whatever"))
			w.WritePing(false, [8]byte{})
			w.wants("ping ack=true")
		},
		"a farewell": func(w *wire) {
			w.WriteGoAway(0, http2.ErrCodeNo, nil)
			w.ask(1, false, usual(emptyCall)...)
			w.WriteData(1, true, nothing)
			w.wants(answered(1)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			talk(greeted(t, addr))
		})
	}

	t.Run("no preface", func(t *testing.T) {
		w := rawDial(t, addr)
		io.WriteString(w.nc, "GET / HTTP/1.1\r\nHost: here\r\n\r\n")
		w.wants("goaway PROTOCOL_ERROR bogus greeting", "closed")
	})
	t.Run("no settings", func(t *testing.T) {
		w := rawDial(t, addr)
		io.WriteString(w.nc, http2.ClientPreface)
		w.WritePing(false, [8]byte{})
		w.wants("goaway PROTOCOL_ERROR the first frame is no settings", "closed")
	})
	t.Run("no header table", func(t *testing.T) {
		w := greeted(t, addr, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
		w.ReadMetaHeaders = hpack.NewDecoder(0, nil)
		for id := 1; id < 6; id += 2 {
			w.ask(uint32(id), false, usual(emptyCall)...)
			w.WriteData(uint32(id), true, nothing)
			w.wants(answered(id)...)
		}
	})
	t.Run("short header lists", func(t *testing.T) {
		w := greeted(t, addr, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000})
		w.ask(1, false, append(usual(emptyCall), "echo", "1", "x-a", strings.Repeat("a", 1000))...)
		w.WriteData(1, true, nothing)
		w.wants("1 reset INTERNAL_ERROR")
		w.ask(3, false, append(usual(emptyCall), "echo", "1", "x-a", "a")...)
		w.WriteData(3, true, nothing)
		if got := say(w.next()); !strings.HasPrefix(got, "3 status=200") {
			t.Fatal(got)
		}
	})
}
