package rpc

import (
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	initialWindow = 65535 // until a setting says otherwise
	windowMax     = 1<<31 - 1
	frameBytesMax = 16 << 10 // also if the client would take more: others want their turn

	frameHeaderBytes = 9

	// Frames of messages are made when they can be written soon, so that those
	// of all streams take turns.
	readyMax = 128 << 10

	// A client that leaves so much unread is not read from.
	unreadMax = 256 << 10
)

// output is what is on its way to the client. All of it is guarded by c.mu.
type output struct {
	encoder encoder
	ready   []byte // whole frames
	spare   []byte // to become ready; a small one
	taken   []byte // was ready, and is being written
	rest    []byte // of taken, if not all of it could be written at once
	writing bool   // somebody is
	failed  bool   // nothing can be written any more

	window        int // the connection's
	streamWindow  int // of a new stream
	headerListMax uint32

	first, last *stream // the line of those who have something to send
	pending     int     // bytes in all streams' sending
}

func appendFrameHeader(b []byte, length int, t http2.FrameType, flags http2.Flags, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(t), byte(flags),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func (o *output) resetStream(id uint32, code http2.ErrCode) {
	o.ready = appendFrameHeader(o.ready, 4, http2.FrameRSTStream, 0, id)
	o.ready = binary.BigEndian.AppendUint32(o.ready, uint32(code))
}

func (o *output) windowUpdate(id uint32, n int) {
	o.ready = appendFrameHeader(o.ready, 4, http2.FrameWindowUpdate, 0, id)
	o.ready = binary.BigEndian.AppendUint32(o.ready, uint32(n))
}

func (o *output) settings(all []http2.Setting) {
	const each = 6
	o.ready = appendFrameHeader(o.ready, each*len(all), http2.FrameSettings, 0, 0)
	for _, s := range all {
		o.ready = binary.BigEndian.AppendUint16(o.ready, uint16(s.ID))
		o.ready = binary.BigEndian.AppendUint32(o.ready, s.Val)
	}
}

func (o *output) ping(flags http2.Flags, data [8]byte) {
	o.ready = appendFrameHeader(o.ready, len(data), http2.FramePing, flags, 0)
	o.ready = append(o.ready, data[:]...)
}

func (o *output) goAway(last uint32, code http2.ErrCode, why string) {
	o.ready = appendFrameHeader(o.ready, 8+len(why), http2.FrameGoAway, 0, 0)
	o.ready = binary.BigEndian.AppendUint32(o.ready, last)
	o.ready = binary.BigEndian.AppendUint32(o.ready, uint32(code))
	o.ready = append(o.ready, why...)
}

// headers appends a header block, which begins at from in ready, where room
// was left for a frame header, in as many frames as it needs.
func (o *output) headers(id uint32, from int, end bool) {
	var flags http2.Flags
	if end {
		flags = http2.FlagHeadersEndStream
	}
	block := o.ready[from+frameHeaderBytes:]
	if len(block) <= frameBytesMax {
		appendFrameHeader(o.ready[:from], len(block), http2.FrameHeaders, flags|http2.FlagHeadersEndHeaders, id)
		return
	}
	block = slices.Clone(block)
	o.ready = o.ready[:from]
	kind := http2.FrameHeaders
	for piece := range slices.Chunk(block, frameBytesMax) {
		o.ready = appendFrameHeader(o.ready, len(piece), kind, flags, id)
		o.ready = append(o.ready, piece...)
		kind, flags, from = http2.FrameContinuation, 0, len(o.ready)-len(piece)-frameHeaderBytes
	}
	o.ready[from+4] |= byte(http2.FlagHeadersEndHeaders)
}

// begin leaves room for a frame header and begins a header block behind it.
func (o *output) begin() (from int) {
	from = len(o.ready)
	o.ready = append(o.ready, make([]byte, frameHeaderBytes)...)
	o.ready = o.encoder.begin(o.ready)
	return from
}

var errHeaderSize = status.Error(codes.Internal, "transport: trying to send header list size larger than the limit set by peer")

// fits tells whether the client takes a list of md, of more bytes, and of what
// every answer has.
func (o *output) fits(md metadata.MD, more int) bool {
	if o.headerListMax == math.MaxUint32 {
		return true
	}
	const each, usual = 32, 6 * 48 // as sizes of lists are counted
	size := usual + more
	for name, values := range md {
		for _, value := range values {
			size += len(name) + len(value) + each
		}
	}
	return size <= int(o.headerListMax)
}

func (o *output) metadata(md metadata.MD) {
	for name, values := range md {
		if reserved(name) {
			continue
		}
		for _, value := range values {
			if strings.HasSuffix(name, "-bin") {
				value = encodeBinary([]byte(value))
			}
			o.ready = o.encoder.field(o.ready, name, value)
		}
	}
}

// sendHeader sends what stands before the first message. It returns false when
// the client does not take it, and then the call has ended. c.mu is held.
func (c *conn) sendHeader(s *stream) bool {
	s.headerSent = true
	if len(s.header) > 0 && !c.out.fits(s.header, 0) {
		c.resetCall(s, http2.ErrCodeInternal)
		return false
	}
	from := c.out.begin()
	c.responseHeaders(s)
	c.out.metadata(s.header)
	c.out.headers(s.id, from, false)
	c.sent()
	return true
}

func (c *conn) responseHeaders(s *stream) {
	c.out.ready = c.out.encoder.responseHeaders(c.out.ready, 200, s.head.contentType)
	if s.head.compressor != nil {
		c.out.ready = c.out.encoder.field(c.out.ready, "grpc-encoding", s.head.encoding)
	}
}

// sendTrailer ends a call with its status. c.mu is held.
func (c *conn) sendTrailer(s *stream) {
	if !s.headerSent && len(s.header) > 0 && !c.sendHeader(s) {
		return
	}
	details, message := statusDetails(s.status), ""
	if s.status != nil {
		message = encodeMessage(s.status.Message())
	}
	if details != "" {
		delete(s.trailer, detailsHeader)
	}
	if !c.out.fits(s.trailer, len(message)+len(details)) {
		c.resetCall(s, http2.ErrCodeInternal)
		return
	}
	from := c.out.begin()
	if !s.headerSent {
		s.headerSent = true
		c.responseHeaders(s)
	}
	c.statusFields(s.status, message, details)
	c.out.metadata(s.trailer)
	c.out.headers(s.id, from, true)
	c.sent()
	if !s.receivedAll {
		c.out.resetStream(s.id, http2.ErrCodeNo) // it need not send the rest
	}
	c.closeCall(s)
}

func (c *conn) statusFields(st *status.Status, message, details string) {
	c.out.ready = c.out.encoder.grpcStatus(c.out.ready, int(st.Code()))
	if message != "" {
		c.out.ready = c.out.encoder.field(c.out.ready, "grpc-message", message)
	}
	if details != "" {
		c.out.ready = c.out.encoder.field(c.out.ready, detailsHeader, details)
	}
}

func statusDetails(st *status.Status) string {
	if st == nil {
		return ""
	}
	p := st.Proto()
	if len(p.GetDetails()) == 0 {
		return ""
	}
	raw, err := proto.Marshal(p)
	if err != nil {
		return ""
	}
	return encodeBinary(raw)
}

// refuse answers a request that does not become a call. c.mu is held.
func (c *conn) refuse(id uint32, r *refusal, ended bool) {
	from := c.out.begin()
	c.out.ready = c.out.encoder.responseHeaders(c.out.ready, r.httpStatus, grpcContentType)
	c.statusFields(r.status, encodeMessage(r.status.Message()), "")
	c.out.headers(id, from, true)
	c.sent()
	if !ended {
		c.out.resetStream(id, http2.ErrCodeNo)
	}
	c.gone.add(id, !ended)
}

// sent tells that the client was sent something that it asked for: it may ping
// again, and be a little tiresome again. c.mu is held.
func (c *conn) sent() {
	c.keep.answered = true
	c.tiresome = 0
}

// send sends a message with its prefix as far as windows and turns allow; the
// rest follows by itself. of holds the message and is freed in the end; it may
// be nil, when message is only lent. c.mu is held, and s is open and sends
// nothing else.
func (c *conn) send(s *stream, message []byte, of *buffer) {
	if !s.headerSent && !c.sendHeader(s) {
		of.free()
		return
	}
	if len(message) <= min(frameBytesMax, c.out.window, s.sendWindow) && len(c.out.ready) < readyMax {
		c.dataFrame(s, message)
		of.free()
		return
	}
	if of == nil {
		of = newBuffer()
		of.b = append(of.b, message...)
		message = of.b
	}
	s.sending, s.sendingOf = message, of
	c.out.pending += len(message)
	c.queue(s)
	c.takeTurns()
}

func (c *conn) dataFrame(s *stream, b []byte) {
	c.out.makeRoom(frameHeaderBytes + len(b))
	c.out.ready = appendFrameHeader(c.out.ready, len(b), http2.FrameData, 0, s.id)
	c.out.ready = append(c.out.ready, b...)
	c.out.window -= len(b)
	s.sendWindow -= len(b)
	c.sent()
}

// queue puts s into the line if it has something to send. c.mu is held.
func (c *conn) queue(s *stream) {
	if s.queued || len(s.sending) == 0 {
		return
	}
	s.queued = true
	if c.out.last == nil {
		c.out.first = s
	} else {
		c.out.last.next = s
	}
	c.out.last = s
}

// takeTurns lets the streams in line send a frame each, over and over, until
// enough is ready or nobody can send. c.mu is held.
func (c *conn) takeTurns() {
	for c.out.first != nil && c.out.window > 0 && len(c.out.ready) < readyMax {
		s := c.out.first
		if c.out.first = s.next; c.out.first == nil {
			c.out.last = nil
		}
		s.queued, s.next = false, nil
		n := min(len(s.sending), frameBytesMax, c.out.window, s.sendWindow)
		if n <= 0 || s.closed {
			continue // until its window grows, or for ever
		}
		c.dataFrame(s, s.sending[:n])
		c.out.pending -= n
		if s.sending = s.sending[n:]; len(s.sending) > 0 {
			c.queue(s)
			continue
		}
		s.dropSending()
		if s.answered {
			c.sendTrailer(s)
		} else {
			s.wake()
		}
	}
}

// dropSending forgets the message that was being sent. c.mu is held.
func (s *stream) dropSending() {
	s.c.out.pending -= len(s.sending)
	s.sendingOf.free()
	s.sending, s.sendingOf = nil, nil
}

// flush writes what is ready, unless somebody does already. It does not wait:
// what the socket does not take at once is left to a worker.
func (c *conn) flush() {
	c.mu.Lock()
	for !c.out.writing && c.canWrite() {
		c.out.writing = true
		if c.prompt == nil {
			c.startDrain()
			break
		}
		b := c.out.takeReady()
		c.mu.Unlock()
		n, err := c.prompt.TryWrite(b)
		c.mu.Lock()
		if err != nil {
			c.writeFailed()
			break
		}
		if n < len(b) {
			c.out.rest = b[n:]
			c.startDrain()
			break
		}
		c.written()
	}
	c.mu.Unlock()
}

// flushSoon flushes, but lets others that are about to answer do so first.
func (c *conn) flushSoon() {
	if c.handling.Load() > 0 {
		runtime.Gosched()
	}
	c.flush()
}

func (c *conn) canWrite() bool { return len(c.out.ready) > 0 && !c.out.failed }

func (o *output) takeReady() []byte {
	o.taken, o.ready, o.spare = o.ready, o.spare[:0], nil
	return o.taken
}

// makeRoom makes room in ready, in a large buffer if a small one does not do.
func (o *output) makeRoom(bytes int) {
	after := len(o.ready) + bytes
	if after <= cap(o.ready) || after <= smallBytes || after > largeBytes {
		return
	}
	small := o.ready
	o.ready = append(largeBuffers.Get().(*largeBuffer)[:0], small...)
	o.keep(small)
}

// keep keeps a buffer for later, or lets others have it: large ones are for
// those who are sending.
func (o *output) keep(b []byte) {
	switch {
	case cap(b) == largeBytes:
		largeBuffers.Put((*largeBuffer)(b[:largeBytes]))
	case cap(b) <= smallBytes && o.spare == nil:
		o.spare = b[:0]
	}
}

// written is told when all that was taken is written. c.mu is held.
func (c *conn) written() {
	c.out.writing = false
	c.out.keep(c.out.taken)
	c.out.taken = nil
	c.takeTurns()
	c.room.Broadcast()
}

func (c *conn) writeFailed() {
	c.out.writing, c.out.failed = false, true
	c.out.ready, c.out.taken, c.out.rest = nil, nil, nil
	c.room.Broadcast()
	c.nc.Close() // the reader ends the rest
}

// startDrain is called by who has set writing.
func (c *conn) startDrain() {
	c.running.Add(1)
	c.server.workers.start((*drain)(c))
}

// drain is a connection whose output is written by somebody who may wait.
type drain conn

func (d *drain) run(*worker) {
	c := (*conn)(d)
	defer c.running.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if !c.out.failed && c.out.rest == nil && len(c.out.ready) < readyMax && c.handling.Load() > 0 {
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
		b := c.out.rest
		if c.out.rest = nil; b == nil {
			if !c.canWrite() {
				break
			}
			b = c.out.takeReady()
		}
		c.mu.Unlock()
		c.nc.SetWriteDeadline(time.Now().Add(c.options.WriteTimeout))
		_, err := c.nc.Write(b)
		c.mu.Lock()
		if err != nil {
			c.writeFailed()
			return
		}
		c.written()
		c.out.writing = true
	}
	c.nc.SetWriteDeadline(time.Time{})
	c.out.writing = false
	c.room.Broadcast()
}
