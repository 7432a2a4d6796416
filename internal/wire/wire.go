// Package wire decodes and encodes the messages that make up nearly all
// traffic, without reflection. It says the same as package proto about every
// input: which bytes are a message, and what is in it; its tests compare the
// two. What is rare goes through package proto.
//
// Decoded messages alias the bytes they were decoded from, and keep no unknown
// fields.
package wire

import "google.golang.org/protobuf/encoding/protowire"

// tag is a field's number with the type of its value, as it is on the wire.
type tag uint64

const (
	varint tag = 0
	block  tag = 2
)

func field(number, kind tag) tag { return number<<3 | kind }

// reader takes an encoded message apart, field by field.
type reader struct {
	b   []byte // what follows the field's tag
	tag tag
	bad bool
}

// next moves to the next field. It returns false at the end, and if there is
// something that is no field; ok tells which.
func (r *reader) next() bool {
	if len(r.b) == 0 || r.bad {
		return false
	}
	x, n := protowire.ConsumeVarint(r.b)
	if number := x >> 3; n < 0 || number < uint64(protowire.MinValidNumber) || number > uint64(protowire.MaxValidNumber) {
		r.bad = true
		return false
	}
	r.tag, r.b = tag(x), r.b[n:]
	return true
}

func (r *reader) ok() bool { return !r.bad }

// take moves over n bytes, as protowire has counted them.
func (r *reader) take(n int) {
	if n < 0 {
		r.bad = true
		return
	}
	r.b = r.b[n:]
}

func (r *reader) bytes() []byte {
	v, n := protowire.ConsumeBytes(r.b)
	r.take(n)
	return v[:len(v):len(v)]
}

func (r *reader) uint() uint64 {
	x, n := protowire.ConsumeVarint(r.b)
	r.take(n)
	return x
}

func (r *reader) int() int64 { return int64(r.uint()) }
func (r *reader) bool() bool { return protowire.DecodeBool(r.uint()) }

// skip moves over a field that is not known, or not of this type.
func (r *reader) skip() {
	r.take(protowire.ConsumeFieldValue(protowire.Number(r.tag>>3), protowire.Type(r.tag&7), r.b))
}

func appendTag(dst []byte, t tag) []byte { return protowire.AppendVarint(dst, uint64(t)) }

func appendUint(dst []byte, number tag, x uint64) []byte {
	if x == 0 {
		return dst
	}
	return protowire.AppendVarint(appendTag(dst, field(number, varint)), x)
}

func appendInt(dst []byte, number tag, x int64) []byte { return appendUint(dst, number, uint64(x)) }

func appendBool(dst []byte, number tag, x bool) []byte {
	return appendUint(dst, number, protowire.EncodeBool(x))
}

func appendBytes(dst []byte, number tag, x []byte) []byte {
	if len(x) == 0 {
		return dst
	}
	return protowire.AppendBytes(appendTag(dst, field(number, block)), x)
}

// open begins a field whose value is a message of unknown length; seal ends
// it, given the length of dst when it was opened.
func open(dst []byte, number tag) (_ []byte, at int) {
	dst = append(appendTag(dst, field(number, block)), 0) // most are short
	return dst, len(dst)
}

func seal(dst []byte, at int) []byte {
	length := len(dst) - at
	if length < 0x80 {
		dst[at-1] = byte(length)
		return dst
	}
	more := protowire.SizeVarint(uint64(length)) - 1
	dst = append(dst, make([]byte, more)...)
	copy(dst[at+more:], dst[at:at+length])
	protowire.AppendVarint(dst[:at-1], uint64(length))
	return dst
}
