package v2

import (
	"testing"

	"github.com/kvorum/kvorum/state"
)

func TestWhomAChangeConcerns(t *testing.T) {
	for _, c := range []struct {
		action, path string
		dir, refresh bool
		watched      string
		recursive    bool
		want         bool
	}{
		{action: "set", path: "/a", watched: "/a", want: true},
		{action: "set", path: "/a", refresh: true, watched: "/a"},
		{action: "set", path: "/a/b", watched: "/a"},
		{action: "set", path: "/a/b", watched: "/a", recursive: true, want: true},
		{action: "set", path: "/ab", watched: "/a", recursive: true},
		{action: "set", path: "/a-b", watched: "/a", recursive: true},
		{action: "set", path: "/a", watched: "/", recursive: true, want: true},
		{action: "set", path: "/a", watched: "/"},
		{action: "set", path: "/_a", watched: "/", recursive: true},
		{action: "set", path: "/a/_b", watched: "/a", recursive: true},
		{action: "set", path: "/a/_b/c", watched: "/a", recursive: true},
		{action: "set", path: "/a/b_/c", watched: "/a", recursive: true, want: true},
		{action: "set", path: "/_a/b", watched: "/_a", recursive: true, want: true},
		{action: "set", path: "/_a/_b", watched: "/_a", recursive: true},
		{action: "set", path: "/_a", watched: "/_a", want: true},
		{action: "delete", path: "/a", dir: true, watched: "/a/b/c", want: true},
		{action: "expire", path: "/a", dir: true, watched: "/a/_b", want: true},
		{action: "delete", path: "/a", dir: true, watched: "/ab"},
		{action: "delete", path: "/a", watched: "/a/b"},
		{action: "set", path: "/a", dir: true, watched: "/a/b"},
		{action: "update", path: "/a", dir: true, watched: "/a/b", recursive: true},
	} {
		change := state.NodeChange{Action: c.action, Refresh: c.refresh, Node: &state.Node{Path: c.path, Dir: c.dir}}
		if got := concerns(&change, c.watched, c.recursive); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestKeysAroundANode(t *testing.T) {
	for _, c := range []struct {
		path, key     string
		around, below bool
	}{
		{"/a", "/a", true, true},
		{"/a", "/a/", true, true},
		{"/a", "/a/b", true, true},
		{"/a", "/a/\xff", true, true},
		{"/a", "/a-b", true, false},
		{"/a", "/a0", false, false},
		{"/a", "/ab", false, false},
		{"/", "/a", true, true},
		{"/", "a", false, false},
	} {
		span := around(c.path)
		if got := string(span.Key) <= c.key && c.key < string(span.End); got != c.around {
			t.Errorf("%s is around %s: %v", c.key, c.path, got)
		}
		if got := within(c.path, c.key); c.around && got != c.below {
			t.Errorf("%s is within %s: %v", c.key, c.path, got)
		}
	}
}
