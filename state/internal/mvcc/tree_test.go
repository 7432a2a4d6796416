package mvcc

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func testRecord(key string) *record {
	r := newRecord([]byte(key))
	r.head.Store(&version{main: 1, version: 1})
	return r
}

// check wants a tree to hold the keys of a map, dead or alive, and its counts
// to be right.
func check(t *testing.T, root node, want map[string]bool) {
	t.Helper()
	keys := slices.Sorted(maps.Keys(want))
	var got, alive, wantAlive []string
	if root != nil {
		ascend(root, "", func(r *record) bool { got = append(got, r.key); return true })
		existing(root, 0, func(r *record) bool { alive = append(alive, r.key); return true })
		if root.live() != len(alive) {
			t.Fatalf("%d counted, %d there", root.live(), len(alive))
		}
	}
	for _, k := range keys {
		if want[k] {
			wantAlive = append(wantAlive, k)
		}
	}
	if !slices.Equal(got, keys) || !slices.Equal(alive, wantAlive) {
		t.Fatalf("got %q, alive %q\nwant %q, alive %q", got, alive, keys, wantAlive)
	}
	for i, k := range wantAlive {
		if n := rank(root, k); n != i {
			t.Fatalf("rank of %q is %d, want %d", k, n, i)
		}
		if n := rank(root, k+"\x00"); n != i+1 {
			t.Fatalf("rank behind %q is %d, want %d", k, n, i+1)
		}
		existing(root, i, func(r *record) bool {
			if r.key != k {
				t.Fatalf("number %d is %q, want %q", i, r.key, k)
			}
			return false
		})
	}
}

// TestTree changes a tree at random and wants each of the roots it had to stay
// as it was.
func TestTree(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, keys := range []int{10, 100, 5000} {
		var tr tree
		want := map[string]bool{}
		type kept struct {
			root node
			want map[string]bool
		}
		var roots []kept
		shrink := false
		for round := range 60 {
			tr.begin()
			if round%20 == 19 {
				shrink = !shrink
			}
			for range keys / 4 {
				k := fmt.Sprintf("k%0*d", 1+r.IntN(4), r.IntN(keys))
				exists, there := want[k]
				switch {
				case !there && (!shrink || r.IntN(5) == 0):
					tr.insert(testRecord(k))
					want[k] = true
				case there && !exists && shrink:
					tr.remove(k)
					delete(want, k)
				case there:
					tr.set(k, !exists)
					want[k] = !exists
				}
			}
			check(t, tr.root, want)
			roots = append(roots, kept{tr.root, maps.Clone(want)})
			if len(roots) > 5 {
				roots = roots[1:]
			}
			check(t, roots[0].root, roots[0].want)
		}
		for k, exists := range want {
			tr.begin()
			if exists {
				tr.set(k, false)
			}
			tr.remove(k)
		}
		if tr.root != nil {
			t.Fatalf("an empty tree has a root: %v", tr.root)
		}
	}
}

func TestTreeInOrderIsDense(t *testing.T) {
	var tr tree
	tr.begin()
	const n = 10_000
	for i := range n {
		tr.insert(testRecord(fmt.Sprintf("%06d", i)))
	}
	leaves := 0
	var count func(node)
	count = func(n node) {
		switch n := n.(type) {
		case *leaf:
			leaves++
		case *inner:
			for i := range n.width() {
				count(n.at(i))
			}
		}
	}
	count(tr.root)
	if leaves > n/leafMax+1 {
		t.Fatalf("%d leaves for %d records", leaves, n)
	}
}

func TestTreeBuild(t *testing.T) {
	for _, n := range []int{0, 1, 45, 46, 61, 62, 3000, 100_000} {
		var records []*record
		want := map[string]bool{}
		for i := range n {
			r := testRecord(fmt.Sprintf("%06d", i))
			if i%3 == 0 {
				r.head.Load().version = 0
			}
			want[r.key] = i%3 != 0
			records = append(records, r)
		}
		var tr tree
		tr.build(records)
		check(t, tr.root, want)
		if n > 0 {
			tr.begin()
			tr.insert(testRecord("000000x"))
			want["000000x"] = true
			check(t, tr.root, want)
		}
	}
}

func TestSortRecords(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, alphabet := range []string{"a", "ab", "\x00\x01", "\x00\xff"} {
		keys := map[string]bool{}
		for range 2000 {
			var b strings.Builder
			b.WriteString("shared")
			for range r.IntN(30) {
				b.WriteByte(alphabet[r.IntN(len(alphabet))])
			}
			keys[b.String()] = true
		}
		var records []*record
		for k := range keys {
			records = append(records, testRecord(k))
		}
		sortRecords(records)
		if !slices.IsSortedFunc(records, func(a, b *record) int { return strings.Compare(a.key, b.key) }) {
			t.Fatal("not sorted")
		}
	}
}

// TestIndex inserts and removes records while shards grow.
func TestIndex(t *testing.T) {
	var x index
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	want := map[string]*record{}
	for range 200_000 {
		k := fmt.Sprint(r.IntN(30_000))
		switch rec := want[k]; {
		case rec == nil:
			want[k] = testRecord(k)
			x.insert(want[k])
		case r.IntN(3) > 0:
			x.remove(rec)
			delete(want, k)
		}
	}
	for i := range 30_000 {
		k := fmt.Sprint(i)
		if got := x.find([]byte(k)); got != want[k] {
			t.Fatalf("found %v at %q, want %v", got, k, want[k])
		}
	}
}

// TestJumps searches long chains, also after they were cut.
func TestJumps(t *testing.T) {
	r := testRecord("hot")
	const n = 100_000
	for i := Revision(2); i <= n; i++ {
		r.push(&version{main: 2 * i, version: int64(i)})
	}
	steps := 0
	for at := Revision(2 * n); at >= 4; at -= 997 {
		v := r.head.Load()
		for v.main > at {
			steps++
			if j := v.jump.Load(); j != nil && j.main > at {
				v = j
			} else {
				v = v.prev.Load()
			}
		}
		if want := at &^ 1; v.main != want || r.visible(at) != v {
			t.Fatalf("at %d: version of %d", at, v.main)
		}
	}
	if steps > 60*2*n/997 {
		t.Fatalf("%d steps for %d searches", steps, 2*n/997)
	}
}

func TestPair(t *testing.T) {
	for _, value := range []string{"", "v", strings.Repeat("long", 100)} {
		for _, f := range [][4]int64{{1, 1, 1, 0}, {1 << 40, 1<<40 + 5, 7, -3}, {0, 9, 0, 0}} {
			pair := appendValue(appendLead(nil, "key", f[0], f[1], f[2], f[3]), []byte(value))
			if n := leadBytes(3, f[0], f[1], f[2], f[3]) + valueBytes(len(value)); n != len(pair) {
				t.Fatalf("%d bytes, foretold %d", len(pair), n)
			}
			got, err := parsePair(pair)
			if err != nil || string(got.key) != "key" || [4]int64{got.create, got.mod, got.version, got.lease} != f {
				t.Fatalf("%+v, %v", got, err)
			}
			if v := valueOf(pair, got.lead); string(v) != value {
				t.Fatalf("value %q", v)
			}
		}
	}
}

func FuzzParsePair(f *testing.F) {
	f.Add(appendValue(appendLead(nil, "key", 1, 2, 3, 4), []byte("value")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if facts, err := parsePair(b); err == nil {
			valueOf(b, facts.lead)
			keyOf(b, len(facts.key))
		}
	})
}
