package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kvorum/kvorum/state/internal/table"
)

// A pair is an encoded mvccpb.KeyValue with its value last, so that what a
// keys-only answer holds is the beginning of it: the lead.
//
// A row of history is stored at (main, sub) and is made of
//
//	flags 1 | main of the version before 8 | its sub 4 | length of the note uvarint | note | pair
//
// where the note and its length are there only if the flags say so. The version
// before is named so that a deleted or replaced pair is found from the change
// alone. A deletion's pair holds key and mod_revision.
const (
	rowKeyBytes  = 1 + 8 + 4
	rowHeadBytes = 1 + 8 + 4

	rowDeleted byte = 1 << 0
	rowAlone   byte = 1 << 1 // the only change of its revision
	rowNoted   byte = 1 << 2
	rowFlags        = rowDeleted | rowAlone | rowNoted

	tagKey     = 1<<3 | byte(protowire.BytesType)
	tagCreate  = 2<<3 | byte(protowire.VarintType)
	tagMod     = 3<<3 | byte(protowire.VarintType)
	tagVersion = 4<<3 | byte(protowire.VarintType)
	tagValue   = 5<<3 | byte(protowire.BytesType)
	tagLease   = 6<<3 | byte(protowire.VarintType)
)

func appendRowKey(dst []byte, at Position) []byte {
	dst = append(dst, table.History)
	dst = binary.BigEndian.AppendUint64(dst, uint64(at.Main))
	return binary.BigEndian.AppendUint32(dst, uint32(at.Sub))
}

func appendRowHead(dst []byte, flags byte, before Position, note string) []byte {
	if note != "" {
		flags |= rowNoted
	}
	dst = append(dst, flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(before.Main))
	dst = binary.BigEndian.AppendUint32(dst, uint32(before.Sub))
	if note != "" {
		dst = protowire.AppendVarint(dst, uint64(len(note)))
		dst = append(dst, note...)
	}
	return dst
}

// row is a decoded row of history. Its bytes are those it was read from.
type row struct {
	at, before Position
	deleted    bool
	alone      bool
	note       []byte
	pair       []byte
}

var errRow = errors.New("mvcc: damaged row of history")

func parseRow(key, value []byte) (row, error) {
	if len(key) != rowKeyBytes || len(value) < rowHeadBytes || value[0]&^rowFlags != 0 {
		return row{}, fmt.Errorf("%w at %x", errRow, key)
	}
	r := row{
		at:      position(key[1:]),
		before:  position(value[1:]),
		deleted: value[0]&rowDeleted != 0,
		alone:   value[0]&rowAlone != 0,
		pair:    value[rowHeadBytes:],
	}
	if value[0]&rowNoted != 0 {
		note, n := protowire.ConsumeBytes(r.pair)
		if len(note) == 0 {
			return row{}, fmt.Errorf("%w at %x", errRow, key)
		}
		r.note, r.pair = note, r.pair[n:]
	}
	return r, nil
}

func position(b []byte) Position {
	return Position{
		Main: Revision(binary.BigEndian.Uint64(b)),
		Sub:  int32(binary.BigEndian.Uint32(b[8:])),
	}
}

// facts is what a pair says beside its value.
type facts struct {
	key                  []byte
	create, mod, version int64
	lease                int64
	lead                 int // bytes before the value's field
}

// appendLead appends all of a pair but its value.
func appendLead[K []byte | string](dst []byte, key K, create, mod, version, lease int64) []byte {
	dst = append(dst, tagKey)
	dst = protowire.AppendVarint(dst, uint64(len(key)))
	dst = append(dst, key...)
	dst = appendField(dst, tagCreate, create)
	dst = appendField(dst, tagMod, mod)
	dst = appendField(dst, tagVersion, version)
	return appendField(dst, tagLease, lease)
}

func appendField(dst []byte, tag byte, n int64) []byte {
	if n == 0 {
		return dst
	}
	dst = append(dst, tag)
	return protowire.AppendVarint(dst, uint64(n))
}

func appendValue(dst, value []byte) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = append(dst, tagValue)
	dst = protowire.AppendVarint(dst, uint64(len(value)))
	return append(dst, value...)
}

func leadBytes(keyBytes int, create, mod, version, lease int64) int {
	return 1 + varintBytes(uint64(keyBytes)) + keyBytes +
		fieldBytes(create) + fieldBytes(mod) + fieldBytes(version) + fieldBytes(lease)
}

func valueBytes(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + varintBytes(uint64(n)) + n
}

func fieldBytes(n int64) int {
	if n == 0 {
		return 0
	}
	return 1 + varintBytes(uint64(n))
}

func varintBytes(n uint64) int { return (bits.Len64(n|1) + 6) / 7 }

func valueOf(pair []byte, lead int) []byte {
	if lead == len(pair) {
		return nil
	}
	_, n := protowire.ConsumeVarint(pair[lead+1:])
	return pair[lead+1+n:]
}

// parsePair reads a pair that appendLead and appendValue wrote. It checks as
// much as it needs to not go astray.
func parsePair(b []byte) (facts, error) {
	var f facts
	if len(b) == 0 || b[0] != tagKey {
		return f, errRow
	}
	key, n := protowire.ConsumeBytes(b[1:])
	if n < 0 || len(key) == 0 {
		return f, errRow
	}
	f.key = key
	at := 1 + n
	for at < len(b) && b[at] != tagValue {
		x, n := protowire.ConsumeVarint(b[at+1:])
		if n < 0 {
			return f, errRow
		}
		switch b[at] {
		case tagCreate:
			f.create = int64(x)
		case tagMod:
			f.mod = int64(x)
		case tagVersion:
			f.version = int64(x)
		case tagLease:
			f.lease = int64(x)
		default:
			return f, errRow
		}
		at += 1 + n
	}
	f.lead = at
	if at < len(b) {
		if _, n := protowire.ConsumeBytes(b[at+1:]); n < 0 || at+1+n != len(b) {
			return f, errRow
		}
	}
	return f, nil
}
