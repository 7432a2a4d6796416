package wal

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvorum/kvorum/internal/mutant"
)

// fillStep is how far a new segment is filled with zeros at a time. An
// fdatasync is cheap only where it has no metadata to write, that is in
// blocks written before: see "Why segments are filled" in FORMAT.md.
const fillStep = 1 << 20

// pageBytes is what writes are rounded up to, with zeros behind the end: the
// kernel reads a page of a recycled file from the disk before it changes a
// part of it, which costs a batch more than all else but the sync.
const pageBytes = 4096

const writeCategory = vfs.DiskWriteCategory("kvorum-wal")

// A writer appends frames to a segment.
type writer struct {
	// Immutable.
	file   vfs.File
	number uint64
	first  Position // of the segment
	tag    uint64   // stands in every frame of the segment

	started int64    // where the batches of Append begin
	end     int64    // where the next frame goes
	synced  int64    // what is before is durable
	settled int64    // what is before is provably durable
	filled  int64    // size of the file: writes before it change no metadata
	chain   uint32   // checksum of the last frame
	next    Position // of the next record
}

// frame completes the frame that begins at b[from:] with a reserved header
// and goes on with its payload.
func (w *writer) frame(b []byte, from int, kind byte, count int) []byte {
	payload := len(b) - from - frameHeaderBytes
	for len(b)%frameAlign != from%frameAlign {
		b = append(b, 0)
	}
	h := frameHeader{
		tag:     w.tag,
		first:   w.next,
		synced:  w.synced,
		chain:   w.chain,
		payload: payload,
		count:   count,
		kind:    kind,
	}
	w.chain = h.put(b[from:])
	w.next += Position(count)
	return b
}

func (w *writer) sync() error {
	if err := w.file.SyncData(); err != nil {
		return fmt.Errorf("wal: sync segment %d: %w", w.number, err)
	}
	w.synced = w.end
	return nil
}

// seal says in the segment that another follows, and closes it. It may
// overwrite batches that were never known to be synced: the next segment
// repeats them.
func (w *writer) seal() error {
	err := writeAt(w.file, w.frame(reserve(nil), 0, kindSeal, 0), w.end)
	if err == nil {
		err = w.file.SyncData()
	}
	if e := w.file.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("wal: seal segment %d: %w", w.number, err)
	}
	return nil
}

// write appends the frame in l.buf to the last segment.
func (l *Log) write() error {
	w := l.last
	began := time.Now()
	size := int64(len(l.buf))
	l.buf = pad(l.buf, w.end)
	if err := writeAt(w.file, l.buf, w.end); err != nil {
		return fmt.Errorf("wal: write segment %d: %w", w.number, err)
	}
	if written := w.end + int64(len(l.buf)); written > w.filled {
		if err := l.fill(written); err != nil {
			return err
		}
	}
	w.end += size
	l.o.Metrics.WriteSeconds.Observe(time.Since(began).Seconds())
	l.o.Metrics.WrittenBytes.Add(uint64(size))
	return nil
}

// pad rounds up to whole pages what is written at the offset.
func pad(b []byte, offset int64) []byte {
	return append(b, make([]byte, -(offset+int64(len(b)))&(pageBytes-1))...)
}

// fill writes zeros from the offset on, where the file ends, so that the
// frames to come change nothing but data.
func (l *Log) fill(from int64) error {
	w := l.last
	to := min((from+fillStep-1)/fillStep*fillStep, l.o.SegmentBytes)
	if to > from {
		if l.zeros == nil {
			l.zeros = make([]byte, fillStep)
		}
		clear(l.zeros) // a vfs.File may have changed it
		if err := writeAt(w.file, l.zeros[:to-from], from); err != nil {
			return fmt.Errorf("wal: fill segment %d: %w", w.number, err)
		}
	}
	size := max(to, from)
	l.size.Add(size - w.filled)
	w.filled = size
	return nil
}

