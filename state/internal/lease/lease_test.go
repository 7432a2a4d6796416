package lease

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kvorum/kvorum/state/internal/table"
)

// nowhere takes rows that nobody wants to see.
type nowhere struct{}

func (nowhere) Set(key, value []byte) {}
func (nowhere) Delete(key []byte)     {}

// TestSets makes sets out of sets, and wants each to be what a map is, and to
// stay so.
func TestSets(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	type held struct {
		leases map[ID]Lease
		keys   map[string]ID
		set    *Set
	}
	versions := []held{{map[ID]Lease{}, map[string]ID{}, nil}}
	ids := []ID{math.MinInt64, -3, -1, 1, 2, 5, 100, math.MaxInt64}
	for range 4000 {
		old := versions[r.IntN(len(versions))]
		next := held{maps.Clone(old.leases), maps.Clone(old.keys), old.set}
		id := ids[r.IntN(len(ids))]
		switch _, exists := next.leases[id]; {
		case !exists || r.IntN(20) == 0:
			next.leases[id] = Lease{id, 1 + r.Int64N(100), r.Int64N(2)}
			next.set = next.set.Put(nowhere{}, next.leases[id])
		case r.IntN(20) == 0:
			delete(next.leases, id)
			maps.DeleteFunc(next.keys, func(_ string, on ID) bool { return on == id })
			next.set = next.set.Drop(nowhere{}, id)
		default:
			for range r.IntN(40) {
				key := fmt.Sprint("k", r.IntN(300))
				to := id
				if r.IntN(3) == 0 {
					to = 0
				}
				next.set = next.set.Move(key, next.keys[key], to)
				if next.keys[key] = to; to == 0 {
					delete(next.keys, key)
				}
			}
		}
		if len(versions) < 50 {
			versions = append(versions, next)
		} else {
			versions[r.IntN(len(versions))] = next
		}

		v := versions[r.IntN(len(versions))]
		if n := v.set.Len(); n != len(v.leases) {
			t.Fatalf("%d leases, want %d", n, len(v.leases))
		}
		for _, id := range ids {
			if l, ok := v.set.Find(id); l != v.leases[id] || ok != v.set.Has(id) || ok != (l.ID != 0) {
				t.Fatalf("lease %d is %v, want %v", id, l, v.leases[id])
			}
			var want []string
			for key, on := range v.keys {
				if on == id {
					want = append(want, key)
				}
			}
			slices.Sort(want)
			if got := slices.Collect(v.set.Keys(id)); !slices.Equal(got, want) {
				t.Fatalf("keys on %d: %q, want %q", id, got, want)
			}
			for range v.set.Keys(id) { // stopped at the first
				break
			}
		}
	}
}

// TestRows pins the bytes of a lease's row, and what is refused of them.
func TestRows(t *testing.T) {
	l := Lease{ID: 0x1234, Granted: 60, Remaining: 7}
	if got, want := fmt.Sprintf("%x: %x", rowKey(l.ID), rowValue(l)), "058000000000001234: 000000000000003c0000000000000007"; got != want {
		t.Errorf("row %s, want %s", got, want)
	}
	for _, id := range []ID{math.MinInt64, -1, 1, math.MaxInt64} {
		l.ID = id
		if got, err := parseRow(rowKey(l.ID), rowValue(l)); err != nil || got != l {
			t.Errorf("read %v, %v; want %v", got, err, l)
		}
	}
	for _, bad := range []Lease{
		{0, 1, 0}, {1, 0, 0}, {1, -1, 0}, {1, SecondsMax + 1, 0}, {1, 5, 6}, {1, 5, -1},
	} {
		if _, err := parseRow(rowKey(bad.ID), rowValue(bad)); err == nil {
			t.Errorf("read %v", bad)
		}
	}
	if _, err := parseRow(rowKey(1), nil); err == nil {
		t.Error("read a row without a value")
	}
}

// TestLoad reads back what was written, and refuses keys on leases that are not
// there.
func TestLoad(t *testing.T) {
	rows := table.NewMemory()
	b := rows.Batch()
	var s *Set
	for id := ID(-500); id < 500; id++ {
		if id != 0 {
			s = s.Put(b, Lease{ID: id, Granted: 10})
		}
	}
	s = s.Drop(b, 7)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(rows, []Hold{{3, "a"}, {-500, "b"}, {3, "c"}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(slices.Collect(s.All()), slices.Collect(loaded.All())) {
		t.Error("other leases are read than were written")
	}
	if got := slices.Collect(loaded.Keys(3)); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("keys on 3: %q", got)
	}
	if s.Size() != loaded.Size() || s.Size() != 998*(9+16) {
		t.Errorf("size %d, loaded %d", s.Size(), loaded.Size())
	}
	if _, err := Load(rows, []Hold{{3, "a"}, {7, "b"}}); err == nil {
		t.Error("a key hangs on a lease that does not exist")
	}
}
