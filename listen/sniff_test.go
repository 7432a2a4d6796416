package listen

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// caller writes what an HTTP/2 client would.
type caller struct {
	bytes.Buffer
	fr *http2.Framer
}

func newCaller() *caller {
	c := new(caller)
	c.WriteString(http2.ClientPreface)
	c.fr = http2.NewFramer(&c.Buffer, nil)
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	return c
}

func block(contentType string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	e.WriteField(hpack.HeaderField{Name: ":method", Value: "POST"})
	e.WriteField(hpack.HeaderField{Name: ":path", Value: "/a.B/C"})
	if contentType != "" {
		e.WriteField(hpack.HeaderField{Name: "content-type", Value: contentType})
	}
	return b.Bytes()
}

func TestSniffing(t *testing.T) {
	long := block("application/grpc")
	for _, tt := range []struct {
		name  string
		write func(c *caller)
		want  protocol
	}{
		{"grpc", func(c *caller) {
			c.fr.WriteWindowUpdate(0, 1<<20)
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("application/grpc+proto"), EndHeaders: true})
		}, grpcProtocol},
		{"grpc in pieces", func(c *caller) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: long[:3], PadLength: 7, Priority: http2.PriorityParam{Weight: 3}})
			c.fr.WriteContinuation(1, false, long[3:5])
			c.fr.WriteContinuation(1, true, long[5:])
		}, grpcProtocol},
		{"json", func(c *caller) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("application/json"), EndHeaders: true})
		}, httpProtocol},
		{"no content type", func(c *caller) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(""), EndHeaders: true})
		}, httpProtocol},
		{"a broken header list", func(c *caller) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, httpProtocol},
		{"data first", func(c *caller) { c.fr.WriteData(1, false, nil) }, httpProtocol},
		{"a frame between pieces", func(c *caller) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: long[:3]})
			c.fr.WritePing(false, [8]byte{})
		}, httpProtocol},
		{"an endless header list", func(c *caller) {
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: long})
			for range 20 {
				c.fr.WriteContinuation(1, false, make([]byte, 8<<10))
			}
		}, httpProtocol},
		{"a frame that is too large", func(c *caller) { c.WriteString("\xff\xff\xff\x00\x00\x00\x00\x00\x00") }, httpProtocol},
		{"nothing yet", func(c *caller) { c.fr.WritePing(false, [8]byte{}) }, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCaller()
			tt.write(c)
			for _, step := range []int{1, 7, 1 << 20} {
				if got := sniffAll(c.Bytes(), step).p; got != tt.want {
					t.Errorf("in steps of %d: got %v, want %v", step, got, tt.want)
				}
			}
		})
	}
}

// sniffed is what a whole conversation with a sniffer came to.
type sniffed struct {
	p        protocol
	answered []byte // sent to the caller
	replayed []byte // read by whoever serves it
}

// sniffAll lets a caller say text in steps, then sends the rest through the
// connection that comes out.
func sniffAll(text []byte, step int) sniffed {
	s := newSniffer()
	var out sniffed
	for len(text) > 0 && out.p == unknown {
		n := min(step, len(text))
		n = copy(s.room(), text[:n])
		s.feed(n)
		text = text[n:]
		var answer []byte
		out.p, answer = s.next()
		out.answered = append(out.answered, answer...)
	}
	if out.p == unknown {
		return out
	}
	c := s.conn(fakeConn{r: &stepReader{text, step}})
	out.replayed, _ = io.ReadAll(c)
	return out
}

func TestAcknowledgementOfTheSniffersSettingsIsTakenOut(t *testing.T) {
	for _, ackFirst := range []bool{true, false} {
		c := newCaller()
		begin := bytes.Clone(c.Bytes())
		c.Reset()
		if ackFirst {
			c.fr.WriteSettingsAck()
		}
		c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("application/grpc"), EndHeaders: true})
		if !ackFirst {
			c.fr.WriteData(1, false, []byte("body"))
			c.fr.WriteSettingsAck()
		}
		c.fr.WriteData(1, true, []byte("the end"))
		c.fr.WriteSettingsAck() // of the server's own settings

		whole := append(begin, c.Bytes()...)
		ack := []byte{0, 0, 0, byte(http2.FrameSettings), byte(http2.FlagSettingsAck), 0, 0, 0, 0}
		i := bytes.Index(whole, ack)
		want := append(bytes.Clone(whole[:i]), whole[i+len(ack):]...)
		for step := 1; step <= len(begin); step++ {
			if len(begin)%step != 0 {
				continue // the caller must stand still here, or it would not be told settings to acknowledge
			}
			got := sniffAll(whole, step)
			if !bytes.Equal(got.replayed, want) {
				t.Fatalf("ack first %t, in steps of %d:\n got %q\nwant %q", ackFirst, step, got.replayed, want)
			}
		}
	}
}

// FuzzSniffer holds that the verdict and what is replayed do not depend on
// how the network cuts what a caller says, and that nothing a caller did not
// say is ever replayed.
// Callers that come together are not taken for each other.
func TestSniffersDoNotMix(t *testing.T) {
	blocks := map[protocol][]byte{grpcProtocol: block("application/grpc"), httpProtocol: block("text/plain")}
	var callers sync.WaitGroup
	for want, b := range blocks {
		for range 4 {
			callers.Go(func() {
				for range 5000 {
					if got := requestProtocol(b); got != want {
						t.Errorf("taken for %d, is %d", got, want)
						return
					}
				}
			})
		}
	}
	callers.Wait()
}

func FuzzSniffer(f *testing.F) {
	c := newCaller()
	c.fr.WritePing(false, [8]byte{1})
	c.fr.WriteSettingsAck()
	c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("application/grpc"), EndHeaders: true})
	c.fr.WriteSettingsAck()
	f.Add(c.Bytes(), 3)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 1)
	f.Add([]byte(http2.ClientPreface), 30)
	f.Fuzz(func(t *testing.T, text []byte, step int) {
		if step < 1 || step > 4096 {
			step = 1
		}
		got := sniffAll(text, step)
		if len(got.replayed) > len(text) {
			t.Fatalf("replayed %d bytes of %d", len(got.replayed), len(text))
		}
		if len(text) > sniffMax/2 {
			return // the limit counts what is at hand
		}
		if one := sniffAll(text, 1); one.p != got.p {
			t.Fatalf("byte by byte %v, in steps of %d %v", one.p, step, got.p)
		}
		if len(got.answered) == 0 && got.p != unknown && !bytes.Equal(got.replayed, text) {
			t.Fatalf("replayed %q of %q", got.replayed, text)
		}
		if !strings.HasPrefix(string(text), http2.ClientPreface) && len(got.answered) > 0 {
			t.Fatalf("answered %q", text)
		}
	})
}
