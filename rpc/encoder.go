package rpc

import (
	"strconv"

	"golang.org/x/net/http2/hpack"
)

// encoder writes header blocks. In the table of the client it keeps only the
// two fields that nearly every answer carries. So their places are known
// without searching, each takes one byte, and a block costs next to nothing.
// All else is written as it is.
type encoder struct {
	off    bool // the client's table is smaller than we need
	resize bool // and must be told so at the beginning of the next block

	kept            int // fields in the table
	contentType, ok int // their places in the order of keeping, from 1; 0: not kept
}

const (
	tableBytesMin = 4096 // what a client's table has unless it says otherwise

	// Of the static table.
	indexStatus      = 8 // :status 200
	indexContentType = 31
	firstDynamic     = 62

	// The first byte of a field, beside its index.
	wholeField   = 0x80
	keptField    = 0x40
	literalField = 0x00
	tableSize    = 0x20
)

// limitTable learns how large the client's table may be.
func (e *encoder) limitTable(bytes uint32) {
	if bytes < tableBytesMin && !e.off {
		e.off, e.resize = true, true
	}
}

// begin must be called before each block.
func (e *encoder) begin(b []byte) []byte {
	if e.resize {
		e.resize = false
		b = append(b, tableSize) // to 0
	}
	return b
}

// responseHeaders appends what every answer begins with.
func (e *encoder) responseHeaders(b []byte, httpStatus int, contentType string) []byte {
	if httpStatus == 200 {
		b = append(b, wholeField|indexStatus)
	} else {
		b = append(b, literalField|indexStatus)
		b = appendString(b, strconv.Itoa(httpStatus))
	}
	if e.off || contentType != grpcContentType {
		b = appendInt(b, literalField, 4, indexContentType)
		return appendString(b, contentType)
	}
	if e.contentType > 0 {
		return append(b, e.place(e.contentType))
	}
	e.kept++
	e.contentType = e.kept
	b = append(b, keptField|indexContentType)
	return appendString(b, contentType)
}

// grpcStatus appends the status code.
func (e *encoder) grpcStatus(b []byte, code int) []byte {
	const name = "grpc-status"
	if e.off || code != 0 {
		return e.field(b, name, strconv.Itoa(code))
	}
	if e.ok > 0 {
		return append(b, e.place(e.ok))
	}
	e.kept++
	e.ok = e.kept
	b = appendString(append(b, keptField), name)
	return appendString(b, "0")
}

// field appends any field.
func (e *encoder) field(b []byte, name, value string) []byte {
	b = appendString(append(b, literalField), name)
	return appendString(b, value)
}

// place is the whole of a field that was kept as number n.
func (e *encoder) place(n int) byte { return byte(wholeField | firstDynamic + e.kept - n) }

func appendString(b []byte, s string) []byte {
	if n := hpack.HuffmanEncodeLength(s); n < uint64(len(s)) {
		b = appendInt(b, 0x80, 7, n)
		return hpack.AppendHuffmanString(b, s)
	}
	b = appendInt(b, 0, 7, uint64(len(s)))
	return append(b, s...)
}

// appendInt appends n in as many bits as the first byte has left, and more
// bytes if they do not suffice.
func appendInt(b []byte, first byte, bits int, n uint64) []byte {
	most := uint64(1)<<bits - 1
	if n < most {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(most))
	for n -= most; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}
