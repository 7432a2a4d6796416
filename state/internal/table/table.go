// Package table keeps rows of bytes in order, on disk or in memory, and knows
// nothing of what they mean.
//
// It never writes a log of its own: what is committed survives a crash only
// once Flush has returned. What it promises instead:
//
// T1: a batch is committed whole or not at all, before a crash and after it.
// T2: after a crash the table holds a prefix of the batches that were
// committed, in the order of their commits, and at least all of those
// committed before the last Flush that returned nil.
// T3: a snapshot never changes.
//
// There are two tables, one on Pebble and one in memory; one suite of tests
// holds both to the same behaviour.
package table

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is the file system that a table lives on. The name is handed on so that
// the layers between need not know where it comes from.
type FS = vfs.FS

// ErrClosed is what a table answers after Close. A reader that holds on to a
// view of a table that was replaced meets it.
var ErrClosed = errors.New("table: closed")

// Reader reads rows. Its methods may be called by many at once.
type Reader interface {
	// Get returns a copy of the value stored at key, and whether there is one.
	Get(key []byte) (value []byte, ok bool, err error)

	// Scan calls visit for the rows in [from, to), in order, until it returns
	// false. The bytes are valid until visit returns.
	Scan(from, to []byte, visit func(key, value []byte) bool) error
}

// Table is a set of rows ordered by key.
type Table interface {
	Reader

	// Batch returns an empty batch. Batches may be committed by several
	// goroutines; each of them belongs to one.
	Batch() Batch

	// Snapshot returns the rows as they are now.
	Snapshot() Snapshot

	// Flush makes durable what was committed before the call.
	Flush() error

	// Tidy gives back the space of rows deleted in [from, to), beside the work
	// of readers and writers. It takes a context.Context, which state does not
	// import because contexts carry clocks.
	Tidy(ctx Canceler, from, to []byte) error

	// DiskBytes is the space the table takes up, where it takes up any.
	DiskBytes() int64

	// Stage returns an empty table that can take the place of this one.
	Stage() (Stage, error)

	// Close ends the table, or has the last reader end it that is inside a
	// call or holds a snapshot. It does not flush.
	Close() error
}

// Canceler is the part of a context that a table asks for.
type Canceler interface {
	Done() <-chan struct{}
	Err() error
}

// Snapshot is a Reader of the past; Close it.
type Snapshot interface {
	Reader
	Close() error
}

// Batch collects changes that are committed together.
type Batch interface {
	// Set stores a copy of value at a copy of key.
	Set(key, value []byte)

	// Reserve stores a row whose bytes are to be filled in by the caller before
	// the next call to the batch. It saves a copy.
	Reserve(keyBytes, valueBytes int) (key, value []byte)

	Delete(key []byte)
	DeleteRange(from, to []byte)

	// Bytes is about the memory that the batch takes.
	Bytes() int

	// Commit applies the changes and empties the batch for the next use.
	Commit() error

	// Close gives up a batch that will not be used again.
	Close()
}

// Stage is a table being built to take the place of another. Once installed it
// is a table like any other.
type Stage interface {
	Table

	// Install makes the stage durable and puts it in the place of the table it
	// was made from, which is left open for its readers until it is closed. A
	// crash leaves the one or the other.
	Install() error

	// Discard ends a stage that is not wanted.
	Discard() error
}

// Spaces of keys, by their first byte, in order.
const (
	Local   byte = 0x01 // facts about this member alone: no part of a snapshot or of a hash
	Meta    byte = 0x02
	Members byte = 0x03
	Alarms  byte = 0x04
	Leases  byte = 0x05
	Auth    byte = 0x06
	History byte = 0x40 // the border: rows below are rewritten, rows above are only added
)
