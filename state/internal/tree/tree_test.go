package tree

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestPaths(t *testing.T) {
	deep := strings.Repeat("/a", 2000)
	for path, want := range map[string]bool{
		"/": true, "/a": true, "/a/b": true, "/...": true, "/..a": true, "/a/b.": true, "/ \x00?#%\xff": true, deep: true,
		"/" + strings.Repeat("long", 100_000): true,
		"":                                    false, "a": false, "a/b": false, "//": false, "/a/": false, "//a": false, "/a//b": false,
		"/.": false, "/..": false, "/a/./b": false, "/a/..": false, "/../a": false, deep + deep: false,
	} {
		if got := Valid(path); got != want {
			t.Errorf("%.40q is a path: %v", path, got)
		}
	}
	for key, want := range map[string]string{
		"/a": "/a false true", "/a/": "/a true true", "/a/b/": "/a/b true true",
		"/": " true false", "": " false false", "//": "/ true false", "/a//": "/a/ true false", "/./": "/. true false",
	} {
		path, marker, ok := named(key)
		if got := fmt.Sprint(path, " ", marker, " ", ok); got != want {
			t.Errorf("%q is %s, want %s", key, got, want)
		}
	}
	var above []string
	ancestors("/a/b/c", func(a string) bool { above = append(above, a); return true })
	if want := []string{"/a", "/a/b"}; !reflect.DeepEqual(above, want) {
		t.Errorf("above /a/b/c are %q", above)
	}
}

// TestRequestBytes pins what a request looks like in a log.
func TestRequestBytes(t *testing.T) {
	for _, c := range []struct {
		q    Request
		want string
	}{
		{Request{Op: Set, Path: "/a", Value: "v"}, "\x01\x00\x02/a\x01v\x00\x00\x00"},
		{Request{Op: CompareAndSwap, Path: "/a", Dir: true, Refresh: true, Recursive: true, PrevValue: "p", PrevIndex: 128, Deadline: -1},
			"\x04\x07\x02/a\x00\x01p\x80\x01\x01"},
		{Request{Op: Expire, Due: []Deadline{{64, "/a"}, {1, "/b/"}}}, "\x08\x00\x80\x01\x02/a\x02\x03/b/"},
	} {
		if got := string(c.q.Append(nil)); got != c.want {
			t.Errorf("%+v is %q, want %q", c.q, got, c.want)
		}
		if got, ok := Parse([]byte(c.want)); !ok || !reflect.DeepEqual(got, c.q) {
			t.Errorf("%q is %+v, %v", c.want, got, ok)
		}
	}
}

// TestNoteBytes pins what a note looks like beside a version.
func TestNoteBytes(t *testing.T) {
	n := note{action: actionOf(ActionExpire), dir: true, refresh: true, path: 2, created: 300, deadline: 64}
	const want = "\x37\x02\xac\x02\x80\x01"
	if got := n.encode(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, err := parseNote(want, 3); err != nil || got != n {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "\x00", "\x08\x01\x00\x00", "\x41\x01\x00\x00", "\x01", "\x01\x00\x00\x00", "\x01\x04\x00\x00", want[:5], want + "\x00"} {
		if got, err := parseNote(bad, 3); err == nil {
			t.Errorf("%q was read as %+v", bad, got)
		}
	}
}

// TestDeepestDirectory wants what cannot hold a child to get none.
func TestDeepestDirectory(t *testing.T) {
	deepest := ""
	for Valid(deepest + "/a") {
		deepest += "/a"
	}
	for op, want := range map[Op]bool{Set: true, CreateInOrder: false} {
		if _, ok := Parse((&Request{Op: op, Path: deepest}).Append(nil)); ok != want {
			t.Errorf("operation %d at the deepest path: %v", op, ok)
		}
	}
	if _, ok := Parse((&Request{Op: CreateInOrder}).Append(nil)); ok {
		t.Error("created below no path")
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x01\x00\x02/a\x01v\x00\x00\x00"))
	f.Add([]byte("\x08\x00\x80\x01\x02/a\x02\x03/b/"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, ok := Parse(b)
		if !ok {
			return
		}
		// There may be longer ways to write a number.
		again, ok := Parse(q.Append(nil))
		if !ok || !reflect.DeepEqual(q, again) || len(q.Append(nil)) > len(b) {
			t.Fatalf("%q is %+v and %+v", b, q, again)
		}
	})
}

func FuzzNote(f *testing.F) {
	f.Add([]byte("\x37\x02\xac\x02\x80\x01"), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, length uint16) {
		key := int(length)
		n, err := parseNote(b, key)
		if err != nil {
			return
		}
		if n.path > key || n.path < 1 || n.created < 0 {
			t.Fatalf("%q beside %d bytes is %+v", b, key, n)
		}
		if again, err := parseNote(n.encode(), key); err != nil || again != n || len(n.encode()) > len(b) {
			t.Fatalf("%q is %+v and %+v, %v", b, n, again, err)
		}
	})
}
