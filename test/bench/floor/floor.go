// Package floor answers unary gRPC calls without doing anything for them: a
// frame loop over x/net/http2 and nothing behind it. Driven by package load it
// shows what the client and the wire cost by themselves, the floor under every
// figure of a real server; and its answers can be bent, so that the tests of
// package load see the errors and the small windows that a real server would
// show only on a bad day.
package floor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"
)

// Reply is the answer to one request.
type Reply struct {
	Message []byte
	Status  string // grpc-status, default "0"
	Text    string // grpc-message, percent-encoded, default none

	TrailersOnly bool          // no message, and all headers in one block
	Reset        http2.ErrCode // if not 0: reset the stream instead
	GoAway       bool          // end the connection instead
}

// Responder tells how to answer. When empty it answers every request with a
// PutResponse whose revision counts the requests of the connection.
type Responder struct {
	// Answer makes the reply to a request; the message is valid only during the
	// call. Default: the PutResponse.
	Answer func(path string, message []byte) Reply

	// Settings are announced at the start, default none.
	Settings []http2.Setting

	// Stingy gives windows back byte by byte as they are used, and cuts header
	// blocks into single bytes. Default: wide windows, whole blocks.
	Stingy bool
}

// Serve answers connections until ctx ends, and returns when all are closed.
func (r Responder) Serve(ctx context.Context, listener net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { listener.Close() })
	for {
		nc, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("floor: accept: %w", err)
		}
		conns.Go(func() {
			defer nc.Close()
			defer context.AfterFunc(ctx, func() { nc.Close() })()
			c := &conn{Responder: r, window: initialWindow, streamWindow: initialWindow, streams: map[uint32]*stream{}}
			// How a connection ended is told by its client, which counts it.
			_ = c.serve(nc)
		})
	}
}

const (
	initialWindow = 65535
	wideWindow    = 1 << 30
	frameMax      = 16384
)

type conn struct {
	Responder
	framer  *http2.Framer
	out     *bufio.Writer
	encoder *hpack.Encoder
	block   bytes.Buffer // what encoder writes
	path    string       // of the block last decoded

	requests     uint64
	message      []byte // the default reply
	window       int64  // what the client lets us send
	streamWindow int64  // what it lets a new stream send
	used         uint32 // of the window we gave, not yet given back
	streams      map[uint32]*stream
	idle         []*stream // to be used again
}

type stream struct {
	path   string
	asked  []byte // the request, if it came in parts
	window int64
	reply  Reply  // once asked in full
	rest   []byte // of the reply, not yet sent
	buffer []byte // backs rest
}

func (c *conn) serve(nc net.Conn) error {
	in := bufio.NewReaderSize(nc, 128<<10)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(in, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		return errors.New("floor: not HTTP/2")
	}

	c.out = bufio.NewWriterSize(nc, 128<<10)
	c.framer = http2.NewFramer(c.out, in)
	c.framer.SetReuseFrames()
	c.encoder = hpack.NewEncoder(&c.block)
	decoder := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":path" {
			c.path = f.Value
		}
	})
	if err := c.framer.WriteSettings(c.Settings...); err != nil {
		return err
	}
	if !c.Stingy {
		if err := c.framer.WriteWindowUpdate(0, wideWindow); err != nil {
			return err
		}
	}
	for {
		// What is already here may be answered in the same write.
		if in.Buffered() == 0 {
			if err := c.out.Flush(); err != nil {
				return err
			}
		}
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return err
		}
		if err := c.handle(frame, decoder); err != nil {
			return errors.Join(err, c.out.Flush())
		}
	}
}

