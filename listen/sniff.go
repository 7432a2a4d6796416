package listen

import (
	"encoding/binary"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// protocol is what a caller speaks.
type protocol int

const (
	unknown protocol = iota // so far
	httpProtocol
	grpcProtocol
	memberProtocol
)

const (
	sniffMax      = 64 << 10 // bytes looked at, and kept, before a caller must have asked something
	frameHeader   = 9
	frameBytesMax = 16 << 10 // what a caller may send before it is told otherwise
	settingsBytes = 6        // each
	pingBytes     = 8

	readMin = 512 // room for what is read at once
)

// sniffer tells what a caller speaks from its first bytes. It is pure: bytes
// go in by feed, and next says what is known and what to answer.
//
// An HTTP/2 caller is known by its first request. Many ask nothing before they
// have seen the server's settings, and some not for hours after that, so the
// sniffer must be a server long enough to be asked: it sends empty settings,
// which leave everything at its default, and answers pings.
type sniffer struct {
	kept   []byte  // to be replayed to whoever serves the caller
	buffer *[]byte // lent for it
	at     int     // kept[at:] was not looked at yet
	pre    bool    // the preface was seen
	any    bool    // a frame was seen

	toldSettings bool // ours were sent
	ackSeen      bool // and the caller has acknowledged them

	block   []byte // header block of the first request, so far
	inBlock bool
	ended   bool // unreadable or too long: let HTTP refuse it
}

// keptBuffers are what sniffers keep bytes in: many callers come at once, and
// each needs one for a moment.
var keptBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, 2*readMin)
	return &b
}}

func newSniffer() *sniffer {
	b := keptBuffers.Get().(*[]byte)
	return &sniffer{kept: *b, buffer: b}
}

// room is where to put what the caller says next; feed takes in the first n
// bytes of it.
func (s *sniffer) room() []byte {
	s.kept = slices.Grow(s.kept, readMin)
	return s.kept[len(s.kept):cap(s.kept)]
}

func (s *sniffer) feed(n int) { s.kept = s.kept[:len(s.kept)+n] }

// idle tells whether the caller stands between two frames and owes us nothing.
func (s *sniffer) idle() bool { return s.any && s.at == len(s.kept) && !s.inBlock }

// next looks at what was fed. answer, if any, must be sent to the caller
// before more is read.
func (s *sniffer) next() (p protocol, answer []byte) {
	if !s.pre {
		n := min(len(s.kept), len(http2.ClientPreface))
		switch {
		case string(s.kept[:n]) != http2.ClientPreface[:n]:
			return httpProtocol, nil
		case n < len(http2.ClientPreface):
			return unknown, nil
		}
		s.pre, s.at = true, n
	}
	for p == unknown {
		f, ok := s.frame()
		if !ok {
			break
		}
		p = s.look(f, &answer)
	}
	if p != unknown {
		return p, answer
	}
	if len(s.kept) > sniffMax {
		return httpProtocol, answer
	}
	if s.idle() && !s.toldSettings {
		s.toldSettings = true
		answer = append([]byte{0, 0, 0, byte(http2.FrameSettings), 0, 0, 0, 0, 0}, answer...)
	}
	return unknown, answer
}

// frame is one HTTP/2 frame inside kept.
type frame struct {
	kind    http2.FrameType
	flags   http2.Flags
	payload []byte
	size    int // with its header
}

// frame cuts the next whole frame.
func (s *sniffer) frame() (frame, bool) {
	b := s.kept[s.at:]
	if len(b) < frameHeader {
		return frame{}, false
	}
	length := int(binary.BigEndian.Uint32(b) >> 8)
	if length > frameBytesMax {
		s.ended = true
		return frame{}, true
	}
	if len(b) < frameHeader+length {
		return frame{}, false
	}
	return frame{http2.FrameType(b[3]), http2.Flags(b[4]), b[frameHeader : frameHeader+length], frameHeader + length}, true
}

