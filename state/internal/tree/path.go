package tree

import "strings"

// Root is the path of the directory that is always there.
const Root = "/"

// ancestorsBytesMax bounds what the names of a node's ancestors take together,
// since a write may have to make all of them, and a listing to name them. It
// leaves room for a depth of 2,000.
const ancestorsBytesMax = 4 << 20

// Valid tells whether a path can be that of a node: it begins with a slash,
// does not end in one, none of its segments is empty or names the segment itself
// or the one before, and it is not absurdly deep.
func Valid(path string) bool {
	if path == Root {
		return true
	}
	if path == "" || path[0] != '/' {
		return false
	}
	ancestors := 0
	for at := 0; at < len(path); {
		ancestors += at
		next := len(path)
		if i := strings.IndexByte(path[at+1:], '/'); i >= 0 {
			next = at + 1 + i
		}
		switch path[at+1 : next] {
		case "", ".", "..":
			return false
		}
		at = next
	}
	return ancestors <= ancestorsBytesMax
}

// named returns the path that a key stands for, and whether the key is the
// marker of a directory. Other keys cannot be seen in the hierarchy.
func named(key string) (path string, marker, ok bool) {
	path, marker = strings.CutSuffix(key, "/")
	return path, marker, path != Root && Valid(path)
}

// below returns the bounds of the keys below a path, of which the first is its
// marker: a slash is followed by a zero in the order of bytes.
func below(path string) (from, to string) {
	if path == Root {
		return "/\x00", "0" // the root needs no marker
	}
	return path + "/", path + "0"
}

// child returns the path of a child.
func child(path, name string) string {
	if path == Root {
		return path + name
	}
	return path + "/" + name
}

// ancestors yields the proper ancestors of a path but for the root, from the
// top.
func ancestors(path string, yield func(string) bool) {
	for i := 1; i < len(path); i++ {
		if path[i] == '/' && !yield(path[:i]) {
			return
		}
	}
}
