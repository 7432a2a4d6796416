package wal

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func testOptions(fs vfs.FS) Options {
	return Options{
		FS:           fs,
		Dir:          "/data/wal",
		Identity:     [16]byte{1, 2, 3},
		SegmentBytes: 4096,
	}
}

// collect returns a replay function and the records that it was given.
func collect() (func(Position, Record) error, *[]string) {
	var got []string
	return func(p Position, r Record) error {
		got = append(got, fmt.Sprintf("%d:%d:%s", p, r.Type, r.Data))
		return nil
	}, &got
}

func TestReopen(t *testing.T) {
	fs := vfs.NewMem()
	var want []string
	for round := range 5 {
		replay, got := collect()
		l, err := Open(testOptions(fs), replay)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(*got) != fmt.Sprint(want) {
			t.Fatalf("round %d: got %v, want %v", round, *got, want)
		}
		for i := range 20 {
			data := fmt.Sprintf("%d-%d-%0100d", round, i, i)
			p, err := l.Append(Record{1, []byte(data)}, Record{2, nil})
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%d:1:%s", p, data), fmt.Sprintf("%d:2:", p+1))
			if i%3 == 0 {
				if err := l.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
