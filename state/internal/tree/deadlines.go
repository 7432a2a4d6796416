package tree

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/kvorum/kvorum/state/internal/ordered"
)

// Deadline is when a key is to go: that of a file alone, the marker of a
// directory with all that is below it.
type Deadline struct {
	At  int64 // in nanoseconds since 1970
	Key string
}

// Compare orders deadlines by time.
func (d Deadline) Compare(e Deadline) int {
	return cmp.Or(cmp.Compare(d.At, e.At), strings.Compare(d.Key, e.Key))
}

// Deadlines are those of all keys that have one. A set never changes; the nil
// one is empty.
type Deadlines struct {
	set *ordered.Set[Deadline]
}

func (d *Deadlines) all() *ordered.Set[Deadline] {
	if d == nil {
		return nil
	}
	return d.set
}

// All yields the deadlines, the earliest first.
func (d *Deadlines) All() iter.Seq[Deadline] {
	return func(yield func(Deadline) bool) { d.all().Each(yield) }
}

// With adds the deadline that a note gives its key, if it does.
func (d *Deadlines) With(key, note string) *Deadlines {
	if at := deadlineIn(key, note); at != 0 {
		return &Deadlines{d.all().With(Deadline{at, key})}
	}
	return d
}

// Without leaves out the deadline that a note gave its key, if it did.
func (d *Deadlines) Without(key, note string) *Deadlines {
	if at := deadlineIn(key, note); at != 0 {
		return &Deadlines{d.all().Without(Deadline{at, key})}
	}
	return d
}

func deadlineIn(key, encoded string) int64 {
	n, err := parseNote(encoded, len(key))
	must(err == nil, "notes were encoded here")
	return n.deadline
}

// Loading gathers the deadlines of keys while they are read.
type Loading struct {
	found []Deadline
	err   error
}

// Add takes a key and the note beside it.
func (l *Loading) Add(key, encoded string) {
	n, err := parseNote(encoded, len(key))
	switch {
	case err != nil:
		l.err = fmt.Errorf("%w at %q: %x", err, key, encoded)
	case n.deadline != 0:
		l.found = append(l.found, Deadline{n.deadline, key})
	}
}

// Deadlines returns what was gathered.
func (l *Loading) Deadlines() (*Deadlines, error) {
	if l.err != nil || len(l.found) == 0 {
		return nil, l.err
	}
	slices.SortFunc(l.found, Deadline.Compare)
	return &Deadlines{ordered.Build(l.found)}, nil
}
