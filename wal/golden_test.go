package wal

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// goldenLog writes a log that has everything FORMAT.md describes: a restart
// with batches that were not synced, a head, a mark and a seal.
func goldenLog(t *testing.T, fs vfs.FS) {
	t.Helper()
	salt := uint64(0x1122334455667788)
	o := Options{
		FS: fs, Dir: "/" + testDir, SegmentBytes: 4096,
		Identity: [16]byte{'c', 'l', 'u', 's', 't', 'e', 'r', '1', 'm', 'e', 'm', 'b', 'e', 'r', '0', '1'},
		Salt:     func() uint64 { salt++; return salt },
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(o, nil)
	do(err)
	_, err = l.Append(Record{1, []byte("first")}, Record{2, nil})
	do(err)
	do(l.Sync())
	_, err = l.Append(Record{3, bytes.Repeat([]byte("0123456789"), 20)})
	do(err)
	do(l.closeFiles()) // without sync or mark

	o.Head = func() []Record { return []Record{{9, []byte("head")}} }
	l, err = Open(o, func(Position, Record) error { return nil })
	do(err)
	_, err = l.Append(Record{4, []byte("after the restart")})
	do(err)
	do(l.Close())
}

func TestGolden(t *testing.T) {
	mem := vfs.NewMem()
	goldenLog(t, mem)
	dir := filepath.Join("testdata", "v1")
	files := readAll(mem)
	if *rewrite {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}

	golden := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		golden[e.Name()] = data
	}
	if len(golden) != len(files) {
		t.Fatalf("%d files written, %d golden", len(files), len(golden))
	}
	for name, want := range golden {
		if got := files[name]; !bytes.Equal(got, want) {
			i := 0
			for i < min(len(got), len(want)) && got[i] == want[i] {
				i++
			}
			t.Errorf("%s differs from the golden file at offset %d", name, i)
		}
	}

	var got []string
	l, err := Open(Options{
		FS: newMem(golden), Dir: "/" + testDir,
		Identity: [16]byte{'c', 'l', 'u', 's', 't', 'e', 'r', '1', 'm', 'e', 'm', 'b', 'e', 'r', '0', '1'},
	}, func(p Position, r Record) error {
		got = append(got, fmt.Sprintf("%d type %d %q", p, r.Type, r.Data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := []string{
		`1 type 1 "first"`,
		`2 type 2 ""`,
		fmt.Sprintf(`3 type 3 %q`, strings.Repeat("0123456789", 20)),
		`4 type 9 "head"`,
		`5 type 4 "after the restart"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("read %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// FuzzReplay opens a log whose last segment has any bytes. The header and the
// checksums are made right in one of two tries, so that the fuzzer gets past.
func FuzzReplay(f *testing.F) {
	mem := vfs.NewMem()
	s := story{}
	if err := s.open(mem); err != nil {
		f.Fatal(err)
	}
	for range 5 {
		if _, err := s.log.Append(Record{1, []byte("0/0/1 x")}, Record{2, []byte("y")}); err != nil {
			f.Fatal(err)
		}
		if err := s.log.Sync(); err != nil {
			f.Fatal(err)
		}
	}
	s.log.closeFiles()
	valid := readAll(mem)[fileName(1, segmentSuffix)][:2048]
	f.Add(valid, false)
	f.Add(valid, true)
	f.Add(valid[headerBytes:], true)
	f.Add([]byte{}, false)

	f.Fuzz(func(t *testing.T, data []byte, repair bool) {
		if repair {
			data = repaired(data, valid[:headerBytes])
		}
		mem := newMem(map[string][]byte{fileName(1, segmentSuffix): data})
		o := storyOptions(mem, &s)
		var next Position
		total := 0
		l, err := Open(o, func(p Position, r Record) error {
			if next != 0 && p != next || r.Type == 0 {
				t.Fatalf("record %d of type %d after %d", p, r.Type, next-1)
			}
			next = p + 1
			total += 2 + len(r.Data)
			return nil
		})
		if total > len(data) {
			t.Fatalf("%d bytes of records in %d bytes", total, len(data))
		}
		if err != nil {
			return
		}
		if _, err := l.Append(Record{1, nil}); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// repaired puts a valid header before the data and gives the frames in it the
// tag, place and checksums that they need.
func repaired(data, head []byte) []byte {
	b := append(slices.Clone(head), data...)
	h, _, _ := parseHeader(head)
	chain, next := h.checksum(head), uint64(h.first)
	for at := headerBytes; at+frameHeaderBytes <= len(b); {
		p := b[at:]
		size := frameBytes(int(le.Uint32(p[36:]) % 1024))
		if size > int64(len(p)) {
			break
		}
		le.PutUint32(p[4:], checksum(p[frameHeaderBytes:size]))
		le.PutUint64(p[8:], h.tag())
		le.PutUint64(p[16:], next)
		le.PutUint32(p[32:], chain)
		le.PutUint32(p[36:], uint32(size-frameHeaderBytes))
		chain = checksum(p[4:frameHeaderBytes])
		le.PutUint32(p, chain)
		next += uint64(le.Uint32(p[40:]))
		at += int(size)
	}
	return b
}
