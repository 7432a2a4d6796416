package mvcc

import (
	"sync/atomic"
	"unsafe"
)

// record is a key and its versions. The tree and the index hold records; a
// put on a key that exists changes nothing but the head.
type record struct {
	key   string
	head  atomic.Pointer[version] // the newest version; never nil once others see the record
	hash  uint32
	marks atomic.Uint32
}

// newRecord makes a record of a copy of key. Most keys lie in the same piece of
// memory as their record: one object less for the collector to visit, and one
// miss of the cache less for those who compare keys.
func newRecord(key []byte) *record {
	switch n := len(key); {
	case n <= 16:
		x := new(struct {
			record
			bytes [16]byte
		})
		return x.named(x.bytes[:copy(x.bytes[:], key)])
	case n <= 32:
		x := new(struct {
			record
			bytes [32]byte
		})
		return x.named(x.bytes[:copy(x.bytes[:], key)])
	case n <= 64:
		x := new(struct {
			record
			bytes [64]byte
		})
		return x.named(x.bytes[:copy(x.bytes[:], key)])
	case n <= 96:
		x := new(struct {
			record
			bytes [96]byte
		})
		return x.named(x.bytes[:copy(x.bytes[:], key)])
	}
	return &record{key: string(key)}
}

// named gives r a key whose bytes nobody changes any more.
func (r *record) named(key []byte) *record {
	r.key = unsafe.String(unsafe.SliceData(key), len(key))
	return r
}

const (
	markRead  = 1 << iota // read since the hand of eviction passed
	markDirty             // in the writer's list of records that a sweep has to visit
)

func (r *record) mark(bit uint32) {
	if r.marks.Load()&bit == 0 { // most often it is set, and a load shares the cache line
		r.marks.Or(bit)
	}
}

// version is one state of a key, from its revision to that of the next. All
// but the pointers is immutable once a view can see it. What a get looks at
// comes first, to lie in one line of the cache.
type version struct {
	main    Revision
	version int64                // counts from 1; 0 is a deletion
	pair    atomic.Pointer[byte] // size bytes, or nil where only the table has them
	size    uint32
	lead    uint32 // bytes of the pair before its value

	// prev is the version before, nil for the first and where a sweep cut.
	// jump leads further back: with it a chain of n versions is searched in
	// O(log n). It never needs to be followed to where a sweep has been.
	prev, jump atomic.Pointer[version]

	create Revision
	lease  int64
	sub    int32
	depth  uint32 // place in the chain, for the length of jumps; may wrap
	alone  bool   // the only change of its revision
	noted  bool   // it begins a notedVersion
}

// notedVersion is a version with a note. Few have one, and the others are not
// to pay for it.
type notedVersion struct {
	version
	note string
}

// newVersion returns an empty version with a note, or with none if that is "".
func newVersion(note string) *version {
	if note == "" {
		return new(version)
	}
	n := &notedVersion{note: note}
	n.noted = true
	return &n.version
}

// note returns what was noted beside the version, or "".
func (v *version) note() string {
	if !v.noted {
		return ""
	}
	return (*notedVersion)(unsafe.Pointer(v)).note
}

func (v *version) deleted() bool { return v.version == 0 }

func (v *version) at() Position { return Position{v.main, v.sub} }

// bytes is what the row of v takes in the table.
func (v *version) bytes() int64 { return int64(rowKeyBytes + v.headBytes() + int(v.size)) }

// headBytes is what its row holds before the pair.
func (v *version) headBytes() int {
	if !v.noted {
		return rowHeadBytes
	}
	n := len(v.note())
	return rowHeadBytes + varintBytes(uint64(n)) + n
}

// resident returns the pair if it is in memory.
func (v *version) resident() []byte {
	if p := v.pair.Load(); p != nil {
		return unsafe.Slice(p, v.size)
	}
	return nil
}

// push puts v in front of the chain of r.
func (r *record) push(v *version) {
	if p := r.head.Load(); p != nil {
		v.depth = p.depth + 1
		v.prev.Store(p)
		v.jump.Store(jumpOver(p))
	}
	r.head.Store(v)
}

// jumpOver returns where a version in front of p jumps to. Lengths of jumps
// are those of a skew-binary number system: two equal ones in a row are
// spanned by the next.
func jumpOver(p *version) *version {
	if a := p.jump.Load(); a != nil {
		if b := a.jump.Load(); b != nil && p.depth-a.depth == a.depth-b.depth {
			return b
		}
	}
	return p
}

// visible returns the newest version of r at a revision, or nil.
func (r *record) visible(at Revision) *version {
	v := r.head.Load()
	for v != nil && v.main > at {
		if j := v.jump.Load(); j != nil && j.main > at {
			v = j
		} else {
			v = v.prev.Load()
		}
	}
	return v
}

// alive is visible without deletions.
func (r *record) alive(at Revision) *version {
	if v := r.visible(at); v != nil && !v.deleted() {
		return v
	}
	return nil
}
