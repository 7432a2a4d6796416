package state

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/kvorum/kvorum/internal/mutant"
	"github.com/kvorum/kvorum/state/internal/table"
)

// A snapshot is the replicated rows of a table, in order, in frames:
//
//	length 4 | CRC of the payload 4 | CRC of frame number 8, length and CRC 4 | payload
//
// all big endian, CRC-32C. The head is checked before its length is believed,
// and the number finds frames that were lost, repeated or swapped. The first
// payload says what this is, those after it hold rows, and the last is empty.
const (
	frameHeadBytes = 12
	frameBytes     = 256 << 10 // a frame ends with the row that fills it
	snapshotMagic  = "kvorum snapshot\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Snapshot is the state as of an entry, while Apply goes on. It must be closed.
type Snapshot struct {
	Index         Index
	Term          Term
	Configuration []byte // of consensus at Index

	rows table.Snapshot
	id   []byte
}

// Snapshot returns the state as it is now.
func (m *Machine) Snapshot() (*Snapshot, error) {
	s := &Snapshot{rows: m.View().core.table.Snapshot()}
	if err := s.read(); err != nil {
		return nil, fmt.Errorf("state: snapshot: %w", errors.Join(err, s.rows.Close()))
	}
	return s, nil
}

func (s *Snapshot) read() error {
	// The position is a row as others are, so it is that of these very rows.
	encoded, found, err := s.rows.Get(positionKey)
	if err != nil {
		return err
	}
	if !found {
		return errors.New("nothing was applied yet")
	}
	at, err := parsePosition(encoded)
	if err != nil {
		return err
	}
	s.Index, s.Term = at.index, at.term
	if s.Configuration, _, err = s.rows.Get(configurationKey); err != nil {
		return err
	}
	s.id, _, err = s.rows.Get(identityKey)
	return err
}

// Close lets go of what the snapshot holds.
func (s *Snapshot) Close() error { return s.rows.Close() }

// WriteSnapshot writes the state as it is now, and returns the index of the
// entry that it is as of.
func (m *Machine) WriteSnapshot(w io.Writer) (Index, error) {
	s, err := m.Snapshot()
	if err != nil {
		return 0, err
	}
	if err := errors.Join(s.Write(w), s.Close()); err != nil {
		return 0, err
	}
	return s.Index, nil
}

// Write writes the snapshot. Little of it is in memory at a time.
func (s *Snapshot) Write(w io.Writer) error {
	if err := s.write(w); err != nil {
		return fmt.Errorf("state: write snapshot: %w", err)
	}
	return nil
}

func (s *Snapshot) write(w io.Writer) error {
	f := frameWriter{w: w}
	f.payload = append(f.payload, snapshotMagic...)
	f.payload = append(f.payload, s.id...)
	if err := f.flush(); err != nil {
		return err
	}
	var failed error
	err := s.rows.Scan([]byte{table.Meta}, []byte{0xff}, func(key, value []byte) bool {
		f.payload = binary.AppendUvarint(f.payload, uint64(len(key)))
		f.payload = append(f.payload, key...)
		f.payload = binary.AppendUvarint(f.payload, uint64(len(value)))
		f.payload = append(f.payload, value...)
		if len(f.payload) >= frameBytes {
			failed = f.flush()
		}
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	if len(f.payload) > 0 {
		if err := f.flush(); err != nil {
			return err
		}
	}
	return f.flush() // empty: those were all
}

type frameWriter struct {
	w       io.Writer
	number  uint64
	payload []byte
}

// flush writes the payload as a frame.
func (f *frameWriter) flush() error {
	var head [frameHeadBytes]byte
	frameHead(&head, f.number, len(f.payload), crc32.Checksum(f.payload, castagnoli))
	f.number++
	if _, err := f.w.Write(head[:]); err != nil {
		return err
	}
	if _, err := f.w.Write(f.payload); err != nil {
		return err
	}
	f.payload = f.payload[:0]
	return nil
}

func frameHead(head *[frameHeadBytes]byte, number uint64, length int, crc uint32) {
	binary.BigEndian.PutUint32(head[0:], uint32(length))
	binary.BigEndian.PutUint32(head[4:], crc)
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], number)
	c := crc32.Update(crc32.Checksum(n[:], castagnoli), castagnoli, head[:8])
	binary.BigEndian.PutUint32(head[8:], c)
}

type frameReader struct {
	r       io.Reader
	number  uint64
	payload bytes.Buffer
}

var errSnapshot = errors.New("damaged snapshot")

// next reads a frame's payload, which is valid until the next one.
func (f *frameReader) next() ([]byte, error) {
	var head, want [frameHeadBytes]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return nil, fmt.Errorf("frame %d: %w", f.number, noEnd(err))
	}
	length, crc := binary.BigEndian.Uint32(head[0:]), binary.BigEndian.Uint32(head[4:])
	frameHead(&want, f.number, int(length), crc)
	if head != want {
		return nil, fmt.Errorf("frame %d: %w", f.number, errSnapshot)
	}
	f.payload.Reset()
	if n, err := io.CopyN(&f.payload, f.r, int64(length)); err != nil {
		return nil, fmt.Errorf("frame %d, after %d bytes: %w", f.number, n, noEnd(err))
	}
	if crc32.Checksum(f.payload.Bytes(), castagnoli) != crc {
		return nil, fmt.Errorf("frame %d: %w", f.number, errSnapshot)
	}
	f.number++
	return f.payload.Bytes(), nil
}

