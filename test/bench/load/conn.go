package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/internal/histogram"
	"golang.org/x/net/http2"
)

const (
	frameHeader  = 9
	frameMax     = 16384   // what every peer takes, and all that we announce
	streamWindow = 4 << 20 // larger than any answer: a page arrives without waiting for us
	connWindow   = 16 << 20
	windowAtOpen = 65535 // of a connection and its streams before anybody speaks

	// patience is how long a connection waits for the next byte while requests
	// are under way; a server gives up on a request long before.
	patience = 30 * time.Second
)

// conn is one HTTP/2 connection with its callers. One goroutine owns it: it
// reads, answers whatever came, and writes everything that became ready in one
// system call.
type conn struct {
	run *run
	net net.Conn

	in         []byte // in[parsed:filled] is read but not parsed
	parsed     int
	filled     int
	out        []byte
	asked      []*stream // their requests are in out: they start when it is written
	now        time.Time // when the last read returned
	patientTil time.Time

	headers headerWriter
	answers *headerReader
	block   []byte  // of a header block that continues in the next frame
	blockOf *stream // the stream it belongs to; nil with block nil: none
	blockIs http2.Flags

	streams  []stream
	byID     []*stream // at id/2 & len-1
	nextID   uint32
	inFlight int
	blocked  []*stream // wait for the peer to widen a window

	settled       bool  // the peer's first SETTINGS came
	window        int64 // how much the peer lets us send
	initialWindow int64 // what a new stream lets us send
	peerFrameMax  int
	peerStreams   uint32
	unreturned    uint32 // bytes received and not yet given back to the peer's window

	// Counted while the run measures.
	done    int64
	errors  int64
	first   error
	latency histogram.Histogram
	told    atomic.Int64 // by talks, from their beginning on
}

// stream is the place of one caller, and carries one request after another,
// each under an id of its own; or it is a talk, and one call.
type stream struct {
	caller  Caller
	talk    Talk // nil: there is a caller
	id      uint32
	started time.Time

	rest     []byte // of the request, not yet sent
	buffer   []byte // backs rest
	window   int64
	received uint32 // bytes of the answer not yet given back to the peer's window

	message []byte // an answer that comes in several frames
	judged  bool
	wrong   error
	outcome outcome
}

func dial(r *run, number int) (*conn, error) {
	addr := r.options.addr(number)
	nc, err := connect(addr, r.options.TLS)
	if err != nil {
		return nil, err
	}
	c := &conn{
		run:           r,
		net:           nc,
		in:            make([]byte, min(256, 64*r.options.Streams)<<10),
		answers:       newHeaderReader(),
		streams:       make([]stream, r.options.Streams),
		nextID:        1,
		window:        windowAtOpen,
		initialWindow: windowAtOpen,
		peerFrameMax:  frameMax,
		peerStreams:   ^uint32(0),
	}
	c.headers.authority = addr
	c.headers.https = r.options.TLS != nil
	places := 4
	for places < 4*len(c.streams) {
		places *= 2
	}
	c.byID = make([]*stream, places)
	for i := range c.streams {
		if at := number*len(c.streams) + i; r.talks != nil {
			c.streams[i].talk = r.talk(at)
		} else {
			c.streams[i].caller = r.caller(at)
		}
	}

	c.out = append(c.out, http2.ClientPreface...)
	c.frame(http2.FrameSettings, 0, 0, 12)
	c.setting(http2.SettingEnablePush, 0)
	c.setting(http2.SettingInitialWindowSize, streamWindow)
	c.widen(0, connWindow-windowAtOpen)
	if err := c.flush(); err != nil {
		nc.Close()
		return nil, err
	}
	for !c.settled {
		if err := c.receive(); err != nil {
			nc.Close()
			return nil, fmt.Errorf("load: greet %s: %w", addr, err)
		}
	}
	if err := c.flush(); err != nil {
		nc.Close()
		return nil, err
	}
	if c.peerStreams < uint32(len(c.streams)) {
		nc.Close()
		return nil, fmt.Errorf("load: the server allows %d streams on a connection, the load wants %d", c.peerStreams, len(c.streams))
	}
	return c, nil
}