func (c *conn) handle(frame http2.Frame, decoder *hpack.Decoder) error {
	switch f := frame.(type) {
	case *http2.HeadersFrame:
		if _, err := decoder.Write(f.HeaderBlockFragment()); err != nil {
			return err
		}
		s := &stream{}
		if n := len(c.idle); n > 0 {
			s, c.idle = c.idle[n-1], c.idle[:n-1]
		}
		*s = stream{path: c.path, window: c.streamWindow, buffer: s.buffer}
		c.streams[f.StreamID] = s
	case *http2.DataFrame:
		if err := c.giveBack(f); err != nil {
			return err
		}
		s := c.streams[f.StreamID]
		if s == nil {
			return nil
		}
		message := f.Data()
		if s.asked != nil || !f.StreamEnded() {
			s.asked = append(s.asked, message...)
			message = s.asked
		}
		if f.StreamEnded() {
			return c.answer(f.StreamID, s, message)
		}
	case *http2.RSTStreamFrame:
		delete(c.streams, f.StreamID)
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if n, ok := f.Value(http2.SettingInitialWindowSize); ok {
			c.streamWindow = int64(n)
		}
		return c.framer.WriteSettingsAck()
	case *http2.PingFrame:
		if !f.IsAck() {
			return c.framer.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		return c.widened(f)
	}
	return nil
}

// giveBack opens the client's windows again by what the frame used of them.
func (c *conn) giveBack(f *http2.DataFrame) error {
	if !c.Stingy {
		if c.used += f.Length; c.used < wideWindow/2 {
			return nil
		}
		used := c.used
		c.used = 0
		return c.framer.WriteWindowUpdate(0, used)
	}
	for range f.Length {
		if err := c.framer.WriteWindowUpdate(0, 1); err != nil {
			return err
		}
		if f.StreamEnded() {
			continue
		}
		if err := c.framer.WriteWindowUpdate(f.StreamID, 1); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) widened(f *http2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		c.window += int64(f.Increment)
	} else if s := c.streams[f.StreamID]; s != nil {
		s.window += int64(f.Increment)
	}
	for id, s := range c.streams {
		if len(s.rest) == 0 {
			continue
		}
		if err := c.push(id, s); err != nil {
			return err
		}
	}
	return nil
}

// answer replies to a request that came in full.
func (c *conn) answer(id uint32, s *stream, request []byte) error {
	c.requests++
	if c.Answer == nil {
		c.message = appendPutResponse(c.message[:0], c.requests)
		s.reply = Reply{Message: c.message}
	} else {
		s.reply = c.Answer(s.path, request[min(5, len(request)):])
	}
	if s.reply.Status == "" {
		s.reply.Status = "0"
	}
	switch {
	case s.reply.Reset != 0:
		delete(c.streams, id)
		return c.framer.WriteRSTStream(id, s.reply.Reset)
	case s.reply.GoAway:
		return errors.Join(c.framer.WriteGoAway(id, http2.ErrCodeNo, []byte("bye")), io.EOF)
	case s.reply.TrailersOnly:
		c.first()
		return c.end(id, s)
	}

	c.first()
	if err := c.headers(id, false); err != nil {
		return err
	}
	n := len(s.reply.Message)
	s.buffer = append(s.buffer[:0], 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	s.buffer = append(s.buffer, s.reply.Message...)
	s.rest = s.buffer
	return c.push(id, s)
}

// push sends what the windows allow, and the end when all is sent.
func (c *conn) push(id uint32, s *stream) error {
	for len(s.rest) > 0 {
		n := min(int64(len(s.rest)), frameMax, c.window, s.window)
		if n <= 0 {
			return nil
		}
		if err := c.framer.WriteData(id, false, s.rest[:n]); err != nil {
			return err
		}
		s.rest = s.rest[n:]
		c.window -= n
		s.window -= n
	}
	c.block.Reset()
	return c.end(id, s)
}

// end writes the trailers behind what block holds.
func (c *conn) end(id uint32, s *stream) error {
	c.field("grpc-status", s.reply.Status)
	if s.reply.Text != "" {
		c.field("grpc-message", s.reply.Text)
	}
	delete(c.streams, id)
	c.idle = append(c.idle, s)
	return c.headers(id, true)
}

// first begins a block with the fields that open an answer.
func (c *conn) first() {
	c.block.Reset()
	c.field(":status", "200")
	c.field("content-type", "application/grpc")
}

func (c *conn) field(name, value string) {
	// Writing to a bytes.Buffer does not fail.
	_ = c.encoder.WriteField(hpack.HeaderField{Name: name, Value: value})
}

// headers sends block.
func (c *conn) headers(id uint32, last bool) error {
	block := c.block.Bytes()
	cut := len(block)
	if c.Stingy {
		cut = 1
	}
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:cut], EndStream: last, EndHeaders: cut == len(block)})
	for ; err == nil && cut < len(block); cut++ {
		err = c.framer.WriteContinuation(id, cut+1 == len(block), block[cut:cut+1])
	}
	return err
}

func appendPutResponse(b []byte, revision uint64) []byte {
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	at := len(b)
	b = append(b, 0)
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, 14841639068965178418)
	b = protowire.AppendTag(b, 2, protowire.VarintType)
	b = protowire.AppendVarint(b, 10276657743932975437)
	b = protowire.AppendTag(b, 3, protowire.VarintType)
	b = protowire.AppendVarint(b, revision)
	b = protowire.AppendTag(b, 4, protowire.VarintType)
	b = protowire.AppendVarint(b, 2)
	b[at] = byte(len(b) - at - 1) // 33 bytes at most
	return b
}