// roll ends the last segment and starts the next.
func (l *Log) roll() error {
	if err := l.last.sync(); err != nil { // the next header will say it is
		return err
	}
	return l.start(nil)
}

// start makes the next segment. The last one, if there is any, ends at its
// end, which is synced; batches that stand behind it but may never have
// reached the disk are repeated from the tail.
func (l *Log) start(tail []batch) error {
	old := l.last
	h := header{identity: l.o.Identity, number: 1, first: 1, salt: l.o.Salt(), started: headerBytes}
	if old != nil {
		h.number, h.first = old.number+1, old.next
		h.prevEnd, h.prevChain = old.end, old.chain
	}
	batches := slices.DeleteFunc(tail, func(t batch) bool { return t.count == 0 }) // no marks
	head := l.o.Head()
	for _, t := range batches {
		h.started += frameBytes(len(t.payload))
	}
	if len(head) > 0 {
		h.started += frameBytes(payloadBytes(head))
	}

	w := &writer{number: h.number, first: h.first, tag: h.tag(), next: h.first}
	b := h.append(l.buf[:0])
	w.chain = h.checksum(b)
	for _, t := range batches {
		from := len(b)
		b = w.frame(append(reserve(b), t.payload...), from, kindBatch, t.count)
	}
	if len(head) > 0 {
		from := len(b)
		b = w.frame(appendRecords(reserve(b), head), from, kindBatch, len(head))
	}
	must(int64(len(b)) == h.started, "W5: the header says how much of the segment is durable")
	l.buf = pad(b, 0)

	if err := l.create(w, l.buf); err != nil {
		return err
	}
	w.started, w.end, w.synced, w.settled = h.started, h.started, h.started, h.started
	l.last = w

	// From here on the new segment may hold what was promised, so the old one
	// has to say that its absence is a loss.
	if old == nil {
		return nil
	}
	size := max(old.filled, old.end+frameHeaderBytes)
	l.size.Add(size - old.filled)
	l.segments = append(l.segments, segment{number: old.number, first: old.first, size: size})
	return old.seal()
}

// create makes the writer's file with the given beginning. The file gets its
// name when all of that is durable and not before: a segment with a bad
// header is damaged, never half made.
func (l *Log) create(w *writer, beginning []byte) error {
	temporary := l.path(w.number, temporarySuffix)
	if n := len(l.spares); n > 0 {
		s := l.spares[n-1]
		if err := l.o.FS.Rename(l.path(s.number, spareSuffix), temporary); err != nil {
			return fmt.Errorf("wal: reuse segment %d: %w", s.number, err)
		}
		l.spares = l.spares[:n-1]
		w.filled = s.size
	}
	file, err := l.o.FS.OpenReadWrite(temporary, writeCategory)
	if err != nil {
		return fmt.Errorf("wal: create segment %d: %w", w.number, err)
	}
	w.file = file

	err = func() error {
		if err := writeAt(file, beginning, 0); err != nil {
			return fmt.Errorf("wal: write header of segment %d: %w", w.number, err)
		}
		if err := file.Sync(); err != nil {
			return fmt.Errorf("wal: sync header of segment %d: %w", w.number, err)
		}
		if err := l.o.FS.Rename(temporary, l.path(w.number, segmentSuffix)); err != nil {
			return fmt.Errorf("wal: name segment %d: %w", w.number, err)
		}
		if mutant.On("segment without its name") {
			return nil
		}
		if err := l.dir.Sync(); err != nil {
			return fmt.Errorf("wal: sync directory of segment %d: %w", w.number, err)
		}
		return nil
	}()
	if err != nil {
		file.Close()
		return err
	}
	if size := int64(len(beginning)); size > w.filled {
		l.size.Add(size - w.filled)
		w.filled = size
	}
	return nil
}

func writeAt(f vfs.File, b []byte, offset int64) error {
	n, err := f.WriteAt(b, offset)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}
