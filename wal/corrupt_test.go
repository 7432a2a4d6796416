package wal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A specimen is a log on disk and what is known of it.
type specimen struct {
	files   map[string][]byte
	records []string
	synced  Position // last record known to be synced
	last    string   // name of the last segment
	end     int64    // what of it is synced
}

// newSpecimen makes a log of several segments, one of them recycled. It ends
// with unsynced batches, and is settled before them if asked for.
func newSpecimen(t *testing.T, settle bool, unsynced int) specimen {
	t.Helper()
	return newSpecimenOf(t, 'x', settle, unsynced)
}

func newSpecimenOf(t *testing.T, content byte, settle bool, unsynced int) specimen {
	t.Helper()
	mem := vfs.NewMem()
	s := story{}
	if err := s.open(mem); err != nil {
		t.Fatal(err)
	}
	add := func(size int) {
		t.Helper()
		p, err := s.log.Append(
			Record{1, fmt.Appendf(nil, "%d/0/2 %s", s.appended, bytes.Repeat([]byte{content}, size))},
			Record{2, fmt.Appendf(nil, "%d/1/2 ", s.appended)})
		if err != nil {
			t.Fatal(err)
		}
		s.appended++
		s.starts = append(s.starts, p)
	}
	sync := func() {
		t.Helper()
		if err := s.log.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 40 {
		add(700)
		if i%2 == 0 {
			sync()
		}
		if i == 22 {
			if err := s.log.Release(s.starts[12]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 3 {
		add(600)
		sync()
	}
	if settle {
		if err := s.log.Settle(); err != nil {
			t.Fatal(err)
		}
	}
	sp := specimen{synced: s.log.last.next - 1, end: s.log.last.synced, last: fileName(s.log.last.number, segmentSuffix)}
	for range unsynced {
		add(600)
	}
	s.log.closeFiles()
	sp.files = readAll(mem)
	_, sp.records, _ = sp.read(sp.files, 0)
	if len(sp.files) < 4 || len(sp.records) < 20 {
		t.Fatalf("a poor specimen: %d files, %d records", len(sp.files), len(sp.records))
	}
	return sp
}

// read opens a log and returns its last position and records.
func (sp specimen) read(files map[string][]byte, floor Position) (last Position, records []string, err error) {
	mem := newMem(files)
	o := storyOptions(mem, &story{})
	o.Floor = floor
	o.Head = nil
	l, err := Open(o, func(p Position, r Record) error {
		last = p
		records = append(records, fmt.Sprintf("%d:%d:%s", p, r.Type, r.Data))
		return nil
	})
	if err == nil {
		return last, records, l.Close()
	}
	after := readAll(mem)
	if !maps.EqualFunc(files, after, bytes.Equal) {
		err = fmt.Errorf("and the files were changed: %w", errChanged)
	}
	return last, records, err
}

var errChanged = errors.New("changed")

// damaged returns the files with one of them changed.
func (sp specimen) damaged(name string, change func([]byte) []byte) map[string][]byte {
	files := maps.Clone(sp.files)
	files[name] = change(slices.Clone(files[name]))
	return files
}

func (sp specimen) flipped(name string, at [2]int) map[string][]byte {
	return sp.damaged(name, func(b []byte) []byte { b[at[0]] ^= 1 << at[1]; return b })
}

// segments returns the names of the segments, oldest first.
func (sp specimen) segments() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(sp.files)) {
		if _, ok := parseFileName(name, segmentSuffix); ok {
			names = append(names, name)
		}
	}
	return names
}

// judge fails the test unless the damage was noticed or did not matter, and
// returns which: "whole", "refused", or "cut" for what may be cut.
func (sp specimen) judge(t *testing.T, what string, files map[string][]byte, floor Position) string {
	t.Helper()
	last, records, err := sp.read(files, floor)
	var (
		corruption *Corruption
		version    *FormatError
		identity   *IdentityError
	)
	switch {
	case errors.As(err, &corruption), errors.As(err, &version), errors.As(err, &identity):
		return "refused"
	case err != nil:
		t.Fatalf("%s: %v", what, err)
	case slices.Equal(records, sp.records):
		return "whole"
	case len(records) > len(sp.records) || !slices.Equal(records, sp.records[:len(records)]):
		t.Fatalf("%s: records that were never written", what)
	case last < sp.synced:
		return "lost"
	}
	return "cut"
}

// places returns the offsets in a segment that are worth damaging: all bytes
// of headers, and every so many of the rest.
func places(data []byte) (bits [][2]int) {
	h, _, _ := parseHeader(data)
	dense := map[int]bool{}
	for i := range headerBytes {
		dense[i] = true
	}
	for at := range data {
		if _, ok := parseFrameHeader(data[at:], h.tag()); ok {
			for i := range frameHeaderBytes + 4 {
				dense[at+i] = true
			}
		}
	}
	for at := range data {
		if dense[at] {
			for bit := range 8 {
				bits = append(bits, [2]int{at, bit})
			}
		} else if at%8 == 0 {
			bits = append(bits, [2]int{at, at / 8 % 8})
		}
	}
	return bits
}

// TestBitFlips flips bits one at a time. Where a mark follows the last sync
// no flip may pass, and none in unsynced batches may raise an alarm.
func TestBitFlips(t *testing.T) {
	sp := newSpecimen(t, true, 3)
	got := map[string]int{}
	for _, name := range sp.segments() {
		for _, at := range places(sp.files[name]) {
			what := fmt.Sprintf("%s, byte %d, bit %d", name, at[0], at[1])
			verdict := sp.judge(t, what, sp.flipped(name, at), 0)
			unsynced := name == sp.last && int64(at[0]) >= sp.end
			if unsynced && verdict == "refused" || !unsynced && verdict == "cut" || verdict == "lost" {
				t.Fatalf("%s: %s", what, verdict)
			}
			got[verdict]++
		}
	}
	t.Log(got)
}

// TestBitFlipsInLastSync flips bits where nothing was written after the last
// sync. Only the floor can tell that damage to it is a loss.
func TestBitFlipsInLastSync(t *testing.T) {
	sp := newSpecimen(t, false, 0)
	got := map[string]int{}
	for _, at := range places(sp.files[sp.last]) {
		what := fmt.Sprintf("%s, byte %d, bit %d", sp.last, at[0], at[1])
		files := sp.flipped(sp.last, at)
		if verdict := sp.judge(t, what, files, sp.synced); verdict == "lost" {
			t.Fatalf("%s: lost in spite of the floor", what)
		}
		got[sp.judge(t, what, files, 0)]++
	}
	t.Logf("without floor: %v", got)
	if got["lost"] == 0 {
		t.Error("the last sync can be proven without a floor now: say so in FORMAT.md")
	}
}

func TestDamagedSectors(t *testing.T) {
	sp := newSpecimen(t, true, 2)
	got := map[string]int{}
	try := func(what, name string, at int, change func([]byte) []byte) {
		t.Helper()
		verdict := sp.judge(t, what, sp.damaged(name, change), 0)
		if verdict == "lost" || verdict == "cut" && (name != sp.last || int64(at) < sp.end/sectorBytes*sectorBytes) {
			t.Fatalf("%s: %s", what, verdict)
		}
		got[verdict]++
	}
	for _, name := range sp.segments() {
		size := len(sp.files[name])
		for at := 0; at+sectorBytes <= size; at += sectorBytes {
			try(fmt.Sprintf("%s: zero sector at %d", name, at), name, at, func(b []byte) []byte {
				clear(b[at : at+sectorBytes])
				return b
			})
			for to := at + sectorBytes; to+sectorBytes <= min(size, at+6*sectorBytes); to += sectorBytes {
				try(fmt.Sprintf("%s: swap sectors at %d and %d", name, at, to), name, at, func(b []byte) []byte {
					x := slices.Clone(b[at : at+sectorBytes])
					copy(b[at:], b[to:to+sectorBytes])
					copy(b[to:], x)
					return b
				})
				try(fmt.Sprintf("%s: sector at %d over %d", name, to, at), name, at, func(b []byte) []byte {
					copy(b[at:], b[to:to+sectorBytes])
					return b
				})
			}
		}
		// A frame that is gone whole looks like the end of the log.
		for _, f := range frames(sp.files[name]) {
			try(fmt.Sprintf("%s: zero bytes %d to %d", name, f[0], f[1]), name, f[0], func(b []byte) []byte {
				clear(b[f[0]:f[1]])
				return b
			})
		}
		for at := range size {
			if at%7 != 0 {
				continue
			}
			if verdict := sp.judge(t, "", sp.damaged(name, func(b []byte) []byte { return b[:at] }), sp.synced); verdict == "lost" {
				t.Fatalf("%s cut off at %d: lost", name, at)
			}
		}
	}
	t.Log(got)
}

// frames returns where the frames of a segment begin and end.
func frames(data []byte) (all [][2]int) {
	h, _, _ := parseHeader(data)
	for at := headerBytes; ; {
		f, ok := parseFrameHeader(data[at:], h.tag())
		if !ok {
			return all
		}
		end := at + int(frameBytes(f.payload))
		all = append(all, [2]int{at, end})
		at = end
	}
}

// TestDamageAfterOpen damages what Open wrote, before anything came behind it.
func TestDamageAfterOpen(t *testing.T) {
	sp := newSpecimen(t, false, 4)
	mem := newMem(sp.files)
	s := story{released: 12} // by newSpecimen
	if err := s.open(mem); err != nil {
		t.Fatal(err)
	}
	s.log.closeFiles()
	sp.files = readAll(mem)
	sp.last = fileName(s.log.last.number, segmentSuffix)
	all := frames(sp.files[sp.last])
	if len(all) < 5 {
		t.Fatalf("%d frames, want the batches that were not known to be synced, and a head", len(all))
	}
	for _, f := range all {
		for at := f[0]; at < f[1]; at++ {
			if verdict := sp.judge(t, "", sp.flipped(sp.last, [2]int{at, 1}), 0); verdict != "refused" {
				t.Fatalf("byte %d of %s: %s", at, sp.last, verdict)
			}
		}
	}
}

// TestTwin puts parts of a log in another that differs in its content alone.
func TestTwin(t *testing.T) {
	a, b := newSpecimenOf(t, 'x', true, 0), newSpecimenOf(t, 'y', true, 0)
	names := a.segments()
	for i, name := range names {
		if i > 0 {
			files := maps.Clone(a.files)
			files[name] = b.files[name]
			if verdict := a.judge(t, name, files, 0); verdict != "refused" {
				t.Errorf("the other's %s: %s", name, verdict)
			}
		}
		for _, f := range frames(a.files[name]) {
			h, _ := parseFrameHeader(a.files[name][f[0]:], storySalt^le.Uint64(a.files[name][32:]))
			if h.kind != kindBatch {
				continue // its successor may be nothing, or its chain may not matter
			}
			files := a.damaged(name, func(data []byte) []byte {
				copy(data[f[0]:f[1]], b.files[name][f[0]:f[1]])
				return data
			})
			if bytes.Equal(files[name], a.files[name]) {
				continue
			}
			if verdict := a.judge(t, name, files, 0); verdict != "refused" {
				t.Errorf("the other's bytes %d to %d of %s: %s", f[0], f[1], name, verdict)
			}
		}
	}
}

func TestFloor(t *testing.T) {
	sp := newSpecimen(t, false, 0)
	if verdict := sp.judge(t, "floor at the end", sp.files, sp.synced); verdict != "whole" {
		t.Errorf("a floor at the last position: %s", verdict)
	}
	if verdict := sp.judge(t, "floor behind the end", sp.files, sp.synced+1); verdict != "refused" {
		t.Errorf("a floor behind the last position: %s", verdict)
	}
}

func TestMissingSegments(t *testing.T) {
	sp := newSpecimen(t, false, 0)
	names := sp.segments()
	for i, name := range names {
		if i == 0 {
			continue // it could have been released: its user has to notice
		}
		files := maps.Clone(sp.files)
		delete(files, name)
		if verdict := sp.judge(t, name, files, 0); verdict != "refused" {
			t.Errorf("without %s (%d of %d): %s", name, i+1, len(names), verdict)
		}
	}
	if verdict := sp.judge(t, "no files", nil, 1); verdict != "refused" {
		t.Errorf("without any file, but with a floor: %s", verdict)
	}
}

func TestForeignFiles(t *testing.T) {
	sp := newSpecimen(t, false, 0)
	names := sp.segments()
	name := names[1]

	_, _, err := sp.read(sp.damaged(name, func(b []byte) []byte {
		le.PutUint32(b[8:], formatVersion+1)
		le.PutUint32(b[12:], checksum(b[:12]))
		return b
	}), 0)
	var version *FormatError
	if !errors.As(err, &version) || version.Version != formatVersion+1 {
		t.Errorf("a newer version: %v", err)
	}

	_, _, err = sp.read(sp.damaged(name, func(b []byte) []byte {
		h, _, _ := parseHeader(b)
		h.identity[0]++
		copy(b, h.append(nil))
		return b
	}), 0)
	var identity *IdentityError
	if !errors.As(err, &identity) {
		t.Errorf("another member's segment: %v", err)
	}

	files := maps.Clone(sp.files)
	files[names[2]], files[names[1]] = files[names[1]], files[names[2]]
	if verdict := sp.judge(t, "swapped files", files, 0); verdict != "refused" {
		t.Errorf("swapped files: %s", verdict)
	}
}
