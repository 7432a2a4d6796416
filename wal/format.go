package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// FORMAT.md says what these bytes mean. A change here needs a new version, and
// new golden files beside the old ones.
const (
	magic         = "kvorumWL"
	formatVersion = 1

	headerBytes      = 128
	frameHeaderBytes = 48
	frameAlign       = 8

	kindBatch = 1
	kindMark  = 2
	kindSeal  = 3

	segmentSuffix   = ".wal"
	spareSuffix     = ".spare"
	temporarySuffix = ".new"
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func (l *Log) path(number uint64, suffix string) string {
	return l.o.FS.PathJoin(l.o.Dir, fileName(number, suffix))
}

func fileName(number uint64, suffix string) string { return fmt.Sprintf("%016x%s", number, suffix) }

// parseFileName is the inverse of fileName.
func parseFileName(name, suffix string) (number uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 16, 64)
	return number, err == nil && name == fileName(number, suffix)
}

// A header begins a segment.
type header struct {
	identity  [16]byte
	number    uint64
	first     Position
	salt      uint64
	prevEnd   int64  // where the segment before ends: all before that is durable
	prevChain uint32 // checksum of the last frame there
	started   int64  // what is before was durable when the segment got its name
}

// tag stands in each frame of the segment. It binds the frame to the segment,
// and nobody who only knows what is stored in the log can make one up.
func (h header) tag() uint64 { return h.salt ^ h.number }

func (h header) append(b []byte) []byte {
	from := len(b)
	b = append(b, make([]byte, headerBytes)...)
	p := b[from:]
	copy(p, magic)
	le.PutUint32(p[8:], formatVersion)
	le.PutUint32(p[12:], checksum(p[:12]))
	copy(p[16:], h.identity[:])
	le.PutUint64(p[32:], h.number)
	le.PutUint64(p[40:], uint64(h.first))
	le.PutUint64(p[48:], h.salt)
	le.PutUint64(p[56:], uint64(h.prevEnd))
	le.PutUint32(p[64:], h.prevChain)
	le.PutUint64(p[72:], uint64(h.started))
	le.PutUint32(p[124:], checksum(p[:124]))
	return b
}

// checksum returns the checksum of the encoded header, where the chain of the
// segment's frames begins.
func (header) checksum(encoded []byte) uint32 { return le.Uint32(encoded[124:]) }

// parseHeader returns the header, or what is wrong with it, or the version
// when it is one that this program does not know.
func parseHeader(b []byte) (h header, version uint32, reason string) {
	switch {
	case len(b) < headerBytes:
		return h, 0, "the file is shorter than a segment header"
	case string(b[:8]) != magic || le.Uint32(b[12:]) != checksum(b[:12]):
		return h, 0, "the file does not begin like a segment"
	}
	if version = le.Uint32(b[8:]); version != formatVersion {
		return h, version, ""
	}
	if le.Uint32(b[124:]) != checksum(b[:124]) {
		return h, version, "the checksum of the segment header is wrong"
	}
	copy(h.identity[:], b[16:])
	h.number = le.Uint64(b[32:])
	h.first = Position(le.Uint64(b[40:]))
	h.salt = le.Uint64(b[48:])
	h.prevEnd = int64(le.Uint64(b[56:]))
	h.prevChain = le.Uint32(b[64:])
	h.started = int64(le.Uint64(b[72:]))
	return h, version, ""
}

// A frameHeader begins a frame: a batch of records, or a mark without any.
type frameHeader struct {
	tag     uint64
	first   Position // of the first record, or of the next where there is none
	synced  int64    // what is before in the segment was durable
	chain   uint32   // checksum of the frame before
	payload int      // bytes
	count   int      // of records
	kind    byte
}

// put encodes the header in front of the payload in the frame b and returns
// its checksum, which covers the payload by the payload's own.
func (h frameHeader) put(b []byte) uint32 {
	le.PutUint32(b[4:], checksum(b[frameHeaderBytes:]))
	le.PutUint64(b[8:], h.tag)
	le.PutUint64(b[16:], uint64(h.first))
	le.PutUint64(b[24:], uint64(h.synced))
	le.PutUint32(b[32:], h.chain)
	le.PutUint32(b[36:], uint32(h.payload))
	le.PutUint32(b[40:], uint32(h.count))
	le.PutUint32(b[44:], uint32(h.kind))
	sum := checksum(b[4:frameHeaderBytes])
	le.PutUint32(b, sum)
	return sum
}

// parseFrameHeader reports whether b begins with the header of a frame of the
// segment with that tag, whatever is behind it.
func parseFrameHeader(b []byte, tag uint64) (h frameHeader, ok bool) {
	if len(b) < frameHeaderBytes || le.Uint64(b[8:]) != tag || le.Uint32(b) != checksum(b[4:frameHeaderBytes]) {
		return h, false
	}
	return frameHeader{
		tag:     tag,
		first:   Position(le.Uint64(b[16:])),
		synced:  int64(le.Uint64(b[24:])),
		chain:   le.Uint32(b[32:]),
		payload: int(le.Uint32(b[36:])),
		count:   int(le.Uint32(b[40:])),
		kind:    b[44],
	}, true
}

// frameBytes is the size of a frame with its header and padding.
func frameBytes(payload int) int64 {
	return frameHeaderBytes + (int64(payload)+frameAlign-1)/frameAlign*frameAlign
}

// reserve makes room for a frame header.
func reserve(b []byte) []byte {
	var room [frameHeaderBytes]byte
	return append(b, room[:]...)
}

func payloadBytes(records []Record) int {
	n := 0
	for _, r := range records {
		n += 1 + uvarintBytes(uint64(len(r.Data))) + len(r.Data)
	}
	return n
}

func uvarintBytes(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

func appendRecords(b []byte, records []Record) []byte {
	for _, r := range records {
		must(r.Type != 0, "W6: record type 0 is reserved")
		b = append(b, r.Type)
		b = binary.AppendUvarint(b, uint64(len(r.Data)))
		b = append(b, r.Data...)
	}
	return b
}

// cutRecord takes the first record off the payload.
func cutRecord(payload []byte) (r Record, rest []byte, ok bool) {
	if len(payload) == 0 || payload[0] == 0 {
		return r, nil, false
	}
	size, n := binary.Uvarint(payload[1:])
	if n <= 0 || size > uint64(len(payload)-1-n) {
		return r, nil, false
	}
	data := payload[1+n:]
	return Record{Type: payload[0], Data: data[:size:size]}, data[size:], true
}

func must(ok bool, promise string) {
	if !ok {
		panic("wal: " + promise)
	}
}
