package v2

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/kvorum/kvorum/state"
)

// FuzzText reads back what was written, and finds nothing in it that a browser
// or an old parser would trip over.
func FuzzText(f *testing.F) {
	f.Add("plain")
	f.Add("\"\\/\b\f\n\r\t\x00\x1f\x7f")
	f.Add("<script>&'\u2028\u2029€😀")
	f.Add("\xff\xfe\xed\xa0\x80\ufffd")
	f.Fuzz(func(t *testing.T, text string) {
		encoded := appendText(nil, text)
		var back string
		if err := json.Unmarshal(encoded, &back); err != nil {
			t.Fatalf("%s: %v", encoded, err)
		}
		if want := strings.Map(func(r rune) rune { return r }, text); back != want { // bytes that are no text become U+FFFD, one by one
			t.Errorf("%q came back as %q", want, back)
		}
		if strings.ContainsAny(string(encoded), "<>&\u2028\u2029") || strings.ContainsFunc(string(encoded), func(r rune) bool { return r < ' ' }) {
			t.Errorf("%s has to be escaped", encoded)
		}
	})
}

func TestNode(t *testing.T) {
	now := time.Unix(1000, 0)
	end := func(d time.Duration) int64 { return now.Add(d).UnixNano() }
	for _, c := range []struct {
		node state.Node
		gone bool
		told bool
		want string
	}{
		{node: state.Node{Path: "/", Dir: true}, want: `{"dir":true}`},
		{node: state.Node{Path: "/a", Created: 2, Modified: 3}, want: `{"key":"/a","value":"","modifiedIndex":3,"createdIndex":2}`},
		{node: state.Node{Path: "/a", Created: 2, Modified: 3}, gone: true, want: `{"key":"/a","modifiedIndex":3,"createdIndex":2}`},
		{
			node: state.Node{Path: "/", Dir: true, Nodes: []state.Node{{Path: "/d", Dir: true, Created: 1, Modified: 1}, {Path: "/e", Value: "<", Created: 2, Modified: 2}}},
			want: `{"dir":true,"nodes":[{"key":"/d","dir":true,"modifiedIndex":1,"createdIndex":1},{"key":"/e","value":"\u003c","modifiedIndex":2,"createdIndex":2}]}`,
		},
		{
			node: state.Node{Path: "/t", Created: 2, Modified: 2, Deadline: end(1500 * time.Millisecond)},
			want: `{"key":"/t","value":"","expiration":"1970-01-01T00:16:41.5Z","ttl":2,"modifiedIndex":2,"createdIndex":2}`,
		},
		{ // due, and not yet removed
			node: state.Node{Path: "/t", Created: 2, Modified: 2, Deadline: end(-500 * time.Millisecond)},
			want: `{"key":"/t","value":"","expiration":"1970-01-01T00:16:39.5Z","modifiedIndex":2,"createdIndex":2}`,
		},
		{ // nobody leads who could remove it
			node: state.Node{Path: "/t", Created: 2, Modified: 2, Deadline: end(-16 * time.Second)},
			want: `{"key":"/t","value":"","expiration":"1970-01-01T00:16:24Z","ttl":-16,"modifiedIndex":2,"createdIndex":2}`,
		},
		{ // told of long after
			node: state.Node{Path: "/t", Created: 2, Modified: 2, Deadline: end(-16 * time.Second)}, told: true,
			want: `{"key":"/t","value":"","expiration":"1970-01-01T00:16:24Z","modifiedIndex":2,"createdIndex":2}`,
		},
	} {
		if got := string(encoder{now: now, told: c.told}.appendNode(nil, &c.node, c.gone)); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}