// noEnd turns an end of file into what it is where more was promised.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Restore replaces the state by that of a snapshot, which must be newer. All of
// it is read, checked, and durable beside the old state before it takes its
// place: a crash leaves the one or the other, and so does an error. Views of
// the old state stay good for what they hold in memory.
func (m *Machine) Restore(r io.Reader) error {
	if m.broken != nil {
		return m.broken
	}
	old := m.View()
	stage, err := old.core.table.Stage()
	if err != nil {
		return fmt.Errorf("state: restore: %w", err)
	}
	next, err := m.stage(stage, r, old)
	if err != nil {
		return errors.Join(fmt.Errorf("state: restore: %w", err), stage.Discard())
	}

	m.sweeping.Lock()
	defer m.sweeping.Unlock()
	if err := stage.Install(); err != nil {
		m.broken = fmt.Errorf("state: restore: %w", err) // which of the two is there is for Open to find
		return m.broken
	}
	m.durable.Store(uint64(next.Index))
	m.view.Store(next)
	if err := old.core.table.Close(); err != nil {
		return fmt.Errorf("state: restore: close what was before: %w", err)
	}
	return nil
}

// stage fills a table from a snapshot and makes its view.
func (m *Machine) stage(stage table.Stage, r io.Reader, old *View) (*View, error) {
	batch := stage.Batch()
	defer batch.Close()
	f := frameReader{r: bufio.NewReaderSize(r, 64<<10)}
	payload, err := f.next()
	if err != nil {
		return nil, err
	}
	encoded, ok := bytes.CutPrefix(payload, []byte(snapshotMagic))
	if !ok {
		return nil, fmt.Errorf("not a snapshot: %w", errSnapshot)
	}
	if err := m.checkIdentity(encoded, old); err != nil {
		return nil, err
	}

	last := []byte{table.Meta - 1, 0xff}
	for {
		payload, err := f.next()
		if err != nil {
			return nil, err
		}
		if len(payload) == 0 {
			break
		}
		for len(payload) > 0 {
			key, n := cutBytes(payload)
			if n == 0 || bytes.Compare(last, key) >= 0 {
				return nil, fmt.Errorf("row behind %x: %w", last, errSnapshot)
			}
			last = append(last[:0], key...)
			payload = payload[n:]
			value, n := cutBytes(payload)
			if n == 0 {
				return nil, fmt.Errorf("row behind %x: %w", last, errSnapshot)
			}
			payload = payload[n:]
			batch.Set(key, value)
		}
		if err := batch.Commit(); err != nil {
			return nil, err
		}
	}

	next, err := m.load(stage)
	if err != nil {
		return nil, err
	}
	if mutant.On("members survive a snapshot") && old.Index > 0 {
		next.members = old.members
	}
	if mutant.On("index survives a snapshot") && old.Index > 0 {
		batch.Set(positionKey, position{old.Index, old.Term, old.Revision, old.Compacted, old.Checksum}.append(nil))
		_ = batch.Commit()
	}
	if next.Index <= old.Index {
		return nil, fmt.Errorf("the snapshot is of index %d, which is not above %d", next.Index, old.Index)
	}
	if m.member != 0 {
		if err := m.writeMember(stage.Batch()); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// checkIdentity refuses the snapshot of another cluster.
func (m *Machine) checkIdentity(encoded []byte, old *View) error {
	if len(encoded) == 0 {
		return nil // of a machine that was never told who it is
	}
	id, err := parseIdentity(encoded)
	if err != nil {
		return err
	}
	for _, own := range []ClusterID{old.Cluster, m.options.Cluster} {
		if own != 0 && id.cluster != own {
			return fmt.Errorf("the snapshot belongs to cluster %x, not to %x", id.cluster, own)
		}
	}
	return nil
}

// cutBytes returns the bytes at the beginning of b that follow their length,
// and how much of b both take; 0 if b is cut short.
func cutBytes(b []byte) ([]byte, int) {
	length, n := binary.Uvarint(b)
	if n <= 0 || length > uint64(len(b)-n) {
		return nil, 0
	}
	end := n + int(length)
	return b[n:end], end
}
