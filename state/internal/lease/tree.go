package lease

// ordered is what can be an element of a tree.
type ordered[T any] interface{ compare(T) int }

// node is a tree of elements in order, balanced by the number of elements in
// its halves; nil is the empty one. A tree never changes: a change makes
// another that shares most of it, so that a view keeps its own for nothing.
type node[T ordered[T]] struct {
	item        T
	left, right *node[T]
	size        int
}

// A half is at most heavy times as large as the other. Where it has become
// larger, one rotation mends it, or two if the inner part of it is not smaller
// than inner times the outer one.
const (
	heavy = 3
	inner = 2
)

func (n *node[T]) len() int {
	if n == nil {
		return 0
	}
	return n.size
}

// join makes a tree of two that are about as large as each other.
func join[T ordered[T]](left *node[T], item T, right *node[T]) *node[T] {
	return &node[T]{item, left, right, left.len() + 1 + right.len()}
}

// mend makes a tree of two of which one was changed by one element.
func mend[T ordered[T]](left *node[T], item T, right *node[T]) *node[T] {
	l, r := left.len(), right.len()
	switch {
	case l+r < 2:
		return join(left, item, right)
	case r > heavy*l:
		if right.left.len() < inner*right.right.len() {
			return join(join(left, item, right.left), right.item, right.right)
		}
		m := right.left
		return join(join(left, item, m.left), m.item, join(m.right, right.item, right.right))
	case l > heavy*r:
		if left.right.len() < inner*left.left.len() {
			return join(left.left, left.item, join(left.right, item, right))
		}
		m := left.right
		return join(join(left.left, left.item, m.left), m.item, join(m.right, item, right))
	}
	return join(left, item, right)
}

// link makes a tree of two of any size.
func link[T ordered[T]](left *node[T], item T, right *node[T]) *node[T] {
	switch {
	case left == nil:
		return right.with(item)
	case right == nil:
		return left.with(item)
	case left.size > heavy*right.size:
		return mend(left.left, left.item, link(left.right, item, right))
	case right.size > heavy*left.size:
		return mend(link(left, item, right.left), right.item, right.right)
	}
	return join(left, item, right)
}

// concat makes a tree of two of any size.
func concat[T ordered[T]](left, right *node[T]) *node[T] {
	if right == nil {
		return left
	}
	first := right
	for first.left != nil {
		first = first.left
	}
	return link(left, first.item, right.without(first.item))
}

// find returns the element equal to item.
func (n *node[T]) find(item T) (found T, ok bool) {
	for n != nil {
		switch c := item.compare(n.item); {
		case c < 0:
			n = n.left
		case c > 0:
			n = n.right
		default:
			return n.item, true
		}
	}
	return found, false
}

// with adds an element, or replaces the one equal to it.
func (n *node[T]) with(item T) *node[T] {
	if n == nil {
		return join(nil, item, nil)
	}
	switch c := item.compare(n.item); {
	case c < 0:
		return mend(n.left.with(item), n.item, n.right)
	case c > 0:
		return mend(n.left, n.item, n.right.with(item))
	}
	return join(n.left, item, n.right)
}

// without leaves out the element equal to item.
func (n *node[T]) without(item T) *node[T] {
	if n == nil {
		return nil
	}
	switch c := item.compare(n.item); {
	case c < 0:
		return mend(n.left.without(item), n.item, n.right)
	case c > 0:
		return mend(n.left, n.item, n.right.without(item))
	case n.left.len() > n.right.len():
		last := n.left
		for last.right != nil {
			last = last.right
		}
		return mend(n.left.without(last.item), last.item, n.right)
	case n.right != nil:
		first := n.right
		for first.left != nil {
			first = first.left
		}
		return mend(n.left, first.item, n.right.without(first.item))
	}
	return nil
}

// split returns the elements below item, and the others.
func (n *node[T]) split(item T) (below, rest *node[T]) {
	if n == nil {
		return nil, nil
	}
	if item.compare(n.item) <= 0 {
		below, rest = n.left.split(item)
		return below, link(rest, n.item, n.right)
	}
	below, rest = n.right.split(item)
	return link(n.left, n.item, below), rest
}

// from calls visit for the elements not below item, in order, until it returns
// false. It tells whether visit did not.
func (n *node[T]) from(item T, visit func(T) bool) bool {
	if n == nil {
		return true
	}
	c := item.compare(n.item)
	return (c >= 0 || n.left.from(item, visit)) && (c > 0 || visit(n.item)) && n.right.from(item, visit)
}

// each calls visit for all elements, in order, until it returns false.
func (n *node[T]) each(visit func(T) bool) bool {
	return n == nil || n.left.each(visit) && visit(n.item) && n.right.each(visit)
}

// build makes a tree of elements in order.
func build[T ordered[T]](items []T) *node[T] {
	if len(items) == 0 {
		return nil
	}
	m := len(items) / 2
	return join(build(items[:m]), items[m], build(items[m+1:]))
}
