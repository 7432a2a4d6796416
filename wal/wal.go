// Package wal holds an append-only log of records in files, and gives back
// after a power loss every record that was synced. It knows nothing of raft:
// a record is a type and some bytes.
//
// What it promises:
//
//	W1: after Sync returned nil, every record appended before is there at the
//	    next Open, in order, or Open fails and says so.
//	W2: a batch is there whole or not at all, and never without its predecessors.
//	W3: the end of the log is cut only where no synced byte can have been lost
//	    as far as the files can tell. Anything else is a Corruption, and then no
//	    segment is changed.
//	W4: after a failed write or sync the log does nothing more. A sync is never
//	    retried: the kernel may have thrown the data away and would say yes.
//	W5: a segment has its name only after all that its header claims is durable,
//	    and bytes that were synced are never overwritten.
//	W6: record type 0 is never written; Append panics on it.
//
// A Log belongs to one goroutine, which calls all methods; only Size may be
// called from anywhere. FORMAT.md describes the files byte by byte.
package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/metric"
)

// MaxBatchBytes bounds the encoded records of one Append.
const MaxBatchBytes = 1 << 30

const (
	sparesMax = 2        // released segments kept for reuse
	bufferMax = 16 << 20 // a larger buffer is given back after its batch
)

// Position numbers the records of a log from 1, without gaps. It is never
// reused for a record that was synced.
type Position uint64

// Record is one entry of the log. Type 0 is reserved.
type Record struct {
	Type uint8
	Data []byte
}

// Options say where a log lives and to whom it belongs. Only Dir has no
// default.
type Options struct {
	FS           vfs.FS   // default vfs.Default
	Dir          string   // created when missing; its parent must be durable
	Identity     [16]byte // stands in every segment; Open refuses the segments of another
	SegmentBytes int64    // default 64 MiB, rounded up to whole pages; a larger batch gets a segment of its own size

	// Floor is a position the caller knows was synced, or 0. A log that ends
	// before it has lost records, which no log can see by itself at its very end.
	Floor Position

	// UnsafeNoSync makes Sync return without waiting for the disk. What was
	// appended is with the operating system and survives the process, but not
	// a power loss. Segments are still created and sealed with syncs, so that
	// nothing untrue is ever written down.
	UnsafeNoSync bool

	// Head returns records that must stand in each new segment, so that older
	// segments can be released. It is called by Open after the replay and by
	// Append, and must describe no more than what earlier calls appended or the
	// replay showed. Default: none.
	Head func() []Record

	// Salt makes the frames of a segment tell themselves apart from anything
	// that clients can have stored in one. Default: from crypto/rand.
	Salt func() uint64

	Metrics Metrics
}

// Metrics are where a log counts. Each may be nil.
type Metrics struct {
	SyncSeconds  *metric.Histogram // time of each fdatasync asked for by Sync
	WriteSeconds *metric.Histogram // time of each write of a batch
	WrittenBytes *metric.Counter   // bytes of batches, with their frames
}

// Log is an open log.
type Log struct {
	// Immutable after Open.
	o    Options
	lock io.Closer
	dir  vfs.File

	// Owned by the goroutine that appends.
	segments []segment // oldest first, without the last
	spares   []segment // released, kept for reuse
	last     *writer   // appends to the last segment
	buf      []byte
	zeros    []byte
	err      error // the first failure; nothing is done after it

	size atomic.Int64
}

type segment struct {
	number uint64
	first  Position
	size   int64
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 64 << 20
	}
	o.SegmentBytes = (o.SegmentBytes + pageBytes - 1) &^ (pageBytes - 1)
	if o.Head == nil {
		o.Head = func() []Record { return nil }
	}
	if o.Salt == nil {
		o.Salt = func() uint64 {
			var b [8]byte
			rand.Read(b[:]) // never fails
			return binary.LittleEndian.Uint64(b[:])
		}
	}
	return o
}

