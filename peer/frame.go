package peer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// PROTOCOL.md says what each byte of a frame means.
const (
	headBytes    = 20
	keptBytes    = 1 << 20 // a buffer larger than this is not kept for the next frame
	readingBytes = 64 << 10
)

type frameType uint8

const (
	frameMessage       frameType = 1
	framePing          frameType = 2
	framePong          frameType = 3
	frameAlive         frameType = 4
	frameBye           frameType = 5
	frameSnapshot      frameType = 6
	frameChunk         frameType = 7
	frameSnapshotEnd   frameType = 8
	frameSnapshotTaken frameType = 9
	frameCall          frameType = 10
	frameAnswer        frameType = 11
	frameCancel        frameType = 12
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errFrame    = errors.New("damaged frame")
	errTooLarge = errors.New("frame too large")
)

// frameWriter collects frames of one direction of a connection, to be written
// together.
type frameWriter struct {
	lane   Lane
	number uint32 // of the next frame
	buf    []byte
	at     int // where the open frame begins
}

// open begins a frame: what is appended to buf until close is its payload.
func (w *frameWriter) open() {
	var head [headBytes]byte
	w.at = len(w.buf)
	w.buf = append(w.buf, head[:]...)
}

func (w *frameWriter) close(t frameType) {
	head, payload := w.buf[w.at:w.at+headBytes], w.buf[w.at+headBytes:]
	binary.BigEndian.PutUint32(head[0:], uint32(len(payload)))
	head[4], head[5] = uint8(t), uint8(w.lane)
	binary.BigEndian.PutUint32(head[8:], w.number)
	binary.BigEndian.PutUint32(head[12:], crc32.Checksum(payload, castagnoli))
	binary.BigEndian.PutUint32(head[16:], crc32.Checksum(head[:16], castagnoli))
	w.number++
}

// abandon takes back the open frame.
func (w *frameWriter) abandon() { w.buf = w.buf[:w.at] }

// written empties the buffer.
func (w *frameWriter) written() {
	if w.buf = w.buf[:0]; cap(w.buf) > keptBytes {
		w.buf = nil
	}
}

// frameReader reads the frames of one direction of a connection. The head is
// checked before its length is believed; the number finds frames that were
// lost, repeated or swapped.
type frameReader struct {
	r      *bufio.Reader
	lane   Lane
	max    int    // of a payload
	number uint32 // of the next frame
	buf    []byte
}

func newFrameReader(r io.Reader, lane Lane, max int) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, readingBytes), lane: lane, max: max}
}

// next returns a frame's payload, valid until the next one. The error is
// io.EOF only where one frame has ended and no other begun.
func (f *frameReader) next() (frameType, []byte, error) {
	head, err := f.r.Peek(headBytes)
	if err != nil {
		if errors.Is(err, io.EOF) && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	if binary.BigEndian.Uint32(head[16:]) != crc32.Checksum(head[:16], castagnoli) {
		return 0, nil, fmt.Errorf("head of frame %d: %w", f.number, errFrame)
	}
	length, t := binary.BigEndian.Uint32(head[0:]), frameType(head[4])
	if Lane(head[5]) != f.lane || head[6] != 0 || head[7] != 0 || binary.BigEndian.Uint32(head[8:]) != f.number {
		return 0, nil, fmt.Errorf("frame %d is out of place: %w", f.number, errFrame)
	}
	if uint64(length) > uint64(f.max) {
		return 0, nil, fmt.Errorf("frame %d of %d bytes: %w", f.number, length, errTooLarge)
	}
	want := binary.BigEndian.Uint32(head[12:])
	f.r.Discard(headBytes)

	payload, err := f.payload(int(length))
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	if crc32.Checksum(payload, castagnoli) != want {
		return 0, nil, fmt.Errorf("payload of frame %d: %w", f.number, errFrame)
	}
	f.number++
	return t, payload, nil
}

// payload reads n bytes. Memory is taken as they arrive, not as they are
// announced.
func (f *frameReader) payload(n int) ([]byte, error) {
	if cap(f.buf) > keptBytes {
		f.buf = nil
	}
	f.buf = f.buf[:0]
	for len(f.buf) < n {
		step := min(n-len(f.buf), max(len(f.buf), readingBytes))
		at := len(f.buf)
		if cap(f.buf) < at+step {
			grown := make([]byte, at, at+step)
			copy(grown, f.buf)
			f.buf = grown
		}
		f.buf = f.buf[:at+step]
		if _, err := io.ReadFull(f.r, f.buf[at:]); err != nil {
			return nil, err
		}
	}
	return f.buf, nil
}
