package tree

import (
	"slices"
	"strings"

	"github.com/kvorum/kvorum/state/internal/mvcc"
)

// kind is what there is at a path.
type kind byte

const (
	nothing kind = iota
	file
	directory
	implied // directory without a marker
)

// found is what there is at a path, and the pair that says so: that of the file
// or of the marker.
type found struct {
	path string
	kind kind
	pair mvcc.Pair
}

func (f found) dir() bool { return f.kind == directory || f.kind == implied }

// look finds what there is at a path, whatever its ancestors are.
func look(keys mvcc.View, path string) found {
	f := found{path: path}
	if path == Root {
		f.kind = directory
		return f
	}
	key := append(make([]byte, 0, len(path)+1), path...)
	if f.pair = keys.Get(append(key, '/')); f.pair.Exists() {
		f.kind = directory
	} else if f.pair = keys.Get(key); f.pair.Exists() {
		f.kind = file
	} else if !empty(keys, path) {
		f.kind = implied
	}
	return f
}

// empty tells whether there is no key below a path, nor a marker of it.
func empty(keys mvcc.View, path string) bool {
	for range keys.Ascend(below(path)) {
		return false
	}
	return true
}

// obstacle returns the first proper ancestor of a path that is no directory.
func obstacle(keys mvcc.View, path string) (f found, is bool) {
	ancestors(path, func(a string) bool {
		f = look(keys, a)
		is = !f.dir()
		return !is
	})
	return f, is
}

// find finds the node at a path, or refuses.
func find(keys mvcc.View, path string) (found, error) {
	f, is := obstacle(keys, path)
	if !is {
		f = look(keys, path)
	}
	switch {
	case f.kind == nothing:
		return f, refuse(keys, KeyNotFound, f.path)
	case is:
		return f, refuse(keys, NotDirectory, f.path)
	}
	return f, nil
}

func refuse(keys mvcc.View, code int, cause string) error {
	return &Error{Code: code, Cause: cause, Index: keys.Revision}
}

// node describes what was found, but for its value and what is below it.
func (f found) node(keys mvcc.View) Node {
	n := Node{Path: f.path, Dir: f.dir()}
	switch {
	case f.path == Root:
	case f.kind == implied:
		n.Created = oldest(keys, f.path)
		n.Modified = n.Created
	case f.kind == directory:
		n.Created, n.Modified = f.pair.Create, f.pair.Create
		n.Deadline = f.note().deadline
	default:
		at := f.note()
		n.Created, n.Modified = f.created(), f.pair.Mod
		n.Deadline = at.deadline
	}
	return n
}

func (f found) note() note { return noteOf(f.pair, len(f.path)+1) }

// created returns the revision of a file that a change keeps.
func (f found) created() mvcc.Revision {
	if c := f.note().created; c != 0 {
		return c
	}
	return f.pair.Mod
}

// value returns the value of a file, and that of nothing else.
func (f found) value() (string, error) {
	if f.kind != file {
		return "", nil
	}
	v, err := f.pair.Value()
	return string(v), err
}

// oldestOf bounds how many keys are looked at for the age of a directory that
// nobody made.
const oldestOf = 256

// oldest returns the smallest create revision of the first keys below a path.
func oldest(keys mvcc.View, path string) mvcc.Revision {
	var least mvcc.Revision
	n := 0
	for _, p := range keys.Ascend(below(path)) {
		if n++; least == 0 || p.Create < least {
			least = p.Create
		}
		if n == oldestOf {
			break
		}
	}
	return least
}

// Get returns the node at a path. A directory comes with its children, or with
// all that is below it, in the order of their paths.
func Get(keys mvcc.View, path string, recursive bool) (Node, error) {
	if !Valid(path) { // also one that is too deep to be walked
		return Node{}, refuse(keys, KeyNotFound, path)
	}
	f, err := find(keys, path)
	if err != nil {
		return Node{}, err
	}
	n := f.node(keys)
	if f.dir() {
		n.Nodes, err = list(keys, path, recursive)
	} else {
		n.Value, err = f.value()
	}
	return n, err
}

// list returns what is below a directory. It finds each directory there by its
// first key, and passes over the others.
func list(keys mvcc.View, path string, recursive bool) (nodes []Node, err error) {
	from, to := below(path)
	from, prefix := child(path, "\x00"), len(child(path, ""))
	for more := true; more && err == nil; {
		more = false
		for key, p := range keys.Ascend(from, to) {
			if name := strings.IndexByte(key[prefix:], '/'); name >= 0 {
				sub := key[:prefix+name]
				from, more = sub+"0", true
				if f := look(keys, sub); name > 0 && Valid(sub) && f.dir() {
					n := f.node(keys)
					if recursive {
						n.Nodes, err = list(keys, sub, true)
					}
					nodes = append(nodes, n)
				}
				break
			}
			if f := (found{key, file, p}); Valid(key) && !keys.Get([]byte(key+"/")).Exists() {
				n := f.node(keys)
				if n.Value, err = f.value(); err != nil {
					return nil, err
				}
				nodes = append(nodes, n)
			}
		}
	}
	// In the order of keys, /a-b comes before what is below /a.
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Path, b.Path) })
	return nodes, err
}