// look decides by one frame, and steps over it.
func (s *sniffer) look(f frame, answer *[]byte) protocol {
	if s.ended || s.inBlock != (f.kind == http2.FrameContinuation) || !s.any && f.kind != http2.FrameSettings {
		return httpProtocol // breaks the rules; whoever serves HTTP/2 knows how to say so
	}
	s.any = true
	switch f.kind {
	case http2.FrameHeaders:
		fragment, ok := headerFragment(f)
		if !ok {
			return httpProtocol
		}
		s.block = append(s.block, fragment...)
		s.inBlock = true
	case http2.FrameContinuation:
		s.block = append(s.block, f.payload...)
	case http2.FrameSettings:
		ack := f.flags.Has(http2.FlagSettingsAck)
		if len(f.payload)%settingsBytes != 0 || ack && len(f.payload) > 0 {
			return httpProtocol
		}
		if ack && s.toldSettings && !s.ackSeen {
			s.ackSeen = true
			s.drop(f)
			return unknown
		}
	case http2.FramePing:
		if f.flags.Has(http2.FlagPingAck) || len(f.payload) != pingBytes {
			return httpProtocol
		}
		*answer = append(*answer, 0, 0, pingBytes, byte(http2.FramePing), byte(http2.FlagPingAck), 0, 0, 0, 0)
		*answer = append(*answer, f.payload...)
		s.drop(f)
		return unknown
	case http2.FrameData, http2.FrameRSTStream, http2.FrameGoAway, http2.FramePushPromise:
		return httpProtocol
	}
	s.at += f.size
	if s.inBlock && f.flags.Has(http2.FlagHeadersEndHeaders) {
		return requestProtocol(s.block)
	}
	return unknown
}

// drop takes a frame that was answered here out of what will be replayed.
func (s *sniffer) drop(f frame) {
	s.kept = append(s.kept[:s.at], s.kept[s.at+f.size:]...)
}

// headerFragment returns the payload without padding and priority.
func headerFragment(f frame) ([]byte, bool) {
	b := f.payload
	padding := 0
	if f.flags.Has(http2.FlagHeadersPadded) {
		if len(b) == 0 {
			return nil, false
		}
		padding, b = int(b[0]), b[1:]
	}
	if f.flags.Has(http2.FlagHeadersPriority) {
		if len(b) < 5 {
			return nil, false
		}
		b = b[5:]
	}
	if padding > len(b) {
		return nil, false
	}
	return b[:len(b)-padding], true
}

// requestProtocol reads a whole header block. The content type decides: it is
// what makes a request gRPC.
func requestProtocol(block []byte) protocol {
	d := decoders.Get().(*decoder)
	d.found = httpProtocol
	if _, err := d.Write(block); err != nil || d.Close() != nil {
		return httpProtocol
	}
	d.SetMaxDynamicTableSize(0) // forget
	d.SetMaxDynamicTableSize(tableBytes)
	found := d.found
	decoders.Put(d) // it may be another's from here on
	return found
}

const tableBytes = 4096 // of headers, as the caller must assume of us

// decoder reads one header block, to tell the protocol.
type decoder struct {
	*hpack.Decoder
	found protocol
}

var decoders = sync.Pool{New: func() any {
	d := &decoder{}
	d.Decoder = hpack.NewDecoder(tableBytes, func(field hpack.HeaderField) {
		if field.Name == "content-type" && strings.HasPrefix(field.Value, "application/grpc") {
			d.found = grpcProtocol
		}
	})
	d.SetMaxStringLength(sniffMax)
	return d
}}

// ackFilter takes the acknowledgement of the sniffer's settings out of what
// the caller sends later: a server that never sent those would end the
// connection over it.
type ackFilter struct {
	skip int    // payload bytes until the next frame header
	held []byte // of a frame header that is not whole yet
	done bool
}

// pass appends to out what of b is not the acknowledgement.
func (f *ackFilter) pass(out, b []byte) []byte {
	for len(b) > 0 && !f.done {
		if f.skip > 0 {
			n := min(f.skip, len(b))
			out, b, f.skip = append(out, b[:n]...), b[n:], f.skip-n
			continue
		}
		n := min(frameHeader-len(f.held), len(b))
		f.held, b = append(f.held, b[:n]...), b[n:]
		if len(f.held) < frameHeader {
			break
		}
		f.skip = int(binary.BigEndian.Uint32(f.held) >> 8)
		if f.skip == 0 && http2.FrameType(f.held[3]) == http2.FrameSettings && http2.Flags(f.held[4]).Has(http2.FlagSettingsAck) {
			f.done = true
		} else {
			out = append(out, f.held...)
		}
		f.held = f.held[:0]
	}
	return append(out, b...)
}
