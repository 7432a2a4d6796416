package wal

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"github.com/kvorum/kvorum/internal/mutant"
)

// Corruption says that a log lost or garbled something that was, or may have
// been, synced. No segment has been changed.
type Corruption struct {
	File   string // "" when it is the directory as a whole
	Offset int64
	Reason string
}

func (c *Corruption) Error() string {
	return fmt.Sprintf("wal: %s is corrupt at offset %d: %s; nothing was changed. "+
		"This member must not vote with this log: remove it from the cluster and add it again with an empty data directory, "+
		"or restore a backup when it is the only member", c.File, c.Offset, c.Reason)
}

// FormatError says that a segment was written by a program newer than this.
type FormatError struct {
	File    string
	Version uint32
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("wal: %s has format version %d, and this program reads only up to version %d: use the program that wrote it, or a newer one",
		e.File, e.Version, formatVersion)
}

// IdentityError says that a segment belongs to another log.
type IdentityError struct {
	File       string
	Have, Want [16]byte
}

func (e *IdentityError) Error() string {
	return fmt.Sprintf("wal: %s belongs to %x, not to %x: it is the file of another member or cluster", e.File, e.Have, e.Want)
}

// Open replays all records of the log in o.Dir, oldest first, and returns the
// log ready for appending; it makes an empty log where there is none. The data
// of a record is valid until replay returns. All that was replayed is durable
// when Open returns. An error of replay ends Open and is wrapped.
//
// Open fails with a *Corruption, *FormatError or *IdentityError when the files
// are not what they should be; replay may have seen some of the records then.
func Open(o Options, replay func(Position, Record) error) (*Log, error) {
	l := &Log{o: o.withDefaults()}
	if err := l.open(replay); err != nil {
		l.closeFiles() // err says more
		return nil, err
	}
	return l, nil
}

func (l *Log) open(replay func(Position, Record) error) error {
	if err := l.openDir(); err != nil {
		return err
	}
	numbers, leftovers, err := l.list()
	if err != nil {
		return err
	}
	tail, err := l.replay(numbers, replay)
	if err != nil {
		return err
	}
	if err := l.clean(leftovers); err != nil {
		return err
	}
	// Always a new segment: its header says where the one before ends, so what
	// is behind there can never come back, and nothing is overwritten.
	return l.start(tail)
}

func (l *Log) openDir() error {
	fs := l.o.FS
	if err := fs.MkdirAll(l.o.Dir, 0o700); err != nil {
		return fmt.Errorf("wal: create directory: %w", err)
	}
	lock, err := fs.Lock(fs.PathJoin(l.o.Dir, "LOCK"))
	if err != nil {
		return fmt.Errorf("wal: lock %s (is it in use?): %w", l.o.Dir, err)
	}
	l.lock = lock
	if l.dir, err = fs.OpenDir(l.o.Dir); err != nil {
		return fmt.Errorf("wal: open directory: %w", err)
	}
	parent, err := fs.OpenDir(fs.PathDir(l.o.Dir))
	if err != nil {
		return fmt.Errorf("wal: open parent directory: %w", err)
	}
	err = parent.Sync()
	if e := parent.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("wal: sync parent directory: %w", err)
	}
	return nil
}

// list returns the numbers of the segments, ascending, and the names of files
// that an earlier process had ready to become segments.
func (l *Log) list() (numbers []uint64, leftovers []string, err error) {
	names, err := l.o.FS.List(l.o.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("wal: list directory: %w", err)
	}
	for _, name := range names {
		if number, ok := parseFileName(name, segmentSuffix); ok {
			numbers = append(numbers, number)
		}
		_, isSpare := parseFileName(name, spareSuffix)
		_, isTemporary := parseFileName(name, temporarySuffix)
		if isSpare || isTemporary {
			leftovers = append(leftovers, name)
		}
	}
	slices.Sort(numbers)
	slices.Sort(leftovers)
	return numbers, leftovers, nil
}

func (l *Log) clean(leftovers []string) error {
	for _, name := range leftovers {
		if err := l.o.FS.Remove(l.o.FS.PathJoin(l.o.Dir, name)); err != nil {
			return fmt.Errorf("wal: remove leftover: %w", err)
		}
	}
	if len(leftovers) > 0 {
		if err := l.dir.Sync(); err != nil {
			return fmt.Errorf("wal: sync directory after removing leftovers: %w", err)
		}
	}
	return nil
}

