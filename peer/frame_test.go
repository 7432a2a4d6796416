package peer

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"
	"testing/iotest"
)

func frames(payloads ...[]byte) []byte {
	w := frameWriter{lane: Log}
	for i, p := range payloads {
		w.open()
		w.buf = append(w.buf, p...)
		w.close(frameType(i%12 + 1))
	}
	return w.buf
}

func readAll(r io.Reader, max int) (payloads [][]byte, err error) {
	f := newFrameReader(r, Log, max)
	for {
		_, p, err := f.next()
		if err != nil {
			return payloads, err
		}
		payloads = append(payloads, bytes.Clone(p))
	}
}

func TestFrames(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var want [][]byte
	for _, n := range []int{0, 1, 300, readingBytes - headBytes, readingBytes, 3*readingBytes + 1, keptBytes + 7, 5} {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		want = append(want, p)
	}
	wire := frames(want...)
	for _, in := range []io.Reader{bytes.NewReader(wire), iotest.HalfReader(bytes.NewReader(wire))} {
		got, err := readAll(in, 4<<20)
		if err != io.EOF || !reflect.DeepEqual(got, want) && len(got) != len(want) {
			t.Fatalf("%d frames, %v", len(got), err)
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("frame %d differs", i)
			}
		}
	}
	if got, err := readAll(bytes.NewReader(wire), 3*readingBytes); !errors.Is(err, errTooLarge) || len(got) != 5 {
		t.Errorf("a frame that is too large: %d frames, %v", len(got), err)
	}
}

// Whatever happens to the bytes, what is read is a prefix of what was written.
func TestDamagedFrames(t *testing.T) {
	want := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("two"), 50), []byte("three")}
	wire := frames(want...)
	check := func(what string, at int, wire []byte) {
		t.Helper()
		got, err := readAll(bytes.NewReader(wire), 1<<20)
		if err == io.EOF && len(got) == len(want) {
			t.Errorf("%s at %d: not noticed", what, at)
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("%s at %d: frame %d is %q", what, at, i, got[i])
			}
		}
	}
	for bit := range 8 * len(wire) {
		b := bytes.Clone(wire)
		b[bit/8] ^= 1 << (bit % 8)
		check("flip", bit, b)
	}
	for at := range wire {
		check("cut", at, wire[:at])
		check("hole", at, append(bytes.Clone(wire[:at]), wire[at+1:]...))
	}
	one := len(frames(want[0]))
	check("repeated", 0, append(bytes.Clone(wire[:one]), wire...))
	check("left out", 0, wire[one:])

	if _, err := readAll(bytes.NewReader(wire[:one+3]), 1<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an end within a frame: %v", err)
	}
	f := newFrameReader(bytes.NewReader(wire), Urgent, 1<<20)
	if _, _, err := f.next(); err == nil {
		t.Error("a frame of another lane is taken")
	}
}

// A head that promises much takes no memory.
func TestPromisesCostNothing(t *testing.T) {
	w := frameWriter{lane: Log, buf: make([]byte, 0, 1<<26+100)}
	w.open()
	w.buf = w.buf[:1<<26]
	w.close(frameMessage)
	head := bytes.Clone(w.buf[:headBytes])
	w.buf = nil
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := readAll(bytes.NewReader(head), 1<<27)
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, io.ErrUnexpectedEOF) || took > 1<<20 {
		t.Errorf("%v, after taking %d bytes", err, took)
	}
}

func TestHello(t *testing.T) {
	h := &hello{
		min: 1, max: 3, lane: Calls, refusal: Removed, cluster: 1, from: 2, to: 3, incarnation: 4, attempt: 5,
		membership: 6, server: "3.7.3", text: "gone", addresses: []string{"http://a", "http://b"},
	}
	wire := h.append([]byte("before"))[len("before"):]
	got, err := readHello(iotest.OneByteReader(bytes.NewReader(wire)))
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("%+v, %v", got, err)
	}
	for bit := range 8 * len(wire) {
		b := bytes.Clone(wire)
		b[bit/8] ^= 1 << (bit % 8)
		if got, err := readHello(bytes.NewReader(b)); err == nil {
			t.Fatalf("bit %d: %+v", bit, got)
		}
	}
	for at := range wire {
		if _, err := readHello(bytes.NewReader(wire[:at])); err == nil || err == io.EOF {
			t.Errorf("cut at %d: %v", at, err)
		}
	}

	// Longer than fits: addresses are left out, text is cut, and it still reads.
	h.server, h.text, h.addresses = string(make([]byte, 300)), string(make([]byte, 999)), nil
	for range 40 {
		h.addresses = append(h.addresses, string(make([]byte, 255)), string(make([]byte, 256)))
	}
	got, err = readHello(bytes.NewReader(h.append(nil)))
	if err != nil || len(got.server) != 255 || len(got.addresses) != addressesMax-1 {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(frames([]byte("one"), nil, []byte("three")))
	f.Add(frames(make([]byte, 1000))[:500])
	f.Fuzz(func(t *testing.T, wire []byte) {
		payloads, err := readAll(bytes.NewReader(wire), 1<<16)
		if err == nil {
			t.Fatal("no end")
		}
		size := 0
		for _, p := range payloads {
			size += headBytes + len(p)
		}
		if size > len(wire) {
			t.Fatalf("%d bytes became frames of %d", len(wire), size)
		}
	})
}

func FuzzHello(f *testing.F) {
	h := &hello{min: 1, max: 1, lane: Log, cluster: 1, from: 2, to: 3, server: "x", addresses: []string{"http://a"}}
	f.Add(h.append(nil)[helloHeadBytes:])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, body []byte) {
		readHello(bytes.NewReader(body))
		h, err := parseHello(body)
		if err != nil {
			return
		}
		// What is read is written as it is read.
		again, err := readHello(bytes.NewReader(h.append(nil)))
		if err != nil || !reflect.DeepEqual(again, h) {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
	})
}
