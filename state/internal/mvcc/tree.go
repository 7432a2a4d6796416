package mvcc

import (
	"math/bits"
	"slices"
	"strings"
	"unsafe"
)

// tree holds records in the order of their keys. It is persistent: a root that
// a view holds never changes, because a change copies the nodes on its path,
// except those born in the same edit, which nobody else has seen.
//
// A leaf knows which of its records exist at the revision that the root stands
// for, and inner nodes count them: counting a range, and skipping to its n-th
// key, take O(log n). Records of deleted keys stay until a sweep removes them,
// for those who read the past.
type tree struct {
	root node   // *inner or *leaf; nil when there is no record
	edit uint64 // nodes with this number may be changed in place
	cost int64  // bytes of nodes that this edit has replaced
}

const (
	leafMax  = 61 // with these, both kinds of node fill 512 bytes
	innerMax = 39
)

type node interface {
	live() int // records that exist
	full() bool
	width() int // records or children
}

type leaf struct {
	edit   uint64
	n      int
	exists uint64 // by bit, those of records
	record [leafMax]*record
}

// inner is copied whenever something below it changes, so what hardly ever
// changes, the keys between its children, is kept apart and shared by copies.
type inner struct {
	edit  uint64
	n     int32
	level int32                    // leaves are at level 0
	least *[innerMax]string        // least[i] is above all keys of child i-1, and not above those of child i; least[0] is not used
	count [innerMax]uint32         // existing records by child
	child [innerMax]unsafe.Pointer // to leaves if level is 1, to inner nodes otherwise
}

// at returns child i.
func (in *inner) at(i int) node {
	if in.level == 1 {
		return (*leaf)(in.child[i])
	}
	return (*inner)(in.child[i])
}

func (in *inner) set(i int, n node) {
	switch n := n.(type) {
	case *leaf:
		in.child[i] = unsafe.Pointer(n)
	case *inner:
		in.child[i] = unsafe.Pointer(n)
	}
}

func (l *leaf) live() int  { return bits.OnesCount64(l.exists) }
func (l *leaf) full() bool { return l.n == leafMax }
func (l *leaf) width() int { return l.n }

func (in *inner) live() int {
	sum := 0
	for _, c := range in.count[:in.n] {
		sum += int(c)
	}
	return sum
}
func (in *inner) full() bool { return in.n == innerMax }
func (in *inner) width() int { return int(in.n) }

// find returns the place of key in l, and whether it is there.
func (l *leaf) find(key string) (int, bool) {
	lo, hi := 0, l.n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		switch c := strings.Compare(l.record[mid].key, key); {
		case c < 0:
			lo = mid + 1
		case c > 0:
			hi = mid
		default:
			return mid, true
		}
	}
	return lo, false
}

