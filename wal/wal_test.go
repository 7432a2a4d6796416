package wal

import (
	"fmt"
	"strings"
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

func TestRelease(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := testOptions(fs)
	o.Dir = "/wal"
	l, err := Open(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	segments := func() int { return len(l.segments) + 1 }
	var last Position
	for segments() < 4 {
		if last, err = l.Append(Record{1, make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	second := l.segments[1].first

	for _, step := range []struct {
		before Position
		want   int
	}{{0, 4}, {second - 1, 4}, {second, 3}, {second, 3}, {last + 100, 1}} {
		if err := l.Release(step.before); err != nil {
			t.Fatal(err)
		}
		if got := segments(); got != step.want {
			t.Errorf("%d segments after release before %d, want %d", got, step.before, step.want)
		}
	}

	// What was released may have been superseded by what was just appended.
	for segments() < 2 {
		if last, err = l.Append(Record{1, make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Release(last); err != nil {
		t.Fatal(err)
	}
	o.FS, o.Floor = fs.CrashClone(vfs.CrashCloneCfg{}), last
	after, err := Open(o, func(Position, Record) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := after.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestUnsafeNoSync appends without any sync but those that make segments.
func TestUnsafeNoSync(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	o.UnsafeNoSync = true
	want := 0
	for range 3 {
		got := 0
		l, err := Open(o, func(Position, Record) error { got++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Fatalf("%d records, want %d", got, want)
		}
		for range 50 {
			if _, err := l.Append(Record{1, make([]byte, 200)}); err != nil {
				t.Fatal(err)
			}
			if err := l.Sync(); err != nil {
				t.Fatal(err)
			}
			want++
		}
		if l.last.synced == l.last.end {
			t.Error("claims to be synced")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{&Corruption{File: "f", Offset: 5, Reason: "r"}, "remove it from the cluster"},
		{&FormatError{File: "f", Version: 2}, "use the program that wrote it"},
		{&IdentityError{File: "f"}, "another member or cluster"},
	} {
		if !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%v does not say %q", test.err, test.want)
		}
	}
}
