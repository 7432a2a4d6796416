// Package ordered keeps sets of elements in order that never change: a change
// makes another set, which shares most of the first, so that a view keeps its
// own for nothing.
package ordered

// Element is what can be in a set.
type Element[T any] interface{ Compare(T) int }

// Set is a tree of elements, balanced by the number of elements in its halves;
// nil is the empty one.
type Set[T Element[T]] struct {
	item        T
	left, right *Set[T]
	size        int
}

// A half is at most heavy times as large as the other. Where it has become
// larger, one rotation mends it, or two if the inner part of it is not smaller
// than inner times the outer one.
const (
	heavy = 3
	inner = 2
)

func (n *Set[T]) Len() int {
	if n == nil {
		return 0
	}
	return n.size
}

// join makes a tree of two that are about as large as each other.
func join[T Element[T]](left *Set[T], item T, right *Set[T]) *Set[T] {
	return &Set[T]{item, left, right, left.Len() + 1 + right.Len()}
}

// mend makes a tree of two of which one was changed by one element.
func mend[T Element[T]](left *Set[T], item T, right *Set[T]) *Set[T] {
	l, r := left.Len(), right.Len()
	switch {
	case l+r < 2:
		return join(left, item, right)
	case r > heavy*l:
		if right.left.Len() < inner*right.right.Len() {
			return join(join(left, item, right.left), right.item, right.right)
		}
		m := right.left
		return join(join(left, item, m.left), m.item, join(m.right, right.item, right.right))
	case l > heavy*r:
		if left.right.Len() < inner*left.left.Len() {
			return join(left.left, left.item, join(left.right, item, right))
		}
		m := left.right
		return join(join(left.left, left.item, m.left), m.item, join(m.right, item, right))
	}
	return join(left, item, right)
}

// link makes a set of two of any size.
func link[T Element[T]](left *Set[T], item T, right *Set[T]) *Set[T] {
	switch {
	case left == nil:
		return right.With(item)
	case right == nil:
		return left.With(item)
	case left.size > heavy*right.size:
		return mend(left.left, left.item, link(left.right, item, right))
	case right.size > heavy*left.size:
		return mend(link(left, item, right.left), right.item, right.right)
	}
	return join(left, item, right)
}

// Concat makes a set of two, all of whose elements are in order.
func Concat[T Element[T]](left, right *Set[T]) *Set[T] {
	if right == nil {
		return left
	}
	first := right
	for first.left != nil {
		first = first.left
	}
	return link(left, first.item, right.Without(first.item))
}

// Find returns the element equal to item.
func (n *Set[T]) Find(item T) (found T, ok bool) {
	for n != nil {
		switch c := item.Compare(n.item); {
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

// With adds an element, or replaces the one equal to it.
func (n *Set[T]) With(item T) *Set[T] {
	if n == nil {
		return join(nil, item, nil)
	}
	switch c := item.Compare(n.item); {
	case c < 0:
		return mend(n.left.With(item), n.item, n.right)
	case c > 0:
		return mend(n.left, n.item, n.right.With(item))
	}
	return join(n.left, item, n.right)
}

// Without leaves out the element equal to item.
func (n *Set[T]) Without(item T) *Set[T] {
	if n == nil {
		return nil
	}
	switch c := item.Compare(n.item); {
	case c < 0:
		return mend(n.left.Without(item), n.item, n.right)
	case c > 0:
		return mend(n.left, n.item, n.right.Without(item))
	case n.left.Len() > n.right.Len():
		last := n.left
		for last.right != nil {
			last = last.right
		}
		return mend(n.left.Without(last.item), last.item, n.right)
	case n.right != nil:
		first := n.right
		for first.left != nil {
			first = first.left
		}
		return mend(n.left, first.item, n.right.Without(first.item))
	}
	return nil
}

// Split returns the elements below item, and the others.
func (n *Set[T]) Split(item T) (below, rest *Set[T]) {
	if n == nil {
		return nil, nil
	}
	if item.Compare(n.item) <= 0 {
		below, rest = n.left.Split(item)
		return below, link(rest, n.item, n.right)
	}
	below, rest = n.right.Split(item)
	return link(n.left, n.item, below), rest
}

// From calls visit for the elements not below item, in order, until it returns
// false. It tells whether visit did not.
func (n *Set[T]) From(item T, visit func(T) bool) bool {
	if n == nil {
		return true
	}
	c := item.Compare(n.item)
	return (c >= 0 || n.left.From(item, visit)) && (c > 0 || visit(n.item)) && n.right.From(item, visit)
}

// Each calls visit for all elements, in order, until it returns false.
func (n *Set[T]) Each(visit func(T) bool) bool {
	return n == nil || n.left.Each(visit) && visit(n.item) && n.right.Each(visit)
}

// Build makes a set of elements that are in order.
func Build[T Element[T]](items []T) *Set[T] {
	if len(items) == 0 {
		return nil
	}
	m := len(items) / 2
	return join(Build(items[:m]), items[m], Build(items[m+1:]))
}
