// Package lease keeps lease facts: which leases exist, how long they were
// granted for, and which keys hang on them. It has no clock; package leader
// decides when a lease has run out.
//
// L1: a key hangs on at most one lease, the one that its pair names.
// L2: a lease that a key hangs on exists.
// L3: a set never changes; a change makes another, which shares most of it.
package lease

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/kvorum/kvorum/state/internal/ordered"
	"github.com/kvorum/kvorum/state/internal/table"
)

// ID names a lease. It is not 0, which means that there is none.
type ID int64

// SecondsMax is the longest time that a lease can be granted for.
const SecondsMax = 9_000_000_000

// Lease is what everybody agrees on about a lease.
type Lease struct {
	ID      ID
	Granted int64 // seconds

	// Remaining is how many seconds of them were left when that was last
	// written down, 0 if it never was or the lease was renewed since. It is
	// what a new leader counts from.
	Remaining int64
}

// Compare orders leases by their ids.
func (l Lease) Compare(m Lease) int { return cmp.Compare(l.ID, m.ID) }

// Hold says that a key hangs on a lease.
type Hold struct {
	Lease ID
	Key   string
}

// Compare orders holds by lease and key.
func (h Hold) Compare(g Hold) int {
	if h.Lease != g.Lease {
		return cmp.Compare(h.Lease, g.Lease)
	}
	return strings.Compare(h.Key, g.Key)
}

// Set is the leases of a cluster and the keys on them. The nil set is empty.
type Set struct {
	leases *ordered.Set[Lease]
	holds  *ordered.Set[Hold]
}

// Rows takes changes of rows.
type Rows interface {
	Set(key, value []byte)
	Delete(key []byte)
}

func (s *Set) parts() Set {
	if s == nil {
		return Set{}
	}
	return *s
}

// Find returns the lease with an id.
func (s *Set) Find(id ID) (Lease, bool) { return s.parts().leases.Find(Lease{ID: id}) }

// Has tells whether there is a lease with an id.
func (s *Set) Has(id ID) bool {
	_, ok := s.Find(id)
	return ok
}

// Len returns how many leases there are.
func (s *Set) Len() int { return s.parts().leases.Len() }

// All yields the leases in the order of their ids.
func (s *Set) All() iter.Seq[Lease] {
	return func(yield func(Lease) bool) { s.parts().leases.Each(yield) }
}

// Keys yields the keys on a lease, in order.
func (s *Set) Keys(id ID) iter.Seq[string] {
	return func(yield func(string) bool) {
		s.parts().holds.From(Hold{Lease: id}, func(h Hold) bool { return h.Lease == id && yield(h.Key) })
	}
}

// Size returns the bytes of all rows.
func (s *Set) Size() int64 { return int64(s.Len()) * (rowKeyBytes + rowValueBytes) }

// Put adds a lease, or changes what is known of it.
func (s *Set) Put(rows Rows, l Lease) *Set {
	rows.Set(rowKey(l.ID), rowValue(l))
	next := s.parts()
	next.leases = next.leases.With(l)
	return &next
}

// Drop removes a lease, and all keys from it: they were deleted.
func (s *Set) Drop(rows Rows, id ID) *Set {
	rows.Delete(rowKey(id))
	next := s.parts()
	next.leases = next.leases.Without(Lease{ID: id})
	below, rest := next.holds.Split(Hold{Lease: id})
	if id == math.MaxInt64 {
		rest = nil
	} else {
		_, rest = rest.Split(Hold{Lease: id + 1})
	}
	next.holds = ordered.Concat(below, rest)
	return &next
}

// Move moves a key from one lease to another; 0 is none.
func (s *Set) Move(key string, from, to ID) *Set {
	if from == to {
		return s
	}
	next := s.parts()
	if from != 0 {
		next.holds = next.holds.Without(Hold{from, key})
	}
	if to != 0 {
		next.holds = next.holds.With(Hold{to, key})
	}
	return &next
}

// A lease's row holds its granted and its remaining seconds.
const (
	rowKeyBytes   = 1 + 8
	rowValueBytes = 8 + 8
)

// rowKey keeps the order of ids, of which some are negative.
func rowKey(id ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{table.Leases}, uint64(id)^1<<63)
}

func rowValue(l Lease) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, rowValueBytes), uint64(l.Granted))
	return binary.BigEndian.AppendUint64(b, uint64(l.Remaining))
}

func parseRow(key, value []byte) (Lease, error) {
	if len(key) != rowKeyBytes || len(value) != rowValueBytes {
		return Lease{}, fmt.Errorf("lease: damaged row %x: %x", key, value)
	}
	l := Lease{
		ID:        ID(binary.BigEndian.Uint64(key[1:]) ^ 1<<63),
		Granted:   int64(binary.BigEndian.Uint64(value)),
		Remaining: int64(binary.BigEndian.Uint64(value[8:])),
	}
	if l.ID == 0 || l.Granted < 1 || l.Granted > SecondsMax || l.Remaining < 0 || l.Remaining > l.Granted {
		return Lease{}, fmt.Errorf("lease: damaged row %x: %x", key, value)
	}
	return l, nil
}

var errNoLease = errors.New("lease: a key hangs on a lease that does not exist")

// Load reads the leases from a table. The keys on them are handed in: their
// pairs name their leases.
func Load(r table.Reader, holds []Hold) (*Set, error) {
	var leases []Lease
	var failed error
	err := r.Scan([]byte{table.Leases}, []byte{table.Leases + 1}, func(key, value []byte) bool {
		var l Lease
		l, failed = parseRow(key, value)
		leases = append(leases, l)
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil || len(leases)+len(holds) == 0 {
		return nil, err
	}
	s := &Set{leases: ordered.Build(leases)}
	slices.SortFunc(holds, Hold.Compare)
	for i, h := range holds {
		if (i == 0 || holds[i-1].Lease != h.Lease) && !s.Has(h.Lease) {
			return nil, fmt.Errorf("%w: %x", errNoLease, uint64(h.Lease))
		}
	}
	s.holds = ordered.Build(holds)
	return s, nil
}
