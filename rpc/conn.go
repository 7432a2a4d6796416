package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	tableBytes    = 4096 // of the table that clients compress their headers with
	lingerTimeout = time.Second

	// Calls at once, where there is no limit.
	streamsMax = 1 << 17

	// Calls that their clients have given up, but whose handlers still run. A
	// client with so many of them is refused more.
	abandonedMax = 1000

	// Frames that ask for nothing, between two that do. Nobody sane sends many.
	tiresomeMax = 10_000
)

// conn is one connection.
type conn struct {
	server  *Server
	options *Options

	// Immutable after the handshake.
	nc     net.Conn // set with mu held
	prompt prompt   // nc, if it can be asked for what needs no waiting; or nil
	peer   peer.Peer
	born   time.Time

	// Owned by the reader.
	in       *intake // nil: nothing to read
	lend     func() []byte
	giveBack func()
	first    [1]byte // is read before an intake is borrowed, where only reading can wait
	rests    bool    // waits for a client that has been silent
	decoder  hpack.Decoder
	known    []knownBlock
	head     *head        // of the last request
	gathered []*gathering // that have not begun

	lastRead atomic.Int64 // when the client was heard of, in ns since born
	handling atomic.Int32 // unary calls on workers
	running  sync.WaitGroup

	mu   sync.Mutex
	room sync.Cond // with mu: the client has read something, or never will

	// Guarded by mu.
	out       output
	calls     map[uint32]*stream
	abandoned int
	lastID    uint32 // of the client's streams
	gone      gone
	tiresome  int
	keep      keep

	receiveWindow int // the client may send so much
	grantsLeft    int
	wantGrant     []*stream // in the order of asking

	established bool
	left        bool // the client was told the last stream that counts
	closing     bool // nothing that comes now counts
	ended       bool
}

// prompt is a connection that can be asked for what needs no waiting.
type prompt interface {
	// TryWrite writes what is taken at once, which may be nothing.
	TryWrite(p []byte) (int, error)

	// ReadLent reads into a buffer that it is lent when there may be something
	// to read, and gives back before it waits.
	ReadLent(lend func() []byte, giveBack func()) (int, error)

	CloseWrite() error
}

// connError ends a connection, and is told to the client.
type connError struct {
	code http2.ErrCode
	why  string
}

func (e connError) Error() string { return fmt.Sprintf("rpc: %s: %v", e.why, e.code) }

func protocolError(why string) error { return connError{http2.ErrCodeProtocol, why} }

func newConn(server *Server, nc net.Conn) *conn {
	o := &server.options
	c := &conn{server: server, options: o, nc: nc, born: time.Now(), calls: map[uint32]*stream{}}
	c.room.L = &c.mu
	c.lend, c.giveBack = c.borrowIntake, c.returnIntake
	c.receiveWindow = int(o.ConnectionWindowBytes)
	c.grantsLeft = o.GrantBytesMax
	c.out.window, c.out.streamWindow, c.out.headerListMax = initialWindow, initialWindow, math.MaxUint32

	c.decoder = *hpack.NewDecoder(tableBytes, c.field) // a part of c: small things that stay hold much of the heap
	c.decoder.SetMaxStringLength(int(o.HeaderBytesMax))
	return c
}

// serve greets the client and answers it.
func (c *conn) serve() {
	if c.handshake() != nil {
		c.end() // who never was a client is told nothing
		return
	}
	c.answerAll()
}

// answerAll answers the client until it leaves. When it has been silent for a
// while, another goroutine goes on: one that only waits needs less of a stack
// than one that has served, and idle clients are many.
func (c *conn) answerAll() {
	err := c.read()
	if errors.Is(err, errSilent) {
		go c.answerAll()
		return
	}
	c.farewell(err)
	c.end()
}

// handshake agrees with the client on who they are and how they talk.
func (c *conn) handshake() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.options.HandshakeTimeout)); err != nil {
		return err
	}
	c.peer.Addr, c.peer.LocalAddr = c.nc.RemoteAddr(), c.nc.LocalAddr()
	if c.options.Credentials != nil {
		nc, info, err := c.options.Credentials.ServerHandshake(c.nc)
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.nc = nc
		c.mu.Unlock()
		c.peer.AuthInfo = info
	}
	c.prompt, _ = c.nc.(prompt)

	c.mu.Lock()
	c.greet()
	c.mu.Unlock()

	preface := make([]byte, len(http2.ClientPreface))
	if err := c.awaitInput(); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.in, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		c.farewell(protocolError("bogus greeting"))
		return errors.New("rpc: bogus greeting")
	}
	return nil
}