// Append writes the records as one batch and returns the position of the
// first; the others follow without gap. After a crash either all of them are
// there or none; after Sync they are. The records are copied before Append
// returns.
func (l *Log) Append(records ...Record) (Position, error) {
	if l.err != nil {
		return 0, l.err
	}
	if len(records) == 0 {
		return l.last.next, nil
	}
	payload := payloadBytes(records)
	if payload > MaxBatchBytes {
		return 0, fmt.Errorf("wal: a batch of %d bytes exceeds the limit of %d", payload, MaxBatchBytes)
	}

	fits := l.last.end+frameBytes(payload)+frameHeaderBytes <= l.o.SegmentBytes
	if !fits && l.last.end > l.last.started {
		if err := l.roll(); err != nil {
			return 0, l.fail(err)
		}
	}

	first := l.last.next
	l.buf = appendRecords(reserve(l.buf[:0]), records)
	l.buf = l.last.frame(l.buf, 0, kindBatch, len(records))
	if err := l.write(); err != nil {
		return 0, l.fail(err)
	}
	if cap(l.buf) > bufferMax {
		l.buf = nil
	}
	return first, nil
}

// Sync returns nil when everything appended so far is durable.
func (l *Log) Sync() error {
	if l.err != nil {
		return l.err
	}
	if l.last.synced == l.last.end || l.o.UnsafeNoSync {
		return nil
	}
	began := time.Now()
	if err := l.last.sync(); err != nil {
		return l.fail(err)
	}
	l.o.Metrics.SyncSeconds.Observe(time.Since(began).Seconds())
	return nil
}

// Settle syncs, and then writes down that it did, which costs a second sync.
// Otherwise the next batch carries that news, so until then damage to the last
// batch looks like a batch that was never synced. Call it when the log is
// idle; it does nothing when there is no news.
func (l *Log) Settle() error {
	if err := l.Sync(); err != nil {
		return err
	}
	if l.last.settled == l.last.end || l.o.UnsafeNoSync {
		return nil
	}
	l.buf = l.last.frame(reserve(l.buf[:0]), 0, kindMark, 0)
	if err := l.write(); err != nil {
		return l.fail(err)
	}
	if err := l.last.sync(); err != nil {
		return l.fail(err)
	}
	l.last.settled = l.last.end
	return nil
}

// Release gives up the segments that hold only records before the position,
// oldest first, and never the last segment.
func (l *Log) Release(before Position) error {
	if l.err != nil {
		return l.err
	}
	for len(l.segments) > 0 && l.firstAfterOldest() <= before {
		// What makes the old records unnecessary may just have been appended.
		if err := l.last.sync(); err != nil {
			return l.fail(err)
		}
		if err := l.releaseOldest(); err != nil {
			return l.fail(err)
		}
	}
	return nil
}

func (l *Log) firstAfterOldest() Position {
	if len(l.segments) > 1 {
		return l.segments[1].first
	}
	return l.last.first
}

func (l *Log) releaseOldest() error {
	old := l.segments[0]
	name := l.path(old.number, segmentSuffix)
	if len(l.spares) < sparesMax && old.size <= l.o.SegmentBytes {
		if err := l.o.FS.Rename(name, l.path(old.number, spareSuffix)); err != nil {
			return fmt.Errorf("wal: put segment %d aside: %w", old.number, err)
		}
		l.spares = append(l.spares, old)
	} else {
		if err := l.o.FS.Remove(name); err != nil {
			return fmt.Errorf("wal: remove segment %d: %w", old.number, err)
		}
		l.size.Add(-old.size)
	}
	// One sync for each: were a later segment gone and this one back after a
	// crash, the hole between them would look like a lost segment. And a spare
	// must not be written while it can still come back under its old name.
	if mutant.On("spare keeps its name") {
		// Nothing.
	} else if err := l.dir.Sync(); err != nil {
		return fmt.Errorf("wal: sync directory after releasing segment %d: %w", old.number, err)
	}
	l.segments = l.segments[1:]
	return nil
}

// Size returns the bytes of all files of the log. It may be called from any
// goroutine.
func (l *Log) Size() int64 { return l.size.Load() }

// Close settles and closes the log. It returns the failure that ended the log
// before, if any. Every later call fails.
func (l *Log) Close() error {
	if l.err == errClosed {
		return errClosed
	}
	err := l.Settle()
	if e := l.closeFiles(); err == nil && e != nil {
		err = fmt.Errorf("wal: close: %w", e)
	}
	l.err = errClosed
	return err
}

func (l *Log) closeFiles() error {
	var errs []error
	if l.last != nil {
		errs = append(errs, l.last.file.Close())
	}
	if l.dir != nil {
		errs = append(errs, l.dir.Close())
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

var errClosed = fmt.Errorf("wal: %w", os.ErrClosed)

// fail makes err the answer to every later call.
func (l *Log) fail(err error) error {
	l.err = err
	return err
}