// replay reads all segments. It leaves the last one ready to be ended behind
// its last provably synced frame, and returns the batches behind that.
func (l *Log) replay(numbers []uint64, replay func(Position, Record) error) (tail []batch, err error) {
	if len(numbers) == 0 {
		if l.o.Floor > 0 {
			return nil, &Corruption{File: l.o.Dir, Reason: fmt.Sprintf("it holds no segment, but position %d was synced", l.o.Floor)}
		}
		return nil, nil
	}
	headers, err := l.readHeaders(numbers)
	if err != nil {
		return nil, err
	}

	r := reader{replay: replay}
	for i, h := range headers {
		if err := r.load(l, h); err != nil {
			return nil, err
		}
		l.size.Add(int64(len(r.data)))
		if i+1 < len(headers) {
			l.segments = append(l.segments, segment{number: h.number, first: h.first, size: int64(len(r.data))})
			if err := r.readTo(headers[i+1]); err != nil {
				return nil, err
			}
			continue
		}
		if tail, err = r.readLast(); err != nil {
			return nil, err
		}
		if r.next <= l.o.Floor {
			return nil, r.corrupt(fmt.Sprintf("the log ends before position %d, but position %d was synced", r.next, l.o.Floor))
		}
	}

	last := &writer{
		number: r.header.number, first: r.header.first, tag: r.header.tag(),
		end: r.proven.offset, synced: r.proven.offset, chain: r.proven.chain, next: r.proven.next,
		filled: int64(len(r.data)),
	}
	last.file, err = l.o.FS.OpenReadWrite(l.path(last.number, segmentSuffix), writeCategory)
	if err != nil {
		return nil, fmt.Errorf("wal: open segment %d: %w", last.number, err)
	}
	l.last = last
	return tail, nil
}

// readHeaders reads the headers of the segments and checks that each follows
// the one before.
func (l *Log) readHeaders(numbers []uint64) ([]header, error) {
	var headers []header
	b := make([]byte, headerBytes)
	for i, number := range numbers {
		name := l.path(number, segmentSuffix)
		n, err := l.readFile(name, b)
		if err != nil {
			return nil, err
		}
		h, version, reason := parseHeader(b[:n])
		switch {
		case reason != "":
		case version != formatVersion:
			return nil, &FormatError{File: name, Version: version}
		case h.identity != l.o.Identity:
			return nil, &IdentityError{File: name, Have: h.identity, Want: l.o.Identity}
		case h.number != number:
			reason = fmt.Sprintf("the file holds segment %d", h.number)
		case i > 0 && number != numbers[i-1]+1:
			reason = fmt.Sprintf("segment %d, which stood before this one, is missing", number-1)
		case i > 0 && (h.prevEnd < headerBytes || h.first < headers[i-1].first):
			reason = "the segment does not follow the one before"
		case h.started < headerBytes || h.first == 0:
			reason = "the segment header makes no sense"
		}
		if reason != "" {
			return nil, &Corruption{File: name, Reason: reason}
		}
		headers = append(headers, h)
	}
	return headers, nil
}

// readFile reads the beginning of a file into b and returns how much of b it
// could fill.
func (l *Log) readFile(name string, b []byte) (int, error) {
	f, err := l.o.FS.Open(name)
	if err != nil {
		return 0, fmt.Errorf("wal: open %s: %w", name, err)
	}
	defer f.Close()
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return n, fmt.Errorf("wal: read %s: %w", name, err)
	}
	return n, nil
}

// A batch is the payload of a frame, and the place behind the frame.
type batch struct {
	count   int
	payload []byte
	end     place
}

// A place is between two frames of a segment.
type place struct {
	offset int64
	chain  uint32   // checksum of the frame before
	next   Position // of the next record
}

// A reader walks through one segment after the other.
type reader struct {
	replay func(Position, Record) error

	// Of the segment at hand.
	name   string
	header header
	data   []byte
	place          // how far it was read
	proven place   // how far it is known to have been synced
	tail   []batch // what stands between proven and place
}

func (r *reader) corrupt(reason string) error {
	return &Corruption{File: r.name, Offset: r.offset, Reason: reason}
}

// load reads a whole segment, so that a frame is judged, replayed and copied
// from the same bytes.
func (r *reader) load(l *Log, h header) error {
	r.name, r.header = l.path(h.number, segmentSuffix), h
	info, err := l.o.FS.Stat(r.name)
	if err != nil {
		return fmt.Errorf("wal: stat %s: %w", r.name, err)
	}
	if size := int(info.Size()); cap(r.data) < size {
		r.data = make([]byte, size)
	} else {
		r.data = r.data[:size]
	}
	n, err := l.readFile(r.name, r.data)
	if err != nil {
		return err
	}
	r.data = r.data[:n]
	if again, _, reason := parseHeader(r.data); reason != "" || again != h {
		return fmt.Errorf("wal: %s changes while it is read", r.name)
	}
	r.place = place{offset: headerBytes, chain: h.checksum(r.data), next: h.first}
	r.proven, r.tail = r.place, nil
	return nil
}