// greet tells the client how it may talk.
func (c *conn) greet() {
	o := c.options
	settings := []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: o.HeaderBytesMax}}
	if o.ConcurrentStreamsMax != math.MaxUint32 {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: o.ConcurrentStreamsMax})
	}
	if o.StreamWindowBytes != initialWindow {
		settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: o.StreamWindowBytes})
	}
	c.out.settings(settings)
	if n := int(o.ConnectionWindowBytes) - initialWindow; n > 0 {
		c.out.windowUpdate(0, n)
	}
}

// read takes in frame after frame, until one is the last.
func (c *conn) read() error {
	for {
		if err := c.awaitInput(); err != nil {
			return err
		}
		header, err := c.in.framer.ReadFrameHeader()
		if err != nil {
			return err
		}
		f, err := c.in.framer.ReadFrameForHeader(header)
		if err != nil {
			// A broken frame with headers would leave the tables of headers
			// different on both sides: only here the rest can go on.
			var broken http2.StreamError
			if errors.As(err, &broken) && header.Type == http2.FrameWindowUpdate {
				err = c.brokenUpdate(broken)
			}
			if err != nil {
				return err
			}
			continue
		}
		if err := c.take(f); err != nil {
			return err
		}
	}
}

// take does what a frame asks for.
func (c *conn) take(f http2.Frame) error {
	if !c.established {
		if s, ok := f.(*http2.SettingsFrame); !ok || s.IsAck() {
			return protocolError("the first frame is no settings")
		}
	}
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.takeData(f)
	case *http2.HeadersFrame:
		if b, known := c.recall(f); known {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.takeHeaders(b)
		}
		c.in.block = block{open: true, stream: f.StreamID, end: f.StreamEnded(), fields: c.in.block.fields[:0]}
		c.in.block.malformed = f.HasPriority() && f.Priority.StreamDep == f.StreamID
		c.decoder.SetEmitEnabled(true)
		return c.takeFragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		if err := c.tire(); err != nil {
			return err
		}
		return c.takeFragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.RSTStreamFrame:
		return c.takeReset(f)
	case *http2.SettingsFrame:
		return c.takeSettings(f)
	case *http2.PingFrame:
		return c.takePing(f)
	case *http2.WindowUpdateFrame:
		return c.takeWindowUpdate(f)
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return protocolError("a stream depends on itself")
		}
	case *http2.PushPromiseFrame:
		return protocolError("clients do not push")
	}
	return c.tire() // priorities, farewells and what we do not know
}

// tire counts a frame that asks for nothing.
func (c *conn) tire() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tired()
}

func (c *conn) tired() error {
	if c.tiresome++; c.tiresome > tiresomeMax {
		return connError{http2.ErrCodeEnhanceYourCalm, "too many frames for nothing"}
	}
	return nil
}

// field takes in one field of a header block.
func (c *conn) field(f hpack.HeaderField) {
	if !c.in.block.add(f, c.options.HeaderBytesMax) {
		c.decoder.SetEmitEnabled(false)
	}
}

// takeFragment takes in a part of a header block. All of it must be decoded,
// wanted or not: later blocks refer to it.
func (c *conn) takeFragment(b []byte, last bool) error {
	c.in.block.bytes += len(b)
	_, err := c.decoder.Write(b)
	if errors.Is(err, hpack.ErrStringLength) || c.in.block.bytes > 2*int(c.options.HeaderBytesMax) {
		return connError{http2.ErrCodeEnhanceYourCalm, "headers are too large"}
	}
	if err == nil && last {
		err = c.decoder.Close()
	}
	if err != nil {
		return connError{http2.ErrCodeCompression, err.Error()}
	}
	if !last {
		return nil
	}
	c.in.block.open = false
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.takeHeaders(&c.in.block); err != nil {
		return err
	}
	c.remember(b, &c.in.block)
	return nil
}