// loop asks for every caller until the run lets no more requests begin, and
// returns when all answers are in; or it talks until the run closes the
// connection. A connection that breaks fails the requests that were under way
// on it.
func (c *conn) loop() {
	c.now = time.Now()
	for i := range c.streams {
		if s := &c.streams[i]; s.talk != nil {
			c.open(s)
		} else {
			c.ask(s)
		}
	}
	err := c.flush()
	for err == nil && c.inFlight > 0 {
		if err = c.receive(); err == nil {
			err = c.flush()
		}
	}
	if err != nil && !(c.run.talks != nil && c.run.ended.Load()) {
		c.fail(int64(c.inFlight), err)
	}
}

func (c *conn) fail(requests int64, err error) {
	c.errors += requests
	if c.first == nil {
		c.first = err
	}
}

// ask begins the caller's next request, if the run still takes one.
func (c *conn) ask(s *stream) {
	turn, ok := c.run.turn()
	if !ok {
		return
	}
	method, body := s.caller.Ask(append(s.buffer[:0], 0, 0, 0, 0, 0), turn)
	binary.BigEndian.PutUint32(body[1:], uint32(len(body)-5))
	s.buffer, s.rest = body, body
	c.begin(s, method)
	c.asked = append(c.asked, s)
	if !c.push(s) {
		c.blocked = append(c.blocked, s)
	}
}

// begin gives the stream a new id and starts a call.
func (c *conn) begin(s *stream, method Method) {
	id := c.nextID
	for c.byID[c.place(id)] != nil {
		id += 2 // ids may be left out, and this one's place is still in use
	}
	c.nextID = id + 2
	c.byID[c.place(id)] = s
	c.inFlight++
	s.id = id
	s.window, s.received = c.initialWindow, 0
	s.message, s.judged, s.wrong, s.outcome = s.message[:0], false, nil, outcome{}

	head := len(c.out)
	c.frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, 0)
	c.out = c.headers.append(c.out, method)
	putLength(c.out[head:], len(c.out)-head-frameHeader)
}

// push sends what the windows allow; false when something is left.
func (c *conn) push(s *stream) bool {
	for len(s.rest) > 0 {
		n := min(len(s.rest), c.peerFrameMax, int(max(c.window, 0)), int(max(s.window, 0)))
		if n == 0 {
			return false
		}
		var flags http2.Flags
		if n == len(s.rest) && s.talk == nil {
			flags = http2.FlagDataEndStream
		}
		c.frame(http2.FrameData, flags, s.id, n)
		c.out = append(c.out, s.rest[:n]...)
		s.rest = s.rest[n:]
		c.window -= int64(n)
		s.window -= int64(n)
	}
	return true
}

// unblock tries again what waited for a window.
func (c *conn) unblock() {
	waiting := c.blocked
	c.blocked = c.blocked[:0]
	for _, s := range waiting {
		if !c.push(s) {
			c.blocked = append(c.blocked, s)
		}
	}
}

// finish closes the books on the stream's request and lets its caller go on.
func (c *conn) finish(s *stream, err error) {
	c.byID[c.place(s.id)] = nil
	c.inFlight--
	if c.abandon(s) {
		// Answered before it was heard out: close our side too.
		c.frame(http2.FrameRSTStream, 0, s.id, 4)
		c.out = binary.BigEndian.AppendUint32(c.out, uint32(http2.ErrCodeCancel))
	}
	if err == nil {
		err = s.wrong
	}
	if s.talk != nil {
		if err == nil {
			err = errors.New("the server ended the call")
		}
		c.fail(1, err)
		return
	}
	if err == nil && !s.judged {
		err = errors.New("success without an answer")
	}
	switch {
	case err != nil:
		c.fail(1, err)
	case c.run.measuring.Load():
		c.done++
		c.latency.Add(c.now.Sub(s.started))
	}
	c.ask(s)
}

// abandon drops what of the request is not yet sent; false when all of it was.
func (c *conn) abandon(s *stream) bool {
	if len(s.rest) == 0 {
		return false
	}
	s.rest = nil
	c.blocked = slices.DeleteFunc(c.blocked, func(b *stream) bool { return b == s })
	return true
}

// flush writes everything that is ready.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	if len(c.asked) > 0 {
		now := time.Now()
		for _, s := range c.asked {
			s.started = now
		}
		c.asked = c.asked[:0]
	}
	_, err := c.net.Write(c.out)
	c.out = c.out[:0]
	return err
}

