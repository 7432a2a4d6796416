package ordered

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

type number int

func (a number) Compare(b number) int { return cmp.Compare(a, b) }

// balanced wants a tree to be in order, to count right and not to lean.
func balanced[T Element[T]](t *testing.T, n *Set[T]) {
	t.Helper()
	if n == nil {
		return
	}
	l, r := n.left.Len(), n.right.Len()
	if n.size != l+r+1 {
		t.Fatalf("%d elements, counted %d", l+r+1, n.size)
	}
	if l+r > 1 && (l > heavy*r || r > heavy*l) {
		t.Fatalf("%d elements on one side, %d on the other", l, r)
	}
	var last *T
	n.Each(func(item T) bool {
		if last != nil && (*last).Compare(item) >= 0 {
			t.Fatalf("%v before %v", *last, item)
		}
		last = &item
		return true
	})
	balanced(t, n.left)
	balanced(t, n.right)
}

// TestSets makes sets out of sets, and wants each to be what a slice is, and to
// stay so.
func TestSets(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	type version struct {
		want []number
		set  *Set[number]
	}
	versions := []version{{}}
	for range 5000 {
		v := versions[r.IntN(len(versions))]
		x := number(r.IntN(500))
		i, found := slices.BinarySearch(v.want, x)
		if got, ok := v.set.Find(x); ok != found || ok && got != x {
			t.Fatalf("found %v %v of %v", got, ok, v.want)
		}
		below, rest := v.set.Split(x)
		balanced(t, below)
		balanced(t, rest)
		if below.Len() != i || rest.Len() != len(v.want)-i {
			t.Fatalf("split %v at %d into %d and %d", v.want, x, below.Len(), rest.Len())
		}
		var from []number
		rest.Each(func(n number) bool { from = append(from, n); return true })
		n := 0
		whole := v.set.From(x, func(y number) bool { n++; return y == from[n-1] && n < 50 })
		if want := min(50, len(from)); n != want || whole != (len(from) < 50) {
			t.Fatalf("%d elements from %d on, want %d", n, x, want)
		}
		next := version{want: slices.Clone(v.want)}
		switch k := r.IntN(20); {
		case k < 13 && !found:
			next.want, next.set = slices.Insert(next.want, i, x), v.set.With(x)
		case k < 13:
			next.set = v.set.With(x)
		case k < 18:
			if found {
				next.want = slices.Delete(next.want, i, i+1)
			}
			next.set = v.set.Without(x)
		case k < 19:
			next.set = Concat(below, rest)
		default:
			next.set = Build(next.want)
		}
		if len(versions) < 50 {
			versions = append(versions, next)
		} else {
			versions[r.IntN(len(versions))] = next
		}

		v = versions[r.IntN(len(versions))]
		balanced(t, v.set)
		var got []number
		v.set.Each(func(n number) bool { got = append(got, n); return true })
		if !slices.Equal(got, v.want) {
			t.Fatalf("%v, want %v", got, v.want)
		}
	}
}