// takeHeaders makes a call of a whole header block. c.mu is held.
func (c *conn) takeHeaders(b *block) error {
	if b.stream%2 == 0 {
		return protocolError("clients' streams are odd")
	}
	if b.stream <= c.lastID {
		return c.takeTrailers(b)
	}
	c.lastID = b.stream
	if c.left || c.closing {
		c.gone.add(b.stream, !b.end)
		return nil // as it was told
	}
	if b.tooLarge {
		c.refuse(b.stream, refuse(http.StatusRequestHeaderFieldsTooLarge, codes.ResourceExhausted,
			"grpc: received headers larger than max (%d)", c.options.HeaderBytesMax), b.end)
		return c.tired()
	}
	switch {
	case b.head != nil:
		c.head = b.head
	case c.head == nil:
		c.head = c.server.heads.read(b.fields)
	case !c.head.says(b.fields):
		c.head = readHead(b.fields)
	}
	h := c.head
	switch {
	case h.malformed || b.malformed || b.path == "" || b.end && h.contentLength > 0:
		c.reject(b, http2.ErrCodeProtocol)
		return c.tired()
	case h.refused != nil && c.server.anything == nil:
		c.refuse(b.stream, h.refused, b.end)
		return nil
	case !c.roomForCall():
		c.reject(b, http2.ErrCodeRefusedStream)
		return c.tired()
	}
	c.open(b, h)
	return nil
}

// reject resets a stream that does not become a call. c.mu is held.
func (c *conn) reject(b *block, code http2.ErrCode) {
	c.out.resetStream(b.stream, code)
	c.gone.add(b.stream, !b.end)
}

// roomForCall bounds what one client can make us hold.
func (c *conn) roomForCall() bool {
	return len(c.calls)+c.abandoned < int(min(c.options.ConcurrentStreamsMax, streamsMax)) &&
		c.abandoned < abandonedMax && c.out.pending < c.options.PendingBytesMax
}

