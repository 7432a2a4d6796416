package watch

import (
	"cmp"
	"math/rand/v2"
	"slices"
)

// index finds who listens to a key: single keys by hash, ranges in a tree of
// intervals.
type index struct {
	keys   map[string]*group
	ranges *interval
}

// group holds those who listen to one span, a stream once.
type group struct {
	subs []*sub
	of   map[*Stream]*sub // once there are many
}

// groupScan is up to how many members of a group are looked through.
const groupScan = 8

func newIndex() index { return index{keys: map[string]*group{}} }

func (x *index) empty() bool { return len(x.keys) == 0 && x.ranges == nil }

// find appends those who listen to a key.
func (x *index) find(dst []*group, key []byte) []*group {
	if g := x.keys[string(key)]; g != nil {
		dst = append(dst, g)
	}
	return x.ranges.stab(dst, key)
}

// add returns what a stream has of a span, and makes it where it has nothing.
func (x *index) add(s *Stream, key, end string) *sub {
	var g *group
	if end == "" {
		if g = x.keys[key]; g == nil {
			g = new(group)
			x.keys[key] = g
		}
	} else {
		at := &interval{key: key, end: edge(end)}
		if g = x.ranges.lookup(at); g == nil {
			g = &at.group
			at.rank = rand.Uint32()
			x.ranges = x.ranges.insert(at)
		}
	}
	if found := g.find(s); found != nil {
		return found
	}
	made := &sub{stream: s, key: key, end: end, first: none, place: int32(len(g.subs))}
	g.subs = append(g.subs, made)
	if g.of != nil {
		g.of[s] = made
	} else if len(g.subs) > groupScan {
		g.of = make(map[*Stream]*sub, 2*len(g.subs))
		for _, one := range g.subs {
			g.of[one.stream] = one
		}
	}
	return made
}

func (g *group) find(s *Stream) *sub {
	if g.of != nil {
		return g.of[s]
	}
	if i := slices.IndexFunc(g.subs, func(one *sub) bool { return one.stream == s }); i >= 0 {
		return g.subs[i]
	}
	return nil
}

// remove takes out what add made.
func (x *index) remove(gone *sub) {
	var g *group
	at := &interval{key: gone.key, end: edge(gone.end)}
	if gone.end == "" {
		g = x.keys[gone.key]
	} else {
		g = x.ranges.lookup(at)
	}
	last := len(g.subs) - 1
	moved := g.subs[last]
	g.subs[gone.place], moved.place = moved, gone.place
	g.subs[last] = nil
	g.subs = g.subs[:last]
	delete(g.of, gone.stream)
	switch {
	case last > 0:
	case gone.end == "":
		delete(x.keys, gone.key)
	default:
		x.ranges = x.ranges.remove(at)
	}
}

// interval is a node of a treap in the order of keys, then ends: its shape
// depends on chance alone, so that it stays flat whatever clients choose.
type interval struct {
	key, end    string // end "" is behind all keys
	max         string // the furthest end here and below
	rank        uint32 // not below that of those below
	left, right *interval
	group       group
}

// edge turns the end of a range as requests write it into that of an interval.
func edge(end string) string {
	if end == "\x00" {
		return ""
	}
	return end
}

func (n *interval) compare(m *interval) int {
	return cmp.Or(cmp.Compare(n.key, m.key), cmp.Compare(n.end, m.end))
}

func (n *interval) lookup(m *interval) *group {
	for n != nil {
		switch c := m.compare(n); {
		case c == 0:
			return &n.group
		case c < 0:
			n = n.left
		default:
			n = n.right
		}
	}
	return nil
}

// stab appends the groups of all intervals that hold a key.
func (n *interval) stab(dst []*group, key []byte) []*group {
	for n != nil && (n.max == "" || string(key) < n.max) {
		dst = n.left.stab(dst, key)
		if string(key) < n.key {
			break
		}
		if n.end == "" || string(key) < n.end {
			dst = append(dst, &n.group)
		}
		n = n.right
	}
	return dst
}

func (n *interval) insert(m *interval) *interval {
	switch {
	case n == nil:
		m.max = m.end
		return m
	case m.rank > n.rank:
		m.left, m.right = n.split(m)
		return m.measured()
	case m.compare(n) < 0:
		n.left = n.left.insert(m)
	default:
		n.right = n.right.insert(m)
	}
	return n.measured()
}

// split parts a tree into what is before m and what is behind it.
func (n *interval) split(m *interval) (before, behind *interval) {
	if n == nil {
		return nil, nil
	}
	if n.compare(m) < 0 {
		n.right, behind = n.right.split(m)
		return n.measured(), behind
	}
	before, n.left = n.left.split(m)
	return before, n.measured()
}

func (n *interval) remove(m *interval) *interval {
	switch c := m.compare(n); {
	case c == 0:
		return n.left.join(n.right)
	case c < 0:
		n.left = n.left.remove(m)
	default:
		n.right = n.right.remove(m)
	}
	return n.measured()
}

// join makes one tree of two, of which the second is behind the first.
func (n *interval) join(m *interval) *interval {
	switch {
	case n == nil:
		return m
	case m == nil:
		return n
	case n.rank >= m.rank:
		n.right = n.right.join(m)
		return n.measured()
	default:
		m.left = n.join(m.left)
		return m.measured()
	}
}

func (n *interval) measured() *interval {
	n.max = n.end
	for _, child := range [...]*interval{n.left, n.right} {
		if child != nil && n.max != "" && (child.max == "" || child.max > n.max) {
			n.max = child.max
		}
	}
	return n
}