// receive reads once and handles every frame that is complete.
func (c *conn) receive() error {
	if c.parsed > 0 && len(c.in)-c.filled < frameMax+frameHeader {
		c.filled = copy(c.in, c.in[c.parsed:c.filled])
		c.parsed = 0
	}
	if now := time.Now(); c.run.talks == nil && now.After(c.patientTil) {
		// Moved once a second, not with each read: a deadline costs a timer.
		c.patientTil = now.Add(time.Second)
		if err := c.net.SetDeadline(now.Add(patience)); err != nil {
			return err
		}
	}
	n, err := c.net.Read(c.in[c.filled:])
	c.filled += n
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the server closed the connection")
		}
		return err
	}
	c.now = time.Now()

	for c.filled-c.parsed >= frameHeader {
		head := c.in[c.parsed:]
		length := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
		if length > frameMax {
			return fmt.Errorf("frame of %d bytes, %d are allowed", length, frameMax)
		}
		if c.filled-c.parsed < frameHeader+length {
			break
		}
		c.parsed += frameHeader + length
		id := binary.BigEndian.Uint32(head[5:]) & (1<<31 - 1)
		if err := c.handle(http2.FrameType(head[3]), http2.Flags(head[4]), id, head[frameHeader:frameHeader+length]); err != nil {
			return err
		}
	}
	if c.parsed == c.filled {
		c.parsed, c.filled = 0, 0
	}
	return nil
}

var errShortFrame = errors.New("a frame is shorter than its kind must be")

func (c *conn) handle(kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) error {
	if (c.block != nil) != (kind == http2.FrameContinuation) {
		return errors.New("a header block is not followed by its continuation")
	}
	switch kind {
	case http2.FrameData:
		return c.onData(flags, id, payload)
	case http2.FrameHeaders:
		payload, err := unpad(flags, payload)
		if err != nil {
			return err
		}
		if flags.Has(http2.FlagHeadersPriority) {
			if len(payload) < 5 {
				return errShortFrame
			}
			payload = payload[5:]
		}
		return c.onBlock(flags, c.find(id), payload)
	case http2.FrameContinuation:
		block := append(c.block, payload...)
		s, began := c.blockOf, c.blockIs
		c.block, c.blockOf = nil, nil
		return c.onBlock(began&^http2.FlagHeadersEndHeaders|flags&http2.FlagContinuationEndHeaders, s, block)
	case http2.FrameRSTStream:
		if len(payload) < 4 {
			return errShortFrame
		}
		if s := c.find(id); s != nil {
			c.abandon(s)
			c.finish(s, fmt.Errorf("the server reset the stream: %v", http2.ErrCode(binary.BigEndian.Uint32(payload))))
		}
	case http2.FrameSettings:
		if !flags.Has(http2.FlagSettingsAck) {
			return c.onSettings(payload)
		}
	case http2.FramePing:
		if !flags.Has(http2.FlagPingAck) {
			c.frame(http2.FramePing, http2.FlagPingAck, 0, len(payload))
			c.out = append(c.out, payload...)
		}
	case http2.FrameGoAway:
		if len(payload) < 8 {
			return errShortFrame
		}
		return fmt.Errorf("the server went away: %v %s", http2.ErrCode(binary.BigEndian.Uint32(payload[4:])), payload[8:])
	case http2.FrameWindowUpdate:
		if len(payload) < 4 {
			return errShortFrame
		}
		more := int64(binary.BigEndian.Uint32(payload) & (1<<31 - 1))
		if id == 0 {
			c.window += more
		} else if s := c.find(id); s != nil {
			s.window += more
		}
		if len(c.blocked) > 0 {
			c.unblock()
		}
	}
	return nil // PUSH_PROMISE is refused by our settings; unknown kinds are to be ignored
}

func unpad(flags http2.Flags, payload []byte) ([]byte, error) {
	if !flags.Has(http2.FlagDataPadded) {
		return payload, nil
	}
	if len(payload) == 0 || int(payload[0]) >= len(payload) {
		return nil, errShortFrame
	}
	return payload[1 : len(payload)-int(payload[0])], nil
}