// readTo replays the segment up to where its successor says that it ends.
func (r *reader) readTo(successor header) error {
	for r.offset < successor.prevEnd {
		ok, err := r.read()
		if err != nil {
			return err
		}
		if !ok {
			return r.corrupt("a frame is damaged, and the next segment says that it was synced")
		}
	}
	if r.offset != successor.prevEnd || r.chain != successor.prevChain || r.next != successor.first {
		return r.corrupt("the next segment does not follow this one")
	}
	return nil
}

// readLast replays the last segment up to its end and returns the batches
// that nothing proves to have been synced.
func (r *reader) readLast() ([]batch, error) {
	for {
		ok, err := r.read()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
	}
	// No whole frame stands here. That is the end of the log, unless something
	// says that this place was synced.
	if known := max(r.header.started, r.lookAhead()); known > r.offset || mutant.On("torn tail refused") && r.offset+4 < int64(len(r.data)) && le.Uint32(r.data[r.offset:]) != 0 {
		return nil, r.corrupt(fmt.Sprintf("a frame is damaged or missing, and the segment was synced up to offset %d", known))
	} else if err := r.prove(known); err != nil {
		return nil, err
	}
	return r.tail, nil
}

// read replays the frame at the reader's place and steps over it. It returns
// false where no whole frame stands, and an error for one that cannot stand
// here: a segment is written once from front to back, so no power loss leaves
// a frame of this segment in the wrong place.
func (r *reader) read() (ok bool, err error) {
	if r.offset >= int64(len(r.data)) {
		return false, nil
	}
	b := r.data[r.offset:]
	h, ok := parseFrameHeader(b, r.header.tag())
	if !ok {
		return false, nil
	}
	if h.first != r.next || h.chain != r.chain || h.synced > r.offset {
		return false, r.corrupt("a frame does not follow the one before")
	}
	size := frameBytes(h.payload)
	if size > int64(len(b)) || le.Uint32(b[4:]) != checksum(b[frameHeaderBytes:size]) && !mutant.On("torn batch believed") {
		return false, nil
	}
	if h.kind == kindSeal {
		return false, r.corrupt("the segment is sealed, but the one that followed it is missing")
	}

	payload := b[frameHeaderBytes:][:h.payload]
	rest := payload
	for i := range h.count {
		record, after, ok := cutRecord(rest)
		if !ok {
			return false, r.corrupt("a batch has no valid content")
		}
		if err := r.replay(r.next+Position(i), record); err != nil {
			return false, fmt.Errorf("wal: replay position %d: %w", r.next+Position(i), err)
		}
		rest = after
	}
	if len(rest) > 0 || h.kind != kindBatch && h.kind != kindMark || (h.kind == kindBatch) != (h.count > 0) {
		return false, r.corrupt("a frame has no valid content")
	}

	r.place = place{offset: r.offset + size, chain: le.Uint32(b), next: r.next + Position(h.count)}
	r.tail = append(r.tail, batch{count: h.count, payload: payload, end: r.place})
	return true, r.prove(h.synced)
}

// prove notes that all before the offset is known to have been synced.
func (r *reader) prove(offset int64) error {
	if offset <= r.proven.offset {
		return nil
	}
	for r.proven.offset < offset && len(r.tail) > 0 {
		r.proven, r.tail = r.tail[0].end, r.tail[1:]
	}
	if r.proven.offset != offset {
		return r.corrupt(fmt.Sprintf("the segment was synced up to offset %d, where no frame ends", offset))
	}
	return nil
}

// lookAhead returns the highest synced mark behind the reader's place. The
// header of a frame is enough: it was written after that sync had returned.
func (r *reader) lookAhead() int64 {
	var synced int64
	tag := le.AppendUint64(nil, r.header.tag())
	for at := r.offset; ; {
		i := bytes.Index(r.data[min(at+8, int64(len(r.data))):], tag)
		if i < 0 {
			return synced
		}
		at += int64(i)
		if h, ok := parseFrameHeader(r.data[at:], r.header.tag()); ok {
			synced = max(synced, h.synced)
		}
		at++
	}
}
