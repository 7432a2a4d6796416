package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Versions of the protocol that this package speaks.
const (
	versionMin = 1
	versionMax = 1
)

// magic begins both hellos. Its first byte begins neither TLS nor text, so
// that a shared port can tell its callers apart; its last three are changed by
// whatever takes the stream for text.
const magic = "\x8bkvpr\r\n\x00"

// FirstByte is what every caller begins with: the first of magic.
const FirstByte byte = 0x8b

const (
	helloHeadBytes = len(magic) + 4 + 4
	helloBytesMax  = 8192 // of the body
	textBytesMax   = 255  // of a text in it
	addressesMax   = 16
)

// hello is how both sides of a connection begin. The caller says who it is and
// whom it wants; the answer says who is there, and whether they will talk.
type hello struct {
	min, max    uint16
	lane        Lane
	refusal     Reason // in an answer; 0: welcome
	cluster     uint64
	from, to    uint64
	incarnation uint64
	attempt     uint64 // caller: numbers its connections; answer: the caller's
	membership  uint64 // index as of which the sender knows the members
	server      string // version of the server
	text        string // in an answer: what the refusal is about
	addresses   []string
}

// Reason says why a member does not talk to another.
type Reason uint8

const (
	WrongCluster Reason = 1 // the two belong to different clusters
	WrongMember  Reason = 2 // somebody else lives at this address
	Removed      Reason = 3 // the caller was a member once
	Unknown      Reason = 4 // the caller is no member, as far as is known
	Incompatible Reason = 5 // no version of the protocol is common
	Outdated     Reason = 6 // a newer run, or connection, of the caller has been here
	Crowded      Reason = 7 // too many callers
	Malformed    Reason = 8 // the hello makes no sense
)

func (r Reason) String() string {
	switch r {
	case WrongCluster:
		return "cluster ID mismatch"
	case WrongMember:
		return "another member lives at this address"
	case Removed:
		return "this member has been removed from the cluster"
	case Unknown:
		return "not a member of the cluster"
	case Incompatible:
		return "no common protocol version"
	case Outdated:
		return "outdated by a newer run of this member"
	case Crowded:
		return "too many connections"
	case Malformed:
		return "malformed hello"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// remedy says what the people who run the two members can do; "" where it is
// nothing.
func (r Reason) remedy() string {
	switch r {
	case WrongCluster:
		return "one of the two was founded with another token or other members, or has the data of a former cluster: find out which, and have it join with an empty data directory"
	case WrongMember:
		return "an address or a data directory was given to the wrong member: give each its own"
	case Removed:
		return "add it to the cluster again, with an empty data directory"
	case Incompatible:
		return "run versions that follow each other"
	}
	return ""
}

// explained are the attributes of a line about an error with another member.
func explained(key, member string, err error) []any {
	attrs := []any{key, member, "error", err}
	if r, ok := refused(err); ok && r.remedy() != "" {
		attrs = append(attrs, "remedy", r.remedy())
	}
	return attrs
}

// Refused is the error of a connection that one side did not want.
type Refused struct {
	Reason Reason
	Text   string // more of it; may be empty
}

func (r *Refused) Error() string {
	if r.Text == "" {
		return r.Reason.String()
	}
	return r.Reason.String() + ": " + r.Text
}

func refused(err error) (Reason, bool) {
	var r *Refused
	if errors.As(err, &r) {
		return r.Reason, true
	}
	return 0, false
}

func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), textBytesMax)]
	return append(append(b, uint8(len(s))), s...)
}

func (h *hello) append(b []byte) []byte {
	at := len(b)
	b = append(b, magic...)
	b = append(b, make([]byte, 8)...) // length and CRC
	b = binary.BigEndian.AppendUint16(b, h.min)
	b = binary.BigEndian.AppendUint16(b, h.max)
	b = append(b, uint8(h.lane), uint8(h.refusal))
	for _, u := range []uint64{h.cluster, h.from, h.to, h.incarnation, h.attempt, h.membership} {
		b = binary.BigEndian.AppendUint64(b, u)
	}
	b = appendText(b, h.server)
	b = appendText(b, h.text)
	// Addresses are dropped rather than cut.
	var kept []string
	for _, a := range h.addresses {
		if len(a) <= textBytesMax && len(kept) < addressesMax-1 {
			kept = append(kept, a)
		}
	}
	b = append(b, uint8(len(kept)))
	for _, a := range kept {
		b = appendText(b, a)
	}
	head, body := b[at:at+helloHeadBytes], b[at+helloHeadBytes:]
	binary.BigEndian.PutUint32(head[len(magic):], uint32(len(body)))
	binary.BigEndian.PutUint32(head[len(magic)+4:], helloSum(head, body))
	return b
}

// helloSum covers all but itself.
func helloSum(head, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:len(magic)+4], castagnoli), castagnoli, body)
}

var errNotPeer = errors.New("not a member of a kvorum cluster: wrong magic")

// readHello reads a hello. It allocates nothing before the magic is right.
func readHello(r io.Reader) (*hello, error) {
	var head [helloHeadBytes]byte
	for at := 0; at < len(head); {
		n, err := r.Read(head[at:])
		// Whoever speaks something else is told apart by the first byte, and
		// not waited for.
		known := min(at+n, len(magic))
		if string(head[:known]) != magic[:known] {
			return nil, errNotPeer
		}
		if at += n; err != nil && at < len(head) {
			return nil, fmt.Errorf("read hello: %w", noEOF(err))
		}
	}
	length := binary.BigEndian.Uint32(head[len(magic):])
	if length > helloBytesMax {
		return nil, fmt.Errorf("hello of %d bytes: %w", length, errTooLarge)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read hello: %w", noEOF(err))
	}
	if binary.BigEndian.Uint32(head[len(magic)+4:]) != helloSum(head[:], body) {
		return nil, fmt.Errorf("hello: %w", errFrame)
	}
	return parseHello(body)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

var errHello = errors.New("malformed hello")

// parseHello reads the body of a hello. What follows the fields it knows is
// for later versions to add.
func parseHello(b []byte) (*hello, error) {
	const fixed = 2 + 2 + 1 + 1 + 6*8
	if len(b) < fixed {
		return nil, errHello
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(b[6+8*i:]) }
	h := &hello{
		min: binary.BigEndian.Uint16(b), max: binary.BigEndian.Uint16(b[2:]),
		lane: Lane(b[4]), refusal: Reason(b[5]),
		cluster: u(0), from: u(1), to: u(2), incarnation: u(3), attempt: u(4), membership: u(5),
	}
	b = b[fixed:]
	var ok bool
	if h.server, b, ok = cutText(b); !ok {
		return nil, errHello
	}
	if h.text, b, ok = cutText(b); !ok {
		return nil, errHello
	}
	if len(b) == 0 || b[0] >= addressesMax {
		return nil, errHello
	}
	count := int(b[0])
	b = b[1:]
	for range count {
		var a string
		if a, b, ok = cutText(b); !ok {
			return nil, errHello
		}
		h.addresses = append(h.addresses, a)
	}
	return h, nil
}

func cutText(b []byte) (text string, rest []byte, ok bool) {
	if len(b) == 0 || int(b[0]) > len(b)-1 {
		return "", nil, false
	}
	end := 1 + int(b[0])
	return string(b[1:end]), b[end:], true
}