func (c *conn) onData(flags http2.Flags, id uint32, payload []byte) error {
	c.unreturned += uint32(len(payload))
	if c.unreturned >= connWindow/2 {
		c.widen(0, c.unreturned)
		c.unreturned = 0
	}
	s := c.find(id)
	if s == nil {
		return nil
	}
	s.received += uint32(len(payload))
	data, err := unpad(flags, payload)
	if err != nil {
		return err
	}

	if s.talk != nil {
		if err := c.hear(s, data); err != nil {
			return err
		}
		data = nil
	}
	// The usual answer is whole in its frame and is judged where it lies.
	if len(data) > 0 && len(s.message) > 0 {
		s.message = append(s.message, data...)
		data = s.message
	}
	switch {
	case len(data) == 0:
	case s.judged:
		s.wrong = errors.New("more than one answer to one request")
	case len(data) < 5 || len(data)-5 < int(binary.BigEndian.Uint32(data[1:])):
		if len(s.message) == 0 {
			s.message = append(s.message, data...)
		}
	case data[0] != 0:
		return errors.New("the answer is compressed, which was not asked for")
	case len(data)-5 > int(binary.BigEndian.Uint32(data[1:])):
		s.judged, s.wrong = true, errors.New("more than one answer to one request")
	default:
		s.judged, s.wrong = true, s.caller.Judge(data[5:])
		s.message = s.message[:0]
	}

	switch {
	case flags.Has(http2.FlagDataEndStream):
		c.finish(s, s.outcome.err())
	case s.received >= streamWindow/2:
		c.widen(id, s.received)
		s.received = 0
	}
	return nil
}

// onBlock reads a header block, or keeps it until its continuation came. The
// stream may be nil: the table of header fields must see the block all the same.
func (c *conn) onBlock(flags http2.Flags, s *stream, block []byte) error {
	if !flags.Has(http2.FlagHeadersEndHeaders) {
		c.block, c.blockOf, c.blockIs = append([]byte{}, block...), s, flags
		return nil
	}
	var have outcome
	if s != nil {
		have = s.outcome
	}
	have, err := c.answers.read(block, have)
	if err != nil || s == nil {
		return err
	}
	s.outcome = have
	if flags.Has(http2.FlagHeadersEndStream) {
		c.finish(s, have.err())
	}
	return nil
}

func (c *conn) onSettings(payload []byte) error {
	for ; len(payload) >= 6; payload = payload[6:] {
		value := binary.BigEndian.Uint32(payload[2:])
		switch http2.SettingID(binary.BigEndian.Uint16(payload)) {
		case http2.SettingHeaderTableSize:
			c.headers.tableSize(value)
		case http2.SettingMaxConcurrentStreams:
			c.peerStreams = value
		case http2.SettingMaxFrameSize:
			c.peerFrameMax = int(value)
		case http2.SettingInitialWindowSize:
			// Also for the streams under way.
			for i := range c.streams {
				c.streams[i].window += int64(value) - c.initialWindow
			}
			c.initialWindow = int64(value)
		}
	}
	c.settled = true
	c.frame(http2.FrameSettings, http2.FlagSettingsAck, 0, 0)
	c.unblock()
	return nil
}

// place of an id in byID.
func (c *conn) place(id uint32) int { return int(id>>1) & (len(c.byID) - 1) }

func (c *conn) find(id uint32) *stream {
	if s := c.byID[c.place(id)]; s != nil && s.id == id {
		return s
	}
	return nil
}

// frame appends the head of a frame whose payload the caller appends.
func (c *conn) frame(kind http2.FrameType, flags http2.Flags, id uint32, length int) {
	c.out = append(c.out, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	c.out = binary.BigEndian.AppendUint32(c.out, id)
}

func putLength(frame []byte, n int) {
	frame[0], frame[1], frame[2] = byte(n>>16), byte(n>>8), byte(n)
}

func (c *conn) setting(id http2.SettingID, value uint32) {
	c.out = binary.BigEndian.AppendUint16(c.out, uint16(id))
	c.out = binary.BigEndian.AppendUint32(c.out, value)
}

// widen lets the peer send n more bytes on a stream, or, with id 0, on the
// connection.
func (c *conn) widen(id, n uint32) {
	c.frame(http2.FrameWindowUpdate, 0, id, 4)
	c.out = binary.BigEndian.AppendUint32(c.out, n)
}