// open begins a call. c.mu is held.
func (c *conn) open(b *block, h *head) {
	var deadline time.Time
	if b.timeout != "" {
		timeout, err := readTimeout(b.timeout)
		if err != nil {
			c.refuse(b.stream, refuse(http.StatusBadRequest, codes.Internal, "malformed grpc-timeout: %v", err), b.end)
			return
		}
		if timeout == 0 {
			c.refuse(b.stream, refuse(http.StatusOK, codes.DeadlineExceeded, "%v", context.DeadlineExceeded), b.end)
			return
		}
		deadline = time.Now().Add(timeout)
	}
	m, unknown := c.server.lookup(b.path)
	if m != nil && h.compressor == nil && h.encoding != "" && h.encoding != encoding.Identity {
		unknown = status.Newf(codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %q", h.encoding)
	}
	if unknown != nil {
		c.refuse(b.stream, &refusal{http.StatusOK, unknown}, b.end)
		return
	}

	s := &stream{
		c: c, id: b.stream, path: b.path, method: m, head: h, deadline: deadline,
		receivedAll: b.end, receiveWindow: int(c.options.StreamWindowBytes), sendWindow: c.out.streamWindow,
	}
	c.calls[s.id] = s
	if m.unary == nil {
		s.waiting = &waiting{}
		s.waiting.toReceive.L, s.waiting.toSend.L = &c.mu, &c.mu
		s.ending.Lock()
		s.watchDeadline() // its handler may wait for the client without looking at the context
		s.ending.Unlock()
		c.handle(s)
	} else if b.end {
		c.answer(s, nil, nil, errNoMessage)
	}
}

// takeTrailers ends what the client sends. c.mu is held.
func (c *conn) takeTrailers(b *block) error {
	s := c.calls[b.stream]
	if s == nil {
		switch early, known := c.gone.find(b.stream); {
		case !known:
			return protocolError("streams are opened in order")
		case !early:
			return connError{http2.ErrCodeStreamClosed, "headers on a closed stream"}
		}
		return c.tired() // they may have been under way when the call ended
	}
	switch {
	case s.receivedAll:
		c.resetCall(s, http2.ErrCodeStreamClosed)
		return c.tired()
	case !b.end || b.malformed || !wellFormedTrailers(b):
		c.resetCall(s, http2.ErrCodeProtocol)
		return c.tired()
	}
	s.receivedAll = true
	if !s.lengthKept() {
		c.resetCall(s, http2.ErrCodeProtocol)
		return c.tired()
	}
	if s.method.unary == nil {
		s.wake()
	} else if message := s.unread(); s.complete(message) {
		c.handle(s)
	}
	return nil
}

// complete tells whether message, all that the client of a unary call sent,
// can be handled. If not, the call has been answered. c.mu is held.
func (s *stream) complete(message []byte) bool {
	if err := s.onlyMessage(message); err != nil {
		s.c.answer(s, nil, nil, err)
		return false
	}
	return true
}

func (c *conn) takeData(f *http2.DataFrame) error {
	size, data := int(f.Length), f.Data()
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID > c.lastID {
		return protocolError("data on a stream that was not opened")
	}
	if c.receiveWindow -= size; c.receiveWindow < 0 {
		return connError{http2.ErrCodeFlowControl, "the connection's window is exceeded"}
	}
	// What is held is bounded by the streams' windows. If this one depended on
	// who takes what is received, a slow handler would stop all others.
	if used := int(c.options.ConnectionWindowBytes) - c.receiveWindow; used > int(c.options.ConnectionWindowBytes)/2 {
		c.receiveWindow += used
		c.out.windowUpdate(0, used)
	}

	s := c.calls[f.StreamID]
	if s == nil {
		if early, _ := c.gone.find(f.StreamID); !early {
			c.out.resetStream(f.StreamID, http2.ErrCodeStreamClosed)
		}
		return c.tired() // it may have been under way when the call ended
	}
	if c.closing {
		return c.tired()
	}
	if s.receivedAll {
		c.resetCall(s, http2.ErrCodeStreamClosed)
		return nil
	}
	if s.receiveWindow -= size; s.receiveWindow < 0 {
		c.resetCall(s, http2.ErrCodeFlowControl)
		return nil
	}
	s.receivedAll = f.StreamEnded()
	if s.receivedBytes += int64(len(data)); !s.lengthKept() {
		c.resetCall(s, http2.ErrCodeProtocol)
		return c.tired()
	}
	if len(data) == 0 && !s.receivedAll {
		return c.tired()
	}
	c.tiresome = 0
	if s.method.unary != nil {
		c.takeUnary(s, data)
		return nil
	}
	s.keep(data)
	s.wake()
	return nil
}

// takeUnary takes in a piece of the message of a unary call. c.mu is held, but
// not while a handler runs here.
func (c *conn) takeUnary(s *stream, data []byte) {
	if !s.receivedAll {
		s.keep(data)
		message := s.unread()
		if len(message) < prefixBytes {
			return
		}
		n, err := s.checkPrefix(message)
		switch {
		case err != nil:
			c.answer(s, nil, nil, err) // without waiting for the rest
		case len(message) > prefixBytes+n:
			c.answer(s, nil, nil, errManyMessages)
		default:
			c.wantWindow(s, prefixBytes+n-len(message))
		}
		return
	}

	// Mostly the message is a single frame, and can be read where it lies.
	if s.received != nil {
		s.keep(data)
		data = s.unread()
	}
	if !s.complete(data) {
		return
	}
	if f := &s.method.fast; f.Now != nil && data[0] == 0 && s.head.codec == nil && s.head.compressor == nil {
		if c.answerNow(s, f, data[prefixBytes:]) {
			return
		}
	}
	if s.received == nil {
		s.keep(data)
	}
	c.handle(s)
}

// answerNow answers a call, or has it join its party. It returns false if Handle
// has to. c.mu is held, but not while others look at the call.
func (c *conn) answerNow(s *stream, f *Fast, in []byte) bool {
	var g *gathering
	var party Party
	if f.Together != nil {
		g = c.party(f.Together)
		party = g.party
	}
	c.mu.Unlock()
	c.in.scratch.b = append(c.in.scratch.b[:0], make([]byte, prefixBytes)...)
	answer, then, err := f.Now(s, party, in, c.in.scratch.b)
	if then == Answered && err == nil {
		c.in.scratch.b = answer
		err = s.prefix(answer)
	}
	c.mu.Lock()
	switch then {
	case Alone:
		return false
	case Joined:
		g.join(s)
		s.dropReceived()
		return true
	}
	if err != nil {
		answer = nil
	}
	c.answer(s, answer, nil, err)
	if cap(c.in.scratch.b) > bufferMax {
		c.in.scratch.b = nil
	}
	return true
}

// handle lets a worker run the handler. c.mu is held.
func (c *conn) handle(s *stream) {
	if s.method.unary != nil {
		c.handling.Add(1)
	}
	s.handling = true
	c.running.Add(1)
	c.server.workers.start(s)
}

// wantWindow lets the client send the rest of a message, when there is room.
// c.mu is held.
func (c *conn) wantWindow(s *stream, rest int) {
	more := rest - s.receiveWindow
	if more <= 0 || s.wanted > 0 {
		return
	}
	// Who gets anything gets enough for the whole message: so whatever waits
	// here, those who were let in can go to the end and make room.
	if s.granted > 0 {
		c.give(s, more) // it has lost some to padding
		return
	}
	s.wanted = more
	c.wantGrant = append(c.wantGrant, s)
	c.giveGrants()
}

func (c *conn) give(s *stream, more int) {
	c.grantsLeft -= more
	s.granted += more
	s.receiveWindow += more
	c.out.windowUpdate(s.id, more)
}

func (c *conn) giveGrants() {
	for len(c.wantGrant) > 0 && c.wantGrant[0].wanted <= c.grantsLeft {
		s := c.wantGrant[0]
		c.wantGrant = slices.Delete(c.wantGrant, 0, 1)
		c.give(s, s.wanted)
		s.wanted = 0
	}
}

// returnGrant gives room to others, once a message was taken or never will be.
// c.mu is held.
func (c *conn) returnGrant(s *stream) {
	if s.wanted > 0 {
		at := slices.Index(c.wantGrant, s)
		c.wantGrant = slices.Delete(c.wantGrant, at, at+1)
	}
	c.grantsLeft += s.granted
	s.granted, s.wanted = 0, 0
	c.giveGrants()
}

// refill lets the client send on, after a handler has taken something. c.mu is
// held.
func (c *conn) refill(s *stream) {
	usual := int(c.options.StreamWindowBytes)
	more := usual + s.granted - len(s.unread()) - s.receiveWindow
	if more >= usual/2 && !s.receivedAll && !s.closed {
		s.receiveWindow += more
		c.out.windowUpdate(s.id, more)
	}
}

func (c *conn) takeReset(f *http2.RSTStreamFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID > c.lastID {
		return protocolError("reset of a stream that was not opened")
	}
	if s := c.calls[f.StreamID]; s != nil {
		s.receivedAll = true
		c.closeCall(s)
		return nil
	}
	return c.tired()
}

func (c *conn) takeSettings(f *http2.SettingsFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.established {
		c.establish()
	} else if err := c.tired(); err != nil {
		return err
	}
	if f.IsAck() {
		return nil
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingHeaderTableSize:
			c.out.encoder.limitTable(s.Val)
		case http2.SettingMaxHeaderListSize:
			c.out.headerListMax = s.Val
		case http2.SettingInitialWindowSize:
			return c.moveWindows(int(s.Val))
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.out.ready = appendFrameHeader(c.out.ready, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	c.takeTurns() // behind it: what is sent by the new settings
	return nil
}

// moveWindows changes the windows of all streams, also of open ones.
func (c *conn) moveWindows(to int) error {
	by := to - c.out.streamWindow
	c.out.streamWindow = to
	for _, s := range c.calls {
		if by > 0 && s.sendWindow > windowMax-by {
			return connError{http2.ErrCodeFlowControl, "a stream's window overflows"}
		}
		s.sendWindow += by
		c.queue(s)
	}
	return nil
}

func (c *conn) takeWindowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	by := int(f.Increment)
	if f.StreamID == 0 {
		if c.out.window > windowMax-by {
			return connError{http2.ErrCodeFlowControl, "the connection's window overflows"}
		}
		c.out.window += by
		c.takeTurns()
		return c.tired()
	}
	if f.StreamID > c.lastID {
		return protocolError("window of a stream that was not opened")
	}
	if s := c.calls[f.StreamID]; s != nil {
		if s.sendWindow > windowMax-by {
			c.resetCall(s, http2.ErrCodeFlowControl)
			return nil
		}
		s.sendWindow += by
		c.queue(s)
		c.takeTurns()
	}
	return c.tired()
}

// brokenUpdate ends the stream whose window was to grow by nothing.
func (c *conn) brokenUpdate(e http2.StreamError) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s := c.calls[e.StreamID]; {
	case s != nil:
		c.resetCall(s, e.Code)
	case e.StreamID > c.lastID:
		return protocolError("window of a stream that was not opened")
	default:
		c.out.resetStream(e.StreamID, e.Code)
	}
	return c.tired()
}

// answer ends a call with message and err, or with one of both, from the
// handler's side: of them goes out what still can. message is lent, unless of
// holds it. c.mu is held.
func (c *conn) answer(s *stream, message []byte, of *buffer, err error) {
	s.handling = false
	if s.abandoned {
		c.abandoned--
	}
	if s.closed || s.answered {
		of.free()
		return
	}
	if message != nil {
		if c.send(s, message, of); s.closed {
			return
		}
	}
	s.answered, s.status = true, statusOf(err)
	if len(s.sending) == 0 {
		c.sendTrailer(s)
	}
}

func statusOf(err error) *status.Status {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	return st
}

// resetCall ends a call on both sides. c.mu is held.
func (c *conn) resetCall(s *stream, code http2.ErrCode) {
	c.out.resetStream(s.id, code)
	c.closeCall(s)
}

// closeCall forgets a call. c.mu is held.
func (c *conn) closeCall(s *stream) {
	s.closed = true
	delete(c.calls, s.id)
	c.gone.add(s.id, !s.receivedAll)
	if s.handling {
		// Its handler is a burden until it has noticed.
		s.abandoned = true
		c.abandoned++
	}
	s.cancel(context.Canceled)
	s.dropSending()
	if s.granted+s.wanted > 0 {
		c.returnGrant(s)
	}
	if !s.handling {
		s.dropReceived()
	}
	s.wake()
	if len(c.calls) == 0 {
		c.idle()
	}
}

// abort ends the connection at once.
func (c *conn) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing = true
	c.nc.Close()
}

