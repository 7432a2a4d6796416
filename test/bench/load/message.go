package load

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// The few messages of the v3 API that the loads need, written and read by hand:
// with reflection the generator would cost the machine more than a good server.
// The tests hold them against the generated types.

var errMalformed = errors.New("malformed answer")

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

func appendInt(b []byte, field protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(v))
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	return appendInt(b, field, int64(protowire.EncodeBool(v)))
}

// appendNested writes what fill appends as the message in field. The length
// goes before it, so fill's bytes move up when the length takes more than the
// one byte left for it.
func appendNested(b []byte, field protowire.Number, fill func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	start := len(b) + 1
	b = fill(append(b, 0))
	n := len(b) - start
	if extra := protowire.SizeVarint(uint64(n)) - 1; extra > 0 {
		b = append(b, make([]byte, extra)...)
		copy(b[start+extra:], b[start:start+n])
	}
	protowire.AppendVarint(b[:start-1], uint64(n))
	return b
}

func appendPut(b, key, value []byte) []byte {
	b = appendBytes(b, 1, key)
	return appendBytes(b, 2, value)
}

func appendLeasedPut(b, key, value []byte, lease int64) []byte {
	return appendInt(appendPut(b, key, value), 3, lease)
}

func appendGrant(b []byte, id, seconds int64) []byte {
	b = appendInt(b, 1, seconds)
	return appendInt(b, 2, id)
}

func appendKeepAlive(b []byte, id int64) []byte { return appendInt(b, 1, id) }

func appendWatch(b, key, end []byte, from int64) []byte {
	return appendNested(b, 1, func(b []byte) []byte {
		b = appendBytes(b, 1, key)
		b = appendBytes(b, 2, end)
		return appendInt(b, 3, from)
	})
}

type rangeRequest struct {
	key, end     []byte
	limit        int64
	serializable bool
}

func appendRange(b []byte, r rangeRequest) []byte {
	b = appendBytes(b, 1, r.key)
	b = appendBytes(b, 2, r.end)
	b = appendInt(b, 3, r.limit)
	return appendBool(b, 7, r.serializable)
}

func appendDelete(b, key []byte) []byte {
	return appendBytes(b, 1, key)
}

// appendCompareAndPut writes a transaction: if key was last changed at
// modRevision (0: does not exist) put value, else get key.
func appendCompareAndPut(b, key, value []byte, modRevision int64) []byte {
	b = appendNested(b, 1, func(b []byte) []byte {
		b = appendInt(b, 2, 2) // target MOD; the result EQUAL is 0
		b = appendBytes(b, 3, key)
		// A member of a oneof is written even when zero.
		b = protowire.AppendTag(b, 6, protowire.VarintType)
		return protowire.AppendVarint(b, uint64(modRevision))
	})
	b = appendPutIn(b, key, value)
	return appendNested(b, 3, func(b []byte) []byte {
		return appendNested(b, 1, func(b []byte) []byte { return appendRange(b, rangeRequest{key: key}) })
	})
}

// appendPutIn writes one more put into a transaction that compares nothing.
func appendPutIn(b, key, value []byte) []byte {
	return appendNested(b, 2, func(b []byte) []byte {
		return appendNested(b, 2, func(b []byte) []byte { return appendPut(b, key, value) })
	})
}

func appendCompact(b []byte, revision int64, physical bool) []byte {
	b = appendInt(b, 1, revision)
	return appendBool(b, 2, physical)
}

// fields walks the top level of a message without copying.
type fields struct {
	rest   []byte
	number protowire.Number
	varint uint64 // value of a varint field
	bytes  []byte // value of a length-delimited field
	err    error
}

// next steps to the following field; false at the end or at an error.
func (f *fields) next() bool {
	if len(f.rest) == 0 {
		return false
	}
	number, kind, n := protowire.ConsumeTag(f.rest)
	if n < 0 {
		f.err = errMalformed
		return false
	}
	f.rest, f.number, f.varint, f.bytes = f.rest[n:], number, 0, nil
	switch kind {
	case protowire.VarintType:
		f.varint, n = protowire.ConsumeVarint(f.rest)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(f.rest)
	default:
		n = protowire.ConsumeFieldValue(number, kind, f.rest)
	}
	if n < 0 {
		f.err = errMalformed
		return false
	}
	f.rest = f.rest[n:]
	return true
}

