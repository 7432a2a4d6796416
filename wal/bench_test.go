package wal

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func benchLog(b *testing.B) *Log {
	b.Helper()
	l, err := Open(Options{FS: vfs.Default, Dir: filepath.Join(b.TempDir(), "wal")}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return l
}

func BenchmarkAppend(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("records=%d/sync=%v", n, sync), func(b *testing.B) {
				l := benchLog(b)
				records := make([]Record, n)
				for i := range records {
					records[i] = Record{1, make([]byte, 300)}
				}
				b.SetBytes(int64(n) * 300)
				b.ReportAllocs()
				for b.Loop() {
					p, err := l.Append(records...)
					if err == nil && sync {
						err = l.Sync()
					}
					if err == nil {
						err = l.Release(p) // so that segments are recycled
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	fs := vfs.NewMem()
	l, err := Open(Options{FS: fs, Dir: "/wal"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	records := make([]Record, 64)
	for i := range records {
		records[i] = Record{1, make([]byte, 300)}
	}
	for range 3000 {
		if _, err := l.Append(records...); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(64 * 300 * 3000)
	for b.Loop() {
		l, err := Open(Options{FS: fs, Dir: "/wal"}, func(Position, Record) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