// farewell tells the client why the connection ends, if it does not know, and
// waits a little for it to read that: closing with something unread would take
// the last words back.
func (c *conn) farewell(err error) {
	var ours connError
	var theirs http2.ConnectionError
	var stream http2.StreamError
	switch {
	case errors.As(err, &ours):
	case errors.As(err, &theirs):
		ours = connError{http2.ErrCode(theirs), "broken frame"}
	case errors.As(err, &stream):
		ours = connError{stream.Code, "broken headers"}
	case errors.Is(err, http2.ErrFrameTooLarge):
		ours = connError{http2.ErrCodeFrameSize, "frame too large"}
	default:
		return
	}
	c.mu.Lock()
	c.closing = true
	c.closeCalls()
	c.out.goAway(c.lastID, ours.code, ours.why)
	c.mu.Unlock()
	c.flush()
	c.mu.Lock()
	if c.prompt != nil && !c.out.writing {
		_ = c.prompt.CloseWrite() // fails when there is nobody to tell
	}
	c.mu.Unlock()
	if c.nc.SetReadDeadline(time.Now().Add(lingerTimeout)) == nil {
		io.Copy(io.Discard, c.nc)
	}
}

func (c *conn) closeCalls() {
	for _, s := range c.calls {
		c.closeCall(s)
	}
}

// end closes what is left and waits for all who work for the connection.
func (c *conn) end() {
	defer c.server.running.Done()
	defer c.server.remove(c)
	c.dropInput()
	c.mu.Lock()
	c.closing, c.ended, c.out.failed = true, true, true
	c.keep.stop()
	c.closeCalls()
	c.room.Broadcast()
	c.mu.Unlock()
	c.nc.Close()
	c.beginParties()
	c.running.Wait()
}
