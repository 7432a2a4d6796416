package tree

import "encoding/binary"

// Op says what a request does. The numbers are in logs: they never change.
type Op byte

const (
	Set              Op = 1
	Create           Op = 2
	Update           Op = 3
	CompareAndSwap   Op = 4
	CreateInOrder    Op = 5 // a child of Path, named by the revision
	Delete           Op = 6
	CompareAndDelete Op = 7
	Expire           Op = 8 // the leader's: all of Due whose deadlines are still those
)

// Request is a change that somebody wants. Fields that an operation does not
// name are ignored.
type Request struct {
	Op   Op
	Path string

	// What to write.
	Value    string
	Dir      bool  // a directory; or, with Delete, an empty one may go
	Deadline int64 // in nanoseconds since 1970, as whoever received the request reckons; 0 is never
	Refresh  bool  // with Set, Update and CompareAndSwap: keep the value, tell nobody

	Recursive bool // with Delete: a directory goes with all that is below it

	// What to compare, if not "" and 0.
	PrevValue string
	PrevIndex uint64

	Due []Deadline
}

const (
	flagDir byte = 1 << iota
	flagRefresh
	flagRecursive
	flags = flagDir | flagRefresh | flagRecursive
)

// Append appends the encoded request:
//
//	op 1 | flags 1 | path | value | previous value | previous index uvarint | deadline varint
//
// where texts come after their lengths; and for Expire
//
//	op 1 | 0 1 | for each: deadline varint | key
func (q *Request) Append(b []byte) []byte {
	b = append(b, byte(q.Op))
	if q.Op == Expire {
		b = append(b, 0)
		for _, d := range q.Due {
			b = binary.AppendVarint(b, d.At)
			b = appendText(b, d.Key)
		}
		return b
	}
	var f byte
	if q.Dir {
		f |= flagDir
	}
	if q.Refresh {
		f |= flagRefresh
	}
	if q.Recursive {
		f |= flagRecursive
	}
	b = append(b, f)
	for _, s := range []string{q.Path, q.Value, q.PrevValue} {
		b = appendText(b, s)
	}
	b = binary.AppendUvarint(b, q.PrevIndex)
	return binary.AppendVarint(b, q.Deadline)
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// Parse reads an encoded request, and tells whether it is one that makes sense.
func Parse(b []byte) (Request, bool) {
	if len(b) < 2 || b[0] == 0 || Op(b[0]) > Expire || b[1]&^flags != 0 {
		return Request{}, false
	}
	q := Request{Op: Op(b[0]), Dir: b[1]&flagDir != 0, Refresh: b[1]&flagRefresh != 0, Recursive: b[1]&flagRecursive != 0}
	r := reader{rest: b[2:]}
	if q.Op == Expire {
		for len(r.rest) > 0 && !r.failed {
			q.Due = append(q.Due, Deadline{r.varint(), r.text()})
		}
		return q, !r.failed && b[1] == 0
	}
	q.Path, q.Value, q.PrevValue = r.text(), r.text(), r.text()
	q.PrevIndex, q.Deadline = r.uvarint(), r.varint()
	return q, !r.failed && len(r.rest) == 0 && q.Valid()
}

// Valid tells whether the path is one that the operation can have.
func (q *Request) Valid() bool {
	return Valid(q.Path) && (q.Op != CreateInOrder || Valid(child(q.Path, "0")))
}

// reader reads what follows itself. Once it has failed it reads zeros.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) uvarint() uint64 {
	x, n := binary.Uvarint(r.rest)
	r.skip(n)
	return x
}

func (r *reader) varint() int64 {
	x, n := binary.Varint(r.rest)
	r.skip(n)
	return x
}

func (r *reader) text() string {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.failed = true
		return ""
	}
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}

func (r *reader) skip(n int) {
	if n <= 0 {
		r.failed, r.rest = true, nil
		return
	}
	r.rest = r.rest[n:]
}