// answer holds what the loads look at in the answers of the KV service. Slices
// are parts of the message it was read from.
type answer struct {
	revision  int64 // of the header
	number    int64 // count of a range, deleted of a delete
	succeeded bool  // of a txn
	more      bool  // of a range

	pairs       int    // how many key-value pairs a range gave
	first, last []byte // the first and the last of them, still encoded

	responses     int    // how many operations of a txn answered
	firstResponse []byte // the first of them: an encoded ResponseOp
}

func readHeader(message []byte, into *answer) error {
	f := fields{rest: message}
	for f.next() {
		if f.number == 3 {
			into.revision = int64(f.varint)
		}
	}
	return f.err
}

// readPut reads a PutResponse, and any other answer of which only the header
// is wanted.
func readPut(message []byte) (a answer, err error) {
	f := fields{rest: message}
	for f.next() {
		if f.number == 1 {
			if err := readHeader(f.bytes, &a); err != nil {
				return a, err
			}
		}
	}
	return a, f.err
}

// granted is the answer to a grant, and to a keep-alive too.
type granted struct {
	id, seconds int64
	refusal     []byte
}

func readGranted(message []byte) (g granted, err error) {
	f := fields{rest: message}
	for f.next() {
		switch f.number {
		case 2:
			g.id = int64(f.varint)
		case 3:
			g.seconds = int64(f.varint)
		case 4:
			g.refusal = f.bytes
		}
	}
	return g, f.err
}

// told is what a watch answers, once or ever again.
type told struct {
	created, canceled bool
	reason            []byte
	events            int
}

// readTold counts the events and looks into them only if each is not nil.
func readTold(message []byte, each func(event []byte) error) (t told, err error) {
	f := fields{rest: message}
	for f.next() {
		switch f.number {
		case 3:
			t.created = f.varint != 0
		case 4:
			t.canceled = f.varint != 0
		case 6:
			t.reason = f.bytes
		case 11:
			t.events++
			if each != nil {
				if err := each(f.bytes); err != nil {
					return t, err
				}
			}
		}
	}
	return t, f.err
}

// readEvent reads the pair of an encoded event.
func readEvent(event []byte) (pair, error) {
	f := fields{rest: event}
	for f.next() {
		if f.number == 2 {
			return readPair(f.bytes)
		}
	}
	return pair{}, errMalformed
}

func readRange(message []byte) (a answer, err error) {
	f := fields{rest: message}
	for f.next() {
		switch f.number {
		case 1:
			if err := readHeader(f.bytes, &a); err != nil {
				return a, err
			}
		case 2:
			if a.pairs == 0 {
				a.first = f.bytes
			}
			a.last = f.bytes
			a.pairs++
		case 3:
			a.more = f.varint != 0
		case 4:
			a.number = int64(f.varint)
		}
	}
	return a, f.err
}

func readDelete(message []byte) (a answer, err error) {
	f := fields{rest: message}
	for f.next() {
		switch f.number {
		case 1:
			if err := readHeader(f.bytes, &a); err != nil {
				return a, err
			}
		case 2:
			a.number = int64(f.varint)
		}
	}
	return a, f.err
}

func readTxn(message []byte) (a answer, err error) {
	f := fields{rest: message}
	for f.next() {
		switch f.number {
		case 1:
			if err := readHeader(f.bytes, &a); err != nil {
				return a, err
			}
		case 2:
			a.succeeded = f.varint != 0
		case 3:
			if a.responses == 0 {
				a.firstResponse = f.bytes
			}
			a.responses++
		}
	}
	return a, f.err
}

// readRangeOp reads the range answer inside an encoded ResponseOp.
func readRangeOp(op []byte) (answer, error) {
	f := fields{rest: op}
	for f.next() {
		if f.number == 1 {
			return readRange(f.bytes)
		}
	}
	return answer{}, errMalformed
}

type pair struct {
	key, value  []byte
	modRevision int64
}

func readPair(message []byte) (p pair, err error) {
	f := fields{rest: message}
	for f.next() {
		switch f.number {
		case 1:
			p.key = f.bytes
		case 3:
			p.modRevision = int64(f.varint)
		case 5:
			p.value = f.bytes
		}
	}
	return p, f.err
}
