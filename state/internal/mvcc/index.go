package mvcc

import (
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// index finds records by key. One writer changes it, any number of readers
// look things up meanwhile and never wait.
//
// It is many small tables rather than a large one: each grows by itself, so no
// put ever pays for moving a million records.
type index struct {
	shards [shardCount]shard
}

const (
	shardBits  = 10
	shardCount = 1 << shardBits
	shardSlots = 8 // to begin with
)

type shard struct {
	slots atomic.Pointer[slots]

	// Owned by the writer.
	records int
	used    int // slots that are not free: records, and places of removed ones
}

// slots is an open-addressing table; its length is a power of two. A place
// goes from free to a record, and from there to removed and back, so a probe
// that another key's record was found by once still leads there.
type slots []atomic.Pointer[record]

var removed = new(record)

// hashKey returns the shard of a key, and the part of its hash that places it there.
func hashKey(key []byte) (uint64, uint32) {
	h := xxhash.Sum64(key)
	return h >> (64 - shardBits), uint32(h)
}

func (x *index) find(key []byte) *record {
	n, hash := hashKey(key)
	table := x.shards[n].slots.Load()
	if table == nil {
		return nil
	}
	mask := uint32(len(*table) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		r := (*table)[i].Load()
		if r == nil {
			return nil
		}
		if r.hash == hash && r.key == string(key) {
			return r
		}
	}
}

// insert adds a record whose key is not there.
func (x *index) insert(r *record) {
	n, hash := hashKey([]byte(r.key))
	r.hash = hash
	s := &x.shards[n]
	if table := s.slots.Load(); table == nil || 4*(s.used+1) > 3*len(*table) {
		s.rebuild()
	}
	if s.slots.Load().add(r) {
		s.used++
	}
	s.records++
}

// add places r and tells whether it took a free slot.
func (t slots) add(r *record) bool {
	mask := uint32(len(t) - 1)
	for i := r.hash & mask; ; i = (i + 1) & mask {
		if old := t[i].Load(); old == nil || old == removed {
			t[i].Store(r)
			return old == nil
		}
	}
}

// rebuild makes room, by growing or by forgetting removed records. Readers go
// on in the table that they found.
func (s *shard) rebuild() {
	size := shardSlots
	for 2*(s.records+1) > size {
		size *= 2
	}
	table := make(slots, size)
	if old := s.slots.Load(); old != nil {
		for i := range *old {
			if r := (*old)[i].Load(); r != nil && r != removed {
				table.add(r)
			}
		}
	}
	s.used = s.records
	s.slots.Store(&table)
}

func (x *index) remove(r *record) {
	n, hash := hashKey([]byte(r.key))
	s := &x.shards[n]
	table := *s.slots.Load()
	mask := uint32(len(table) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		switch table[i].Load() {
		case r:
			table[i].Store(removed)
			s.records--
			return
		case nil:
			must(false, "a record that is removed is in the index")
		}
	}
}