// find returns the child that key belongs to.
func (in *inner) find(key string) int {
	lo, hi := 1, int(in.n)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if in.least[mid] <= key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// begin starts an edit: from now on no node may change that is there already.
func (t *tree) begin() {
	t.edit++
	t.cost = 0
}

const nodeBytes = 512

func (t *tree) ownLeaf(l *leaf) *leaf {
	if l.edit == t.edit {
		return l
	}
	t.cost += nodeBytes
	c := *l
	c.edit = t.edit
	return &c
}

func (t *tree) ownInner(in *inner) *inner {
	if in.edit == t.edit {
		return in
	}
	t.cost += nodeBytes
	c := *in
	c.edit = t.edit
	return &c
}

// insert adds a record that exists and whose key is not there.
func (t *tree) insert(r *record) {
	if t.root == nil {
		l := &leaf{edit: t.edit, n: 1, exists: 1}
		l.record[0] = r
		t.root = l
		return
	}
	left, right, least := t.insertBelow(t.root, r)
	if right == nil {
		t.root = left
		return
	}
	up := &inner{edit: t.edit, level: 1, least: new([innerMax]string)}
	if in, ok := left.(*inner); ok {
		up.level = in.level + 1
	}
	up.insert(0, left, "")
	up.insert(1, right, least)
	t.root = up
}

// insertBelow returns what takes the place of n: one node, or two with the key
// that parts them.
func (t *tree) insertBelow(n node, r *record) (left, right node, least string) {
	switch n := n.(type) {
	case *leaf:
		l := t.ownLeaf(n)
		i, found := l.find(r.key)
		must(!found, "a record that is inserted is not in the tree")
		if !l.full() {
			l.insert(i, r)
			return l, nil, ""
		}
		// Keys that arrive in order fill their leaves.
		cut := leafMax / 2
		if i == leafMax {
			cut = leafMax
		}
		next := &leaf{edit: t.edit}
		l.moveTail(next, cut)
		if i > cut || cut == leafMax {
			next.insert(i-cut, r)
		} else {
			l.insert(i, r)
		}
		return l, next, between(l.record[l.n-1].key, next.record[0].key)

	case *inner:
		in := t.ownInner(n)
		i := in.find(r.key)
		left, right, least := t.insertBelow(in.at(i), r)
		in.set(i, left)
		if right == nil {
			in.count[i]++
			return in, nil, ""
		}
		in.count[i] = uint32(left.live())
		if !in.full() {
			in.insert(i+1, right, least)
			return in, nil, ""
		}
		cut := innerMax / 2
		if i == innerMax-1 {
			cut = innerMax - 1
		}
		next := &inner{edit: t.edit, level: in.level, least: new([innerMax]string)}
		up := in.moveTail(next, cut)
		if i+1 > cut {
			next.insert(i+1-cut, right, least)
		} else {
			in.insert(i+1, right, least)
		}
		return in, next, up
	}
	panic("tree: unknown node")
}

// between returns a short key above a and not above b.
func between(a, b string) string {
	n := 0
	for n < len(a) && a[n] == b[n] {
		n++
	}
	return b[:n+1]
}

func (l *leaf) insert(i int, r *record) {
	copy(l.record[i+1:l.n+1], l.record[i:l.n])
	l.record[i] = r
	low := uint64(1)<<i - 1
	l.exists = l.exists&low | l.exists&^low<<1 | 1<<i
	l.n++
}

func (l *leaf) remove(i int) {
	copy(l.record[i:], l.record[i+1:l.n])
	l.n--
	l.record[l.n] = nil
	low := uint64(1)<<i - 1
	l.exists = l.exists&low | l.exists>>1&^low
}

// moveTail moves the records from cut on into an empty leaf.
func (l *leaf) moveTail(to *leaf, cut int) {
	to.n = copy(to.record[:], l.record[cut:l.n])
	clear(l.record[cut:l.n])
	to.exists = l.exists >> cut
	l.exists &= 1<<cut - 1
	l.n = cut
}

func (in *inner) insert(i int, child node, least string) {
	copy(in.child[i+1:in.n+1], in.child[i:in.n])
	copy(in.count[i+1:in.n+1], in.count[i:in.n])
	in.set(i, child)
	in.count[i] = uint32(child.live())
	keys := in.ownLeast()
	copy(keys[i+1:in.n+1], keys[i:in.n])
	keys[i] = least
	in.n++
}

func (in *inner) remove(i int) {
	copy(in.child[i:], in.child[i+1:in.n])
	copy(in.count[i:], in.count[i+1:in.n])
	keys := in.ownLeast()
	copy(keys[i:], keys[i+1:in.n])
	in.n--
	in.child[in.n], keys[in.n] = nil, ""
}

// moveTail moves the children from cut on into an empty node and returns the
// key that parts the two.
func (in *inner) moveTail(to *inner, cut int) string {
	to.n = int32(copy(to.child[:], in.child[cut:in.n]))
	copy(to.count[:], in.count[cut:in.n])
	copy(to.least[:], in.least[cut:in.n])
	clear(in.child[cut:in.n])
	clear(in.ownLeast()[cut:in.n])
	in.n = int32(cut)
	return to.least[0]
}

// ownLeast makes the keys of in its own before they change.
func (in *inner) ownLeast() *[innerMax]string {
	c := *in.least
	in.least = &c
	return in.least
}

// set says whether a record exists from now on. It was otherwise before.
func (t *tree) set(key string, exists bool) { t.root = t.setBelow(t.root, key, exists) }

func (t *tree) setBelow(n node, key string, exists bool) node {
	switch n := n.(type) {
	case *leaf:
		l := t.ownLeaf(n)
		i, found := l.find(key)
		must(found && l.exists>>i&1 == 1 != exists, "a record begins or ceases to exist once")
		l.exists ^= 1 << i
		return l
	case *inner:
		in := t.ownInner(n)
		i := in.find(key)
		in.set(i, t.setBelow(in.at(i), key, exists))
		if exists {
			in.count[i]++
		} else {
			in.count[i]--
		}
		return in
	}
	panic("tree: unknown node")
}

// remove takes a record out that does not exist any more.
func (t *tree) remove(key string) {
	t.root = t.removeBelow(t.root, key)
	if t.root.width() == 0 {
		t.root = nil
	}
	for {
		in, ok := t.root.(*inner)
		if !ok || in.n > 1 {
			return
		}
		t.root = in.at(0)
	}
}

func (t *tree) removeBelow(n node, key string) node {
	switch n := n.(type) {
	case *leaf:
		l := t.ownLeaf(n)
		i, found := l.find(key)
		must(found && l.exists>>i&1 == 0, "a record that is removed is there and does not exist")
		l.remove(i)
		return l
	case *inner:
		in := t.ownInner(n)
		i := in.find(key)
		in.set(i, t.removeBelow(in.at(i), key))
		t.mend(in, i)
		return in
	}
	panic("tree: unknown node")
}

// mend joins a child that has become small with a neighbour if both fit well
// into one node, and drops it if it is empty.
func (t *tree) mend(in *inner, i int) {
	if in.at(i).width() == 0 {
		in.remove(i)
		return
	}
	if i == int(in.n)-1 {
		i--
	}
	if i < 0 {
		return
	}
	switch left := in.at(i).(type) {
	case *leaf:
		right := in.at(i + 1).(*leaf)
		if left.n+right.n > leafMax/2 {
			return
		}
		left = t.ownLeaf(left)
		copy(left.record[left.n:], right.record[:right.n])
		left.exists |= right.exists << left.n
		left.n += right.n
		in.set(i, left)
	case *inner:
		right := in.at(i + 1).(*inner)
		if left.n+right.n > innerMax/2 {
			return
		}
		left = t.ownInner(left)
		copy(left.child[left.n:], right.child[:right.n])
		copy(left.count[left.n:], right.count[:right.n])
		keys := left.ownLeast()
		copy(keys[left.n:], right.least[:right.n])
		keys[left.n] = in.least[i+1]
		left.n += right.n
		in.set(i, left)
	}
	in.count[i] += in.count[i+1]
	in.remove(i + 1)
}

// rank returns the number of existing records with keys below key.
func rank(n node, key string) int {
	sum := 0
	for n != nil {
		switch at := n.(type) {
		case *leaf:
			i, _ := at.find(key)
			return sum + bits.OnesCount64(at.exists&(1<<i-1))
		case *inner:
			i := at.find(key)
			for _, c := range at.count[:i] {
				sum += int(c)
			}
			n = at.at(i)
		}
	}
	return sum
}

// existing calls visit for the existing records, from that with the given rank
// on, until it returns false.
func existing(n node, rank int, visit func(*record) bool) bool {
	switch n := n.(type) {
	case *leaf:
		set := n.exists
		for ; rank > 0 && set != 0; rank-- {
			set &= set - 1
		}
		for ; set != 0; set &= set - 1 {
			if !visit(n.record[bits.TrailingZeros64(set)]) {
				return false
			}
		}
	case *inner:
		for i := range int(n.n) {
			if c := int(n.count[i]); rank >= c {
				rank -= c
				continue
			}
			if !existing(n.at(i), rank, visit) {
				return false
			}
			rank = 0
		}
	}
	return true
}

// ascend calls visit for all records from key on, whether they exist or not,
// until it returns false.
func ascend(n node, key string, visit func(*record) bool) bool {
	switch n := n.(type) {
	case *leaf:
		i, _ := n.find(key)
		for _, r := range n.record[i:n.n] {
			if !visit(r) {
				return false
			}
		}
	case *inner:
		for i := n.find(key); i < int(n.n); i++ {
			if !ascend(n.at(i), key, visit) {
				return false
			}
		}
	}
	return true
}

// build makes a tree of records that are in order. Nodes are left a little
// room, lest the first puts split every one of them.
func (t *tree) build(records []*record) {
	t.begin()
	if len(records) == 0 {
		t.root = nil
		return
	}
	var level []node
	var firsts, lasts []string // keys of what each node holds
	for chunk := range slices.Chunk(records, leafMax*3/4) {
		l := &leaf{edit: t.edit, n: len(chunk)}
		for i, r := range chunk {
			l.record[i] = r
			if !r.head.Load().deleted() {
				l.exists |= 1 << i
			}
		}
		level = append(level, l)
		firsts, lasts = append(firsts, chunk[0].key), append(lasts, chunk[len(chunk)-1].key)
	}
	for height := int32(1); len(level) > 1; height++ {
		var up []node
		var upFirsts, upLasts []string
		for from := 0; from < len(level); from += innerMax * 3 / 4 {
			to := min(from+innerMax*3/4, len(level))
			in := &inner{edit: t.edit, n: int32(to - from), level: height, least: new([innerMax]string)}
			for i := range to - from {
				in.set(i, level[from+i])
				in.count[i] = uint32(level[from+i].live())
				if i > 0 {
					in.least[i] = between(lasts[from+i-1], firsts[from+i])
				}
			}
			up = append(up, in)
			upFirsts, upLasts = append(upFirsts, firsts[from]), append(upLasts, lasts[to-1])
		}
		level, firsts, lasts = up, upFirsts, upLasts
	}
	t.root = level[0]
}
